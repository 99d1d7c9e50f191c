"""The label space, once: the 19 Cityscapes training classes, their colours, and how each data set's ids map onto them.

trainIds run from 0 to 18; every other pixel is `IGNORE`. Names, colours and Cityscapes ids follow the official
Cityscapes scripts; GTA5 uses the Cityscapes ids (Richter et al., ECCV 2016); the SYNTHIA ids are those of
SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016).
"""

from typing import NamedTuple

import numpy as np

IGNORE = 255


class SegClass(NamedTuple):
    name: str
    cityscapes_id: int
    synthia_id: int
    color: tuple[int, int, int]  # RGB


CLASSES = (
    SegClass("road", 7, 3, (128, 64, 128)),
    SegClass("sidewalk", 8, 4, (244, 35, 232)),
    SegClass("building", 11, 2, (70, 70, 70)),
    SegClass("wall", 12, 21, (102, 102, 156)),
    SegClass("fence", 13, 5, (190, 153, 153)),
    SegClass("pole", 17, 7, (153, 153, 153)),
    SegClass("traffic light", 19, 15, (250, 170, 30)),
    SegClass("traffic sign", 20, 9, (220, 220, 0)),
    SegClass("vegetation", 21, 6, (107, 142, 35)),
    SegClass("terrain", 22, 16, (152, 251, 152)),
    SegClass("sky", 23, 1, (70, 130, 180)),
    SegClass("person", 24, 10, (220, 20, 60)),
    SegClass("rider", 25, 17, (255, 0, 0)),
    SegClass("car", 26, 8, (0, 0, 142)),
    SegClass("truck", 27, 18, (0, 0, 70)),
    SegClass("bus", 28, 19, (0, 60, 100)),
    SegClass("train", 31, 20, (0, 80, 100)),
    SegClass("motorcycle", 32, 12, (0, 0, 230)),
    SegClass("bicycle", 33, 11, (119, 11, 32)),
)
NAMES = tuple(c.name for c in CLASSES)
NUM_CLASSES = len(CLASSES)

# trainIds that a SYNTHIA row is averaged over: 16 (no terrain, truck, train) and 13 (also no wall, fence, pole).
SUBSETS: dict[int, tuple[int, ...]] = {
    19: tuple(range(19)),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18),
    13: (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18),
}

# Cityscapes' categories; a group's figure is the mean over its classes, other than the benchmark's category IoU, which
# merges them.
GROUPS: dict[str, tuple[int, ...]] = {
    "flat": (0, 1),
    "construction": (2, 3, 4),
    "object": (5, 6, 7),
    "nature": (8, 9),
    "sky": (10,),
    "human": (11, 12),
    "vehicle": (13, 14, 15, 16, 17, 18),
}


def _table(pairs: list[tuple[int, int]]) -> np.ndarray:
    """A 256-entry uint8 look-up table, `IGNORE` wherever no pair says otherwise."""
    table = np.full(256, IGNORE, np.uint8)
    for key, value in pairs:
        table[key] = value
    return table


CITYSCAPES_TO_TRAIN = _table([(c.cityscapes_id, i) for i, c in enumerate(CLASSES)])  # GTA5 too
SYNTHIA_TO_TRAIN = _table([(c.synthia_id, i) for i, c in enumerate(CLASSES)])
TRAIN_TO_TRAIN = _table([(i, i) for i in range(NUM_CLASSES)])
TRAIN_TO_CITYSCAPES = np.zeros(256, np.uint8)  # IGNORE becomes 0, "unlabeled"
TRAIN_TO_CITYSCAPES[:NUM_CLASSES] = [c.cityscapes_id for c in CLASSES]

# Ids that a label file may hold; anything else means that the file is of another kind.
CITYSCAPES_IDS = frozenset(range(35)) | {IGNORE}
SYNTHIA_IDS = frozenset(range(23)) | {IGNORE}
TRAIN_IDS = frozenset(range(NUM_CLASSES)) | {IGNORE}

PALETTE = np.zeros((256, 3), np.uint8)  # RGB by trainId; IGNORE is black
PALETTE[:NUM_CLASSES] = [c.color for c in CLASSES]
