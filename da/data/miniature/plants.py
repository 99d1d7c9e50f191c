"""Trees, palms and bushes."""

import math

import numpy as np

from da.data.miniature.painter import Painter
from da.data.miniature.shapes import Surface, bar, disc
from da.data.miniature.style import GAME, Color


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
