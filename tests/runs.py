"""What the tests of interrupted runs share: processes found, two runs compared, file by file and bit by bit."""

import json
import re
import subprocess
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from da.engine import checkpoint


def children(process: int) -> list[int]:
    """Numbers of the processes that `process` has started."""
    listed = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def last_step(run: Path) -> int:
    """The last one in metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def checkpoint_step(run: Path) -> int:
    """Of the last whole checkpoint; 0 where there is none."""
    last = checkpoint.find_last(run / "checkpoints")
    return checkpoint.load(last)["step"] if last else 0


def assert_continued(said: str, step: int) -> None:
    """What a start said: it went on from `step`, or began (0)."""
    assert re.findall(r"continuing from step (\d+)", said) == ([str(step)] if step else []), said


def assert_same_result(run: Path, straight: Path) -> None:
    """Weights, optimisers, metrics and curves of `run` equal those of the uninterrupted one; nothing is doubled."""
    assert (run / "summary.json").exists()
    same(*(torch.load(r / "checkpoints/last.pt", weights_only=True) for r in (run, straight)))
    assert _metrics(run) == _metrics(straight)
    assert _curves(run) == _curves(straight)


def _metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def _curves(run: Path) -> dict[str, list]:
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in tags}


def same(a, b, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"config"}:  # names the run and its folders
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path
