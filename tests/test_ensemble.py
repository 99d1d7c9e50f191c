"""Several runs as one: means that a pen gives, and the commands that take them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from city import CITY
from PIL import Image
from tiny import tiny

from da.cli import main
from da.config import UserError
from da.ensemble import Ensemble, restore_all
from da.labels import label_space
from da.run import checkpoint_path, restore, train
from da.trainers import base


class Member:
    """Says of every image what it was given."""

    def __init__(self, logits: list[float], size: int) -> None:
        self.logits, self.size = torch.tensor(logits), size
        self.modules, self.weights_report = {}, None
        self.classes = CITY

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits[None, :, None, None].expand(1, -1, self.size, self.size)


SURE, UNSURE = Member([4.0, 0.0, 0.0], 2), Member([0.0, 1.0, 0.0], 4)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_the_mean_is_at_the_finest_stride(average):
    found = Ensemble([SURE, UNSURE], average).predict(torch.zeros(1, 3, 8, 8))
    assert found.shape == (1, 3, 4, 4)
    p = found.softmax(1)[0, :, 0, 0]
    if average == "logits":
        assert torch.allclose(p, torch.tensor([2.0, 0.5, 0.0]).softmax(0))
    else:
        assert torch.allclose(p, (SURE.logits.softmax(0) + UNSURE.logits.softmax(0)) / 2)


def test_it_is_not_trained():
    with pytest.raises(TypeError, match="train its members"):
        Ensemble([SURE, UNSURE], "logits").step(None, lambda loss: None)


@pytest.fixture
def two(tmp_path, gta5_root, cityscapes_root) -> list[Path]:
    short = ("run.steps=1", "run.val_every=1")
    return [train(tiny("source_only", gta5_root, cityscapes_root, *short, f"seed={n}"), tmp_path) for n in (0, 1)]


@pytest.mark.slow
def test_evaluate_scores_the_members_and_all_as_one(two, capsys):
    assert main(["evaluate", *map(str, two), "--ensemble", "probabilities"]) == 0
    said = capsys.readouterr().out
    assert "probabilities of source_only-seed0 + source_only-seed1" in said
    (file,) = two[0].parent.glob("ensemble_*.json")
    assert '"trainer": "ensemble"' in file.read_text()
    assert all((run / "evaluation_last.json").exists() for run in two)
    assert main(["evaluate", str(two[0]), "--ensemble", "logits"]) == 2
    assert "name two runs or more" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_takes_what_the_mean_says(two, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    words = ["predict", str(two[0]), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--what", "probabilities"]
    assert main([*words, "--ensemble", str(two[1]), "--average", "probabilities", "run.precision=fp32"]) == 0
    found = np.load(tmp_path / "out/a_probabilities.npz")["probabilities"]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    members = [restore(checkpoint_path(run, "last"))[1] for run in two]
    for member in members:
        member.segmenter.eval()
    with torch.no_grad():
        low = torch.stack([member.predict(image).softmax(1) for member in members]).mean(0).log()
    wanted = torch.nn.functional.interpolate(low, (48, 64), mode="bilinear").softmax(1)[0]
    assert np.abs(found - wanted.numpy()).max() < 2e-3  # stored in half precision


def test_members_of_other_classes_are_refused():
    other = Member([0.0] * 3, 2)
    other.classes = label_space("camvid11")
    with pytest.raises(UserError, match="same classes"):
        Ensemble([SURE, other], "logits")


def test_one_run_stays_itself(tmp_path, gta5_root, cityscapes_root):
    run = train(tiny("source_only", gta5_root, cityscapes_root, "run.steps=1"), tmp_path)
    assert isinstance(restore_all([run], "last", "logits")[1], base.Trainer)
