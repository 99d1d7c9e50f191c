"""From an image of any size to a map of trainIds: the only inference code."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from da.config import Section

Predict = Callable[[Tensor], Tensor]


class EvalConfig(Section):
    """The protocol a number was measured under; it is stored beside the number."""

    input_size: tuple[int, int] | None = None  # (width, height) the image is resized to; None = as it is
    align_corners: bool = False  # when the logits are brought to the label's size
    classes: Literal[19, 16, 13] = 19  # subset that the headline mIoU is averaged over


def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Logits (B, C, h, w) of any precision to float32 (B, C, *size), bilinear."""
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=align_corners)


@torch.no_grad()
def predict_labels(predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig) -> Tensor:
    """The segmentation of one image under a protocol.

    The image is resized to `config.input_size` (bicubic with antialiasing), segmented whole at one scale, and the
    logits are upsampled once, to `size` (bilinear), before the argmax.

    Args:
        predict: RGB in [0, 1], (1, 3, h, w) -> logits (1, C, h / s, w / s) at any output stride s.
        image: (3, H, W) uint8 RGB on any device.
        size: (height, width) of the result, as a rule the label's own.

    Returns:
        (height, width) uint8 trainIds on the image's device.
    """
    if config.input_size is not None:
        width, height = config.input_size
        image = v2.functional.resize(image, [height, width], v2.InterpolationMode.BICUBIC, antialias=True)
    logits = upsample(predict(image[None].float() / 255), size, config.align_corners)
    return logits[0].argmax(0).to(torch.uint8)
