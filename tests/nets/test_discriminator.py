import pytest
import torch

from da.config import UserError
from da.nets.discriminator import FeatureDiscriminator, OutputDiscriminator, PatchDiscriminator


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


def test_picture_and_feature_discriminators_have_the_papers_parameters():
    count = {
        "patch": sum(p.numel() for p in PatchDiscriminator().parameters()),
        "scores": sum(p.numel() for p in FeatureDiscriminator(19, (512, 256)).parameters()),
        "features": sum(p.numel() for p in FeatureDiscriminator(4096, (1024, 512)).parameters()),
    }
    assert count == {"patch": 2_764_737, "scores": 142_082, "features": 4_721_154}


def test_patch_discriminator_sees_70_pixels():
    d = PatchDiscriminator(width=4)
    for module in d.modules():  # the norm looks at the whole map; without it the field is the kernels' own
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x
    image = torch.rand(1, 3, 256, 256, requires_grad=True)
    out = d(image)
    assert out.shape == (1, 1, 30, 30)
    out[0, 0, 15, 15].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_feature_discriminator_gives_log_probabilities():
    log_p = FeatureDiscriminator(5, (8, 4))(torch.randn(2, 5, 6, 7))
    assert log_p.shape == (2, 2, 6, 7)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(2, 6, 7))


def test_too_small_a_picture_is_refused_in_words():
    with pytest.raises(UserError, match="24x40 picture"):
        PatchDiscriminator(width=4)(torch.zeros(1, 3, 40, 24))
