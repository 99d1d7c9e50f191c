"""The report: collect runs, draw a few predictions, and write the tables and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from da.comparison import page, published, tables
from da.comparison.compare import Block, Run, compare, find_runs, published_alone
from da.config import EXPERIMENTS, Tree, UserError, read_tree
from da.engine import dist
from da.engine.log import bar, say
from da.engine.run_files import write_text
from da.run import check_config, checkpoint_path, evaluate, make_stepper, restore, val_samples
from da.trainers import base


def report(folders: Sequence[Path], table: str | None, root: Path, out: Path, pictures: int) -> None:
    """Write `table.md`, `table.csv`, `table.tex` and `index.html` below `out`.

    Args:
        folders: run folders, or folders of runs; empty for all runs of `table`.
        table: the experiment folder that the runs belong to; its experiments without a run are listed. Where there is
            no run at all, the published rows stand alone.
        root: folder of all runs.
        out: where to write.
        pictures: validation images to show under every method.

    Raises:
        UserError: no runs, runs of another table, or files that cannot be read.
    """
    if not folders and table is None:
        raise UserError("name run folders, or --table with one of " + ", ".join(_known_tables()))
    literature = published.read()
    translators = [name for name in base.methods() if base.find(name).Trainer.is_translation]
    runs = (
        []
        if not folders and _none_yet(root, table, literature)
        else find_runs(folders or [root / str(table)], translators)
    )
    pretraining = [run for run in runs if _is_pretext(run.config)]
    runs = [replace(run, config=_completed(run.config)) for run in runs if run not in pretraining]
    if folders and pretraining and not runs:
        raise UserError(f"{pretraining[0].folder}: trained an encoder, no segmenter; name runs that start from it")
    strange = [run for run in runs if table and run.config["experiment"] != table]
    if strange:
        raise UserError(f"{strange[0].folder}: a run of {strange[0].config['experiment']}, not of --table {table}")
    shipped = sorted((EXPERIMENTS / table).glob("*.yaml")) if table else []
    expected = [path.stem for path in shipped if not _is_pretext(read_tree([path]).values)]
    blocks = compare(runs, literature, expected) if runs else published_alone(str(table), literature, expected)
    examples, remarks = draw_examples(blocks[0], pictures) if pictures else ([], [])
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.md", tables.markdown(blocks, literature))
    write_text(out / "table.csv", tables.csv_text(blocks, literature))
    write_text(out / "table.tex", tables.latex(blocks, literature))
    write_text(out / "index.html", page.html(blocks, literature, examples, remarks))
    reasons = [f"{b.experiment}: {b.apart}" for b in blocks if b.apart]
    remarks += [f"{run.folder.name}: left out: it trained an encoder, no segmenter" for run in pretraining]
    for text in dict.fromkeys([*(note for b in blocks for row in b.rows for note in row.notes), *reasons, *remarks]):
        say(text)
    number = f"{len(runs)} run" + "s" * (len(runs) > 1)
    found = number if runs else f"no run below {root / str(table)}"
    say(f"{found}; wrote {out}/index.html, table.md, table.csv, table.tex")


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """The settings with the defaults of keys that came after the run."""
    stored = Tree()
    stored.add(config, "config.yaml")
    try:
        return check_config(stored).model_dump(mode="json")
    except UserError:  # of a trainer or with keys that are no more
        return config


def _is_pretext(config: Mapping[str, Any]) -> bool:
    return config["trainer"] in base.methods() and base.find(config["trainer"]).Trainer.is_pretext


def _none_yet(root: Path, table: str | None, literature: published.Published) -> bool:
    """Whether no run of a table is there, but something is published under its name."""
    return any(row.table == table for row in literature.rows) and not any((root / str(table)).glob("*/config.yaml"))


def _known_tables() -> list[str]:
    folders = {path.name for path in EXPERIMENTS.iterdir() if path.name not in ("base", "tables")}
    return sorted(folders | {row.table for row in published.read().rows})


def draw_examples(block: Block, count: int) -> tuple[list[page.Example], list[str]]:
    """The first `count` validation images under the first finished seed of every row, and why a row is left out."""
    found: dict[str, list[list[np.ndarray]]] = {}
    remarks = []
    rows = [row for row in block.rows if row.scores]
    for row in bar(rows, "predictions", len(rows)):
        run = next((run for run in row.validated if run.summary), None)
        if run is None:
            remarks.append(f"no pictures of {row.title}: its own validation is not that of the first table")
            continue
        try:
            found[row.title] = predict_examples(run, count)
        except UserError as error:
            remarks.append(f"no pictures of {row.title}: {error}")
    examples: list[page.Example] = []
    for same in zip(*found.values()):
        image, _, label, _ = same[0]
        if image.shape != label.shape:  # `eval.label_size`
            image = cv2.resize(image, label.shape[1::-1], interpolation=cv2.INTER_AREA)
        examples.append(page.Example(image, label, {name: row[1] for name, row in zip(found, same)}))
    return examples, remarks


def predict_examples(run: Run, count: int) -> list[list[np.ndarray]]:
    """Image, prediction, label and entropy of the first `count` validation images, by the last checkpoint of `run`."""
    config, trainer, _ = restore(checkpoint_path(run.folder, "last"), [f"run.pictures={count}", "data.workers=0"])
    stepper = make_stepper(trainer, config, dist.pick_device(config.run.device))
    return evaluate(stepper, config, val_samples(config.data.val, config.data.classes, workers=0), limit=count)[1]
