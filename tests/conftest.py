"""Tiny data roots in the on-disk layouts of GTA5, SYNTHIA and Cityscapes.

Every image shows its label: each pixel has the palette colour of its trainId, so that a test can read the
label off the image. Labels are a grid of 16-pixel blocks of random classes, a share of them ignored.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from city import NUM_CLASSES, PALETTE, TRAIN_TO_CITYSCAPES, TRAIN_TO_SYNTHIA
from PIL import Image

from da.labels import IGNORE

torch.set_num_threads(1)  # tiny tensors: threads cost more than they give


def draw_label(seed: int, width: int, height: int) -> np.ndarray:
    """(height, width) uint8 trainIds."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([*range(NUM_CLASSES), IGNORE], (-(-height // 16), -(-width // 16))).astype(np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)[:height, :width]


def save_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_palette_png(path: Path, ids: np.ndarray) -> None:
    """As GTA5 ships its labels: the index is the id, the palette its colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("P")
    palette = np.zeros((256, 3), np.uint8)
    palette[TRAIN_TO_CITYSCAPES[:NUM_CLASSES]] = PALETTE[:NUM_CLASSES]
    image.putpalette(palette.tobytes())
    image.save(path)


def save_synthia_png(path: Path, ids: np.ndarray) -> None:
    """As SYNTHIA ships its labels: 16 bits, class in red, instance in green."""
    path.parent.mkdir(parents=True, exist_ok=True)
    instance = np.arange(ids.size, dtype=np.uint16).reshape(ids.shape)
    cv2.imwrite(str(path), np.stack([np.zeros_like(instance), instance, ids.astype(np.uint16)], axis=-1))


@pytest.fixture
def gta5_root(tmp_path: Path) -> Path:
    """Six 96x54 pairs, `images/00001.png` ... and palette `labels/00001.png` ..."""
    root = tmp_path / "gta5"
    for n in range(1, 7):
        label = draw_label(n, 96, 54)
        save_png(root / "images" / f"{n:05d}.png", PALETTE[label])
        save_palette_png(root / "labels" / f"{n:05d}.png", TRAIN_TO_CITYSCAPES[label])
    return root


@pytest.fixture
def synthia_root(tmp_path: Path) -> Path:
    """Five 80x48 pairs with 16-bit labels."""
    root = tmp_path / "synthia"
    for n in range(5):
        label = draw_label(100 + n, 80, 48)
        save_png(root / "RGB" / f"{n:07d}.png", PALETTE[label])
        save_synthia_png(root / "GT/LABELS" / f"{n:07d}.png", TRAIN_TO_SYNTHIA[label])
    return root


@pytest.fixture
def cityscapes_root(tmp_path: Path) -> Path:
    """Five train and three val pairs of 96x48 in two cities each, `labelIds`."""
    root = tmp_path / "cityscapes"
    cities = {"train": {"aachen": 3, "ulm": 2}, "val": {"frankfurt": 2, "munster": 1}}
    for split, counts in cities.items():
        for city, count in counts.items():
            for n in range(count):
                label = draw_label(len(split) * 1000 + len(city) * 10 + n, 96, 48)
                stem = f"{city}_{n:06d}_000019"
                save_png(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", PALETTE[label])
                ids = TRAIN_TO_CITYSCAPES[label]
                save_png(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", ids)
    return root
