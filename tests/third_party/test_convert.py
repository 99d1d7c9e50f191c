"""The command: what it writes, what it prints, and what it refuses."""

import csv
import json

import pytest
import torch
import yaml
from city import NUM_CLASSES
from test_parity import ReferenceLextal, ReferenceSemseg, randomise
from torchvision.models import resnet18

from da.evaluate import evaluate_runs
from da.nets.pspnet import PSPNet, PSPNetConfig
from da.report import report
from da.run import restore
from third_party.convert import main
from third_party.kinds import CAFFE_MEAN


@pytest.fixture
def semseg_file(tmp_path):
    """A checkpoint as semseg's training writes it."""
    state = {f"module.{name}": value for name, value in randomise(ReferenceSemseg()).state_dict().items()}
    torch.save({"epoch": 200, "state_dict": state}, tmp_path / "semseg.pth")
    return tmp_path / "semseg.pth"


def refused(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_segmenter_is_evaluated_as_it_is(semseg_file, tmp_path, capsys, cityscapes_root):
    out = tmp_path / "out.pt"
    assert main(["semseg", str(semseg_file), str(out)]) == 0
    told = capsys.readouterr().out
    assert "left out: nothing" in told
    settings = yaml.safe_load(told[told.index("model:") : told.index("then:")])["model"]
    assert settings["stem"] == "semseg"
    assert settings["ppm_norm"] == "batch"
    assert settings["align_corners"] is True
    config, trainer, step = restore(out)
    assert config.eval.align_corners
    assert config.model == PSPNetConfig(**settings, weights="none")
    results = evaluate_runs([out], "last", [f"data.val.root={cityscapes_root}", "data.workers=0"], None)
    assert 0 <= results[0]["scores"]["mIoU"] <= 100
    (evaluation,) = tmp_path.glob("evaluation_*.json")
    report([evaluation], "supervised", tmp_path / "runs", tmp_path / "report", 1)
    own, *_ = csv.DictReader((tmp_path / "report/table.csv").open())
    assert (own["method"], own["weights"], own["kind"]) == (out.stem, out.name, "own")
    assert float(own["mIoU"]) == pytest.approx(results[0]["scores"]["mIoU"])


def test_a_segmenter_without_an_auxiliary_head_is_restored(tmp_path, capsys):
    state = {f"module.{name}": value for name, value in randomise(ReferenceLextal(18)).state_dict().items()}
    torch.save(state, tmp_path / "PSPNet_20")
    out = tmp_path / "out.pt"
    assert main(["lextal", str(tmp_path / "PSPNet_20"), str(out)]) == 0
    told = capsys.readouterr().out
    settings = yaml.safe_load(told[told.index("model:") : told.index("then:")])["model"]
    assert settings["decoder"] == "progressive"
    config, trainer, _ = restore(out)
    assert config.model == PSPNetConfig(**settings, weights="none")
    assert (config.model.aux, config.model.presence, config.model.head_channels) == (False, True, 1024)
    assert trainer.predict(torch.rand(1, 3, 64, 96)).shape == (1, NUM_CLASSES, 64, 96)
    assert "150 classes" in refused_of(state, tmp_path, capsys)


def refused_of(state, tmp_path, capsys) -> str:
    torch.save(state | {"module.final.0.weight": torch.zeros(150, 64, 1, 1)}, tmp_path / "changed")
    return refused(capsys, "lextal", tmp_path / "changed", tmp_path / "out2.pt")


def test_backbone_brings_its_input_statistics(tmp_path, capsys):
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "in.pth")
    out = tmp_path / "out.pth"
    assert main(["caffe", str(tmp_path / "in.pth"), str(out)]) == 0
    assert "left out: 2: fc.weight, fc.bias" in capsys.readouterr().out
    net = PSPNet(
        PSPNetConfig(backbone="resnet18", stem="caffe", contract_dilation=False, weights=str(out)), NUM_CLASSES
    )
    assert net.mean.tolist() == pytest.approx(CAFFE_MEAN)
    assert net.std.tolist() == pytest.approx([1 / 255] * 3)
    own, foreign = (torch.load(tmp_path / f, weights_only=True)["conv1.weight"] for f in ("out.pth", "in.pth"))
    assert torch.equal(own, foreign.flip(1))


def test_what_does_not_fit_is_named(semseg_file, tmp_path, capsys):
    out = tmp_path / "out.pt"
    saved = torch.load(semseg_file, weights_only=True)

    def again(change) -> str:
        state = dict(saved["state_dict"])
        change(state)
        torch.save({"state_dict": state}, tmp_path / "changed.pth")
        return refused(capsys, "semseg", tmp_path / "changed.pth", out)

    assert "cls.0.weight" in again(lambda s: s.pop("module.cls.0.weight"))
    assert "decoder.weight" in again(lambda s: s.update({"module.decoder.weight": torch.zeros(1)}))
    assert "150 classes" in again(lambda s: s.update({"module.cls.4.weight": torch.zeros(150, 512, 1, 1)}))
    shape = torch.zeros(64, 3, 5, 5)
    assert "(64, 3, 5, 5)" in again(lambda s: s.update({"module.layer0.0.weight": shape}))
    assert "names are not of this kind" in refused(capsys, "torchvision", semseg_file, out)
    assert "model.foo" in refused(capsys, "semseg", semseg_file, out, "model.foo=1")
    (tmp_path / "file").touch()
    assert "file" in refused(capsys, "semseg", semseg_file, tmp_path / "file/out.pt")
    assert "a folder; name the file" in refused(capsys, "semseg", semseg_file, tmp_path)
    assert not out.exists()


def test_files_that_hold_no_state_dict(tmp_path, capsys):
    (tmp_path / "text.pth").write_text(json.dumps({}))
    assert "text.pth" in refused(capsys, "mmseg", tmp_path / "text.pth", tmp_path / "out.pt")
    for name, data in (("empty.pth", b""), ("words.pth", b"hello world\n"), ("zip.pth", b"PK\3\4" + bytes(50))):
        (tmp_path / name).write_bytes(data)
        said = refused(capsys, "torchvision", tmp_path / name, tmp_path / "out.pt")
        assert f"{name}: cannot be read as plain tensors" in said
        assert said.count("\n") == 1
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pth")
    assert "no state dict" in refused(capsys, "torchvision", tmp_path / "numbers.pth", tmp_path / "out.pt")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "no state dict" in refused(capsys, "mmseg", tmp_path / "list.pth", tmp_path / "out.pt")
    assert "missing.pth" in refused(capsys, "mmseg", tmp_path / "missing.pth", tmp_path / "out.pt")
    assert "only model.*" in refused(capsys, "mmseg", tmp_path / "list.pth", tmp_path / "out.pt", "run.steps=1")
