"""How a task without labels is scored on held-out images."""

import math
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch

from da.config import UserError
from da.data import folders
from da.data.loaders import Loaded, ValSample, resolve_root
from da.engine import dist
from da.engine.log import bar
from da.engine.loop import Scalars
from da.engine.stepper import Stepper, seed_everything
from da.evaluation import visualize
from da.evaluation.infer import at_input_size
from da.nets.generator import quantise
from da.trainers import base, base_pretext


def require_large_images(trainer: base_pretext.Trainer, config: base.Experiment) -> None:
    """
    Raises:
        UserError: a validation image is too small for the task; it would show only when its turn comes.
    """
    val = config.data.val
    for sample in folders.find(val.dataset).index(resolve_root(val), val.split, with_labels=False):
        size = config.eval.input_size or folders.image_size(sample.image)
        if min(size) < trainer.side:
            raise UserError(f"data.val: {sample.image}: {trainer.too_small(*size)}")


def examine(
    trainer: base_pretext.Trainer,
    stepper: Stepper,
    config: base.Experiment,
    val: Loaded[ValSample],
    limit: int | None,
    watch: Callable[[Iterable[ValSample], int], Iterable[ValSample]],
) -> tuple[Scalars, np.ndarray]:
    """The mean figures of a task without labels over `val`, and `run.pictures` rows of its pictures."""
    stepper.agree()
    stepper.eval()
    found: list[dict[str, float]] = []
    rows: list[list[np.ndarray]] = []
    count = limit or len(val)
    for sample in bar(watch(islice(val, limit), count), "validation", count):
        image = at_input_size(sample.image.to(stepper.device, non_blocking=True), config.eval)[None].float() / 255
        seed_everything(config.seed, "validation", sample.name)
        with torch.no_grad(), stepper.autocast():
            found.append({name: float(value) for name, value in trainer.examine(image).items()})
            if len(rows) < config.run.pictures and dist.is_main():
                rows.append([visualize.to_picture(quantise(part[0])) for part in trainer.illustrate(image)])
    every = [figures for of_rank in dist.gather(found) for figures in of_rank]
    means = {name: math.fsum(figures[name] for figures in every) / len(every) for name in every[0]}
    return means, visualize.grid(rows, trainer.example_titles, config.data.classes)
