"""Several trained segmenters as one: the mean of their scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from da.config import UserError
from da.engine.stepper import Backward, Remembers
from da.run import EVALUATION_KEYS, checkpoint_path, restore
from da.trainers import base

Average = Literal["logits", "probabilities"]


class Ensemble:
    """What evaluation asks of a trainer, answered by several of them; it cannot be trained.

    Args:
        members: trainers of the same classes.
        average: `logits`: their mean (the AdvEnt + MinEnt row of ADVENT, by its authors in their issue 7);
            `probabilities`: the mean softmax, as FDA's three models are averaged (Yang, Soatto, CVPR 2020).

    Raises:
        UserError: the members have other classes.
    """

    headline: ClassVar[Mapping[str, str]] = {}
    iteration: int = 0
    source_weight: Tensor | float = 1.0
    target_weight: Tensor | float = 1.0

    def __init__(self, members: Sequence[base.Trainer], average: Average) -> None:
        self.members, self.average = members, average
        self.classes = members[0].classes
        for member in members[1:]:
            if differs := self.classes.difference(member.classes):
                raise UserError(f"an ensemble needs runs of the same classes; these differ: {differs}")
        self.modules: dict[str, nn.Module] = {
            f"{number}.{name}": module
            for number, member in enumerate(members)
            for name, module in member.modules.items()
        }
        self.optimizers: dict[str, Optimizer] = {}
        self.memory: dict[str, Remembers] = {}
        self.weights_report = [member.weights_report for member in members]

    def predict(self, image: Tensor) -> Tensor:
        """Logits (B, classes, h, w) at the finest of the members' output strides, for RGB images (B, 3, H, W) in
        [0, 1]. The softmax of them is the mean softmax where probabilities are averaged."""
        found = [member.predict(image).float() for member in self.members]
        height, width = (max(sizes) for sizes in zip(*(scores.shape[-2:] for scores in found)))
        size = (height, width)
        found = [s if s.shape[-2:] == size else F.interpolate(s, size, mode="bilinear") for s in found]
        if self.average == "logits":
            return torch.stack(found).mean(0)
        return torch.stack([scores.log_softmax(1) for scores in found]).logsumexp(0)

    def step(self, batch: Any, backward: Backward) -> dict[str, Tensor]:
        raise TypeError("an ensemble is not trained; train its members")

    def source_weights(self, batches: list[Any]) -> list[Tensor]:
        raise TypeError("an ensemble is not trained; train its members")

    target_weights = source_weights


def restore_all(
    runs: Sequence[Path],
    which: str,
    average: Average,
    overrides: Sequence[str] = (),
    command: str = "evaluate",
    keys: Sequence[str] = EVALUATION_KEYS,
) -> tuple[base.Experiment, base.Trainer | Ensemble, int]:
    """Configuration and step of the first of `runs`, and its trainer, or of several all as one; `which` is as for
    `da.run.checkpoint_path`, the rest as for `da.run.restore`."""
    found = [restore(checkpoint_path(run, which), overrides, command, keys) for run in runs]
    config, trainer, step = found[0]
    return config, trainer if len(found) == 1 else Ensemble([member for _, member, _ in found], average), step
