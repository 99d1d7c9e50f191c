"""A comparison as lines of cells, and these as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

from da.evaluation.compare import TRANSLATED, Block, Row, mean_std
from da.evaluation.published import Published, PublishedRow
from da.evaluation.report import OF_TRANSLATION, describe_protocol
from da.labels import NAMES, SUBSETS

MARK = "†"  # quoted from memory
HEADER = (
    "method",
    "mIoU, last",
    "over source only",
    "gap closed, %",
    "best on validation*",
    "published",
    "difference",
    "seeds",
    "backbone",
    "checkpoint; source",
)


class Line(NamedTuple):
    """One line of a table; `kind` tells a page how to show it."""

    kind: Literal["own", "absent", "published"]
    cells: list[str]


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def main_table(block: Block) -> tuple[list[str], list[Line]]:
    """Own rows, experiments without a result, and published rows of the same protocol; the header first.

    Columns of `HEADER` that no line fills are left out.
    """
    lines = [_own(block, row) for row in block.rows]
    lines += [Line("absent", [name, "not run", *[""] * (len(HEADER) - 2)]) for name in block.missing]
    lines += [published_line(row, block.classes) for row in block.published if row.mean(block.classes) is not None]
    used = [i for i in range(len(HEADER)) if any(line.cells[i] for line in lines)]
    return [HEADER[i] for i in used], [Line(line.kind, [line.cells[i] for i in used]) for line in lines]


def _own(block: Block, row: Row) -> Line:
    backbone = f"PSPNet-{row.runs[0].config['model']['backbone']}"
    if not row.scores:
        return Line("absent", [row.title, row.runs[0].state, *[""] * (len(HEADER) - 4), backbone, ""])
    published, mean = block.published_of(row), row.mean("mIoU")
    theirs = published.mean(block.classes) if published else None
    return Line(
        "own",
        [
            row.title,
            mean_std(row.values("mIoU")),
            signed(block.gain(row)),
            _closed(block, row),
            mean_std([row.best[seed] for seed in sorted(row.best)]),
            "" if theirs is None else _number(theirs) + ("" if published and published.verified else MARK),
            signed(mean - theirs) if mean is not None and theirs is not None else "",
            ", ".join(map(str, sorted(row.scores))),
            backbone,
            "",
        ],
    )


def _closed(block: Block, row: Row) -> str:
    """The share of the way from source only to the oracle, in percent."""
    oracle = block.row("oracle")
    whole, gain = block.gain(oracle) if oracle else None, block.gain(row)
    return f"{100 * gain / whole:.0f}" if whole and gain is not None and row is not oracle else ""


def published_line(row: PublishedRow, classes: int) -> Line:
    origin = f"{row.checkpoint}; {row.source}"
    return Line("published", [_marked(row), *[""] * 4, _number(row.mean(classes)), "", "", row.backbone, origin])


def _marked(row: PublishedRow) -> str:
    return row.method + ("" if row.verified else f" {MARK}")


def class_header(block: Block) -> list[str]:
    return ["method", *(NAMES[c] for c in SUBSETS[block.classes])]


def class_table(block: Block) -> list[Line]:
    """IoU per class, the mean over seeds, under `class_header`."""
    names = class_header(block)[1:]
    lines = [
        Line("own", [row.title, *(_number(row.mean(f"IoU/{name}")) for name in names)])
        for row in block.rows
        if row.scores
    ]
    for row in block.published:
        if iou := row.class_iou():
            mark = "" if row.verified else f" {MARK}"
            lines.append(
                Line("published", [f"{row.method}, {row.backbone}{mark}", *(_number(iou.get(n)) for n in names)])
            )
    return lines


def _absent(block: Block) -> list[str]:
    """Classes of the mean that no own row has a figure of."""
    rows = [row for row in block.rows if row.scores]
    return [n for n in class_header(block)[1:] if rows and all(row.mean(f"IoU/{n}") is None for row in rows)]


def notes(blocks: Sequence[Block]) -> list[str]:
    """What the numbers mean, a sentence each."""
    found = ["mIoU of the last checkpoint, in percent, mean ± sample standard deviation over the seeds named."]
    found.append("* The checkpoint with the highest validation score: it was chosen with target labels.")
    for block in blocks:
        if absent := _absent(block):
            found.append(f"{block.experiment}: means leave out the classes without labels: {', '.join(absent)}.")
    if any(block.published for block in blocks):
        found.append(
            "Published rows stand under the same input size, labels and scales; their networks (column backbone), "
            "training, checkpoint rule and align_corners differ from the own rows."
        )
    if any(not row.verified for block in blocks for row in (*block.published, *block.others)):
        found.append(f"{MARK} Quoted from memory and not checked against the paper: do not cite.")
    if any(row.is_translation for block in blocks for row in block.rows):
        found.append(f"{TRANSLATED} {OF_TRANSLATION[0].upper()}{OF_TRANSLATION[1:]}; no segmenter was adapted.")
    if len(blocks) > 1:
        found.append(f"{len(blocks)} tables, because protocols differ: rows of different tables are NOT comparable.")
    return found + [note for block in blocks for row in block.rows for note in row.notes]


def title(block: Block) -> str:
    return f"{block.experiment}: {describe_protocol(block.protocol)}"


def markdown(blocks: Sequence[Block], published: Published) -> str:
    parts = []
    for block in blocks:
        parts += [f"## {title(block)}", _markdown_table(*main_table(block))]
        parts += ["IoU per class:", _markdown_table(class_header(block), class_table(block))]
        if block.others:
            parts.append("Published under other protocols, NOT comparable with the above:")
            header = ("method", "backbone", "mIoU", "protocol", "checkpoint", "source")
            parts.append(_markdown_table(header, other_lines(block, published)))
    parts += [f"- {note}" for note in notes(blocks)]
    return "\n\n".join(parts) + "\n"


def other_lines(block: Block, published: Published) -> list[Line]:
    """Published rows of other protocols: method, backbone, mean, protocol, checkpoint rule, source."""
    return [
        Line(
            "published",
            [
                _marked(row),
                row.backbone,
                _number(row.mean(block.classes)),
                published.protocols[row.protocol].text,
                row.checkpoint,
                row.source,
            ],
        )
        for row in block.others
        if row.mean(block.classes) is not None
    ]


def _markdown_table(header: Sequence[str], lines: Sequence[Line]) -> str:
    rows = [list(header), ["---"] * len(header), *(line.cells for line in lines)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def csv_text(blocks: Sequence[Block], published: Published) -> str:
    """One line per own and per published result, protocol and source on every line; numbers unrounded."""
    keys = ["mIoU", "mIoU19", "mIoU16", "mIoU13", "mAcc", "pixel_accuracy", "fwIoU", *(f"IoU/{n}" for n in NAMES)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "kind",
            "experiment",
            "method",
            "backbone",
            "seed",
            "checkpoint",
            "protocol",
            "comparable",
            "verified",
            "source",
        ]
        + keys
    )
    for block in blocks:
        for row in block.rows:
            for seed, scores in sorted(row.scores.items()):
                backbone = f"PSPNet-{row.runs[0].config['model']['backbone']}"
                start = ["own", block.experiment, row.title, backbone, seed, "last", describe_protocol(block.protocol)]
                writer.writerow([*start, "yes", "", "", *(scores.get(key, "") for key in keys)])
        for theirs in (*block.published, *block.others):
            text = published.protocols[theirs.protocol].text
            start = ["published", block.experiment, theirs.method, theirs.backbone, "", theirs.checkpoint, text]
            comparable, verified = ("yes" if yes else "no" for yes in (theirs in block.published, theirs.verified))
            figures = {
                "mIoU": theirs.mean(block.classes),
                "mIoU19": theirs.mIoU,
                **theirs.model_dump(include={"mIoU16", "mIoU13", "mAcc", "pixel_accuracy", "fwIoU"}),
                **{f"IoU/{name}": value for name, value in theirs.class_iou().items()},
            }
            values = ["" if figures.get(key) is None else figures[key] for key in keys]
            writer.writerow([*start, comparable, verified, theirs.source, *values])
    return out.getvalue()


def latex(blocks: Sequence[Block]) -> str:
    """Tables for the packages booktabs and rotating."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{rotating}"]
    for block in blocks:
        parts.append(f"% {title(block)}")
        header, lines = main_table(block)
        parts.append(_tabular(header, lines, "l" + "r" * (len(header) - 1)))
        header = class_header(block)
        turned = ["method", *(f"\\begin{{turn}}{{90}}{name}\\end{{turn}}" for name in header[1:])]
        parts.append(_tabular(turned, class_table(block), "l" + "r" * (len(header) - 1), escape_header=False))
    parts += [f"% {note}" for note in notes(blocks)]
    return "\n\n".join(parts) + "\n"


def _tabular(header: Sequence[str], lines: Sequence[Line], columns: str, escape_header: bool = True) -> str:
    shown = [_escape(cell) for cell in header] if escape_header else header
    body = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(shown) + r" \\", "\\midrule"]
    for before, line in zip([None, *lines], lines):
        if before and before.kind != "published" and line.kind == "published":
            body.append("\\midrule")
        body.append(" & ".join(_escape(cell) for cell in line.cells) + r" \\")
    return "\n".join([*body, "\\bottomrule", "\\end{tabular}"])


def _escape(text: str) -> str:
    for plain, tex in (("\\", r"\textbackslash "), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, tex)
    text = text.replace("±", r"$\pm$").replace(MARK, r"$^\dagger$").replace(TRANSLATED, r"$^\ddagger$")
    return f"${text}$" if text[:1] in ("+", "-") and text[1:2].isdigit() else text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
