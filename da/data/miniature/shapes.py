"""Planes in the world, and polygons on them in metres."""

import math
from typing import Any, NamedTuple

import numpy as np

Part = tuple[str, Any]  # material and polygon (P, 2)


class Surface(NamedTuple):
    """A plane in the world with its own (u, v) axes in metres."""

    origin: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    light: float  # how bright it is, 1: as its colour says

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


def both(material: str, u: float, y0: float, y1: float, size: float = 0.18) -> tuple[Part, Part]:
    """A rectangle on each side of the middle."""
    return (material, rect(-u - size, y0, -u + size, y1)), (material, rect(u - size, y0, u + size, y1))
