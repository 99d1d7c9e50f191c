"""Two processes, or two micro-batches, train what one process with the same global batch does.

Against one process in two micro-batches: bitwise. Against one process in one piece, whose sums are taken in another
order: in float64, where 20 updates agree to 1e-8, so what differs is rounding and nothing else. (In float32 it grows
with every update, most under Adam, which divides by the size of a gradient also where that is mere rounding.)
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import COUNTED, METHOD_FILES, REPOSITORY, train_words

from da.trainers import base

pytestmark = pytest.mark.slow

METHODS = base.methods()
EXTRA = {"cycada_pixel": ("method.pool=3",)}  # few enough for 20 updates to use the pool
DRAWING = {"jigsaw"}  # what one process draws for a whole batch, two draw otherwise for its halves
WITHOUT_JITTER = {"cycada_pixel"}  # it refuses data.jitter
FROZEN, SYNC = "model.bn=frozen", "model.bn=sync"


@pytest.fixture
def run(tmp_path, gta5_root, cityscapes_root):
    def train(method: str, world: int, updates: int, *extra: str, double: bool = False) -> Path:
        words = [*train_words(method, gta5_root, cityscapes_root), *EXTRA.get(method, ()), *defaults(method, "lr")]
        words += [*defaults(method, "momentum"), *without_dropout(method), *extra]
        words += [f"run.{key}={updates}" for key in ("steps", "val_every", "save_every")]
        runs = tmp_path / "-".join((str(world), *extra))
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
        program = [str(REPOSITORY / "tests/in_double.py")] if double else ["-m", "da"]
        command = [sys.executable, *start, *program, "train", *words, "--runs", str(runs)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return runs / f"mini/{METHOD_FILES[method]}-seed0"

    return train


def defaults(method: str, part: str) -> list[str]:
    """The method's settings with `part` in their names, at the defaults of its `Config`, which are the paper's.

    The miniature's rates are up to two hundred times higher: rounding would grow faster.
    """
    return [f"method.{name}={value}" for name, value in base.find(method).Config() if part in name]


def without_dropout(method: str) -> list[str]:
    """One process draws other masks for a whole batch than two processes for its halves."""
    return ["model.dropout=0.0", *(f"{word.split('=')[0]}=0.0" for word in defaults(method, "dropout"))]


def networks(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["modules"]


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith(("loss/", "d/"))} for line in lines]


def scores(run: Path) -> dict[str, float]:
    return json.loads((run / "summary.json").read_text())["scores"]


@pytest.mark.parametrize("method", [method for method in METHODS if method not in DRAWING])
def test_two_processes_train_what_one_does(run, method):
    one, two = (run(method, world, 20, SYNC, double=True) for world in (1, 2))
    assert_alike(one, two, 1e-8)
    assert scores(one) == pytest.approx(scores(two), rel=1e-7, abs=0)  # of a confusion matrix: equal


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_does_in_two_micro_batches(run, method):
    """To the last bit, with everything random on."""
    random = ["model.dropout=0.1", *defaults(method, "dropout")]
    random += [] if method in WITHOUT_JITTER else ["data.jitter=0.2"]
    one, two = run(method, 1, 20, FROZEN, *random, "run.accumulate=2"), run(method, 2, 20, FROZEN, *random)
    a, b = (networks(r) for r in (one, two))
    for name in a:
        assert all(torch.equal(b[name][key], value) for key, value in a[name].items()), name
    for x, y in zip(losses(one), losses(two), strict=True):
        assert x == pytest.approx(y, rel=1e-6)  # the mean of two is rounded once here, twice there
    assert scores(one) == scores(two)


@pytest.mark.parametrize("method", ["source_only", "cycada_feature"])
def test_two_processes_train_what_one_does_in_float32(run, method):
    one, two = (run(method, world, 20, FROZEN) for world in (1, 2))
    assert_alike(one, two, 1e-4, norms=True)
    assert scores(one) == scores(two)


def test_two_micro_batches_train_what_one_batch_does(run):
    one, two = (run("adaptsegnet", 1, 20, FROZEN, f"run.accumulate={n}", double=True) for n in (1, 2))
    assert_alike(one, two, 1e-8)


def test_refined_losses_are_means_over_the_global_batch(run):
    """In double by two processes, and by two micro-batches of one."""
    one, two = (run("source_only", world, 5, FROZEN, *COUNTED, double=True) for world in (1, 2))
    assert_alike(one, two, 1e-8)
    assert_alike(one, run("source_only", 1, 5, FROZEN, *COUNTED, "run.accumulate=2", double=True), 1e-8)


def assert_alike(one: Path, two: Path, tolerance: float, norms: bool = False) -> None:
    """Losses of every update, and the final weights and buffers; with `norms` each network as one vector, else number
    by number."""
    for a, b in zip(losses(one), losses(two), strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance / 100)
    a, b = (networks(r) for r in (one, two))
    near_zero = max(tolerance / 100, 1e-8)  # for biases before an InstanceNorm: Adam enlarges mere rounding there
    for name in a:
        if norms:
            x, y = (torch.cat([value.flatten().double() for value in m[name].values()]) for m in (a, b))
            assert (x - y).norm() <= tolerance * x.norm(), name
        else:
            for key, value in a[name].items():
                assert torch.allclose(b[name][key], value, rtol=tolerance, atol=near_zero), f"{name}.{key}"
