"""Average pooling into a fixed number of cells, also for runs that must be deterministic on GPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveAvgPool2d(nn.Module):
    """torch's adaptive average pooling; the same means as matrix products where deterministic algorithms are asked for.

    torch has no deterministic gradient of its own pooling on GPUs.

    Args:
        bins: cells per side of the result.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, input: Tensor) -> Tensor:
        if not torch.are_deterministic_algorithms_enabled():
            return F.adaptive_avg_pool2d(input, self.bins)
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            rows, columns = (
                F.adaptive_avg_pool1d(torch.eye(size, dtype=x.dtype, device=x.device), self.bins)
                for size in x.shape[-2:]
            )  # (H, bins), (W, bins): how much each position counts in each cell
            return (rows.T @ x @ columns).to(input.dtype)
