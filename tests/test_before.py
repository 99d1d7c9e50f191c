"""A run of before label spaces were data: its folder and its checkpoint are read, scored and reported as they were.

`fixtures/run_of_before` was written by that code; its backbone has weights of rank one, which a file stores small.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from city import CITY

from da.comparison.compare import find_runs
from da.evaluate import evaluate_runs
from da.report import report
from da.run import checkpoint_path, restore

FIXTURE = Path(__file__).with_name("fixtures") / "run_of_before"


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "runs/mini/source_only-seed0"
    shutil.copytree(FIXTURE, folder)
    return folder


def test_it_is_evaluated_as_before(run, cityscapes_root):
    before = json.loads((run / "evaluation_last.json").read_text())
    (found,) = evaluate_runs([run], "last", [f"data.val.root={cityscapes_root}", "data.workers=0"])
    assert found["scores"] == before["scores"]
    assert found["confusion"] == before["confusion"]
    assert found["images"] == before["images"]
    assert len(np.unique(np.nonzero(found["confusion"])[1])) > 1  # it does tell things apart


def test_it_has_the_default_classes(run):
    config, trainer, step = restore(checkpoint_path(run, "last"))
    assert config.data.classes == trainer.classes == CITY
    assert (config.eval.classes, step) == (19, 4)


def test_it_is_reported_as_before(run, tmp_path):
    found = find_runs([run])[0]
    assert found.results[0]["scores"]["mIoU"] == pytest.approx(0.9469531071817593)
    report([run], None, tmp_path, tmp_path / "report", pictures=0)
    table = (tmp_path / "report/table.md").read_text()
    assert "mIoU16" not in table
    assert "mean over 19 classes" in table


def test_an_unfinished_one_goes_on_as_the_same_run(run, gta5_root, cityscapes_root):
    """Settings that came after it have their defaults."""
    from da.engine import run_files
    from da.run import load_config

    (run / "summary.json").unlink()
    run_files.claim(run, load_config([str(run / "config.yaml")]), {})
