"""Inpainting: an encoder learns, without labels, to fill in what was cut out of an image.

Pathak, Krahenbuhl, Donahue, Darrell, Efros: "Context Encoders: Feature Learning by Inpainting", CVPR 2016.

    python -m da train experiments/mini/inpainting.yaml

Symbols: x square patches of an image; M the hole, 1 where the patch is to be drawn; M' what of it is missing: of a
centre hole all but a band along its edge; F the encoder with a decoder, which is shown x with the mean colour in M';
x_f what it draws in the hole, in x; D a discriminator of pictures.

    x_f   = M F((1 - M') x + M' mean) + (1 - M) x
    L_rec = mean over M of w (x - x_f)^2, w = 1 where x is missing and 10 in the band                           (eq. 1)
    L_adv = -log D(x_f)                              F minimises lambda_rec L_rec + lambda_adv L_adv            (eq. 3)
    L_D   = -1/2 log D(x) - 1/2 log(1 - D(x_f)), x_f detached                                                   (eq. 2)

Differs from the authors' code: the encoder is the segmenter's, whose last map sees the whole patch, so there is no
layer between all its cells; the decoder draws all of the patch, and the losses see the hole; D is CycleGAN's and
judges the completed picture piece by piece; a random hole has exactly the share that is asked for, where theirs is
drawn again until it fits; the mean colour is that of the encoder's weights.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor
from torch.optim import Adam

from da.config import UserError
from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.experiment import Experiment
from da.nets.discriminator import PatchDiscriminator
from da.nets.generator import to_generator
from da.nets.optimizers import Betas, SegmenterAdamW
from da.nets.pretext import EncoderWithHead, FillingHead
from da.trainers import base, base_pretext


class Config(SegmenterAdamW):
    lr: NonNegativeFloat = 2e-3
    head_lr_mult: NonNegativeFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0
    betas: Betas = (0.5, 0.999)
    patch: PositiveInt = 128  # side of a patch in pixels; as many as fit are cut from each image or crop
    mask: Literal["centre", "random"] = "centre"
    share: float = Field(0.25, gt=0, lt=1)  # of the patch that is missing
    overlap: int = Field(4, ge=0, le=2**12)  # pixels of the band along the edge of a centre hole, which are shown
    lambda_rec: NonNegativeFloat = 0.999
    lambda_adv: NonNegativeFloat = 0.001  # 0 = no discriminator
    decoder_width: PositiveInt = 256
    width_d: PositiveInt = 64
    lr_d: NonNegativeFloat = 2e-4
    betas_d: Betas = (0.5, 0.999)

    @model_validator(mode="after")
    def _something_is_missing(self) -> "Config":
        if self.mask == "centre" and 2 * self.overlap >= (side := centre_side(self.patch, self.share)):
            hole = f"method.patch={self.patch} and method.share={self.share} make {side} pixels a side"
            raise ValueError(f"method.overlap={self.overlap}: two bands of it leave nothing of the hole; {hole}")
        return self


class Trainer(base_pretext.Trainer):
    headline: ClassVar = {"loss/rec": "error in the hole"}
    score: ClassVar[str] = "psnr"
    example_titles: ClassVar = ("patch", "with its hole", "filled in")

    def __init__(self, config: Experiment) -> None:
        super().__init__(config)
        m: Config = config.method
        self.method, self.side = m, m.patch
        self.network = EncoderWithHead(config.model, lambda c, stride: FillingHead(c, stride, m.decoder_width))
        if m.patch < 2 * self.network.backbone.stride:
            raise UserError(f"method.patch: {m.patch} pixels are less than two cells of the encoder; raise it")
        self.modules = {"encoder": self.network}
        self.optimizers = {"encoder": m.build(self.network)}
        if m.lambda_adv:
            self.d = self.modules["d"] = PatchDiscriminator(m.width_d)
            self.optimizers["d"] = Adam(self.d.parameters(), lr=m.lr_d, betas=m.betas_d)

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        m = self.method
        x = self.squares(self.view(batch.src_image))
        hole = self.holes(x)
        filled = self.fill(x, hole)

        scalars = {"loss/rec": self.error(x, filled, hole)}  # L_rec
        loss = m.lambda_rec * scalars["loss/rec"]
        if m.lambda_adv:
            base.freeze([self.d], True)
            scalars["loss/adv"] = F.softplus(-self.judge(filled)).mean()  # L_adv
            loss = loss + m.lambda_adv * scalars["loss/adv"]
        backward(loss)

        if m.lambda_adv:
            base.freeze([self.d], False)
            on_real, on_filled = self.judge(x), self.judge(filled.detach())
            scalars["loss/d"] = 0.5 * F.softplus(-on_real).mean() + 0.5 * F.softplus(on_filled).mean()  # L_D
            backward(scalars["loss/d"])
            scalars["d/accuracy"] = 0.5 * (on_real > 0).float().mean() + 0.5 * (on_filled <= 0).float().mean()
        return scalars

    def holes(self, x: Tensor) -> Tensor:
        """M: (N, 1, s, s) bool."""
        if self.method.mask == "random":
            return random_holes(x, self.method.share)
        return centre_hole(x, centre_side(self.side, self.method.share))

    def missing(self, hole: Tensor) -> Tensor:
        """M': (N, 1, s, s) bool."""
        if self.method.mask == "random":
            return hole
        return centre_hole(hole, centre_side(self.side, self.method.share) - 2 * self.method.overlap)

    def shown(self, x: Tensor, hole: Tensor) -> Tensor:
        return torch.where(self.missing(hole), self.network.mean.view(3, 1, 1), x)

    def fill(self, x: Tensor, hole: Tensor) -> Tensor:
        """x_f, float32, in [0, 1]."""
        _, layer4 = self.network.encode(self.shown(x, hole))
        return torch.where(hole, self.network.drawn(layer4, x.shape[-2:]), x)

    def error(self, x: Tensor, filled: Tensor, hole: Tensor) -> Tensor:
        """L_rec, of values in [-1, 1]."""
        squared = (to_generator(filled) - to_generator(x)).square().mean(1, keepdim=True)
        weight = torch.where(self.missing(hole), 1.0, 10.0) * hole
        return (weight * squared).sum() / hole.sum()

    def judge(self, picture: Tensor) -> Tensor:
        """D's log-odds that pictures in [0, 1] are real."""
        return self.d(to_generator(picture)).float()

    def examine(self, image: Tensor) -> dict[str, Tensor]:
        x = self.squares(image)
        hole = self.holes(x)
        missing = self.missing(hole)
        squared = (self.fill(x, hole) - x).square().mean(1, keepdim=True)
        error = (missing * squared).sum((1, 2, 3)) / missing.sum((1, 2, 3))  # of each patch, where it is missing
        return {"psnr": (-10 * error.clamp(min=1e-10).log10()).mean(), "mse": error.mean()}

    def illustrate(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.squares(image)[:1]
        hole = self.holes(x)
        return x, self.shown(x, hole), self.fill(x, hole)


def centre_side(patch: int, share: float) -> int:
    """Of a square with a share of the pixels of a patch, as nearly as whole pixels allow."""
    return max(1, round(patch * share**0.5))


def centre_hole(x: Tensor, hole: int) -> Tensor:
    """A square of `hole` pixels a side in the middle of patches (N, C, s, s): (N, 1, s, s) bool."""
    side = x.shape[-1]
    along = torch.arange(side, device=x.device) - (side - hole) // 2
    inside = (along >= 0) & (along < hole)
    return (inside[:, None] & inside).expand(len(x), 1, side, side)


def random_holes(x: Tensor, share: float, cells: int = 8) -> Tensor:
    """Holes of any form: where smooth noise, `cells` values a side, is among its lowest `share`. (N, 1, s, s) bool."""
    side = x.shape[-1]
    noise = torch.rand(len(x), 1, cells, cells, device=x.device)
    smooth = F.interpolate(noise, (side, side), mode="bicubic")
    lowest = max(1, round(share * side * side))
    return smooth <= smooth.flatten(1).sort(1).values[:, lowest - 1].view(-1, 1, 1, 1)
