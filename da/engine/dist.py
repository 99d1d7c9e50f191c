"""The processes of one run. Started by torchrun they share the work; started plainly there is one of them."""

import gc
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as distributed
import torch.distributed.nn  # noqa: F401 - see `setup`
from torch import Tensor, nn

from da.config import UserError


def setup(device: torch.device) -> None:
    """Join the process group that torchrun announces in the environment; nothing to do without torchrun. One process
    alone needs no group, and joins one only under DA_GROUP_OF_ONE, which tries the group on a single GPU.

    `torch.distributed.nn`, which the optimisers import, must be imported before: it makes the group that is there
    at that moment the default value of its functions, so that `shutdown` would not end its threads, and one that still
    frees tensors while Python shuts down aborts the process after its work is done.
    """
    fewest = 1 if os.environ.get("DA_GROUP_OF_ONE") else 2
    if int(os.environ.get("WORLD_SIZE", 0)) >= fewest and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def shutdown() -> None:
    if distributed.is_initialized():
        gc.collect()  # what DistributedDataParallel leaves behind holds the group, and so its threads
        distributed.destroy_process_group()


def backend() -> str | None:
    """`nccl` or `gloo`, by which the processes of the group talk; None: there is no group."""
    return str(distributed.get_backend()) if distributed.is_initialized() else None


def rank() -> int:
    return distributed.get_rank() if backend() else 0


def world() -> int:
    return distributed.get_world_size() if backend() else 1


def is_main() -> bool:
    return rank() == 0


def restarts() -> int:
    """How often torchrun has started the processes again because one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_first_here() -> bool:
    """Is this the one process of its machine that does what one must do on each?"""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def pick_device(name: str, long_work: bool = False) -> torch.device:
    """`auto` is this process's own GPU where there is one, else the CPU.

    Raises:
        UserError: a GPU is asked for, here or of Slurm, and torch sees none; or a Slurm job that has none would do
            `long_work` on a CPU, which is hardly ever meant.
    """
    if name == "auto" and not torch.cuda.is_available():
        if os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0":
            raise UserError(
                f"run.device: this job was given a GPU and torch {torch.__version__} sees none; install a torch that "
                "does, or say run.device=cpu"
            )
        if long_work and "SLURM_JOB_ID" in os.environ:
            raise UserError("run.device: this job has no GPU; submit it with --gpus-per-node=1, or say run.device=cpu")
        name = "cpu"
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.index >= torch.cuda.device_count():
        raise UserError(f"run.device: {device} is asked for and {torch.cuda.device_count()} GPUs are there")
    torch.cuda.set_device(device)
    return device


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place; every process must call it."""
    if backend():
        distributed.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    return sum_over_ranks(tensor) / world()


def over_their_mean(counts: list[Tensor]) -> list[Tensor]:
    """0-d numbers over their mean in all processes, each of which gives equally many; all 0 where the mean is 0."""
    of_each = torch.stack(counts).float()
    mean = mean_over_ranks(of_each.mean())
    return list(of_each / torch.where(mean > 0, mean, 1.0))


def gather_batch(tensor: Tensor) -> Tensor:
    """The (B, ...) tensors of all processes, equal in size, as one (world * B, ...) in the order of the ranks."""
    if backend() is None:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather(value: Any) -> list[Any]:
    """`value` of every process in the order of their ranks; every process must call it."""
    if backend() is None:
        return [value]
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, value)
    return found


def broadcast_modules(modules: Iterable[nn.Module]) -> None:
    """Give every process the parameters and buffers of process 0."""
    if backend() is None:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            distributed.broadcast(tensor.data, src=0)


def average_buffers(modules: Iterable[nn.Module]) -> None:
    """Replace every floating-point buffer (running statistics) by its mean over the processes; all must call it.

    In float64, so that equal buffers, as of a frozen network, stay as they are whatever the number of processes.
    """
    if backend() is None:
        return
    for module in modules:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean_over_ranks(buffer.double()))


def barrier() -> None:
    if backend():
        distributed.barrier()
