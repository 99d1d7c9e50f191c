"""What TensorBoard is given: charts that compare runs, one row per finished run, every point once."""

import os
import re
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import metadata
from tiny import tiny

from da.engine import run_files
from da.engine.log import Progress, RunLog
from da.run import train

ROW = (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)


def read(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


def settings_of(board: EventAccumulator) -> dict[str, str | float]:
    """The HParams row's."""
    content = board.PluginTagToContent(metadata.PLUGIN_NAME)
    row = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG]).hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in row.items()}


@pytest.mark.slow
def test_a_finished_run_fills_charts_row_and_pictures(tmp_path, gta5_root, cityscapes_root):
    config = tiny("adaptsegnet_single", gta5_root, cityscapes_root)
    board = read(train(config, tmp_path))
    tags = board.Tags()["scalars"]
    (layout,) = board.Tensors(CONFIG_SUMMARY_TAG)
    categories = Layout.FromString(layout.tensor_proto.string_val[0]).category
    charts = {chart.title: chart.multiline.tag[0] for category in categories for chart in category.chart}
    shown = {title: [tag for tag in tags if re.match(expression, tag)] for title, expression in charts.items()}
    assert shown["mIoU"] == ["val/mIoU"]
    assert shown["mIoU of flat"] == ["val/mIoU_group/flat"]
    assert shown["segmentation loss"] == ["loss/seg"]
    assert shown["discriminator, target images told apart"] == ["d/accuracy_target"]
    assert max(map(len, shown.values())) == 1

    settings = settings_of(board)
    told = {"trainer": "adaptsegnet", "name": "adaptsegnet_single", "seed": 0, "run.precision": "fp32"}
    told |= {"data.source": "gta5", "data.target": "cityscapes", "model.backbone": "resnet18", "model.aux": "false"}
    told |= {"method.gan": "vanilla", "method.betas_d": "[0.9, 0.99]", "method.adamw": "null"}
    assert settings.items() >= told.items()
    assert set(settings) >= {f"method.{key}" for key in type(config.method).model_fields}
    (result,) = board.Scalars("Result/mIoU")
    assert (result.step, result.value) == (4, board.Scalars("val/mIoU")[-1].value)
    assert [event.step for event in board.Images("val/examples")] == [2, 4]


def test_a_run_begun_again_holds_each_point_once_and_one_layout(tmp_path):
    for start in (0, 0, 2, 3):  # killed before the first checkpoint, and after those of updates 2 and 3
        log = RunLog(tmp_path, start)
        log.scalars(4, {"val/mIoU": 30.0})
        log.result(
            4, {"trainer": "source_only", "seed": 0, "method.adamw": {"lr": 0.1}, "method.gan": True}, {"mIoU": 30.0}
        )
        log.close()
    board = read(tmp_path)
    for tag in ("val/mIoU", "Result/mIoU"):
        assert [event.step for event in board.Scalars(tag)] == [4]
    assert settings_of(board) == {
        "trainer": "source_only",
        "seed": 0,
        "method.adamw": '{"lr": 0.1}',
        "method.gan": "true",
    }
    layouts = [event.tensor_proto.string_val[0] for event in board.Tensors(CONFIG_SUMMARY_TAG)]
    assert len(set(layouts)) == 1  # TensorBoard shows one of them
    assert board.PluginTagToContent(metadata.PLUGIN_NAME).keys() == set(ROW)


def test_what_a_checkpoint_covers_is_on_the_disk_before_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(os.readlink(f"/proc/self/fd/{number}")).name))
    log = RunLog(tmp_path, 0)
    assert synced == [run_files.aside(tmp_path / "metrics.jsonl").name]
    synced.clear()
    log.scalars(1, {"a": 1.0})
    log.flush()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert synced == ["metrics.jsonl", events.name]
    log.close()


def test_a_full_disk_is_raised_in_the_run_and_printed_by_no_thread(tmp_path, monkeypatch):
    """A limit on file size stands in for a full disk."""
    printed: list = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    log = RunLog(tmp_path, 0)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def fill():
        for step in range(1, 99):
            log.picture(step, "noise", noise)
            log.flush()

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
        with pytest.raises(OSError, match="File too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert printed == []
    other = threading.Thread(target=lambda: 1 / 0)  # any other thread's error is shown as ever
    other.start()
    other.join()
    assert len(printed) == 1


def test_a_log_line_says_what_a_person_asks(capsys):
    progress = Progress(0, 600, {"loss/seg": "loss"})
    scalars = {"loss/seg": 1.1474, "loss/d_main": 0.69, "d/accuracy_source": 0.62, "d/accuracy_target": 0.48}
    speed = {"speed/images_per_second": 9.587, "speed/waiting_for_data": 0.014}
    progress.report(300, scalars | speed)
    said = capsys.readouterr().out
    assert re.fullmatch(r"step 300/600  loss 1.15  discriminators right 55%  9.59 images/s  ETA \d+m\d\ds\n", said)
    progress.report(300, {"loss/seg": 1.1474, **speed, "speed/waiting_for_data": 0.35})
    assert "loss 1.15  9.59 images/s  waiting for data 35%  ETA" in capsys.readouterr().out
