import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from da.config import UserError
from da.nets.backbone import ResNet
from da.nets.weights import load_backbone, load_modules


@pytest.fixture(scope="module")
def imagenet_state():
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub folder and no network; returns the folder of the files."""

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    previous = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(previous)


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_none_leaves_the_backbone_alone():
    net = ResNet("resnet18", output_stride=16)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    report = load_backbone(net, "none", "resnet18")
    assert (report.tensors, report.parameters) == (0, 0)
    assert "random" in report.text()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_local_file_fills_everything_but_the_classifier(tmp_path, imagenet_state):
    file = tmp_path / "mine.pth"
    torch.save(imagenet_state, file)
    net = ResNet("resnet18")
    report = load_backbone(net, str(file), "resnet18")
    assert report.tensors == len(imagenet_state) - 2  # fc.weight, fc.bias
    assert report.parameters == 11_689_512 - 513_000  # torchvision's count less its classifier
    assert str(file) in report.text()
    assert "11,176,512" in report.text()
    assert all(torch.equal(v, imagenet_state[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("weights", ["imagenet", "ResNet18_Weights.IMAGENET1K_V1"])
def test_torchvision_file_in_the_cache_needs_no_network(hub, imagenet_state, weights):
    hub.mkdir()
    torch.save(imagenet_state, hub / "resnet18-f37072fd.pth")
    net = ResNet("resnet18")
    report = load_backbone(net, weights, "resnet18")
    assert report.file == "resnet18-f37072fd.pth"
    assert torch.equal(net.conv1.weight, imagenet_state["conv1.weight"])


def test_offline_and_absent_says_which_file_goes_where(hub):
    with pytest.raises(UserError) as error:
        load_backbone(ResNet("resnet18"), "imagenet", "resnet18")
    text = one_line(error)
    assert "resnet18-f37072fd.pth" in text
    assert str(hub) in text
    assert "model.weights" in text


@pytest.mark.parametrize("weights", ["ResNet50_Weights.IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V9"])
def test_a_torchvision_name_of_another_arch_is_refused_before_any_download(hub, weights):
    with pytest.raises(UserError, match=r"known: ResNet18_Weights\.IMAGENET1K_V1") as error:
        load_backbone(ResNet("resnet18"), weights, "resnet18")
    assert weights in one_line(error)


def test_absent_file(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "no.pth"))) as error:
        load_backbone(ResNet("resnet18"), str(tmp_path / "no.pth"), "resnet18")
    one_line(error)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_broken_file(tmp_path, content):
    file = tmp_path / "broken.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.pth") as error:
        load_backbone(ResNet("resnet18"), str(file), "resnet18")
    one_line(error)


@pytest.mark.parametrize("content", [Path("x"), {"state_dict": {"conv1.weight": torch.zeros(1)}}, [1, 2]])
def test_anything_but_a_plain_state_dict_is_refused(tmp_path, content):
    file = tmp_path / "odd.pth"
    torch.save(content, file)
    with pytest.raises(UserError, match=r"odd\.pth") as error:
        load_backbone(ResNet("resnet18"), str(file), "resnet18")
    one_line(error)


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_file_cannot_run_code(tmp_path, imagenet_state):
    torch.save(imagenet_state | {"fc.bias": Payload(tmp_path / "touched")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth"):
        load_backbone(ResNet("resnet18"), str(tmp_path / "evil.pth"), "resnet18")
    assert not (tmp_path / "touched").exists()


def test_a_file_that_does_not_fit_is_named_with_its_key_lists(tmp_path, imagenet_state):
    state = dict(imagenet_state)
    state["head.weight"] = state.pop("layer1.0.bn1.bias")
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    file = tmp_path / "odd.pth"
    torch.save(state, file)
    with pytest.raises(UserError) as error:
        load_backbone(ResNet("resnet18"), str(file), "resnet18")
    text = one_line(error)
    assert "odd.pth" in text
    assert "1 missing (layer1.0.bn1.bias)" in text
    assert "1 unexpected (head.weight)" in text
    assert "1 of another shape (conv1.weight (64, 3, 3, 3) for (64, 3, 7, 7))" in text


def test_torchvision_weights_and_a_deep_stem_name_the_stem(tmp_path, imagenet_state):
    torch.save(imagenet_state, tmp_path / "r18.pth")
    with pytest.raises(UserError, match=r"model\.stem semseg.*conv2\.weight"):
        load_backbone(ResNet("resnet18", "semseg"), str(tmp_path / "r18.pth"), "resnet18")


def test_modules_round_trip():
    saved = {"segmenter": nn.Conv2d(3, 4, 3), "d": nn.BatchNorm2d(2)}
    fresh = {"segmenter": nn.Conv2d(3, 4, 3), "d": nn.BatchNorm2d(2)}
    saved["d"].running_mean.fill_(3.0)
    load_modules(fresh, {name: module.state_dict() for name, module in saved.items()}, "last.pt")
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(fresh["segmenter"](x), saved["segmenter"](x))
    assert torch.equal(fresh["d"].running_mean, saved["d"].running_mean)


def test_checkpoint_of_another_architecture_names_file_module_and_keys():
    states = {"segmenter": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False)).state_dict()}
    other = {"segmenter": nn.Sequential(nn.Conv2d(3, 8, 1))}
    with pytest.raises(UserError, match="another architecture") as error:
        load_modules(other, states, "runs/a/last.pt")
    text = one_line(error)
    assert "runs/a/last.pt" in text
    assert "segmenter: 1 unexpected (1.weight), 2 of another shape (0.weight (4, 3, 1, 1)" in text


def test_checkpoint_of_another_method_names_both_sets_of_modules():
    states = {"segmenter": nn.Conv2d(1, 1, 1).state_dict()}
    with pytest.raises(UserError, match="holds segmenter; expected d_main, segmenter"):
        load_modules({"segmenter": nn.Conv2d(1, 1, 1), "d_main": nn.Conv2d(1, 1, 1)}, states, "last.pt")
