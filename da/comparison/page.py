"""The comparison as one self-contained HTML page: no network, no other file."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from da.comparison import charts, tables
from da.comparison.compare import BASELINE, ORACLE, Block, Row, ablations
from da.comparison.published import Published
from da.evaluation.reference import mean_std

PICTURE_WIDTH = 480  # pixels that an embedded picture has at most
CURVES = {  # tag -> title
    "val/mIoU": "mIoU on validation, %",
    "loss/seg": "segmentation loss on source",
    "d/accuracy_target": "discriminator: target images told apart",
}
TRANSLATION_CURVES = {  # the discriminators of a translation judge other things
    "val/mIoU": CURVES["val/mIoU"],
    "loss/gan_st": "translation to target: adversarial loss",
    "loss/cycle": "translation: cycle loss",
    "loss/semantic": "translation: semantic loss",
}


class Example(NamedTuple):
    """One validation image under several methods, all (H, W, 3) uint8 RGB; labels and predictions in class colours."""

    image: np.ndarray
    label: np.ndarray
    predictions: dict[str, np.ndarray]  # by experiment


def html(blocks: Sequence[Block], published: Published, examples: Sequence[Example], remarks: Sequence[str]) -> str:
    """The page. `examples` belong to the first block; `remarks` say what had to be left out."""
    heading = " · ".join(dict.fromkeys(block.experiment for block in blocks))
    sections = []
    for i, block in enumerate(blocks):
        name = f"<h2>{escape(block.experiment)}</h2>" if len(blocks) > 1 else ""
        sections += [
            f'<header class="block">{name}<p class="protocol">{escape(tables.measured(block))}</p></header>',
            _headline(block),
            _results(block, published),
            _classes(block),
            _per_class(block),
            _curves(block),
            _examples(block, examples) if i == 0 else "",
            _confusion(block),
            _ablations(block),
        ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in [*tables.notes(blocks), *remarks])
    body = "\n".join(part for part in sections if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(heading)}: comparison</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_beside('page.css')}</style></head><body><main><h1>{escape(heading)}</h1>{_lead(blocks)}\n{body}\n"
        f"<section><h3>Notes</h3><ul>{notes}</ul></section></main><script>{_beside('page.js')}</script></body></html>\n"
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def color(block: Block, row: Row) -> str:
    """A method's colour on the whole page; source only is grey and the oracle ink."""
    if row.name in (BASELINE, ORACLE):
        return "var(--base)" if row.name == BASELINE else "var(--ink)"
    between = [r.name for r in block.rows if r.name not in (BASELINE, ORACLE)]
    return f"var(--c{between.index(row.name) % 8})"


def _section(heading: str, content: str, hint: str = "") -> str:
    line = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    return f"<section><h3>{escape(heading)}</h3>{line}{content}</section>"


def _lead(blocks: Sequence[Block]) -> str:
    """One sentence with the outcome of the first table."""
    block = blocks[0]
    methods = [r for r in block.rows if r.scores and r.name not in (BASELINE, ORACLE) and not r.is_translation]
    if not methods or not block.row(BASELINE):
        return ""
    top = max(methods, key=lambda row: row.mean("mIoU") or 0)
    gain, figure = block.gain(top) or 0.0, mean_std(top.values("mIoU"))
    if gain > 0:
        text = f"Highest mean: {top.name}, {figure} mIoU, {gain:.1f} points above source only"
    else:
        baseline = block.row(BASELINE)
        assert baseline
        own = mean_std(baseline.values("mIoU"))
        text = f"No method is above source only, {own} mIoU; the nearest is {top.name}, {figure}"
    oracle = block.row(ORACLE)
    text += f"; trained on target labels: {mean_std(oracle.values('mIoU'))}." if oracle else "."
    return f'<p class="lead">{escape(text)}</p>'


def _headline(block: Block) -> str:
    """One bar per method, a dot per seed, a line where the published number lies."""
    rows = [row for row in block.rows if row.scores]
    if not rows:
        return ""
    top = max(max(row.values("mIoU")) for row in rows)
    found = {row.name: c.theirs for row in rows if (c := block.comparison(row)) and c.subset == block.subset}
    scale = 100 / (10 * np.ceil(max([top, *found.values()]) / 10 + 0.1))
    lines = []
    for row in rows:
        values, mean, tint = row.values("mIoU"), row.mean("mIoU") or 0, color(block, row)
        marks = "".join(f'<i style="left:{v * scale:.1f}%" title="{v:.2f}"></i>' for v in values if len(values) > 1)
        if theirs := found.get(row.name):
            marks += f'<b style="left:{theirs * scale:.1f}%" title="published: {theirs}"></b>'
        lines.append(
            f'<div class="name">{_breakable(row.title)}</div><div class="bar"><span style="width:{mean * scale:.1f}%;'
            f'background:{tint}"></span>{marks}</div><div class="value">{mean_std(values)}</div>'
        )
    hint = "Last checkpoint, mean over seeds; a dot is one seed" + (
        "; a line is the published number." if found else "."
    )
    return _section(f"{tables.means(block)[block.subset]}, %", f'<div class="headline">{"".join(lines)}</div>', hint)


def _table(header: Sequence[str], lines: Sequence[tables.Line], kind: str = "") -> str:
    """A table sortable by column; `narrow` turns its column heads upright."""
    columns = zip(*(line.cells[1:] for line in lines))
    kinds = ["", *(" class=long" * (max(map(len, cells)) > 30) for cells in columns)]
    head = "".join(
        f'<th scope="col"{long}><button type="button">{_breakable(cell)}</button></th>'
        for cell, long in zip(header, kinds)
    )
    body = "".join(
        f'<tr class="{line.kind}"><th scope="row">{_breakable(line.cells[0])}</th>'
        + "".join(f"<td{long}>{escape(cell)}</td>" for cell, long in zip(line.cells[1:], kinds[1:]))
        + "</tr>"
        for line in lines
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _results(block: Block, published: Published) -> str:
    header, lines = tables.main_table(block)
    return _section("Results", (_table(header, lines) if lines else "") + _others(block, published))


def _others(block: Block, published: Published) -> str:
    header, lines = tables.other_table(block, published)
    if not lines:
        return ""
    summary = f"{escape(tables.others_title(block))} ({len(lines)})"
    shown = "" if block.protocol else " open"
    return f"<details{shown}><summary>{summary}</summary>{_table(header, lines)}</details>"


def _classes(block: Block) -> str:
    lines = tables.class_table(block)
    return _section(tables.classes_title(block), _table(tables.class_header(block), lines, "narrow")) if lines else ""


def _legend(block: Block, rows: Sequence[Row]) -> str:
    items = "".join(f'<span><i style="background:{color(block, r)}"></i>{escape(r.title)}</span>' for r in rows)
    return f'<p class="legend">{items}</p>'


def _per_class(block: Block) -> str:
    baseline = block.row(BASELINE)
    rows = [row for row in block.rows if row.scores and row is not baseline]
    if not rows or baseline is None:
        return ""
    names = tables.class_header(block)[1:]
    below = [baseline.mean(f"IoU/{name}") for name in names]
    panels = []
    for row in rows:
        chart = charts.bars(names, [row.mean(f"IoU/{name}") for name in names], below, color(block, row))
        panels.append(f"<figure><figcaption>{escape(row.title)}</figcaption>{chart}</figure>")
    hint = "Bars: IoU in percent, mean over seeds. Upright mark: source only. Right: the difference in points."
    return _section("Each class against source only", f'<div class="panels">{"".join(panels)}</div>', hint)


def _curves(block: Block) -> str:
    """Only of runs that were validated under the block's own protocol while they trained."""
    panels, shown = [], []
    for tag, title in (CURVES | TRANSLATION_CURVES).items():
        rows = [row for row in block.rows if tag in (TRANSLATION_CURVES if row.is_translation else CURVES)]
        found = [(row, line) for row in rows if (line := _series(block, row, tag))]
        if found:
            chart = charts.curves([line for _, line in found], title)
            panels.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>")
            shown += [row for row, _ in found if row not in shown]
    if not panels:
        return ""
    hint = "Over training steps; lines are means over seeds, shades reach from the lowest to the highest seed."
    return _section("Training", _legend(block, shown) + f'<div class="panels">{"".join(panels)}</div>', hint)


def _series(block: Block, row: Row, tag: str) -> charts.Series | None:
    at: dict[int, list[float]] = {}
    for run in row.validated:
        for line in run.lines:
            if tag in line:
                at.setdefault(line["step"], []).append(line[tag])
    if not at:
        return None
    steps = sorted(at)
    values = [at[step] for step in steps]
    means = [float(np.mean(v)) for v in values]
    return charts.Series(row.title, color(block, row), steps, means, [min(v) for v in values], [max(v) for v in values])


def _examples(block: Block, examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    blocks = []
    for n, example in enumerate(examples, 1):
        cards = [_card("image", _image(example.image, True)), _card("label", _image(example.label))]
        for name, prediction in example.predictions.items():
            error = error_map(example.image, example.label, prediction, block.classes.ignore_color)
            cards.append(_card(name, _image(prediction) + _image(error)))
        blocks.append(f'<div class="example" aria-label="validation image {n}">{"".join(cards)}</div>')
    swatches = "".join(
        f'<span><i style="background:rgb({c[0]},{c[1]},{c[2]})"></i>{escape(name)}</span>'
        for name, c in zip(block.classes.names, block.classes.colors)
    )
    hint = (
        "Below each prediction its errors: red pixels are wrong, dark ones carry no label. First seed, last checkpoint."
    )
    return _section("The same validation images", "".join(blocks) + f'<p class="legend">{swatches}</p>', hint)


def error_map(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, ignored_color: tuple[int, int, int]
) -> np.ndarray:
    """(H, W, 3) uint8: the image in pale grey where the prediction is right, red where it is wrong, dark where `label`
    (in class colours) is ignored."""
    grey = image.mean(2, keepdims=True).repeat(3, 2) * 0.35 + 150
    wrong = (label != prediction).any(2)
    ignored = (label == ignored_color).all(2)
    grey[wrong] = np.array((214, 40, 40)) * 0.8 + grey[wrong] * 0.2
    grey[ignored] = (40, 40, 46)
    return grey.clip(0, 255).astype(np.uint8)


def _card(caption: str, pictures: str) -> str:
    return f"<figure><figcaption>{_breakable(caption)}</figcaption>{pictures}</figure>"


def _breakable(name: str) -> str:
    """Long names may be broken after a dot or an underscore, and not before their mark (†, ‡ or °)."""
    return re.sub(r" (?=[†‡°])", "&nbsp;", re.sub(r"([_.])", r"\1<wbr>", escape(name)))


def _image(picture: np.ndarray, photograph: bool = False) -> str:
    image = Image.fromarray(picture)
    if image.width > PICTURE_WIDTH:
        size = PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width)
        image = image.resize(size, Image.Resampling.LANCZOS if photograph else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    kind = "jpeg" if photograph else "png"
    image.save(buffer, kind, **({"quality": 88} if photograph else {"optimize": True}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/{kind};base64,{data}" width="{image.width}" height="{image.height}" alt="">'


def _confusion(block: Block) -> str:
    rows = [row for row in block.rows if row.confusion is not None]
    panels = []
    for row in rows:
        assert row.confusion is not None
        chart = charts.confusion(row.confusion, block.classes.names)
        part = "" if len(row.evaluated) >= len(row.scores) else f" (seed {', '.join(map(str, row.evaluated))} only)"
        panels.append(f"<figure><figcaption>{escape(row.title + part)}</figcaption>{chart}</figure>")
    without = [row.title for row in block.rows if row.scores and row.confusion is None]
    hint = "Rows are labels, columns predictions; each row is divided by its sum. Green: right; red: wrong."
    if without:
        hint += f" Without a matrix until `python -m da evaluate RUN` writes one: {', '.join(without)}."
    return _section("Confusion", f'<div class="panels">{"".join(panels)}</div>', hint) if rows or without else ""


def _ablations(block: Block) -> str:
    parts = []
    for trainer, varied, lines in ablations(block):
        header = ["experiment", *varied, f"{tables.means(block)[block.subset]}, last"]
        parts.append(f"<h4>{escape(trainer)}</h4>" + _table(header, [tables.Line("own", line) for line in lines]))
    hint = "Experiments of one trainer, with every setting in which they differ."
    return _section("Ablations", "".join(parts), hint) if parts else ""
