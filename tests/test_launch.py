"""The launch scripts as a user calls them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import REPOSITORY, overrides

pytestmark = pytest.mark.slow


def launch(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        ["bash", str(REPOSITORY / "launch" / script), *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("script", "name"),
    [("gta2city_source_only.sh", "source_only"), ("gta2city_adaptseg.sh", "adaptsegnet_multi")],
)
def test_without_roots_the_miniature_runs_and_says_so(script, name, tmp_path, gta5_root, cityscapes_root):
    settings = overrides(gta5_root, cityscapes_root)
    done = launch(script, *settings, RUNS=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "GTA5_ROOT is not set, so this runs the miniature" in done.stderr
    assert (tmp_path / f"runs/mini/{name}-seed0/summary.json").exists()
    assert "mIoU" in done.stdout


def test_with_roots_the_full_experiment_runs(tmp_path, gta5_root, cityscapes_root):
    """Only its size is changed here; the full recipe's own weights and schedule stay."""
    small = ["model.backbone=resnet18", "model.weights=none", "run.steps=1", "run.precision=fp32"]
    small += ["data.source.size=[64, 48]", "data.target.size=[64, 48]", "data.workers=0", "model.head_channels=16"]
    roots = {"GTA5_ROOT": str(gta5_root), "CITYSCAPES_ROOT": str(cityscapes_root)}
    done = launch("gta2city_adaptseg.sh", *small, RUNS=str(tmp_path), EXPERIMENT="adaptsegnet_single", **roots)
    assert done.returncode == 0, done.stderr
    assert "miniature" not in done.stdout + done.stderr
    assert (tmp_path / "gta2city/adaptsegnet_single-seed0/summary.json").exists()


def test_a_mistake_ends_with_exit_code_2(tmp_path):
    done = launch("gta2city_adaptseg.sh", "run.stepz=1", RUNS=str(tmp_path))
    assert done.returncode == 2
    assert "did you mean 'steps'" in done.stderr


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("run.stepz=1", "did you mean 'steps'"),
        ("data.batch_size=3", "data.batch_size: 3 cannot be shared by 2 processes"),
        ("data.source.root=/nowhere", "/nowhere: no images in images/"),
    ],
)
def test_two_processes_say_a_mistake_once(mistake, said, tmp_path, gta5_root, cityscapes_root):
    settings = [*overrides(gta5_root, cityscapes_root), mistake]
    done = launch("gta2city_source_only.sh", *settings, RUNS=str(tmp_path / "runs"), GPUS="2")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)  # besides, torchrun says that it ends
    assert said in line
    assert "Traceback" not in done.stderr
    assert "died" not in done.stdout  # not tried again


def oracle(cityscapes_root) -> list[str]:
    return [f"oracle:data.source.root={cityscapes_root}", "oracle:data.source.crop=[64, 48]"]


def test_cycada_runs_stage_by_stage_and_skips_what_is_finished(tmp_path, gta5_root, cityscapes_root):
    """In two processes, and with a batch for them at each stage, also where its recipe's is 1."""
    settings = [word for word in overrides(gta5_root, cityscapes_root) if not word.startswith("data.batch_size")]
    settings += [*oracle(cityscapes_root), "seed=3", "run.time_limit=1d"]
    settings += ["cycada_pixel:method.blocks=1", "cycada_pixel:method.width=8"]
    tables = []
    for _ in range(2):
        done = launch("gta2city_cycada.sh", *settings, RUNS=str(tmp_path / "runs"), GPUS="2")
        assert done.returncode == 0, done.stderr
        assert "cycada_pixel: data.batch_size=2, an image for each process" in done.stdout
        tables.append(done.stdout[done.stdout.rindex("mIoU19") :])
    assert tables[0] == tables[1]
    assert "is complete; delete it to translate again" in done.stdout
    stages = (
        "source_only",
        "cycada_pixel",
        "cycada_pixel_segmenter",
        "cycada_feature",
        "cycada_feature_only",
        "oracle",
    )
    for name in stages:
        assert (tmp_path / f"runs/mini/{name}-seed3/summary.json").exists()
    translated = tmp_path / "runs/mini/cycada_pixel-seed3/translated"
    sources = {"cycada_feature": translated, "cycada_feature_only": gta5_root, "oracle": cityscapes_root}
    for name, root in sources.items():
        config = (tmp_path / f"runs/mini/{name}-seed3/config.yaml").read_text()
        assert f"root: {root}" in config


def test_cycada_killed_in_each_stage_ends_with_the_same_table(tmp_path, gta5_root, cityscapes_root):
    settings = [*overrides(gta5_root, cityscapes_root), *oracle(cityscapes_root)]
    settings += ["cycada_pixel:method.blocks=1", "cycada_pixel:method.width=8", "run.steps=8"]
    straight = launch("gta2city_cycada.sh", *settings, RUNS=str(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    runs = tmp_path / "killed/mini"
    begun = [runs / f"{name}-seed0/checkpoints/last.pt" for name in ("source_only", "cycada_pixel")]
    begun += [runs / "cycada_pixel-seed0/translated.partial/translation.json"]
    later = ("cycada_pixel_segmenter", "cycada_feature", "cycada_feature_only", "oracle")
    begun += [runs / f"{name}-seed0/checkpoints/last.pt" for name in later]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "RUNS": str(tmp_path / "killed")}
    script = ["bash", str(REPOSITORY / "launch/gta2city_cycada.sh"), *settings]
    for file in begun:
        process = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + 120
        while not file.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (file.parents[1] / "summary.json").exists() or "translated" in str(file)
    done = launch("gta2city_cycada.sh", *settings, RUNS=str(tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    tables = [out[out.rindex("mIoU19") :].replace("killed", "straight") for out in (done.stdout, straight.stdout)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("cycada_pixl:run.steps=1", "no stage cycada_pixl"),
        ("name=other", "RUNS=another/folder"),
        ("oracle:experiment=other", "RUNS=another/folder"),
        ("oracle:seed=1", "give it as seed=1"),
        ("cycada_feature:init=null", "only source_only:init=... is free"),
        ("cycada_feature:data.source.root=/data", "on the translations"),
        ("oracle:run.stepz=4", "did you mean 'steps'"),
    ],
)
def test_cycada_refuses_a_mistake_before_the_first_stage(mistake, said, tmp_path):
    done = launch("gta2city_cycada.sh", mistake, RUNS=str(tmp_path / "runs"))
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
    assert said in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "launch").glob("gta2city_*.sh")))
def test_help_is_the_header(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    assert done.stdout.count(f"  bash launch/{script} [") == 1
    assert "GPUS=4" in done.stdout
    assert "#" not in done.stdout + done.stderr
