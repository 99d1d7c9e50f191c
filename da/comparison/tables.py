"""A comparison as lines of cells, and these as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from da.comparison.compare import TRANSLATED, Block, Row
from da.comparison.published import Published, PublishedRow
from da.evaluation.reference import mean_std
from da.evaluation.report import OF_TRANSLATION, describe_protocol

MARK = "†"  # quoted from memory
WRAPPED = r">{\raggedright\arraybackslash}p{%s\linewidth}"  # a column of text in LaTeX
ORIGIN = "checkpoint; source"
BEFORE = "measured before°"
LAST = "last"  # the column of the headline, which the table calls by what the mean is over
BEST = "best on validation (target labels)"


Kind = Literal["own", "absent", "published"]


class Line(NamedTuple):
    """One line of a table; `kind` tells a page how to show it."""

    kind: Kind
    cells: list[str]


def means(block: Block) -> dict[str, str]:
    """What tables call the mean over each subset; the one over all classes is plain mIoU."""
    return block.classes.means | {str(len(block.classes)): "mIoU"}


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def main_table(block: Block) -> tuple[list[str], list[Line]]:
    """Own rows, experiments without a result, and published rows of the same protocol; the header first."""
    others = [block.classes.means[subset] for subset in _other_means(block)]
    gains = ["over source only", "gap closed, %", "best on validation*"]
    header = ["method", LAST, *others, *gains, BEFORE, "published", "difference", "seeds", "backbone", ORIGIN]
    rows: list[tuple[Kind, dict[str, str]]] = [_own(block, row) for row in block.rows]
    rows += [("absent", {"method": name, LAST: "not run", BEFORE: _before(block, name)}) for name in block.missing]
    rows += [("published", _published(block, row)) for row in block.published]
    header, lines = _filled(header, [Line(kind, [cells.get(column, "") for column in header]) for kind, cells in rows])
    return [f"{means(block)[block.subset]}, last" if column == LAST else column for column in header], lines


def _other_means(block: Block) -> list[str]:
    """The class subsets, besides the block's own, that its tables hold a mean of."""
    every, whole = block.classes.subsets, str(len(block.classes))
    wanted = {subset for subset in every if any(row.mean(subset) is not None for row in block.published)}
    if block.subset != whole:
        wanted |= every.keys() - {whole}
    return [subset for subset in every if subset in wanted and subset != block.subset]


def _filled(header: Sequence[str], lines: Sequence[Line]) -> tuple[list[str], list[Line]]:
    """A table without the columns that no line fills; the header first."""
    used = [i for i in range(len(header)) if any(line.cells[i] for line in lines)]
    return [header[i] for i in used], [Line(line.kind, [line.cells[i] for i in used]) for line in lines]


def _own(block: Block, row: Row) -> tuple[Kind, dict[str, str]]:
    """An own row as cells by column."""
    cells = {"method": row.title, BEFORE: _before(block, row.name), "backbone": row.network}
    if not row.is_scored:
        return "absent", cells | {LAST: row.runs[0].state}
    cells |= {
        LAST: mean_std(row.values("mIoU")),
        "over source only": signed(block.gain(row)),
        "gap closed, %": _closed(block, row),
        "best on validation*": mean_std([row.best[seed]["mIoU"] for seed in sorted(row.best)]),
        "seeds": ", ".join(map(str, sorted(row.scores or row.best))),
    }
    for subset in _other_means(block):
        key = block.classes.means[subset]
        cells[key] = mean_std(row.values(key)) if row.values(key) else ""
    if found := block.comparison(row):
        over = "" if found.subset == block.subset else f" ({block.classes.means[found.subset]})"
        cells["published"] = f"{found.theirs}{'' if found.published.verified else MARK}{over}"
        cells["difference"] = signed(found.own - found.theirs) + over
    return "own", cells


def _before(block: Block, experiment: str) -> str:
    """What an experiment gave when this project measured it; empty where that is not known."""
    values = block.reference.rows.get(experiment) if block.reference else None
    return mean_std(values) if values else ""


def _closed(block: Block, row: Row) -> str:
    """The share of the way from source only to the oracle, in percent."""
    oracle = block.row("oracle")
    whole, gain = block.gain(oracle) if oracle else None, block.gain(row)
    return f"{100 * gain / whole:.0f}" if whole and gain is not None and row is not oracle else ""


def _published(block: Block, row: PublishedRow) -> dict[str, str]:
    """A published row as cells by column; its mean over the block's classes stands in that of published figures."""
    cells = {"method": _marked(row), "published": _exact(row.mean(block.subset)), "backbone": row.backbone}
    cells |= {block.classes.means[subset]: _exact(row.mean(subset)) for subset in _other_means(block)}
    return cells | {ORIGIN: f"{row.checkpoint}; {row.source}"}


def _marked(row: PublishedRow) -> str:
    return row.method + ("" if row.verified else f" {MARK}")


def class_header(block: Block) -> list[str]:
    return ["method", *(block.classes.names[c] for c in block.classes.subset(block.subset))]


def class_table(block: Block) -> list[Line]:
    """IoU per class, the mean over seeds, under `class_header`."""
    names = class_header(block)[1:]
    lines = [
        Line("own", [row.title, *(_number(row.mean(f"IoU/{name}")) for name in names)])
        for row in block.rows
        if row.scores
    ]
    for row in block.published if block.protocol else block.others:
        if iou := row.class_iou():
            mark = "" if row.verified else f" {MARK}"
            lines.append(
                Line("published", [f"{row.method}, {row.backbone}{mark}", *(_exact(iou.get(n)) or "-" for n in names)])
            )
    return lines


def _absent(block: Block) -> list[str]:
    """Classes of the mean that no own row has a figure of."""
    rows = [row for row in block.rows if row.scores]
    return [n for n in class_header(block)[1:] if rows and all(row.mean(f"IoU/{n}") is None for row in rows)]


def notes(blocks: Sequence[Block]) -> list[str]:
    """What the numbers mean, a sentence each."""
    found = [note for block in blocks for note in block_notes(block)]
    return list(dict.fromkeys([*found, *_comparability(blocks)]))


def _differing(block: Block) -> list[str]:
    """What rows of one table should share and do not: the number of updates, the precision."""
    found = []
    for key in ("updates", "precision"):
        rows = [(row.title, str(row.settings[key])) for row in block.rows if row.is_scored and row.settings[key]]
        if len({value for _, value in rows}) > 1:
            names = {value: ", ".join(name for name, own in rows if own == value) for _, value in rows}
            found.append(f"Rows differ in {key}: {'; '.join(f'{value}: {of}' for value, of in names.items())}.")
    return found


def block_notes(block: Block) -> list[str]:
    found = _differing(block)
    if any(row.is_scored for row in block.rows):
        found.append("mIoU of the last checkpoint, in percent, mean ± sample standard deviation over the seeds named.")
        found.append("* The checkpoint with the highest validation score: it was chosen with target labels.")
    if block.reference:
        found.append(f"° By this project with the shipped recipes: {block.reference.origin()}.")
    if block.published:
        found.append(
            "Published rows stand under the same input size, labels and scales; their networks (column backbone), "
            "training, checkpoint rule and align_corners differ from the own rows."
        )
    if others := _other_means(block):
        over = (f"{block.classes.means[s]}: the mean over {s} classes" for s in others)
        found.append(
            f"{'; '.join(over)}. A published figure and a difference "
            f"name theirs where it is not {means(block)[block.subset]}."
        )
    if block.apart:
        found.append(f"{block.experiment}: {block.apart}.")
    return found + class_notes(block) + [note for row in block.rows for note in row.notes]


def class_notes(block: Block) -> list[str]:
    """The classes left out, and the marks."""
    found = []
    if absent := _absent(block):
        found.append(f"{block.experiment}: means leave out the classes without labels: {', '.join(absent)}.")
    if any(not row.verified for row in (*block.published, *block.others)):
        found.append(f"{MARK} Quoted from memory and not checked against the paper: do not cite.")
    if any(row.is_translation for row in block.rows):
        found.append(f"{TRANSLATED} {OF_TRANSLATION[0].upper()}{OF_TRANSLATION[1:]}; no segmenter was adapted.")
    return found


def _comparability(blocks: Sequence[Block]) -> list[str]:
    if len(blocks) < 2:
        return []
    return [f"{len(blocks)} tables, because protocols or images differ: rows of different tables are NOT comparable."]


def measured(block: Block) -> str:
    """The protocol and the validation images."""
    return f"{describe_protocol(block.protocol) if block.protocol else 'published results'}; {block.data}"


def title(block: Block) -> str:
    return f"{block.experiment}: {measured(block)}"


def others_title(block: Block) -> str:
    if block.protocol:
        return "Published under other protocols or on other images, NOT comparable with the above"
    return "Published under several protocols: rows of different protocols are NOT comparable"


def classes_title(block: Block) -> str:
    return "IoU per class, %" if block.protocol else "IoU per class, %, under several protocols: NOT comparable"


def markdown(blocks: Sequence[Block], published: Published) -> str:
    parts = []
    for block in blocks:
        parts.append(f"## {title(block)}")
        if (main := main_table(block))[1]:
            parts.append(_markdown_table(*main))
        if classes := class_table(block):
            parts += [f"{classes_title(block)}:", _markdown_table(class_header(block), classes)]
        if (others := other_table(block, published))[1]:
            parts += [f"{others_title(block)}:", _markdown_table(*others)]
    parts += [f"- {note}" for note in notes(blocks)]
    return "\n\n".join(parts) + "\n"


def other_table(block: Block, published: Published) -> tuple[list[str], list[Line]]:
    """Published rows that nothing is compared with, with every mean they have."""
    header = ["method", "data", "backbone", *means(block).values(), "protocol", "checkpoint", "source"]
    several = len({row.dataset for row in block.others}) > 1
    lines = []
    for row in block.others:
        figures = [_exact(row.mean(subset)) for subset in means(block)]
        protocol = published.protocols[row.protocol].text
        first = [_marked(row), row.dataset if several else "", row.backbone]
        lines.append(Line("published", [*first, *figures, protocol, row.checkpoint, row.source]))
    return _filled(header, lines)


def _markdown_table(header: Sequence[str], lines: Sequence[Line]) -> str:
    rows = [list(header), ["---"] * len(header), *(line.cells for line in lines)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


CSV_HEADER = (
    "kind",
    "experiment",
    "method",
    "backbone",
    "weights",
    "seed",
    "state",
    "checkpoint",
    "step",
    "protocol",
    "data",
    "comparable",
    "verified",
    "source",
)


def _plain(cell: Any) -> Any:
    """Text that a spreadsheet would take for a formula, marked as text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def csv_text(blocks: Sequence[Block], published: Published) -> str:
    """One line per seed and checkpoint of an own result, per run and experiment without one and per published result,
    protocol, images and source on every line; numbers unrounded."""
    spaces = [block.classes for block in blocks]
    subsets = dict.fromkeys(key for space in spaces for key in space.means.values())
    names = dict.fromkeys(f"IoU/{name}" for space in spaces for name in space.names)
    keys = ["mIoU", *subsets, "mAcc", "pixel_accuracy", "fwIoU", *names]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*CSV_HEADER, *keys], lineterminator="\n")
    writer.writeheader()

    def write(row: Mapping[str, Any]) -> None:
        writer.writerow({key: _plain(cell) for key, cell in row.items()})

    for block in blocks:
        where = {"experiment": block.experiment, "data": block.data}
        own = where | {"kind": "own", "protocol": describe_protocol(block.protocol) if block.protocol else ""}
        for row in block.rows:
            for seed, run in sorted({int(run.config["seed"]): run for run in row.runs}.items()):
                network = {"backbone": f"PSPNet-{run.backbone}", "weights": run.weights}
                of_seed = own | {"method": row.title, "seed": seed, "state": run.state} | network
                last, best = (run.summary or {}).get("step"), (run.summary or {}).get("best", {}).get("step")
                results = {"last": (row.scores.get(seed), last), BEST: (row.best.get(seed), best)}
                for checkpoint, (scores, step) in results.items():
                    if scores:
                        of_result = {"checkpoint": checkpoint, "step": step, "comparable": "yes"}
                        write(of_seed | of_result | {k: v for k, v in scores.items() if k in keys})
                if not any(scores for scores, _ in results.values()):
                    write(of_seed)
        for name in block.missing:
            write(own | {"method": name, "state": "not run"})
        for theirs in (*block.published, *block.others):
            figures = {
                "mIoU": theirs.mean(block.subset),
                "mIoU19": theirs.mIoU,
                **theirs.model_dump(include={"mIoU16", "mIoU13", "mAcc", "pixel_accuracy", "fwIoU"}),
                **{f"IoU/{name}": value for name, value in theirs.class_iou().items()},
            }
            write(
                where
                | {
                    "kind": "published",
                    "method": theirs.method,
                    "backbone": theirs.backbone,
                    "checkpoint": theirs.checkpoint,
                    "protocol": published.protocols[theirs.protocol].text,
                    "data": theirs.dataset,
                    "comparable": "yes" if theirs in block.published else "no",
                    "verified": "yes" if theirs.verified else "no",
                    "source": theirs.source,
                }
                | figures
            )
    return out.getvalue()


PREAMBLE = r"""% needs \usepackage{booktabs}, \usepackage{rotating}, \usepackage{array} and \usepackage{longtable}
\providecommand{\narrowed}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}"""


def latex(blocks: Sequence[Block], published: Published) -> str:
    """Tables that explain themselves: the protocol is their caption, the notes stand below."""
    parts = [PREAMBLE]
    for block in blocks:
        header, lines = main_table(block)
        if lines:
            columns = "l" + "".join(WRAPPED % 0.5 if name == ORIGIN else "r" for name in header[1:])
            below = [*block_notes(block), *_comparability(blocks)] if block.protocol else []
            parts.append(_float(title(block), _tabular(header, lines, columns), below))
        if lines := class_table(block):
            header = class_header(block)
            turned = ["method", *(f"\\begin{{turn}}{{90}}{name}\\end{{turn}}" for name in header[1:])]
            body = _tabular(turned, lines, "l" + "r" * (len(header) - 1), escape_header=False)
            parts.append(_float(f"{classes_title(block)}. {title(block)}", body, class_notes(block)))
        if not block.protocol:
            parts.append(_listing(block, *other_table(block, published)))
    return "\n\n".join(parts) + "\n"


def _float(caption: str, tabular: str, below: Sequence[str]) -> str:
    return "\n".join(
        [
            "\\begin{table}[htbp]",
            "\\centering",
            f"\\caption{{{_escape(caption)}}}",
            f"\\narrowed{{{tabular}}}",
            *_below(below),
            "\\end{table}",
        ]
    )


def _below(texts: Sequence[str]) -> list[str]:
    """Notes as small paragraphs."""
    return [f"\\par\\smallskip{{\\footnotesize\\raggedright {_escape(text)}\\par}}" for text in texts]


def _listing(block: Block, header: Sequence[str], lines: Sequence[Line]) -> str:
    """Published rows over as many pages as they need."""
    widths = {"method": 0.18, "data": 0.08, "backbone": 0.12, "protocol": 0.16, "checkpoint": 0.13, "source": 0.13}
    columns = "".join(WRAPPED % widths[name] if name in widths else "r" for name in header)
    caption = f"\\caption{{{_escape(f'{title(block)}. {others_title(block)}.')}}}\\\\"
    body = _tabular(header, lines, columns, environment="longtable").split("\n")
    return "\n".join(
        ["{\\scriptsize\\setlength{\\tabcolsep}{2pt}", body[0], caption, *body[1:], "}", *_below(class_notes(block))]
    )


def _tabular(
    header: Sequence[str],
    lines: Sequence[Line],
    columns: str,
    escape_header: bool = True,
    environment: Literal["tabular", "longtable"] = "tabular",
) -> str:
    shown = [_escape(cell) for cell in header] if escape_header else header
    body = [f"\\begin{{{environment}}}{{{columns}}}", "\\toprule", " & ".join(shown) + r" \\", "\\midrule"]
    for before, line in zip([None, *lines], lines):
        if before and before.kind != "published" and line.kind == "published":
            body.append("\\midrule")
        body.append(" & ".join(_escape(cell) for cell in line.cells) + r" \\")
    return "\n".join([*body, "\\bottomrule", f"\\end{{{environment}}}"])


LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        MARK: r"$^\dagger$",
        "°": r"$^\circ$",
        TRANSLATED: r"$^\ddagger$",
    }
)


def _escape(text: str) -> str:
    shown = text.translate(LATEX)
    return f"${shown}$" if text[:1] in ("+", "-") and text[1:2].isdigit() else shown


def _exact(value: float | None) -> str:
    """A published figure with every digit it was given with."""
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
