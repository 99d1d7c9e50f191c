"""Sky, ground, rails, and the town at the end of the street."""

from functools import cache

import cv2
import numpy as np

from da.data.miniature.camera import FAR, HEIGHT, NEAR, SCALE, WIDTH
from da.data.miniature.classes import IDS
from da.data.miniature.painter import Painter
from da.data.miniature.plants import draw_crown
from da.data.miniature.shapes import GROUND, grid, rect
from da.data.miniature.street import Street
from da.data.miniature.style import CAMERA, Style


@cache
def noise() -> np.ndarray:
    """A fixed tileable texture (256, 256), float32, zero mean, unit deviation, with detail at all scales."""
    white = np.random.default_rng(7).standard_normal((256, 256))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    frequency[0, 0] = 1
    texture = np.fft.ifft2(np.fft.fft2(white) / frequency**0.9).real
    return ((texture - texture.mean()) / texture.std()).astype(np.float32)


def paint_sky(p: Painter) -> None:
    """A gradient with clouds that flatten towards the horizon."""
    height, width = int(p.camera.horizon) + 2, WIDTH * SCALE
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = p.style.zenith + (p.style.horizon - p.style.zenith) * rows**1.3
    texture = np.roll(noise(), tuple(p.rng.integers(256, size=2)), (0, 1))[:72, :80]
    cover = cv2.resize(texture, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    cover = np.clip(cover * 0.9, 0, 1) * p.style.clouds * (1.1 - rows)
    white = np.minimum(p.style.horizon * 0.5 + 128, 252)
    p.image[:height] = np.clip(sky + (white - sky) * cover, 0, 255)


def paint_ground(p: Painter, street: Street) -> None:
    """Colour every pixel below the horizon by what the street plan has at its place on the ground."""
    cam, style = p.camera, p.style
    top = int(cam.horizon) + 2
    rows = np.arange(top, HEIGHT * SCALE, dtype=np.float32)[:, None] + 0.5
    z = cam.focal * cam.height / (rows - cam.horizon)  # (R, 1) metres
    aside = (np.arange(WIDTH * SCALE, dtype=np.float32)[None] + 0.5 - cam.center) / cam.focal
    x = aside * z + (cam.x - cam.drift(z))
    fine = _texture(x, z, 24.0) * np.exp(-z / 25)
    coarse = _texture(x, z, 3.0)

    out = np.where(x < 0, -x - street.left.road, x - street.right.road)  # metres outside the road
    verge = np.where(x < 0, street.left.verge, street.right.verge)
    front = verge + np.where(x < 0, street.left.walk, street.right.walk)
    grassy, shade = _lot_ground(street, x, z, style)
    terrain = ((out > 0.25) & (out < verge)) | ((out > front) & grassy)
    walk = (out > 0) & ~terrain
    if street.crossing:
        inside = (z > street.crossing[0]) & (z < street.crossing[1])
        terrain, walk = terrain & ~inside, walk & ~inside

    kerb, marked = walk & (out < 0.22), _markings(street, x, z, out)
    kind = np.select([terrain, kerb, walk, marked], [1, 2, 3, 4], 0)
    palette = np.stack([p.pick(m) for m in ("asphalt", "grass", "paving", "paving", "marking")])
    rough, grain = np.array([(0.05, 0.1, 0, 0.04, 0), (0.07, 0.22, 0, 0.05, 0)], np.float32)
    tile = 0.6 if style.palette is CAMERA else 1.4
    joint = ((x % tile < 0.07 * tile) | (z % tile < 0.07 * tile)) & (z < 30) & (kind == 3)
    light = 1 + rough[kind] * coarse + grain[kind] * fine - np.float32(0.16) * (joint | kerb)
    light *= 1 - np.float32(style.shadow) * shade
    p.image[top:] = np.clip(p.shade(palette[kind] * light[..., None], z[..., None]), 0, 255)
    p.label[top:] = np.array([IDS[n] for n in ("road", "terrain", "sidewalk", "sidewalk", "road")], np.uint8)[kind]


def _texture(x: np.ndarray, z: np.ndarray, scale: float) -> np.ndarray:
    """The noise laid on the ground, `scale` texels per metre."""
    return noise()[(z * scale).astype(np.int32) & 255, (x * scale).astype(np.int32) & 255]


def _lot_ground(street: Street, x: np.ndarray, z: np.ndarray, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Where grass grows on a lot, and where the houses on the sun's side throw their shadow."""
    grassy, shade = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for side in (street.left, street.right):
        index = np.searchsorted([lot.start for lot in side.lots], z[:, 0]).clip(1) - 1
        grows = np.array([lot.kind in ("park", "fence", "wall") for lot in side.lots])[index]
        height = np.array([lot.height for lot in side.lots])[index]
        grassy |= grows[:, None] & (np.sign(x) == side.sign)
        if side.sign == style.sun_side:
            reach = side.front - (height * style.shadow_length)[:, None]
            shade |= (x * side.sign > reach) & (height[:, None] > 0)
    return grassy, shade


def _markings(street: Street, x: np.ndarray, z: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Lane lines, the stop line and the zebra before a crossing."""
    dashes = (np.abs(x) < 0.09) & (z % 6 < 3.4)
    marks = dashes | (np.abs(out + 0.4) < 0.06)
    if street.crossing:
        start, end = street.crossing
        marks &= (z < start - 3.4) | (z > end)
        marks |= (z > start - 2.9) & (z < start - 0.4) & (x % 1.1 < 0.55) & (out < -0.3)
    return marks


def paint_rails(p: Painter, lane: float) -> None:
    for x in (lane - 0.72, lane + 0.72):
        for z in np.arange(NEAR, 80, 5.0):
            p.fill(GROUND, rect(x - 0.08, z, x + 0.08, z + 5.0), (64, 60, 58), None)
            p.fill(GROUND, rect(x - 0.03, z, x + 0.03, z + 5.0), (170, 168, 164), None)


def paint_backdrop(p: Painter) -> None:
    """The town behind the end of the street."""
    x = -160.0
    while x < 160:
        width, s = p.rng.uniform(8, 20), p.facing(x, FAR + 10)
        if p.rng.random() < 0.6:
            height = p.rng.uniform(6, 22)
            p.fill(s, rect(0, -1, width, height), p.pick("facade"), "building")
            p.fill(s, grid(0, 1, width, height, 5, 5, (0.5, 0.55)), p.pick("glass"), None)
        else:
            p.fill(s, rect(0, -1, width, 4), p.pick("leaf") * 0.8, "vegetation")
            draw_crown(p, s, width / 2, 4, width * 1.3, 9)
        x += width
