"""Two processes under the launch script, killed or asked to stop at random moments, end as if nothing had happened.

DA_KILLS=32 python -m pytest tests/test_kills.py -s      on the miniature as it is, every kind of kill in every kind of
                                                         moment twice, with a line for each
"""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_continued, assert_same_result, checkpoint_step, children, last_step
from tiny import REPOSITORY, overrides

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("DA_KILLS", 5))
RUN = "mini/adaptsegnet_multi-seed0"
STEPS, SAVED = 30, 4
LONGER = (f"run.steps={STEPS}", "run.log_every=1", "run.val_every=6", f"run.save_every={SAVED}", "data.workers=1")
WHAT = {"SIGKILL of one": 0, "SIGKILL of all": -signal.SIGKILL, "SIGUSR1": 75, "SIGTERM": 143}  # and the exit code
WHEN = ("training", "validation", "checkpoint", "TensorBoard")


class Launched:
    """The launch script in a process group of its own, so that all of it can be killed at once."""

    def __init__(self, runs: Path, settings: list[str], log: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
        environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "GPUS": "2", "RUNS": str(runs)}
        with open(log, "a") as output:
            self.shell = subprocess.Popen(
                ["bash", str(REPOSITORY / "launch/gta2city_adaptseg.sh"), *settings],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.runs = runs

    def ranks(self) -> list[int]:
        """Process ids of the training processes: the children of torchrun, the script's child."""
        agents = children(self.shell.pid)
        return [pid for agent in agents for pid in children(agent)]

    def strike(self, what: str, ranks: list[int], rng: random.Random) -> None:
        if what == "SIGKILL of one":
            _kill(rng.choice(ranks), signal.SIGKILL)
        elif what == "SIGKILL of all":
            for pid in ranks:
                _kill(pid, signal.SIGKILL)
            os.killpg(self.shell.pid, signal.SIGKILL)
        else:
            self.shell.send_signal(getattr(signal, what))


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def metrics_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def busy(run: Path, when: str) -> Callable[[], bool]:
    """Asks whether a process of `run` is doing that right now."""

    def validating() -> bool:
        """The last line is that of an update after which a validation comes, and not yet its scores."""
        last = (run / "metrics.jsonl").read_text().splitlines()[-1]
        return last.endswith("}") and json.loads(last)["step"] % 6 == 0 and "val/mIoU" not in last

    def written() -> int:
        return sum(path.stat().st_size for path in (run / "tensorboard").iterdir())

    before = written()
    return {
        "training": lambda: True,
        "validation": validating,
        "checkpoint": lambda: any((run / "checkpoints").glob("fresh.*.writing")),
        "TensorBoard": lambda: written() != before,
    }[when]


def assert_continuations(said: str, start: int, seen: int) -> None:
    """The script's start went on from `start`; torchrun's, after a kill, from the last checkpoint before step `seen`
    or a later one."""
    first, *again = said.split("a process died")
    assert_continued(first, start)
    for words in again:
        step = re.search(r"continuing from step (\d+)", words)
        assert int(step[1] if step else 0) >= (seen - 1) // SAVED * SAVED, words


def test_kills_lose_nothing(tmp_path, gta5_root, cityscapes_root):
    small = [] if "DA_KILLS" in os.environ else overrides(gta5_root, cityscapes_root)
    settings = [*small, *LONGER]
    log = tmp_path / "log"
    straight = Launched(tmp_path / "straight", settings, log)
    assert straight.shell.wait(600) == 0, log.read_text()

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    matrix = list(itertools.product(WHAT, WHEN))
    kinds = [kind for _ in range(-(-KILLS // len(matrix))) for kind in rng.sample(matrix, len(matrix))][:KILLS]
    attempts = itertools.count()
    done = hits = 0
    while kinds:
        runs = tmp_path / f"killed{next(attempts)}"
        run = runs / RUN
        code = None
        while code != 0:
            start, seen, said_before = checkpoint_step(run), 0, len(log.read_text())
            launched = Launched(runs, settings, log)
            allowed, began, before = {0}, time.monotonic(), metrics_lines(run)
            wait_for = before + rng.randint(1, 12)
            while kinds and launched.shell.poll() is None and metrics_lines(run) < wait_for:
                time.sleep(0.005)
            if kinds and launched.shell.poll() is None:
                what, when = kinds[0]
                ranks, now = launched.ranks(), busy(run, when)
                time.sleep(rng.random() * 0.15)
                while launched.shell.poll() is None and not now():
                    time.sleep(0.0005)
                if launched.shell.poll() is None:
                    seen = last_step(run)
                    launched.strike(what, ranks, rng)
                    hit = now()
                    kinds.pop(0)
                    allowed.add(WHAT[what])
                    done, hits = done + 1, hits + hit
                    print(f"{done}: {what} in {when}{'' if hit else ' (just over)'}", end=", ", flush=True)
            code = launched.shell.wait(600)
            assert code in allowed, (code, log.read_text()[-5000:])
            assert_continuations(log.read_text()[said_before:], start, seen)
            assert code in {0, -signal.SIGKILL} or checkpoint_step(run) == last_step(run)  # asked to stop: all is saved
            print(f"exit {code} after {time.monotonic() - began:.0f} s, {metrics_lines(run)} lines", flush=True)
        assert_same_result(run, straight.runs / RUN)
    assert hits
    print(f"{done} kills in {next(attempts)} runs, {hits} of them at the very moment; nothing lost")
