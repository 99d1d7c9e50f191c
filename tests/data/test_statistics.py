"""Class statistics of a source: counted once, kept as long as no file changes."""

import os

import numpy as np
import pytest
from city import CITY
from tiny import tiny

from da.config import UserError
from da.data import folders, statistics
from da.data.check import check_root
from da.data.loaders import class_frequencies, class_shares
from da.data.statistics import class_pixels


@pytest.fixture
def samples(gta5_root):
    return folders.find("gta5").index(gta5_root, "all")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DA_CACHE", str(tmp_path / "cache"))


def test_it_counts_what_the_labels_hold(samples):
    counts = class_pixels("gta5", samples, CITY)
    for sample, row in zip(samples, counts):
        label = folders.find("gta5").read_label(sample.label, CITY)
        assert row.tolist() == [(label == c).sum() for c in range(19)]


def test_labels_are_read_once_until_one_changes(samples, monkeypatch):
    first = class_pixels("gta5", samples, CITY)
    read = []
    count = statistics._count
    monkeypatch.setattr(statistics, "_count", lambda *of: read.append(of) or count(*of))
    assert np.array_equal(class_pixels("gta5", samples, CITY), first)
    assert not read
    os.utime(samples[0].label, ns=(1, 1))
    assert np.array_equal(class_pixels("gta5", samples, CITY), first)
    assert len(read) == len(samples)


def test_several_processes_count_the_same(samples, monkeypatch):
    alone = class_pixels("gta5", samples, CITY)
    monkeypatch.setattr(statistics, "ALONE", 1)
    os.utime(samples[0].label, ns=(1, 1))
    assert np.array_equal(class_pixels("gta5", samples, CITY), alone)


def test_shares_weigh_the_entries(gta5_root, cityscapes_root, samples):
    config = tiny("source_only", gta5_root, cityscapes_root).data
    (entry,) = config.source
    few = entry.model_copy(update={"labels": 1, "weight": 3.0})
    both = class_shares(config.model_copy(update={"source": (entry, few)}))
    alone, fewer = (class_shares(config.model_copy(update={"source": (one,)})) for one in (entry, few))
    assert both.sum().item() == pytest.approx(1)
    assert both.numpy() == pytest.approx((alone + 3 * fewer).numpy() / 4)


def test_an_image_without_a_label_is_refused(samples):
    with pytest.raises(UserError, match="1 of .* images have no label"):
        class_pixels("gta5", [samples[0]._replace(label=None), *samples[1:]], CITY)


def test_frequencies_are_over_the_images_that_hold_a_class(gta5_root, cityscapes_root, samples):
    config = tiny("source_only", gta5_root, cityscapes_root).data
    pixels = class_pixels("gta5", samples, CITY)
    found = class_frequencies(config).numpy()
    for c in range(19):
        holding = pixels[pixels[:, c] > 0]
        assert found[c] == pytest.approx(holding[:, c].sum() / max(holding.sum(), 1))
    (entry,) = config.source
    twice = class_frequencies(config.model_copy(update={"source": (entry, entry.model_copy(update={"weight": 3.0}))}))
    assert twice.numpy() == pytest.approx(found)


def test_data_check_leaves_its_counts_for_training(gta5_root, samples, monkeypatch):
    check_root(gta5_root, "gta5", CITY)
    monkeypatch.setattr(statistics, "_count", None)  # nothing is counted again
    kept = class_pixels("gta5", samples, CITY)
    assert kept.tolist() == [
        [(folders.find("gta5").read_label(sample.label, CITY) == c).sum() for c in range(19)] for sample in samples
    ]


def test_data_check_keeps_nothing_of_labels_that_are_not_sound(gta5_root, tmp_path):
    (gta5_root / "labels/00002.png").write_bytes(b"")
    check_root(gta5_root, "gta5", CITY)
    assert not list((tmp_path / "cache").rglob("*.npy"))
