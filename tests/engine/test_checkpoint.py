"""A checkpoint is whole or not there; what is broken is refused in one line."""

import resource
import signal

import pytest
import torch

from da.config import UserError
from da.engine import checkpoint

STATE = {"modules": {"m": {"w": torch.arange(5000.0)}}, "step": 3}


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path / "a.pt", STATE)
    state = checkpoint.load(tmp_path / "a.pt")
    assert torch.equal(state["modules"]["m"]["w"], STATE["modules"]["m"]["w"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_last_becomes_previous(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save_last(tmp_path, STATE | {"step": step})
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 3
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 2
    assert checkpoint.find_last(tmp_path) == tmp_path / "last.pt"


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    checkpoint.save_last(tmp_path, STATE | {"step": 1})
    checkpoint.save_last(tmp_path, STATE | {"step": 2})
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")  # the first rename happened, the second did not
    checkpoint.save(tmp_path / "fresh.pt", STATE | {"step": 3})
    assert checkpoint.load(checkpoint.find_last(tmp_path))["step"] == 3
    (tmp_path / "fresh.pt").unlink()
    assert checkpoint.load(checkpoint.find_last(tmp_path))["step"] == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "text", "pickle"])
def test_damage_is_found_and_named(tmp_path, damage):
    path = tmp_path / "a.pt"
    checkpoint.save(path, STATE)
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    elif damage == "text":
        path.write_text("not a checkpoint")
    else:
        torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"a\.pt: (corrupt|not a checkpoint)") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


def test_full_disk_keeps_the_one_before(tmp_path):
    """A limit on file size stands in for a full disk: the write fails half way with an OSError."""
    checkpoint.save_last(tmp_path, STATE)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
        with pytest.raises(UserError, match=r"could not be written.*still holds the state before"):
            checkpoint.save_last(tmp_path, STATE | {"step": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint.load(checkpoint.find_last(tmp_path))["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
