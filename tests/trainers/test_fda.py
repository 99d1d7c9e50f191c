"""FDA: where the swap and the entropy stand in an update."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_contract import batch
from tiny import tiny

from da.cli import main
from da.config import UserError
from da.losses import cross_entropy, fourier_swap, robust_entropy
from da.run import train
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


def test_the_second_stage_learns_from_pseudo_labels(make):
    trainer, given, losses = make("method.lambda_pseudo=0.5", "method.lambda_ent=0"), batch(), []
    height, width = given.tgt_image.shape[-2:]
    label = torch.full((2, height, width), 255, dtype=torch.uint8)
    label[:, : height // 2] = 3
    given = given._replace(tgt_label=label)
    (trainer.target_weight,) = trainer.target_weights([given])
    scalars = trainer.step(given, lambda loss: losses.append(loss.item()))
    scores = trainer.segmenter(given.tgt_image.float() / 255, "target").main
    assert scalars["loss/pseudo"].item() == pytest.approx(cross_entropy(scores, label).item(), rel=1e-4)
    assert losses[1] == pytest.approx(0.5 * scalars["loss/pseudo"].item(), rel=1e-5)


def test_micro_batches_count_by_their_pseudo_labels(make):
    trainer, given = make("method.lambda_pseudo=1"), batch()
    few, many = (torch.full((1, 4, 4), 255, dtype=torch.uint8) for _ in range(2))
    few[0, 0, 0], many[0, :3] = 1, 1  # 1 and 12 pixels
    weights = trainer.target_weights([given._replace(tgt_label=label) for label in (few, many)])
    assert torch.stack(weights).tolist() == pytest.approx([1 / 6.5, 12 / 6.5])
    assert trainer.target_weights([given, given]) == [1.0, 1.0]


@pytest.mark.slow
def test_from_labels_of_the_first_stage_to_the_second(tmp_path, gta5_root, cityscapes_root, capsys):
    first = train(tiny("fda", gta5_root, cityscapes_root, "run.steps=2"), tmp_path)
    labels = tmp_path / "labels"
    assert main(["label", str(first), str(labels)]) == 0
    target = ("data.target.dataset=folders", "data.target.split=all")
    second = tiny("fda_self", gta5_root, cityscapes_root, *target, f"data.target.root={labels}", "run.steps=2")
    run = train(second, tmp_path)
    assert "loss/pseudo" in (run / "metrics.jsonl").read_text()
    assert json.loads((run / "inputs.json").read_text())["data.target.root"]
    (labels / "pseudo_labels.json").unlink()
    with pytest.raises(UserError, match="labels of a target are never learned from"):
        train(second.model_copy(update={"name": "unstamped"}), tmp_path)
