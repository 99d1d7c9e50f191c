"""GTA5, "Playing for Data" (Richter et al., ECCV 2016): `images/00001.png`, `labels/00001.png`, 24,966 pairs.

Labels are 8-bit palette PNGs whose index is the Cityscapes id. Copies with plain grey ids and copies
painted in the Cityscapes colours circulate too; all three are read. Splits: `all`, or `train`, `val`,
`test` of `split.mat` (keys trainIds, valIds, testIds, counted from 1), or a list file.
"""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from da.config import UserError
from da.data import folders, processes
from da.data.folders import DataSet, Sample
from da.labels import COLORS, LabelSpace, Scheme

SPLITS = ("all", "train", "val", "test")
TREE = "images/00001.png ...  labels/00001.png ..."

# Pairs of the published archive that are missing or do not belong together (IAST-ECCV2020, issue 2): 24,941
# remain. They are left out of every root of the archive's size; smaller roots are not the archive and keep
# all their files.
BAD_PAIRS = frozenset(
    f"{n:05d}"
    for first, last in [(2154, 2158), (4634, 4637), (7115, 7119), (9683, 9688), (12050, 12054)]
    for n in range(first, last + 1)
)
ARCHIVE_SIZE = 20_000


def index(root: Path, split: str, with_labels: bool = True) -> list[Sample]:
    """The samples of `split`, ordered by name (list files keep their order); every label file exists.

    Args:
        root: folder that holds `images/` and `labels/`.
        split: `all`, `train`, `val`, `test`, or a list file with one name a line.
        with_labels: False leaves the label folder untouched and sets every `Sample.label` to None.

    Raises:
        UserError: no images, missing labels, no such split.
    """
    return DATASET.index(root, split, with_labels)


def scan(root: Path, split: str, with_labels: bool = True) -> list[Sample]:
    """Like `index`, but a `Sample.label` need not exist."""
    found = folders.flat_samples(root, "images", "labels", TREE, with_labels)
    if split == "all":
        chosen = found
    elif split in SPLITS:
        chosen = folders.select(found, _read_split(root, split), root, "split.mat")
    else:
        chosen = folders.select(found, folders.read_list(root, split, SPLITS), root, split)
    return [s for s in chosen if s.name not in BAD_PAIRS] if len(found) >= ARCHIVE_SIZE else chosen


def _read_split(root: Path, split: str) -> list[str]:
    path = root / "split.mat"
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        numbers = processes.apart(_split_ids, path, split)  # scipy's reader crashes on some damaged files
    except Exception as error:
        raise UserError(
            f"{path}: no {split}Ids could be read ({str(error).strip().partition(chr(10))[0][:100]}); put GTA5's own "
            "file there, or set split: all"
        ) from error
    return [f"{n:05d}" for n in numbers]


def _split_ids(path: Path, split: str) -> list[int]:
    key = f"{split}Ids"
    numbers = np.asarray(loadmat(path, appendmat=False, variable_names=[key])[key]).ravel()
    if numbers.dtype.kind not in "uif" or not numbers.size or (numbers != np.floor(numbers)).any() or numbers.min() < 1:
        raise ValueError(f"{key} holds {numbers.size} values of type {numbers.dtype}, not the numbers of images")
    return [int(number) for number in numbers]


def scheme(classes: LabelSpace) -> Scheme:
    """How the ids stand for `classes`."""
    return classes.scheme("cityscapes")


def scheme_of(path: Path, stored: np.ndarray, classes: LabelSpace) -> Scheme:
    """Ids, or colours in the copies that hold pictures."""
    return scheme(classes) if stored.ndim == 2 else classes.scheme(COLORS)


DATASET = DataSet(
    name="gta5",
    splits=SPLITS,
    checked={"all": True},
    root="${GTA5_ROOT}",
    tree=TREE,
    scan=scan,
    scheme=scheme,
    read_stored=folders.read_stored,
    scheme_of=scheme_of,
    lists=("split.mat",),
)
read_label = DATASET.read_label
