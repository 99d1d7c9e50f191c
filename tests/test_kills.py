"""Two processes under the launch script, killed or asked to stop at random moments, end as if nothing had happened.

DA_KILLS=30 python -m pytest tests/test_kills.py -s      more of them, with a line for each
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import assert_same_result
from tiny import REPOSITORY, overrides

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("DA_KILLS", 5))
STEPS = 60
LONGER = (f"run.steps={STEPS}", "run.log_every=1", "run.val_every=6", "run.save_every=4", "data.workers=1")
CODES = {signal.SIGUSR1: 75, signal.SIGTERM: 143}


class Launched:
    """The launch script in a process group of its own, so that all of it can be killed at once."""

    def __init__(self, runs: Path, settings: list[str], log: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
        environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "GPUS": "2", "RUNS": str(runs)}
        with open(log, "a") as output:
            self.shell = subprocess.Popen(
                ["bash", str(REPOSITORY / "launch/gta2city_source_only.sh"), *settings],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.runs = runs

    def ranks(self) -> list[int]:
        """Process ids of the training processes: the children of torchrun, the script's child."""
        agents = _children(self.shell.pid)
        return [pid for agent in agents for pid in _children(agent)]

    def kill_all(self) -> None:
        for pid in self.ranks():
            _kill(pid, signal.SIGKILL)
        os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.wait()

    def kill_one(self, rng: random.Random) -> None:
        ranks = self.ranks()
        if ranks:
            _kill(rng.choice(ranks), signal.SIGKILL)


def _children(parent: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def metrics_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def writing_checkpoint(run: Path, process: subprocess.Popen) -> None:
    """Wait for the next checkpoint that is being written."""
    while process.poll() is None and not (run / "checkpoints/fresh.writing").exists():
        time.sleep(0.0005)


def test_kills_lose_nothing(tmp_path, gta5_root, cityscapes_root):
    settings = [*overrides(gta5_root, cityscapes_root), *LONGER]
    log = tmp_path / "log"
    straight = Launched(tmp_path / "straight", settings, log)
    assert straight.shell.wait(300) == 0, log.read_text()

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds = ["one rank", "all", "SIGUSR1", "SIGTERM", "all in checkpoint"]
    number = attempt = 0
    done = []
    while number < KILLS:
        runs = tmp_path / f"killed{attempt}"
        run = runs / "mini/source_only-seed0"
        attempt += 1
        finished = False
        while not finished:
            launched = Launched(runs, settings, log)
            expected = {0}
            began, before = time.monotonic(), metrics_lines(run)
            if number < KILLS:
                kind = kinds[number % len(kinds)]
                wait_for = before + rng.randint(1, 12)
                while launched.shell.poll() is None and metrics_lines(run) < wait_for:
                    time.sleep(0.005)
                time.sleep(rng.random() * 0.15)
                if launched.shell.poll() is None:
                    number += 1
                    done.append((kind, metrics_lines(run)))
                    if kind == "one rank":
                        launched.kill_one(rng)
                    elif kind == "all":
                        launched.kill_all()
                    elif kind == "all in checkpoint":
                        writing_checkpoint(run, launched.shell)
                        launched.kill_all()
                    else:
                        launched.shell.send_signal(getattr(signal, kind))
                        expected.add(CODES[getattr(signal, kind)])
                    if kind.startswith("all"):
                        expected.add(-signal.SIGKILL)
            code = launched.shell.wait(120)
            assert code in expected, (kind, code, log.read_text()[-5000:])
            print(f"{kind} after {done[-1][1]} lines: exit {code} after {time.monotonic() - began:.0f} s", flush=True)
            finished = code == 0
        assert_same_result(run, straight.runs / "mini/source_only-seed0")
    print(f"{number} kills in {attempt} runs, nothing lost")
