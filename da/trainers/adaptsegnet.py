"""Output-space adversarial adaptation, single- and multi-level.

Tsai, Hung, Schulter, Sohn, Yang, Chandraker: "Learning to Adapt Structured Output Space for Semantic
Segmentation", CVPR 2018.

    python -m da train experiments/mini/adaptsegnet_multi.yaml

Symbols: x_s, y_s source image and label; x_t target image; P = softmax(f(x)) the segmenter's output, `main` from
the last layer and `aux` from layer 3; D a discriminator of outputs; l = BCE on logits, or MSE for least squares.

    L_seg(x_s) = CE(P_main, y_s) + lambda_aux CE(P_aux, y_s)                                          (eqs. 3, 5)
    L_adv(x_t) = lambda_adv_main l(D_main(P_main), source) + lambda_adv_aux l(D_aux(P_aux), source)   (eqs. 4, 5)
    L_D        = 1/2 l(D(P_s), source) + 1/2 l(D(P_t), target)     for each D, P detached             (eq. 2)

f minimises L_seg + L_adv, each D minimises its L_D (eq. 6). The discriminators judge the predictions made before
the update of f, and all networks step together.

Differs from the authors' code: the segmenter is PSPNet, whose auxiliary head is the second level; every parameter
stands in its optimiser once (see `backbone_lr_mult`). A level whose lambda_adv is 0 has no discriminator. Source is
domain 0 and target 1, as in that code; z in the paper is 1 for the source.
"""

import torch
from pydantic import AliasChoices, Field, NonNegativeFloat
from torch import Tensor
from torch.optim import Adam

from da.config import UserError
from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.losses import GanKind, deceive, tell_apart
from da.nets.discriminator import OutputDiscriminator
from da.nets.optimizers import Betas, SegmenterSGD
from da.nets.pspnet import PSPNet, Scores
from da.trainers import base


class Config(SegmenterSGD):
    # Weight of the auxiliary head's segmentation loss; `lambda_seg` is the authors' name, also in older runs.
    lambda_aux: NonNegativeFloat = Field(0.1, validation_alias=AliasChoices("lambda_aux", "lambda_seg"))
    lambda_adv_main: NonNegativeFloat = 1e-3
    lambda_adv_aux: NonNegativeFloat = 2e-4  # 0 = single-level
    gan: GanKind = "vanilla"
    lr_d: NonNegativeFloat = 1e-4
    betas_d: Betas = (0.9, 0.99)
    # Ablation: the segmenter sees target images in training mode, so that its batch statistics follow the target,
    # and nothing else of the method happens.
    target_forward_only: bool = False


class Trainer(base.Trainer):
    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        weights = {"main": self.method.lambda_adv_main, "aux": self.method.lambda_adv_aux}
        self.lambda_adv = {level: weight for level, weight in weights.items() if weight}
        if self.method.target_forward_only:
            self.lambda_adv = {}
        elif not self.lambda_adv:
            raise UserError("method: both lambda_adv are 0; say method.target_forward_only=true, or use source_only")
        config.require_aux("lambda_aux", "lambda_adv_aux")
        self.segmenter = PSPNet(config.model, len(self.classes))
        self.d = {level: OutputDiscriminator(len(self.classes)) for level in self.lambda_adv}

        self.modules = {"segmenter": self.segmenter} | {f"d_{level}": d for level, d in self.d.items()}
        self.optimizers = {"segmenter": self.method.build(self.segmenter)}
        for level, d in self.d.items():
            self.optimizers[f"d_{level}"] = Adam(d.parameters(), lr=self.method.lr_d, betas=self.method.betas_d)

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        assert batch.tgt_image is not None
        x_s, y_s = self.view(batch.src_image), batch.src_label  # (B, 3, H, W) in [0, 1], (B, H, W) trainIds
        x_t = self.view(batch.tgt_image)

        # f: supervised on the source
        base.freeze(list(self.d.values()), True)
        scores_s = self.segmenter.scores(x_s, "source")
        loss_seg, scalars = self.segmentation_loss(scores_s, y_s, self.method.lambda_aux)  # L_seg
        backward(loss_seg)
        if self.method.target_forward_only:
            with torch.no_grad():
                self.segmenter.scores(x_t, "target")
            return scalars

        # f: target outputs should pass for source outputs
        p_t = self.probabilities(self.segmenter.scores(x_t, "target"), x_t)
        loss_adv, parts = deceive(self.d, p_t, self.lambda_adv, self.method.gan)  # L_adv
        backward(loss_adv)

        # D: tell the domains apart
        base.freeze(list(self.d.values()), False)
        with torch.no_grad():
            p_s = self.probabilities(scores_s, x_s)
        return scalars | parts | tell_apart(self.d, p_s, p_t, self.method.gan, backward)  # L_D

    def probabilities(self, scores: Scores, image: Tensor) -> dict[str, Tensor]:
        """P at the size of the image, (B, classes, H, W), for each level that has a discriminator."""
        upsampled = self.segmenter.upsample(scores, image.shape[-2:])._asdict()
        return {level: upsampled[level].softmax(1) for level in self.d}
