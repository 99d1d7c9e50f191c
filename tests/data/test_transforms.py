import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from da.data.transforms import _TO_YIQ, DomainConfig, Geometry, photometric
from da.labels import IGNORE


def config(**changes: object) -> DomainConfig:
    return DomainConfig.model_validate({"dataset": "gta5", "root": "r", "split": "all"} | changes)


def pair(width: int = 64, height: int = 48) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A label of 8-pixel columns and rows, and an image whose grey value is ten times the label."""
    rows, columns = np.mgrid[:height, :width] // 8
    label = torch.from_numpy(((3 * rows + columns) % 19).astype(np.uint8))
    return tv_tensors.Image((label * 10).expand(3, -1, -1).clone()), tv_tensors.Mask(label)


@pytest.mark.parametrize("seed", range(20))
def test_crop_flip_and_padding_keep_image_and_label_together(seed: int) -> None:
    torch.manual_seed(seed)
    image, label = Geometry(config(crop=(80, 32), flip=True))(*pair())
    assert image.shape == (3, 32, 80)
    inside = label != IGNORE
    assert (image[0][inside] == label[inside] * 10).all()
    assert (image[0][~inside] == 0).all()
    assert int((~inside).sum()) == 32 * 16  # 64 columns of image, 16 of padding


def test_resize_keeps_block_centres_together_and_invents_no_class() -> None:
    torch.manual_seed(0)
    geometry = Geometry(config(size=(96, 72), scale=(1.0, 2.0)))
    for _ in range(10):
        image, label = geometry(*pair())
        assert image.shape[1:] == label.shape
        assert 96 <= label.shape[1] <= 192
        assert set(label.unique().tolist()) <= set(range(19))
        same = (image[0].float() - label * 10.0).abs() <= 3
        assert same.float().mean() > 0.6  # all but the bands around the block edges


def test_random_choices_all_occur() -> None:
    image, label = pair()
    image[0] = torch.arange(64).expand(48, 64)  # red shows the column
    torch.manual_seed(0)
    geometry = Geometry(config(crop=(32, 48), flip=True))
    crops = [geometry(image, label)[0] for _ in range(600)]
    flipped = [bool(c[0, 0, 0] > c[0, 0, -1]) for c in crops]
    lefts = {int(c[0, 0].min()) for c in crops}
    assert lefts == set(range(33))  # the last offset too
    assert 240 < sum(flipped) < 360


def test_nothing_asked_for_changes_nothing() -> None:
    image, label = pair()
    for seed in range(10):
        torch.manual_seed(seed)
        same_image, same_label = Geometry(config())(image, label)
        assert torch.equal(same_image, image)
        assert torch.equal(same_label, label)


def test_same_draws_with_and_without_a_label() -> None:
    geometry = Geometry(config(scale=(0.5, 1.5), crop=(32, 32), flip=True))
    torch.manual_seed(3)
    with_label = geometry(*pair())[0]
    torch.manual_seed(3)
    assert torch.equal(geometry(pair()[0]), with_label)


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes in (
        {"scale": (2.0, 1.0)},
        {"scale": (0.0, 1.0)},
        {"crop": (0, 5)},
        {"size": (-1, 5)},
        {"root": ""},
    ):
        with pytest.raises(ValidationError):
            config(**changes)


def test_photometric_off_changes_nothing() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert photometric(images, 0, 0) is images


def test_jitter_is_in_full_precision_whatever_the_network_computes_in() -> None:
    images = torch.rand(2, 3, 16, 16)
    torch.manual_seed(1)
    expected = photometric(images, 0.3, 0)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(photometric(images, 0.3, 0), expected)


def test_photometric_draws_per_image_and_from_the_global_generator() -> None:
    images = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1).clone()
    before = images.clone()
    torch.manual_seed(1)
    out = photometric(images, 0.3, 1.0)
    torch.manual_seed(1)
    assert torch.equal(photometric(images, 0.3, 1.0), out)
    assert torch.equal(images, before)
    assert not torch.allclose(out[0], out[1])
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_jitter_is_brightness_contrast_saturation_in_their_ranges_and_turns_hue_around_grey(seed: int) -> None:
    """Against torchvision's own steps; inside the range, so that nothing is cut off."""
    images = 0.4 + 0.2 * torch.rand(1, 3, 8, 8)
    torch.manual_seed(seed)
    out = photometric(images, 0.2, 0)
    torch.manual_seed(seed)
    brightness, contrast, saturation, hue = (0.2 * (2 * torch.rand(4, 1) - 1)).flatten().tolist()
    plain = F.adjust_contrast(F.adjust_brightness(images, 1 + brightness), 1 + contrast)
    luma = F.rgb_to_grayscale(plain)
    assert torch.allclose(F.rgb_to_grayscale(out), luma, atol=2e-3)  # torchvision rounds the weights of luma
    chroma, turned = (plain - luma)[0].flatten(1), (out - F.rgb_to_grayscale(out))[0].flatten(1)
    yiq = _TO_YIQ[1:]
    before, after = (torch.complex(*(yiq @ c)) for c in (chroma, turned))
    expected = before * (1 + saturation) * np.exp(2j * np.pi * hue)
    assert torch.allclose(after, expected, atol=2e-3)
    grey = torch.rand(1, 1, 8, 8).expand(1, 3, 8, 8)
    out = photometric(grey, 0.2, 0)
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-5)


def test_blur_alone_smooths_and_its_probability_counts() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32).expand(40, -1, -1, -1)
    out = photometric(images, 0, 0.5)
    changed = [not torch.equal(a, b) for a, b in zip(images, out)]
    assert 8 < sum(changed) < 32
    assert out.std() < images.std()
    assert torch.allclose(out.mean(), images.mean(), atol=5e-3)
