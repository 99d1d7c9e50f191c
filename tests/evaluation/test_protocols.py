"""Named protocols, exported predictions, and the official evaluator's figures."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from city import CITY, NUM_CLASSES, TRAIN_TO_CITYSCAPES
from PIL import Image
from tiny import tiny

from da.cli import main
from da.engine import checkpoint
from da.evaluate import evaluate_runs, named_protocols
from da.evaluation import official, visualize
from da.evaluation.metrics import ConfusionMatrix, mean_iou, official_mean_iou
from da.run import train


@pytest.fixture
def run(tmp_path, gta5_root, cityscapes_root):
    return train(tiny("source_only", gta5_root, cityscapes_root, "eval.classes=13"), tmp_path / "runs")


def test_every_shipped_protocol_is_valid():
    found = named_protocols(["adaptsegnet", "fda", "dacs", "full_resolution", "hrda"])
    assert found["fda"].eval.input_size == (1344, 576)
    assert found["dacs"].eval.label_size == (1024, 512)
    assert found["hrda"].eval.sliding.crop == (1024, 1024)


def test_one_command_scores_under_several_protocols(run, capsys):
    protocols = ["--protocol", "hrda", "dacs", "eval.flip=true"]
    assert main(["evaluate", str(run), *protocols, "eval.input_size=[64, 32]"]) == 0
    told = capsys.readouterr().out
    assert "NOT COMPARABLE" in told
    assert "protocol dacs: assumed or done otherwise here: align_corners true" in told
    for name in (
        "hrda+flip=true+input_size=-64-32",
        "dacs+flip=true+input_size=-64-32",
    ):  # no longer what the authors measured
        found = json.loads((run / f"evaluation_last_{name}.json").read_text())
        assert found["protocol_name"] == name
        assert found["published_checkpoint"]
        assert found["checkpoint"] == "last"
        assert found["checkpoint_file"].endswith("last.pt")
        assert found["seed"] == 0
        assert "commit" in found
        assert found["protocol"]["input_size"] == [64, 32]  # the command line wins
        assert found["protocol"]["flip"] is True
        assert found["protocol"]["classes"] == 13  # not named by the protocol: the run's own
    labelled = np.sum(found["confusion"])
    assert found["protocol"]["label_size"] == [1024, 512]
    assert labelled > 3 * 96 * 48  # counted at the label size of dacs
    capsys.readouterr()
    for name in ("nobody", "test_server"):  # the latter: of published rows only
        assert main(["evaluate", str(run), "--protocol", name]) == 2
        assert "known: adaptsegnet" in capsys.readouterr().err


def test_exported_predictions_hold_the_scores(run, tmp_path, cityscapes_root):
    (result,) = evaluate_runs([run], "last", [], export=tmp_path / "out")
    folder = tmp_path / "out" / run.name
    matrix = np.zeros((256, 256), np.int64)
    files = sorted((folder / "labelIds").iterdir())
    assert [p.name for p in files][0] == "frankfurt_000000_000019_labelIds.png"
    for path in files:
        stem = path.name.removesuffix("_labelIds.png")
        (label,) = (cityscapes_root / "gtFine/val").glob(f"*/{stem}_gtFine_labelIds.png")
        np.add.at(matrix, (np.asarray(Image.open(label)), np.asarray(Image.open(path))), 1)
        assert (folder / "color" / f"{stem}_color.png").exists()
    ids = TRAIN_TO_CITYSCAPES[:NUM_CLASSES]
    assert matrix[np.ix_(ids, ids)].tolist() == result["confusion"]


def test_an_export_is_not_mixed_with_another(run, tmp_path, capsys):
    command = ["evaluate", str(run), "--export", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(command) == 2
    assert "holds an earlier export" in capsys.readouterr().err
    assert main(["evaluate", str(run), str(run), "--export", str(tmp_path / "new")]) == 2
    assert "two of the runs" in capsys.readouterr().err


@pytest.mark.parametrize("labels", ["absent", "ignored"])
def test_a_test_split_is_exported_and_the_own_scores_are_kept(labels, run, tmp_path, cityscapes_root, capsys):
    (own,) = evaluate_runs([run], "last", [])
    (cityscapes_root / "leftImg8bit/val").rename(cityscapes_root / "leftImg8bit/test")
    (cityscapes_root / "gtFine/val").rename(cityscapes_root / "gtFine/test")
    for path in (cityscapes_root / "gtFine/test").glob("*/*"):
        if labels == "absent":
            path.unlink()
        else:
            Image.fromarray(np.zeros((48, 96), np.uint8)).save(path)
    command = ["evaluate", str(run), "data.val.split=test"]
    assert main([*command, "--export", str(tmp_path / "out"), "--figure", str(tmp_path / "figure.png")]) == 0
    assert "no pixel of cityscapes test has a label" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / run.name / "labelIds").iterdir())) == 3
    assert (tmp_path / "figure.png").exists()
    assert [path.name for path in run.glob("evaluation_*")] == ["evaluation_last.json"]
    assert json.loads((run / "evaluation_last.json").read_text()) == own
    if labels == "absent":
        assert main(command) == 2
        assert "--export" in capsys.readouterr().err


def test_a_result_on_other_images_has_a_name_of_its_own(run, cityscapes_root):
    (own,) = evaluate_runs([run], "last", [])
    moved = cityscapes_root.rename(cityscapes_root.with_name("fog"))
    (other,) = evaluate_runs([run], "last", ["data.val.split=train", f"data.val.root={moved}"])
    (path,) = run.glob("evaluation_last_*fog_train.json")
    assert json.loads(path.read_text()) == other
    assert json.loads((run / "evaluation_last.json").read_text()) == own


def test_results_name_the_images_they_were_measured_on(run, cityscapes_root):
    stored = json.loads((run / "summary.json").read_text())["images"]
    (result,) = evaluate_runs([run], "last", [])
    assert result["images"] == stored
    labels = sorted((cityscapes_root / "gtFine/val").glob("*/*_labelIds.png"))
    assert stored["count"] == len(labels)
    assert tuple(stored["size"]) == Image.open(labels[0]).size
    for part in ("gtFine", "leftImg8bit"):
        for path in sorted((cityscapes_root / part / "val").glob("*/*"))[:1]:
            path.unlink()
    (fewer,) = evaluate_runs([run], "last", [])
    assert fewer["images"]["count"] == stored["count"] - 1
    assert fewer["images"]["hash"] != stored["hash"]


def test_other_pictures_under_the_same_names_are_other_images(run, cityscapes_root):
    (own,) = evaluate_runs([run], "last", [])
    for path in (cityscapes_root / "leftImg8bit/val").glob("*/*"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    (inverted,) = evaluate_runs([run], "last", [])
    assert inverted["images"]["hash"] != own["images"]["hash"]


def test_no_setting_replaces_a_result_under_another(run):
    settings = ([], ["eval.flip=true"], ["eval.flip=false"], ["run.precision=bf16"])
    found = [evaluate_runs([run], "last", one)[0] for one in settings]
    files = {path.name: json.loads(path.read_text()) for path in run.glob("evaluation_*")}
    names = ("evaluation_last", "evaluation_last_flip=true", "evaluation_last_flip=false", "evaluation_last_bf16")
    assert files == {f"{name}.json": result for name, result in zip(names, found)}
    assert [result["precision"] for result in found] == ["fp32", "fp32", "fp32", "bf16"]


def test_a_file_outside_a_run_folder_is_called_by_its_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "checkpoints/last.pt").rename("psp.pt")
    (result,) = evaluate_runs([Path("psp.pt")], "last", [], export=tmp_path / "out")
    assert result["run"] == "psp"
    assert (tmp_path / "out/psp/labelIds").is_dir()


def test_scores_that_are_no_numbers_are_refused(run, capsys):
    path = run / "checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    state["modules"]["segmenter"]["cls.4.bias"].fill_(math.nan)
    checkpoint.save(path, state)
    assert main(["evaluate", str(run)]) == 2
    assert "not finite" in capsys.readouterr().err


def test_official_scores_agree(run, capsys):
    pytest.importorskip("cityscapesscripts")
    assert main(["evaluate", str(run), "--official"]) == 0
    assert "cityscapesscripts: mIoU" in capsys.readouterr().out
    found = json.loads((run / "evaluation_last.json").read_text())
    assert found["official_mIoU"] == pytest.approx(official_mean_iou(np.array(found["confusion"])), abs=1e-9)


@pytest.mark.parametrize("setting", ["protocol", "setting", "split"])
def test_what_the_official_evaluator_cannot_score_is_refused_first(setting, run, cityscapes_root, capsys, monkeypatch):
    monkeypatch.setattr(official, "evaluator", lambda: None)
    words = {
        "protocol": ["eval.input_size=[64, 32]", "--protocol", "hrda", "dacs"],
        "setting": ["eval.label_size=[48, 24]"],
        "split": ["data.val.split=test", "--export", str(run / "out")],
    }
    (cityscapes_root / "leftImg8bit/train").rename(cityscapes_root / "leftImg8bit/test")
    assert main(["evaluate", str(run), "--official", *words[setting]]) == 2
    assert "--official" in capsys.readouterr().err
    assert not list(run.glob("evaluation_*"))


def test_official_rule_for_classes_without_labels(tmp_path):
    """A predicted class without labels is a zero for them and left out here; never seen, it is left out by both."""
    pytest.importorskip("cityscapesscripts")
    label, prediction = np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8)
    label[:, 4:], prediction[:, 4:], prediction[0, 0] = 10, 10, 14
    visualize.save_labels(tmp_path / "prediction.png", prediction, CITY)
    Image.fromarray(TRAIN_TO_CITYSCAPES[label]).save(tmp_path / "label.png")
    found = official.score([tmp_path / "prediction.png"], [tmp_path / "label.png"])
    matrix = ConfusionMatrix(NUM_CLASSES)
    matrix.add(torch.from_numpy(label), torch.from_numpy(prediction))
    counts = matrix.counts.numpy()
    assert 100 * found.mean == pytest.approx(100 * (15 / 16 + 1 + 0) / 3)
    assert official_mean_iou(counts) == pytest.approx(100 * found.mean)
    assert mean_iou(counts) == pytest.approx(100 * (15 / 16 + 1) / 2)
    assert any("classes without labels" in line for line in official.compare(found, counts))
    counts[0, 0] -= 1
    with pytest.raises(RuntimeError, match="cityscapesscripts finds"):
        official.compare(found, counts)


def test_missing_evaluator_is_one_line(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation", None)
    assert main(["evaluate", str(run), "--official"]) == 2
    assert "pip install cityscapesscripts" in capsys.readouterr().err
