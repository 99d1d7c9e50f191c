"""One confusion matrix, and everything that is read from it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from da.labels import LabelSpace, Subset


class ConfusionMatrix:
    """Counts of (label, prediction) pairs of trainIds as int64; rows are labels, ignored pixels are left out.

    Args:
        classes: how many label files tell apart, n.
        predicted: how many predictions tell apart: n, or n + 1, where n itself is none of the classes.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu", predicted: int | None = None) -> None:
        self.counts = torch.zeros(classes, predicted or classes, dtype=torch.int64, device=device)

    def add(self, label: Tensor, prediction: Tensor) -> None:
        """Count one image: two uint8 maps of equal shape; label values below n or 255, predictions below `predicted`.

        Raises:
            ValueError: the shapes differ.
        """
        if label.shape != prediction.shape:
            raise ValueError(f"label {tuple(label.shape)} and prediction {tuple(prediction.shape)} differ in shape")
        rows, columns = self.counts.shape
        # Ignored pixels, 255, fall behind the last row. Two bytes for a code, where they hold it: wider ones take
        # longer to write and read.
        wide = torch.int16 if (rows + 1) * columns <= torch.iinfo(torch.int16).max else torch.int32
        codes = label.clamp(max=rows).to(wide).mul_(columns).add_(prediction)
        counts = torch.bincount(codes.flatten(), minlength=(rows + 1) * columns)
        self.counts += counts[: rows * columns].view_as(self.counts)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU_c = C_cc / (row_c + column_c - C_cc), (n,) float64; NaN for a class in neither labels nor predictions.

    `counts` are (n, n), or (n, n + 1) with a last column of predictions that are none of the classes.
    """
    hits = np.diag(counts).astype(np.float64)
    union = counts.sum(0)[: len(hits)] + counts.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(counts: np.ndarray, classes: Sequence[int] | None = None) -> float:
    """Mean IoU over the trainIds `classes` (None: all) of the *same* matrix, in percent.

    A class without labels is left out, also where it was predicted: those predictions already count as errors
    of the class that was there. Errors into classes outside the subset count too. `official_mean_iou` has the other
    rule; the two agree wherever every class is labelled, as in Cityscapes' own validation split.
    """
    present = [c for c in (range(len(counts)) if classes is None else classes) if counts[c].sum() > 0]
    return float(100 * class_iou(counts)[present].mean()) if present else float("nan")


def official_mean_iou(counts: np.ndarray) -> float:
    """Mean IoU over all classes by the rule of the `cityscapesscripts` evaluator, in percent: a class without
    labels that was predicted on labelled pixels counts as 0, one that was never predicted is left out."""
    iou = class_iou(counts)
    return float(100 * np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def scores(counts: np.ndarray, classes: LabelSpace, subset: Subset = None) -> dict[str, float]:
    """All figures in percent: `mIoU` over `subset`, the mean over every subset under its name in `classes.means`,
    `mAcc`, `pixel_accuracy`, `fwIoU`, `IoU/<class>` and `mIoU_group/<group>`, the mean over the labelled classes of a
    group; NaN where no labelled pixel tells.

    fwIoU weights each class's IoU with its share of the labelled pixels (Long et al., CVPR 2015).
    """
    rows = counts.sum(1).astype(np.float64)
    total, labelled = rows.sum() or float("nan"), rows > 0
    iou, hits = class_iou(counts), np.diag(counts).astype(np.float64)
    recall = hits[labelled] / rows[labelled]
    found = {
        "mIoU": mean_iou(counts, classes.subset(subset)),
        **{key: mean_iou(counts, classes.subsets[name]) for name, key in classes.means.items()},
        "mAcc": float(100 * recall.mean()) if labelled.any() else float("nan"),
        "pixel_accuracy": float(100 * hits.sum() / total),
        "fwIoU": float(100 * (rows[labelled] * iou[labelled]).sum() / total),
    }
    per_class = {
        f"IoU/{name}": float(100 * iou[i]) if labelled[i] else float("nan") for i, name in enumerate(classes.names)
    }
    groups = {f"mIoU_group/{group}": mean_iou(counts, members) for group, members in classes.groups.items()}
    return found | per_class | groups
