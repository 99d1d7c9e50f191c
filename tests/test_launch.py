"""The launch scripts as a user calls them."""

import contextlib
import json
import os
import pty
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import children
from test_spaces import write_set
from tiny import REPOSITORY, SETTINGS, overrides, tiny

from da.engine import checkpoint
from da.trainers import base

pytestmark = pytest.mark.slow


ENDLESS = ("run.steps=9999", "run.val_every=9999", "run.save_every=9999")


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
    page = tmp_path / "runs/report/mini/index.html"
    assert name in page.read_text()
    assert f"1 run; wrote {page}" in done.stdout
    assert done.stdout.partition("next:")[2].count("  bash launch/") == {"source_only": 1}.get(name, 2)


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


@pytest.mark.parametrize("variable", ["GPUS=2.5", "GPUS=0", "GPUS=two", "GPUS=-1", "GPUS=08", "RESTARTS=many"])
@pytest.mark.parametrize("script", ["gta2city_source_only.sh", "gta2city_cycada.sh"])
def test_numbers_that_are_none_are_refused(script, variable, tmp_path):
    name, value = variable.split("=")
    done = launch(script, RUNS=str(tmp_path), **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {variable}: give ")
    assert done.stderr.count("\n") == 1


def test_scripts_keep_their_line_ends_in_a_clone_of_windows(tmp_path):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git checkout")
    (tmp_path / "new").mkdir()
    git = ["git", "-C", str(tmp_path / "new"), "-c", "core.autocrlf=true"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for name in (".gitattributes", "launch/lib.sh", "README.md", "docs/domains.png"):
        (tmp_path / "new" / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / "new" / name)
    subprocess.run([*git, "add", "--all"], check=True, capture_output=True)
    for name in ("launch/lib.sh", "README.md", "docs/domains.png"):
        (tmp_path / "new" / name).unlink()
    subprocess.run([*git, "checkout", "--", "."], check=True)
    for name in ("launch/lib.sh", "README.md", "docs/domains.png"):
        assert (tmp_path / "new" / name).read_bytes() == (REPOSITORY / name).read_bytes()


def test_what_the_readme_writes_is_not_for_git():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git checkout")
    written = [
        "compare.png",
        "report/index.html",
        "runs/mini/a",
        "out/a.png",
        "translated/a",
        "segmenter.onnx",
        "bench.json",
        "gpu_check/gpu_check.md",
    ]
    ignored = subprocess.run(["git", "check-ignore", *written], cwd=REPOSITORY, capture_output=True, text=True).stdout
    assert ignored.split() == written


def test_fda_runs_both_stages_and_ends_with_the_means(tmp_path, gta5_root, cityscapes_root):
    settings = [*overrides(gta5_root, cityscapes_root), "run.steps=1", "run.val_every=1"]
    done = launch("gta2city_fda.sh", *settings, RUNS=str(tmp_path), BETAS="0.01 0.09")
    assert done.returncode == 0, done.stderr
    for name in ("fda_0.01", "fda_0.09", "fda_self_0.01", "fda_self_0.09"):
        assert (tmp_path / f"mini/{name}-seed0/summary.json").exists()
    assert "beta: 0.09" in (tmp_path / "mini/fda_self_0.09-seed0/config.yaml").read_text()
    assert (tmp_path / "mini/fda_pseudo_labels-seed0/pseudo_labels.json").exists()
    assert "probabilities of fda_self_0.01-seed0 + fda_self_0.09-seed0" in done.stdout
    refused = launch("gta2city_fda.sh", "name=other", RUNS=str(tmp_path))
    assert (refused.returncode, refused.stderr.count("error:")) == (2, 1)


def test_selfsup_pretrains_and_compares_with_none(tmp_path, gta5_root, cityscapes_root):
    settings = [*overrides(gta5_root, cityscapes_root), "run.steps=1", "run.val_every=1"]
    chain = {"RUNS": str(tmp_path), "TASKS": "rotation", "LABELS": "2", "PRETRAIN": "method.patch=32"}
    done = launch("selfsup.sh", *settings, **chain)
    assert done.returncode == 0, done.stderr
    runs = [tmp_path / f"mini/{name}-seed0" for name in ("rotation", "no_task_2_labels", "rotation_2_labels")]
    assert all((run / "summary.json").exists() for run in runs)
    assert f"encoder starts from {runs[0] / 'checkpoints/last.pt'} (step 1)" in done.stdout
    table = (tmp_path / "report/mini/table.md").read_text()
    assert "no_task_2_labels" in table
    assert "rotation_2_labels" in table
    refused = launch("selfsup.sh", "init=other", RUNS=str(tmp_path))
    assert (refused.returncode, refused.stderr.count("error:")) == (2, 1)
    unknown = launch("selfsup.sh", TASKS="relative_location", RUNS=str(tmp_path))
    assert (unknown.returncode, "relative_location: no such file" in unknown.stderr) == (2, True)
    late = launch("selfsup.sh", RUNS=str(tmp_path / "late"), FINETUNE="method.head_stepz=1")
    assert (late.returncode, "did you mean 'head_steps'" in late.stderr) == (2, True)
    assert not (tmp_path / "late").exists()


def test_ladders_run_what_is_missing_and_write_the_page(tmp_path, gta5_root, cityscapes_root):
    tiny = "model.backbone=resnet18 model.weights=none run.steps=1 run.val_every=1 run.precision=fp32 run.device=cpu"
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "gta5").symlink_to(gta5_root)
    (photographs / "cityscapes").symlink_to(cityscapes_root)
    given = {"PHOTOGRAPHS_ROOT": str(photographs), "RUNS": str(tmp_path / "runs"), "JOBS": "1"}
    ladder = ["ladder.sh", "day2dusk", *tiny.split()]
    done = launch(*ladder, **given, SEEDS="0", METHODS="source_only")
    assert done.returncode == 0, done.stderr
    again = launch(*ladder, **given, SEEDS="0", METHODS="source_only")
    assert "runs/day2dusk/source_only-seed0 is finished" in again.stdout

    chain = given | {
        "STARTS": "random scratch_rotation source_only",
        "LABELS": "2",
        "DRAWS": "0",
        "PRETRAIN": f"{tiny} method.patch=32",
    }
    done = launch("few_labels.sh", *tiny.split(), **chain)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs/few_labels"
    assert (runs / "random_2_labels-seed0/summary.json").exists()
    for start, said in (
        ("scratch_rotation", f"encoder starts from {runs / 'scratch_rotation-seed0'}"),
        ("source_only", f"segmenter starts from {tmp_path / 'runs/day2dusk/source_only-seed0'}"),
    ):
        assert said in (runs / f"{start}_2_labels-seed0.log").read_text()
        assert f"{start}_2_labels" in (tmp_path / "runs/report/few_labels/table.md").read_text()
    for script in ("ladder.sh", "few_labels.sh"):
        refused = launch(script, "day2dusk")
        assert refused.returncode == 2
        assert "PHOTOGRAPHS_ROOT=: no such folder" in refused.stderr


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


STAGES = ("source_only", "cycada_pixel", "cycada_pixel_segmenter", "cycada_feature", "cycada_feature_only", "oracle")


def test_cycada_runs_stage_by_stage_and_ends_with_the_same_table_after_kills(tmp_path, gta5_root, cityscapes_root):
    """Killed in three of its stages, other ones each time; what is finished is skipped."""
    settings = [*overrides(gta5_root, cityscapes_root), *oracle(cityscapes_root), "seed=3", "run.time_limit=1d"]
    settings += ["cycada_pixel:method.blocks=1", "cycada_pixel:method.width=8", "run.steps=8"]
    straight = launch("gta2city_cycada.sh", *settings, RUNS=str(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    for name in STAGES:
        assert (tmp_path / f"straight/mini/{name}-seed3/summary.json").exists()
    translated = tmp_path / "straight/mini/cycada_pixel-seed3/translated"
    sources = {"cycada_feature": translated, "cycada_feature_only": gta5_root, "oracle": cityscapes_root}
    for name, root in sources.items():
        config = (tmp_path / f"straight/mini/{name}-seed3/config.yaml").read_text()
        assert f"root: {root}" in config

    runs = tmp_path / "killed/mini"
    begun = [runs / f"{name}-seed3/checkpoints/last.pt" for name in STAGES]
    begun.insert(2, runs / "cycada_pixel-seed3/translated.partial/translation.json")
    for number in sorted(random.sample(range(len(begun)), 3)):
        file = begun[number]
        kill_once_there(file, settings, RUNS=str(tmp_path / "killed"))
        assert not (file.parents[1] / "summary.json").exists() or "translated" in str(file)
    done = launch("gta2city_cycada.sh", *settings, RUNS=str(tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    assert "is complete; delete it to translate again" in done.stdout
    tables = [out[out.rindex("mIoU19") :].replace("killed", "straight") for out in (done.stdout, straight.stdout)]
    assert tables[0] == tables[1]


def test_the_stages_of_cycada_have_an_image_for_each_process(tmp_path, gta5_root, cityscapes_root):
    """Also that whose recipe has a batch of one."""
    settings = [word for word in overrides(gta5_root, cityscapes_root) if not word.startswith("data.batch_size")]
    settings += [*oracle(cityscapes_root), "run.steps=1", "run.val_every=1", "run.save_every=1"]
    run = tmp_path / "mini/cycada_pixel-seed0"
    kill_once_there(run / "metrics.jsonl", settings, RUNS=str(tmp_path), GPUS="2")
    assert "batch_size: 2" in (run / "config.yaml").read_text()


def kill_once_there(file: Path, settings: list[str], **variables: str) -> None:
    """Start the chain, and kill all its processes as soon as it has written `file`."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | variables
    script = ["bash", str(REPOSITORY / "launch/gta2city_cycada.sh"), *settings]
    process = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 240
    while not file.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    trainers = [rank for agent in children(process.pid) for rank in children(agent)]
    os.killpg(process.pid, signal.SIGKILL)
    for rank in trainers:  # in sessions of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
    process.wait()


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


def test_cycada_refuses_a_batch_that_cannot_be_shared_before_the_first_stage(tmp_path):
    done = launch("gta2city_cycada.sh", RUNS=str(tmp_path / "runs"), GPUS="4")
    assert done.returncode == 2
    assert "data.batch_size: 2 cannot be shared by 4 processes" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nowhere.yaml", "0"], "nowhere.yaml"), (["experiments/mini/oracle.yaml", "0", "a=1"], "command line: a: ")],
)
def test_seeds_with_a_mistake_are_not_submitted(words, said, tmp_path):
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\n: >"{tmp_path}/called"\n')
    (tmp_path / "sbatch").chmod(0o755)
    done = launch("seeds.sh", *words, PATH=f"{tmp_path}:{os.environ['PATH']}", RUNS=str(tmp_path / "runs"))
    assert done.returncode == 2
    assert f"error: {said}" in done.stderr
    assert not (tmp_path / "called").exists()


def test_the_packages_are_named_as_they_are_fetched():
    pip = ["Collecting a (from -r requirements.txt)", "Downloading a-1.0-py3-none-any.whl.metadata (2 kB)"]
    pip += ["  Downloading a-1.0-cp311-cp311-manylinux_2_28_x86_64.whl (888.1 MB)", "Using cached b-2.0.tar.gz (1 kB)"]
    pip += ["Downloading c_d-0.1.0-py2.py3-none-any.whl (17 MB)", "Installing collected packages: a, b", "Successfully"]
    call = f"source launch/lib.sh; printf '%s\\n' {shlex.join(pip)} | packages_named"
    done = subprocess.run(["bash", "-c", call], cwd=REPOSITORY, capture_output=True, text=True)
    named = ["a-1.0 (888.1 MB)", "b-2.0.tar.gz (1 kB)", "c_d-0.1.0 (17 MB)"]
    assert done.stdout.split("\n")[:3] == [f"  {package}" for package in named]
    assert "unpacking" in done.stdout.split("\n")[3]


def test_a_python_without_the_packages_is_refused():
    done = launch("gta2city_source_only.sh", "run.steps=1", PYTHON="/bin/false")
    assert done.returncode == 2
    assert "error: PYTHON=/bin/false is no Python that has the packages" in done.stderr


def test_seeds_of_one_stage_of_a_chain_are_refused(tmp_path):
    done = launch("seeds.sh", "experiments/mini/cycada_feature.yaml", "0", "1", RUNS=str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "starts from another run of seed 0" in done.stderr


@contextlib.contextmanager
def in_terminal(runs: Path, *settings: str, **variables: str) -> Iterator[tuple[int, int]]:
    """The script trains in a terminal: its process id and the terminal's other end."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "RUNS": str(runs)} | variables
    shell, terminal = pty.fork()
    if shell == 0:
        script = str(REPOSITORY / "launch/gta2city_source_only.sh")
        os.execvpe("bash", ["bash", script, *settings, *ENDLESS], environment)
    try:
        until = time.monotonic() + 120
        metrics = runs / "mini/source_only-seed0/metrics.jsonl"
        while not metrics.exists() or len(metrics.read_bytes().splitlines()) < 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield shell, terminal
    finally:
        for process in [pid for child in children(shell) for pid in (*children(child), child)] + [shell]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        os.close(terminal)


def end_of(shell: int, terminal: int) -> tuple[int, str]:
    """Exit code of the script and all that the terminal showed."""
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while data := os.read(terminal, 65536):
            shown += data
    return os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]), shown.decode()


def command_line(process: int) -> bytes:
    """Empty: it is dead."""
    path = Path(f"/proc/{process}/cmdline")
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGINT", "SIGTERM"])
def test_one_signal_saves_and_stops(how, processes, tmp_path, gta5_root, cityscapes_root):
    settings = overrides(gta5_root, cityscapes_root)
    with in_terminal(tmp_path / "runs", *settings, GPUS=processes) as (shell, terminal):
        if how == "Ctrl-C":
            os.write(terminal, b"\x03")
        else:
            os.kill(shell, signal.Signals[how])
        code, shown = end_of(shell, terminal)
    assert code == (143 if how == "SIGTERM" else 130)
    assert f"by {'SIGTERM' if how == 'SIGTERM' else 'SIGINT'}; all is saved" in shown
    assert "Traceback" not in shown
    run = tmp_path / "runs/mini/source_only-seed0"
    assert (run / "checkpoints/last.pt").exists()
    assert len(list((run / "logs").rglob("stdout.log"))) == (2 if processes == "2" else 0)


@pytest.mark.parametrize(
    ("name", "code", "again"), [("SIGUSR1", 75, True), ("SIGTERM", 143, True), ("SIGTERM", 143, False)]
)
def test_a_signal_before_training_queues_the_job_again(name, code, again, tmp_path):
    """SIGTERM only where Slurm makes room for another job."""
    programs = {
        "python": f': >"{tmp_path}/began"; sleep 1; exec "{sys.executable}" "$@"',
        "scontrol": f"""echo "$@" >>"{tmp_path}/asked"
            echo "PreemptTime={"2026-01-01" if again else "None"}"
            if [ "$1" = requeue ]; then kill -TERM $PPID; fi  # as Slurm may while it does so""",
    }
    for program, text in programs.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")} | {"RUNS": str(tmp_path / "runs")}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": f"{tmp_path}/python", "SLURM_JOB_ID": "7"}
    with subprocess.Popen(["bash", str(REPOSITORY / "launch/gta2city_source_only.sh")], env=environment) as shell:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        shell.send_signal(signal.Signals[name])
    assert shell.returncode == code
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked.count("requeue 7") == again
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_while_the_processes_start_is_not_lost(processes, tmp_path, gta5_root, cityscapes_root):
    """They are there and listen for nothing yet, or torchrun has yet to start them."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
    environment |= {"PYTHON": sys.executable, "RUNS": str(tmp_path / "runs"), "GPUS": processes}
    script = ["bash", str(REPOSITORY / "launch/gta2city_source_only.sh"), *overrides(gta5_root, cityscapes_root)]
    with subprocess.Popen([*script, *ENDLESS], env=environment) as shell:
        program = b"launch/torchrun.py" if processes == "2" else b"train"
        while not any(program in command_line(pid) for pid in children(shell.pid)):
            time.sleep(0.01)
        shell.send_signal(signal.SIGUSR1)
    assert shell.returncode == 75
    assert not (tmp_path / "runs/mini/source_only-seed0/metrics.jsonl").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_two_interrupts_stop_now(processes, tmp_path, gta5_root, cityscapes_root):
    """In the midst of an update of some seconds; after SIGUSR1, which waits for its end."""
    settings = [*overrides(gta5_root, cityscapes_root), "data.batch_size=150"]
    with in_terminal(tmp_path / "runs", *settings, GPUS=processes) as (shell, terminal):
        (child,) = children(shell)
        trainers = children(child) if processes == "2" else [child]
        os.kill(shell, signal.SIGUSR1)
        time.sleep(0.5)
        os.write(terminal, b"\x03")
        time.sleep(0.5)
        os.write(terminal, b"\x03")
        code, shown = end_of(shell, terminal)
    assert code == 130
    assert "interrupted; the same command continues" in shown
    assert not (tmp_path / "runs/mini/source_only-seed0/checkpoints/last.pt").exists()
    until = time.monotonic() + 10
    while any(map(command_line, trainers)):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_folder_that_cannot_be_written_is_named(processes, tmp_path):
    (tmp_path / "file").touch()
    done = launch("gta2city_source_only.sh", RUNS=str(tmp_path / "file/runs"), GPUS=processes)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
    assert str(tmp_path / "file/runs") in line


def test_a_full_disk_is_said_of_several_processes(tmp_path, gta5_root, cityscapes_root):
    runs = tmp_path / "disk"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(runs)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "RUNS": str(runs), "GPUS": "2"}
    script = ["bash", str(REPOSITORY / "launch/gta2city_source_only.sh"), *overrides(gta5_root, cityscapes_root)]
    try:
        with subprocess.Popen(
            [*script, *ENDLESS], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while not (runs / "mini/source_only-seed0/metrics.jsonl").exists():
                time.sleep(0.1)
            with contextlib.suppress(OSError), open(runs / "rest", "wb", buffering=0) as rest:
                while rest.write(bytes(4096)):
                    pass
            said = process.communicate(timeout=120)[1]
    finally:
        subprocess.run(["umount", str(runs)], check=False)
    assert process.returncode == 2
    assert f"error: {runs}: no space left" in said


def test_torchrun_called_directly_does_not_take_a_stop_for_the_end(tmp_path, gta5_root, cityscapes_root):
    settings = [*overrides(gta5_root, cityscapes_root), *ENDLESS, "run.time_limit=1s"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = ["-m", "da", "train", "experiments/mini/source_only.yaml", "--runs", str(tmp_path / "runs"), *settings]
    done = subprocess.run([*torchrun, *train], cwd=REPOSITORY, capture_output=True, text=True)
    assert "all is saved" in done.stdout + done.stderr
    assert done.returncode != 0


def test_the_scripts_can_be_called_by_their_names():
    scripts = [path for path in (REPOSITORY / "launch").glob("*.sh") if path.name != "lib.sh"]
    assert not [path.name for path in scripts if not os.access(path, os.X_OK)]


@pytest.mark.parametrize("missing", ["slurmctld", "slurmd", "sbatch", "munged", "shellcheck", "chromium", None])
def test_ci_installs_what_is_missing(missing, tmp_path):
    programs = {"slurmctld", "slurmd", "sbatch", "munged", "shellcheck", "chromium", "bash"} - {missing}
    for name in (*programs, "apt-get"):
        (tmp_path / name).write_text(f'#!/bin/sh\n: >"{tmp_path}/{name}.called"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    ci = [str(shutil.which("bash")), str(REPOSITORY / ".ci/run")]
    subprocess.run(ci, env={"PATH": str(tmp_path)}, check=True, capture_output=True)
    assert (tmp_path / "apt-get.called").exists() == (missing is not None)
    assert (tmp_path / "bash.called").exists()


def fine_tune(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`launch/finetune.sh` on a set of CamVid's classes."""
    write_set("camvid", tmp_path / "camvid")
    small = [word for word in SETTINGS if not word.startswith(("data.target", "model"))]
    settings = ["data.classes=camvid11", *small, "run.steps=2", "run.val_every=2", "method.head_steps=1"]
    variables = {"CAMVID_ROOT": str(tmp_path / "camvid"), "RUNS": str(tmp_path / "runs")}
    return launch("finetune.sh", *arguments, *settings, **variables)


def test_finetune_takes_the_network_of_what_it_starts_from(tmp_path, gta5_root, cityscapes_root):
    config = tiny("source_only", gta5_root, cityscapes_root, "model.dropout=0.3")
    state = {"segmenter": base.build(config).segmenter.state_dict()}
    start = {"step": 0, "modules": state, "config": json.dumps(config.model_dump(mode="json"))}
    checkpoint.save(tmp_path / "start.pt", start)
    done = fine_tune(tmp_path, str(tmp_path / "start.pt"), "camvid")
    assert done.returncode == 0, done.stderr
    assert "cls.4.weight, cls.4.bias, aux.4.weight, aux.4.bias begin anew" in done.stdout
    run = tmp_path / "runs/finetune/camvid-seed0"
    assert (run / "summary.json").exists()
    assert "dropout: 0.3" in (run / "config.yaml").read_text()
    assert "labels: null" in (run / "config.yaml").read_text()


def test_finetune_starts_from_an_encoder_and_described_folders(tmp_path, gta5_root, cityscapes_root):
    encoder = base.build(tiny("source_only", gta5_root, cityscapes_root)).segmenter.backbone
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    text = (REPOSITORY / "da/data/sets/camvid.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    shutil.copy(REPOSITORY / "da/classes/camvid11.yaml", tmp_path / "mine_classes.yaml")
    done = fine_tune(tmp_path, str(tmp_path / "encoder.pth"), str(tmp_path / "mine.yaml"), "model.head_channels=16")
    assert done.returncode == 0, done.stderr
    assert f"backbone from {tmp_path / 'encoder.pth'}" in done.stdout
    assert (tmp_path / "runs/finetune/mine-seed0/summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name what to start from and the data"),
        (["model.weights=package", "camvid"], "come before all settings"),
        (["/nowhere/run", "camvid"], "/nowhere/run: no such run, checkpoint or file of weights"),
        (["launch", "camvid"], "launch: no `last` checkpoint there"),
        (["package", "nothing"], "nothing: no file in da/data/sets"),
        (["package", "nothing.yaml"], "data describe FOLDER writes one"),
    ],
)
def test_finetune_refuses_what_it_cannot_start(arguments, said, tmp_path):
    done = launch("finetune.sh", *arguments, RUNS=str(tmp_path / "runs"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


SCRIPTS = sorted(path.name for path in (REPOSITORY / "launch").glob("gta2city_*.sh"))


@pytest.mark.parametrize("script", [*SCRIPTS, "finetune.sh"])
def test_help_is_the_header(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    assert done.stdout.count(f"  bash launch/{script} {'INIT DATA ' if script == 'finetune.sh' else ''}[") == 1
    assert "GPUS=4" in done.stdout
    assert "#" not in done.stdout + done.stderr
