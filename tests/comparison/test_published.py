"""The published rows: complete, consistent, and compared only with runs of the same protocol."""

import math

import pytest
import torch
from city import NAMES, SUBSETS

from da.comparison import published
from da.config import UserError
from da.evaluation.infer import EvalConfig, predict_labels, window_starts

LITERATURE = published.read()
ROUNDING = 0.1  # classes and mean are each rounded to 0.1, so the two can differ by 0.05 + 0.05
PER_CLASS = [row for row in LITERATURE.rows if row.iou]


@pytest.mark.parametrize("row", PER_CLASS, ids=lambda row: f"{row.table}-{row.method}-{row.backbone}")
def test_mean_is_the_mean_of_the_classes(row):
    assert row.mean(row.classes) == pytest.approx(sum(row.iou) / len(row.iou), abs=ROUNDING)
    if row.classes == 16 and row.mIoU13 is not None:
        thirteen = [row.class_iou()[NAMES[c]] for c in SUBSETS[13]]
        assert row.mIoU13 == pytest.approx(sum(thirteen) / 13, abs=ROUNDING)


def test_every_row_says_where_it_comes_from():
    for row in LITERATURE.rows:
        assert row.source, row
        assert row.checkpoint, row
        assert any(row.mean(classes) for classes in (19, 16, 13)), row
        assert row.verified or "from memory" in row.source
        assert "from memory" not in row.source or not row.verified


def test_experiments_that_rows_name_exist_and_occur_once():
    named = [(row.table, row.experiment) for row in LITERATURE.rows if row.experiment]
    assert len(named) == len(set(named))
    for table, experiment in named:
        assert (published.FILE.parents[1] / table / f"{experiment}.yaml").exists(), experiment


def test_a_protocol_matches_only_runs_measured_alike():
    measured = EvalConfig(input_size=(1024, 512), classes=13).model_dump(mode="json")
    matching = {name for name, protocol in LITERATURE.protocols.items() if protocol.matches(measured)}
    assert matching == {"adaptsegnet", "advent", "daformer"}  # they differ in the checkpoint reported
    assert LITERATURE.protocols["full_resolution"].matches(EvalConfig().model_dump(mode="json"))
    smaller = measured | {"label_size": [1024, 512]}
    assert not LITERATURE.protocols["adaptsegnet"].matches(smaller)
    flipped = measured | {"some_later_setting": True}
    assert not any(protocol.matches(flipped) for protocol in LITERATURE.protocols.values())


def test_stages_and_checkpoints_are_named_as_far_as_known():
    stages = {row.method: row.mIoU16 for row in LITERATURE.rows if row.method.startswith("ProDA, ") and not row.iou}
    assert stages == {"ProDA, warm-up": 41.4, "ProDA, stage 1 of 3": 51.9, "ProDA, stage 2 of 3": 54.6}
    assert {row.checkpoint for row in LITERATURE.rows if row.protocol == "test_server"} == {"not stated"}


def test_mistakes_in_the_file_are_named(tmp_path):
    row = "{table: gta2city, method: m, backbone: b, mIoU: 50.0, protocol: p, checkpoint: last, source: s"
    for text, expected in (
        ("{rows: [" + row + ", classes: 13, iou: [1.0]}]}", "1 values for classes: 13"),
        ("{rows: [" + row + "}]}", "rows.0.protocol: 'p' is not in .*protocols.yaml"),
        ("{rows: [" + row + ", sourc: x}]}", "rows.0.sourc: unknown key"),
    ):
        (tmp_path / "rows.yaml").write_text(text)
        with pytest.raises(UserError, match=expected):
            published.read(tmp_path / "rows.yaml")
    (tmp_path / "protocols.yaml").write_text("p: {text: t, eval: {flip: true}}")
    with pytest.raises(UserError, match="needs `checkpoint` and `source`"):
        published.read_protocols(tmp_path / "protocols.yaml")


def test_rows_carry_the_protocol_of_their_own_paper():
    for row in LITERATURE.rows:
        if row.method.startswith(("AdvEnt", "MinEnt")) and "TLLib" not in row.method:
            assert row.protocol == "advent", row
        if row.method.startswith("DAFormer"):
            own = "README" in row.source or "DAFormer paper" in row.source
            assert row.protocol == ("daformer" if own else "not_stated"), row
        if "769x769" in row.method:
            assert row.protocol.startswith("mmseg_sliding_769"), row


def test_sliding_769_is_measured_as_its_authors_do():
    config = LITERATURE.protocols["mmseg_sliding_769"].eval
    assert math.ceil(config.sliding.crop[0] * config.sliding.stride) == 513
    assert window_starts(2049, 769, config.sliding.stride) == [0, 513, 1026, 1280]
    assert config.align_corners
    assert LITERATURE.protocols["mmseg_sliding_769_multi_scale"].eval is None  # averages logits and probabilities


@pytest.mark.parametrize("name", ["pspnet", "pspnet_multi_scale"])
def test_what_is_not_done_as_the_authors_do_is_listed(name):
    protocol = LITERATURE.protocols[name]
    assert "pads the image with the mean colour" in protocol.assumed
    assert "antialiased bicubic" in protocol.assumed
    seen = []

    def predict(image):
        seen.append(tuple(image.shape[-2:]))
        return torch.zeros(1, 19, 1, 1)

    predict_labels(predict, torch.zeros(3, 40, 60, dtype=torch.uint8), (40, 60), protocol.eval)
    assert (40, 60) in seen  # cut to the image, not padded to 713x713
