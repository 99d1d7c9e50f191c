"""The contract between a method and everything else.

A method is one module in this folder. `trainer: adaptsegnet` in a YAML means `da.trainers.adaptsegnet`, which
exposes `Config`, the `method:` section, and `Trainer`. The trainer says *what* an update is; the engine says
*when*, and does device, precision, accumulation, clipping, synchronisation, schedule, checkpoints and logging.
"""

import difflib
import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from types import ModuleType
from typing import Any, ClassVar

import torch
from pydantic import create_model
from torch import Tensor, nn
from torch.optim import Optimizer

import da.trainers
from da.config import UserError
from da.data.loaders import Batch
from da.data.transforms import photometric
from da.engine import dist
from da.engine.stepper import Backward, Remembers
from da.experiment import Experiment
from da.nets.pspnet import Encoder, PSPNet, Scores
from da.supervised import LossConfig, dice_loss, lovasz_softmax, pixel_loss, pixel_weights, presence_loss


class Trainer(ABC):
    """One method. Subclasses build their networks and optimisers in full in `__init__`, on the CPU."""

    uses_target: ClassVar[bool] = True  # False: no target image is ever opened
    # What the terminal shows of the scalars of `step`, and what it calls them; TensorBoard and metrics.jsonl have all.
    headline: ClassVar[Mapping[str, str]] = {"loss/seg": "loss"}
    takes_other_classes: ClassVar[bool] = False  # True: of an `init` with other classes it replaces the classifiers
    is_translation: ClassVar[bool] = False  # True: it trains generators, and its score is that of a frozen segmenter
    is_pretext: ClassVar[bool] = False  # True: it trains an encoder alone, and opens no label (`base_pretext`)
    score: ClassVar[str] = "mIoU"  # the figure of a validation that says how good it is; the higher the better
    example_titles: ClassVar[tuple[str, ...]] = ()  # of the columns of `examples`

    modules: dict[str, nn.Module]  # everything with weights or buffers; saved, restored, moved
    optimizers: dict[str, Optimizer]  # each parameter in exactly one group of one optimiser
    segmenter: PSPNet
    segmenter_is_trained: bool = True  # False: nobody trained it, its scores and predictions say nothing
    needs_class_shares: bool = False  # True: the run counts the source's labels before the first update
    class_shares: Tensor | None = None  # each class's share of the source's labelled pixels, (classes,), where needed
    class_weights: Tensor | None = None  # (classes,), of `loss.class_weights`; the run makes those that are counted
    weights_report: dict[str, Any] | None = None  # what filled the backbone before it was trained (`LoadReport`)
    learns_from_pseudo_labels: bool = False  # True: batches have `tgt_label`, which `da label` wrote
    iteration: int = 0  # number of the current update, from 0; the engine sets it
    source_weight: Tensor | float = 1.0  # of the micro-batch's source loss, see `source_weights`; the engine sets it
    target_weight: Tensor | float = 1.0  # the same of a loss over pseudo labels

    def __init__(self, config: Experiment) -> None:
        self.config = config
        self.classes = config.data.classes  # what the segmenter tells apart
        self.memory: dict[str, Remembers] = {}  # what else a continuation needs (`da.engine.history`)
        if (self.is_translation or self.is_pretext) and config.loss != LossConfig():
            raise UserError(f"loss: {config.trainer} trains no segmenter; leave the section out")
        if isinstance(config.loss.class_weights, tuple):
            self.class_weights = torch.tensor(config.loss.class_weights)

    @property
    def encoder(self) -> Encoder:
        """What `model:` describes and `init` fills: the segmenter, or an encoder alone."""
        return self.segmenter

    def started(self, fresh: Set[str]) -> None:  # noqa: B027
        """The segmenter has its starting weights; `fresh` names those of its tensors that are random.

        Called once in a run, before the first update; not where a run goes on.
        """

    @abstractmethod
    def step(self, batch: Batch, backward: Backward) -> dict[str, Tensor]:
        """All forward and backward passes of one update, in the paper's order.

        `backward(loss)` adds a loss's gradients; the engine steps all optimisers afterwards. How often it is called may
        differ between updates, but not between the processes of a run. Returns 0-d tensors under their TensorBoard
        names (`loss/...`, `d/...`, `agreement/...`, `accuracy/...`); nothing here may wait for the device.
        """

    def predict(self, image: Tensor) -> Tensor:
        """Target-domain logits (B, classes, h, w) at the output stride, for RGB images (B, 3, H, W) in [0, 1]."""
        return self.segmenter.scores(image, "target").main

    def source_weights(self, batches: list[Batch]) -> list[Tensor]:
        """How much each micro-batch's mean over labelled source pixels counts, so that the mean over micro-batches
        and processes is the mean over all labelled pixels of the global batch: its pixels over their mean number. With
        class weights a pixel counts by the weight of its class."""
        weight = self._class_weights_at(batches[0].src_label)
        return dist.over_their_mean([pixel_weights(batch.src_label, weight).sum() for batch in batches])

    def target_weights(self, batches: list[Batch]) -> list[Tensor] | list[float]:
        """The same for a mean over the pixels that have a pseudo label; 1 where nothing has."""
        labels = [batch.tgt_label for batch in batches if batch.tgt_label is not None]
        if not labels:
            return [1.0] * len(batches)
        return dist.over_their_mean([pixel_weights(label, None).sum() for label in labels])

    def segmentation_loss(self, scores: Scores, label: Tensor, lambda_aux: float) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(main, y) + lambda_aux CE(aux, y), the second only where there is an auxiliary head (PSPNet, sec. 3.3).

        Where the section `loss:` says so, CE is weighted by class and of hard pixels alone, and overlap losses of the
        main head and the loss of the presence head are added: so not for pseudo labels, whose hardest are wrong.
        `scores` are the segmenter's at the output stride, upsampled here to `label`, (B, H, W) trainIds. Returns the
        0-d loss and its parts under their TensorBoard names, each such that its mean over micro-batches and processes
        is the mean over the global batch's labelled pixels; of overlap and presence, over its images.
        """
        terms, weight = self.config.loss, self._class_weights_at(label)
        align_corners = self.segmenter.config.align_corners
        loss = self.source_weight * pixel_loss(scores.main, label, align_corners, weight, terms.ohem)
        parts = {"loss/seg": loss}
        if scores.aux is not None:
            aux = self.source_weight * pixel_loss(scores.aux, label, align_corners, weight, terms.ohem)
            loss, parts["loss/seg_aux"] = loss + lambda_aux * aux, aux
        if terms.lambda_lovasz or terms.lambda_dice:
            p = self.segmenter.upsample(Scores(scores.main, None), label.shape[-2:]).main.softmax(1)
            if terms.lambda_lovasz:
                parts["loss/lovasz"] = lovasz_softmax(p, label)
                loss = loss + terms.lambda_lovasz * parts["loss/lovasz"]
            if terms.lambda_dice:
                parts["loss/dice"] = dice_loss(p, label)
                loss = loss + terms.lambda_dice * parts["loss/dice"]
        if scores.presence is not None:
            parts["loss/presence"] = presence_loss(scores.presence, label, weight)
            loss = loss + terms.lambda_presence * parts["loss/presence"]
        return loss, parts

    def _class_weights_at(self, label: Tensor) -> Tensor | None:
        """The class weights on the label's device, copied there once."""
        if self.class_weights is not None and self.class_weights.device != label.device:
            self.class_weights = self.class_weights.to(label.device)
        return self.class_weights

    def translate(self, image: Tensor) -> Tensor:
        """Source RGB images (B, 3, H, W) in [0, 1] in the style of the target, same size and range.

        Raises:
            UserError: the method has no generator.
        """
        translators = " or ".join(name for name in methods() if find(name).Trainer.is_translation)
        raise UserError(f"trainer {self.config.trainer} translates no images; name a run of {translators}")

    def examples(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        """Rows of RGB images (B, 3, H, W) in [0, 1] that TensorBoard shows under `example_titles`, each with the
        predictions of a trained segmenter."""
        return []

    def warm_in(self, start: int, steps: int) -> float:
        """0 before update `start`, then rising linearly, 1 from `start + steps` on."""
        return min(max((self.iteration - start) / max(steps, 1), 0.0), 1.0) if self.iteration < start + steps else 1.0

    def view(self, image: Tensor) -> Tensor:
        """uint8 RGB (B, 3, H, W) -> float RGB in [0, 1] with the configured colour jitter and blur."""
        return photometric(image.float() / 255, self.config.data.jitter, self.config.data.blur)


def freeze(modules: list[nn.Module], frozen: bool) -> None:
    """Stop (or let) gradients reach the parameters of `modules`; they still pass through to the inputs."""
    for module in modules:
        module.requires_grad_(not frozen)


def methods() -> list[str]:
    """Names of all methods in this folder; what is called `base...` is a contract."""
    return sorted(m.name for m in pkgutil.iter_modules(da.trainers.__path__) if not m.name.startswith("base"))


def find(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        UserError: there is none of that name; the nearest is named.
    """
    if name not in methods():
        near = difflib.get_close_matches(name, methods(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(methods())
        raise UserError(f"trainer: no method {name!r} in da/trainers; {hint}")
    return importlib.import_module(f"da.trainers.{name}")


@functools.cache
def experiment_schema(trainer: str) -> type[Experiment]:
    """`Experiment` with `method` typed by the trainer's `Config`."""
    config = find(trainer).Config
    return create_model("Experiment", __base__=Experiment, method=(config, config()))


def build(config: Experiment) -> Trainer:
    """The method's trainer with weights drawn from `config.seed`."""
    torch.manual_seed(config.seed)
    trainer: Trainer = find(config.trainer).Trainer(config)
    return trainer
