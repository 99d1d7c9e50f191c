"""From painted colours to a photograph: what the game and the camera make of them."""

import cv2
import numpy as np

from da.data.miniature.camera import HEIGHT, SCALE, WIDTH
from da.data.miniature.classes import EGO_VEHICLE, RECTIFICATION_BORDER
from da.data.miniature.painter import Painter


def develop_game(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The game's picture, (H, W, 3) float32 from 0 to 255: saturated, contrasty, sharpened."""
    gray = image.mean(-1, keepdims=True)
    image = gray + (image - gray) * rng.uniform(1.0, 1.35)
    image = (128 + (image - 124) * rng.uniform(0.98, 1.14)) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    return image + 0.4 * (image - cv2.GaussianBlur(image, (0, 0), 1.0))


def develop_camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The camera's picture, likewise: flat, greenish, out of focus, darker to the corners, with sensor noise."""
    gray = image.mean(-1, keepdims=True)
    image = gray + (image - gray) * rng.uniform(0.75, 1.0)
    cast = np.array((0.96, 1.02, 0.99)) * rng.uniform(0.98, 1.02, 3)
    image = 10 + image * (rng.uniform(0.86, 0.98) * cast).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.6))
    v, u = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    image *= (1 - rng.uniform(0.06, 0.16) * (u**2 + v**2))[..., None]
    grain = rng.standard_normal(image.shape, np.float32)
    return image + grain * rng.uniform(0.08, 0.22) * np.sqrt(np.clip(image, 0, 255) + 30)


def paint_bonnet(p: Painter) -> None:
    """The recording car's own bonnet, Cityscapes' `ego vehicle`."""
    width, height = WIDTH * SCALE, HEIGHT * SCALE
    top = int(height * p.rng.uniform(0.89, 0.92))
    mask = np.zeros(p.label.shape, np.uint8)
    cv2.ellipse(mask, (width // 2, height + 20), (int(width * 0.52), height + 20 - top), 0, 180, 360, 1, -1)
    rows = np.linspace(1.0, 0.25, height - top)[:, None, None]
    glint = np.asarray(p.style.horizon) * 0.45 * rows * np.ones((1, width, 1))
    inside = mask[top:] > 0
    p.image[top:][inside] = glint[inside]
    p.label[top:][inside] = EGO_VEHICLE


def blacken_border(image: np.ndarray, label: np.ndarray) -> None:
    """Paint, in place, the rim that stereo rectification leaves without a picture."""
    rim = np.ones(label.shape, bool)
    rim[1:-2, 3:-2] = False
    image[rim] = image[rim] // 8
    label[rim] = RECTIFICATION_BORDER
