"""Inpainting: an encoder learns, without labels, to fill in what was cut out of an image.

Pathak, Krahenbuhl, Donahue, Darrell, Efros: "Context Encoders: Feature Learning by Inpainting", CVPR 2016.

    python -m da train experiments/mini/inpainting.yaml

Symbols: x square patches of an image; M the hole, 1 where pixels are missing; F the encoder with a decoder, which is
shown x with the mean colour in the hole; x_f what it draws there, in x; D a discriminator of pictures.

    x_f   = M F((1 - M) x + M mean) + (1 - M) x
    L_rec = mean over the hole's pixels of w |x - x_f|^2, w = 10 in a band along its edge, else 1               (eq. 1)
    L_adv = -log D(x_f)                              F minimises lambda_rec L_rec + lambda_adv L_adv            (eq. 3)
    L_D   = -1/2 log D(x) - 1/2 log(1 - D(x_f)), x_f detached                                                   (eq. 2)

Differs from the authors' code: the encoder is the segmenter's, whose last map sees the whole patch, so there is no
layer between all its cells; the decoder draws all of the patch, and the losses see the hole; D is CycleGAN's and
judges the completed picture piece by piece; a random hole has exactly the share that is asked for, where theirs is
drawn again until it fits.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.optim import Adam

from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.experiment import Experiment
from da.nets.discriminator import PatchDiscriminator
from da.nets.generator import to_generator
from da.nets.optimizers import Betas, SegmenterAdamW, SegmenterSGD
from da.nets.pretext import EncoderWithHead, FillingHead
from da.trainers import base, pretext


class Config(SegmenterSGD):
    adamw: SegmenterAdamW | None = SegmenterAdamW(lr=2e-3, head_lr_mult=1.0, weight_decay=0.0, betas=(0.5, 0.999))
    patch: PositiveInt = 128  # side of a patch in pixels; as many as fit are cut from each image or crop
    mask: Literal["centre", "random"] = "centre"
    share: float = Field(0.25, gt=0, lt=1)  # of the patch that is missing
    overlap: NonNegativeInt = 4  # pixels of the band along the edge, of a centre hole
    lambda_rec: NonNegativeFloat = 0.999
    lambda_adv: NonNegativeFloat = 0.001  # 0 = no discriminator
    decoder_width: PositiveInt = 256
    width_d: PositiveInt = 64
    lr_d: NonNegativeFloat = 2e-4
    betas_d: Betas = (0.5, 0.999)


class Trainer(pretext.Trainer):
    headline: ClassVar = {"loss/rec": "error in the hole"}
    score: ClassVar[str] = "psnr"
    example_titles: ClassVar = ("patch", "with its hole", "filled in")

    def __init__(self, config: Experiment) -> None:
        super().__init__(config)
        m = self.method = config.method
        self.network = EncoderWithHead(config.model, lambda c, stride: FillingHead(c, stride, m.decoder_width))
        self.modules = {"encoder": self.network}
        self.optimizers = {"encoder": m.build(self.network)}
        if m.lambda_adv:
            self.d = self.modules["d"] = PatchDiscriminator(m.width_d)
            self.optimizers["d"] = Adam(self.d.parameters(), lr=m.lr_d, betas=m.betas_d)

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        m = self.method
        x = self.patches(self.view(batch.src_image))
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

    def patches(self, x: Tensor) -> Tensor:
        return pretext.squares(x, self.method.patch, "method.patch")

    def holes(self, x: Tensor) -> Tensor:
        """M: (N, 1, s, s) bool."""
        if self.method.mask == "centre":
            return centre_hole(x, self.method.share)
        return random_holes(x, self.method.share)

    def fill(self, x: Tensor, hole: Tensor) -> Tensor:
        """x_f, float32, in [0, 1]."""
        _, layer4 = self.network.encode(self.shown(x, hole))
        drawn = self.network.head(layer4)[..., : x.shape[-2], : x.shape[-1]]
        return torch.where(hole, drawn, x)

    def shown(self, x: Tensor, hole: Tensor) -> Tensor:
        return torch.where(hole, self.network.mean.view(3, 1, 1), x)

    def error(self, x: Tensor, filled: Tensor, hole: Tensor) -> Tensor:
        """L_rec, of values in [-1, 1]."""
        weight = hole.float()
        if self.method.mask == "centre" and self.method.overlap:
            side = 2 * self.method.overlap + 1
            inside = 1 - F.max_pool2d(1 - weight, side, stride=1, padding=self.method.overlap)
            weight = weight * (1 + 9 * (1 - inside))  # the band along the edge, ten times
        squared = (to_generator(filled) - to_generator(x)).square().mean(1, keepdim=True)
        return (weight * squared).sum() / weight.sum()

    def judge(self, picture: Tensor) -> Tensor:
        """D's log-odds that pictures in [0, 1] are real."""
        return self.d(to_generator(picture)).float()

    def examine(self, image: Tensor) -> dict[str, Tensor]:
        x = self.patches(image)
        hole = self.holes(x)
        squared = (self.fill(x, hole) - x).square().mean(1, keepdim=True)
        mean = (hole * squared).sum((1, 2, 3)) / hole.sum((1, 2, 3))  # of each patch's hole
        return {"psnr": (-10 * mean.clamp(min=1e-10).log10()).mean(), "mse": mean.mean()}

    def illustrate(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.patches(image)[:1]
        hole = self.holes(x)
        return x, self.shown(x, hole), self.fill(x, hole)


def centre_hole(x: Tensor, share: float) -> Tensor:
    """A square in the middle that holds `share` of the pixels of patches (N, 3, s, s), as nearly as a whole number of
    pixels a side allows: (N, 1, s, s) bool."""
    side = x.shape[-1]
    hole = max(1, round(side * share**0.5))
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
