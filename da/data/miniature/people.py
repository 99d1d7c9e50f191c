"""Pedestrians, and the riders of two-wheelers."""

import numpy as np

from da.data.miniature.painter import Painter
from da.data.miniature.shapes import Surface, bar, disc, rect
from da.data.miniature.style import FIXED


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
