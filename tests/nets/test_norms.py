"""Norms over several processes, one layer at a time; whole segmenters with each norm are in test_pspnet.py."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from da.nets import norms
from da.nets.norms import SyncBatchNorm2d


def test_sync_normalises_over_the_batches_of_all_processes(monkeypatch):
    """Two threads, with 2 and 3 images, stand in for two processes."""
    sent, meeting = {}, threading.Barrier(2)

    def all_reduce(tensor):
        sent[threading.get_ident()] = tensor.clone()
        meeting.wait(30)
        total = sum(sent.values())
        meeting.wait(30)
        tensor.copy_(total)

    monkeypatch.setattr(norms, "processes", lambda: 2)
    monkeypatch.setattr(norms.distributed, "all_reduce", all_reduce)

    def train(norm, x, wanted):
        x = x.clone().requires_grad_()
        out = norm.double()(x)
        (out * wanted).sum().backward()
        return out, x.grad, norm

    torch.manual_seed(0)
    x, wanted = torch.rand(2, 5, 3, 4, 6, dtype=torch.float64)
    plain = nn.BatchNorm2d(3)
    nn.init.normal_(plain.weight)
    synced = [SyncBatchNorm2d(plain), SyncBatchNorm2d(plain)]
    out, gradient, _ = train(plain, x, wanted)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(train, synced, x.split([2, 3]), wanted.split([2, 3])))
    torch.testing.assert_close(torch.cat([h[0] for h in halves]), out)
    torch.testing.assert_close(torch.cat([h[1] for h in halves]), gradient)
    torch.testing.assert_close(synced[0].weight.grad + synced[1].weight.grad, plain.weight.grad)
    for norm in synced:
        torch.testing.assert_close(norm.running_mean, plain.running_mean)
        torch.testing.assert_close(norm.running_var, plain.running_var)
        assert norm.num_batches_tracked == 1
