"""Cars, trucks, buses, trams, bicycles and motorcycles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from da.data.miniature.painter import Painter
from da.data.miniature.people import draw_rider
from da.data.miniature.shapes import Part, Surface, bar, both, disc, rect


@dataclass(frozen=True)
class Vehicle:
    """A side silhouette swept over a width. (l, y) in metres, clockwise from the tail's foot at l = 0."""

    name: str
    width: float
    profile: Sequence[tuple[float, float]]
    windscreens: Sequence[int]  # which edges of the profile
    side: Sequence[Part]  # polygons in (l, y)
    tail: Sequence[Part]  # of both ends: polygons in (x, y) on the upright plane at the near end
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
# Both head to positive u. Their wheels are full discs, as in Cityscapes' labels.
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
# fmt: on


def draw_vehicle(p: Painter, kind: Vehicle, x: float, z: float, away: bool) -> None:
    """A vehicle whose near end is at z: first the faces turned to the camera, far to near, then the visible flank."""
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


def draw_two_wheeler(p: Painter, name: str, ridden: bool, x: float, z: float) -> None:
    """A bicycle or motorcycle with or without a rider, seen from the side or obliquely, heading left or right."""
    squeeze = p.rng.uniform(0.55, 1.0) * p.rng.choice((-1, 1))
    s = p.facing(x, z)._replace(right=(squeeze, 0, 0))
    p.shadow(x, z, 1.6 * abs(squeeze), 0.4, 1.0)
    p.sketch(s, BICYCLE if name == "bicycle" else MOTORCYCLE, p.colors("bike", "car"), name)
    if ridden and name == "bicycle":
        draw_rider(p, s, seat=0.98, lean=0.32, helmet=p.rng.random() < 0.6)
    elif ridden:
        draw_rider(p, s, seat=0.86, lean=0.24, helmet=True)
