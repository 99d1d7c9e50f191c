"""Inference under a protocol, pictures, tables."""

import numpy as np
import pytest
import torch
from city import CITY, PALETTE

from da.evaluation import visualize
from da.evaluation.infer import EvalConfig, entropy, predict_entropy, predict_labels
from da.evaluation.report import table
from da.labels import DEFAULT, label_space


def red_is_road(image: torch.Tensor) -> torch.Tensor:
    """A segmenter that calls bright red pixels road and everything else sky."""
    logits = torch.zeros(1, 19, *image.shape[-2:])
    logits[:, 0] = image[:, 0] * 2 - 1
    logits[:, 10] = 1 - image[:, 0] * 2
    return logits


@pytest.mark.parametrize("input_size", [None, (32, 16), (128, 64)])
def test_labels_come_at_the_size_asked_for(input_size):
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    image[0, :, :32] = 255
    found = predict_labels(red_is_road, image, (64, 128), EvalConfig(input_size=input_size))
    assert found.shape == (64, 128)
    assert found.dtype == torch.uint8
    assert (found[:, :60] == 0).all()
    assert (found[:, 68:] == 10).all()


def test_colors():
    label = torch.tensor([[0, 10, 255]], dtype=torch.uint8)
    assert visualize.colorize(label, CITY)[0].tolist() == [[128, 64, 128], [70, 130, 180], [0, 0, 0]]


def test_entropy_is_zero_where_sure_and_one_where_not():
    def half_sure(image: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 19, *image.shape[-2:])
        logits[:, 0] = 100 * image[:, 0]
        return logits

    image = torch.zeros(3, 4, 8, dtype=torch.uint8)
    image[0, :, :4] = 255
    found = predict_entropy(half_sure, image, (4, 8), EvalConfig())
    assert found[:, :4].abs().max() < 1e-6
    assert torch.allclose(found[:, 4:], torch.ones(4, 4))
    two = torch.tensor([0.5, 0.5] + [0.0] * 17).view(19, 1, 1)
    assert entropy(two).item() == pytest.approx(np.log(2) / np.log(19))
    assert torch.allclose(predict_entropy(half_sure, image, (4, 8), EvalConfig(average="probabilities")), found)
    sure, unsure = visualize.heat_map(found)[0, [0, 7]].astype(int).sum(1)
    assert sure < 20
    assert unsure > 400


def test_grid_keeps_label_colors_and_places_every_picture():
    label = visualize.colorize(np.full((10, 20), 13, np.uint8), CITY)
    photo = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    picture = visualize.grid([[label, photo], [label]], ("label", "photo"), label_space(DEFAULT), width=80)
    assert picture.shape[1] == 2 * 84
    assert (picture[30:60, 5:75] == PALETTE[13]).all()


def test_table_shows_protocol_absent_classes_and_best():
    result = {
        "run": "a",
        "checkpoint": "best",
        "step": 5,
        "protocol": {"input_size": [1024, 512], "align_corners": False, "classes": 19},
        "scores": {"mIoU": 41.239, "IoU/road": 90.0},
    }
    text = table([result, result | {"run": "b", "checkpoint": "last"}])
    assert "41.24" in text
    assert "best, step 5" in text
    assert "input 1024x512" in text
    assert "chosen with target labels" in text
    train_row = next(line for line in text.splitlines() if line.startswith("train "))
    assert train_row.split()[1:] == ["-", "-"]
    other = result["protocol"] | {"input_size": None}
    assert "NOT COMPARABLE" in table([result, result | {"protocol": other}])
    assert "a: a translation run" in table([result | {"is_translation": True}, result | {"run": "b"}])
