"""How other projects name the tensors of a dilated ResNet and of PSPNet, and which settings give their network.

Facts only, read off each project's checkpoints and documentation; see `third_party/notices/` for sources and
licences. A rule is a regular expression over the whole foreign name and the name used here.
"""

from typing import Any, Literal, NamedTuple

BLOCK = r"(layer[1-4]\.\d+\.(?:conv[1-3]|bn[1-3]|downsample\.[01])\..+)"
TAIL = r"(weight|bias|running_mean|running_var|num_batches_tracked)"

# DeepLab's input: BGR in 0..255 minus this mean, no division. Here as RGB in [0, 1].
CAFFE_MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)


class Kind(NamedTuple):
    """One source of checkpoints.

    Attributes:
        part: what its files hold: a backbone for `model.weights`, or a whole segmenter.
        rules: foreign name -> name inside that part; the first that matches counts.
        left_out: foreign names with no use here.
        model: settings of the `model:` section that make the same network.
        logits: the tensor that gives the classes, of a segmenter.
        input_last: the fused head sees layer4 after the pyramid's branches, and not before them.
        bgr: the first convolution expects blue first.
        statistics: mean and std of the input, RGB in [0, 1]; None for ImageNet's.
    """

    part: Literal["backbone", "segmenter"]
    rules: tuple[tuple[str, str], ...]
    left_out: str
    model: dict[str, Any]
    logits: str = "cls.4.weight"
    input_last: bool = False
    bgr: bool = False
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


KINDS: dict[str, Kind] = {
    "torchvision": Kind(
        part="backbone",
        rules=((rf"((?:conv1|bn1)\.{TAIL})", r"\1"), (BLOCK, r"\1")),
        left_out=r"fc\..+",
        model={"stem": "torchvision", "contract_dilation": True},
    ),
    "caffe": Kind(
        part="backbone",
        rules=((rf"(?:Scale\.)?((?:conv1|bn1)\.{TAIL})", r"\1"), (rf"(?:Scale\.)?{BLOCK}", r"\1")),
        left_out=r"(?:Scale\.)?(?:layer5|layer6|fc)\..+",
        model={"stem": "caffe", "contract_dilation": False},
        bgr=True,
        statistics=(CAFFE_MEAN, CAFFE_STD),
    ),
    "lextal": Kind(
        part="segmenter",
        rules=(
            (rf"feats\.((?:conv1|bn1)\.{TAIL})", r"backbone.\1"),
            (rf"feats\.{BLOCK}", r"backbone.\1"),
            (r"psp\.stages\.(\d+)\.1\.weight", r"ppm.branches.\1.1.weight"),
            (rf"psp\.bottleneck\.{TAIL}", r"cls.0.\1"),
            *(
                (rf"up_{n}\.conv\.{part}\.{TAIL}", rf"cls.{2 * n + 1}.{part + 1}.\1")
                for n in (1, 2, 3)
                for part in (0, 1, 2)  # convolution, norm, PReLU
            ),
            (rf"final\.0\.{TAIL}", r"cls.9.\1"),
            (rf"classifier\.([02])\.{TAIL}", r"presence.\1.\2"),
        ),
        left_out=r"(?!)",
        # Made for a torch whose upsampling aligned corners.
        model={"stem": "lextal", "decoder": "progressive", "dropout": 0.3, "align_corners": True},
        logits="cls.9.weight",
        input_last=True,
    ),
    "semseg": Kind(
        part="segmenter",
        rules=(
            (rf"layer0\.0\.{TAIL}", r"backbone.conv1.\1"),
            (rf"layer0\.1\.{TAIL}", r"backbone.bn1.\1"),
            (rf"layer0\.3\.{TAIL}", r"backbone.conv2.\1"),
            (rf"layer0\.4\.{TAIL}", r"backbone.bn2.\1"),
            (rf"layer0\.6\.{TAIL}", r"backbone.conv3.\1"),
            (rf"layer0\.7\.{TAIL}", r"backbone.bn3.\1"),
            (BLOCK, r"backbone.\1"),
            (rf"ppm\.features\.(\d+)\.([12])\.{TAIL}", r"ppm.branches.\1.\2.\3"),
            (rf"((?:cls|aux)\.[014]\.{TAIL})", r"\1"),
        ),
        left_out=r"(?!)",
        model={"stem": "semseg", "contract_dilation": False, "ppm_norm": "batch", "align_corners": True},
    ),
    "mmseg": Kind(
        part="segmenter",
        rules=(
            (rf"backbone\.stem\.0\.{TAIL}", r"backbone.conv1.\1"),
            (rf"backbone\.stem\.1\.{TAIL}", r"backbone.bn1.\1"),
            (rf"backbone\.stem\.3\.{TAIL}", r"backbone.conv2.\1"),
            (rf"backbone\.stem\.4\.{TAIL}", r"backbone.bn2.\1"),
            (rf"backbone\.stem\.6\.{TAIL}", r"backbone.conv3.\1"),
            (rf"backbone\.stem\.7\.{TAIL}", r"backbone.bn3.\1"),
            (rf"(backbone\.){BLOCK}", r"\1\2"),
            (rf"decode_head\.psp_modules\.(\d+)\.1\.conv\.{TAIL}", r"ppm.branches.\1.1.\2"),
            (rf"decode_head\.psp_modules\.(\d+)\.1\.bn\.{TAIL}", r"ppm.branches.\1.2.\2"),
            (rf"decode_head\.bottleneck\.conv\.{TAIL}", r"cls.0.\1"),
            (rf"decode_head\.bottleneck\.bn\.{TAIL}", r"cls.1.\1"),
            (rf"decode_head\.conv_seg\.{TAIL}", r"cls.4.\1"),
            (rf"auxiliary_head\.convs\.0\.conv\.{TAIL}", r"aux.0.\1"),
            (rf"auxiliary_head\.convs\.0\.bn\.{TAIL}", r"aux.1.\1"),
            (rf"auxiliary_head\.conv_seg\.{TAIL}", r"aux.4.\1"),
        ),
        left_out=r"data_preprocessor\..+",
        model={"stem": "mmseg", "contract_dilation": True, "ppm_norm": "batch", "align_corners": False},
    ),
}
