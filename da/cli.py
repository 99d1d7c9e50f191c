"""The command line: wiring only. Heavy imports stay inside the commands, so that `--help` answers at once."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from da.config import UserError

EPILOG = """\
examples
  python -m da train experiments/mini/adaptsegnet_multi.yaml
  python -m da train experiments/mini/source_only.yaml seed=1 run.steps=100 name=short
  python -m da evaluate runs/mini/source_only-seed0 runs/mini/adaptsegnet_multi-seed0 --figure compare.png
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
    train.add_argument("words", nargs="+", metavar="FILE.yaml | key=value", help="experiment, then what to change")
    train.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    train.set_defaults(call=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="score runs or checkpoints on their validation split, side by side",
        description="Score run folders or checkpoint files on their validation split and print one table.",
    )
    evaluate.add_argument("words", nargs="+", metavar="RUN | key=value", help="run folders or checkpoints; overrides")
    evaluate.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="which one of a run folder (best was chosen with target labels; default: last)",
    )
    evaluate.add_argument("--figure", type=Path, help="also draw image, label and each run's prediction to this PNG")
    evaluate.set_defaults(call=_evaluate)

    data = commands.add_parser("data", help="check or cache a data set, or render the miniature")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="walk a data set and report what is wrong with it",
        description="Report missing partners, unreadable files, wrong sizes, unknown ids and each class's share of "
        "pixels. Exit code 2 if training would fail.",
    )
    check.add_argument("root", type=Path, help="folder of the data set")
    check.add_argument("--as", dest="dataset", required=True, choices=("gta5", "cityscapes", "synthia"))
    check.set_defaults(call=_check)
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
    cache.add_argument("root", type=Path, help="folder of the data set")
    cache.add_argument("--as", dest="dataset", required=True, choices=("gta5", "cityscapes", "synthia"))
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
    bench.add_argument("part", nargs="?", choices=("step", "loss", "data", "eval", "all"), default="all")
    bench.add_argument("--rounds", type=int, default=5, help="turns of each variant (default: 5)")
    bench.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    bench.add_argument("--small", action="store_true", help="tiny sizes, only to see that it works")
    bench.add_argument("--json", type=Path, default=Path("bench.json"), help="file to write (default: bench.json)")
    bench.set_defaults(call=_bench)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 a bug, 2 a mistake the user can mend, 130 interrupted."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and not hasattr(options, "words")):
        top.error(f"not understood: {' '.join(rest)}")
    options.words = [*getattr(options, "words", ()), *rest]  # overrides may also follow an option
    try:
        code: int = options.call(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return code


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and `key=value` overrides, which may stand in any order."""
    names = [w for w in words if "=" not in w or os.path.exists(w)]
    return names, [w for w in words if w not in names]


def _train(options: argparse.Namespace) -> int:
    from da.engine import dist
    from da.run import load_config, train

    files, overrides = _split(options.words)
    if not files:
        raise UserError("name an experiment, for example experiments/mini/source_only.yaml")
    try:
        train(load_config(files, overrides), options.runs)
    finally:
        dist.shutdown()
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from da.engine.log import say
    from da.evaluation.report import table
    from da.run import evaluate_runs

    runs, overrides = _split(options.words)
    if not runs:
        raise UserError("name a run folder or a checkpoint file")
    if options.figure and options.figure.suffix != ".png":
        raise UserError(f"--figure {options.figure}: give a file name that ends in .png")
    results = evaluate_runs([Path(r) for r in runs], options.checkpoint, overrides, options.figure)
    say(table(results))
    return 0


def _check(options: argparse.Namespace) -> int:
    from da.data.check import check_root
    from da.engine.log import say

    report = check_root(options.root, options.dataset)
    say(report.text())
    return 2 if report.fatal else 0


def _miniature(options: argparse.Namespace) -> int:
    from da.data import miniature
    from da.engine.log import say

    root = miniature.ensure()
    say(str(root))
    if options.figure:
        from da.run import picture_miniature

        picture_miniature(root, options.figure)
    return 0


def _cache(options: argparse.Namespace) -> int:
    from da.data import cache, folders
    from da.engine.log import say

    if options.size and min(options.size) < 1:
        raise UserError("--size: give a width and a height of at least 1 pixel")
    size = (options.size[0], options.size[1]) if options.size else None
    split = options.split or folders.module_of(options.dataset).SPLITS[0]
    todo = cache.plan(options.dataset, options.root, size, split, with_labels=not options.images_only)
    say(todo.text())
    cache.build(todo, max(0, options.workers))
    say(f"{todo.folder}: complete for split {split}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    import json

    from da import bench
    from da.engine.dist import pick_device
    from da.engine.log import say
    from da.engine.run_files import write_text

    if options.rounds < 1:
        raise UserError("--rounds: give at least 1")
    parts = bench.PARTS if options.part == "all" else (options.part,)
    done = bench.run(parts, pick_device(options.device), options.rounds, options.small)
    write_text(options.json, json.dumps(done.report(), indent=2) + "\n")
    say(bench.table(done))
    say(f"written to {options.json}")
    return 0
