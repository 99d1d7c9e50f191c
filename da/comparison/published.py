"""Published results: the file `experiments/tables/published.yaml`, read and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from da.config import EXPERIMENTS, Section, UserError, check, read_tree
from da.evaluation.protocols import PROTOCOLS, Protocol, read_protocols
from da.labels import DEFAULT, label_space

FILE = EXPERIMENTS / "tables/published.yaml"


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

    def mean(self, subset: str | int) -> float | None:
        """Mean IoU over the subset of 19, 16 or 13 classes; None of any other."""
        return {"19": self.mIoU, "16": self.mIoU16, "13": self.mIoU13}.get(str(subset))

    def class_iou(self) -> dict[str, float]:
        """IoU by class name; empty where it was not published."""
        classes = label_space(DEFAULT)
        members = classes.subset(self.classes) if self.classes else ()
        return {classes.names[c]: v for c, v in zip(members, self.iou or ())}


class _File(Section):
    rows: tuple[PublishedRow, ...]


@dataclass(frozen=True)
class Published:
    protocols: dict[str, Protocol]
    rows: tuple[PublishedRow, ...]


def read(path: Path = FILE) -> Published:
    """Every published row, and the protocols that they name.

    Raises:
        UserError: a file is absent or malformed, or a row names no protocol; the message names the key.
    """
    protocols = read_protocols()
    rows = check(_File, read_tree([path])).rows
    for number, row in enumerate(rows):
        if row.protocol not in protocols:
            raise UserError(f"{path}: rows.{number}.protocol: {row.protocol!r} is not in {PROTOCOLS}")
    return Published(protocols, rows)
