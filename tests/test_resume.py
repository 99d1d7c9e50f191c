"""A run that is killed at any moment ends as if it had not been: weights, optimiser state and metrics are equal."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import assert_continued, assert_same_result, checkpoint_step, last_step
from tiny import METHOD_FILES, REPOSITORY, train_words

from da.trainers import base

STEPS = 24
LONGER = (
    f"run.steps={STEPS}",
    "run.log_every=3",
    "run.val_every=8",
    "run.save_every=4",
    "run.precision=bf16",
    "data.workers=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("method", base.methods())
def test_three_kills_change_nothing(method, tmp_path, gta5_root, cityscapes_root):
    threads = "2" if method == "adaptsegnet" else "1"  # two cost much where other tests run beside this one
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    words = [*train_words(method, gta5_root, cityscapes_root), *LONGER]
    run = f"mini/{METHOD_FILES[method]}-seed0"

    def command(runs: Path) -> list[str]:
        return [sys.executable, "-m", "da", "train", *words, "--runs", str(runs)]

    def run_to_the_end(runs: Path, start: int) -> Path:
        done = subprocess.run(command(runs), cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert_continued(done.stdout, start)
        return runs / run

    straight = run_to_the_end(tmp_path / "straight", 0)

    killed = tmp_path / "killed" / run
    rng = random.Random()
    for low, high in ((1, 6), (9, 14), (17, 22)):
        moment, start = rng.randint(low, high), checkpoint_step(killed)
        with open(tmp_path / "said", "w") as said:
            process = subprocess.Popen(
                command(tmp_path / "killed"), cwd=REPOSITORY, env=environment, stdout=said, stderr=subprocess.DEVNULL
            )
        while last_step(killed) < moment and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "summary.json").exists()
        assert_continued((tmp_path / "said").read_text(), start)
    assert checkpoint_step(killed) >= 16
    run_to_the_end(tmp_path / "killed", checkpoint_step(killed))

    assert_same_result(killed, straight)
