"""Descriptions: the shipped ones on tiny trees of their real layout, and what a file of one's own may say."""

from pathlib import Path

import numpy as np
import pytest
from conftest import save_png
from PIL import Image

from da.config import UserError
from da.data import described, folders
from da.labels import IGNORE, LabelSpace, label_space

IMAGE = np.full((4, 6, 3), 90, np.uint8)


def put(root: Path, image: str, label: str | None = None, stored: object = 0) -> None:
    """An image, and a label of 4x6 whose rows are the stored values or colours."""
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGE).save(root / image)
    if label:
        values = np.asarray(stored, np.uint8)
        save_png(root / label, np.broadcast_to(values, (4, 6, 3) if values.shape[-1:] == (3,) else (4, 6)).copy())


def lines(root: Path, name: str, *names: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{n}\n" for n in names))


def voc(root: Path) -> None:
    for n in ("2007_000032", "2007_000039", "2008_000002"):
        put(root, f"JPEGImages/{n}.jpg", f"SegmentationClass/{n}.png", [0, 1, 15, 20, 255, 0])
    put(root, "JPEGImages/2008_000008.jpg", "SegmentationClassAug/2008_000008.png", [0, 1, 15, 20, 255, 0])
    put(root, "JPEGImages/2007_000032.jpg", "SegmentationClassAug/2007_000032.png", 3)
    lines(root, "ImageSets/Segmentation/train.txt", "2007_000032", "2007_000039")
    lines(root, "ImageSets/Segmentation/train_aug.txt", "2007_000032", "2008_000008")
    lines(root, "ImageSets/Segmentation/val.txt", "2008_000002")
    lines(root, "ImageSets/Segmentation/trainval.txt", "2007_000032", "2007_000039", "2008_000002")


def ade(root: Path) -> None:
    for n, (part, stem) in enumerate([("training", "train"), ("training", "train"), ("validation", "val")], 1):
        name = f"{part}/ADE_{stem}_{n:08d}"
        put(root, f"images/{name}.jpg", f"annotations/{name}.png", [0, 1, 2, 150, 7, 0])


def camvid(root: Path) -> None:
    for split in ("train", "val", "test"):
        put(root, f"{split}/0001TP_006690.png", f"{split}annot/0001TP_006690.png", [0, 1, 10, 11, 3, 3])


def camvid_raw(root: Path) -> None:
    colors = [[128, 128, 128], [128, 0, 0], [192, 128, 192], [0, 0, 0], [128, 0, 192], [128, 64, 128]]
    for n in ("0001TP_006690", "0006R0_f00930"):
        put(root, f"701_StillsRaw_full/{n}.png", f"LabeledApproved_full/{n}_L.png", [colors] * 4)
    lines(root, "train.txt", "0006R0_f00930")
    lines(root, "val.txt", "0001TP_006690")


def bdd(root: Path) -> None:
    for split, n in (("train", "00a2e3ca-5c856cde"), ("val", "7d06fefd-f7be05a6")):
        put(root, f"images/10k/{split}/{n}.jpg", f"labels/sem_seg/masks/{split}/{n}.png", [0, 18, 255, 13, 10, 2])


def acdc(root: Path) -> None:
    for n, (weather, split) in enumerate([("fog", "train"), ("night", "train"), ("rain", "val"), ("snow", "val")]):
        at = f"{weather}/{split}/GOPR047{n}/GOPR047{n}_frame_000041"
        put(root, f"rgb_anon/{at}_rgb_anon.png", f"gt/{at}_gt_labelIds.png", [7, 33, 0, 26, 23, 11])


def mapillary(root: Path) -> None:
    for part in ("training", "validation"):
        put(root, f"{part}/images/aB_-x.jpg", f"{part}/v1.2/labels/aB_-x.png", [13, 52, 65, 55, 27, 17])


def kitti(root: Path) -> None:
    put(root, "training/image_2/000000_10.png", "training/semantic/000000_10.png", [7, 33, 0, 26, 23, 11])


def synscapes(root: Path) -> None:
    for n in (1, 2, 25000):
        put(root, f"img/rgb/{n}.png", f"img/class/{n}.png", [7, 33, 0, 26, 23, 11])


def urbansyn(root: Path) -> None:
    for n in (1, 7539):
        put(root, f"rgb/rgb_{n:04d}.png", f"ss/ss_{n:04d}.png", [0, 18, 19, 13, 10, 2])


STREET = [0, 18, IGNORE, 13, 10, 2]  # road, bicycle, void, car, sky, building
LAYOUTS = {
    "voc2012": (voc, "voc21", {"train": 2, "train_aug": 2, "val": 1, "trainval": 3}, [0, 1, 15, 20, IGNORE, 0]),
    "ade20k": (ade, "ade150", {"train": 2, "val": 1}, [IGNORE, 0, 1, 149, 6, IGNORE]),
    "camvid": (camvid, "camvid11", {"train": 1, "val": 1, "test": 1}, [0, 1, 10, IGNORE, 3, 3]),
    "camvid_raw": (camvid_raw, "camvid11", {"all": 2, "train": 1, "val": 1}, [0, 1, 8, IGNORE, 3, 3]),
    "bdd100k": (bdd, "cityscapes19", {"train": 1, "val": 1}, STREET),
    "acdc": (acdc, "cityscapes19", {"train": 2, "val": 2, "fog_train": 1, "night_train": 1, "snow_val": 1}, STREET),
    "mapillary": (mapillary, "cityscapes19", {"train": 1, "val": 1}, STREET),
    "kitti": (kitti, "cityscapes19", {"train": 1}, STREET),
    "synscapes": (synscapes, "cityscapes19", {"train": 3}, STREET),
    "urbansyn": (urbansyn, "cityscapes19", {"train": 2}, STREET),
}


def test_every_shipped_description_has_a_tree_here_and_names_its_source():
    assert {*LAYOUTS, described.PLAIN} == set(described.shipped())
    for name in LAYOUTS:
        head = (described.SHIPPED / f"{name}.yaml").read_text().split("\nroot:")[0]
        assert "Layout" in head or "Names and folders read in" in head, name


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read(name, tmp_path):
    write, classes, splits, first_row = LAYOUTS[name]
    write(tmp_path)
    found = folders.find(name)
    space = label_space(classes)
    for split, count in splits.items():
        samples = found.index(tmp_path, split)
        assert len(samples) == count, split
        assert len({s.name for s in samples}) == count
        assert all(s.label is None for s in found.index(tmp_path, split, with_labels=False))
    split = "val" if name == "voc2012" else next(iter(splits))
    label = found.read_label(found.index(tmp_path, split)[0].label, space)
    assert label[0].tolist() == first_row
    assert (label == label[0]).all()


def test_augmented_voc_labels_come_from_their_own_folder(tmp_path):
    voc(tmp_path)
    found, space = folders.find("voc2012"), label_space("voc21")
    labels = [found.read_label(s.label, space)[0, 0] for s in found.index(tmp_path, "train_aug")]
    assert labels == [3, 0]
    assert found.read_label(found.index(tmp_path, "train")[0].label, space)[0, 0] == 0


def test_a_missing_root_is_told_with_the_tree(tmp_path):
    with pytest.raises(
        UserError, match=r"no images JPEGImages/.*expected a folder that holds  JPEGImages/2007_000032\.jpg"
    ):
        folders.find("voc2012").index(tmp_path, "all")
    voc(tmp_path)
    (tmp_path / "SegmentationClass/2007_000039.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no label file, first .*2007_000039\.png"):
        folders.find("voc2012").index(tmp_path, "train")
    with pytest.raises(UserError, match="give train, train_aug, val, trainval, or an existing file"):
        folders.find("voc2012").index(tmp_path, "tain")


class TestFolders:
    def test_images_and_labels_share_their_stems(self, tmp_path):
        put(tmp_path, "images/b.c.JPG", "labels/b.c.PNG", 1)
        put(tmp_path, "images/a.png", "labels/a.png", 0)
        found = folders.find("folders")
        samples = found.index(tmp_path, "all")
        assert [s.name for s in samples] == ["a", "b.c"]
        assert found.read_label(samples[1].label, LabelSpace("x", TWO, "x")).max() == 1

    def test_subfolders_are_splits(self, tmp_path):
        put(tmp_path, "images/train/a.jpg", "labels/train/a.png")
        put(tmp_path, "images/val/b.jpg", "labels/val/b.png")
        found = folders.find("folders")
        assert [s.name for split in ("train", "val") for s in found.index(tmp_path, split)] == ["a", "b"]

    def test_a_list_of_two_columns(self, tmp_path):
        put(tmp_path, "x/a.jpg", "y/a_m.png")
        put(tmp_path, "x/b.jpg", "y/b_m.png")
        for text in ("x/b.jpg y/b_m.png\nx/a.jpg y/a_m.png\n", "\ufeffx/b.jpg\ty/b_m.png\r\n/x/a.jpg\t/y/a_m.png\r\n"):
            (tmp_path / "pairs.txt").write_text(text, encoding="utf-8", newline="")
            samples = folders.find("folders").index(tmp_path, "pairs.txt")
            assert [(s.name, s.label.name) for s in samples] == [("b", "b_m.png"), ("a", "a_m.png")]
        (tmp_path / "pairs.txt").write_text("/home/me/x/a.jpg,/home/me/y/a_m.png\n")
        with pytest.raises(UserError, match=r"pairs\.txt: /home/me/x/a\.jpg lies outside of .*another machine"):
            folders.find("folders").index(tmp_path, "pairs.txt")

    def test_a_lossy_mask_is_refused(self, tmp_path):
        put(tmp_path, "images/a.png")
        (tmp_path / "labels").mkdir()
        Image.fromarray(IMAGE[..., 0]).save(tmp_path / "labels/a.jpg")
        found = folders.find("folders")
        with pytest.raises(UserError, match=r"a\.jpg: \.jpg is a lossy format"):
            found.read_label(found.index(tmp_path, "all")[0].label, label_space("binary"))


TWO = {"classes": {"a": {"color": [0, 0, 9]}, "b": {"color": [9, 0, 0]}}}
OWN = """\
images: "{site}/{day}/rgb_{name}.png"
labels: "truth/{day}-{site}/{name}.png"
splits:
  north: {site: north}
  one: {day: "2", list: one.txt}
ids: {binary: {background: [3, 4], foreground: 5, void: [9]}}
leave_out: [bad]
"""


class TestOwn:
    def write(self, tmp_path, text=OWN) -> str:
        (tmp_path / "own.yaml").write_text(text)
        return str(tmp_path / "own.yaml")

    def test_words_splits_ids_and_what_is_left_out(self, tmp_path):
        for site in ("north", "south"):
            for day in "12":
                put(tmp_path, f"{site}/{day}/rgb_0{day}.png", f"truth/{day}-{site}/0{day}.png", [3, 4, 5, 9, 9, 3])
        put(tmp_path, "north/1/rgb_bad.png")
        lines(tmp_path, "one.txt", "north-2-02")
        found = folders.find(self.write(tmp_path))
        assert [s.name for s in found.index(tmp_path, "north")] == ["01", "02"]
        (sample,) = found.index(tmp_path, "one")
        assert sample.label == tmp_path / "truth/2-north/02.png"
        label = found.read_label(sample.label, label_space("binary"))
        assert label[0].tolist() == [0, 0, 1, IGNORE, IGNORE, 0]
        with pytest.raises(UserError, match="ids: none for the classes voc21, only for binary; add them"):
            found.scheme(label_space("voc21"))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("rgb_{name}", "rgb", r"own\.yaml: splits\.north: the pattern of its images has no \{name\}"),
            ("{day}-{site}", "{hour}", r"labels: \{hour\} does not occur in images"),
            ("foreground", "forground", "forground: no class of binary"),
            ("leave_out", "leaveout", r"own\.yaml: leaveout: unknown key; did you mean 'leave_out'"),
            ("background: [3, 4]", "background: [3, 5]", "5 is stored for background and foreground"),
        ],
    )
    def test_mistakes_are_one_line(self, tmp_path, old, new, message):
        with pytest.raises(UserError, match=message) as caught:
            folders.find(self.write(tmp_path, OWN.replace(old, new))).scheme(label_space("binary"))
        assert "\n" not in str(caught.value)

    def test_other_names_are_refused_with_what_is_known(self):
        with pytest.raises(UserError, match="'vok2012' is neither a description file .* ade20k, bdd100k"):
            folders.find("vok2012")
