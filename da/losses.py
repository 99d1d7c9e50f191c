"""Losses shared by the methods: pixel cross-entropy, domain losses of adversaries, distances of predictions.

Cross-entropy: Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation", CVPR 2018,
eq. 3. Domain losses: its eq. 2 (discriminator) and 4 (segmenter); least squares: Mao et al., "Least Squares
Generative Adversarial Networks", ICCV 2017. Two-way domain loss: Hoffman et al., "CyCADA: Cycle-Consistent
Adversarial Domain Adaptation", ICML 2018. Entropy: Vu et al., "ADVENT: Adversarial Entropy Minimization for Domain
Adaptation in Semantic Segmentation", CVPR 2019. Score distance: Li, Yuan, Vasconcelos, "Bidirectional Learning for
Domain Adaptation of Semantic Segmentation", CVPR 2019.

Differs from the authors' code: a crop without a labelled pixel gives zero, not NaN; everything is computed in
float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from da.kernels import UpsampledCrossEntropy
from da.labels import IGNORE

GanKind = Literal["vanilla", "ls"]
FourierWindow = Literal["symmetric", "released"]

# What a discriminator is taught to answer. The adversarial loss on a target image asks for SOURCE_DOMAIN.
SOURCE_DOMAIN, TARGET_DOMAIN = 0, 1


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels; exactly zero, with zero gradient, if there are none.

    Args:
        logits: (B, C, H, W), any floating type.
        label: (B, H, W) trainIds, uint8 or int64; 255 is ignored.

    Returns:
        0-d float32, in nats per pixel.

    Raises:
        ValueError: the sizes differ.
    """
    batch, _, height, width = logits.shape
    if label.shape != (batch, height, width):
        raise ValueError(f"label {tuple(label.shape)} does not match logits {tuple(logits.shape)}")
    reduction = "none" if torch.are_deterministic_algorithms_enabled() else "sum"  # GPUs sum in any order
    total = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE, reduction=reduction).sum()
    valid = (label != IGNORE).sum()
    return total / valid.clamp(min=1)


def upsampled_cross_entropy(
    logits: Tensor, label: Tensor, align_corners: bool = False, weight: Tensor | None = None
) -> Tensor:
    """`cross_entropy` of logits that are first brought to the label's size (bilinear), without making them.

    Equal to `F.interpolate` and `F.cross_entropy` up to rounding, in a fraction of their time and memory
    (`python -m da bench loss`). The gradient cannot be differentiated again.

    Args:
        logits: (B, C, h, w), any floating type; float32 is used inside (float64 stays).
        label: (B, H, W) trainIds, uint8 or int64; 255 is ignored.
        align_corners: of the upsampling.
        weight: (C,) class weights w on the logits' device, or None for 1.

    Returns:
        0-d, sum of w_y CE over the labelled pixels / sum of their w_y: in nats per pixel. Exactly zero, with zero
        gradient, if there are none.

    Raises:
        ValueError: the batches or the number of weights differ.
    """
    batch, classes = logits.shape[:2]
    if label.ndim != 3 or label.shape[0] != batch:
        raise ValueError(f"label {tuple(label.shape)} does not match logits {tuple(logits.shape)}")
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"weight {tuple(weight.shape)} does not match {classes} classes")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss: Tensor = UpsampledCrossEntropy.apply(logits, label, weight, align_corners)
    return loss


def domain_loss(logits: Tensor, domain: int, kind: GanKind) -> Tensor:
    """Distance of a discriminator's output from a domain label, mean over all cells and the batch.

    Args:
        logits: raw discriminator output of any shape and floating type.
        domain: SOURCE_DOMAIN or TARGET_DOMAIN.
        kind: `vanilla`: binary cross-entropy with logits; `ls`: squared difference of the raw output.

    Returns:
        0-d float32.
    """
    logits = logits.float()
    wanted = torch.full_like(logits, domain)
    if kind == "vanilla":
        return F.binary_cross_entropy_with_logits(logits, wanted)
    return F.mse_loss(logits, wanted)


@torch.no_grad()
def domain_accuracy(logits: Tensor, domain: int, kind: GanKind) -> Tensor:
    """Share of cells, in [0, 1], 0-d, on the side of `domain`; the border is 0 (`vanilla`) or 0.5 (`ls`)."""
    says_target = logits > (0.0 if kind == "vanilla" else 0.5)
    return (says_target == (domain == TARGET_DOMAIN)).float().mean()


def deceive(
    discriminators: Mapping[str, nn.Module], maps: Mapping[str, Tensor], weights: Mapping[str, float], kind: GanKind
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_adv of the segmenter: each level's map of target images should pass for one of the source.

    Args:
        discriminators: by level; frozen by the caller.
        maps: (B, C, H, W) by level, with the graph behind them.
        weights: by level.
        kind: of `domain_loss`.

    Returns:
        0-d weighted sum, and the unweighted losses as `loss/adv_<level>`.
    """
    losses = {level: domain_loss(d(maps[level]), SOURCE_DOMAIN, kind) for level, d in discriminators.items()}
    total = torch.stack([weights[level] * loss for level, loss in losses.items()]).sum()
    return total, {f"loss/adv_{level}": loss for level, loss in losses.items()}


def tell_apart(
    discriminators: Mapping[str, nn.Module],
    maps_s: Mapping[str, Tensor],
    maps_t: Mapping[str, Tensor],
    kind: GanKind,
    backward: Callable[[Tensor], None],
) -> dict[str, Tensor]:
    """L_D of each level, half for each domain, source first; the maps, (B, C, H, W) by level, are detached.

    Returns:
        0-d `loss/d_<level>`, and the shares of cells told rightly, `d/accuracy_<domain>[_<level>]` (none for `main`).
    """
    scalars: dict[str, Tensor] = {}
    for level, d in discriminators.items():
        losses = []
        for domain, name, maps in ((SOURCE_DOMAIN, "source", maps_s), (TARGET_DOMAIN, "target", maps_t)):
            out = d(maps[level].detach())
            losses.append(0.5 * domain_loss(out, domain, kind))
            backward(losses[-1])
            suffix = "" if level == "main" else f"_{level}"
            scalars[f"d/accuracy_{name}{suffix}"] = domain_accuracy(out, domain, kind)
        scalars[f"loss/d_{level}"] = torch.stack(losses).sum()
    return scalars


def self_information(p: Tensor) -> Tensor:
    """-p log p / log C of each class: what a pixel's probabilities (B, C, ...) add to its entropy, which is their sum
    over the classes, in [0, 1]. Vu et al., eq. 1 and the weighted self-information of section 3.2."""
    return -p * torch.log(p + 1e-30) / math.log(p.shape[1])  # 1e-30: log 0 times 0 is 0


def entropy(p: Tensor) -> Tensor:
    """Mean over the pixels of probabilities (B, C, H, W), in [0, 1]: 1 where all classes are alike; 0-d."""
    return self_information(p).sum(1).mean()


def robust_entropy(p: Tensor, eta: float) -> Tensor:
    """Mean over the pixels of (e^2 + 1e-8)^eta, e the entropy of probabilities (B, C, H, W) over log C; 0-d, 0 to 1.
    Yang, Soatto, "FDA", CVPR 2020, eq. 4: of pixels that are sure already it asks little."""
    e = self_information(p).sum(1)
    return (e.square() + 1e-8).pow(eta).mean()


def fourier_swap(content: Tensor, style: Tensor, beta: float, window: FourierWindow = "symmetric") -> Tensor:
    """Images with the low-frequency amplitudes of others and their own phases (Yang, Soatto, "FDA", CVPR 2020, eq. 3).

    Args:
        content: (B, C, H, W) float32, raw values on any scale.
        style: of the same shape and scale.
        beta: half width of the window over the shorter side; 0 returns `content`.
        window: `symmetric`: the frequencies -b to b of both axes; `released`: -b to b - 1, as in the authors' code.

    Returns:
        (B, C, H, W), not clipped.
    """
    if not beta:
        return content
    height, width = content.shape[-2:]
    b = math.floor(min(height, width) * beta)
    end = b if window == "symmetric" else b - 1
    rows, columns = (torch.fft.fftfreq(n, 1 / n, device=content.device).round() for n in (height, width))
    low = ((rows >= -b) & (rows <= end))[:, None] & ((columns >= -b) & (columns <= end))
    own, other = torch.fft.fft2(content), torch.fft.fft2(style)
    swapped = torch.where(low, torch.polar(other.abs(), own.angle()), own)
    return torch.fft.ifft2(swapped).real


def missing_classes(p: Tensor, shares: Tensor, mu: float) -> Tensor:
    """Class-ratio prior of Vu et al., section 3.3: how far the mean probability of each class stays below `mu` times
    its share of the source's pixels, summed over the classes; 0 where none is missing.

    Args:
        p: (B, C, H, W) probabilities; the mean is over each image.
        shares: (C,), sums to 1.
        mu: in [0, 1].
    """
    return (mu * shares - p.mean((2, 3))).clamp(min=0).sum(1).mean()


def real_loss(scores: Tensor, real: bool) -> Tensor:
    """Least-squares distance of a picture discriminator's raw output from "real" (1) or "fake" (0); 0-d float32."""
    return domain_loss(scores, int(real), "ls")


def two_way_domain_loss(log_p: Tensor, domain: int) -> Tensor:
    """Cross-entropy of two-way log-probabilities (B, 2, H, W) with one domain label, mean over cells; 0-d."""
    return -log_p[:, domain].mean()


@torch.no_grad()
def two_way_domain_accuracy(log_p: Tensor, domain: int) -> Tensor:
    """Share of cells, in [0, 1], 0-d, that log-probabilities (B, 2, H, W) assign to `domain`."""
    return (log_p.argmax(1) == domain).float().mean()


@torch.no_grad()
def confident_labels(logits: Tensor, threshold: float) -> Tensor:
    """The most probable class of each pixel, `IGNORE` where its softmax probability is below `threshold`.

    (B, C, H, W) logits -> (B, H, W) int64.
    """
    confidence, label = logits.float().softmax(1).max(1)
    return label.masked_fill(confidence < threshold, IGNORE)


def score_distance(scores: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of two (B, C, H, W) score maps after InstanceNorm, the second one detached; 0-d."""
    return F.mse_loss(F.instance_norm(scores.float()), F.instance_norm(wanted.detach().float()))
