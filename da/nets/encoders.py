"""Encoders of timm behind the two outputs of our ResNet: `model.backbone: timm/<name>`.

Wightman, "PyTorch Image Models", 2019 (networks and weights). Two kinds are taken:

- convolutional networks that timm can dilate to output stride 8 or 16 (ResNet, ConvNeXt, EfficientNet, MobileNet,
  RegNet, ...): the last two of their feature maps;
- transformers with one stride, that of their patch (ViT: Dosovitskiy et al., ICLR 2021; DINOv2: Oquab et al., 2023;
  DINOv3: Simeoni et al., 2025): the map after two thirds of the blocks, and the last one, normalised.

docs/encoders.md lists what was tried. timm is imported only where such an encoder is asked for.
"""

import copy
import math
import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from da.config import UserError
from da.nets.backbone import Features, cut

PREFIX = "timm/"


def import_timm() -> Any:
    """
    Raises:
        UserError: timm is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm
    except ImportError as error:
        raise UserError(f"model.backbone: timm/... needs timm ({error}); pip install timm") from error
    return timm


class TimmEncoder(nn.Module):
    """A timm network without its classifier, randomly initialised.

    Args:
        name: timm's, without `timm/` and without a tag of weights.
        output_stride: of a convolutional network. A transformer has the stride of its patch.
        drop_path: rate of stochastic depth, 0 to 1.

    Attributes:
        stride: input pixels per feature cell.
        layer3_channels, num_features: channels of the two outputs.
        transformer: one stride, and `output_stride` without effect.
        pads: sizes that `stride` does not divide are padded: the network would drop the rest, or fail.

    Raises:
        UserError: timm does not know the name, has no form of it with one of the strides, or no drop-path in it.
    """

    def __init__(self, name: str, output_stride: Literal[8, 16] = 8, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name = name
        timm = import_timm()
        if name not in timm.list_models():
            near = ", ".join(timm.list_models(f"{name[:8]}*")[:5])
            hint = "the tag of the weights goes into model.weights: timm/<tag>" if "." in name else f"near: {near}"
            raise UserError(f"model.backbone: timm {timm.__version__} has no network {name!r}; {hint}")
        self.settings: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        self.transformer = False
        try:
            self.net: Any = timm.create_model(name, features_only=True, output_stride=output_stride, **self.settings)
        except Exception as error:  # whatever a network says to an argument that it does not know
            self._refuse_drop_path(error)
            self._build_transformer(timm, output_stride, error)
        else:
            reductions, channels = self.net.feature_info.reduction(), self.net.feature_info.channels()
            if reductions[-2:] != [output_stride] * 2:
                raise UserError(
                    f"model.backbone: timm/{name} gives maps of strides {reductions} at model.output_stride "
                    f"{output_stride}, whose last two should have it; take another encoder or the other stride"
                )
            self.stride: int = output_stride
            self.layer3_channels, self.num_features = channels[-2:]
        if drop_path and not any("DropPath" in type(module).__name__ for module in self.net.modules()):
            raise UserError(f"model.drop_path: timm/{name} has none; set it to 0")  # it took the rate for nothing
        self.pads = self.transformer
        self._ask()
        for module in self.net.modules():
            if Depthwise.fits(module):
                module.__class__ = Depthwise

    def _build_transformer(self, timm: Any, output_stride: int, undilated: Exception) -> None:
        settings = self.settings | {"dynamic_img_size": True}
        try:
            net = timm.create_model(self.name, num_classes=0, global_pool="", **settings)
            strides = {level["reduction"] for level in net.feature_info}
        except Exception as error:
            self._refuse_drop_path(error)
            strides = set()
        if len(strides) != 1 or not hasattr(net, "blocks"):
            why = str(undilated).strip().partition("\n")[0] or "its code asserts another"
            raise UserError(
                f"model.backbone: timm has no form of {self.name} with output stride {output_stride} ({why}), and it "
                "is no transformer of one stride that takes images of any size; take another encoder"
            ) from undilated
        self.transformer, self.settings, self.net = True, settings, net
        self.stride = strides.pop()
        self.layer3_channels = self.num_features = net.num_features
        if isinstance(net.norm, nn.Identity):
            raise UserError(f"model.backbone: timm/{self.name} has no norm after its last block; take another encoder")

    def _refuse_drop_path(self, error: Exception) -> None:
        if self.settings and "drop_path_rate" in str(error):
            raise UserError(f"model.drop_path: timm/{self.name} has none; set it to 0") from error

    def _ask(self) -> None:
        """Run the network without data: its maps must be what it says, and `pads` is whether it drops a rest."""
        meta = copy.deepcopy(self).to("meta").eval()
        for size in (8 * self.stride, 8 * self.stride + 1):
            x = torch.empty(1, 3, size, size, device="meta")
            if meta.transformer and size % self.stride:
                continue
            maps = meta._maps(x)
            found = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
            up, down = -(-size // self.stride), size // self.stride
            if found == [(channels, up, up) for channels in (self.layer3_channels, self.num_features)]:
                continue
            self.pads = True
            if found != [(channels, down, down) for channels in (self.layer3_channels, self.num_features)]:
                raise UserError(
                    f"model.backbone: timm/{self.name} gives maps {found} (channels, height, width) for {size}x{size} "
                    f"pixels, which is not stride {self.stride}; take another encoder"
                )

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images x (B, 3, H, W): both outputs are ceil(H / s) x ceil(W / s), s the stride.

        Where the network needs multiples of s, the image is padded with zeros, the mean colour, to the right and below.
        The maps are then drawn out so that their cells divide the image, not the padded one.
        """
        size = x.shape[-2:]
        rest = [-side % self.stride for side in size] if self.pads else [0, 0]
        if all(isinstance(side, int) and side == 0 for side in rest):  # no int, where a graph for any size is made
            return Features(*self._maps(x))
        padded = F.pad(x, (0, rest[1], 0, rest[0]))
        return Features(*(_crop(m, size, padded.shape[-2:]) for m in self._maps(padded)))

    def _maps(self, x: Tensor) -> list[Tensor]:
        if not self.transformer:
            return self.net(x)[-2:]
        depth = len(self.net.blocks)
        wanted = [math.ceil(depth * 2 / 3) - 1, depth - 1]
        middle, last = self.net.forward_intermediates(x, indices=wanted, intermediates_only=True)
        return [middle, self.net.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]

    def stages(self) -> list[list[nn.Module]]:
        """The modules, each once, from the image on: up to each feature map in turn; of a transformer the embedding,
        each block, and the norm."""
        if not self.transformer:
            flat = {name.replace(".", "_"): name for name, _ in self.net.named_modules()}
            return cut(self.net, [flat[name.replace(".", "_")] for name in self.net.feature_info.module_name()])
        names = [name for name, _ in self.net.named_modules()]
        blocks = [f"blocks.{i}" for i in range(len(self.net.blocks))]
        return cut(self.net, [names[names.index("blocks") - 1], *blocks, names[-1]])


class Depthwise(nn.Conv2d):
    """A depthwise convolution that is trained faster on a CPU.

    Dilation d is computed as d x d undilated convolutions, each of every d-th row and column: the same products, summed
    in another order. Under autocast it computes in float32, whose gradient torch makes faster, and rounds its result.
    """

    @staticmethod
    def fits(module: nn.Module) -> bool:
        if type(module) is not nn.Conv2d or module.groups != module.in_channels or module.bias is not None:
            return False
        (d, across), kernel = module.dilation, module.kernel_size
        same = module.padding == (d * (kernel[0] // 2), d * (kernel[1] // 2)) and module.padding_mode == "zeros"
        return same and d == across and (d == 1 or module.stride == (1, 1)) and module.out_channels == module.groups

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self.training or not torch.is_grad_enabled():
            return super().forward(input)
        rounded = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        with torch.autocast("cpu", enabled=False):
            x = input.to(self.weight.dtype)
            return (super().forward(x) if self.dilation[0] == 1 else self._phases(x)).to(rounded)

    def _phases(self, x: Tensor) -> Tensor:
        d, (batch, channels, height, width) = self.dilation[0], x.shape
        x = F.pad(x, (0, -width % d, 0, -height % d)).permute(0, 2, 3, 1)  # (B, H, W, C)
        rows, columns = x.shape[1] // d, x.shape[2] // d
        x = x.view(batch, rows, d, columns, d, channels).permute(2, 4, 0, 1, 3, 5)
        x = x.reshape(d * d * batch, rows, columns, channels).permute(0, 3, 1, 2)  # channels last
        padding = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        x = F.conv2d(x, self.weight, padding=padding, groups=self.groups).permute(0, 2, 3, 1)
        x = x.reshape(d, d, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
        x = x.reshape(batch, rows * d, columns * d, channels)[:, :height, :width]
        return x.permute(0, 3, 1, 2)


def _crop(features: Tensor, size: torch.Size, padded: torch.Size) -> Tensor:
    """Bring maps (B, C, h, w) of a padded image to the image alone: h x w cells that share `size`, (H, W) pixels.

    Cell i of n is centred at (i + 1/2) H / n pixels, where the map of the padded image is read bilinearly: as products
    with matrices, since `interpolate` copies where the number of cells stays.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        rows, columns = (_reading(n, part / whole, x) for n, part, whole in zip(x.shape[-2:], size, padded))
        return (rows @ x @ columns.T).to(features.dtype)


def _reading(cells: int, share: float, like: Tensor) -> Tensor:
    """(cells, cells): row i weighs the two old cells next to the centre of the new cell i, which has `share` of an old
    one's size."""
    old = torch.arange(cells, device=like.device, dtype=like.dtype)
    centre = ((old + 0.5) * share - 0.5).clamp(min=0)
    return (1 - (centre[:, None] - old).abs()).clamp(min=0)
