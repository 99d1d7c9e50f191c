"""`data check` and `data describe` on data of one's own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import save_png
from PIL import Image

from da.cli import main
from da.config import UserError
from da.data import described, folders
from da.data.check import Report, check_root
from da.data.describe import describe
from da.labels import LabelSpace, label_space

H, W = 24, 32
THREE = LabelSpace(
    "three",
    {
        "classes": {
            "a": {"color": [200, 0, 0], "stored": 0},
            "b": {"color": [0, 200, 0], "stored": 1},
            "c": {"color": [0, 0, 200], "stored": 2},
        },
        "schemes": {"stored": {"void": [255]}},
        "stored_as": "stored",
    },
    "three.yaml",
)


def label(n: int, values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    rng = np.random.default_rng(n)
    return rng.choice(np.array(values, np.uint8), (H // 8, W // 8)).repeat(8, 0).repeat(8, 1)


@pytest.fixture
def root(tmp_path) -> Path:
    """Six pairs for training and two for validation in `images/` and `labels/`."""
    for n in range(8):
        split = "train" if n < 6 else "val"
        rng = np.random.default_rng(n)
        save_png(tmp_path / f"mine/images/{split}/p{n}.png", rng.integers(0, 256, (H, W, 3), np.uint8))
        save_png(tmp_path / f"mine/labels/{split}/p{n}.png", label(n))
    return tmp_path / "mine"


def check(root: Path, classes: LabelSpace = THREE) -> Report:
    return check_root(root, "folders", classes)


def rewrite(root: Path, make) -> None:
    """Every label anew."""
    for path in sorted((root / "labels").rglob("*.png")):
        save_png(path, make(int(path.stem[1:])))


def test_sound_data_pass_and_say_what_would_be_trained(root, capsys, tmp_path):
    report = check(root)
    assert (report.fatal, report.warnings, report.pairs) == ([], [], 8)
    assert "8 images, 3 classes of three" in report.text()
    (tmp_path / "three.yaml").write_text(
        "classes:\n" + "".join(f"  {c}: {{color: [{i}, 9, 9]}}\n" for i, c in enumerate("abc"))
    )
    figure = tmp_path / "sheet.png"
    command = ["data", "check", str(root), "--as", "folders", "--classes", str(tmp_path / "three.yaml")]
    assert main([*command, "--figure", str(figure)]) == 0
    with Image.open(figure) as sheet:
        assert sheet.height > 6 * 240  # four of train, two of val, title and legend
    assert main([*command, "--split", "val"]) == 0
    assert "2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda n: label(n, (0, 255)),
            "hold only 0 and 255, and 255 is void in stored values: only a would be trained",
        ),
        (lambda n: label(n, (1, 2, 3)), "hold 1 to 3: 0 seems to be void, but is a in stored values"),
        (lambda n: label(n, (0, 1, 7)), "7 are not stored values"),
        (lambda n: np.dstack([label(n)] * 3), "its channels are equal: store one of them"),
        (lambda n: THREE.palette[label(n)], "colours are those of the classes: say stored_as: colors"),
        (lambda n: THREE.palette[label(n)] // 2, "give each class its colour"),
        (lambda n: np.dstack([label(n)] * 2), "a 2-channel picture"),
        (lambda n: label(n, (0, 1)), "train: c never occurs; label some, or take it out"),
        (lambda n: label(n, (255,)), "train: no pixel of any label belongs to a class of three"),
        (lambda n: label(n)[:-2], "32x22, its image 32x24"),
        (lambda n: label(n).T.copy(), "24x32, its image 32x24; one of them is turned"),
    ],
)
def test_what_would_train_wrong_is_refused(root, make, message):
    rewrite(root, make)
    assert any(message in problem for problem in check(root).fatal), check(root).text()


def test_labels_that_begin_at_0_where_0_is_void():
    shifted = label_space("ade150")
    with pytest.raises(UserError, match="255 are not ade20k values"):
        folders.to_train_ids(np.array([[0, 149, 255]], np.uint8), shifted.scheme("ade20k"), Path("x"))


def test_ades_shift_the_wrong_way_is_explained(root):
    classes = LabelSpace(
        "from1",
        {
            "classes": {c: {"color": [i, 9, 9], "stored": i + 1} for i, c in enumerate("abc")},
            "schemes": {"stored": {"void": [0]}},
            "stored_as": "stored",
        },
        "from1.yaml",
    )
    rewrite(root, lambda n: label(n, (0, 1, 2, 255)))
    assert "they seem to begin at 0, but 0 is void in stored values; use ids: trainids" in check(root, classes).fatal[0]


def test_masks_that_went_through_jpeg_are_explained(root, tmp_path):
    for path in (root / "labels").rglob("*.png"):
        Image.fromarray(np.roll(np.where(label(int(path.stem[1:])) > 0, 255, 0), 3).astype(np.uint8)).save(
            tmp_path / "x.jpg", quality=50
        )
        Image.open(tmp_path / "x.jpg").save(path)
    report = check(root, label_space("binary"))
    assert any("stored with loss (JPEG) or resized smoothly" in problem for problem in report.fatal)


def test_partners_and_pictures_in_two_splits(root):
    (root / "labels/train/p1.png").unlink()
    shutil.copy(root / "labels/train/p2.png", root / "labels/train/q.png")
    shutil.copy(root / "images/train/p3.png", root / "images/val/p7.png")
    fatal = "\n".join(check(root).fatal)
    assert "labels/train/p1.png: missing, the label of" in fatal
    assert "labels/train/q.png: a label without an image" in fatal
    assert "images/train/p3.png: in train, and as" in fatal
    assert "images/val/p7.png in val: the same picture in two splits" in fatal
    assert len(check(root).fatal) == 3


def test_turned_photographs_are_noted(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "images/train/p0.png"
    image = Image.open(path).copy()
    path.unlink()
    image.save(path.with_suffix(".jpg"), exif=exif)
    report = check(root)
    assert report.fatal == []
    assert "p0.jpg: its EXIF orientation is not followed" in report.warnings[0]
    assert folders.read_image(path.with_suffix(".jpg")).shape == (H, W, 3)


class TestDescribe:
    def described(self, root: Path, out: Path) -> tuple[folders.DataSet, LabelSpace, str]:
        said = describe(root, out)
        return folders.find(str(out / "mine.yaml")), label_space(str(out / "mine_classes.yaml")), said

    def test_two_folders_with_splits(self, root, tmp_path):
        found, classes, said = self.described(root, tmp_path / "out")
        assert found.splits == ("train", "val")
        assert len(found.index(root, "train")) == 6
        assert classes.names == ("class0", "class1", "class2")
        assert check_root(root, str(tmp_path / "out/mine.yaml"), classes).fatal == []
        assert "8 of them with labels: images/{split}/{name}.png, labels/{split}/{name}.png" in said
        with pytest.raises(UserError, match="is there already, perhaps corrected by hand"):
            describe(root, tmp_path / "out")

    def test_masks_beside_their_images_void_and_one_strange_mask(self, tmp_path):
        root = tmp_path / "mine"
        for n in range(12):
            rng = np.random.default_rng(n)
            save_png(root / f"{n:03d}.png", rng.integers(0, 256, (H, W, 3), np.uint8))
            save_png(root / f"{n:03d}_mask.png", label(n, (0, 5, 255)))
        save_png(root / "003_mask.png", label(3, (0, 77)))
        found, classes, said = self.described(root, tmp_path)
        assert classes.scheme("stored").table[[0, 5, 255]].tolist() == [0, 1, 255]
        assert "255 taken for void" in said
        assert "one label alone has them or hardly a pixel: 1 values" in said
        assert len(found.index(root, "train")) == 10  # every fifth validates
        assert len(found.index(root, "val")) == 2

    def test_suffixes_of_all_kinds_are_one_folder(self, root, tmp_path):
        for n, path in enumerate(sorted((root / "images/train").iterdir())):
            path.rename(path.with_suffix((".PNG", ".png", ".bmp")[n % 3]) if n % 3 < 2 else path)
        found, _, said = self.described(root, tmp_path / "out")
        assert "8 of them with labels" in said
        assert len(found.index(root, "train")) == 6

    def test_labels_that_went_through_jpeg_are_still_taken_for_labels(self, root, tmp_path):
        for path in (root / "labels").rglob("*.png"):
            rolled = np.roll(np.where(label(int(path.stem[1:])) > 0, 255, 0), 3).astype(np.uint8)
            Image.fromarray(rolled).save(tmp_path / "x.jpg", quality=50)
            Image.open(tmp_path / "x.jpg").save(path)
        (root / "labels/train/p0.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
        _, classes, said = self.described(root, tmp_path / "out")
        assert "8 of them with labels" in said
        assert len(classes) >= 2

    def test_one_picture_alone_has_no_two_splits(self, tmp_path):
        rng = np.random.default_rng(0)
        save_png(tmp_path / "mine/a/p.png", rng.integers(0, 256, (H, W, 3), np.uint8))
        save_png(tmp_path / "mine/b/p.png", label(0))
        found, _, _ = self.described(tmp_path / "mine", tmp_path)
        assert found.splits == ("all",)

    def test_what_no_class_list_can_hold_is_said(self, root, tmp_path):
        rewrite(root, lambda n: label(n).astype(np.uint16) * 1000)
        with pytest.raises(UserError, match="store class numbers from 0 to 255"):
            describe(root, tmp_path)

    def test_a_binary_mask_has_two_classes(self, root, tmp_path):
        rewrite(root, lambda n: label(n, (0, 255)))
        _, classes, _ = self.described(root, tmp_path)
        assert classes.scheme("stored").table[[0, 255]].tolist() == [0, 1]

    def test_colours_become_classes(self, root, tmp_path):
        rewrite(root, lambda n: np.array([[1, 2, 3], [9, 9, 9], [200, 0, 0]], np.uint8)[label(n)])
        _, classes, _ = self.described(root, tmp_path)
        assert set(classes.colors) == {(1, 2, 3), (9, 9, 9), (200, 0, 0)}
        assert classes.stored_as == "colors"

    def test_a_shipped_class_list_is_known_by_its_palette(self, root, tmp_path):
        voc = label_space("voc21")
        for path in (root / "labels").rglob("*.png"):
            image = Image.fromarray(label(int(path.stem[1:]), (0, 1, 7, 15, 255))).convert("P")
            image.putpalette(voc.palette.tobytes())
            image.save(path)
        said = describe(root, tmp_path)
        assert "labels hold voc of the class list voc21, which is shipped" in said
        assert not (tmp_path / "mine_classes.yaml").exists()
        assert described.find(str(tmp_path / "mine.yaml")).scheme(voc).title == "voc values"

    def test_images_alone_and_nothing_at_all(self, root, tmp_path):
        shutil.rmtree(root / "labels")
        assert "8 images without labels" in describe(root, tmp_path)
        assert len(folders.find(str(tmp_path / "mine.yaml")).scan(root, "train", False)) == 6
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="no pictures in it"):
            describe(tmp_path / "empty", tmp_path)

    def test_layouts_with_lists_and_affixes(self, tmp_path):
        root = tmp_path / "mine"
        for n in range(10):
            rng = np.random.default_rng(n)
            town = f"town{n % 3}"
            save_png(root / f"shots/{town}/s{n}_rgb.png", rng.integers(0, 256, (H, W, 3), np.uint8))
            save_png(root / f"truth/{town}/s{n}_ids.png", label(n))
        (root / "train.txt").write_text("".join(f"s{n}\n" for n in range(8)))
        (root / "val.txt").write_text("s8\ns9\n")
        found, _, _ = self.described(root, tmp_path)
        assert [len(found.index(root, split)) for split in ("train", "val")] == [8, 2]


def test_a_split_whose_list_is_gone_is_a_problem(root, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "images: images/train/{name}.png\nlabels: labels/train/{name}.png\n"
        "splits: {train: {list: t.txt}, val: {list: v.txt}}\n"
    )
    (tmp_path / "t.txt").write_text("p0\np1\np2\np3\np4\n")
    report = check_root(root, str(tmp_path / "own.yaml"), THREE)
    assert any("split 'v.txt'" in problem for problem in report.fatal)
    assert report.pairs == 5  # the list lies beside the description


def test_one_mask_of_another_kind_and_much_void_are_noted(root):
    save_png(root / "labels/train/p0.png", label(0, (0, 255)))
    assert any("p0.png: holds only 0 and 255" in note for note in check(root).warnings)
    rewrite(root, lambda n: np.where(np.arange(H)[:, None] < 20, 255, label(n)).astype(np.uint8))
    assert any("more than half of all pixels are void" in note for note in check(root).warnings)


def test_a_label_of_another_suffix_is_pointed_at(root, tmp_path):
    (tmp_path / "own.yaml").write_text("images: images/train/{name}.png\nlabels: labels/train/{name}.png\n")
    (root / "labels/train/p1.png").rename(root / "labels/train/p1.bmp")
    report = check_root(root, str(tmp_path / "own.yaml"), THREE)
    assert any("p1.png: missing" in p and "p1.bmp is there, save it as .png" in p for p in report.fatal), report.text()


def test_what_many_files_have_alike_is_one_line(root):
    rewrite(root, lambda n: label(n, (0, 1, 7)))
    text = check(root).text()
    assert text.count("7 are not stored values") == 1
    assert "(and 7 more files)" in text


def test_a_target_without_labels_is_checked_by_its_images(tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "target.yaml").write_text(f"root: {tmp_path}\nimages: '{{name}}.png'\n")
    words = ["data", "check", str(tmp_path), "--as", str(tmp_path / "target.yaml")]
    assert main(words) == 2
    assert "a target needs none: data check --images-only" in capsys.readouterr().out
    figure = tmp_path / "out/figure.png"
    assert main([*words, "--images-only", "--figure", str(figure)]) == 0
    assert "1 images" in capsys.readouterr().out
    assert figure.exists()
