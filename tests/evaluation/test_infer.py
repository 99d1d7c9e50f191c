"""Strips, windows, scales and mirror images give every pixel what the plain full-resolution way gives it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from da.config import Tree, UserError, check
from da.evaluation import crf, infer
from da.evaluation.infer import EvalConfig, argmax, predict_labels, predict_probabilities, window_starts

SETTINGS = {
    "whole": {},
    "align": {"align_corners": True},
    "input_size": {"input_size": (72, 40)},
    "scales_flip": {"scales": (0.5, 1.0, 1.75), "flip": True},
    "bilinear": {"resize": "bilinear", "input_size": (80, 48), "scales": (0.75, 1.0)},
    "probabilities": {"scales": (0.75, 1.25), "flip": True, "average": "probabilities", "align_corners": True},
    "sliding": {"sliding": {"crop": (40, 32)}},
    "sliding_resized": {"sliding": {"crop": (32, 24), "stride": 0.5}, "input_size": (80, 48), "align_corners": True},
    "sliding_all": {
        "sliding": {"crop": (40, 40), "stride": 0.6},
        "scales": (0.5, 1.5),
        "flip": True,
        "average": "probabilities",
    },
}


def check_eval(values) -> EvalConfig:
    tree = Tree()
    tree.add(values, "test")
    return check(EvalConfig, tree)


@pytest.fixture(scope="module")
def segmenter():
    """Random logits at output stride 4, which depend on each pixel's surroundings."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 19, 3, 2, 1)).double().eval()


def plain(predict, image, size, config):
    """Scores (C, *size) with every tensor at full resolution, in float64."""
    height, width = image.shape[-2:] if config.input_size is None else config.input_size[::-1]
    total = 0
    for scale in config.scales:
        scaled = [round(height * scale), round(width * scale)]
        picture = v2.functional.resize(image, scaled, v2.InterpolationMode(config.resize), antialias=True)[None] / 255
        for flip in (False, True) if config.flip else (False,):
            total = total + one_view(predict, picture.flip(-1) if flip else picture, flip, size, config)
    return total


def one_view(predict, picture, flip, size, config):
    def up(logits, to):
        logits = logits.flip(-1) if flip else logits
        return F.interpolate(logits.double(), to, mode="bilinear", align_corners=config.align_corners)

    def done(scores):
        return scores.softmax(1) if config.average == "probabilities" else scores

    if config.sliding is None:
        return done(up(predict(picture), size))[0]
    height, width = picture.shape[-2:]
    canvas, count = torch.zeros(1, 19, height, width).double(), torch.zeros(height, width)
    crop_width, crop_height = min(config.sliding.crop[0], width), min(config.sliding.crop[1], height)
    for top in window_starts(height, crop_height, config.sliding.stride):
        for left in window_starts(width, crop_width, config.sliding.stride):
            there = (slice(top, top + crop_height), slice(left, left + crop_width))
            # the windows lie on the upright image; a mirrored one looks at its own part, mirrored
            part = picture.flip(-1)[..., there[0], there[1]].flip(-1) if flip else picture[..., there[0], there[1]]
            canvas[..., there[0], there[1]] += done(up(predict(part), (crop_height, crop_width)))
            count[there] += 1
    return F.interpolate(canvas / count, size, mode="bilinear", align_corners=config.align_corners)[0]


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("name", SETTINGS)
def test_strips_equal_the_plain_way(name, rows, segmenter, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 50, 70), generator=generator, dtype=torch.uint8)
    size, config = (61, 90), check_eval(SETTINGS[name])
    monkeypatch.setitem(infer.STRIP_BYTES, "cpu", rows * 19 * size[1] * 4)

    def predict(x):
        with torch.no_grad():
            return segmenter(x.double())

    expected = plain(predict, image, size, config)
    assert torch.equal(predict_labels(predict, image, size, config), expected.argmax(0).to(torch.uint8))
    found = predict_probabilities(predict, image, size, config).double()
    views = len(config.scales) * (2 if config.flip else 1)
    wanted = expected / views if config.average == "probabilities" else (expected / views).softmax(0)
    assert torch.allclose(found, wanted, atol=1e-3)  # float16


def test_no_full_resolution_scores_exist(segmenter, monkeypatch):
    """No operation makes a tensor of scores larger than a quarter of the full-resolution logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point() and 19 in result.shape:
                largest = max(largest, result.numel())
            return result

    height, width = 256, 512
    logits = torch.randn(1, 19, height // 8, width // 8)
    windows = check_eval({"sliding": {"crop": (256, 128)}, "scales": (1.0, 1.5), "flip": True})
    for config in (EvalConfig(), windows):
        largest = 0
        monkeypatch.setitem(infer.STRIP_BYTES, "cpu", 16 * 19 * width * 4)
        with Watch():
            predict_labels(
                lambda x: logits[..., : x.shape[-2] // 8, : x.shape[-1] // 8],
                torch.zeros(3, height, width, dtype=torch.uint8),
                (height, width),
                config,
            )
        assert largest <= 19 * height * width / 4


def test_argmax_takes_the_first_of_equals():
    scores = torch.randint(0, 3, (19, 40, 50), generator=torch.Generator().manual_seed(0)).float()
    first = (scores == scores.amax(0)).int().argmax(0)
    assert torch.equal(argmax(scores), first.to(torch.uint8))


def test_windows_cover_and_end_at_the_border():
    assert window_starts(2048, 713, 2 / 3) == [0, 476, 952, 1335]
    assert window_starts(1024, 1024, 0.5) == [0]
    assert window_starts(2048, 1024, 0.5) == [0, 512, 1024]


@pytest.mark.parametrize("wrong", [{"scales": []}, {"sliding": {"crop": [8, 8], "stride": 0}}, {"input_size": [0, 4]}])
def test_settings_that_cannot_work(wrong):
    with pytest.raises(UserError):
        check_eval(wrong)


def test_description_names_what_differs_from_the_default():
    config = check_eval({"sliding": {"crop": [713, 713]}, "flip": True, "crf": {}, "label_size": [1024, 512]})
    text = config.describe()
    for part in ("windows 713x713", "flip", "CRF", "labels 1024x512", "logits averaged"):
        assert part in text
    assert "averaged" not in EvalConfig().describe()


def test_crf_of_a_uniform_picture_has_a_closed_form():
    """All pixels alike: each kernel, normalised, sums to 1, so Q <- softmax(log P + (w_b + w_s) Q)."""
    config = crf.CRFConfig(iterations=3, radius=2, bilateral_weight=1.5, spatial_weight=0.5)
    p = torch.tensor([0.2, 0.3, 0.5])
    found = crf.refine(p.view(3, 1, 1).expand(3, 9, 11), torch.full((3, 9, 11), 80, dtype=torch.uint8), config)
    q = p
    for _ in range(3):
        q = (p.log() + 2 * q).softmax(0)
    assert torch.allclose(found, q.view(3, 1, 1).expand(3, 9, 11), atol=1e-6)


def test_crf_equals_the_sum_over_pairs():
    config = crf.CRFConfig(iterations=2, radius=2, bilateral_sigma=3.0, color_sigma=60.0, spatial_sigma=1.5)
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, 5, 4, generator=generator).softmax(0)
    image = torch.randint(0, 256, (3, 5, 4), generator=generator, dtype=torch.uint8)
    places = [(y, x) for y in range(5) for x in range(4)]
    q = p.clone()
    for _ in range(2):
        fresh = torch.empty_like(p)
        for y, x in places:
            message = torch.zeros(3)
            near = [(v, u) for v, u in places if (v, u) != (y, x) and abs(v - y) <= 2 and abs(u - x) <= 2]
            squares = [(v - y) ** 2 + (u - x) ** 2 for v, u in near]
            contrast = [((image[:, y, x].float() - image[:, v, u].float()) ** 2).sum().item() for v, u in near]
            both = [math.exp(-s / (2 * 3.0**2) - c / (2 * 60.0**2)) for s, c in zip(squares, contrast)]
            distance = [math.exp(-s / (2 * 1.5**2)) for s in squares]
            for (v, u), b, d in zip(near, both, distance):
                message += (10 * b / sum(both) + 3 * d / sum(distance)) * q[:, v, u]
            fresh[:, y, x] = (p[:, y, x].log() + message).softmax(0)
        q = fresh
    assert torch.allclose(crf.refine(p, image, config), q, atol=1e-5)


def test_crf_moves_a_border_to_the_edge_of_the_picture():
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[:, :, 20:] = 200
    ramp = torch.sigmoid((torch.arange(40) - 17.0) / 4).expand(20, 40)  # the border is 3 pixels too far left
    found = crf.refine(torch.stack([1 - ramp, ramp]), image, crf.CRFConfig()).argmax(0)
    assert torch.equal(found, (image[0] > 0).long())


def test_crf_in_strips_equals_the_crf_of_the_whole(segmenter, monkeypatch):
    image = torch.randint(0, 256, (3, 64, 48), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    config = check_eval({"crf": {"iterations": 2, "radius": 3}})

    def predict(x):
        return segmenter(x.double())

    whole = predict_probabilities(predict, image, (64, 48), config)
    monkeypatch.setitem(infer.STRIP_BYTES, "cpu", 1)
    strips = predict_probabilities(predict, image, (64, 48), config)
    assert torch.allclose(whole.float(), strips.float(), atol=1e-3)
    assert not torch.equal(whole.argmax(0), predict_probabilities(predict, image, (64, 48), EvalConfig()).argmax(0))
