"""The gradients of one update: summed over its backward passes and micro-batches, averaged over the processes.

DistributedDataParallel watches one `forward` of one network and the backward pass behind it. A method calls parts of
several networks, runs several passes and freezes networks in between. So what DDP is given here is no network but a
module that holds all trained parameters and hands a loss through: what it sees is the graph behind that loss, whoever
made it, and the trainers are written as for one process. All passes of an update but the last run under `no_sync`;
the last averages what all of them added, while it is still computing. DDP's buckets are those it began with
(`find_unused_parameters`), so that a continued run adds in the same order as one that never stopped.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from da.engine import dist


class _HandThrough(nn.Module):
    """Returns the loss it is given, as the output of a module with all `watched` parameters, as far as DDP can tell.

    DDP begins to average at the first parameter whose gradient is complete, so each loss also reaches `always`, with
    weight 0. `before` is reached once, ahead of the pass that averages: DDP warns of its search for unused parameters
    where there are none, and makes a GPU wait where one was not used in the whole update. Both are registered last,
    so that the others keep their alignment in DDP's buckets.
    """

    def __init__(self, watched: list[nn.Parameter]) -> None:
        super().__init__()
        self.watched = nn.ParameterList(watched)
        self.before = nn.Parameter(torch.zeros((), device=watched[0].device))
        self.always = nn.Parameter(torch.zeros((), device=watched[0].device))

    def forward(self, loss: Tensor | None) -> Tensor:
        return self.before.clone() if loss is None else loss + 0 * self.always


class Gradients:
    """Fills `.grad` of `parameters` for one update after another; all processes must make the same calls.

    Which pass is the last of an update shows only afterwards. It is taken to be the one that was the last before
    (`expected`, part of a checkpoint); where that was wrong, and in the first update, one more pass, through no
    network, does the averaging. But for rounding, averaging twice is the same as once.

    Args:
        parameters: all that any optimiser steps, on their device. DDP sends the last of them first.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.ddp: DistributedDataParallel | None = None
        if dist.backend():
            frozen = [parameter for parameter in self.parameters if not parameter.requires_grad]
            for parameter in frozen:  # DDP would leave out for good what is frozen now
                parameter.requires_grad_(True)
            self.ddp = DistributedDataParallel(
                _HandThrough(self.parameters), find_unused_parameters=True, gradient_as_bucket_view=True
            )
            for parameter in frozen:
                parameter.requires_grad_(False)
        self.count = self.expected = 0
        self.sums: dict[nn.Parameter, Tensor] = {}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a 0-d loss."""
        self.count += 1
        self._backward(loss, average=self.count == self.expected)

    def next_micro_batch(self) -> None:
        """Keep what the passes since the last call added, and begin anew.

        Each micro-batch is summed by itself, as each process sums its own: two of one give the same bits as one each of
        two. They are averaged over the processes in `finish`.
        """
        for parameter in self.parameters:
            if parameter.grad is not None:
                before = self.sums.get(parameter)
                self.sums[parameter] = parameter.grad if before is None else before.add_(parameter.grad)
                parameter.grad = None

    def finish(self) -> None:
        """Leave the update's gradients in `.grad`; parameters that no pass reached have none."""
        for parameter, total in self.sums.items():
            parameter.grad = total
        if self.ddp and (self.sums or self.count != self.expected):
            self._backward(torch.zeros((), device=self.parameters[0].device), average=True)
        self.expected = 0 if self.sums else self.count
        self.count, self.sums = 0, {}

    def _backward(self, loss: Tensor, average: bool) -> None:
        if self.ddp is None:
            loss.backward()
            return
        with self.ddp.no_sync():
            self.ddp(None if average else loss).backward()
        if average:
            self.ddp(loss).backward()
