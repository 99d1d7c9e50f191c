"""timm's networks behind the two outputs of our ResNet."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from city import NUM_CLASSES
from tiny import REPOSITORY
from torch import nn

from da.config import UserError
from da.nets.backbone import ResNet
from da.nets.encoders import Depthwise, TimmEncoder, _crop
from da.nets.pspnet import DomainBatchNorm2d, PSPNet, PSPNetConfig

timm = pytest.importorskip("timm")

CONVOLUTIONAL = ["resnet18", "convnext_atto", "tf_efficientnet_lite0", "mobilenetv4_conv_small", "regnetx_002"]
PATCHES = {"vit_tiny_patch16_224": 16, "vit_small_patch14_dinov2": 14, "vit_small_patch16_dinov3": 16}


def small(**settings) -> PSPNet:
    torch.manual_seed(0)
    return PSPNet(PSPNetConfig(**{"head_channels": 16, "weights": "none", "dropout": 0.0} | settings), NUM_CLASSES)


def randomise(net: nn.Module) -> None:
    """Statistics that a norm in the wrong mode, or an unloaded buffer, would show."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)


def test_our_resnets_need_no_timm():
    program = (
        "import sys; sys.modules['timm'] = None; from da.nets.pspnet import *; "
        "PSPNet(PSPNetConfig(backbone='resnet18', weights='none'), 19); import da.run; "
        "from da.config import UserError\n"
        "try: PSPNet(PSPNetConfig(backbone='timm/resnet18', weights='none'), 19)\n"
        "except UserError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert said.stdout.count("\n") == 1, said.stderr
    assert "pip install timm" in said.stdout


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("stride", [8, 16])
def test_both_maps_have_the_stride_and_the_channels_stated(name, stride):
    net = TimmEncoder(name, stride)
    assert net.stride == stride
    for height, width in ((64, 96), (71, 93), (33, 129)):
        layer3, layer4 = net(torch.rand(2, 3, height, width))
        cells = (-(-height // stride), -(-width // stride))
        assert layer3.shape == (2, net.layer3_channels, *cells)
        assert layer4.shape == (2, net.num_features, *cells)


@pytest.mark.parametrize("name", PATCHES)
def test_a_transformer_has_the_stride_of_its_patch(name):
    net = TimmEncoder(name).eval()
    assert net.stride == PATCHES[name]
    x = torch.rand(1, 3, 5 * net.stride, 6 * net.stride)
    with torch.no_grad():
        layer3, layer4 = net(x)
        tokens = net.net.forward_features(x)[:, -30:]  # patches come last, normalised
    assert layer3.shape == layer4.shape == (1, net.num_features, 5, 6)
    torch.testing.assert_close(layer4.flatten(2).transpose(1, 2), tokens)
    assert net(torch.rand(1, 3, 71, 93)).layer4.shape[-2:] == (-(-71 // net.stride), -(-93 // net.stride))


def test_the_auxiliary_map_of_a_transformer_is_after_two_thirds_of_its_blocks():
    net, seen = TimmEncoder("vit_tiny_patch16_224").eval(), []
    net.net.blocks[7].register_forward_hook(lambda *given: seen.append(given[-1]))  # the eighth of twelve
    with torch.no_grad():
        layer3 = net(torch.rand(1, 3, 32, 48)).layer3
    torch.testing.assert_close(layer3.flatten(2).transpose(1, 2), seen[0][:, 1:])  # without the class token


@pytest.mark.parametrize("size", [64, 71, 65])
def test_cells_of_a_padded_image_divide_the_image_itself(size):
    """A network that says where each cell looks: its map of a ramp, cropped, is the ramp at the cells' centres."""
    stride = 14
    padded = -(-size // stride) * stride
    ramp = torch.arange(padded, dtype=torch.float64) + 0.5
    cells = F.avg_pool1d(ramp[None, None], stride)[0, 0]
    found = _crop(cells.expand(1, 2, len(cells), -1), torch.Size((size, size)), torch.Size((padded, padded)))
    expected = (torch.arange(len(cells)) + 0.5) * size / len(cells)
    torch.testing.assert_close(found[0, 0, 2, 1:].float(), expected[1:])  # the first may lie beyond its centre


def test_sizes_that_fit_are_not_touched():
    net = TimmEncoder("convnext_atto").eval()
    assert net.pads
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(net(x).layer4, net.net(x)[-1])


@pytest.mark.parametrize("stride", [8, 16])
def test_timms_resnet18_is_ours(stride):
    ours, theirs = ResNet("resnet18", output_stride=stride).eval(), TimmEncoder("resnet18", stride).eval()
    randomise(ours)
    theirs.net.load_state_dict(ours.state_dict())
    x = torch.rand(1, 3, 71, 93)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x)):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "size", "first3", "first4"),
    [
        ("efficientnet_lite0", (97, 128), 0, 0),
        ("mobilenetv4_conv_small", (97, 128), 0, 0),
        ("regnetx_002", (97, 128), 0, 0),
        ("tf_efficientnet_lite0", (97, 129), 0, 0),
        ("tf_efficientnet_lite0", (96, 128), 1, 3),  # TensorFlow's strided windows: centred on odd places of even sizes
    ],
)
def test_output_stride_8_keeps_the_features_of_the_undilated_network(name, size, first3, first4):
    """In float64: the same sums in another order."""
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True).eval().double()
    randomise(plain)
    dilated = TimmEncoder(name, 8).eval().double()
    dilated.net.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected, found = plain(x), dilated(x)
    torch.testing.assert_close(found.layer3[..., first3::2, first3::2], expected[-2])
    torch.testing.assert_close(found.layer4[..., first4::4, first4::4], expected[-1])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("swin_tiny_patch4_window7_224", "output_stride"),
        ("hrnet_w18_small", "asserts"),
        ("pvt_v2_b0", "output_stride"),
        ("resnet18.tv_in1k", "model.weights: timm/<tag>"),
        ("resnet_18", "near: "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, why):
    with pytest.raises(UserError, match=f"^model.backbone: .*{why}") as error:
        TimmEncoder(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "timm/resnet18", "stem": "caffe"}, "model.stem"),
        ({"backbone": "timm/resnet18", "contract_dilation": False}, "model.contract_dilation"),
        ({"backbone": "resnet18", "drop_path": 0.1}, "model.drop_path: resnet18"),
        ({"backbone": "timm/resnet18", "frozen_stages": 6}, "has 5 stages"),
    ],
)
def test_settings_that_a_backbone_lacks_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    "backbone", ["resnet18", "timm/tf_efficientnet_lite0", "timm/convnext_atto", "timm/vit_tiny_patch16_224"]
)
def test_frozen_stages_keep_weights_statistics_and_draws(backbone):
    drop_path = {"drop_path": 0.5} if backbone != "resnet18" else {}
    free = small(backbone=backbone, **drop_path)
    stages = free.backbone.stages()
    everything = [id(module) for stage in stages for module in stage]
    assert len(everything) == len(set(everything))
    assert {id(m) for m in stages[0]} < set(everything)
    net = small(backbone=backbone, frozen_stages=len(stages), **drop_path)
    before = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    images = torch.rand(2, 3, 64, 64)
    first, second = net.features(images).layer3, net.features(images).layer3
    assert torch.equal(first, second)  # no drop-path
    assert not first.requires_grad
    sum(score.square().mean() for score in net(images)[:2]).backward()
    assert all(torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())
    assert net.parameter_groups()[0] == []
    if drop_path:
        assert not torch.equal(free.features(images).layer3, free.features(images).layer3)

    part = small(backbone=backbone, frozen_stages=2)
    held = {id(p) for p in part.parameter_groups()[0]}
    for number, stage in enumerate(part.backbone.stages()):
        own = [p for module in stage for p in module.parameters(recurse=False)]
        assert all((id(p) in held) == (number >= 2) for p in own)
    norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = {id(m) for stage in part.backbone.stages()[:2] for m in stage}
    assert all(m.training == (id(m) not in frozen) for m in norms)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
@pytest.mark.parametrize("bn", ["per_domain", "sync"])
def test_norms_that_also_activate_keep_doing_so(name, bn):
    plain, replaced = small(backbone=f"timm/{name}"), small(backbone=f"timm/{name}", bn=bn)
    images = torch.rand(2, 3, 64, 64)
    replaced.load_state_dict(plain.state_dict())
    torch.testing.assert_close(replaced(images, "source").main, plain(images, "source").main)
    torch.testing.assert_close(replaced.eval()(images, "source").main, plain.eval()(images, "source").main)
    if bn == "per_domain":
        norms = [m for m in replaced.backbone.modules() if isinstance(m, DomainBatchNorm2d)]
        assert norms
        assert not any(torch.equal(m.running_mean, m.running_mean_target) for m in norms)
        assert {m.domain for m in norms} == {"source"}


def test_a_norm_that_cannot_be_replaced_is_refused():
    net = small(backbone="timm/resnet18", bn="per_domain")
    from da.nets.norms import replace_norms

    net.backbone.net.bn1 = nn.BatchNorm2d(64, affine=False)
    with pytest.raises(UserError, match=r"model\.bn: .* BatchNorm2d"):
        replace_norms(net, DomainBatchNorm2d)


def test_frozen_policy_reaches_norms_that_also_activate():
    net = small(backbone="timm/tf_efficientnet_lite0", bn="frozen", ppm_norm="batch")
    before = {key: value.clone() for key, value in net.named_buffers()}
    net(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in net.named_buffers())


@pytest.mark.parametrize(
    ("kernel", "dilation", "size"), [(3, 2, (16, 24)), (5, 2, (13, 9)), (5, 4, (7, 10)), (3, 4, (3, 2))]
)
def test_dilated_depthwise_convolutions_in_phases_are_the_same_sums(kernel, dilation, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=6, bias=False).double()
    assert Depthwise.fits(plain)
    ours = copy.deepcopy(plain)
    ours.__class__ = Depthwise
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    results = []
    for net in (plain, ours):
        given = x.clone().requires_grad_()
        out = net(given)
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        results.append((out, given.grad, net.weight.grad))
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.eval()(x), plain(x))


def test_depthwise_convolutions_alone_are_computed_so():
    found = [m for m in TimmEncoder("tf_efficientnet_lite0", 8).modules() if isinstance(m, Depthwise)]
    assert {m.dilation for m in found} == {(1, 1), (2, 2), (4, 4)}
    assert not any(isinstance(m, Depthwise) for m in TimmEncoder("resnet18", 8).modules())


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_depthwise_convolution_rounds_its_result_as_autocast_would(dilation):
    torch.manual_seed(0)
    net = nn.Conv2d(6, 6, 3, padding=dilation, dilation=dilation, groups=6, bias=False)
    x = torch.randn(2, 6, 8, 8)
    exact = net(x).bfloat16()
    net.__class__ = Depthwise
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, exact)
