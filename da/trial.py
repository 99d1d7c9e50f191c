"""What `auto` stands for on this machine: a CPU tries the precisions and memory formats on the very method."""

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from da.data.loaders import Batch
from da.data.transforms import DomainConfig
from da.engine import dist, run_files
from da.engine.log import say
from da.engine.stepper import bf16_is_worth_a_trial, definite, fastest, to_channels_last
from da.trainers import base, base_pretext


def fastest_here(config: base.Experiment, where: Path, device: torch.device) -> base.Experiment:
    """Precision and memory format made definite; `config.yaml` says which they were. A CPU tries a few updates of this
    very method in each combination: depthwise networks differ from others."""
    recorded = dist.gather(run_files.recorded(where))[0]
    choices: dict[str, list[Any]] = {"channels_last": [True, False], "precision": ["fp32", "bf16"]}
    for key in choices:
        value = getattr(config.run, key)
        value = recorded.get(key, value) if value == "auto" else value
        if value != "auto":
            choices[key] = [value]
    if len(choices["precision"]) > 1 and (device.type == "cuda" or not bf16_is_worth_a_trial()):
        choices["precision"] = [definite("auto", device)]
    if device.type == "cuda":
        choices["channels_last"] = choices["channels_last"][:1]
    candidates = [dict(zip(choices, values)) for values in product(*choices.values())]
    found = candidates[0]
    if len(candidates) > 1:
        found = fastest(_trial(config, choices["channels_last"]), candidates, lead=0.95)
        say(f"fastest here: {', '.join(f'run.{key}={json.dumps(value)}' for key, value in found.items())}")
    return config.model_copy(update={"run": config.run.model_copy(update=found)})


def _trial(config: base.Experiment, formats: list[bool]) -> Callable[[dict[str, Any]], None]:
    """One update of the method, without the optimisers' steps, on batches of up to two and images of up to 2^16 pixels;
    `formats` are the values of `channels_last` that it will be asked for."""
    bare = config.model.model_copy(update={"weights": "none"})
    trainers = {channels_last: base.build(config.model_copy(update={"model": bare})) for channels_last in formats}
    for trainer in trainers.values():
        if trainer.needs_class_shares:  # which the run counts later; any do here
            trainer.class_shares = torch.full((len(trainer.classes),), 1 / len(trainer.classes))
    for module in trainers[True].modules.values() if True in trainers else ():
        to_channels_last(module)
    count = min(2, config.data.batch_size)

    def images(domain: DomainConfig) -> Tensor:
        width, height = domain.crop or domain.size or (320, 160)
        shrink = min(1.0, 256 / math.sqrt(width * height))
        if isinstance(trainer := trainers[formats[0]], base_pretext.Trainer):  # which cuts squares of a size of its own
            width, height, shrink = max(width, trainer.side), max(height, trainer.side), 1.0
        shape = (count, 3, int(height * shrink), int(width * shrink))
        return (torch.arange(math.prod(shape)) * 37 % 251).to(torch.uint8).view(shape)

    src, target = images(config.data.source[0]), config.data.target
    tgt = images(target[0]) if target else None
    pseudo = None if tgt is None else torch.zeros_like(tgt[:, 0])  # of which only self-training takes notice
    batch = Batch(src, torch.zeros_like(src[:, 0]), tgt, [], [], pseudo)

    def update(choice: dict[str, Any]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=choice["precision"] == "bf16", cache_enabled=False):
            trainers[choice["channels_last"]].step(batch, Tensor.backward)

    return update
