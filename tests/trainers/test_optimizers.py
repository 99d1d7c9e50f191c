"""The segmenter's optimiser: SGD as ever, AdamW where it is asked for."""

import pytest
import torch
from city import NUM_CLASSES
from tiny import METHOD_FILES, tiny
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from da.nets.optimizers import L2SP, SegmenterAdamW, SegmenterSGD, TowardsStart
from da.nets.pspnet import PSPNet, PSPNetConfig
from da.trainers import base


def segmenter(backbone: str = "resnet18", **settings) -> PSPNet:
    return PSPNet(PSPNetConfig(backbone=backbone, head_channels=16, weights="none", **settings), NUM_CLASSES)


def by_parameter(optimizer: torch.optim.Optimizer) -> dict[int, dict]:
    """The group of each parameter; each has one."""
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group
    return found


def test_sgd_is_what_it_was():
    net = segmenter()
    optimizer = SegmenterSGD(lr=0.1, head_lr_mult=2.0, backbone_lr_mult=3.0).build(net)
    assert type(optimizer) is SGD
    backbone, head = optimizer.param_groups
    assert (backbone["name"], head["name"]) == ("backbone", "head")
    assert (backbone["lr"], head["lr"]) == (0.1 * 3.0, 0.1 * 2.0)
    assert {(g["momentum"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.9, 5e-4)}
    assert [p for g in optimizer.param_groups for p in g["params"]] == [
        *net.backbone.parameters(),
        *net.parameter_groups()[1],
    ]


def test_adamw_has_daformers_settings_and_spares_norms_and_biases():
    net = segmenter()
    optimizer = SegmenterSGD(adamw=SegmenterAdamW()).build(net)
    assert type(optimizer) is AdamW
    groups = by_parameter(optimizer)
    assert groups.keys() == {id(p) for p in net.parameters()}
    for name, parameter in net.named_parameters():
        group = groups[id(parameter)]
        assert group["lr"] == pytest.approx(6e-5 if name.startswith("backbone") else 6e-4)
        assert group["betas"] == (0.9, 0.999)
        spared = "bn" in name or "downsample.1" in name or name.endswith("bias") or parameter.ndim == 1
        assert group["weight_decay"] == (0.0 if spared else 0.01), name


def test_layer_decay_of_a_transformer_is_beits():
    """Share of the rate: embedding d^13 of twelve blocks, block i (from 0) d^(12 - i), norm and heads 1."""
    pytest.importorskip("timm")
    net = segmenter("timm/vit_tiny_patch16_224")
    groups = by_parameter(SegmenterAdamW(lr=1.0, head_lr_mult=1.0, layer_decay=0.9).build(net))
    for name, parameter in net.named_parameters():
        share = 1.0
        if name.startswith("backbone.net.blocks."):
            share = 0.9 ** (12 - int(name.split(".")[3]))
        elif name.startswith("backbone.net.") and ".norm." not in name:
            share = 0.9**13
        assert groups[id(parameter)]["lr"] == pytest.approx(share), name
        apart = parameter.ndim == 1 or "pos_embed" in name or "cls_token" in name
        assert (groups[id(parameter)]["weight_decay"] == 0) == apart, name


def test_layer_decay_of_sgd_is_the_same():
    """Stem d^4, layer1 d^3 ... layer4 1, and the heads their own."""
    net = segmenter()
    optimizer = SegmenterSGD(lr=1.0, backbone_lr_mult=2.0, head_lr_mult=5.0, layer_decay=0.5).build(net)
    groups = by_parameter(optimizer)
    assert groups.keys() == {id(p) for p in net.parameters()}
    assert [group["name"] for group in optimizer.param_groups] == [*(f"backbone{n}" for n in range(5)), "head"]
    for name, parameter in net.named_parameters():
        depth = next((n for n in range(1, 5) if name.startswith(f"backbone.layer{n}.")), 0)
        rate = 2.0 * 0.5 ** (4 - depth) if name.startswith("backbone.") else 5.0
        assert groups[id(parameter)]["lr"] == rate, name


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
@pytest.mark.parametrize("kind", [SegmenterSGD, SegmenterAdamW])
def test_frozen_stages_are_in_no_group(kind, layer_decay):
    net = segmenter(frozen_stages=3)
    groups = by_parameter(kind(layer_decay=layer_decay).build(net))
    assert groups.keys() == {id(p) for p in net.parameters() if p.requires_grad}
    assert not groups.keys() & {id(p) for p in net.backbone.layer2.parameters()}


def test_a_parameter_without_gradient_signal_only_decays_where_it_should():
    net = segmenter()
    optimizer = SegmenterAdamW(lr=0.1, head_lr_mult=1.0, weight_decay=0.5).build(net)
    before = {name: p.clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(net.backbone.bn1.weight, before["backbone.bn1.weight"])
    torch.testing.assert_close(net.backbone.conv1.weight, before["backbone.conv1.weight"] * 0.95)


class Two(nn.Module):
    """What came from the start, and what is new."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.old, self.new = nn.Linear(5, 4), nn.Linear(4, 3)


SGD_SETTINGS = {"lr": 0.5, "momentum": 0.9}


def pulled(alpha: float, beta: float, kind: type[Optimizer] = SGD, **settings) -> tuple[Two, Optimizer, TowardsStart]:
    net = Two()
    optimizer = kind(net.parameters(), weight_decay=0.3, **settings)
    towards = TowardsStart(L2SP(alpha=alpha, beta=beta), net, optimizer)
    towards.begin({"new.weight", "new.bias"})
    return net, optimizer, towards


def descend(net: Two, optimizer: Optimizer, steps: int, size: float = 1.0) -> None:
    """Updates with gradients that do not depend on the weights."""
    draws = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = size * torch.randn(parameter.shape, generator=draws)
        optimizer.step()


class TestTowardsStart:
    def test_the_gradient_is_alpha_times_the_way_from_the_start(self):
        net, optimizer, towards = pulled(0.25, 0.125, lr=1.0)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.5
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        descend(net, optimizer, 1, size=0.0)
        for name, parameter in net.named_parameters():
            gradient = 0.25 * (before[name] - towards.start[name]) if "old" in name else 0.125 * before[name]
            assert torch.equal(parameter, before[name] - gradient), name

    @pytest.mark.parametrize("kind", [SGD, AdamW])
    def test_at_the_start_nothing_pulls(self, kind):
        net, optimizer, towards = pulled(10.0, 0.0, kind, lr=0.1)
        descend(net, optimizer, 3, size=0.0)
        assert all(torch.equal(p, towards.start[name]) for name, p in net.named_parameters() if "old" in name)

    @pytest.mark.parametrize("kind", [SGD, AdamW])
    def test_a_strong_pull_keeps_the_start(self, kind):
        """lr alpha = 1: what the gradients before did is undone in each update."""
        net, optimizer, towards = pulled(1e4, 0.0, kind, lr=1e-4)
        descend(net, optimizer, 50)
        for name, parameter in net.named_parameters():
            if "old" in name:
                torch.testing.assert_close(parameter.data, towards.start[name], rtol=0, atol=1e-3)

    def test_without_alpha_it_is_decay_of_the_new_alone(self):
        net, optimizer, _ = pulled(0.0, 0.3, **SGD_SETTINGS)
        plain = Two()
        groups = [{"params": plain.old.parameters(), "weight_decay": 0.0}, {"params": plain.new.parameters()}]
        descend(net, optimizer, 5)
        descend(plain, SGD(groups, weight_decay=0.3, **SGD_SETTINGS), 5)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters()))

    def test_towards_zero_it_is_weight_decay(self):
        net, optimizer, towards = pulled(0.3, 0.3, **SGD_SETTINGS)
        towards.start = {name: torch.zeros_like(value) for name, value in towards.start.items()}
        plain = Two()
        descend(net, optimizer, 5)
        descend(plain, SGD(plain.parameters(), weight_decay=0.3, **SGD_SETTINGS), 5)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters()))

    def test_towards_zero_it_is_adamws_weight_decay(self):
        net, optimizer, towards = pulled(0.3, 0.3, AdamW, lr=0.1)
        towards.start = {name: torch.zeros_like(value) for name, value in towards.start.items()}
        plain = Two()
        descend(net, optimizer, 5)
        descend(plain, AdamW(plain.parameters(), weight_decay=0.3, lr=0.1), 5)
        for a, b in zip(net.parameters(), plain.parameters()):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("kind", [SGD, AdamW])
    def test_what_has_no_gradient_stays(self, kind):
        net, optimizer, _ = pulled(0.5, 0.5, kind, lr=0.1)
        with torch.no_grad():
            net.old.weight += 1
        before = net.old.weight.detach().clone()
        net.new.bias.grad = torch.ones(3)
        optimizer.step()
        assert torch.equal(net.old.weight, before)

    def test_what_is_frozen_and_batch_statistics_are_not_kept(self):
        net = segmenter(frozen_stages=1)
        optimizer = SegmenterSGD().build(net)
        towards = TowardsStart(L2SP(), net, optimizer)
        towards.begin({"cls.4.weight"})
        trained = {name for name, p in net.named_parameters() if p.requires_grad}
        assert towards.start.keys() == trained - {"cls.4.weight"}
        assert "backbone.conv1.weight" not in towards.start
        assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)

    def test_another_memory_format_pulls_as_strongly(self):
        net = nn.Conv2d(3, 4, 3)
        towards = TowardsStart(L2SP(alpha=1.0), net, optimizer := SGD(net.parameters(), lr=1.0))
        towards.begin(())
        kept = {name: value.clone() for name, value in towards.start.items()}
        net.to(memory_format=torch.channels_last)
        with torch.no_grad():
            net.weight.mul_(2)
        net.weight.grad = torch.zeros_like(net.weight)
        optimizer.step()
        torch.testing.assert_close(net.weight.data, kept["weight"])
        assert torch.equal(towards.start["weight"], kept["weight"])


@pytest.mark.parametrize("name", [m for m in base.methods() if issubclass(base.find(m).Config, SegmenterSGD)])
def test_every_trainers_segmenter_takes_it(name, gta5_root, cityscapes_root):
    plain = base.build(tiny(METHOD_FILES[name], gta5_root, cityscapes_root, "method.adamw=null"))
    trainer = base.build(tiny(METHOD_FILES[name], gta5_root, cityscapes_root, "method.adamw={}"))
    assert isinstance(next(iter(plain.optimizers.values())), SGD)
    assert isinstance(next(iter(trainer.optimizers.values())), AdamW)
