"""The mini experiments at a size that takes a second: tiny crops, four updates."""

from pathlib import Path

from da.engine import checkpoint
from da.run import load_config
from da.trainers import base

REPOSITORY = Path(__file__).parents[1]
SETTINGS = (
    "data.batch_size=2",
    "data.workers=0",
    "data.source.crop=[64, 48]",
    "data.target.crop=[64, 48]",
    "model.head_channels=16",
    "run.steps=4",
    "run.log_every=1",
    "run.val_every=2",
    "run.save_every=2",
    "run.precision=fp32",
    "run.device=cpu",
)
METHOD_FILES = {method: method for method in base.methods()} | {"adaptsegnet": "adaptsegnet_multi"}
SEGMENTERS = [  # methods that train one
    method
    for method in base.methods()
    if not (base.find(method).Trainer.is_translation or base.find(method).Trainer.is_pretext)
]
# What refines a segmenter's loss, all at once; `median_frequency` counts the source, the list does not.
TERMS = "ohem: {threshold: 0.05, min_kept: 100}, lambda_lovasz: 0.7, lambda_dice: 0.3, lambda_presence: 0.4"
HEADS = ("model.presence=true", "model.decoder=progressive")
REFINED = (f"loss={{class_weights: {[1 + c % 5 for c in range(19)]}, {TERMS}}}", *HEADS)
COUNTED = (f"loss={{class_weights: median_frequency, weight_cap: 5, {TERMS}}}", *HEADS)
PATCHES = {  # what the pretext tasks cut of such crops
    "rotation": ("method.patch=32",),
    "jigsaw": ("method.cell=14", "method.tile=8", "method.width=16", "method.permutations=20"),
    "inpainting": ("method.patch=32", "method.overlap=2", "method.decoder_width=16", "method.width_d=8"),
}
SMALLER = PATCHES | {
    "cycada_pixel": ("method.blocks=1", "method.width=8"),  # the settings above leave its own networks large
    "finetune": ("method.head_steps=12", "method.warmup=6", "method.l2_sp={}"),  # both stages in a few updates
}


def overrides(gta5_root: Path, cityscapes_root: Path) -> list[str]:
    return [
        "data.source.dataset=gta5",
        "data.source.split=all",
        "data.source.labels=null",
        f"data.source.root={gta5_root}",
        f"data.target.root={cityscapes_root}",
        f"data.val.root={cityscapes_root}",
        *SETTINGS,
    ]


def train_words(method: str, gta5_root: Path, cityscapes_root: Path) -> list[str]:
    """What follows `python -m da train` for the method's experiment: the file, the fixtures' folders, what it starts
    from, and tiny sizes."""
    name = METHOD_FILES[method]
    init = tiny(name, gta5_root, cityscapes_root).init
    words = [str(REPOSITORY / f"experiments/mini/{name}.yaml"), *overrides(gta5_root, cityscapes_root)]
    return [*words, *SMALLER.get(method, ()), *([] if init is None else [f"init={init}"])]


def tiny(name: str, gta5_root: Path, cityscapes_root: Path, *extra: str) -> base.Experiment:
    """Experiment `experiments/mini/<name>.yaml` on the fixtures' folders."""
    file = str(REPOSITORY / f"experiments/mini/{name}.yaml")
    config = load_config([file], [*overrides(gta5_root, cityscapes_root), *PATCHES.get(name, ()), *extra])
    if config.init is None or Path(config.init).exists():
        return config
    return config.model_copy(update={"init": str(segmenter_checkpoint(gta5_root, cityscapes_root))})


def segmenter_checkpoint(gta5_root: Path, cityscapes_root: Path) -> Path:
    """An untrained source segmenter, for methods that start from one."""
    path = gta5_root.parent / "source_only.pt"
    if not path.exists():
        segmenter = base.build(tiny("source_only", gta5_root, cityscapes_root)).segmenter
        checkpoint.save(path, {"step": 0, "modules": {"segmenter": segmenter.state_dict()}})
    return path
