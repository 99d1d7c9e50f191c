import copy
import math

import pytest
import torch
from city import NUM_CLASSES
from pydantic import ValidationError
from torch import nn

from da.config import UserError
from da.nets.pspnet import PSPNet, PSPNetConfig

MODES = {"group": {"ppm_norm": "group"}, "frozen": {"ppm_norm": "batch", "bn": "frozen"}}


def small(**settings) -> PSPNet:
    torch.manual_seed(0)
    defaults = {
        "backbone": "resnet18",
        "output_stride": 16,
        "head_channels": 32,
        "weights": "none",
        "dropout": 0.0,
    }
    return PSPNet(PSPNetConfig(**defaults | settings), NUM_CLASSES)


def on_meta(**settings) -> PSPNet:
    with torch.device("meta"):
        return small(**settings)


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def buffers(net: nn.Module, end: str = "") -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.named_buffers() if k.endswith(end)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[bool]:
    assert a.keys() == b.keys()
    assert a
    return [torch.equal(a[k], b[k]) for k in a]


@pytest.mark.parametrize("size", [(512, 1024), (713, 713), (769, 769), (720, 1280), (760, 1280)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_logits_have_the_size_of_the_image(size, output_stride):
    net = on_meta(output_stride=output_stride)
    main, aux, _ = net(torch.empty(1, 3, *size, device="meta"))
    assert main.shape == aux.shape == (1, 19, *size)
    cells = (1, 19, -(-size[0] // output_stride), -(-size[1] // output_stride))
    assert net.scores(torch.empty(1, 3, *size, device="meta")).main.shape == cells


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(97, 161), (65, 129)])
def test_trains_at_batch_1_on_odd_sizes(mode, batch, size):
    net = small(**MODES[mode], output_stride=8)
    main, aux, _ = net(torch.rand(batch, 3, *size), "source")
    assert main.shape == (batch, 19, *size)
    (main.square().mean() + aux.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("bn", ["train", "per_domain", "sync"])
def test_batch_norm_in_the_pyramid_refuses_batch_1_in_training_only(bn):
    net = small(ppm_norm="batch", bn=bn)
    with pytest.raises(UserError, match=r"model\.ppm_norm: group") as error:
        net(torch.rand(1, 3, 64, 64))
    assert "\n" not in str(error.value)
    net(torch.rand(2, 3, 64, 64))
    net.eval()(torch.rand(1, 3, 64, 64))
    small(ppm_norm="batch", bn=bn, bins=(2, 3))(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
@pytest.mark.parametrize("ppm_norm", ["group", "batch"])
def test_head_parameter_counts(backbone, ppm_norm):
    net = on_meta(backbone=backbone, ppm_norm=ppm_norm, head_channels=512)
    counts = [sum(p.numel() for p in part.parameters()) for part in (net.ppm, net.cls, net.aux)]
    assert counts == [4_198_400, 18_885_139, 2_364_691]


@pytest.mark.parametrize("bn", ["train", "frozen", "per_domain"])
@pytest.mark.parametrize("aux", [True, False])
def test_parameter_groups_are_disjoint_and_complete(bn, aux):
    net = small(bn=bn, aux=aux)
    next(net.backbone.parameters()).requires_grad_(False)
    next(net.cls.parameters()).requires_grad_(False)
    backbone, head = net.parameter_groups()
    ids = [id(p) for p in backbone + head]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in net.parameters() if p.requires_grad}
    assert {id(p) for p in backbone} == {id(p) for p in net.backbone.parameters() if p.requires_grad}


def test_without_auxiliary_head():
    net = small(aux=False)
    scores = net(torch.rand(1, 3, 40, 72))
    assert scores.aux is None
    assert scores.main.shape == (1, 19, 40, 72)


def test_the_auxiliary_head_answers_in_training_only():
    net, image = small(), torch.rand(2, 3, 64, 64)
    assert net(image).aux is not None
    assert net.eval()(image).aux is None


class TestProgressiveDecoder:
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("bn", ["train", "frozen", "per_domain"])
    def test_it_trains_and_its_scores_are_as_fine_as_the_image(self, bn, batch):
        net = small(decoder="progressive", output_stride=8, bn=bn, ppm_norm="batch")
        image = torch.rand(batch, 3, 41, 64)
        scores = net.scores(image, "source")
        assert scores.main.shape == (batch, 19, 48, 64)
        assert scores.aux.shape == (batch, 19, 6, 8)
        main, aux, _ = net.upsample(scores, image.shape[-2:])
        assert main.shape == aux.shape == (batch, 19, 41, 64)
        (main.square().mean() + aux.square().mean()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    def test_its_first_prediction_is_near_uniform_and_no_layer_starts_dead(self):
        net = small(decoder="progressive")
        p = net(torch.rand(2, 3, 64, 128)).main.softmax(1)
        assert -(p * p.log()).sum(1).mean() / math.log(19) > 0.95
        assert net.cls[3][1].weight.std().item() == pytest.approx((2 / net.cls[3][1].weight[0].numel()) ** 0.5, rel=0.1)

    def test_it_is_as_lextals(self):
        net = on_meta(backbone="resnet34", decoder="progressive", head_channels=1024)
        assert [tuple(m.weight.shape[:2]) for m in net.cls.modules() if isinstance(m, nn.Conv2d)] == [
            *((1024, 2560), (256, 1024), (64, 256), (64, 64)),
            (19, 64),
        ]
        assert [m.p for m in small(decoder="progressive", dropout=0.3).cls if isinstance(m, nn.Dropout2d)] == [
            *(0.3, 0.15, 0.15),
            0.15,
        ]


class TestPresenceHead:
    def test_it_answers_for_each_image_in_training_only(self):
        net, image = small(presence=True, aux=False), torch.rand(2, 3, 64, 64)
        scores = net(image)
        assert scores.presence.shape == (2, 19)
        assert scores.aux is None
        assert net.eval()(image).presence is None
        assert small()(image).presence is None

    def test_all_else_is_drawn_and_answers_as_without_it(self):
        plain, net, image = small(), small(presence=True), torch.rand(2, 3, 64, 64)
        extra = net.state_dict().keys() - plain.state_dict().keys()
        assert extra == {f"presence.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
        assert all(torch.equal(net.state_dict()[key], value) for key, value in plain.state_dict().items())
        assert torch.equal(net(image).main, plain(image).main)
        assert len(net.parameter_groups()[1]) == len(plain.parameter_groups()[1]) + 4

    def test_its_gradient_reaches_layer3_but_not_layer4(self):
        net = small(presence=True)
        net.scores(torch.rand(2, 3, 64, 64)).presence.square().sum().backward()
        assert all(p.grad.any() for p in net.backbone.layer3[1].parameters())
        assert all(p.grad is None for p in net.backbone.layer4.parameters())


def test_first_prediction_is_near_uniform():
    for logits in small()(torch.rand(2, 3, 64, 128))[:2]:
        p = logits.softmax(1)
        entropy = -(p * p.log()).sum(1).mean() / math.log(19)
        assert entropy > 0.95


def test_input_statistics_travel_with_the_weights():
    net = small().eval()
    image = torch.rand(1, 3, 33, 65)
    state = net.state_dict()
    normalised = (image - state["mean"].view(1, 3, 1, 1)) / state["std"].view(1, 3, 1, 1)
    torch.testing.assert_close(state["mean"], torch.tensor([0.485, 0.456, 0.406]))
    plain = small().eval()
    plain.load_state_dict(state | {"mean": torch.zeros(3), "std": torch.ones(3)})
    with torch.no_grad():
        torch.testing.assert_close(plain(normalised).main, net(image).main)
        assert not torch.allclose(plain(image).main, net(image).main)


def test_align_corners_keeps_the_scores_at_exact_positions():
    net = small(align_corners=True, output_stride=8).eval()
    image = torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        full, cells = net(image), net.scores(image)
    torch.testing.assert_close(full.main[..., ::8, ::8], cells.main)


def test_logits_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        main, aux, _ = small()(torch.rand(1, 3, 64, 64))
    assert main.dtype == aux.dtype == torch.float32


def test_pyramid_carries_image_level_context():
    """The bin-1 branch lets one corner of the image reach the opposite one."""
    net = small(bins=(1,)).eval()
    image = torch.rand(1, 3, 8, 1600)
    changed = image.clone()
    changed[..., :200] = 0
    with torch.no_grad():
        assert not torch.allclose(net(image).main[..., -8:], net(changed).main[..., -8:], atol=1e-6)
        a, b = (net.aux(net.features(x).layer3) for x in (image, changed))
        torch.testing.assert_close(a[..., -1:], b[..., -1:])


def test_train_policy_follows_the_forwards():
    net = small()
    before = buffers(net, "running_mean")
    net(torch.rand(2, 3, 64, 64))
    assert not any(same(buffers(net, "running_mean"), before))


def test_frozen_policy_never_uses_the_batch():
    net = small(bn="frozen", ppm_norm="batch")
    for norm in norms(net):
        norm.running_var.fill_(2.0)
    image, other = torch.rand(2, 2, 3, 64, 64)
    before, logits = buffers(net), net.eval()(image).main
    net.train()
    assert net.training
    assert net.cls[3].training  # dropout still drops
    net(other)
    torch.testing.assert_close(net(image).main, logits)
    assert all(same(buffers(net), before))
    net(image).main.square().mean().backward()
    assert all(n.weight.grad is not None and n.bias.grad is not None for n in norms(net.backbone))


def test_per_domain_statistics_are_kept_apart():
    net = small(bn="per_domain")
    dark, bright = 0.2 * torch.rand(2, 3, 64, 64), 0.8 + 0.2 * torch.rand(2, 3, 64, 64)
    target, source = buffers(net, "_target"), buffers(net, "running_mean")
    net(dark, "source")
    assert all(same(buffers(net, "_target"), target))
    assert not any(same(buffers(net, "running_mean"), source))
    source = buffers(net, "running_mean")
    net(bright, "target")
    assert all(same(buffers(net, "running_mean"), source))
    assert not any(same(buffers(net, "_target"), target))


def test_per_domain_evaluation_uses_the_domain_given_and_the_target_by_default():
    net = small(bn="per_domain")
    image = torch.rand(1, 3, 64, 64)
    net(0.1 * torch.rand(2, 3, 64, 64), "source")
    net(torch.rand(2, 3, 64, 64), "target")
    net.eval()
    before = buffers(net)
    with torch.no_grad():
        source, target, default = net(image, "source").main, net(image, "target").main, net(image).main
    assert torch.equal(target, default)
    assert not torch.allclose(source, target)
    assert all(same(buffers(net), before))


def test_per_domain_trains_as_plain_batch_norm_does_within_one_domain():
    plain, split = small(), small(bn="per_domain")
    split.load_state_dict(plain.state_dict())  # a plain checkpoint fills both domains
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(split(images, "source").main, plain(images, "source").main)
    plain.eval()
    expected = plain(images).main
    torch.testing.assert_close(split.eval()(images, "source").main, expected)
    split.train()(images, "target")
    torch.testing.assert_close(split.eval()(images, "target").main, expected)
    assert len(split.parameter_groups()[0]) == len(plain.parameter_groups()[0])


def test_sync_in_one_process_is_plain_batch_norm():
    plain, sync = small(), small(bn="sync")
    sync.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(sync(images).main, plain(images).main)
    assert all(torch.equal(a, b) for a, b in zip(sync.buffers(), plain.buffers(), strict=True))


@pytest.mark.parametrize("bn", ["train", "frozen", "per_domain", "sync"])
def test_state_dict_round_trip_gives_equal_logits(bn):
    net = small(bn=bn)
    net(torch.rand(2, 3, 64, 64), "source")
    net(torch.rand(2, 3, 64, 64), "target")
    fresh = small(bn=bn)
    fresh.load_state_dict(copy.deepcopy(net.state_dict()), strict=True)
    image = torch.rand(1, 3, 41, 57)
    for domain in ("source", "target"):
        assert torch.equal(fresh.eval()(image, domain).main, net.eval()(image, domain).main)


@pytest.mark.parametrize(
    "bad", [{"bins": ()}, {"bins": (0, 1)}, {"output_stride": 32}, {"dropout": 1.0}, {"head_channels": 0}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        PSPNetConfig(**bad)


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (["backbone.layer1"], "backbone.layer1."),
        (["backbone.layer1", "ppm"], ("backbone.layer1.", "ppm.")),
        (["backbone.layer?"], tuple(f"backbone.layer{n}." for n in range(1, 5))),
        (["cls.0"], "cls.0."),
        (["backbone.*.bn1"], tuple(f"backbone.layer{n}.{b}.bn1." for n in range(1, 5) for b in range(2))),
    ],
)
def test_what_freeze_names_stays_as_it_was_loaded(freeze, frozen):
    net = small(freeze=tuple(freeze), dropout=0.5)
    expected = {name for name, _ in net.named_parameters() if name.startswith(frozen)}
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == expected
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for group in net.parameter_groups() for p in group], lr=0.1, weight_decay=0.1)
    net.eval()
    net.train()
    sum(score.square().mean() for score in net(torch.rand(2, 3, 48, 48)) if score is not None).backward()
    optimizer.step()
    after = net.state_dict()
    stays = {key for key in before if torch.equal(before[key], after[key])} - {"mean", "std"}
    assert stays == {key for key in before if key.startswith(frozen)}


@pytest.mark.parametrize("pattern", ["backbone.layer5", "layer1", "", "backbone.layer1.", "conv1.weight"])
def test_freeze_that_names_nothing_is_refused(pattern):
    with pytest.raises(UserError, match=r"model\.freeze: '.*' names no module; known: backbone\.conv1"):
        small(freeze=("ppm", pattern))
    with pytest.raises(UserError, match=r"model\.freeze: leaves nothing to train"):
        small(freeze=("*",))


def test_tensors_by_where_they_come_from():
    net = small()
    assert net.class_tensors() == ["cls.4.weight", "cls.4.bias", "aux.4.weight", "aux.4.bias"]
    assert small(aux=False).class_tensors() == ["cls.4.weight", "cls.4.bias"]
    assert all(net.state_dict()[key].shape[0] == NUM_CLASSES for key in net.class_tensors())
    assert net.random_tensors() == net.state_dict().keys()
