"""Checkpoints that are either whole or not there: written aside, flushed to disk, then renamed.

    checkpoints/last.pt           the newest state, for continuing
    checkpoints/previous.pt       the one before it
    checkpoints/best.pt           networks at the best validation score (chosen with target labels: mark it so)
    checkpoints/step_00002000.pt  networks kept every `run.keep_every` steps

A file is a torch archive: its records carry CRC-32 sums, which `load` verifies before anything is used.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from da.config import UserError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) so that a kill at any moment leaves the old or the new file.

    Raises:
        UserError: the disk refuses (full, quota, permission); what stood at `path` before stands there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".writing")
    try:
        with open(aside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        kept = f"; the checkpoint before it ({path}) is untouched" if path.exists() else ""
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: could not be written ({reason}); free space and run again{kept}") from error
    os.replace(aside, path)


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write `last.pt`; the one that stood there becomes `previous.pt`."""
    fresh, last = folder / "fresh.pt", folder / "last.pt"
    try:
        save(fresh, state)
    except UserError as error:
        kept = f"; {last} still holds the state before it" if last.exists() else ""
        raise UserError(f"{error}{kept}") from error
    if last.exists():
        os.replace(last, folder / "previous.pt")
    os.replace(fresh, last)


def find_last(folder: Path) -> Path | None:
    """The newest whole checkpoint, also when a kill fell between two renames."""
    for name in ("last.pt", "fresh.pt", "previous.pt"):
        if (folder / name).exists():
            return folder / name
    return None


def set_broken_aside(folder: Path) -> list[str]:
    """Rename newest checkpoints that are not whole to `*.corrupt`, so that `find_last` gives a whole one.

    Returns a line for each of them.

    Raises:
        UserError: none is left.
    """
    lines: list[str] = []
    while path := find_last(folder):
        try:
            load(path)
            return lines
        except UserError as error:
            aside = path.with_suffix(".corrupt")
            os.replace(path, aside)
            lines.append(f"warning: {error}: it is now {aside.name}, and the checkpoint before it continues")
    if lines:
        raise UserError(
            f"{folder}: no whole checkpoint is left (see *.corrupt there); delete the run folder to begin again"
        )
    return lines


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU after verifying it.

    Raises:
        UserError: missing, truncated, corrupt, or not a checkpoint of this project.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise UserError(f"{path}: corrupt checkpoint (record {broken} fails its checksum); use another one")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint") from error
    except (OSError, RuntimeError, zipfile.BadZipFile, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path}: corrupt or truncated checkpoint ({reason}); use another one") from error
    if not isinstance(state, dict) or not {"modules", "step"} <= state.keys():
        raise UserError(f"{path}: not a checkpoint of this project (no `modules` and `step` in it)")
    return state


def fingerprint(modules: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Hash of the weights and buffers of a checkpoint's `modules`: what is made from equal ones is equal."""
    digest = hashlib.sha256()
    for state in modules.values():
        for tensor in state.values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
