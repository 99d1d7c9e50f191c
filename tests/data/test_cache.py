import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from city import CITY, PALETTE, TRAIN_TO_CITYSCAPES
from conftest import draw_label, save_palette_png, save_png
from data.test_loaders import assert_equal, data_config, take

from da.cli import main
from da.config import UserError
from da.data import cache, folders, frames, gta5
from da.data.frames import Cache, Frames
from da.labels import LabelSpace

SIZE = (48, 32)


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(root: Path, size: tuple[int, int] | None = SIZE, with_labels: bool = True, workers: int = 0) -> cache.Plan:
    plan = cache.plan("gta5", root, size, "all", with_labels, classes=CITY)
    cache.build(plan, workers)
    return plan


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scale"), [(SIZE, (1.0, 1.0)), (SIZE, (0.75, 1.5)), (None, (0.75, 1.5))])
def test_batches_are_the_same_with_and_without_the_cache(gta5_root, cityscapes_root, monkeypatch, size, scale):
    from da.data.loaders import train_batches

    config = data_config(gta5_root, cityscapes_root)
    changes = {"size": size, "scale": scale, "crop": (40, 24)}
    streams = {n: (getattr(config, n)[0].model_copy(update=changes),) for n in ("source", "target")}
    config = config.model_copy(update=streams)
    decoded = take(train_batches(config, 0, 0, use_target=True), 4)
    own_or_fixed = size if scale == (1.0, 1.0) else None
    build(gta5_root, own_or_fixed, workers=2)
    cache.build(cache.plan("cityscapes", cityscapes_root, own_or_fixed, "train", with_labels=False, classes=CITY), 0)

    def forbidden(*_: object) -> None:
        raise AssertionError("decoded although cached")

    monkeypatch.setattr(Frames, "decode", forbidden)
    assert_equal(decoded, take(train_batches(config, 0, 0, use_target=True), 4))


def test_images_only_serves_a_target_and_leaves_the_labels_unread(gta5_root, cityscapes_root):
    shutil.rmtree(cityscapes_root / "gtFine")
    plan = cache.plan("cityscapes", cityscapes_root, SIZE, "train", with_labels=False, classes=CITY)
    cache.build(plan, 0)
    held = Cache(plan.folder, cityscapes_root).entries
    assert len(held) == 5
    assert all(name.startswith("leftImg8bit/train/") for name in held)


def test_images_only_is_no_cache_for_a_stream_with_labels(gta5_root):
    build(gta5_root, with_labels=False)
    sample = gta5.index(gta5_root, "all")[0]
    found, expected = (
        Frames("gta5", gta5_root, SIZE, CITY).read(sample),
        Frames("gta5", gta5_root, SIZE, CITY).decode(sample),
    )
    assert torch.equal(found.label, expected.label)
    build(gta5_root)
    assert len(Cache.find("gta5", gta5_root, SIZE, CITY).entries) == 12


def test_writing_into_a_frame_leaves_the_cache_alone(gta5_root):
    build(gta5_root)
    reader, path = Cache.find("gta5", gta5_root, SIZE, CITY), gta5_root / "images/00001.png"
    before = reader.read(path).clone()
    reader.read(path).fill_(7)
    assert torch.equal(Cache.find("gta5", gta5_root, SIZE, CITY).read(path), before)
    assert len(pickle.dumps(reader)) < 5000  # a loader process is sent the index, not the pixels


def test_a_second_build_does_nothing_and_new_files_are_added(gta5_root):
    assert len(build(gta5_root).samples) == 6
    again = cache.plan("gta5", gta5_root, SIZE, "all", True, classes=CITY)
    assert (again.known, again.samples, again.bytes) == (6, [], 0)
    label = draw_label(99, 96, 54)
    save_png(gta5_root / "images/00007.png", PALETTE[label])
    save_palette_png(gta5_root / "labels/00007.png", TRAIN_TO_CITYSCAPES[label])
    assert [s.name for s in build(gta5_root).samples] == ["00007"]


@pytest.mark.parametrize("file", ["images/00002.png", "labels/00002.png"])
def test_a_stale_cache_is_refused_by_name_until_built_again(gta5_root, file):
    plan = build(gta5_root)
    label = draw_label(50, 96, 54)
    save_png(gta5_root / "images/00002.png", PALETTE[label])
    save_palette_png(gta5_root / "labels/00002.png", TRAIN_TO_CITYSCAPES[label])
    os.utime(gta5_root / file, ns=(1, 1))
    sample = gta5.index(gta5_root, "all")[1]
    with pytest.raises(UserError, match=rf"^{plan.folder}: stale, .*00002\.png has changed"):
        Frames("gta5", gta5_root, SIZE, CITY).read(sample)
    assert [s.name for s in build(gta5_root).samples] == ["00002"]
    fresh = Frames("gta5", gta5_root, SIZE, CITY)
    assert torch.equal(fresh.read(sample).image, fresh.decode(sample).image)


def test_damage_and_other_versions_are_refused_by_name(gta5_root):
    folder = build(gta5_root).folder
    sample = gta5.index(gta5_root, "all")[0]
    pixels = (folder / "pixels.bin").read_bytes()
    (folder / "pixels.bin").write_bytes(bytes([pixels[0] ^ 1]) + pixels[1:])
    with pytest.raises(UserError, match=rf"^{folder}: damaged \(the pixels of images/00001\.png\)"):
        Frames("gta5", gta5_root, SIZE, CITY).read(sample)
    (folder / "pixels.bin").write_bytes(pixels[:-1])
    with pytest.raises(UserError, match=rf"^{folder}: damaged \(pixels\.bin is cut off\)"):
        Frames("gta5", gta5_root, SIZE, CITY)
    (folder / "pixels.bin").write_bytes(pixels)
    index = (folder / "index.jsonl").read_text()
    (folder / "index.jsonl").write_text("[" + index)
    with pytest.raises(UserError, match=rf"^{folder}: damaged"):
        Frames("gta5", gta5_root, SIZE, CITY)
    (folder / "index.jsonl").write_text(index)
    facts = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps(facts | {"version": 0}))
    with pytest.raises(UserError, match=rf"^{folder}: made by version 0 of the cache, this is {frames.VERSION}"):
        Frames("gta5", gta5_root, SIZE, CITY)


def test_a_cut_off_build_goes_on(gta5_root):
    folder = build(gta5_root).folder
    whole = {f: (folder / f).read_bytes() for f in ("index.jsonl", "pixels.bin")}
    lines = whole["index.jsonl"].splitlines(keepends=True)
    (folder / "index.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:20])  # three pairs, one label cut off
    (folder / "pixels.bin").write_bytes(whole["pixels.bin"][: 4 * 48 * 32 * 4 - 5])
    assert [s.name for s in build(gta5_root).samples] == ["00004", "00005", "00006"]
    reader = Frames("gta5", gta5_root, SIZE, CITY)
    for sample in gta5.index(gta5_root, "all"):
        found, expected = reader.read(sample), reader.decode(sample)
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.label, expected.label)


def test_a_build_killed_before_its_first_file_is_no_cache(gta5_root):
    folder = frames.cache_folder("gta5", gta5_root, SIZE, CITY)
    folder.mkdir(parents=True)
    (folder / "cache.writing").write_text('{"vers')
    sample = gta5.index(gta5_root, "all")[0]
    assert Frames("gta5", gta5_root, SIZE, CITY).read(sample).label is not None
    assert len(build(gta5_root).samples) == 6


def test_a_file_replaced_while_it_is_decoded_is_stale(gta5_root, monkeypatch):
    sample = gta5.index(gta5_root, "all")[1]
    decode = Frames.decode

    def slow(self, one):
        frame = decode(self, one)
        if one == sample:
            os.utime(sample.image, ns=(1, 1))
        return frame

    monkeypatch.setattr(Frames, "decode", slow)
    build(gta5_root)
    with pytest.raises(UserError, match="stale"):
        Frames("gta5", gta5_root, SIZE, CITY).read(sample)


@pytest.mark.slow
def test_a_killed_build_goes_on(tmp_path, cache_home):
    root = tmp_path / "gta5"
    for n in range(1, 61):
        label = draw_label(n, 640, 480)
        save_png(root / "images" / f"{n:05d}.png", PALETTE[label])
        save_palette_png(root / "labels" / f"{n:05d}.png", TRAIN_TO_CITYSCAPES[label])
    command = [sys.executable, "-m", "da", "data", "cache", str(root), "--as", "gta5", "--workers", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    index = frames.cache_folder("gta5", root, None, CITY) / "index.jsonl"
    while process.poll() is None and (not index.exists() or index.stat().st_size < 500):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rest = cache.plan("gta5", root, None, "all", True, classes=CITY)
    assert 0 < rest.known < 60
    cache.build(rest, 0)
    reader = Frames("gta5", root, None, CITY)
    for sample in gta5.index(root, "all"):
        assert torch.equal(reader.cache.read(sample.image), reader.decode(sample).image.permute(1, 2, 0))


def test_two_builds_at_once_and_a_full_disk_are_refused(gta5_root, monkeypatch):
    plan = cache.plan("gta5", gta5_root, SIZE, "all", True, classes=CITY)
    assert plan.bytes == 6 * 48 * 32 * 4
    plan.folder.mkdir(parents=True)
    with cache._locked(plan.folder), pytest.raises(UserError, match=rf"^{plan.folder}: another process"):
        cache.build(plan, 0)
    shutil.rmtree(plan.folder)
    usage = shutil.disk_usage(gta5_root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="set DA_CACHE"):
        cache.plan("gta5", gta5_root, SIZE, "all", True, classes=CITY)


def test_own_size_is_announced_from_the_headers(gta5_root):
    assert cache.plan("gta5", gta5_root, None, "all", False, classes=CITY).bytes == 6 * 96 * 54 * 3


def test_command(gta5_root, cache_home, capsys):
    command = ["data", "cache", str(gta5_root), "--as", "gta5", "--size", "48", "32", "--workers", "0"]
    assert main(command) == 0
    assert "6 to decode; needs 0.00 GiB" in capsys.readouterr().out
    assert main(command) == 0
    assert "6 samples cached, 0 to decode" in capsys.readouterr().out
    (gta5_root / "images/00003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(command) == 2
    assert "00003.png: cannot be decoded" in capsys.readouterr().err
    assert main([*command[:5], "--size", "0", "5"]) == 2
    assert main(["data", "cache", str(cache_home), "--as", "gta5"]) == 2


def test_labels_of_other_classes_are_cached_apart(gta5_root: Path) -> None:
    """One cached label would else be read as another class."""
    own = LabelSpace("two", {"classes": {"a": {"color": [1, 1, 1], "cityscapes": 7}, "b": {"color": [2, 2, 2]}}}, "two")
    places = {frames.cache_folder("gta5", gta5_root, SIZE, space) for space in (CITY, own)}
    assert len(places) == 2
    build(gta5_root)
    assert Cache.find("gta5", gta5_root, SIZE, own) is None


def test_a_changed_description_has_a_cache_of_its_own(tmp_path: Path) -> None:
    places = set()
    for ids in ("trainids", "cityscapes"):
        (tmp_path / "own.yaml").write_text(f"images: '{{name}}.jpg'\nlabels: '{{name}}.png'\nids: {ids}\n")
        folders.find.cache_clear()
        places.add(frames.cache_folder(str(tmp_path / "own.yaml"), tmp_path, None, CITY))
    assert len(places) == 2
