"""What a cluster does to a run: one clear line, exit code 2, and the same command goes on."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import children
from tiny import REPOSITORY, overrides

from da.cli import main
from da.config import UserError
from da.data.loaders import WORKERS, Loaded, _say_instead, workers_watched
from da.engine import checkpoint, run_files


@pytest.fixture
def command(gta5_root, cityscapes_root, tmp_path) -> list[str]:
    file = str(REPOSITORY / "experiments/mini/source_only.yaml")
    return ["train", file, *overrides(gta5_root, cityscapes_root), "--runs", str(tmp_path / "runs")]


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "runs/mini/source_only-seed0"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints/last.pt")["modules"]["segmenter"]


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(command, run, capsys, monkeypatch):
    with monkeypatch.context() as long_ago:
        long_ago.setenv("DA_STARTED", "0")
        assert main([*command, "run.time_limit=1s"]) == 75  # after one update
    with monkeypatch.context() as full:
        full.setattr(run_files, "remove_left", lambda *_: None)
        run_files.aside(run / "checkpoints/fresh.pt").symlink_to("/dev/full")
        capsys.readouterr()
        assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "No space left on device" in line
    assert "last.pt) is kept" in line
    assert checkpoint.load(run / "checkpoints/last.pt")["step"] == 1
    assert main(command) == 0


def test_a_corrupt_last_checkpoint_is_named_and_the_one_before_it_continues(command, run, capsys):
    assert main(command) == 0
    finished = weights(run)
    (run / "summary.json").unlink()
    last = run / "checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"warning: {last}: corrupt, truncated" in said
    assert "continuing from step 2" in said
    assert all(torch.equal(value, finished[key]) for key, value in weights(run).items())


def test_a_kill_between_the_renames_of_the_last_save_leaves_a_last_checkpoint(command, run, capsys):
    assert main(command) == 0
    (run / "summary.json").unlink()
    (run / "checkpoints/last.pt").rename(run / "checkpoints/fresh.pt")
    capsys.readouterr()
    assert main(command) == 0
    assert "continuing from step 4" in capsys.readouterr().out
    assert checkpoint.load(run / "checkpoints/last.pt")["step"] == 4
    assert not (run / "checkpoints/fresh.pt").exists()


def test_without_a_whole_checkpoint_it_refuses_every_time(command, run, capsys):
    assert main(command) == 0
    (run / "summary.json").unlink()
    metrics = (run / "metrics.jsonl").read_text()
    for name in ("last.pt", "previous.pt"):
        (run / "checkpoints" / name).write_bytes(b"")
    capsys.readouterr()
    for _ in range(2):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no whole checkpoint is left (broken: last.pt, previous.pt); delete the run folder" in line
    assert (run / "metrics.jsonl").read_text() == metrics


@pytest.fixture
def loading(command, run):
    """A long run, after its first update, and the numbers of its data workers."""
    settings = ["data.workers=1", "run.steps=9999", "run.val_every=9999", "run.save_every=9999"]
    words = [sys.executable, "-m", "da", *command, *settings]
    process = subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    workers = [worker for server in children(process.pid) for worker in children(server)]
    assert len(workers) == 1
    yield process, workers
    process.kill()


@pytest.mark.slow
def test_a_killed_data_worker_is_one_clear_line(loading):
    process, workers = loading
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in said
    assert "error: a data loading process died" in said
    assert "lower data.workers" in said


class Gone:
    """A loader whose worker dies while it hands over a batch."""

    num_workers = 1

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error
        yield


@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError("Pin memory thread exited unexpectedly")])
def test_a_worker_killed_with_a_batch_in_its_hands_is_the_same_line(error):
    """To the run itself, or to the thread that copies batches to pinned memory."""
    loaded = Loaded([], 0)
    loaded.loader = Gone(error)
    with pytest.raises(UserError, match="a data loading process died"), workers_watched():
        list(loaded)


def test_a_second_batch_that_cannot_be_sent_is_silent_where_the_first_was_heard_of():
    """The main process has ended the worker, whose thread would print into the one line that says why."""
    queue = WORKERS.Queue()
    queue.close()
    _say_instead(queue, OSError(errno.ENOSPC, "No space left on device"), (1, None))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_a_signal_to_every_process_of_the_job_stops_and_saves(loading, run, number, code):
    process, _ = loading
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert not said
    assert checkpoint.load(run / "checkpoints/last.pt")["step"] >= 1


@pytest.mark.slow
def test_data_workers_end_with_a_killed_run(loading):
    process, workers = loading
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while Path(f"/proc/{workers[0]}").exists():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("mount -t tmpfs -o size=1m tmpfs /dev/shm", "/dev/shm (1 MiB in all"),
        ("ulimit -n 36", "36 are allowed (ulimit -n)"),
    ],
)
def test_a_machine_that_cannot_hand_over_batches_is_one_line_and_the_run_goes_on_elsewhere(command, run, limit, said):
    """As in a container, where /dev/shm has 64 MiB; in a mount namespace of its own, which needs the rights of root."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no right to a mount namespace")
    large = [
        "data.batch_size=6",
        "data.source.crop=[640, 480]",
        "run.steps=1",
        "model.aux=false",
        "method.lambda_aux=0",
    ]
    words = [sys.executable, "-m", "da", *command, *large]
    shell = ["unshare", "-m", "bash", "-c", f'{limit} && exec "$@"', "bash", *words, "data.workers=2"]
    done = subprocess.run(shell, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: ")
    assert said in line
    assert "lower data.workers" in line
    assert subprocess.run([*words, "data.workers=0"], cwd=REPOSITORY, capture_output=True).returncode == 0
    assert (run / "summary.json").exists()
