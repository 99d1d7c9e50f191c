"""One update: precision, accumulation, gradient synchronisation, clipping, optimiser steps, schedule.

The method says what its losses are and calls `backward(loss)` as often as it likes; everything that has to be
right whatever the method is stands here. Randomness inside an update (dropout, jitter) is seeded from (seed, step,
place of the micro-batch in the global batch), so an update is a pure function of its batches, its weights and its step,
and two micro-batches of one process are one of each of two.
"""

import contextlib
import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.optim import SGD, Optimizer

from da.config import Section
from da.engine import dist
from da.engine.gradients import Gradients
from da.labels import LabelSpace

# auto: see `definite`; tf32: float32 whose products a GPU rounds to 10 bits, fp32 on a CPU
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Backward = Callable[[Tensor], None]


class Remembers(Protocol):
    """Anything besides networks and optimisers that an exact continuation needs."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trains(Protocol):
    """What the engine needs of a method (`da.trainers.base.Trainer` documents it)."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    memory: dict[str, Remembers]
    iteration: int
    source_weight: Tensor | float
    target_weight: Tensor | float
    classes: LabelSpace
    headline: ClassVar[Mapping[str, str]]

    def source_weights(self, batches: list[Any]) -> list[Tensor]: ...

    def target_weights(self, batches: list[Any]) -> list[Tensor] | list[float]: ...

    def step(self, batch: Any, backward: Backward) -> dict[str, Tensor]: ...

    def predict(self, image: Tensor) -> Tensor: ...


class ScheduleConfig(Section):
    kind: Literal["poly", "constant"] = "poly"
    power: NonNegativeFloat = 0.9  # poly: (1 - t / horizon) ** power
    horizon: PositiveInt | None = None  # step at which poly reaches zero; None = `run.steps`
    hold: NonNegativeInt = 0  # steps at the full rate before poly begins; CycleGAN: half of all, then power 1
    warmup: NonNegativeInt = 0  # steps of linear warm-up from 1 / warmup to 1, multiplied with the rest


def schedule_factor(step: int, config: ScheduleConfig, steps: int) -> float:
    """What every base rate is multiplied with in update number `step` (from 0). poly: 1 up to `hold`, 0 at the
    horizon."""
    factor = 1.0
    if config.kind == "poly" and step > config.hold:
        horizon = config.horizon or steps
        factor = max(0.0, (horizon - step) / max(horizon - config.hold, 1)) ** config.power
    if step < config.warmup:
        factor *= (step + 1) / config.warmup
    return factor


def group_factor(step: int, group: Mapping[str, Any]) -> float:
    """What the rate of one group of an optimiser is multiplied with besides. A group may join late: its rate is 0
    before update number `joins`, then rises linearly over `warmup` updates, from 1 / warmup to 1."""
    since = step - group.get("joins", 0)
    return 0.0 if since < 0 else min((since + 1) / max(group.get("warmup", 0), 1), 1.0)


def seed_everything(*parts: object) -> None:
    """Seed torch's generators from any tuple of values: equal tuples, equal streams."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


def set_deterministic(on: bool) -> None:
    """Let torch use only algorithms that give the same bits every time, and raise where it has none; or let it choose
    freely. Takes full effect only before the first use of a GPU."""
    torch.backends.cudnn.benchmark = not on  # the fastest algorithm of the moment may be another one tomorrow
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    if on != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(on)


def to_channels_last(module: nn.Module) -> None:
    """All but networks with InstanceNorm, which reads one channel at a time and is slower in this memory."""
    if not any(isinstance(m, nn.InstanceNorm2d) for m in module.modules()):
        module.to(memory_format=torch.channels_last)


C = TypeVar("C")


def definite(
    precision: Precision, device: torch.device, predict: Callable[[Tensor], object] | None = None
) -> Precision:
    """`auto` is bf16 where a GPU computes in it, or a CPU is faster in it; else fp32. A CPU is asked with the network
    that is to be used, where `predict` gives it: images (B, 3, H, W) in [0, 1] -> anything."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if predict is None or not bf16_is_worth_a_trial():
        return _faster_on_this_cpu()
    image = torch.full((1, 3, 128, 256), 0.5)

    def run(candidate: Precision) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=candidate == "bf16", cache_enabled=False):
            predict(image)

    return fastest(run, ["fp32", "bf16"], lead=0.95)


def fastest(run: Callable[[C], object], candidates: Sequence[C], lead: float) -> C:
    """The candidate with which `run` is fastest, by trying, the same in all processes. Another than the first has
    to take less than `lead` times its seconds.

    In the first turn everything is also set up; what then takes three times as long as the fastest gets no other.
    """
    times = dict.fromkeys(range(len(candidates)), math.inf)
    for turn in range(3):
        for number in list(times):
            began = time.perf_counter()
            run(candidates[number])
            spent = time.perf_counter() - began
            times[number] = spent if turn == 1 else min(times[number], spent)
        times = dist.gather(times)[0]
        limit = 3 * min(times.values())
        times = {number: spent for number, spent in times.items() if spent <= limit}
    best = min(times, key=lambda number: times[number])
    return candidates[0 if 0 in times and times[best] >= lead * times[0] else best]


def _faster_on_this_cpu() -> Precision:
    """By trying: a CPU's flags do not tell. Instructions for bf16 double the speed of some and halve that of
    others; imitated, it is up to twenty times slower."""
    return "bf16" if _bf16_share() < 1 else "fp32"


def bf16_is_worth_a_trial() -> bool:
    """False where this CPU imitates bf16: a whole network would take minutes to say so."""
    return _bf16_share() < 3


@functools.cache
def _bf16_share() -> float:
    """Seconds of a convolution in bf16 over those in fp32."""
    rounds = [(_convolution_seconds(torch.bfloat16), _convolution_seconds(torch.float32)) for _ in range(5)]
    bf16, fp32 = (min(seconds) for seconds in zip(*rounds))
    return bf16 / fp32


def _convolution_seconds(dtype: torch.dtype) -> float:
    image = torch.ones(2, 128, 40, 80, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.ones(128, 128, 3, 3, dtype=dtype)
    began = time.perf_counter()
    conv2d(image, weight, padding=1)
    return time.perf_counter() - began


class Stepper:
    """Turns micro-batches into updates of a trainer's networks."""

    def __init__(
        self,
        trainer: Trains,
        device: torch.device,
        *,
        seed: int,
        steps: int,
        schedule: ScheduleConfig,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
        channels_last: bool = True,
    ) -> None:
        self.trainer, self.device, self.seed, self.clip_norm = trainer, device, seed, clip_norm
        self._steps, self._schedule = steps, schedule
        for module in trainer.modules.values():
            module.to(device=device)
            if channels_last:
                to_channels_last(module)
        if precision == "auto":
            self.eval()
        self.precision = precision = definite(precision, device, trainer.predict)
        self._dtype = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._copying: torch.cuda.Stream | None = None
        if device.type == "cuda":  # torch's own default rounds in convolutions only
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        for optimizer in trainer.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self._fuse()
        # The first optimiser's networks are done first in an update, and `Gradients` sends the last given first.
        groups = [group for optimizer in reversed(trainer.optimizers.values()) for group in optimizer.param_groups]
        self.gradients = Gradients(p for group in groups for p in group["params"])

    def begin(self) -> None:
        """Call after state was loaded, before the first update: all processes start from equal networks."""
        dist.broadcast_modules(self.trainer.modules.values())

    def _fuse(self) -> None:
        """On a GPU one kernel steps all weights, loss scaling included; elsewhere none does.

        SGD under fp16 is left out: after an overflow in the first update torch's kernel takes memory that nothing has
        written for the momentum.
        """
        for optimizer in self.trainer.optimizers.values():
            fused = self.device.type == "cuda" and not (self.scaler.is_enabled() and isinstance(optimizer, SGD))
            for group in optimizer.param_groups:
                group["fused"] = fused or None
            if fused:
                optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]  # what `fused=True` sets
                for state in optimizer.state.values():  # Adam's count of updates, from a checkpoint of a CPU
                    if "step" in state:
                        state["step"] = state["step"].to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The configured precision. Weights are cast anew in each forward: a cast that was cached under
        `no_grad` would otherwise be used, without its gradient, by the next forward."""
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None, cache_enabled=False)

    def agree(self) -> None:
        """Give all processes the same running statistics, before they are used or saved; every one must call it."""
        dist.average_buffers(self.trainer.modules.values())

    def eval(self) -> None:
        """Put every network into evaluation mode; `update` puts them back."""
        for module in self.trainer.modules.values():
            module.eval()

    def update(self, batches: Iterable[Any], count: int, step: int) -> dict[str, Tensor]:
        """Update number `step` from `count` micro-batches; returns the mean of the trainer's 0-d scalars."""
        factor = schedule_factor(step, self._schedule, self._steps)
        for optimizer in self.trainer.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor * group_factor(step, group)
        for module in self.trainer.modules.values():
            module.train()
        self.trainer.iteration = step

        def backward(loss: Tensor) -> None:
            with torch.autocast(self.device.type, enabled=False):
                self.gradients.backward(self.scaler.scale(loss / count))

        totals: dict[str, Tensor] = {}
        micro = [self._fetch(batch) for batch in batches]
        sources, targets = self.trainer.source_weights(micro), self.trainer.target_weights(micro)
        for number, batch in enumerate(micro):
            seed_everything(self.seed, "update", step, number * dist.world() + dist.rank())
            self.trainer.source_weight, self.trainer.target_weight = sources[number], targets[number]
            with self.autocast():
                scalars = self.trainer.step(batch, backward)
            for tag, value in scalars.items():
                value = value.detach().float() / count
                totals[tag] = totals[tag] + value if tag in totals else value
            if count > 1:
                self.gradients.next_micro_batch()
        self.gradients.finish()
        self._apply()
        return totals

    def _fetch(self, batch: Any) -> Any:
        """The batch on the device. A GPU copies it on a stream of its own, while it still computes the update before
        (the host runs ahead of it: nothing in an update waits)."""
        if self.device.type != "cuda":
            return batch.to(self.device)
        if self._copying is None:
            self._copying = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._copying):
            batch = batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copying)
        for value in batch:
            if isinstance(value, Tensor):
                value.record_stream(computing)  # else its memory could serve the next copy too early
        return batch

    def _apply(self) -> None:
        for optimizer in self.trainer.optimizers.values():
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            self.scaler.unscale_(optimizer)
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()

    def rates(self) -> dict[str, float]:
        """The current learning rates, `rate/<optimizer>` or `rate/<optimizer>/<group>`."""
        found = {}
        for name, optimizer in self.trainer.optimizers.items():
            for number, group in enumerate(optimizer.param_groups):
                part = f"/{group.get('name', number)}" if len(optimizer.param_groups) > 1 else ""
                found[f"rate/{name}{part}"] = float(group["lr"])
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact continuation needs: networks, optimisers, the method's memory, loss scale, and how many
        backward passes an update had."""
        return {
            "modules": {name: m.state_dict() for name, m in self.trainer.modules.items()},
            "optimizers": {name: o.state_dict() for name, o in self.trainer.optimizers.items()},
            "memory": {name: m.state_dict() for name, m in self.trainer.memory.items()},
            "scaler": self.scaler.state_dict(),
            "passes": self.gradients.expected,
        }

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, all but the networks."""
        for name, optimizer in self.trainer.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._fuse()  # the checkpoint may be of another device
        for name, memory in self.trainer.memory.items():
            memory.load_state_dict(state["memory"][name])
        self.scaler.load_state_dict(state["scaler"])
        self.gradients.expected = state.get("passes", 0)
