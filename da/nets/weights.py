"""Load a backbone or a checkpoint: report what matched, fail on what did not.

Every file is read with `weights_only=True`, and a state dict fits either as a whole or not at all. The one
thing that may be left over is the ImageNet classifier `fc.*`. A backbone file may also hold `mean` and `std`,
(3,) RGB in [0, 1]: the input statistics that it was trained with, where they are not ImageNet's.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from da.config import UserError
from da.nets.backbone import Arch, ResNet

State = Mapping[str, Tensor]
SHOWN_KEYS = 3


class LoadReport(NamedTuple):
    """What a weights file filled.

    Attributes:
        file: name or path of the file; "none" for random weights.
        tensors: entries of the state dict that were filled, buffers included.
        parameters: trainable values among them.
        statistics: mean and standard deviation of the input that the file names, None where it names none.
    """

    file: str
    tensors: int
    parameters: int
    statistics: tuple[Tensor, Tensor] | None = None

    def text(self) -> str:
        if self.file == "none":
            return "backbone starts from random weights"
        return f"backbone from {self.file}: {self.tensors} tensors, {self.parameters:,} parameters, all fit"


def load_backbone(backbone: ResNet, weights: str, arch: Arch) -> LoadReport:
    """Fill `backbone` in place.

    Args:
        backbone: the network, with plain BatchNorm2d.
        weights: "none"; "imagenet" (torchvision's IMAGENET1K_V1 for `arch`); a torchvision name such as
            "ResNet101_Weights.IMAGENET1K_V2"; or the path of a local state dict. torchvision's files are kept
            in `torch.hub.get_dir()/checkpoints` and downloaded where absent.
        arch: the depth that `backbone` was built with.

    Raises:
        UserError: unknown name, unreadable or absent file, or keys and shapes that do not fit.
    """
    if weights == "none":
        return LoadReport("none", 0, 0)
    if weights == "imagenet" or re.fullmatch(r"\w+_Weights\.\w+", weights):
        file, state = _torchvision_state(weights, arch)
    else:
        file, state = weights, _local_state(weights)
    statistics = (state["mean"], state["std"]) if {"mean", "std"} <= state.keys() else None
    state = {key: value for key, value in state.items() if not key.startswith("fc.") and key not in ("mean", "std")}
    if problems := _fill(backbone, state):
        raise UserError(f"model.weights: {file} does not fit {arch} with model.stem {backbone.stem}: {problems}")
    return LoadReport(file, len(state), sum(p.numel() for p in backbone.parameters()), statistics)


def load_modules(modules: Mapping[str, nn.Module], states: Mapping[str, State], source: str) -> None:
    """Fill every module in place from the state dict of the same name.

    Args:
        modules: the networks of a trainer by name.
        states: their saved state dicts by name.
        source: the checkpoint's path, for the error.

    Raises:
        UserError: names, keys or shapes differ; the modules are then partly filled and of no use.
    """
    problems = []
    if modules.keys() != states.keys():
        problems.append(f"it holds {', '.join(sorted(states))}; expected {', '.join(sorted(modules))}")
    for name in modules.keys() & states.keys():
        if differs := _fill(modules[name], states[name]):
            problems.append(f"{name}: {differs}")
    if problems:
        raise UserError(f"{source}: checkpoint of another architecture: " + "; ".join(sorted(problems)))


def _torchvision_state(weights: str, arch: Arch) -> tuple[str, State]:
    known = get_model_weights(arch)
    name = f"{known.__name__}.IMAGENET1K_V1" if weights == "imagenet" else weights
    owner, _, member = name.partition(".")
    if owner != known.__name__ or member not in known.__members__:
        names = ", ".join(f"{known.__name__}.{m}" for m in known.__members__)
        raise UserError(f"model.weights: {weights} is not a torchvision file for {arch}; known: {names}")
    url = known[member].url
    file = Path(urlparse(url).path).name
    try:
        state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"model.weights: {file} can be neither downloaded nor read in {folder} ({_first_line(error)}); "
            f"put a good copy there, or set model.weights to the path of one"
        ) from error
    return file, state


def _local_state(file: str) -> State:
    if not Path(file).is_file():
        raise UserError(
            f"model.weights: {file} is no file; give a path, none, imagenet, or a torchvision name such as "
            "ResNet101_Weights.IMAGENET1K_V2"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"model.weights: {file} cannot be read as a state dict: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights: {file} is not a plain state dict of a backbone (names to tensors)")
    return state


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _fill(module: nn.Module, state: State) -> str:
    """Load `state` into `module`; return what did not fit, "" if everything did."""
    own = module.state_dict()
    reshaped = [key for key in state if key in own and own[key].shape != state[key].shape]
    fitting = {key: value for key, value in state.items() if key not in reshaped}
    missing, unexpected = module.load_state_dict(fitting, strict=False)  # not in silence: callers refuse what is listed
    lists = {
        "missing": [key for key in missing if key not in reshaped],
        "unexpected": unexpected,
        "of another shape": [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in reshaped],
    }
    return ", ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in lists.items() if keys)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
