import pytest
import torch
import torchvision
from torch import nn

from da.nets.backbone import ResNet

ARCHS = ["resnet18", "resnet34", "resnet50", "resnet101"]


def torchvision_net(arch: str, **kwargs) -> nn.Module:
    """torchvision's network with statistics that a wrong BatchNorm order or an unloaded buffer would show."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, arch)(weights=None, **kwargs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return net.eval().double()  # rounding of float32 differs with the order of a sum


def torchvision_features(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    features = {}
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        features[name] = x = getattr(net, name)(x)
    return features


def loaded(net: nn.Module, arch: str, **kwargs) -> ResNet:
    ours = ResNet(arch, **kwargs).eval().double()
    ours.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}, strict=True)
    return ours


@pytest.mark.parametrize("arch", ARCHS)
def test_keys_and_shapes_are_torchvisions(arch):
    with torch.device("meta"):
        ours = {k: v.shape for k, v in ResNet(arch).state_dict().items()}
        theirs = getattr(torchvision.models, arch)(weights=None).state_dict()
    assert ours == {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}


@pytest.mark.parametrize(("output_stride", "dilate"), [(8, [False, True, True]), (16, [False, False, True])])
def test_features_equal_torchvisions_dilated_resnet50(output_stride, dilate):
    theirs = torchvision_net("resnet50", replace_stride_with_dilation=dilate)
    ours = loaded(theirs, "resnet50", output_stride=output_stride)
    x = torch.randn(1, 3, 65, 97, dtype=torch.double)
    with torch.no_grad():
        expected, got = torchvision_features(theirs, x), ours(x)
    torch.testing.assert_close(got.layer3, expected["layer3"])
    torch.testing.assert_close(got.layer4, expected["layer4"])


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_contracted_dilation_keeps_the_features_of_the_strided_network(arch):
    theirs = torchvision_net(arch)  # output stride 32
    ours = loaded(theirs, arch, output_stride=8, contract_dilation=True)
    x = torch.randn(1, 3, 97, 129, dtype=torch.double)
    with torch.no_grad():
        expected, got = torchvision_features(theirs, x), ours(x)
    torch.testing.assert_close(got.layer3[..., ::2, ::2], expected["layer3"])
    torch.testing.assert_close(got.layer4[..., ::4, ::4], expected["layer4"])


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_without_contraction_every_3x3_of_a_stage_has_its_dilation(arch):
    with torch.device("meta"):
        net = ResNet(arch, output_stride=8, contract_dilation=False)
    for stage, dilation in ((net.layer2, 1), (net.layer3, 2), (net.layer4, 4)):
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {m.dilation for m in convs} == {(dilation, dilation)}


@pytest.mark.parametrize(("output_stride", "column"), [(8, 0), (16, 1)])
@pytest.mark.parametrize(("stem", "contract_dilation"), [("torchvision", True), ("semseg", False), ("mmseg", True)])
def test_feature_size(output_stride, column, stem, contract_dilation):
    cells = {512: (64, 32), 713: (90, 45), 769: (97, 49), 473: (60, 30), 97: (13, 7)}
    with torch.device("meta"):
        net = ResNet("resnet18", stem, output_stride, contract_dilation)
        for size, expected in cells.items():
            layer3, layer4 = net(torch.empty(1, 3, size, 1024))
            assert layer3.shape == (1, net.layer3_channels, expected[column], cells[512][column] * 2)
            assert layer4.shape == (1, net.num_features, expected[column], cells[512][column] * 2)


def test_stem_widths():
    with torch.device("meta"):
        widths = {stem: ResNet("resnet50", stem).layer1[0].conv1.in_channels for stem in ("semseg", "mmseg")}
    assert widths == {"semseg": 128, "mmseg": 64}


@pytest.mark.parametrize("stem", ["torchvision", "semseg", "mmseg"])
def test_every_parameter_gets_a_gradient(stem):
    net = ResNet("resnet18", stem, 16)
    net(torch.randn(2, 3, 65, 65)).layer4.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
