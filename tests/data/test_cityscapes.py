import shutil
from pathlib import Path

import numpy as np
import pytest
from city import CITY
from PIL import Image

from da.config import UserError
from da.data import cityscapes
from da.labels import IGNORE


def test_splits_and_partners(cityscapes_root: Path) -> None:
    train = cityscapes.index(cityscapes_root, "train")
    val = cityscapes.index(cityscapes_root, "val")
    assert [s.name for s in val] == [
        "frankfurt_000000_000019", "frankfurt_000001_000019", "munster_000000_000019"
    ]  # fmt: skip
    assert len(train) == 5
    folder = cityscapes_root / "gtFine/val/munster"
    assert val[2].label == folder / "munster_000000_000019_gtFine_labelIds.png"


def test_label_ids_include_34_and_255(tmp_path: Path) -> None:
    path = tmp_path / "a_gtFine_labelIds.png"
    Image.fromarray(np.array([[0, 7, 33, 34, 255]], np.uint8)).save(path)
    assert cityscapes.read_label(path, CITY).tolist() == [[IGNORE, 0, 18, IGNORE, IGNORE]]
    Image.fromarray(np.array([[7, 40]], np.uint8)).save(path)
    with pytest.raises(UserError, match=r"a_gtFine_labelIds\.png: 40 are not Cityscapes ids"):
        cityscapes.read_label(path, CITY)


def test_label_train_ids_serve_where_label_ids_are_absent(cityscapes_root: Path) -> None:
    folder = cityscapes_root / "gtFine/val/munster"
    (folder / "munster_000000_000019_gtFine_labelIds.png").unlink()
    path = folder / "munster_000000_000019_gtFine_labelTrainIds.png"
    Image.fromarray(np.array([[0, 18, 255]], np.uint8)).save(path)
    val = cityscapes.index(cityscapes_root, "val")
    assert val[2].label == path
    assert val[0].label is not None
    assert val[0].label.name.endswith("labelIds.png")
    assert cityscapes.read_label(path, CITY).tolist() == [[0, 18, IGNORE]]
    Image.fromarray(np.array([[26]], np.uint8)).save(path)
    with pytest.raises(UserError, match="26 are not Cityscapes trainIds"):
        cityscapes.read_label(path, CITY)


def test_colour_picture_is_refused(cityscapes_root: Path) -> None:
    image = cityscapes.index(cityscapes_root, "val")[0].image
    with pytest.raises(UserError, match="a 3-channel picture; expected one channel of Cityscapes ids"):
        cityscapes.read_label(image, CITY)


def test_nested_archives(cityscapes_root: Path, tmp_path: Path) -> None:
    nested = tmp_path / "nested"
    for kind in ("leftImg8bit", "gtFine"):
        shutil.copytree(cityscapes_root / kind, nested / f"{kind}_trainvaltest" / kind)
    flat, deep = (cityscapes.index(root, "train") for root in (cityscapes_root, nested))
    assert [s.name for s in flat] == [s.name for s in deep]
    assert all(s.label is not None and s.label.is_file() for s in deep)


def test_list_file_with_city_folders(cityscapes_root: Path) -> None:
    lines = ["munster/munster_000000_000019_leftImg8bit.png", "aachen/aachen_000001_000019_leftImg8bit.png"]
    (cityscapes_root / "two.txt").write_text("\n".join(lines))
    chosen = cityscapes.index(cityscapes_root, "two.txt")
    assert [s.name for s in chosen] == ["munster_000000_000019", "aachen_000001_000019"]


def test_unlabelled_train_needs_no_gtfine(cityscapes_root: Path) -> None:
    shutil.rmtree(cityscapes_root / "gtFine/train")
    assert len(cityscapes.index(cityscapes_root, "train", with_labels=False)) == 5
    with pytest.raises(UserError, match=r"5 of 5 images have no label file.*expected a folder that holds"):
        cityscapes.index(cityscapes_root, "train")


def test_missing_split_folder(cityscapes_root: Path) -> None:
    with pytest.raises(UserError, match=r"no images in leftImg8bit/test/; expected .*gtFine"):
        cityscapes.index(cityscapes_root, "test")
