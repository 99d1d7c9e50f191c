"""A checkpoint is whole or not there; what is broken is refused in one line."""

import platform
import resource
import signal
import warnings

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


@pytest.mark.parametrize("renamed", [False, True])
def test_a_save_that_a_kill_cut_off_between_its_renames_is_finished_at_the_next_start(tmp_path, renamed):
    checkpoint.save_last(tmp_path, STATE | {"step": 1})
    checkpoint.save_last(tmp_path, STATE | {"step": 2})
    checkpoint.save(tmp_path / "fresh.pt", STATE | {"step": 3})
    if renamed:
        (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    (tmp_path / "fresh.pt.elsewhere-7.writing").write_text("half of it")
    assert not checkpoint.set_broken_aside(tmp_path)
    assert {p.name: checkpoint.load(p)["step"] for p in tmp_path.iterdir()} == {"last.pt": 3, "previous.pt": 2}


def test_a_process_that_was_suspended_in_a_save_leaves_what_another_one_saved(tmp_path, monkeypatch):
    """That one wrote meanwhile, also to the file that is `fresh.pt` for both."""

    def taken_over() -> None:
        monkeypatch.setattr(platform, "node", lambda: "elsewhere")
        checkpoint.save_last(tmp_path, STATE | {"step": 5})
        raise UserError("taken over")

    checkpoint.save_last(tmp_path, STATE | {"step": 1})
    with pytest.raises(UserError, match="taken over"):
        checkpoint.save_last(tmp_path, STATE | {"step": 2}, taken_over)
    assert {p.name: checkpoint.load(p)["step"] for p in tmp_path.iterdir()} == {"last.pt": 5, "previous.pt": 1}


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
    with pytest.raises(UserError, match=r"a\.pt: corrupt") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_no_flipped_bit_goes_unseen(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"modules": {"m": torch.ones(3)}, "step": 3})
    data = path.read_bytes()
    for position in range(0, len(data) - 7 - 64, 3):  # the seal itself lies behind
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(checkpoint.Broken, match=r"a\.pt: corrupt"):
            checkpoint.load(path)


def test_the_seal_is_invisible_to_torch(tmp_path):
    checkpoint.save(tmp_path / "a.pt", STATE)
    with warnings.catch_warnings(action="error"):
        assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 3


def test_an_error_without_a_text_is_told_by_its_name(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a.pt", STATE)

    def fail(*_, **__):
        raise EOFError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match=r"\(EOFError\)"):
        checkpoint.load(tmp_path / "a.pt")


class NoMemory(RuntimeError):
    """As torch says it."""

    def __init__(self, *_, **__):
        super().__init__("[enforce fail at alloc_cpu.cpp:130] . DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("fault", [NoMemory, lambda *_, **__: OSError(5, "Input/output error"), MemoryError])
def test_a_machine_that_cannot_read_leaves_checkpoints_alone(tmp_path, monkeypatch, fault):
    for name in ("last.pt", "previous.pt"):
        checkpoint.save(tmp_path / name, STATE)

    def fail(*_, **__):
        raise fault()

    with monkeypatch.context() as machine:
        machine.setattr(torch, "load", fail)
        with pytest.raises(UserError, match=r"last\.pt: could not be read"):
            checkpoint.set_broken_aside(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "previous.pt"}
    assert checkpoint.set_broken_aside(tmp_path) == []


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
        for attempt in (checkpoint.save_last, lambda folder, state: checkpoint.save(folder / "best.pt", state)):
            with pytest.raises(UserError, match=r"\(File too large\).*the last checkpoint \(.*last\.pt\) is kept"):
                attempt(tmp_path, STATE | {"step": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint.load(checkpoint.find_last(tmp_path))["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
