"""Segment pictures, folders of them, videos and image sequences with a trained checkpoint."""

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from PIL import Image

from da import run
from da.config import UserError
from da.data import folders
from da.engine import dist
from da.engine.log import bar, say
from da.engine.stepper import Stepper
from da.ensemble import Average, restore_all
from da.evaluation import visualize
from da.evaluation.infer import EvalConfig, predict_labels, predict_probabilities
from da.labels import LabelSpace

Kind = Literal["overlay", "color", "labelIds", "probabilities"]
KINDS = get_args(Kind)
PICTURES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pnm",
    ".gif",
    ".jp2",
    ".jfif",
    ".avif",
)
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
NUMBER = re.compile(r"%\d*d")  # in the name of an image sequence
SEQUENCE_RATE = 25.0  # frames per second of the video made from an image sequence

_fourcc: Callable[..., int] = cv2.VideoWriter_fourcc  # type: ignore[attr-defined, unused-ignore]

# The name of each frame, and the frame, (H, W, 3) uint8 RGB, or its path and why it cannot be read.
_Frames = Iterator[tuple[str, np.ndarray | str]]


class _Unreadable(Exception):
    """Why an input cannot be read; it is named and skipped."""


class _Job(NamedTuple):
    name: str  # of the results, below the output folder
    path: Path  # picture, video, or pattern of an image sequence
    frames: bool  # of the latter two
    problem: str = ""  # why there is nothing to read


def predict(
    checkpoints: Sequence[Path],
    which: str,
    inputs: Sequence[str],
    out: Path,
    kinds: Sequence[Kind],
    opacity: float,
    overrides: Sequence[str] = (),
    average: Average = "logits",
) -> list[str]:
    """Write the predictions for `inputs` below `out`, at the inputs' own sizes, and `legend.png`.

    A picture `a.jpg` gives `a_<kind>.png` (probabilities: `a_probabilities.npz`, array `probabilities` (classes, H, W)
    float16). A video or sequence gives the videos `a_overlay.mp4` and `a_color.mp4`, where an odd side is one pixel
    longer, and for the other kinds, which a video would falsify, a folder `a/` of one file per frame: with the frame's
    own name in a sequence, its number from 1 on in a video.

    Args:
        checkpoints: run folders or checkpoint files, several as one (`da.ensemble`); `which` is `last` or `best` of a
            folder.
        inputs: pictures, folders (searched with all below them), videos, or sequences such as `frames/%06d.png`.
        opacity: of the colours over the picture, 0 to 1.
        overrides: `eval.` settings, device and precision; without them the run's own protocol decides the input
            size, and this machine the precision.
        average: what is averaged of several checkpoints.

    Returns:
        One line for each input that could not be read, or not to its end.

    Raises:
        UserError: the results would lie among the inputs, or a setting or the checkpoint is wrong.
    """
    fast = "run.precision=auto"  # the checkpoint may come from another machine
    config, trainer, step = restore_all(checkpoints, which, average, [fast, *overrides])
    stepper = run.make_stepper(trainer, config, dist.pick_device(config.run.device))
    stepper.eval()
    jobs = list(_unique(job for text in inputs for job in _jobs(text, out)))
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(visualize.legend(trainer.classes)).save(out / "legend.png")
    names = " + ".join(map(str, checkpoints))
    say(f"{names}, step {step}, on {stepper.device}: {len(jobs)} inputs; {config.eval.describe()}")
    skipped: list[str] = []
    failed = turned = 0
    for job in bar(jobs, "inputs", len(jobs)):
        try:
            if job.problem:
                raise _Unreadable(job.problem)
            if job.frames:
                skipped += _video(stepper, config.eval, job, out, kinds, opacity)
            else:
                picture = read_picture(job.path)
                turned += folders.is_turned(job.path)
                results = _segment(stepper, config.eval, picture, kinds, opacity)
                for kind, result in results.items():
                    _save(out / f"{job.name}_{kind}", kind, result, trainer.classes)
        except _Unreadable as error:
            failed += 1
            skipped.append(f"skipped {job.path}: {error}")
            say(skipped[-1])
    if turned:
        say(
            f"{turned} pictures ask by their EXIF orientation to be shown turned; they are segmented as they are stored"
        )
    done = len(jobs) - failed
    say(f"{done} of {len(jobs)} inputs segmented" + f"; results and legend.png in {out}" * (done > 0))
    return skipped


def _jobs(text: str, out: Path) -> Iterator[_Job]:
    path = Path(text)
    if path.is_dir():
        if out.resolve() == path.resolve():
            raise UserError(f"{out}: results would lie among the inputs; name another folder")
        files = _files_below(path, out)
        found = [p for p in files if p.suffix.lower() in PICTURES + VIDEOS and not p.name.startswith(".")]
        if not found:
            yield _Job("", path, False, f"no picture or video; known are {', '.join(PICTURES + VIDEOS)}")
        elif others := sorted(set(files) - set(found)):
            kinds = sorted({p.name if p.name.startswith(".") else p.suffix or p.name for p in others})
            names = ", ".join(kinds[:20]) + (", ..." if len(kinds) > 20 else "")
            say(f"{path}: {len(others)} files left aside, their names are not those of pictures: {names}")
        for file in found:
            yield _Job(str(file.relative_to(path).with_suffix("")), file, file.suffix.lower() in VIDEOS)
    elif _is_sequence(path):
        yield _Job(NUMBER.sub("", path.stem).strip("_-. ") or path.parent.name or "sequence", path, True)
    else:
        yield _Job(path.stem, path, path.suffix.lower() in VIDEOS)


def _files_below(folder: Path, out: Path) -> list[Path]:
    """All files below `folder`, through links too, each folder once; results of an earlier call in `out` left out."""
    found: list[Path] = []
    seen: dict[Path, Path] = {}  # real folder -> where it was met
    for here, below, names in os.walk(folder, followlinks=True):
        at = Path(here)
        first = seen.setdefault(at.resolve(), at)
        if first != at or at.resolve().is_relative_to(out.resolve()):
            if first != at:
                say(f"{at}: left aside, it is the same folder as {first}")
            below.clear()
            continue
        below.sort()
        found += [at / name for name in names]
    return sorted(found)


def _is_sequence(path: Path) -> bool:
    return NUMBER.search(path.name) is not None and not path.exists()


def _unique(jobs: Iterator[_Job]) -> Iterator[_Job]:
    """The jobs with a number added to every name that was taken before."""
    taken: set[str] = set()
    for job in jobs:
        name, number = job.name, 1
        while name in taken:
            number += 1
            name = f"{job.name}-{number}"
        taken.add(name)
        yield job._replace(name=name)


def read_picture(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB, decoded as training decodes it: the EXIF orientation is not followed.

    Raises:
        _Unreadable: missing, truncated, huge, or no picture.
    """
    if path.exists() and not path.is_file():
        raise _Unreadable("a folder, FIFO, socket or device, no picture")
    try:
        return folders.read_image(path)
    except UserError as error:
        raise _Unreadable(str(error).removeprefix(f"{path}: ")) from error


def _segment(
    stepper: Stepper, config: EvalConfig, picture: np.ndarray, kinds: Sequence[Kind], opacity: float
) -> dict[Kind, np.ndarray]:
    """The asked-for results for (H, W, 3) uint8 RGB, all of height H and width W."""
    image = torch.from_numpy(picture).permute(2, 0, 1).to(stepper.device)
    size = (picture.shape[0], picture.shape[1])
    classes = stepper.trainer.classes
    found: dict[Kind, np.ndarray] = {}
    with stepper.autocast():
        if "probabilities" in kinds:
            found["probabilities"] = predict_probabilities(stepper.trainer.predict, image, size, config).numpy()
        if set(kinds) - {"probabilities"}:
            labels = predict_labels(stepper.trainer.predict, image, size, config).cpu().numpy()
    if "labelIds" in kinds:
        found["labelIds"] = labels
    if "color" in kinds:
        found["color"] = visualize.colorize(labels, classes)
    if "overlay" in kinds:
        found["overlay"] = visualize.overlay(picture, visualize.colorize(labels, classes), opacity)
    return found


def _save(stem: Path, kind: Kind, result: np.ndarray, classes: LabelSpace) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(stem.name + (".npz" if kind == "probabilities" else ".png"))
    if kind == "probabilities":
        np.savez_compressed(path, probabilities=result)
    elif kind == "labelIds":
        visualize.save_labels(path, result, classes)
    else:
        Image.fromarray(result).save(path)


def _video(
    stepper: Stepper, config: EvalConfig, job: _Job, out: Path, kinds: Sequence[Kind], opacity: float
) -> list[str]:
    """Returns a line for each frame that could not be read, for a video that ends early, for one not written whole."""
    frames, rate, total = _sequence(job.path) if _is_sequence(job.path) else _open(job.path)
    classes = stepper.trainer.classes
    written: dict[Kind, _Written] = {}
    problems: list[str] = []
    count = 0
    try:
        for name, frame in bar(frames, job.path.name, total):
            count += 1
            if isinstance(frame, str):
                problems.append(f"skipped {frame}")
                continue
            for kind, result in _segment(stepper, config, frame, kinds, opacity).items():
                if kind in ("labelIds", "probabilities"):
                    _save(out / job.name / f"{name}_{kind}", kind, result, classes)
                    continue
                if kind not in written:
                    path = out / f"{job.name}_{kind}.mp4"
                    written[kind] = _Written(path, rate, frame.shape[1], frame.shape[0])
                written[kind].add(result)
    finally:
        problems += filter(None, [video.close() for video in written.values()])
    if not count:
        raise _Unreadable("no frame in it can be decoded")
    if total and count < total - 1:  # where a file does not count its frames, their number is rounded
        problems.append(f"{job.path}: ends early, {count} of the {total} frames that it announces can be decoded")
    for problem in problems:
        say(problem)
    return problems


class _Written:
    """A video in MPEG-4 that is being written; it has its name when it is whole."""

    def __init__(self, path: Path, rate: float, width: int, height: int) -> None:
        self.path, self.aside, self.count = path, path.with_suffix(".writing.mp4"), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (width + width % 2, height + height % 2)
        if size != (width, height):
            say(f"{path}: {size[0]}x{size[1]}, the last column or row of {width}x{height} twice: MPEG-4 has even sides")
        rates = (rate, round(rate, 2), round(rate, 1), round(rate), SEQUENCE_RATE)  # MPEG-4's clock has 65535 ticks
        for near in filter(None, rates):
            self.writer = cv2.VideoWriter(str(self.aside), _fourcc(*"mp4v"), near, size)
            if self.writer.isOpened():
                break
        else:
            self.aside.unlink(missing_ok=True)
            raise _Unreadable(f"OpenCV cannot write {path} as MPEG-4 here; ask for --what labelIds instead")
        if near != rate:
            say(f"{path}: {near:g} frames a second, MPEG-4 cannot say {rate:g}")

    def add(self, picture: np.ndarray) -> None:
        """Write (H, W, 3) uint8 RGB, its last row or column repeated where the height or width is odd."""
        even = cv2.copyMakeBorder(picture, 0, picture.shape[0] % 2, 0, picture.shape[1] % 2, cv2.BORDER_REPLICATE)
        self.writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self.count += 1

    def close(self) -> str:
        """Give the video its name if it plays to its end, else delete it and return what is wrong: OpenCV writes on in
        silence when the disk is full."""
        self.writer.release()
        capture, played = cv2.VideoCapture(str(self.aside)), 0
        while capture.grab():
            played += 1
        capture.release()
        if played == self.count:
            self.aside.replace(self.path)
            return ""
        self.aside.unlink(missing_ok=True)
        return f"{self.path}: not written, {played} of its {self.count} frames arrived on the disk; is it full?"


def _open(path: Path) -> tuple[_Frames, float, int | None]:
    """A video's frames, named by their numbers from 1 on, how many a second, and how many there are said to be."""
    if not path.is_file():
        raise _Unreadable(
            "a folder, FIFO, socket or device, no video" if path.exists() else "No such file or directory"
        )
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise _Unreadable("OpenCV cannot open it as a video")

    def frames() -> _Frames:
        for number in itertools.count(1):
            there, frame = capture.read()
            if not there:
                capture.release()
                return
            yield f"{number:06d}", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    total, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    return frames(), rate if 0 < rate < math.inf else SEQUENCE_RATE, total if total > 0 else None


def _sequence(pattern: Path) -> tuple[_Frames, float, int]:
    """The frames of a sequence such as `frames/%06d.png` by their numbers, all of the first one's size."""
    before, after = NUMBER.split(pattern.name, maxsplit=1)
    form = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    there = pattern.parent.iterdir() if pattern.parent.is_dir() else ()
    numbered = [(int(match[1]), path) for path in there if (match := form.fullmatch(path.name))]
    if not numbered:
        raise _Unreadable("no file of this numbered form")
    pictures = [path for _, path in sorted(numbered)]

    def frames() -> _Frames:
        size = None  # (width, height)
        for path in pictures:
            try:
                picture = read_picture(path)
            except _Unreadable as error:
                yield path.stem, f"{path}: {error}"
                continue
            size = size or (picture.shape[1], picture.shape[0])
            yield path.stem, picture if picture.shape[1::-1] == size else cv2.resize(picture, size)

    return frames(), SEQUENCE_RATE, len(pictures)
