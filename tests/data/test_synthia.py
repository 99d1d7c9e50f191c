from pathlib import Path

import cv2
import numpy as np
import pytest
from city import CITY, PALETTE
from PIL import Image

from da.config import UserError
from da.data import folders, synthia
from da.labels import IGNORE

ROAD, SKY, LANE_MARKING, WALL = 3, 1, 22, 21


def test_sixteen_bit_label_takes_the_class_channel(synthia_root: Path) -> None:
    for sample in synthia.index(synthia_root, "all"):
        assert sample.label is not None
        shown = PALETTE[synthia.read_label(sample.label, CITY)]
        assert (shown == folders.read_image(sample.image)).all()


def test_lane_marking_is_ignored_and_large_instances_do_no_harm(tmp_path: Path) -> None:
    red = np.array([[ROAD, SKY, LANE_MARKING, WALL, 0]], np.uint16)
    cv2.imwrite(str(tmp_path / "l.png"), np.stack([red * 0, red * 0 + 65535, red], axis=-1))
    assert synthia.read_label(tmp_path / "l.png", CITY).tolist() == [[0, 10, IGNORE, 3, IGNORE]]


def test_eight_bit_copy_still_holds_synthia_ids(tmp_path: Path) -> None:
    ids = np.array([[ROAD, SKY, LANE_MARKING, WALL, 0, 255]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "l.png")
    assert synthia.read_label(tmp_path / "l.png", CITY).tolist() == [[0, 10, IGNORE, 3, IGNORE, IGNORE]]


def test_wrong_files_are_named(synthia_root: Path, tmp_path: Path) -> None:
    Image.fromarray(np.array([[26]], np.uint8)).save(tmp_path / "cityscapes.png")
    with pytest.raises(UserError, match=r"cityscapes\.png: 26 are not SYNTHIA ids"):
        synthia.read_label(tmp_path / "cityscapes.png", CITY)
    with pytest.raises(UserError, match="3-channel picture"):
        synthia.read_label(synthia_root / "RGB/0000000.png", CITY)
    path = synthia_root / "GT/LABELS/0000000.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"0000000\.png: cannot be decoded"):
        synthia.read_label(path, CITY)


def test_list_file_and_unknown_split(synthia_root: Path) -> None:
    (synthia_root / "list.txt").write_text("0000003.png\n0000001.png\n")
    assert [s.name for s in synthia.index(synthia_root, "list.txt")] == ["0000003", "0000001"]
    with pytest.raises(UserError, match="give all, or an existing file"):
        synthia.index(synthia_root, "train")
