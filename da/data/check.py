"""Look at every file of a data root before a long run does, and report all that is wrong at once."""

import contextlib
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from da.config import UserError
from da.data import folders, processes, statistics
from da.data.folders import DataSet, Sample
from da.labels import COLORS, IGNORE, TRAIN_IDS, LabelSpace, Scheme, pack

LINES_SHOWN = 20
NEAR = 10  # values this close to those of a scheme look like them after JPEG or a smooth resize
LOST = 0.25  # many strange values on a smaller share of a label's pixels look like that too
LOSSILY = "stored with loss (JPEG) or resized smoothly; make it again"


@dataclass
class Report:
    root: Path
    dataset: str
    classes: LabelSpace
    pairs: int = 0  # images looked at
    fatal: list[str] = field(default_factory=list)  # training or scoring would stop here, or learn something else
    warnings: list[str] = field(default_factory=list)  # survivable, or touching nothing that adaptation reads
    by_split: dict[str, np.ndarray] = field(default_factory=dict)  # pixels by trainId; last: ignored

    @property
    def pixels(self) -> np.ndarray:
        """Of all splits together, by trainId; the last entry counts the ignored ones."""
        return sum(self.by_split.values(), np.zeros(len(self.classes) + 1, np.int64))

    def text(self) -> str:
        """The report for a terminal: what would be trained, problems, then each class's share of the pixels."""
        names = self.classes.names
        lines = [f"{self.root} as {self.dataset}: {self.pairs} images, {len(names)} classes of {self.classes.name}"]
        for title, problems in (("problem", self.fatal), ("note", self.warnings)):
            shown = _summed_up(problems)
            lines += [f"  {title}: {p}" for p in shown[:LINES_SHOWN]]
            if len(shown) > LINES_SHOWN:
                lines.append(f"  ... and {len(shown) - LINES_SHOWN} more {title}s")
        total = self.pixels.sum()
        if total:
            shares = 100 * self.pixels / total
            wide = max(14, *(len(name) for name in names))
            lines.append("  share of pixels")
            lines += [
                f"    {name:<{wide}} {share:7.3f} %" if share else f"    {name:<{wide}}  absent"
                for name, share in zip((*names, "(ignored)"), shares)
            ]
        lines.append(f"  {len(self.fatal)} problems, {len(self.warnings)} notes")
        return "\n".join(lines)


def _summed_up(problems: Sequence[str]) -> list[str]:
    """One line for what many files have alike, with the first of them."""
    alike: dict[str, list[str]] = defaultdict(list)
    for text in problems:
        path, _, reason = text.partition(": ")
        alike[reason if reason and len(path) > 3 and "/" in path else text].append(text)
    return [
        text
        for texts in alike.values()
        for text in (texts if len(texts) <= 3 else [f"{texts[0]} (and {len(texts) - 1} more files)"])
    ]


class _Findings(NamedTuple):
    """What one pair of files gave."""

    image: list[str]
    label: list[str]
    size: list[str]
    notes: list[str]
    pixels: np.ndarray  # (classes + 1,) by trainId; last: ignored
    values: frozenset[int]  # stored in a label of one channel, below 256
    digest: str  # of the image file


def check_root(
    root: Path, dataset: str, classes: LabelSpace, splits: Sequence[str] = (), with_labels: bool = True
) -> Report:
    """Decode all images and labels of `splits`, or of every split that training and scoring read.

    Missing, unreadable and strange files are all collected. Labels that adaptation never reads (Cityscapes train) only
    give notes. Of somebody's own data nothing is taken for known: labels without an image, sizes that differ, a picture
    in two splits and classes that never occur are problems there. A progress bar runs on standard error. Where all
    labels of a split are sound, their pixels by class are kept for training (`statistics`).

    Args:
        root: the data root.
        dataset: a name that `folders.find` knows.
        splits: splits or list files; empty takes the data set's `checked`.
        with_labels: False looks at the images alone, as of a target that has no labels.

    Raises:
        UserError: no such data set, or its labels cannot hold the classes.
    """
    found_set = folders.find(dataset)
    scheme = found_set.scheme(classes)
    report = Report(root, dataset, classes)
    own_problems = report.fatal if found_set.own else report.warnings
    values: dict[Path, frozenset[int]] = {}  # of each label
    seen: dict[str, dict[str, Path]] = defaultdict(dict)  # digest -> split -> image
    for split, samples in _scans(report, found_set, splits, with_labels).items():
        label_problems = report.fatal if found_set.checked.get(split, True) else report.warnings
        missing = folders.missing_labels(samples)
        label_problems += [_missing(s) for s in missing]
        if with_labels and not splits and found_set.everything is None:
            own_problems += _orphans(samples)
        lost = {s.name for s in missing}
        samples = [s._replace(label=None) if s.name in lost else s for s in samples]
        pixels = report.by_split[split] = np.zeros(len(classes) + 1, np.int64)
        labels = [sample.label for sample in samples if sample.label]
        kept: Path | None = None
        with contextlib.suppress(UserError):  # no cache is no problem of the data
            kept = statistics.file_of(dataset, labels, classes)
        counts: list[np.ndarray] = []  # of each sound label by class
        for sample, found in zip(samples, _examine_all(samples, dataset, classes, split)):
            report.pairs += 1
            report.fatal += found.image
            label_problems += found.label
            own_problems += found.size
            report.warnings += found.notes
            pixels += found.pixels
            counts += [found.pixels[:-1]] if sample.label and not found.label else []
            seen[found.digest].setdefault(split, sample.image)
            if sample.label:
                values[sample.label] = found.values
        if kept and counts and len(counts) == len(samples):
            with contextlib.suppress(UserError):
                statistics.keep(kept, counts)
        if pixels.any() and not pixels[:-1].any():
            label_problems.append(f"{split}: no pixel of any label belongs to a class of {classes.name}; label some")
        if found_set.own:
            report.fatal += _absent(split, pixels, classes)
    if with_labels and not splits and found_set.everything:
        every = found_set.everything(root)
        lines = [*_orphans(every), *(_missing(s) for s in folders.missing_labels(every))]
        own_problems += [line for line in lines if line not in report.fatal]
    own_problems += _twice(seen)
    if report.pixels[-1] > 0.5 * max(1, report.pixels.sum()):
        report.warnings.append("more than half of all pixels are void; is a class among the void values?")
    if scheme.table is not None:  # numbers are stored, not colours
        every_value = frozenset().union(*values.values())
        report.fatal[:0] = filter(None, [_misread(every_value, scheme, classes)])
        report.warnings[:0] = filter(None, [_train_ids(every_value, scheme, classes)])
        if found_set.own and scheme.table[IGNORE] == IGNORE and every_value - {0, IGNORE}:
            report.warnings += [
                f"{path}: holds only 0 and 255, which is void, where other labels hold more; is it of another kind?"
                for path, own in values.items()
                if own == {0, IGNORE}
            ]
    return report


def _absent(split: str, pixels: np.ndarray, classes: LabelSpace) -> list[str]:
    """Classes without a pixel, where there are labels at all."""
    return [
        f"{split}: {name} never occurs; label some, or take it out of the class list"
        for name, count in zip(classes.names, pixels)
        if not count and pixels.any()
    ]


def _twice(seen: dict[str, dict[str, Path]]) -> list[str]:
    """Pictures that two splits hold: `seen` is digest -> split -> image."""
    lines = []
    for digest, images in seen.items():
        if digest and len(images) > 1:
            (one, path), (other, same) = list(images.items())[:2]
            as_well = "" if path == same else f" as {same}"
            lines.append(
                f"{path}: in {one}, and{as_well} in {other}: the same picture in two splits; take it out of one"
            )
    return lines


def _scans(report: Report, dataset: DataSet, splits: Sequence[str], with_labels: bool) -> dict[str, list[Sample]]:
    """The samples of each split that is there."""
    found, problems = {}, []
    for split in splits or dataset.checked:
        try:
            found[split] = dataset.scan(report.root, split, with_labels)
        except UserError as error:
            problems.append(str(error))
    if dataset.splits_may_lack and not splits and found:
        problems = []
        if len(found) > 1:
            found.pop("all", None)  # of which the others are parts
    report.fatal += problems
    return found


def _missing(sample: Sample) -> str:
    assert sample.label
    stem = folders.stem(sample.label.name)
    other = next((n for n in sorted(folders.files_in(sample.label.parent)) if folders.stem(n) == stem), None)
    hint = f"; {other} is there, save it as {sample.label.suffix}" if other else ""
    return f"{sample.label}: missing, the label of {sample.image}{hint}"


def _orphans(samples: list[Sample]) -> list[str]:
    """Label files of the kind in use that belong to none of `samples`."""
    expected = {s.label for s in samples}
    kinds = {(s.label.parent, s.label.name.removeprefix(s.name)) for s in samples if s.label}
    found = [folder / n for folder, suffix in sorted(kinds) for n in folders.files_in(folder) if n.endswith(suffix)]
    return [f"{path}: a label without an image" for path in sorted(found) if path not in expected]


def _misread(values: frozenset[int], scheme: Scheme, classes: LabelSpace) -> str | None:
    """What the values of all labels together say of a wrong class list, or of labels made wrong."""
    stored = scheme.stored[: len(classes)].tolist()
    strange = {value for value in values if not scheme.known[value]}
    count = len(classes)
    if values == {0, 255} and 255 not in stored:
        return (
            f"labels hold only 0 and 255, and 255 is void in {scheme.title}: only {classes.names[0]} would be trained; "
            "give the class that 255 stands for that value in the class list (da/classes/binary.yaml shows how)"
        )
    if stored == list(range(count)) and strange == {count} and max(values - {IGNORE}) == count:
        return (
            f"labels hold 1 to {count}: 0 seems to be void, but is {classes.names[0]} in {scheme.title}; give "
            "the class list a column that begins at 1, with void: [0]"
        )
    if stored == list(range(1, count + 1)) and {0, IGNORE} <= values and count not in values:
        return (
            f"labels hold 0 to {max(values - {IGNORE})} and 255: they seem to begin at 0, but 0 is void in "
            f"{scheme.title}; use ids: trainids"
        )
    known = np.flatnonzero(scheme.known)
    near = [value for value in strange if np.abs(known - value).min() <= NEAR]
    if len(strange) >= 8 and len(near) >= 0.5 * len(strange):
        return (
            f"{len(strange)} values that {scheme.title} does not know, {len(near)} of them close to known ones: labels "
            f"were {LOSSILY}"
        )
    return None


def _train_ids(values: frozenset[int], scheme: Scheme, classes: LabelSpace) -> str | None:
    """That labels look like class numbers where the scheme stores the classes otherwise."""
    numbers = range(len(classes))
    stored, used = scheme.stored[: len(classes)].tolist(), values - {IGNORE}
    if not used or not used <= set(numbers) or stored == list(numbers) or max(stored) < len(classes):
        return None
    return (
        f"no value above {len(classes) - 1} occurs in any label: they look like {TRAIN_IDS} (class numbers), "
        f"but are read as {scheme.title}"
    )


def _examine_all(samples: list[Sample], dataset: str, classes: LabelSpace, split: str) -> Iterable[_Findings]:
    workers = min(os.cpu_count() or 1, 16)
    with processes.pool(workers) as pool:
        chunk = max(1, min(16, len(samples) // workers))
        found = pool.map(partial(_examine, dataset, classes), samples, chunksize=chunk)
        yield from folders.progress(found, f"{dataset} {split}", len(samples), "pair")


def _examine(dataset: str, classes: LabelSpace, sample: Sample) -> _Findings:
    """Decode one pair."""
    of = folders.find(dataset)
    found = _Findings([], [], [], [], np.zeros(len(classes) + 1, np.int64), frozenset(), _digest(sample.image))
    image: np.ndarray | None = None  # (H, W, 3)
    try:
        image = folders.read_image(sample.image)
    except UserError as error:
        found.image.append(str(error))
    else:
        if folders.is_turned(sample.image):
            found.notes.append(f"{sample.image}: its EXIF orientation is not followed; its pixels are taken as stored")
    if sample.label is None:
        return found
    try:
        stored = of.read_stored(sample.label)
    except UserError as error:
        found.label.append(str(error))
        return found
    try:
        label = of.to_train_ids(stored, sample.label, classes)  # (H, W)
    except UserError as error:
        found.label.append(_explained(str(error), stored, sample.label, classes, of.scheme(classes)))
    else:
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
        found.pixels[:] = [*counts[: len(classes)], counts[IGNORE]]
        if image is not None and label.shape != image.shape[:2]:
            sizes = f"{label.shape[1]}x{label.shape[0]}, its image {image.shape[1]}x{image.shape[0]}"
            if label.shape == image.shape[1::-1]:
                found.label.append(f"{sample.label}: {sizes}; one of them is turned")
            else:
                remedy = "training resizes the label" if dataset in folders.BUILT_IN else "store both at one size"
                found.size.append(f"{sample.label}: {sizes}; {remedy}")
    values = np.unique(stored).tolist() if stored.ndim == 2 else []
    return found._replace(values=frozenset(value for value in values if 0 <= value < 256))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # told by whoever decodes it
        return ""


def _explained(message: str, stored: np.ndarray, path: Path, classes: LabelSpace, scheme: Scheme) -> str:
    """What a person may do about a label that is a picture, or was made from one."""
    if stored.ndim == 3 and stored.shape[-1] == 2:
        return f"{message}; drop its transparency"
    if stored.ndim == 2 and scheme.table is not None:
        known = set(np.flatnonzero(scheme.known).tolist())
        return _lost(stored, known, f"values that are not {scheme.title}", path) or message
    if stored.ndim == 2:
        return message
    rgb = stored[..., :3]
    if scheme.table is None:
        return _lost(pack(rgb), set(scheme.colors), f"colours that are not {scheme.title}", path) or message
    if (rgb == rgb[..., :1]).all():
        return f"{message}; its channels are equal: store one of them"
    if set(np.unique(pack(rgb)).tolist()) <= classes.scheme(COLORS).colors.keys():
        return f"{message}; its colours are those of the classes: say stored_as: colors in the class list"
    return f"{message}; store class numbers, or give each class its colour and say stored_as: colors in the class list"


def _lost(stored: np.ndarray, known: set[int], what: str, path: Path) -> str | None:
    """That many values, (H, W), of few pixels are none of the `known`."""
    strange = [value for value in np.unique(stored).tolist() if value not in known]
    if len(strange) < 4 or np.isin(stored, strange).mean() >= LOST:
        return None
    return f"{path}: {len(strange)} {what}, on few pixels: {LOSSILY}"
