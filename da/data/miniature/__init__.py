"""The miniature: a rendered pair of street-scene data sets in the on-disk layouts of GTA5 and Cityscapes.

    <root>/gta5/images/00001.png
    <root>/gta5/labels/00001.png  (palette PNG, index = Cityscapes id)
    <root>/cityscapes/leftImg8bit/<split>/<city>/<city>_000000_000019_leftImg8bit.png
    <root>/cityscapes/gtFine/<split>/<city>/<city>_000000_000019_gtFine_labelIds.png

Both domains show the same kind of street: a straight or bent corridor laid out in metres and seen through a
pinhole camera. One call paints the colour and the label of a shape together, far shapes first, at three times the
output resolution. The domains differ in light, materials, class mix, camera height and imaging: the source is a clean,
saturated, sharp game; the target is a dull, hazy, noisy camera that has its own bonnet in the picture.

Each frame is a pure function of (seed, domain, split, index). Only the PNG files are written, so a method can read
from the miniature what it could read from the real data sets, and nothing else.

    classes   names, ids and colours of the classes     plants     trees, palms, bushes
    style     light, colours, how often things occur    buildings  houses, walls, fences: what stands on a lot
    camera    the picture's size and the pinhole        surround   sky, ground, rails, the town at the end
    shapes    planes in the world, polygons on them     vehicles   cars, trucks, buses, trams, two-wheelers
    painter   polygons to pixels, colour and label      people     pedestrians and riders
    street    the plan of a street                      furniture  lamps, bollards, traffic lights, signs
    scene     who stands where; one frame               imaging    from painted colours to a photograph
    writing   files and the cache
"""

from da.data.miniature.classes import EGO_VEHICLE, RECTIFICATION_BORDER
from da.data.miniature.scene import Domain, Split, frame
from da.data.miniature.writing import VERSION, Sizes, ensure, frame_paths, render

__all__ = [
    "EGO_VEHICLE",
    "RECTIFICATION_BORDER",
    "VERSION",
    "Domain",
    "Sizes",
    "Split",
    "ensure",
    "frame",
    "frame_paths",
    "render",
]
