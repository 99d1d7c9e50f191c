"""A translated data set is an ordinary data root, whole or not there."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from city import CITY
from conftest import save_palette_png, save_png
from PIL import Image
from tiny import REPOSITORY, tiny

import da.translate
from da.cli import main
from da.config import UserError
from da.data import gta5
from da.data.check import check_root
from da.data.loaders import plain_images
from da.engine import checkpoint, lock
from da.engine.stop import StopRequests
from da.nets.generator import quantise
from da.run import make_stepper, restore, train
from da.translate import translate

SMALL = (
    "method.blocks=1",
    "method.width=8",
    "run.steps=1",
    "data.source.size=[40, 36]",
    "data.source.crop=[36, 32]",
)


@pytest.fixture
def run(tmp_path, gta5_root, cityscapes_root):
    return train(tiny("cycada_pixel", gta5_root, cityscapes_root, *SMALL), tmp_path / "runs")


def test_gives_a_data_root_with_the_sources_names_sizes_and_labels(run, tmp_path, gta5_root):
    out = tmp_path / "translated"
    translate(run, out, (), batch=2, agreement=True)
    assert not check_root(out, "gta5", CITY).fatal
    before, after = gta5.index(gta5_root, "all"), gta5.index(out, "all")
    assert [s.name for s in before] == [s.name for s in after]
    for old, new in zip(before, after):
        with Image.open(old.image) as a, Image.open(new.image) as b:
            assert a.size == b.size
            assert not np.array_equal(np.asarray(a.convert("RGB")), np.asarray(b))
        assert np.array_equal(gta5.read_label(old.label, CITY), gta5.read_label(new.label, CITY))
    assert json.loads((out / "translation.json").read_text())["step"] == 1


def test_labels_are_links_and_split_files_come_along(tmp_path, gta5_root, cityscapes_root):
    texts = {"list.txt": "00001\n", "lists/train.txt": "00004\n00002\n"}
    for name, text in (texts | {"images.zip": "large"}).items():
        (gta5_root / name).parent.mkdir(exist_ok=True)
        (gta5_root / name).write_text(text)
    config = tiny("cycada_pixel", gta5_root, cityscapes_root, *SMALL, "data.source.split=lists/train.txt")
    run, out = train(config, tmp_path / "runs"), tmp_path / "translated"
    (tmp_path / "translated.partial").mkdir()
    (tmp_path / "translated.partial/translation.json.writing").touch()  # as a call leaves that was killed at once
    translate(run, out, (), batch=4, agreement=False)
    before, after = (gta5.index(root, "lists/train.txt") for root in (gta5_root, out))
    assert [sample.name for sample in after] == ["00004", "00002"]
    for old, new in zip(before, after):
        assert new.label.is_symlink()
        assert new.label.resolve() == old.label.resolve()
    assert {name: (out / name).read_text() for name in texts} == texts
    assert {path.name for path in out.iterdir()} == {"images", "labels", "lists", "list.txt", "translation.json"}


def test_agreement_is_that_of_the_whole_stored_set_also_later(run, tmp_path, capsys):
    out = tmp_path / "translated"
    translate(run, out, (), batch=3, agreement=True)
    first = capsys.readouterr().out
    translate(run, out, (), batch=3, agreement=True)
    again = capsys.readouterr().out
    assert "label agreement" in first
    assert first.splitlines()[-1] == again.splitlines()[-1]


@pytest.mark.slow
def test_sigkill_and_sigusr1_lose_no_finished_picture(run, tmp_path, gta5_root):
    """Ended in mid-work by either, called again: the pictures of a call that ran through."""
    translate(run, tmp_path / "straight", (), batch=1, agreement=False)
    out = tmp_path / "translated"
    slow = "import time, da.translate as t; f = t._at_training_size; "
    slow += "t._at_training_size = lambda *a: (time.sleep(0.5), f(*a))[1]; "
    call = "import sys, da.cli; sys.exit(da.cli.main(sys.argv[1:]))"
    for number in (signal.SIGKILL, signal.SIGUSR1):
        command = [sys.executable, "-c", slow + call, "translate", str(run), str(out), "--batch", "1"]
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        already, until = pictures(out), time.monotonic() + 60
        while pictures(out) == already:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == (75 if number == signal.SIGUSR1 else -number)
        assert not out.exists()
    translate(run, out, (), batch=1, agreement=False)
    for sample in gta5.index(gta5_root, "all"):
        name = sample.image.relative_to(gta5_root)
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def pictures(out):
    return {path.name for path in out.with_name(out.name + ".partial").glob("images/0*")}


@pytest.mark.slow
def test_a_gta5_sized_picture_is_translated_in_one_piece(run, tmp_path, gta5_root, cityscapes_root):
    """The stored picture is that of one pass over the whole image: no tiles, so no seams between them."""
    pixels = np.random.default_rng(0).integers(0, 256, (66, 120, 3), np.uint8)
    image = cv2.resize(pixels, (1914, 1052), interpolation=cv2.INTER_CUBIC)
    root = tmp_path / "large"
    save_png(root / "images/00001.png", image)
    save_palette_png(root / "labels/00001.png", np.zeros((1052, 1914), np.uint8))
    out = tmp_path / "translated"
    config, trainer, _ = restore(run / "checkpoints/last.pt", ())
    stepper = make_stepper(trainer, config, torch.device("cpu"))
    own_size = config.data.source[0].model_copy(update={"size": None})
    samples = gta5.index(root, "all")
    (out / "images").mkdir(parents=True)
    with StopRequests(None) as stop:
        da.translate._translate_all(stepper, plain_images(samples, 0), own_size, root, out, 1, stop)
    with torch.no_grad():
        whole = trainer.translate(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    stored = np.asarray(Image.open(out / "images/00001.png"))
    assert np.array_equal(stored, quantise(whole)[0].permute(1, 2, 0).numpy())


def test_a_killed_call_goes_on_and_a_finished_one_is_left_alone(run, tmp_path, monkeypatch, gta5_root):
    out, plain = tmp_path / "translated", da.translate._write
    written = []

    def write(path, picture):
        if len(written) == 1:
            raise RuntimeError("killed")
        written.append(path.name)
        plain(path, picture)

    monkeypatch.setattr(da.translate, "_write", write)
    with pytest.raises(RuntimeError, match="killed"):
        translate(run, out, (), batch=1, agreement=False)
    assert not out.exists()
    monkeypatch.setattr(da.translate, "_write", lambda path, picture: (written.append(path.name), plain(path, picture)))
    translate(run, out, (), batch=1, agreement=False)
    count = len(gta5.index(gta5_root, "all"))
    assert len(written) == len(set(written)) == count
    translate(run / "checkpoints/last.pt", out, (), batch=1, agreement=False)  # the same weights by another name
    assert len(written) == count


def test_refuses_a_folder_of_something_else(run, tmp_path, gta5_root, cityscapes_root):
    out = tmp_path / "translated"
    out.mkdir()
    with pytest.raises(UserError, match="holds something else"):
        translate(run, out, (), batch=1, agreement=False)
    (out / "translation.json").write_text('{"run": ')
    with pytest.raises(UserError, match=r"translation\.json: damaged"):
        translate(run, out, (), batch=1, agreement=False)
    source_only = train(tiny("source_only", gta5_root, cityscapes_root, "run.steps=1"), tmp_path / "runs")
    with pytest.raises(UserError, match="translates no images"):
        translate(source_only, tmp_path / "other", (), batch=1, agreement=False)


@pytest.mark.slow
def test_two_calls_do_not_write_to_one_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    code = f"import pathlib, sys; from da.engine import lock; held = lock.held(pathlib.Path({str(tmp_path)!r}, "
    code += "'translated.partial')); held.__enter__(); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"in use by process {first.pid} .* or name another folder"):
            translate(run, tmp_path / "translated", (), batch=1, agreement=False)
        first.kill()


def test_data_that_were_moved_go_on_and_a_complete_set_finds_its_labels_again(run, tmp_path, monkeypatch, gta5_root):
    out, plain, written = tmp_path / "translated", da.translate._write, []

    def write(path, picture):
        written.append(path.name)
        if len(written) == 3:
            raise RuntimeError("killed")
        plain(path, picture)

    monkeypatch.setattr(da.translate, "_write", write)
    with pytest.raises(RuntimeError, match="killed"):
        translate(run, out, (), batch=1, agreement=False)
    (tmp_path / "translated.partial/images/writing-elsewhere-7-00009.png").touch()  # as a kill leaves it
    first = shutil.move(gta5_root, tmp_path / "first")
    translate(run, out, [f"data.source.root={first}"], batch=1, agreement=False)
    assert len(written) < 12
    assert [sample.name for sample in gta5.index(out, "all")] == [f"{n:05d}" for n in range(1, 7)]
    second = shutil.move(first, tmp_path / "second")
    translate(run, out, [f"data.source.root={second}"], batch=1, agreement=False)
    assert all(sample.label.exists() for sample in gta5.index(out, "all"))
    (second / "images/00006.png").unlink()
    with pytest.raises(UserError, match="delete it or name another folder"):
        translate(run, out, [f"data.source.root={second}"], batch=1, agreement=False)


def test_a_call_that_waited_for_one_that_is_now_complete(run, tmp_path, monkeypatch):
    """It held the lock of the folder under its old name; that is then no stray folder with a lock."""
    out, partial, mkdir = tmp_path / "translated", tmp_path / "translated.partial", lock.Path.mkdir

    def late(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        if path == partial and not out.exists():
            shutil.move(partial, out)

    monkeypatch.setattr(lock.Path, "mkdir", late)
    with pytest.raises(UserError, match="another call has just completed it"):
        translate(run, out, (), batch=1, agreement=False)
    assert not partial.exists()


def test_weights_and_translations_that_are_no_numbers_are_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("da.trainers.cycada_pixel.Trainer.translate", lambda self, image: image.float() * float("nan"))
    with pytest.raises(UserError, match=r"the translation of 00001, 00002 is not finite"):
        translate(run, tmp_path / "a", (), batch=2, agreement=False)
    path = run / "checkpoints/last.pt"
    state = checkpoint.load(path)
    next(iter(state["modules"]["g_st"].values())).fill_(float("nan"))
    checkpoint.save(path, state)
    exports = importlib.util.find_spec("onnxscript") is not None
    commands = [["translate", str(run), str(tmp_path / "b")], ["export", str(run), str(tmp_path / "b.onnx")]]
    for command in commands if exports else commands[:1]:
        assert main(command) == 2
        assert "last.pt: the weights of g_st are not finite" in capsys.readouterr().err


def test_says_which_step_and_takes_data_that_lie_elsewhere(run, tmp_path, gta5_root, capsys):
    (run / "summary.json").unlink()
    moved = shutil.move(gta5_root, tmp_path / "moved")
    settings = [f"data.source.root={moved}", "run.time_limit=1h"]
    translate(run, tmp_path / "translated", settings, batch=2, agreement=False)
    assert "is not finished: translating with its weights of step 1 of 1" in capsys.readouterr().out
    assert len(gta5.index(tmp_path / "translated", "all")) == 6
    with pytest.raises(UserError, match=r"method\.lr: part of the run; translate can change data\.source\.root, "):
        translate(run, tmp_path / "other", ["method.lr=1.0"], batch=2, agreement=False)


def test_nothing_is_said_of_a_segmenter_that_nobody_trained(tmp_path, gta5_root, cityscapes_root, capsys):
    alone = ("init=null", "method.lambda_sem=0", "name=cyclegan")
    run = train(tiny("cycada_pixel", gta5_root, cityscapes_root, *SMALL, *alone), tmp_path / "runs")
    out = capsys.readouterr().out
    assert out.count("its segmenter is untrained (init: null)") == 2  # at the start and at the end
    assert "mIoU19" not in out
    assert "untrained" in json.loads((run / "summary.json").read_text())["note"]
    with pytest.raises(UserError, match=r"--agreement: .* has no trained segmenter"):
        translate(run, tmp_path / "translated", (), batch=2, agreement=True)
    assert not (tmp_path / "translated.partial").exists()


@pytest.mark.slow
def test_sigusr1_while_it_starts_ends_it_with_75():
    """Ignored until Python runs, as under the launch scripts; sent before anything heavy is loaded."""
    code = "import os, signal, sys, da.cli; signal.signal(signal.SIGUSR1, signal.SIG_IGN); "
    code += "da.cli._split = lambda words: os.kill(os.getpid(), signal.SIGUSR1) or ([], []); "
    code += "sys.exit(da.cli.main(['translate', 'run', 'out']))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True).returncode == 75
