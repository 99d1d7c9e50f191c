"""The mini experiments at a size that takes a second: tiny crops, four updates."""

from pathlib import Path

from da.run import load_config
from da.trainers.base import Experiment

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
METHOD_FILES = {"source_only": "source_only", "adaptsegnet": "adaptsegnet_multi"}


def overrides(gta5_root: Path, cityscapes_root: Path) -> list[str]:
    return [
        f"data.source.root={gta5_root}",
        f"data.target.root={cityscapes_root}",
        f"data.val.root={cityscapes_root}",
        *SETTINGS,
    ]


def tiny(name: str, gta5_root: Path, cityscapes_root: Path, *extra: str) -> Experiment:
    """Experiment `experiments/mini/<name>.yaml` on the fixtures' folders."""
    file = str(REPOSITORY / f"experiments/mini/{name}.yaml")
    return load_config([file], [*overrides(gta5_root, cityscapes_root), *extra])
