"""Pictures: label colours, overlays, heat maps, and grids of them with titles."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from da.labels import LabelSpace

WHITE = (255, 255, 255)


def to_picture(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8 RGB tensor -> (H, W, 3) array."""
    return image.permute(1, 2, 0).cpu().numpy()


def colorize(label: Tensor | np.ndarray, classes: LabelSpace) -> np.ndarray:
    """(H, W) uint8 trainIds -> (H, W, 3) RGB in the colours of `classes`."""
    return classes.palette[np.asarray(label.cpu() if isinstance(label, Tensor) else label)]


def overlay(picture: np.ndarray, colors: np.ndarray, opacity: float) -> np.ndarray:
    """Two (H, W, 3) uint8 pictures mixed: `colors` with the weight `opacity` (0 to 1), `picture` with the rest."""
    return cv2.addWeighted(colors, opacity, picture, 1 - opacity, 0)


def heat_map(values: Tensor) -> np.ndarray:
    """(H, W) values from 0 (dark) to 1 (bright) -> (H, W, 3) RGB."""
    grey = (values.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def grid(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], classes: LabelSpace, width: int = 320
) -> np.ndarray:
    """Rows of (H, W, 3) pictures, each scaled to `width` pixels, with a title above each column.

    Label colours stay exact because enlarging and shrinking use the nearest pixel for every picture that has as few
    colours as one of labels in these `classes`.
    """
    gap, few = 4, len(classes) + 2
    lines = [_beside([_scaled(picture, width, few) for picture in row], gap) for row in rows]
    if titles:
        lines.insert(0, _beside([_title(text, width) for text in titles], gap))
    broad = max(line.shape[1] for line in lines)
    padded = [cv2.copyMakeBorder(l, 0, gap, 0, broad - l.shape[1], cv2.BORDER_CONSTANT, value=WHITE) for l in lines]
    return np.concatenate(padded)


def _scaled(picture: np.ndarray, width: int, few: int) -> np.ndarray:
    height = round(picture.shape[0] * width / picture.shape[1])
    few_colors = len(np.unique(picture.reshape(-1, 3)[:: max(1, picture.size // 60000)], axis=0)) <= few
    smooth = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST if few_colors else smooth)


def _beside(pictures: Sequence[np.ndarray], gap: int) -> np.ndarray:
    tall = max(p.shape[0] for p in pictures)
    return np.concatenate(
        [cv2.copyMakeBorder(p, 0, tall - p.shape[0], 0, gap, cv2.BORDER_CONSTANT, value=WHITE) for p in pictures],
        1,
    )


def _title(text: str, width: int) -> np.ndarray:
    strip = np.full((24, width, 3), 255, np.uint8)
    size = min(0.5, 0.5 * width / max(1, cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]))
    cv2.putText(strip, text, (2, 17), cv2.FONT_HERSHEY_SIMPLEX, size, (30, 30, 30), 1, cv2.LINE_AA)
    return strip


def legend(classes: LabelSpace, width: int = 480) -> np.ndarray:
    """The classes with their colours, (H, W, 3) RGB."""
    columns, cell = 4, 24
    rows = math.ceil(len(classes) / columns)
    picture = np.full((rows * cell, width, 3), 255, np.uint8)
    for i, (name, color) in enumerate(zip(classes.names, classes.colors)):
        x, y = (i % columns) * (width // columns), (i // columns) * cell
        cv2.rectangle(picture, (x + 4, y + 5), (x + 20, y + 19), color, -1)
        cv2.putText(picture, name, (x + 26, y + 17), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (30, 30, 30), 1, cv2.LINE_AA)
    return picture


def save_labels(path: Path, prediction: np.ndarray, classes: LabelSpace) -> None:
    """Write (H, W) uint8 trainIds as a label file of `classes`: of Cityscapes' the PNG of ids that its server takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(classes.to_stored(prediction)).save(path)


def save(path: Path, picture: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 picture, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
