"""Finished runs side by side: grouped by protocol and validation images, averaged over seeds, set beside published
rows."""

import json
import math
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from da.comparison.published import Published, PublishedRow
from da.config import UserError, difference, flatten, parse_yaml
from da.evaluation.infer import EvalConfig
from da.evaluation.reference import Reference, mean_std, read_references
from da.evaluation.report import classes_of, describe_images
from da.labels import DEFAULT, LabelSpace, label_space

SUPERVISED = "supervised"  # the table of checkpoints that other projects trained
BASELINE, ORACLE = "source_only", "oracle"
TRANSLATED = "‡"  # marks a translation run
FREE_KEYS = ("seed", "name", "experiment", "data.workers", "run.device", "run.time_limit", "run.pictures", "eval.")
PUBLISHED_ON = "Cityscapes val"  # the data set of published rows that own rows can be compared with
CITYSCAPES_VAL = (500, [2048, 1024])  # images; width and height of the labels

# What is read from the files of a run folder: key -> type.
CONFIG = {
    "trainer": str,
    "experiment": str,
    "name": str,
    "seed": int,
    "model.backbone": str,
    "data.val.dataset": str,
    "data.val.split": str,
    "run.steps": int,
    "eval": dict,
}
RESULT = {"checkpoint": str, "step": int, "scores": dict}
EVALUATION = {
    "run": str,
    "trainer": str,
    "seed": int,
    "backbone": str,
    "val": dict,
    "precision": str,
    "protocol": dict,
    "checkpoint_file": str,
}


@dataclass(frozen=True)
class Run:
    """What one run folder holds.

    Attributes:
        config: the resolved settings.
        summary: of a finished run, else None.
        lines: of `metrics.jsonl`.
        results: everything that was scored: the summary, and each `evaluation_*.json` of the run's last or best step;
            `scores` are finite and hold `mIoU`.
        notes: which of them were left out, and why.
        is_translation: whether its score is that of a frozen segmenter on translated images.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    lines: list[dict[str, Any]]
    results: list[dict[str, Any]]
    notes: list[str]
    is_translation: bool = False

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def backbone(self) -> str:
        return str(self.config["model"]["backbone"])

    @property
    def weights(self) -> str:
        """That the backbone began with: `random`, `imagenet`, or the name of a file."""
        weights = str(self.config["model"].get("weights", "imagenet"))
        return "random" if weights == "none" else Path(weights).name

    @property
    def root(self) -> Path:
        """The folder of all runs, as `--runs` names it."""
        return self.folder.resolve().parent.parent

    @property
    def state(self) -> str:
        """`finished`, or how far an unfinished run came."""
        if self.summary:
            return "finished" if self.results else "finished, no mIoU"
        step = max((int(line["step"]) for line in self.lines), default=0)
        return f"unfinished, step {step} of {self.config['run']['steps']}"


@dataclass(frozen=True)
class Row:
    """One experiment under one protocol, over its seeds.

    Attributes:
        name: of the experiment; with the folder of runs behind it for runs that lie in another one than most.
        scores: by seed, of the last checkpoint, in percent, as `da.evaluation.metrics.scores` names them.
        best: the same of the checkpoint with the highest validation score; `mIoU` alone where it was not evaluated.
        confusion: (classes, classes) counts summed over the seeds that were evaluated, `evaluated`; None without any.
        validated: the runs that were validated under the block's protocol, on its images, while they trained.
        notes: what a reader must know, such as an unfinished seed.
    """

    name: str
    runs: list[Run]
    scores: dict[int, dict[str, float]]
    best: dict[int, dict[str, float]]
    confusion: np.ndarray | None
    evaluated: list[int]
    validated: list[Run]
    notes: list[str]

    @property
    def is_translation(self) -> bool:
        """Whether the score is that of the source segmenter on translated images."""
        return self.runs[0].is_translation

    @property
    def title(self) -> str:
        """The name, marked where a reader must not take the row for a method's."""
        return f"{self.name} {TRANSLATED}" if self.is_translation else self.name

    @property
    def network(self) -> str:
        """Backbone and the weights it began with; where the runs differ in it, each."""
        return "; ".join(dict.fromkeys(f"PSPNet-{run.backbone}, {run.weights}" for run in self.runs))

    @property
    def settings(self) -> dict[str, Any]:
        """What a reader asks first of a run: its method, updates and precision."""
        run = self.runs[0].config["run"]
        return {"method": self.runs[0].config["trainer"], "updates": run["steps"], "precision": run.get("precision")}

    @property
    def is_scored(self) -> bool:
        return bool(self.scores or self.best)

    def values(self, key: str) -> list[float]:
        return [s[key] for _, s in sorted(self.scores.items()) if s.get(key) is not None]

    def mean(self, key: str) -> float | None:
        return statistics.fmean(self.values(key)) if self.values(key) else None


class Comparison(NamedTuple):
    """An own mean and the published one, in percent, over the same classes."""

    published: PublishedRow
    subset: str  # a name in the block's `LabelSpace.subsets`
    own: float
    theirs: float


@dataclass(frozen=True)
class Block:
    """Everything of one experiment folder that was measured under one protocol on the same images, and what was
    published under it.

    Attributes:
        protocol: as stored with the results, with defaults filled in; empty in a block of published rows alone.
        data: the validation images, in words.
        rows: own results: source only first, then translations, the oracle last, the others by rising mean.
        missing: experiments of the folder that have no run.
        published: rows of the same protocol, measured on the same images.
        others: all other rows; never compared.
        apart: why rows of the same protocol are among the others; empty where none are.
        classes: what was scored.
        reference: what this project measured before under the same protocol on the same images.
    """

    experiment: str
    protocol: dict[str, Any]
    data: str
    rows: list[Row]
    missing: list[str] = field(default_factory=list)
    published: list[PublishedRow] = field(default_factory=list)
    others: list[PublishedRow] = field(default_factory=list)
    apart: str = ""
    classes: LabelSpace = field(default_factory=lambda: label_space(DEFAULT))
    reference: Reference | None = None

    @property
    def subset(self) -> str:
        """What the headline mean is over, a name in `classes.subsets`."""
        return str(self.protocol.get("classes") or len(self.classes))

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name and row.scores), None)

    def gain(self, row: Row) -> float | None:
        """Points over source only."""
        baseline = self.row(BASELINE)
        own, other = row.mean("mIoU"), baseline.mean("mIoU") if baseline else None
        return None if row is baseline or own is None or other is None else own - other

    def mean(self, row: Row, subset: str) -> float | None:
        """An own mean over a subset of the classes."""
        return row.mean("mIoU" if subset == self.subset else self.classes.means[subset])

    def comparison(self, row: Row) -> Comparison | None:
        """With the published row, of the same protocol, that this experiment repeats: over the block's classes, else
        over a subset that both have."""
        for published in self.published:
            for subset in (self.subset, *self.classes.subsets):
                own, theirs = self.mean(row, subset), published.mean(subset)
                if published.experiment == row.name and own is not None and theirs is not None:
                    return Comparison(published, subset, own, theirs)
        return None


def find_runs(folders: Iterable[Path], translators: Collection[str] = ()) -> list[Run]:
    """Read run folders; a folder without `config.yaml` is taken for a folder of runs. A file is taken for the
    evaluation of a checkpoint without a run folder, such as a converted one: a row of table `supervised`.
    `translators` are the methods whose runs are translations.

    Raises:
        UserError: a folder that holds no run, or a file that cannot be read or lacks a key.
    """
    found: list[Run] = []
    for folder in folders:
        if folder.is_file():
            found.append(_read_evaluation(folder))
            continue
        inside = (
            [folder] if (folder / "config.yaml").exists() else sorted(p.parent for p in folder.glob("*/config.yaml"))
        )
        if not inside:
            raise UserError(
                f"{folder}: no run there (a run folder holds config.yaml); name run folders or their parent"
            )
        found += [_read_run(run) for run in inside]
    found = [replace(run, is_translation=run.config["trainer"] in translators) for run in found]
    return list({run.folder.resolve(): run for run in found}.values())


def _read_evaluation(path: Path) -> Run:
    """What `evaluate` wrote of a checkpoint file, as a run whose last checkpoint that file is."""
    result = _read_result(path, "evaluate again")
    _require(EVALUATION, result, path, "evaluate again")
    config = {
        "trainer": result["trainer"],
        "experiment": SUPERVISED,
        "name": result["run"],
        "seed": result["seed"],
        "model": {"backbone": result["backbone"], "weights": result["checkpoint_file"]},
        "data": {"val": result["val"]},
        "run": {"steps": result["step"], "precision": result["precision"]},
        "eval": result["protocol"],
    }
    return Run(Path(result["checkpoint_file"]), config, result, [], [result | {"checkpoint": "last"}], [])


def _read_run(folder: Path) -> Run:
    path = folder / "config.yaml"
    config = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    _require(CONFIG, config, path, "restore it, or leave the run out")
    lines, path = _read_lines(folder / "metrics.jsonl"), folder / "summary.json"
    if not path.exists():
        return Run(folder, config, None, lines, [], [])
    summary = _read_result(path, "train again")
    files = sorted(folder.glob("evaluation_*.json"))
    steps = {"last": summary["step"], "best": summary.get("best", {}).get("step")}
    own = config["run"].get("precision")
    results, notes = [], []
    for file, found in [(path, summary), *((file, _read_result(file, "evaluate the run again")) for file in files)]:
        which, step = found["checkpoint"], found["step"]
        if step != steps.get(which):
            notes.append(
                f"{folder.name}: {file.name} is left out: it is of step {step}, the run's `{which}` checkpoint of step "
                f"{steps.get(which)}; evaluate it again"
            )
        elif found.get("precision", own) != own:
            notes.append(
                f"{folder.name}: {file.name} is left out: scored in {found['precision']}, the run's own is {own}"
            )
        elif "mIoU" not in found["scores"]:
            notes.append(f"{folder.name}: {file.name} is left out: no mIoU in it, as of images without labels")
        else:
            results.append(found)
    return Run(folder, config, summary, lines, results, notes)


def _read_result(path: Path, remedy: str) -> dict[str, Any]:
    """A result with the finite ones of its scores."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and {remedy}") from error
    _require(RESULT, found, path, f"delete it and {remedy}")
    found["scores"] = {k: v for k, v in found["scores"].items() if isinstance(v, int | float) and math.isfinite(v)}
    return found


def _require(keys: dict[str, type], values: Any, path: Path, remedy: str) -> None:
    for key, kind in keys.items():
        found = values
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, kind):
            got = "it is absent" if found is None else f"got {str(found)[:40]!r}"
            raise UserError(f"{path}: {key}: expected {kind.__name__}, but {got}; {remedy}")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a running or killed run, too: one that is cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


class _Key(NamedTuple):
    """What two results must share to stand in one table."""

    experiment: str
    dataset: str
    split: str
    protocol: str  # JSON with sorted keys
    classes: str  # JSON of `LabelSpace.dump`
    images: str  # JSON with sorted keys


Member = tuple[Run, dict[str, Any] | None]  # a run and a result of it, None for a run without any


def compare(runs: Sequence[Run], published: Published, expected: Sequence[str] = ()) -> list[Block]:
    """Group runs by experiment folder, protocol and validation images.

    Runs of the same name that lie below different folders of runs are different variants, each with a row of its own.
    `expected` names the experiments that a table should hold; those without a run are listed as missing.

    Raises:
        UserError: two run folders that would be the same seed of the same row.
    """
    names = {run.name for run in runs}
    references = read_references()
    places = _places(runs)
    _refuse_twins(runs, places)
    groups = _group(runs)
    blocks: list[Block] = []
    for key, members in groups.items():
        protocol = json.loads(key.protocol)
        by_name: dict[str, list[Member]] = defaultdict(list)
        for run, result in members:
            by_name[run.name + places[run.root]].append((run, result))
        rows = sorted((_row(name, found) for name, found in by_name.items()), key=_order)
        here = [p for p in published.rows if p.table == key.experiment]
        same = [p for p in here if p.dataset == PUBLISHED_ON and published.protocols[p.protocol].matches(protocol)]
        apart = _not_the_published_images(key) if same and any(row.is_scored for row in rows) else ""
        if apart:
            same = []
        missing = [name for name in expected if name not in names] if not blocks else []
        others = [p for p in here if p not in same]
        classes = label_space(json.loads(key.classes))
        before = references.get(key.experiment)
        if before and not before.fits({"protocol": protocol, "images": json.loads(key.images)}):
            before = None
        data = _data(key, groups, references["mini"].images)
        blocks.append(Block(key.experiment, protocol, data, rows, missing, same, others, apart, classes, before))
    return blocks


def published_alone(table: str, published: Published, expected: Sequence[str] = ()) -> list[Block]:
    """The published rows of a table without runs, a block per data set; `expected` are all missing."""
    rows = [p for p in published.rows if p.table == table]
    blocks: list[Block] = []
    for data in dict.fromkeys(p.dataset for p in rows):
        missing = list(expected) if not blocks else []
        blocks.append(Block(table, {}, data, [], missing, others=[p for p in rows if p.dataset == data]))
    return blocks


def _refuse_twins(runs: Sequence[Run], places: dict[Path, str]) -> None:
    seen: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        other = seen.setdefault((run.config["experiment"], run.name + places[run.root], run.config["seed"]), run)
        if other is not run:
            raise UserError(
                f"{other.folder} and {run.folder}: both are {run.name}, seed {run.config['seed']}; name only one of "
                "them, or move one below another folder of runs"
            )


def _group(runs: Sequence[Run]) -> dict[_Key, list[Member]]:
    """Results by what they must share. Runs without any join the first group of their protocol."""
    groups: dict[_Key, list[Member]] = defaultdict(list)
    for run in runs:
        for result in run.results:
            groups[_key(run, result)].append((run, result))
    for run in runs:
        if not run.results:
            own = _key(run, None)
            groups[next((key for key in groups if key[:-1] == own[:-1]), own)].append((run, None))
    return groups


def _data(key: _Key, others: Iterable[_Key], miniature: str) -> str:
    """The validation images in words; with their hash where another block differs in nothing else. `miniature` is the
    hash of those of the miniature, which lie in Cityscapes' layout."""
    images = json.loads(key.images)
    dataset = "miniature" if images.get("hash") == miniature else key.dataset
    text = f"{dataset} {key.split}, {describe_images(images)}"
    alike = [
        o for o in others if o[:-1] == key[:-1] and describe_images(json.loads(o.images)) == describe_images(images)
    ]
    return f"{text} (hash {images['hash']})" if len(alike) > 1 else text


def _not_the_published_images(key: _Key) -> str:
    """Why no published number of Cityscapes val may be set beside these results; empty where one may."""
    images, reduced = json.loads(key.images), json.loads(key.protocol)["label_size"]
    if json.loads(key.classes) != DEFAULT:
        return "published rows are not compared: these results have other classes"
    if (key.dataset, key.split) != ("cityscapes", "val"):
        return f"published rows are not compared: they are of Cityscapes val, not of {key.dataset} {key.split}"
    if "count" not in images:
        return "published rows are not compared: which images were scored is not recorded; evaluate the runs again"
    count, size = CITYSCAPES_VAL
    if images["count"] != count or images["size"] not in (size, reduced or size):
        return (
            f"published rows are not compared: they are of {describe_images({'count': count, 'size': size})}, "
            f"these results of {describe_images(images)}"
        )
    return ""


def _places(runs: Sequence[Run]) -> dict[Path, str]:
    """What is added to a run's name by its folder of runs: nothing for the one that holds the others, or the first."""
    roots = list(dict.fromkeys(run.root for run in runs))
    common = Path(os.path.commonpath(roots)) if roots else Path()
    plain = common if common in roots else next(iter(roots), common)
    return {root: "" if root == plain else f" ({root.relative_to(common)})" for root in roots}


def _key(run: Run, result: dict[str, Any] | None) -> _Key:
    val = _val(run, result)
    protocol = EvalConfig().model_dump(mode="json") | ((result or {}).get("protocol") or run.config["eval"])
    classes = classes_of(result or run.config["data"])
    protocol["classes"] = protocol["classes"] or len(classes)
    return _Key(
        str(run.config["experiment"]),
        str(val["dataset"]),
        str(val["split"]),
        json.dumps(protocol, sort_keys=True),
        json.dumps(classes.dump()),
        json.dumps(_images(run, result), sort_keys=True),
    )


def _val(run: Run, result: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = (result or {}).get("val") or run.config["data"]["val"]
    return found


def _images(run: Run, result: dict[str, Any] | None) -> dict[str, Any]:
    """Which images were scored, as the result says; the folder they lie in is then a matter of the machine.

    An older result does not say. It takes what the run's other results of the same folder say, if these agree; else
    the images are unknown, {}, or, where the folder is not the one the run was validated on, those of that folder.
    """
    if result and result.get("images"):
        return dict(result["images"])
    root = _val(run, result).get("root")
    named = [r["images"] for r in run.results if r.get("images") and _val(run, r).get("root") == root]
    if named and all(images == named[0] for images in named):
        return dict(named[0])
    return {} if root == run.config["data"]["val"].get("root") else {"root": root}


def _row(name: str, members: list[Member]) -> Row:
    scores: dict[int, dict[str, float]] = {}
    confusions: dict[int, np.ndarray] = {}
    best: dict[int, dict[str, float]] = {}
    runs = list({run.folder: run for run, _ in members}.values())
    notes = [note for run in runs for note in run.notes]
    for run, result in members:  # an evaluation stands after the summary and replaces its scores
        seed = int(run.config["seed"])
        if result is None:
            notes.append(f"{name}, seed {seed}: {run.state}")
            continue
        if result["checkpoint"] == "best":
            best[seed] = result["scores"]
            continue
        scores[seed] = result["scores"]
        if result.get("best", {}).get("val/mIoU", -1) >= 0:  # below 0: no validation had a score
            best[seed] = {"mIoU": result["best"]["val/mIoU"]}
        if "confusion" in result:
            confusions[seed] = np.asarray(result["confusion"], np.int64)
    for run in runs[1:]:
        changed = [line for line in difference(_any_seed(runs[0]), _any_seed(run)) if not line.startswith(FREE_KEYS)]
        if changed:
            notes.append(f"{name}: {run.folder.name} differs from {runs[0].folder.name} in {'; '.join(changed)}")
    validated = [run for run, result in members if result in (None, run.summary)]
    confusion = np.sum(list(confusions.values()), axis=0) if confusions else None
    return Row(name, runs, scores, best, confusion, sorted(confusions), validated, notes)


def _any_seed(run: Run) -> dict[str, Any]:
    """The settings, with the seed taken out of the names of other runs that this one starts from or reads."""
    text = re.sub(rf"-seed{run.config['seed']}\b", "-seedN", json.dumps(run.config))
    found: dict[str, Any] = json.loads(text)
    return found


def _order(row: Row) -> tuple[int, float]:
    place = 1 if row.is_translation else {BASELINE: 0, ORACLE: 3}.get(row.name, 2)
    return place, row.mean("mIoU") or 0.0


def ablations(block: Block) -> list[tuple[str, list[str], list[list[str]]]]:
    """Per trainer with several experiments: its name, the settings that differ, and per experiment their values.

    The oracle is no ablation and left out. The last cell of a line is the mean mIoU with its deviation.
    """
    tables = []
    for trainer in dict.fromkeys(str(row.runs[0].config["trainer"]) for row in block.rows):
        rows = [r for r in block.rows if r.runs[0].config["trainer"] == trainer and r.scores and r.name != ORACLE]
        settings = [flatten(_any_seed(row.runs[0])) for row in rows]
        keys = [k for k in dict.fromkeys(k for s in settings for k in s) if not k.startswith(FREE_KEYS)]
        varied = [k for k in keys if len({json.dumps(s.get(k)) for s in settings}) > 1]
        if len(rows) > 1 and varied:
            lines = [
                [r.title, *(_value(s.get(k)) for k in varied), mean_std(r.values("mIoU"))]
                for r, s in zip(rows, settings)
            ]
            tables.append((trainer, varied, lines))
    return tables


def _value(value: Any) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
