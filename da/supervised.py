"""What refines the segmentation loss of every method: weights of classes, and the `loss:` section.

Class weights of ENet: Paszke, Chaurasia, Kim, Culurciello, "ENet: A Deep Neural Network Architecture for Real-Time
Semantic Segmentation", 2016, section 5.2. Median frequency balancing: Eigen, Fergus, "Predicting Depth, Surface Normals
and Semantic Labels with a Common Multi-Scale Convolutional Architecture", ICCV 2015, section 4.3.

Differs from the authors' code: shares are of labelled pixels; weights of median frequency have a cap. Every loss is a
mean over images, or over labelled pixels, so that it is the same however a batch is cut into micro-batches and
processes. An image without a labelled pixel gives exactly zero, with zero gradient.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, PositiveFloat, Tag
from torch import Tensor

from da.config import Section
from da.labels import IGNORE

Counted = Literal["enet", "median_frequency"]
# What stands in brackets is left out of error messages.
if TYPE_CHECKING:
    ClassWeights = Counted | tuple[float, ...]
else:
    ClassWeights = Annotated[
        Annotated[Counted, Tag("(counted)")] | Annotated[tuple[PositiveFloat, ...], Tag("(given)")],
        Discriminator(lambda given: "(given)" if isinstance(given, list | tuple) else "(counted)"),
    ]


class LossConfig(Section):
    """The `loss:` section: what is added to the plain mean cross-entropy over the labelled source pixels.

    Attributes:
        class_weights: of the cross-entropy of both heads: a weight for each class in the order of `data.classes`, or
            how weights are made of the source's labels: see `enet_weights` and `median_frequency_weights`. The loss is
            divided by the sum of the weights of the labelled pixels, so the rate means what it meant without.
        weight_cap: the largest weight of `median_frequency`.
    """

    class_weights: ClassWeights | None = None
    weight_cap: PositiveFloat = 10.0

    @property
    def counts_classes(self) -> bool:
        """Whether the class weights are made of the source's labels."""
        return isinstance(self.class_weights, str)

    def counted_weights(self, shares: Tensor, frequencies: Tensor) -> Tensor:
        """(classes,) class weights, of what `da.data.loaders` has counted in the source, (classes,) each."""
        if self.class_weights == "enet":
            return enet_weights(shares)
        return median_frequency_weights(frequencies, self.weight_cap)


def enet_weights(shares: Tensor) -> Tensor:
    """w_c = 1 / ln(1.02 + p_c) for shares p of the labelled pixels, (classes,): 1.4 for a class alone to 50.5 for one
    that is absent (Paszke et al., section 5.2)."""
    return 1 / torch.log(1.02 + shares)


def median_frequency_weights(frequencies: Tensor, cap: float) -> Tensor:
    """w_c = median(f) / f_c, at most `cap`, which absent classes have too (Eigen and Fergus, section 4.3).

    Args:
        frequencies: f_c, (classes,): pixels of class c over all labelled pixels of the images that hold it; 0 for a
            class that is absent, which the median leaves out.
        cap: largest weight.

    Returns:
        (classes,).
    """
    median = frequencies[frequencies > 0].quantile(0.5)
    return (median / frequencies).clamp(max=cap)


def pixel_weights(label: Tensor, weight: Tensor | None) -> Tensor:
    """What each pixel of (B, H, W) trainIds counts: the weight of its class, 0 where it is ignored; without class
    weights, (C,) on the label's device, whether it is labelled."""
    if weight is None:
        return label != IGNORE
    return F.pad(weight, (0, IGNORE + 1 - len(weight)))[label.long()]
