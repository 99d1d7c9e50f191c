"""Discriminators: of segmentation outputs, of pictures, and of features.

Outputs: Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation", CVPR 2018 (section
4.1); ADVENT (Vu et al., CVPR 2019) uses the same network on entropy maps. Pictures: the 70x70 PatchGAN of Isola et
al., CVPR 2017, in the form of CycleGAN (Zhu et al., ICCV 2017, appendix 7.2). Features: Hoffman et al., "CyCADA:
Cycle-Consistent Adversarial Domain Adaptation", ICML 2018.

Differs from the authors' code: an input that is too small is refused in words.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from da.config import UserError
from da.nets.generator import init_gan

MIN_SIZE = 32  # pixels; five halvings leave one cell


class OutputDiscriminator(nn.Module):
    """Five 4x4 convolutions of stride 2 with LeakyReLU(0.2) between them, no normalisation, PyTorch's default
    initialisation; 2,781,121 parameters for 19 classes.

    Args:
        num_classes: channels of the input maps.
        width: channels after the first convolution; doubled by each of the next three.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        channels = (num_classes, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for in_channels, out_channels in zip(channels, channels[1:]):
            layers += [
                nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, stride=2, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Domain logits (B, 1, H // 32, W // 32), no sigmoid, of softmax maps (B, classes, H, W) in [0, 1].

        Raises:
            UserError: H or W is below 32.
        """
        height, width = maps.shape[-2:]
        if min(height, width) < MIN_SIZE:
            raise UserError(
                f"the discriminator was given {width}x{height} maps and needs {MIN_SIZE} pixels a side; "
                "train on larger images or crops"
            )
        return self.layers(maps)


class PatchDiscriminator(nn.Module):
    """The 70x70 PatchGAN: each output cell judges 70x70 pixels; 2,764,737 parameters at width 64.

    Args:
        width: channels after the first convolution; doubled by each of the next three.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for channels, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(channels, 2 * channels, 4, stride=stride, padding=1)]
            layers += [nn.InstanceNorm2d(2 * channels), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        self.apply(init_gan)

    def forward(self, image: Tensor) -> Tensor:
        """Raw scores (B, 1, H / 8 - 2, W / 8 - 2) of RGB images (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: H or W is below 32.
        """
        height, width = image.shape[-2:]
        if min(height, width) < MIN_SIZE:
            raise UserError(
                f"the discriminator was given a {width}x{height} picture and needs {MIN_SIZE} pixels a side; "
                "train on larger images or crops"
            )
        return self.layers(image)


class FeatureDiscriminator(nn.Module):
    """Three 1x1 convolutions with Dropout2d and ReLU between them, and two outputs: log-odds of the domains.

    On the scores of 19 classes with widths (512, 256) it has 142,082 parameters; on 4096 feature channels with
    widths (1024, 512), 4,721,154.

    Args:
        in_channels: channels of the maps it judges.
        widths: channels of the two hidden layers.
        dropout: probability of dropping a hidden channel.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int], dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out_channels in zip((in_channels, widths[0]), widths):
            layers += [nn.Conv2d(channels, out_channels, 1), nn.Dropout2d(dropout), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[1], 2, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Log-probabilities (B, 2, H, W), float32, channel d for domain d, of maps (B, C, H, W)."""
        return F.log_softmax(self.layers(maps).float(), 1)
