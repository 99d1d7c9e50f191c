"""Turn another project's checkpoint into one that this project loads.

    python -m third_party.convert torchvision resnet50-0676ba61.pth r50.pth
    python -m third_party.convert caffe DeepLab_resnet_pretrained_init-f81d91e8.pth caffe101.pth
    python -m third_party.convert semseg train_epoch_200.pth psp50.pt
    python -m third_party.convert mmseg pspnet_r50-d8_512x1024_80k_cityscapes.pth psp50.pt
    python -m third_party.convert mmseg pspnet_r50-d8_769x769_80k_cityscapes.pth psp50.pt model.align_corners=true

    python -m third_party.convert mmseg pspnet_r50-d8_512x512_80k_ade20k.pth psp50.pt data.classes=ade150
    python -m third_party.convert lextal PSPNet_20 psp34.pt data.classes=classes.yaml

`torchvision` and `caffe` give a backbone for `model.weights`; `semseg`, `mmseg` and `lextal` a whole segmenter, by
default of the Cityscapes classes, which `evaluate` scores as it is, `report` sets beside published rows (give it the
JSON file that `evaluate` wrote) and `init` starts a training from. Every tensor must find its place: what is left out
is named, and anything missing, unknown or of another shape is an error.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from da.config import Section, Tree, UserError, check, flatten, read_tree
from da.engine import checkpoint
from da.engine.log import say
from da.labels import DEFAULT, LabelSpace, label_space
from da.nets.pspnet import PSPNet, PSPNetConfig
from da.nets.weights import load_modules
from da.run import check_config
from da.trainers.base import Experiment
from third_party.kinds import KINDS, Kind

ARCHS = {  # (3x3 convolution is the second of three, blocks of layer3) -> depth
    (False, 2): "resnet18",
    (False, 6): "resnet34",
    (True, 6): "resnet50",
    (True, 23): "resnet101",
}


class _Model(Section):
    model: PSPNetConfig


class Converted(NamedTuple):
    """A checkpoint in this project's form.

    Attributes:
        config: the `model:` section that makes the same network.
        network: that network with the checkpoint's weights, in evaluation mode.
        left_out: foreign tensors with no use here.
        tensors: how many were used.
        classes: what a whole segmenter predicts.
    """

    config: PSPNetConfig
    network: PSPNet
    left_out: list[str]
    tensors: int
    classes: LabelSpace


def convert(
    kind: Kind,
    state: dict[str, Tensor],
    source: str,
    overrides: dict[str, Any] | None = None,
    classes: LabelSpace | None = None,
) -> Converted:
    """The segmenter of a foreign state dict.

    Args:
        kind: whose names `state` has.
        state: names to tensors.
        source: the file, for errors.
        overrides: of the `model:` section.
        classes: of a whole segmenter, in the order of its outputs; None: the default.

    Raises:
        UserError: an unknown name, a missing tensor, another shape or number of classes.
    """
    classes = classes or label_space(DEFAULT)
    named, left_out = _rename(kind, state, source)
    prefix = "" if kind.part == "backbone" else "backbone."
    model = {
        "backbone": _arch(named, prefix, source),
        "weights": "none",
        "aux": "aux.4.weight" in named,
        "presence": "presence.0.weight" in named,
        **kind.model,
    }
    if kind.part == "segmenter":
        outputs = len(named[kind.logits]) if kind.logits in named else len(classes)
        if outputs != len(classes):
            raise UserError(
                f"{source}: predicts {outputs} classes, {classes.name} has {len(classes)}; say data.classes=NAME"
            )
        model["head_channels"] = len(named["cls.0.weight"]) if "cls.0.weight" in named else 512
    tree = Tree()
    tree.add({"model": model}, source)
    tree.add({"model": overrides or {}}, "command line")
    config = check(_Model, tree).model
    network = PSPNet(config, len(classes)).eval()
    if kind.bgr:
        named["conv1.weight"] = named["conv1.weight"].flip(1)
    if kind.input_last and "cls.0.weight" in named:
        named["cls.0.weight"] = named["cls.0.weight"].roll(network.backbone.num_features, 1)
    if kind.part == "backbone":
        load_modules({"backbone": network.backbone}, {"backbone": named}, source)
    else:
        own = {"mean": network.mean, "std": network.std}
        load_modules({"segmenter": network}, {"segmenter": named | own}, source)
    if kind.statistics:
        network.mean, network.std = (torch.tensor(values) for values in kind.statistics)
    return Converted(config, network, left_out, len(named), classes)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: bare, or below `state_dict` or `model`; `module.` prefixes are taken off.

    Raises:
        UserError: the file is unreadable, holds more than plain values, or holds no state dict.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # a file may be anything, and torch says so in many ways
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}".rstrip(": ")
        raise UserError(
            f"{path}: cannot be read as plain tensors ({reason}); where it was made, load it and save only its state "
            "dict"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise UserError(f"{path}: holds no state dict (names to tensors)")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _rename(kind: Kind, state: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    named: dict[str, Tensor] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    for key, value in state.items():
        found = next((re.sub(rule, name, key) for rule, name in kind.rules if re.fullmatch(rule, key)), None)
        if found:
            named[found] = value
        else:
            (left_out if re.fullmatch(kind.left_out, key) else unknown).append(key)
    if unknown:
        raise UserError(f"{source}: {len(unknown)} names are not of this kind of checkpoint: {_some(unknown)}")
    return named, left_out


def _arch(named: dict[str, Tensor], prefix: str, source: str) -> str:
    bottleneck = f"{prefix}layer1.0.conv3.weight" in named
    blocks = len([key for key in named if re.fullmatch(rf"{re.escape(prefix)}layer3\.\d+\.conv1\.weight", key)])
    if (bottleneck, blocks) not in ARCHS:
        raise UserError(f"{source}: a ResNet with {blocks} blocks in layer3; known: {', '.join(ARCHS.values())}")
    return ARCHS[bottleneck, blocks]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def experiment_of(config: PSPNetConfig, name: str, classes: LabelSpace) -> Experiment:
    """What a converted segmenter is evaluated as: source only, on the miniature unless `data.val.root` is given."""
    settings = {
        "trainer": "source_only",
        "experiment": "third_party",
        "name": name,
        "model": config.model_dump(mode="json"),
        "data": {
            "classes": classes.dump(),
            "source": {"dataset": "gta5", "root": "miniature", "split": "all"},
            "val": {"dataset": "cityscapes", "root": "miniature", "split": "val"},
        },
        "method": {} if config.aux else {"lambda_aux": 0.0},
        "run": {"steps": 1},
        "eval": {"align_corners": config.align_corners},
    }
    tree = read_tree(())
    tree.add(settings, name)
    return check_config(tree)


def write(kind: Kind, converted: Converted, out: Path) -> None:
    """Write the backbone's state dict with its input statistics, or a checkpoint that holds the whole segmenter."""
    if out.is_dir():
        raise UserError(f"{out}: a folder; name the file to write")
    network = converted.network
    if kind.part == "backbone":
        state: dict[str, Any] = {**network.backbone.state_dict()}
        if kind.statistics:
            state |= {"mean": network.mean, "std": network.std}
    else:
        config = experiment_of(converted.config, out.stem, converted.classes).model_dump_json()
        state = {"modules": {"segmenter": network.state_dict()}, "config": config, "step": 0}
    checkpoint.save(out, state)


def report(kind: Kind, converted: Converted, out: Path) -> str:
    """What was used, what was left out, and the YAML lines that go with the file."""
    settings = converted.config.model_dump(mode="json", include={"backbone", *kind.model})
    if kind.part == "backbone":
        settings["weights"] = str(out)
        use = f"then: python -m da train EXPERIMENT.yaml with these lines, or model.weights={out} and so on"
    else:
        settings = converted.config.model_dump(mode="json", include={*settings, "head_channels", "aux", "presence"})
        use = (
            f"then: python -m da evaluate {out} data.val.root=$CITYSCAPES_ROOT\n"
            f"or:   python -m da train EXPERIMENT.yaml init={out} with these lines"
        )
    mean, std = ([round(v, 6) for v in t.tolist()] for t in (converted.network.mean, converted.network.std))
    left = f"{len(converted.left_out)}: {_some(converted.left_out)}" if converted.left_out else "nothing"
    lines = [
        f"{out}: {converted.tensors} tensors, all fit; none missing",
        f"left out: {left}",
        f"input: RGB in [0, 1], mean {mean}, std {std} (stored with the weights)",
        yaml.safe_dump({"model": settings}, sort_keys=False, default_flow_style=None).rstrip(),
        use,
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 a mistake the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m third_party.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=sorted(KINDS), help="whose checkpoint it is")
    parser.add_argument("source", type=Path, metavar="IN", help="the foreign checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="model.* and data.classes, which the file does not tell"
    )
    options = parser.parse_args(arguments)
    kind = KINDS[options.kind]
    try:
        tree = read_tree((), options.overrides).values
        data = tree.get("data", {})
        if tree.keys() - {"model", "data"} or data.keys() - {"classes"}:
            raise UserError(f"{', '.join(flatten(tree))}: only model.* and data.classes can be set here")
        classes = label_space(data.get("classes", DEFAULT))
        converted = convert(kind, read_state(options.source), str(options.source), tree.get("model"), classes)
        write(kind, converted, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or options.out}: {error.strerror}", file=sys.stderr)
        return 2
    say(report(kind, converted, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
