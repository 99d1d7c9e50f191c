"""Fine-tuning: what each stage trains, what it starts from, and that a run goes on from any update."""

import json
from pathlib import Path

import pytest
import torch
from runs import same
from test_spaces import write_set
from tiny import REPOSITORY, SETTINGS, tiny
from torch import Tensor

from da.cli import main
from da.config import UserError
from da.data.loaders import train_batches
from da.engine import checkpoint
from da.engine.stepper import Stepper, schedule_factor
from da.labels import label_space
from da.nets.weights import load_modules
from da.run import _initialise, load_config, make_stepper, train
from da.trainers import base

HEADS = "method.head_steps=2"
CLASSIFIERS = ["cls.4.weight", "cls.4.bias", "aux.4.weight", "aux.4.bias"]
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["method.momentum=0.9", "method.adamw={layer_decay: 0.9}"])


@pytest.fixture
def make(gta5_root, cityscapes_root):
    def build(*extra: str) -> tuple[Stepper, base.Experiment]:
        config = tiny("finetune", gta5_root, cityscapes_root, *extra)
        return make_stepper(base.build(config), config, torch.device("cpu")), config

    return build


def update(stepper: Stepper, config: base.Experiment, start: int, end: int) -> None:
    batches = train_batches(config.data, config.seed, start, use_target=False)
    for step in range(start, end):
        stepper.update([next(batches)], 1, step)


def states(stepper: Stepper) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in stepper.trainer.segmenter.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


@OPTIMIZERS
def test_the_first_stage_leaves_every_bit_of_the_encoder(make, optimizer):
    stepper, config = make(HEADS, optimizer, "method.l2_sp={alpha: 1.0}")
    before = states(stepper)
    update(stepper, config, 0, 2)
    heads = {key for key in before if not key.startswith("backbone.") and key not in ("mean", "std")}
    assert moved(before, states(stepper)) == heads

    trained = states(stepper)
    update(stepper, config, 2, 3)
    encoder = {key for key in before if key.startswith("backbone.")}
    assert encoder <= moved(trained, states(stepper))  # statistics as well


@OPTIMIZERS
def test_the_optimiser_knows_the_encoder_from_the_switch_on(make, optimizer):
    stepper, config = make(HEADS, optimizer)
    backbone, heads = stepper.trainer.segmenter.parameter_groups()
    state = stepper.trainer.optimizers["segmenter"].state
    update(stepper, config, 0, 2)
    assert set(state) == set(heads)
    update(stepper, config, 2, 3)
    assert set(state) == {*heads, *backbone}


def test_an_encoder_that_is_held_drops_no_path(make):
    pytest.importorskip("timm")
    stepper, _ = make(HEADS, "model.backbone=timm/convnext_atto", "model.drop_path=0.5")
    segmenter, images = stepper.trainer.segmenter, torch.rand(2, 3, 48, 64)
    for held in (True, False):
        segmenter.train()
        stepper.trainer.hold_encoder(held)
        first, second = (segmenter.features(images).layer3 for _ in range(2))
        assert torch.equal(first, second) == held
        assert first.requires_grad != held


def test_the_rates_are_one_curve_on_which_the_encoder_joins(make):
    stepper, config = make(HEADS, "method.warmup=4", "method.lr=1.0", "run.steps=8", "method.l2_sp={}")
    for step in range(8):
        update(stepper, config, step, step + 1)
        factor = schedule_factor(step, config.run.schedule, 8)
        rates = stepper.rates()
        assert rates["rate/segmenter/head"] == pytest.approx(config.method.head_lr_mult * factor)
        share = 0.0 if step < 2 else min((step - 1) / 4, 1)
        assert rates["rate/segmenter/backbone"] == pytest.approx(share * factor)


@pytest.mark.parametrize("switch", [0, 2, 3, 9])
@OPTIMIZERS
def test_a_run_goes_on_from_any_update_without_its_start(make, optimizer, switch, tmp_path):
    """Before, at and after the switch."""
    settings = (f"method.head_steps={switch}", optimizer, "method.warmup=3", "method.l2_sp={alpha: 5.0}")
    straight, config = make(*settings)
    straight.trainer.started(frozenset(CLASSIFIERS))
    update(straight, config, 0, 2)
    checkpoint.save(tmp_path / "last.pt", straight.state_dict())
    update(straight, config, 2, 4)

    later, _ = make(*settings, "init=null")
    state = checkpoint.load(tmp_path / "last.pt")
    load_modules(later.trainer.modules, state["modules"], "last.pt")
    later.load_progress(state)
    update(later, config, 2, 4)
    same(straight.state_dict(), later.state_dict())
    assert state["memory"]["towards_start"]["start"].keys() == {
        name for name, _ in later.trainer.segmenter.named_parameters() if name not in CLASSIFIERS
    }


def test_it_is_pulled_towards_what_it_started_from(make):
    """As strongly as the rate allows: encoder and heads stay, but for one update; what is new does not."""
    strong = ("method.lr=0.01", "method.head_lr_mult=1.0", "method.momentum=0.0", "run.schedule={kind: constant}")
    stepper, config = make(*strong, "method.head_steps=0", "method.l2_sp={alpha: 100.0, beta: 0.0}", "model.bn=frozen")
    free, _ = make(*strong, "method.head_steps=0", "model.bn=frozen")
    before = states(stepper)
    load_modules(free.trainer.modules, {"segmenter": before}, "")
    stepper.trainer.started(frozenset(CLASSIFIERS))
    update(stepper, config, 0, 4)
    update(free, config, 0, 4)
    far, near = (
        sum((after[key] - before[key]).square().sum() for key in before if key not in CLASSIFIERS)
        for after in (states(free), states(stepper))
    )
    assert 0 < near < 0.3 * far
    assert set(CLASSIFIERS) <= moved(before, states(stepper))


# --- what it starts from ----------------------------------------------------------------------------------


@pytest.fixture
def city(tmp_path, gta5_root, cityscapes_root) -> Path:
    """An untrained source-only checkpoint of the Cityscapes classes."""
    config = tiny("source_only", gta5_root, cityscapes_root)
    state = {"segmenter": base.build(config.model_copy(update={"seed": 7})).segmenter.state_dict()}
    path = tmp_path / "city.pt"
    checkpoint.save(path, {"step": 0, "modules": state, "config": json.dumps(config.model_dump(mode="json"))})
    return path


@pytest.fixture
def words(tmp_path, city) -> list[str]:
    """What follows `train` for a start from `city` on a set of other classes."""
    root = tmp_path / "camvid"
    write_set("camvid", root)
    settings = [f"data.{s}.{k}={v}" for s in ("source", "val") for k, v in (("dataset", "camvid"), ("root", root))]
    settings += ["data.source.split=train", "data.source.labels=3", "data.val.split=val", "data.classes=camvid11"]
    settings += [*SETTINGS, HEADS, "method.l2_sp={}", f"init={city}"]
    return [str(REPOSITORY / "experiments/mini/finetune.yaml"), *settings]


def weights(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(path)["modules"]["segmenter"]


def test_other_classes_are_begun_anew_and_the_rest_is_as_it_was(words, city, capsys):
    config = load_config(words[:1], words[1:])
    trainer = base.build(config)
    drawn = {key: value.clone() for key, value in trainer.segmenter.state_dict().items()}
    trainer.weights_report = {}
    assert _initialise(trainer, str(city)) == set(CLASSIFIERS)
    assert trainer.weights_report == {"replaced": CLASSIFIERS}
    assert f"{', '.join(CLASSIFIERS)} begin anew" in capsys.readouterr().out
    for key, value in trainer.segmenter.state_dict().items():
        assert torch.equal(value, (drawn if key in CLASSIFIERS else weights(city))[key]), key


def test_classes_of_the_same_number_are_begun_anew_as_well(city, make, gta5_root, cityscapes_root):
    """Their shapes fit, what they tell does not."""
    state = checkpoint.load(city)
    config = json.loads(state["config"])
    names = {name: {"color": [9 * n, 9, 9]} for n, name in enumerate(reversed(label_space("cityscapes19").names))}
    config["data"]["classes"] = {"name": "reversed", "classes": names}
    checkpoint.save(city, state | {"config": json.dumps(config)})
    stepper, _ = make()
    assert _initialise(stepper.trainer, str(city)) == set(CLASSIFIERS)
    plain = base.build(tiny("source_only", gta5_root, cityscapes_root))
    with pytest.raises(UserError, match="has other classes"):
        _initialise(plain, str(city))


def test_equal_classes_keep_everything(city, make):
    stepper, _ = make()
    assert _initialise(stepper.trainer, str(city)) == set()
    assert not moved(weights(city), states(stepper))


def test_a_run_says_what_was_replaced_and_goes_on_without_its_start(words, tmp_path, city):
    run = train(load_config(words[:1], words[1:]), tmp_path / "runs")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["weights_report"]["replaced"] == CLASSIFIERS
    straight = checkpoint.load(run / "checkpoints/last.pt")
    assert straight["weights_report"] == summary["weights_report"]

    city.unlink()
    (run / "summary.json").unlink()
    (run / "checkpoints/previous.pt").replace(run / "checkpoints/last.pt")  # of update 2, the switch
    assert checkpoint.load(run / "checkpoints/last.pt")["step"] == 2
    train(load_config(words[:1], words[1:]), tmp_path / "runs")
    again = checkpoint.load(run / "checkpoints/last.pt")
    assert json.loads((run / "summary.json").read_text())["weights_report"] == summary["weights_report"]
    assert again["weights_report"] == straight["weights_report"]
    assert not moved(straight["modules"]["segmenter"], again["modules"]["segmenter"])
    assert not moved(*(state["memory"]["towards_start"]["start"] for state in (straight, again)))


def test_encoder_weights_are_a_start(make, tmp_path):
    stepper, _ = make()
    torch.save(stepper.trainer.segmenter.backbone.state_dict(), tmp_path / "encoder.pth")
    stepper, _ = make(f"model.weights={tmp_path / 'encoder.pth'}", "init=null", "method.l2_sp={}")
    segmenter = stepper.trainer.segmenter
    stepper.trainer.started(segmenter.random_tensors())
    backbone = {name for name, _ in segmenter.named_parameters() if name.startswith("backbone.")}
    assert stepper.trainer.towards_start.start.keys() == backbone


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["init=null"], "init: nothing to start from"),
        (["model.backbone=resnet34"], "checkpoint of another architecture: segmenter: "),
        (["model.aux=false", "method.lambda_aux=0"], "unexpected (aux.0.weight"),
        (["model.freeze=[backbone.layer9]"], "model.freeze: 'backbone.layer9' names no module"),
        (["model.freeze=[backbone, ppm, cls, aux]"], "model.freeze: leaves nothing to train"),
        (["model.freeze=[ppm, cls, aux]"], "method.head_steps: model.freeze leaves no head to train"),
        (["method.l2_sp={alpha: -1}"], "method.l2_sp.alpha: "),
        (["model.aux=false"], "method.lambda_aux: needs model.aux=true"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, said, words, tmp_path, capsys):
    assert main(["train", *words, *settings, "--runs", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
