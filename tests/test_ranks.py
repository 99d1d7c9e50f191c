"""Two processes, or two micro-batches, against one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import METHOD_FILES, REPOSITORY, overrides, segmenter_checkpoint

pytestmark = pytest.mark.slow

# Adam divides by the size of a gradient, also where that is mere rounding: losses that agree to 1e-7 at first are 1e-4
# apart after some ten updates (output discriminators) or six (translation). There the first five are compared.
STEPS = {"source_only": 20, "adaptsegnet": 5, "cycada_pixel": 5, "cycada_feature": 20}
# What depends on the process is switched off: batch statistics and dropout. The rates are the papers': at the
# miniature's, up to two hundred times higher, rounding grows faster than it can be told from a mistake.
SAME = ("model.bn=frozen", "model.dropout=0.0")
ALIKE = {
    "source_only": (*SAME, "method.lr=2.5e-4", "method.head_lr_mult=10"),
    "adaptsegnet": (*SAME, "method.lr=2.5e-4", "method.head_lr_mult=10", "method.lr_d=1e-4"),
    "cycada_pixel": ("method.blocks=1", "method.width=8", "method.pool=3"),
    "cycada_feature": (*SAME, "method.dropout_d=0.0", "method.lr=1e-5", "method.lr_d=1e-5", "method.momentum=0.99"),
}


@pytest.fixture
def run(tmp_path, gta5_root, cityscapes_root):
    def train(method: str, name: str, world: int, *extra: str) -> Path:
        file = str(REPOSITORY / f"experiments/mini/{METHOD_FILES[method]}.yaml")
        settings = [*overrides(gta5_root, cityscapes_root), *ALIKE[method], *extra]
        settings += [f"run.{key}={STEPS[method]}" for key in ("steps", "val_every", "save_every")]
        if method.startswith("cycada"):
            settings.append(f"init={segmenter_checkpoint(gta5_root, cityscapes_root)}")
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
        command = [sys.executable, *start, "-m", "da", "train", file, *settings, "--runs", str(tmp_path / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return tmp_path / name / f"mini/{METHOD_FILES[method]}-seed0"

    return train


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith(("loss/", "d/"))} for line in lines]


def scores(run: Path) -> dict[str, float]:
    return json.loads((run / "summary.json").read_text())["scores"]


@pytest.mark.parametrize("method", ALIKE)
def test_two_processes_train_what_one_does(run, method):
    one, two = run(method, "one", 1), run(method, "two", 2)
    assert_alike(one, two)
    assert scores(one) == pytest.approx(scores(two), rel=1e-3, abs=0.05)  # percent: single pixels may flip


def test_two_micro_batches_train_what_one_batch_does(run):
    assert_alike(run("adaptsegnet", "one", 1), run("adaptsegnet", "two", 1, "run.accumulate=2"))


def assert_alike(one: Path, two: Path) -> None:
    for a, b in zip(losses(one), losses(two), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    a, b = (torch.load(r / "checkpoints/last.pt", weights_only=True)["modules"] for r in (one, two))
    for key, value in a["segmenter"].items():  # the network that SGD moves
        assert torch.allclose(b["segmenter"][key], value, rtol=1e-4, atol=1e-6), key
