"""`python -m da bench`: the fast ways of this project against the usual ones, on the device at hand.

Each comparison is one function. The variants of a comparison take turns for several rounds, so that whatever else the
machine does falls on all of them; ratios of their minima within one run are what counts, not milliseconds.
"""

import copy
import ctypes
import importlib
import itertools
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cv2
import numpy as np
import PIL
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision import tv_tensors

from da import supervised
from da.config import Tree, read_tree
from da.data import cache, folders, gta5, miniature
from da.data.frames import Frames
from da.data.loaders import Batch
from da.data.transforms import DomainConfig, Geometry, photometric
from da.engine.log import say
from da.engine.stepper import Precision, ScheduleConfig, Stepper, definite
from da.evaluation.infer import EvalConfig, predict_labels, upsample
from da.evaluation.metrics import ConfusionMatrix
from da.labels import DEFAULT, IGNORE, label_space
from da.losses import cross_entropy, upsampled_cross_entropy
from da.nets.pspnet import PSPNet, PSPNetConfig
from da.run import check_config, load_config
from da.trainers import base

PARTS = ("step", "methods", "loss", "data", "eval", "classes")
CLASSES = label_space(DEFAULT)
NUM_CLASSES = len(CLASSES)
MANY = "ade150"  # what part `classes` sets beside them
PACKAGES = (torch, torchvision, np, cv2, PIL)
MIB = 2**20
TURN_MS = 20  # a call that is shorter is repeated: alone, it would be measured with the caches that others left cold

# Sizes at which a method shows that it works, in a second on a CPU.
SMALL = ("model.backbone=resnet18", "model.head_channels=16")
SMALL_CROP = "[64, 48]"
SMALL_METHOD = {"blocks": 1, "width": 8, "decoder_width": 8, "width_d": 8}  # of networks that a method brings itself
SMALL_METHOD |= {"patch": 32, "overlap": 2, "cell": 14, "tile": 8}  # what a method cuts of such crops

Call = Callable[[], object]


class Row(NamedTuple):
    """One variant's figures. Ratios are to the first variant of its comparison; None: not measured."""

    comparison: str
    variant: str
    min_ms: float
    median_ms: float
    max_ms: float
    speed: float  # times as fast, by the minima
    memory_mib: float | None  # peak above what was held before
    memory_ratio: float | None
    model_flops: float | None  # per call
    peak_share: float | None  # model FLOPs per second / measured matmul FLOPs per second, in the variant's precision
    images_per_second: float | None  # of all domains, by the minimum


class Bench:
    """Runs comparisons and collects their rows.

    Args:
        device: where to measure.
        rounds: turns of each variant.
        small: tiny sizes, to see that everything works; the figures mean nothing.
    """

    def __init__(self, device: torch.device, rounds: int, small: bool = False) -> None:
        self.device, self.rounds, self.small = device, rounds, small
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.failures: list[str] = []  # variants that raised an error
        self.peaks: dict[str, float] = {}  # matmul FLOP/s by precision

    def compare(
        self,
        title: str,
        variants: dict[str, Call],
        precisions: dict[str, Precision] | None = None,
        images: int | None = None,
    ) -> None:
        """Time `variants` in turn; `precisions` also asks for FLOPs and says whose peak a variant is held against;
        one that it does not name is another network. `images`: that a call trains on."""
        say(f"{title} ...")
        variants = {name: call for name, call in variants.items() if self._works(title, name, call)}
        if not variants:
            return
        flops = None
        if precisions:
            with FlopCounterMode(display=False) as counter:
                next(iter(variants.values()))()
            flops = float(counter.get_total_flops())
        memory = {name: extra_memory(call, self.device) for name, call in variants.items()}
        calls = {name: max(1, round(TURN_MS / self.milliseconds(call))) for name, call in variants.items()}
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(self.rounds):
            for name, call in variants.items():
                times[name].append(self.milliseconds(call, calls[name]))
        first = next(iter(variants))
        for name, spent in times.items():
            held, base_held = memory[name], memory[first]
            named = precisions is not None and name in precisions
            own_flops = flops if named else None
            peak = self._peak(precisions[name]) if precisions and named else None
            self.rows.append(
                Row(
                    title,
                    name,
                    min(spent),
                    statistics.median(spent),
                    max(spent),
                    min(times[first]) / min(spent),
                    held,
                    held / base_held if held is not None and base_held else None,
                    own_flops,
                    own_flops / (min(spent) / 1e3) / peak if own_flops and peak else None,
                    images / (min(spent) / 1e3) if images else None,
                )
            )

    def _works(self, title: str, name: str, call: Call) -> bool:
        """Warm up; a line of `failures` says what went wrong."""
        try:
            call()
        except Exception as error:  # one variant that fails (memory, a foreign package) must not cost the others
            self.failures.append(f"{title}: {name} fails, its row is left out: {error}")
            return False
        return True

    def milliseconds(self, call: Call, count: int = 1) -> float:
        """Per call, over `count` calls in a row."""
        self._wait()
        began = time.perf_counter()
        for _ in range(count):
            call()
        self._wait()
        return 1e3 * (time.perf_counter() - began) / count

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak(self, precision: Precision) -> float:
        """FLOP/s of the fastest of some square matrix products, as such and as 1x1 convolutions, which on a CPU another
        library computes."""
        if precision not in self.peaks:
            size = 256 if self.small else 8192 if self.device.type == "cuda" else 2048
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            a = torch.randn(size, size, device=self.device, dtype=dtype)
            image, kernel = a.view(1, size, -1, 32), a.view(size, size, 1, 1)
            products: tuple[Call, Call] = (lambda: a @ a, lambda: F.conv2d(image, kernel))
            with tf32_allowed(precision == "tf32"):
                fastest = min(self.milliseconds(product) for product in products for _ in range(5))
            self.peaks[precision] = 2 * size**3 / (fastest / 1e3)
        return self.peaks[precision]

    def optional(self, package: str) -> bool:
        """Whether `package` can be imported; a note says so where it cannot."""
        try:
            importlib.import_module(package)
        except Exception as error:  # a package may also refuse the versions beside it
            self.notes.append(f"{package} cannot be imported, its row is left out: {error}")
            return False
        return True

    def report(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        cuda = self.device.type == "cuda"
        cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else cpu,
            "versions": {"python": platform.python_version()} | {p.__name__: p.__version__ for p in PACKAGES},
            "settings": {
                "rounds": self.rounds,
                "small": self.small,
                "threads": torch.get_num_threads(),
                "DA_TUNE": os.environ.get("DA_TUNE", "1"),
                "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
                "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT"),
            },
            "matmul_flops_per_second": self.peaks,
            "rows": [row._asdict() for row in self.rows],
            "notes": self.notes,
            "failures": self.failures,
        }


def run(
    parts: tuple[str, ...], device: torch.device, rounds: int, small: bool, keep: Callable[[dict[str, Any]], None]
) -> Bench:
    """All comparisons of `parts` (of `PARTS`); `keep` gets the report after each of them."""
    bench = Bench(device, rounds, small)
    for part in parts:
        for comparison in COMPARISONS[part]:
            comparison(bench)
            keep(bench.report())
    return bench


# --- memory -----------------------------------------------------------------------------------------------


def extra_memory(call: Call, device: torch.device) -> float | None:
    """Peak MiB that one call holds above what was held before; None where that cannot be told (not Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)  # freed memory that the allocator keeps would hide what the call takes
    try:
        Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
    except OSError:
        return None
    before_kib = _status_kib("VmRSS")
    call()
    return (_status_kib("VmHWM") - before_kib) / 1024


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


# --- step -------------------------------------------------------------------------------------------------


def segmenter(bench: Bench) -> None:
    """PSPNet forward, both losses at full resolution, backward, from naive fp32 upwards."""
    cuda = bench.device.type == "cuda"
    size = (64, 128) if bench.small else (512, 1024) if cuda else (256, 512)
    arch = "resnet18" if bench.small else "resnet101" if cuda else "resnet50"
    plain = PSPNet(PSPNetConfig(backbone=arch, weights="none"), NUM_CLASSES).to(bench.device)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    batch = synthetic_batch(size, bench.device)
    image, label = batch.src_image.float() / 255, batch.src_label

    def step(net: PSPNet, precision: Precision, strips: bool = False) -> Call:
        def call() -> None:
            with tf32_allowed(precision == "tf32"):
                with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    if strips:
                        low = net.scores(image, "source")
                        losses = [upsampled_cross_entropy(s, label) for s in low if s is not None]
                    else:
                        losses = [cross_entropy(s, label) for s in net(image, "source") if s is not None]
                torch.stack(losses).sum().backward()
            net.zero_grad(set_to_none=True)

        return call

    calls, precisions = {"fp32": step(plain, "fp32")}, dict[str, Precision](fp32="fp32")

    def variant(name: str, call: Call, precision: Precision) -> None:
        calls[name], precisions[name] = call, precision

    if cuda:
        variant("tf32", step(plain, "tf32"), "tf32")
        variant("bf16", step(plain, "bf16"), "bf16")
    else:
        variant("fp32, channels_last", step(last, "fp32"), "fp32")
    variant("bf16, channels_last", step(last, "bf16"), "bf16")
    variant("bf16, channels_last, strip loss", step(last, "bf16", strips=True), "bf16")
    if cuda:
        compiled = copy.deepcopy(last)
        compiled.backbone.compile(dynamic=False)
        variant("bf16, channels_last, strip loss, compiled backbone", step(compiled, "bf16", strips=True), "bf16")
    if bench.optional("mmseg"):
        variant("mmsegmentation, fp32", mmsegmentation(arch, batch, bench.device), "fp32")
    if bench.optional("segmentation_models_pytorch"):  # fewer FLOPs: no share of the peak
        calls["segmentation_models_pytorch, no auxiliary head, fp32"] = smp(arch, batch, bench.device)
    title = f"PSPNet-{arch}, {size[1]}x{size[0]}, batch 2: forward, losses, backward"
    bench.compare(title, calls, precisions, len(image))


def mmsegmentation(arch: str, batch: Batch, device: torch.device) -> Call:
    """The same network, losses and backward of mmsegmentation."""
    import mmseg.models  # noqa: F401  fills its registry
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    depth, width = int(arch.removeprefix("resnet")), 512 if arch in ("resnet18", "resnet34") else 2048
    norm = {"type": "BN", "requires_grad": True}
    head = {"num_classes": NUM_CLASSES, "norm_cfg": norm, "align_corners": False, "dropout_ratio": 0.1}
    backbone = {"type": "ResNet", "depth": depth, "dilations": (1, 1, 2, 4), "strides": (1, 2, 1, 1), "norm_cfg": norm}
    psp = {"type": "PSPHead", "in_channels": width, "in_index": 3, "channels": 512, "pool_scales": (1, 2, 3, 6)}
    fcn = {"type": "FCNHead", "in_channels": width // 2, "in_index": 2, "channels": width // 8, "num_convs": 1}
    config = {
        "type": "EncoderDecoder",
        "backbone": backbone | {"contract_dilation": True},
        "decode_head": psp | head,
        "auxiliary_head": fcn | head | {"concat_input": False},
    }
    model = MODELS.build(config).to(device)
    image = batch.src_image.float() / 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None].long())) for label in batch.src_label]

    def call() -> None:
        with tf32_allowed(False):
            losses = model.loss(image, samples)
            torch.stack([loss for name, loss in losses.items() if "loss" in name]).sum().backward()
        model.zero_grad(set_to_none=True)

    return call


def smp(arch: str, batch: Batch, device: torch.device) -> Call:
    """segmentation_models_pytorch's PSPNet on its dilated ResNet: the main head, its loss and backward."""
    from segmentation_models_pytorch import PSPNet as OtherPSPNet

    model = OtherPSPNet(arch, encoder_weights=None, encoder_depth=5, classes=NUM_CLASSES, upsampling=8)
    model.encoder.make_dilated(8)
    model.to(device)
    image = batch.src_image.float() / 255

    def call() -> None:
        with tf32_allowed(False):
            cross_entropy(model(image), batch.src_label).backward()
        model.zero_grad(set_to_none=True)

    return call


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Convolutions and matrix products on CUDA with or without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=allowed):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def adaptsegnet(bench: Bench) -> None:
    """One update of AdaptSegNet (multi level), both domains, through the engine."""
    cuda = bench.device.type == "cuda"
    size = (64, 128) if bench.small else (512, 1024) if cuda else (256, 512)
    arch = "resnet18" if bench.small or not cuda else "resnet101"
    title = f"AdaptSegNet-{arch}, {size[1]}x{size[0]}, batch 2: one update"
    compare_precisions(bench, title, "adaptsegnet", synthetic_batch(size, bench.device), arch, {})


def cyclegan(bench: Bench) -> None:
    """One update of CycleGAN (cycada_pixel without the semantic term), both generators and discriminators."""
    size = (64, 64) if bench.small else (256, 256)
    method = {"lambda_sem": 0.0} | ({"width": 8, "blocks": 1} if bench.small else {})
    batch = synthetic_batch(size, bench.device).first()
    title = f"CycleGAN, {size[1]}x{size[0]}, batch 1: one update"
    compare_precisions(bench, title, "cycada_pixel", batch, "resnet18", method)


def compare_precisions(bench: Bench, title: str, trainer: str, batch: Batch, arch: str, method: dict[str, Any]) -> None:
    """One update of a method through the engine: from plain fp32 with losses at full resolution to what is fastest."""
    folder = {"dataset": "gta5", "root": "unused", "split": "all"}
    tree = Tree()
    tree.add(
        {
            "trainer": trainer,
            "experiment": "bench",
            "name": "bench",
            "model": {"backbone": arch, "weights": "none"},
            "data": {"source": folder, "target": folder, "val": folder},
            "run": {"steps": 100},
            "method": method,
        },
        "bench",
    )
    config = check_config(tree)

    def update(precision: Precision, channels_last: bool, strips: bool = True, compiled: bool = False) -> Call:
        method_trainer = base.build(config)
        if compiled:
            method_trainer.segmenter.backbone.compile(dynamic=False)
        stepper = Stepper(
            method_trainer,
            bench.device,
            seed=0,
            steps=100,
            schedule=ScheduleConfig(),
            precision=precision,
            channels_last=channels_last,
        )

        def call() -> None:
            loss = upsampled_cross_entropy if strips else full_resolution_cross_entropy
            with mock.patch.object(supervised, "upsampled_cross_entropy", loss), tf32_allowed(precision == "tf32"):
                stepper.update([batch], 1, 0)

        return call

    variants, precisions = {"fp32": update("fp32", False, strips=False)}, dict[str, Precision](fp32="fp32")

    def variant(name: str, call: Call, precision: Precision = "bf16") -> None:
        variants[name], precisions[name] = call, precision

    if bench.device.type == "cuda":
        variant("tf32", update("tf32", False, strips=False), "tf32")
    variant("bf16", update("bf16", False, strips=False))
    if trainer == "adaptsegnet":  # there is a segmenter to train
        variant("bf16, channels_last", update("bf16", True, strips=False))
        variant("bf16, channels_last, strip loss", update("bf16", True))
        if bench.device.type == "cuda":
            variant("bf16, channels_last, strip loss, compiled backbone", update("bf16", True, compiled=True))
    bench.compare(title, variants, precisions, len(batch.names))


def full_resolution_cross_entropy(
    logits: Tensor, label: Tensor, align_corners: bool = False, weight: None = None
) -> Tensor:
    """What `upsampled_cross_entropy` gives without class weights, the usual way."""
    return cross_entropy(upsample(logits, (label.shape[-2], label.shape[-1]), align_corners), label)


def synthetic_batch(
    size: tuple[int, int], device: torch.device, target_size: tuple[int, int] | None = None, count: int = 2
) -> Batch:
    """`count` random images per domain of `size` (height, width), or `target_size`, with labels, a tenth ignored."""
    generator = torch.Generator().manual_seed(0)
    source, target = (
        torch.randint(0, 256, (count, 3, *s), generator=generator, dtype=torch.uint8)
        for s in (size, target_size or size)
    )
    return Batch(source, random_label((count, *size), generator), target, ["source"] * count, ["target"] * count).to(
        device
    )


def random_label(shape: tuple[int, ...], generator: torch.Generator, classes: int = NUM_CLASSES) -> Tensor:
    label = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    return label.masked_fill_(torch.rand(shape, generator=generator) < 0.1, IGNORE)


def methods(bench: Bench) -> None:
    """One update of each method as the miniature trains it, all on the same images and in the same precision."""
    size = (48, 64) if bench.small else (128, 256)
    batch, precision = synthetic_batch(size, bench.device), definite("auto", bench.device)

    def update(method: str, *settings: str) -> Call:
        file = experiment(method, "mini")
        words = small_settings(method, file) if bench.small else []
        trainer = base.build(load_config([file], [*words, *settings]))
        if trainer.needs_class_shares:  # which a run counts
            trainer.class_shares = torch.full((NUM_CLASSES,), 1 / NUM_CLASSES)
        steps = trainer.config.run.steps
        schedule = ScheduleConfig(kind="constant")
        stepper = Stepper(trainer, bench.device, seed=0, steps=steps, schedule=schedule, precision=precision)
        own = batch if trainer.uses_target else batch._replace(tgt_image=None, tgt_names=[])
        return lambda: stepper.update([own], 1, steps // 2)

    variants = {"source_only": update("source_only")}
    variants |= {method: update(method) for method in base.methods() if method != "source_only"}
    variants["fda without its swap"] = update("fda", "method.beta=0")
    bench.compare(f"one update of the miniature's experiments, {size[1]}x{size[0]}, batch 2, {precision}", variants)


def experiment(method: str, table: str) -> str:
    """The file in `table` of the experiment that the method's own docstring names."""
    named = re.search(r"python -m da train experiments/\w+/(\w+\.yaml)", base.find(method).__doc__ or "")
    if named is None:
        raise ValueError(
            f"da/trainers/{method}.py: its docstring has no line `python -m da train experiments/mini/...`"
        )
    return f"experiments/{table}/{named[1]}"


def training_streams(file: str) -> list[str]:
    """Of which folders an experiment trains, as keys below `data`: `source`, or `source.0` and so on; `target`."""
    data = read_tree([file]).values["data"]
    source, target = data["source"], data.get("target")
    entries = [f"source.{n}" for n in range(len(source))] if isinstance(source, list) else ["source"]
    return [*entries, *(["target"] if target else [])]


def small_settings(method: str, file: str) -> list[str]:
    """What makes the method's experiment `file` so small that an update takes a fraction of a second on a CPU."""
    fields = base.find(method).Config.model_fields
    own = [f"method.{key}={value}" for key, value in SMALL_METHOD.items() if key in fields]
    return [*SMALL, *(f"data.{stream}.crop={SMALL_CROP}" for stream in training_streams(file)), *own]


# --- loss -------------------------------------------------------------------------------------------------


def upsampled_loss(bench: Bench) -> None:
    """Cross-entropy of upsampled logits with its gradient: the plain way, and in strips."""
    low, size = ((8, 16), (64, 128)) if bench.small else ((64, 128), (512, 1024))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, NUM_CLASSES, *low, generator=generator).to(bench.device).requires_grad_()
    label = random_label((1, *size), generator).to(bench.device)

    def plain() -> Tensor:
        return torch.autograd.grad(full_resolution_cross_entropy(logits, label), logits)[0]

    def strips() -> Tensor:
        return torch.autograd.grad(upsampled_cross_entropy(logits, label), logits)[0]

    title = f"cross-entropy and gradient, {NUM_CLASSES}x{low[0]}x{low[1]} logits, {size[0]}x{size[1]} label"
    bench.compare(title, {"interpolate + cross_entropy": plain, "strips": strips})


# --- data -------------------------------------------------------------------------------------------------


def loading(bench: Bench) -> None:
    """One GTA5-sized pair to a 1024x512 training sample in one loader process, with and without the cache."""
    threads, home = torch.get_num_threads(), os.environ.get("DA_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DA_CACHE"] = str(Path(folder) / "cache")
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        try:
            _loading(bench, Path(folder) / "gta5")
        finally:
            torch.set_num_threads(threads)
            cv2.setNumThreads(-1)
            os.environ.pop("DA_CACHE")
            if home is not None:
                os.environ["DA_CACHE"] = home


def _loading(bench: Bench, root: Path) -> None:
    size, crop = ((64, 32), (32, 16)) if bench.small else ((1024, 512), (512, 256))
    write_pairs(root, 4, (128, 64) if bench.small else (1914, 1052))
    samples = gta5.index(root, "all")
    decoding = Frames("gta5", root, size, CLASSES)  # there is no cache yet
    cache.build(cache.plan("gta5", root, size, "all", with_labels=True, classes=CLASSES), workers=0)
    cached = Frames("gta5", root, size, CLASSES)
    geometry = Geometry(DomainConfig(dataset="gta5", root=str(root), split="all", crop=crop, flip=True))
    turn = itertools.cycle(samples)

    def cropped() -> tuple[Tensor, Tensor]:
        image, label = cached.read(next(turn))
        image, label = geometry(tv_tensors.Image(image), tv_tensors.Mask(label))
        return photometric(image[None].float() / 255, 0.2, 0), label.contiguous()

    def bare_decode() -> None:
        sample = next(turn)
        folders.read_image(sample.image)
        folders.read_stored(sample.label or sample.image)

    def frame(frames: Frames) -> tuple[Tensor, Tensor]:
        image, label = frames.read(next(turn))
        assert label is not None
        return image.contiguous(), label.contiguous()

    shape = f"{size[0]}x{size[1]}"
    variants: dict[str, Call] = {
        "PIL bicubic + a comparison per class": lambda: published(next(turn), size),
        "PNG, bare decoding at full size": bare_decode,
        "PNG": lambda: frame(decoding),
        "cached": lambda: frame(cached),
        f"cached, {crop[0]}x{crop[1]} crop, flip, jitter": cropped,
    }
    if bench.optional("albumentations"):
        import albumentations

        augment = albumentations.Compose([albumentations.RandomCrop(crop[1], crop[0]), albumentations.HorizontalFlip()])

        def albumented() -> object:
            image, label = cached.read(next(turn))
            assert label is not None
            return augment(image=image.permute(1, 2, 0).numpy(), mask=label.numpy())

        variants[f"cached, {crop[0]}x{crop[1]} crop and flip by albumentations"] = albumented
    bench.compare(f"one pair to {shape}, one process", variants)


def write_pairs(root: Path, count: int, size: tuple[int, int]) -> None:
    """Miniature frames enlarged to `size` (width, height), with sensor noise, in GTA5's layout."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for n in range(1, count + 1):
        image, label = miniature.frame(0, "source", "train", n)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.int16)
        noise = np.random.default_rng(n).integers(-2, 3, image.shape, np.int16)
        Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(root / f"images/{n:05d}.png")
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
        Image.fromarray(label).save(root / f"labels/{n:05d}.png")


def published(sample: folders.Sample, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """How AdaptSegNet's published data sets load a pair: float32 throughout, one comparison per class."""
    assert sample.label
    with Image.open(sample.image) as file:
        image = np.asarray(file.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    with Image.open(sample.label) as file:
        ids = np.asarray(file.resize(size, Image.Resampling.NEAREST), np.float32)
    label = np.full(ids.shape, IGNORE, np.float32)
    for train_id, stored_id in enumerate(gta5.scheme(CLASSES).stored[:NUM_CLASSES]):
        label[ids == stored_id] = train_id
    centred = image[:, :, ::-1] - np.array((104.0, 116.7, 122.7), np.float32)
    return centred.transpose(2, 0, 1).copy(), label


def jitter(bench: Bench) -> None:
    """Colour jitter of a batch of two on the device, as a step does it."""
    size = (32, 64) if bench.small else (512, 1024)
    image = synthetic_batch(size, bench.device).src_image
    variants: dict[str, Call] = {
        "no jitter": lambda: photometric(image.float() / 255, 0, 0),
        "jitter 0.2": lambda: photometric(image.float() / 255, 0.2, 0),
    }
    bench.compare(f"batch of 2 at {size[1]}x{size[0]} to float", variants)


# --- evaluation -------------------------------------------------------------------------------------------


def confusion(bench: Bench) -> None:
    """The confusion matrix of one full-size image."""
    size = (64, 128) if bench.small else (1024, 2048)
    generator = torch.Generator().manual_seed(0)
    label = random_label(size, generator).to(bench.device)
    prediction = torch.randint(0, NUM_CLASSES, size, generator=generator, dtype=torch.uint8).to(bench.device)
    matrix = ConfusionMatrix(NUM_CLASSES, bench.device)

    def bincount() -> np.ndarray:
        truth, guess = label.cpu().numpy().astype(np.int64), prediction.cpu().numpy().astype(np.int64)
        valid = truth != IGNORE
        return np.bincount(NUM_CLASSES * truth[valid] + guess[valid], minlength=NUM_CLASSES**2)

    variants: dict[str, Call] = {"np.bincount on int64": bincount, "da": lambda: matrix.add(label, prediction)}
    if bench.optional("torchmetrics"):
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        def torchmetrics() -> Tensor:
            counts: Tensor = multiclass_confusion_matrix(
                prediction.long(), label.long(), NUM_CLASSES, ignore_index=IGNORE
            )
            return counts

        variants["torchmetrics"] = torchmetrics
    bench.compare(f"confusion matrix of {size[1]}x{size[0]}", variants)


def argmax(bench: Bench) -> None:
    """From logits at output stride 8 to the label map of a full-size image."""
    low, size = ((8, 16), (64, 128)) if bench.small else ((64, 128), (1024, 2048))
    logits = torch.randn(1, NUM_CLASSES, *low, generator=torch.Generator().manual_seed(0)).to(bench.device)
    image = torch.zeros(3, 8, 16, dtype=torch.uint8, device=bench.device)

    def plain() -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)

    variants: dict[str, Call] = {
        "interpolate + argmax": plain,
        "da": lambda: predict_labels(lambda _: logits, image, size, EvalConfig()),
    }
    bench.compare(f"{NUM_CLASSES}x{low[0]}x{low[1]} logits to a {size[1]}x{size[0]} label map", variants)


def evaluation(bench: Bench) -> None:
    """Where the time of evaluating one full-size image goes."""
    size, inputs = ((128, 64), (64, 32)) if bench.small else ((2048, 1024), (1024, 512))
    arch = "resnet18" if bench.small else "resnet101"
    torch.manual_seed(0)
    network = PSPNet(PSPNetConfig(backbone=arch, weights="none"), NUM_CLASSES)
    network.to(bench.device).to(memory_format=torch.channels_last).eval()
    config = EvalConfig(input_size=inputs)
    matrix = ConfusionMatrix(NUM_CLASSES, bench.device)
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), 1, size)
        (sample,) = gta5.index(Path(folder), "all")

        def decode() -> tuple[Tensor, Tensor]:
            assert sample.label
            image = torch.from_numpy(folders.read_image(sample.image)).permute(2, 0, 1)
            return image.to(bench.device), torch.from_numpy(gta5.read_label(sample.label, CLASSES)).to(bench.device)

        image, label = decode()
        small = torch.rand(1, 3, inputs[1], inputs[0], device=bench.device)

        @torch.no_grad()
        def segment() -> Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16):
                logits: Tensor = network.scores(small, "target").main
            return logits

        logits = segment()

        def rest() -> None:
            matrix.add(label, predict_labels(lambda _: logits, image, (size[1], size[0]), config))

        variants: dict[str, Call] = {
            "decoding image and label, one process": decode,
            f"PSPNet-{arch}, bf16": segment,
            "resize, upsampling, argmax, confusion matrix": rest,
        }
        bench.compare(f"evaluation of a {size[0]}x{size[1]} image at {inputs[0]}x{inputs[1]}", variants)


# --- classes ----------------------------------------------------------------------------------------------


def _few_and_many(bench: Bench, title: str, call: Callable[[int, tuple[int, int]], Call]) -> None:
    """`call(number of classes, size)` for few classes and for many."""
    size = (64, 64) if bench.small else (512, 512)
    counts = (NUM_CLASSES, len(label_space(MANY)))
    variants = {f"{classes} classes": call(classes, size) for classes in counts}
    proportion = f"in proportion to the classes: {counts[0] / counts[1]:.2f}x"
    bench.compare(f"{title}, {size[1]}x{size[0]}; {proportion}", variants)


def loss_by_classes(bench: Bench) -> None:
    """Cross-entropy of upsampled logits with its gradient."""

    def call(classes: int, size: tuple[int, int]) -> Call:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, classes, size[0] // 8, size[1] // 8, generator=generator)
        logits = logits.to(bench.device).requires_grad_()
        label = random_label((2, *size), generator, classes).to(bench.device)
        return lambda: torch.autograd.grad(upsampled_cross_entropy(logits, label), logits)[0]

    _few_and_many(bench, "cross-entropy in strips and gradient, batch 2", call)


def confusion_by_classes(bench: Bench) -> None:
    """The confusion matrix of one image."""

    def call(classes: int, size: tuple[int, int]) -> Call:
        generator = torch.Generator().manual_seed(0)
        label = random_label(size, generator, classes).to(bench.device)
        prediction = torch.randint(0, classes, size, generator=generator, dtype=torch.uint8).to(bench.device)
        matrix = ConfusionMatrix(classes, bench.device)
        return lambda: matrix.add(label, prediction)

    _few_and_many(bench, "confusion matrix", call)


def labels_by_classes(bench: Bench) -> None:
    """From logits at output stride 8 to the label map of an image."""

    def call(classes: int, size: tuple[int, int]) -> Call:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(1, classes, size[0] // 8, size[1] // 8, generator=generator).to(bench.device)
        image = torch.zeros(3, *size, dtype=torch.uint8, device=bench.device)
        return lambda: predict_labels(lambda _: logits, image, size, EvalConfig())

    _few_and_many(bench, "scores to label map", call)


COMPARISONS: dict[str, tuple[Callable[[Bench], None], ...]] = {
    "step": (segmenter, adaptsegnet, cyclegan),
    "methods": (methods,),
    "loss": (upsampled_loss,),
    "data": (loading, jitter),
    "eval": (confusion, argmax, evaluation),
    "classes": (loss_by_classes, confusion_by_classes, labels_by_classes),
}


# --- table ------------------------------------------------------------------------------------------------


def table(bench: Bench) -> str:
    """The rows for a terminal, one block per comparison."""
    lines = [f"{'ms:':>52}{'min':>9}{'median':>9}{'max':>9}{'speed':>8}{'MiB':>8}{'memory':>8}{'of peak':>9}"]
    for title, rows in itertools.groupby(bench.rows, lambda row: row.comparison):
        lines += ["", title]
        for row in rows:
            cells = (
                f"{row.min_ms:9.2f}{row.median_ms:9.2f}{row.max_ms:9.2f}{f'{row.speed:.2f}x':>8}",
                f"{shown(row.memory_mib, '.0f'):>8}{shown(row.memory_ratio, '.2f', 'x'):>8}",
                f"{shown(row.peak_share, '.0%'):>9}",
            )
            lines.append(f"  {row.variant:<50}{''.join(cells)}")
    return "\n".join([*lines, "", *(f"note: {note}" for note in [*bench.notes, *bench.failures])]).rstrip()


def shown(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit
