"""Published results: `experiments/tables/published.yaml`, read and checked."""

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from da.config import Section, check, read_tree
from da.evaluation.infer import EvalConfig
from da.labels import NAMES, SUBSETS

FILE = Path(__file__).parents[2] / "experiments/tables/published.yaml"


class Protocol(Section):
    """How a published number was measured.

    Attributes:
        text: in words.
        settings: what the `eval:` section of a run of the same protocol says; None where no run can match.
    """

    text: str
    settings: dict[str, Any] | None = None

    def matches(self, measured: dict[str, Any]) -> bool:
        """Whether `measured`, the `protocol` of a result, is this one. `align_corners` and the classes that the mean
        runs over may differ; every other setting must be the published one, or where none is published the default."""
        if self.settings is None:
            return False
        defaults = EvalConfig().model_dump(mode="json")
        others = measured.keys() - self.settings.keys() - {"align_corners", "classes"}
        named = all(key in measured and measured[key] == value for key, value in self.settings.items())
        return named and all(key in defaults and measured[key] == defaults[key] for key in others)


class PublishedRow(Section):
    """One published result in percent; the head of `published.yaml` explains each key."""

    table: Literal["gta2city", "synthia2city", "supervised"]
    method: str
    backbone: str
    experiment: str | None = None
    dataset: str = "Cityscapes val"
    mIoU: float | None = None
    mIoU16: float | None = None
    mIoU13: float | None = None
    mAcc: float | None = None
    pixel_accuracy: float | None = None
    fwIoU: float | None = None
    protocol: str
    checkpoint: str
    source: str
    verified: bool = True
    classes: Literal[19, 16, 13] | None = None
    iou: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _as_many_as_classes(self) -> "PublishedRow":
        if len(self.iou or ()) != (self.classes or 0):
            raise ValueError(f"{self.method}: `iou` has {len(self.iou or ())} values for classes: {self.classes}")
        return self

    def mean(self, classes: int) -> float | None:
        """Mean IoU over the 19-, 16- or 13-class subset."""
        return {19: self.mIoU, 16: self.mIoU16, 13: self.mIoU13}[classes]

    def class_iou(self) -> dict[str, float]:
        """IoU by class name; empty where it was not published."""
        return {NAMES[c]: v for c, v in zip(SUBSETS[self.classes], self.iou)} if self.classes and self.iou else {}


class Published(Section):
    protocols: dict[str, Protocol]
    rows: tuple[PublishedRow, ...]

    @model_validator(mode="after")
    def _protocols_are_known(self) -> "Published":
        if unknown := {row.protocol for row in self.rows} - self.protocols.keys():
            raise ValueError(f"protocols without an entry: {', '.join(sorted(unknown))}")
        return self


def read(path: Path = FILE) -> Published:
    """Every published row.

    Raises:
        UserError: the file is absent or malformed; the message names the key.
    """
    return check(Published, read_tree([path]))
