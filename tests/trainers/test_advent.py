"""MinEnt and AdvEnt: the losses of the paper at the places where it has them."""

import pytest
import torch
from test_contract import batch
from tiny import tiny

from da.config import UserError
from da.losses import entropy, missing_classes
from da.run import train
from da.trainers import base


@pytest.fixture
def make(gta5_root, cityscapes_root):
    return lambda name, *extra: base.build(tiny(name, gta5_root, cityscapes_root, *extra))


def test_minent_adds_the_weighted_entropies_of_both_outputs(make):
    still = ("model.bn=frozen", "model.dropout=0.0")
    trainer = make("minent", *still, "method.lambda_ent_main=0.3", "method.lambda_ent_aux=0.2")
    given, losses = batch(), []
    scalars = trainer.step(given, lambda loss: losses.append(loss.item()))
    scores = trainer.segmenter(given.tgt_image.float() / 255, "target")
    main, aux = (entropy(part.softmax(1)).item() for part in scores[:2])
    assert (scalars["loss/ent_main"].item(), scalars["loss/ent_aux"].item()) == pytest.approx((main, aux), rel=1e-5)
    assert losses[1] == pytest.approx(0.3 * main + 0.2 * aux, rel=1e-5)


def test_minent_keeps_the_classes_of_the_source(make):
    still = ("model.bn=frozen", "model.dropout=0.0")
    trainer = make("minent", *still, "method.lambda_ent_main=0", "method.lambda_ent_aux=0", "method.lambda_prior=2")
    assert trainer.needs_class_shares
    trainer.class_shares = torch.arange(19.0) / torch.arange(19.0).sum()
    given, losses = batch(), []
    trainer.step(given, lambda loss: losses.append(loss.item()))
    p = trainer.segmenter(given.tgt_image.float() / 255, "target").main.softmax(1)
    assert losses[1] == pytest.approx(2 * missing_classes(p, trainer.class_shares, 0.5).item(), rel=1e-5)


@pytest.mark.slow
def test_the_run_counts_the_source_for_the_prior(tmp_path, gta5_root, cityscapes_root, monkeypatch):
    monkeypatch.setenv("DA_CACHE", str(tmp_path / "cache"))
    run = train(tiny("minent", gta5_root, cityscapes_root, "method.lambda_prior=1"), tmp_path)
    assert "loss/prior" in (run / "metrics.jsonl").read_text()
    assert list((tmp_path / "cache/statistics").iterdir())


def test_the_discriminator_sees_entropy_maps(make):
    trainer = make("advent", "model.bn=frozen", "model.dropout=0.0")
    seen = []
    trainer.d["main"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    given = batch()
    trainer.step(given, lambda loss: None)
    p = trainer.segmenter(given.tgt_image.float() / 255, "target").main.softmax(1)
    for_f, source, target = seen
    assert torch.allclose(for_f.sum(1).mean(), entropy(p), rtol=1e-5)
    assert torch.equal(for_f, target)
    assert not torch.equal(source, target)


def test_advent_without_an_adversary_is_refused(make):
    with pytest.raises(UserError, match="use source_only"):
        make("advent", "method.lambda_adv_main=0", "method.lambda_adv_aux=0")
