"""Encoders of many families through the whole of a run; docs/encoders.md holds the table that this file makes.

Tiny images, random weights. What a row says was seen: ten updates, the last five again from a checkpoint and bit by bit
the same, an evaluation, an ONNX file that onnxruntime gives the same logits for.
`PYTHONPATH=.:tests python tests/test_encoder_matrix.py` prints the rows anew.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from runs import assert_same_result
from tiny import REPOSITORY, tiny

from da.config import UserError
from da.engine import checkpoint
from da.evaluate import evaluate_runs
from da.export import export
from da.nets.encoders import TimmEncoder
from da.run import run_folder, train

FAMILIES = {
    "resnet18": "ResNet",
    "resnetv2_18": "ResNet V2, pre-activation",
    "convnext_atto": "ConvNeXt",
    "efficientnet_lite0": "EfficientNet-Lite",
    "tf_efficientnet_lite0": "EfficientNet-Lite, TensorFlow's padding",
    "mobilenetv3_small_050": "MobileNet V3",
    "mobilenetv4_conv_small": "MobileNet V4",
    "regnetx_002": "RegNet",
    "inception_next_atto": "InceptionNeXt",
    "vit_tiny_patch16_224": "ViT",
    "vit_small_patch14_dinov2": "DINOv2",
    "vit_tiny_patch16_dinov3_qkvb": "DINOv3's ViT",
}
REFUSED = {
    "swin_tiny_patch4_window7_224": "Swin",
    "hrnet_w18_small": "HRNet",
    "pvt_v2_b0": "PVT V2",
    "densenet121": "DenseNet",
    "beit_base_patch16_224": "BEiT",
    "mixer_s16_224": "MLP-Mixer",
}
OF_ONE_SIZE = {"vit_tiny_patch16_dinov3_qkvb"}  # torch makes constants of the size in its rotary positions
SETTINGS = (
    "run.steps=10",
    "run.val_every=10",
    "run.save_every=5",
    "run.schedule.warmup=3",
    "method.adamw={layer_decay: 0.9}",
    "model.drop_path=0.1",
)


def row(name: str, folder: Path, gta5_root: Path, cityscapes_root: Path) -> str:
    """The line of the table; every step of it is checked."""
    config = tiny("source_only", gta5_root, cityscapes_root, f"model.backbone=timm/{name}", *SETTINGS)
    straight = train(config, folder / "straight")
    halfway = run_folder(config, folder / "again")
    shutil.copytree(straight, halfway)
    for later in ("summary.json", "checkpoints/last.pt", "checkpoints/best.pt"):
        (halfway / later).unlink()
    assert checkpoint.load(checkpoint.find_last(halfway / "checkpoints"))["step"] == 5
    assert_same_result(train(config, folder / "again"), straight)
    (result,) = evaluate_runs([straight], "last", ["eval.flip=true"])
    assert result["weights_report"]["file"] == "none"
    if name in OF_ONE_SIZE:
        with pytest.raises(UserError, match="--size"):
            export(straight, "last", folder / "any.onnx", None)
        assert not (folder / "any.onnx").exists()
    size = (96, 64) if name in OF_ONE_SIZE else None
    export(straight, "last", folder / "model.onnx", size)
    net = TimmEncoder(name)
    cells = [
        FAMILIES[name],
        f"`timm/{name}`",
        f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}",
        f"{net.stride}, its patch" if net.transformer else "8, 16",
        f"{net.layer3_channels}, {net.num_features}",
        len(net.stages()),
        "one size (`--size`)" if size else "any size",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def refusal(name: str) -> str:
    with pytest.raises(UserError) as error:
        TimmEncoder(name)
    why = str(error.value).partition("stride 8 (")[2].partition("), and it is")[0]
    return f"| {REFUSED[name]} | `timm/{name}` | {why} |"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_a_whole_run(name, tmp_path, gta5_root, cityscapes_root):
    for package in ("timm", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert row(name, tmp_path, gta5_root, cityscapes_root) in (REPOSITORY / "docs/encoders.md").read_text()


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_refused_says_why(name):
    pytest.importorskip("timm")
    assert refusal(name) in (REPOSITORY / "docs/encoders.md").read_text()


def table(folder: Path) -> list[str]:
    import conftest

    fixtures = (conftest.gta5_root, conftest.cityscapes_root)
    roots = [fixture._get_wrapped_function()(folder) for fixture in fixtures]
    return [row(name, folder / name, *roots) for name in FAMILIES] + [refusal(name) for name in REFUSED]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(*table(Path(scratch)), sep="\n")
