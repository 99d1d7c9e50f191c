"""Named protocols: the file `experiments/tables/protocols.yaml`, read and checked."""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from da.config import EXPERIMENTS, Section, read_named
from da.evaluation.infer import EvalConfig

PROTOCOLS = EXPERIMENTS / "tables/protocols.yaml"


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
    return read_named(Protocol, path)
