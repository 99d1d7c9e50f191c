"""Jigsaw: an encoder learns, without labels, in which order the nine tiles of an image were shuffled.

Noroozi, Favaro: "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016.

    python -m da train experiments/mini/jigsaw.yaml

Symbols: S_1 ... S_P the set of permutations of nine places; p the one that was drawn; T_1 ... T_9 the tiles in their
own order; F the encoder, each tile on its own, under a classifier of all nine.

    L = -log F_p(T_{S_p(1)}, ..., T_{S_p(9)})                                                         (section 3.2)

What would tell the order without a look at things is taken away (section 4.2): a tile lies at random in its cell, so
that edges do not continue; it is normalised by its own mean and deviation; three images in ten lose their colour, and
of the others each channel shifts by up to two pixels, as lenses shift them. So the encoder sees tiles that are
normalised by themselves, not by the statistics that its weights came with, and its BatchNorm keeps theirs.

Differs from the authors' code: a permutation joins the set if its smallest Hamming distance to those in it is the
largest there is (theirs goes by the mean, which lets near ones in); encoder and schedule are this project's; what
is kept of a tile is `width` numbers, as in VISSL (Goyal et al., ICCV 2019).
"""

import functools
import itertools
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from da.data.loaders import Batch
from da.engine.stepper import Backward
from da.experiment import Experiment
from da.nets.optimizers import SegmenterSGD
from da.nets.pretext import EncoderWithHead, JigsawHead
from da.trainers import base_pretext

SIDE = 3  # tiles
TILES = SIDE * SIDE


class Config(SegmenterSGD):
    lr: NonNegativeFloat = 1e-3
    head_lr_mult: NonNegativeFloat = 1.0
    permutations: int = Field(100, ge=2, le=10_000)  # P
    cell: PositiveInt = 85  # pixels a side of a place; an image gives as many puzzles of three cells a side as fit
    tile: PositiveInt = 64  # pixels a side of what is taken of it
    shift: NonNegativeInt = 2  # pixels by which a channel moves at most
    grey: float = Field(0.3, ge=0, le=1)  # share of the puzzles without colour
    width: PositiveInt = 1000  # numbers that are kept of a tile

    @model_validator(mode="after")
    def _tile_fits(self) -> "Config":
        if self.tile > self.cell:
            raise ValueError(f"method.tile={self.tile} does not fit into method.cell={self.cell}")
        return self


class Trainer(base_pretext.Trainer):
    headline: ClassVar = {"loss/jigsaw": "loss", "accuracy/jigsaw": "puzzles solved"}
    score: ClassVar[str] = "accuracy"
    side_setting: ClassVar[str] = "method.cell"
    example_titles: ClassVar = ("image", "puzzle", "put back as it says")

    def __init__(self, config: Experiment) -> None:
        super().__init__(config)
        m: Config = config.method
        self.method, self.side = m, SIDE * m.cell
        orders = torch.from_numpy(permutation_set(m.permutations))
        self.network = EncoderWithHead(config.model, lambda c, _: JigsawHead(c, TILES, len(orders), m.width))
        self.network.register_buffer("orders", orders, persistent=False)  # S, (P, 9); made anew from P
        self.modules = {"encoder": self.network}
        self.optimizers = {"encoder": m.build(self.network)}

    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        loss, right = self.solve(self.view(batch.src_image))
        backward(loss)
        return {"loss/jigsaw": loss, "accuracy/jigsaw": right}

    def solve(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """L of images (B, 3, H, W) in [0, 1], and the share of puzzles that are solved."""
        _, shown, p = self.puzzles(x)
        logits = self.logits(shown)
        return F.cross_entropy(logits, p), (logits.argmax(1) == p).float().mean()

    def puzzles(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squares of the images (N, 3, 3 cell, 3 cell), their tiles as they are shown (N, 9, 3, tile, tile), both in
        [0, 1], and p, (N,)."""
        m = self.method
        square = self.squares(x)
        grey = torch.rand(len(square), 1, 1, 1, device=x.device) < m.grey
        coloured = torch.where(grey, rgb_to_grayscale(square, num_output_channels=3), square)
        tiles = cut_tiles(coloured, m.cell, m.tile, torch.where(grey, 0, m.shift)[:, None])
        p = torch.randint(m.permutations, (len(square),), device=x.device)
        order = self.network.get_buffer("orders")[p]  # (N, 9)
        return square, tiles.gather(1, order[..., None, None, None].expand_as(tiles)), p

    def logits(self, tiles: Tensor) -> Tensor:
        """F: (N, P) of puzzles (N, 9, 3, tile, tile)."""
        features = self.network.pooled(own_normalised(tiles).flatten(0, 1))
        return self.network.head(features.unflatten(0, (-1, TILES)))

    def examine(self, image: Tensor) -> dict[str, Tensor]:
        loss, right = self.solve(image)
        return {"accuracy": 100 * right, "loss": loss}

    def illustrate(self, image: Tensor) -> tuple[Tensor, ...]:
        square, shown, _ = (part[:1] for part in self.puzzles(image))
        order = self.network.get_buffer("orders")[self.logits(shown).argmax(1)]
        back = torch.empty_like(shown).scatter_(1, order[..., None, None, None].expand_as(shown), shown)
        return square, self.laid_out(shown), self.laid_out(back)

    def laid_out(self, tiles: Tensor) -> Tensor:
        """(N, 9, 3, tile, tile) -> (N, 3, 3 cell, 3 cell), each tile in the middle of a white cell."""
        gap = self.method.cell - self.method.tile
        before = gap // 2
        cells = F.pad(tiles, (before, gap - before, before, gap - before), value=1.0)
        return cells.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@functools.cache
def permutation_set(number: int) -> np.ndarray:
    """`number` permutations of nine places, (number, 9) int64, the same on every machine: the identity, then each time
    one that is farthest from its nearest; of several such the one farthest from all, of these the first."""
    every = np.array(list(itertools.permutations(range(TILES))), np.int8)
    chosen = [0]
    nearest, total = np.full(len(every), TILES, np.int8), np.zeros(len(every), np.int32)
    for _ in range(number - 1):
        distance = (every != every[chosen[-1]]).sum(1, dtype=np.int8)
        nearest, total = np.minimum(nearest, distance), total + distance
        chosen.append(int((nearest.astype(np.int64) * (TILES * number + 1) + total).argmax()))
    return every[chosen].astype(np.int64)


def cut_tiles(square: Tensor, cell: int, tile: int, shift: Tensor | int) -> Tensor:
    """A tile at a random place in each cell of squares (N, 3, 3 cell, 3 cell): (N, 9, 3, tile, tile). Each of its
    channels is shifted by up to `shift` pixels, (N, 1, 1, 1, 1) or the same for all, as far as the cell reaches."""
    device = square.device
    cells = square.unflatten(3, (SIDE, cell)).unflatten(2, (SIDE, cell)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    for axis in (3, 4):  # rows, columns
        start = torch.randint(cell - tile + 1, (*cells.shape[:2], 1, 1, 1), device=device)
        drawn = torch.rand(*cells.shape[:3], 1, 1, device=device)
        moved = (drawn * (2 * shift + 1)).floor().long() - shift  # -shift ... shift
        along = torch.arange(tile, device=device).view((tile, 1) if axis == 3 else (1, tile))
        taken = (start + moved).clamp(0, cell - tile) + along
        size = [*cells.shape]
        size[axis] = tile
        cells = cells.gather(axis, taken.expand(size))
    return cells


def own_normalised(tiles: Tensor) -> Tensor:
    """(N, 9, 3, h, w): each channel of each tile at mean 0 and deviation 1; of one value, at 0."""
    centred = tiles - tiles.mean((3, 4), keepdim=True)
    return centred / centred.square().mean((3, 4), keepdim=True).sqrt().clamp(min=1e-3)
