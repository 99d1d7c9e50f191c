"""`python -m da gpu-check`: what this code does on a GPU, known within minutes, in one table.

    device    what it is, driver and versions
    step      every trainer's update with the full experiments' networks and sizes, on random images
    resume    a run that was killed and went on, against the same run in one piece, bit by bit
    group     a run in a process group of one (NCCL), against the same run without a group
    bench     `python -m da bench step`

Each measurement has a process of its own. One that crashes, hangs or runs out of memory costs the others nothing: its
row says what failed. On a CPU all sizes are tiny: that tries the check itself, and its figures mean nothing.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from da import bench
from da.data.transforms import DomainConfig
from da.engine import checkpoint, dist, run_files
from da.engine.log import say
from da.engine.stepper import Precision, definite, set_deterministic
from da.environment import driver
from da.run import load_config, make_stepper, run_folder
from da.trainers import base

SHORT = ("run.steps=24", "run.save_every=8", "run.val_every=24", "run.log_every=8", "data.workers=0")
SECONDS = 120.0  # at most for one measurement: one that hangs leaves time for the others
TIMED_MS = 4000  # that the timed updates take together, about


class Row(NamedTuple):
    """One line of the table. None: not measured there."""

    part: str
    what: str
    seconds: float | None = None  # per update
    images_per_second: float | None = None  # of both domains
    memory_mib: float | None = None  # peak; in part bench, and on a CPU, above what was held before
    peak_share: float | None = None  # of the measured matmul FLOPs per second
    result: str = ""
    failed: bool = False


class Check:
    """Makes the table, and keeps on the disk what there is of it.

    Args:
        out: folder for `gpu_check.md`, `gpu_check.json`, `bench.json` and the logs of the runs.
        device: cuda or cpu.
        methods: names of trainers.
        seconds: for everything; what does not fit becomes rows that failed.
        launcher: script that trains its arguments in a process group of one; None leaves the part `group` out.
    """

    def __init__(self, out: Path, device: str, methods: Sequence[str], seconds: float, launcher: Path | None) -> None:
        self.out, self.device, self.methods, self.launcher = out.resolve(), device, methods, launcher
        self.until = time.monotonic() + seconds
        self.rows: list[Row] = []

    @property
    def failed(self) -> bool:
        return any(row.failed for row in self.rows)

    def run(self) -> None:
        """All parts, the longest last."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._add("device", self.device, lambda: [self._apart(device_row, self.device)])
        for method in self.methods:
            self._steps(method)
        for method in self.methods:
            self._runs(method)
        self._add("bench", "step", self._bench)

    def _add(self, part: str, what: str, rows: Callable[[], Iterable[Row]]) -> None:
        """Take in `rows()`; where it raises an error, one more row says what failed."""
        say(f"{part}: {what} ...")
        try:
            for row in rows():
                self.rows.append(row)
        except Exception as error:  # whatever it is, the other parts are wanted
            self.rows.append(Row(part, what, result=first_line(error), failed=True))
        facts = {"commit": run_files.commit(), "failed": self.failed, "rows": [row._asdict() for row in self.rows]}
        run_files.write_text(self.out / "gpu_check.json", json.dumps(facts, indent=2) + "\n")
        run_files.write_text(self.out / "gpu_check.md", table(self.rows) + "\n")

    def _seconds(self, most: float = SECONDS) -> float:
        """That the next measurement may take.

        Raises:
            TimeoutError: there is no time left.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("not begun: the time for the whole check is over")
        return min(left, most)

    def _apart(self, function: Callable[..., Row], *arguments: object) -> Row:
        """`function(*arguments)` in a process of its own.

        Raises:
            RuntimeError: it raised an error, or its process died.
            TimeoutError: it took too long.
        """
        seconds = self._seconds()
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(sender, function, *arguments), daemon=True)
        process.start()
        sender.close()
        try:
            if not receiver.poll(seconds):
                raise TimeoutError(f"not done within {seconds:.0f} s")
            answer: Row | str = receiver.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"its process died with exit code {process.exitcode}") from None
        finally:
            process.kill()
            process.join()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    # --- step ---------------------------------------------------------------------------------------------

    def _steps(self, method: str) -> None:
        """An update in the precision that `auto` stands for and in fp32, and the price of `run.deterministic`."""
        spent: dict[tuple[Precision, bool], float | None] = {}

        def measured(precision: Precision, deterministic: bool) -> Row:
            row = self._apart(step_row, method, self.device, precision, deterministic)
            spent[precision, deterministic] = row.seconds
            without = spent.get((precision, False))
            if deterministic and without and row.seconds:
                return row._replace(result=f"{row.seconds / without:.2f} times the seconds")
            return row

        choices: tuple[tuple[Precision, bool], ...] = (("auto", False), ("fp32", False), ("auto", True))
        for precision, deterministic in choices:
            what = f"{method}, {precision}{', deterministic' if deterministic else ''}"
            self._add("step", what, lambda p=precision, d=deterministic: [measured(p, d)])  # type: ignore[misc]

    # --- resume, group ------------------------------------------------------------------------------------

    def _runs(self, method: str) -> None:
        """Short runs of the method's miniature experiment, side by side: nothing is timed here."""
        with (
            tempfile.TemporaryDirectory(dir=self.out, ignore_cleanup_errors=True) as name,
            ThreadPoolExecutor() as pool,
        ):
            folder = Path(name)
            short = pool.submit(short_run, method, folder, self.device)

            def begun(kind: str, deterministic: bool) -> "Future[Path]":
                return pool.submit(self._train, short, folder / f"{kind}-{deterministic}", kind, deterministic)

            straight, killed = ({on: begun(kind, on) for on in (True, False)} for kind in ("straight", "killed"))
            grouped = begun("grouped", True) if self.launcher else None

            def resumed(on: bool) -> Row:
                differs = difference(straight[on].result(), killed[on].result())
                return Row("resume", what[on], result=differs or "bitwise equal", failed=bool(differs) and on)

            def in_group(run: Path) -> Row:
                backend = json.loads((run / "environment.json").read_text(encoding="utf-8"))["backend"]
                if backend is None:
                    raise RuntimeError("no process group was made")
                differs = difference(straight[True].result(), run)
                result = f"{differs or 'bitwise equal'} ({backend})"
                return Row("group", f"{method}, deterministic", result=result, failed=bool(differs))

            what = {True: f"{method}, deterministic", False: f"{method}, not deterministic"}
            self._add("resume", what[True], lambda: [resumed(True)])
            self._add("resume", what[False], lambda: [resumed(False)])
            if grouped:
                self._add("group", what[True], lambda: [in_group(grouped.result())])

    def _train(self, short: "Future[tuple[list[str], Path]]", runs: Path, kind: str, deterministic: bool) -> Path:
        """Train below the folder `runs`; `kind` says whether it is `killed` once, or `grouped`. Returns the run.

        Raises:
            RuntimeError: it did not end well.
            TimeoutError: it took too long.
        """
        words, where = short.result()
        where, log = runs / where, self.out / f"{where.name}-{runs.name}.log"
        settings = [*words, f"run.deterministic={str(deterministic).lower()}"]
        command = [sys.executable, "-m", "da", "train", *settings, "--runs", str(runs)]
        if kind == "grouped":
            command = ["bash", str(self.launcher), "train", *settings]
        log.unlink(missing_ok=True)
        if kind == "killed":
            until = time.monotonic() + self._seconds()
            with self._started(command, runs, log) as process:
                while process.poll() is None and not checkpoint.find_last(where / "checkpoints"):
                    if time.monotonic() > until:
                        raise TimeoutError("no checkpoint in time")
                    time.sleep(0.002)
                process.kill()
            if process.returncode != -signal.SIGKILL or (where / "summary.json").exists():
                raise RuntimeError(f"ended before it could be killed: {last_line(log)}")
        self._finish(command, runs, log)
        if kind == "killed" and "continuing from step" not in log.read_text(encoding="utf-8", errors="replace"):
            raise RuntimeError(f"began anew after it was killed, see {log}")
        return where

    def _finish(self, command: list[str], runs: Path, log: Path, most: float = SECONDS) -> None:
        """Run `command` to its end.

        Raises:
            RuntimeError: its exit code is not 0.
            TimeoutError: it took too long.
        """
        seconds = self._seconds(most)
        with self._started(command, runs, log) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"not done within {seconds:.0f} s") from None
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {last_line(log)}")

    @contextlib.contextmanager
    def _started(self, command: list[str], runs: Path, log: Path) -> "Iterator[subprocess.Popen[bytes]]":
        """`command`, which writes to `log`; it does not outlive the block. `runs` is for the launcher."""
        environment = os.environ | {"PYTHON": sys.executable, "RUNS": str(runs)}
        with open(log, "ab") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    # --- bench --------------------------------------------------------------------------------------------

    def _bench(self) -> Iterator[Row]:
        """The rows of `python -m da bench step`, as far as it comes."""
        file = self.out / "bench.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "da", "bench", "step", "--rounds", "2", "--device", self.device]
        command += ["--json", str(file), *(["--small"] if self.device == "cpu" else [])]
        problem: Exception | None = None
        try:
            self._finish(command, self.out, self.out / "bench.log", math.inf)
        except Exception as error:  # the rows before it count
            problem = error
        report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for precision, flops in report.get("matmul_flops_per_second", {}).items():
            yield Row("bench", f"matrix products, {precision}", result=f"{flops / 1e12:.4g} TFLOP/s")
        for row in report.get("rows", ()):
            what = f"{row['comparison']}: {row['variant']}"
            yield Row(
                "bench", what, row["min_ms"] / 1e3, row["images_per_second"], row["memory_mib"], row["peak_share"]
            )
        for failure in report.get("failures", ()):
            yield Row("bench", "step", result=first_line(failure), failed=True)
        if problem:
            raise problem


# --- what runs in a process of its own --------------------------------------------------------------------


def _answer(sender: Connection, function: Callable[..., Row], *arguments: object) -> None:
    try:
        sender.send(function(*arguments))
    except Exception as error:
        sender.send(first_line(error))


def device_row(name: str) -> Row:
    """The device and the versions that matter for it."""
    device = dist.pick_device(name)
    report = bench.Bench(device, rounds=1).report()
    facts = [report["device"], *(f"{package} {version}" for package, version in report["versions"].items())]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts.insert(1, f"{properties.total_memory / bench.MIB:.0f} MiB")
        facts += [f"compute capability {properties.major}.{properties.minor}", f"driver {driver() or 'not found'}"]
        facts += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
        if torch.distributed.is_nccl_available():
            facts.append(f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
    return Row("device", name, result=", ".join(facts))


def step_row(method: str, name: str, precision: Precision, deterministic: bool) -> Row:
    """One update of `method` as its full experiment has it, on random images, in the midst of the run: what warms in
    is on.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    set_deterministic(deterministic)
    device = dist.pick_device(name)
    file = bench.experiment(method, "gta2city")
    settings = [f"data.{stream}.root=unused" for stream in [*bench.training_streams(file), "val"]]
    settings += [f"run.precision={definite(precision, device)}", "model.weights=none"]
    settings += bench.small_settings(method, file) if device.type == "cpu" else []
    config = load_config([file], settings)
    trainer = base.build(config)
    stepper = make_stepper(trainer, config, device)
    count, source = config.data.batch_size, config.data.source[0]
    target = config.data.target[0] if config.data.target and trainer.uses_target else None
    batch = bench.synthetic_batch(_size(source), device, _size(target or source), count)
    batch = batch if target else batch._replace(tgt_image=None, tgt_names=[])
    numbers = itertools.count(config.run.steps // 2)

    def update() -> dict[str, Tensor]:
        return stepper.update([batch], 1, next(numbers))

    for _ in range(3):  # a GPU tries algorithms, optimisers make their state
        update()
    held = torch.cuda.memory_allocated(device) / bench.MIB if device.type == "cuda" else 0.0
    extra = bench.extra_memory(update, device)
    timer = bench.Bench(device, rounds=1)
    repeats = min(20, max(3, round(TIMED_MS / timer.milliseconds(update))))
    seconds = timer.milliseconds(update, repeats) / 1e3
    bad = [tag for tag, value in update().items() if not value.isfinite()]
    if bad:
        raise FloatingPointError(f"{', '.join(bad)} is not finite")
    sizes = " and ".join(f"{w}x{h}" for h, w in map(_size, (source, target) if target else (source,)))
    what = f"{config.name}, {sizes}, batch {count}, {config.run.precision}{', deterministic' if deterministic else ''}"
    return Row("step", what, seconds, len(batch.names) / seconds, None if extra is None else held + extra)


def _size(domain: DomainConfig) -> tuple[int, int]:
    """(height, width) of the images that a step gets.

    Raises:
        ValueError: the experiment does not fix it.
    """
    size = domain.crop or domain.size
    if size is None:
        raise ValueError("its experiment gives neither data.*.crop nor data.*.size")
    return size[1], size[0]


# --- runs -------------------------------------------------------------------------------------------------


def short_run(method: str, folder: Path, device: str) -> tuple[list[str], Path]:
    """What follows `python -m da train` for some updates of the method's miniature experiment, on a few images drawn
    into `folder`, and where the run will be below the folder of all runs."""
    bench.write_pairs(folder / "images", 4, (320, 160))
    data = {"dataset": "gta5", "root": str(folder / "images"), "split": "all"}
    file = bench.experiment(method, "mini")
    streams = bench.training_streams(file)
    words = [f"data.{stream}.{key}={value}" for stream in [*streams, "val"] for key, value in data.items()]
    words += [*(f"data.{stream}.labels=null" for stream in streams if stream != "target"), *SHORT]
    words += [f"run.device={device}"]
    words += [*bench.small_settings(method, file), "run.precision=fp32"] if device == "cpu" else []
    config = load_config([file], words)
    if config.init:  # any weights do, and there may be no run of the segmenter here
        start = folder / "segmenter.pt"
        checkpoint.save(start, {"step": 0, "modules": {"segmenter": base.build(config).segmenter.state_dict()}})
        words.append(f"init={start}")
    return [file, *words], run_folder(config, Path())


def difference(run: Path, other: Path) -> str:
    """How the last checkpoints of two runs differ in networks, optimisers and memory; "" where they are equal."""
    states = [checkpoint.load(r / "checkpoints/last.pt") for r in (run, other)]
    found = [list(tensors([state[key] for key in ("modules", "optimizers", "memory")])) for state in states]
    pairs = list(zip(*found, strict=True))
    apart = [(a.double() - b.double()).abs().max().item() for a, b in pairs if not torch.equal(a, b)]
    return f"{len(apart)} of {len(pairs)} tensors differ, by {max(apart):.1e} at most" if apart else ""


def tensors(state: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings and sequences."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from tensors(part)


def first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{log}: {lines[-1] if lines else 'nothing was said'}"


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| part | what | s / update | images / s | peak MiB | of peak | result |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = (
            row.part,
            row.what,
            bench.shown(row.seconds, ".4f"),
            bench.shown(row.images_per_second, ".2f"),
            bench.shown(row.memory_mib, ".0f"),
            bench.shown(row.peak_share, ".0%"),
            f"FAILED: {row.result}" if row.failed else row.result,
        )
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)
