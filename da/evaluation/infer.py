"""From an image of any size to a map of trainIds: the only inference code.

The network's logits are kept at its output stride. Everything of the size of the result (upsampling, averaging over
windows, scales and mirror images, softmax, argmax) is made in strips of rows, so that no full-resolution tensor of
scores exists. Sliding windows, scales and mirroring as PSPNet's authors test (Zhao et al., CVPR 2017, section 5.1).
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor
from torchvision.transforms import v2

from da.config import Pixels, Section, UserError
from da.evaluation import crf
from da.evaluation.crf import CRFConfig
from da.labels import MergeMap

Predict = Callable[[Tensor], Tensor]

# Scores of one strip in float32: about what a CPU core's cache holds; on a GPU enough to fill it.
STRIP_BYTES = {"cpu": 2**21, "cuda": 2**26}
STRIP_ROWS = 16  # at least: of fewer, the rows of logits that two strips share would be widened again and again


Window = Annotated[Pixels, Field(ge=16)]  # smaller ones would take hours


class SlidingConfig(Section):
    """Windows that cover the image; where they overlap their scores are averaged."""

    crop: tuple[Window, Window]  # (width, height) of a window; cut to the image where that is smaller
    stride: float = Field(2 / 3, gt=0, le=1)  # from window to window, as a share of the crop


class EvalConfig(Section):
    """The protocol a number was measured under; it is stored beside the number."""

    input_size: tuple[Pixels, Pixels] | None = None  # (width, height) the image is resized to; None = as is
    resize: Literal["bicubic", "bilinear"] = "bicubic"  # of images, with antialiasing
    label_size: tuple[Pixels, Pixels] | None = None  # labels shrunk to it (nearest); None = full resolution
    align_corners: bool = False  # when logits are upsampled; what `model.align_corners` was in training fits
    classes: int | str | None = None  # subset of `data.classes` that the headline mIoU is averaged over; None: all
    # Where the data have other classes than the checkpoint: class of the data -> classes of the checkpoint that count
    # as it. Equal names need no mention; a prediction of any other class is wrong.
    merge: MergeMap | None = None
    sliding: SlidingConfig | None = None  # None: the image whole
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)  # of the input size; scores are averaged
    flip: bool = False  # average with the scores of the mirror image
    average: Literal["logits", "probabilities"] = "logits"  # what is averaged over windows, scales and mirror images
    crf: CRFConfig | None = None  # sharpen with a conditional random field

    def describe(self) -> str:
        """One line: what a number was measured under."""
        resized = self.input_size or self.scales != (1.0,)
        size = "{}x{}".format(*self.input_size) if self.input_size else "own size"
        parts = [f"input {size}" + f" ({self.resize})" * bool(resized)]
        if self.sliding:
            parts.append("windows {}x{}".format(*self.sliding.crop) + f" every {self.sliding.stride:.3g} of one")
        else:
            parts.append("whole image")
        parts.append("single scale" if self.scales == (1.0,) else f"scales {', '.join(f'{s:g}' for s in self.scales)}")
        if self.flip:
            parts.append("flip")
        if self.averages:
            parts.append(f"{self.average} averaged")
        parts.append(f"logits upsampled (align_corners {str(self.align_corners).lower()})")
        parts.append("labels {}x{}".format(*self.label_size) if self.label_size else "full-resolution labels")
        if self.crf:
            parts.append(f"CRF ({self.crf.iterations} iterations)")
        over = "all" if self.classes is None else str(self.classes)
        parts.append(f"mean over {over} classes" if over.isdigit() or over == "all" else f"mean over classes {over}")
        if self.merge:
            parts.append("merged " + "; ".join(f"{', '.join(names)} -> {name}" for name, names in self.merge.items()))
        return ", ".join(parts)

    @property
    def averages(self) -> bool:
        """Whether a pixel has more than one score to average."""
        return self.sliding is not None or len(self.scales) > 1 or self.flip


def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Logits (B, C, h, w) of any precision to float32 (B, C, *size), bilinear."""
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=align_corners)


def predict_labels(predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig) -> Tensor:
    """The segmentation of one image under a protocol.

    The image is resized to `config.input_size`. Whole images: the logits are upsampled
    once, to `size`. Sliding windows: a window's logits are upsampled to the window, averaged in the input image, and
    the average is upsampled to `size`. Scales and mirror images are averaged at `size`.

    Args:
        predict: RGB in [0, 1], (1, 3, h, w) -> logits (1, C, h / s, w / s) at any output stride s.
        image: (3, H, W) uint8 RGB on any device.
        size: (height, width) of the result, as a rule the label's own.

    Returns:
        (height, width) uint8 trainIds on the image's device.
    """
    labels = torch.empty(size, dtype=torch.uint8, device=image.device)
    for row, scores in _result_strips(predict, image, size, config):
        labels[row : row + scores.shape[1]] = argmax(scores)
    return labels


def predict_confidence(
    predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig
) -> tuple[Tensor, Tensor]:
    """`predict_labels`, and the probability of each pixel's class, (height, width) float32 on the image's device."""
    labels = torch.empty(size, dtype=torch.uint8, device=image.device)
    confidence = torch.empty(size, device=image.device)
    row = 0
    for strip in _probability_strips(predict, image, size, config):
        rows = slice(row, row + strip.shape[1])
        labels[rows], confidence[rows] = argmax(strip), strip.amax(0)
        row = rows.stop
    return labels, confidence


def predict_probabilities(predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig) -> Tensor:
    """Class probabilities (C, height, width) float16 on the CPU; arguments as for `predict_labels`."""
    strips = [strip.half().cpu() for strip in _probability_strips(predict, image, size, config)]
    with torch.autocast("cpu", enabled=False):  # which does not know how to join halves
        return torch.cat(strips, 1)


def predict_entropy(predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig) -> Tensor:
    """How unsure the segmenter is, (height, width) float32 from 0 to 1 on the image's device; arguments as for
    `predict_labels`."""
    return torch.cat([entropy(strip) for strip in _probability_strips(predict, image, size, config)])


def entropy(probabilities: Tensor) -> Tensor:
    """(C, H, W) probabilities -> (H, W) entropy divided by ln C, so 0 to 1 (ADVENT, Vu et al., CVPR 2019, eq. 2)."""
    return torch.special.entr(probabilities).sum(0) / math.log(len(probabilities))


def _probability_strips(predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig) -> Iterator[Tensor]:
    done = config.crf is not None or config.average == "probabilities"
    for _, scores in _result_strips(predict, image, size, config):
        yield scores if done else scores.softmax(0)


def argmax(scores: Tensor) -> Tensor:
    """`scores.argmax(0)` of (C, H, W) as uint8, the first of equals; several times faster on a CPU."""
    if scores.is_cuda:
        return scores.argmax(0).to(torch.uint8)
    ranks = torch.arange(len(scores), 0, -1, dtype=torch.uint8, device=scores.device).view(-1, 1, 1)
    is_best = scores == scores.amax(0)
    return len(scores) - is_best.view(torch.uint8).mul_(ranks).amax(0)


class _Window(NamedTuple):
    logits: Tensor  # (C, h, w) float32 at the output stride
    top: int  # place in the view, in pixels
    left: int
    height: int
    width: int


class _View(NamedTuple):
    """The image at one scale, mirrored or not."""

    size: tuple[int, int]  # (height, width) of the canvas that the windows lie on
    windows: list[_Window]


@torch.no_grad()
def _views(predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig) -> list[_View]:
    height, width = image.shape[-2:] if config.input_size is None else config.input_size[::-1]
    views = []
    for scale in config.scales:
        scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
        picture = _resized(image, scaled, config)
        for mirrored in (False, True) if config.flip else (False,):
            views.append(_view(predict, picture[None].float() / 255, size, config.sliding, mirrored))
    return views


def at_input_size(image: Tensor, config: EvalConfig) -> Tensor:
    """(3, H, W) uint8 RGB brought to `config.input_size`."""
    return image if config.input_size is None else _resized(image, config.input_size[::-1], config)


def _resized(image: Tensor, size: tuple[int, int], config: EvalConfig) -> Tensor:
    if size == tuple(image.shape[-2:]):
        return image
    return v2.functional.resize(image, list(size), v2.InterpolationMode(config.resize), antialias=True)


def _view(
    predict: Predict, image: Tensor, size: tuple[int, int], sliding: SlidingConfig | None, mirrored: bool
) -> _View:
    """The logits of `image` (1, 3, H, W). A whole image is one window stretched over the result's own `size`."""

    def logits(part: Tensor) -> Tensor:
        found = predict(part.flip(-1)).flip(-1)[0].float() if mirrored else predict(part)[0].float()
        if not found.isfinite().all():
            raise UserError("the network's scores are not finite: its weights are, or run.precision=fp32 would help")
        return found

    if sliding is None:
        return _View(size, [_Window(logits(image), 0, 0, *size)])
    full_height, full_width = image.shape[-2:]
    width, height = min(sliding.crop[0], full_width), min(sliding.crop[1], full_height)
    windows = []
    for top in window_starts(full_height, height, sliding.stride):
        for left in window_starts(full_width, width, sliding.stride):
            part = image[..., top : top + height, left : left + width]
            windows.append(_Window(logits(part), top, left, height, width))
    return _View((full_height, full_width), windows)


def window_starts(full: int, crop: int, stride: float) -> list[int]:
    """Where windows of `crop` pixels begin along `full` pixels: ceil(stride * crop) apart, the last one at the end."""
    step = math.ceil(crop * stride)
    count = math.ceil((full - crop) / step) + 1
    return [min(i * step, full - crop) for i in range(count)]


def _taps(inputs: int, outputs: int, start: int, stop: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Bilinear source positions of the output rows `start` to `stop`: the row before (int64), and the share of the
    row after it, as `F.interpolate` computes them."""
    rows = torch.arange(start, stop, dtype=torch.float32)
    if align_corners:
        position = rows * ((inputs - 1) / max(outputs - 1, 1))
    else:
        position = ((rows + 0.5) * (inputs / outputs) - 0.5).clamp(min=0)
    before = position.long().clamp(max=inputs - 1)
    return before, position - before


def upsample_rows(
    rows: Callable[[int, int], Tensor],
    inputs: tuple[int, int],
    outputs: tuple[int, int],
    start: int,
    stop: int,
    align_corners: bool,
) -> Tensor:
    """Rows `start` to `stop` of the bilinear resize of (C, *inputs) to (C, *outputs), float32.

    Args:
        rows: gives rows a to b of the input, (C, b - a, width).
    """
    if inputs == outputs:
        return rows(start, stop)
    before, share = _taps(inputs[0], outputs[0], start, stop, align_corners)
    after = (before + 1).clamp(max=inputs[0] - 1)
    first, last = int(before[0]), int(after[-1]) + 1
    source = upsample(rows(first, last)[None], (last - first, outputs[1]), align_corners)[0]
    before, after, share = (t.to(source.device, non_blocking=True) for t in (before - first, after - first, share))
    return source[:, before].lerp_(source[:, after], share[:, None])


def _window_rows(window: _Window, start: int, stop: int, config: EvalConfig) -> Tensor:
    """Rows `start` to `stop` of a window's own scores, (C, stop - start, width)."""
    logits = window.logits
    size = (logits.shape[1], logits.shape[2])
    scores = upsample_rows(
        lambda a, b: logits[:, a:b], size, (window.height, window.width), start, stop, config.align_corners
    )
    return scores.softmax(0) if config.average == "probabilities" else scores


def _canvas_rows(view: _View, start: int, stop: int, config: EvalConfig) -> Tensor:
    """Rows `start` to `stop` of a view's canvas, averaged over the windows that cover a pixel."""
    if len(view.windows) == 1:
        return _window_rows(view.windows[0], start, stop, config)
    logits = view.windows[0].logits
    total = logits.new_zeros(logits.shape[0], stop - start, view.size[1])
    count = logits.new_zeros(stop - start, view.size[1])
    for w in view.windows:
        top, bottom = max(start, w.top), min(stop, w.top + w.height)
        if top >= bottom:
            continue
        there = (slice(top - start, bottom - start), slice(w.left, w.left + w.width))
        total[:, there[0], there[1]] += _window_rows(w, top - w.top, bottom - w.top, config)
        count[there] += 1
    return total.div_(count)


def _rows(views: list[_View], size: tuple[int, int], start: int, stop: int, config: EvalConfig) -> Tensor:
    """Rows `start` to `stop` of the scores at `size`, averaged over the views."""
    total: Tensor | None = None
    for view in views:

        def canvas(a: int, b: int, view: _View = view) -> Tensor:
            return _canvas_rows(view, a, b, config)

        scores = upsample_rows(canvas, view.size, size, start, stop, config.align_corners)
        total = scores if total is None else total.add_(scores)
    assert total is not None
    return total.div_(len(views)) if len(views) > 1 else total


@torch.no_grad()
def _result_strips(
    predict: Predict, image: Tensor, size: tuple[int, int], config: EvalConfig
) -> Iterator[tuple[int, Tensor]]:
    """The result in strips: first row, and scores (C, rows, width), which are probabilities after a CRF."""
    views = _views(predict, image, size, config)
    classes = len(views[0].windows[0].logits)
    height, width = size
    step = max(STRIP_ROWS, STRIP_BYTES[image.device.type] // (classes * width * 4))
    if config.crf is None:
        for start in range(0, height, step):
            yield start, _rows(views, size, start, min(start + step, height), config)
        return
    guide = v2.functional.resize(image, list(size), v2.InterpolationMode.BILINEAR, antialias=True)
    halo = config.crf.iterations * config.crf.radius  # a pixel hears of no pixel farther away
    step = max(step, 2 * halo)
    for start in range(0, height, step):
        stop = min(start + step, height)
        first, last = max(0, start - halo), min(height, stop + halo)
        scores = _rows(views, size, first, last, config)
        probabilities = scores if config.average == "probabilities" else scores.softmax(0)
        yield start, crf.refine(probabilities, guide[:, first:last], config.crf)[:, start - first : stop - first]
