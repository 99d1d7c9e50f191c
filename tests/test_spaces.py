"""Runs under other label spaces: VOC-, ADE- and CamVid-shaped data from training to report, and one model scored in the
classes of other data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from city import CITY
from conftest import save_png
from PIL import Image
from tiny import SETTINGS, tiny

from da.cli import main
from da.config import UserError
from da.data import folders
from da.engine import checkpoint
from da.evaluate import evaluate_runs
from da.labels import IGNORE, LabelSpace, label_space
from da.run import load_config, train

LAYOUTS = {  # data set: class list, image, label, and how splits are listed
    "voc2012": ("voc21", "JPEGImages/{}.jpg", "SegmentationClass/{}.png", "ImageSets/Segmentation/{split}.txt"),
    "ade20k": ("ade150", "images/{long}/{}.jpg", "annotations/{long}/{}.png", None),
    "camvid": ("camvid11", "{split}/{}.png", "{split}annot/{}.png", None),
}
LONG = {"train": "training", "val": "validation"}


def write_set(dataset: str, root: Path) -> LabelSpace:
    """Four training and two validation pairs of 96x64 with blocks of random classes, a few of them void."""
    name, image, label, lists = LAYOUTS[dataset]
    space = label_space(name)
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        names = [f"{split}_{n:08d}" for n in range(count)]
        for one in names:
            ids = rng.choice([*range(len(space)), IGNORE], (4, 6)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
            path = root / image.format(one, split=split, long=LONG[split])
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(space.palette[ids]).save(path)
            save_png(root / label.format(one, split=split, long=LONG[split]), space.to_stored(ids))
        if lists:
            path = root / lists.format(split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(names))
    return space


def settings(dataset: str, root: Path, space: LabelSpace, tmp_path: Path) -> list[str]:
    """An experiment on the set, which is its own target, as words of a command."""
    file = tmp_path / "shapes" / f"{dataset}.yaml"
    file.parent.mkdir(exist_ok=True)
    entry = {"dataset": dataset, "root": str(root), "split": "train", "crop": [64, 48]}
    content = {
        "trainer": "adaptsegnet",
        "model": {"backbone": "resnet18", "weights": "none", "head_channels": 16},
        "data": {
            "classes": space.name,
            "source": entry,
            "target": entry,
            "val": {"dataset": dataset, "root": str(root), "split": "val"},
        },
        "run": {"steps": 2},
        "method": {"lr": 0.01, "head_lr_mult": 1.0},
    }
    file.write_text(json.dumps(content))
    return [str(file), *(s for s in SETTINGS if not s.startswith(("data.source", "data.target"))), "run.steps=2"]


def plain_iou(counts: np.ndarray) -> list[float]:
    return [100 * counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(len(counts))]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", LAYOUTS)
def test_a_shape_from_training_to_report(dataset, tmp_path, capsys):
    space = write_set(dataset, tmp_path / "data")
    run = train(load_config(*split(settings(dataset, tmp_path / "data", space, tmp_path))), tmp_path / "runs")
    assert (run / "summary.json").exists()

    # evaluated: the exported predictions give the printed figures by plain numpy
    (found,) = evaluate_runs([run], "last", ["data.workers=0"], figure=tmp_path / "f.png", export=tmp_path / "out")
    counts = np.zeros((len(space), len(space)), np.int64)
    scheme = space.scheme(space.stored_as)
    for sample in folders.find(dataset).index(tmp_path / "data", "val"):
        label = scheme.table[np.asarray(Image.open(sample.label))]
        written = tmp_path / "out" / run.name / f"labelIds/{sample.name}_labelIds.png"
        prediction = scheme.table[np.asarray(Image.open(written))]
        for truth, guess in zip(label[label != IGNORE], prediction[label != IGNORE]):
            counts[truth, guess] += 1
    assert counts.tolist() == found["confusion"]
    labelled = counts.sum(1) > 0
    mean = np.mean([v for v, there in zip(plain_iou(counts), labelled) if there])
    assert f"{found['scores']['mIoU']:.2f}" == f"{mean:.2f}"
    assert {k.removeprefix("IoU/") for k in found["scores"] if k.startswith("IoU/")} == {
        n for n, there in zip(space.names, labelled) if there
    }

    # predicted in its own colours, exported with its names, reported
    picture = next((tmp_path / "data").rglob("val_00000000.*g"))
    assert main(["predict", str(run), str(picture), "-o", str(tmp_path / "p"), "--what", "color", "labelIds"]) == 0
    shown = np.asarray(Image.open(tmp_path / "p/val_00000000_color.png")).reshape(-1, 3)
    assert {tuple(c) for c in shown.tolist()} <= set(space.colors)
    if pytest.importorskip("onnx", reason="needs onnx") and dataset == "camvid":
        import onnx

        assert main(["export", str(run), str(tmp_path / "m.onnx")]) == 0
        facts = {p.key: json.loads(p.value) for p in onnx.load(tmp_path / "m.onnx").metadata_props}
        assert facts["classes"] == list(space.names)
        assert facts["colors"] == [list(c) for c in space.colors]
    assert main(["report", str(run), "-o", str(tmp_path / "report"), "--pictures", "1"]) == 0
    page = (tmp_path / "report/index.html").read_text()
    assert all(name in page for name in space.names)
    assert f"mean over {len(space)} classes" in page
    assert "terrain" not in page or "terrain" in space.names


def split(words: list[str]) -> tuple[list[str], list[str]]:
    return words[:1], words[1:]


@pytest.fixture
def city_run(tmp_path, gta5_root, cityscapes_root) -> Path:
    """An untrained source-only run of the Cityscapes classes, as `evaluate` takes it."""
    from da.trainers import base

    config = tiny("source_only", gta5_root, cityscapes_root)
    path = tmp_path / "city.pt"
    state = {"segmenter": base.build(config).segmenter.state_dict()}
    checkpoint.save(path, {"step": 0, "modules": state, "config": json.dumps(config.model_dump(mode="json"))})
    return path


MERGE = (
    "eval.merge={car: [car, truck, bus, train], tree: [vegetation], sign: [traffic light, traffic sign], "
    "pedestrian: [person], bicyclist: [rider, bicycle, motorcycle]}"
)


class TestOtherClassesThanTheData:
    def camvid(self, root: Path) -> list[str]:
        write_set("camvid", root)
        return ["data.val.dataset=camvid", f"data.val.root={root}", "data.val.split=val", "data.workers=0"]

    def test_they_are_refused_with_the_difference(self, city_run, tmp_path):
        with pytest.raises(UserError, match="cityscapes19 has 19 classes, camvid11 11; only in cityscapes19: wall"):
            evaluate_runs([city_run], "last", [*self.camvid(tmp_path / "c"), "data.classes=camvid11"])

    def test_a_mapping_is_part_of_the_protocol(self, city_run, tmp_path):
        words = [*self.camvid(tmp_path / "c"), "data.classes=camvid11", MERGE]
        (found,) = evaluate_runs([city_run], "last", words, export=tmp_path / "out")
        assert found["classes"] == "camvid11"
        assert found["protocol"]["merge"]["car"] == ["car", "truck", "bus", "train"]
        assert found["protocol"]["classes"] == 11
        counts = np.array(found["confusion"])
        assert counts.shape == (11, 12)  # the last column: wall and terrain, which are no class of CamVid

        # the same predictions, merged by hand
        camvid = label_space("camvid11")
        into = {"truck": "car", "bus": "car", "train": "car", "vegetation": "tree", "traffic light": "sign"}
        into |= {"traffic sign": "sign", "person": "pedestrian", "rider": "bicyclist", "bicycle": "bicyclist"}
        into |= {"motorcycle": "bicyclist"}
        expected = np.zeros((11, 12), np.int64)
        for sample in folders.find("camvid").index(tmp_path / "c", "val"):
            label = folders.find("camvid").read_label(sample.label, camvid)
            (written,) = (tmp_path / "out").glob(f"*/labelIds/{sample.name}_labelIds.png")
            stored = np.asarray(Image.open(written))
            for truth, guess in zip(label.ravel(), CITY.scheme("cityscapes").table[stored].ravel()):
                name = into.get(CITY.names[guess], CITY.names[guess])
                if truth != IGNORE:
                    expected[truth, camvid.names.index(name) if name in camvid.names else 11] += 1
        assert counts.tolist() == expected.tolist()
        from da.evaluation.report import table

        assert "merged car, truck, bus, train -> car" in table([found])

    def test_a_merge_without_need_is_refused(self, city_run, tmp_path, cityscapes_root):
        with pytest.raises(UserError, match="the same classes; leave it out"):
            evaluate_runs([city_run], "last", [f"data.val.root={cityscapes_root}", MERGE.replace("tree", "wall")])

    def test_a_segmenter_of_other_classes_starts_no_run(self, city_run, tmp_path):
        space = write_set("camvid", tmp_path / "data")
        words = settings("camvid", tmp_path / "data", space, tmp_path)
        with pytest.raises(UserError, match=r"init: .*city\.pt has other classes \(camvid11 has 11 classes"):
            train(load_config(*split([*words, f"init={city_run}"])), tmp_path / "runs")


def test_a_checkpoint_of_ones_own_classes_can_be_used_alone(tmp_path):
    """Neither its class list nor its description is there any more."""
    root = tmp_path / "data"
    write_set("camvid", root)
    names = ("sky", "wall & roof", "tarmac")
    rows = (f"  {name}: {{color: [{9 * i}, 9, 200]}}" for i, name in enumerate(names))
    (tmp_path / "three.yaml").write_text("classes:\n" + "\n".join(rows) + "\n")
    (tmp_path / "set.yaml").write_text(
        'images: "{split}/{name}.png"\nlabels: "{split}annot/{name}.png"\n'
        "splits: {train: {split: train}, val: {split: val}}\nids: {three: {sky: [0-2], 'wall & roof': 3, void: rest}}\n"
    )
    words = settings("camvid", root, label_space("camvid11"), tmp_path)
    words += [f"data.classes={tmp_path}/three.yaml", "name=own"]
    words += [f"data.{key}.dataset={tmp_path}/set.yaml" for key in ("source", "target", "val")]
    run = train(load_config(*split(words)), tmp_path / "runs")
    path = shutil.move(run / "checkpoints/last.pt", tmp_path / "alone.pt")
    for gone in (tmp_path / "three.yaml", tmp_path / "set.yaml"):
        gone.unlink()
    folders.find.cache_clear()
    shutil.rmtree(run)
    picture = root / "val/val_00000000.png"
    assert main(["predict", str(path), str(picture), "-o", str(tmp_path / "p"), "--what", "color", "labelIds"]) == 0
    shown = np.asarray(Image.open(tmp_path / "p/val_00000000_color.png")).reshape(-1, 3)
    assert {tuple(c) for c in shown.tolist()} <= {(0, 9, 200), (9, 9, 200), (18, 9, 200)}
    with pytest.raises(UserError, match=r"set\.yaml: cannot be read"):
        evaluate_runs([path], "last", ["data.workers=0"])


class TestSeveralSourcesAndFewLabels:
    def config(self, tmp_path, gta5_root, cityscapes_root, *more: str):
        first, second = (
            f"{{dataset: {name}, root: {root}, split: {split}, crop: [64, 48], weight: {weight}}}"
            for name, root, split, weight in (("gta5", gta5_root, "all", 3), ("cityscapes", cityscapes_root, "val", 1))
        )
        return tiny("source_only", gta5_root, cityscapes_root, f"data.source=[{first}, {second}]", *more)

    def test_each_source_has_its_share(self, tmp_path, gta5_root, cityscapes_root):
        from da.data.loaders import train_batches

        config = self.config(tmp_path, gta5_root, cityscapes_root)
        batches = train_batches(config.data, 0, 0, use_target=False)
        names = [name for _ in range(100) for name in next(batches).src_names]
        assert 0.6 < np.mean([len(name) == 5 for name in names]) < 0.9
        assert len(set(names)) == 9  # six of the one, three of the other

    def test_batches_are_the_same_on_ranks_and_after_an_interruption(self, tmp_path, gta5_root, cityscapes_root):
        from da.data.loaders import train_batches

        data = self.config(tmp_path, gta5_root, cityscapes_root).data
        whole = train_batches(data, 7, 0, use_target=True)
        first, second = next(whole), next(whole)
        ranks = [next(train_batches(data, 7, 1, use_target=True, rank=r, world=2)) for r in range(2)]
        assert ranks[0].src_names + ranks[1].src_names == second.src_names
        assert torch.equal(torch.cat([r.src_image for r in ranks]), second.src_image)
        assert first.src_names != second.src_names

    def test_few_labels_are_drawn_by_their_own_seed(self, tmp_path, gta5_root, cityscapes_root):
        from da.data.loaders import train_batches

        def used(labels: int, draw: int, seed: int) -> set[str]:
            words = [f"data.source.labels={labels}", f"data.source.labels_draw={draw}", f"seed={seed}"]
            data = tiny("source_only", gta5_root, cityscapes_root, *words).data
            batches = train_batches(data, seed, 0, use_target=False)
            return {name for _ in range(10) for name in next(batches).src_names}

        assert len(used(2, 0, 0)) == 2
        assert used(2, 0, 0) == used(2, 0, 1)
        assert used(2, 0, 0) < used(4, 0, 0)
        assert len({frozenset(used(2, draw, 0)) for draw in range(6)}) > 1
        with pytest.raises(UserError, match=r"data\.source\.labels: 7 of 6 images"):
            used(7, 0, 0)

    def test_a_target_has_no_labels_to_keep(self, gta5_root, cityscapes_root):
        with pytest.raises(UserError, match="target: labels: none of the target's is ever read"):
            tiny("source_only", gta5_root, cityscapes_root, "data.target.labels=3")

    def test_a_run_with_two_sources_ends_and_its_settings_load_again(self, tmp_path, gta5_root, cityscapes_root):
        config = self.config(tmp_path, gta5_root, cityscapes_root, "run.steps=2")
        run = train(config, tmp_path / "runs")
        assert load_config([str(run / "config.yaml")]) == config


class TestMessages:
    """Where a setting of these is wrong, its key is named."""

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["data.classes=cityscape19"], r"data\.classes: data\.classes: 'cityscape19' is neither"),
            (["data.classes=7"], r"data\.classes: give one of ade150, binary"),
            (["data.classes=camvid11"], r"data\.source: .*camvid11.*no column or scheme 'cityscapes'"),
            (["data.source.dataset=gta6"], r"data\.source\.dataset: no data set of that name; did you mean 'gta5'"),
            (["data.source.dataset=mine.yaml"], r"data\.source: mine\.yaml: cannot be read"),
            (["data.source.croop=[1, 2]"], r"data\.source\.croop: unknown key; did you mean 'crop'"),
            (["data.source=[{dataset: gta5, root: x}]"], r"data\.source\.0\.split: required"),
            (["data.source=[]"], r"data\.source: "),
            (["data.source=7"], r"data\.source: "),
            (["eval.classes=14"], r"cityscapes19 has no subset 14; known: 19, 16, 13"),
            (
                ["data.val.dataset=voc2012", "data.val.root=${VOC_ROOT}"],
                r"data\.val\.root: the environment variable VOC_ROOT",
            ),
        ],
    )
    def test_one_line_names_the_key(self, words, message, gta5_root, cityscapes_root, monkeypatch):
        monkeypatch.delenv("VOC_ROOT", raising=False)
        with pytest.raises(UserError, match=message) as caught:
            tiny("source_only", gta5_root, cityscapes_root, *words)
        assert len(str(caught.value).splitlines()) == 1, caught.value

    def test_a_root_comes_from_the_environment(self, tmp_path, gta5_root, cityscapes_root, monkeypatch):
        space = write_set("voc2012", tmp_path / "voc")
        monkeypatch.setenv("VOC_ROOT", str(tmp_path / "voc"))
        words = settings("voc2012", tmp_path / "voc", space, tmp_path)
        words.append("data.val={dataset: voc2012, split: val}")
        assert load_config(*split(words)).data.val.root in (str(tmp_path / "voc"),)
