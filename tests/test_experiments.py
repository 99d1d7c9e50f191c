"""Every shipped YAML loads, opens with its command and its score, and every setting is read by somebody."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from pydantic import BaseModel
from tiny import COUNTED, METHOD_FILES, REPOSITORY, tiny

from da.config import Section, models_in
from da.run import load_config, train
from da.trainers import base

EXPERIMENTS = sorted(
    p for p in (REPOSITORY / "experiments").glob("*/*.yaml") if p.parent.name not in ("base", "tables")
)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_experiment_loads(path: Path, monkeypatch):
    for variable in ("GTA5_ROOT", "CITYSCAPES_ROOT", "SYNTHIA_ROOT", "PHOTOGRAPHS_ROOT", "VOC_ROOT", "ADE20K_ROOT"):
        monkeypatch.setenv(variable, f"/data/{variable}")
    config = load_config([str(path)])
    assert config.name == path.stem
    assert config.experiment == path.parent.name
    opening = path.read_text().split("\nbase:")[0]
    assert f"python -m da train experiments/{path.parent.name}/{path.name}" in opening
    scores = re.findall(r"mIoU (\d.*?) \(", opening)
    assert scores or "not run yet" in opening, "say the score it gave, or `not run yet`"
    if path.stem != "cycada_pixel":  # translation networks, which have no row there
        pages = "".join((REPOSITORY / page).read_text() for page in ("README.md", "docs/results.md"))
        assert all(score in pages for score in scores)


def test_the_same_methods_stand_in_every_table():
    names = defaultdict(set)
    for path in EXPERIMENTS:
        names[path.parent.name].add(path.stem)
    assert names["mini"] == names["gta2city"] == names["synthia2city"]
    assert names["drawn2real"] <= names["day2dusk"] <= names["mini"]


def test_resolved_config_loads_to_itself(tmp_path, gta5_root, cityscapes_root):
    import yaml

    config = tiny("adaptsegnet_multi", gta5_root, cityscapes_root)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config([str(tmp_path / "config.yaml")]) == config


def sections(schema: type[BaseModel]) -> set[type[BaseModel]]:
    found = {schema}
    for field in schema.model_fields.values():
        for inner in models_in(field.annotation):
            found |= sections(inner)
    return found


@pytest.mark.slow
def test_every_setting_is_read(tmp_path, gta5_root, cityscapes_root, monkeypatch):
    """A short run of every method must touch every field of every section it is made of."""
    reads = set()
    plain = BaseModel.__getattribute__

    def recording(self, name):
        reads.add((type(self).__name__, name))
        return plain(self, name)

    optional = ["eval.sliding={crop: [64, 32]}", "eval.crf={radius: 1}"]  # sections that are absent by default
    optional.append("data.source.labels=5")
    configs = []
    for method in base.methods():
        settings = () if base.find(method).Trainer.is_pretext else optional
        configs.append(tiny(METHOD_FILES[method], gta5_root, cityscapes_root, *settings))
    adamw = ["method.adamw={layer_decay: 0.9}", "name=adamw"]
    configs.append(tiny("source_only", gta5_root, cityscapes_root, *optional, *adamw))
    configs.append(tiny("finetune", gta5_root, cityscapes_root, "method.l2_sp={}", "name=l2_sp"))
    configs.append(tiny("minent", gta5_root, cityscapes_root, "method.lambda_prior=1", "name=prior"))
    configs.append(tiny("source_only", gta5_root, cityscapes_root, *COUNTED, "name=refined"))
    monkeypatch.setattr(Section, "__getattribute__", recording, raising=False)
    for config in configs:
        train(config, tmp_path / "runs")
    monkeypatch.undo()
    for method in base.methods():
        for section in sections(base.experiment_schema(method)):
            unread = [f for f in section.model_fields if (section.__name__, f) not in reads]
            assert not unread, f"nothing reads {section.__name__}: {unread}"
