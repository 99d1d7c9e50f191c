"""Direct entropy minimisation: predictions on the target should be as sure as those on the source.

Vu, Jain, Bucher, Cord, Perez: "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic
Segmentation", CVPR 2019, section 3.1.

    python -m da train experiments/mini/minent.yaml

Symbols: x_s, y_s source image and label; x_t target image; P = softmax(f(x)) the segmenter's output, `main` from the
last layer and `aux` from layer 3; E(P) = -1/log C sum_c P_c log P_c, in [0, 1], mean over the pixels; p_s each class's
share of the source's labelled pixels.

    L_seg(x_s) = CE(P_main, y_s) + lambda_aux CE(P_aux, y_s)
    L_ent(x_t) = lambda_ent_main E(P_main) + lambda_ent_aux E(P_aux)                               (eqs. 2, 3)
    L_cp(x_t)  = lambda_prior sum_c max(0, mu p_s^c - mean over x_t of P_main^c)                   (section 3.3)

f minimises L_seg + L_ent + L_cp. The class-ratio prior L_cp keeps classes that sure predictions would lose.

Differs from the authors' code: the segmenter is PSPNet, whose auxiliary head is the second level; every parameter
stands in its optimiser once (see `backbone_lr_mult`). The class-ratio prior is not released: this is the form that its
authors confirm (their repository, issue 9); they give no weight for it, so it is off by default.
"""

from typing import ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.losses import entropy, missing_classes
from da.nets.optimizers import SegmenterSGD
from da.nets.pspnet import PSPNet
from da.trainers import base


class Config(SegmenterSGD):
    lambda_aux: NonNegativeFloat = 0.1  # weight of the auxiliary head's segmentation loss
    lambda_ent_main: NonNegativeFloat = 1e-3
    lambda_ent_aux: NonNegativeFloat = 2e-4  # 0 = single-level
    lambda_prior: NonNegativeFloat = 0.0  # weight of the class-ratio prior
    prior_mu: float = Field(0.5, ge=0, le=1)  # how much of its share in the source a class should keep


class Trainer(base.Trainer):
    headline: ClassVar = {"loss/seg": "loss", "loss/ent_main": "entropy"}

    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        config.require_aux("lambda_aux", "lambda_ent_aux")
        self.needs_class_shares = self.method.lambda_prior > 0
        self.segmenter = PSPNet(config.model, len(self.classes))
        self.modules = {"segmenter": self.segmenter}
        self.optimizers = {"segmenter": self.method.build(self.segmenter)}

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        assert batch.tgt_image is not None
        m = self.method
        x_s, y_s = self.view(batch.src_image), batch.src_label  # (B, 3, H, W) in [0, 1], (B, H, W) trainIds
        x_t = self.view(batch.tgt_image)

        loss_seg, scalars = self.segmentation_loss(self.segmenter.scores(x_s, "source"), y_s, m.lambda_aux)  # L_seg
        backward(loss_seg)

        scores = self.segmenter(x_t, "target")
        p = scores.main.softmax(1)  # (B, classes, H, W), float32
        scalars["loss/ent_main"] = entropy(p)
        loss = m.lambda_ent_main * scalars["loss/ent_main"]
        if scores.aux is not None:
            scalars["loss/ent_aux"] = entropy(scores.aux.softmax(1))
            loss = loss + m.lambda_ent_aux * scalars["loss/ent_aux"]  # L_ent
        if m.lambda_prior:
            assert self.class_shares is not None
            scalars["loss/prior"] = missing_classes(p, self.class_shares.to(p.device), m.prior_mu)
            loss = loss + m.lambda_prior * scalars["loss/prior"]  # L_cp
        backward(loss)
        return scalars
