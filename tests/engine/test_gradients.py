"""What two processes leave in `.grad`: the mean of what each computed, whatever its passes were."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_dist import two_processes
from torch import nn

from da.engine import dist
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


def _passes_of_updates(folder: Path, rank: int) -> None:
    f, d, _ = _networks()
    d.requires_grad_(False)  # trained all the same, later

    def passes(expected: int) -> Iterator[int]:
        gradients = Gradients([*f.parameters(), *d.parameters()])
        gradients.expected = expected
        seen = []
        gradients.ddp.module.always.register_hook(lambda _: seen.append(1))
        while True:
            for loss in _losses(0, rank, f, d):
                gradients.backward(loss)
            gradients.finish()
            assert len(set(dist.gather(d.weight.grad.tolist()[0][0]))) == 1
            yield len(seen)
            seen.clear()
            d.zero_grad()

    assert list(islice(passes(0), 3)) == [5, 4, 4]  # four of the method, and in the first update one that averages
    assert list(islice(passes(4), 3)) == [4, 4, 4]  # as in a run that is continued


def test_only_the_first_update_needs_a_pass_for_averaging(tmp_path):
    two_processes(tmp_path, _passes_of_updates)


def _last_pass_reaches_nothing_that_is_watched(folder: Path, rank: int) -> None:
    f, elsewhere = nn.Linear(1, 1), nn.Linear(1, 1)
    gradients = Gradients(f.parameters())
    for _ in range(3):
        gradients.backward((rank + 1) * f.weight.sum())
        gradients.backward(elsewhere.weight.sum())
        gradients.finish()
        assert f.weight.grad.item() == 1.5
        f.weight.grad = None


def test_the_last_pass_may_reach_nothing_that_is_trained(tmp_path, capfd):
    two_processes(tmp_path, _last_pass_reaches_nothing_that_is_watched)
    assert "Warning" not in capfd.readouterr().err


def _one_pass_through_everything(folder: Path, rank: int) -> None:
    f = nn.Linear(1, 1)
    gradients = Gradients(f.parameters())
    for _ in range(3):
        gradients.backward((rank + 1) * (f.weight.sum() + f.bias.sum()))
        gradients.finish()
        assert f.weight.grad.item() == f.bias.grad.item() == 1.5
        f.zero_grad()


def test_one_pass_through_everything_brings_no_warning(tmp_path, capfd):
    two_processes(tmp_path, _one_pass_through_everything)
    assert "Warning" not in capfd.readouterr().err
