"""Polygons in the world become pixels: each call writes colour and label together."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from da.data.miniature.camera import HEIGHT, NEAR, SCALE, WIDTH, Camera
from da.data.miniature.classes import IDS
from da.data.miniature.shapes import GROUND, Part, Surface, rect
from da.data.miniature.style import FIXED, Color, Style, rgb


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
        """A pick of each material, and the colours that are the same in both worlds."""
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
        """Paint one polygon, or many convex ones.

        Args:
            polygons: (P, 2) or (N, P, 2) points of `surface`.
            name: the class written; None leaves the label as it is.
            alpha: opacity of a single polygon.
            jitter: how much the brightness varies between polygons.
            glow: paint the colour without shade and haze.
        """
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
        for polygon, shade in zip(pixels, colors):  # cv2.fillConvexPoly is faster than fillPoly
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

    def sketch(self, surface: Surface, parts: Sequence[Part], colors: dict[str, Color], name: str) -> None:
        """Paint (material, polygon) pairs one over the other."""
        for material, polygon in parts:
            self.fill(surface, polygon, colors[material], name, glow=material.endswith(" lamp"))

    def shadow(self, x: float, z: float, width: float, length: float, height: float) -> None:
        """Darken the ground under a thing and, away from the sun, beside it."""
        reach = -self.style.sun_side * self.style.shadow_length * height
        left, right = x - width / 2 + min(reach, 0), x + width / 2 + max(reach, 0)
        ground = rect(left, z - 0.15, right, z + length)
        self.fill(GROUND, ground, (12, 12, 20), None, alpha=self.style.shadow)
