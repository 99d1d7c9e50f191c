"""Optimisers of a segmenter, with a rate for its backbone and one for its heads: SGD, or AdamW. A penalty that pulls
weights towards those that they started from may take the place of their weight decay."""

from collections.abc import Collection
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from da.config import Section
from da.nets.pspnet import Encoder

_Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[_Decay, _Decay]  # Adam's
# Rate of a stage of the backbone (of a transformer: a block) over that of the next one (BEiT, Bao et al., ICLR 2022);
# 1 = all alike; 0.9 for DINOv2 in VFM-UDA++.
LayerDecay = Annotated[float, Field(gt=0, le=1)]


def _backbone_parts(segmenter: Encoder, lr: float, layer_decay: float) -> list[tuple[str, list[nn.Parameter], float]]:
    """Name, trained parameters and rate of the backbone, in one piece or, where stages decay, by stages."""
    if layer_decay == 1:
        return [("backbone", segmenter.parameter_groups()[0], lr)]
    stages = segmenter.backbone.stages()
    found = []
    for number, stage in enumerate(stages):
        trained = [p for module in stage for p in module.parameters(recurse=False) if p.requires_grad]
        found.append((f"backbone{number}", trained, lr * layer_decay ** (len(stages) - 1 - number)))
    return [part for part in found if part[1]]


class SegmenterAdamW(Section):
    """AdamW for the segmenter, Loshchilov and Hutter, ICLR 2019. The defaults are those of DAFormer (Hoyer, Dai and Van
    Gool, CVPR 2022), HRDA and MIC, which also say `run.schedule={power: 1.0, warmup: 1500}`.

    Norms, biases, tokens and position embeddings do not decay.
    """

    lr: NonNegativeFloat = 6e-5  # of the backbone
    head_lr_mult: NonNegativeFloat = 10.0  # the heads' rate over the backbone's
    weight_decay: NonNegativeFloat = 0.01
    betas: Betas = (0.9, 0.999)
    layer_decay: LayerDecay = 1.0

    def build(self, segmenter: Encoder) -> AdamW:
        parts = _backbone_parts(segmenter, self.lr, self.layer_decay)
        groups, decaying, head = [], self._decaying(segmenter), segmenter.parameter_groups()[1]
        for name, parameters, rate in [*parts, ("head", head, self.lr * self.head_lr_mult)]:
            for decays in (True, False):
                chosen = [p for p in parameters if (id(p) in decaying) == decays]
                if chosen:
                    decay = self.weight_decay if decays else 0.0
                    groups.append({"name": name, "params": chosen, "lr": rate, "weight_decay": decay})
        return AdamW(groups, betas=self.betas)

    def _decaying(self, segmenter: Encoder) -> set[int]:
        apart = ("pos_embed", "_token", "relative_position")  # as timm calls them
        named = segmenter.named_parameters()
        return {id(p) for name, p in named if p.ndim > 1 and not any(word in name for word in apart)}


class SegmenterSGD(Section):
    """SGD with momentum for the segmenter, as PSPNet and the DeepLab-based adaptation papers use it; `adamw={}` takes
    AdamW instead, and the rates, momentum and decay here are then not the segmenter's."""

    lr: NonNegativeFloat = 2.5e-4
    head_lr_mult: NonNegativeFloat = 10.0  # the heads' rate over the backbone's
    # Published code in AdaptSegNet's line lists backbone parameters about three times in its optimiser, which
    # makes the effective backbone rate about three times the written one. Here each is listed once; say 3 to match.
    backbone_lr_mult: NonNegativeFloat = 1.0
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 5e-4
    layer_decay: LayerDecay = 1.0
    adamw: SegmenterAdamW | None = None

    def build(self, segmenter: Encoder) -> Optimizer:
        if self.adamw is not None:
            return self.adamw.build(segmenter)
        parts = _backbone_parts(segmenter, self.lr * self.backbone_lr_mult, self.layer_decay)
        parts.append(("head", segmenter.parameter_groups()[1], self.lr * self.head_lr_mult))
        groups = [{"name": name, "params": parameters, "lr": rate} for name, parameters, rate in parts]
        return SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay)


class L2SP(Section):
    """The weights of `TowardsStart`; the defaults are those of the authors' script for SGD."""

    alpha: NonNegativeFloat = 0.1  # on what came from the start
    beta: NonNegativeFloat = 0.01  # on what is new


class TowardsStart:
    """L2-SP in place of an optimiser's weight decay. Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer
    Learning with Convolutional Networks", ICML 2018, section 3.

        Omega(w) = alpha / 2 |w_S - w_S^0|^2 + beta / 2 |w_new|^2

    w_S are the trained parameters that came from the start, w_S^0 what they were there, w_new the others. Norms and
    biases are among them, batch statistics are not. Under SGD the gradient, alpha (w_S - w_S^0) and beta w_new, is
    added to that of the loss. AdamW keeps its decay apart from the gradient (Loshchilov and Hutter, ICLR 2019), and so
    it is here: w_S <- w_S - lr alpha (w_S - w_S^0). Like weight decay it is not clipped, and what has no gradient is
    left alone.

    Differs from the authors' code: theirs can spare norms and biases.

    Args:
        config: alpha and beta.
        network: whose parameters the optimiser steps.
        optimizer: loses its weight decay.

    Attributes:
        start: w_S^0 by the names in `network`; empty until `begin`. Part of the checkpoint.
    """

    def __init__(self, config: L2SP, network: nn.Module, optimizer: Optimizer) -> None:
        self.config, self.network = config, network
        self.start: dict[str, Tensor] = {}
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        optimizer.register_step_pre_hook(self._pull)

    def begin(self, fresh: Collection[str]) -> None:
        """The network has its starting weights, and those named in `fresh` are new."""
        trained = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in trained.items() if name not in fresh}

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, *_: Any) -> None:
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                away, strength = parameter, self.config.beta
                if names[parameter] in self.start:
                    away, strength = parameter - self._start_of(names[parameter], parameter), self.config.alpha
                if isinstance(optimizer, AdamW):
                    parameter.sub_(away, alpha=min(group["lr"] * strength, 1.0))
                else:
                    parameter.grad.add_(away, alpha=strength)

    def _start_of(self, name: str, parameter: Tensor) -> Tensor:
        """w_S^0 where and as the parameter is; it comes from a file, or is of before the network was moved."""
        start = self.start[name]
        if (start.device, start.stride()) != (parameter.device, parameter.stride()):
            start = self.start[name] = torch.empty_like(parameter).copy_(start)
        return start

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = dict(state["start"])
