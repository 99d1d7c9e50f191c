import shutil
from pathlib import Path

import numpy as np
import pytest
from city import CITY, NUM_CLASSES
from PIL import Image

from da.data.check import check_root


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


@pytest.mark.parametrize("dataset", ["gta5", "synthia", "cityscapes"])
def test_sound_roots_pass(dataset: str, request: pytest.FixtureRequest) -> None:
    report = check_root(request.getfixturevalue(f"{dataset}_root"), dataset, CITY)
    assert report.fatal == []
    assert report.warnings == []
    assert report.pairs == {"gta5": 6, "synthia": 5, "cityscapes": 8}[dataset]


def test_class_shares_are_counted(gta5_root: Path) -> None:
    for path in (gta5_root / "labels").iterdir():
        ids = np.full((54, 96), 7, np.uint8)
        ids[:27] = 0
        Image.fromarray(ids).save(path)
    report = check_root(gta5_root, "gta5", CITY)
    assert report.pixels.tolist() == [6 * 27 * 96, *[0] * (NUM_CLASSES - 1), 6 * 27 * 96]
    lines = [line.split() for line in report.text().splitlines()]
    assert ["road", "50.000", "%"] in lines
    assert ["(ignored)", "50.000", "%"] in lines
    assert ["car", "absent"] in lines


def test_all_defects_are_reported_at_once(gta5_root: Path) -> None:
    truncate(gta5_root / "images/00001.png")
    truncate(gta5_root / "labels/00002.png")
    (gta5_root / "labels/00003.png").unlink()
    Image.fromarray(np.full((54, 96), 99, np.uint8)).save(gta5_root / "labels/00004.png")
    Image.fromarray(np.full((50, 96), 7, np.uint8)).save(gta5_root / "labels/00005.png")
    shutil.copy(gta5_root / "labels/00006.png", gta5_root / "labels/00099.png")
    report = check_root(gta5_root, "gta5", CITY)
    fatal = "\n".join(report.fatal)
    assert len(report.fatal) == 4
    assert "images/00001.png: cannot be decoded" in fatal
    assert "labels/00002.png: cannot be decoded" in fatal
    assert "labels/00003.png: missing" in fatal
    assert "labels/00004.png: 99 are not Cityscapes ids" in fatal
    notes = "\n".join(report.warnings)
    assert len(report.warnings) == 2
    assert "labels/00005.png: 96x50, its image 96x54" in notes
    assert "labels/00099.png: a label without an image" in notes
    assert all(problem in report.text() for problem in [*report.fatal, *report.warnings])


def test_cityscapes_train_labels_are_not_needed_but_val_labels_are(cityscapes_root: Path) -> None:
    shutil.rmtree(cityscapes_root / "gtFine/train")
    report = check_root(cityscapes_root, "cityscapes", CITY)
    assert report.fatal == []
    assert len(report.warnings) == 5
    shutil.rmtree(cityscapes_root / "gtFine/val")
    assert len(check_root(cityscapes_root, "cityscapes", CITY).fatal) == 3


def test_one_split_only(cityscapes_root: Path) -> None:
    shutil.rmtree(cityscapes_root / "leftImg8bit/train")
    assert check_root(cityscapes_root, "cityscapes", CITY, ["val"]).fatal == []
    assert "leftImg8bit/train/" in check_root(cityscapes_root, "cityscapes", CITY).fatal[0]


def test_root_that_does_not_exist(tmp_path: Path) -> None:
    report = check_root(tmp_path / "nowhere", "gta5", CITY)
    assert len(report.fatal) == 1
    assert "expected a folder that holds" in report.text()


def test_long_lists_are_cut(gta5_root: Path) -> None:
    for n in range(100, 130):
        shutil.copy(gta5_root / "images/00001.png", gta5_root / f"images/{n:05d}.png")
    report = check_root(gta5_root, "gta5", CITY)
    assert len(report.fatal) == 30
    assert "... and 10 more problems" in report.text()
    assert report.text().count("missing, the label of") == 20
