"""Results as tables on the terminal."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from da.evaluation.infer import EvalConfig
from da.labels import DEFAULT, LabelSpace, label_space

OF_TRANSLATION = (
    "a translation run: its score is that of the frozen source segmenter on target images in the source's style"
)


def describe_protocol(protocol: dict[str, Any]) -> str:
    """One line: what the numbers were measured under."""
    return EvalConfig.model_validate_json(json.dumps(protocol)).describe()


def describe_images(images: dict[str, Any]) -> str:
    """How many images were scored, and the size of their labels."""
    if "count" not in images:
        return f"images of {images['root']}" if "root" in images else "images not recorded"
    return f"{images['count']} images of " + ("{}x{}".format(*images["size"]) if images["size"] else "several sizes")


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results side by side: the summary figures, then IoU per class. Absent classes are shown as `-`.

    A result has `run`, `checkpoint` (`last` or `best`), `step`, `protocol` and `scores`. Where protocols differ the
    table says so under it, and so it does where the validation images differ.
    """
    spaces = [classes_of(result) for result in results]
    means, classes = (_united(part) for part in ([s.means.values() for s in spaces], [s.names for s in spaces]))
    figures = ["mIoU", *means, "mAcc", "pixel_accuracy", "fwIoU"]
    keys = figures + [f"IoU/{name}" for name in classes]
    names = ["", "", *figures, *classes]
    cells = [[_cell(r["scores"].get(k)) for k in keys] for r in results]
    columns = [[_name(r), f"{r['checkpoint']}, step {r['step']}", *c] for r, c in zip(results, cells)]
    widths = [max(map(len, column)) for column in [names, *columns]]
    lines = []
    for row in zip(names, *columns):
        padded = [row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]
        lines.append("  ".join(padded).rstrip())
    lines.insert(2, "-" * max(map(len, lines)))
    lines.insert(3 + len(figures), "")
    protocols = {describe_protocol(r["protocol"]) for r in results}
    if len(protocols) > 1:
        lines.append("NOT COMPARABLE, protocols differ:")
    lines += ["", *(f"protocol: {text}" for text in sorted(protocols))]
    images = {f"{describe_images(r['images'])} (hash {r['images']['hash']})" for r in results if r.get("images")}
    if len(images) > 1:
        lines += ["NOT COMPARABLE, validation images differ:", *sorted(images)]
    if any(r["checkpoint"] == "best" for r in results):
        lines.append("`best` is the checkpoint with the highest validation score: it was chosen with target labels.")
    if len({space.names for space in spaces}) > 1:
        lines.append("NOT COMPARABLE, classes differ: " + ", ".join(_united([[s.name for s in spaces]])))
    lines += [f"{r['run']}: {OF_TRANSLATION}." for r in results if r.get("is_translation")]
    return "\n".join(lines)


def classes_of(result: dict[str, Any]) -> LabelSpace:
    """The classes that a result was scored in; one of before they were recorded is of the default's."""
    return label_space(result.get("classes", DEFAULT))


def _united(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _name(result: dict[str, Any]) -> str:
    """The run, and the named protocol where it was scored under one."""
    return " ".join(filter(None, (result["run"], result.get("protocol_name"))))


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
