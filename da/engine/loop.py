"""When to step, log, validate, save and stop. Knows no method, no data set and no network."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from da.config import Section, UserError
from da.engine import checkpoint, dist
from da.engine.log import Progress, RunLog, say
from da.engine.stepper import ScheduleConfig, Stepper


class RunConfig(Section):
    steps: PositiveInt  # updates in all
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    accumulate: PositiveInt = 1  # micro-batches that `data.batch_size` is cut into; their mean losses are averaged
    clip_norm: PositiveFloat | None = None  # gradient norm limit of each optimiser
    log_every: PositiveInt = 50
    val_every: PositiveInt = 5000
    save_every: PositiveInt = 1000
    keep_every: PositiveInt | None = None  # also keep the networks of every so many steps, for good
    pictures: PositiveInt = 4  # validation examples shown in TensorBoard
    device: Literal["auto", "cpu", "cuda"] = "auto"


Scalars = dict[str, float]


class Window:
    """Scalars since the last log line, left on the device until they are wanted: reading one would stall it."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows = rows or []  # one per update: {"step": int, "names": [str], "scalars": {tag: Tensor | float}}

    def add(self, step: int, names: list[str], scalars: dict[str, Tensor]) -> None:
        self.rows.append({"step": step, "names": names, "scalars": scalars})

    def settle(self, last_good: Path | None) -> None:
        """Turn tensors into floats in one transfer.

        Raises:
            UserError: some value is not finite; the message names step, loss, the batch's files and what to do.
        """
        pending = [row for row in self.rows if any(isinstance(v, Tensor) for v in row["scalars"].values())]
        if not pending:
            return
        flat = torch.stack([value for row in pending for value in row["scalars"].values()]).double()
        values = iter(dist.mean_over_ranks(flat).tolist())
        for row in pending:
            row["scalars"] = {tag: next(values) for tag in row["scalars"]}
            bad = [tag for tag, value in row["scalars"].items() if not math.isfinite(value)]
            if bad:
                files = f"images of process {dist.rank()}: {', '.join(row['names'][:8])}"
                kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint was saved yet"
                raise UserError(
                    f"step {row['step']}: {', '.join(bad)} is not finite ({files}); {kept}; "
                    "lower the learning rate, set run.clip_norm, or use run.precision=fp32"
                )

    def mean(self) -> Scalars:
        tags = {tag: None for row in self.rows for tag in row["scalars"]}
        found = {t: [row["scalars"][t] for row in self.rows if t in row["scalars"]] for t in tags}
        return {tag: math.fsum(values) / len(values) for tag, values in found.items()}


class Loop:
    """Trains `stepper.trainer` until `config.steps`, continuing from the newest checkpoint in `folder`.

    `validate(step, limit)` returns scalars with `val/mIoU` among them; `limit` asks for that many images only.
    `show(step)` draws training pictures. `stamp` is stored in every checkpoint, so that one can be used alone.
    """

    def __init__(
        self,
        stepper: Stepper,
        config: RunConfig,
        folder: Path,
        validate: Callable[[int, int | None], Scalars],
        show: Callable[[int, Any], None],
        stamp: dict[str, Any],
        load_modules: Callable[[dict[str, Any], str], None],
    ) -> None:
        self.stepper, self.config, self.folder = stepper, config, folder
        self.validate, self.show, self.stamp = validate, show, stamp
        self.checkpoints = folder / "checkpoints"
        self.start, self.best = 0, {"step": 0, "val/mIoU": -1.0}
        self.window = Window()
        newest = checkpoint.find_last(self.checkpoints)
        if newest:
            state = checkpoint.load(newest)
            load_modules(state["modules"], str(newest))
            stepper.load_progress(state)
            self.start, self.best, self.window = state["step"], state["best"], Window(state["window"])
        self.log: RunLog | None = None

    def fit(self, batches: Callable[[int], Iterator[Any]]) -> Scalars:
        """Run to the end; `batches(start)` streams micro-batches from update `start` on. Returns the last scores."""
        config, stepper = self.config, self.stepper
        self.log = RunLog(self.folder, self.start) if dist.is_main() else None
        stepper.begin()
        if self.start:
            say(f"continuing from step {self.start}")
        elif config.steps:
            self.validate(0, 2)  # a broken evaluation shows now, not after hours
        scores: Scalars = {}
        stream = batches(self.start)
        progress = Progress(self.start, config.steps)
        mark, images = time.monotonic(), 0
        for step in range(self.start, config.steps):
            micro = list(islice(stream, config.accumulate))
            scalars = stepper.update(micro, len(micro), step)
            done, names = step + 1, [name for batch in micro for name in batch.names]
            self.window.add(done, names, scalars)
            images += len(names) * dist.world()
            progress.advance()
            if done % config.log_every == 0 or done == config.steps:
                self.window.settle(self._last_good())
                values = self.window.mean() | stepper.rates()
                values["speed/images_per_second"] = images / (time.monotonic() - mark)
                if self.log:
                    self.log.scalars(done, values)
                progress.report(done, values)
                self.window = Window()
                mark, images = time.monotonic(), 0
            paused = time.monotonic()
            if done % config.val_every == 0 or done == config.steps:
                self.window.settle(self._last_good())
                scores = self._validate(done)
                self.show(done, micro[-1])
            if done % config.save_every == 0 or done == config.steps:
                self._save(done)
            paused = time.monotonic() - paused
            mark += paused
            progress.skip(paused)
        progress.close()
        if self.log:
            self.log.close()
        return scores

    def _validate(self, step: int) -> Scalars:
        scores = self.validate(step, None)
        if self.log:
            self.log.scalars(step, scores)
        if scores["val/mIoU"] > self.best["val/mIoU"]:
            self.best = {"step": step, "val/mIoU": scores["val/mIoU"]}
            self._keep("best.pt", step)
        return scores

    def _save(self, step: int) -> None:
        self.window.settle(self._last_good())
        self.stepper.agree()
        state = self.stepper.state_dict()
        for name, module in state["modules"].items():
            bad = [key for key, value in module.items() if not torch.isfinite(value).all()]
            if bad:
                raise UserError(
                    f"step {step}: the weights of {name} are not finite (first: {bad[0]}); nothing was saved; "
                    f"the last good checkpoint is {self._last_good() or 'none'}; lower the learning rate"
                )
        if self.log:
            self.log.flush()
            state |= {"step": step, "best": self.best, "window": self.window.rows, **self.stamp}
            checkpoint.save_last(self.checkpoints, state)
        if self.config.keep_every and step % self.config.keep_every == 0:
            self._keep(f"step_{step:08d}.pt", step)
        dist.barrier()

    def _keep(self, name: str, step: int) -> None:
        """Networks only, without the state of the optimisers."""
        if dist.is_main():
            modules = self.stepper.state_dict()["modules"]
            checkpoint.save(self.checkpoints / name, {"step": step, "modules": modules, **self.stamp})

    def _last_good(self) -> Path | None:
        return checkpoint.find_last(self.checkpoints)
