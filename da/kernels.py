"""Fused computations behind one plain call each; the calls, with their full documentation, stand in `da/losses.py`.

`UpsampledCrossEntropy` is interpolate + softmax cross-entropy without the full-resolution tensor. Only the loss's sum
and its gradient at the low resolution are kept, so the rows of the output can be made, used and dropped strip by
strip, while they are in the cache. Bilinear upsampling is separable, a small matrix A for the height and B for the
width: a strip is A[rows] @ (logits @ B^T). Its gradient (p - onehot(y)) is added to the low resolution by A[rows]^T in
the same pass, and by B at the end. Exponentials are powers of two: on a CPU torch's `exp2` is four times as fast as its
`exp`.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from da.labels import IGNORE

# Bytes of one strip of upsampled logits: about the second-level caches of the cores that share it, of four at most; on
# a GPU large enough to fill it.
CPU_STRIP_BYTES, GPU_STRIP_BYTES = 1280 * 1024, 16 * 1024 * 1024


class UpsampledCrossEntropy(torch.autograd.Function):
    """(B, C, h, w) logits and (B, H, W) labels -> 0-d mean cross-entropy after bilinear upsampling.

    Labels are trainIds, 255 ignored; `weight` is (C,) or None. The gradient is made in the forward pass; it cannot
    be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, weight: Tensor | None, align_corners: bool) -> Tensor:
        batch, classes, low, narrow = logits.shape
        height, width = label.shape[1:]
        upsampling, support = _matrix(low, height, align_corners, logits.dtype, logits.device)
        widening, _ = _matrix(narrow, width, align_corners, logits.dtype, logits.device)  # (W, w)
        with _exact_matmul(logits.device):
            coarse = logits.permute(2, 0, 1, 3) @ (widening.T / math.log(2))  # logits to the base 2
            coarse = coarse.view(low, -1)  # (h, B C W): a strip is one matmul
        gradient = torch.zeros_like(coarse) if ctx.needs_input_grad[0] else None
        strip_bytes = GPU_STRIP_BYTES if logits.is_cuda else CPU_STRIP_BYTES * min(torch.get_num_threads(), 4)
        rows = min(max(strip_bytes // (coarse.shape[1] * coarse.element_size()), 1), height)
        buffer = coarse.new_empty(rows, coarse.shape[1])
        label = label.transpose(0, 1).unsqueeze(2)  # (H, B, 1, W), as the two below
        index = label.long().masked_fill(label == IGNORE, 0)
        share = (label != IGNORE).to(logits.dtype)  # each pixel's weight
        if weight is not None:
            share *= weight[index]
        losses = []
        with _exact_matmul(logits.device):
            for top in range(0, height, rows):
                matrix = upsampling[top : top + rows]
                first, last = support[top][0], support[min(top + rows, height) - 1][1]
                matrix = matrix[:, first:last]  # (rows, k): the k coarse rows that this strip lies between
                strip = torch.mm(matrix, coarse[first:last], out=buffer[: len(matrix)])
                z = strip.view(-1, batch, classes, width)
                losses.append(_softmax_gradient_(z, index[top : top + rows], share[top : top + rows]))
                if gradient is not None:
                    gradient[first:last].addmm_(matrix.T, strip)
        total = share.sum()
        total = torch.where(total > 0, total, 1)
        if gradient is not None:
            with _exact_matmul(logits.device):
                gradient = gradient.div_(total).view(low, batch, classes, width) @ widening  # (h, B, C, w)
            ctx.save_for_backward(gradient)
        return torch.stack(losses).sum() * math.log(2) / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).permute(1, 2, 0, 3), None, None, None


def _softmax_gradient_(z: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Turn logits `z` to the base 2 (rows, B, C, W) in place into the gradient of their summed cross-entropy by the
    natural logits, and return that sum in bits.

    `index` holds the classes and `share` the weights of the pixels, (rows, B, 1, W) both.
    """
    z -= z.amax(2, keepdim=True)
    picked = z.gather(2, index)
    total = z.exp2_().sum(2, keepdim=True)
    loss = ((total.log2() - picked) * share).sum()
    z *= share / total
    z.scatter_add_(2, index, -share)
    return loss


@lru_cache(maxsize=16)
def _matrix(
    low: int, high: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Linear upsampling of one side from `low` to `high` as a (high, low) matrix, and each row's non-zero range."""
    identity = torch.eye(low, dtype=dtype)[None, None]
    matrix = F.interpolate(identity, (high, low), mode="bilinear", align_corners=align_corners)[0, 0]
    used = [row.nonzero().flatten().tolist() for row in matrix]
    return matrix.to(device), [(columns[0], columns[-1] + 1) for columns in used]


@contextlib.contextmanager
def _exact_matmul(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32: neither autocast nor TF32 rounds the logits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
