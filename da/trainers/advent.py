"""Adversarial entropy minimisation: a discriminator of entropy maps, single- and multi-level.

Vu, Jain, Bucher, Cord, Perez: "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic
Segmentation", CVPR 2019, section 3.2.

    python -m da train experiments/mini/advent.yaml

Symbols: x_s, y_s source image and label; x_t target image; P = softmax(f(x)) the segmenter's output, `main` from the
last layer and `aux` from layer 3; I_c = -P_c log P_c / log C the weighted self-information, (C, H, W); D a
discriminator of it; l = BCE on logits.

    L_seg(x_s) = CE(P_main, y_s) + lambda_aux CE(P_aux, y_s)
    L_adv(x_t) = lambda_adv_main l(D_main(I_main), source) + lambda_adv_aux l(D_aux(I_aux), source)   (eqs. 5, 6)
    L_D        = 1/2 l(D(I_s), source) + 1/2 l(D(I_t), target)     for each D, I detached             (eq. 4)

f minimises L_seg + L_adv, each D its L_D. The discriminators judge the predictions made before the update of f, and
all networks step together, as in AdaptSegNet, from which this differs in what D sees.

Differs from the authors' code: the segmenter is PSPNet, whose auxiliary head is the second level; every parameter
stands in its optimiser once (see `backbone_lr_mult`). A level whose lambda_adv is 0 has no discriminator.
"""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.optim import Adam

from da.config import UserError
from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.losses import deceive, self_information, tell_apart
from da.nets.discriminator import OutputDiscriminator
from da.nets.optimizers import Betas, SegmenterSGD
from da.nets.pspnet import PSPNet, Scores
from da.trainers import base


class Config(SegmenterSGD):
    lambda_aux: NonNegativeFloat = 0.1  # weight of the auxiliary head's segmentation loss
    lambda_adv_main: NonNegativeFloat = 1e-3
    lambda_adv_aux: NonNegativeFloat = 2e-4  # 0 = single-level
    lr_d: NonNegativeFloat = 1e-4
    betas_d: Betas = (0.9, 0.99)


class Trainer(base.Trainer):
    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        weights = {"main": self.method.lambda_adv_main, "aux": self.method.lambda_adv_aux}
        self.lambda_adv = {level: weight for level, weight in weights.items() if weight}
        if not self.lambda_adv:
            raise UserError("method: both lambda_adv are 0; use source_only")
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

        # f: entropy maps of the target should pass for those of the source
        i_t = self.information(self.segmenter.scores(x_t, "target"), x_t)
        loss_adv, parts = deceive(self.d, i_t, self.lambda_adv, "vanilla")  # L_adv
        backward(loss_adv)

        # D: tell the domains apart
        base.freeze(list(self.d.values()), False)
        with torch.no_grad():
            i_s = self.information(scores_s, x_s)
        return scalars | parts | tell_apart(self.d, i_s, i_t, "vanilla", backward)  # L_D

    def information(self, scores: Scores, image: Tensor) -> dict[str, Tensor]:
        """I at the size of the image, (B, classes, H, W), for each level that has a discriminator."""
        upsampled = self.segmenter.upsample(scores, image.shape[-2:])._asdict()
        return {level: self_information(upsampled[level].softmax(1)) for level in self.d}
