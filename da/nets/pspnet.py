"""PSPNet, the one segmenter of every method: dilated ResNet, pyramid pooling, auxiliary head on layer3.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017 (section 3.2 pyramid pooling module, section 3.3
auxiliary loss).

Differs from the authors' code: takes images of any size and normalises them itself; the pyramid branches
carry GroupNorm by default (Wu and He, ECCV 2018), since domain adaptation trains at batch 1 and the bin-1
branch would give BatchNorm a single value per channel; align_corners is a setting, off by default. The presence head
and the `progressive` decoder are those of the repository Lextal/pspnet-pytorch.
"""

import math
from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from da.config import Section, UserError
from da.nets.backbone import ARCHS, Arch, ResNet, Stem
from da.nets.encoders import PREFIX, TimmEncoder
from da.nets.norms import Domain, DomainBatchNorm2d, SyncBatchNorm2d, processes, replace_norms
from da.nets.pooling import AdaptiveAvgPool2d
from da.nets.weights import load_backbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)

N = TypeVar("N", bound="Encoder")


def _known_backbone(name: str) -> str:
    if name not in ARCHS and not name.startswith(PREFIX):
        raise ValueError(f"one of {', '.join(ARCHS)}, or timm/<name>")
    return name


class PSPNetConfig(Section):
    """The `model:` section.

    Attributes:
        backbone: one of `da.nets.backbone.ARCHS`, or `timm/<name>`: see `da.nets.encoders`.
        stem, contract_dilation: of the ResNets in `da.nets.backbone`.
        output_stride: input pixels per feature cell; without effect on transformers, which have their patch.
        drop_path: rate of stochastic depth in a timm network, 0 = none.
        frozen_stages: how many of the backbone's `stages()`, from the image on, stay as they were loaded: no gradient,
            no batch statistics, no drop-path. 1 is the stem (of ConvNeXt with its first stage, of a transformer the
            embedding).
        freeze: names of modules that stay as they were loaded in the same way, with all that is in them, such as
            backbone.layer1 or ppm; also patterns, such as backbone.*.bn?.
        bins: cells per side of each pyramid level.
        decoder: what makes scores of layer4. `pspnet`: the paper's. `progressive`: pyramid branches as wide as layer4,
            without norm (`ppm_norm` has no effect), then three learned upsamplings, each by two: scores have eight
            times the cells.
        head_channels: width of the fused head; 128 suits resnet18 and resnet34. Of `progressive` the width before the
            first upsampling: a quarter of it after that one, a sixteenth after the others.
        aux: build the auxiliary head on layer3, a quarter of layer3's channels wide.
        presence: build a head on layer3 that says which classes an image shows; `loss.lambda_presence` trains it.
        dropout: probability of dropping a channel before each classifier; half of it after each learned upsampling.
        ppm_norm: normalisation of the pyramid branches. `batch` is the paper's and needs at least two images
            per forward; `group` trains at batch 1 with the same number of parameters.
        align_corners: of the upsampling in the pyramid and in the training losses; scores have `eval.align_corners`.
            Exact only where (size - 1) % output_stride == 0.
        bn: which statistics BatchNorm uses. `train`: those of the batch while training, and the running
            average follows whatever domain is forwarded. `frozen`: always the running average as loaded;
            gamma and beta still train (in a head that starts anew they are a plain scale and shift).
            `per_domain`: as `train`, with one running average per domain and shared gamma and beta.
            `sync`: as `train`, over the batches of all processes together; one process alone is as `train`.
        weights: of the backbone: `none` (random), `imagenet`, or see `da.nets.weights.load_backbone`.
    """

    backbone: Annotated[str, AfterValidator(_known_backbone)] = "resnet101"
    stem: Stem = "torchvision"
    output_stride: Literal[8, 16] = 8
    contract_dilation: bool = True
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    frozen_stages: NonNegativeInt = 0
    freeze: tuple[str, ...] = ()
    bins: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 6)
    decoder: Literal["pspnet", "progressive"] = "pspnet"
    head_channels: PositiveInt = 512
    aux: bool = True
    presence: bool = False
    dropout: float = Field(default=0.1, ge=0, lt=1)
    ppm_norm: Literal["batch", "group"] = "group"
    align_corners: bool = False
    bn: Literal["train", "frozen", "per_domain", "sync"] = "train"
    weights: str = "imagenet"


class Scores(NamedTuple):
    """Class logits (B, classes, H, W) of the main head and, where there is one and it trains, of the auxiliary head;
    likewise (B, classes) of the presence head."""

    main: Tensor
    aux: Tensor | None
    presence: Tensor | None = None


class Features(NamedTuple):
    """What the heads see: (B, C, h, w) of the pyramid, C twice layer4's channels for four bins, and layer3."""

    pyramid: Tensor
    layer3: Tensor


class PyramidPooling(nn.Module):
    """Context at several scales beside the input: (B, C, h, w) -> (B, C + bins * (C // bins), h, w).

    Each branch: adaptive average pooling, 1x1 convolution, norm, ReLU, bilinear upsampling to (h, w). The
    norm is BatchNorm, or GroupNorm with about 16 channels per group, so that a 1x1 map has values to compare.
    Under `none` branches have neither norm nor ReLU, and C channels each.
    """

    def __init__(
        self, in_channels: int, bins: tuple[int, ...], norm: Literal["batch", "group", "none"], align_corners: bool
    ) -> None:
        super().__init__()
        width = in_channels if norm == "none" else in_channels // len(bins)
        groups = math.gcd(width, max(1, width // 16))

        def activation() -> list[nn.Module]:
            if norm == "none":
                return []
            return [nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(groups, width), nn.ReLU(inplace=True)]

        self.align_corners = align_corners
        self.out_channels = in_channels + width * len(bins)
        self.branches = nn.ModuleList(
            nn.Sequential(
                AdaptiveAvgPool2d(bin_size),
                nn.Conv2d(in_channels, width, 1, bias=False),
                *activation(),
            )
            for bin_size in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for branch in self.branches:
            # In float32: of a bfloat16 map a GPU adds up the gradients in bfloat16, which stops at 256 equal ones.
            context = branch(x).to(x.dtype).float()
            wide = F.interpolate(context, x.shape[-2:], mode="bilinear", align_corners=self.align_corners)
            maps.append(wide.to(x.dtype))
        return torch.cat(maps, 1)  # the input first


def _backbone(config: PSPNetConfig) -> ResNet | TimmEncoder:
    """
    Raises:
        UserError: settings that the backbone does not have.
    """
    backbone: ResNet | TimmEncoder
    if config.backbone.startswith(PREFIX):
        if config.stem != "torchvision" or not config.contract_dilation:
            raise UserError(
                "model.stem, model.contract_dilation: are for resnet18 to resnet101; leave them out for timm/..."
            )
        backbone = TimmEncoder(config.backbone.removeprefix(PREFIX), config.output_stride, config.drop_path)
    else:
        if config.drop_path:
            raise UserError(f"model.drop_path: {config.backbone} has none; set it to 0 or take timm/{config.backbone}")
        backbone = ResNet(cast(Arch, config.backbone), config.stem, config.output_stride, config.contract_dilation)
    if config.frozen_stages > (most := len(backbone.stages())):
        raise UserError(f"model.frozen_stages: {config.backbone} has {most} stages, not {config.frozen_stages}")
    return backbone


def _classifier(in_channels: int, width: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, num_classes, 1),
    )


def _progressive_decoder(
    in_channels: int, width: int, num_classes: int, dropout: float, align_corners: bool
) -> nn.Sequential:
    """(B, in_channels, h, w) -> (B, num_classes, 8 h, 8 w)."""
    layers = [nn.Conv2d(in_channels, width, 1), nn.ReLU(inplace=True), nn.Dropout2d(dropout)]
    quarter, narrow = max(width // 4, 1), max(width // 16, 1)
    for wide, narrower in ((width, quarter), (quarter, narrow), (narrow, narrow)):
        upsampling = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners),
            nn.Conv2d(wide, narrower, 3, padding=1),
            nn.BatchNorm2d(narrower),
            nn.PReLU(),
        )
        layers += [upsampling, nn.Dropout2d(dropout / 2)]
    return nn.Sequential(*layers, nn.Conv2d(narrow, num_classes, 1))


def _presence_head(in_channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, 256), nn.ReLU(inplace=True), nn.Linear(256, num_classes))


def _init_head(head: nn.Module) -> None:
    """He initialisation; the layer that gives the logits starts near zero: a near-uniform first softmax."""
    logits = head[-1] if isinstance(head, nn.Sequential) else None
    for module in head.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module is logits:
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def is_of_encoder(name: str) -> bool:
    """Whether a tensor of this name belongs to an `Encoder` without its heads."""
    return name.startswith("backbone.") or name in ("mean", "std")


class Encoder(nn.Module):
    """A backbone with the statistics that its images are normalised by. Subclasses add heads, then call `settle`.

    The buffers `mean` and `std` (RGB, [0, 1]) belong to the weights and are saved with them, so a checkpoint carries
    its own input statistics. ImageNet's are used unless the backbone's file names others.

    Args:
        config: the `model:` section.

    Attributes:
        load_report: what `config.weights` filled.

    Raises:
        UserError: the weights cannot be found or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PSPNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        self.load_report = load_backbone(self.backbone, config.weights, config.backbone)
        imagenet = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        mean, std = self.load_report.statistics or imagenet
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def settle(self) -> None:
        """Give all norms the kind that `config.bn` names, and freeze what is to stay as it was loaded.

        Raises:
            UserError: `freeze` names nothing, or everything.
        """
        config = self.config
        if config.bn == "per_domain":
            replace_norms(self, DomainBatchNorm2d)
        elif config.bn == "sync":
            replace_norms(self, SyncBatchNorm2d)
        for pattern in config.freeze:
            if not self._named(pattern):
                inside = [f"backbone.{name}" for name, _ in self.backbone.named_children()]
                heads = [name for name, _ in self.named_children() if name != "backbone"]
                known = ", ".join(inside + heads)
                raise UserError(f"model.freeze: {pattern!r} names no module; known: {known}, and theirs")
        for module in self._frozen():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError("model.freeze: leaves nothing to train; name fewer modules")
        self.train()

    def encode(self, image: Tensor, domain: Domain = "target") -> tuple[Tensor, Tensor]:
        """The backbone's maps layer3 and layer4, (B, C, h, w), of RGB images (B, 3, H, W) in [0, 1]."""
        for module in self.modules():
            if isinstance(module, DomainBatchNorm2d):
                module.domain = domain
        return self.backbone(self.normalised(image))

    def normalised(self, image: Tensor) -> Tensor:
        """RGB images (B, 3, H, W) in [0, 1] as the backbone takes them."""
        return (image - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters of the backbone and of the heads; each is in exactly one of the two lists."""
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        heads = [p for head in self._heads() for p in head.parameters() if p.requires_grad]
        return backbone, heads

    def train(self: N, mode: bool = True) -> N:
        """Set training mode; under `bn: frozen` every BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.config.bn == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        for module in self._frozen():
            module.training = False
        return self

    def random_tensors(self) -> set[str]:
        """Names of the tensors that no weights file has filled."""
        filled = "backbone." if self.load_report.tensors else None
        return {name for name in self.state_dict() if filled is None or not name.startswith(filled)}

    def _heads(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name != "backbone"]

    def _frozen(self) -> list[nn.Module]:
        """The modules that stay as they were loaded."""
        stages = self.backbone.stages()[: self.config.frozen_stages] if self.config.frozen_stages else []
        named = [module for pattern in self.config.freeze for module in self._named(pattern)]
        return [module for stage in stages for module in stage] + named

    def _named(self, pattern: str) -> list[nn.Module]:
        """The modules whose names fit, and what is in them."""
        fits = (pattern, f"{pattern}.*")
        return [m for name, m in self.named_modules() if name and any(fnmatchcase(name, each) for each in fits)]


class PSPNet(Encoder):
    """The segmenter: RGB images in [0, 1] of any size in, class logits of the same size out.

    Batch 1 trains with `ppm_norm: group` (the default) or `bn: frozen`; with `ppm_norm: batch` the bin-1
    branch has one value per channel, which BatchNorm cannot normalise.

    Args:
        config: the `model:` section.
        num_classes: channels of the logits.

    Raises:
        UserError: as of `Encoder`.
    """

    def __init__(self, config: PSPNetConfig, num_classes: int) -> None:
        super().__init__(config)
        progressive, align = config.decoder == "progressive", config.align_corners
        norm = "none" if progressive else config.ppm_norm
        self.ppm = PyramidPooling(self.backbone.num_features, config.bins, norm, align)
        shape = (self.ppm.out_channels, config.head_channels, num_classes, config.dropout)
        self.cls = _progressive_decoder(*shape, align) if progressive else _classifier(*shape)
        layer3 = self.backbone.layer3_channels
        self.aux = _classifier(layer3, layer3 // 4, num_classes, config.dropout) if config.aux else None
        for head in (self.ppm, self.cls, self.aux):
            if head is not None:
                _init_head(head)
        # After the others, so that their weights are drawn alike with it and without.
        self.presence = _presence_head(layer3, num_classes) if config.presence else None
        self.settle()

    def forward(self, image: Tensor, domain: Domain = "target") -> Scores:
        """Logits at the size of the image.

        Args:
            image: (B, 3, H, W) float RGB in [0, 1].
            domain: whose running statistics are used and updated under `bn: per_domain`; else without effect.

        Returns:
            Scores of (B, classes, H, W), float32 also under autocast: losses need float32, and the conversion
            is cheapest before upsampling.

        Raises:
            UserError: training at batch 1 with BatchNorm in the bin-1 branch.
        """
        return self.upsample(self.scores(image, domain), image.shape[-2:])

    def upsample(self, scores: Scores, size: torch.Size) -> Scores:
        """Logits at the output stride -> bilinearly at `size`, float32."""
        main, aux, presence = scores
        return Scores(self._upsample(main, size), None if aux is None else self._upsample(aux, size), presence)

    def scores(self, image: Tensor, domain: Domain = "target") -> Scores:
        """`forward` before upsampling: (B, classes, ceil(H / s), ceil(W / s)), s the output stride, in the
        precision of the convolutions; main ones eight times as fine under `decoder: progressive`."""
        return self.classify(self.features(image, domain))

    def features(self, image: Tensor, domain: Domain = "target") -> Features:
        """What the heads see, at the output stride: the first half of `scores`."""
        self._check_batch(image.shape[0])  # len() would fix the batch in an exported graph
        layer3, layer4 = self.encode(image, domain)
        return Features(self.ppm(layer4), layer3)

    def classify(self, features: Features) -> Scores:
        """Logits at the output stride: the second half of `scores`."""
        main = self.cls(features.pyramid)
        aux = self.aux(features.layer3) if self.aux is not None and self.training else None
        if self.presence is None or not self.training:
            return Scores(main, aux)
        return Scores(main, aux, self.presence(features.layer3.amax((2, 3))))

    def class_tensors(self) -> list[str]:
        """Names of the tensors that depend on the classes: those of the layers that give the logits."""
        heads = {"cls": self.cls, "aux": self.aux, "presence": self.presence}
        return [
            f"{name}.{len(h) - 1}.{key}" for name, h in heads.items() if h is not None for key in h[-1].state_dict()
        ]

    def _upsample(self, logits: Tensor, size: torch.Size) -> Tensor:
        # Contiguous, so that the large result is, whatever the network's layout: softmax over channels would copy it.
        logits = logits.float().contiguous()
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.config.align_corners)

    def _check_batch(self, batch: int) -> None:
        batch_norm_in_ppm = self.config.ppm_norm == "batch" and self.config.decoder == "pspnet"
        batch_norm_in_ppm = batch_norm_in_ppm and self.config.bn != "frozen"
        shared = batch * processes() if self.config.bn == "sync" else batch
        if self.training and shared == 1 and batch_norm_in_ppm and 1 in self.config.bins:
            raise UserError(
                "model.ppm_norm: `batch` cannot train at batch 1 (one value per channel in bin 1); set "
                "model.ppm_norm: group or model.bn: frozen, give each process at least 2 images, or several processes "
                "1 each with model.bn: sync"
            )
