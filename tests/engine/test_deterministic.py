"""`run.deterministic`: applied, harmless, and no operation left that has no deterministic form on a GPU."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tiny import METHOD_FILES, REFINED, SEGMENTERS, SMALLER, overrides, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from da.cli import main
from da.data.loaders import train_batches
from da.engine.stepper import set_deterministic
from da.nets.pspnet import PyramidPooling
from da.run import make_stepper
from da.trainers import base

# What `torch.use_deterministic_algorithms` refuses on GPUs according to its documentation, by the names of the
# operations. Not here: bilinear interpolation, which torch then replaces by itself, on GPUs only.
REFUSED = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "fractional_max_pool2d_backward",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "max_unpool2d",
    "median",
    "nll_loss2d_forward",  # with a reduction
    "put",
    "reflection_pad1d_backward",
    "upsample_bicubic2d_backward",
}
NO_REDUCTION = 0


class Operations(TorchDispatchMode):
    """Collects the names of all operations called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name != "nll_loss2d_forward" or args[3] != NO_REDUCTION:
            self.names.add(name)
        return func(*args, **kwargs or {})


@pytest.fixture(autouse=True)
def restored(monkeypatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    set_deterministic(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("method", METHOD_FILES)
def test_an_update_has_only_operations_with_a_deterministic_form(method, gta5_root, cityscapes_root):
    extra = SMALLER.get(method, ()) if method == "cycada_pixel" else ("data.jitter=0.2", "data.blur=0.5")
    extra += REFINED if method in SEGMENTERS else ()
    config = tiny(METHOD_FILES[method], gta5_root, cityscapes_root, *extra)
    trainer = base.build(config)
    stepper = make_stepper(trainer, config, torch.device("cpu"))
    batch = next(train_batches(config.data, 0, 0, use_target=trainer.uses_target))
    set_deterministic(True)
    with Operations() as operations:
        scalars = stepper.update([batch], 1, 0)
    assert all(value.isfinite() for value in scalars.values())
    assert "convolution_backward" in operations.names
    assert not operations.names & REFUSED


def test_the_setting_is_applied_to_its_run_alone(gta5_root, cityscapes_root, tmp_path):
    file = f"{os.path.dirname(__file__)}/../../experiments/mini/source_only.yaml"
    command = ["train", file, *overrides(gta5_root, cityscapes_root), "run.steps=1", "--runs", str(tmp_path / "runs")]
    torch.backends.cudnn.benchmark = True
    assert main([*command, "name=on", "run.deterministic=true"]) == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert main([*command, "name=off"]) == 0
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_deterministic_pooling_gives_the_same_means_and_gradients():
    torch.manual_seed(0)
    pooling = PyramidPooling(8, (1, 2, 3, 6), "group", False).double()
    found = []
    for on in (False, True):
        set_deterministic(on)
        x = torch.rand(2, 8, 13, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = pooling(x)
        out.square().sum().backward()
        found.append((out, x.grad))
    for plain, deterministic in zip(*found):
        torch.testing.assert_close(deterministic, plain)


def test_the_deterministic_cross_entropy_is_the_same():
    from da.losses import cross_entropy

    logits, label = torch.randn(2, 19, 5, 7), torch.randint(0, 19, (2, 5, 7))
    label[0, 0] = 255
    expected = F.cross_entropy(logits, label, ignore_index=255)
    set_deterministic(True)
    torch.testing.assert_close(cross_entropy(logits, label), expected)
