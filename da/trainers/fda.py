"""Fourier domain adaptation: source images take on the low-frequency amplitudes of target images.

Yang, Soatto: "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020.

    python -m da train experiments/mini/fda.yaml

Symbols: x_s, y_s source image and label; x_t target image; F the Fourier transform of each colour channel, A and phi
its amplitude and phase; M the window of low frequencies, of half width b = floor(min(H, W) beta); P = softmax(f(x)).

    x_st  = F^-1( [M A(x_t) + (1 - M) A(x_s)] e^(i phi(x_s)) )                                     (eq. 3)
    L_seg = CE(f(x_st), y_s) + lambda_aux CE(f_aux(x_st), y_s)
    L_ent = mean of rho(e(x_t)),  e = -1/log C sum_c P_c log P_c,  rho(e) = (e^2 + 10^-8)^eta       (eqs. 4, 5)

f minimises L_seg + lambda_ent L_ent; the penalty rho spares pixels that are sure already. L_ent is taken at the output
stride, from update `ent_start` on.

In the second stage, self-training (section 3.3), the target has pseudo labels y_t, which `da label` made of the mean of
the first stage's models, and f minimises lambda_pseudo CE(f(x_t), y_t) besides.

Differs from the authors' code: the segmenter is PSPNet; every parameter stands in its optimiser once (see
`backbone_lr_mult`). Their window leaves out the frequencies +b, so that the picture it gives is not quite real, and its
imaginary part is dropped: `window: released`. Ours is symmetric. A target crop of another size is resized to the
source's for the swap.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.losses import FourierWindow, fourier_swap, robust_entropy, upsampled_cross_entropy
from da.nets.optimizers import SegmenterSGD
from da.nets.pspnet import PSPNet
from da.trainers import base


class Config(SegmenterSGD):
    lambda_aux: NonNegativeFloat = 0.0  # weight of the auxiliary head's segmentation loss
    beta: float = Field(0.01, ge=0, lt=0.5)  # half width of the window over the shorter side; 0 = no swap
    window: FourierWindow = "symmetric"
    lambda_ent: NonNegativeFloat = 0.005
    eta: PositiveFloat = 2.0
    ent_start: NonNegativeInt = 0  # update at which L_ent sets in
    lambda_pseudo: NonNegativeFloat = 0.0  # weight of the loss on pseudo labels; 0 = the first stage


class Trainer(base.Trainer):
    headline: ClassVar = {"loss/seg": "loss", "loss/ent": "entropy penalty"}
    example_titles: ClassVar = ("source", "swapped", "target")

    def __init__(self, config: base.Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        config.require_aux("lambda_aux")
        self.learns_from_pseudo_labels = self.method.lambda_pseudo > 0
        self.segmenter = PSPNet(config.model, len(self.classes))
        self.modules = {"segmenter": self.segmenter}
        self.optimizers = {"segmenter": self.method.build(self.segmenter)}

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        assert batch.tgt_image is not None
        m = self.method
        x_s, y_s = self.view(batch.src_image), batch.src_label  # (B, 3, H, W) in [0, 1], (B, H, W) trainIds
        x_t = self.view(batch.tgt_image)

        scores_s = self.segmenter.scores(self.swap(x_s, x_t), "source")
        loss_seg, scalars = self.segmentation_loss(scores_s, y_s, m.lambda_aux)  # L_seg
        backward(loss_seg)

        scores_t = self.segmenter.scores(x_t, "target").main
        scalars["loss/ent"] = robust_entropy(scores_t.float().softmax(1), m.eta)  # L_ent
        loss = m.lambda_ent * float(self.iteration >= m.ent_start) * scalars["loss/ent"]
        if self.learns_from_pseudo_labels:
            assert batch.tgt_label is not None
            pseudo = upsampled_cross_entropy(scores_t, batch.tgt_label, self.segmenter.config.align_corners)
            scalars["loss/pseudo"] = self.target_weight * pseudo  # CE(f(x_t), y_t)
            loss = loss + m.lambda_pseudo * scalars["loss/pseudo"]
        backward(loss)
        return scalars

    def swap(self, x_s: Tensor, x_t: Tensor) -> Tensor:
        """x_st of each pair of images, (B, 3, H, W); its values may leave [0, 1]."""
        if x_t.shape[-2:] != x_s.shape[-2:]:
            x_t = F.interpolate(x_t, x_s.shape[-2:], mode="bilinear", antialias=True)
        return fourier_swap(x_s, x_t, self.method.beta, self.method.window)

    def examples(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        assert batch.tgt_image is not None
        x_s, x_t = batch.src_image.float() / 255, batch.tgt_image.float() / 255
        return [(x_s, self.swap(x_s, x_t).clamp(0, 1), x_t)]
