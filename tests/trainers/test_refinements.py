"""The `loss:` section in every method: nothing changes without it, and its terms are means over the global batch."""

import pytest
import torch
from test_contract import NothingIsReadBack, backward, batch
from tiny import METHOD_FILES, REFINED, SEGMENTERS, tiny

from da.config import UserError
from da.data import statistics
from da.data.loaders import Batch, class_frequencies, class_shares
from da.losses import upsampled_cross_entropy
from da.run import train
from da.supervised import LossConfig
from da.trainers import base

WEIGHTS = "[" + ", ".join(str(1 + c % 5) for c in range(19)) + "]"
OHEM = "loss.ohem={threshold: 0.05, min_kept: 100}"
OVERLAP = ("loss.lambda_lovasz=0.7", "loss.lambda_dice=0.3")
PRESENCE = ("model.presence=true", "loss.lambda_presence=0.4")
SETTINGS = {"weights": [f"loss.class_weights={WEIGHTS}"], "ohem": [OHEM], "all": REFINED}
refined = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture
def make(gta5_root, cityscapes_root):
    def build(name: str, *extra: str) -> base.Trainer:
        return base.build(tiny(METHOD_FILES[name], gta5_root, cityscapes_root, *extra))

    return build


def half_labelled(size: int = 2) -> Batch:
    """Of the first image three quarters are ignored."""
    found = batch(size)
    found.src_label[0, 12:] = 255
    return found


def gradients(trainer: base.Trainer, batches: list[Batch]) -> list[torch.Tensor]:
    """Of the mean over micro-batches, as the engine takes it."""
    for one, weight in zip(batches, trainer.source_weights(batches)):
        trainer.source_weight = weight
        trainer.step(one, lambda loss: (loss / len(batches)).backward())
    return [p.grad for p in trainer.segmenter.parameters() if p.grad is not None]


@refined
@pytest.mark.parametrize("name", SEGMENTERS)
class TestEveryMethod:
    def test_a_step_is_finite_and_never_waits_for_the_device(self, name, settings, make):
        trainer = make(name, *settings)
        given = half_labelled()
        before = given.src_label.clone()
        trainer.step(given, backward)
        with NothingIsReadBack():
            trainer.source_weights([given])
            scalars = trainer.step(given, backward)
        assert all(v.ndim == 0 and torch.isfinite(v) for v in scalars.values())
        assert torch.equal(given.src_label, before)

    def test_all_ignored_labels_give_exactly_zero(self, name, settings, make):
        trainer, given = make(name, *settings), batch()
        given.src_label.fill_(255)
        (weight,) = trainer.source_weights([given])
        assert weight == 0
        segmenter = trainer.segmenter
        loss, parts = trainer.segmentation_loss(segmenter.scores(given.src_image / 255), given.src_label, 1.0)
        loss.backward()
        assert {value.item() for value in (loss, *parts.values())} == {0.0}
        assert not any(p.grad.any() for p in segmenter.parameters() if p.grad is not None)


@refined
def test_two_micro_batches_give_the_gradients_of_one_batch(settings, make):
    """With frozen statistics images do not see each other; labelled pixels are not shared out evenly."""
    given = half_labelled()
    halves = [Batch(*(part if part is None else part[i : i + 1] for part in given)) for i in range(2)]
    fixed = ["model.bn=frozen", "model.dropout=0.0", *settings]
    whole, parts = (make("source_only", *fixed) for _ in range(2))
    whole.segmenter.double(), parts.segmenter.double()
    for one, other in zip(gradients(whole, [given]), gradients(parts, halves), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_without_the_section_nothing_changes(name, make):
    trainer, given = make(name), half_labelled()
    assert trainer.config.loss == LossConfig()
    assert not [key for key in trainer.segmenter.state_dict() if key.startswith("presence")]
    (weight,) = trainer.source_weights([given])
    assert weight == 1
    trainer.source_weight = torch.tensor(0.7)
    scores = trainer.segmenter.scores(given.src_image / 255)
    loss, parts = trainer.segmentation_loss(scores, given.src_label, 0.3)
    heads = {"loss/seg": scores.main, "loss/seg_aux": scores.aux}
    expected = {tag: 0.7 * upsampled_cross_entropy(z, given.src_label) for tag, z in heads.items() if z is not None}
    assert parts == expected
    assert loss == expected["loss/seg"] + 0.3 * expected.get("loss/seg_aux", 0.0)


def test_class_weights_are_those_of_the_cross_entropy(make):
    trainer, given = make("source_only", f"loss.class_weights={WEIGHTS}"), half_labelled()
    scores = trainer.segmenter.scores(given.src_image / 255)
    loss, parts = trainer.segmentation_loss(scores, given.src_label, 0.5)
    weight = torch.tensor([1.0 + c % 5 for c in range(19)])
    main, aux = (upsampled_cross_entropy(head, given.src_label, False, weight) for head in scores[:2])
    assert parts["loss/seg"] == main
    assert loss == main + 0.5 * aux


def test_overlap_losses_stand_beside_the_cross_entropy(make):
    plain, trainer, given = make("source_only"), make("source_only", *OVERLAP), half_labelled()
    scores = trainer.segmenter.scores(given.src_image / 255)
    before, _ = plain.segmentation_loss(scores, given.src_label, 0.4)
    loss, parts = trainer.segmentation_loss(scores, given.src_label, 0.4)
    assert {"loss/lovasz", "loss/dice"} < parts.keys()
    torch.testing.assert_close(loss, before + 0.7 * parts["loss/lovasz"] + 0.3 * parts["loss/dice"])


def test_presence_beside_and_instead_of_the_auxiliary_head(make):
    given = half_labelled()
    plain, unweighted, both, alone = (
        make("source_only", *extra)
        for extra in ((), PRESENCE[:1], PRESENCE, (*PRESENCE, "model.aux=false", "method.lambda_aux=0"))
    )
    losses = []
    for trainer in (plain, unweighted, both, alone):
        torch.manual_seed(0)
        scores = trainer.segmenter.scores(given.src_image / 255)
        losses.append(trainer.segmentation_loss(scores, given.src_label, 0.4))
    before, parts = losses[0]
    assert losses[1][0] == before  # of weight 0: the plain loss, to the bit
    assert torch.equal(losses[2][0], before + 0.4 * losses[2][1]["loss/presence"])
    assert losses[3][1].keys() == {"loss/seg", "loss/presence"}
    assert "loss/presence" not in parts
    with pytest.raises(UserError, match=r"loss\.lambda_presence: needs model\.presence=true"):
        make("source_only", PRESENCE[1])


def test_weights_that_do_not_fit_the_classes_are_refused(gta5_root, cityscapes_root):
    with pytest.raises(UserError, match=r"loss\.class_weights: 3 weights; cityscapes19 has 19 classes"):
        tiny("source_only", gta5_root, cityscapes_root, "loss.class_weights=[1, 2, 3]")
    with pytest.raises(UserError, match=r"loss\.class_weights: input should be 'enet' or 'median_frequency'"):
        tiny("source_only", gta5_root, cityscapes_root, "loss.class_weights=inverse")


def test_a_translation_refuses_the_section(make):
    with pytest.raises(UserError, match="loss: cycada_pixel trains no segmenter"):
        make("cycada_pixel", f"loss.class_weights={WEIGHTS}")


@pytest.mark.parametrize("kind", ["enet", "median_frequency"])
def test_a_run_counts_its_source_once(kind, tmp_path, gta5_root, cityscapes_root, monkeypatch):
    monkeypatch.setenv("DA_CACHE", str(tmp_path / "cache"))
    config = tiny("source_only", gta5_root, cityscapes_root, f"loss.class_weights={kind}", "run.steps=1")
    read, count = [], statistics._count
    monkeypatch.setattr(statistics, "_count", lambda *of: read.append(of) or count(*of))
    built = []
    monkeypatch.setattr(base, "build", lambda config, build=base.build: built.append(build(config)) or built[-1])
    train(config, tmp_path / "runs")
    assert len(read) == 6
    expected = config.loss.counted_weights(class_shares(config.data), class_frequencies(config.data))
    assert torch.equal(built[-1].class_weights, expected)
