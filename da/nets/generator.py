"""The image-to-image generator of CycleGAN.

Zhu, Park, Isola, Efros: "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", ICCV
2017 (appendix 7.2), after Johnson, Alahi, Fei-Fei: "Perceptual Losses for Real-Time Style Transfer", ECCV 2016.

Differs from the authors' code: images of any size come back at their own size; those that are no multiple of four
are padded for the passage.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # pixels per side of the innermost map's cell

Upsampling = Literal["transposed", "resize"]


class ReflectionPad(nn.ReflectionPad2d):
    """Keeps the input's type: on CPUs autocast would pad in float32 and round again for the convolution after it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class ResidualBlock(nn.Module):
    """x + two reflection-padded 3x3 convolutions with InstanceNorm; no ReLU after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ReflectionPad(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(inplace=True),
            ReflectionPad(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Generator(nn.Module):
    """Two halvings, residual blocks, two doublings, tanh; 11,378,179 parameters at 9 blocks and width 64.

    Convolutional throughout, so a network that was trained on crops translates whole images. InstanceNorm has
    neither affine part nor running statistics: training and evaluation mode give the same.

    Args:
        blocks: residual blocks; the paper takes 6 at 128 pixels and 9 from 256 on.
        width: channels at full resolution.
        upsampling: how a size is doubled. `transposed`: by a transposed convolution, as in the paper. `resize`: nearest
            neighbours, then a convolution, which leaves no checkerboard (Odena, Dumoulin, Olah, Distill 2016).
    """

    def __init__(self, blocks: int = 9, width: int = 64, upsampling: Upsampling = "transposed") -> None:
        super().__init__()
        layers: list[nn.Module] = [ReflectionPad(3), nn.Conv2d(3, width, 7)]
        layers += [nn.InstanceNorm2d(width), nn.ReLU(inplace=True)]
        for channels in (width, 2 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)]
            layers += [nn.InstanceNorm2d(2 * channels), nn.ReLU(inplace=True)]
        layers += [ResidualBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            if upsampling == "resize":
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels // 2, 3, padding=1)]
            else:
                layers += [nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1)]
            layers += [nn.InstanceNorm2d(channels // 2), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, ReflectionPad(3), nn.Conv2d(width, 3, 7), nn.Tanh())
        self.apply(init_gan)

    def forward(self, image: Tensor) -> Tensor:
        """RGB images (B, 3, H, W) in [-1, 1] -> their translations, same size and range, float32."""
        height, width = image.shape[-2:]
        right, bottom = -width % STRIDE, -height % STRIDE
        if right or bottom:
            image = F.pad(image, (0, right, 0, bottom), mode="replicate")
        return self.layers(image)[..., :height, :width].float()


def init_gan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases zero, as CycleGAN initialises all its networks (ICCV 2017, section 7.1)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every layer here has one


def to_generator(image: Tensor) -> Tensor:
    """[0, 1] -> the generator's [-1, 1]; differentiable."""
    return 2 * image - 1


def to_unit(image: Tensor) -> Tensor:
    """The generator's [-1, 1] -> [0, 1], which the segmenter takes; differentiable."""
    return (image + 1) / 2


def quantise(image: Tensor) -> Tensor:
    """[0, 1] -> uint8, as a translated picture is stored."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
