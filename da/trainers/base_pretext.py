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
from da.evaluation.infer import EvalConfig
from da.experiment import Experiment
from da.nets.pretext import EncoderWithHead
from da.nets.pspnet import Encoder
from da.trainers import base

EVAL_KEYS = {"input_size", "resize"}  # of `eval:`, what a task on held-out images reads


class Trainer(base.Trainer):
    uses_target: ClassVar[bool] = False
    is_pretext: ClassVar[bool] = True
    segmenter_is_trained = False  # there is none

    network: EncoderWithHead  # in `modules` as `encoder`
    side: int  # of the squares that the task takes from an image, in pixels
    side_setting: ClassVar[str] = "method.patch"  # which they follow from

    def __init__(self, config: Experiment) -> None:
        """
        Raises:
            UserError: settings that are of segmenters alone.
        """
        super().__init__(config)
        given = {key for key in config.eval.model_fields_set if getattr(config.eval, key) != getattr(EvalConfig(), key)}
        if strange := given - EVAL_KEYS - {"classes"}:
            raise UserError(f"eval.{min(strange)}: {config.trainer} trains no segmenter; leave it out")
        if config.model.bn == "per_domain":
            raise UserError(f"model.bn: {config.trainer} has one stream of images for all domains; take train or sync")

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

    def squares(self, image: Tensor) -> Tensor:
        """All squares that fit side by side into images (B, 3, H, W), centred: (B * n, 3, side, side).

        Raises:
            UserError: not one fits.
        """
        height, width = image.shape[-2:]
        if min(height, width) < self.side:
            raise UserError(self.too_small(width, height))
        return squares(image, self.side)

    def too_small(self, width: int, height: int) -> str:
        return f"{self.side_setting}: asks for {self.side} pixels a side, of images of {width}x{height}; lower it"


def squares(image: Tensor, side: int) -> Tensor:
    """`Trainer.squares`: (B, 3, H, W) -> (B * n, 3, side, side), row by row; H and W are not below `side`."""
    height, width = image.shape[-2:]
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    part = image[..., top : top + rows * side, left : left + columns * side]
    cells = part.unflatten(2, (rows, side)).unflatten(4, (columns, side))  # (B, 3, rows, side, columns, side)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
