"""Two more kinds of BatchNorm2d: statistics of each domain, and statistics over the batches of all processes.

`model.bn` chooses one (`da.nets.pspnet`). Statistics of each domain are those of Chang et al., "Domain-Specific Batch
Normalization for Unsupervised Domain Adaptation", CVPR 2019. Differs from the paper: the domains share gamma and beta.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from da.config import UserError

Domain = Literal["source", "target"]


class DomainBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with one set of running statistics per domain and a shared affine part.

    `running_mean` and `running_var` are the source's, `running_mean_target` and `running_var_target` the
    target's. A state dict of a plain BatchNorm2d fills both. `domain` chooses the set that the next forward
    uses.
    """

    running_mean: Tensor
    running_var: Tensor
    running_mean_target: Tensor
    running_var_target: Tensor

    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum)
        self.domain: Domain = "target"
        self.register_buffer("running_mean_target", torch.zeros_like(self.running_mean))
        self.register_buffer("running_var_target", torch.ones_like(self.running_var))
        self.register_load_state_dict_pre_hook(_fill_target_statistics)
        self.load_state_dict(plain.state_dict())

    def forward(self, input: Tensor) -> Tensor:
        if self.domain == "source":
            return super().forward(input)
        mean, var = self.running_mean_target, self.running_var_target
        momentum = self.momentum or 0.0
        return F.batch_norm(input, mean, var, self.weight, self.bias, self.training, momentum, self.eps)


def _fill_target_statistics(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name in ("running_mean", "running_var"):
        if prefix + name in state:
            state.setdefault(f"{prefix}{name}_target", state[prefix + name])


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, which knows GPUs only, with the same computation for CPUs."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum)
        self.load_state_dict(plain.state_dict())

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.device.type != "cpu" or processes() == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))  # (B, C, H, W)
        count = _SumOverProcesses.apply(x.new_tensor(x.numel() // x.shape[1]))
        mean = _SumOverProcesses.apply(x.sum((0, 2, 3))) / count
        centred = x - mean.view(-1, 1, 1)
        var = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.0)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum or 0.0)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(input.dtype)


def replace_norms(module: nn.Module, kind: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    """Replace every BatchNorm2d below `module` by one of `kind` with the same state; what a norm of timm does after
    normalising stays.

    Raises:
        UserError: a norm over batches that no `kind` can stand for.
    """
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d and child.affine:
            setattr(module, name, kind(child))
        elif type(child).__name__ == "BatchNormAct2d" and child.affine:  # timm's
            norm = kind(cast(nn.BatchNorm2d, child))
            norm.drop, norm.act = child.drop, child.act
            norm.register_forward_hook(_drop_and_activate)
            setattr(module, name, norm)
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"model.bn: the backbone has a {type(child).__name__}, for which only train and frozen work"
            )
        else:
            replace_norms(child, kind)


def _drop_and_activate(norm: Any, _: object, output: Tensor) -> Tensor:
    return norm.act(norm.drop(output))


def processes() -> int:
    """How many processes share the batch."""
    return distributed.get_world_size() if distributed.is_initialized() else 1
