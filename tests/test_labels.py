"""Label spaces: what is shipped, what a file may say, and how label files are read and written under one."""

import pickle

import numpy as np
import pytest
import yaml
from city import CITY

from da.config import UserError
from da.data import folders
from da.labels import IGNORE, LabelSpace, label_space, shipped


def space(text: str, tmp_path, name: str = "own") -> LabelSpace:
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return label_space(str(path))


def voc_color(number: int) -> tuple[int, int, int]:
    """The devkit's rule: bits of the number, three at a time, from the highest bit of each channel down."""
    color = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= (number >> channel & 1) << shift
        number >>= 3
    return tuple(color)


@pytest.mark.parametrize(
    ("name", "count"), [("cityscapes19", 19), ("voc21", 21), ("ade150", 150), ("camvid11", 11), ("binary", 2)]
)
def test_shipped_lists(name, count):
    found = label_space(name)
    assert len(found) == count
    assert len({*found.colors, found.ignore_color}) == count + 1
    assert found.dump() == name
    assert sorted(shipped()) == shipped()
    own = found.scheme(found.stored_as)
    ids = np.arange(count, dtype=np.uint8)[None]
    assert (folders.to_train_ids(found.to_stored(ids), own, "x") == ids).all()


def test_palettes_follow_the_published_rules():
    voc = label_space("voc21")
    assert voc.colors == tuple(voc_color(i) for i in range(21))
    assert voc.ignore_color == voc_color(255) == (224, 224, 192)
    assert voc.colors[15] == (192, 128, 128)
    ade = label_space("ade150").scheme("ade20k").table
    assert ade[[0, 1, 150]].tolist() == [IGNORE, 0, 149]


def test_cityscapes_tables():
    assert CITY.scheme("cityscapes").table[[0, 7, 26, 33, 34]].tolist() == [IGNORE, 0, 13, 18, IGNORE]
    assert CITY.scheme("synthia").table[[0, 1, 3, 22]].tolist() == [IGNORE, 10, 0, IGNORE]
    assert not CITY.scheme("cityscapes").known[35]
    assert CITY.to_stored(np.array([[0, 18, IGNORE]], np.uint8)).tolist() == [[7, 33, 0]]
    assert CITY.means == {"19": "mIoU19", "16": "mIoU16", "13": "mIoU13"}
    assert CITY.subset(13) == (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)


def test_camvids_original_colours_are_grouped():
    colors = label_space("camvid11").scheme("camvid")
    stored = np.array([[[64, 0, 128], [192, 128, 192], [128, 0, 192], [0, 0, 0]]], np.uint8)  # car, bus, marking, void
    names = label_space("camvid11").names
    assert folders.to_train_ids(stored, colors, "x").tolist() == [
        [names.index("car"), names.index("car"), names.index("road"), IGNORE]
    ]


@pytest.mark.parametrize("colors", [False, True])
def test_the_rest_may_be_void(colors, tmp_path):
    a, b = ("[255, 255, 255]", "[0, 0, 9]") if colors else ("255", "9")
    text = f"classes:\n  a: {{color: [1, 2, 3], k: {a}}}\n  b: {{color: [4, 5, 6], k: {b}}}\n"
    scheme = space(f"{text}schemes: {{k: {{colors: {colors}, void: rest}}}}\n", tmp_path).scheme("k")
    stored = np.array([[[255] * 3, [0, 0, 9], [77, 5, 9]]], np.uint8)
    assert folders.to_train_ids(stored if colors else stored[..., 2] - [0, 0, 4], scheme, "x").tolist() == [
        [0, 1, IGNORE]
    ]
    assert scheme.stored[IGNORE].tolist() == ([254] * 3 if colors else 254)


OWN = """\
classes:
  grass: {color: [0, 200, 0], mask: [1, 2]}
  stone: {color: [90, 90, 90], mask: 7}
  water: {color: [0, 0, 200], mask: 9}
groups: {ground: [grass, stone]}
subsets: {2: {without: [water]}, wet: [water]}
schemes: {mask: {title: mask values, void: [0, 20-30]}}
stored_as: mask
"""


def test_a_file_of_ones_own(tmp_path):
    own = space(OWN, tmp_path)
    assert own.names == ("grass", "stone", "water")
    assert own.groups == {"ground": (0, 1)}
    assert own.subsets == {"3": (0, 1, 2), "2": (0, 1), "wet": (2,)}
    assert own.means == {"3": "mIoU3", "2": "mIoU2", "wet": "mIoU_wet"}
    ids = np.array([[1, 2, 7, 9, 0, 25]], np.uint8)
    assert folders.to_train_ids(ids, own.scheme("mask"), "x").tolist() == [[0, 0, 1, 2, IGNORE, IGNORE]]
    with pytest.raises(UserError, match=r"x: 3, 31 are not mask values"):
        folders.to_train_ids(np.array([[3, 31, 1]], np.uint8), own.scheme("mask"), "x")
    wide = np.array([[1, 300]], np.int32)
    with pytest.raises(UserError, match="300 are not mask values"):
        folders.to_train_ids(wide, own.scheme("mask"), "x")
    assert own.to_stored(np.array([[0, 2, IGNORE]], np.uint8)).tolist() == [[1, 9, 0]]
    again = label_space(yaml.safe_load(yaml.safe_dump(own.dump())))
    assert again == own
    assert pickle.loads(pickle.dumps(own)) == own


def test_colours_are_read_and_written(tmp_path):
    own = space(OWN.replace("stored_as: mask", "stored_as: colors"), tmp_path)
    picture = own.to_stored(np.array([[0, 2, IGNORE]], np.uint8))
    assert picture.tolist() == [[[0, 200, 0], [0, 0, 200], [0, 0, 0]]]
    assert folders.to_train_ids(picture, own.scheme("colors"), "x").tolist() == [[0, 2, IGNORE]]
    with pytest.raises(UserError, match=r"\(1, 2, 3\) is none of the colours of own"):
        folders.to_train_ids(np.full((1, 1, 3), (1, 2, 3), np.uint8), own.scheme("colors"), "x")
    with pytest.raises(UserError, match="expected a picture in colours of own"):
        folders.to_train_ids(np.zeros((1, 1), np.uint8), own.scheme("colors"), "x")


def test_two_to_255_classes(tmp_path):
    def many(count: int) -> str:
        rows = (f"  c{i}: {{color: [{i}, {255 - i}, 7]}}" for i in range(count))
        return "classes:\n" + "\n".join(rows) + "\n"

    full = space(many(255), tmp_path)
    ids = np.arange(256, dtype=np.uint8)[None]
    assert (folders.to_train_ids(ids, full.scheme("trainids"), "x") == ids).all()
    for count in (1, 256):
        with pytest.raises(UserError, match="give 2 to 255"):
            space(many(count), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[90, 90, 90]", "[0, 200, 0]", r"own\.yaml: classes\.stone\.color: \[0, 200, 0\] is also that of grass"),
        ("[90, 90, 90]", "[0, 0, 0]", "is also that of ignored pixels"),
        ("[90, 90, 90]", "[0, 0, 256]", r"own\.yaml: classes\.stone\.color\.2: .*less than or equal to 255"),
        ("mask: 7", "mask: 2", "2 is stored for grass and stone"),
        ("mask: 7", "mask: 300", "not a stored value from 0 to 255"),
        ("20-30", "30-x", "nor a range such as 0-34"),
        ("[grass, stone]", "[grass, stein]", r"own\.yaml: groups\.ground: stein: no class of own; known: grass"),
        ("2: {without", "4: {without", "it has 2 classes; call it by their number"),
        ("stored_as: mask", "stored_as: maks", "no column or scheme 'maks'"),
        (", mask: 7", "", r"own\.yaml: classes\.stone: no value in column mask"),
        ("void: [0,", "void: [9,", "9 is both void and stored for a class"),
        ("title: mask", "titel: mask", r"schemes\.mask\.titel: unknown key; did you mean 'title'"),
        ("  grass:", "  '':", "'' is no name"),
        ("groups:", "grups:", r"own\.yaml: grups: unknown key; did you mean 'groups'"),
        ("classes:\n", "", "classes: required"),
    ],
)
def test_mistakes_are_one_line(tmp_path, old, new, message):
    assert old in OWN
    text = OWN.replace(old, new) if old != "classes:\n" else "stored_as: mask\n"
    with pytest.raises(UserError, match=message) as caught:
        space(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_what_is_known():
    with pytest.raises(UserError, match="neither a YAML file nor one of ade150, binary"):
        label_space("cityscapes20")
    with pytest.raises(UserError, match="no subset 14; known: 19, 16, 13"):
        CITY.subset(14)


class TestMerging:
    def test_equal_classes_need_no_table(self):
        assert CITY.merged_from(CITY, None) is None
        with pytest.raises(UserError, match=r"eval\.merge: checkpoint and data have the same classes"):
            CITY.merged_from(CITY, {"car": ("bus",)})

    def test_other_classes_are_refused_with_the_difference(self):
        with pytest.raises(
            UserError, match=r"only in cityscapes19: .*vegetation.*only in camvid11: .*tree.*eval\.merge"
        ):
            label_space("camvid11").merged_from(CITY, None)

    def test_named_classes_go_where_they_are_sent_equal_ones_stay_and_the_rest_is_wrong(self):
        camvid = label_space("camvid11")
        merge = {"car": ("car", "truck", "bus", "train"), "tree": ("vegetation",)}
        with pytest.raises(UserError, match=r"no class of the checkpoint counts as sign; name some, or say sign: \[\]"):
            camvid.merged_from(CITY, merge)
        merge |= dict.fromkeys(("sign", "pedestrian", "bicyclist"), ())
        table = camvid.merged_from(CITY, merge)
        into = [camvid.names[t] if t < 11 else None for t in table[: len(CITY)]]
        assert dict(zip(CITY.names, into)) == {
            **dict.fromkeys(CITY.names),
            **{name: name for name in ("road", "sidewalk", "building", "fence", "pole", "sky")},
            **dict.fromkeys(("car", "truck", "bus", "train"), "car"),
            "vegetation": "tree",
        }
        assert set(table[[CITY.names.index("terrain"), CITY.names.index("wall")]]) == {11}

    def test_mistakes(self):
        camvid = label_space("camvid11")
        for merge, message in (
            ({"cat": ("car",)}, "eval.merge: cat: no class of camvid11"),
            ({"car": ("cat",)}, r"eval\.merge\.car: cat: no class of cityscapes19"),
            ({"car": ("bus",), "tree": ("bus",)}, "bus is given twice"),
        ):
            others = dict.fromkeys(("tree", "sign", "pedestrian", "bicyclist"), ())
            with pytest.raises(UserError, match=message):
                camvid.merged_from(CITY, others | merge)
