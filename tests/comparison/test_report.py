"""The report: grouping by protocol and seed, differences, what is missing, and a page that needs nothing else."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from browser import Browser, needs_browser
from city import NAMES
from tiny import tiny

from da.cli import main
from da.comparison import compare, page, published, tables
from da.config import UserError
from da.evaluation.reference import mean_std, read_references
from da.evaluation.report import table
from da.report import _completed
from da.run import load_config

LITERATURE = published.read()
GTA_PROTOCOL = {"input_size": [1024, 512], "align_corners": False, "classes": 19}
TRANSLATORS = ("cycada_pixel",)
TRAINERS = {name: name for name in ("source_only", "cycada_pixel", "cycada_feature")}
TRAINERS |= {"oracle": "source_only", "cycada_feature_only": "cycada_feature"}
OWN_SIZE = GTA_PROTOCOL | {"input_size": None}


CITYSCAPES_VAL = {"count": 500, "size": [2048, 1024], "hash": "0123456789ab"}
CAMVID = {"count": 62, "size": [320, 240], "hash": "ba9876543210"}


def write_run(root, name, seed, miou, protocol=OWN_SIZE, experiment="mini", images=None, folder=None, **settings):
    """A run folder as training leaves it; miou None: unfinished after 20 of 40 steps; images None: as older runs."""
    folder = root / experiment / (folder or f"{name}-seed{seed}")
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
        summary |= {"images": images} if images else {}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def evaluate_run(folder, protocol, miou, checkpoint="last", file=None, **changes):
    summary = json.loads((folder / "summary.json").read_text())
    del summary["best"]
    confusion = (np.eye(19, dtype=int) * 10).tolist()
    summary |= {"protocol": protocol, "scores": {"mIoU": miou}, "checkpoint": checkpoint, "confusion": confusion}
    (folder / f"evaluation_{file or checkpoint}.json").write_text(json.dumps(summary | changes))


def blocks_of(*folders):
    return compare.compare(compare.find_runs(folders, TRANSLATORS), LITERATURE)


@pytest.fixture
def runs(tmp_path):
    for seed, miou in ((0, 28.0), (1, 32.0)):
        write_run(tmp_path, "source_only", seed, miou)
    write_run(tmp_path, "adaptsegnet_single", 0, 36.0, gan="vanilla")
    write_run(tmp_path, "adaptsegnet_ls", 0, 35.0, gan="ls")
    write_run(tmp_path, "oracle", 0, 50.0)
    return tmp_path


def rows_of(blocks) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tables.csv_text(blocks, LITERATURE))))


def table_of(block) -> dict[str, dict[str, str]]:
    header, lines = tables.main_table(block)
    return {line.cells[0]: dict(zip(header, line.cells)) for line in lines}


def test_mean_deviation_gain_and_gap(runs):
    (block,) = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE, ["adaptsegnet_multi"])
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
    (block,) = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    found = table_of(block)
    assert found["oracle"]["mIoU, last"] == "50.0"
    assert found["adaptsegnet_multi"]["mIoU, last"] == "unfinished, step 20 of 40"
    assert "oracle, seed 1: unfinished, step 20 of 40" in tables.notes([block])


def test_published_rows_of_the_same_protocol_only(tmp_path):
    write_run(tmp_path, "adaptsegnet_multi", 0, 43.0, GTA_PROTOCOL, "gta2city", CITYSCAPES_VAL)
    write_run(tmp_path, "adaptsegnet_single", 0, 41.0, GTA_PROTOCOL, "gta2city", CITYSCAPES_VAL)
    (block,) = compare.compare(compare.find_runs([tmp_path / "gta2city"]), LITERATURE)
    found = table_of(block)
    assert found["adaptsegnet_multi"]["published"] == "42.4"
    assert found["adaptsegnet_multi"]["difference"] == "+0.6"
    assert found["adaptsegnet_single"]["published"] == "41.4†"  # quoted from memory
    assert "AdvEnt" in found
    assert "MIC" not in found
    others = [line.cells[0] for line in tables.other_table(block, LITERATURE)[1]]
    assert "MIC" in others
    assert "AdvEnt" not in others
    text = tables.markdown([block], LITERATURE)
    assert "NOT comparable" in text
    assert "do not cite" in text


@pytest.mark.parametrize(("classes", "figure"), [(13, "46.7"), (16, "46.7 (mIoU13)")])
def test_means_over_16_and_13_classes_stand_side_by_side(tmp_path, classes, figure):
    protocol = GTA_PROTOCOL | {"classes": classes}
    folder = write_run(tmp_path, "adaptsegnet_multi", 0, 1.0, protocol, "synthia2city", CITYSCAPES_VAL)
    means = {"mIoU16": 40.0, "mIoU13": 47.0}
    evaluate_run(folder, protocol, 0.0, scores=means | {"mIoU": means[f"mIoU{classes}"]})
    (block,) = blocks_of(folder)
    found, own, other = table_of(block), f"mIoU{classes}, last", f"mIoU{29 - classes}"
    row = found["adaptsegnet_multi"]
    assert {own.split(",")[0]: row[own], other: row[other]} == {"mIoU16": "40.0", "mIoU13": "47.0"}
    assert (row["published"], row["difference"]) == (figure, figure.replace("46.7", "+0.3"))
    assert {p.method for p in block.published} < {name.removesuffix(" †") for name in found}
    daformer = found["DAFormer"]
    assert (daformer["mIoU16"] if classes == 13 else daformer["published"]) == "60.9"
    others = tables.other_table(block, LITERATURE)
    clan = next(dict(zip(others[0], line.cells)) for line in others[1] if line.cells[0] == "CLAN")
    assert (clan["mIoU16"], clan["mIoU13"]) == ("", "47.8")


def test_cycada_stands_beside_its_published_figures(tmp_path):
    protocol = GTA_PROTOCOL | {"input_size": None}
    theirs = {"cycada_feature_only": "29.2", "cycada_pixel_segmenter": "34.8", "cycada_feature": "35.4†"}
    for name in theirs:
        write_run(tmp_path, name, 0, 40.0, protocol, "gta2city", CITYSCAPES_VAL)
    (block,) = blocks_of(tmp_path / "gta2city")
    assert {name: table_of(block)[name]["published"] for name in theirs} == theirs
    assert table_of(block)["CyCADA, pixel only"]["backbone"] == "FCN8s-VGG16"
    assert any("their networks" in note for note in tables.notes([block]))


@pytest.mark.parametrize(
    ("images", "protocol", "compared", "told"),
    [
        (CITYSCAPES_VAL, GTA_PROTOCOL, True, ""),
        (None, GTA_PROTOCOL, False, "is not recorded"),
        (CAMVID, GTA_PROTOCOL, False, "500 images of 2048x1024, these results of 62 images of 320x240"),
        (CITYSCAPES_VAL | {"count": 10}, GTA_PROTOCOL, False, "of 10 images of 2048x1024"),
        (CITYSCAPES_VAL | {"size": None}, GTA_PROTOCOL, False, "500 images of several sizes"),
        (CITYSCAPES_VAL, GTA_PROTOCOL | {"label_size": [1024, 512]}, True, ""),
        (CITYSCAPES_VAL | {"size": [1024, 512]}, GTA_PROTOCOL | {"label_size": [1024, 512]}, True, ""),
        (CITYSCAPES_VAL | {"size": [1024, 512]}, GTA_PROTOCOL, False, "these results of 500 images of 1024x512"),
    ],
)
def test_published_rows_are_compared_on_cityscapes_val_alone(tmp_path, images, protocol, compared, told):
    write_run(tmp_path, "source_only", 0, 43.0, protocol, "gta2city", images)
    (block,) = blocks_of(tmp_path / "gta2city")
    assert bool(block.published) == compared
    assert len(block.published) + len(block.others) == len([p for p in LITERATURE.rows if p.table == "gta2city"])
    assert ("difference" in table_of(block)["source_only"]) == (compared and "label_size" not in protocol)
    assert told in block.apart
    assert bool(block.apart) != compared
    text = tables.markdown([block], LITERATURE)
    assert block.apart in text
    assert {row["comparable"] for row in rows_of([block]) if row["kind"] == "published"} >= {"no"}
    assert any(row["comparable"] == "yes" for row in rows_of([block]) if row["kind"] == "published") == compared


def test_published_rows_are_of_the_val_split(tmp_path):
    folder = write_run(tmp_path, "source_only", 0, 43.0, GTA_PROTOCOL, "gta2city", CITYSCAPES_VAL)
    summary = json.loads((folder / "summary.json").read_text())
    summary["val"]["split"] = "train"
    (folder / "summary.json").write_text(json.dumps(summary))
    (block,) = blocks_of(folder)
    assert not block.published
    assert "not of cityscapes train" in block.apart


def test_different_images_never_share_a_table(tmp_path):
    other = CAMVID | {"hash": "ffffffffffff"}
    for name, miou, images in (("source_only", 30.0, CAMVID), ("oracle", 50.0, CAMVID), ("oracle", 90.0, other)):
        write_run(tmp_path, name, int(miou), miou, images=images)
    blocks = blocks_of(tmp_path / "mini")
    assert [[(row.name, row.values("mIoU")) for row in block.rows] for block in blocks] == [
        [("source_only", [30.0]), ("oracle", [50.0])],
        [("oracle", [90.0])],
    ]
    titles = [tables.title(block) for block in blocks]
    assert "62 images of 320x240 (hash ba9876543210)" in titles[0]
    assert "(hash ffffffffffff)" in titles[1]
    assert any("images differ" in note for note in tables.notes(blocks))


def test_an_evaluation_on_other_images_stands_apart(tmp_path):
    folder = write_run(tmp_path, "oracle", 0, 50.0, images=CAMVID)
    evaluate_run(folder, OWN_SIZE, 70.0, images=CITYSCAPES_VAL)
    blocks = blocks_of(folder)
    assert [block.row("oracle").values("mIoU") for block in blocks] == [[50.0], [70.0]]
    assert [block.data for block in blocks] == [
        "cityscapes val, 62 images of 320x240",
        "cityscapes val, 500 images of 2048x1024",
    ]


@pytest.mark.parametrize("recorded", ["summary", "evaluation", "both", "neither"])
def test_a_result_that_names_no_images_is_of_the_runs_own(tmp_path, recorded):
    folder = write_run(tmp_path, "oracle", 0, 50.0, images=CAMVID if recorded in ("summary", "both") else None)
    summary = json.loads((folder / "summary.json").read_text())
    evaluate_run(folder, OWN_SIZE, 50.5)
    found = json.loads((folder / "evaluation_last.json").read_text())
    found.pop("images", None)
    found |= {"images": CAMVID} if recorded in ("evaluation", "both") else {}
    (folder / "evaluation_last.json").write_text(json.dumps(found))
    (block,) = blocks_of(folder)
    assert block.row("oracle").values("mIoU") == [50.5]
    assert ("62 images" in block.data) == (recorded != "neither")
    found = {k: v for k, v in found.items() if k != "images"} | {"val": summary["val"] | {"root": "/elsewhere"}}
    (folder / "evaluation_last.json").write_text(json.dumps(found))  # says neither its images nor the run's own folder
    blocks = blocks_of(folder)
    assert [block.row("oracle").values("mIoU") for block in blocks] == [[50.0], [50.5]]
    assert "/elsewhere" in tables.title(blocks[1])


def test_evaluations_of_another_step_are_left_out(runs):
    folder = runs / "mini/oracle-seed0"
    evaluate_run(folder, OWN_SIZE, 12.0, step=20)
    evaluate_run(folder, GTA_PROTOCOL, 13.0, file="last_adaptsegnet", step=20)
    evaluate_run(folder, OWN_SIZE, 99.0, "best", step=20)
    (block,) = blocks_of(runs / "mini")
    assert block.row("oracle").values("mIoU") == [50.0]
    left_out = [note for note in tables.notes([block]) if "left out" in note and "step 20" in note]
    assert [note.split()[1] for note in left_out] == ["evaluation_last.json", "evaluation_last_adaptsegnet.json"]


def test_the_best_checkpoint_is_shown_under_every_protocol(tmp_path):
    for seed, best in ((0, 45.0), (1, 47.0)):
        folder = write_run(tmp_path, "oracle", seed, 50.0, images=CAMVID)
        evaluate_run(folder, GTA_PROTOCOL, 44.0, file="last_gta")
        evaluate_run(folder, GTA_PROTOCOL, best, "best", file="best_gta", step=20)
    evaluate_run(folder, GTA_PROTOCOL | {"flip": True}, 60.0, "best", file="best_flip", step=20)
    evaluate_run(folder, OWN_SIZE, 99.0, "best", step=40)  # of an earlier training: the best step is 20
    own, gta, flip = blocks_of(tmp_path / "mini")
    assert table_of(own)["oracle"]["best on validation*"] == "51.0 ± 0.0"
    assert table_of(gta)["oracle"]["best on validation*"] == "46.0 ± 1.4"
    assert (table_of(flip)["oracle"]["mIoU, last"], table_of(flip)["oracle"]["best on validation*"]) == ("-", "60.0")
    assert any("evaluation_best.json is left out" in note for note in tables.notes([own]))
    found = [(row["seed"], row["checkpoint"], row["mIoU"]) for row in rows_of([gta])]
    assert found == [
        ("0", "last", "44.0"),
        ("0", "best on validation (target labels)", "45.0"),
        ("1", "last", "44.0"),
        ("1", "best on validation (target labels)", "47.0"),
    ]
    assert [row["checkpoint"] for row in rows_of([flip])] == ["best on validation (target labels)"]


def test_a_result_without_a_mean_is_named_and_left_out(runs):
    evaluate_run(runs / "mini/oracle-seed0", GTA_PROTOCOL, 0.0, file="last_gta", scores={"pixel_accuracy": 0.0})
    summary = runs / "mini/adaptsegnet_ls-seed0/summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"scores": {"mIoU": float("nan")}}))
    (block,) = blocks_of(runs / "mini")
    text = page.html([block], LITERATURE, [], [])
    assert "oracle-seed0: evaluation_last_gta.json is left out: no mIoU" in text
    assert "adaptsegnet_ls-seed0: summary.json is left out: no mIoU" in text
    assert table_of(block)["adaptsegnet_ls"]["mIoU, last"] == "finished, no mIoU"
    (alone,) = blocks_of(summary.parent)
    assert "<h3>Results" in page.html([alone], LITERATURE, [], [])


def test_two_folders_of_one_seed_are_refused(runs):
    write_run(runs, "oracle", 0, 60.0, folder="oracle-again")
    with pytest.raises(UserError, match=r"oracle-again and .*oracle-seed0: both are oracle, seed 0"):
        blocks_of(runs / "mini")
    write_run(runs / "variant", "oracle", 0, 60.0)
    (block,) = blocks_of(runs / "mini/oracle-seed0", runs / "variant/mini")
    assert len(block.rows) == 2


def test_unfinished_runs_join_the_results_of_their_protocol(tmp_path):
    write_run(tmp_path, "adaptsegnet_ls", 0, None)
    write_run(tmp_path, "source_only", 0, 30.0, images=CAMVID)
    (block,) = blocks_of(tmp_path / "mini")
    assert table_of(block)["adaptsegnet_ls"]["mIoU, last"] == "unfinished, step 20 of 40"


def test_a_result_in_another_precision_replaces_nothing(tmp_path):
    folder = write_run(tmp_path, "oracle", 0, 50.0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["run"]["precision"] = "bf16"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    evaluate_run(folder, OWN_SIZE, 49.9, precision="fp16", file="last_fp16")
    (block,) = blocks_of(tmp_path / "mini")
    assert block.row("oracle").values("mIoU") == [50.0]
    assert any("scored in fp16, the run's own is bf16" in note for note in tables.notes([block]))


def test_what_was_measured_before_stands_beside_runs_of_the_same_images(tmp_path):
    before = read_references()["mini"]
    write_run(tmp_path, "source_only", 0, 28.0, images={"count": 60, "size": [320, 160], "hash": before.images})
    (block,) = compare.compare(compare.find_runs([tmp_path / "mini"]), LITERATURE, ["source_only", "oracle"])
    table = table_of(block)
    assert table["source_only"][tables.BEFORE] == mean_std(before.rows["source_only"])
    assert table["oracle"][tables.BEFORE] == mean_std(before.rows["oracle"])
    assert any(note.startswith("°") and before.date in note for note in tables.notes([block]))
    assert "°" not in tables.latex([block], LITERATURE)
    write_run(tmp_path, "oracle", 0, 50.0, images=CAMVID)
    blocks = compare.compare(compare.find_runs([tmp_path / "mini"]), LITERATURE)
    assert {block.rows[0].name: bool(block.reference) for block in blocks} == {"source_only": True, "oracle": False}


def test_own_rows_are_compared_with_published_ones_of_cityscapes_alone(tmp_path):
    pspnet = LITERATURE.protocols["pspnet"].eval.model_dump(mode="json")
    write_run(tmp_path, "oracle", 0, 70.0, pspnet, "supervised", CITYSCAPES_VAL)
    (block,) = blocks_of(tmp_path / "supervised")
    assert {row.dataset for row in block.published} == {"Cityscapes val"}
    header, lines = tables.other_table(block, LITERATURE)
    assert {line.cells[header.index("data")] for line in lines} >= {"ADE20K val", "Cityscapes val"}


def test_each_line_names_the_network_of_its_own_run(tmp_path):
    for seed, model in enumerate(({"backbone": "resnet18", "weights": "none"}, {"backbone": "resnet101"})):
        folder = write_run(tmp_path, "oracle", seed, 50.0)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"model": model}))
    (block,) = blocks_of(tmp_path / "mini")
    assert table_of(block)["oracle"]["backbone"] == "PSPNet-resnet18, random; PSPNet-resnet101, imagenet"
    lines = [line for line in csv.DictReader(io.StringIO(tables.csv_text([block], LITERATURE))) if line["seed"]]
    networks = {(line["seed"], line["backbone"], line["weights"]) for line in lines}
    assert networks == {("0", "PSPNet-resnet18", "random"), ("1", "PSPNet-resnet101", "imagenet")}
    assert {(line["checkpoint"], line["step"]) for line in lines} == {("last", "40"), (tables.BEST, "20")}


def test_protocols_are_never_mixed(runs):
    folder = runs / "mini/adaptsegnet_single-seed0"
    evaluate_run(folder, GTA_PROTOCOL, 44.0)
    blocks = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    assert [len(block.rows) for block in blocks] == [4, 1]
    assert blocks[0].row("adaptsegnet_single").mean("mIoU") == 36.0
    assert blocks[1].row("adaptsegnet_single").mean("mIoU") == 44.0
    assert blocks[1].gain(blocks[1].rows[0]) is None  # source only was not measured that way
    assert any("NOT comparable" in note for note in tables.notes(blocks))


def test_an_evaluation_replaces_the_summary_and_best_is_no_result(runs):
    folder = runs / "mini/oracle-seed0"
    evaluate_run(folder, OWN_SIZE, 50.5)
    evaluate_run(folder, OWN_SIZE, 99.0, "best")
    (block,) = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    assert block.row("oracle").values("mIoU") == [50.5]
    assert block.row("oracle").confusion.trace() == 190


def test_seeds_with_other_settings_are_named(runs):
    write_run(runs, "adaptsegnet_ls", 1, 35.0, gan="vanilla")
    (block,) = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    assert any("method.gan: ls -> vanilla" in note for note in tables.notes([block]))


def test_seeds_of_a_chain_start_from_their_own_seeds_run(runs):
    for seed in (0, 1):
        write_run(runs, "cycada_feature", seed, 40.0, start=f"runs/mini/source_only-seed{seed}")
        write_run(runs, "cycada_feature_only", seed, 39.0, start=f"runs/mini/oracle-seed{seed}")
    (block,) = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    assert not any("differs" in note for note in tables.notes([block]))
    cells = {line[0]: line[1] for line in compare.ablations(block)[-1][2]}
    assert cells["cycada_feature"] == "runs/mini/source_only-seedN"  # not that of seed 0 beside the mean of both


def test_settings_that_came_after_a_run_have_their_defaults():
    config = load_config(["experiments/mini/source_only.yaml"]).model_dump(mode="json")
    older = config | {"run": {k: v for k, v in config["run"].items() if k not in ("compile", "deterministic")}}
    assert _completed(older) == config
    strange = older | {"gone": 1}
    assert _completed(strange) == strange


def test_variants_in_another_folder_of_runs_have_rows_of_their_own(runs):
    write_run(runs, "cycada_feature", 0, 40.0)
    write_run(runs / "nosem", "cycada_feature", 0, 38.0)
    write_run(runs / "nosem", "source_only", 0, 29.0)
    folders = [runs / "nosem/mini", runs / "mini"]
    (block,) = compare.compare(compare.find_runs(folders, TRANSLATORS), LITERATURE)
    found = table_of(block)
    assert found["cycada_feature"]["mIoU, last"] == "40.0"
    assert found["cycada_feature (nosem)"]["mIoU, last"] == "38.0"
    assert found["cycada_feature (nosem)"]["over source only"] == "+8.0"  # over the 30.0 of the main folder
    assert found["source_only"]["seeds"] == "0, 1"


def test_a_translation_is_not_taken_for_a_method(runs):
    write_run(runs, "cycada_pixel", 0, 45.0)
    (block,) = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    assert [row.name for row in block.rows[:2]] == ["source_only", "cycada_pixel"]
    assert table_of(block)["cycada_pixel ‡"]["mIoU, last"] == "45.0"
    assert any("frozen source segmenter" in note for note in tables.notes([block]))
    text = page.html([block], LITERATURE, [], [])
    assert "Highest mean: adaptsegnet_single" in text
    assert "frozen source segmenter" in text
    assert r"$^\ddagger$" in tables.latex([block], LITERATURE)


def test_ablations_show_the_settings_that_differ(runs):
    (block,) = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    (table,) = compare.ablations(block)
    assert table == (
        "adaptsegnet",
        ["method.gan"],
        [["adaptsegnet_ls", "ls", "35.0"], ["adaptsegnet_single", "vanilla", "36.0"]],
    )


def test_latex_is_balanced_and_escaped(runs):
    text = tables.latex(compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE), LITERATURE)
    for environment in ("tabular", "table"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 2
    assert r"adaptsegnet\_single" in text
    assert r"30.0 $\pm$ 2.8" in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[_%]", "\n".join(body))
    for part in text.split(r"\begin{tabular}{")[1:]:
        columns = len(part[: part.index("}")])
        rows = [line for line in part.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") + 1 for line in rows} == {columns}


def test_latex_explains_itself_without_its_comments(tmp_path):
    write_run(tmp_path, "adaptsegnet_single", 0, 41.0, GTA_PROTOCOL, "gta2city", CITYSCAPES_VAL)
    write_run(tmp_path, "cycada_pixel", 0, 41.0, GTA_PROTOCOL, "gta2city", CITYSCAPES_VAL)
    text = tables.latex(blocks_of(tmp_path / "gta2city"), LITERATURE)
    compiled = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    captions = re.findall(r"\\caption\{(.*)\}", compiled)
    assert len(captions) == 2
    for caption, body in zip(captions, compiled.split(r"\caption")[1:]):
        assert "input 1024x512" in caption
        assert "500 images of 2048x1024" in caption
        below = body[body.index(r"\end{tabular}") : body.index(r"\end{table}")]
        assert "Quoted from memory" in below
        assert "frozen source segmenter" in below
    assert "sample standard deviation" in compiled
    assert tables._escape("a_b {c} 50% <- ^~ \\x -> $") == (
        r"a\_b \{c\} 50\% $<$- \textasciicircum{}\textasciitilde{} \textbackslash{}x -$>$ \$"
    )


def test_csv_names_what_is_absent_or_unfinished(runs):
    write_run(runs, "oracle", 1, None)
    write_run(runs, "adaptsegnet_multi", 0, None)
    found = compare.find_runs([runs / "mini"], TRANSLATORS)
    blocks = compare.compare(found, LITERATURE, ["adaptsegnet_target_forward"])
    found = {(row["method"], row["seed"]): row for row in rows_of(blocks) if not row["checkpoint"].startswith("best")}
    assert found["oracle", "0"]["state"] == "finished"
    assert found["oracle", "0"]["checkpoint"] == "last"
    assert found["oracle", "0"]["mIoU"] == "50.0"
    for method in ("oracle", "adaptsegnet_multi"):
        row = found[method, "1" if method == "oracle" else "0"]
        assert (row["state"], row["mIoU"], row["comparable"]) == ("unfinished, step 20 of 40", "", "")
    assert found["adaptsegnet_target_forward", ""]["state"] == "not run"
    assert len(found) == 8


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
    blocks = compare.compare(compare.find_runs([runs / "mini"], TRANSLATORS), LITERATURE)
    picture = np.zeros((8, 16, 3), np.uint8)
    example = page.Example(picture, picture, {"oracle": picture})
    text = page.html(blocks, LITERATURE, [example], ["no pictures of <x>"])
    found = Page(text)
    assert found.addresses
    assert all(address.startswith("data:") for address in found.addresses)
    assert "http" not in text
    assert "@import" not in text
    assert "&lt;x&gt;" in text
    assert "beforeprint" in text  # opens what is folded away
    for heading in ("Results", "IoU per class", "Each class against source only", "Training", "Confusion", "Ablations"):
        assert f"<h3>{heading}" in text


@pytest.fixture
def browser(tmp_path):
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


@needs_browser
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["desktop", "phone"])
def test_page_in_a_browser(runs, browser, monkeypatch, width, height):
    """Two tables, the second with published rows; pictures as of trained runs."""
    write_run(runs, "adaptsegnet_multi", 0, 43.0, GTA_PROTOCOL, "gta2city", CITYSCAPES_VAL)
    evaluate_run(runs / "mini/oracle-seed0", OWN_SIZE, 50.0)
    picture = np.zeros((8, 16, 3), np.uint8)
    monkeypatch.setattr("da.report.predict_examples", lambda run, count: [[picture] * 4] * count)
    folders = [str(runs / "mini"), str(runs / "gta2city")]
    assert main(["report", *folders, "-o", str(runs / "report"), "--pictures", "2"]) == 0

    browser.open(runs / "report/index.html", width, height)
    assert browser.value("[...document.images].map(image => image.naturalWidth)") == [16] * 2 * (2 + 2 * 4)
    assert browser.value("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelector('tbody').rows].map(row => row.cells[1].textContent)"
    for order in (["50.0", "36.0", "35.0", "30.0 ± 2.8"], ["30.0 ± 2.8", "35.0", "36.0", "50.0"]):
        browser.click("thead th:nth-child(2) button")
        assert browser.value(shown) == order
    browser.value("document.querySelector('.scroll').scrollLeft = 120")
    left = [f"document.querySelector('{part} th').getBoundingClientRect().x" for part in ("thead", "tbody")]
    assert browser.value(left[0]) == browser.value(left[1])  # names and their head stay while the columns move
    assert not browser.errors


def test_page_of_two_tables_draws_curves_where_they_were_validated(tmp_path):
    for name, miou, own in (("adaptsegnet_ls", 35.0, OWN_SIZE), ("adaptsegnet_single", 36.0, GTA_PROTOCOL)):
        folder = write_run(tmp_path, name, 0, miou, own, images=CAMVID, gan=name)
        evaluate_run(folder, OWN_SIZE, miou, file="last_own")
        evaluate_run(folder, GTA_PROTOCOL, miou, file="last_gta")
    evaluate_run(folder, OWN_SIZE, 70.0, images=CITYSCAPES_VAL, file="last_day")
    blocks = blocks_of(tmp_path / "mini")
    text = page.html(blocks, LITERATURE, [], [])
    Page(text)
    sections = text.split('<header class="block">')[1:]
    names = ("adaptsegnet_ls", "adaptsegnet_single")
    drawn = []
    for block, section in zip(blocks, sections):
        assert page.escape(tables.measured(block)) in section
        training = section.partition("<h3>Training")[2].partition("</section>")[0]
        drawn.append([name for name in names if f"{name}: " in training])
    assert drawn == [["adaptsegnet_ls"], ["adaptsegnet_single"], []]
    for section in sections[:2]:
        ablation = section.partition("<h3>Ablations")[2].partition("</section>")[0]
        assert "method.<wbr>gan" in ablation
        assert "input_<wbr>size" not in ablation  # the table's own holds for both


def test_page_draws_the_curves_of_translations(runs):
    folder = write_run(runs, "cycada_pixel", 0, 45.0)
    lines = [{"step": step, "loss/cycle": 1.0, "d/accuracy_target": 0.5, "val/mIoU": 40.0} for step in (20, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page.html(blocks_of(runs / "mini"), LITERATURE, [], []).partition("<h3>Training")[2].partition("<h3>")[0]
    charts = {found.partition("</figcaption>")[0]: found for found in text.split("<figcaption>")[1:]}
    drawn = [title for title, chart in charts.items() if "cycada_pixel ‡: " in chart]
    assert drawn == ["mIoU on validation, %", "translation: cycle loss"]
    assert "oracle: " in charts["mIoU on validation, %"]


def test_error_map_marks_wrong_and_ignored_pixels():
    image = np.full((1, 3, 3), 100, np.uint8)
    label = np.array([[(128, 64, 128), (128, 64, 128), (0, 0, 0)]], np.uint8)
    prediction = np.array([[(128, 64, 128), (70, 70, 70), (70, 70, 70)]], np.uint8)
    right, wrong, ignored = page.error_map(image, label, prediction, (0, 0, 0))[0].astype(int)
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


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "evaluation_last.json",
            '{"checkpoint": "last", "step": 40}',
            "scores: expected dict, but it is absent; delete",
        ),
        ("evaluation_last.json", "[]", "checkpoint: expected str, but it is absent"),
        ("summary.json", '{"step": "4", "checkpoint": "last"}', "step: expected int, but got '4'"),
        ("config.yaml", "trainer: source_only\nexperiment: mini\n", "name: expected str, but it is absent; restore it"),
        ("config.yaml", "", "trainer: expected str"),
    ],
)
def test_files_that_lack_a_key_are_named(runs, tmp_path, capsys, file, text, told):
    (runs / "mini/oracle-seed0" / file).write_text(text)
    assert main(["report", str(runs / "mini"), "-o", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert f"{file}: {told}" in error
    assert error.count("\n") == 1


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["gta2city", "synthia2city", "supervised"])
def test_published_rows_stand_alone_where_nothing_was_run(tmp_path, capsys, monkeypatch, name):
    for variable in ("GTA5_ROOT", "CITYSCAPES_ROOT", "SYNTHIA_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    out = tmp_path / "o"
    assert main(["report", "--table", name, "--runs", str(tmp_path / "none"), "-o", str(out)]) == 0
    assert "no run below" in capsys.readouterr().out
    expected = [p for p in LITERATURE.rows if p.table == name]
    found = list(csv.DictReader((out / "table.csv").open()))
    assert len([row for row in found if row["kind"] == "published"]) == len(expected)
    assert {row["data"] for row in found if row["kind"] == "published"} == {p.dataset for p in expected}
    assert any(row["state"] == "not run" for row in found) == (name != "supervised")
    markdown, latex, html = ((out / file).read_text() for file in ("table.md", "table.tex", "index.html"))
    Page(html)
    for text in (markdown, latex, html):
        assert ("not run" in text) == (name != "supervised")
        assert ("PSPNet (semseg)" in text) == (name == "supervised")
        assert "do not cite" in text
    assert latex.count(r"\begin{longtable}") == latex.count(r"\end{longtable}") == len({p.dataset for p in expected})
    if name == "supervised":
        assert "ADE20K val" in html
        assert "| 44.15 |" in markdown  # with the digits it was published with
        assert "sliding 769x769 windows" in latex
    if name == "synthia2city":
        assert "mIoU13" in markdown


def test_a_table_without_runs_or_published_rows_is_refused(tmp_path, capsys):
    for name in ("mini", "nonsense"):
        assert main(["report", "--table", name, "--runs", str(tmp_path), "-o", str(tmp_path / "o")]) == 2
        assert "no run there" in capsys.readouterr().err


def test_results_on_different_images_are_named_on_the_terminal():
    result = {"run": "r", "checkpoint": "last", "step": 4, "protocol": OWN_SIZE, "scores": {}}
    same, other, unknown = result | {"images": CAMVID}, result | {"images": CITYSCAPES_VAL}, result
    assert "NOT COMPARABLE" not in table([same, same, unknown])
    text = table([same, other])
    assert "NOT COMPARABLE, validation images differ:" in text
    assert "500 images of 2048x1024 (hash 0123456789ab)" in text
