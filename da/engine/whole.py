"""A folder that a command makes over several calls: it is there when all of it is."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from da.config import UserError
from da.engine import lock, run_files


@contextlib.contextmanager
def made_whole(out: Path, require_same: Callable[[Path], object]) -> Iterator[tuple[Path, Callable[[], None]]]:
    """`<out>.partial`, in which to make what becomes `out` at the end of the block; a call that was killed or stopped
    leaves it for the next one.

    Args:
        out: what is made; not there yet.
        require_same: called with what an earlier call has left; raises a UserError where that is of another kind.

    Yields:
        The folder, and a function to call before anything is written to it: it raises where another job took over.

    Raises:
        UserError: another call is making `out`, or has just made it.
    """
    partial = out.with_name(out.name + ".partial")
    with _removed_if_empty(partial), lock.held(partial, "name another folder"):
        if out.exists():
            raise UserError(f"{out}: another call has just completed it")
        confirm = functools.partial(lock.confirm, partial, lock.owner(partial))
        run_files.remove_left(partial)
        if any(path.suffix != ".lock" for path in partial.iterdir()):
            require_same(partial)
        yield partial, confirm
        confirm()
        os.replace(partial, out)
        (out / "run.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
