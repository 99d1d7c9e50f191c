"""The processes of one run. Started by torchrun they share the work; started plainly there is one of them.

Gradients are averaged once per update, after its last backward pass, and not by DistributedDataParallel. That wrapper
watches one `forward` and one backward pass of one network, and must be told which backward pass is the last of an
update for it. Here a method calls parts of a network (`features`, `classify`), several times before an update, and
freezes networks in between; the last pass is another one for each network, so each `step` would have to be written
around the wrapper. The price: the exchange does not overlap with the last backward pass; between two processes on one
CPU it took 65 of the 228 ms of an update (`source_only` in the miniature, 49 MiB of gradients).
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as distributed
import torch.distributed.nn  # noqa: F401 - see `setup`
from torch import Tensor, nn

from da.config import UserError

MESSAGE_BYTES = 32 * 2**20


def setup(device: torch.device) -> None:
    """Join the process group that torchrun announces in the environment; nothing to do without torchrun.

    `torch.distributed.nn`, which the optimisers import, must be imported before: it makes the group that is there
    at that moment the default value of its functions, so that `shutdown` would not end its threads, and one that still
    frees tensors while Python shuts down aborts the process after its work is done.
    """
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def shutdown() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def restarts() -> int:
    """How often torchrun has started the processes again because one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_first_here() -> bool:
    """Is this the one process of its machine that does what one must do on each?"""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def pick_device(name: str) -> torch.device:
    """`auto` is this process's own GPU where there is one, else the CPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.index >= torch.cuda.device_count():
        raise UserError(f"run.device: {device} is asked for and {torch.cuda.device_count()} GPUs are there")
    torch.cuda.set_device(device)
    return device


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place; every process must call it."""
    if world() > 1:
        distributed.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    return sum_over_ranks(tensor) / world()


def gather_batch(tensor: Tensor) -> Tensor:
    """The (B, ...) tensors of all processes, equal in size, as one (world * B, ...) in the order of the ranks."""
    if world() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather(value: Any) -> list[Any]:
    """`value` of every process in the order of their ranks; every process must call it."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    distributed.all_gather_object(found, value)
    return found


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, once per update; every process must call it.

    A method may run several backward passes through several networks before an update; their sums are what
    travels, so it makes no difference how many there were. Parameters without a gradient must be the same on
    every process. Gradients travel in messages of about `MESSAGE_BYTES`, so that little memory is taken for copies.
    """
    if world() == 1:
        return
    message: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            message.append(parameter.grad)
            if sum(g.nbytes for g in message) >= MESSAGE_BYTES:
                _average(message)
                message = []
    if message:
        _average(message)


def _average(tensors: list[Tensor]) -> None:
    flat = torch.cat([t.reshape(-1) for t in tensors])
    distributed.all_reduce(flat)
    flat /= world()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors])):
        tensor.copy_(mean.view_as(tensor))


def broadcast_modules(modules: Iterable[nn.Module]) -> None:
    """Give every process the parameters and buffers of process 0."""
    if world() == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            distributed.broadcast(tensor.data, src=0)


def average_buffers(modules: Iterable[nn.Module]) -> None:
    """Replace every floating-point buffer (running statistics) by its mean over the processes; all must call it."""
    if world() == 1:
        return
    for module in modules:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= world()


def barrier() -> None:
    if world() > 1:
        distributed.barrier()
