"""Scores of exported predictions by Cityscapes' own evaluator (the optional package `cityscapesscripts`)."""

import contextlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from da.config import UserError
from da.evaluation.metrics import class_iou, mean_iou, official_mean_iou
from da.labels import label_space

CLASSES = "cityscapes19"  # what it scores


class OfficialScores(NamedTuple):
    counts: np.ndarray  # (19, 19) int64 in the order of the trainIds
    iou: list[float]  # per trainId, 0 to 1, NaN for a class in neither labels nor predictions
    mean: float  # 0 to 1


def evaluator() -> Any:
    """The evaluator's module.

    Raises:
        UserError: the package is absent; the message has the command that installs it.
    """
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
    except ImportError as error:
        raise UserError(
            f"--official: needs cityscapesscripts ({error}); install it with: pip install cityscapesscripts"
        ) from error
    return evalPixelLevelSemanticLabeling


def score(predictions: Sequence[Path], labels: Sequence[Path]) -> OfficialScores:
    """Run the evaluator over pairs of labelIds PNGs: `predictions` ours, `labels` the data set's.

    Raises:
        UserError: the package is absent, or the evaluator refuses a file; its message is passed on.
    """
    module = evaluator()
    settings = module.CArgs()
    vars(settings).update(vars(module.args))
    settings.evalInstLevelScore = False  # would need instance labels
    settings.JSONOutput = False
    settings.quiet = True
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            found = module.evaluateImgLists([str(p) for p in predictions], [str(p) for p in labels], settings)
    except SystemExit as error:
        message = told.getvalue().strip().splitlines()
        raise UserError(f"--official: cityscapesscripts refuses: {message[-1] if message else error}") from error
    classes = label_space(CLASSES)
    ids = classes.scheme("cityscapes").stored[: len(classes)]
    return OfficialScores(
        counts=np.array(found["confMatrix"], np.int64)[np.ix_(ids, ids)],
        iou=[found["classScores"][name] for name in classes.names],
        mean=found["averageScoreClasses"],
    )


def compare(official: OfficialScores, counts: np.ndarray) -> list[str]:
    """Lines that set the evaluator's figures beside those of our matrix `counts`.

    Raises:
        RuntimeError: a count or a printed figure differs, which is a bug of one of the two.
    """
    ours, theirs = official_mean_iou(counts), 100 * official.mean
    pairs = [*zip(100 * class_iou(counts), (100 * value for value in official.iou)), (ours, theirs)]
    equal = all(f"{a:.4f}" == f"{b:.4f}" for a, b in pairs)
    if not equal or not np.array_equal(official.counts, counts):
        raise RuntimeError(f"cityscapesscripts finds a mean of {theirs:.4f} and this project {ours:.4f}")
    lines = [f"cityscapesscripts: mIoU {theirs:.4f}; same counts, and every class equal to the fourth decimal here"]
    left_out = mean_iou(counts)
    if not math.isclose(left_out, ours, abs_tol=5e-5):
        lines.append(
            f"its mean counts classes without labels that were predicted as 0; without them, as in mIoU: {left_out:.4f}"
        )
    return lines
