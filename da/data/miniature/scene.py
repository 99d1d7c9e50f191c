"""One frame: who stands where, the camera, and the order of painting."""

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np

from da.data.miniature.buildings import draw_lot
from da.data.miniature.camera import HEIGHT, SCALE, WIDTH, Camera
from da.data.miniature.furniture import draw_bollard, draw_sign, draw_street_lamp, draw_traffic_light
from da.data.miniature.imaging import blacken_border, develop_camera, develop_game, paint_bonnet
from da.data.miniature.painter import Painter
from da.data.miniature.people import draw_person
from da.data.miniature.plants import draw_tree
from da.data.miniature.street import Street, plan_street
from da.data.miniature.style import camera_style, game_style
from da.data.miniature.surround import paint_backdrop, paint_ground, paint_rails, paint_sky
from da.data.miniature.vehicles import (
    BUS,
    CAR,
    TRAM,
    TRUCK,
    Vehicle,
    draw_crossing_vehicle,
    draw_two_wheeler,
    draw_vehicle,
)

Domain = Literal["source", "target"]
Split = Literal["train", "val"]
Item = tuple[float, Callable[[Painter], None]]  # its depth, by which things are ordered, and how to draw it


def _item(z: float, draw: Callable[..., None], *args: Any) -> Item:
    return z, lambda p: draw(p, *args)


def _count(rng: np.random.Generator, rate: float) -> int:
    """How many there are: `rate` is a chance up to one, the mean of a Poisson distribution above."""
    return int(rng.poisson(rate)) if rate > 1 else int(rng.random() < rate)


def place_traffic(rng: np.random.Generator, street: Street, rates: dict[str, float]) -> list[Item]:
    """Two lanes of vehicles, parked cars and cross traffic; the large vehicles come first in their lanes."""
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
    """People on the sidewalk and on the zebra; two-wheelers with riders on the road, parked ones on the sidewalk."""
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


def aim_camera(rng: np.random.Generator, domain: Domain, street: Street) -> Camera:
    """Both look down the right lane; the game's camera stands higher."""
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


def frame(seed: int, domain: Domain, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Render one frame: a pure function of its arguments.

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
