"""Published results and named protocols: the files of `experiments/tables`, read and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from da.config import Section, Tree, UserError, check, read_tree
from da.evaluation.infer import EvalConfig
from da.labels import DEFAULT, label_space

TABLES = Path(__file__).parents[2] / "experiments/tables"
FILE, PROTOCOLS = TABLES / "published.yaml", TABLES / "protocols.yaml"


class Protocol(Section):
    """How a number is measured: one entry of `protocols.yaml`, whose head explains each key."""

    text: str
    eval: EvalConfig | None = None
    checkpoint: str | None = None
    source: str | None = None
    assumed: str | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> "Protocol":
        if self.eval and not (self.checkpoint and self.source):
            raise ValueError("a protocol with `eval` needs `checkpoint` and `source`")
        return self

    def matches(self, measured: dict[str, Any]) -> bool:
        """Whether `measured`, the `protocol` of a result, is this one. `align_corners` and the classes that the mean
        runs over may differ; every other setting must be the published one, or where none is published the default."""
        if self.eval is None:
            return False
        own = self.eval.model_dump(mode="json")
        free = ("align_corners", "classes")
        return {k: v for k, v in measured.items() if k not in free} == {k: v for k, v in own.items() if k not in free}


def read_protocols(path: Path = PROTOCOLS) -> dict[str, Protocol]:
    """The named protocols.

    Raises:
        UserError: the file is absent or malformed; the message names the key.
    """
    found = {}
    for name, values in read_tree([path]).values.items():
        entry = Tree()
        entry.add(values, f"{path}: {name}")
        found[name] = check(Protocol, entry)
    return found


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
