"""Every method on CUDA tensors without a GPU: torch's fake tensors have a device and a shape, and no values.

A tensor left on the CPU, an operation without a CUDA form for its types, and a wait for the device (`.item()`,
`.cpu()`, shapes that depend on values) fail here. Values, speed and memory remain for a real GPU.
"""

import pytest
import torch
from city import NUM_CLASSES
from tiny import METHOD_FILES, REFINED, SEGMENTERS, tiny
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from da import kernels
from da.data.loaders import Batch
from da.evaluation.infer import EvalConfig, predict_entropy, predict_labels
from da.evaluation.metrics import ConfusionMatrix
from da.trainers import base

CUDA = torch.device("cuda")


def backward(loss: Tensor) -> None:
    """`loss.backward()` node by node, which torch's engine does only for GPUs that are there. Every gradient has to be
    where its parameter is."""
    assert loss.ndim == 0
    assert loss.device.type == "cuda"
    order, seen = [], set()
    stack = [(loss.grad_fn, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    gradients = {loss.grad_fn: {0: torch.ones_like(loss)}}
    with torch.no_grad(), torch.autocast("cuda", enabled=False):
        for node in reversed(order):
            given = gradients.pop(node, {})
            if hasattr(node, "variable"):
                (gradient,) = given.values()
                assert (gradient.device, gradient.shape) == (node.variable.device, node.variable.shape)
                continue
            wanted = [given.get(number) for number in range(len(node._input_metadata))]
            found = node(*wanted) if callable(node) else node.apply(*wanted)  # the latter of a Python function
            found = found if isinstance(found, tuple) else (found,)
            for (child, number), gradient in zip(node.next_functions, found):
                if child is not None and gradient is not None:
                    wanted = child._input_metadata[number]
                    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
                    held = gradients.setdefault(child, {})
                    held[number] = held[number] + gradient if number in held else gradient


class NothingComesBack(TorchDispatchMode):
    """Refuses copies from the device to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cuda":
            assert found.device.type == "cuda", "waits for the device: a copy to the host"
        return found


@pytest.fixture
def fake(monkeypatch):
    """The mode in which every new tensor is a fake one. What the code makes once on the CPU is made there."""
    real = kernels._matrix.__wrapped__

    def matrix(low, high, align_corners, dtype, device):
        with unset_fake_temporarily():
            _, support = real(low, high, align_corners, dtype, torch.device("cpu"))
        return torch.empty(high, low, dtype=dtype, device=device), support

    monkeypatch.setattr(kernels, "_matrix", matrix)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # autocast, all the same
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode(allow_non_fake_inputs=True), NothingComesBack():  # constants of a module are real
        yield


def move(network: nn.Module) -> None:
    """`network.to("cuda")`, which fake tensors cannot do."""
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            there = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
            setattr(module, name, nn.Parameter(there, requires_grad=value.requires_grad))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device=CUDA))


def batch() -> Batch:
    src, tgt = (torch.zeros(2, 3, *size, dtype=torch.uint8, device=CUDA) for size in ((48, 64), (40, 72)))
    return Batch(src, torch.zeros(2, 48, 64, dtype=torch.uint8, device=CUDA), tgt, [], [])


TIMM = {
    "encoder": ["model.backbone=timm/tf_efficientnet_lite0", "model.bn=per_domain"],
    "transformer": ["model.backbone=timm/vit_tiny_patch16_224", "model.drop_path=0.1"],
}
CASES = [([], "fp32"), ([], "bf16"), (REFINED, "bf16")]
CASES += [pytest.param(settings, "bf16", marks=pytest.mark.slow) for settings in TIMM.values()]


@pytest.mark.parametrize(("settings", "precision"), CASES, ids=["fp32", "bf16", "refined", *TIMM])
@pytest.mark.parametrize("name", base.methods())
def test_an_update_and_an_evaluation(name, settings, precision, fake, monkeypatch, gta5_root, cityscapes_root):
    if settings in TIMM.values():
        pytest.importorskip("timm")
    if settings == REFINED and name not in SEGMENTERS:
        pytest.skip("it trains no segmenter")
    extra = ["data.jitter=0.4"] if name != "cycada_pixel" else []  # a translation allows none
    if base.find(name).Trainer.is_pretext:  # one stream of images
        settings = [setting for setting in settings if setting != "model.bn=per_domain"]
    with unset_fake_temporarily():
        trainer = base.build(tiny(METHOD_FILES[name], gta5_root, cityscapes_root, *settings, *extra))
    for module in trainer.modules.values():
        move(module)
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        scalars = trainer.step(batch(), backward)
    assert scalars
    assert {(value.device.type, value.ndim) for value in scalars.values()} == {("cuda", 0)}

    for module in trainer.modules.values():
        module.eval()

    def row_number(tensor: Tensor) -> int:
        assert tensor.device.type == "cpu"  # of a table made there
        return 0

    monkeypatch.setattr(Tensor, "__int__", row_number)
    # An evaluation waits once a picture, for these two.
    monkeypatch.setattr(Tensor, "isfinite", lambda _: type("Finite", (), {"all": staticmethod(lambda: True)}))
    monkeypatch.setattr(torch, "bincount", lambda codes, minlength: codes.new_zeros(minlength, dtype=torch.int64))
    image = torch.zeros(3, 48, 64, dtype=torch.uint8, device=CUDA)
    matrix = ConfusionMatrix(NUM_CLASSES, CUDA)
    for protocol in (EvalConfig(), EvalConfig(flip=True, scales=(0.5, 1.0), average="probabilities")):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            labels = predict_labels(trainer.predict, image, (96, 128), protocol)
            unsure = predict_entropy(trainer.predict, image, (96, 128), protocol)
        matrix.add(torch.zeros(96, 128, dtype=torch.uint8, device=CUDA), labels)
        assert labels.device.type == unsure.device.type == matrix.counts.device.type == "cuda"
        assert (labels.shape, labels.dtype) == ((96, 128), torch.uint8)


MISTAKES = {
    "left on the CPU": lambda x: x + torch.ones(3),
    "item": lambda x: x.sum().item(),
    "copied": lambda x: x.sum() * x.detach().sum().cpu(),
    "of values": lambda x: x[x > 0],
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_found(mistake, fake):
    x = torch.ones(3, device=CUDA, requires_grad=True)
    with pytest.raises(Exception, match=r"cpu|_local_scalar_dense|copy to the host|nonzero"):
        mistake(x)
    backward((x * x).sum())


def test_autocast_is_on(fake):
    x = torch.ones(3, 3, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
