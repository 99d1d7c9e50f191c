"""A conditional random field over a local window that sharpens a segmentation along the edges of its image.

Mean field of the fully connected CRF (Kraehenbuehl & Koltun, NIPS 2011, equations 2, 3 and algorithm 1) with the sum
over all pixels cut to a square window (Teichmann & Cipolla, "Convolutional CRFs", arXiv 1805.04777, section 4).
Differs from the authors' code: full resolution instead of messages at a quarter of it, each kernel normalised by its
sum over the window at the receiving pixel, nothing learned.
"""

from collections.abc import Iterator

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from da.config import Section


class CRFConfig(Section):
    """Strengths and reaches of the two kernels; the defaults are ConvCRF's."""

    iterations: PositiveInt = 5
    radius: PositiveInt = 5  # the window has 2 * radius + 1 pixels on a side
    bilateral_weight: NonNegativeFloat = 10.0  # neighbours of like colour
    bilateral_sigma: PositiveFloat = 80.0  # pixels
    color_sigma: PositiveFloat = 13.0  # of 255
    spatial_weight: NonNegativeFloat = 3.0  # neighbours of any colour
    spatial_sigma: PositiveFloat = 3.0  # pixels


def refine(probabilities: Tensor, image: Tensor, config: CRFConfig) -> Tensor:
    """Mean-field marginals after `config.iterations` updates.

    With Potts compatibility an update is Q_i <- softmax(log P_i + sum_j k(i, j) Q_j), where the sum is over the window
    around i without i itself, and k is the weighted sum of a Gaussian of distance and colour and one of distance alone.

    Args:
        probabilities: (C, H, W) float32, P; zeros are allowed.
        image: (3, H, W) uint8 RGB that the edges are taken from.

    Returns:
        (C, H, W) float32, sums to 1 over the classes.
    """
    color = image.float() / config.color_sigma
    unary = probabilities.clamp(min=1e-8).log()
    norms = [torch.zeros_like(color[:1]), torch.zeros_like(color[:1])]
    for here, there, kernels in _pairs(color, config):
        for norm, kernel in zip(norms, kernels):
            norm[here] += kernel
            norm[there] += kernel
    weights = (config.bilateral_weight, config.spatial_weight)
    scales = [weight / norm.clamp(min=1e-8) for weight, norm in zip(weights, norms)]

    belief = probabilities
    for _ in range(config.iterations):
        message = unary.clone()
        for here, there, kernels in _pairs(color, config):
            to_here = kernels[0] * scales[0][here] + kernels[1] * scales[1][here]
            to_there = kernels[0] * scales[0][there] + kernels[1] * scales[1][there]
            message[here].addcmul_(belief[there], to_here)
            message[there].addcmul_(belief[here], to_there)
        belief = message.softmax(0)
    return belief


_Region = tuple[slice, slice, slice]


def _pairs(color: Tensor, config: CRFConfig) -> Iterator[tuple[_Region, _Region, tuple[Tensor, Tensor]]]:
    """Every pair of neighbours once: for each offset of half the window, the region of the one pixels, the region of
    the others, and the bilateral and the spatial kernel between them."""
    height, width = color.shape[-2:]
    for dy in range(config.radius + 1):
        for dx in range(-config.radius if dy else 1, config.radius + 1):
            if dy >= height or abs(dx) >= width:
                continue
            here = (slice(None), slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
            there = (slice(None), slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
            distance = float(dy * dy + dx * dx)
            contrast = (color[here] - color[there]).square_().sum(0, keepdim=True)
            bilateral = contrast.add_(distance / config.bilateral_sigma**2).mul_(-0.5).exp_()
            spatial = color.new_tensor(-0.5 * distance / config.spatial_sigma**2).exp()
            yield here, there, (bilateral, spatial)
