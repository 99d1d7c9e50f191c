"""What every method must keep, whatever it is; new methods are picked up from the folder."""

import shutil

import pytest
import torch
from tiny import METHOD_FILES, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from da.config import UserError
from da.data.loaders import Batch
from da.run import train
from da.trainers import base

METHODS = base.methods()


def batch(size: int = 2) -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        src_image=torch.randint(0, 256, (size, 3, 48, 64), generator=g, dtype=torch.uint8),
        src_label=torch.randint(0, 19, (size, 48, 64), generator=g, dtype=torch.uint8),
        tgt_image=torch.randint(0, 256, (size, 3, 40, 72), generator=g, dtype=torch.uint8),
        src_names=["s"] * size,
        tgt_names=["t"] * size,
    )


@pytest.fixture
def make(gta5_root, cityscapes_root):
    def build(name: str, *extra: str) -> base.Trainer:
        return base.build(tiny(METHOD_FILES.get(name, name), gta5_root, cityscapes_root, *extra))

    return build


class NothingIsReadBack(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: values as Python numbers, shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        masks = args[1] if name in ("index", "index_put_") else ()
        assert name not in self.WAITS, f"{name} waits for the device"
        assert not any(m is not None and m.dtype == torch.bool for m in masks), f"{name} by a mask waits for the device"
        return function(*args, **(kwargs or {}))


def backward(loss: torch.Tensor) -> None:
    loss.backward()


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_each_parameter_is_in_exactly_one_optimiser_group(self, name, make):
        trainer = make(name)
        held = [p for o in trainer.optimizers.values() for g in o.param_groups for p in g["params"]]
        trainable = [p for m in trainer.modules.values() for p in m.parameters() if p.requires_grad]
        assert len({id(p) for p in held}) == len(held)
        assert {id(p) for p in held} == {id(p) for p in trainable}

    @pytest.mark.parametrize("size", [1, 2])
    def test_one_step_gives_finite_scalars_and_leaves_the_batch_alone(self, name, size, make):
        trainer, given = make(name), batch(size)
        before = [given.src_image.clone(), given.src_label.clone(), given.tgt_image.clone()]
        scalars = trainer.step(given, backward)
        assert scalars
        assert all(v.ndim == 0 and torch.isfinite(v) for v in scalars.values())
        assert all(t.startswith(("loss/", "d/", "agreement/", "accuracy/")) for t in scalars)
        for tensor, old in zip(given[:3], before):
            assert torch.equal(tensor, old)

    def test_a_step_never_waits_for_the_device(self, name, make):
        trainer = make(name)
        trainer.step(batch(), backward)  # fills tables that are made once
        with NothingIsReadBack():
            trainer.step(batch(), backward)
            with pytest.raises(AssertionError, match="waits"):
                torch.ones(()).item()

    def test_all_ignored_source_labels_give_zero_segmentation_loss(self, name, make):
        trainer, given = make(name), batch()
        given.src_label.fill_(255)
        scalars = trainer.step(given, backward)
        assert scalars.get("loss/seg", 0) == 0  # a translation has none
        grads = [p.grad for m in trainer.modules.values() for p in m.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in grads)

    def test_predicts_logits_at_the_output_stride(self, name, make):
        trainer = make(name)
        if trainer.is_pretext:
            pytest.skip("it has no segmenter")
        for module in trainer.modules.values():
            module.eval()
        with torch.no_grad():
            assert trainer.predict(torch.rand(1, 3, 37, 61)).shape == (1, 19, 5, 8)

    @pytest.mark.slow
    def test_runs_to_a_summary_without_target_labels(self, name, tmp_path, gta5_root, cityscapes_root):
        config = tiny(METHOD_FILES[name], gta5_root, cityscapes_root)
        folder = train(config, tmp_path / "with")
        shutil.rmtree(cityscapes_root / "gtFine/train")
        other = train(config, tmp_path / "without")
        assert (folder / "metrics.jsonl").exists()
        for run in (folder, other):
            assert (run / "summary.json").exists()
        a, b = (torch.load(r / "checkpoints/last.pt", weights_only=True) for r in (folder, other))
        for module in a["modules"]:
            for key, value in a["modules"][module].items():
                assert torch.equal(value, b["modules"][module][key]), key


def test_micro_batches_count_by_their_labelled_pixels(make):
    """Also where there are fewer pixels than micro-batches."""
    micro = [batch() for _ in range(4)]
    for one in micro:
        one.src_label.fill_(255)
    assert torch.stack(make("source_only").source_weights(micro)).tolist() == [0, 0, 0, 0]
    micro[0].src_label[0, 0, 0] = 3
    assert torch.stack(make("source_only").source_weights(micro)).tolist() == [4, 0, 0, 0]


def test_source_only_never_opens_the_target(tmp_path, gta5_root, cityscapes_root):
    shutil.rmtree(cityscapes_root / "leftImg8bit/train")
    folder = train(tiny("source_only", gta5_root, cityscapes_root), tmp_path)
    assert (folder / "summary.json").exists()


class TestAdaptSegNet:
    @pytest.mark.parametrize("name", ["adaptsegnet", "advent"])
    def test_gradients_reach_only_whom_they_should(self, name, make):
        """After the adversarial backward D has no gradient; D's own backward adds nothing to f."""
        trainer = make(name)
        seen = []

        def record(loss: torch.Tensor) -> None:
            loss.backward()
            f = [None if p.grad is None else p.grad.clone() for p in trainer.segmenter.parameters()]
            d = [p.grad is not None for m in trainer.d.values() for p in m.parameters()]
            seen.append((f, any(d)))

        trainer.step(batch(), record)
        (f_seg, d_seg), (f_adv, d_adv), *after_d = seen
        assert not d_seg
        assert not d_adv
        assert any(not torch.equal(a, b) for a, b in zip(f_seg, f_adv))  # the adversary moves f
        assert len(after_d) == 4  # two levels, two domains
        for f_after, d_after in after_d:
            assert d_after
            assert all(torch.equal(a, b) for a, b in zip(f_adv, f_after))

    def test_adversarial_step_makes_target_outputs_pass_for_source(self, make):
        """With a D that is sure of the target, a step against L_adv alone must lower it."""
        trainer = make("adaptsegnet", "model.bn=frozen", "model.dropout=0.0")
        image = batch().tgt_image.float() / 255
        d = trainer.d["main"]

        def adversarial() -> torch.Tensor:
            p = trainer.segmenter(image, "target").main.softmax(1)
            return base_loss(d(p))

        from da.losses import SOURCE_DOMAIN, domain_loss

        def base_loss(out):
            return domain_loss(out + 5.0, SOURCE_DOMAIN, "vanilla")

        before = adversarial()
        assert before > 4
        gradients = torch.autograd.grad(before, list(trainer.segmenter.cls.parameters()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        with torch.no_grad():
            for p, g in zip(trainer.segmenter.cls.parameters(), gradients):
                p -= 0.1 * g / norm
        assert adversarial() < before

    def test_single_level_has_one_discriminator_and_target_forward_none(self, make):
        assert set(make("adaptsegnet_single").modules) == {"segmenter", "d_main"}
        assert set(make("adaptsegnet_target_forward").modules) == {"segmenter"}

    def test_target_forward_changes_statistics_but_no_gradient(self, make):
        plain, ablation = make("source_only"), make("adaptsegnet_target_forward")
        given = batch()
        for trainer in (plain, ablation):
            torch.manual_seed(0)
            trainer.step(given, backward)
        for p, q in zip(plain.segmenter.cls.parameters(), ablation.segmenter.cls.parameters()):
            assert torch.equal(p.grad, q.grad)
        plain_mean, mixed_mean = (t.segmenter.backbone.bn1.running_mean for t in (plain, ablation))
        assert not torch.equal(plain_mean, mixed_mean)

    def test_least_squares_and_missing_aux(self, make):
        scalars = make("adaptsegnet_ls").step(batch(), backward)
        assert 0 < scalars["loss/d_main"] < 2
        with pytest.raises(UserError, match=r"model\.aux=true"):
            make("adaptsegnet_multi", "model.aux=false")
        with pytest.raises(UserError, match="target_forward_only=true"):
            make("adaptsegnet_single", "method.lambda_adv_main=0")

    @pytest.mark.parametrize("name", ["source_only", "cycada_feature"])
    def test_a_loss_of_a_head_that_is_not_there_is_refused(self, make, name):
        with pytest.raises(UserError, match=r"method\.lambda_aux: needs model\.aux=true"):
            make(name, "model.aux=false")
        make(name, "model.aux=false", "method.lambda_aux=0")
