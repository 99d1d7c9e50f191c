"""Optimisers of a segmenter, with a rate for its backbone and one for its heads: SGD, or AdamW."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat
from torch.optim import SGD, AdamW, Optimizer

from da.config import Section
from da.nets.pspnet import PSPNet

_Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[_Decay, _Decay]  # Adam's


class SegmenterAdamW(Section):
    """AdamW for the segmenter, Loshchilov and Hutter, ICLR 2019. The defaults are those of DAFormer (Hoyer, Dai and Van
    Gool, CVPR 2022), HRDA and MIC, which also say `run.schedule={power: 1.0, warmup: 1500}`.

    Norms, biases, tokens and position embeddings do not decay.
    """

    lr: NonNegativeFloat = 6e-5  # of the backbone
    head_lr_mult: NonNegativeFloat = 10.0  # the heads' rate over the backbone's
    weight_decay: NonNegativeFloat = 0.01
    betas: Betas = (0.9, 0.999)
    # Rate of a stage of the backbone (of a transformer: a block) over that of the next one (BEiT, Bao et al., ICLR
    # 2022); 1 = all alike; 0.9 for DINOv2 in VFM-UDA++.
    layer_decay: float = Field(1.0, gt=0, le=1)

    def build(self, segmenter: PSPNet) -> AdamW:
        backbone, head = segmenter.parameter_groups()
        parts = [("backbone", backbone, self.lr)]
        if self.layer_decay < 1:
            stages = [[p for m in stage for p in m.parameters(recurse=False)] for stage in segmenter.backbone.stages()]
            rates = [self.lr * self.layer_decay ** (len(stages) - 1 - number) for number in range(len(stages))]
            parts = [(f"backbone{number}", stages[number], rate) for number, rate in enumerate(rates)]
        groups, decaying = [], self._decaying(segmenter)
        for name, parameters, rate in [*parts, ("head", head, self.lr * self.head_lr_mult)]:
            for decays in (True, False):
                chosen = [p for p in parameters if p.requires_grad and (id(p) in decaying) == decays]
                if chosen:
                    decay = self.weight_decay if decays else 0.0
                    groups.append({"name": name, "params": chosen, "lr": rate, "weight_decay": decay})
        return AdamW(groups, betas=self.betas)

    def _decaying(self, segmenter: PSPNet) -> set[int]:
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
    adamw: SegmenterAdamW | None = None

    def build(self, segmenter: PSPNet) -> Optimizer:
        if self.adamw is not None:
            return self.adamw.build(segmenter)
        backbone, head = segmenter.parameter_groups()
        groups = [
            {"name": "backbone", "params": backbone, "lr": self.lr * self.backbone_lr_mult},
            {"name": "head", "params": head, "lr": self.lr * self.head_lr_mult},
        ]
        return SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay)
