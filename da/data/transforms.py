"""Joint geometry of image and label (CPU, in the workers); colour changes of image batches (device).

Randomness comes from torch's global generator; the caller seeds it.
"""

import difflib
import math
import os
import re
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from da.config import Pixels, Section, UserError
from da.data import folders
from da.labels import IGNORE


class FolderConfig(Section):
    """One split of a data set on disk, as it is."""

    dataset: str  # the on-disk layout: gta5, cityscapes, synthia, a name in da/data/sets, or a description file
    root: str = Field(
        "", validate_default=True
    )  # data folder, or `miniature` for the embedded pair; default: dataset's
    split: str  # a split of the data set, or a list file

    @field_validator("dataset")
    @classmethod
    def _known(cls, dataset: str) -> str:
        known = folders.known()
        if dataset not in known and not folders.is_description(dataset):
            near = difflib.get_close_matches(dataset, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}, or a description file (.yaml)"
            raise ValueError(f"no data set of that name; {hint}")
        return dataset

    @field_validator("root")
    @classmethod
    def _is_set(cls, root: str, info: ValidationInfo) -> str:
        if "dataset" not in info.data:
            return root
        if root == "miniature" and info.data["dataset"] not in folders.EMBEDDED:
            root = ""  # of a recipe for the embedded pair
        if root and "${" not in root:
            return root
        try:
            dataset = folders.find(info.data["dataset"])
        except UserError as error:
            raise ValueError(str(error)) from error
        found = re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1]) or match[0], root or dataset.root)
        if unset := re.search(r"\$\{(\w+)\}", found):
            what = f"the environment variable {unset[1]} is not set; point it at"
        elif not found:
            what = "give"
        else:
            return found
        raise ValueError(f"{what} a folder that holds  {dataset.tree}")


class DomainConfig(FolderConfig):
    """One stream of training images: where they lie and how they are cut. Sizes are (width, height) in pixels."""

    size: tuple[Pixels, Pixels] | None = None  # the papers' fixed resize; None keeps the file's own size
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)  # range of a random factor on top of `size`
    crop: tuple[Pixels, Pixels] | None = None  # random crop, padded where the image is smaller
    flip: bool = False  # mirror left and right in half of the draws
    weight: PositiveFloat = 1.0  # of several entries: the samples drawn from this one, relative to the others
    labels: PositiveInt | None = None  # keep that many labelled images and leave the others out; None keeps all
    labels_draw: NonNegativeInt = 0  # which ones, a seed of its own: each draw's first n are the same for any number

    @model_validator(mode="after")
    def _ordered(self) -> "DomainConfig":
        if not math.isfinite(self.scale[1]) or not math.isfinite(self.weight):
            raise ValueError("scale, weight: give finite numbers")
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale: the lower end comes first")
        return self


class Geometry(v2.Transform):
    """Resize, scale, crop and flip an image and its mask alike.

    One resize serves `size` and `scale`: bicubic with antialiasing for images, nearest for masks. A crop
    larger than the image pads right and bottom with 0, masks with `IGNORE`. Called with `tv_tensors.Image`
    (3, H, W) uint8 and, where there is a label, `tv_tensors.Mask` (H, W) uint8 of the same size; draws the
    same numbers with and without.
    """

    def __init__(self, config: DomainConfig) -> None:
        super().__init__()
        self.config = config

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        draw_scale, draw_left, draw_top, draw_flip = torch.rand(4).tolist()
        low, high = self.config.scale
        factor = low + (high - low) * draw_scale
        base_width, base_height = self.config.size or (width, height)
        width, height = max(1, round(base_width * factor)), max(1, round(base_height * factor))
        crop_width, crop_height = self.config.crop or (width, height)
        return {
            "size": [height, width],
            "pad": [
                0,
                0,
                max(0, crop_width - width),
                max(0, crop_height - height),
            ],  # left, top, right, bottom
            "left": int(draw_left * (max(0, width - crop_width) + 1)),
            "top": int(draw_top * (max(0, height - crop_height) + 1)),
            "crop": [crop_height, crop_width],
            "flip": self.config.flip and draw_flip < 0.5,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        mask = isinstance(inpt, tv_tensors.Mask)
        out = inpt.as_subclass(torch.Tensor)[None] if mask else inpt.as_subclass(torch.Tensor)  # (1 or 3, H, W)
        if list(out.shape[-2:]) != params["size"]:
            mode = v2.InterpolationMode.NEAREST_EXACT if mask else v2.InterpolationMode.BICUBIC
            out = F.resize(out, params["size"], mode, antialias=not mask)
        if any(params["pad"]):
            out = F.pad(out, params["pad"], fill=IGNORE if mask else 0)
        out = F.crop(out, params["top"], params["left"], *params["crop"])
        if params["flip"]:
            out = F.horizontal_flip(out)
        return tv_tensors.wrap(out[0] if mask else out, like=inpt)


def photometric(images: torch.Tensor, jitter: float, blur: float) -> torch.Tensor:
    """Colour jitter and Gaussian blur, drawn anew for each image of the batch.

    Args:
        images: (B, 3, H, W) float RGB in [0, 1].
        jitter: strength s; brightness, contrast and saturation factors in [1 - s, 1 + s], hue turned by up
            to +-s of the circle (one strength for the four, as DACS, Tranheden et al., WACV 2021). 0 to 0.5.
        blur: probability that an image is blurred, with sigma 0.15 to 1.15 pixels (as DACS). 0 to 1.

    Returns:
        A new (B, 3, H, W) tensor in [0, 1]; the very same `images` where both are 0.
    """
    if jitter:
        with torch.autocast(images.device.type, enabled=False):  # which would round the colours to 8 bits of mantissa
            images = _colour_jitter(images, jitter)
    if blur:
        gaussian = v2.RandomApply([v2.GaussianBlur(7, (0.15, 1.15))], blur)
        images = torch.stack([gaussian(image) for image in images])
    return images


# RGB to luma and two chroma axes (NTSC's YIQ). Greys have no chroma: the last two rows sum to zero.
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_TO_RGB = torch.linalg.inv(_TO_YIQ)  # its first column is ones


def _colour_jitter(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Brightness, contrast, saturation and hue in this order: each is linear in a pixel's colour, so the four are one
    3x3 matrix per image and, for the contrast, a share of the image's mean luma. Hue turns the chroma plane of YIQ,
    not HSV's circle: smooth, luma kept."""
    draws = strength * (2 * torch.rand(4, len(images), device=images.device) - 1)
    brightness, contrast, saturation = 1 + draws[:3, :, None, None]  # (B, 1, 1) each
    angle = 2 * torch.pi * draws[3]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    to_yiq, to_rgb = (matrix.to(images, non_blocking=True) for matrix in (_TO_YIQ, _TO_RGB))
    colours = to_yiq[0] + to_rgb[:, 1:] @ (saturation * turn) @ to_yiq[1:]  # (B, 3, 3)
    luma = to_yiq[0] @ images.mean((2, 3))[..., None]  # (B, 1)
    offset = (1 - contrast) * brightness * luma[..., None]
    pixels = torch.baddbmm(offset, contrast * brightness * colours, images.flatten(2))
    return pixels.clamp_(0, 1).view_as(images)
