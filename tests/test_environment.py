"""`python -m da environment`: what a fault report needs, and nothing that names a person, a host or a folder."""

import os
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import torch
from tiny import REPOSITORY

from da import environment
from da.engine import run_files


def facts(text: str) -> dict[str, str]:
    return dict(re.split("  +", line, maxsplit=1) for line in text.splitlines())


def test_versions_device_and_settings_and_nothing_private():
    folders = dict.fromkeys(("HOME", "GTA5_ROOT", "CUDA_HOME", "LD_LIBRARY_PATH"), "/home/alice/x")
    folders |= {"USER": "alice", "LOGNAME": "alice", "DA_CACHE": "alice"}
    settings = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "DA_TUNE": "0"}
    inherited = {k: v for k, v in os.environ.items() if not k.endswith("_ROOT")}
    done = subprocess.run(
        [sys.executable, "-m", "da", "environment"],
        env=inherited | folders | settings,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    found = facts(done.stdout)
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["threads"] == "1"
    assert found.items() >= settings.items()
    assert (found["CUDA_HOME"], found["DA_CACHE"]) == ("set", "set")
    assert found["roots set"] == "GTA5_ROOT"
    for private in ("alice", platform.node(), str(REPOSITORY), sys.prefix):
        assert private not in done.stdout


def test_it_says_what_a_run_records():
    found = facts(environment.describe())
    assert found["CPU"].startswith(run_files.device_name(torch.device("cpu")))
    assert found["da"].endswith(run_files.commit() or "not known")


def test_every_package_that_is_needed_is_told():
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.search(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)
    assert set(re.findall(r'"([\w-]+)', needed[1])) == {"torch", *environment.NEEDED}


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(environment, "NEEDED", ("no-such-package",))
    monkeypatch.setenv("PATH", "")  # neither git nor nvidia-smi
    found = facts(environment.describe())
    assert found["no-such-package"] == "absent"
    assert found["da"].endswith("commit not known")
    assert found["CUDA"].endswith("driver not found")


def test_gpus_are_named(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 570.86\necho 570.86\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"model {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80 * 2**30))
    found = facts(environment.describe())
    assert (found["GPU 0"], found["GPU 1"]) == ("model 0, 80.0 GiB", "model 1, 80.0 GiB")
    assert found["CUDA"].endswith("driver 570.86")
