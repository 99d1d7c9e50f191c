"""The confusion matrix and what is read from it, on cases small enough to count by hand."""

import math

import numpy as np
import pytest
import torch
from city import CITY, NUM_CLASSES, SUBSETS

from da.evaluation.metrics import ConfusionMatrix, class_iou, mean_iou, scores


def matrix(label, prediction) -> np.ndarray:
    m = ConfusionMatrix(NUM_CLASSES)
    m.add(torch.tensor(label, dtype=torch.uint8), torch.tensor(prediction, dtype=torch.uint8))
    return m.counts.numpy()


def test_known_example():
    counts = matrix([[0, 0, 0], [1, 1, 2], [2, 2, 255]], [[0, 0, 1], [1, 1, 2], [0, 2, 5]])
    assert counts[:3, :3].tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 2]]
    assert counts.sum() == 8  # the ignored pixel is nowhere
    iou = class_iou(counts)
    assert iou[:3].tolist() == pytest.approx([2 / 4, 2 / 3, 2 / 3])
    assert np.isnan(iou[3:]).all()
    found = scores(counts, CITY)
    assert found["mIoU"] == pytest.approx(100 * (2 / 4 + 2 / 3 + 2 / 3) / 3)
    assert found["pixel_accuracy"] == pytest.approx(100 * 6 / 8)
    assert found["mAcc"] == pytest.approx(100 * (2 / 3 + 1 + 2 / 3) / 3)
    assert found["fwIoU"] == pytest.approx(100 * (3 / 8 * 2 / 4 + 2 / 8 * 2 / 3 + 3 / 8 * 2 / 3))
    assert math.isnan(found["IoU/train"])


def test_class_without_labels_is_left_out_but_predicting_it_is_an_error():
    counts = matrix([[0, 0, 0, 0]], [[0, 0, 0, 14]])
    assert mean_iou(counts) == pytest.approx(75.0)
    assert math.isnan(scores(counts, CITY)["IoU/truck"])


def test_subsets_come_from_the_same_matrix():
    label = np.arange(NUM_CLASSES, dtype=np.uint8)[None].repeat(2, 0)
    prediction = label.copy()
    prediction[1] = 9  # half of every class is taken for terrain, which the subsets leave out
    counts = matrix(label.tolist(), prediction.tolist())
    found = scores(counts, CITY, 13)
    iou = class_iou(counts)
    for classes, subset in SUBSETS.items():
        assert found[f"mIoU{classes}"] == pytest.approx(100 * iou[list(subset)].mean())
    assert found["mIoU16"] == pytest.approx(50.0)
    assert found["mIoU"] == found["mIoU13"]
    assert len(SUBSETS[16]) == 16
    assert len(SUBSETS[13]) == 13


def test_parts_add_up_to_the_whole():
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 19, (4, 8, 9), generator=g, dtype=torch.uint8)
    prediction = torch.randint(0, 19, (4, 8, 9), generator=g, dtype=torch.uint8)
    whole, parts = ConfusionMatrix(NUM_CLASSES), [ConfusionMatrix(NUM_CLASSES), ConfusionMatrix(NUM_CLASSES)]
    for i in range(4):
        whole.add(label[i], prediction[i])
        parts[i % 2].add(label[i], prediction[i])
    assert torch.equal(whole.counts, parts[0].counts + parts[1].counts)


def test_nothing_labelled_is_nan_not_zero():
    assert all(math.isnan(value) for value in scores(np.zeros((19, 19), np.int64), CITY).values())


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        matrix([[0, 1]], [[0]])


def test_fast_count_equals_bincount_of_pairs():
    g = torch.Generator().manual_seed(1)
    label = torch.randint(0, 19, (70, 50), generator=g, dtype=torch.uint8)
    label[torch.rand(70, 50, generator=g) < 0.2] = 255
    prediction = torch.randint(0, 19, (70, 50), generator=g, dtype=torch.uint8)
    valid = label != 255
    pairs = label[valid].long() * 19 + prediction[valid]
    found = ConfusionMatrix(NUM_CLASSES)
    found.add(label.T, prediction.T)  # not contiguous
    assert torch.equal(found.counts, torch.bincount(pairs, minlength=361).view(19, 19))
    assert found.counts.dtype == torch.int64


def test_counts_beyond_float_precision_are_exact():
    ones = torch.zeros(2**12 + 1, 2**12, dtype=torch.uint8)
    ones[0, 0] = 1
    found = ConfusionMatrix(NUM_CLASSES)
    found.add(ones, ones)
    assert found.counts[0, 0] == 2**24 + 2**12 - 1
