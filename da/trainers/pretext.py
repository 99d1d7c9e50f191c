"""What the trainers share that teach an encoder by a task that needs no labels: rotation, jigsaw, inpainting.

They learn from the images of `data.source`, which may be a list that holds source and target, and are validated by the
same task on those of `data.val`. No label is opened. Another method starts from such a run by `init`, and takes its
encoder.
"""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from da.config import UserError
from da.data.loaders import Batch
from da.nets.pretext import EncoderWithHead
from da.nets.pspnet import Encoder
from da.trainers import base


class Trainer(base.Trainer):
    uses_target: ClassVar[bool] = False
    is_pretext: ClassVar[bool] = True
    segmenter_is_trained = False  # there is none

    network: EncoderWithHead  # in `modules` as `encoder`

    @abstractmethod
    def examine(self, image: Tensor) -> dict[str, Tensor]:
        """The task on held-out RGB images (B, 3, H, W) in [0, 1]: 0-d figures, `score` among them; in `eval` mode. What
        is random depends on the run's seed and the image's name alone."""

    @abstractmethod
    def illustrate(self, image: Tensor) -> tuple[Tensor, ...]:
        """Pictures of the task for `example_titles`, each RGB (N, 3, h, w) in [0, 1], of images as in `examine`."""

    def examples(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        return [self.illustrate(batch.src_image.float() / 255)]

    def predict(self, image: Tensor) -> Tensor:
        """Layer4's maps: what there is to time where a precision is tried."""
        return self.network.encode(image)[1]

    @property
    def encoder(self) -> Encoder:
        return self.network


def squares(image: Tensor, side: int, setting: str) -> Tensor:
    """All squares that fit side by side into images (B, 3, H, W), centred: (B * n, 3, side, side).

    Raises:
        UserError: not one fits; it names `setting`, which the side follows from.
    """
    height, width = image.shape[-2:]
    rows, columns = height // side, width // side
    if not rows * columns:
        raise UserError(f"{setting}: asks for {side} pixels a side, of images of {width}x{height}; lower it")
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    part = image[..., top : top + rows * side, left : left + columns * side]
    cells = part.unflatten(2, (rows, side)).unflatten(4, (columns, side))  # (B, 3, rows, side, columns, side)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
