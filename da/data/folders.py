"""What the data sets share: pairing images with label files on disk, and decoding both without losing an id.

A data set is a module of this package, found by its name, that offers

    scan(root, split, with_labels)    samples as the image folder and the split say, label files not looked for
    index(root, split, with_labels)   the same, every label file present
    read_label(path)                  (H, W) uint8 trainIds
    CHECKED                           the splits `data check` walks, and whether their labels are needed

8-bit RGB PNGs are decoded with OpenCV, which is faster, once their checksums are found right (it takes a damaged
PNG in silence). Everything else is read with Pillow, labels always: OpenCV loses palette indices.
"""

import importlib
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from da.config import FOLDER_TREES, UserError

T = TypeVar("T")
UNKNOWN = 254  # mark inside look-up tables: neither a trainId nor IGNORE
STAMP = "translation.json"  # in a translated data root: what its pictures were made from
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_PNG, _RGB_8 = b"\x89PNG\r\n\x1a\n", bytes([8, 2])  # signature; bit depth and colour type in the header
# What Pillow raises on missing, truncated or damaged files, depending on where the damage lies.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Sample(NamedTuple):
    name: str  # short and unique in its data set: `00001`, `frankfurt_000001_007973`
    image: Path
    label: Path | None  # None: labels were not asked for


def progress(items: Iterable[T], title: str, total: int, unit: str) -> Iterable[T]:
    """`items` with a bar on standard error: moving on a terminal, a line every 30 seconds in a log."""
    return tqdm(items, title, total, mininterval=0.1 if sys.stderr.isatty() else 30.0, unit=unit)


def cache_root() -> Path:
    """Where what was rendered or decoded once is kept: `$DA_CACHE`, or `~/.cache/da`."""
    return Path(os.environ.get("DA_CACHE") or Path.home() / ".cache" / "da")


def module_of(dataset: str) -> ModuleType:
    """The module of the data set `dataset` (`gta5`, `cityscapes`, `synthia`)."""
    return importlib.import_module(f"da.data.{dataset}")


def wrong_root(root: Path, problem: str, variable: str) -> UserError:
    """The error for a data root that lacks something; `variable` names the tree in `FOLDER_TREES`."""
    return UserError(f"{root}: {problem}; expected a folder that holds  {FOLDER_TREES[variable]}")


def read_stamp(root: Path) -> dict[str, Any]:
    """What the translated data root `root` was made from; empty where it does not say.

    Raises:
        UserError: the file that says so is damaged.
    """
    path = root / STAMP
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged, so nobody knows what {root} was made from; delete {root}, translate again")
    return found


def files_in(folder: Path) -> set[str]:
    """The file names in `folder`, read in one listing; empty where there is no such folder."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def flat_samples(root: Path, images: str, labels: str, variable: str, with_labels: bool) -> list[Sample]:
    """Samples of a layout with one image folder and one label folder, whose files share their stem.

    Raises:
        UserError: `root` has no such image folder, or there is no image in it.
    """
    names = sorted(n for n in files_in(root / images) if n.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise wrong_root(root, f"no images in {images}/", variable)
    folder = root / labels
    return [
        Sample(Path(n).stem, root / images / n, folder / f"{Path(n).stem}.png" if with_labels else None) for n in names
    ]


def read_list(root: Path, split: str, known: Sequence[str]) -> list[str]:
    """The sample names in the list file `split` (a path, or a path below `root`): one a line, or file names.

    Raises:
        UserError: `split` is neither a file nor one of the `known` splits, or the list is empty.
    """
    for path in (Path(split).expanduser(), root / split):
        if path.is_file():
            lines = path.read_text(encoding="utf-8").split("\n")
            names = [Path(line.strip()).stem.removesuffix("_leftImg8bit") for line in lines if line.strip()]
            if not names:
                raise UserError(f"{path}: the list names no image; write one image name a line")
            return names
    raise UserError(f"split {split!r} of {root}: give {', '.join(known)}, or an existing file with one name a line")


def select(samples: list[Sample], names: Sequence[str], root: Path, source: str) -> list[Sample]:
    """The samples called `names`, in that order; `source` says in the error who asked for them."""
    by_name = {s.name: s for s in samples}
    lost = [n for n in names if n not in by_name]
    if lost:
        raise UserError(f"{root}: {len(lost)} of {len(names)} images named by {source} are missing, first {lost[0]}")
    return [by_name[n] for n in names]


def missing_labels(samples: list[Sample]) -> list[Sample]:
    """The samples whose label file does not exist (one listing per label folder)."""
    there = {folder: files_in(folder) for folder in {s.label.parent for s in samples if s.label}}
    return [s for s in samples if s.label and s.label.name not in there[s.label.parent]]


def require_labels(samples: list[Sample], root: Path, variable: str) -> list[Sample]:
    """`samples`, unless a label file is missing.

    Raises:
        UserError: how many labels are missing, and the first of them.
    """
    missing = missing_labels(samples)
    if missing:
        problem = f"{len(missing)} of {len(samples)} images have no label file, first {missing[0].label}"
        raise wrong_root(root, problem, variable)
    return samples


def unreadable(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"{path}: cannot be decoded ({reason}); copy the file again")


def read_image(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_PNG) and data[24:26] == _RGB_8:
            _check_png(data)
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if bgr is None:
                raise ValueError("damaged PNG")
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def _check_png(data: bytes) -> None:
    """
    Raises:
        ValueError: a chunk's checksum is wrong, or the last chunk is missing.
    """
    at, kind = len(_PNG), b""
    while at < len(data) and kind != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if data[end : end + 4] != zlib.crc32(memoryview(data)[at + 4 : end]).to_bytes(4, "big"):
            raise ValueError(f"checksum wrong at byte {at}")
        at = end + 4
    if kind != b"IEND":
        raise ValueError("truncated")


def read_stored(path: Path) -> np.ndarray:
    """A label file's values as they are stored: (H, W) ids or palette indices, or (H, W, 3 or 4) colours.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def strict_table(table: np.ndarray, known: frozenset[int]) -> np.ndarray:
    """A 256-entry id -> trainId table with `UNKNOWN` wherever the data set has no such id."""
    return np.where(np.isin(np.arange(256), sorted(known)), table, UNKNOWN).astype(np.uint8)


def to_train_ids(ids: np.ndarray, table: np.ndarray, path: Path, kind: str) -> np.ndarray:
    """Map (H, W) stored ids through a `strict_table` to (H, W) uint8 trainIds.

    Raises:
        UserError: `path` is a picture instead of an id map, or holds ids that `kind` does not know.
    """
    if ids.ndim != 2:
        raise UserError(f"{path}: a {ids.shape[-1]}-channel picture; expected one channel of {kind}")
    if ids.dtype != np.uint8:
        ids = np.where(ids > 255, UNKNOWN, ids).astype(np.uint8)
    train_ids: np.ndarray = cv2.LUT(ids, table)
    if (train_ids == UNKNOWN).any():
        strange = np.unique(ids[train_ids == UNKNOWN]).tolist()
        raise UserError(f"{path}: {', '.join(map(str, strange[:8]))} are not {kind}; is it another data set's label?")
    return train_ids
