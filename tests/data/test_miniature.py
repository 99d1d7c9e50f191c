"""The embedded pair: same files for the same seed, the real on-disk layouts, every class, a cache that is whole."""

import os
from pathlib import Path

import numpy as np
import pytest
from city import CITY, CITYSCAPES_TO_TRAIN, NAMES, NUM_CLASSES, TRAIN_TO_CITYSCAPES
from PIL import Image

from da.config import UserError
from da.data import miniature
from da.data.miniature import Sizes, writing
from da.labels import IGNORE

TINY = Sizes(source=2, target_train=4, target_val=2)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    miniature.render(folder, sizes=TINY)
    return folder


def test_files_lie_where_the_real_data_sets_keep_them(root: Path) -> None:
    train = [
        f"{city}/{city}_{n:06d}_000019" for city, n in (("aachen", 0), ("aachen", 1), ("bremen", 0), ("zurich", 0))
    ]
    val = ["frankfurt/frankfurt_000000_000019", "lindau/lindau_000000_000019"]
    expected = {f"gta5/{kind}/{n:05d}.png" for kind in ("images", "labels") for n in (1, 2)}
    for split, stems in (("train", train), ("val", val)):
        expected |= {f"cityscapes/leftImg8bit/{split}/{stem}_leftImg8bit.png" for stem in stems}
        expected |= {f"cityscapes/gtFine/{split}/{stem}_gtFine_labelIds.png" for stem in stems}
    assert set(files(root)) == expected


def test_labels_have_the_modes_of_the_real_files_and_the_size_of_their_images(root: Path) -> None:
    pairs = [(p, root / "gta5/labels" / p.name, "P") for p in (root / "gta5/images").iterdir()]
    for image in (root / "cityscapes/leftImg8bit").rglob("*.png"):
        label = str(image).replace("leftImg8bit/", "gtFine/").replace("leftImg8bit.png", "gtFine_labelIds.png")
        pairs.append((image, Path(label), "L"))
    for image_path, label_path, mode in pairs:
        image, label = Image.open(image_path), Image.open(label_path)
        assert (image.mode, label.mode, label.size) == ("RGB", mode, image.size)
        assert image.size == (320, 160)


def test_a_gta5_label_shows_the_cityscapes_colours_when_opened_as_a_picture(root: Path) -> None:
    label = Image.open(root / "gta5/labels/00001.png")
    ids, colors = np.asarray(label), np.asarray(label.convert("RGB"))
    for number, color in zip(TRAIN_TO_CITYSCAPES, CITY.colors):
        assert (colors[ids == number] == color).all()
    assert set(np.unique(ids)) <= set(TRAIN_TO_CITYSCAPES[:NUM_CLASSES].tolist())


@pytest.mark.slow
def test_the_same_seed_renders_the_same_bytes_and_another_does_not(root: Path, tmp_path: Path) -> None:
    one = Sizes(source=1, target_train=1, target_val=1)
    miniature.render(tmp_path / "again", sizes=one)
    miniature.render(tmp_path / "other", seed=1, sizes=one)
    first, again, other = files(root), files(tmp_path / "again"), files(tmp_path / "other")
    assert len(again) == 6
    assert all(first[name] == again[name] != other[name] for name in again)


def test_frames_of_another_index_split_or_domain_are_other_pictures() -> None:
    keys = [("source", "train", 0), ("source", "train", 1), ("target", "train", 0), ("target", "val", 0)]
    assert len({miniature.frame(0, *key)[0].tobytes() for key in keys}) == len(keys)


@pytest.mark.parametrize("domain", ["source", "target"])
def test_every_class_appears_early_and_large_enough_to_learn(domain: miniature.Domain) -> None:
    counts = np.zeros(256, np.int64)
    for index in range(16):
        _, label = miniature.frame(0, domain, "train", index)
        counts += np.bincount(CITYSCAPES_TO_TRAIN[label].ravel(), minlength=256)
    rare = [NAMES[i] for i in range(len(NAMES)) if counts[i] < 300]
    assert not rare
    assert (counts[IGNORE] > 0) == (domain == "target")


def test_the_target_shows_bonnet_and_rim_as_void_and_the_source_does_not() -> None:
    image, label = miniature.frame(0, "target", "train", 0)
    assert set(np.unique(label[[0, -1]])) == {miniature.RECTIFICATION_BORDER}
    assert label[-5, 160] == miniature.EGO_VEHICLE
    assert image[[0, -1]].max() < 40
    assert set(np.unique(miniature.frame(0, "source", "train", 0)[1])) <= set(
        TRAIN_TO_CITYSCAPES[:NUM_CLASSES].tolist()
    )


def test_the_domains_differ_in_saturation_and_contrast() -> None:
    def saturation_and_contrast(domain: miniature.Domain) -> tuple[float, float]:
        images = np.stack([miniature.frame(0, domain, "train", i)[0][10:120, 10:-10] for i in range(8)]).astype(float)
        return float(np.ptp(images, axis=-1).mean()), float(images.std())

    source, target = saturation_and_contrast("source"), saturation_and_contrast("target")
    assert source[0] > 1.5 * target[0]
    assert source[1] > 1.1 * target[1]


def test_ensure_renders_once_and_ignores_a_half_made_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DA_CACHE", str(tmp_path))

    def killed(root: Path, seed: int, sizes: Sizes) -> None:
        (root / "gta5").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "render", killed)
        with pytest.raises(KeyboardInterrupt):
            miniature.ensure(sizes=TINY)
    (tmp_path / f"miniature-v{miniature.VERSION}-seed0-2-4-2.partial-left" / "gta5").mkdir(parents=True)

    folder = miniature.ensure(sizes=TINY)
    assert len(files(folder)) == 2 * sum(TINY)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "render", killed)
        assert miniature.ensure(sizes=TINY) == folder


def test_two_renderings_at_once_end_in_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DA_CACHE", str(tmp_path))

    def overtaken(root: Path, seed: int, sizes: Sizes) -> None:
        (root / "mine").touch()
        winner = tmp_path / root.name.partition(".partial")[0]
        winner.mkdir()
        (winner / "theirs").touch()

    monkeypatch.setattr(writing, "render", overtaken)
    folder = miniature.ensure(sizes=TINY)
    assert os.listdir(folder) == ["theirs"]
    assert os.listdir(tmp_path) == [folder.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="DA_CACHE"):
        miniature.ensure(sizes=TINY)
