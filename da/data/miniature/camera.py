"""The picture's size and the pinhole camera that sees the street."""

from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT = 320, 160  # pixels, 2:1 as in Cityscapes
SCALE = 3  # pictures are painted at three times their size

NEAR, FAR = 1.5, 95.0  # metres: closer things are cut off, further ones are backdrop


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
        """World points (..., 3) -> pixels (..., 2).

        A point before the near plane slides onto it along z. A polygon whose edges run along or across the street is
        so cut exactly.
        """
        z = np.maximum(points[..., 2], NEAR)
        pixels = np.empty((*z.shape, 2))
        pixels[..., 0] = self.center + self.focal * (points[..., 0] + self.drift(z) - self.x) / z
        pixels[..., 1] = self.horizon - self.focal * (points[..., 1] - self.height) / z
        return pixels
