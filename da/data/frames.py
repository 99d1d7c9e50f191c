"""Samples as pictures at the training size: decoded, or read from the cache that `data cache` made.

A frame depends on its files and the size alone: image and label, the label fitted to its image, both resized where
a stream has a fixed `size`. What is random (scale, crop, flip, colour) comes later, so a cached frame and a decoded
one are the same pixels.

The cache of one root at one size is a folder with
    cache.json     version, data set, root, size; a folder without it is no cache
    index.jsonl    one line per file: its name below the root, size, modification time; where its pixels lie; their CRC
    pixels.bin     the pixels, one frame after the other, memory-mapped for reading
"""

import hashlib
import json
import os
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from da.config import UserError
from da.data import folders
from da.data.folders import Sample
from da.labels import DEFAULT, LabelSpace

FACTS = "cache.json"
VERSION = 1  # of the files above and of how a frame is made; another version's cache is refused
Size = tuple[int, int]  # (width, height)


class Frame(NamedTuple):
    image: torch.Tensor  # (3, H, W) uint8 RGB, a view of (H, W, 3) memory, which torchvision handles fastest
    label: torch.Tensor | None  # (H, W) uint8 trainIds


class Entry(NamedTuple):
    """A line of the index."""

    file: str  # relative to the root
    bytes: int  # of the file when it was decoded
    mtime_ns: int  # of the file when it was decoded
    offset: int  # of the pixels in pixels.bin
    shape: tuple[int, ...]  # (H, W, 3) or (H, W)
    crc32: int  # of the pixels

    @property
    def end(self) -> int:
        return self.offset + int(np.prod(self.shape))


class Cache:
    """The frames of one root at one size that are on disk; nothing but its index is read before the first frame."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.entries = {entry.file: entry for entry in read_index(folder)}
        self._pixels: np.ndarray | None = None
        self._checked: set[str] = set()  # files whose checksum was right

    @staticmethod
    def find(dataset: str, root: Path, size: Size | None, classes: LabelSpace) -> "Cache | None":
        """The cache of `root` at `size` (None: the files' own), None where `data cache` made none.

        Raises:
            UserError: there is one, of another version or damaged.
        """
        folder = cache_folder(dataset, root, size, classes)
        return Cache(folder, root) if (folder / FACTS).is_file() else None

    def entry(self, path: Path) -> Entry | None:
        """The entry of a file of the root, None where it is not cached."""
        return self.entries.get(path.relative_to(self.root).as_posix())

    def read(self, path: Path) -> torch.Tensor | None:
        """The pixels of a file of the root as (H, W, 3) or (H, W) uint8, None where it is not cached.

        They are a copy-on-write map of the file: writing into them changes nothing on disk.

        Raises:
            UserError: the file has changed since, or the pixels are damaged.
        """
        entry = self.entry(path)
        if entry is None:
            return None
        if not is_fresh(entry, path):
            raise UserError(f"{self.folder}: stale, {path} has changed since; run `python -m da data cache` again")
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / "pixels.bin", np.uint8, "c")
        pixels = self._pixels[entry.offset : entry.end]
        if entry.file not in self._checked:  # once per process
            if zlib.crc32(pixels.data) != entry.crc32:
                raise UserError(f"{self.folder}: damaged (the pixels of {entry.file}); delete this folder")
            self._checked.add(entry.file)
        return torch.from_numpy(pixels.reshape(entry.shape))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_pixels": None}  # each process maps the file itself


class Frames:
    """The frames of one root at one size: from the cache where it holds them, else decoded."""

    def __init__(self, dataset: str, root: Path, size: Size | None, classes: LabelSpace) -> None:
        self.dataset, self.size, self.classes = dataset, size, classes
        self.cache = Cache.find(dataset, root, size, classes)
        self.warned = False

    def read(self, sample: Sample) -> Frame:
        """
        Raises:
            UserError: a file cannot be decoded, or the cache is stale or damaged.
        """
        if self.cache:
            image = self.cache.read(sample.image)
            label = self.cache.read(sample.label) if sample.label else None
            if image is not None and (label is not None or sample.label is None):
                return Frame(image.permute(2, 0, 1), label)
        return self.decode(sample)

    def label(self, sample: Sample) -> np.ndarray:
        """A sample's label, (H, W) uint8 trainIds at any size."""
        assert sample.label
        found = self.cache.read(sample.label) if self.cache else None
        return folders.find(self.dataset).read_label(sample.label, self.classes) if found is None else found.numpy()

    def decode(self, sample: Sample) -> Frame:
        """The frame from the sample's files: images bicubic with antialiasing, labels nearest.

        Raises:
            UserError: a file cannot be decoded, or its label holds unknown ids.
        """
        image = torch.from_numpy(folders.read_image(sample.image)).permute(2, 0, 1)
        label = None if sample.label is None else self._label(sample.label, image)
        if self.size and (self.size[1], self.size[0]) != image.shape[1:]:
            width, height = self.size
            image = F.resize(image, [height, width], InterpolationMode.BICUBIC, antialias=True)
            label = None if label is None else _nearest(label, height, width)
        return Frame(image, label)

    def _label(self, path: Path, image: torch.Tensor) -> torch.Tensor:
        """The label at the image's size: some GTA5 pairs differ by a few lines, and the image is right.

        Raises:
            UserError: width and height are exchanged.
        """
        label = torch.from_numpy(folders.find(self.dataset).read_label(path, self.classes))
        if label.shape == image.shape[1:]:
            return label
        require_upright(path, (label.shape[0], label.shape[1]), (image.shape[1], image.shape[2]))
        if self.dataset not in folders.BUILT_IN:
            sizes = f"{label.shape[1]}x{label.shape[0]}, its image {image.shape[2]}x{image.shape[1]}"
            raise UserError(f"{path}: {sizes}; store both at one size")
        if not self.warned:
            sizes = f"{tuple(label.shape)} instead of {tuple(image.shape[1:])}"
            warnings.warn(f"{path}: label of size {sizes}; such labels of {path.parent} are resized", stacklevel=2)
        self.warned = True
        return _nearest(label, image.shape[1], image.shape[2])


def require_upright(path: Path, label: tuple[int, int], image: tuple[int, int]) -> None:
    """
    Raises:
        UserError: the label at `path` has the (height, width) of its image exchanged.
    """
    if label != image and label == image[::-1]:
        raise UserError(
            f"{path}: {label[1]}x{label[0]}, its image {image[1]}x{image[0]}: one of them is turned (pixels are taken "
            "as they are stored, without the EXIF orientation); store both alike"
        )


def cache_folder(dataset: str, root: Path, size: Size | None, classes: LabelSpace) -> Path:
    """Where the cache of `root` at `size` with labels of `classes` lies, whether it exists or not."""
    made_by = (folders.find(dataset).version, "" if classes.dump() == DEFAULT else repr(classes.dump()))
    place = hashlib.sha256(os.fsencode(root.resolve()) + "".join(made_by).encode()).hexdigest()[:8]
    scale = "x".join(map(str, size)) if size else "own-size"
    return folders.cache_root() / f"frames-{Path(dataset).stem}-{scale}-{place}"


def read_index(folder: Path) -> list[Entry]:
    """The entries of a cache folder; a last line that a kill cut off is left out.

    Raises:
        UserError: the cache is of another version, or damaged.
    """
    try:
        version = json.loads((folder / FACTS).read_text(encoding="utf-8"))["version"]
        whole, _, _ = (folder / "index.jsonl").read_text(encoding="utf-8").rpartition("\n")
        rows = [json.loads(line) for line in whole.splitlines()]
        entries = [Entry(name, size, time, at, tuple(shape), crc) for name, size, time, at, shape, crc in rows]
        pixels = (folder / "pixels.bin").stat().st_size
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder}: damaged ({error}); delete this folder") from error
    if version != VERSION:
        raise UserError(f"{folder}: made by version {version} of the cache, this is {VERSION}; delete this folder")
    if pixels < max((entry.end for entry in entries), default=0):
        raise UserError(f"{folder}: damaged (pixels.bin is cut off); delete this folder")
    return entries


def is_fresh(entry: Entry, path: Path) -> bool:
    """Whether the file is still the one that was decoded, by its size and modification time."""
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (entry.bytes, entry.mtime_ns)


def _nearest(label: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.resize(label[None], [height, width], InterpolationMode.NEAREST_EXACT)[0]
