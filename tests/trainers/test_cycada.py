"""CyCADA's two trainers: who learns from what, and what is remembered."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from city import CITY
from test_contract import backward, batch
from tiny import tiny

from da.config import UserError
from da.evaluation import visualize
from da.nets.generator import to_generator, to_unit
from da.nets.pspnet import Scores
from da.pictures import of_training
from da.run import make_stepper
from da.trainers import base


@pytest.fixture
def make(gta5_root, cityscapes_root):
    def build(name: str, *extra: str) -> base.Trainer:
        small = ("method.blocks=1", "method.width=8") if name == "cycada_pixel" else ()
        return base.build(tiny(name, gta5_root, cityscapes_root, *small, *extra))

    return build


def gradients(modules) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for m in modules for p in m.parameters()]


def recorded(trainer, given, *groups) -> list[list[list[torch.Tensor | None]]]:
    """The gradients of each group of modules after every backward pass of one step."""
    seen = []

    def record(loss: torch.Tensor) -> None:
        loss.backward()
        seen.append([gradients(group) for group in groups])

    trainer.step(given, record)
    return seen


def equal(a: list, b: list) -> bool:
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a, b))


def same(found: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


class Known:
    """`cycada_pixel` with networks so simple that its equations can be written down again."""

    def __init__(self, trainer: base.Trainer) -> None:
        one = torch.ones((), requires_grad=True)
        weight = torch.randn(19, 3, 1, 1, generator=torch.Generator().manual_seed(1))
        self.g_st = trainer.g_st.forward = lambda x: 0.5 * x * one
        self.g_ts = trainer.g_ts.forward = lambda x: (0.9 * x + 0.1) * one
        self.d_s = trainer.d_s.forward = lambda x: 2 * x[:, :1] * one
        self.d_t = trainer.d_t.forward = lambda x: 3 * x[:, 1:2] * one
        self.f_s = lambda x: F.conv2d(to_unit(x), weight)
        self.pool_s = trainer.pool_s.exchange = lambda fakes: 0.7 * fakes.detach()
        self.pool_t = trainer.pool_t.exchange = lambda fakes: 0.3 * fakes.detach()
        trainer.segmenter.forward = trainer.segmenter.scores = lambda image, domain: Scores(
            F.conv2d(image, weight), None
        )


class TestPixel:
    def test_losses_are_the_equations_of_the_file(self, make):
        trainer = make("cycada_pixel", "method.lambda_cyc=3.0", "method.lambda_idt=0.2", "method.lambda_sem=0.6")
        n, given, losses = Known(trainer), batch(), []
        scalars = trainer.step(given, losses.append)
        x_s, x_t = (to_generator(image.float() / 255) for image in (given.src_image, given.tgt_image))
        fake_t, fake_s = n.g_st(x_s), n.g_ts(x_t)
        wanted = {
            "loss/gan_st": (n.d_t(fake_t) - 1).square().mean(),
            "loss/gan_ts": (n.d_s(fake_s) - 1).square().mean(),
            "loss/cycle": (n.g_ts(fake_t) - x_s).abs().mean() + (n.g_st(fake_s) - x_t).abs().mean(),
            "loss/identity": (n.g_st(x_t) - x_t).abs().mean() + (n.g_ts(x_s) - x_s).abs().mean(),
            "loss/semantic": F.cross_entropy(n.f_s(fake_t), n.f_s(x_s).argmax(1))
            + F.cross_entropy(n.f_s(fake_s), n.f_s(x_t).argmax(1)),
            "loss/d_source": 0.5 * (n.d_s(x_s) - 1).square().mean() + 0.5 * n.d_s(n.pool_s(fake_s)).square().mean(),
            "loss/d_target": 0.5 * (n.d_t(x_t) - 1).square().mean() + 0.5 * n.d_t(n.pool_t(fake_t)).square().mean(),
            "agreement/st": (n.f_s(fake_t).argmax(1) == n.f_s(x_s).argmax(1)).float().mean(),
            "agreement/ts": (n.f_s(fake_s).argmax(1) == n.f_s(x_t).argmax(1)).float().mean(),
            "d/accuracy_source": 0.5 * (n.d_s(x_s) > 0.5).float().mean()
            + 0.5 * (n.d_s(n.pool_s(fake_s)) <= 0.5).float().mean(),
            "d/accuracy_target": 0.5 * (n.d_t(x_t) > 0.5).float().mean()
            + 0.5 * (n.d_t(n.pool_t(fake_t)) <= 0.5).float().mean(),
        }
        assert scalars.keys() == wanted.keys()
        same(scalars, wanted)
        gan, cycle = wanted["loss/gan_st"] + wanted["loss/gan_ts"], wanted["loss/cycle"]
        g = gan + 3.0 * (cycle + 0.2 * wanted["loss/identity"]) + 0.6 * wanted["loss/semantic"]
        torch.testing.assert_close(losses, [g, wanted["loss/d_source"], wanted["loss/d_target"]])

    def test_pictures_and_predictions_come_from_the_right_generator(self, make):
        trainer = make("cycada_pixel")
        n, given = Known(trainer), batch()
        x_s, x_t = (to_generator(image.float() / 255) for image in (given.src_image, given.tgt_image))
        torch.testing.assert_close(trainer.translate(to_unit(x_s)), to_unit(n.g_st(x_s)))
        torch.testing.assert_close(trainer.predict(to_unit(x_t)), n.f_s(n.g_ts(x_t)))
        rows = [(x_s, n.g_st(x_s), n.g_ts(n.g_st(x_s))), (x_t, n.g_ts(x_t), n.g_st(n.g_ts(x_t)))]
        torch.testing.assert_close(trainer.examples(given), [tuple(map(to_unit, row)) for row in rows])

    def test_generators_and_discriminators_learn_apart(self, make):
        trainer = make("cycada_pixel")
        generators, discriminators = [trainer.g_st, trainer.g_ts], [trainer.d_s, trainer.d_t]
        (g, d_at_g), *after = recorded(trainer, batch(), generators, discriminators)
        assert all(gradient is not None for gradient in g)
        assert all(gradient is None for gradient in d_at_g)
        assert len(after) == 2
        assert all(equal(g, g_after) for g_after, _ in after)
        assert all(gradient is not None for gradient in after[-1][1])

    @pytest.mark.parametrize("semantic", ["labels", "ground_truth", "scores"])
    def test_the_source_segmenter_neither_learns_nor_changes(self, make, semantic):
        trainer = make("cycada_pixel", f"method.semantic={semantic}")
        before = {k: v.clone() for k, v in trainer.segmenter.state_dict().items()}
        trainer.segmenter.train()  # as the engine leaves it
        scalars = trainer.step(batch(), backward)
        assert scalars["loss/semantic"] > 0
        assert all(p.grad is None for p in trainer.segmenter.parameters())
        assert all(torch.equal(v, before[k]) for k, v in trainer.segmenter.state_dict().items())

    def test_semantic_gradient_reaches_both_generators(self, make):
        """Against the same step without the term, both generators' gradients differ and no discriminator's."""
        trainers = [make("cycada_pixel", f"method.lambda_sem={weight}") for weight in (0, 1)]
        for trainer in trainers:
            trainer.step(batch(), backward)
        off, on = trainers
        for name in ("g_st", "g_ts"):
            assert not equal(gradients([off.modules[name]]), gradients([on.modules[name]])), name
        for name in ("d_s", "d_t"):
            assert equal(gradients([off.modules[name]]), gradients([on.modules[name]])), name

    def test_semantic_term_waits_and_warms_in(self, make):
        """Its share of the generators' gradient: none, half, all."""
        without, with_all = (self.gradient_of_g(make, f"method.lambda_sem={weight}") for weight in (0, 1))
        for now, share in ((0, 0), (10, 0), (15, 0.5), (20, 1), (99, 1)):
            found = self.gradient_of_g(make, "method.sem_start=10", "method.sem_ramp=10", now=now)
            torch.testing.assert_close(found, without + share * (with_all - without), rtol=1e-3, atol=1e-5)

    def gradient_of_g(self, make, *settings: str, now: int = 0) -> torch.Tensor:
        trainer = make("cycada_pixel", *settings)
        trainer.iteration = now
        trainer.step(batch(), backward)
        return torch.cat([gradient.flatten() for gradient in gradients([trainer.g_st])])

    def test_ground_truth_stands_in_for_the_labels_of_the_source(self, make):
        """Where it says what the segmenter says, the loss is the same; where it says nothing, a half is left."""
        trainers = {kind: make("cycada_pixel", f"method.semantic={kind}") for kind in ("labels", "ground_truth")}
        given = batch()
        wanted = trainers["labels"].step(given, backward)["loss/semantic"]
        image = given.src_image.float() / 255
        with torch.no_grad():
            said = trainers["labels"].segmenter(image, "source").main.argmax(1)
        found = trainers["ground_truth"].step(given._replace(src_label=said.to(torch.uint8)), backward)
        torch.testing.assert_close(found["loss/semantic"], wanted)
        given.src_label.fill_(255)
        found = trainers["ground_truth"].step(given, backward)
        assert 0 < found["loss/semantic"] < wanted

    def test_identity_generators_have_no_cycle_loss(self, make):
        trainer = make("cycada_pixel", "method.lambda_sem=0")
        one = torch.ones((), requires_grad=True)
        trainer.g_st.forward = trainer.g_ts.forward = lambda image: image * one
        scalars = trainer.step(batch(), backward)
        assert scalars["loss/cycle"] == 0
        assert scalars["loss/identity"] == 0

    def test_doubtful_labels_do_not_count(self, make):
        trainer = make("cycada_pixel", "method.sem_confidence=0.99")  # an untrained segmenter is sure of nothing
        assert trainer.step(batch(), backward)["loss/semantic"] == 0

    def test_needs_a_segmenter_for_the_semantic_term(self, make):
        with pytest.raises(UserError, match=r"method\.lambda_sem=0"):
            make("cycada_pixel", "init=null")

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            (["method.semantic=scores", "method.sem_confidence=0.5"], "sem_confidence"),
            (["data.jitter=0.2"], r"data\.jitter"),
        ],
    )
    def test_refuses_settings_without_effect(self, make, settings, named):
        with pytest.raises(UserError, match=named):
            make("cycada_pixel", *settings)

    @pytest.mark.parametrize(
        ("name", "setting"), [("cycada_pixel", "betas=[0.5, 1.0]"), ("adaptsegnet_multi", "betas_d=[-0.1, 0.99]")]
    )
    def test_refuses_impossible_decay_rates(self, make, name, setting):
        with pytest.raises(UserError, match=r"method\.betas.*than.*; got"):
            make(name, f"method.{setting}")

    def test_tensorboard_shows_each_picture_above_its_prediction(self, make, monkeypatch):
        trainer, seen = make("cycada_pixel"), []
        monkeypatch.setattr(visualize, "grid", lambda rows, titles, classes: seen.extend(rows))
        of_training(make_stepper(trainer, trainer.config, torch.device("cpu")), batch())
        assert [len(row) for row in seen] == [3, 3, 3, 3]
        image = batch().src_image[:1].float() / 255
        assert np.array_equal(seen[0][0], visualize.to_picture(batch().src_image[0]))
        with torch.no_grad():
            label = trainer.segmenter(image, "source").main[0].argmax(0)
        assert (
            np.mean(seen[1][0] == visualize.colorize(label.to(torch.uint8), CITY)) > 0.99
        )  # its own rounding to [-1, 1]

    def test_translates_and_shows_rows_of_three(self, make):
        trainer = make("cycada_pixel")
        image = torch.rand(1, 3, 37, 50)
        out = trainer.translate(image)
        assert out.shape == image.shape
        assert 0 <= out.min() <= out.max() <= 1
        with torch.no_grad():
            assert [len(row) for row in trainer.examples(batch())] == [3, 3]
        with pytest.raises(UserError, match="source_only translates no images"):
            make("source_only").translate(image)


class TestFeature:
    def test_losses_are_the_equations_of_the_file(self, make):
        settings = ("method.lambda_g=0.3", "method.lambda_d=0.7", "method.lambda_aux=0.4", "method.gate=0")
        trainer = make("cycada_feature", *settings, "model.dropout=0.0")
        d = trainer.d.forward = lambda h: torch.stack([h[:, 0], h[:, 1] + 1], 1).log_softmax(1)
        given, losses = batch(), []
        scalars = trainer.step(given, losses.append)
        (h_s, _), (h_t, _) = (
            trainer.represent(trainer.view(image), domain)
            for image, domain in ((given.src_image, "source"), (given.tgt_image, "target"))
        )
        wanted = {
            "loss/adv": -d(h_t)[:, 0].mean(),
            "loss/d": -0.5 * d(h_s)[:, 0].mean() - 0.5 * d(h_t)[:, 1].mean(),
            "d/accuracy_source": (d(h_s)[:, 0] > d(h_s)[:, 1]).float().mean(),
            "d/accuracy_target": (d(h_t)[:, 1] > d(h_t)[:, 0]).float().mean(),
        }
        same(scalars, wanted)
        seg = scalars["loss/seg"] + 0.4 * scalars["loss/seg_aux"]
        torch.testing.assert_close(losses, [seg, 0.7 * wanted["loss/d"], 0.3 * wanted["loss/adv"]])

    @pytest.mark.parametrize("level", ["scores", "features"])
    def test_segmenter_and_discriminator_learn_apart(self, make, level):
        trainer = make("cycada_feature", f"method.discriminate={level}", "method.gate=0")
        passes = recorded(trainer, batch(), [trainer.segmenter], [trainer.d])
        (f_seg, d_seg), (f_d, d_d), (f_adv, d_adv) = passes
        assert all(gradient is None for gradient in d_seg)
        assert equal(f_seg, f_d)
        assert all(gradient is not None for gradient in d_d)
        assert equal(d_d, d_adv)
        assert not equal(f_d, f_adv)

    def test_a_closed_gate_leaves_the_supervised_gradient_alone(self, make):
        trainer = make("cycada_feature", "method.gate=1", "model.dropout=0.0")
        passes = recorded(trainer, batch(), [trainer.segmenter])
        assert all(torch.equal(a, b) for a, b in zip(passes[0][0], passes[2][0]))

    def test_gate_follows_the_window_and_is_logged(self, make):
        trainer = make("cycada_feature", "method.gate=0.5", "method.gate_window=2")
        assert trainer.step(batch(), backward)["d/gate"] == 0  # nothing is known of D yet
        for update, accuracy in ((1, 0.1), (2, 0.9), (3, 0.3)):
            trainer.accuracy.add(torch.tensor(accuracy), update)
        trainer.iteration = 4
        scalars = trainer.step(batch(), backward)
        torch.testing.assert_close(scalars["d/accuracy"], torch.tensor(0.6))
        assert scalars["d/gate"] == 1
        assert len(trainer.memory["accuracy"].state_dict()["values"]) == 2
