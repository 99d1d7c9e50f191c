"""Rotation: an encoder learns, without labels, by how many quarter turns an image was turned.

Gidaris, Singh, Komodakis: "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018.

    python -m da train experiments/mini/rotation.yaml

Symbols: X square patches of an image; g(X, y) the patch X turned by y quarter turns, y in {0, 1, 2, 3}; F the
encoder with a linear classifier on the mean of its last map.

    L = 1/4 sum_y -log F_y(g(X, y))                                                                   (eq. 2 and 3)

All four copies of a patch are in one batch, so that its statistics do not tell the turn; turns move pixels and mix
none. In street scenes the sky tells what is up: small patches, which often lack it, have more to teach.

Differs from the authors' code: SGD without Nesterov's momentum, another schedule (`run.schedule`), patches of a
size that a setting gives.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.experiment import Experiment
from da.nets.optimizers import SegmenterSGD
from da.nets.pretext import EncoderWithHead
from da.trainers import base_pretext


class Config(SegmenterSGD):
    lr: NonNegativeFloat = 0.1
    head_lr_mult: NonNegativeFloat = 1.0
    patch: PositiveInt = 224  # side of a patch in pixels; as many as fit are cut from each image or crop


class Trainer(base_pretext.Trainer):
    headline: ClassVar = {"loss/rotation": "loss", "accuracy/rotation": "turns told"}
    score: ClassVar[str] = "accuracy"
    example_titles: ClassVar = ("patch", "turned", "turned back as it says")

    def __init__(self, config: Experiment) -> None:
        super().__init__(config)
        self.method: Config = config.method
        self.side = self.method.patch
        self.network = EncoderWithHead(config.model, lambda channels, _: nn.Linear(channels, 4))
        self.modules = {"encoder": self.network}
        self.optimizers = {"encoder": self.method.build(self.network)}

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        loss, right = self.tell_turns(self.view(batch.src_image))
        backward(loss)
        return {"loss/rotation": loss, "accuracy/rotation": right}

    def tell_turns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """L of images (B, 3, H, W) in [0, 1], and the share of turns that are told right."""
        patches = self.squares(x)
        y = torch.arange(4, device=x.device).repeat_interleave(len(patches))
        logits = self.logits(torch.cat([turned(patches, k) for k in range(4)]))
        return F.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean()

    def logits(self, patches: Tensor) -> Tensor:
        """F: (N, 4), float32, of patches (N, 3, s, s) in [0, 1]."""
        return self.network.head(self.network.pooled(self.network.normalised(patches))).float()

    def examine(self, image: Tensor) -> dict[str, Tensor]:
        loss, right = self.tell_turns(image)
        return {"accuracy": 100 * right, "loss": loss}

    def illustrate(self, image: Tensor) -> tuple[Tensor, ...]:
        patch = self.squares(image)[:1]
        seen = turned(patch, 1 + self.iteration % 3)
        return patch, seen, turned(seen, -int(self.logits(seen).argmax()))


def turned(patches: Tensor, quarters: int) -> Tensor:
    """g: (N, 3, s, s), counter-clockwise by `quarters`."""
    return patches.rot90(quarters, (2, 3))
