"""The Cityscapes classes as the tests use them."""

import numpy as np

from da.labels import label_space

CITY = label_space("cityscapes19")
PALETTE, NAMES, NUM_CLASSES = CITY.palette, CITY.names, len(CITY)
TRAIN_TO_CITYSCAPES = CITY.scheme("cityscapes").stored
TRAIN_TO_SYNTHIA = CITY.scheme("synthia").stored
SUBSETS = {int(name): members for name, members in CITY.subsets.items()}
CITYSCAPES_TO_TRAIN = np.where(CITY.scheme("cityscapes").known, CITY.scheme("cityscapes").table, 255)
