"""A checkpoint's segmenter as an ONNX file."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from da import run
from da.config import UserError
from da.engine import run_files
from da.engine.log import say
from da.evaluation.infer import upsample
from da.labels import IGNORE
from da.nets.pooling import AdaptiveAvgPool2d
from da.trainers.base import Trainer

TOLERANCE = 1e-3  # of logits, relative to the largest: other kernels, other rounding


class _WholeImage(nn.Module):
    """RGB in [0, 1], (B, 3, H, W) -> logits (B, classes, H, W), as the evaluation of a whole image makes them."""

    def __init__(self, trainer: Trainer, align_corners: bool) -> None:
        super().__init__()
        self.segmenter = trainer.segmenter
        self.predict, self.align_corners = trainer.predict, align_corners

    def forward(self, image: Tensor) -> Tensor:
        return upsample(self.predict(image), (image.shape[-2], image.shape[-1]), self.align_corners)


class _MatrixPool(nn.Module):
    """`AdaptiveAvgPool2d` as two products with averaging matrices made from the input's size, which ONNX can
    compute for a size that is not known beforehand."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._matrix(x.shape[-2], x), self._matrix(x.shape[-1], x)
        return rows @ x @ columns.transpose(0, 1)

    def _matrix(self, size: int, like: Tensor) -> Tensor:
        """(bins, size): row i averages the places floor(i size / bins) to ceil((i + 1) size / bins)."""
        place = torch.arange(size, device=like.device)
        number = torch.arange(self.bins, device=like.device)[:, None]
        inside = (place * self.bins > number * size - self.bins) & (place * self.bins < (number + 1) * size)
        inside = inside.to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


def export(checkpoint: Path, which: str, out: Path, size: tuple[int, int] | None) -> None:
    """Write `out`: input `image` (B, 3, H, W) float32 RGB in [0, 1], output `logits` (B, classes, H, W) float32.

    The metadata hold `classes` (names, in the order of the logits), `colors` (RGB) and `ignore` as JSON.

    The batch is dynamic; height and width too, unless `size` (width, height) fixes them. Where onnxruntime is
    installed the file is run and must give PyTorch's logits.

    Raises:
        UserError: the optional packages are absent, the checkpoint is wrong, `out` cannot be written, or the backbone's
            graph is of one size and none is given.
        RuntimeError: the file gives other logits than PyTorch; a file that was there before stays.
    """
    try:
        import onnxscript  # noqa: F401  torch.onnx needs it and says so in a page of text
    except ImportError as error:
        raise UserError(
            f"export: needs onnxscript ({error}); install it with: pip install onnx onnxscript onnxruntime"
        ) from error
    config, trainer, step = run.restore(run.checkpoint_path(checkpoint, which))
    model = _WholeImage(trainer, config.eval.align_corners).eval()
    width, height = size or (256, 128)
    image = torch.rand(2, 3, height, width)
    other = torch.rand(3, 3, *(size[::-1] if size else (139, 215)))  # another batch, and another size where it may vary
    with torch.no_grad():
        expected = model(other)
    _replace_pools(model)
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    if size is None:
        dynamic |= {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with run_files.replacing(out) as fresh:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on its own exporter
            logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells of each node that it cannot simplify
            program = torch.onnx.export(
                model,
                (image,),
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": dynamic},
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        shape: Any = program.model.graph.inputs[0].shape
        if size is None and any(isinstance(side, int) for side in shape[2:]):
            raise UserError(
                f"export: torch cannot make a graph of {config.model.backbone} for images of any size (the size of its "
                "example becomes a constant); add --size WIDTH HEIGHT"
            )
        classes = trainer.classes
        facts = {"classes": classes.names, "colors": classes.colors, "ignore": IGNORE}
        program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
        program.save(str(fresh), external_data=False)
        compared = _compare(fresh, other, expected)
        run_files.to_disk(fresh)
    sizes = f"{width}x{height}" if size else "any size"
    say(f"{out}: segmenter of {checkpoint}, step {step}, {sizes}, {out.stat().st_size / 2**20:.1f} MiB")
    say(compared)


def _replace_pools(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, AdaptiveAvgPool2d):
            setattr(module, name, _MatrixPool(child.bins))
        else:
            _replace_pools(child)


def _compare(path: Path, image: Tensor, expected: Tensor) -> str:
    try:
        import onnxruntime
    except ImportError:
        return "not compared with PyTorch: onnxruntime is not installed"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.numpy()})[0]
    difference = float(np.abs(found - expected.numpy()).max())
    if not difference <= TOLERANCE * float(expected.abs().max()):  # nor not a number
        raise RuntimeError(f"{path}: onnxruntime's logits differ from PyTorch's by up to {difference:.3g}")
    return f"onnxruntime {onnxruntime.__version__}: logits differ from PyTorch's by at most {difference:.2g}"
