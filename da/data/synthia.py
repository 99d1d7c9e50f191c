"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): `RGB/0000000.png`, `GT/LABELS/0000000.png`, 9,400 pairs.

The archive's labels are 16-bit three-channel PNGs, class in red and instance in green, which Pillow would
cut to 8 bits: those are read with OpenCV. One-channel copies (`synthia_mapped_to_cityscapes`) still hold
SYNTHIA ids. Lane markings (22), parking slots and road works are ignored, as in every published id map.
Splits: `all`, or a list file.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from da.data import folders
from da.data.folders import DataSet, Sample
from da.labels import LabelSpace, Scheme

SPLITS = ("all",)
TREE = "RGB/0000000.png ...  GT/LABELS/0000000.png ..."
_DEPTH_AND_COLOR = slice(24, 26)  # these two bytes of a PNG header are 16, 2 for 16-bit RGB


def index(root: Path, split: str, with_labels: bool = True) -> list[Sample]:
    """The samples of `split`, ordered by name (list files keep their order); every label file exists.

    Args:
        root: folder that holds `RGB/` and `GT/LABELS/`.
        split: `all`, or a list file with one name a line.
        with_labels: False leaves `GT/` untouched and sets every `Sample.label` to None.

    Raises:
        UserError: no images, missing labels, no such split.
    """
    return DATASET.index(root, split, with_labels)


def scan(root: Path, split: str, with_labels: bool = True) -> list[Sample]:
    """Like `index`, but a `Sample.label` need not exist."""
    found = folders.flat_samples(root, "RGB", "GT/LABELS", TREE, with_labels)
    return found if split == "all" else folders.select(found, folders.read_list(root, split, SPLITS), root, split)


def scheme(classes: LabelSpace) -> Scheme:
    """How the ids stand for `classes`."""
    return classes.scheme("synthia")


def _read_ids(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            if file.read(26)[_DEPTH_AND_COLOR] != bytes([16, 2]):
                return folders.read_stored(path)
        with Image.open(path) as image:
            image.verify()  # checksums: OpenCV 4 decodes a truncated PNG in silence
        decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        return np.asarray(decoded)[..., 2]  # OpenCV's order is B, G, R
    except folders.DECODE_ERRORS as error:
        raise folders.unreadable(path, error) from error


DATASET = DataSet(
    name="synthia",
    splits=SPLITS,
    checked={"all": True},
    root="${SYNTHIA_ROOT}",
    tree=TREE,
    scan=scan,
    scheme=scheme,
    read_stored=_read_ids,
)
read_label = DATASET.read_label
