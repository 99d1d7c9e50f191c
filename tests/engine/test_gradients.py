"""What two processes leave in `.grad`: the mean of what each computed, whatever its passes were."""

from pathlib import Path

import pytest
import torch
from test_dist import two_processes
from torch import nn

from da.engine.gradients import Gradients

pytestmark = pytest.mark.slow


def _networks() -> tuple[nn.Sequential, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), nn.Linear(2, 1), nn.Linear(1, 1)


def _losses(update: int, rank: int, f: nn.Sequential, d: nn.Linear):
    """An adversarial update in miniature: a part of f, then all of it with d frozen, then d; a varying number of each
    follows."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * update + rank))
    yield f[:2](x).square().mean()
    out = f(x)
    d.requires_grad_(False)
    yield d(out).mean()
    d.requires_grad_(True)
    for _ in range((2, 2, 1, 3, 3, 0)[update]):
        yield d(out.detach()).square().mean()


def _all_kinds_of_updates(folder: Path, rank: int, micro_batches: int = 1) -> None:
    f, d, unused = _networks()
    parameters = [p for network in (f, d, unused) for p in network.parameters()]
    gradients = Gradients(parameters)
    for update in range(6):
        own = [
            torch.autograd.grad(sum(_losses(update, r, f, d)), parameters, allow_unused=True)
            for r in range(2 * micro_batches)
        ]
        for number in range(micro_batches):
            for loss in _losses(update, 2 * number + rank, f, d):
                gradients.backward(loss)
            if micro_batches > 1:
                gradients.next_micro_batch()
        gradients.finish()
        for parameter, *parts in zip(parameters, *own):
            if parts[0] is None:
                assert parameter.grad is None
            else:
                assert torch.allclose(parameter.grad, sum(parts) / 2, rtol=1e-5, atol=1e-8)
            parameter.grad = None


def test_processes_share_gradients_when_the_passes_vary(tmp_path):
    two_processes(tmp_path, _all_kinds_of_updates)


def _micro_batches(folder: Path, rank: int) -> None:
    _all_kinds_of_updates(folder, rank, micro_batches=2)


def test_processes_share_the_gradients_of_micro_batches(tmp_path):
    two_processes(tmp_path, _micro_batches)


def _averaging_overlaps(folder: Path, rank: int) -> None:
    f, d, _ = _networks()
    gradients = Gradients([*f.parameters(), *d.parameters()])
    extra = []
    gradients.ddp.module.own.register_hook(lambda _: extra.append(1))
    for update in (0, 0, 0):
        for loss in _losses(update, rank, f, d):
            gradients.backward(loss)
        gradients.finish()
    assert len(extra) == 1  # the first update could not know its last pass


def test_only_the_first_update_needs_a_pass_for_averaging(tmp_path):
    two_processes(tmp_path, _averaging_overlaps)
