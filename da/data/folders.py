"""What the data sets share: pairing images with label files on disk, and decoding both without losing an id.

A data set is a `DataSet`: found by its name, that of a module of this package or of a description in `da/data/sets`,
or by the path of another description (see `da.data.described`).

Pixels are taken as they are stored, of images and labels alike: an EXIF orientation is not followed. 8-bit RGB PNGs are
decoded with OpenCV, which is faster, once their checksums are found right (it takes a damaged PNG in silence).
Everything else is read with Pillow, labels always: OpenCV loses palette indices. Grey pictures of 16 bits or floats are
brought to 8 bits.
"""

import functools
import importlib
import io
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from da.config import UserError, expanded
from da.labels import IGNORE, UNKNOWN, LabelSpace, Scheme, pack

T = TypeVar("T")
BUILT_IN = ("cityscapes", "gta5", "synthia")  # modules of this package with a `DATASET`
EMBEDDED = ("gta5", "cityscapes")  # the miniature has these two
PSEUDO_STAMP = "pseudo_labels.json"  # in a data root whose labels a segmenter made: by which, and how
STAMP = "translation.json"  # in a translated data root: what its pictures were made from
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
MAX_PIXELS = 2**30  # of one picture: OpenCV's own limit
_PNG, _RGB_8 = b"\x89PNG\r\n\x1a\n", bytes([8, 2])  # signature; bit depth and colour type in the header
_ORIENTATION = 0x0112  # the EXIF tag
# What Pillow and OpenCV raise on missing, truncated or damaged files, depending on where the damage lies.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, cv2.error, MemoryError)

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many, and would warn of fewer


class Sample(NamedTuple):
    name: str  # short and unique in its data set: `00001`, `frankfurt_000001_007973`
    image: Path
    label: Path | None  # None: labels were not asked for


@dataclass(frozen=True)
class DataSet:
    """How a data set lies on disk.

    Attributes:
        name: what settings call it; the path of a description that is not shipped.
        splits: their names; a list file is a split too.
        checked: the splits that `data check` walks, and whether their labels are needed.
        root: where it lies if a setting does not say, as a rule `${NAME_ROOT}`; "" where it has none.
        tree: what a root holds, in words.
        scan: (root, split, with_labels) -> samples as the image folder and the split say, label files not looked for.
        scheme: (classes) -> the scheme that its label files follow as a rule.
        read_stored: (path) -> what a label file holds, see `read_stored`.
        scheme_of: (path, stored, classes) -> the scheme of one label file, where it may be another; None: `scheme`.
        lists: files below the root that name the samples of splits.
        own: whether it is somebody's own, so that `data check` takes nothing about it for known.
        splits_may_lack: whether some of the splits need not be there, as in two plain folders.
        version: of a description, changes with its text.
        everything: (root) -> all labelled images, whatever the lists of splits name; None where splits are folders.
    """

    name: str
    splits: tuple[str, ...]
    checked: Mapping[str, bool]
    root: str
    tree: str
    scan: Callable[[Path, str, bool], list[Sample]]
    scheme: Callable[[LabelSpace], Scheme]
    read_stored: Callable[[Path], np.ndarray]
    scheme_of: Callable[[Path, np.ndarray, LabelSpace], Scheme] | None = None
    lists: tuple[str, ...] = ()
    own: bool = False
    splits_may_lack: bool = False
    version: str = ""
    everything: Callable[[Path], list[Sample]] | None = None

    def index(self, root: Path, split: str, with_labels: bool = True) -> list[Sample]:
        """`scan`, every label file present.

        Raises:
            UserError: no images, missing labels, no such split.
        """
        return require_labels(self.scan(root, split, with_labels), root, self.tree)

    def read_label(self, path: Path, classes: LabelSpace) -> np.ndarray:
        """A label file as (H, W) uint8 trainIds, 255 = ignore.

        Raises:
            UserError: the file cannot be decoded, or holds an id or a colour that `classes` do not know.
        """
        return self.to_train_ids(self.read_stored(path), path, classes)

    def to_train_ids(self, stored: np.ndarray, path: Path, classes: LabelSpace) -> np.ndarray:
        """`read_label` of what the file at `path` holds."""
        scheme = self.scheme_of(path, stored, classes) if self.scheme_of else self.scheme(classes)
        return to_train_ids(stored, scheme, path)


def known() -> list[str]:
    """Names of the data sets that need no file of one's own."""
    from da.data import described

    return sorted([*BUILT_IN, *described.shipped()])


def is_description(name: str) -> bool:
    """Whether a data set is named by the path of its description."""
    return name.endswith((".yaml", ".yml"))


@functools.lru_cache(maxsize=64)
def find(name: str) -> DataSet:
    """The data set called `name`.

    Raises:
        UserError: there is none, or its description has mistakes.
    """
    if name in BUILT_IN:
        found: DataSet = importlib.import_module(f"da.data.{name}").DATASET
        return found
    from da.data import described

    return described.find(name)


def progress(items: Iterable[T], title: str, total: int, unit: str) -> Iterable[T]:
    """`items` with a bar on standard error: moving on a terminal, a line every 30 seconds in a log."""
    return tqdm(items, title, total, mininterval=0.1 if sys.stderr.isatty() else 30.0, unit=unit)


def cache_root() -> Path:
    """Where what was rendered or decoded once is kept: `$DA_CACHE`, or `~/.cache/da`.

    Raises:
        UserError: this user has no home folder.
    """
    if chosen := os.environ.get("DA_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "da"
    except RuntimeError as error:
        raise UserError("this user has no home folder; set DA_CACHE to a folder for what is decoded once") from error


def wrong_root(root: Path, problem: str, tree: str) -> UserError:
    """The error for a data root that lacks something; `tree` says what it should hold."""
    return UserError(f"{root}: {problem}; expected a folder that holds  {tree}")


def read_stamp(root: Path, name: str = STAMP) -> dict[str, Any]:
    """What the translated data root `root`, or one of pseudo labels, was made from; empty where it does not say.

    Raises:
        UserError: the file that says so is damaged.
    """
    path = root / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged, so nobody knows what {root} was made from; delete {root}, make it again")
    return found


def files_in(folder: Path) -> set[str]:
    """The file names in `folder`, read in one listing, hidden ones left out; empty where there is no such folder."""
    return {n for n in os.listdir(folder) if not n.startswith(".")} if folder.is_dir() else set()


def stem(name: str) -> str:
    """A file name without the suffix of a picture; other dots belong to the name."""
    base, dot, suffix = name.rpartition(".")
    return base if dot + suffix.lower() in IMAGE_SUFFIXES else name


def flat_samples(root: Path, images: str, labels: str, tree: str, with_labels: bool) -> list[Sample]:
    """Samples of a layout with one image folder and one label folder, whose files share their stem.

    Raises:
        UserError: `root` has no such image folder, there is no image in it, or something else than a file.
    """
    names = sorted(n for n in files_in(root / images) if n.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise wrong_root(root, f"no images in {images}/", tree)
    require_files(root / images, names)
    folder = root / labels
    by_stem = {stem(n): n for n in files_in(folder) if n.lower().endswith(".png")} if with_labels else {}
    labelled = (folder / by_stem.get(stem(n), f"{stem(n)}.png") if with_labels else None for n in names)
    return [Sample(stem(n), root / images / n, label) for n, label in zip(names, labelled)]


def require_files(folder: Path, names: Iterable[str]) -> None:
    """
    Raises:
        UserError: one of `names` in `folder` is a pipe, a socket or a device, which would be waited for.
    """
    wanted = set(names)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in wanted and not entry.is_file() and _is_special(entry.path):
                raise UserError(f"{entry.path}: a pipe, socket or device, not a picture; take it out of the folder")


def _is_special(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:  # a dangling link, which is reported where it is read
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, with or without byte-order mark and Windows' line ends.

    Raises:
        UserError: it cannot be read, or is no UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")  # names need not be UTF-8
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if "\0" in text:
        raise UserError(f"{path}: not a text in UTF-8; save it as UTF-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def list_file(root: Path, split: str) -> Path | None:
    """The list file that `split` names: a path, or a path below `root`."""
    return next((path for path in (expanded(split), root / split) if path.is_file()), None)


def read_list(root: Path, split: str, known: Sequence[str]) -> list[str]:
    """The sample names in the list file `split` (a path, or a path below `root`): one a line, or file names.

    Raises:
        UserError: `split` is neither a file nor one of the `known` splits, or the list is empty or no text.
    """
    path = list_file(root, split)
    if path is None:
        raise UserError(f"split {split!r} of {root}: give {', '.join(known)}, or an existing file with one name a line")
    names = [stem(re.split(r"[/\\]", line)[-1]).removesuffix("_leftImg8bit") for line in read_lines(path)]
    if not names:
        raise UserError(f"{path}: the list names no image; write one image name a line")
    return names


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


def require_labels(samples: list[Sample], root: Path, tree: str) -> list[Sample]:
    """`samples`, unless a label file is missing.

    Raises:
        UserError: how many labels are missing, and the first of them.
    """
    missing = missing_labels(samples)
    if missing:
        problem = f"{len(missing)} of {len(samples)} images have no label file, first {missing[0].label}"
        raise wrong_root(root, problem, tree)
    return samples


def unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"{path}: claims more than {MAX_PIXELS:,} pixels; cut it into smaller pictures")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file")
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path}: cannot be decoded (no format that is known here); copy the file again")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().split("\n")[0]
    return UserError(f"{path}: cannot be decoded ({reason or type(error).__name__}); copy the file again")


def read_image(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB, as it is stored.

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
            return to_rgb(image)
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image, from its head.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB: grey is repeated, transparency dropped, 16 bits and floats (of white 1, 255 or
    65535) brought to 8 bits."""
    if not image.mode.startswith(("I", "F")):
        return np.array(image.convert("RGB"))
    grey = np.nan_to_num(np.asarray(image, np.float32))  # `convert` would clip it
    white = 1 if image.mode == "F" and grey.max() <= 1 else 255 if grey.max() <= 255 else 65535
    if image.mode.startswith("I;16") or image.format == "PNG":  # of which 8 bits are mode L
        white = 65535
    grey = np.rint(grey * (255 / white)).clip(0, 255)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, 2)


def is_turned(path: Path) -> bool:
    """Whether a picture asks by its EXIF orientation to be shown turned or mirrored."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # Pillow stumbles over damaged metadata in many ways; the pixels may still be whole
        return False


def _check_png(data: bytes) -> None:
    """
    Raises:
        ValueError: a chunk's checksum is wrong, or the last chunk is missing.
        DecompressionBombError: the header claims too many pixels.
    """
    if int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big") > MAX_PIXELS:
        raise Image.DecompressionBombError
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
    """A label file's values as they are stored: (H, W) ids or palette indices, or (H, W, 2 to 4) of a picture.

    Raises:
        UserError: the file is missing, truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
        with Image.open(path) as image:
            stored = np.asarray(image)
    except DECODE_ERRORS as error:
        raise unreadable(path, error) from error
    depth, kind = header[24:26] if header.startswith(_PNG) and len(header) == 26 else (8, 0)
    if kind == 0 and depth < 8:  # grey of 1, 2 or 4 bits, which Pillow spreads over 0 to 255
        stored = stored.astype(np.uint8) // (1 if depth == 1 else 255 // (2**depth - 1))
    return stored.astype(np.uint8) if stored.dtype == bool else stored


def to_train_ids(stored: np.ndarray, scheme: Scheme, path: Path) -> np.ndarray:
    """Map stored ids (H, W), or colours (H, W, 3 or 4) where the scheme has colours, to (H, W) uint8 trainIds.

    Raises:
        UserError: `path` is a picture instead of an id map, or holds ids or colours that the scheme does not know.
    """
    if scheme.table is None:
        return _colors_to_train_ids(stored, scheme, path)
    if stored.ndim != 2:
        raise UserError(f"{path}: a {stored.shape[-1]}-channel picture; expected one channel of {scheme.title}")
    ids = stored
    if ids.dtype != np.uint8:
        ids = np.where((ids >= 0) & (ids < 256), ids, 0).astype(np.uint8)
    train_ids: np.ndarray = cv2.LUT(ids, scheme.table)
    if (train_ids == UNKNOWN).any() or ids is not stored:
        strange = [
            value for value in np.unique(stored).tolist() if not 0 <= value < 256 or not scheme.known[int(value)]
        ]
        if strange:
            raise UserError(
                f"{path}: {', '.join(map(str, strange[:8]))} are not {scheme.title}; is it another data set's label?"
            )
    return train_ids


def _colors_to_train_ids(stored: np.ndarray, scheme: Scheme, path: Path) -> np.ndarray:
    if stored.ndim != 3 or stored.shape[-1] < 3:
        channels = 1 if stored.ndim == 2 else stored.shape[-1]
        raise UserError(f"{path}: {channels} channel(s) of values; expected a picture in {scheme.title}")
    packed = pack(stored[..., :3])
    train_ids: np.ndarray = scheme.color_table[packed]
    if (train_ids == UNKNOWN).any():
        strange = [c for c in np.unique(packed[train_ids == UNKNOWN]).tolist() if c not in scheme.colors]
        if strange:
            rgb = (strange[0] >> 16, strange[0] >> 8 & 255, strange[0] & 255)
            raise UserError(f"{path}: {rgb} is none of the {scheme.title}")
    return train_ids


def has_labels(label: np.ndarray) -> bool:
    """Whether a pixel of (H, W) trainIds belongs to a class."""
    return bool((label != IGNORE).any())
