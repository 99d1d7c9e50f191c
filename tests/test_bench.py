"""The bench command at tiny sizes, what it measures, and the process settings that it is to show."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from tiny import REPOSITORY, overrides

from da import bench
from da.cli import main


@pytest.mark.slow
def test_command_writes_every_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DA_CACHE", raising=False)
    file = tmp_path / "b.json"
    assert main(["bench", "all", "--small", "--rounds", "2", "--device", "cpu", "--json", str(file)]) == 0
    assert "DA_CACHE" not in os.environ
    report = json.loads(file.read_text())
    rows = report["rows"]
    assert len({row["comparison"] for row in rows}) == sum(len(c) for c in bench.COMPARISONS.values())
    for row in rows:
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert report["settings"]["small"] is True
    assert {"fp32", "bf16"} == set(report["matmul_flops_per_second"])
    steps = [row for row in rows if "PSPNet" in row["comparison"] and "segmentation_models" not in row["variant"]]
    assert all(row["model_flops"] > 1e9 and row["peak_share"] > 0 for row in steps)
    assert all(row["images_per_second"] == pytest.approx(2e3 / row["min_ms"]) for row in steps)  # batch 2
    out = capsys.readouterr().out
    assert all(row["variant"] in out for row in rows)


def test_variants_take_turns_and_ratios_are_to_the_first(monkeypatch):
    """On a clock of its own, which no other work slows down."""
    order, clock = [], [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def variant(name, seconds):
        def call():
            order.append(name)
            clock[0] += seconds

        return call

    bench_run = bench.Bench(torch.device("cpu"), rounds=3)
    bench_run.compare("sleep", {"long": variant("long", 0.04), "short": variant("short", 0.01)})
    assert order[-9:] == ["long", "short", "short"] * 3  # a turn lasts 20 ms
    first, second = bench_run.rows  # per call
    assert first.speed == 1
    assert second.speed == pytest.approx(4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_extra_memory_is_the_peak_of_the_call():
    held = bench.extra_memory(lambda: torch.ones(50 * bench.MIB // 4).sum(), torch.device("cpu"))
    if held is None:
        pytest.skip("the kernel does not reset the high-water mark")
    assert 45 < held < 60


def test_missing_packages_are_noted():
    bench_run = bench.Bench(torch.device("cpu"), 1)
    assert not bench_run.optional("no_such_package")
    assert "no_such_package" in bench.table(bench_run)


def test_help_is_quick_and_loads_no_torch():
    code = "import sys, da.cli; da.cli.parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "da", "--help"], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.5


@pytest.mark.slow
def test_training_begins_within_ten_seconds(gta5_root, cityscapes_root, tmp_path):
    mini = "experiments/mini/source_only.yaml"
    words = ["train", mini, *overrides(gta5_root, cityscapes_root), "data.workers=2", "--runs", str(tmp_path)]
    seconds = []
    for seed in range(3):
        began = time.monotonic()
        command = [sys.executable, "-m", "da", *words, f"seed={seed}"]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert any(line.startswith("step 1/") for line in process.stdout)
            seconds.append(time.monotonic() - began)
            process.kill()
    assert min(seconds) < 10


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"DA_TUNE": "0"}, "None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "5"}, "5")],
)
def test_thread_settings_can_be_switched_off(given, expected):
    names = ("DA_TUNE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    code = "import os; from da.tune import tune; tune(); print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_blocks_stay_with_the_process():
    code = (
        "from da.tune import tune; tune()\n"
        "import numpy, resource\n"
        "for _ in range(50): numpy.zeros(1, numpy.uint8); numpy.empty(64 << 20, numpy.uint8).fill(1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    faults = {}
    for switch in ("0", "1"):
        environment = os.environ | {"DA_TUNE": switch, "NUMPY_MADVISE_HUGEPAGE": "0"}  # faults of 4 KiB
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True)
        faults[switch] = int(done.stdout)
    assert faults["1"] < faults["0"] / 2
