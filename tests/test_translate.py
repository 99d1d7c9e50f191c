"""A translated data set is an ordinary data root, whole or not there."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny

import da.translate
from da.config import UserError
from da.data import gta5
from da.data.check import check_root
from da.run import train
from da.translate import translate


@pytest.fixture
def run(tmp_path, gta5_root, cityscapes_root):
    small = (
        "method.blocks=1",
        "method.width=8",
        "run.steps=1",
        "data.source.size=[40, 36]",
        "data.source.crop=[36, 32]",
    )
    return train(tiny("cycada_pixel", gta5_root, cityscapes_root, *small), tmp_path / "runs")


def test_gives_a_data_root_with_the_sources_names_sizes_and_labels(run, tmp_path, gta5_root):
    out = tmp_path / "translated"
    translate(run, out, (), batch=2, agreement=True)
    assert not check_root(out, "gta5").fatal
    before, after = gta5.index(gta5_root, "all"), gta5.index(out, "all")
    assert [s.name for s in before] == [s.name for s in after]
    for old, new in zip(before, after):
        with Image.open(old.image) as a, Image.open(new.image) as b:
            assert a.size == b.size
            assert not np.array_equal(np.asarray(a.convert("RGB")), np.asarray(b))
        assert np.array_equal(gta5.read_label(old.label), gta5.read_label(new.label))
    assert (gta5_root / "split.mat").exists() == (out / "split.mat").exists()
    assert json.loads((out / "translation.json").read_text())["step"] == 1


def test_a_killed_call_goes_on_and_a_finished_one_is_left_alone(run, tmp_path, monkeypatch, gta5_root):
    out, plain = tmp_path / "translated", da.translate._write
    written = []

    def write(path, picture):
        if len(written) == 1:
            raise RuntimeError("killed")
        written.append(path.name)
        plain(path, picture)

    monkeypatch.setattr(da.translate, "_write", write)
    with pytest.raises(RuntimeError, match="killed"):
        translate(run, out, (), batch=1, agreement=False)
    assert not out.exists()
    monkeypatch.setattr(da.translate, "_write", lambda path, picture: (written.append(path.name), plain(path, picture)))
    translate(run, out, (), batch=1, agreement=False)
    count = len(gta5.index(gta5_root, "all"))
    assert len(written) == len(set(written)) == count
    translate(run, out, (), batch=1, agreement=False)
    assert len(written) == count


def test_refuses_a_folder_of_something_else(run, tmp_path, gta5_root, cityscapes_root):
    out = tmp_path / "translated"
    out.mkdir()
    with pytest.raises(UserError, match="holds something else"):
        translate(run, out, (), batch=1, agreement=False)
    source_only = train(tiny("source_only", gta5_root, cityscapes_root, "run.steps=1"), tmp_path / "runs")
    with pytest.raises(UserError, match="translates no images"):
        translate(source_only, tmp_path / "other", (), batch=1, agreement=False)
