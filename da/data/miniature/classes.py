"""The classes that are painted. Only this file knows where their ids and colours come from."""

from da.labels import label_space

CLASSES = label_space("cityscapes19")
IDS = dict(zip(CLASSES.names, CLASSES.scheme("cityscapes").stored.tolist()))
COLORS = dict(zip(IDS.values(), CLASSES.colors))  # RGB
EGO_VEHICLE, RECTIFICATION_BORDER = 1, 2  # Cityscapes ids without a trainId
