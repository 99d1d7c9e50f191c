"""The miniature: a rendered pair of street-scene data sets in the on-disk layouts of GTA5 and Cityscapes.

    <root>/gta5/images/00001.png
    <root>/gta5/labels/00001.png  (palette PNG, index = Cityscapes id)
    <root>/cityscapes/leftImg8bit/<split>/<city>/<city>_000000_000019_leftImg8bit.png
    <root>/cityscapes/gtFine/<split>/<city>/<city>_000000_000019_gtFine_labelIds.png

Both domains show the same kind of street: a straight or bent corridor laid out in metres and seen through a
pinhole camera. Every shape is painted far to near by one call that writes colour and label together, at three
times the output resolution. The domains differ in what a domain gap is made of: light, materials, class mix,
camera height, and the imaging itself: a clean, saturated, sharp game against a dull, hazy, noisy camera that
has its own bonnet in the picture.

Each frame is a pure function of (seed, domain, split, index). Nothing but the PNG files is written, so a
method can read from the miniature only what it could read from the real data sets.
"""

import math
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from da.config import UserError
from da.data import folders
from da.labels import CLASSES

VERSION = 1  # raise it whenever a rendered pixel changes: the cache folder carries it
WIDTH, HEIGHT = 320, 160  # pixels, 2:1 as in Cityscapes
SCALE = 3  # supersampling
CITIES = {"train": ("aachen", "bremen", "zurich"), "val": ("frankfurt", "lindau")}
EGO_VEHICLE, RECTIFICATION_BORDER = 1, 2  # Cityscapes ids without a trainId
IDS = {c.name: c.cityscapes_id for c in CLASSES}

Domain = Literal["source", "target"]
Split = Literal["train", "val"]
Color = Any  # RGB, three numbers from 0 to 255
Palette = dict[str, tuple[tuple[int, int, int], ...]]

NEAR, FAR = 1.5, 95.0  # metres: what is closer is cut off, what is further is backdrop


class Sizes(NamedTuple):
    """How many frames each part holds."""

    source: int = 300
    target_train: int = 200
    target_val: int = 60


DEFAULT_SIZES = Sizes()

# --- what the two worlds are made of ----------------------------------------------------------------------

GAME: Palette = {
    "asphalt": ((92, 90, 98), (78, 80, 90), (104, 98, 96)),
    "marking": ((245, 200, 60), (240, 236, 226)),
    "paving": ((206, 186, 156), (196, 178, 160), (214, 200, 176)),
    "grass": ((132, 158, 62), (158, 160, 78), (104, 150, 58)),
    "facade": ((226, 196, 150), (214, 138, 96), (180, 198, 206), (228, 216, 194), (158, 152, 146)),
    "roof": ((120, 92, 80), (94, 96, 104), (168, 110, 84)),
    "glass": ((52, 92, 132), (70, 120, 150), (40, 66, 96)),
    "shop": ((190, 50, 46), (40, 120, 116), (236, 166, 48), (84, 60, 120)),
    "wall": ((170, 92, 70), (186, 112, 84), (166, 130, 108)),
    "fence": ((232, 230, 222), (160, 166, 164), (206, 212, 212)),
    "metal": ((70, 74, 80), (96, 82, 66), (104, 108, 110), (58, 64, 66)),
    "lamp box": ((222, 176, 40), (190, 152, 46), (52, 56, 50)),
    "leaf": ((72, 134, 44), (94, 150, 50), (56, 116, 52)),
    "trunk": ((112, 78, 52), (128, 96, 66)),
    "skin": ((232, 184, 148), (150, 100, 70), (196, 146, 110)),
    "coat": ((222, 60, 54), (50, 110, 200), (236, 232, 222), (56, 60, 80), (70, 150, 96), (130, 80, 66)),
    "trousers": ((52, 66, 104), (170, 144, 104), (60, 58, 60)),
    "car": ((206, 34, 34), (36, 84, 180), (236, 236, 232), (244, 186, 34), (44, 44, 50), (160, 164, 168)),
    "truck": ((230, 228, 220), (70, 128, 170), (206, 96, 48), (120, 150, 84)),
    "bus": ((238, 132, 36), (236, 230, 218), (60, 120, 190), (222, 180, 80)),
    "train": ((204, 208, 214), (186, 196, 208)),
    "accent": ((206, 36, 44), (30, 92, 170)),
    "bike": ((220, 50, 50), (40, 120, 190), (240, 200, 60)),
}
CAMERA: Palette = {
    "asphalt": ((98, 100, 102), (110, 110, 108), (86, 90, 94)),
    "marking": ((214, 216, 214), (206, 208, 210)),
    "paving": ((184, 170, 150), (192, 178, 160), (170, 160, 150)),
    "grass": ((96, 124, 64), (112, 130, 72), (118, 128, 76)),
    "facade": ((210, 190, 154), (184, 142, 112), (154, 158, 160), (202, 190, 174), (140, 114, 98)),
    "roof": ((118, 76, 64), (84, 80, 82), (104, 84, 74)),
    "glass": ((58, 66, 72), (78, 88, 94), (44, 50, 56)),
    "shop": ((86, 88, 92), (112, 60, 56), (62, 80, 90), (120, 112, 90)),
    "wall": ((162, 112, 92), (150, 126, 110), (168, 128, 104)),
    "fence": ((120, 130, 124), (150, 152, 148), (88, 100, 94)),
    "metal": ((96, 100, 102), (84, 88, 90), (110, 112, 110)),
    "lamp box": ((72, 74, 48), (40, 52, 46), (130, 112, 46)),
    "leaf": ((84, 122, 60), (98, 130, 68), (74, 108, 62)),
    "trunk": ((78, 70, 62), (92, 82, 70)),
    "skin": ((206, 168, 144), (188, 146, 120), (140, 104, 84)),
    "coat": ((56, 60, 80), (166, 64, 58), (70, 98, 150), (180, 170, 150), (44, 46, 50)),
    "trousers": ((52, 60, 88), (110, 98, 82), (48, 48, 52)),
    "car": ((170, 174, 178), (48, 50, 54), (212, 214, 214), (56, 80, 130), (140, 48, 46), (118, 124, 130)),
    "truck": ((206, 206, 200), (120, 146, 164), (186, 116, 72), (100, 122, 120)),
    "bus": ((222, 156, 62), (214, 212, 204), (70, 116, 170)),
    "train": ((208, 202, 180), (196, 200, 202)),
    "accent": ((170, 48, 46), (50, 90, 140)),
    "bike": ((84, 66, 70), (150, 60, 56), (60, 96, 140)),
}

# How often a thing occurs: chance per frame, or a mean count where above one.
# fmt: off
GAME_RATES = {
    "building": 0.5, "wall": 0.2, "fence": 0.17, "verge": 0.45, "tree": 0.55, "light": 1.5, "sign": 2.0,
    "person": 4.0, "parked": 0.75, "truck": 0.42, "bus": 0.3, "train": 0.28, "cyclist": 0.4, "biker": 0.42,
    "bicycle": 0.45, "motorcycle": 0.4,
}
CAMERA_RATES = {
    "building": 0.58, "wall": 0.16, "fence": 0.16, "verge": 0.4, "tree": 0.6, "light": 1.7, "sign": 2.8,
    "person": 7.0, "parked": 0.95, "truck": 0.34, "bus": 0.34, "train": 0.36, "cyclist": 0.6, "biker": 0.36,
    "bicycle": 0.65, "motorcycle": 0.4,
}
# fmt: on


def rgb(color: Color) -> np.ndarray:
    return np.array(color, np.float32)


@dataclass(frozen=True)
class Style:
    """One frame's light and materials, as drawn from its domain."""

    palette: Palette
    rates: dict[str, float]
    sun_side: int  # -1: the sun stands on the left
    lit: float  # brightness of surfaces towards the sun, away from it, and towards the camera
    unlit: float
    front: float
    tint: np.ndarray  # RGB factors of the light
    shadow: float  # opacity of cast shadows
    shadow_length: float  # metres per metre of height
    zenith: np.ndarray  # RGB
    horizon: np.ndarray  # RGB, also the colour of the haze
    clouds: float  # opacity
    visibility: float  # metres after which haze takes 63 %
    gain: float  # exposure


def game_style(rng: np.random.Generator) -> Style:
    """Clear air and hard shadows under a warm sun; evenings, and some bright overcast days."""
    weather = rng.choice(("sun", "evening", "overcast"), p=(0.45, 0.2, 0.35))
    evening, dull = weather == "evening", weather == "overcast"
    gray = rng.uniform(180, 236)
    return Style(
        palette=GAME,
        rates=GAME_RATES,
        sun_side=int(rng.choice((-1, 1))),
        lit=1.0 if dull else 1.12,
        unlit=rng.uniform(0.72, 0.85) if dull else rng.uniform(0.58, 0.7),
        front=rng.uniform(0.78, 0.98),
        tint=rgb((1.08, 0.95, 0.82) if evening else (1.0, 0.99, 0.96) if dull else (1.05, 1.0, 0.92)),
        shadow=rng.uniform(0.2, 0.3) if dull else rng.uniform(0.35, 0.5),
        shadow_length=0.1 if dull else rng.uniform(0.25, 0.7),
        zenith=rgb((gray - 24, gray - 12, gray) if dull else (74, 92, 160) if evening else (62, 128, 214)),
        horizon=rgb((gray + 4, gray + 8, gray + 8) if dull else (250, 200, 150) if evening else (190, 220, 244)),
        clouds=rng.uniform(0.2, 1.0),
        visibility=rng.uniform(150, 400),
        gain=rng.uniform(0.72, 1.08),
    )


def camera_style(rng: np.random.Generator) -> Style:
    """Diffuse northern light: overcast, mist, or dusk."""
    weather = rng.choice(("overcast", "mist", "dusk"), p=(0.65, 0.15, 0.2))
    dusk = weather == "dusk"
    gray = rng.uniform(196, 226)
    return Style(
        palette=CAMERA,
        rates=CAMERA_RATES,
        sun_side=int(rng.choice((-1, 1))),
        lit=1.0,
        unlit=rng.uniform(0.72, 0.88),
        front=rng.uniform(0.84, 0.94),
        tint=rgb((0.88, 0.95, 1.1) if dusk else (0.97, 1.01, 1.02)),
        shadow=rng.uniform(0.2, 0.32),
        shadow_length=0.1,
        zenith=rgb((112, 130, 166) if dusk else (gray - 30, gray - 16, gray)),
        horizon=rgb((196, 180, 168) if dusk else (gray + 12, gray + 16, gray + 14)),
        clouds=rng.uniform(0.2, 0.7),
        visibility=rng.uniform(50, 80) if weather == "mist" else rng.uniform(110, 240),
        gain=rng.uniform(0.74, 0.9) if dusk else rng.uniform(1.0, 1.2),
    )


# --- camera, surfaces and the painter ---------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A pinhole above the road. World axes in metres: x right of the centre line, y up, z down the street."""

    focal: float  # pixels of the supersampled picture, as are the next two
    center: float
    horizon: float
    height: float
    x: float
    yaw: float  # the street drifts sideways by yaw * z + bend * z^2 / 2
    bend: float

    def drift(self, z: Any) -> Any:
        return (self.yaw + 0.5 * self.bend * z) * z

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) -> pixels (..., 2). Points before the near plane slide onto it along z, which
        cuts every polygon exactly whose edges run along or across the street."""
        z = np.maximum(points[..., 2], NEAR)
        pixels = np.empty((*z.shape, 2))
        pixels[..., 0] = self.center + self.focal * (points[..., 0] + self.drift(z) - self.x) / z
        pixels[..., 1] = self.horizon - self.focal * (points[..., 1] - self.height) / z
        return pixels


class Surface(NamedTuple):
    """A plane in the world with its own (u, v) axes in metres."""

    origin: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    light: float

    def at(self, uv: Any) -> np.ndarray:
        """(..., 2) plane coordinates -> (..., 3) world points."""
        uv = np.asarray(uv, np.float64)
        return np.asarray(self.origin) + uv[..., :1] * np.asarray(self.right) + uv[..., 1:] * np.asarray(self.up)


GROUND = Surface((0, 0, 0), (1, 0, 0), (0, 0, 1), 1.0)


def rect(u0: float, v0: float, u1: float, v1: float) -> np.ndarray:
    return np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)])


def bar(u0: float, v0: float, u1: float, v1: float, width: float) -> np.ndarray:
    """A straight stroke from one point to another, as a quadrilateral."""
    along = np.array((u1 - u0, v1 - v0))
    aside = along[::-1] * (-1, 1) * (0.5 * width / max(math.hypot(*along), 1e-9))
    return np.array([(u0, v0) + aside, (u1, v1) + aside, (u1, v1) - aside, (u0, v0) - aside])


def disc(u: Any, v: Any, radius: Any, corners: int = 14, turn: float = 0.0) -> np.ndarray:
    """Regular polygons (..., corners, 2) around one or many centres."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + turn
    u, v, radius = (np.asarray(a, np.float64)[..., None] for a in (u, v, radius))
    return np.stack([u + radius * np.cos(angle), v + radius * np.sin(angle)], -1)


def grid(u0: float, v0: float, u1: float, v1: float, columns: int, rows: int, fill: tuple[float, float]) -> np.ndarray:
    """(columns * rows, 4, 2) rectangles, each filling the fraction `fill` of its cell."""
    du, dv = (u1 - u0) / columns, (v1 - v0) / rows
    u = u0 + du * (np.arange(columns) + 0.5)
    v = v0 + dv * (np.arange(rows) + 0.5)
    centers = np.stack(np.meshgrid(u, v), -1).reshape(-1, 1, 2)
    return centers + 0.5 * np.array([du * fill[0], dv * fill[1]]) * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])


@cache
def noise() -> np.ndarray:
    """A fixed tileable texture (256, 256), float32, zero mean, unit deviation, with detail at all scales."""
    white = np.random.default_rng(7).standard_normal((256, 256))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    frequency[0, 0] = 1
    texture = np.fft.ifft2(np.fft.fft2(white) / frequency**0.9).real
    return ((texture - texture.mean()) / texture.std()).astype(np.float32)


class Painter:
    """The picture being painted: RGB colours and Cityscapes ids of one size, written together."""

    def __init__(self, camera: Camera, style: Style, rng: np.random.Generator) -> None:
        self.camera, self.style, self.rng = camera, style, rng
        self.image = np.zeros((HEIGHT * SCALE, WIDTH * SCALE, 3), np.uint8)
        self.label = np.full((HEIGHT * SCALE, WIDTH * SCALE), IDS["sky"], np.uint8)

    def pick(self, material: str) -> np.ndarray:
        """One of the style's colours of a material, slightly varied."""
        colors = self.style.palette[material]
        return rgb(colors[self.rng.integers(len(colors))]) * self.rng.uniform(0.9, 1.08)

    def colors(self, *materials: str) -> dict[str, Color]:
        """A pick of each material, beside the colours that are the same everywhere."""
        return {**FIXED, **{material: self.pick(material) for material in materials}}

    def facing(self, x: float, z: float) -> Surface:
        """The upright plane across the street through (x, z)."""
        return Surface((x, 0, z), (1, 0, 0), (0, 1, 0), self.style.front)

    def beside(self, x: float, z: float, outward: int) -> Surface:
        """The upright plane along the street through (x, z); it looks to the left (-1) or right (1)."""
        light = self.style.lit if outward == self.style.sun_side else self.style.unlit
        return Surface((x, 0, z), (0, 0, 1), (0, 1, 0), light)

    def shade(self, color: Color, z: Any, light: float = 1.0) -> np.ndarray:
        """The colour under this frame's light and haze, seen from z metres."""
        clear = np.exp(-z / self.style.visibility)
        return np.asarray(color) * self.style.tint * (light * clear) + self.style.horizon * (1 - clear)

    def fill(
        self,
        surface: Surface,
        polygons: Any,
        color: Color,
        name: str | None,
        *,
        alpha: float = 1.0,
        jitter: float = 0.0,
        glow: bool = False,
    ) -> None:
        """Paint one polygon (P, 2), or N convex ones (N, P, 2). `name` is the class written, None leaves the
        label; `jitter` varies the brightness between polygons; a `glow` is neither shaded nor hazed."""
        points = surface.at(polygons)
        points = points[None] if points.ndim == 2 else points
        if points[..., 2].max() <= NEAR:
            return
        if not glow:
            color = self.shade(color, max(points[..., 2].mean(), NEAR), surface.light)
        pixels = np.round((self.camera.project(points) - 0.5) * 16).astype(np.int32)
        factors = 1 + jitter * self.rng.standard_normal(len(pixels))
        colors = np.clip(np.multiply.outer(factors, color), 0, 255).tolist()
        if len(pixels) == 1:
            self._fill_any(pixels[0], colors[0], name, alpha)
            return
        for polygon, shade in zip(pixels, colors):  # many at once are convex, which is faster
            cv2.fillConvexPoly(self.image, polygon, shade, shift=4)
            if name:
                cv2.fillConvexPoly(self.label, polygon, IDS[name], shift=4)

    def _fill_any(self, polygon: np.ndarray, color: Color, name: str | None, alpha: float) -> None:
        if name:
            cv2.fillPoly(self.label, [polygon], IDS[name], shift=4)
        if alpha == 1:
            cv2.fillPoly(self.image, [polygon], color, shift=4)
            return
        (u0, v0), (u1, v1) = np.maximum(polygon.min(0) // 16, 0), np.maximum(polygon.max(0) // 16 + 2, 0)
        region = self.image[v0:v1, u0:u1]
        if region.size:
            over = region.copy()
            cv2.fillPoly(over, [polygon - np.array([u0, v0], np.int32) * 16], color, shift=4)
            cv2.addWeighted(over, alpha, region, 1 - alpha, 0, dst=region)

    def sketch(self, surface: Surface, parts: Sequence["Part"], colors: dict[str, Color], name: str) -> None:
        """Paint (material, polygon) pairs one over the other."""
        for material, polygon in parts:
            self.fill(surface, polygon, colors[material], name, glow=material.endswith(" lamp"))

    def shadow(self, x: float, z: float, width: float, length: float, height: float) -> None:
        """Darken the ground under a thing and, away from the sun, beside it."""
        reach = -self.style.sun_side * self.style.shadow_length * height
        left, right = x - width / 2 + min(reach, 0), x + width / 2 + max(reach, 0)
        ground = rect(left, z - 0.15, right, z + length)
        self.fill(GROUND, ground, (12, 12, 20), None, alpha=self.style.shadow)


# --- things -----------------------------------------------------------------------------------------------

Part = tuple[str, Any]  # material and polygon
# fmt: off
FIXED = {
    "red": (214, 40, 36), "amber": (246, 186, 50), "green": (48, 196, 110), "blue": (44, 92, 176),
    "board": (30, 124, 76), "white": (238, 238, 236), "dark": (40, 40, 43), "rubber": (30, 30, 32),
    "steel": (156, 158, 161), "tail lamp": (214, 40, 36), "head lamp": (250, 244, 214),
}
# fmt: on


def both(material: str, u: float, y0: float, y1: float, size: float = 0.18) -> tuple[Part, Part]:
    """A rectangle on either side of the middle."""
    return (material, rect(-u - size, y0, -u + size, y1)), (material, rect(u - size, y0, u + size, y1))


@dataclass(frozen=True)
class Vehicle:
    """A side silhouette swept over a width. (l, y) in metres, clockwise from the tail's foot at l = 0."""

    name: str
    width: float
    profile: Sequence[tuple[float, float]]
    windscreens: Sequence[int]  # which edges of the profile
    side: Sequence[Part]  # polygons in (l, y)
    tail: Sequence[Part]  # polygons in (x, y) on the upright plane at the near end; so is `nose`
    nose: Sequence[Part]
    wheels: Sequence[float]
    radius: float

    @property
    def length(self) -> float:
        return max(l for l, _ in self.profile)

    def turned(self) -> "Vehicle":
        """The same vehicle coming towards the camera."""
        return replace(
            self,
            profile=[(self.length - l, y) for l, y in self.profile[::-1]],
            windscreens=[len(self.profile) - 2 - i for i in self.windscreens],
            side=[(material, [(self.length - l, y) for l, y in polygon]) for material, polygon in self.side],
            tail=self.nose,
            nose=self.tail,
            wheels=[self.length - l for l in self.wheels],
        )


# fmt: off
CAR = Vehicle(
    name="car", width=1.85, wheels=(0.85, 3.4), radius=0.34,
    profile=((0, 0.28), (0, 0.95), (0.3, 1.0), (0.85, 1.52),
             (2.4, 1.52), (3.15, 1.0), (4.2, 0.86), (4.3, 0.28)), windscreens=(2, 4),
    side=(("glass", [(0.65, 1.04), (0.98, 1.42), (1.65, 1.42), (1.65, 1.04)]),
          ("glass", [(1.75, 1.04), (1.75, 1.42), (2.38, 1.42), (2.85, 1.04)]),
          ("dark", rect(0.0, 0.28, 4.3, 0.4))),
    tail=(*both("rubber", 0.72, 0, 0.3), *both("tail lamp", 0.69, 0.66, 0.9),
          ("white", rect(-0.3, 0.5, 0.3, 0.64)), ("dark", rect(-0.9, 0.28, 0.9, 0.42))),
    nose=(*both("rubber", 0.72, 0, 0.3), *both("head lamp", 0.69, 0.6, 0.78),
          ("dark", rect(-0.45, 0.5, 0.45, 0.72)), ("dark", rect(-0.9, 0.28, 0.9, 0.4))),
)
TRUCK = Vehicle(
    name="truck", width=2.5, wheels=(1.2, 2.3, 6.5), radius=0.5,
    profile=((0, 0.5), (0, 3.6), (5.6, 3.6), (5.6, 2.9), (7.3, 2.8), (7.6, 1.7), (7.7, 0.5)),
    windscreens=(4,),
    side=(("accent", [(5.75, 0.6), (5.75, 2.85), (7.25, 2.75), (7.6, 1.7), (7.7, 0.6)]),
          ("accent", rect(0.5, 1.9, 5.0, 2.4)), ("glass", [(6.2, 1.7), (6.2, 2.5), (7.1, 2.5), (7.4, 1.7)]),
          ("dark", rect(5.55, 0.6, 5.75, 3.0)), ("dark", rect(0, 0.5, 7.6, 0.85))),
    tail=(*both("rubber", 0.9, 0, 0.55, 0.28), ("dark", rect(-1.25, 0.5, 1.25, 0.9)),
          ("dark", rect(-0.04, 0.9, 0.04, 3.5)), *both("dark", 0.72, 1.0, 3.5, 0.035),
          *both("tail lamp", 1.0, 0.6, 0.85)),
    nose=(*both("rubber", 0.9, 0, 0.55, 0.28), ("accent", rect(-1.25, 0.5, 1.25, 1.7)),
          ("dark", rect(-0.8, 0.9, 0.8, 1.4)), *both("head lamp", 1.0, 0.65, 0.9)),
)
BUS = Vehicle(
    name="bus", width=2.55, wheels=(1.9, 7.4), radius=0.48,
    profile=((0, 0.35), (0, 3.15), (9.5, 3.15), (9.7, 0.35)), windscreens=(),
    side=(("glass", rect(0.4, 1.5, 9.3, 2.6)), ("accent", rect(0, 0.75, 9.6, 1.1)),
          *(("white", rect(1.6 + 1.3 * i, 1.5, 1.75 + 1.3 * i, 2.6)) for i in range(6))),
    tail=(*both("rubber", 0.95, 0, 0.4, 0.25), ("glass", rect(-1.05, 1.75, 1.05, 2.75)),
          ("dark", rect(-0.8, 0.8, 0.8, 1.3)), *both("tail lamp", 1.05, 0.9, 1.4),
          ("dark", rect(-1.27, 0.35, 1.27, 0.55))),
    nose=(*both("rubber", 0.95, 0, 0.4, 0.25), ("glass", rect(-1.15, 1.2, 1.15, 2.6)),
          ("amber", rect(-0.8, 2.7, 0.8, 3.0)), *both("head lamp", 1.05, 0.65, 0.9),
          ("dark", rect(-1.27, 0.35, 1.27, 0.5))),
)
TRAM_END = (("accent", rect(-1.2, 0.15, 1.2, 1.25)), ("dark", rect(-0.55, 0.35, 0.55, 0.5)),
            *both("head lamp", 0.85, 0.65, 0.9, 0.13))
TRAM = Vehicle(
    name="train", width=2.4, wheels=(), radius=0.0,
    profile=((0, 0.15), (0, 1.4), (0.6, 3.1), (1.1, 3.55), (20.9, 3.55), (21.4, 3.1), (22, 1.4), (22, 0.15)),
    windscreens=(1, 5),
    side=(("dark", [(1.1, 1.65), (1.3, 2.85), (20.7, 2.85), (20.9, 1.65)]),
          *(("glass", rect(1.5 + 1.55 * i, 1.75, 2.8 + 1.55 * i, 2.75)) for i in range(12)),
          ("accent", rect(0, 0.15, 22, 1.25)), ("dark", rect(7.2, 0.2, 7.5, 3.5)),
          ("dark", rect(14.5, 0.2, 14.8, 3.5))),
    tail=TRAM_END, nose=TRAM_END,
)
# Both head to positive u. Wheels are full discs, as annotators draw them.
BICYCLE: tuple[Part, ...] = (
    *((what, disc(u, 0.36, r)) for u in (-0.54, 0.54) for what, r in (("rubber", 0.38), ("steel", 0.29))),
    *(("dark", bar(u - a, 0.36 - b, u + a, 0.36 + b, 0.03))
      for u in (-0.54, 0.54) for a, b in ((0.27, 0.08), (0.06, 0.27), (-0.21, 0.19))),
    *(("bike", bar(*tube, 0.09)) for tube in (
        (-0.54, 0.36, -0.14, 0.86), (-0.1, 0.36, -0.2, 0.98), (-0.14, 0.84, 0.38, 0.88),
        (-0.1, 0.36, 0.4, 0.84), (-0.54, 0.36, -0.1, 0.36), (0.54, 0.36, 0.36, 1.05))),
    ("dark", bar(-0.34, 1.0, -0.06, 1.0, 0.1)), ("dark", bar(0.28, 1.08, 0.46, 1.08, 0.09)),
)
MOTORCYCLE: tuple[Part, ...] = (
    ("dark", [(-0.75, 0.3), (-0.55, 0.75), (0.35, 0.8), (0.6, 0.35), (0.2, 0.2), (-0.3, 0.2)]),
    *((what, disc(u, 0.34, r)) for u in (-0.7, 0.72) for what, r in (("rubber", 0.36), ("steel", 0.16))),
    ("steel", bar(0.72, 0.34, 0.45, 1.0, 0.1)),
    ("car", [(-0.1, 0.62), (0.0, 0.95), (0.38, 1.02), (0.62, 0.82), (0.5, 0.45), (0.1, 0.42)]),
    ("car", [(-0.95, 0.92), (-0.9, 0.68), (-0.4, 0.6), (-0.35, 0.82)]),
    ("dark", bar(-0.8, 0.9, 0.02, 0.82, 0.15)), ("steel", bar(-0.95, 0.32, 0.0, 0.24, 0.11)),
    ("dark", bar(0.3, 1.12, 0.52, 1.05, 0.08)), ("head lamp", disc(0.6, 0.92, 0.12)),
)
GAME_SIGNS: tuple[tuple[Part, ...], ...] = (  # stop, warning, direction, speed
    (("red", disc(0, 0, 0.52, 8, np.pi / 8)), ("white", rect(-0.36, -0.1, 0.36, 0.1))),
    (("dark", disc(0, 0, 0.6, 4)), ("amber", disc(0, 0, 0.54, 4)), ("dark", rect(-0.06, -0.2, 0.06, 0.2))),
    (("board", rect(-0.75, -0.4, 0.75, 0.4)), ("white", rect(-0.55, 0.08, 0.55, 0.22)),
     ("white", rect(-0.55, -0.22, 0.3, -0.08))),
    (("white", rect(-0.4, -0.52, 0.4, 0.52)), *both("dark", 0.15, -0.3, 0.1, 0.1)),
)
CAMERA_SIGNS: tuple[tuple[Part, ...], ...] = (  # no entry, warning, direction, speed
    (("red", disc(0, 0, 0.5)), ("white", rect(-0.34, -0.09, 0.34, 0.09))),
    (("red", disc(0, 0, 0.58, 3, np.pi / 2)), ("white", disc(0, 0, 0.34, 3, np.pi / 2)),
     ("dark", rect(-0.05, -0.1, 0.05, 0.16))),
    (("white", disc(0, 0, 0.52)), ("blue", disc(0, 0, 0.47)), ("white", bar(0, -0.3, 0, 0.3, 0.15))),
    (("red", disc(0, 0, 0.52)), ("white", disc(0, 0, 0.37)), *both("dark", 0.12, -0.18, 0.18, 0.07)),
)
# fmt: on


def draw_vehicle(p: Painter, kind: Vehicle, x: float, z: float, away: bool) -> None:
    """A vehicle whose near end is at z: faces turned to the camera far to near, then the visible flank."""
    v, colors = kind if away else kind.turned(), p.colors(kind.name, "glass", "accent")
    half, edges = v.width / 2, list(zip(v.profile[:-1], v.profile[1:]))
    p.shadow(x, z, v.width, v.length, v.profile[2][1])
    for i in sorted(range(len(edges)), key=lambda i: -edges[i][0][0] - edges[i][1][0]):
        (l0, y0), (l1, y1) = edges[i]
        if (y1 - y0) * (z + l0) + (l1 - l0) * (p.camera.height - y0) <= 0:
            continue
        upright = abs(y1 - y0) / math.hypot(l1 - l0, y1 - y0)
        light = p.style.front * upright + 1.12 * (1 - upright)
        face = Surface((x, y0, z + l0), (1, 0, 0), (0, y1 - y0, l1 - l0), light)
        p.fill(face, rect(-half, 0, half, 1), colors[v.name], v.name)
        if i in v.windscreens:
            p.fill(face, rect(-half * 0.86, 0.1, half * 0.86, 0.9), colors["glass"], v.name)
    p.sketch(p.facing(x, z), v.tail, colors, v.name)
    viewpoint = p.camera.x - p.camera.drift(z)
    if abs(viewpoint - x) > half:
        outward = 1 if viewpoint > x else -1
        draw_flank(p, v, p.beside(x + outward * half, z, outward), colors)


def draw_flank(p: Painter, v: Vehicle, surface: Surface, colors: dict[str, Any]) -> None:
    p.sketch(surface, ((v.name, v.profile), *v.side), colors, v.name)
    for l in v.wheels:
        p.fill(surface, disc(l, v.radius, v.radius), colors["rubber"], v.name)
        p.fill(surface, disc(l, v.radius, v.radius * 0.55), colors["steel"], v.name)


def draw_crossing_vehicle(p: Painter, kind: Vehicle, x: float, z: float, away: bool) -> None:
    """A vehicle on the side street, seen from the side."""
    p.shadow(x + kind.length / 2, z, kind.length, 1.8, 0.5)
    draw_flank(p, kind if away else kind.turned(), p.facing(x, z), p.colors(kind.name, "glass", "accent"))


def draw_head(p: Painter, s: Surface, u: float, v: float, name: str, helmet: bool) -> None:
    p.fill(s, disc(u, v, 0.16), p.pick("skin"), name)
    cover = p.pick("accent") if helmet else np.array((58, 42, 32)) * p.rng.uniform(0.5, 2.2)
    p.fill(s, disc(u, v + 0.05, 0.17)[:8], cover, name)


def draw_person(p: Painter, x: float, z: float) -> None:
    coat, legs = p.pick("coat"), p.pick("trousers")
    stride, swing = p.rng.uniform(-0.3, 0.3), p.rng.uniform(-0.25, 0.25)
    s = p.facing(x, z)._replace(up=(0, p.rng.uniform(0.92, 1.1), 0))
    p.shadow(x, z, 0.5, 0.4, 1.7)
    for foot, light in ((stride, 0.8), (-stride, 1.0)):
        p.fill(s, bar(0.08 * np.sign(foot), 0.9, foot, 0.04, 0.19), legs * light, "person")
        p.fill(s, bar(foot - 0.05, 0.04, foot + 0.14, 0.04, 0.09), FIXED["rubber"], "person")
    p.fill(s, bar(-0.24, 1.42, -0.3 - swing, 0.85, 0.14), coat * 0.8, "person")
    torso = [(-0.2, 0.78), (0.2, 0.78), (0.27, 1.4), (0.12, 1.52), (-0.12, 1.52), (-0.27, 1.4)]
    p.fill(s, torso, coat, "person")
    p.fill(s, bar(0.24, 1.42, 0.3 + swing, 0.85, 0.14), coat * 0.88, "person")
    if p.rng.random() < 0.3:
        p.fill(s, rect(-0.42, 0.55, -0.2, 0.85), p.pick("shop"), "person")
    draw_head(p, s, 0, 1.66, "person", helmet=False)


def draw_rider(p: Painter, s: Surface, seat: float, lean: float, helmet: bool) -> None:
    coat, legs = p.pick("coat"), p.pick("trousers")
    hip, neck = (-0.2, seat + 0.06), (-0.2 + lean, seat + 0.66)
    for knee, light in ((0.24, 0.8), (0.14, 1.0)):
        p.fill(s, bar(*hip, knee, seat - 0.14, 0.2), legs * light, "rider")
        p.fill(s, bar(knee, seat - 0.1, knee - 0.16, seat - 0.62, 0.16), legs * light, "rider")
    p.fill(s, bar(hip[0], hip[1] - 0.08, *neck, 0.36), coat, "rider")
    p.fill(s, bar(neck[0] + 0.04, neck[1] - 0.1, 0.36, seat + 0.2, 0.14), coat * 0.85, "rider")
    draw_head(p, s, neck[0] + 0.06, neck[1] + 0.18, "rider", helmet)


def draw_two_wheeler(p: Painter, name: str, ridden: bool, x: float, z: float) -> None:
    """A bicycle or motorcycle, parked or ridden, seen from the side or obliquely, heading left or right."""
    squeeze = p.rng.uniform(0.55, 1.0) * p.rng.choice((-1, 1))
    s = p.facing(x, z)._replace(right=(squeeze, 0, 0))
    p.shadow(x, z, 1.6 * abs(squeeze), 0.4, 1.0)
    p.sketch(s, BICYCLE if name == "bicycle" else MOTORCYCLE, p.colors("bike", "car"), name)
    if ridden and name == "bicycle":
        draw_rider(p, s, seat=0.98, lean=0.32, helmet=p.rng.random() < 0.6)
    elif ridden:
        draw_rider(p, s, seat=0.86, lean=0.24, helmet=True)


def draw_mast(p: Painter, x: float, z: float, height: float, width: float) -> tuple[Surface, np.ndarray]:
    s, metal = p.facing(x, z), p.pick("metal")
    p.shadow(x, z, width, 0.3, height)
    p.fill(s, rect(-width / 2, 0, width / 2, height), metal, "pole")
    p.fill(s, rect(-width / 2, 0, -width / 6, height), metal * 1.3, "pole")
    return s, metal


def draw_street_lamp(p: Painter, x: float, z: float) -> None:
    height, reach = p.rng.uniform(5.5, 8), -np.sign(x) * p.rng.uniform(1.2, 2.2)
    s, metal = draw_mast(p, x, z, height, 0.24)
    p.fill(s, bar(0, height, reach, height + 0.35, 0.16), metal, "pole")
    p.fill(s, bar(reach * 0.8, height + 0.3, reach * 1.25, height + 0.3, 0.28), metal * 0.8, "pole")


def draw_bollard(p: Painter, x: float, z: float) -> None:
    s, _ = draw_mast(p, x, z, 1.05, 0.24)
    p.fill(s, rect(-0.12, 0.75, 0.12, 0.9), FIXED["white"], "pole")


def draw_traffic_light(p: Painter, x: float, z: float) -> None:
    """One head on the mast, or an arm that holds one over the road, or both."""
    arm = p.rng.random() < 0.35
    reach, height = -np.sign(x) * p.rng.uniform(2.0, 3.4), 5.2 if arm else p.rng.uniform(2.5, 3.1)
    s, metal = draw_mast(p, x, z, height, 0.22)
    heads = [(0.0, p.rng.uniform(2.2, 2.8))] if not arm or p.rng.random() < 0.6 else []
    if arm:
        p.fill(s, bar(0, height - 0.1, reach, height - 0.1, 0.16), metal, "pole")
        heads.append((reach, height - 0.8))
    box, lit = p.pick("lamp box"), p.rng.integers(3)
    for u, v in heads:
        p.fill(s, rect(u - 0.3, v, u + 0.3, v + 1.45), box, "traffic light")
        p.fill(s, rect(u - 0.24, v + 0.06, u + 0.24, v + 1.39), FIXED["dark"], "traffic light")
        for i, name in enumerate(("green", "amber", "red")):
            color = rgb(FIXED[name]) * (1.0 if i == lit else 0.3)
            p.fill(s, disc(u, v + 0.28 + 0.44 * i, 0.19), color, "traffic light", glow=i == lit)


def draw_sign(p: Painter, x: float, z: float) -> None:
    """One plate or two above each other, of the domain's country."""
    height, signs = p.rng.uniform(2.2, 2.8), GAME_SIGNS if p.style.palette is GAME else CAMERA_SIGNS
    s, _ = draw_mast(p, x, z, height + 0.2, 0.14)
    for i in range(int(p.rng.choice((1, 1, 2)))):
        plate = s._replace(origin=(x, height - 1.05 * i, z))
        p.sketch(plate, signs[p.rng.integers(len(signs))], FIXED, "traffic sign")


def draw_crown(p: Painter, s: Surface, u: float, v: float, width: float, height: float) -> None:
    """A ball of leaves: dark ones behind, light ones towards the sun."""
    leaf = p.pick("leaf")
    count = int(np.clip(800 / s.origin[2], 10, 80))
    size = min(width, height) * np.clip(3.2 / math.sqrt(count), 0.35, 0.8)
    for tone, shift, spread in ((0.64, -0.08, 0.43), (0.87, 0.0, 0.4), (1.15, 0.12, 0.36)):
        angle, reach = p.rng.uniform(0, 2 * np.pi, count), np.sqrt(p.rng.random(count))
        cu = u + width * (spread * reach * np.cos(angle) + shift * 0.6 * p.style.sun_side)
        cv = v + height * (spread * reach * np.sin(angle) + shift)
        radius = p.rng.uniform(0.1, 0.2, count) * size * (1.5 if tone < 0.7 else 0.9)
        p.fill(s, disc(cu, cv, radius, 8, p.rng.uniform(0, 1)), leaf * tone, "vegetation", jitter=0.13)


def draw_tree(p: Painter, x: float, z: float) -> None:
    s, height, trunk = p.facing(x, z), p.rng.uniform(4.5, 8), p.pick("trunk")
    p.shadow(x, z, 2.5, 2.5, height * 0.5)
    if p.style.palette is GAME and p.rng.random() < 0.35:
        draw_palm(p, s, height, trunk)
        return
    p.fill(s, bar(0, 0, 0.1, height * 0.6, 0.34), trunk, "vegetation")
    p.fill(s, bar(0.02, height * 0.4, -0.7, height * 0.62, 0.16), trunk * 0.8, "vegetation")
    draw_crown(p, s, 0, height * 0.68, height * p.rng.uniform(0.55, 0.8), height * 0.65)


def draw_palm(p: Painter, s: Surface, height: float, trunk: Color) -> None:
    p.fill(s, bar(0, 0, 0.3, height, 0.34), trunk, "vegetation")
    leaf, top = p.pick("leaf"), np.array((0.3, height))
    for angle in np.linspace(-0.5, np.pi + 0.5, 11) + p.rng.uniform(-0.1, 0.1):
        along = np.array((math.cos(angle), math.sin(angle)))
        tip, bow = top + along * (2.0, 1.3) - (0, 0.55), top + 1.1 * along + (0, 0.25)
        frond = [top - (0, 0.2), bow, tip, top + along * (0.9, 0.36)]
        p.fill(s, frond, leaf * p.rng.uniform(0.75, 1.25), "vegetation")


def draw_bush(p: Painter, x: float, z: float) -> None:
    width = p.rng.uniform(1.2, 2.6)
    p.shadow(x, z, width * 0.8, 0.8, 0.5)
    draw_crown(p, p.facing(x, z), 0, 0.6, width, 1.4)


# --- the street -------------------------------------------------------------------------------------------


class Lot(NamedTuple):
    """A stretch of one street side."""

    kind: str  # building, wall, fence, park, open
    start: float  # metres along the street
    end: float
    height: float  # of the building


class Side(NamedTuple):
    """One side of the street; widths in metres, outwards from the centre line."""

    sign: int  # -1 left, 1 right
    road: float
    verge: float  # a strip of grass between road and sidewalk; 0: none
    walk: float
    lots: tuple[Lot, ...]

    @property
    def front(self) -> float:
        """Where the lots begin."""
        return self.road + self.verge + self.walk


class Street(NamedTuple):
    left: Side
    right: Side
    crossing: tuple[float, float] | None  # stretch taken by a side street
    lane: float  # centre of the lane ahead of the camera; the oncoming one mirrors it
    tram: bool  # rails in the oncoming lane


def plan_side(
    rng: np.random.Generator, rates: dict[str, float], sign: int, crossing: tuple[float, float] | None
) -> Side:
    road, walk = rng.uniform(3.8, 7.2), rng.uniform(2.2, 4.0)
    verge = rng.uniform(1.5, 2.6) if rng.random() < rates["verge"] else 0.0
    solid = (rates["building"], rates["wall"], rates["fence"])
    lots, z = [], rng.uniform(-8, 0)
    while z < FAR:
        end = z + rng.uniform(7, 15)
        if crossing and z < crossing[1] and end > crossing[0]:
            if crossing[0] - z > 4:
                lots.append(Lot("building", z, crossing[0], rng.uniform(6, 16)))
            lots.append(Lot("open", *crossing, 0.0))
            z = crossing[1]
            continue
        kind = str(rng.choice(("building", "wall", "fence", "park"), p=(*solid, 1 - sum(solid))))
        lots.append(Lot(kind, z, end, rng.uniform(5, 18) if kind == "building" else 0.0))
        z = end
    return Side(sign, road, verge, walk, tuple(lots))


def plan_street(rng: np.random.Generator, rates: dict[str, float]) -> Street:
    start = rng.uniform(14, 40)
    crossing = (start, start + rng.uniform(7, 10)) if rng.random() < 0.4 else None
    left, right = plan_side(rng, rates, -1, crossing), plan_side(rng, rates, 1, crossing)
    return Street(left, right, crossing, min(2.0, right.road / 2), bool(rng.random() < rates["train"]))


def paint_sky(p: Painter) -> None:
    """A gradient with clouds that flatten towards the horizon."""
    height, width = int(p.camera.horizon) + 2, WIDTH * SCALE
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = p.style.zenith + (p.style.horizon - p.style.zenith) * rows**1.3
    texture = np.roll(noise(), tuple(p.rng.integers(256, size=2)), (0, 1))[:72, :80]
    cover = cv2.resize(texture, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    cover = np.clip(cover * 0.9, 0, 1) * p.style.clouds * (1.1 - rows)
    white = np.minimum(p.style.horizon * 0.5 + 128, 252)
    p.image[:height] = np.clip(sky + (white - sky) * cover, 0, 255)


def paint_ground(p: Painter, street: Street) -> None:
    """Cast every pixel below the horizon onto the ground, where the street plan says what lies there."""
    cam, style = p.camera, p.style
    top = int(cam.horizon) + 2
    rows = np.arange(top, HEIGHT * SCALE, dtype=np.float32)[:, None] + 0.5
    z = cam.focal * cam.height / (rows - cam.horizon)  # (R, 1) metres
    aside = (np.arange(WIDTH * SCALE, dtype=np.float32)[None] + 0.5 - cam.center) / cam.focal
    x = aside * z + (cam.x - cam.drift(z))
    fine = _texture(x, z, 24.0) * np.exp(-z / 25)
    coarse = _texture(x, z, 3.0)

    out = np.where(x < 0, -x - street.left.road, x - street.right.road)  # metres outside the road
    verge = np.where(x < 0, street.left.verge, street.right.verge)
    front = verge + np.where(x < 0, street.left.walk, street.right.walk)
    grassy, shade = _lot_ground(street, x, z, style)
    terrain = ((out > 0.25) & (out < verge)) | ((out > front) & grassy)
    walk = (out > 0) & ~terrain
    if street.crossing:
        inside = (z > street.crossing[0]) & (z < street.crossing[1])
        terrain, walk = terrain & ~inside, walk & ~inside

    kerb, marked = walk & (out < 0.22), _markings(street, x, z, out)
    kind = np.select([terrain, kerb, walk, marked], [1, 2, 3, 4], 0)
    palette = np.stack([p.pick(m) for m in ("asphalt", "grass", "paving", "paving", "marking")])
    rough, grain = np.array([(0.05, 0.1, 0, 0.04, 0), (0.07, 0.22, 0, 0.05, 0)], np.float32)
    tile = 0.6 if style.palette is CAMERA else 1.4
    joint = ((x % tile < 0.07 * tile) | (z % tile < 0.07 * tile)) & (z < 30) & (kind == 3)
    light = 1 + rough[kind] * coarse + grain[kind] * fine - np.float32(0.16) * (joint | kerb)
    light *= 1 - np.float32(style.shadow) * shade
    p.image[top:] = np.clip(p.shade(palette[kind] * light[..., None], z[..., None]), 0, 255)
    p.label[top:] = np.array([IDS[n] for n in ("road", "terrain", "sidewalk", "sidewalk", "road")], np.uint8)[kind]


def _texture(x: np.ndarray, z: np.ndarray, scale: float) -> np.ndarray:
    """The noise laid on the ground, `scale` texels per metre."""
    return noise()[(z * scale).astype(np.int32) & 255, (x * scale).astype(np.int32) & 255]


def _lot_ground(street: Street, x: np.ndarray, z: np.ndarray, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Where a lot is grown with grass, and where the houses towards the sun throw their shadow."""
    grassy, shade = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for side in (street.left, street.right):
        index = np.searchsorted([lot.start for lot in side.lots], z[:, 0]).clip(1) - 1
        grows = np.array([lot.kind in ("park", "fence", "wall") for lot in side.lots])[index]
        height = np.array([lot.height for lot in side.lots])[index]
        grassy |= grows[:, None] & (np.sign(x) == side.sign)
        if side.sign == style.sun_side:
            reach = side.front - (height * style.shadow_length)[:, None]
            shade |= (x * side.sign > reach) & (height[:, None] > 0)
    return grassy, shade


def _markings(street: Street, x: np.ndarray, z: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Lane lines, the stop line and the zebra before a crossing."""
    dashes = (np.abs(x) < 0.09) & (z % 6 < 3.4)
    marks = dashes | (np.abs(out + 0.4) < 0.06)
    if street.crossing:
        start, end = street.crossing
        marks &= (z < start - 3.4) | (z > end)
        marks |= (z > start - 2.9) & (z < start - 0.4) & (x % 1.1 < 0.55) & (out < -0.3)
    return marks


def paint_rails(p: Painter, lane: float) -> None:
    for x in (lane - 0.72, lane + 0.72):
        for z in np.arange(NEAR, 80, 5.0):
            p.fill(GROUND, rect(x - 0.08, z, x + 0.08, z + 5.0), (64, 60, 58), None)
            p.fill(GROUND, rect(x - 0.03, z, x + 0.03, z + 5.0), (170, 168, 164), None)


def paint_backdrop(p: Painter) -> None:
    """The town behind the end of the street."""
    x = -160.0
    while x < 160:
        width, s = p.rng.uniform(8, 20), p.facing(x, FAR + 10)
        if p.rng.random() < 0.6:
            height = p.rng.uniform(6, 22)
            p.fill(s, rect(0, -1, width, height), p.pick("facade"), "building")
            p.fill(s, grid(0, 1, width, height, 5, 5, (0.5, 0.55)), p.pick("glass"), None)
        else:
            p.fill(s, rect(0, -1, width, 4), p.pick("leaf") * 0.8, "vegetation")
            draw_crown(p, s, width / 2, 4, width * 1.3, 9)
        x += width


def draw_facade(p: Painter, s: Surface, length: float, height: float, wall: Color, shop: bool) -> None:
    """Stains, storeys of windows and a ground floor with doors, or a shop front."""
    u, v = p.rng.uniform(0, length, 24), p.rng.uniform(0, height, 24)
    storeys, columns = max(int((height - 3) / 2.9), 1), max(int(length / 2.4), 1)
    p.fill(s, rect(0, 0, length, height), wall, "building")
    stains = np.stack([rect(a, b, min(a + 1.2, length), min(b + 0.6, height)) for a, b in zip(u, v)])
    p.fill(s, stains, wall, None, jitter=0.06)
    p.fill(s, grid(0, 3, length, height - 0.3, columns, storeys, (0.58, 0.64)), wall * 1.25, None)
    panes = grid(0, 3, length, height - 0.3, columns, storeys, (0.46, 0.54))
    p.fill(s, panes, p.pick("glass"), None, jitter=0.25)
    if shop:
        p.fill(s, grid(0, 0.4, length, 2.5, columns, 1, (0.86, 1.0)), p.pick("glass"), None, jitter=0.2)
        p.fill(s, rect(0, 2.5, length, 3.1), p.pick("shop"), None)
    else:
        p.fill(s, grid(0, 0.9, length, 2.5, columns, 1, (0.46, 0.8)), p.pick("glass"), None, jitter=0.25)
        p.fill(s, rect(length * 0.5 - 0.6, 0, length * 0.5 + 0.6, 2.3), p.pick("trunk"), None)


def draw_building(p: Painter, side: Side, lot: Lot) -> None:
    x, length = side.sign * side.front, lot.end - lot.start
    wall, roof = p.pick("facade"), p.pick("roof")
    street_face = p.beside(x, lot.start, -side.sign)
    front_face = p.facing(x, lot.start)._replace(right=(side.sign, 0, 0))
    draw_facade(p, front_face, 12, lot.height, wall * 0.92, shop=False)
    draw_facade(p, street_face, length, lot.height, wall, shop=p.rng.random() < 0.4)
    if p.style.palette is CAMERA:  # pitched roofs with tiles; flat ones with a cornice in the game
        slope = Surface((x, lot.height, lot.start), (0, 0, 1), (side.sign * 1.0, 1.0, 0), street_face.light)
        p.fill(slope, rect(0, 0, length, 2.6), roof, "building")
        p.fill(slope, grid(0, 0, length, 2.6, 1, 7, (1.0, 0.3)), roof * 0.84, None)
        gable = [(0, lot.height), (12, lot.height), (2.6, lot.height + 2.6)]
        p.fill(front_face, gable, wall * 0.9, "building")
    else:
        p.fill(street_face, rect(0, lot.height - 0.1, length, lot.height + 0.5), roof, "building")
        p.fill(front_face, rect(0, lot.height - 0.1, 12, lot.height + 0.5), roof, "building")


def draw_wall(p: Painter, side: Side, lot: Lot) -> None:
    s, color = p.beside(side.sign * side.front, lot.start, -side.sign), p.pick("wall")
    length, height = lot.end - lot.start, p.rng.uniform(2.0, 3.0)
    p.fill(s, rect(0, 0, length, height), color * 0.78, "wall")
    p.fill(s, grid(0, 0, length, height, int(length / 0.9), 7, (0.93, 0.84)), color, None, jitter=0.1)
    p.fill(s, rect(0, height - 0.2, length, height), color * 1.2, None)


def draw_fence(p: Painter, side: Side, lot: Lot) -> None:
    s, color = p.beside(side.sign * (side.front - 0.1), lot.start, -side.sign), p.pick("fence")
    length, height = lot.end - lot.start, p.rng.uniform(1.3, 2.0)
    p.fill(s, rect(0, 0, length, height), color * 0.8, "fence", alpha=0.35)
    p.fill(s, grid(0, 0, length, height, int(length / 0.42), 1, (0.38, 1.0)), color, None, jitter=0.05)
    for v in (0.2, height - 0.25):
        p.fill(s, rect(0, v, length, v + 0.13), color * 0.9, None)


def draw_greenery(p: Painter, side: Side, lot: Lot) -> None:
    """Trees and bushes of a lot, far to near; a hedge of bushes where nothing stands before them."""
    plants = [(p.rng.uniform(lot.start, lot.end), p.rng.uniform(1.5, 9), True) for _ in range(4)]
    plants += [(p.rng.uniform(lot.start, lot.end), p.rng.uniform(0.8, 7), False) for _ in range(3)]
    for z, depth, tall in sorted(plants, reverse=True):
        if z > 3:
            (draw_tree if tall else draw_bush)(p, side.sign * (side.front + depth), z)


def draw_lot(p: Painter, side: Side, lot: Lot) -> None:
    if lot.kind == "building":
        draw_building(p, side, lot)
    elif lot.kind != "open":
        draw_greenery(p, side, lot)
        if lot.kind != "park":
            (draw_wall if lot.kind == "wall" else draw_fence)(p, side, lot)


# --- who stands where -------------------------------------------------------------------------------------

Item = tuple[float, Callable[[Painter], None]]  # depth that decides the order, and how to draw it


def _item(z: float, draw: Callable[..., None], *args: Any) -> Item:
    return z, lambda p: draw(p, *args)


def _count(rng: np.random.Generator, rate: float) -> int:
    """A chance below one, a Poisson mean above."""
    return int(rng.poisson(rate)) if rate > 1 else int(rng.random() < rate)


def place_traffic(rng: np.random.Generator, street: Street, rates: dict[str, float]) -> list[Item]:
    """Two lanes of vehicles with the frame's large ones in front places, parked cars, and cross traffic."""
    lanes: dict[bool, list[Vehicle]] = {True: [], False: []}
    for kind in (TRUCK, BUS):
        if rng.random() < rates[kind.name]:
            lanes[bool(rng.random() < 0.5)].append(kind)
    if street.tram:
        lanes[False].insert(0, TRAM)
    items = []
    for away, queue in lanes.items():
        x = street.lane if away else -min(2.0, street.left.road / 2)
        z = rng.uniform(10, 22)
        while z < 80:
            kind = queue.pop(0) if queue else CAR
            if kind is not CAR or rng.random() < 0.5:
                items.append(_item(z, draw_vehicle, kind, x + rng.uniform(-0.2, 0.2), z, away))
            z += kind.length + rng.uniform(4, 16)
    for side in (street.left, street.right):
        if side.road < 5.3 or rng.random() > rates["parked"]:
            continue
        for z in np.arange(rng.uniform(4, 9), 70, 6.2):
            blocked = street.crossing and street.crossing[0] - 9 < z < street.crossing[1]
            if not blocked and rng.random() < 0.7:
                items.append(_item(z, draw_vehicle, CAR, side.sign * (side.road - 1.05), z, side.sign > 0))
    if street.crossing and rng.random() < 0.5:
        kind = (CAR, CAR, TRUCK, BUS)[rng.integers(4)]
        z = street.crossing[0] + 2
        items.append(_item(z, draw_crossing_vehicle, kind, rng.uniform(-12, 6), z, bool(rng.random() < 0.5)))
    return items


def place_people(rng: np.random.Generator, street: Street, rates: dict[str, float]) -> list[Item]:
    items = []
    for _ in range(_count(rng, rates["person"])):
        side, z = (street.left, street.right)[rng.integers(2)], 4.5 + 21 * rng.random() ** 1.3
        x = side.sign * (side.road + side.verge + rng.uniform(0.4, side.walk - 0.3))
        if street.crossing and rng.random() < 0.3:  # on the zebra
            z, x = street.crossing[0] - 1.5, rng.uniform(-street.left.road, street.right.road)
        items.append(_item(z, draw_person, x, z))
    for what, name in (("cyclist", "bicycle"), ("biker", "motorcycle")):
        for _ in range(2 * _count(rng, rates[what])):
            side, z = (street.left, street.right)[rng.integers(2)], rng.uniform(5.5, 17)
            items.append(_item(z, draw_two_wheeler, name, True, side.sign * rng.uniform(0.3, 0.9) * side.road, z))
    for name in ("bicycle", "motorcycle"):
        if rng.random() < rates[name]:
            side, start = (street.left, street.right)[rng.integers(2)], rng.uniform(5, 13)
            for i in range(int(rng.integers(2, 5))):
                x = side.sign * (side.road + side.verge + rng.uniform(0.7, 1.4))
                items.append(_item(start + 1.3 * i, draw_two_wheeler, name, False, x, start + 1.3 * i))
    return items


def place_furniture(rng: np.random.Generator, street: Street, rates: dict[str, float]) -> list[Item]:
    """Lamps and trees in rows along the kerb; traffic lights, signs and bollards."""
    items = []
    for side in (street.left, street.right):
        kerb, z = side.sign * (side.road + 0.5), rng.uniform(4, 14)
        while z < 80:
            items.append(_item(z, draw_street_lamp, kerb, z))
            z += rng.uniform(12, 22)
        if rng.random() < rates["tree"]:
            for z in np.arange(rng.uniform(6, 12), 80, rng.uniform(8, 13)):
                items.append(_item(z, draw_tree, side.sign * (side.road + max(0.5 * side.verge, 0.9)), z))
        if rng.random() < 0.3:
            for z in np.arange(rng.uniform(4, 7), 22, 2.2):
                items.append(_item(z, draw_bollard, kerb, z))
    for _ in range(_count(rng, rates["light"])):
        side, z = (street.left, street.right)[rng.integers(2)], rng.uniform(6.5, 20)
        items.append(_item(z, draw_traffic_light, side.sign * (side.road + 0.5), z))
    for _ in range(_count(rng, rates["sign"])):
        side, z = (street.left, street.right)[rng.integers(2)], rng.uniform(6, 20)
        items.append(_item(z, draw_sign, side.sign * (side.road + rng.uniform(0.4, 1.2)), z))
    return items


# --- a frame ----------------------------------------------------------------------------------------------


def aim_camera(rng: np.random.Generator, domain: Domain, street: Street) -> Camera:
    """The game looks from higher up; both look down the right lane."""
    source = domain == "source"
    return Camera(
        focal=rng.uniform(0.72, 0.9) * WIDTH * SCALE,
        center=WIDTH * SCALE * 0.5,
        horizon=HEIGHT * SCALE * (rng.uniform(0.34, 0.44) if source else rng.uniform(0.4, 0.48)),
        height=rng.uniform(1.9, 2.5) if source else rng.uniform(1.25, 1.5),
        x=street.lane + rng.uniform(-0.8, 0.5),
        yaw=rng.uniform(-0.09, 0.09),
        bend=rng.uniform(-0.003, 0.003),
    )


def develop_game(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Saturated, contrasty, sharpened. (H, W, 3) float32 in 0 to 255, as below."""
    gray = image.mean(-1, keepdims=True)
    image = gray + (image - gray) * rng.uniform(1.0, 1.35)
    image = (128 + (image - 124) * rng.uniform(0.98, 1.14)) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    return image + 0.4 * (image - cv2.GaussianBlur(image, (0, 0), 1.0))


def develop_camera(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat and greenish, out of focus, darker to the corners, with sensor noise."""
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
    """The rim that stereo rectification leaves without a picture, in place."""
    rim = np.ones(label.shape, bool)
    rim[1:-2, 3:-2] = False
    image[rim] = image[rim] // 8
    label[rim] = RECTIFICATION_BORDER


def frame(seed: int, domain: Domain, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one frame; a pure function of its arguments.

    Returns:
        image (160, 320, 3) uint8 RGB, and label (160, 320) uint8 of Cityscapes ids.
    """
    rng = np.random.default_rng((seed, domain == "target", split == "val", index))
    style = game_style(rng) if domain == "source" else camera_style(rng)
    street = plan_street(rng, style.rates)
    p = Painter(aim_camera(rng, domain, street), style, rng)
    paint_sky(p)
    paint_ground(p, street)
    if street.tram:
        paint_rails(p, -min(2.0, street.left.road / 2))
    paint_backdrop(p)
    items = [_item(lot.end, draw_lot, side, lot) for side in (street.left, street.right) for lot in side.lots]
    for place in (place_traffic, place_people, place_furniture):
        items += place(rng, street, style.rates)
    for _, draw in sorted(items, key=lambda item: -item[0]):
        draw(p)
    if domain == "target":
        paint_bonnet(p)
    image = cv2.resize(p.image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32) * style.gain
    image = develop_game(image, rng) if domain == "source" else develop_camera(image, rng)
    image, label = (
        np.clip(image, 0, 255).astype(np.uint8),
        p.label[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE].copy(),
    )
    if domain == "target":
        blacken_border(image, label)
    return image, label


# --- files ------------------------------------------------------------------------------------------------


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
        palette[[c.cityscapes_id for c in CLASSES]] = [c.color for c in CLASSES]
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
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        done = pool.map(_write_frame, *zip(*jobs), chunksize=4)
        for _ in folders.progress(done, "rendering the miniature", len(jobs), "frame"):
            pass


def ensure(seed: int = 0, sizes: Sizes = DEFAULT_SIZES) -> Path:
    """The folder that holds `gta5/` and `cityscapes/`, rendered on first use.

    It lies under `$DA_CACHE`, or `~/.cache/da`. Frames are rendered into a temporary folder that is renamed
    when whole, so an interrupted rendering is never taken for a finished one, and of two processes that start
    at once the second to finish throws its copy away.

    Raises:
        UserError: the cache folder cannot be written.
    """
    cache_root = folders.cache_root()
    folder = cache_root / f"miniature-v{VERSION}-seed{seed}-{'-'.join(map(str, sizes))}"
    if folder.is_dir():
        return folder
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=cache_root))
    except OSError as error:
        raise UserError(
            f"{cache_root}: cannot be written ({error.strerror}); set DA_CACHE to a folder that can"
        ) from error
    try:
        render(partial, seed, sizes)
        partial.chmod(0o755)
        os.replace(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
