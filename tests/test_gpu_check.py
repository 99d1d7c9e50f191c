"""The check of a GPU, on a CPU at tiny sizes: every row's code runs, and what fails costs only its own row."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from tiny import REPOSITORY

from da import gpu_check
from da.cli import main
from da.engine import checkpoint
from da.engine.stepper import set_deterministic
from da.gpu_check import Check, Row
from da.trainers import base


@pytest.fixture
def check(tmp_path) -> Check:
    return Check(tmp_path, "cpu", base.methods(), 100, None)


@pytest.mark.slow
def test_the_script_writes_and_prints_one_table(tmp_path):
    variables = {"DEVICE": "cpu", "OUT": str(tmp_path / "out"), "METHODS": "cycada_pixel"}
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")} | variables
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    script = ["bash", str(REPOSITORY / "launch/gpu_check.sh")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/gpu_check.json").read_text())
    rows = [Row(**row) for row in found["rows"]]
    assert not found["failed"]
    assert gpu_check.table(rows) in done.stdout
    assert (tmp_path / "out/gpu_check.md").read_text() == gpu_check.table(rows) + "\n"

    of = {part: [row for row in rows if row.part == part] for part in ("device", "step", "resume", "group", "bench")}
    assert sum(map(len, of.values())) == len(rows)
    assert "torch" in of["device"][0].result
    assert len(of["step"]) == 3
    for row in of["step"]:
        assert row.images_per_second == pytest.approx(2 / row.seconds)  # batch 1 of two domains
    assert of["step"][2].result.endswith("times the seconds")
    assert [row.result for row in of["resume"]] == 2 * ["bitwise equal"]
    assert [row.result for row in of["group"]] == ["bitwise equal (gloo)"]
    assert sum(row.peak_share is not None for row in of["bench"]) > 5
    assert all((row.seconds is None) == (row.images_per_second is None) for row in of["bench"])
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".md", ".json", ".log"}


@pytest.mark.parametrize("method", base.methods())
def test_every_trainer_can_be_measured(method, monkeypatch):
    monkeypatch.setattr(gpu_check, "TIMED_MS", 0)
    row = gpu_check.step_row(method, "cpu", "fp32", False)
    trainer = base.find(method).Trainer
    batch = 32 if trainer.is_pretext else 1
    assert row.images_per_second == pytest.approx(batch * (1 + trainer.uses_target) / row.seconds)
    assert f"64x48, batch {batch}, fp32" in row.what


def test_the_size_of_an_image_is_the_full_experiments(monkeypatch):
    monkeypatch.setattr(gpu_check.bench, "SMALL_CROP", "null")
    asked = []

    def batch(*given):
        asked.append(given)
        raise RuntimeError

    monkeypatch.setattr(gpu_check.bench, "synthetic_batch", batch)
    with pytest.raises(RuntimeError):
        gpu_check.step_row("adaptsegnet", "cpu", "fp32", False)
    assert asked == [((720, 1280), torch.device("cpu"), (512, 1024), 1)]


def test_a_loss_that_is_not_finite_fails(monkeypatch):
    monkeypatch.setattr(gpu_check, "TIMED_MS", 0)
    monkeypatch.setattr(gpu_check.bench, "SMALL", (*gpu_check.bench.SMALL, "method.lr=1e20"))
    with pytest.raises(FloatingPointError, match="loss/seg"):
        gpu_check.step_row("source_only", "cpu", "fp32", False)


def test_what_fails_is_a_row_and_the_rest_goes_on(check, tmp_path):
    def rows():
        yield Row("step", "first", 0.5, 4.0)
        raise RuntimeError("CUDA error: out of memory\nCompile with ...")

    check._add("step", "both", rows)
    check._add("bench", "after", lambda: [Row("bench", "after", 2.0)])
    assert [row.what for row in check.rows] == ["first", "both", "after"]
    assert check.failed
    assert json.loads((tmp_path / "gpu_check.json").read_text())["failed"] is True
    assert "| step | both | - | - | - | - | FAILED: CUDA error: out of memory |" in (
        (tmp_path / "gpu_check.md").read_text()
    )


@pytest.mark.slow
def test_a_process_that_dies_says_so(check):
    with pytest.raises(RuntimeError, match="died with exit code -6"):
        check._apart(os.abort)
    with pytest.raises(RuntimeError, match="integer"):
        check._apart(os.nice, "x")


def test_what_takes_too_long_is_ended(check, monkeypatch, tmp_path):
    check.until = time.monotonic() + 0.5
    with pytest.raises(TimeoutError, match="not done within"):
        check._apart(time.sleep, 60)
    check.until = time.monotonic() + 0.5
    with pytest.raises(TimeoutError, match="not done within"):
        check._finish(["sleep", "60"], tmp_path, tmp_path / "log")
    check.until = time.monotonic()
    with pytest.raises(TimeoutError, match="not begun"):
        check._apart(time.sleep, 0)


def test_a_command_that_fails_is_quoted(check, tmp_path):
    with pytest.raises(RuntimeError, match=r"exit code 3: .*log: no such thing"):
        check._finish(["bash", "-c", "echo no such thing; exit 3"], tmp_path, tmp_path / "log")


def test_runs_are_compared_bit_by_bit(tmp_path):
    def run(name, weight, momentum):
        modules = {"segmenter": {"weight": torch.tensor(weight)}}
        optimizers = {"segmenter": {"state": {0: {"momentum_buffer": torch.tensor(momentum)}}, "param_groups": []}}
        state = {"modules": modules, "optimizers": optimizers, "memory": {"pool": {"images": [torch.zeros(2)]}}}
        checkpoint.save(tmp_path / name / "checkpoints/last.pt", state)
        return tmp_path / name

    plain = run("plain", [1.0, 2.0], [0.5])
    assert gpu_check.difference(plain, run("same", [1.0, 2.0], [0.5])) == ""
    assert gpu_check.difference(plain, run("other", [1.0, 2.5], [0.5])) == "1 of 3 tensors differ, by 5.0e-01 at most"
    assert gpu_check.difference(plain, run("momentum", [1.0, 2.0], [0.25])).startswith("1 of 3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path, capsys):
    assert main(["gpu-check", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device cuda: torch")
    assert not (tmp_path / "out").exists()


def test_an_unknown_trainer_is_refused(tmp_path, capsys):
    assert main(["gpu-check", "--device", "cpu", "--methods", "adaptsegnt", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'adaptsegnet'" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def restored():
    yield
    set_deterministic(False)
