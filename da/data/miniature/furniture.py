"""Street lamps, bollards, traffic lights and signs."""

import numpy as np

from da.data.miniature.painter import Painter
from da.data.miniature.shapes import Part, Surface, bar, both, disc, rect
from da.data.miniature.style import FIXED, GAME, rgb

# fmt: off
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
