"""The foreign network and ours give the same logits on the same weights and image.

mmsegmentation, segmentation_models_pytorch and torchvision are the foreign code itself. For semseg and the Caffe
layout no package exists: a second implementation, written below from their published layout, stands in.
"""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from da.nets.pspnet import Scores
from third_party.convert import convert
from third_party.kinds import KINDS

TOLERANCE = 1e-4
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, batch statistics and affine parameters that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.5, generator=generator)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.data.uniform_(0.5, 1, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.8, 2, generator=generator)
    return net.eval()


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def agree(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.1  # something to compare
    assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("size", [(512, 1024), (363, 517)])
@pytest.mark.parametrize("depth", [18, 50, 101])
def test_mmsegmentation_pspnet(depth, size):
    mmengine = pytest.importorskip("mmengine", reason="needs the optional extra `mmseg`")
    mmseg = pytest.importorskip("mmseg", reason="needs the optional extra `mmseg`")
    from pathlib import Path

    from mmseg.registry import MODELS

    configs = Path(mmseg.__file__).parent / ".mim/configs/pspnet"
    settings = mmengine.Config.fromfile(configs / f"pspnet_r{depth}-d8_4xb2-80k_cityscapes-512x1024.py").model
    settings.update(pretrained=None, data_preprocessor=None)
    settings.backbone.norm_cfg = settings.decode_head.norm_cfg = settings.auxiliary_head.norm_cfg = {"type": "BN"}
    with mmengine.DefaultScope.overwrite_default_scope("mmseg"):
        theirs = randomise(MODELS.build(settings))
    ours = convert(KINDS["mmseg"], theirs.state_dict(), "random weights").network
    image = picture(*size)
    with torch.no_grad():
        features = theirs.extract_feat((image - MEAN) / STD)
        main, aux = theirs.decode_head(features), theirs.auxiliary_head(features)
        agree(ours.scores(image).main, main)
        agree(ours.aux(ours.features(image).layer3), aux)
        agree(ours(image).main, F.interpolate(main, size, mode="bilinear", align_corners=False))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_encoder_of_segmentation_models_pytorch(arch):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the optional extra `smp`")
    encoder = randomise(smp.encoders.get_encoder(arch, weights=None, output_stride=8))
    overrides = {"contract_dilation": False}  # it dilates every convolution of a stage alike
    ours = convert(KINDS["torchvision"], encoder.state_dict(), "random weights", overrides).network
    image = picture(97, 161)
    with torch.no_grad():
        agree(ours.backbone(image).layer4, encoder(image)[-1])


def test_torchvision_backbone():
    theirs = randomise(torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]))
    converted = convert(KINDS["torchvision"], theirs.state_dict(), "random weights")
    assert converted.left_out == ["fc.weight", "fc.bias"]
    layers = IntermediateLayerGetter(theirs, {"layer3": "layer3", "layer4": "layer4"})
    image = picture(97, 161)
    with torch.no_grad():
        features = layers(image)
        ours = converted.network.backbone(image)
    agree(ours.layer3, features["layer3"])
    agree(ours.layer4, features["layer4"])


class ReferenceBlock(nn.Module):
    """A bottleneck of 1x1, 3x3 and 1x1 convolutions; `caffe` puts the stride into the first of them."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, caffe: bool) -> None:
        super().__init__()
        early, late = (stride, 1) if caffe else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, early, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, late, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(skip + self.bn3(self.conv3(x)))


def reference_stages(inputs: int, depths: tuple[int, ...], caffe: bool) -> list[nn.Sequential]:
    stages = []
    for width, depth, stride, dilation in zip((64, 128, 256, 512), depths, (1, 2, 1, 1), (1, 1, 2, 4)):
        blocks = []
        for n in range(depth):
            blocks.append(ReferenceBlock(inputs, width, stride if n == 0 else 1, dilation, caffe))
            inputs = 4 * width
        stages.append(nn.Sequential(*blocks))
    return stages


class ReferenceSemseg(nn.Module):
    """PSPNet-50 under semseg's names: layer0 with three 3x3 convolutions, ppm.features, cls, aux."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            stem += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layer0 = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        self.layer1, self.layer2, self.layer3, self.layer4 = reference_stages(128, (3, 4, 6, 3), caffe=False)
        self.ppm = nn.Module()
        self.ppm.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), nn.Conv2d(2048, 512, 1, bias=False), nn.BatchNorm2d(512), nn.ReLU())
            for b in (1, 2, 3, 6)
        )
        self.cls = self._head(4096, 512, classes)
        self.aux = self._head(1024, 256, classes)

    @staticmethod
    def _head(inputs: int, width: int, classes: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, width, 3, 1, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[-2:]
        layer3 = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        layer4 = self.layer4(layer3)
        maps = [layer4]
        for branch in self.ppm.features:
            maps.append(F.interpolate(branch(layer4), layer4.shape[-2:], mode="bilinear", align_corners=True))
        main, aux = self.cls(torch.cat(maps, 1)), self.aux(layer3)
        return tuple(F.interpolate(x, size, mode="bilinear", align_corners=True) for x in (main, aux))


def test_semseg_pspnet():
    theirs = randomise(ReferenceSemseg())
    ours = convert(KINDS["semseg"], theirs.state_dict(), "random weights").network
    image = picture(89, 121)
    with torch.no_grad():
        main, aux = theirs((image - MEAN) / STD)
        features = ours.features(image)
        found = ours.upsample(Scores(ours.cls(features.pyramid), ours.aux(features.layer3)), image.shape[-2:])
    agree(found.main, main)
    agree(found.aux, aux)


class ReferenceBasicBlock(nn.Module):
    """Two 3x3 convolutions of one dilation."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        return F.relu(skip + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ReferenceLextal(nn.Module):
    """PSPNet-18 or -50 under the names of Lextal/pspnet-pytorch: the first block of a stage is never dilated, pyramid
    branches of full width come before layer4, three upsamplings by two, a classifier of the whole image."""

    def __init__(self, depth: int, classes: int = 19) -> None:
        super().__init__()
        self.feats = nn.Module()
        self.feats.conv1, self.feats.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs, depths = 64, (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
        for n, (width, stride, dilation) in enumerate(((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))):
            blocks: list[nn.Module] = []
            for i in range(depths[n]):
                shape = (inputs, width, 1 if i else stride, dilation if i else 1)
                blocks.append(ReferenceBasicBlock(*shape) if depth == 18 else ReferenceBlock(*shape, caffe=False))
                inputs = width if depth == 18 else 4 * width
            setattr(self.feats, f"layer{n + 1}", nn.Sequential(*blocks))
        self.psp = nn.Module()
        self.psp.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), nn.Conv2d(inputs, inputs, 1, bias=False)) for b in (1, 2, 3, 6)
        )
        self.psp.bottleneck = nn.Conv2d(5 * inputs, 1024, 1)
        for n, (wide, narrow) in enumerate(((1024, 256), (256, 64), (64, 64))):
            up = nn.Module()
            conv = nn.Conv2d(wide, narrow, 3, 1, 1)
            up.conv = nn.Sequential(conv, nn.BatchNorm2d(narrow), nn.PReLU(init=0.1 * (n + 1)))
            setattr(self, f"up_{n + 1}", up)
        self.final = nn.Sequential(nn.Conv2d(64, classes, 1), nn.LogSoftmax(1))
        self.classifier = nn.Sequential(nn.Linear(inputs // 2, 256), nn.ReLU(), nn.Linear(256, classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.feats
        x = f.layer2(f.layer1(F.max_pool2d(F.relu(f.bn1(f.conv1(x))), 3, 2, 1)))
        layer3 = f.layer3(x)
        layer4 = f.layer4(layer3)

        def wider(x: Tensor, size: tuple[int, int]) -> Tensor:
            return F.interpolate(x, size, mode="bilinear", align_corners=True)

        maps = [wider(stage(layer4), layer4.shape[-2:]) for stage in self.psp.stages]
        x = F.relu(self.psp.bottleneck(torch.cat([*maps, layer4], 1)))
        for up in (self.up_1, self.up_2, self.up_3):
            x = up.conv(wider(x, (2 * x.shape[2], 2 * x.shape[3])))
        return self.final(x), self.classifier(F.adaptive_max_pool2d(layer3, 1).flatten(1))


@pytest.mark.parametrize("depth", [18, 50])
def test_lextal_pspnet(depth):
    """In the form of its time: `module.` before each name is taken off by `read_state`; no counts of batches."""
    theirs = randomise(ReferenceLextal(depth))
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches_tracked" not in key}
    converted = convert(KINDS["lextal"], state, "random weights")
    assert (converted.left_out, converted.tensors) == ([], len(state))
    ours, image = converted.network, picture(64, 96)
    with torch.no_grad():
        main, presence = theirs((image - MEAN) / STD)
        agree(ours.scores(image).main.log_softmax(1), main)
        assert torch.equal(ours(image).main, ours.scores(image).main)
        agree(ours.presence(ours.features(image).layer3.amax((2, 3))), presence)


class ReferenceCaffe(nn.Module):
    """The Caffe ResNet-101 under AdaptSegNet's names: 7x7 stem, pool rounded up, dilations 2 and 4, BGR input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = reference_stages(64, (3, 4, 23, 3), caffe=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1, ceil_mode=True)
        layer3 = self.layer3(self.layer2(self.layer1(x)))
        return layer3, self.layer4(layer3)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (90, 121)])
def test_caffe_resnet101(height, width):
    theirs = randomise(ReferenceCaffe())
    theirs.conv1.weight.data /= 64  # its input runs to 255
    state = {f"Scale.{name}": value for name, value in theirs.state_dict().items()}
    state["Scale.layer5.conv2d_list.0.weight"] = torch.zeros(21, 2048, 3, 3)
    converted = convert(KINDS["caffe"], state, "random weights")
    assert converted.left_out == ["Scale.layer5.conv2d_list.0.weight"]
    ours, image = converted.network, picture(height, width)
    bgr = (image * 255).flip(1) - torch.tensor((104.00698793, 116.66876762, 122.67891434)).view(3, 1, 1)
    with torch.no_grad():
        layer3, layer4 = theirs(bgr)
        found = ours.backbone((image - ours.mean.view(3, 1, 1)) / ours.std.view(3, 1, 1))
    if height % 8 == 0:
        assert layer4.shape[-2:] == (height // 8 + 1, width // 8 + 1)
    agree(found.layer3, layer3)
    agree(found.layer4, layer4)
