"""One job per run folder: `run.lock` names its owner, and its modification time is the owner's heartbeat.

File locks are not to be relied on across the hosts of a cluster, so the file is simply there while its owner works.
An owner that was killed leaves it behind. It is then taken over: at once where the owner is seen to be dead (same
machine), soon where it belonged to the same job (requeued, or restarted by torchrun), else after `SILENCE` without a
heartbeat.
No clocks of two hosts are compared. An owner that was only suspended finds out by `confirm`, and must leave.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from da.config import UserError
from da.engine import dist
from da.engine.log import say

BEAT = 5.0  # seconds between heartbeats
SILENCE = 30.0  # seconds without a heartbeat after which an owner counts as dead


@contextlib.contextmanager
def held(folder: Path, otherwise: str = "give this run its own name=... or seed=...") -> Iterator[None]:
    """Hold the lock of a run folder (main process only; the others wait for it at their next common call).

    The folder may be renamed meanwhile; `run.lock` then stays in it.

    Raises:
        UserError: a living job holds it; the message names host, process, job and start.
    """
    if not dist.is_main():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path, me = folder / "run.lock", _me()
    _take(path, me, otherwise)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, me, done), daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        if _read(path) == me:
            path.unlink(missing_ok=True)


def owner(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock of a run folder; None where nobody does."""
    return _read(folder / "run.lock")


def confirm(folder: Path, before: dict[str, Any] | None) -> None:
    """Make sure, ahead of writing, that the lock is still held as it was when this process began.

    Raises:
        UserError: another job took the folder over, as of a process that was suspended for longer than `SILENCE`.
    """
    try:
        now = owner(folder)
    except OSError:  # a network file system may be away for a moment
        return
    if now != before or (now and now.get("pid") != os.getpid()):
        by = f"by {_named(now)}" if now else "and left by another job"
        raise UserError(
            f"{folder} was taken over {by} while this process was suspended; it stops without saving: leave the run to "
            "the other job, or run this command again when that one is done"
        )


def _named(owner: dict[str, Any]) -> str:
    job, started = owner.get("job") or "none", owner.get("started")
    return f"process {owner.get('pid')} on {owner.get('host')} (job {job}, started {started})"


def _me() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "job": job if job != "none" else None,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": f"{platform.node()} {_pid_namespace()}",
    }


def _pid_namespace() -> str:
    """Two containers of one host may both have a process 7."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds the lock; None where nobody does, an empty owner where the file cannot be understood."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _take(path: Path, me: dict[str, Any], otherwise: str) -> None:
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:  # one process alone succeeds, on network file systems too
                _sign(file, me)
            return
        except FileExistsError:
            owner = _read(path)
        except FileNotFoundError:  # the folder was renamed meanwhile
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        if owner is None:
            continue
        if _alive(path, owner, me):
            raise UserError(
                f"{path.parent} is in use by {_named(_read(path) or owner)}; stop that one or wait for it, "
                f"or {otherwise}"
            )
        _remove(path, owner, me, otherwise)


def _sign(file: IO[str], me: dict[str, Any]) -> None:
    """Write the owner into its lock; where that fails (full disk) there is no lock."""
    try:
        file.write(json.dumps(me))
        file.flush()
    except OSError:
        Path(file.name).unlink(missing_ok=True)
        raise


def _remove(path: Path, dead: dict[str, Any], me: dict[str, Any], otherwise: str) -> None:
    """Remove the lock of a dead owner, but never one that another starter took in its place meanwhile.

    Between looking and removing nobody else may remove it. So this has a lock of its own, and, since its holder may
    be killed like any other, that one is taken like any other.
    """
    guard = path.with_name(path.name + ".removal")
    _take(guard, me, otherwise)
    try:
        if _read(path) == dead:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _alive(path: Path, owner: dict[str, Any], me: dict[str, Any]) -> bool:
    patience = SILENCE
    if owner.get("machine") == me["machine"]:
        if not _runs(owner.get("pid", 0)):
            return False
    elif owner.get("job") and owner["job"] == me["job"]:
        patience = 2 * BEAT
    say(f"{path} is held by process {owner.get('pid')} on {owner.get('host')}; listening for its heartbeat ...")
    first, until = _heartbeat(path), time.monotonic() + patience
    while time.monotonic() < until:
        time.sleep(BEAT / 5)
        now = _heartbeat(path)
        if now != first:
            return now is not None
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _heartbeat(path: Path) -> float | None:
    try:
        with open(path, encoding="utf-8") as file:  # opening asks a network file system for the newest state
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _beat(path: Path, me: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):  # a network file system may be away for a moment
            if _read(path) == me:
                os.utime(path)
