"""Settings that make no sense: lines that name the key and exit code 2, or a run that works. Never a traceback."""

import json
from pathlib import Path

import pytest
from test_experiments import EXPERIMENTS
from tiny import REPOSITORY, overrides

from da.cli import main
from da.config import Tree, UserError, flatten, read_tree
from da.run import check_config

# Of the wrong kind, sign and size, and what YAML is known to read differently than people do.
VALUES = (
    *("", "null", "true", "yes", "on", "text", "~", "a" * 300, "../..", "/", "a\tb"),
    *("0", "-1", "1", "7", str(2**31), str(2**63), str(-(2**63) - 1), "1" + "0" * 400),
    *("0.5", "-0.5", "1e-320", "1e300", ".inf", "-.inf", ".nan", "1e999"),
    *("010", "0x10", "1:30", "1_000", "+1", "2024-11-05", "1.2.3", "'1'", "1,5", "1 2", "0.5 #"),
    *("[]", "[1]", "[1, 2]", "[0, 0]", "[-1, 5]", "[1, 2, 3]", "[.inf, 1]", "[null, null]", "[[1]]", "['a', 'b']"),
    *("{}", "{a: 1}", "{1: 2}", "{crop: [1]}", "{crop: [64, 32]}", "{radius: 1}", "[&a 1, *a]", '"\\0"', '"\\uD800"'),
)


def names(line: str, key: str) -> bool:
    """Does the line name the key, or one above or below it?"""
    where, _, rest = line.partition(": ")
    named = rest.partition(": ")[0] if where == "command line" else where.removeprefix("command line ")
    return key in line or f"{key}.".startswith(f"{named}.") or f"{named}.".startswith(f"{key}.")


FAST = ("cycada_feature", "adaptsegnet_multi")  # of the miniature; the others are slow ones


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=[] if p.parent.name == "mini" and p.stem in FAST else pytest.mark.slow)
        for p in EXPERIMENTS
    ],
    ids=[f"{p.parent.name}/{p.stem}" for p in EXPERIMENTS],
)
def test_every_key_with_values_of_every_kind(path: Path, monkeypatch):
    """All values for the experiments of the miniature, a third of them for each of the others."""
    for variable in ("GTA5_ROOT", "CITYSCAPES_ROOT", "SYNTHIA_ROOT", "PHOTOGRAPHS_ROOT", "VOC_ROOT", "ADE20K_ROOT"):
        monkeypatch.setenv(variable, f"/data/{variable}")
    plain = read_tree([path])
    plain.values = {"experiment": path.parent.name, "name": path.stem, **plain.values}
    keys = set(flatten(check_config(plain).model_dump(mode="json")))
    keys |= {".".join(key.split(".")[:depth]) for key in keys for depth in (1, 2)}
    works, refused = 0, []
    for number, key in enumerate(sorted(keys)):
        for value in VALUES if path.parent.name == "mini" else VALUES[number % 3 :: 3]:
            tree = Tree()
            tree.add(plain.values, str(path))
            try:
                typed = read_tree((), [f"{key}={value}"])
                tree.add(typed.values, "command line")
                tree.typed = typed.typed
                json.dumps(check_config(tree).model_dump(mode="json"), allow_nan=False)
                works += 1
            except UserError as error:
                refused += [(key, value, line) for line in str(error).splitlines()]
    assert [(key, value, line) for key, value, line in refused if not names(line, key) or len(line) > 700] == []
    assert refused
    assert works


@pytest.mark.parametrize(
    "setting",
    ["data.source.crop=[40000, 8]", "data.target.size=[8, 40000]", "data.workers=2000", "eval.sliding={crop: [8, 64]}"],
)
def test_sizes_beyond_sense_are_refused_before_anything_starts(setting, capsys):
    file = str(REPOSITORY / "experiments/mini/adaptsegnet_multi.yaml")
    assert main(["train", file, setting, "--check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: command line: {setting.partition('=')[0]}")
    assert "equal to" in line


ODD = (
    *("seed=-1", "data.source.crop=[1, 1]", "data.source.scale=[1e-9, 1e-9]", "data.source.size=[1, 1]"),
    *("eval.input_size=[1, 1]", "eval.scales=[0.001]", "eval.sliding={crop: [32, 1]}", "eval.crf={}", "model.bins=[]"),
    *("model.head_channels=1", "run.schedule.power=1e300", "run.schedule.horizon=1", f"run.log_every={2**63 - 1}"),
    *(
        "run.clip_norm=1e-320",
        "run.precision=fp16",
        "method.lr=1e30",
        "method.lr=1e300",
        "method.momentum=0",
        "data.val.split=/dev/null",
    ),
    *("data.source.root=/dev/null", "data.source.dataset=synthia", "init=/dev/null", f"data.batch_size={2**62}"),
)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ODD)
def test_a_run_with_what_may_just_be_meant(setting, gta5_root, cityscapes_root, tmp_path, capsys):
    file = str(REPOSITORY / "experiments/mini/adaptsegnet_multi.yaml")
    small = [*overrides(gta5_root, cityscapes_root), "run.steps=1", "--runs", str(tmp_path / "runs")]
    code = main(["train", file, *small, setting])
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert (code, len(errors)) in ((0, 0), (2, 1)), lines
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory; lower data.batch_size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes."),
            "for 12 bytes at",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "for 2.00 GiB at once"),
    ],
)
def test_too_little_memory_is_one_line(error, said, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("da.run.train", fail)
    assert main(["train", str(REPOSITORY / "experiments/mini/source_only.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_check_refuses_what_no_process_can_share(capsys):
    file = str(REPOSITORY / "experiments/mini/source_only.yaml")
    batch, processes = ["data.batch_size=3", "--processes", "2"], ["--processes", "-1"]
    for words, key in ((batch, "data.batch_size"), (processes, "--processes")):
        assert main(["train", file, *words, "--check"]) == 2
        assert key in capsys.readouterr().err
