"""Checkpoints that are either whole or not there: written aside, flushed to disk, then renamed.

    checkpoints/last.pt           the newest state, for continuing
    checkpoints/previous.pt       the one before it
    checkpoints/best.pt           networks at the best validation score (chosen with target labels: mark it so)
    checkpoints/step_00002000.pt  networks kept every `run.keep_every` steps
    checkpoints/fresh.pt          for a moment: what becomes last.pt, newer than it

A file is a torch archive, which `torch.load` reads, and behind it the SHA-256 of all its bytes, which `load` verifies
before anything is used.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from da.config import UserError
from da.engine import run_files

SEAL = b"sha256:"  # opens the last bytes of a file; the digest in hexadecimal follows
SEAL_BYTES = len(SEAL) + 64


class Broken(UserError):
    """The content of a checkpoint is not what was written. Reading it again would not help."""


class _Sealed:
    """A file that is written from beginning to end and then sealed with the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        self._file.write(SEAL + self._digest.hexdigest().encode())


def save(path: Path, state: dict[str, Any], confirm: Callable[[], None] = lambda: None) -> None:
    """Write `state` (tensors and plain values) so that a kill at any moment leaves the old or the new file.

    Args:
        path: the file.
        state: what `load` gives back.
        confirm: called when all is written, before it takes the old file's place; it may refuse by an exception.

    Raises:
        UserError: the disk refuses (full, quota, permission); what stood at `path` before stands there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with run_files.replacing(path) as fresh:
        try:
            with open(fresh, "wb") as file:
                sealed = _Sealed(file)
                torch.save(state, cast(Any, sealed))  # all it asks for is `write` and `flush`
                sealed.seal()
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            last = find_last(path.parent)
            kept = f"; the last checkpoint ({last}) is kept" if last else ""
            raise UserError(
                f"{path}: could not be written ({_reason(error)}); free space and run again{kept}"
            ) from error
        confirm()


def save_last(folder: Path, state: dict[str, Any], confirm: Callable[[], None] = lambda: None) -> None:
    """Write `last.pt`; the one that stood there becomes `previous.pt`. `confirm`: see `save`."""
    save(folder / "fresh.pt", state, confirm)
    _to_last(folder)


def _to_last(folder: Path) -> None:
    last = folder / "last.pt"
    if last.exists():
        os.replace(last, folder / "previous.pt")
    os.replace(folder / "fresh.pt", last)


def find_last(folder: Path) -> Path | None:
    """The newest checkpoint, also when a kill fell between two renames."""
    return next(_newest_first(folder), None)


def _newest_first(folder: Path) -> Iterator[Path]:
    return (folder / name for name in ("last.pt", "fresh.pt", "previous.pt") if (folder / name).exists())


def set_broken_aside(folder: Path) -> list[str]:
    """Finish a save that a kill cut off: the newest is then `last.pt`. Rename newest checkpoints that are broken to
    `*.corrupt`, so that `find_last` gives a whole one.

    Nothing is renamed before a whole one is found. Returns a line for each of them.

    Raises:
        UserError: some are broken and none is whole, or one cannot be read; all stay as they are.
    """
    run_files.remove_left(folder)
    with contextlib.suppress(UserError):
        load(folder / "fresh.pt")
        _to_last(folder)
    broken: dict[Path, Broken] = {}
    for path in _newest_first(folder):
        try:
            load(path)
        except Broken as error:
            broken[path] = error
            continue
        for each in broken:
            os.replace(each, each.with_suffix(".corrupt"))
        return [
            f"warning: {error}: it is now {each.stem}.corrupt, and the checkpoint before it continues"
            for each, error in broken.items()
        ]
    if found := [*broken, *sorted(folder.glob("*.corrupt"))]:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{folder}: no whole checkpoint is left (broken: {names}); delete the run folder to begin again"
        )
    return []


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU after verifying it.

    Raises:
        Broken: truncated, corrupt, or not a checkpoint of this project.
        UserError: missing, or the machine could not read it (disk, memory), which says nothing about the file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True) if _is_whole(path) else None
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except Exception as error:  # not for its content, which is what was written
        raise UserError(f"{path}: could not be read ({_reason(error)}); mend that and run again") from error
    if state is None:
        raise Broken(f"{path}: corrupt, truncated, or no checkpoint of this project (its checksum is wrong)")
    return cast(dict[str, Any], state)


def fingerprint(modules: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Hash of the weights and buffers of a checkpoint's `modules`: what is made from equal ones is equal."""
    digest = hashlib.sha256()
    for state in modules.values():
        for tensor in state.values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Is the file sealed, and its content what was sealed?"""
    with open(path, "rb") as file:
        body = max(0, os.fstat(file.fileno()).st_size - SEAL_BYTES)
        digest = hashlib.sha256()
        while block := file.read(min(body, 2**20)):
            digest.update(block)
            body -= len(block)
        return file.read() == SEAL + digest.hexdigest().encode()


def _reason(error: BaseException) -> str:
    """In one line, from the error of the disk where one lies below: torch's writer hides it."""
    below: BaseException | None = error
    while below:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        below = below.__context__
    return str(error).partition("\n")[0][:120] or type(error).__name__
