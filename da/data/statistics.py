"""How many pixels of each class every label of a data set holds: read once, then kept in the cache."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from da.config import UserError
from da.data import folders, processes
from da.data.folders import Sample
from da.labels import LabelSpace

ALONE = 1000  # labels that one process has read before others would have started


def class_pixels(dataset: str, samples: Sequence[Sample], classes: LabelSpace) -> np.ndarray:
    """Labelled pixels by image and class, (images, classes) int64, in the order of `samples`, at the labels' own size.

    They are kept under `$DA_CACHE/statistics` for these files, as long as none of them changes, and these classes.

    Raises:
        UserError: a label is missing, cannot be decoded, or holds what `classes` do not know.
    """
    labels = [sample.label for sample in samples if sample.label]
    if len(labels) < len(samples):
        raise UserError(f"{len(samples) - len(labels)} of {len(samples)} images have no label, and each is counted")
    kept = file_of(dataset, labels, classes)
    if not kept.exists():
        keep(kept, list(_count_all(dataset, labels, classes)))
    counts: np.ndarray = np.load(kept)
    return counts


def file_of(dataset: str, labels: list[Path], classes: LabelSpace) -> Path:
    """Where the pixels of these label files, as they are now, are kept."""
    return folders.cache_root() / "statistics" / f"{_digest(dataset, labels, classes)}.npy"


def keep(kept: Path, counts: Sequence[np.ndarray]) -> None:
    """Write pixels by class, (classes,) int64 for each label, to `kept`, which `file_of` gave before they were read.

    Raises:
        UserError: the cache cannot be written.
    """
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}.writing")
        with open(fresh, "wb") as file:
            np.save(file, np.stack(counts))
        fresh.replace(kept)
    except OSError as error:
        raise UserError(f"{kept}: cannot be written ({error.strerror}); set DA_CACHE to a folder that can") from error


def _count_all(dataset: str, labels: list[Path], classes: LabelSpace) -> Iterable[np.ndarray]:
    count = partial(_count, dataset, classes)
    title = f"{dataset} classes"
    if len(labels) <= ALONE:
        yield from folders.progress(map(count, labels), title, len(labels), "label")
        return
    with processes.pool(min(os.cpu_count() or 1, 16)) as pool:
        yield from folders.progress(pool.map(count, labels, chunksize=16), title, len(labels), "label")


def _count(dataset: str, classes: LabelSpace, path: Path) -> np.ndarray:
    train_ids = folders.find(dataset).read_label(path, classes)
    return np.bincount(train_ids.ravel(), minlength=256)[: len(classes)]


def _digest(dataset: str, labels: list[Path], classes: LabelSpace) -> str:
    digest = hashlib.sha256(repr((dataset, folders.find(dataset).version, classes.dump())).encode())
    for path in labels:
        found = path.stat()
        digest.update(f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
