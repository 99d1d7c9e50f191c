"""The classes that are painted. Only this file knows where their ids and colours come from."""

from da.labels import CLASSES

IDS = {c.name: c.cityscapes_id for c in CLASSES}
COLORS = {c.cityscapes_id: c.color for c in CLASSES}  # RGB
EGO_VEHICLE, RECTIFICATION_BORDER = 1, 2  # Cityscapes ids without a trainId
