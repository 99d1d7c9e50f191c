"""What stands on a lot: houses, or walls and fences before greenery."""

import numpy as np

from da.data.miniature.painter import Painter
from da.data.miniature.plants import draw_bush, draw_tree
from da.data.miniature.shapes import Surface, grid, rect
from da.data.miniature.street import Lot, Side
from da.data.miniature.style import CAMERA, Color


def draw_facade(p: Painter, s: Surface, length: float, height: float, wall: Color, shop: bool) -> None:
    """Stains, storeys of windows and a ground floor with doors, or a shop front."""
    u, v = p.rng.uniform(0, length, 24), p.rng.uniform(0, height, 24)
    storeys, columns = max(int((height - 3) / 2.9), 1), max(int(length / 2.4), 1)
    p.fill(s, rect(0, 0, length, height), wall, "building")
    stains = np.stack([rect(a, b, min(a + 1.2, length), min(b + 0.6, height)) for a, b in zip(u, v)])
    p.fill(s, stains, wall, None, jitter=0.06)
    p.fill(s, grid(0, 3, length, height - 0.3, columns, storeys, (0.58, 0.64)), wall * 1.25, None)
    panes = grid(0, 3, length, height - 0.3, columns, storeys, (0.46, 0.54))
    p.fill(s, panes, p.pick("glass"), None, jitter=0.25)
    if shop:
        p.fill(s, grid(0, 0.4, length, 2.5, columns, 1, (0.86, 1.0)), p.pick("glass"), None, jitter=0.2)
        p.fill(s, rect(0, 2.5, length, 3.1), p.pick("shop"), None)
    else:
        p.fill(s, grid(0, 0.9, length, 2.5, columns, 1, (0.46, 0.8)), p.pick("glass"), None, jitter=0.25)
        p.fill(s, rect(length * 0.5 - 0.6, 0, length * 0.5 + 0.6, 2.3), p.pick("trunk"), None)


def draw_building(p: Painter, side: Side, lot: Lot) -> None:
    x, length = side.sign * side.front, lot.end - lot.start
    wall, roof = p.pick("facade"), p.pick("roof")
    street_face = p.beside(x, lot.start, -side.sign)
    front_face = p.facing(x, lot.start)._replace(right=(side.sign, 0, 0))
    draw_facade(p, front_face, 12, lot.height, wall * 0.92, shop=False)
    draw_facade(p, street_face, length, lot.height, wall, shop=p.rng.random() < 0.4)
    if p.style.palette is CAMERA:  # pitched roofs with tiles; the game has flat ones with a cornice
        slope = Surface((x, lot.height, lot.start), (0, 0, 1), (side.sign * 1.0, 1.0, 0), street_face.light)
        p.fill(slope, rect(0, 0, length, 2.6), roof, "building")
        p.fill(slope, grid(0, 0, length, 2.6, 1, 7, (1.0, 0.3)), roof * 0.84, None)
        gable = [(0, lot.height), (12, lot.height), (2.6, lot.height + 2.6)]
        p.fill(front_face, gable, wall * 0.9, "building")
    else:
        p.fill(street_face, rect(0, lot.height - 0.1, length, lot.height + 0.5), roof, "building")
        p.fill(front_face, rect(0, lot.height - 0.1, 12, lot.height + 0.5), roof, "building")


def draw_wall(p: Painter, side: Side, lot: Lot) -> None:
    s, color = p.beside(side.sign * side.front, lot.start, -side.sign), p.pick("wall")
    length, height = lot.end - lot.start, p.rng.uniform(2.0, 3.0)
    p.fill(s, rect(0, 0, length, height), color * 0.78, "wall")
    p.fill(s, grid(0, 0, length, height, int(length / 0.9), 7, (0.93, 0.84)), color, None, jitter=0.1)
    p.fill(s, rect(0, height - 0.2, length, height), color * 1.2, None)


def draw_fence(p: Painter, side: Side, lot: Lot) -> None:
    s, color = p.beside(side.sign * (side.front - 0.1), lot.start, -side.sign), p.pick("fence")
    length, height = lot.end - lot.start, p.rng.uniform(1.3, 2.0)
    p.fill(s, rect(0, 0, length, height), color * 0.8, "fence", alpha=0.35)
    p.fill(s, grid(0, 0, length, height, int(length / 0.42), 1, (0.38, 1.0)), color, None, jitter=0.05)
    for v in (0.2, height - 0.25):
        p.fill(s, rect(0, v, length, v + 0.13), color * 0.9, None)


def draw_greenery(p: Painter, side: Side, lot: Lot) -> None:
    """Trees and bushes of a lot, far to near."""
    plants = [(p.rng.uniform(lot.start, lot.end), p.rng.uniform(1.5, 9), True) for _ in range(4)]
    plants += [(p.rng.uniform(lot.start, lot.end), p.rng.uniform(0.8, 7), False) for _ in range(3)]
    for z, depth, tall in sorted(plants, reverse=True):
        if z > 3:
            (draw_tree if tall else draw_bush)(p, side.sign * (side.front + depth), z)


def draw_lot(p: Painter, side: Side, lot: Lot) -> None:
    if lot.kind == "building":
        draw_building(p, side, lot)
    elif lot.kind != "open":
        draw_greenery(p, side, lot)
        if lot.kind != "park":
            (draw_wall if lot.kind == "wall" else draw_fence)(p, side, lot)
