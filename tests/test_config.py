"""YAML traps, `base:` files, overrides, interpolation, and errors that all come at once."""

import re
from typing import Literal

import pytest

from da.config import Section, Tree, UserError, check, difference, dump_yaml, merge, parse_yaml, read_tree


class Inner(Section):
    rate: float = 1.0
    size: tuple[int, int] | None = None
    kind: Literal["poly", "constant"] = "poly"


class Outer(Section):
    steps: int
    name: str = "x"
    inner: Inner = Inner()
    flag: bool = False
    optional: Inner | None = None


def build(text: str, *overrides: str, tmp_path) -> Outer:
    (tmp_path / "x.yaml").write_text(text)
    return check(Outer, read_tree([tmp_path / "x.yaml"], overrides))


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E+3", 1000.0), ("-2.5e-4", -2.5e-4), (".5", 0.5), ("3.", 3.0)]
)
def test_scientific_notation_is_a_number(text, value):
    assert parse_yaml(f"a: {text}", "x") == {"a": value}


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_words_stay_words(word):
    assert parse_yaml(f"a: {word}", "x") == {"a": word}


def test_only_true_and_false_are_booleans():
    assert parse_yaml("a: true\nb: False", "x") == {"a": True, "b": False}


def test_integers_and_versions_are_not_floats():
    assert parse_yaml("a: 12\nb: '1e-4'\nc: 1.2.3", "x") == {"a": 12, "b": "1e-4", "c": "1.2.3"}


def test_equal_keys_are_an_error_with_the_line():
    with pytest.raises(UserError, match=r"f\.yaml:3: key 'a' is given twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "f.yaml")


def test_bases_merge_in_order_and_lists_replace(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 1\ninner: {rate: 1.0, size: [1, 2]}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.yaml").write_text("base: ../a.yaml\ninner: {size: [3, 4]}\n")
    (tmp_path / "c.yaml").write_text("inner: {rate: 0.5}\n")
    (tmp_path / "x.yaml").write_text("base: [sub/b.yaml, c.yaml]\nflag: true\n")
    config = check(Outer, read_tree([tmp_path / "x.yaml"], ["steps=7"]))
    assert config == Outer(steps=7, inner=Inner(rate=0.5, size=(3, 4)), flag=True)


def test_circular_and_missing_bases(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        read_tree([tmp_path / "a.yaml"])
    (tmp_path / "c.yaml").write_text("base: none.yaml\n")
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read .*c\.yaml"):
        read_tree([tmp_path / "c.yaml"])


def test_all_mistakes_at_once_with_file_key_and_nearest_name(tmp_path):
    (tmp_path / "base.yaml").write_text("inner: {ratee: 1.0}\n")
    (tmp_path / "x.yaml").write_text("base: base.yaml\nsteps: many\ninner: {kind: polly}\n")
    with pytest.raises(UserError) as caught:
        check(Outer, read_tree([tmp_path / "x.yaml"], ["flag=on"]))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    text = "\n".join(lines)
    assert "base.yaml: inner.ratee: unknown key; did you mean 'rate'?" in text
    assert 'x.yaml: steps: input should be a valid integer; got "many"' in text
    assert "x.yaml: inner.kind: input should be 'poly' or 'constant'" in text
    assert "command line: flag:" in text


def test_missing_key_and_key_in_optional_section(tmp_path):
    with pytest.raises(UserError, match="steps: required"):
        build("flag: true\n", tmp_path=tmp_path)
    with pytest.raises(UserError, match="optional.*unknown key; did you mean 'rate'"):
        build("steps: 1\noptional: {rat: 2.0}\n", tmp_path=tmp_path)


def test_wrong_types_are_not_converted(tmp_path):
    for value in ("'3'", "3.5", "true"):
        with pytest.raises(UserError, match="steps"):
            build(f"steps: {value}\n", tmp_path=tmp_path)
    assert build("steps: 3\ninner: {rate: 2}\n", tmp_path=tmp_path).inner.rate == 2.0


def test_interpolation_knows_variables_of_data_roots_only(tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_text('a: "${GTA5_ROOT}/sub"\n')
    monkeypatch.delenv("GTA5_ROOT", raising=False)
    assert read_tree([tmp_path / "x.yaml"]).values == {"a": "${GTA5_ROOT}/sub"}  # the data set says what it lacks
    assert read_tree([tmp_path / "x.yaml"], ["a=miniature"]).values == {"a": "miniature"}
    monkeypatch.setenv("GTA5_ROOT", "/data/gta5")
    assert read_tree([tmp_path / "x.yaml"]).values == {"a": "/data/gta5/sub"}
    (tmp_path / "x.yaml").write_text('a: "${HOME}"\n')
    with pytest.raises(UserError, match="HOME"):
        read_tree([tmp_path / "x.yaml"])


def test_malformed_override_and_bad_yaml(tmp_path):
    with pytest.raises(UserError, match=r"section\.key=value"):
        read_tree([], ["steps"])
    (tmp_path / "x.yaml").write_text("a: [1,\nb: 2\n")
    with pytest.raises(UserError, match=r"x\.yaml:\d+: not valid YAML"):
        read_tree([tmp_path / "x.yaml"])


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Inner().rate = 2.0


def test_numbers_as_keys_name_the_entries_of_a_list():
    low = {"a": [{"b": 1, "c": 2}, {"b": 3}]}
    assert merge(low, {"a": {"1": {"b": 4}}}) == {"a": [{"b": 1, "c": 2}, {"b": 4}]}
    assert merge(low, {"a": {0: {"c": 5}}}) == {"a": [{"b": 1, "c": 5}, {"b": 3}]}
    assert merge(low, {"a": {"2": {"b": 4}}}) == {"a": {"2": {"b": 4}}}  # no such entry
    assert merge(low, {"a": {"b": 4}}) == {"a": {"b": 4}}
    assert low == {"a": [{"b": 1, "c": 2}, {"b": 3}]}


def test_merge_leaves_its_inputs_alone_and_difference_names_keys():
    low, high = {"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}
    assert merge(low, high) == {"a": {"b": 1, "c": [3]}}
    assert low == {"a": {"b": 1, "c": [1, 2]}}
    assert difference(low, merge(low, high)) == ["a.c: [1, 2] -> [3]"]


def test_tree_names_the_last_file_that_set_a_key():
    tree = Tree()
    tree.add({"a": {"b": 1}}, "one.yaml")
    tree.add({"a": {"b": 2}}, "two.yaml")
    assert tree.where("a.b") == "two.yaml"


@pytest.mark.parametrize(
    "text",
    ["run #1", "/disk #2", "0012", "20241105", "1e-4", "null", "true", "a: b", "*x", "&x", "!x", "- x", "| x", "<<"],
)
def test_text_on_the_command_line_is_taken_as_typed(text, tmp_path):
    config = build("steps: 1\n", f"name={text}", tmp_path=tmp_path)
    assert config.name == text
    assert parse_yaml(dump_yaml(config.model_dump(mode="json")), "x")["name"] == text
    assert read_tree((), [f"inner.kind={text} #"]).values == {"inner": {"kind": f"{text} #"}}


def test_yaml_on_the_command_line():
    words = ["a=[1, 2]", "b={c: 3}", "d='1 # 2'", "e=", "f=~", "g=-3", "h=2.5e-4", "i=true"]
    expected = {"a": [1, 2], "b": {"c": 3}, "d": "1 # 2", "e": None, "f": None, "g": -3, "h": 2.5e-4, "i": True}
    assert read_tree((), words).values == expected


@pytest.mark.parametrize("number", ["1:30", "010", "0x10", "0b1", "1_000", "+1", "1:30:00"])
def test_numbers_that_people_read_differently_are_no_numbers(number, tmp_path):
    for words in ((f"steps: {number}\n",), ("steps: 1\n", f"steps={number}")):
        with pytest.raises(UserError, match=f'steps: input should be a valid integer; got "{re.escape(number)}"'):
            build(*words, tmp_path=tmp_path)
    assert parse_yaml("a: 1:30.5\nb: 1_0.5\nc: 2024-11-05", "x") == {"a": "1:30.5", "b": "1_0.5", "c": "2024-11-05"}


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_numbers_are_finite(value, tmp_path):
    with pytest.raises(UserError, match="rate: input should be a finite number"):
        build("steps: 1\n", f"inner.rate={value}", tmp_path=tmp_path)


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, r"x\.yaml:5: more than 20000 values"),
        ("steps: &a [*a]\n", "more than 20000 values"),
        ("steps: " + "[" * 5000, "nested too deep"),
        ("steps: !!python/name:os.system x\n", "the tag .* is not known here"),
        ("steps: !!binary aGk=\n", "the tag !!binary is not known"),
        ("steps: !!set {a}\n", "the tag !!set is not known"),
        ("steps: !!int many\n", "not valid YAML"),
        ("steps: " + "9" * 5000, "not valid YAML"),
        ("? [1]\n: 2\n", "not valid YAML"),
        ("? {a: b}\n: 2\n", "not valid YAML"),
        ("steps: \x07\n", "not valid YAML"),
        ("<<: 3\n", "not valid YAML"),
        ("- 1\n", "expected `key: value` lines"),
        ("steps: 1\n---\nsteps: 2\n", "not valid YAML"),
        ('steps: 1\nname: "a\\0b"\n', "name: holds a NUL character"),
        ('steps: 1\nname: "\\uD800"\n', "name: holds a name that is not UTF-8"),
    ],
)
def test_strange_yaml_is_one_line(text, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        build(text, tmp_path=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["", "3", "{a: b}", "[1]", "['']", "true"])
def test_a_base_that_names_no_file(base, tmp_path):
    with pytest.raises(UserError, match=r"x\.yaml: base: give the path of a file"):
        build(f"base: {base}\nsteps: 1\n", tmp_path=tmp_path)


def test_bases_that_multiply_end(tmp_path):
    for n in range(30):
        (tmp_path / f"{n}.yaml").write_text(f"base: [{n + 1}.yaml, {n + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("steps: 1\n")
    with pytest.raises(UserError, match="more than 100 files"):
        read_tree([tmp_path / "0.yaml"])


def test_byte_order_mark_windows_line_ends_and_other_encodings(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfsteps: 3\r\nname: Z\xc3\xbcrich\r\n")
    assert read_tree([path]).values == {"steps": 3, "name": "Zürich"}
    for encoding in ("utf-16", "latin-1"):
        path.write_text("name: Zürich\n", encoding=encoding)
        with pytest.raises(UserError, match=r"x\.yaml: not UTF-8 text \(byte \d+\); save it as UTF-8"):
            read_tree([path])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("loss={class_weights: [1, 2]}", "loss.class_weights: 2 weights; cityscapes19 has 19 classes"),
        ("loss.lambda_presence=1", "loss.lambda_presence: needs model.presence=true; add it, or set to 0"),
        ("eval.classes=7", "eval.classes: cityscapes19 has no subset 7; known: 19, 16, 13"),
    ],
)
def test_what_does_not_fit_together_is_one_plain_line(setting, said):
    from da.run import load_config

    with pytest.raises(UserError) as caught:
        load_config(["experiments/mini/source_only.yaml"], [setting])
    assert str(caught.value) == f"command line: {said}"
