"""`label`: the confident share of each class, an ordinary data root, never taken for ground truth."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from city import CITY
from PIL import Image
from tiny import REPOSITORY, tiny

from da.cli import main
from da.data import folders
from da.engine import checkpoint
from da.engine.run_files import replacing
from da.pseudo_labels import LEVELS, Rule, confidence_of, levels, thresholds
from da.run import train


def test_levels_are_finer_towards_one():
    steps = np.array([confidence_of(level) for level in range(LEVELS)])
    assert (np.diff(steps) > 0).all()
    assert steps[0] == 0
    assert steps[-1] > 0.99999
    assert levels(steps + 1e-12).tolist() == list(range(LEVELS))
    assert levels(np.array([0.0, 1.0])).tolist() == [0, LEVELS - 1]


def test_of_each_class_the_most_confident_share_is_kept():
    counts = np.zeros((3, LEVELS), np.int64)
    counts[0, [1000, 2000, 3000]] = [60, 30, 10]
    counts[1, 4000] = 5
    lowest = thresholds(counts, Rule(keep=0.4, sure=1.0))
    assert lowest[0] == 2000  # 40 of 100
    assert counts[1, lowest[1] :].sum() == 5
    assert counts[2, lowest[2] :].sum() == 0
    assert thresholds(counts, Rule(keep=1.0, sure=1.0))[0] == 1000


def test_sure_pixels_are_kept_beyond_the_share():
    counts = np.zeros((1, LEVELS), np.int64)
    counts[0, int(levels(np.array(0.95)))] = 50
    counts[0, int(levels(np.array(0.999)))] = 50
    assert counts[0, thresholds(counts, Rule(0.34, 0.9))[0] :].sum() == 100
    assert counts[0, thresholds(counts, Rule(0.34, 1.0))[0] :].sum() == 50


@pytest.fixture
def runs(tmp_path, gta5_root, cityscapes_root):
    """Two that are hardly trained; their scores are stretched, so that their confidences differ."""
    made = []
    for seed in (0, 1):
        config = tiny("source_only", gta5_root, cityscapes_root, "run.steps=1", "run.val_every=1", f"seed={seed}")
        made.append(train(config, tmp_path))
        path = made[-1] / "checkpoints/last.pt"
        state = checkpoint.load(path)
        last = [key for key in state["modules"]["segmenter"] if key.startswith("cls.")][-2:]  # weight and bias
        for key in last:
            state["modules"]["segmenter"][key] *= 50
        checkpoint.save(path, state)
    return made


def test_a_data_root_with_labels_images_and_a_stamp(runs, tmp_path, cityscapes_root, capsys):
    out = tmp_path / "pseudo"
    words = ["label", *map(str, runs), str(out), "--keep", "0.5", "--sure", "1"]
    assert main(words) == 0
    assert "from confidence" in capsys.readouterr().out
    samples = folders.find("folders").index(out, "all")
    target = folders.find("cityscapes").index(cityscapes_root, "train", with_labels=False)
    assert [sample.name for sample in samples] == sorted(sample.name for sample in target)
    stamp = json.loads((out / "pseudo_labels.json").read_text())
    assert stamp["runs"] == [run.name for run in runs]
    assert stamp["average"] == "probabilities"
    labels = np.stack([folders.find("folders").read_label(sample.label, CITY) for sample in samples])
    for number, name in enumerate(CITY.names):
        figures = stamp["labels"][name]
        assert (labels == number).mean() == pytest.approx(figures["predicted"] * figures["kept"], abs=1e-4)
        assert figures["kept"] >= 0.5 or not figures["predicted"]
    assert (labels == 255).any()
    assert not list(out.glob("work*"))
    assert main(words) == 0
    assert "is complete; delete it to label again" in capsys.readouterr().out
    assert main([*words[:-4], "--keep", "0.4"]) == 2
    assert "not what this call would write" in capsys.readouterr().err


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    for words, said in (
        (["label", str(runs[0])], "name one or more runs and the folder"),
        (["label", str(runs[0]), str(tmp_path / "x"), "--keep", "2"], "--keep 2.0"),
        (["label", str(runs[0]), str(tmp_path / "x"), "method.lr=1"], "method.lr: part of the run; label can change"),
        (["label", str(runs[0]), str(tmp_path / "x"), "data.target.root=/nowhere"], "/nowhere"),
    ):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not (tmp_path / "x").exists()


def test_a_damaged_prediction_is_named(runs, tmp_path, capsys):
    out = tmp_path / "pseudo"
    partial = tmp_path / "pseudo.partial"
    assert main(["label", str(runs[0]), str(out)]) == 0
    out.rename(partial)
    (partial / "work").mkdir()
    names = [path.stem for path in (partial / "labels").iterdir()]
    for name in names:
        with replacing(partial / f"work/{name}.npz") as fresh:
            fresh.write_bytes(b"not a file of numpy")
    stamp = json.loads((partial / "pseudo_labels.json").read_text())
    del stamp["labels"]
    (partial / "pseudo_labels.json").write_text(json.dumps(stamp))
    assert main(["label", str(runs[0]), str(out)]) == 2
    assert "damaged; delete it" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_called_again_it_writes_the_same(runs, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main(["label", str(runs[0]), str(straight), "run.precision=fp32"]) == 0
    slow = "import time, da.pseudo_labels as p; f = p._predict; "
    slow += "p._predict = lambda *a: (f(*a), time.sleep(0.5)); "
    call = "import sys, da.cli; sys.exit(da.cli.main(sys.argv[1:]))"
    words = ["label", str(runs[0]), str(killed), "run.precision=fp32"]
    process = subprocess.Popen([sys.executable, "-c", slow + call, *words], cwd=REPOSITORY)
    until = time.monotonic() + 60
    while not list(killed.with_name("killed.partial").glob("work/*.npz")):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert main(words) == 0
    for path in (straight / "labels").iterdir():
        assert np.array_equal(Image.open(path), Image.open(killed / "labels" / path.name))
