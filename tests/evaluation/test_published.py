"""The published rows: complete, consistent, and compared only with runs of the same protocol."""

import pytest

from da.config import UserError
from da.evaluation import published
from da.evaluation.infer import EvalConfig
from da.labels import NAMES, SUBSETS

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
