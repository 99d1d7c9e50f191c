"""Commands as a user types them: what they print, what they leave, and one clear line with exit code 2."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import METHOD_FILES, REPOSITORY, overrides, tiny

from da import trial
from da.cli import main
from da.engine import checkpoint
from da.evaluation.infer import EvalConfig
from da.trainers import base

MINI = str(REPOSITORY / "experiments/mini/source_only.yaml")


@pytest.fixture
def command(gta5_root, cityscapes_root, tmp_path):
    """`train` on the fixtures, with further arguments."""
    return ["train", MINI, *overrides(gta5_root, cityscapes_root), "--runs", str(tmp_path / "runs")]


def fails(capsys, *arguments: str) -> str:
    """The one error line of a command that must end with exit code 2."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("error: ")
    return error.removeprefix("error: ").strip()


def test_train_evaluate_and_call_again(command, tmp_path, capsys):
    assert main(command) == 0
    run = tmp_path / "runs/mini/source_only-seed0"
    names = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "tensorboard", "summary.json"}
    assert names <= {p.name for p in run.iterdir()}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["protocol"] == EvalConfig(classes=19).model_dump(mode="json")
    assert summary["step"] == 4
    assert summary["checkpoint"] == "last"
    assert "mIoU" in capsys.readouterr().out

    began = time.monotonic()
    assert main(command) == 0
    assert time.monotonic() - began < 3
    assert "is finished" in capsys.readouterr().out

    figure = tmp_path / "compare.png"
    assert main(["evaluate", str(run), str(run / "checkpoints/best.pt"), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "best" in out
    assert figure.exists()
    again = json.loads((run / "evaluation_last.json").read_text())
    same = {k: v for k, v in again["scores"].items() if v == v}
    assert same == pytest.approx(summary["scores"])


def test_tensorboard_holds_the_promised_tags(command, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(command) == 0
    board = EventAccumulator(str(tmp_path / "runs/mini/source_only-seed0/tensorboard"))
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    assert {
        "loss/seg",
        "rate/segmenter/backbone",
        "speed/images_per_second",
        "speed/waiting_for_data",
        "val/mIoU",
        "val/IoU/road",
    } <= scalars
    assert set(board.Tags()["images"]) == {"val/examples", "train/examples"}
    assert [e.step for e in board.Scalars("loss/seg")] == [1, 2, 3, 4]


def test_changed_config_is_refused_with_the_difference(command, tmp_path, capsys):
    assert main(command) == 0
    error = fails(capsys, *command, "method.lr=0.5")
    assert "method.lr: 0.05 -> 0.5" in error
    assert "name=" in error
    assert main([*command, "data.workers=1"]) == 0  # changes the speed, not the result
    path = tmp_path / "runs/mini/source_only-seed0/config.yaml"
    older = yaml.safe_load(path.read_text())
    del older["run"]["compile"], older["eval"]["resize"]
    path.write_text(yaml.safe_dump(older))
    assert main(command) == 0  # keys that came later have their default in an older run


@pytest.fixture
def unfinished(command, tmp_path, monkeypatch):
    """A run that was stopped after its first update; with the command that goes on."""
    with monkeypatch.context() as long_ago:
        long_ago.setenv("DA_STARTED", "0")
        assert main([*command, "run.time_limit=1s"]) == 75
    return command, tmp_path / "runs/mini/source_only-seed0"


def test_what_an_unfinished_run_may_change_leaves_its_result_as_it_is(
    unfinished, gta5_root, cityscapes_root, tmp_path, capsys
):
    command, run = unfinished
    assert main([*command, "name=straight"]) == 0
    for root in (gta5_root, cityscapes_root):
        root.rename(root.with_name(f"moved_{root.name}"))
    roots = [f"data.source.root={tmp_path}/moved_gta5", f"data.val.root={tmp_path}/./moved_cityscapes"]
    elsewhere = [*command, *roots, "data.target.root=/nowhere"]
    shown = ["run.val_every=1", "run.save_every=3", "run.log_every=3", "run.keep_every=3", "run.pictures=1"]
    assert main([*elsewhere, "data.workers=1", "run.device=auto", "run.time_limit=1d", *shown]) == 0
    assert "continuing from step 1" in capsys.readouterr().out
    a, b = (checkpoint.load(r / "checkpoints/last.pt") for r in (run, run.with_name("straight-seed0")))
    assert a["step"] == b["step"]
    assert all(torch.equal(v, b["modules"]["segmenter"][k]) for k, v in a["modules"]["segmenter"].items())
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["source"]["root"] == f"{tmp_path}/moved_gta5"
    assert main(elsewhere) == 0  # finished: left alone, wherever the data are
    assert "is finished" in capsys.readouterr().out


def test_what_would_change_the_result_of_an_unfinished_run_is_refused(unfinished, gta5_root, tmp_path, capsys):
    command, run = unfinished
    shutil.copytree(gta5_root, tmp_path / "other")
    (tmp_path / "other/images/00003.png").unlink()
    other = f"data.source.root={tmp_path}/other"
    error = fails(capsys, *command, other)
    assert "data.source was 6 images, 00001 to 00006" in error
    assert "now 5 images, 00001 to 00006" in error
    (tmp_path / "other/images/00006.png").rename(tmp_path / "other/images/00007.png")
    assert "now 5 images, 00001 to 00007" in fails(capsys, *command, other)
    assert "data.source: /nowhere: no images" in fails(capsys, *command, "data.source.root=/nowhere")
    for setting in (
        "run.clip_norm=1.0",
        "run.channels_last=false",
        "data.source.flip=false",
    ):
        assert f"{setting.partition('=')[0]}: " in fails(capsys, *command, setting)
    for folder in ("images", "labels"):
        shutil.copy(gta5_root / folder / "00001.png", gta5_root / folder / "00009.png")
    assert "now 7 images, 00001 to 00009" in fails(capsys, *command)  # at the same place
    for folder in ("images", "labels"):
        (gta5_root / folder / "00009.png").unlink()
    inputs = json.loads((run / "inputs.json").read_text())
    assert inputs["data.target"] == "not read"
    (run / "inputs.json").write_text("{}")  # as an older run
    assert "data.source.root" in fails(capsys, *command, other)
    assert main(command) == 0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("summary.json", "", "damaged; delete it, and the same command writes it again"),
        ("summary.json", '{"run": 1}', "damaged"),
        ("inputs.json", "[", "damaged; delete it"),
        ("inputs.json", "[]", "damaged; delete it"),
        ("config.yaml", "[]", "damaged; restore it"),
        ("config.yaml", "a: [", "not valid YAML"),
        ("config.yaml", "run: 3", "run.steps: (absent) -> 4"),
    ],
)
def test_damaged_files_of_a_run_are_named(unfinished, name, text, said, capsys):
    command, run = unfinished
    (run / name).write_text(text)
    error = fails(capsys, *command)
    assert said in error
    assert "config.yaml" in error or name in error or str(run) in error


def test_a_run_whose_metrics_are_gone_says_so(command, tmp_path, capsys):
    assert main(command) == 0
    run = tmp_path / "runs/mini/source_only-seed0"
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl: the validation is no longer in it" in fails(capsys, *command)


def test_automatic_settings_are_recorded_and_kept_on_another_machine(command, tmp_path, monkeypatch, capsys):
    automatic = [*command, "run.precision=auto", "run.channels_last=auto", "run.steps=2", "run.save_every=1"]
    tried = []
    monkeypatch.setattr(trial, "bf16_is_worth_a_trial", lambda: True)
    monkeypatch.setattr(trial, "fastest", lambda run, candidates, lead: (tried.extend(candidates), candidates[-1])[1])
    assert main(automatic) == 0
    assert [(c["channels_last"], c["precision"]) for c in tried] == list(product((True, False), ("fp32", "bf16")))
    run = tmp_path / "runs/mini/source_only-seed0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["run"]["precision"], config["run"]["channels_last"]) == ("bf16", False)

    (run / "summary.json").unlink()
    monkeypatch.setattr(trial, "fastest", lambda *_: pytest.fail("tried again"))
    assert main(automatic) == 0
    assert yaml.safe_load((run / "config.yaml").read_text()) == config
    assert "run.precision: bf16 -> fp32" in fails(capsys, *automatic, "run.precision=fp32")


@pytest.mark.parametrize("method", base.methods())
def test_every_method_can_be_tried(method, gta5_root, cityscapes_root):
    config = tiny(METHOD_FILES[method], gta5_root, cityscapes_root)
    update = trial._trial(config, [True, False])
    for channels_last in (True, False):
        update({"channels_last": channels_last, "precision": "bf16"})


def test_unknown_key_wrong_type_and_scientific_notation(command, capsys):
    assert "did you mean 'steps'" in fails(capsys, *command, "run.stepz=4")
    assert "method.lr" in fails(capsys, *command, "method.lr=fast")
    assert "did you mean 'source_only'" in fails(capsys, *command, "trainer=source_onli")
    assert main([*command, "method.lr=1e-4"]) == 0


def test_unset_empty_and_incomplete_roots(command, capsys, monkeypatch, tmp_path, gta5_root):
    monkeypatch.delenv("GTA5_ROOT", raising=False)
    full = str(REPOSITORY / "experiments/gta2city/source_only.yaml")
    assert "GTA5_ROOT is not set" in fails(capsys, "train", full)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails(capsys, *command, f"data.source.root={tmp_path / 'empty'}")
    (gta5_root / "labels/00003.png").unlink()
    assert "00003" in fails(capsys, *command)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_files_met_in_training_are_named(command, capsys, gta5_root, workers):
    broken = gta5_root / "images/00002.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert "00002.png" in fails(capsys, *command, f"data.workers={workers}")


def test_label_with_unknown_ids(command, capsys, gta5_root):
    Image.fromarray(np.full((54, 96), 77, np.uint8)).save(gta5_root / "labels/00001.png")
    error = fails(capsys, *command)
    assert "00001.png" in error
    assert "77" in error


def test_checkpoints_that_do_not_fit(command, capsys, tmp_path):
    assert main(command) == 0
    run = tmp_path / "runs/mini/source_only-seed0"
    other = [*command, "model.backbone=resnet34", "name=other", f"init={run}"]
    error = fails(capsys, *other)
    assert "last.pt" in error
    assert "backbone.layer1.2.conv1.weight" in error
    last = run / "checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    assert "last.pt: corrupt" in fails(capsys, "evaluate", str(run))
    assert "no `last` checkpoint" in fails(capsys, "evaluate", str(tmp_path))


def test_a_backbone_is_no_run_to_start_from(command, capsys, tmp_path):
    checkpoint.save(tmp_path / "backbone.pt", {"conv1.weight": torch.zeros(1)})
    assert "holds no segmenter" in fails(capsys, *command, f"init={tmp_path / 'backbone.pt'}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["name=../../x"], "name: '../../x' names no folder below --runs"),
        (["name=a/b"], "name: 'a/b' names no folder"),
        (["experiment=/tmp"], "experiment: '/tmp' names no folder"),
        (["experiment=.."], "experiment: '..' names no folder"),
        (['name="a\\nb"'], "names no folder"),
        (["name="], "name: input should be a valid string"),
        ([f"seed={2**64}"], "seed: a whole number of more than 64 bits"),
        (["seed=010"], "seed: input should be a valid integer"),
        (["--check", "--processes", "0"], "--processes 0: give at least 1"),
        (["run.time_limit=" + "9" * 400 + "h"], "run.time_limit"),
    ],
)
def test_settings_that_name_nothing(settings, said, command, capsys):
    assert said in fails(capsys, *command, *settings)


def test_run_can_start_from_another_run(command, capsys, tmp_path):
    assert main(command) == 0
    run = tmp_path / "runs/mini/source_only-seed0"
    assert main([*command, "name=second", f"init={run}", "run.steps=1", "method.lr=0.0"]) == 0
    a, b = (
        torch.load(r / "checkpoints/last.pt", weights_only=True)["modules"]["segmenter"]
        for r in (run, tmp_path / "runs/mini/second-seed0")
    )
    assert all(torch.equal(a[k], b[k]) for k in a if k.endswith("weight"))


@pytest.mark.slow
def test_a_run_made_from_older_weights_is_not_taken_for_finished(command, capsys, tmp_path, gta5_root):
    """Neither from a segmenter nor from translations that have been made anew; without them it may stay."""
    (gta5_root / "translation.json").write_text('{"weights": "old"}')
    assert main(command) == 0
    run = tmp_path / "runs/mini/source_only-seed0"
    second = [*command, "name=second", f"init={run}", "run.steps=1"]
    assert main(second) == 0
    assert main(second) == 0
    shutil.rmtree(run)
    assert main(second) == 0
    assert main([*command, "method.lr=0.01"]) == 0
    error = fails(capsys, *second)
    assert f"second-seed0 was made from another state of init {run} (weights " in error
    assert "delete the folder" in error
    (gta5_root / "translation.json").write_text('{"weights": "new"}')
    assert f"another state of data.source.root {gta5_root} (weights old, now new)" in fails(
        capsys, *command, "method.lr=0.01"
    )
    (tmp_path / "runs/mini/second-seed0/inputs.json").unlink()  # as an older run
    assert main(second) == 0


def test_a_full_disk_while_translating_speaks_of_no_checkpoint(capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "out/images/00001.png")

    monkeypatch.setattr("da.translate.translate", full)
    error = fails(capsys, "translate", "run", "out")
    assert "out/images/00001.png: No space left on device; what was saved before is kept" in error
    assert "checkpoint" not in error


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_network(command, tmp_path, monkeypatch):
    """Traced and compiled by torch, but with its plain operations behind, which need no compiler and few seconds."""
    assert main([*command, "name=plain"]) == 0
    calls = []
    compile_ = torch.compile

    def backend(graph, _):
        calls.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend=backend, **options))
    assert main([*command, "name=compiled", "run.compile=true"]) == 0
    assert calls
    weights = (tmp_path / f"runs/mini/{name}-seed0/checkpoints/last.pt" for name in ("plain", "compiled"))
    a, b = (torch.load(path, weights_only=True)["modules"]["segmenter"] for path in weights)
    for key in a:
        torch.testing.assert_close(b[key], a[key])


def test_a_run_needs_no_git(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command) == 0
    environment = tmp_path / "runs/mini/source_only-seed0/environment.json"
    assert json.loads(environment.read_text())["commit"] is None


def test_settings_that_cannot_work(command, capsys):
    assert "data.batch_size" in fails(capsys, *command, "run.accumulate=3")
    assert "run.log_every" in fails(capsys, *command, "run.log_every=0")
    if not torch.cuda.is_available():
        assert "run.device" in fails(capsys, *command, "run.device=cuda")


def test_check_finds_mistakes_and_trains_nothing(command, tmp_path, capsys):
    _, *words, runs, folder = command
    check = ["train", "--check", runs, folder, *words]
    assert main([*check, "seed=3", ",", MINI, "name=other"]) == 0
    names = ("source_only-seed3", "other-seed0")
    assert capsys.readouterr().out.split() == [str(tmp_path / "runs/mini" / name) for name in names]
    assert "did you mean 'steps'" in fails(capsys, *check, ",", MINI, "run.stepz=4")
    assert not (tmp_path / "runs").exists()


def test_a_date_is_a_fine_name(command, tmp_path):
    assert main([*command, "name=2024-01-01"]) == 0
    assert (tmp_path / "runs/mini/2024-01-01-seed0/summary.json").exists()


def test_evaluate_changes_the_protocol_and_nothing_else(command, capsys, tmp_path):
    assert main(command) == 0
    run = tmp_path / "runs/mini/source_only-seed0"
    assert "seed" in fails(capsys, "evaluate", str(run), "seed=7")
    assert ".png" in fails(capsys, "evaluate", str(run), "--figure", "compare")
    assert "run folder" in fails(capsys, "evaluate", "eval.classes=16")
    assert main(["evaluate", str(run), "eval.classes=16", "eval.input_size=[64, 32]"]) == 0
    found = json.loads((run / "evaluation_last_classes=16+input_size=-64-32.json").read_text())
    changed = {"input_size": [64, 32], "classes": 16}
    assert found["protocol"] == EvalConfig(classes=19).model_dump(mode="json") | changed
    assert found["scores"]["mIoU"] == found["scores"]["mIoU16"]


def test_evaluation_keeps_the_name_of_the_weights(command, tmp_path):
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    assert main([*command, f"model.weights={tmp_path / 'r18.pth'}"]) == 0
    run = tmp_path / "runs/mini/source_only-seed0"
    assert main(["evaluate", str(run)]) == 0
    for name in ("summary.json", "evaluation_last.json"):
        assert json.loads((run / name).read_text())["weights"] == str(tmp_path / "r18.pth")


def test_data_check_exit_codes(capsys, gta5_root):
    assert main(["data", "check", str(gta5_root), "--as", "gta5"]) == 0
    (gta5_root / "labels/00003.png").unlink()
    assert main(["data", "check", str(gta5_root), "--as", "gta5"]) == 2
    assert "00003" in capsys.readouterr().out


@pytest.mark.slow
def test_an_error_in_the_main_process_ends_the_workers(command):
    words = [sys.executable, "-m", "da", *command, "data.workers=2", "run.steps=1000"]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert any(line.startswith("step 1/") for line in process.stdout)
        process.stdout.close()
        assert "BrokenPipeError" in process.stderr.read()
        process.wait(20)


def test_help_answers_without_torch():
    code = "import sys; from da.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_help_shows_the_pattern_of_a_sequence_as_it_is_typed(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "(frames/%06d.png)" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_score_the_network_they_save(command, tmp_path):
    """Each process gathers batch statistics of its own images; what is scored and saved is their mean."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "da"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/mini/source_only-seed0"
    trained = json.loads((run / "summary.json").read_text())["scores"]
    assert main(["evaluate", str(run)]) == 0
    alone = json.loads((run / "evaluation_last.json").read_text())["scores"]
    assert alone == pytest.approx(trained, rel=1e-6)


def test_a_validation_without_labels_is_refused_before_training(command, capsys, cityscapes_root):
    for path in cityscapes_root.glob("gtFine/val/*/*_labelIds.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)  # `unlabeled`
    assert "no pixel of cityscapes val has a label" in fails(capsys, *command)


@pytest.mark.slow
def test_a_validation_without_the_classes_to_score_is_refused(command, capsys, cityscapes_root):
    for path in cityscapes_root.glob("gtFine/val/*/*_labelIds.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 12)).save(path)  # `wall`
    assert "eval.classes: none of these 13 classes is in the labels" in fails(capsys, *command, "eval.classes=13")
