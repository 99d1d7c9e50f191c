"""Dilated ResNet-18/34/50/101: the feature extractor of the segmenter.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (figures 3 and 5, table 1), with the last
stages dilated instead of strided: Yu, Koltun and Funkhouser, "Dilated Residual Networks", CVPR 2017; Zhao et
al., "Pyramid Scene Parsing Network", CVPR 2017. Parameter names are torchvision's, so its state dicts load
key by key.

Differs from the authors' code: the stride of a bottleneck sits in its 3x3 convolution (as in torchvision,
semseg and mmseg; the authors' place is kept for `stem: caffe`); basic blocks can be dilated too, which
torchvision's cannot.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Stem = Literal["torchvision", "caffe", "lextal", "semseg", "mmseg"]

STEM_WIDTHS: dict[Stem, tuple[int, ...]] = {
    "torchvision": (64,),
    "caffe": (64,),
    "lextal": (64,),
    "semseg": (64, 64, 128),
    "mmseg": (32, 32, 64),
}


class Features(NamedTuple):
    layer3: Tensor  # (B, C3, h, w)
    layer4: Tensor  # (B, C4, h, w)


def cut(net: nn.Module, ends: Sequence[str]) -> list[list[nn.Module]]:
    """The modules of `net` in the order of their definition, each once, cut after each module named in `ends`. What
    comes after the last belongs to it. A module stands for its own parameters, not for those of its children."""
    names = [name for name, _ in net.named_modules()]
    last = [max(i for i, name in enumerate(names) if f"{name}.".startswith(f"{end}.")) for end in ends]
    assert last == sorted(last), f"{ends} are not in the order of definition"
    stages: list[list[nn.Module]] = [[] for _ in ends]
    for i, module in enumerate(net.modules()):
        stages[min(bisect_left(last, i), len(ends) - 1)].append(module)
    return stages


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a shortcut whose ends differ in shape, else None."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first carries the stride and `strided_dilation`, the second `dilation`."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, strided_dilation: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride, strided_dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; the 3x3 carries the stride and `strided_dilation`; `dilation` is unused."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, strided_dilation: int, dilation: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, strided_dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class CaffeBottleneck(Bottleneck):
    """A bottleneck whose first 1x1 convolution carries the stride."""

    def __init__(self, in_channels: int, width: int, stride: int, strided_dilation: int, dilation: int) -> None:
        super().__init__(in_channels, width, stride, strided_dilation, dilation)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


ARCHS: dict[Arch, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
DILATIONS: dict[int, tuple[int, int]] = {8: (2, 4), 16: (1, 2)}  # output stride -> dilation of layer3, layer4


class ResNet(nn.Module):
    """A ResNet without its classifier, randomly initialised as in torchvision.

    Args:
        arch: depth.
        stem: whose network the weights are of. "torchvision" opens with one 7x7 convolution of stride 2;
            "semseg" (64, 64, 128 channels) and "mmseg" (32, 32, 64) with three 3x3 convolutions, the first of
            stride 2. All end in a 3x3 max-pool of stride 2. "mmseg" dilates only the first convolution of a
            basic block. "caffe" is "torchvision" with the pool's size rounded up and the stride of a
            bottleneck in its first convolution, as DeepLab's and AdaptSegNet's ResNet-101. "lextal" is
            "torchvision" with no dilation in the first block of a stage.
        output_stride: input pixels per feature cell, 8 or 16.
        contract_dilation: the convolution that gave up its stride keeps the dilation of the stage before, as
            in mmseg and torchvision: the features of the undilated network are then a subset of these, so
            its weights fit exactly. False dilates that convolution like the rest of its stage, as in semseg.
            Without effect under `stem: lextal`.

    Attributes:
        stem: as given.
        layer3_channels, num_features: channels of the two outputs.
        stride: input pixels per feature cell.
    """

    def __init__(
        self,
        arch: Arch,
        stem: Stem = "torchvision",
        output_stride: Literal[8, 16] = 8,
        contract_dilation: bool = True,
    ) -> None:
        super().__init__()
        block, depths = ARCHS[arch]
        if stem == "caffe" and block is Bottleneck:
            block = CaffeBottleneck
        self.stem = stem
        self.layer3_channels = 256 * block.expansion
        self.num_features = 512 * block.expansion
        self.stride: int = output_stride

        widths = STEM_WIDTHS[stem]
        if len(widths) == 1:
            self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(widths[0])
        else:
            self.conv1 = _conv3x3(3, widths[0], stride=2)
            self.bn1 = nn.BatchNorm2d(widths[0])
            self.conv2 = _conv3x3(widths[0], widths[1])
            self.bn2 = nn.BatchNorm2d(widths[1])
            self.conv3 = _conv3x3(widths[1], widths[2])
            self.bn3 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=stem == "caffe")

        def stage(in_channels: int, width: int, depth: int, stride: int, dilation: int) -> nn.Sequential:
            contracted = contract_dilation and dilation > 1
            second = 1 if stem == "mmseg" else dilation  # of a basic block's second convolution
            given_up = dilation // 2 if contracted else dilation
            first = block(in_channels, width, stride, *((1, 1) if stem == "lextal" else (given_up, second)))
            rest = [block(width * block.expansion, width, 1, dilation, second) for _ in range(depth - 1)]
            return nn.Sequential(first, *rest)

        dilation3, dilation4 = DILATIONS[output_stride]
        self.layer1 = stage(widths[-1], 64, depths[0], 1, 1)
        self.layer2 = stage(64 * block.expansion, 128, depths[1], 2, 1)
        self.layer3 = stage(128 * block.expansion, 256, depths[2], 2 if output_stride == 16 else 1, dilation3)
        self.layer4 = stage(self.layer3_channels, 512, depths[3], 1, dilation4)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images x (B, 3, H, W): both outputs are ceil(H / s) x ceil(W / s), s the
        output stride; one row and column more for `stem: caffe` where H and W are multiples of s."""
        x = self.relu(self.bn1(self.conv1(x)))
        if len(STEM_WIDTHS[self.stem]) > 1:
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        x = self.maxpool(x)  # (B, 64 or 128, H/4, W/4)
        layer3 = self.layer3(self.layer2(self.layer1(x)))
        return Features(layer3, self.layer4(layer3))

    def stages(self) -> list[list[nn.Module]]:
        """The modules, each once, from the image on: those of the stem, and of layer1 to layer4."""
        return cut(self, ["maxpool", "layer1", "layer2", "layer3", "layer4"])
