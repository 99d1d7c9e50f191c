"""One run from its configuration to its summary, and what is made of its checkpoints."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from da.config import Tree, UserError, check, experiment_file, flatten, parse_yaml, read_tree
from da.data import folders
from da.data.loaders import (
    Batch,
    DataConfig,
    Loaded,
    ValSample,
    class_frequencies,
    class_shares,
    resolve_root,
    train_batches,
    val_samples,
    workers_watched,
)
from da.data.transforms import FolderConfig
from da.engine import checkpoint, dist, lock, run_files
from da.engine.log import bar, say
from da.engine.loop import Loop, Scalars
from da.engine.stepper import Stepper, Trains, set_deterministic
from da.engine.stop import StopRequests, seconds
from da.evaluation import visualize
from da.evaluation.infer import predict_entropy, predict_labels
from da.evaluation.metrics import ConfusionMatrix, scores
from da.evaluation.reference import read_references
from da.evaluation.report import table
from da.labels import DEFAULT, IGNORE, LabelSpace, label_space
from da.nets.pspnet import is_of_encoder
from da.nets.weights import load_modules
from da.pictures import of_training
from da.pretraining import examine, require_large_images
from da.trainers import base, base_pretext
from da.trial import fastest_here

UNTRAINED = "its segmenter is untrained (init: null), so its scores say nothing; look at the pictures"
EVALUATION_KEYS = ("data.val.", "data.classes", "data.workers", "eval.", "run.device", "run.precision", "run.pictures")


def load_config(files: Sequence[str], overrides: Sequence[str] = ()) -> base.Experiment:
    """Read and check an experiment. `experiment` and `name` default to the first file's folder and stem."""
    paths = [experiment_file(file) for file in files]
    tree = read_tree(paths, overrides)
    first = paths[0].resolve()
    tree.values = {"experiment": first.parent.name, "name": first.stem, **tree.values}
    config = check_config(tree)
    require_data(config.data, with_labels=not base.find(config.trainer).Trainer.is_pretext)
    adapts_to = config.data.target or () if base.find(config.trainer).Trainer.uses_target else ()
    if config.data.val.root != "miniature" and any(entry.root == "miniature" for entry in adapts_to):
        raise UserError(
            "data.target: is the miniature, and data.val is not; name your own target images: data.target.dataset=... "
            "data.target.root=..."
        )
    return config


def check_config(tree: Tree) -> base.Experiment:
    if "trainer" not in tree.values:
        raise UserError(f"{tree.where('trainer')}: trainer: required; one of " + ", ".join(base.methods()))
    config = check(base.experiment_schema(str(tree.values["trainer"])), tree)
    for key, value in (("experiment", config.experiment), ("name", config.name)):
        parts = value.split("/")
        strange = not value.isprintable() or max(len(part.encode()) for part in parts) > 200
        if strange or {"", ".", ".."} & set(parts) or (key == "name" and len(parts) > 1):
            raise UserError(
                f"{tree.where(key)}: {key}: {value!r} names no folder below --runs; give a short, plain name"
            )
    return config


def require_data(data: DataConfig, with_labels: bool) -> None:
    """
    Raises:
        UserError: no such data set or description, or, `with_labels`, its labels do not hold the classes.
    """
    for key, entries in (("source", data.source), ("target", data.target or ()), ("val", (data.val,))):
        for entry in entries:
            try:
                found = folders.find(entry.dataset)
                if with_labels and key != "target":  # whose labels nobody reads
                    found.scheme(data.classes)
            except UserError as error:
                raise UserError(f"data.{key}: {error}") from error


def run_folder(config: base.Experiment, runs: Path) -> Path:
    return runs / config.experiment / f"{config.name}-seed{config.seed}"


@workers_watched()
def train(config: base.Experiment, runs: Path) -> Path:
    """Train to the end, continuing what was begun and leaving alone what is finished. Returns the run folder.

    Raises:
        Stopped: the run was asked to stop (signal, `run.time_limit`); all is saved.
    """
    where = run_folder(config, runs)
    limit = config.run.time_limit
    with StopRequests(seconds(limit) if limit else None) as stop:
        set_deterministic(config.run.deterministic)
        device = dist.pick_device(config.run.device, long_work=any(s.root != "miniature" for s in config.data.source))
        dist.setup(device)
        with lock.held(where):
            _train(fastest_here(config, where, device), where, device, stop)
    return where


def _train(config: base.Experiment, where: Path, device: torch.device, stop: StopRequests) -> None:
    if dist.is_main():
        run_files.claim(where, config, _inputs(config, (where / "summary.json").exists()))
    dist.barrier()
    summary = dist.gather(run_files.read_summary(where))[0]  # a shared folder may look older to other machines
    if summary:
        say(f"{where} is finished; delete it to train again, or give a new run its own name=... or seed=...")
        _tell(where, config, summary)
        return
    if dist.is_main():
        run_files.describe_environment(where, device)

    began = time.time()
    trainer = base.build(config)
    report = trainer.weights_report = trainer.encoder.load_report.as_dict()
    note = {} if trainer.segmenter_is_trained or trainer.is_pretext else {"note": UNTRAINED}
    if note:
        say(f"{where}: {UNTRAINED}")
    if not checkpoint.find_last(where / "checkpoints"):
        say(trainer.encoder.load_report.text())
        trainer.started(_initialise(trainer, config.init) if config.init else trainer.encoder.random_tensors())
    stepper = make_stepper(trainer, config, device)
    if config.run.compile:
        trainer.encoder.backbone.compile(dynamic=False)  # one graph for each size of images
    if dist.is_first_here():
        for domain in (*config.data.source, config.data.val):
            resolve_root(domain)  # renders the miniature, which the other processes then find
        _count_classes(trainer, config)
    dist.barrier()
    _count_classes(trainer, config)  # the first process of the machine has kept what it counted
    if trainer.class_weights is not None:
        named = zip(config.data.classes.names, trainer.class_weights.tolist())
        say("class weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in named))
    val = val_samples(
        config.data.val,
        config.data.classes,
        dist.rank(),
        dist.world(),
        config.data.workers,
        with_labels=not trainer.is_pretext,
    )

    if isinstance(trainer, base_pretext.Trainer) and dist.is_main():
        require_large_images(trainer, config)

    def validate(step: int, limit: int | None) -> Scalars:
        watch = stop.watch if limit is None else lambda items, _: stop.awaited(items)
        if isinstance(trainer, base_pretext.Trainer):
            figures, picture = examine(trainer, stepper, config, val, limit, watch)
            if loop.log and limit is None:
                loop.log.picture(step, "val/examples", picture)
                if step == config.run.steps:
                    loop.log.result(step, hyperparameters(config), {trainer.score: figures[trainer.score]})
            return {f"val/{name}": value for name, value in figures.items()}
        counts, pictures = evaluate(stepper, config, val, limit, watch)
        if not counts.any():
            of = config.data.val
            raise UserError(f"data.val: no pixel of {of.dataset} {of.split} has a label; name a split with labels")
        if loop.log and limit is None:
            titles = ("image", "prediction", "label", "entropy")
            picture = visualize.grid(pictures, titles, config.data.classes)
            if trainer.segmenter_is_trained:
                loop.log.picture(step, "val/examples", picture)
        found = scores(counts, config.data.classes, config.eval.classes)
        if limit is None and np.isnan(found["mIoU"]):
            raise UserError(f"eval.classes: none of these {config.eval.classes} classes is in the labels of data.val")
        if loop.log and limit is None and step == config.run.steps:
            loop.log.result(step, hyperparameters(config), {"mIoU": found["mIoU"]})
        return {f"val/{name}": value for name, value in found.items()}

    def show(step: int, batch: Batch) -> None:
        if loop.log:
            loop.log.picture(step, "train/examples", of_training(stepper, batch))

    def take_up(state: dict[str, Any], source: str) -> None:
        load_modules(trainer.modules, state["modules"], source)
        report.update(state.get("weights_report") or {})  # names also what was replaced when the run began

    loop = Loop(
        stepper,
        config.run,
        where,
        validate,
        show,
        {"config": json.dumps(config.model_dump(mode="json")), "weights_report": report},
        take_up,
        stop.poll,
        stop.waiting,
        config.data.classes.groups,
        f"val/{trainer.score}",
    )
    say(f"run {where} on {device}: {config.run.steps} steps, {dist.world()} process(es), {config.run.precision}")
    say(f"data: {_streams(config)}")
    if restarts := max(dist.gather(dist.restarts())):  # only the machine whose process died counts it
        say(f"a process died; torchrun started all of them again, time {restarts}")
    loop.fit(
        lambda start: train_batches(
            config.data,
            config.seed,
            start,
            with_labels=not trainer.is_pretext,
            use_target=trainer.uses_target,
            pseudo_labels=trainer.learns_from_pseudo_labels,
            rank=dist.rank(),
            world=dist.world(),
            accumulate=config.run.accumulate,
        )
    )
    if dist.is_main():
        _finish(where, config, loop.best, time.time() - began, {"weights_report": report, **note})
    dist.barrier()


def _count_classes(trainer: base.Trainer, config: base.Experiment) -> None:
    """Give the trainer what its method or its loss must know of the source's labels."""
    if not (trainer.needs_class_shares or config.loss.counts_classes):
        return
    trainer.class_shares = class_shares(config.data)
    if config.loss.counts_classes:
        trainer.class_weights = config.loss.counted_weights(trainer.class_shares, class_frequencies(config.data))


def _streams(config: base.Experiment) -> str:
    """What is learned from and scored on, in words."""

    def shown(entries: Iterable[FolderConfig]) -> str:
        return " + ".join(f"{'miniature ' * (e.root == 'miniature')}{e.dataset} {e.split}" for e in entries)

    parts = [f"source {shown(config.data.source)}"]
    if base.find(config.trainer).Trainer.uses_target and config.data.target:
        parts.append(f"target {shown(config.data.target)}")
    return ", ".join([*parts, f"validation {shown([config.data.val])}", f"classes {config.data.classes.name}"])


def _inputs(config: base.Experiment, finished: bool) -> dict[str, str]:
    """Which images each stream reads, and fingerprints of what earlier runs made for this one, as far as it is there:
    see `run_files.claim`.

    Raises:
        UserError: a stream's images are not there, and the run needs them.
    """
    found = {}
    uses_target = base.find(config.trainer).Trainer.uses_target
    streams = {"source": config.data.source, "target": config.data.target, "val": (config.data.val,)}
    for name, stream in streams.items():
        try:
            if stream is not None:
                read = name != "target" or uses_target
                found[f"data.{name}"] = "; ".join(map(images_of, stream)) if read else "not read"
        except (UserError, OSError) as error:
            if not finished:
                raise UserError(f"data.{name}: {error}") from error
    if config.init:
        with contextlib.suppress(UserError):  # gone or damaged: only a run that has yet to start needs it, and says so
            found["init"] = checkpoint.fingerprint(_network(config.init)[1]["modules"])
    for number, source in enumerate(config.data.source if "data.source" in found else ()):
        stamp = {} if source.root == "miniature" else folders.read_stamp(resolve_root(source))
        key = "data.source.root" if len(config.data.source) == 1 else f"data.source.{number}.root"
        found |= {key: stamp["weights"]} if "weights" in stamp else {}
    for number, target in enumerate((config.data.target or ()) if "data.target" in found else ()):
        stamp = {} if target.root == "miniature" else folders.read_stamp(resolve_root(target), folders.PSEUDO_STAMP)
        key = "data.target.root" if len(config.data.target or ()) == 1 else f"data.target.{number}.root"
        found |= {key: stamp["weights"]} if "weights" in stamp else {}
    return found


def images_of(stream: FolderConfig) -> str:
    """How many images a stream reads, the first and the last, and a hash of all names in their order."""
    if stream.root == "miniature":
        return stream.root
    names = [s.name for s in folders.find(stream.dataset).index(resolve_root(stream), stream.split, False)]
    return f"{len(names)} images, {names[0]} to {names[-1]} (names {_hash_of(names).hexdigest()[:12]})"


def _hash_of(names: Iterable[str]) -> "hashlib._Hash":
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape"))


def make_stepper(trainer: Trains, config: base.Experiment, device: torch.device) -> Stepper:
    return Stepper(
        trainer,
        device,
        seed=config.seed,
        steps=config.run.steps,
        schedule=config.run.schedule,
        precision=config.run.precision,
        clip_norm=config.run.clip_norm,
        channels_last=config.run.channels_last is not False,
    )


def _initialise(trainer: base.Trainer, init: str) -> set[str]:
    """Fill the segmenter, or the encoder alone where either side has no more, and name what of it begins anew."""
    path, state = _network(init)
    ((kind, given),) = state["modules"].items()
    own = trainer.encoder.state_dict()
    anew: list[str] = []
    if kind == "encoder" and trainer.is_translation:
        raise UserError(f"init: {path} holds an encoder, no segmenter; name a run that has trained one")
    if kind == "encoder" or trainer.is_pretext:
        kind, anew = "encoder", [name for name in own if not is_of_encoder(name)]
        given = {name: value for name, value in given.items() if is_of_encoder(name)}
        say(f"heads begin anew: {', '.join(dict.fromkeys(name.split('.')[0] for name in anew))}")
    elif "config" in state and (difference := trainer.classes.difference(_stored_classes(state, path))):
        if not trainer.takes_other_classes:
            raise UserError(f"init: {path} has other classes ({difference}); name a run of these classes")
        anew = trainer.segmenter.class_tensors()
        say(f"other classes ({difference}): {', '.join(anew)} begin anew")
    if anew and trainer.weights_report is not None:
        trainer.weights_report["replaced"] = anew
    load_modules({kind: trainer.encoder}, {kind: given | {name: own[name] for name in anew}}, str(path))
    say(f"{kind} starts from {path} (step {state['step']})")
    return set(anew)


def _network(init: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `init` names, of its `modules` the `segmenter` alone, or the `encoder` of one that has none.

    Raises:
        UserError: there is none, or neither in it, as in a converted backbone.
    """
    try:
        path = checkpoint_path(Path(init), "last")
        state = checkpoint.load(path)
    except (UserError, OSError) as error:
        raise UserError(f"init: {error}") from error
    for kind in ("segmenter", "encoder"):
        if kind in state.get("modules", {}):
            return path, {**state, "modules": {kind: state["modules"][kind]}}
    raise UserError(f"init: {path} holds no segmenter; give a run or its checkpoint (a backbone: model.weights=...)")


def evaluate(
    stepper: Stepper,
    config: base.Experiment,
    val: Loaded[ValSample],
    limit: int | None = None,
    watch: Callable[[Iterable[ValSample], int], Iterable[ValSample]] = lambda items, _: items,
    keep: Callable[[str, Tensor], None] | None = None,
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The confusion matrix over `val`, (classes, classes), and `run.pictures` rows of image, prediction, label and
    entropy. Under `eval.merge` predictions are scored as what they are merged into, and there may be a last column, of
    those that are merged into nothing.

    `watch(samples, their number)` may cut the validation off by an exception. `keep` is called with the name and the
    (H, W) uint8 trainIds of every prediction, in the classes of the segmenter.
    """
    stepper.agree()
    stepper.eval()
    classes = config.data.classes
    table = classes.merged_from(stepper.trainer.classes, config.eval.merge)
    merge = None if table is None else torch.from_numpy(table).to(stepper.device)
    matrix = ConfusionMatrix(len(classes), stepper.device, len(classes) + (merge is not None))
    pictures: list[list[np.ndarray]] = []
    count = limit or len(val)
    for sample in bar(watch(islice(val, limit), count), "validation", count):
        image, label = (t.to(stepper.device, non_blocking=True) for t in (sample.image, sample.label))
        if config.eval.label_size:
            width, height = config.eval.label_size
            label = resize(label[None], [height, width], InterpolationMode.NEAREST_EXACT)[0]
        size = (label.shape[0], label.shape[1])
        with stepper.autocast():
            prediction = predict_labels(stepper.trainer.predict, image, size, config.eval)
        if keep:
            keep(sample.name, prediction)
        if merge is not None:
            prediction = merge[prediction.long()]
        matrix.add(label, prediction)
        if len(pictures) < config.run.pictures and dist.is_main():
            with stepper.autocast():
                unsure = visualize.heat_map(predict_entropy(stepper.trainer.predict, image, size, config.eval))
            shown = torch.where(prediction < len(classes), prediction, IGNORE)
            colors = [visualize.colorize(shown, classes), visualize.colorize(label, classes)]
            pictures.append([visualize.to_picture(image), *colors, unsure])
    return dist.sum_over_ranks(matrix.counts).cpu().numpy(), pictures


def _finish(where: Path, config: base.Experiment, best: dict[str, Any], seconds: float, note: dict[str, Any]) -> None:
    """Write `summary.json`, last of all: its presence means that the run is finished."""
    metrics = where / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    validated = [line for line in lines if f"val/{base.find(config.trainer).Trainer.score}" in line]
    if not validated:
        raise UserError(f"{metrics}: the validation is no longer in it; restore it, or delete {where} to train again")
    last = validated[-1]
    summary = {
        "run": where.name,
        **protocol(config),
        "checkpoint": "last",
        "step": last["step"],
        "scores": {tag.removeprefix("val/"): v for tag, v in last.items() if tag.startswith("val/")},
        "best": best,
        "seconds_since_last_start": round(seconds, 1),
        **note,
    }
    run_files.write_text(where / "summary.json", json.dumps(summary, indent=2) + "\n")
    _tell(where, config, summary)


def _tell(where: Path, config: base.Experiment, summary: dict[str, Any]) -> None:
    best = summary["best"]
    before = read_references().get(config.experiment)
    if "note" in summary:
        say(f"{summary['run']}: {summary['note']}")
    elif summary.get("is_pretext"):
        figures = ", ".join(f"{name} {value:.4g}" for name, value in summary["scores"].items())
        say(f"{summary['run']}, step {summary['step']}, on {summary['images']['count']} held-out images: {figures}")
        say(f"start from its encoder: python -m da train EXPERIMENT.yaml init={where}")
    else:
        say(table([summary]))
        if best["step"] != summary["step"]:
            say(f"best on validation: {best['val/mIoU']:.2f} at step {best['step']} (chosen with its labels)")
        if before and before.fits(summary):
            say(before.text(config.name, config.seed, summary["scores"]["mIoU"]))
    say(f"pictures and curves: tensorboard --logdir {where.parent} (runs side by side: tab Custom Scalars)")


def protocol(config: base.Experiment) -> dict[str, Any]:
    """What a number was measured under."""
    trainer = base.find(config.trainer).Trainer
    return {
        "trainer": config.trainer,
        **{flag: True for flag in ("is_translation", "is_pretext") if getattr(trainer, flag)},
        "seed": config.seed,
        "backbone": config.model.backbone,
        "weights": config.model.weights,
        "val": config.data.val.model_dump(mode="json"),
        "classes": config.data.classes.dump(),
        "protocol": config.eval.model_dump(mode="json", include=base_pretext.EVAL_KEYS if trainer.is_pretext else None),
        "precision": config.run.precision,
        "images": _identity(config.data.val, with_labels=not trainer.is_pretext),
    }


def _identity(val: FolderConfig, with_labels: bool) -> dict[str, Any]:
    """Which images a number was measured on: how many, the size (width, height) of their labels (without labels, of the
    images) where it is the same for all, and a hash of all names and of the pixels of three."""
    samples = folders.find(val.dataset).index(resolve_root(val), val.split, with_labels)
    sizes = {folders.image_size(sample.label or sample.image) for sample in samples}
    digest = _hash_of(sample.name for sample in samples)
    for sample in (samples[0], samples[len(samples) // 2], samples[-1]):
        digest.update(folders.read_image(sample.image).tobytes())
    size = list(sizes.pop()) if len(sizes) == 1 else None
    return {"count": len(samples), "size": size, "hash": digest.hexdigest()[:12]}


def hyperparameters(config: base.Experiment) -> dict[str, Any]:
    """What TensorBoard's HParams tab tells runs apart by, under the keys that settings have."""
    streams = {"source": config.data.source, "val": (config.data.val,)}
    if config.data.target and base.find(config.trainer).Trainer.uses_target:
        streams["target"] = config.data.target
    sections = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "loss", "method")}
    return {
        **{key: getattr(config, key) for key in ("trainer", "name", "seed")},
        **{f"data.{key}": " + ".join(entry.dataset for entry in entries) for key, entries in streams.items()},
        "data.batch_size": config.data.batch_size,
        "run.steps": config.run.steps,
        "run.precision": config.run.precision,
        **flatten(sections),
    }


def checkpoint_path(run: Path, which: str) -> Path:
    """A checkpoint file named directly, or `last` / `best` of a run folder."""
    if run.is_file():
        return run
    found = checkpoint.find_last(run / "checkpoints") if which == "last" else run / "checkpoints" / f"{which}.pt"
    if found is None or not found.exists():
        raise UserError(f"{run}: no `{which}` checkpoint there; name a run folder or a checkpoint file")
    return found


def restore(
    path: Path, overrides: Sequence[str] = (), command: str = "evaluate", keys: Sequence[str] = EVALUATION_KEYS
) -> tuple[base.Experiment, base.Trainer, int]:
    """Configuration, trainer and step of a checkpoint.

    Args:
        path: checkpoint file.
        overrides: settings that `command` changes: how the run is used, not what it is.
        command: who asks, for the error.
        keys: what overrides may begin with.

    Raises:
        UserError: no such checkpoint, weights that are not finite, or an override of something else.
    """
    state = checkpoint.load(path)
    tree = read_tree((), overrides)
    fixed = [key for key in flatten(tree.values) if not key.startswith(tuple(keys))]
    if fixed:
        raise UserError(f"{', '.join(fixed)}: part of the run; {command} can change {', '.join(keys)}")
    if "config" not in state:
        raise UserError(f"{path}: not a checkpoint of a run (no `config` in it)")
    for name, module in state["modules"].items():
        if bad := [key for key, value in module.items() if not torch.isfinite(value).all()]:
            raise UserError(f"{path}: the weights of {name} are not finite (first: {bad[0]}); take another checkpoint")
    stored = Tree()
    stored.add(parse_yaml(state["config"], str(path)), str(path))
    if "classes" in tree.values.get("data", {}):  # the stored subset is one of the checkpoint's own classes
        stored.values["eval"] = {k: v for k, v in stored.values.get("eval", {}).items() if k != "classes"}
    stored.add(tree.values, "command line")
    stored.typed = tree.typed
    config = check_config(stored)
    if base.find(config.trainer).Trainer.is_pretext:
        raise UserError(f"{path}: {config.trainer} trained an encoder, no segmenter; start a run from it: init={path}")
    own = _stored_classes(state, path)
    config.data.classes.merged_from(own, config.eval.merge)  # refuses other classes
    bare = config.model.model_copy(update={"weights": "none"})  # the checkpoint has them all
    data = config.data.model_copy(update={"classes": own})
    trainer = base.build(config.model_copy(update={"model": bare, "data": data}))
    load_modules(trainer.modules, state["modules"], str(path))
    trainer.weights_report = state.get("weights_report")
    return config, trainer, state["step"]


def _stored_classes(state: dict[str, Any], path: Path) -> LabelSpace:
    """The classes of a checkpoint; one of before they were recorded has the default's."""
    return label_space(parse_yaml(state["config"], str(path))["data"].get("classes", DEFAULT))
