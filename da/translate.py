"""A source data set in the style of the target: every image through a trained generator, labels as they are."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from da.config import UserError
from da.data import folders
from da.data.folders import STAMP, Sample
from da.data.loaders import Loaded, plain_images, resolve_root, workers_watched
from da.data.transforms import DomainConfig
from da.engine import checkpoint, dist, lock, run_files
from da.engine.log import bar, say
from da.engine.stepper import Stepper
from da.engine.stop import StopRequests, seconds
from da.engine.whole import made_whole
from da.nets.generator import quantise
from da.run import checkpoint_path, images_of, make_stepper, restore
from da.trainers import base

KEYS = ("data.source.root", "data.workers", "run.device", "run.precision", "run.time_limit")  # that may change here
LIST_BYTES = 4 * 2**20  # larger text files beside the image folders are no lists of names


@workers_watched()
def translate(run: Path, out: Path, overrides: Sequence[str], batch: int, agreement: bool) -> None:
    """Write the translated copy of a run's source split to `out`, a data root in the source's own layout.

    Pictures keep their names and their sizes (a source with a training `size` is translated at that size and brought
    back); labels are linked, split lists copied. All is written to `<out>.partial`, which is renamed when complete: a
    killed call is continued by the next, and `out` is never half there.

    Args:
        run: run folder or checkpoint of a method with a generator.
        out: the data root to make; a finished one from the same weights is left alone.
        overrides: settings of the run that may change here, see `KEYS`.
        batch: images of equal size that go through the generator at a time.
        agreement: also report the share of pixels of the whole set that the run's segmenter labels alike in image and
            stored translation.

    Raises:
        UserError: the method has no generator, `out` holds something else or is being written by another call, or
            `agreement` is asked for without a trained segmenter.
        Stopped: asked to stop by a signal or `run.time_limit`; what is written stays.
    """
    path = checkpoint_path(run, "last")
    config, trainer, step = restore(path, overrides, "translate", KEYS)
    stepper = make_stepper(trainer, config, dist.pick_device(config.run.device))
    stepper.eval()
    with torch.no_grad():
        trainer.translate(torch.zeros(1, 3, 64, 64, device=stepper.device))  # has the method a generator at all?
    if agreement and not trainer.segmenter_is_trained:
        raise UserError(f"--agreement: leave it out; {run} has no trained segmenter to label the pictures (init: null)")
    if run.is_dir() and not run_files.read_summary(run):
        say(f"{run} is not finished: translating with its weights of step {step} of {config.run.steps}")
    if len(config.data.source) > 1:
        raise UserError(f"{run}: has {len(config.data.source)} sources; translate writes one data root: train with one")
    (source,) = config.data.source
    root = resolve_root(source)
    stamp = {
        "run": run.resolve().name,
        "step": step,
        "weights": checkpoint.fingerprint({name: m.state_dict() for name, m in trainer.modules.items()}),
        "precision": config.run.precision,
        "source": source.model_dump(mode="json", include={"dataset", "root", "split", "size"}),
        "images": images_of(source),
    }
    dataset = folders.find(source.dataset)
    samples = dataset.index(root, source.split)
    limit = config.run.time_limit
    with StopRequests(seconds(limit) if limit else None) as stop:
        if out.exists():
            if _require_same(out, stamp) != source.root:
                with lock.held(out, "name another folder"):
                    _share_the_rest(root, out, samples, source.split)  # the labels lie elsewhere now
                    run_files.write_text(out / STAMP, json.dumps(stamp, indent=2) + "\n")
            say(f"{out} is complete; delete it to translate again")
        else:
            with made_whole(out, lambda left: _require_same(left, stamp)) as (partial, confirm):
                run_files.write_text(partial / STAMP, json.dumps(stamp, indent=2) + "\n")
                _share_the_rest(root, partial, samples, (*dataset.lists, source.split))
                left = [sample for sample in samples if not _copy_of(sample.image, root, partial).exists()]
                say(f"translating {len(left)} of {len(samples)} images of {root} with {path} on {stepper.device}")
                todo = plain_images(left, config.data.workers)
                _translate_all(stepper, todo, source, root, partial, batch, stop, confirm)
            say(f"{out} is complete; python -m da data check {out} --as {source.dataset}")
        if agreement:
            share = _agreement(stepper, samples, source, root, out, config.data.workers, stop)
            say(f"label agreement of image and translation: {100 * share:.1f} % of the pixels")


def _translate_all(
    stepper: Stepper,
    todo: Loaded[tuple[Sample, Tensor]],
    source: DomainConfig,
    root: Path,
    out: Path,
    batch: int,
    stop: StopRequests,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """`confirm`: called before each batch; it may refuse to go on by an exception."""
    trainer: base.Trainer = stepper.trainer  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as writers:
        written: list[Future[None]] = []
        for group in stop.watch(_batches(bar(todo, "translate", len(todo)), batch), 0):
            confirm()
            images = torch.stack([image for _, image in group])
            with torch.no_grad(), stepper.autocast():
                fake = trainer.translate(_at_training_size(images, source, stepper))
            if not fake.isfinite().all():
                names = ", ".join(sample.name for sample, _ in group)
                raise UserError(f"the translation of {names} is not finite: try run.precision=fp32")
            for (sample, _), picture in zip(group, _resized(fake, images.shape[-2:])):
                target = _copy_of(sample.image, root, out)
                written.append(writers.submit(_write, target, quantise(picture).permute(1, 2, 0).cpu().numpy()))
            while len(written) > 4 * batch:
                written.pop(0).result()
        for pending in written:
            pending.result()


def _at_training_size(images: Tensor, source: DomainConfig, stepper: Stepper) -> Tensor:
    """uint8 images (B, 3, H, W) on the device, in [0, 1], resized where the source has a training size."""
    unit = images.to(stepper.device).float() / 255
    return unit if source.size is None else _resized(unit, (source.size[1], source.size[0])).clamp(0, 1)


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.resize(images, list(size), InterpolationMode.BICUBIC, antialias=True)


@torch.no_grad()
def _agreement(
    stepper: Stepper,
    samples: list[Sample],
    source: DomainConfig,
    root: Path,
    out: Path,
    workers: int,
    stop: StopRequests,
) -> float:
    """Mean over the images of the share of pixels that the segmenter labels alike in both of a pair."""
    trainer: base.Trainer = stepper.trainer  # type: ignore[assignment]
    translations = [sample._replace(image=_copy_of(sample.image, root, out)) for sample in samples]
    pairs = zip(plain_images(samples, workers), plain_images(translations, workers))
    total = 0.0
    for (_, real), (_, fake) in stop.watch(bar(pairs, "agreement", len(samples)), 0):
        with stepper.autocast():
            shown = (_at_training_size(image[None], source, stepper) for image in (real, fake))
            a, b = (trainer.segmenter(image, "source").main.max(1).indices for image in shown)
        total += float((a == b).float().mean())
    return total / len(samples)


def _batches(items: Iterable[tuple[Sample, Tensor]], size: int) -> Iterable[list[tuple[Sample, Tensor]]]:
    """Up to `size` neighbours of equal image size at a time."""
    for _, alike in groupby(items, lambda item: item[1].shape):
        group: list[tuple[Sample, Tensor]] = []
        for item in alike:
            group.append(item)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group


def _write(path: Path, picture: np.ndarray) -> None:
    """Write a picture whole or not at all, in the format that its name says."""
    aside = path.with_name(f"writing-{platform.node()}-{os.getpid()}-{path.name}")  # no other process writes there
    Image.fromarray(picture).save(aside, quality=95, compress_level=1)  # each format reads its own
    os.replace(aside, path)


def _share_the_rest(root: Path, out: Path, samples: list[Sample], lists: Sequence[str]) -> None:
    """Make the folders, link the labels, copy `lists` below the root and other small text files in it."""
    for folder in {_copy_of(sample.image, root, out).parent for sample in samples}:
        folder.mkdir(parents=True, exist_ok=True)
        run_files.remove_left(folder, "writing-*")
    for sample in samples:
        if sample.label is None:
            continue
        link = _copy_of(sample.label, root, out)
        link.parent.mkdir(parents=True, exist_ok=True)
        run_files.link_or_copy(sample.label, link)
    texts = [path for path in root.glob("*.txt") if path.stat().st_size < LIST_BYTES]
    for path in (*(root / name for name in lists), *texts):
        if path.is_file() and path.is_relative_to(root):
            _copy_of(path, root, out).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, _copy_of(path, root, out))


def _copy_of(path: Path, root: Path, out: Path) -> Path:
    return out / path.relative_to(root)


def _require_same(folder: Path, stamp: dict[str, Any]) -> Any:
    """The root that the translations in `folder` were made from. It may differ where the names of its images do not,
    and the run may: the same weights go by several names.

    Raises:
        UserError: `folder` holds something else.
    """
    found = folders.read_stamp(folder)
    source: Any = found.get("source")
    root = source.get("root") if isinstance(source, dict) else None
    wanted = {key: value for key, value in stamp.items() if key != "run" and (key != "images" or key in found)}
    if found.get("images") == stamp["images"]:
        wanted["source"] = stamp["source"] | {"root": root}
    if {key: found.get(key) for key in wanted} != wanted:
        what = f"translations by {found.get('run')} at step {found.get('step')}" if found else "something else"
        raise UserError(f"{folder} holds {what}, not what this call would write; delete it or name another folder")
    return root
