"""When to step, log, validate, save and stop. Knows no method, no data set and no network."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor

from da.config import Section, UserError
from da.engine import checkpoint, dist, lock
from da.engine.log import Progress, RunLog, say
from da.engine.stepper import Precision, ScheduleConfig, Stepper
from da.engine.stop import Stopped, seconds


def _time(value: Any) -> Any:
    """Refuse what `seconds` cannot read."""
    if value is not None:
        seconds(str(value))
    return value


class RunConfig(Section):
    steps: PositiveInt  # updates in all
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Precision = "fp32"
    channels_last: bool | Literal["auto"] = True  # memory format; auto: the one in which a CPU trains faster
    accumulate: PositiveInt = 1  # micro-batches that `data.batch_size` is cut into; their mean losses are averaged
    clip_norm: PositiveFloat | None = None  # gradient norm limit of each optimiser
    log_every: PositiveInt = 50
    val_every: PositiveInt = 5000
    save_every: PositiveInt = 1000
    keep_every: PositiveInt | None = None  # also keep the networks of every so many steps, for good
    pictures: PositiveInt = 4  # validation examples shown in TensorBoard
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False  # torch.compile of the segmenter's backbone: minutes at the start, faster updates on a GPU
    deterministic: bool = False  # on a GPU: the same bits every time, by slower algorithms; a CPU gives them anyway
    time_limit: Annotated[str | None, BeforeValidator(_time)] = None  # `3h50m`: then save and stop, to go on later

    @field_validator("keep_every")
    @classmethod
    def _kept_when_saved(cls, keep_every: int | None, info: ValidationInfo) -> int | None:
        save_every = info.data.get("save_every", 1)  # absent where it is itself a mistake
        if keep_every and keep_every % save_every:
            raise ValueError(f"not a multiple of run.save_every ({save_every}): only what is saved can be kept")
        return keep_every


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
            UserError: some value is not finite, in all processes; the message names step, loss, the files of the
                processes that met it, and what to do.
        """
        pending = [row for row in self.rows if any(isinstance(v, Tensor) for v in row["scalars"].values())]
        if not pending:
            return
        own = torch.stack([value for row in pending for value in row["scalars"].values()]).double()
        values = iter(dist.mean_over_ranks(own.clone()).tolist())
        finite = iter(own.isfinite().tolist())
        for row in pending:
            row["scalars"] = {tag: next(values) for tag in row["scalars"]}
            own_finite = [next(finite) for _ in row["scalars"]]
            bad = [tag for tag, value in row["scalars"].items() if not math.isfinite(value)]
            if bad:
                names = dist.gather([] if all(own_finite) else row["names"])
                files = "; ".join(f"images of process {rank}: {', '.join(n)}" for rank, n in enumerate(names) if n)
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
    """Trains `stepper.trainer` until `config.steps`, continuing from the newest whole checkpoint in `folder`.

    `validate(step, limit)` returns scalars with `score` among them; `limit` asks for that many images only. The higher
    the score the better.
    `show(step, batch)` draws training pictures of the last micro-batch. `stamp` is stored in every checkpoint, so that
    one can be used alone; `take_up(state, source)` fills the networks from one. `groups` of classes get a chart each.
    `poll()` and `validate` raise `Stopped`, in all processes together, when the run is asked to stop; within
    `waiting()`, around the wait for a batch, it is raised in this process.

    A run is stopped between an update with its log line and the validation and saving that may follow it. Its
    checkpoint holds what was left out (`unvalidated`), and continuing begins with it.

    Nothing is written to a folder whose lock another job took over (`lock.confirm`).
    """

    def __init__(
        self,
        stepper: Stepper,
        config: RunConfig,
        folder: Path,
        validate: Callable[[int, int | None], Scalars],
        show: Callable[[int, Any], None],
        stamp: dict[str, Any],
        take_up: Callable[[dict[str, Any], str], None],
        poll: Callable[[], None],
        waiting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        groups: Iterable[str] = (),
        score: str = "val/mIoU",
    ) -> None:
        self.stepper, self.config, self.folder = stepper, config, folder
        self.validate, self.show, self.stamp, self.poll, self.waiting = validate, show, stamp, poll, waiting
        self.groups, self.score = tuple(groups), score
        self.checkpoints = folder / "checkpoints"
        self.start, self.best = 0, {"step": 0, score: -1.0}
        self.window = Window()
        self.unvalidated: dict[str, Any] | None = None
        self.owner = lock.owner(folder)
        if dist.is_main():
            for line in checkpoint.set_broken_aside(self.checkpoints):
                say(line)
        dist.barrier()
        newest = checkpoint.find_last(self.checkpoints)
        if newest:
            state = checkpoint.load(newest)
            take_up(state, str(newest))
            stepper.load_progress(state)
            self.start, self.best, self.window = state["step"], state["best"], Window(state["window"])
            self.unvalidated = state.get("unvalidated", state.get("half"))  # `half` in older ones
        found = dist.gather((self.start, self.unvalidated is not None))
        if len(set(found)) > 1:
            raise UserError(
                f"{self.checkpoints}: the file system shows different files to different machines (the processes would "
                f"continue from steps {', '.join(str(start) for start, _ in found)}); nothing was changed, run again"
            )
        self.log: RunLog | None = None

    def fit(self, batches: Callable[[int], Iterator[Any]]) -> Scalars:
        """Run to the end; `batches(start)` streams micro-batches from update `start` on. Returns the last scores.

        Raises:
            Stopped: the run was asked to stop; its state is saved.
        """
        config, stepper = self.config, self.stepper
        first = self.start - 1 if self.unvalidated else self.start
        self.log = RunLog(self.folder, first, self.groups) if dist.is_main() else None
        stepper.begin()
        if self.unvalidated:
            self._take_up(self.unvalidated)
        if self.start:
            say(f"continuing from step {self.start}")
        elif config.steps:
            self.validate(0, 2)  # a broken evaluation shows now, not after hours
        scores: Scalars = {}
        stream = batches(first)
        progress = Progress(self.start, config.steps, stepper.trainer.headline)
        mark, images, waited = time.monotonic(), 0, 0.0
        for step in range(first, config.steps):
            asked = time.monotonic()
            try:
                with self.waiting():
                    micro = list(islice(stream, config.accumulate))
            except Stopped as stopped:
                if step > self.start and not stopped.alone:
                    self._save(step)
                say(f"stopped by {stopped} while it waited for data; the same command goes on from what is saved")
                raise
            waited += time.monotonic() - asked
            done, names = step + 1, [name for batch in micro for name in batch.names]
            logged: Scalars = {}
            if done > self.start:
                self.window.add(done, names, stepper.update(micro, len(micro), step))
                images += len(names) * dist.world()
                progress.advance()
                self._confirm()
                if done % config.log_every == 0 or done == config.steps:
                    self.window.settle(self._last_good())
                    logged = self.window.mean() | stepper.rates()
                    spent = time.monotonic() - mark
                    logged |= {"speed/images_per_second": images / spent, "speed/waiting_for_data": waited / spent}
                    if self.log:
                        self.log.scalars(done, logged)
                    progress.report(done, logged)
                    self.window = Window()
                    mark, images, waited = time.monotonic(), 0, 0.0
            elif self.unvalidated:
                logged = self.unvalidated["logged"]
            paused = time.monotonic()
            validating = done % config.val_every == 0 or done == config.steps
            statistics = self._own_statistics() if validating else []  # before a validation that may be cut off
            try:
                self.poll()
                if validating:
                    self.window.settle(self._last_good())
                    scores = self._validate(done)
                    self.show(done, micro[-1])
            except Stopped as stopped:
                if stopped.alone:
                    raise
                self._save(done, {"logged": logged, "statistics": dist.gather(statistics or self._own_statistics())})
                if stopped.time_is_up and self.unvalidated and done == self.start:
                    raise UserError(
                        f"run.time_limit: {config.time_limit} was over before anything was done beyond step {done}, "
                        "where the run was stopped before; give it more time, nothing is lost"
                    ) from stopped
                say(f"stopped after step {done} by {stopped}; all is saved, the same command goes on from there")
                raise
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
        self._confirm()
        if self.log:
            self.log.scalars(step, scores)
        if scores[self.score] > self.best[self.score]:
            self.best = {"step": step, self.score: scores[self.score]}
            self._keep("best.pt", step)
        return scores

    def _own_statistics(self) -> list[Tensor]:
        """This process's running statistics (float buffers), on the CPU; nothing where there is one process only."""
        if dist.world() == 1:
            return []
        return [buffer.detach().to("cpu", copy=True) for buffer in self._float_buffers()]

    def _float_buffers(self) -> list[Tensor]:
        modules = self.stepper.trainer.modules.values()
        return [b for module in modules for b in module.buffers() if b.is_floating_point()]

    def _take_up(self, unvalidated: dict[str, Any]) -> None:
        """Restore what a stop between an update and its validation left: log line, each process's statistics."""
        if self.log and unvalidated["logged"]:
            self.log.scalars(self.start, unvalidated["logged"])
        if len(unvalidated["statistics"]) == dist.world():
            for buffer, value in zip(self._float_buffers(), unvalidated["statistics"][dist.rank()]):
                buffer.copy_(value)

    def _save(self, step: int, unvalidated: dict[str, Any] | None = None) -> None:
        """`unvalidated`: what continues a run that is stopped before the validation of `step`."""
        self._confirm()
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
        if self.config.keep_every and step % self.config.keep_every == 0 and not unvalidated:
            self._keep(f"step_{step:08d}.pt", step)  # first: what goes on from this step keeps no more of it
        if self.log:
            self.log.flush()
            state |= {"step": step, "best": self.best, "window": self.window.rows, "unvalidated": unvalidated}
            state |= self.stamp
            checkpoint.save_last(self.checkpoints, state, self._confirm)
        dist.barrier()

    def _confirm(self) -> None:
        if dist.is_main():
            lock.confirm(self.folder, self.owner)

    def _keep(self, name: str, step: int) -> None:
        """Networks only, without the state of the optimisers."""
        if dist.is_main():
            modules = self.stepper.state_dict()["modules"]
            state = {"step": step, "modules": modules, **self.stamp}
            checkpoint.save(self.checkpoints / name, state, self._confirm)

    def _last_good(self) -> Path | None:
        return checkpoint.find_last(self.checkpoints)
