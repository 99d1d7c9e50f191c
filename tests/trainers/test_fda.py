"""FDA: where the swap and the entropy stand in an update."""

import pytest
import torch
import torch.nn.functional as F
from test_contract import batch
from tiny import tiny

from da.losses import fourier_swap, robust_entropy
from da.trainers import base

STILL = ("model.bn=frozen", "model.dropout=0.0")


@pytest.fixture
def make(gta5_root, cityscapes_root):
    return lambda *extra: base.build(tiny("fda", gta5_root, cityscapes_root, *STILL, *extra))


def test_the_segmenter_learns_from_swapped_images(make):
    trainer, given = make("method.beta=0.1"), batch()
    seen = []
    trainer.segmenter.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    trainer.step(given, lambda loss: None)
    x_s, x_t = given.src_image.float() / 255, given.tgt_image.float() / 255
    learned, target = seen
    plain = make("method.beta=0").segmenter  # the same input statistics
    images = []
    plain.backbone.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0].detach()))
    style = F.interpolate(x_t, x_s.shape[-2:], mode="bilinear", antialias=True)
    plain.scores(fourier_swap(x_s, style, 0.1), "source")
    plain.scores(x_t, "target")
    assert torch.allclose(learned, images[0], atol=1e-5)
    assert torch.equal(target, images[1])


def test_the_entropy_sets_in_when_it_is_said(make):
    trainer, given, losses = make("method.ent_start=5", "method.lambda_ent=0.3"), batch(), []
    for trainer.iteration in (4, 5):
        scalars = trainer.step(given, lambda loss: losses.append(loss.item()))
    p = trainer.segmenter.scores(given.tgt_image.float() / 255, "target").main.softmax(1)
    assert scalars["loss/ent"].item() == pytest.approx(robust_entropy(p, 2.0).item(), rel=1e-5)
    assert losses[1] == 0
    assert losses[3] == pytest.approx(0.3 * scalars["loss/ent"].item(), rel=1e-5)


def test_crops_of_two_sizes_are_swapped(make):
    trainer, given = make(), batch()
    swapped = trainer.swap(given.src_image.float(), given.tgt_image.float()[..., :-8, :-16])
    assert swapped.shape == given.src_image.shape


def test_pictures_show_source_swap_and_target_in_range(make):
    ((source, swapped, target),) = make("method.beta=0.1").examples(batch())
    assert source.shape == swapped.shape
    assert 0 <= swapped.min() <= swapped.max() <= 1
    assert not torch.equal(source, swapped)
    assert target.shape[0] == 2
