"""Schedules, accumulation, clipping and the seeding of an update."""

import time

import pytest
import torch
from torch import nn

from da.engine import stepper as stepper_module
from da.engine.stepper import ScheduleConfig, Stepper, definite, fastest, group_factor, schedule_factor


class Batch:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, device):
        return self


class Linear:
    """A method in miniature: fit zeros with one linear layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.modules = {"layer": self.layer}
        groups = [{"params": [self.layer.weight], "lr": 0.1}, {"params": [self.layer.bias], "lr": 1.0}]
        self.optimizers = {"layer": torch.optim.SGD(groups, momentum=0.9)}
        self.memory = {}

    def source_weights(self, batches):
        return [torch.ones(()) for _ in batches]

    target_weights = source_weights

    def step(self, batch, backward):
        loss = self.layer(batch.x).square().mean()
        backward(loss)
        return {"loss/fit": loss, "noise": torch.rand(())}

    def predict(self, image):
        return image


def stepper(**options) -> Stepper:
    settings = {"seed": 0, "steps": 10, "schedule": ScheduleConfig()} | options
    return Stepper(Linear(), torch.device("cpu"), **settings)


def test_poly_starts_at_one_ends_at_zero_and_follows_the_formula():
    config = ScheduleConfig(horizon=250)
    assert schedule_factor(0, config, 150) == 1.0
    assert schedule_factor(250, config, 150) == 0.0
    assert schedule_factor(100, config, 150) == pytest.approx((1 - 100 / 250) ** 0.9)
    assert schedule_factor(75, ScheduleConfig(), 150) == pytest.approx(0.5**0.9)
    assert schedule_factor(400, config, 500) == 0.0


def test_a_group_that_joins_late():
    late = {"joins": 3, "warmup": 4}
    assert [group_factor(step, late) for step in range(9)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [group_factor(step, {"joins": 2}) for step in range(4)] == [0, 0, 1, 1]
    assert [group_factor(step, {}) for step in (0, 1, 10**6)] == [1, 1, 1]


def test_warmup_rises_linearly_to_the_schedule():
    config = ScheduleConfig(kind="constant", warmup=4)
    assert [schedule_factor(t, config, 10) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_group_ratio_is_kept_at_every_update():
    s = stepper()
    for t in range(10):
        s.update([Batch(torch.ones(2, 3))], 1, t)
        low, high = (g["lr"] for g in s.trainer.optimizers["layer"].param_groups)
        assert high == pytest.approx(10 * low)
        assert low == pytest.approx(0.1 * (1 - t / 10) ** 0.9)


def test_micro_batches_give_the_update_of_the_whole_batch():
    x = torch.randn(4, 3)
    whole, parts = stepper(), stepper()
    for t in range(3):
        a = whole.update([Batch(x)], 1, t)
        b = parts.update([Batch(x[:2]), Batch(x[2:])], 2, t)
        assert torch.allclose(a["loss/fit"], b["loss/fit"])
    for p, q in zip(whole.trainer.layer.parameters(), parts.trainer.layer.parameters()):
        assert torch.allclose(p, q, atol=1e-6)


def test_clipping_limits_the_step():
    free, clipped = stepper(), stepper(clip_norm=1e-3)
    before = free.trainer.layer.weight.clone()
    for s in (free, clipped):
        s.update([Batch(torch.full((1, 3), 100.0))], 1, 0)
    assert (free.trainer.layer.weight - before).norm() > 1.0
    assert (clipped.trainer.layer.weight - before).norm() <= 0.1 * 1e-3 + 1e-7


def test_randomness_depends_on_seed_and_step_only():
    x = [Batch(torch.ones(1, 3))]
    first, second, other = stepper(), stepper(), stepper(seed=1)
    torch.rand(5)
    a = first.update(x, 1, 7)["noise"]
    second.update(x, 1, 3)
    assert torch.equal(a, second.update(x, 1, 7)["noise"])
    assert not torch.equal(a, other.update(x, 1, 7)["noise"])


def test_state_round_trip_continues_exactly():
    straight, first, second = stepper(), stepper(), stepper()
    batches = [[Batch(torch.randn(2, 3))] for _ in range(6)]
    for t in range(6):
        straight.update(batches[t], 1, t)
    for t in range(3):
        first.update(batches[t], 1, t)
    state = first.state_dict()
    second.trainer.layer.load_state_dict(state["modules"]["layer"])
    second.load_progress(state)
    for t in range(3, 6):
        second.update(batches[t], 1, t)
    assert torch.equal(straight.trainer.layer.weight, second.trainer.layer.weight)


def test_a_checkpoint_of_a_gpu_continues_without_its_kernels():
    """They are a property of the device, and `load_state_dict` of torch takes them over."""
    first, second = stepper(), stepper()
    state = first.state_dict()
    for group in state["optimizers"]["layer"]["param_groups"]:
        group["fused"] = True
    second.load_progress(state)
    assert not any(group["fused"] for group in second.trainer.optimizers["layer"].param_groups)


@pytest.mark.parametrize(("precision", "fused"), [("bf16", True), ("fp16", None)])
def test_on_a_gpu_sgd_is_fused_but_with_loss_scaling(precision, fused):
    """torch's fused SGD would take unwritten memory for the momentum after an overflow in the first update."""
    s = stepper(precision=precision)
    s.device = torch.device("cuda")
    s._fuse()
    assert {group["fused"] for group in s.trainer.optimizers["layer"].param_groups} == {fused}


@pytest.mark.parametrize(
    ("bf16_seconds", "expected", "worth"), [(0.1, "bf16", True), (0.3, "fp32", True), (2, "fp32", False)]
)
def test_auto_is_what_the_cpu_is_faster_in(monkeypatch, bf16_seconds, expected, worth):
    took = {torch.bfloat16: bf16_seconds, torch.float32: 0.2}
    monkeypatch.setattr(stepper_module, "_convolution_seconds", took.get)
    stepper_module._bf16_share.cache_clear()
    assert definite("auto", torch.device("cpu")) == expected
    assert definite("fp16", torch.device("cpu")) == "fp16"
    assert stepper_module.bf16_is_worth_a_trial() == worth
    if not worth:
        assert definite("auto", torch.device("cpu"), lambda _: pytest.fail("tried all the same")) == "fp32"
    stepper_module._bf16_share.cache_clear()


@pytest.mark.parametrize(("slower", "expected"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_auto_asks_the_network_that_is_to_be_used(monkeypatch, slower, expected):
    monkeypatch.setattr(stepper_module, "bf16_is_worth_a_trial", lambda: True)

    def predict(image):
        time.sleep(0.02 if (torch.is_autocast_enabled("cpu") == (slower == "bf16")) else 0.0)

    assert definite("auto", torch.device("cpu"), predict) == expected


def test_the_fastest_is_found_in_turns_and_the_first_wins_a_draw():
    asked = []

    def run(seconds):
        asked.append(seconds)
        time.sleep(seconds)

    assert fastest(run, [0.02, 0.005, 0.1], lead=0.95) == 0.005
    assert asked.count(0.1) == 1  # far off: no second turn
    assert fastest(run, [0.02, 0.0199], lead=0.5) == 0.02


def test_trying_what_is_faster_changes_no_random_number_and_no_statistics():
    class Network(Linear):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.modules["norm"] = self.norm

        def predict(self, image):
            return self.norm(image)

    trainer = Network()
    before = torch.get_rng_state()
    made = Stepper(trainer, torch.device("cpu"), seed=0, steps=1, schedule=ScheduleConfig(), precision="auto")
    assert made.precision in ("fp32", "bf16")
    assert torch.equal(before, torch.get_rng_state())
    assert trainer.norm.num_batches_tracked == 0


def test_fp16_scaler_skips_an_overflow_and_goes_on():
    s = stepper(precision="fp16")
    before = s.trainer.layer.weight.clone()
    s.update([Batch(torch.full((1, 3), 1e4))], 1, 0)
    assert torch.equal(before, s.trainer.layer.weight)
    assert s.scaler.get_scale() < 65536.0
    s.update([Batch(torch.ones(1, 3))], 1, 1)
    assert not torch.equal(before, s.trainer.layer.weight)
