"""The fully convolutional domain discriminator on segmentation outputs.

Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation", CVPR 2018 (section 4.1).
ADVENT (Vu et al., CVPR 2019) uses the same network on entropy maps.

Differs from the authors' code: an input that is too small is refused in words.
"""

from torch import Tensor, nn

from da.config import UserError
from da.labels import NUM_CLASSES

MIN_SIZE = 32  # pixels; five halvings leave one cell


class OutputDiscriminator(nn.Module):
    """Five 4x4 convolutions of stride 2 with LeakyReLU(0.2) between them, no normalisation, PyTorch's default
    initialisation; 2,781,121 parameters for 19 classes.

    Args:
        num_classes: channels of the input maps.
        width: channels after the first convolution; doubled by each of the next three.
    """

    def __init__(self, num_classes: int = NUM_CLASSES, width: int = 64) -> None:
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
