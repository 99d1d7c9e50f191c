"""The two worlds: colours of materials, how often things occur, and one frame's light."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Color = Any  # RGB, three numbers from 0 to 255
Palette = dict[str, tuple[tuple[int, int, int], ...]]


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


# Colours that are the same in both worlds.
# fmt: off
FIXED = {
    "red": (214, 40, 36), "amber": (246, 186, 50), "green": (48, 196, 110), "blue": (44, 92, 176),
    "board": (30, 124, 76), "white": (238, 238, 236), "dark": (40, 40, 43), "rubber": (30, 30, 32),
    "steel": (156, 158, 161), "tail lamp": (214, 40, 36), "head lamp": (250, 244, 214),
}
# fmt: on


# How often a thing occurs: its chance per frame up to one, its mean number above.
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
    visibility: float  # metres at which haze makes 63 % of a colour
    gain: float  # exposure


def game_style(rng: np.random.Generator) -> Style:
    """Sunny, evening or bright overcast: clear air, and hard shadows under a warm sun."""
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
    """Overcast, mist or dusk: diffuse northern light."""
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
