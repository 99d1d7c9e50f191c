"""Files as people have them: each is read right, or named in one line, by training and `data check` alike."""

import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from city import CITY
from conftest import save_png
from PIL import Image

from da.config import UserError
from da.data import cityscapes, folders, gta5
from da.data.check import check_root
from da.data.frames import Frames
from da.data.loaders import DataConfig, train_batches
from da.labels import IGNORE

H, W = 48, 64


def ids(*values: int) -> np.ndarray:
    """(H, W) with bands of the given stored values."""
    rows = np.repeat(np.array(values, np.uint8), -(-H // len(values)))[:H]
    return rows[:, None].repeat(W, 1)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three pairs in GTA5's layout."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 3):
        save_png(tmp_path / f"gta5/images/{n:05d}.png", rng.integers(0, 256, (H, W, 3), np.uint8))
        save_png(tmp_path / f"gta5/labels/{n:05d}.png", ids(0, 7, 8, 11, 21, 23, 26))
    return tmp_path / "gta5"


def batches(root: Path, **source: object):
    stream = {"dataset": "gta5", "root": str(root), "split": "all", "crop": [W, H], **source}
    val = {"dataset": "gta5", "root": str(root), "split": "all"}
    config = DataConfig.model_validate_json(
        __import__("json").dumps({"source": stream, "val": val, "batch_size": 1, "workers": 0})
    )
    return train_batches(config, 0, 0, use_target=False)


def frame(root: Path, name: str = "00001"):
    sample = next(s for s in gta5.index(root, "all") if s.name == name)
    return Frames("gta5", root, None, CITY).decode(sample)


def test_16_bit_grey_pictures_are_brought_to_8_bits(root):
    grey = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 21
    Image.fromarray(grey).save(root / "images/00001.png")
    image = frame(root).image
    assert (image[0].numpy() == np.rint(grey * (255 / 65535))).all()
    assert check_root(root, "gta5", CITY).fatal == []


def test_train_ids_in_place_of_ids_are_noted(root):
    for path in (root / "labels").iterdir():
        save_png(path, ids(0, 1, 2, 8, 10, 13, 255))
    report = check_root(root, "gta5", CITY)
    assert "no value above 18 occurs in any label: they look like trainids" in report.warnings[0]
    for path in (root / "labels").iterdir():
        save_png(path, ids(7, 8, 26))
    assert check_root(root, "gta5", CITY).warnings == []


def test_turned_pictures_with_upright_labels_are_an_error(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in list((root / "images").iterdir()):
        Image.fromarray(np.rot90(np.asarray(Image.open(path))).copy()).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    report = check_root(root, "gta5", CITY)
    assert all("one of them is turned" in problem for problem in report.fatal)
    assert len(report.fatal) == 3
    assert len([note for note in report.warnings if "EXIF" in note]) == 3
    with pytest.raises(UserError, match="one of them is turned"):
        next(batches(root))


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf00003\r\n00002\r\n", b"00003.png\n\n  00002.PNG\n", b"x\\00003.png\r\n00002"]
)
def test_lists_with_marks_and_windows_line_ends(root, text):
    (root / "list.txt").write_bytes(text)
    assert [s.name for s in gta5.index(root, "list.txt")] == ["00003", "00002"]


def test_a_list_in_another_encoding_is_one_line(root):
    (root / "list.txt").write_bytes("00001\n00002\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"list\.txt: not a text in UTF-8; save it as UTF-8"):
        gta5.index(root, "list.txt")


def test_a_grey_label_with_transparency_is_named_and_the_others_are_looked_at(root):
    Image.fromarray(np.dstack([ids(7), np.full((H, W), 255, np.uint8)])).save(root / "labels/00002.png")
    report = check_root(root, "gta5", CITY)
    assert len(report.fatal) == 1
    assert "00002.png: 2 channel(s) of values" in report.fatal[0]
    assert report.pairs == 3
    with pytest.raises(UserError, match="00002.png"):
        frame(root, "00002")


def test_hidden_files_are_left_alone(root):
    for part in ("images", "labels"):
        (root / part / "._00001.png").write_bytes(b"\x00\x05\x16\x07")
    assert len(gta5.index(root, "all")) == 3
    assert check_root(root, "gta5", CITY).warnings == []


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_labels_of_few_bits(root, depth):
    values = ids(0, 1) if depth == 1 else ids(0, 3, 1) if depth == 2 else ids(0, 7, 8, 11)
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    packed = (values.reshape(H, -1, 8 // depth) << shifts).sum(2).astype(np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, 0, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    path = root / "labels/00001.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert (folders.read_stored(path) == values).all()


def test_dotted_names_and_capital_suffixes(root):
    for part in ("images", "labels"):
        (root / part / "00001.png").rename(root / part / "1403636579.763555584.PNG")
    (root / "list.txt").write_text("1403636579.763555584\n00002\n")
    assert [s.name for s in gta5.index(root, "list.txt")] == ["1403636579.763555584", "00002"]


def test_names_that_are_not_utf8(tmp_path, monkeypatch):
    town = os.fsdecode(b"z\xfcrich")
    stem = f"{town}_000000_000019"
    rng = np.random.default_rng(0)
    try:
        save_png(tmp_path / f"leftImg8bit/val/{town}/{stem}_leftImg8bit.png", rng.integers(0, 256, (H, W, 3), np.uint8))
    except OSError:
        pytest.skip("this file system takes no such name")
    save_png(tmp_path / f"gtFine/val/{town}/{stem}_gtFine_labelIds.png", ids(7, 26))
    (sample,) = cityscapes.index(tmp_path, "val")
    assert cityscapes.read_label(sample.label, CITY).max() == 13
    from da.data.transforms import FolderConfig
    from da.run import _identity

    found = _identity(FolderConfig(dataset="cityscapes", root=str(tmp_path), split="val"), with_labels=True)
    assert found["count"] == 1


def test_a_picture_larger_than_pillow_likes_is_read_and_a_false_claim_is_named(root):
    wide = Image.new("L", (20000, 9500), 7)  # 190 million pixels: above Pillow's own limit
    wide.save(root / "labels/00001.png", compress_level=1)
    assert folders.read_stored(root / "labels/00001.png").shape == (9500, 20000)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 30000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    (root / "images/00002.png").write_bytes(bomb)
    (root / "labels/00003.png").write_bytes(bomb)
    (root / "labels/00001.png").unlink()
    save_png(root / "labels/00001.png", ids(7, 8))
    fatal = check_root(root, "gta5", CITY).fatal
    assert any("00002.png: claims more than 1,073,741,824 pixels" in problem for problem in fatal)
    assert any("00003.png: claims more than" in problem for problem in fatal)


def test_pipes_and_sockets_are_named_and_not_waited_for(root):
    os.mkfifo(root / "images/00004.png")
    with pytest.raises(UserError, match=r"00004\.png: a pipe, socket or device"):
        gta5.index(root, "all")
    assert "a pipe, socket or device" in check_root(root, "gta5", CITY).fatal[0]
    (root / "images/00004.png").unlink()
    here = os.getcwd()
    os.chdir(root / "images")  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("00005.png")
    finally:
        os.chdir(here)
    with pytest.raises(UserError, match=r"00005\.png: a pipe, socket or device"):
        gta5.index(root, "all")


def test_labels_that_are_all_void_are_refused_by_check_and_training(root):
    for path in (root / "labels").iterdir():
        save_png(path, ids(0, 3))
    assert any("no pixel of any label belongs to a class" in p for p in check_root(root, "gta5", CITY).fatal)
    with pytest.raises(UserError, match=r"data\.source: no pixel of gta5 at .* has a label of cityscapes19"):
        next(batches(root))
    save_png(root / "labels/00002.png", ids(7, IGNORE))
    next(batches(root))


def test_an_infinite_scale_is_refused(root):
    with pytest.raises(ValueError, match="finite"):
        batches(root, scale=[1.0, float("inf")])


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("DA_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(UserError, match="set DA_CACHE"):
        folders.cache_root()
