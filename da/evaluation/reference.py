"""What each experiment of a table gave in this project: the file `experiments/tables/measured.yaml`, to be set beside
a run whose neighbours were not trained."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from da.config import EXPERIMENTS, Section, read_named
from da.evaluation.infer import EvalConfig

MEASURED = EXPERIMENTS / "tables/measured.yaml"


class Reference(Section):
    """The rows of one table; the head of `measured.yaml` explains each key."""

    date: str
    commit: str
    machine: str
    images: str
    steps: int
    rows: dict[str, tuple[float, ...]]

    def fits(self, result: dict[str, Any]) -> bool:
        """Whether a result was scored on the same images, under the protocol of the experiments."""
        own = EvalConfig().model_dump(mode="json")
        measured = own | (result.get("protocol") or {}) | {"classes": None}
        return measured == own and (result.get("images") or {}).get("hash") == self.images

    def origin(self) -> str:
        return f"measured {self.date}, seeds 0, 1, 2, {self.machine}, commit {self.commit}"

    def text(self, name: str, seed: int, mIoU: float) -> str:
        """The rows for a terminal, with this run's figure in its experiment's row."""
        width = max(map(len, self.rows))
        lines = [f"for comparison, mIoU of the shipped recipes, {self.steps} updates ({self.origin()}):"]
        for row, values in self.rows.items():
            here = f"   this run: {mIoU:.1f} (seed {seed})" if row == name else ""
            lines.append(f"  {row:<{width}}  {mean_std(values):<10}{here}".rstrip())
        return "\n".join(lines)


def read_references(path: Path = MEASURED) -> dict[str, Reference]:
    """By table.

    Raises:
        UserError: the file is absent or malformed; the message names the key.
    """
    return read_named(Reference, path)


def mean_std(values: Sequence[float]) -> str:
    """`33.9 ± 0.6`, the sample standard deviation; one value stands alone, none is `-`."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"
