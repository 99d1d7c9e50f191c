"""The command line: wiring only. Heavy imports stay inside the commands, so that `--help` answers at once."""

import argparse
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

from da.config import UserError
from da.engine.interrupt import INTERRUPTS, stop_now

AVERAGES = ("logits", "probabilities")  # of an ensemble

EPILOG = """\
examples
  python -m da train experiments/mini/adaptsegnet_multi.yaml
  python -m da train experiments/mini/source_only.yaml seed=1 run.steps=100 name=source_100
  python -m da evaluate runs/mini/source_only-seed0 runs/mini/adaptsegnet_multi-seed0 --figure compare.png
  python -m da translate runs/mini/cycada_pixel-seed0 translated
  python -m da report --table mini -o report
  python -m da evaluate runs/gta2city/adaptsegnet_multi-seed0 --protocol adaptsegnet hrda --official
  python -m da predict runs/mini/source_only-seed0 photos/ drive.mp4 -o out
  python -m da export runs/mini/source_only-seed0 segmenter.onnx
  python -m da data check $GTA5_ROOT --as gta5
  python -m da data cache $GTA5_ROOT --as gta5 --size 1280 720
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m da",
        description="Train, compare and reproduce domain-adaptive street-scene segmentation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="train an experiment, or go on with an unfinished run",
        description="Train an experiment. The run lives in RUNS/<experiment>/<name>-seed<seed>; the same command "
        "continues it where it stopped and leaves a finished run alone.",
    )
    _add_words(train, "FILE.yaml", "experiment, then what to change")
    _add_runs(train)
    train.add_argument(
        "--check",
        action="store_true",
        help="check the configuration and print where the run would go, train nothing; of several experiments where "
        "a comma of its own stands between them: A.yaml seed=1 , B.yaml",
    )
    train.add_argument("--processes", type=int, default=1, help="with --check: how many will share each batch")
    train.set_defaults(call=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="score runs or checkpoints on their validation split, side by side",
        description="Score run folders or checkpoint files on their validation split and print one table. The result "
        "is also written beside each run, as evaluation_<checkpoint>[_<protocol>][_<settings>].json.",
    )
    _add_words(evaluate, "RUN", "run folders or checkpoints; overrides")
    _add_checkpoint_option(evaluate)
    evaluate.add_argument("--figure", type=Path, help="also draw image, label and each run's prediction to this PNG")
    evaluate.add_argument(
        "--protocol",
        nargs="+",
        default=[],
        metavar="NAME",
        help="score under named protocols of experiments/tables/protocols.yaml, such as adaptsegnet, dacs, hrda",
    )
    evaluate.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="write every prediction as labelIds PNG and colours; data.val.split=test needs no labels",
    )
    evaluate.add_argument(
        "--official", action="store_true", help="also score with cityscapesscripts and require the same figures"
    )
    evaluate.add_argument(
        "--ensemble",
        choices=AVERAGES,
        help="also score all runs as one: the mean of their logits, or of their probabilities",
    )
    evaluate.set_defaults(call=_evaluate)

    translate = commands.add_parser(
        "translate",
        help="write a run's source data set in the style of its target",
        description="Translate the source images of a cycada_pixel run. OUT becomes a data root in the source's own "
        "layout: same names, labels linked. Killed and called again it goes on; OUT is there when all of it is.",
    )
    _add_words(translate, "RUN OUT", "run folder, new data root; overrides")
    translate.add_argument("--batch", type=int, default=4, help="images translated at a time (default: 4)")
    translate.add_argument(
        "--agreement",
        action="store_true",
        help="also measure on how many pixels the run's segmenter gives image and translation the same label",
    )
    translate.set_defaults(call=_translate)

    label = commands.add_parser(
        "label",
        help="write pseudo labels of a target set, from one run or the mean of several",
        description="Label the target images of a run's configuration (data.target.* may name others) and keep of each "
        "predicted class the most confident pixels. OUT becomes a data root of two folders, images and labels, with "
        "pseudo_labels.json, which says what made it. Killed and called again it goes on.",
    )
    _add_words(label, "RUN ... OUT", "run folders or checkpoints, new data root; overrides")
    label.add_argument(
        "--keep", type=float, default=0.34, help="share of each class's pixels, the most confident (default: 0.34)"
    )
    label.add_argument(
        "--sure", type=float, default=0.9, help="confidence from which all pixels are kept (default: 0.9; 1: none)"
    )
    label.add_argument(
        "--average", choices=AVERAGES, default="probabilities", help="of several runs (default: probabilities)"
    )
    label.set_defaults(call=_label)

    report = commands.add_parser(
        "report",
        help="tables and one HTML page that compare finished runs with each other and with published results",
        description="Compare runs: mean and standard deviation over seeds, published rows of the same protocol, IoU "
        "per class, training curves, predictions, confusion matrices, ablations. Writes index.html (one "
        "self-contained page), table.md, table.csv and table.tex (booktabs).",
    )
    report.add_argument(
        "run_folders", nargs="*", type=Path, metavar="RUN", help="run folders, folders of runs, evaluation_*.json"
    )
    report.add_argument(
        "--table",
        help="all runs below RUNS/TABLE, for example mini, gta2city or synthia2city; supervised: published rows",
    )
    _add_runs(report)
    report.add_argument("-o", "--out", type=Path, default=Path("report"), help="folder to write (default: report)")
    report.add_argument("--pictures", type=int, default=4, help="validation images to show (default: 4; 0: none)")
    report.set_defaults(call=_report)

    predict = commands.add_parser(
        "predict",
        help="segment pictures, folders, videos and image sequences",
        description="Segment pictures, folders of them, videos, and image sequences (frames/%06d.png), each at its "
        "own size (videos: with even sides), with a trained checkpoint. What cannot be read, or not to its end, is "
        "named and skipped, and the exit code is then 1. Images are resized as in the run's own evaluation; "
        "eval.input_size=null leaves them as they are.",
    )
    _add_checkpoint(predict)
    _add_words(predict, "INPUT", "what to segment; eval.* overrides", nargs="*")
    predict.add_argument("-o", "--out", type=Path, required=True, help="folder for the results and legend.png")
    predict.add_argument(
        "--what",
        nargs="+",
        metavar="KIND",
        default=["overlay"],
        help="overlay: colours over the picture (default); color: colours alone; labelIds: PNG of ids as in "
        "label files; probabilities: compressed NumPy file",
    )
    predict.add_argument(
        "--ensemble", type=Path, nargs="+", default=[], metavar="RUN", help="further runs, averaged with CHECKPOINT"
    )
    predict.add_argument(
        "--average", choices=AVERAGES, default="logits", help="what --ensemble averages (default: logits)"
    )
    predict.add_argument("--opacity", type=float, default=0.5, help="of the colours in the overlay (default: 0.5)")
    _add_checkpoint_option(predict)
    predict.set_defaults(call=_predict)

    export = commands.add_parser(
        "export",
        help="write a checkpoint's segmenter as ONNX",
        description="Write an ONNX file: image (B, 3, H, W), RGB in [0, 1] -> logits (B, classes, H, W). Any batch, "
        "any size from 32x32 on; it is compared with PyTorch where onnxruntime is installed.",
    )
    _add_checkpoint(export)
    export.add_argument("out", type=Path, metavar="OUT.onnx")
    export.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="fix the size of the image")
    _add_checkpoint_option(export)
    export.set_defaults(call=_export)

    data = commands.add_parser("data", help="check, describe or cache a data set, or render the miniature")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="walk a data set and report what is wrong with it",
        description="Report missing partners, unreadable files, wrong sizes, unknown ids and each class's share of "
        "pixels. Exit code 2 if training would fail.",
    )
    _add_data_set(check)
    check.add_argument(
        "--split", nargs="+", default=[], metavar="NAME", help="splits or list files (default: what training reads)"
    )
    check.add_argument("--figure", type=Path, help="also draw the first images with their labels to this PNG")
    check.add_argument("--images-only", action="store_true", help="leave labels unread, as for a target domain")
    check.set_defaults(call=_check)
    describe = actions.add_parser(
        "describe",
        help="look at a folder of your own and write a first description and class list for it",
        description="Guess how an unknown folder is laid out and what its labels hold, and write NAME.yaml, its "
        "description, and NAME_classes.yaml, its class list. Correct them: names of classes are nowhere in pictures.",
    )
    describe.add_argument("root", type=Path, help="the folder")
    describe.add_argument("-o", "--out", type=Path, default=Path(), help="folder for the two files (default: this one)")
    describe.set_defaults(call=_describe)
    miniature = actions.add_parser("miniature", help="render the embedded data pair and print where it is")
    miniature.add_argument("--figure", type=Path, help="also draw examples of both domains to this PNG")
    miniature.set_defaults(call=_miniature)
    cache = actions.add_parser(
        "cache",
        help="decode a data set once, so that training reads it fast",
        description="Decode a data set to the size that training resizes it to, without loss. The cache lies under "
        "$DA_CACHE, or ~/.cache/da; training uses it wherever its `size` is that of the cache, and gives the same "
        "pixels with and without it. A killed run goes on where it stopped, and files that changed are decoded again.",
    )
    _add_data_set(cache)
    cache.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("W", "H"),
        help="the stream's `size`; without it the files' own, which is what a stream with a random `scale` reads",
    )
    cache.add_argument("--split", help="a split or list file (default: train of Cityscapes, all of the others)")
    cache.add_argument("--images-only", action="store_true", help="leave labels unread, as for a target domain")
    cache.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    cache.set_defaults(call=_cache)

    bench = commands.add_parser(
        "bench",
        help="time the project's fast ways against the usual ones on this machine",
        description="Compare variants in turns and print minimum, median and maximum. Ratios within one run count; "
        "run it on a quiet machine. Rows of other packages appear where these are installed.",
    )
    bench.add_argument(
        "part", nargs="?", choices=("step", "methods", "loss", "data", "eval", "classes", "all"), default="all"
    )
    bench.add_argument("--rounds", type=int, default=5, help="turns of each variant (default: 5)")
    bench.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    bench.add_argument("--small", action="store_true", help="tiny sizes, only to see that it works")
    bench.add_argument("--json", type=Path, default=Path("bench.json"), help="file to write (default: bench.json)")
    bench.set_defaults(call=_bench)

    environment = commands.add_parser(
        "environment",
        help="print versions, device and settings, for a fault report",
        description="Print versions of da and its packages, CPU, memory and GPUs, and the environment variables that "
        "change speed or bits. User, host and folders are not named: of a variable that holds a folder it says `set`.",
    )
    environment.set_defaults(call=_environment)

    check = commands.add_parser(
        "gpu-check",
        help="measure and verify every trainer on this machine's GPU, within minutes and without data",
        description="Seconds and memory of every trainer's update at full size, the price of run.deterministic, exact "
        "continuation, a process group of one, and `bench step`, in one table: gpu_check.md and gpu_check.json in OUT. "
        "The exit code is 1 where a row failed. launch/gpu_check.sh calls it.",
    )
    check.add_argument("-o", "--out", type=Path, default=Path("gpu_check"), help="folder to write (default: gpu_check)")
    check.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to try the check")
    check.add_argument("--methods", nargs="+", metavar="TRAINER", help="some trainers (default: all)")
    check.add_argument("--seconds", type=float, default=450.0, help="that it may take (default: 450)")
    check.add_argument("--launcher", type=Path, help="script that trains in a process group (launch/gpu_check.sh)")
    check.set_defaults(call=_gpu_check)
    return top


def _add_words(command: argparse.ArgumentParser, what: str, help: str, nargs: Literal["+", "*"] = "+") -> None:
    """`what` and overrides, which may stand in any order (`_split`)."""
    command.add_argument("words", nargs=nargs, metavar=f"{what} | key=value", help=help)


def _add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="CHECKPOINT", help="run folder or checkpoint file")


def _add_checkpoint_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="which one of a run folder (best was chosen with target labels; default: last)",
    )


def _add_data_set(command: argparse.ArgumentParser) -> None:
    command.add_argument("root", type=Path, help="folder of the data set")
    command.add_argument(
        "--as",
        dest="dataset",
        required=True,
        metavar="DATASET",
        help="gta5, cityscapes, synthia, a name in da/data/sets, or a description file (.yaml)",
    )
    command.add_argument(
        "--classes", metavar="NAME | FILE.yaml", help="a name in da/classes, or a class list (default: cityscapes19)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 inputs skipped or a bug, 2 a mistake to mend; of `train` and `translate`
    besides: 75 stopped by SIGUSR1 or the time limit, 130 by SIGINT, 143 by SIGTERM, all with the state saved."""
    for stream in (sys.stdout, sys.stderr):  # file names may be anything
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    top = parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if "" in given:
        top.error("an argument is empty; is a variable of the shell not set?")
    options, rest = top.parse_known_args(given)
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and not hasattr(options, "words")):
        top.error(f"not understood: {' '.join(rest)}; settings are of the form key=value")
    options.words = [*getattr(options, "words", ()), *rest]  # overrides may also follow an option
    try:
        code: int = options.call(options)
    except UserError as error:
        return _leave(2, f"error: {error}")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.filename is None and not full:
            raise
        advice = "; what was saved before is kept: free space and run again" if full else ""
        return _leave(2, f"error: {error.filename or 'writing'}: {error.strerror}{advice}")
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", str(error))):
            raise
        wanted = re.search(r"tried to allocate ([\d.]+ ?[A-Za-z]+)", str(error), re.I)
        much = f" for {wanted[1]} at once" if wanted else ""
        advice = "lower data.batch_size, raise run.accumulate, or take smaller crops or sizes"
        return _leave(2, f"error: not enough memory{much}; {advice}; what was saved before is kept")
    except KeyboardInterrupt:
        return _leave(130, "interrupted; the same command continues from what was saved")
    return code


def _stop_file() -> Path | None:
    """Where the processes of one torchrun note the code to end with, so that its agent restarts them in vain."""
    name = os.environ.get("DA_STOP_FILE")
    return Path(name) if name and "TORCHELASTIC_RUN_ID" in os.environ else None


def _asked(stop_file: Path) -> int:
    """The code to end with where torchrun was asked to stop before this process began (launch/torchrun.py), or 0."""
    codes = {"SIGUSR1": 75, "SIGUSR2": 130, "SIGINT": 130}
    return next((code for name, code in codes.items() if Path(f"{stop_file}.{name}").exists()), 0)


def _leave(code: int, message: str = "") -> int:
    """Say why the program ends; of several processes only the first does. Returns the exit code."""
    path = _stop_file()
    try:
        if path:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{code}\n")
    except FileExistsError:
        return code
    except OSError as error:
        print(f"warning: {path}: {error.strerror}", file=sys.stderr)
    if message:
        print(message, file=sys.stderr, flush=True)
    return code


def _until_listening() -> None:
    """Until the command listens itself there is nothing to save. What a shell starts with `&` ignores SIGINT."""
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(_leave(75)))
    for number in INTERRUPTS:
        signal.signal(number, stop_now)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, *INTERRUPTS))  # launch/torchrun.py holds them back


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and `key=value` overrides, which may stand in any order."""
    names = [w for w in words if "=" not in w or os.path.exists(w)]
    return names, [w for w in words if w not in names]


def _experiment(words: Sequence[str]) -> tuple[list[str], list[str]]:
    files, overrides = _split(words)
    if not files:
        raise UserError("name an experiment, for example experiments/mini/source_only.yaml")
    return files, overrides


def _between_commas(words: Sequence[str]) -> list[list[str]]:
    groups = groupby(words, lambda word: word == ",")
    return [list(group) for comma, group in groups if not comma]


def _train(options: argparse.Namespace) -> int:
    _until_listening()
    stop_file = _stop_file()
    if stop_file and stop_file.exists():
        return 0
    if stop_file and (code := _asked(stop_file)):
        return _leave(code)
    from da.data.loaders import check_batch_size
    from da.engine import dist
    from da.engine.log import say
    from da.engine.stop import Stopped
    from da.run import load_config, run_folder, train

    if options.processes < 1:
        raise UserError(f"--processes {options.processes}: give at least 1")
    if options.check:
        for one in _between_commas(options.words):
            config = load_config(*_experiment(one))
            check_batch_size(config.data, options.processes, config.run.accumulate)
            say(str(run_folder(config, options.runs)))
        return 0
    code = 0
    try:
        train(load_config(*_experiment(options.words)), options.runs)
    except Stopped as stopped:
        code = stopped.code
        if stopped.alone:  # the others cannot be asked to leave the group; they see the file
            return 0 if _leave(code) and stop_file else code
    except RuntimeError:
        if stop_file and stop_file.exists():  # another process left and said why, and this one missed it
            return 1
        raise
    dist.shutdown()
    if code:
        code = _leave(code)
    return 0 if stop_file else code  # torchrun would restart what ends otherwise; the launch script reads the file


def _evaluate(options: argparse.Namespace) -> int:
    from da.engine.log import say
    from da.evaluate import evaluate_runs
    from da.evaluation.report import table

    runs, overrides = _split(options.words)
    if not runs:
        raise UserError("name a run folder or a checkpoint file")
    if options.figure and options.figure.suffix != ".png":
        raise UserError(f"--figure {options.figure}: give a file name that ends in .png")
    protocols, more = _split(options.protocol)  # overrides may stand among the names
    results = evaluate_runs(
        [Path(r) for r in runs],
        options.checkpoint,
        [*overrides, *more],
        options.figure,
        protocols,
        options.export,
        options.official,
        options.ensemble,
    )
    if results:
        say(table(results))
    return 0


def _translate(options: argparse.Namespace) -> int:
    _until_listening()
    from da.engine.stop import Stopped
    from da.translate import translate

    names, overrides = _split(options.words)
    if len(names) != 2:
        raise UserError("name a run folder and the folder to write: python -m da translate RUN OUT")
    if options.batch < 1:
        raise UserError(f"--batch {options.batch}: at least 1")
    try:
        translate(Path(names[0]), Path(names[1]), overrides, options.batch, options.agreement)
    except Stopped as stopped:
        return _leave(stopped.code, f"stopped by {stopped}; the same command goes on from there")
    return 0


def _label(options: argparse.Namespace) -> int:
    _until_listening()
    from da.engine.stop import Stopped
    from da.pseudo_labels import Rule, write_pseudo_labels

    names, overrides = _split(options.words)
    if len(names) < 2:
        raise UserError("name one or more runs and the folder to write: python -m da label RUN OUT")
    runs, rule = [Path(name) for name in names[:-1]], Rule(options.keep, options.sure)
    try:
        write_pseudo_labels(runs, Path(names[-1]), overrides, rule, options.average)
    except Stopped as stopped:
        return _leave(stopped.code, f"stopped by {stopped}; the same command goes on from there")
    return 0


def _report(options: argparse.Namespace) -> int:
    from da.report import report

    if options.pictures < 0:
        raise UserError(f"--pictures {options.pictures}: give 0 or more")
    report(options.run_folders, options.table, options.runs, options.out, options.pictures)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from da.predict import KINDS, predict

    kinds = [word for word in options.what if word in KINDS]
    more = [word for word in options.what if word not in KINDS]  # inputs and overrides may stand behind --what
    unknown = [word for word in more if not (os.path.exists(word) or "=" in word or "%" in word)]
    if unknown or not kinds:
        raise UserError(f"--what {' '.join(unknown)}: known are {', '.join(KINDS)}")
    inputs, overrides = _split([*options.words, *more])
    if not inputs:
        raise UserError("name a picture, a folder, a video, or a sequence such as frames/%06d.png")
    if not 0 <= options.opacity <= 1:
        raise UserError(f"--opacity {options.opacity}: give a number from 0 to 1")
    runs = [options.run, *options.ensemble]
    skipped = predict(runs, options.checkpoint, inputs, options.out, kinds, options.opacity, overrides, options.average)
    return 1 if skipped else 0


def _export(options: argparse.Namespace) -> int:
    from da.export import export

    if options.size and min(options.size) < 32:
        raise UserError(f"--size {options.size[0]} {options.size[1]}: give at least 32 32")
    export(options.run, options.checkpoint, options.out, tuple(options.size) if options.size else None)
    return 0


def _check(options: argparse.Namespace) -> int:
    from da.data.check import check_root
    from da.engine.log import say
    from da.labels import DEFAULT, label_space

    if options.figure and options.figure.suffix != ".png":
        raise UserError(f"--figure {options.figure}: give a file name that ends in .png")
    classes = label_space(options.classes or DEFAULT)
    report = check_root(options.root, options.dataset, classes, options.split, not options.images_only)
    say(report.text())
    if options.figure and report.by_split:
        from da.pictures import draw_data_set

        splits = list(report.by_split)
        draw_data_set(options.root, options.dataset, classes, splits, options.figure, not options.images_only)
        say(f"first images: {options.figure}")
    return 2 if report.fatal else 0


def _describe(options: argparse.Namespace) -> int:
    from da.data.describe import describe
    from da.engine.log import say

    say(describe(options.root, options.out))
    return 0


def _miniature(options: argparse.Namespace) -> int:
    from da.data import miniature
    from da.engine.log import say

    root = miniature.ensure()
    say(str(root))
    if options.figure:
        from da.pictures import draw_miniature

        draw_miniature(root, options.figure)
    return 0


def _cache(options: argparse.Namespace) -> int:
    from da.data import cache, folders
    from da.data.loaders import workers_watched
    from da.engine.log import say
    from da.labels import DEFAULT, label_space

    if options.size and min(options.size) < 1:
        raise UserError("--size: give a width and a height of at least 1 pixel")
    size = (options.size[0], options.size[1]) if options.size else None
    split = options.split or folders.find(options.dataset).splits[0]
    classes = label_space(options.classes or DEFAULT)
    todo = cache.plan(options.dataset, options.root, size, split, not options.images_only, classes)
    say(todo.text())
    with workers_watched():
        cache.build(todo, max(0, options.workers))
    say(f"{todo.folder}: complete for split {split}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    import json
    from typing import Any

    from da import bench
    from da.engine.dist import pick_device
    from da.engine.log import say
    from da.engine.run_files import write_text

    if options.rounds < 1:
        raise UserError("--rounds: give at least 1")
    parts = bench.PARTS if options.part == "all" else (options.part,)

    def keep(report: dict[str, Any]) -> None:
        write_text(options.json, json.dumps(report, indent=2) + "\n")

    done = bench.run(parts, pick_device(options.device), options.rounds, options.small, keep)
    say(bench.table(done))
    say(f"written to {options.json}")
    return 0


def _environment(options: argparse.Namespace) -> int:
    from da.engine.log import say
    from da.environment import describe

    say(describe())
    return 0


def _gpu_check(options: argparse.Namespace) -> int:
    import torch

    from da.engine.log import say
    from da.gpu_check import Check, table
    from da.trainers import base

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: torch {torch.__version__} sees no GPU here; run it where there is one (--device cpu, or "
            "DEVICE=cpu before the script, tries the check itself at tiny sizes)"
        )
    if not options.seconds > 0:
        raise UserError(f"--seconds {options.seconds:g}: give more than 0")
    methods = options.methods or base.methods()
    for method in methods:
        base.find(method)
    check = Check(options.out, options.device, methods, options.seconds, options.launcher)
    check.run()
    say(table(check.rows))
    say(f"written to {options.out}")
    return 1 if check.failed else 0
