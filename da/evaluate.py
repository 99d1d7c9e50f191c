"""`evaluate`: score checkpoints under named protocols, draw and export their predictions, ask cityscapesscripts."""

import contextlib
import functools
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from da.config import Tree, UserError, check, flatten, read_tree
from da.data import cityscapes, folders
from da.data.loaders import resolve_root, val_samples, workers_watched
from da.data.transforms import FolderConfig
from da.engine import dist, run_files
from da.engine.log import say
from da.ensemble import Average, restore_all
from da.evaluation import official, visualize
from da.evaluation.infer import EvalConfig
from da.evaluation.metrics import scores
from da.evaluation.protocols import PROTOCOLS, Protocol, read_protocols
from da.evaluation.report import table
from da.labels import LabelSpace, label_space
from da.run import checkpoint_path, evaluate, make_stepper, protocol, restore
from da.trainers import base


def named_protocols(names: Sequence[str]) -> dict[str, Protocol]:
    """The protocols of `experiments/tables/protocols.yaml` that are called `names`.

    Raises:
        UserError: no such name, or one without settings; the known ones are listed.
    """
    known = {name: entry for name, entry in read_protocols().items() if entry.eval}
    for name in names:
        if name not in known:
            raise UserError(f"--protocol {name}: not in {PROTOCOLS}; known: {', '.join(known)}")
    return {name: known[name] for name in names}


@workers_watched()
def evaluate_runs(
    runs: Sequence[Path],
    which: str,
    overrides: Sequence[str],
    figure: Path | None = None,
    protocols: Sequence[str] = (),
    export: Path | None = None,
    compare_official: bool = False,
    ensemble: Average | None = None,
) -> list[dict[str, Any]]:
    """Score checkpoints on their validation split and write `evaluation_<which>[_<protocol>][_<settings>].json` beside
    each; `<settings>` are those of `overrides`, so that no result replaces one that was measured otherwise.

    Where no pixel has a label, as in Cityscapes' test split, there are predictions and no result.

    Args:
        runs: run folders or checkpoint files.
        which: `last` or `best` of a run folder.
        overrides: `key=value` settings of the evaluation; they win over a protocol, whose name then says so
            (`hrda+flip=true`).
        figure: PNG to draw the same validation images to: image, label, one prediction per result.
        protocols: names in `experiments/tables/protocols.yaml`; none: as the run's own `eval:` section says.
        export: folder for every prediction, `<result>/labelIds/*.png` (of Cityscapes what its server takes) and
            `<result>/color/*.png`, where `<result>` is the run's name, with the protocol's where there is one.
        compare_official: also score the predictions with `cityscapesscripts` and require equal figures.
        ensemble: also score all `runs` as one, whose result is written beside the first run's folder.

    Raises:
        UserError: no such checkpoint or protocol, settings that are part of the run, a missing optional package, no
            labels and no `export`.
    """
    named = named_protocols(protocols)
    for title, entry in named.items():
        if entry.assumed:
            say(f"protocol {title}: assumed or done otherwise here: {entry.assumed}")
    changed, elsewhere = _named_settings(overrides)
    choices: list[tuple[str, Protocol | None]] = [("+".join(changed), None)]
    if named:
        choices = [("+".join([title, *changed]), entry) for title, entry in named.items()]
    entries = [_Entry(_name(run), [run]) for run in runs]
    if ensemble:
        if len(runs) < 2:
            raise UserError("--ensemble: name two runs or more")
        entries.append(_Entry(f"{ensemble} of {' + '.join(_name(run) for run in runs)}", list(runs)))
    names = [entry.name for entry in entries]
    if export:
        _refuse_to_mix([_exported(export, name, label) for name in names for label, _ in choices])
    if compare_official:  # refused before anything is scored
        official.evaluator()
        for run in runs:
            own, _, _ = restore(checkpoint_path(run, which), overrides)
            for _, chosen in choices:
                _require_official(_under_protocol(own, chosen, overrides))
    results, columns, titles, unwritten = [], [], [], []
    for name, members in entries:
        run, paths = members[0], [str(checkpoint_path(run, which)) for run in members]
        own, trainer, step = restore_all(members, which, ensemble or "logits", overrides)
        device = dist.pick_device(own.run.device)
        stepper = make_stepper(trainer, own, device)
        own = own.model_copy(update={"run": own.run.model_copy(update={"precision": stepper.precision})})
        has_labels = _has_labels(own.data.val)
        if not has_labels and not export:
            raise UserError(f"{own.data.val.root}: no labels of split test to score; --export DIR writes predictions")
        val = val_samples(own.data.val, own.data.classes, workers=own.data.workers, with_labels=has_labels)
        kind = which if run.is_dir() else run.stem
        for label, chosen in choices:
            config = _under_protocol(own, chosen, overrides)
            title = " ".join(filter(None, (name, label)))
            with contextlib.ExitStack() as stack:
                to = _exported(export, name, label) if export else None
                if compare_official and to is None:
                    to = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                keep = functools.partial(_export, to, trainer.classes) if to else None
                counts, pictures = evaluate(stepper, config, val, keep=keep)
                columns.append(pictures)
                titles.append(title)
                if not counts.any():
                    say(f"{title}: no pixel of {config.data.val.dataset} {config.data.val.split} has a label: no score")
                    continue
                found = {
                    "run": name,
                    **protocol(config),
                    **({"trainer": "ensemble"} if len(members) > 1 else {}),
                    "weights_report": trainer.weights_report,
                    **(_named(label, chosen) if chosen else {}),
                    "checkpoint": kind,
                    "checkpoint_file": " + ".join(paths),
                    "step": step,
                    "commit": run_files.commit(),
                    "scores": {
                        k: v
                        for k, v in scores(counts, config.data.classes, config.eval.classes).items()
                        if math.isfinite(v)
                    },
                    "confusion": counts.tolist(),
                }
                if compare_official and to:
                    found["official_mIoU"] = _compare_official(config, to, counts, title)
            results.append(found)
            folder, words = (run if run.is_dir() else run.parent), ["evaluation"]
            if len(members) > 1:
                folder, words = folder.parent, ["ensemble", _plain(name)]
            file = "_".join(filter(None, (*words, kind, label, *elsewhere))) + ".json"
            try:
                run_files.write_text(folder / file, json.dumps(found) + "\n")
            except OSError as error:  # the figures are there all the same
                unwritten.append(f"{error.filename or run}: {error.strerror}")
    shown = {json.dumps(found["images"]) for found in results}
    if figure and len(shown) > 1:
        unwritten.append(f"{figure}: the runs were scored on different images, which no row could show together")
    elif figure:
        rows = [[r[0][0], r[0][2], *(column[1] for column in r)] for r in zip(*columns)]
        picture = visualize.grid(rows, ("image", "label", *titles), own.data.classes)
        visualize.save(figure, np.concatenate([picture, visualize.legend(own.data.classes, picture.shape[1])]))
    if unwritten:
        say(table(results))
        raise UserError(f"not written: {'; '.join(unwritten)}")
    return results


class _Entry(NamedTuple):
    """What is scored in a column of its own."""

    name: str
    runs: list[Path]  # several: as one


def _has_labels(val: FolderConfig) -> bool:
    """False for Cityscapes' test split, whose labels only the benchmark's server has, unless label files lie there."""
    if (val.dataset, val.split) != ("cityscapes", "test"):
        return True
    samples = cityscapes.scan(resolve_root(val), val.split)
    return len(folders.missing_labels(samples)) < len(samples)


def _name(run: Path) -> str:
    """What results call a run folder or a checkpoint file."""
    run = run.resolve()
    if run.is_dir():
        return run.name
    return f"{run.parent.parent.name}/{run.stem}" if run.parent.name == "checkpoints" else run.stem


def _named_settings(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings that change a result, as parts of a file name: `eval.` as `key=value`, and the values of others."""
    values = read_tree((), overrides).values
    if merge := values.get("eval", {}).pop("merge", None):  # too long for a name
        values["eval"]["merge"] = hashlib.sha256(json.dumps(merge, sort_keys=True).encode()).hexdigest()[:6]
    given = sorted(flatten(values).items())
    changed = [f"{key.removeprefix('eval.')}={json.dumps(value)}" for key, value in given if key.startswith("eval.")]
    others = [
        str(value) for key, value in given if key.startswith(("data.val.", "data.classes")) or key == "run.precision"
    ]
    return [_plain(text) for text in changed], [_plain(text) for text in others]


def _plain(text: str) -> str:
    """The end of `text`, where folders differ, without what a file name should not hold."""
    return re.sub(r"[^\w.=]+", "-", text).strip("-")[-100:]


def _exported(export: Path, name: str, label: str) -> Path:
    return export / "-".join(filter(None, (name.replace("/", "-"), label)))


def _refuse_to_mix(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"--export: two of the runs would be written to {folder}; evaluate them one by one")
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--export: {folder} holds an earlier export; delete it or name another folder")


def _named(label: str, chosen: Protocol) -> dict[str, str | None]:
    return {
        "protocol_name": label,
        "published_checkpoint": chosen.checkpoint,
        **({"protocol_assumed": chosen.assumed} if chosen.assumed else {}),
    }


def _under_protocol(config: base.Experiment, chosen: Protocol | None, overrides: Sequence[str]) -> base.Experiment:
    """`config` with the protocol's whole `eval:` section, and over it the `eval.` settings of the command line."""
    if chosen is None:
        return config
    assert chosen.eval is not None
    tree = Tree()
    tree.add({"classes": config.eval.classes} | chosen.eval.model_dump(mode="json", exclude_unset=True), "protocol")
    tree.add(read_tree((), overrides).values.get("eval", {}), "command line")
    return config.model_copy(update={"eval": check(EvalConfig, tree)})


def _export(folder: Path, classes: LabelSpace, name: str, prediction: Tensor) -> None:
    trainids = prediction.cpu().numpy()
    visualize.save_labels(folder / "labelIds" / f"{name}_labelIds.png", trainids, classes)
    visualize.save(folder / "color" / f"{name}_color.png", visualize.colorize(trainids, classes))


def _require_official(config: base.Experiment) -> None:
    """
    Raises:
        UserError: `cityscapesscripts` cannot score what `config` evaluates.
    """
    val = config.data.val
    if config.data.classes != label_space(official.CLASSES) or config.eval.merge:
        raise UserError(f"--official: scores the classes of {official.CLASSES} alone, not {config.data.classes.name}")
    if val.dataset != "cityscapes" or config.eval.label_size:
        reason = f"eval.label_size {config.eval.label_size}" if config.eval.label_size else f"dataset {val.dataset}"
        raise UserError(f"--official: scores Cityscapes' own labelIds files at full resolution, not {reason}")
    if not _has_labels(val):
        raise UserError(f"--official: {val.root} has no labels of split {val.split}; leave it out")


def _compare_official(config: base.Experiment, folder: Path, counts: np.ndarray, title: str) -> float:
    """Score the predictions below `folder` with `cityscapesscripts`, say how they compare, return its mean IoU."""
    val = config.data.val
    samples = cityscapes.index(resolve_root(val), val.split)
    predictions = [folder / "labelIds" / f"{s.name}_labelIds.png" for s in samples]
    found = official.score(predictions, [s.label for s in samples if s.label])
    for line in official.compare(found, counts):
        say(f"{title}: {line}")
    return 100 * found.mean
