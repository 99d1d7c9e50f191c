"""Cityscapes (Cordts et al., CVPR 2016): `leftImg8bit/<split>/<city>/*_leftImg8bit.png`, `gtFine/...`.

Labels are the shipped `*_gtFine_labelIds.png`, or `*_gtFine_labelTrainIds.png` where only those lie there.
The nesting of the unpacked archives (`leftImg8bit_trainvaltest/leftImg8bit`, `gtFine_trainvaltest/gtFine`)
is accepted. Splits: `train` (2975), `val` (500), `test` (1525, no public labels), or a list file.
"""

from pathlib import Path

import numpy as np

from da.data import folders
from da.data.folders import DataSet, Sample
from da.labels import TRAIN_IDS, LabelSpace, Scheme

SPLITS = ("train", "val", "test")
CHECKED = {"train": False, "val": True}  # adaptation never reads target train labels
TREE = "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png  gtFine/{train,val}/<city>/*_gtFine_labelIds.png"

_IMAGE = "_leftImg8bit.png"
_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def index(root: Path, split: str, with_labels: bool = True) -> list[Sample]:
    """The samples of `split`, by city and name (list files keep their order); every label file exists.

    Args:
        root: folder that holds `leftImg8bit/` and, for `with_labels`, `gtFine/`.
        split: `train`, `val`, `test`, or a list file; names in it may carry folders and `_leftImg8bit.png`.
        with_labels: False leaves `gtFine/` untouched and sets every `Sample.label` to None.

    Raises:
        UserError: no images, missing labels, no such split.
    """
    return DATASET.index(root, split, with_labels)


def scan(root: Path, split: str, with_labels: bool = True) -> list[Sample]:
    """Like `index`, but a `Sample.label` need not exist."""
    names = None if split in SPLITS else folders.read_list(root, split, SPLITS)
    images = _unnest(root, "leftImg8bit")
    found = []
    for city in sorted(images.glob(f"{'*' if names else split}/*")):
        stems = [n.removesuffix(_IMAGE) for n in sorted(folders.files_in(city)) if n.endswith(_IMAGE)]
        folders.require_files(city, [f"{n}{_IMAGE}" for n in stems])
        labels = _label_files(root, city, stems) if with_labels else [None] * len(stems)
        found += [Sample(n, city / f"{n}{_IMAGE}", label) for n, label in zip(stems, labels)]
    if not found:
        raise folders.wrong_root(root, f"no images in leftImg8bit/{'' if names else split + '/'}", TREE)
    return folders.select(found, names, root, split) if names else found


def _unnest(root: Path, kind: str) -> Path:
    nested = root / f"{kind}_trainvaltest" / kind
    return nested if nested.is_dir() else root / kind


def _label_files(root: Path, city: Path, stems: list[str]) -> list[Path | None]:
    """The label file that belongs to each image stem of the image folder `city`."""
    folder = _unnest(root, "gtFine") / city.parent.name / city.name
    there = folders.files_in(folder)
    only_train_ids = [f"{n}{_IDS}" not in there and f"{n}{_TRAIN_IDS}" in there for n in stems]
    return [folder / f"{n}{_TRAIN_IDS if only else _IDS}" for n, only in zip(stems, only_train_ids)]


def scheme(classes: LabelSpace) -> Scheme:
    """How the ids stand for `classes`."""
    return classes.scheme("cityscapes")


def scheme_of(path: Path, stored: np.ndarray, classes: LabelSpace) -> Scheme:
    """Ids, or trainIds in `labelTrainIds` files, which their names tell."""
    return classes.scheme(TRAIN_IDS) if path.name.endswith("labelTrainIds.png") else scheme(classes)


DATASET = DataSet(
    name="cityscapes",
    splits=SPLITS,
    checked=CHECKED,
    root="${CITYSCAPES_ROOT}",
    tree=TREE,
    scan=scan,
    scheme=scheme,
    read_stored=folders.read_stored,
    scheme_of=scheme_of,
)
read_label = DATASET.read_label
