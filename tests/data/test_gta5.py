import os
import signal
from pathlib import Path

import numpy as np
import pytest
from city import CITY, CITYSCAPES_TO_TRAIN, PALETTE
from PIL import Image
from scipy.io import savemat

from da.config import UserError
from da.data import folders, gta5
from da.labels import IGNORE


@pytest.fixture
def ids() -> np.ndarray:
    """All 35 Cityscapes ids (34 among them) and 255, each on one row."""
    return np.repeat(np.array([*range(35), 255], np.uint8)[:, None], 4, axis=1)


def test_palette_label_gives_the_index_not_the_colour(tmp_path: Path, ids: np.ndarray) -> None:
    image = Image.fromarray(ids).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "l.png")
    train_ids = gta5.read_label(tmp_path / "l.png", CITY)
    assert train_ids.dtype == np.uint8
    assert (train_ids == CITYSCAPES_TO_TRAIN[ids]).all()
    assert train_ids[7, 0] == 0
    assert train_ids[33, 0] == 18
    assert train_ids[34, 0] == train_ids[35, 0] == IGNORE


def test_grey_label_holds_ids(tmp_path: Path, ids: np.ndarray) -> None:
    Image.fromarray(ids).save(tmp_path / "l.png")
    assert (gta5.read_label(tmp_path / "l.png", CITY) == CITYSCAPES_TO_TRAIN[ids]).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_coded_label(tmp_path: Path, mode: str) -> None:
    colors = np.concatenate([PALETTE[:19], [(0, 0, 0), (111, 74, 0), (0, 0, 110)]]).astype(np.uint8)
    Image.fromarray(colors[None]).convert(mode).save(tmp_path / "l.png")
    assert gta5.read_label(tmp_path / "l.png", CITY).tolist() == [[*range(19), IGNORE, IGNORE, IGNORE]]


def test_unknown_ids_and_colours_name_the_file(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 99, 120]], np.uint8)).save(tmp_path / "ids.png")
    with pytest.raises(UserError, match=r"ids\.png: 99, 120 are not Cityscapes ids"):
        gta5.read_label(tmp_path / "ids.png", CITY)
    Image.fromarray(np.array([[[128, 64, 128], [1, 2, 3]]], np.uint8)).save(tmp_path / "colors.png")
    with pytest.raises(UserError, match=r"colors\.png: \(1, 2, 3\) is none of the Cityscapes colours"):
        gta5.read_label(tmp_path / "colors.png", CITY)


def test_truncated_label_names_the_file(gta5_root: Path) -> None:
    path = gta5_root / "labels/00003.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"00003\.png: cannot be decoded"):
        gta5.read_label(path, CITY)


def test_split_mat_counts_from_one(gta5_root: Path) -> None:
    ids = {"trainIds": [[1], [2], [5]], "valIds": [[3]], "testIds": [[6], [4]]}
    savemat(gta5_root / "split.mat", ids)
    names = {split: [s.name for s in gta5.index(gta5_root, split)] for split in gta5.SPLITS}
    assert names["all"] == [f"{n:05d}" for n in range(1, 7)]
    assert names["train"] == ["00001", "00002", "00005"]
    assert names["val"] == ["00003"]
    assert names["test"] == ["00006", "00004"]


@pytest.mark.parametrize("kind", ["doubles", "halves", "none", "text", "other", "zero"])
def test_what_a_split_mat_may_hold(gta5_root: Path, kind: str) -> None:
    values = {"doubles": [1.0, 3.0], "halves": [1.5], "none": [], "text": "00001", "other": [1], "zero": [0]}
    savemat(gta5_root / "split.mat", {"other" if kind == "other" else "trainIds": values[kind]})
    if kind == "doubles":
        assert [s.name for s in gta5.index(gta5_root, "train")] == ["00001", "00003"]
        return
    with pytest.raises(UserError, match=r"split\.mat: no trainIds could be read \(.*set split: all"):
        gta5.index(gta5_root, "train")


def _crash(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_split_mat_that_crashes_its_reader_is_one_line(gta5_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savemat(gta5_root / "split.mat", {"trainIds": [1]})
    monkeypatch.setattr(gta5, "_split_ids", _crash)
    with pytest.raises(UserError, match=r"split\.mat: no trainIds could be read"):
        gta5.index(gta5_root, "train")


@pytest.mark.parametrize("data", [b"", b"1\n2\n3\n", bytes(200)])
def test_a_split_mat_that_is_none(gta5_root: Path, data: bytes) -> None:
    (gta5_root / "split.mat").write_bytes(data)
    with pytest.raises(UserError, match=r"split\.mat: no valIds could be read") as caught:
        gta5.index(gta5_root, "val")
    assert "\n" not in str(caught.value)


def test_missing_split_mat_is_named(gta5_root: Path) -> None:
    with pytest.raises(UserError, match=r"split\.mat: no trainIds"):
        gta5.index(gta5_root, "train")


def test_list_file(gta5_root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("00004.png\n\n00002\r\n")
    chosen = gta5.index(gta5_root, str(tmp_path / "mine.txt"))
    assert [s.name for s in chosen] == ["00004", "00002"]
    assert chosen[0].label == gta5_root / "labels/00004.png"
    (gta5_root / "bad.txt").write_text("00002\n00042\n")
    with pytest.raises(UserError, match=r"1 of 2 images named by bad\.txt are missing, first 00042"):
        gta5.index(gta5_root, "bad.txt")
    with pytest.raises(UserError, match="give all, train, val, test, or an existing file"):
        gta5.index(gta5_root, "trian")


def test_missing_root_and_labels_show_the_expected_tree(gta5_root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(UserError, match=rf"{root}: no images in images/; expected .* labels/00001\.png"):
            gta5.index(root, "all")
    (gta5_root / "labels/00002.png").unlink()
    (gta5_root / "labels/00005.png").unlink()
    with pytest.raises(UserError, match=r"2 of 6 images have no label file, first .*labels/00002\.png"):
        gta5.index(gta5_root, "all")
    unlabelled = gta5.index(gta5_root, "all", with_labels=False)
    assert len(unlabelled) == 6
    assert all(s.label is None for s in unlabelled)


def test_known_bad_pairs_leave_only_the_full_archive(gta5_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("images", "labels"):
        (gta5_root / folder / "00006.png").rename(gta5_root / folder / "02156.png")
    assert "02156" in [s.name for s in gta5.index(gta5_root, "all")]
    monkeypatch.setattr(gta5, "ARCHIVE_SIZE", 6)
    assert [s.name for s in gta5.index(gta5_root, "all")] == [f"{n:05d}" for n in range(1, 6)]
    assert len(gta5.BAD_PAIRS) == 24_966 - 24_941


def test_png_variants_decode_alike_and_damage_is_found(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    files = {mode: tmp_path / f"{mode}.png" for mode in ("RGB", "RGBA", "L", "P", "transparent")}
    for mode in ("RGB", "RGBA", "L", "P"):
        Image.fromarray(rgb).convert(mode).save(files[mode])
    Image.fromarray(rgb).save(files["transparent"], transparency=(1, 2, 3))
    for path in files.values():
        with Image.open(path) as image:
            assert (folders.read_image(path) == np.array(image.convert("RGB"))).all(), path
    whole = files["RGB"].read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:-12], whole[:-4], whole[:middle], whole[:30], whole[:middle] + b"??" + whole[middle + 2 :]):
        (tmp_path / "damaged.png").write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.png: cannot be decoded"):
            folders.read_image(tmp_path / "damaged.png")
