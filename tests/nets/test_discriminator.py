import pytest
import torch

from da.config import UserError
from da.nets.discriminator import OutputDiscriminator


def test_parameter_count():
    assert sum(p.numel() for p in OutputDiscriminator(19).parameters()) == 2_781_121


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((512, 1024), (16, 32)),
        ((720, 1280), (22, 40)),
        ((760, 1280), (23, 40)),
        ((512, 512), (16, 16)),
        ((97, 161), (3, 5)),
        ((32, 63), (1, 1)),
    ],
)
def test_one_logit_per_32_pixels(size, cells):
    with torch.device("meta"):
        out = OutputDiscriminator(19)(torch.empty(2, 19, *size))
    assert out.shape == (2, 1, *cells)


def test_too_small_an_input_is_refused_in_words():
    with pytest.raises(UserError, match="64x31"):
        OutputDiscriminator(19, width=4)(torch.rand(1, 19, 31, 64))


def test_output_is_a_logit_and_reaches_the_input():
    d = OutputDiscriminator(5, width=4)
    with torch.no_grad():
        d.layers[-1].bias.fill_(-7.0)
    maps = torch.rand(1, 5, 64, 96, requires_grad=True)
    out = d(maps)
    assert out.max() < -1  # no sigmoid
    before = maps.detach().clone()
    out.sum().backward()
    assert maps.grad is not None
    assert (maps.grad.abs().sum((0, 2, 3)) > 0).all()
    assert torch.equal(maps, before)
