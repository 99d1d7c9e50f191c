"""The run folder: the resolved configuration, what the run is made from, the environment, and the summary that marks a
finished run."""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from da.config import Section, Tree, UserError, check, difference, dump_yaml, flatten, parse_yaml, read_text
from da.engine import dist

OWN = ("config.yaml", "inputs.json", "environment.json", "metrics.jsonl", "summary.json")  # only its job writes them

# Keys that change how fast a run goes, where, or what it shows on the way, never what comes out of it.
FREE = ("data.workers", "run.device", "run.time_limit", "run.log_every", "run.pictures", "run.keep_every")
# The same where there is one process: several average their running statistics each time, which rounds.
FREE_ALONE = ("run.val_every", "run.save_every")
DATA = ("data.source", "data.target", "data.val")  # keys of inputs.json that say which images were read


def claim(folder: Path, config: Section, inputs: Mapping[str, str]) -> None:
    """Write `config.yaml` and `inputs.json` into a new folder; in one that has checkpoints, require the same ones.

    Keys that came after the folder was written have their default there. A root may change where its data are the same.

    Args:
        folder: of the run.
        config: what the run is made of.
        inputs: by key, the images of a stream (`DATA`), or a fingerprint of what an earlier run made for this one. Only
            those are compared that exist now and did when the folder was written.

    Raises:
        UserError: the folder holds a run of another configuration, or one made from other inputs; the message shows
            the difference.
    """
    path = folder / "config.yaml"
    resolved = config.model_dump(mode="json")
    for name in OWN:
        remove_left(folder, f"{name}*.writing")
    if not _claimed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "inputs.json", json.dumps(inputs, indent=2) + "\n")
        write_text(path, dump_yaml(resolved))
        return
    before, finished = _read_inputs(folder), (folder / "summary.json").exists()
    moved = [key for key in DATA if before.get(key) and before.get(key) == inputs.get(key)]
    free = (*FREE, *(FREE_ALONE if dist.world() == 1 else ()), *(f"{key}.root" for key in moved))
    differences = difference(_read(path, config), resolved)
    # of several sources each has a root: data.source.1.root
    changed = [line for line in differences if re.sub(r"\.\d+\.", ".", line.partition(": ")[0]) not in free]
    for key in before.keys() & inputs.keys() & set(DATA):
        if before[key] != inputs[key] and (changed or not finished):
            changed.append(f"{key} was {before[key]}, now {inputs[key]}")
    if changed:
        raise UserError(
            f"{folder} holds a run of another configuration ({'; '.join(changed)}); "
            "give the new run its own name=... or delete the folder"
        )
    for key in (before.keys() & inputs.keys()) - set(DATA):
        if before[key] != inputs[key]:
            raise UserError(
                f"{folder} was made from another state of {key} {flatten(resolved)[key]} (weights {before[key]}, "
                f"now {inputs[key]}); delete the folder to make it anew, or give the new run its own name=..."
            )
    if differences and not finished:  # as of the newest start
        write_text(path, dump_yaml(resolved))


def recorded(folder: Path) -> dict[str, Any]:
    """The `run:` section of the run that `folder` holds, empty where it holds none. What was begun with `auto` goes on
    in what it was on whatever machine."""
    run = _stored(folder).get("run") if _claimed(folder) else None
    return run if isinstance(run, dict) else {}


def _claimed(folder: Path) -> bool:
    return (folder / "config.yaml").exists() and (folder / "checkpoints").exists()


def _read_inputs(folder: Path) -> dict[str, str]:
    return read_json(folder / "inputs.json", "delete it, and what the run was made from is not compared") or {}


def read_json(path: Path, remedy: str, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    """The object in a file of ours, None where there is no such file.

    Raises:
        UserError: damaged, or without one of the keys `needed`; `remedy` says what to do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or set(needed) - found.keys():
        raise UserError(f"{path}: damaged; {remedy}")
    return found


def _stored(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    found = parse_yaml(read_text(path), str(path))
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged; restore it, or delete the folder to begin again")
    return found


def _read(path: Path, like: Section) -> dict[str, Any]:
    stored = Tree()
    stored.add(_stored(path.parent), str(path))
    try:
        return check(type(like), stored).model_dump(mode="json")
    except UserError:  # of another trainer, or with keys that are no more
        return stored.values


def describe_environment(folder: Path, device: torch.device) -> None:
    """Write `environment.json`: code, versions, device and command of the newest start."""
    facts = {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "command": " ".join(sys.argv),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
        "backend": dist.backend(),
    }
    write_text(folder / "environment.json", json.dumps(facts, indent=2) + "\n")


def commit() -> str | None:
    """The commit of the code that runs, with `-dirty` where it was changed; None without git or checkout."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # no git here
        return None


def device_name(device: torch.device) -> str:
    """The model of a GPU or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def aside(path: Path) -> Path:
    """Where this process writes what becomes `path`: another one, also a job that took its place, writes elsewhere."""
    return path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.writing")


def remove_left(folder: Path, pattern: str = "*.writing") -> None:
    """Remove what killed processes were writing in `folder`. Only for who holds its lock."""
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write instead of `path`, which takes its place when written, whole or not at all."""
    fresh = aside(path)
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
        to_disk(fresh)


def link_or_copy(file: Path, link: Path) -> None:
    """Make `link` a link to `file`, or a copy on a file system without links; it may be there, and be cut off."""
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(file.resolve())
    except OSError:
        shutil.copy2(file, link)


def to_disk(path: Path) -> None:
    """Wait until what was written to a file would outlive its machine."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_summary(folder: Path) -> dict[str, Any] | None:
    """`summary.json` of a finished run, None while there is none."""
    remedy = "delete it, and the same command writes it again"
    return read_json(folder / "summary.json", remedy, ("run", "step", "scores", "protocol", "best"))
