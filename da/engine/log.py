"""What a run tells: lines or a bar on the terminal, metrics.jsonl, TensorBoard. The only place that prints."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from tqdm import tqdm

from da.engine import dist
from da.engine.run_files import to_disk, write_text

T = TypeVar("T")


def charts(groups: Iterable[str]) -> dict[str, Any]:
    """TensorBoard's Custom Scalars tab: a chart has a line for every run and every tag that the expression matches."""
    return {
        "comparison": {
            "mIoU": ["Multiline", ["val/mIoU$"]],
            **{f"mIoU of {group}": ["Multiline", [f"val/mIoU_group/{group}$"]] for group in groups},
        },
        "training": {
            "segmentation loss": ["Multiline", ["loss/seg$"]],
            "discriminator, target images told apart": ["Multiline", ["d/accuracy_target$"]],
        },
    }


def say(text: str) -> None:
    """Print a line for the user (main process only), above a progress bar where one is shown."""
    if dist.is_main():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def bar(items: Iterable[T], title: str, total: int | None) -> Iterable[T]:
    """`items` with a bar that vanishes when done; in a log, a line every minute."""
    every = 0.1 if sys.stderr.isatty() else 60.0
    return tqdm(items, title, total, leave=False, disable=not dist.is_main(), mininterval=every, delay=2)


def duration(seconds: float) -> str:
    """`3725` -> `1h02m`; `65` -> `1m05s`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def _silent_on_the_board(before: Callable[[threading.ExceptHookArgs], Any]) -> Callable[..., None]:
    """A `threading.excepthook` for TensorBoard, whose thread meets a full disk: the run's next call raises it again."""

    def hook(died: threading.ExceptHookArgs) -> None:
        if not (isinstance(died.exc_value, OSError) and type(died.thread).__module__.startswith("tensorboard.")):
            before(died)

    return hook


class RunLog:
    """Scalars and pictures of one run, from `start` on; what a cut-off run wrote beyond `start` is dropped.

    Args:
        groups: of classes, which get a chart each.
    """

    def __init__(self, folder: Path, start: int, groups: Iterable[str] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import custom_scalars

        self._path = folder / "metrics.jsonl"
        kept = [line for line in _lines(self._path) if _step(line) <= start]
        write_text(self._path, "".join(line + "\n" for line in kept))
        threading.excepthook = _silent_on_the_board(threading.excepthook)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  closed in close()
        _date_back(folder / "tensorboard")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._writer = cast(Any, self._board.file_writer)  # annotated as None
        if start == 0:
            self._writer.add_summary(custom_scalars(charts(groups)), 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and one point per TensorBoard tag; NaN (an absent class) is left out."""
        finite = {tag: value for tag, value in values.items() if np.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for tag, value in finite.items():
            self._board.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, picture: np.ndarray) -> None:
        """`picture`: (H, W, 3) uint8 RGB."""
        self._board.add_image(tag, picture, step, dataformats="HWC")

    def result(self, step: int, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """A row of TensorBoard's HParams tab.

        Its columns are the settings of all runs, those that differ first, and all scalars in the order of their names,
        and of each it shows the first five until others are ticked. A capital letter makes `Result/mIoU` the first.
        The list of columns that `hparams` makes as well is left out: TensorBoard takes one run's list for all runs, and
        so hides what only other methods have.
        """
        from torch.utils.tensorboard.summary import hparams

        _, begin, end = hparams({key: _cell(value) for key, value in settings.items()}, {})
        for summary in (begin, end):
            self._writer.add_summary(summary, step)
        for name, value in figures.items():
            self._board.add_scalar(f"Result/{name}", value, step)

    def flush(self) -> None:
        """Hand everything to the disk, as before a checkpoint."""
        self._board.flush()
        for path in (self._path, *Path(self._board.log_dir).glob("events.*")):
            to_disk(path)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _cell(value: Any) -> str | int | float:
    """A setting as TensorBoard takes it: a number or a text; all else as one would type it."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _date_back(folder: Path) -> None:
    """Make the event files in `folder` older than one that is opened now.

    TensorBoard reads them in the order of their names, which begin with the second they were opened in. One of a
    restart within that second, or on a machine whose clock is behind, could come first, and its points be dropped.
    """
    opened = {path: int(path.name.split(".")[3]) for path in sorted(folder.glob("events.out.tfevents.*"))}
    ahead = max(opened.values(), default=0) + 1 - int(time.time())
    if ahead > 0:
        for path, second in opened.items():
            path.rename(path.with_name(path.name.replace(str(second), str(second - ahead), 1)))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _step(line: str) -> float:
    """The step of a metrics line; a line that was cut off counts as later than any step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


WAITING = 0.1  # share of the time without a batch from which the terminal speaks of it


class Progress:
    """A bar on a terminal; in a log file, a line with an ETA at every call of `report`.

    Args:
        headline: tags of the scalars to show, and what they are called.
    """

    def __init__(self, start: int, total: int, headline: Mapping[str, str]) -> None:
        self._total, self._start, self._began, self._headline = total, start, time.monotonic(), headline
        self._paused = 0.0
        shown = dist.is_main() and sys.stderr.isatty()
        self._bar = tqdm(initial=start, total=total, unit="step", dynamic_ncols=True) if shown else None

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the headline of `values`, how often the discriminators are right (`d/accuracy...`), and the speed."""
        parts = [f"{name} {values[tag]:.3g}" for tag, name in self._headline.items() if tag in values]
        right = [value for tag, value in values.items() if tag.startswith("d/accuracy")]
        parts += [f"discriminators right {np.mean(right):.0%}"] if right else []
        parts.append(f"{values['speed/images_per_second']:.3g} images/s")
        waiting = values["speed/waiting_for_data"]
        parts += [f"waiting for data {waiting:.0%}"] if waiting > WAITING else []
        shown = "  ".join(parts)
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            return
        spent = time.monotonic() - self._began - self._paused
        left = spent / max(step - self._start, 1) * (self._total - step)
        say(f"step {step}/{self._total}  {shown}  ETA {duration(left)}")

    def skip(self, seconds: float) -> None:
        """Leave `seconds` (a validation) out of the ETA's rate."""
        self._paused += seconds

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
