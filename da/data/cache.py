"""Decode a data root once: `python -m da data cache`. What lies where, and how it is read: `da.data.frames`.

Frames are appended, pixels before their line of the index, so that a build can be killed at any moment and goes on
where it stopped. A frame whose file has changed is appended anew; its last line counts.
"""

import fcntl
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from da.config import UserError
from da.data import folders, frames
from da.data.folders import Sample
from da.data.frames import Cache, Entry, Frame, Frames, Size
from da.data.loaders import Loaded
from da.labels import LabelSpace


class Plan(NamedTuple):
    """What a build would do."""

    dataset: str
    root: Path
    size: Size | None
    classes: LabelSpace
    folder: Path
    samples: list[Sample]  # not cached yet, or changed since
    known: int  # samples that are cached already
    bytes: int  # to be written

    def text(self) -> str:
        gib = 2**30
        free = shutil.disk_usage(_existing(self.folder)).free
        return (
            f"{self.folder}: {self.known} samples cached, {len(self.samples)} to decode; "
            f"needs {self.bytes / gib:.2f} GiB, {free / gib:.1f} GiB are free"
        )


def plan(dataset: str, root: Path, size: Size | None, split: str, with_labels: bool, classes: LabelSpace) -> Plan:
    """Look at the samples of `split` and at what the cache of `root` at `size` holds of them.

    Raises:
        UserError: the root is wrong, the cache is of another version or damaged, or the disk is too small.
    """
    samples = folders.find(dataset).index(root, split, with_labels)
    cache = Cache.find(dataset, root, size, classes)
    todo = [s for s in samples if cache is None or not all(_is_cached(cache, path) for path in _files(s))]
    folder = frames.cache_folder(dataset, root, size, classes)
    need = sum(_pixels(s, size) * (4 if s.label else 3) for s in folders.progress(todo, "sizes", len(todo), "image"))
    found = Plan(dataset, root, size, classes, folder, todo, len(samples) - len(todo), need)
    if need > shutil.disk_usage(_existing(folder)).free:
        raise UserError(f"{found.text()}; set DA_CACHE to a folder on a larger disk")
    return found


def build(todo: Plan, workers: int) -> None:
    """Decode and store what `todo` names, with a progress bar.

    Raises:
        UserError: a file cannot be decoded, the folder cannot be written, or another process builds this cache.
    """
    try:
        todo.folder.mkdir(parents=True, exist_ok=True)
        with _locked(todo.folder):
            _append(todo, workers)
    except OSError as error:
        reason = f"{todo.folder}: cannot be written ({error.strerror}); set DA_CACHE to a folder that can"
        raise UserError(reason) from error


def _append(todo: Plan, workers: int) -> None:
    facts = {"version": frames.VERSION, "dataset": todo.dataset, "root": str(todo.root.resolve()), "size": todo.size}
    facts |= {"classes": todo.classes.dump()}
    index, pixels, named = todo.folder / "index.jsonl", todo.folder / "pixels.bin", todo.folder / frames.FACTS
    if not named.exists():  # written last, and at once
        index.write_bytes(b"")
        pixels.write_bytes(b"")
        fresh = named.with_suffix(".writing")
        fresh.write_text(json.dumps(facts), encoding="utf-8")
        fresh.replace(named)
    kept = frames.read_index(todo.folder)
    with index.open("r+b") as lines, pixels.open("r+b") as data:
        lines.truncate(lines.read().rfind(b"\n") + 1)  # what a kill cut off
        data.truncate(max((entry.end for entry in kept), default=0))
        lines.seek(0, 2)
        data.seek(0, 2)
        loaded: Loaded[_Found] = Loaded(_Decoded(todo), workers, batch_size=None)
        done = folders.progress(loaded, f"caching {todo.root}", len(todo.samples), "sample")
        for sample, (frame, files) in zip(todo.samples, done):
            arrays = [frame.image.permute(1, 2, 0), *([] if frame.label is None else [frame.label])]
            names = [path.relative_to(todo.root) for path in _files(sample)]
            entries = [_store(data, *file) for file in zip(names, files, arrays)]
            data.flush()  # the pixels are there before the index says so
            lines.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
            lines.flush()


def _store(data: BinaryIO, name: Path, found: tuple[int, int], pixels: torch.Tensor) -> Entry:
    offset = data.tell()
    raw = pixels.contiguous().numpy()
    data.write(raw.data)
    return Entry(name.as_posix(), *found, offset, raw.shape, zlib.crc32(raw.data))


class _Found(NamedTuple):
    frame: Frame
    files: list[tuple[int, int]]  # bytes and mtime_ns of the sample's files just before they were decoded


class _Decoded(Dataset[Any]):
    def __init__(self, todo: Plan) -> None:
        self.samples = todo.samples
        self.frames = Frames(todo.dataset, todo.root, todo.size, todo.classes)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> _Found | UserError:
        try:
            files = [path.stat() for path in _files(self.samples[i])]
            return _Found(self.frames.decode(self.samples[i]), [(f.st_size, f.st_mtime_ns) for f in files])
        except UserError as error:  # raised again by Loaded, in the main process
            return error
        except OSError as error:
            return folders.unreadable(Path(error.filename), error)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is building this cache; wait for it") from error
        yield


def _files(sample: Sample) -> list[Path]:
    return [sample.image, *([sample.label] if sample.label else [])]


def _is_cached(cache: Cache, path: Path) -> bool:
    entry = cache.entry(path)
    return entry is not None and frames.is_fresh(entry, path)


def _pixels(sample: Sample, size: Size | None) -> int:
    """Pixels of the sample's frame; at the files' own size, as the image's header says."""
    if size:
        return size[0] * size[1]
    try:
        with Image.open(sample.image) as image:
            return image.width * image.height
    except folders.DECODE_ERRORS as error:
        raise folders.unreadable(sample.image, error) from error


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
