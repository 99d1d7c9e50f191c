"""Two processes that do not find the same: all of them say so and end, before they wait for each other for ever."""

from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing
from test_loop import Method, batches, loop
from torch import nn

from da.config import UserError
from da.engine import checkpoint, dist
from da.engine.history import ImagePool

pytestmark = pytest.mark.slow


def _process(rank: int, folder: Path, work) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    work(folder, rank)
    dist.shutdown()
    assert not [name for name in _threads() if "gloo" in name], "a thread of the group outlives it"


def _threads() -> list[str]:
    """The names of this process's threads, those of libraries too; none where there is no /proc."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


def two_processes(folder: Path, work) -> None:
    """`work(folder, rank)` in both; what it raises is raised here."""
    torch.multiprocessing.spawn(_process, (folder, work), nprocs=2)


def _one_sees_an_older_folder(folder: Path, rank: int) -> None:
    if rank == 1:
        checkpoint.find_last = lambda checkpoints: checkpoints / "previous.pt"
    with pytest.raises(UserError, match=r"shows different files to different machines .*from steps 10, 9\)"):
        loop(folder, Method())


def test_processes_that_would_continue_from_different_steps_refuse(tmp_path):
    loop(tmp_path, Method()).fit(batches)
    two_processes(tmp_path, _one_sees_an_older_folder)


def _one_image_is_larger(folder: Path, rank: int) -> None:
    with pytest.raises(UserError, match=r"differ in size; set data\.source\.crop"):
        ImagePool(2, seed=0).exchange(torch.zeros(1, 3, 4, 4 + rank))
    pool = ImagePool(2, seed=0)
    pool.exchange(torch.zeros(1, 3, 4, 4))
    assert [image.shape for image in pool.images] == 2 * [(3, 4, 4)]
    dist.barrier()
    with pytest.raises(UserError, match="differ in size"):
        pool.exchange(torch.zeros(1, 3, 4, 5 + rank))


def test_processes_with_images_of_different_sizes_refuse(tmp_path):
    two_processes(tmp_path, _one_image_is_larger)


def test_equal_statistics_of_any_number_of_processes_stay_as_they_are(monkeypatch):
    norm = nn.BatchNorm2d(1000)
    norm.running_var.uniform_()
    before = norm.running_var.clone()
    for world in (3, 5, 6, 7, 8):
        monkeypatch.setattr(dist, "world", lambda world=world: world)
        monkeypatch.setattr(distributed, "all_reduce", lambda x, world=world: x.copy_(sum([x] * (world - 1), x)))
        dist.average_buffers([norm])
        assert torch.equal(norm.running_var, before)
