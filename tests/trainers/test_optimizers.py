"""The segmenter's optimiser: SGD as ever, AdamW where it is asked for."""

import pytest
import torch
from city import NUM_CLASSES
from tiny import METHOD_FILES, tiny
from torch.optim import SGD, AdamW

from da.nets.optimizers import SegmenterAdamW, SegmenterSGD
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


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_frozen_stages_are_in_no_group(layer_decay):
    net = segmenter(frozen_stages=3)
    groups = by_parameter(SegmenterAdamW(layer_decay=layer_decay).build(net))
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


@pytest.mark.parametrize("name", [m for m in base.methods() if issubclass(base.find(m).Config, SegmenterSGD)])
def test_every_trainers_segmenter_takes_it(name, gta5_root, cityscapes_root):
    plain = base.build(tiny(METHOD_FILES[name], gta5_root, cityscapes_root))
    trainer = base.build(tiny(METHOD_FILES[name], gta5_root, cityscapes_root, "method.adamw={}"))
    assert isinstance(plain.optimizers["segmenter"], SGD)
    assert isinstance(trainer.optimizers["segmenter"], AdamW)
