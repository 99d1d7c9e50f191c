"""Processes that decode and render beside the main one: they end with it, and what they lack is said in one line."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from da.config import UserError

T = TypeVar("T")

SHARED_MEMORY = Path("/dev/shm")
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit locks that threads hold, and the pipes of others


def shortage(error: BaseException) -> str | None:
    """What the machine had too little of, with the remedy, in one line; None where `error` is about something else."""
    below: BaseException | None = error
    while below:
        number, text = getattr(below, "errno", None), str(below)
        if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "ancdata" in text:
            return few_descriptors()
        if number == errno.ENOSPC or "(shm)" in text or "Bus error" in text:
            return small_shared_memory()
        below = below.__cause__ or below.__context__
    return None


def few_descriptors() -> str:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"too few file descriptors: {allowed} are allowed (ulimit -n), and batches from loading processes need more; "
        "allow more (ulimit -n 4096) or lower data.workers (cache: --workers; 0 needs none), and the same command goes "
        "on"
    )


def small_shared_memory() -> str:
    try:
        found = shutil.disk_usage(SHARED_MEMORY)
        size = f"{found.total / 2**20:.0f} MiB in all, {found.free / 2**20:.0f} free"
    except OSError as error:
        size = str(error.strerror)
    return (
        f"{SHARED_MEMORY} ({size}) is too small for the batches that loading processes hand over in it; make it larger "
        "(docker run --shm-size=8g; mount -o remount,size=8g /dev/shm) or lower data.workers (cache: --workers; 0 "
        "needs none), and the same command goes on"
    )


def require_descriptors(count: int) -> None:
    """
    Raises:
        UserError: this process may not open `count` more files.
    """
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(count):
                opened.enter_context(open(os.devnull, "rb"))  # noqa: SIM115
        except OSError as error:
            raise UserError(few_descriptors()) from error


def end_with_the_main_process() -> None:
    """Let this process end when the one that started it is gone, however that ended."""
    threading.Thread(target=_outlive_nobody, daemon=True).start()


def _outlive_nobody() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)


def _start() -> None:
    end_with_the_main_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process gets it too, and ends this one


@contextlib.contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """`workers` processes for one job; after an error or Ctrl-C nothing more is begun, and none outlives this process.

    Raises:
        UserError: one of them died, or the machine has too little of something they need.
    """
    try:
        executor = ProcessPoolExecutor(workers, SPAWN, initializer=_start)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes files died, most often killed by the system for want of memory; run again"
        ) from error
    except OSError as error:
        if error.filename is None and (lack := shortage(error)):
            raise UserError(lack) from error
        raise


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)` in a process of its own, which it may crash.

    Raises:
        BrokenProcessPool: it did. Else what `function` raises.
    """
    with ProcessPoolExecutor(1, SPAWN, initializer=_start) as executor:
        return executor.submit(function, *arguments).result()


@contextlib.contextmanager
def partial_folder(whole: Path) -> Iterator[Path]:
    """A new folder beside `whole` in which to make it, to be renamed when complete and deleted if it was not.

    What killed processes left of earlier tries is deleted first. A folder that is still worked on is locked.
    """
    for left in whole.parent.glob(f"{whole.name}.partial-*"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{whole.name}.partial-", dir=whole.parent))
        try:
            with _locked(folder):
                if not folder.exists():  # deleted as a left one, before it was locked
                    continue
                yield folder
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """
    Raises:
        OSError: another process holds the lock, or the folder is gone.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
