"""The files of the miniature, in the layouts of the real data sets, and the cache they lie in."""

import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from da.config import UserError
from da.data import folders, processes
from da.data.miniature.classes import COLORS
from da.data.miniature.scene import Domain, Split, frame

VERSION = 1  # part of the cache folder's name; raise it whenever a rendered pixel changes
CITIES = {"train": ("aachen", "bremen", "zurich"), "val": ("frankfurt", "lindau")}


class Sizes(NamedTuple):
    """How many frames each part holds."""

    source: int = 300
    target_train: int = 200
    target_val: int = 60


DEFAULT_SIZES = Sizes()


def frame_paths(root: Path, domain: Domain, split: Split, index: int) -> tuple[Path, Path]:
    """Where image and label number `index` (from 0) lie under `root`."""
    if domain == "source":
        name = f"{index + 1:05d}.png"
        return root / "gta5" / "images" / name, root / "gta5" / "labels" / name
    cities = CITIES[split]
    city = cities[index % len(cities)]
    stem = f"{city}_{index // len(cities):06d}_000019"
    base = root / "cityscapes"
    return (
        base / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
        base / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png",
    )


def _write_frame(root: Path, seed: int, domain: Domain, split: Split, index: int) -> None:
    cv2.setNumThreads(1)
    image, label = frame(seed, domain, split, index)
    image_path, label_path = frame_paths(root, domain, split, index)
    label_image = Image.fromarray(label)
    if domain == "source":
        palette = np.zeros((256, 3), np.uint8)
        palette[list(COLORS)] = list(COLORS.values())
        label_image.putpalette(palette.tobytes())
    Image.fromarray(image).save(image_path, compress_level=3)
    label_image.save(label_path)


def render(root: Path, seed: int = 0, sizes: Sizes = DEFAULT_SIZES) -> None:
    """Render both data sets into `root`, on all processors, with a progress bar."""
    jobs: list[tuple[Path, int, Domain, Split, int]] = []
    jobs += [(root, seed, "source", "train", i) for i in range(sizes.source)]
    jobs += [(root, seed, "target", "train", i) for i in range(sizes.target_train)]
    jobs += [(root, seed, "target", "val", i) for i in range(sizes.target_val)]
    for _, _, domain, split, index in jobs:
        for path in frame_paths(root, domain, split, index):
            path.parent.mkdir(parents=True, exist_ok=True)
    workers = min(os.cpu_count() or 1, 1 + len(jobs) // 20)
    with processes.pool(workers) as pool:
        done = pool.map(_write_frame, *zip(*jobs), chunksize=4)
        for _ in folders.progress(done, "rendering the miniature", len(jobs), "frame"):
            pass


def ensure(seed: int = 0, sizes: Sizes = DEFAULT_SIZES) -> Path:
    """The folder that holds `gta5/` and `cityscapes/`, rendered on first use.

    It lies under `$DA_CACHE`, or `~/.cache/da`. Frames are rendered into a temporary folder that is renamed
    when whole, so an interrupted rendering is never taken for a finished one. Where two processes render at once,
    the second to finish throws its copy away.

    Raises:
        UserError: the cache folder cannot be written.
    """
    cache_root = folders.cache_root()
    folder = cache_root / f"miniature-v{VERSION}-seed{seed}-{'-'.join(map(str, sizes))}"
    if folder.is_dir():
        return folder
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
        with processes.partial_folder(folder) as partial:
            render(partial, seed, sizes)
            partial.chmod(0o755)
            try:
                os.replace(partial, folder)
            except OSError:
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise UserError(
            f"{cache_root}: cannot be written ({error.strerror}); set DA_CACHE to a folder that can"
        ) from error
    return folder
