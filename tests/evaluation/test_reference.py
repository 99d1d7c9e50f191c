"""What was measured before stands beside a run of the same images and protocol, and nowhere else."""

from pathlib import Path

import pytest
from tiny import REPOSITORY

from da.config import UserError
from da.evaluation.infer import EvalConfig
from da.evaluation.reference import mean_std, read_references

REFERENCES = read_references()
RESULT = {"protocol": EvalConfig(classes=19).model_dump(mode="json"), "images": {"hash": REFERENCES["mini"].images}}


@pytest.mark.parametrize("table", REFERENCES)
def test_every_row_is_an_experiment_and_stands_in_the_results(table):
    page = (REPOSITORY / "docs/results.md").read_text()
    for name, values in REFERENCES[table].rows.items():
        assert (REPOSITORY / f"experiments/{table}/{name}.yaml").exists()
        assert 1 <= len(values) <= 3
        assert mean_std(values) in page
        assert " / ".join(f"{value:.1f}" for value in values) in page


def test_only_the_same_images_and_protocol_fit():
    reference = REFERENCES["mini"]
    assert reference.fits(RESULT)
    assert reference.fits(RESULT | {"protocol": {}})  # of before a setting was there
    assert not reference.fits(RESULT | {"images": {"hash": "000000000000"}})
    assert not reference.fits(RESULT | {"images": None})
    assert not reference.fits(RESULT | {"protocol": RESULT["protocol"] | {"flip": True}})


def test_the_run_stands_in_its_experiments_row():
    lines = REFERENCES["mini"].text("oracle", 1, 44.0).splitlines()
    (here,) = (line for line in lines if "this run" in line)
    assert here.split()[0] == "oracle"
    assert here.endswith("this run: 44.0 (seed 1)")
    assert "this run" not in REFERENCES["mini"].text("my own", 1, 44.0)


def test_a_mistake_names_the_key(tmp_path: Path):
    row = "{date: 2026-11-22, commit: a, machine: b, images: c, steps: 1, rows: {x: d}}"
    (tmp_path / "measured.yaml").write_text(f"mini: {row}")
    with pytest.raises(UserError, match=r"mini: rows\.x"):
        read_references(tmp_path / "measured.yaml")
