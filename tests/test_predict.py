"""`predict`: pictures of every kind, videos and sequences in, results at their own sizes out."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from city import TRAIN_TO_CITYSCAPES
from PIL import Image
from tiny import tiny

from da import predict
from da.cli import main
from da.data import folders
from da.predict import read_picture
from da.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from conftest import PALETTE, draw_label, save_palette_png, save_png

    folder = tmp_path_factory.mktemp("predict")
    label = draw_label(1, 96, 54)
    for n in (1, 2):
        save_png(folder / f"gta5/images/{n:05d}.png", PALETTE[label])
        save_palette_png(folder / f"gta5/labels/{n:05d}.png", TRAIN_TO_CITYSCAPES[label])
    root = folder / "cityscapes"
    save_png(root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png", PALETTE[label])
    save_png(root / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png", TRAIN_TO_CITYSCAPES[label])
    return train(tiny("source_only", folder / "gta5", root, "run.steps=1"), folder / "runs")


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def test_every_kind_of_picture_is_read(tmp_path, photo):
    grey = photo[..., 0]
    Image.fromarray(photo).save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([photo, grey])).save(tmp_path / "rgba.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "unit.tif")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    cv2.imwrite(str(tmp_path / "rgb16.png"), cv2.cvtColor(photo, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)
    repeated = np.repeat(grey[..., None], 3, 2)
    expected = {"rgb.png": photo, "grey.png": repeated, "rgba.png": photo, "grey16.png": repeated, "rgb16.png": photo}
    expected |= {"unit.tif": repeated, "float.tif": repeated}
    for name, wanted in expected.items():
        assert np.array_equal(read_picture(tmp_path / name), wanted), name


def write_video(path, photo, count, code="mp4v", rate=12.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, photo.shape[1::-1])
    for _ in range(count):
        writer.write(photo)
    writer.release()


def test_folder_results_and_skipped_inputs(run, tmp_path, photo, capsys):
    images, out = tmp_path / "in", tmp_path / "in/out"
    (images / "sub").mkdir(parents=True)
    Image.fromarray(photo).save(images / "a.png")
    Image.fromarray(photo[:33, :51]).save(images / "sub/a.jpg")
    Image.fromarray(photo[:20]).save(images / "a.jpg")  # the same name as a.png but for the suffix
    (images / "notes.txt").write_text("no picture")
    kinds = ["overlay", "color", "labelIds", "probabilities"]
    assert main(["predict", str(run), "-o", str(out), "--what", *kinds, str(images), "run.precision=fp32"]) == 0
    assert "1 files left aside, their names are not those of pictures: .txt" in capsys.readouterr().out
    assert main(["predict", str(run), str(images), "-o", str(out), "--what", "colour"]) == 2
    assert "--what colour: known are overlay, color" in capsys.readouterr().err
    assert (out / "legend.png").exists()
    first, second = np.load(out / "a_probabilities.npz"), np.load(out / "a-2_probabilities.npz")
    assert {first["probabilities"].shape, second["probabilities"].shape} == {(19, 40, 56), (19, 20, 56)}
    assert Image.open(out / "sub/a_overlay.png").size == (51, 33)
    ids = np.asarray(Image.open(out / "sub/a_labelIds.png"))
    probabilities = np.load(out / "sub/a_probabilities.npz")["probabilities"].astype(np.float32)
    assert np.allclose(probabilities.sum(0), 1, atol=0.01)
    assert (ids == TRAIN_TO_CITYSCAPES[probabilities.argmax(0)]).mean() > 0.99  # float16 makes ties

    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:60])
    (images / "broken.mp4").write_bytes(b"no video")
    (images / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    inputs = [str(images), *(str(tmp_path / name) for name in ("absent.png", "100%.png", "empty"))]
    assert main(["predict", str(run), *inputs, "-o", str(out)]) == 1  # `out` lies in the folder: not read again
    told = capsys.readouterr().out
    for name in ("broken.png", "broken.mp4", "dangling.png", "absent.png", "100%.png", "empty"):
        assert f"{name}: " in told
    assert "3 of 9 inputs" in told


def test_opacity_mixes_colors_and_picture(run, tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    found = {}
    for opacity in ("0", "1"):
        out = tmp_path / opacity
        command = ["predict", str(run), str(tmp_path / "a.png"), "-o", str(out), "--opacity", opacity]
        assert main([*command, "--what", "overlay", "color"]) == 0
        found[opacity] = np.asarray(Image.open(out / "a_overlay.png"))
    assert np.array_equal(found["0"], photo)
    assert np.array_equal(found["1"], np.asarray(Image.open(tmp_path / "1/a_color.png")))
    assert main([*command[:-1], "2"]) == 2


@pytest.mark.parametrize("form", ["video", "sequence"])
def test_videos_and_sequences(form, run, tmp_path, photo):
    name = tmp_path / ("drive.mp4" if form == "video" else "drive_%03d.png")
    if form == "video":
        write_video(name, photo, 5)
    else:
        for n in (4, 5, 10, 6, 7):
            Image.fromarray(photo).save(str(name) % n)
    out = tmp_path / "out"
    assert main(["predict", str(run), str(name), "-o", str(out), "--what", "overlay", "labelIds"]) == 0
    capture = cv2.VideoCapture(str(out / "drive_overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert capture.get(cv2.CAP_PROP_FPS) == (12 if form == "video" else 25)
    assert capture.read()[1].shape == (40, 56, 3)
    frames = [f"{n:06d}" for n in range(1, 6)] if form == "video" else [f"drive_{n:03d}" for n in (4, 5, 6, 7, 10)]
    assert [p.name for p in sorted((out / "drive").iterdir())] == [f"{frame}_labelIds.png" for frame in frames]


def test_a_video_of_odd_size_loses_no_pixel(run, tmp_path, photo, capsys):
    for n in (1, 2):
        Image.fromarray(photo[:33, :51]).save(tmp_path / f"drive_{n}.png")
    assert main(["predict", str(run), str(tmp_path / "drive_%d.png"), "-o", str(tmp_path / "out")]) == 0
    assert cv2.VideoCapture(str(tmp_path / "out/drive_overlay.mp4")).read()[1].shape == (34, 52, 3)
    assert "52x34" in capsys.readouterr().out


def test_a_video_that_ends_early_is_named(run, tmp_path, photo, capsys):
    video, out = tmp_path / "drive.avi", tmp_path / "out"
    write_video(video, photo, 10, "MJPG")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert main(["predict", str(run), str(video), "-o", str(out)]) == 1
    assert "of the 10 frames" in capsys.readouterr().out
    assert cv2.VideoCapture(str(out / "drive_overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) >= 2


def test_a_broken_frame_is_named_and_the_others_are_segmented(run, tmp_path, photo, capsys):
    for n in (1, 2, 3):
        Image.fromarray(photo).save(tmp_path / f"drive_{n}.png")
    (tmp_path / "drive_1.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["predict", str(run), str(tmp_path / "drive_%d.png"), "-o", str(out), "--what", "labelIds"]) == 1
    assert "drive_1.png: " in capsys.readouterr().out
    assert [p.name for p in sorted((out / "drive").iterdir())] == ["drive_2_labelIds.png", "drive_3_labelIds.png"]


def test_turned_and_huge_pictures(tmp_path, photo, monkeypatch):
    """Pixels are taken as they are stored, as in training."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path, exif=exif)
    assert np.array_equal(read_picture(path), photo)
    monkeypatch.setattr(folders, "MAX_PIXELS", 100)
    with pytest.raises(predict._Unreadable, match="claims more than 100 pixels"):
        read_picture(path)


def test_nothing_to_do_is_said(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(run), str(tmp_path / "empty"), "-o", str(tmp_path / "out")]) == 1
    assert "no picture or video" in capsys.readouterr().out
    assert main(["predict", str(run), str(tmp_path), "-o", str(tmp_path)]) == 2
    assert "among the inputs" in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "near"), [(66.667, 66.67), (1000 / 30.001, 33.33), (119.8801, 119.88)])
def test_a_rate_that_mpeg4_cannot_say_is_written_as_one_near_it(rate, near, run, tmp_path, photo, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_video(folder / "drive.avi", photo, 3, "MJPG", rate)
    Image.fromarray(photo).save(folder / "a.png")
    assert main(["predict", str(run), str(folder), "-o", str(out)]) == 0
    assert "2 of 2 inputs" in capsys.readouterr().out
    assert cv2.VideoCapture(str(out / "drive_overlay.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(near, rel=1e-4)


def test_a_video_that_did_not_arrive_on_the_disk_is_named(run, tmp_path, photo, capsys, monkeypatch):
    """As on a full disk, where OpenCV reports nothing."""
    write_video(tmp_path / "drive.mp4", photo, 5)
    out = tmp_path / "out"

    class Full:
        def __init__(self, name, *_):
            self.name = name

        def isOpened(self):  # noqa: N802
            return True

        def write(self, _):
            pass

        def release(self):
            Path(self.name).write_bytes(b"\0" * 100)

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    assert main(["predict", str(run), str(tmp_path / "drive.mp4"), "-o", str(out)]) == 1
    assert "drive_overlay.mp4: not written, 0 of its 5 frames" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["legend.png"]


def test_where_no_video_can_be_written_the_pictures_are_still_segmented(run, tmp_path, photo, capsys, monkeypatch):
    write_video(tmp_path / "a.mp4", photo, 2)
    Image.fromarray(photo).save(tmp_path / "b.png")
    out = tmp_path / "out"
    monkeypatch.setattr(cv2, "VideoWriter_fourcc", lambda *_: 0)
    monkeypatch.setattr(predict, "_fourcc", lambda *_: 0)
    assert main(["predict", str(run), str(tmp_path), "-o", str(out)]) == 1
    assert "ask for --what labelIds" in capsys.readouterr().out
    assert (out / "b_overlay.png").exists()


def test_linked_folders_hidden_files_and_what_is_no_file(run, tmp_path, photo, capsys):
    folder, elsewhere, out = tmp_path / "in", tmp_path / "elsewhere", tmp_path / "out"
    (elsewhere / "deep").mkdir(parents=True)
    folder.mkdir()
    for path in (folder / "a.png", elsewhere / "deep/1403636579.763555584.PNG"):
        Image.fromarray(photo).save(path)
    (folder / "more").symlink_to(elsewhere)
    (elsewhere / "deep/loop").symlink_to(elsewhere)
    (folder / "._a.png").write_bytes(b"\x00\x05\x16\x07")
    assert main(["predict", str(run), str(folder), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 inputs" in said
    assert f"{folder}/more/deep/loop: left aside, it is the same folder as {folder}/more" in said
    assert "1 files left aside, their names are not those of pictures: ._a.png" in said
    assert (out / "more/deep/1403636579.763555584_overlay.png").exists()

    os.mkfifo(folder / "b.png")
    os.mkfifo(folder / "b.mp4")
    os.mkfifo(folder / "frame_1.png")
    inputs = [str(folder), str(folder / "frame_%d.png")]
    assert main(["predict", str(run), *inputs, "-o", str(out)]) == 1
    said = capsys.readouterr().out
    for name in ("b.png", "b.mp4", "frame_1.png"):
        assert f"skipped {folder}/{name}: a folder, FIFO, socket or device" in said


def test_dark_pictures_of_16_bits_are_scaled_like_bright_ones(tmp_path):
    dark = np.full((8, 8), 200, np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert (read_picture(tmp_path / "dark.png") == 1).all()


def test_an_empty_argument_is_not_the_current_folder(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["predict", str(run), "", "-o", str(tmp_path / "out")])
    assert left.value.code == 2
    assert "an argument is empty" in capsys.readouterr().err


def test_help_shows_a_pattern_as_it_is_typed(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "(frames/%06d.png)" in " ".join(capsys.readouterr().out.split())
