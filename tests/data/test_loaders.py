import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from city import CITY, PALETTE
from PIL import Image

from da.config import UserError
from da.data.loaders import Batch, DataConfig, resolve_root, train_batches, val_samples
from da.labels import IGNORE


@pytest.fixture
def config(gta5_root: Path, cityscapes_root: Path) -> DataConfig:
    return data_config(gta5_root, cityscapes_root)


def data_config(source: Path, target: Path, **changes: Any) -> DataConfig:
    cut = {"scale": (0.75, 1.5), "crop": (48, 32), "flip": True}
    city = {"dataset": "cityscapes", "root": str(target)}
    values = {
        "source": {"dataset": "gta5", "root": str(source), "split": "all", **cut},
        "target": {**city, "split": "train", **cut},
        "val": {**city, "split": "val"},
        "batch_size": 4,
        "workers": 0,
    }
    return DataConfig.model_validate(values | changes)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.src_names == y.src_names
        assert x.tgt_names == y.tgt_names
        assert torch.equal(x.src_image, y.src_image)
        assert torch.equal(x.src_label, y.src_label)
        if x.tgt_image is None or y.tgt_image is None:
            assert x.tgt_image is y.tgt_image
        else:
            assert torch.equal(x.tgt_image, y.tgt_image)


def test_batch_shapes_and_label_alignment(config: DataConfig) -> None:
    plain = config.model_copy(update={"source": (config.source[0].model_copy(update={"scale": (1.0, 1.0)}),)})
    batch = next(train_batches(plain, 0, 0, use_target=True))
    assert batch.src_image.shape == (4, 3, 32, 48)
    assert batch.src_label.shape == (4, 32, 48)
    assert batch.tgt_image is not None
    assert batch.tgt_image.shape == (4, 3, 32, 48)
    assert batch.src_image.dtype == batch.src_label.dtype == batch.tgt_image.dtype == torch.uint8
    assert type(batch.src_image) is torch.Tensor
    assert (PALETTE[batch.src_label.numpy()] == batch.src_image.permute(0, 2, 3, 1).numpy()).all()
    assert len(batch.src_names) == len(batch.tgt_names) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(config: DataConfig, workers: int) -> None:
    alone = take(train_batches(config, 3, 0, use_target=True), 6)
    helped = config.model_copy(update={"workers": workers})
    assert_equal(alone, take(train_batches(helped, 3, 0, use_target=True), 6))


def test_batches_continue_where_a_run_stopped(config: DataConfig) -> None:
    whole = take(train_batches(config, 3, 0, use_target=True), 6)
    assert_equal(whole[4:], take(train_batches(config, 3, 4, use_target=True), 2))


def test_seed_changes_the_batches(config: DataConfig) -> None:
    a, b = (next(train_batches(config, seed, 0, use_target=True)) for seed in (0, 1))
    assert not torch.equal(a.src_image, b.src_image)


def test_a_file_is_cut_anew_each_time_it_comes(config: DataConfig) -> None:
    batches = take(train_batches(config, 0, 0, use_target=True), 6)  # 24 draws from 6 images
    seen = {(n, i.numpy().tobytes()) for b in batches for n, i in zip(b.src_names, b.src_image)}
    assert len(seen) > 20


def test_loading_leaves_the_global_generator_alone(config: DataConfig) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    take(train_batches(config, 0, 0, use_target=True), 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_micro_batches_add_up_to_the_one_rank_batch(config: DataConfig, world: int, accumulate: int) -> None:
    whole = take(train_batches(config, 1, 0, use_target=True), 2)
    shares = [
        take(
            train_batches(config, 1, 0, use_target=True, rank=r, world=world, accumulate=accumulate),
            2 * accumulate,
        )
        for r in range(world)
    ]
    for step, expected in enumerate(whole):
        parts = [share[step * accumulate + number] for number in range(accumulate) for share in shares]
        assert torch.equal(torch.cat([b.src_image for b in parts]), expected.src_image)
        assert torch.equal(torch.cat([b.src_label for b in parts]), expected.src_label)
        assert [n for b in parts for n in b.tgt_names] == expected.tgt_names


def test_batch_size_that_cannot_be_shared(config: DataConfig) -> None:
    with pytest.raises(UserError, match=r"batch_size: 4 .* make it a multiple of 6"):
        train_batches(config, 0, 0, use_target=True, world=3, accumulate=2)


def test_target_train_labels_are_never_read(config: DataConfig, cityscapes_root: Path) -> None:
    before = take(train_batches(config, 0, 0, use_target=True), 4)
    shutil.rmtree(cityscapes_root / "gtFine/train")
    assert_equal(before, take(train_batches(config, 0, 0, use_target=True), 4))


def test_without_target_its_root_is_not_touched(gta5_root: Path, tmp_path: Path) -> None:
    config = data_config(gta5_root, tmp_path / "nowhere")
    batch = next(train_batches(config, 0, 0, use_target=False))
    assert batch.tgt_image is None
    assert batch.tgt_names == []
    assert batch.to("cpu").tgt_image is None
    with pytest.raises(UserError, match="nowhere"):
        train_batches(config, 0, 0, use_target=True)


def test_source_batches_do_not_depend_on_the_target(config: DataConfig) -> None:
    both = take(train_batches(config, 0, 0, use_target=True), 2)
    alone = take(train_batches(config, 0, 0, use_target=False), 2)
    assert all(torch.equal(a.src_image, b.src_image) for a, b in zip(both, alone))


def test_method_with_target_needs_one(config: DataConfig) -> None:
    with pytest.raises(UserError, match="data.target: required"):
        train_batches(config.model_copy(update={"target": None}), 0, 0, use_target=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("file", ["images/00002.png", "labels/00002.png"])
def test_damaged_file_in_a_worker_is_one_clear_line(config: DataConfig, workers: int, file: str) -> None:
    path = Path(config.source[0].root) / file
    path.write_bytes(path.read_bytes()[:70])
    broken = config.model_copy(update={"workers": workers})
    with pytest.raises(UserError) as caught:
        take(train_batches(broken, 0, 0, use_target=True), 3)  # 12 draws from 6 images: all are met
    assert str(caught.value).startswith(f"{path}: cannot be decoded")
    assert "\n" not in str(caught.value)


def test_images_of_different_size_need_a_crop(config: DataConfig) -> None:
    whole = config.source[0].model_copy(update={"crop": None})
    with pytest.raises(UserError, match=r"of one batch have sizes .* set a crop"):
        next(train_batches(config.model_copy(update={"source": (whole,)}), 0, 0, use_target=True))


def test_label_of_another_size_is_resized_and_warned_about_once(config: DataConfig, gta5_root: Path) -> None:
    for path in (gta5_root / "labels").iterdir():
        with Image.open(path) as label:
            label.resize((192, 108), Image.Resampling.NEAREST).save(path)
    whole = config.source[0].model_copy(update={"crop": None, "scale": (1.0, 1.0), "flip": False})
    batches = train_batches(config.model_copy(update={"source": (whole,)}), 0, 0, use_target=False)
    with pytest.warns(UserWarning, match=r"\(108, 192\) instead of \(54, 96\)") as caught:
        batch = next(batches)
    assert len(caught) == 1
    assert (PALETTE[batch.src_label.numpy()] == batch.src_image.permute(0, 2, 3, 1).numpy()).all()


def test_crop_wider_than_the_image_is_ignored_there(config: DataConfig) -> None:
    wide = config.source[0].model_copy(update={"scale": (1.0, 1.0), "crop": (128, 54)})
    batch = next(train_batches(config.model_copy(update={"source": (wide,)}), 0, 0, use_target=False))
    assert batch.src_label.shape == (4, 54, 128)
    ignored_columns = (batch.src_label == IGNORE).all(1).sum(1)
    assert (ignored_columns >= 32).all()
    assert (PALETTE[batch.src_label.numpy()] == batch.src_image.permute(0, 2, 3, 1).numpy()).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_val_samples_keep_the_files_size(config: DataConfig, workers: int) -> None:
    samples = val_samples(config.val, CITY, workers=workers)
    for _ in range(2):  # can be walked again
        seen = list(samples)
        assert [s.name for s in seen] == [
            "frankfurt_000000_000019",
            "frankfurt_000001_000019",
            "munster_000000_000019",
        ]
        for name, image, label in seen:
            assert name
            assert image.shape == (3, 48, 96)
            assert (PALETTE[label.numpy()] == image.permute(1, 2, 0).numpy()).all()
    assert len(samples) == 3


def test_val_samples_are_shared_by_rank(config: DataConfig) -> None:
    names = [[s.name for s in val_samples(config.val, CITY, rank, 2, workers=0)] for rank in range(2)]
    assert [len(n) for n in names] == [2, 1]
    assert len({*names[0], *names[1]}) == 3


def test_val_label_keeps_its_own_size_and_errors_name_the_file(config: DataConfig, cityscapes_root: Path) -> None:
    folder = cityscapes_root / "gtFine/val/munster"
    path = folder / "munster_000000_000019_gtFine_labelIds.png"
    Image.fromarray(np.full((96, 192), 7, np.uint8)).save(path)
    assert list(val_samples(config.val, CITY, workers=0))[2].label.shape == (96, 192)
    Image.fromarray(np.full((96, 192), 77, np.uint8)).save(path)
    with pytest.raises(UserError, match=f"^{path}: 77 are not Cityscapes ids"):
        list(val_samples(config.val, CITY, workers=1))


def test_miniature_has_no_synthia(config: DataConfig) -> None:
    domain = config.source[0].model_copy(update={"root": "miniature", "dataset": "synthia"})
    with pytest.raises(UserError, match="miniature"):
        resolve_root(domain)
