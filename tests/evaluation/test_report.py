"""The report: grouping by protocol and seed, differences, what is missing, and a page that needs nothing else."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from tiny import tiny

from da.cli import main
from da.config import UserError
from da.evaluation import compare, page, published, tables
from da.labels import NAMES

LITERATURE = published.read()
GTA_PROTOCOL = {"input_size": [1024, 512], "align_corners": False, "classes": 19}
TRAINERS = {name: name for name in ("source_only", "cycada_pixel", "cycada_feature")} | {"oracle": "source_only"}
OWN_SIZE = GTA_PROTOCOL | {"input_size": None}


def write_run(root, name, seed, miou, protocol=OWN_SIZE, experiment="mini", **settings):
    """A run folder as training leaves it; miou None: unfinished after 20 of 40 steps."""
    folder = root / experiment / f"{name}-seed{seed}"
    folder.mkdir(parents=True)
    val = {"dataset": "cityscapes", "root": str(root), "split": "val"}
    config = {
        "trainer": TRAINERS.get(name, "adaptsegnet"),
        "experiment": experiment,
        "name": name,
        "seed": seed,
        "model": {"backbone": "resnet18"},
        "data": {"val": val},
        "run": {"steps": 40},
        "eval": protocol,
        "method": settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": step, "val/mIoU": (miou or 20) * step / 40, "loss/seg": 2 - step / 40} for step in (20, 40)]
    text = "".join(json.dumps(line) + "\n" for line in lines[: 2 if miou else 1])
    (folder / "metrics.jsonl").write_text(text + '{"step": 4')  # the last line is cut off
    if miou:
        scores = {"mIoU": miou, "mIoU19": miou} | {f"IoU/{n}": miou for n in NAMES if n != "train"}
        summary = {"run": folder.name, "seed": seed, "val": val, "protocol": protocol, "checkpoint": "last", "step": 40}
        summary |= {"scores": scores, "best": {"step": 20, "val/mIoU": miou + 1}}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def evaluate_run(folder, protocol, miou, checkpoint="last"):
    summary = json.loads((folder / "summary.json").read_text())
    del summary["best"]
    confusion = (np.eye(19, dtype=int) * 10).tolist()
    summary |= {"protocol": protocol, "scores": {"mIoU": miou}, "checkpoint": checkpoint, "confusion": confusion}
    (folder / f"evaluation_{checkpoint}.json").write_text(json.dumps(summary))


@pytest.fixture
def runs(tmp_path):
    for seed, miou in ((0, 28.0), (1, 32.0)):
        write_run(tmp_path, "source_only", seed, miou)
    write_run(tmp_path, "adaptsegnet_single", 0, 36.0, gan="vanilla")
    write_run(tmp_path, "adaptsegnet_ls", 0, 35.0, gan="ls")
    write_run(tmp_path, "oracle", 0, 50.0)
    return tmp_path


def table_of(block) -> dict[str, dict[str, str]]:
    header, lines = tables.main_table(block)
    return {line.cells[0]: dict(zip(header, line.cells)) for line in lines}


def test_mean_deviation_gain_and_gap(runs):
    (block,) = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE, ["adaptsegnet_multi"])
    assert [row.name for row in block.rows] == ["source_only", "adaptsegnet_ls", "adaptsegnet_single", "oracle"]
    found = table_of(block)
    assert found["source_only"]["mIoU, last"] == "30.0 ± 2.8"  # sample deviation of 28 and 32
    assert found["source_only"]["best on validation*"] == "31.0 ± 2.8"
    assert found["source_only"]["seeds"] == "0, 1"
    assert found["adaptsegnet_single"]["mIoU, last"] == "36.0"
    assert found["adaptsegnet_single"]["over source only"] == "+6.0"
    assert found["adaptsegnet_single"]["gap closed, %"] == "30"
    assert found["adaptsegnet_multi"]["mIoU, last"] == "not run"
    assert "published" not in found["source_only"]  # nothing is published about the miniature
    classes = {line.cells[0]: dict(zip(tables.class_header(block), line.cells)) for line in tables.class_table(block)}
    assert classes["source_only"]["road"] == "30.0"
    assert classes["source_only"]["train"] == "-"
    assert "mini: means leave out the classes without labels: train." in tables.notes([block])


def test_unfinished_seeds_stay_out_of_the_mean_and_are_named(runs):
    write_run(runs, "oracle", 1, None)
    write_run(runs, "adaptsegnet_multi", 0, None)
    (block,) = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    found = table_of(block)
    assert found["oracle"]["mIoU, last"] == "50.0"
    assert found["adaptsegnet_multi"]["mIoU, last"] == "unfinished, step 20 of 40"
    assert "oracle, seed 1: unfinished, step 20 of 40" in tables.notes([block])


def test_published_rows_of_the_same_protocol_only(tmp_path):
    write_run(tmp_path, "adaptsegnet_multi", 0, 43.0, GTA_PROTOCOL, "gta2city")
    write_run(tmp_path, "adaptsegnet_single", 0, 41.0, GTA_PROTOCOL, "gta2city")
    (block,) = compare.compare(compare.find_runs([tmp_path / "gta2city"]), LITERATURE)
    found = table_of(block)
    assert found["adaptsegnet_multi"]["published"] == "42.4"
    assert found["adaptsegnet_multi"]["difference"] == "+0.6"
    assert found["adaptsegnet_single"]["published"] == "41.4†"  # quoted from memory
    assert "AdvEnt" in found
    assert "MIC" not in found
    others = [line.cells[0] for line in tables.other_lines(block, LITERATURE)]
    assert "MIC" in others
    assert "AdvEnt" not in others
    text = tables.markdown([block], LITERATURE)
    assert "NOT comparable" in text
    assert "do not cite" in text


def test_protocols_are_never_mixed(runs):
    folder = runs / "mini/adaptsegnet_single-seed0"
    evaluate_run(folder, GTA_PROTOCOL, 44.0)
    blocks = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    assert [len(block.rows) for block in blocks] == [4, 1]
    assert blocks[0].row("adaptsegnet_single").mean("mIoU") == 36.0
    assert blocks[1].row("adaptsegnet_single").mean("mIoU") == 44.0
    assert blocks[1].gain(blocks[1].rows[0]) is None  # source only was not measured that way
    assert any("NOT comparable" in note for note in tables.notes(blocks))


def test_an_evaluation_replaces_the_summary_and_best_is_no_result(runs):
    folder = runs / "mini/oracle-seed0"
    evaluate_run(folder, OWN_SIZE, 50.5)
    evaluate_run(folder, OWN_SIZE, 99.0, "best")
    (block,) = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    assert block.row("oracle").values("mIoU") == [50.5]
    assert block.row("oracle").confusion.trace() == 190


def test_seeds_with_other_settings_are_named(runs):
    write_run(runs, "adaptsegnet_ls", 1, 35.0, gan="vanilla")
    (block,) = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    assert any("method.gan: ls -> vanilla" in note for note in tables.notes([block]))


def test_seeds_of_a_chain_start_from_their_own_seeds_run(runs):
    for seed in (0, 1):
        write_run(runs, "cycada_feature", seed, 40.0, start=f"runs/mini/source_only-seed{seed}")
    (block,) = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    assert not any("differs" in note for note in tables.notes([block]))


def test_variants_in_another_folder_of_runs_have_rows_of_their_own(runs):
    write_run(runs, "cycada_feature", 0, 40.0)
    write_run(runs / "nosem", "cycada_feature", 0, 38.0)
    write_run(runs / "nosem", "source_only", 0, 29.0)
    folders = [runs / "nosem/mini", runs / "mini"]
    (block,) = compare.compare(compare.find_runs(folders), LITERATURE)
    found = table_of(block)
    assert found["cycada_feature"]["mIoU, last"] == "40.0"
    assert found["cycada_feature (nosem)"]["mIoU, last"] == "38.0"
    assert found["cycada_feature (nosem)"]["over source only"] == "+8.0"  # over the 30.0 of the main folder
    assert found["source_only"]["seeds"] == "0, 1"


def test_a_translation_is_not_taken_for_a_method(runs):
    write_run(runs, "cycada_pixel", 0, 45.0)
    (block,) = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    assert [row.name for row in block.rows[:2]] == ["source_only", "cycada_pixel"]
    assert table_of(block)["cycada_pixel ‡"]["mIoU, last"] == "45.0"
    assert any("frozen source segmenter" in note for note in tables.notes([block]))
    text = page.html([block], LITERATURE, [], [])
    assert "Highest mean: adaptsegnet_single" in text
    assert "frozen source segmenter" in text
    assert r"$^\ddagger$" in tables.latex([block])


def test_ablations_show_the_settings_that_differ(runs):
    (block,) = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    (table,) = compare.ablations(block)
    assert table == (
        "adaptsegnet",
        ["method.gan"],
        [["adaptsegnet_ls", "ls", "35.0"], ["adaptsegnet_single", "vanilla", "36.0"]],
    )


def test_latex_is_balanced_and_escaped(runs):
    text = tables.latex(compare.compare(compare.find_runs([runs / "mini"]), LITERATURE))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"adaptsegnet\_single" in text
    assert r"30.0 $\pm$ 2.8" in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[_%]", "\n".join(body))
    for part in text.split(r"\begin{tabular}{")[1:]:
        columns = len(part[: part.index("}")])
        rows = [line for line in part.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") + 1 for line in rows} == {columns}


class Page(HTMLParser):
    """Checks that tags close, and gathers every address that a browser would fetch."""

    VOID = ("meta", "link", "img", "br", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for key, value in attributes if key in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for key, value in attributes if key in ("src", "href")]


def test_page_is_one_file_and_well_formed(runs):
    evaluate_run(runs / "mini/oracle-seed0", OWN_SIZE, 50.0)
    blocks = compare.compare(compare.find_runs([runs / "mini"]), LITERATURE)
    picture = np.zeros((8, 16, 3), np.uint8)
    example = page.Example(picture, picture, {"oracle": picture})
    text = page.html(blocks, LITERATURE, [example], ["no pictures of <x>"])
    found = Page(text)
    assert found.addresses
    assert all(address.startswith("data:") for address in found.addresses)
    assert "http" not in text
    assert "@import" not in text
    assert "&lt;x&gt;" in text
    for heading in ("Results", "IoU per class", "Each class against source only", "Training", "Confusion", "Ablations"):
        assert f"<h3>{heading}" in text


def test_error_map_marks_wrong_and_ignored_pixels():
    image = np.full((1, 3, 3), 100, np.uint8)
    label = np.array([[(128, 64, 128), (128, 64, 128), (0, 0, 0)]], np.uint8)
    prediction = np.array([[(128, 64, 128), (70, 70, 70), (70, 70, 70)]], np.uint8)
    right, wrong, ignored = page.error_map(image, label, prediction)[0].astype(int)
    assert right[0] == right[1] == right[2]
    assert wrong[0] > 2 * wrong[1]
    assert ignored.max() < 60


def test_folders_without_runs_are_refused(tmp_path, runs, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run there"):
        compare.find_runs([tmp_path / "empty"])
    assert main(["report"]) == 2
    assert "--table" in capsys.readouterr().err
    assert main(["report", str(runs / "mini"), "--table", "gta2city", "-o", str(tmp_path / "o")]) == 2
    assert "a run of mini" in capsys.readouterr().err
    (runs / "mini/oracle-seed0/evaluation_last.json").write_text("{")
    assert main(["report", str(runs / "mini"), "-o", str(tmp_path / "o")]) == 2
    assert "evaluation_last.json" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_report_of_trained_runs(tmp_path, capsys, gta5_root, cityscapes_root):
    """Two tiny trainings; then one whose checkpoint is gone: its numbers stay, its pictures are left out by name."""
    from da.run import train

    folders = []
    for name in ("source_only", "adaptsegnet_single"):
        folders.append(train(tiny(name, gta5_root, cityscapes_root, "run.steps=2"), tmp_path / "runs"))
    out = tmp_path / "report"
    assert main(["report", "--table", "mini", "--runs", str(tmp_path / "runs"), "-o", str(out), "--pictures", "2"]) == 0
    text = (out / "index.html").read_text()
    assert text.count("data:image/jpeg") == 2
    assert text.count("data:image/png") == 2 * (1 + 2 * 2)  # the label; prediction and errors of two methods
    rows = list(csv.DictReader((out / "table.csv").open()))
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert float(rows[0]["mIoU"]) == summary["scores"]["mIoU"]
    assert "not run" in (out / "table.md").read_text()
    assert r"\toprule" in (out / "table.tex").read_text()

    for file in (folders[1] / "checkpoints").iterdir():
        file.unlink()
    assert main(["report", str(tmp_path / "runs/mini"), "-o", str(out), "--pictures", "2"]) == 0
    assert "no pictures of adaptsegnet_single" in capsys.readouterr().out
    text = (out / "index.html").read_text()
    assert "no pictures of adaptsegnet_single" in text
    assert text.count("data:image/png") == 2 * (1 + 2)
