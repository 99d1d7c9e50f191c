"""The plan of a street: two sides with their lots, and at times a crossing."""

from typing import NamedTuple

import numpy as np

from da.data.miniature.camera import FAR


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
