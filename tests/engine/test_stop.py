"""Requests to stop, the lock of a run folder, and checkpoints that are not whole."""

import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from test_loop import Method, batches, loop
from tiny import REPOSITORY

from da.config import UserError
from da.engine import checkpoint, lock
from da.engine.loop import RunConfig
from da.engine.stop import Stopped, StopRequests, seconds


def test_times_are_read_strictly():
    assert [seconds(t) for t in ("3h50m", "45m", "90s", "1d12h")] == [13800, 2700, 90, 129600]
    for text in ("", "3:50", "3600", "50m3h", "3 h"):
        with pytest.raises(ValueError, match="like 3h50m"):
            seconds(text)
    with pytest.raises(ValueError, match="like 3h50m"):
        RunConfig(steps=1, time_limit=3600)


@pytest.mark.parametrize(("number", "code"), [("SIGUSR1", 75), ("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR2", 130)])
def test_a_signal_stops_at_the_next_poll(number, code):
    with StopRequests(None) as stop:
        stop.poll()
        os.kill(os.getpid(), getattr(signal, number))
        with pytest.raises(Stopped) as caught:
            stop.poll()
    assert caught.value.code == code


@pytest.mark.parametrize("before", [(), ("SIGTERM",), ("SIGUSR1",), ("SIGUSR2",)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2])
def test_the_second_interrupt_does_not_wait(before, number):
    """Whatever was asked before; one Ctrl-C that comes both ways is not the second."""
    with StopRequests(None):
        for name in before:
            if getattr(signal, name) != number:
                os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)  # while the first is being answered


def test_the_time_limit_counts_from_the_start_of_the_script(monkeypatch):
    monkeypatch.setenv("DA_STARTED", "0")
    with StopRequests(60) as stop, pytest.raises(Stopped):
        stop.poll()


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_stop_before_any_validation_loses_nothing(cut, tmp_path):
    """Log lines every 4, validations every 5, checkpoints every 3 of 10 updates; stopped after update `cut`."""
    calls = iter(range(100))

    def poll():
        if next(calls) == cut - 1:
            raise Stopped(75)

    torch.manual_seed(0)
    loop(tmp_path / "straight", Method()).fit(batches)
    torch.manual_seed(0)
    with pytest.raises(Stopped):
        loop(tmp_path / "cut", Method(), poll).fit(batches)
    loop(tmp_path / "cut", Method()).fit(batches)

    states, logs = [], []
    for run in (tmp_path / "straight", tmp_path / "cut"):
        states.append(checkpoint.load(run / "checkpoints/last.pt"))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        logs.append([(line["step"], line.get("loss/fit"), "val/mIoU" in line) for line in lines])
    assert logs[0] == logs[1]
    assert torch.equal(*(state["modules"]["layer"]["weight"] for state in states))


@pytest.mark.slow
def test_the_second_job_on_a_folder_refuses_and_names_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    code = f"import pathlib, sys; from da.engine import lock; held = lock.held(pathlib.Path({str(tmp_path)!r})); "
    code += "held.__enter__(); print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert first.stdout.readline() == b"held\n"
    second = lock.held(tmp_path)
    with pytest.raises(UserError, match=rf"is in use by process {first.pid} on .* \(job none, started 2"):
        second.__enter__()
    first.kill()
    first.wait()
    with lock.held(tmp_path):
        pass


def test_the_lock_of_a_dead_process_or_of_the_same_job_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "run.lock"
    here = lock._me()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for owner in (here | {"pid": dead.pid}, here | {"machine": "elsewhere", "host": "elsewhere", "job": "7"}):
        path.write_text(json.dumps(owner))
        with lock.held(tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert not path.exists()


def test_two_steps_of_one_job_on_two_machines_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    path, other = tmp_path / "run.lock", lock._me() | {"machine": "elsewhere", "host": "elsewhere"}
    path.write_text(json.dumps(other))
    done = threading.Event()
    heart = threading.Thread(target=lock._beat, args=(path, other, done))
    heart.start()
    with pytest.raises(UserError, match="is in use by process .* on elsewhere"), lock.held(tmp_path):
        pass
    done.set()
    heart.join()


def test_a_lock_that_a_full_disk_does_not_take_is_not_there(tmp_path, monkeypatch):
    class Full(io.StringIO):
        name = str(tmp_path / "run.lock")

        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "run.lock").touch()
    with pytest.raises(OSError, match="No space left"):
        lock._sign(Full(), lock._me())
    assert not (tmp_path / "run.lock").exists()


def test_a_run_whose_folder_was_taken_over_stops_without_saving(tmp_path):
    """Suspended (SIGSTOP) after update 7, and awake again when another job is its owner, or was and has finished."""
    for new in (lock._me() | {"pid": 1, "host": "elsewhere"}, None):
        run = tmp_path / f"run_{new is None}"
        calls = iter(range(100))

        def suspended(path=run / "run.lock", new=new, calls=calls):
            if next(calls) == 6:
                path.unlink()
                if new:
                    path.write_text(json.dumps(new))

        with lock.held(run), pytest.raises(UserError, match="was taken over .*without saving") as caught:
            loop(run, Method(), suspended).fit(batches)
        assert not new or "by process 1 on elsewhere" in str(caught.value)
        assert checkpoint.load(run / "checkpoints/last.pt")["step"] == 6
        assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [4, 5]
        assert lock.owner(run) == new


def test_of_two_simultaneous_starters_one_takes_over(tmp_path, monkeypatch):
    """The second one comes between the first one's last look at the dead owner's lock and its removal."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path, here = tmp_path / "run.lock", lock._me()
    path.write_text(json.dumps(here | {"pid": dead.pid}))
    monkeypatch.setattr(lock, "BEAT", 0.1)
    first, second = here | {"pid": 1}, here | {"pid": os.getppid()}  # both are alive
    done: list[str] = []

    def rival():
        try:
            lock._take(path, second, "wait")
            done.append("taken")
        except UserError:
            done.append("refused")

    thread, looks, read = threading.Thread(target=rival), [], lock._read

    def look(path):
        owner = read(path)
        if threading.current_thread() is not thread and path.name == "run.lock" and owner:
            looks.append(owner)
            if len(looks) == 2:
                thread.start()
                thread.join(1.0)
        return owner

    monkeypatch.setattr(lock, "_read", look)
    lock._take(path, first, "wait")
    while thread.is_alive():
        os.utime(path)  # the heartbeat
        time.sleep(0.01)
    assert done == ["refused"]
    assert read(path) == first
    assert [p.name for p in tmp_path.iterdir()] == ["run.lock"]


def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(tmp_path):
    state = {"modules": {}, "w": torch.zeros(999)}
    for step in (1, 2):
        checkpoint.save_last(tmp_path, state | {"step": step})
    data = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(data[: len(data) // 2])
    (line,) = checkpoint.set_broken_aside(tmp_path)
    assert "last.pt: corrupt" in line
    assert checkpoint.load(checkpoint.find_last(tmp_path))["step"] == 1
    (tmp_path / "previous.pt").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no whole checkpoint is left \(broken: previous.pt, last.corrupt\)"):
            checkpoint.set_broken_aside(tmp_path)
    (tmp_path / "previous.pt").unlink()
    with pytest.raises(UserError, match=r"no whole checkpoint is left \(broken: last.corrupt\)"):
        checkpoint.set_broken_aside(tmp_path)


@pytest.mark.parametrize("asked", ["SIGTERM", "the time limit"])
def test_a_wait_for_data_ends_soon_after_the_run_is_asked_to_stop(asked, tmp_path, monkeypatch):
    """What was trained before the wait is saved."""
    monkeypatch.setattr("da.engine.stop.GRACE", 0.3)

    def hanging(start):
        yield from itertools.islice(batches(start), 5)
        if asked == "SIGTERM":
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(100)

    with StopRequests(1 if asked == "the time limit" else None) as stop:
        run = loop(tmp_path, Method())
        run.waiting = stop.waiting
        began = time.monotonic()
        with pytest.raises(Stopped):
            run.fit(hanging)
    assert time.monotonic() - began < 20
    assert checkpoint.load(tmp_path / "checkpoints/last.pt")["step"] == 5


def test_a_wait_within_a_validation_ends_too(monkeypatch):
    monkeypatch.setattr("da.engine.stop.GRACE", 0.3)
    with StopRequests(None) as stop:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Stopped):
            list(stop.watch(iter(lambda: time.sleep(100), 0), 1))
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
