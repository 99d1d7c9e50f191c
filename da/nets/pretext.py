"""An encoder with a head for a task that needs no labels. `backbone.*`, `mean` and `std` are called as in the
segmenter, so that a run can start from them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from da.nets.pspnet import Encoder, PSPNetConfig


class EncoderWithHead(Encoder):
    """The backbone of `model:` under a head of its own.

    Args:
        config: the `model:` section; what it says of the segmenter's heads is without effect.
        make_head: channels and stride of layer4 -> the head.
    """

    def __init__(self, config: PSPNetConfig, make_head: Callable[[int, int], nn.Module]) -> None:
        super().__init__(config)
        self.head = make_head(self.backbone.num_features, self.backbone.stride)
        self.settle()

    def pooled(self, normalised: Tensor) -> Tensor:
        """(B, C) means of layer4's maps, float32, of images (B, 3, H, W) that are normalised already."""
        _, layer4 = self.backbone(normalised)
        return layer4.float().mean((2, 3))

    def drawn(self, layer4: Tensor, size: torch.Size) -> Tensor:
        """What a head that draws makes of layer4, at the size of the image, (B, 3, H, W)."""
        picture = self.head(layer4)
        if getattr(self.backbone, "pads", False):  # whose cells divide the image, whatever its size
            return F.interpolate(picture, size, mode="bilinear")
        return picture[..., : size[0], : size[1]]


class JigsawHead(nn.Module):
    """Says in which order the tiles of a puzzle lie.

    Args:
        in_channels: of a tile's features.
        tiles: of a puzzle.
        orders: that it tells apart.
        width: of what is kept of each tile.
    """

    def __init__(self, in_channels: int, tiles: int, orders: int, width: int) -> None:
        super().__init__()
        self.tile, self.puzzle = nn.Linear(in_channels, width), nn.Linear(tiles * width, orders)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, orders), float32, of features (N, tiles, in_channels)."""
        return self.puzzle(torch.relu(self.tile(features)).flatten(1)).float()


class FillingHead(nn.Module):
    """Draws a picture from layer4: (B, C, h, w) -> RGB (B, 3, s h, s w) in [0, 1], s the encoder's stride.

    Convolutions after nearest neighbours, which leave no checkerboard, with BatchNorm and ReLU between them. What is
    drawn at a finer scale, where s is no power of two, is brought to size bilinearly.

    Args:
        in_channels: of layer4.
        stride: s.
        width: channels before the first doubling; each halves them.
    """

    def __init__(self, in_channels: int, stride: int, width: int) -> None:
        super().__init__()
        self.stride = stride
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
        for _ in range((stride - 1).bit_length()):
            narrow = max(width // 2, 8)
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Upsample(scale_factor=2)]
            layers += [nn.Conv2d(width, narrow, 3, padding=1, bias=False)]
            width = narrow
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, layer4: Tensor) -> Tensor:
        drawn = self.layers(layer4).float()
        size = (layer4.shape[-2] * self.stride, layer4.shape[-1] * self.stride)
        return drawn if drawn.shape[-2:] == size else F.interpolate(drawn, size, mode="bilinear")
