"""One confusion matrix, and everything that is read from it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from da.labels import GROUPS, NAMES, NUM_CLASSES, SUBSETS


class ConfusionMatrix:
    """Counts of (label, prediction) pairs of trainIds as int64; rows are labels, ignored pixels are left out."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64, device=device)

    def add(self, label: Tensor, prediction: Tensor) -> None:
        """Count one image: two uint8 maps of equal shape; label values 0..18 or 255, predictions 0..18.

        Raises:
            ValueError: the shapes differ.
        """
        if label.shape != prediction.shape:
            raise ValueError(f"label {tuple(label.shape)} and prediction {tuple(prediction.shape)} differ in shape")
        # Ignored pixels, 255, fall behind the last row. Two bytes for a code: wider ones take longer to write and read.
        codes = label.clamp(max=NUM_CLASSES).short().mul_(NUM_CLASSES).add_(prediction)
        counts = torch.bincount(codes.flatten(), minlength=NUM_CLASSES * (NUM_CLASSES + 1))
        self.counts += counts[: NUM_CLASSES**2].view_as(self.counts)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU_c = C_cc / (row_c + column_c - C_cc), (19,) float64; NaN for a class in neither labels nor predictions."""
    hits = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(counts: np.ndarray, classes: int = 19) -> float:
    """Mean IoU over the 19-, 16- or 13-class subset of the *same* matrix, in percent.

    A class without labels is left out, also where it was predicted: those predictions already count as errors
    of the class that was there. Errors into classes outside the subset count too. `official_mean_iou` has the other
    rule; the two agree wherever every class is labelled, as in Cityscapes' own validation split.
    """
    return _mean_of_labelled(counts, SUBSETS[classes])


def _mean_of_labelled(counts: np.ndarray, classes: Sequence[int]) -> float:
    present = [c for c in classes if counts[c].sum() > 0]
    return float(100 * class_iou(counts)[present].mean()) if present else float("nan")


def official_mean_iou(counts: np.ndarray) -> float:
    """Mean IoU over the 19 classes by the rule of the `cityscapesscripts` evaluator, in percent: a class without
    labels that was predicted on labelled pixels counts as 0, one that was never predicted is left out."""
    iou = class_iou(counts)
    return float(100 * np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def scores(counts: np.ndarray, classes: int = 19) -> dict[str, float]:
    """All figures in percent: `mIoU` over the subset `classes`, `mIoU19`, `mIoU16`, `mIoU13`, `mAcc`,
    `pixel_accuracy`, `fwIoU`, `IoU/<class>` and `mIoU_group/<group>`, the mean over the labelled classes of a group of
    `da.labels.GROUPS`; NaN where no labelled pixel tells.

    fwIoU weights each class's IoU with its share of the labelled pixels (Long et al., CVPR 2015).
    """
    rows = counts.sum(1).astype(np.float64)
    total, labelled = rows.sum() or float("nan"), rows > 0
    iou, hits = class_iou(counts), np.diag(counts).astype(np.float64)
    recall = hits[labelled] / rows[labelled]
    found = {
        "mIoU": mean_iou(counts, classes),
        "mIoU19": mean_iou(counts, 19),
        "mIoU16": mean_iou(counts, 16),
        "mIoU13": mean_iou(counts, 13),
        "mAcc": float(100 * recall.mean()) if labelled.any() else float("nan"),
        "pixel_accuracy": float(100 * hits.sum() / total),
        "fwIoU": float(100 * (rows[labelled] * iou[labelled]).sum() / total),
    }
    per_class = {f"IoU/{name}": float(100 * iou[i]) if labelled[i] else float("nan") for i, name in enumerate(NAMES)}
    groups = {f"mIoU_group/{group}": _mean_of_labelled(counts, members) for group, members in GROUPS.items()}
    return found | per_class | groups
