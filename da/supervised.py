"""What refines the segmentation loss of every method: class weights, hard pixels, overlap losses, presence of classes,
and the `loss:` section.

Class weights of ENet: Paszke, Chaurasia, Kim, Culurciello, "ENet: A Deep Neural Network Architecture for Real-Time
Semantic Segmentation", 2016. Median frequency balancing: Eigen, Fergus, "Predicting Depth, Surface Normals and Semantic
Labels with a Common Multi-Scale Convolutional Architecture", ICCV 2015. Online hard example mining (OHEM): Shrivastava,
Gupta, Girshick, CVPR 2016; of pixels: Wu, Shen, van den Hengel, "High-performance Semantic Segmentation Using Very Deep
Fully Convolutional Networks", 2016. Lovász-Softmax: Berman, Rannen Triki, Blaschko, "The Lovász-Softmax Loss", CVPR
2018. Dice: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016. Presence of classes: the repository Lextal/pspnet-pytorch; the
like is in Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018.

Differs from the authors' code: every loss is a mean over labelled pixels or over images, so that it is the same however
a batch is cut into micro-batches and processes. For that hard pixels are chosen, and overlaps taken, in each image and
not in the batch of a process. Shares are of labelled pixels; weights of median frequency have a cap; Dice has no
squares; classes that an image does not show are left out of its overlaps. An image without a labelled pixel gives
exactly zero, with zero gradient.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, Tag
from torch import Tensor

from da.config import Section
from da.labels import IGNORE
from da.losses import upsampled_cross_entropy

Counted = Literal["enet", "median_frequency"]
# What stands in brackets is left out of error messages.
if TYPE_CHECKING:
    ClassWeights = Counted | tuple[float, ...]
else:
    ClassWeights = Annotated[
        Annotated[Counted, Tag("(counted)")] | Annotated[tuple[PositiveFloat, ...], Tag("(given)")],
        Discriminator(lambda given: "(given)" if isinstance(given, list | tuple) else "(counted)"),
    ]


class OhemConfig(Section):
    """Cross-entropy of the hard pixels alone: see `hard_pixels`. The defaults are mmseg's."""

    threshold: float = Field(0.7, ge=0, le=1)  # probability of the true class up to which a pixel is hard
    min_kept: PositiveInt = 100_000  # of each image, where it has as many: its hardest pixels are kept in any case


class LossConfig(Section):
    """The `loss:` section: what is added to the plain mean cross-entropy over the labelled source pixels.

    Attributes:
        class_weights: of the cross-entropy of both heads: a weight for each class in the order of `data.classes`, or
            how weights are made of the source's labels: see `enet_weights` and `median_frequency_weights`. The loss is
            divided by the sum of the weights of the labelled pixels, so the rate means what it meant without.
        weight_cap: the largest weight of `median_frequency`.
        ohem: the cross-entropy of both heads is of hard pixels alone, each head's own.
        lambda_lovasz, lambda_dice: weights of `lovasz_softmax` and `dice_loss`, of the main head, beside cross-entropy.
        lambda_presence: weight of `presence_loss`, of the head that `model.presence` builds.
    """

    class_weights: ClassWeights | None = None
    weight_cap: PositiveFloat = 10.0
    ohem: OhemConfig | None = None
    lambda_lovasz: NonNegativeFloat = 0.0
    lambda_dice: NonNegativeFloat = 0.0
    lambda_presence: NonNegativeFloat = 0.0

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
    that is absent (Paszke et al.)."""
    return 1 / torch.log(1.02 + shares)


def median_frequency_weights(frequencies: Tensor, cap: float) -> Tensor:
    """w_c = median(f) / f_c, at most `cap`, which absent classes have too (Eigen and Fergus).

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


def pixel_loss(
    logits: Tensor, label: Tensor, align_corners: bool, weight: Tensor | None = None, ohem: OhemConfig | None = None
) -> Tensor:
    """Cross-entropy of one head: `upsampled_cross_entropy`, with `ohem` of the hard pixels.

    The hard pixels of an image stand for all of its labelled ones: the loss is the mean over the images of their hard
    pixels' mean, an image counting by its labelled pixels (by the sum of their class weights). So it can be cut into
    micro-batches as the plain mean can, before anybody knows which pixels are hard.

    Args:
        logits: (B, C, h, w), any floating type.
        label: (B, H, W) trainIds; 255 is ignored.
        align_corners: of the upsampling.
        weight: (C,) class weights on the logits' device, or None for 1.
        ohem: None for all pixels.

    Returns:
        0-d, in nats per pixel; exactly zero, with zero gradient, where no pixel is labelled.
    """
    if ohem is None:
        return upsampled_cross_entropy(logits, label, align_corners, weight)
    losses = []
    for image, truth in zip(logits.split(1), label.split(1)):  # one by one: `hard_pixels` makes full-size logits
        hard = hard_pixels(image, truth, align_corners, ohem)
        losses.append(upsampled_cross_entropy(image, hard, align_corners, weight))
    counts = pixel_weights(label, weight).sum((1, 2)).to(losses[0].dtype)  # (B,)
    total = counts.sum()
    return (counts * torch.stack(losses)).sum() / torch.where(total > 0, total, 1)


@torch.no_grad()
def hard_pixels(logits: Tensor, label: Tensor, align_corners: bool, ohem: OhemConfig) -> Tensor:
    """The label with all but the hard pixels of each image ignored: those whose true class is at most as probable as
    `threshold`, or as that of the image's `min_kept`-th hardest pixel, whichever keeps more.

    Args:
        logits: (B, C, h, w), any floating type.
        label: (B, H, W) trainIds; 255 is ignored, never kept, and left unchanged.
        align_corners: of the upsampling.
        ohem: the two numbers.

    Returns:
        (B, H, W), of the label's type.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    full = F.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=align_corners)
    void = label == IGNORE
    truth = label.long().masked_fill(void, 0)[:, None]
    log_p = (full.gather(1, truth) - full.logsumexp(1, keepdim=True)).masked_fill(void[:, None], math.inf).flatten(1)
    bound = _kth_smallest(log_p, min(ohem.min_kept, log_p.shape[1]))  # inf where fewer are labelled
    bound = bound.clamp(min=math.log(ohem.threshold) if ohem.threshold else -math.inf)
    return label.masked_fill((log_p > bound).view_as(label), IGNORE)


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """Of each row of (B, N), as (B, 1)."""
    if torch.are_deterministic_algorithms_enabled():  # `kthvalue` has no such form on GPUs, as its indices vary
        return values.sort(1).values[:, k - 1 : k]
    return values.kthvalue(k, 1, keepdim=True).values


def lovasz_softmax(p: Tensor, label: Tensor) -> Tensor:
    """Convex extension of 1 - IoU, mean over the classes that an image shows, then over the images (Berman et al.).

    For class c, errors m_i = |1[y_i = c] - p_i(c)| in descending order are weighted by how much the Jaccard loss grows
    when that pixel becomes wrong too (their Algorithm 1).

    Args:
        p: (B, C, H, W) probabilities, float32.
        label: (B, H, W) trainIds; 255 is ignored.

    Returns:
        0-d, in [0, 1]; 0 for a perfect prediction. An image without a labelled pixel counts 0.
    """
    void = (label == IGNORE).flatten(1)
    losses, shown = [], []
    for number, own in enumerate(p.flatten(2).unbind(1)):  # (B, H W)
        truth = (label == number).flatten(1)
        errors = (truth.to(p.dtype) - own).abs().masked_fill(void, 0)
        losses.append((errors * _jaccard_growth(errors, truth, void)).sum(1))
        shown.append(truth.any(1))
    return _mean_of_shown(torch.stack(losses, 1), torch.stack(shown, 1))


@torch.no_grad()
def _jaccard_growth(errors: Tensor, truth: Tensor, void: Tensor) -> Tensor:
    """What each pixel adds to the Jaccard loss of its image when pixels become wrong in the order of their errors,
    ignored ones last; all (B, N)."""
    order = errors.masked_fill(void, -1).argsort(1, descending=True)
    missed = truth.gather(1, order).cumsum(1)  # whole numbers: sums of floats have no deterministic form on GPUs
    wrong = torch.arange(1, errors.shape[1] + 1, device=errors.device)
    size = missed[:, -1:]  # pixels of the class
    jaccard = 1 - (size - missed) / (size + wrong - missed).to(errors.dtype)
    growth = jaccard.diff(dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
    return torch.empty_like(errors).scatter_(1, order, growth)


def dice_loss(p: Tensor, label: Tensor) -> Tensor:
    """1 - 2 |p y| / (|p| + |y|), sums over the labelled pixels of an image; mean over the classes that it shows, then
    over the images (Milletari et al., without the squares).

    Args:
        p: (B, C, H, W) probabilities, float32.
        label: (B, H, W) trainIds; 255 is ignored.

    Returns:
        0-d, in [0, 1]; 0 for a perfect prediction. An image without a labelled pixel counts 0.
    """
    truth = label[:, None] == torch.arange(p.shape[1], device=p.device)[:, None, None]  # (B, C, H, W)
    both = (p * truth).sum((2, 3))
    total = (p * (label != IGNORE)[:, None]).sum((2, 3)) + truth.sum((2, 3))
    return _mean_of_shown(1 - 2 * both / total.clamp(min=1e-7), truth.flatten(2).any(2))


def _mean_of_shown(losses: Tensor, shown: Tensor) -> Tensor:
    """Mean over the images of the mean over the classes that each shows; both (B, C)."""
    return ((losses * shown).sum(1) / shown.sum(1).clamp(min=1)).mean()


def class_presence(label: Tensor, classes: int) -> Tensor:
    """(B, H, W) trainIds, 255 ignored -> (B, classes) float32: 1 where an image shows the class, else 0."""
    pixels = label.flatten(1)
    return torch.stack([(pixels == number).any(1) for number in range(classes)], 1).float()


def presence_loss(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of which classes an image shows, mean over classes, then over images.

    Args:
        logits: (B, C), any floating type.
        label: (B, H, W) trainIds; 255 is ignored.
        weight: (C,) class weights on the logits' device, of the mean over classes; None for 1.

    Returns:
        0-d float32, in nats. An image without a labelled pixel says nothing about its classes and counts 0.
    """
    shown = class_presence(label, logits.shape[1])
    losses = F.binary_cross_entropy_with_logits(logits.float(), shown, reduction="none")
    weight = torch.ones_like(losses[0]) if weight is None else weight
    return ((losses * weight).sum(1) / weight.sum() * shown.amax(1)).mean()
