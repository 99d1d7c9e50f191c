"""`label`: pseudo labels of a target set, by one trained segmenter or the mean of several.

Of each class the most confident predictions are kept, the rest is ignored: thresholds by class, as in class-balanced
self-training (Zou et al., ECCV 2018) and in FDA (Yang and Soatto, CVPR 2020), from a histogram of the confidences.

What is written is an ordinary data root of two folders, images linked and labels in the classes of the runs, with
`pseudo_labels.json`, which says what made it: no reader can take it for ground truth.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from da.config import UserError
from da.data import folders
from da.data.folders import PSEUDO_STAMP
from da.data.loaders import plain_images, resolve_root, workers_watched
from da.engine import checkpoint, dist, run_files
from da.engine.log import bar, say
from da.engine.stepper import Stepper
from da.engine.stop import StopRequests, seconds
from da.engine.whole import made_whole
from da.ensemble import Average, restore_all
from da.evaluation.infer import EvalConfig, predict_confidence
from da.labels import IGNORE, LabelSpace
from da.run import images_of, make_stepper

KEYS = ("data.target", "data.workers", "eval.", "run.device", "run.precision", "run.time_limit")  # may change here
LEVELS = 4096  # of stored confidences, finer towards 1
FINEST = 1e-6  # how close to 1 a confidence is told from 1
WORK = "work"  # folder of predictions, deleted when the labels are written


class Rule(NamedTuple):
    """Which predictions become labels."""

    keep: float  # share of the pixels of each predicted class, the most confident ones
    sure: float  # confidence from which a pixel is kept whatever its class's share is


@workers_watched()
def write_pseudo_labels(
    runs: Sequence[Path], out: Path, overrides: Sequence[str], rule: Rule, average: Average
) -> None:
    """Label the target images of the first run, and write them and the labels to `out`.

    Memory does not depend on the number of images. All is written to `<out>.partial`, which is renamed when complete: a
    killed call is continued by the next.

    Args:
        runs: run folders or checkpoints of the same classes; several are averaged.
        out: the data root to make: `images/`, `labels/`, read as data set `folders`.
        overrides: settings of the first run that may change here, see `KEYS`.
        rule: which predictions are kept.
        average: what is averaged of several runs.

    Raises:
        UserError: no target images, a rule out of range, `out` holds something else or another call is writing it.
        Stopped: asked to stop by a signal or `run.time_limit`; what is written stays.
    """
    if not (0 < rule.keep <= 1 and 0 <= rule.sure <= 1):
        raise UserError(f"--keep {rule.keep} --sure {rule.sure}: give shares from 0 to 1")
    config, trainer, step = restore_all(runs, "last", average, overrides, "label", KEYS)
    if not config.data.target or len(config.data.target) > 1:
        raise UserError("data.target: label writes one data root; name one target, such as data.target.root=FOLDER")
    (target,) = config.data.target
    root = resolve_root(target)
    samples = folders.find(target.dataset).index(root, target.split, with_labels=False)
    names = {sample.name.replace("/", "-"): sample for sample in samples}
    if len(names) < len(samples):
        raise UserError(f"{root}: two of its images would have one name in {out}; label one part after the other")
    stepper = make_stepper(trainer, config, dist.pick_device(config.run.device))
    stepper.eval()
    stamp: dict[str, Any] = {
        "runs": [run.resolve().name for run in runs],
        "step": step,
        "weights": checkpoint.fingerprint({name: m.state_dict() for name, m in trainer.modules.items()}),
        "precision": stepper.precision,
        "protocol": config.eval.model_dump(mode="json"),
        "average": average if len(runs) > 1 else None,
        "keep": rule.keep,
        "sure": rule.sure,
        "images": images_of(target),
        "classes": trainer.classes.dump(),
    }
    if out.exists():
        _require_same(out, stamp)
        say(f"{out} is complete; delete it to label again")
        return
    limit = config.run.time_limit
    with (
        StopRequests(seconds(limit) if limit else None) as stop,
        made_whole(out, lambda left: _require_same(left, stamp)) as (partial, confirm),
    ):
        run_files.write_text(partial / PSEUDO_STAMP, json.dumps(stamp, indent=2) + "\n")
        for folder in ("images", "labels", WORK):
            (partial / folder).mkdir(exist_ok=True)
            run_files.remove_left(partial / folder)

        left = {name: sample for name, sample in names.items() if not _predicted(partial, name).exists()}
        say(f"labelling {len(left)} of {len(samples)} images of {root} on {stepper.device}")
        loaded = plain_images(list(left.values()), config.data.workers)
        for name, (_, image) in zip(left, stop.watch(bar(loaded, "predictions", len(left)), 0)):
            confirm()
            _predict(stepper, config.eval, image, _predicted(partial, name))

        counts = np.zeros((len(trainer.classes), LEVELS), np.int64)
        for name in stop.watch(bar(names, "confidences", len(names)), 0):
            label, level = _read(_predicted(partial, name))
            pairs = label.astype(np.int64) * LEVELS + level
            counts += np.bincount(pairs.ravel(), minlength=counts.size).reshape(counts.shape)
        lowest = thresholds(counts, rule)

        for name, sample in stop.watch(bar(names.items(), "labels", len(names)), 0):
            confirm()
            run_files.link_or_copy(sample.image, partial / "images" / f"{name}{sample.image.suffix}")
            label, level = _read(_predicted(partial, name))
            label[level < lowest[label]] = IGNORE
            with run_files.replacing(partial / f"labels/{name}.png") as fresh:
                Image.fromarray(trainer.classes.to_stored(label)).save(fresh, "PNG")

        found = _summary(trainer.classes, counts, lowest)
        run_files.write_text(partial / PSEUDO_STAMP, json.dumps(stamp | {"labels": found}, indent=2) + "\n")
        shutil.rmtree(partial / WORK)
    say(_table(found))
    say(f"{out} is complete: data.target.dataset=folders data.target.split=all data.target.root={out}")


def levels(confidence: np.ndarray) -> np.ndarray:
    """Confidences in [0, 1] as uint16 levels, equal steps of log(1 - confidence): fine where most pixels are."""
    doubt = np.log(1 - confidence.astype(np.float64) * (1 - FINEST)) / math.log(FINEST)
    return np.minimum(doubt * LEVELS, LEVELS - 1).astype(np.uint16)


def confidence_of(level: int) -> float:
    """The lowest confidence of a level."""
    return (1 - FINEST ** (level / LEVELS)) / (1 - FINEST)


def thresholds(counts: np.ndarray, rule: Rule) -> np.ndarray:
    """The lowest level that is kept of each class, (classes,) int64.

    Args:
        counts: (classes, levels) pixels.
    """
    wanted = np.ceil(rule.keep * counts.sum(1))
    above = counts[:, ::-1].cumsum(1)[:, ::-1]  # pixels of a level or more
    by_share = (above >= np.maximum(wanted, 1)[:, None]).sum(1) - 1
    sure = int(levels(np.array(rule.sure))) + (rule.sure > confidence_of(int(levels(np.array(rule.sure)))))
    found: np.ndarray = np.minimum(np.maximum(by_share, 0), sure)
    return found


def _predicted(partial: Path, name: str) -> Path:
    return partial / WORK / f"{name}.npz"


def _predict(stepper: Stepper, config: EvalConfig, image: torch.Tensor, path: Path) -> None:
    with stepper.autocast():
        size = (image.shape[-2], image.shape[-1])
        label, confidence = predict_confidence(stepper.trainer.predict, image.to(stepper.device), size, config)
    with run_files.replacing(path) as fresh, open(fresh, "wb") as file:
        np.savez_compressed(file, label=label.cpu().numpy(), level=levels(confidence.cpu().numpy()))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) uint8 trainIds and (H, W) uint16 levels of one image."""
    try:
        with np.load(path) as found:
            return found["label"], found["level"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: damaged; delete it, and the same command makes it anew") from error


def _summary(classes: LabelSpace, counts: np.ndarray, lowest: np.ndarray) -> dict[str, dict[str, float]]:
    """By class: its share of all predicted pixels, the share of these that is kept, and from which confidence on."""
    found = {}
    for name, row, level in zip(classes.names, counts, lowest):
        of = int(row.sum())
        found[name] = {
            "predicted": round(of / max(int(counts.sum()), 1), 6),
            "kept": round(int(row[level:].sum()) / max(of, 1), 4),
            "confidence": round(confidence_of(int(level)), 4),
        }
    return found


def _table(found: dict[str, dict[str, float]]) -> str:
    width = max(map(len, found))
    lines = [f"{'class':<{width}}  predicted   kept  from confidence"]
    for name, row in found.items():
        if row["predicted"]:
            figures = f"{row['predicted']:>8.2%}  {row['kept']:>5.1%}  {row['confidence']:.4f}"
            lines.append(f"{name:<{width}}  {figures}")
        else:
            lines.append(f"{name:<{width}}     never")
    return "\n".join(lines)


def _require_same(folder: Path, stamp: dict[str, Any]) -> None:
    """
    Raises:
        UserError: `folder` holds something else than `stamp` says.
    """
    found = folders.read_stamp(folder, PSEUDO_STAMP)
    if {key: found.get(key) for key in stamp if key != "runs"} != {k: v for k, v in stamp.items() if k != "runs"}:
        what = f"pseudo labels of {', '.join(found.get('runs', []))}" if found else "something else"
        raise UserError(f"{folder} holds {what}, not what this call would write; delete it or name another folder")
