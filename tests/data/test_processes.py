"""Processes beside the main one: they end with it, nothing waits for what they cannot send, and what lacks is named."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from runs import children
from tiny import REPOSITORY
from torch.utils.data import Dataset

from da.config import UserError
from da.data import loaders, processes
from da.data.loaders import Loaded, workers_watched

FULL = "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"


class Unsendable:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self):
        if multiprocessing.parent_process() is None:
            return Unsendable, (self.error,)
        raise self.error


class Numbers(Dataset):
    """Three numbers; the last, or a later wait, is what `kind` says."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int):
        if i < 2 or self.kind == "fine":
            return torch.tensor(i)
        if self.kind == "asleep":
            time.sleep(1000)
        errors = {"full": RuntimeError(FULL), "files": OSError(24, "Too many open files"), "other": TypeError("no way")}
        return Unsendable(errors[self.kind])


@pytest.mark.parametrize(("kind", "said"), [("full", "/dev/shm"), ("files", "ulimit -n"), ("other", "no way")])
def test_a_batch_that_cannot_be_sent_is_one_line(kind, said):
    began = time.monotonic()
    with pytest.raises(UserError, match=said) as caught, workers_watched():
        list(Loaded(Numbers(kind), 1, batch_size=None))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_batch_that_never_comes_is_given_up(monkeypatch):
    monkeypatch.setattr(loaders, "PATIENCE", 5.0)
    with pytest.raises(UserError, match="no batch came from the data loading processes"), workers_watched():
        list(Loaded(Numbers("asleep"), 1, batch_size=None))


def test_too_few_descriptors_are_named_before_anything_starts():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, before[1]))
    try:
        with pytest.raises(UserError, match=rf"{used + 5} are allowed \(ulimit -n\).*lower data.workers"):
            list(Loaded(Numbers("fine"), 1, batch_size=None))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError(23, "Too many open files in system"), "ulimit -n"),
    ],
)
def test_what_torch_says_of_a_shortage_is_understood(error, said):
    assert said in processes.shortage(error)


def _die(_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_function_that_crashes_its_process_harms_nobody():
    assert processes.apart(abs, -3) == 3
    with pytest.raises(BrokenProcessPool):
        processes.apart(_die, 0)
    with pytest.raises(UserError, match="a process that decodes files died"), processes.pool(1) as pool:
        list(pool.map(_die, [0]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_of_a_pool_end_with_the_main_one(number, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import signal, time\nfrom da.data import processes\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored\n"
        "if __name__ == '__main__':\n"
        "    with processes.pool(2) as pool:\n"
        "        print(*pool.map(abs, [1, 2]), flush=True)\n"
        "        list(pool.map(time.sleep, [2] * 100))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline().split() == [b"1", b"2"]
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    process.wait(30)
    until = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_partial_folder_is_renamed_or_deleted_and_what_a_kill_left_goes(tmp_path):
    whole = tmp_path / "whole"
    left = tmp_path / "whole.partial-left"
    left.mkdir()
    with processes.partial_folder(whole) as folder:
        assert not left.exists()
        with processes.partial_folder(whole) as other:  # of another process; ours is locked and stays
            assert folder.exists()
        assert not other.exists()
        folder.rename(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
