"""The CycleGAN generator, and the maps between its range and the segmenter's."""

import pytest
import torch

from da.nets.generator import Generator, quantise, to_generator, to_unit


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_count_is_the_papers():
    assert parameters(Generator()) == 11_378_179
    assert parameters(Generator(blocks=6)) == 7_837_699
    assert parameters(Generator(upsampling="resize")) == 11_378_179


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("size", [(16, 16), (17, 30), (33, 19)])
def test_any_size_comes_back_at_its_own(size, upsampling):
    image = torch.rand(2, 3, *size) * 2 - 1
    out = Generator(blocks=1, width=4, upsampling=upsampling)(image)
    assert out.shape == image.shape
    assert out.abs().max() <= 1


def test_padding_changes_nothing_where_none_is_needed():
    g = Generator(blocks=1, width=4)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(g(image), g.layers(image))


def test_only_transposed_convolutions_paint_checkerboards():
    """Of a map that is the same everywhere, away from the border."""
    torch.manual_seed(0)
    flat = torch.rand(1, 16, 1, 1).expand(1, 16, 12, 12)
    for upsampling, checkered in (("transposed", True), ("resize", False)):
        layers = Generator(blocks=1, width=4, upsampling=upsampling).layers
        start = next(i for i, m in enumerate(layers) if isinstance(m, torch.nn.ConvTranspose2d | torch.nn.Upsample))
        doubled = layers[start : start + (1 if checkered else 2)](flat)[..., 4:-4, 4:-4]
        assert (doubled.std((2, 3)).max() > 1e-3) == checkered


def test_starts_from_small_normal_weights():
    g = Generator(blocks=2, width=16)
    weights = torch.cat([p.flatten() for n, p in g.named_parameters() if n.endswith("weight")])
    assert abs(weights.std() - 0.02) < 0.001
    assert all((p == 0).all() for n, p in g.named_parameters() if n.endswith("bias"))


def test_range_maps_are_inverse_and_differentiable():
    image = torch.rand(1, 3, 4, 4, requires_grad=True)
    there = to_generator(image)
    assert there.min() >= -1
    back = to_unit(there)
    torch.testing.assert_close(back, image)
    back.sum().backward()
    torch.testing.assert_close(image.grad, torch.ones_like(image))
    assert quantise(torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2])).tolist() == [0, 0, 128, 255, 255]
