"""Look at every file of a data root before a long run does, and report all that is wrong at once."""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from da.config import UserError
from da.data import folders
from da.data.folders import Sample
from da.labels import IGNORE, NAMES, NUM_CLASSES

LINES_SHOWN = 20


@dataclass
class Report:
    root: Path
    dataset: str
    pairs: int = 0  # images looked at
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(NUM_CLASSES + 1, np.int64))  # by trainId; last: ignored
    fatal: list[str] = field(default_factory=list)  # training or scoring would stop here
    warnings: list[str] = field(default_factory=list)  # survivable, or touching nothing that adaptation reads

    def text(self) -> str:
        """The report for a terminal: problems first, then each class's share of the labelled pixels."""
        lines = [f"{self.root} as {self.dataset}: {self.pairs} images"]
        for title, problems in (("problem", self.fatal), ("note", self.warnings)):
            lines += [f"  {title}: {p}" for p in problems[:LINES_SHOWN]]
            if len(problems) > LINES_SHOWN:
                lines.append(f"  ... and {len(problems) - LINES_SHOWN} more {title}s")
        total = self.pixels.sum()
        if total:
            shares = 100 * self.pixels / total
            lines.append("  share of pixels")
            lines += [
                f"    {name:<14} {share:7.3f} %" if share else f"    {name:<14}  absent"
                for name, share in zip((*NAMES, "(ignored)"), shares)
            ]
        lines.append(f"  {len(self.fatal)} problems, {len(self.warnings)} notes")
        return "\n".join(lines)


class _Findings(NamedTuple):
    image: list[str]
    label: list[str]
    size: list[str]
    pixels: np.ndarray


def check_root(root: Path, dataset: str, split: str | None = None) -> Report:
    """Decode all images and labels of `split`, or of every split that training and scoring read.

    Missing, unreadable and strange files are all collected. Labels that adaptation never reads (Cityscapes
    train) only give notes. A progress bar runs on standard error.

    Args:
        root: the data root.
        dataset: `gta5`, `cityscapes` or `synthia`.
        split: a split or list file; None takes the module's `CHECKED`.
    """
    module = folders.module_of(dataset)
    report = Report(root, dataset)
    for part in [split] if split else module.CHECKED:
        try:
            samples = module.scan(root, part)
        except UserError as error:
            report.fatal.append(str(error))
            continue
        label_problems = report.fatal if module.CHECKED.get(part, True) else report.warnings
        missing = folders.missing_labels(samples)
        label_problems += [f"{s.label}: missing, the label of {s.image}" for s in missing]
        if split is None:
            report.warnings += [f"{path}: a label without an image" for path in _orphans(samples)]
        lost = {s.name for s in missing}
        samples = [s._replace(label=None) if s.name in lost else s for s in samples]
        for found in _examine_all(samples, dataset, part):
            report.pairs += 1
            report.fatal += found.image
            label_problems += found.label
            report.warnings += found.size
            report.pixels += found.pixels
    return report


def _orphans(samples: list[Sample]) -> list[Path]:
    """Label files of the kind in use that belong to none of `samples`."""
    expected = {s.label for s in samples}
    kinds = {(s.label.parent, s.label.name.removeprefix(s.name)) for s in samples if s.label}
    found = [folder / n for folder, suffix in sorted(kinds) for n in folders.files_in(folder) if n.endswith(suffix)]
    return sorted(p for p in found if p not in expected)


def _examine_all(samples: list[Sample], dataset: str, split: str) -> Iterable[_Findings]:
    workers = min(os.cpu_count() or 1, 16)
    with ProcessPoolExecutor(workers) as pool:
        found = pool.map(partial(_examine, dataset), samples, chunksize=max(1, min(16, len(samples) // workers)))
        yield from folders.progress(found, f"{dataset} {split}", len(samples), "pair")


def _examine(dataset: str, sample: Sample) -> _Findings:
    """Decode one pair."""
    found = _Findings([], [], [], np.zeros(NUM_CLASSES + 1, np.int64))
    image = label = None
    try:
        image = folders.read_image(sample.image)
    except UserError as error:
        found.image.append(str(error))
    try:
        label = folders.module_of(dataset).read_label(sample.label) if sample.label else None
    except UserError as error:
        found.label.append(str(error))
    if label is not None:
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
        found.pixels[:] = [*counts[:NUM_CLASSES], counts[IGNORE]]
        if image is not None and label.shape != image.shape[:2]:
            sizes = f"{label.shape[1]}x{label.shape[0]}, its image {image.shape[1]}x{image.shape[0]}"
            found.size.append(f"{sample.label}: {sizes}; training resizes the label")
    return found
