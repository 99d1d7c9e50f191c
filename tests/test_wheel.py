"""The package is whole where it is installed: class lists, descriptions, experiments and tables come with it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny import REPOSITORY


@pytest.mark.slow
def test_a_wheel_carries_what_the_commands_need(tmp_path: Path):
    pytest.importorskip("setuptools", reason="needs setuptools to build a wheel")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(source)], check=True)
    (wheel,) = tmp_path.glob("da-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
        entry = next(archive.read(n).decode() for n in names if n.endswith("entry_points.txt"))
    for folder in ("da/classes", "da/data/sets", "experiments"):
        shipped = {p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / folder).rglob("*.yaml")}
        inside = {name.removeprefix("da/") if folder == "experiments" else name for name in names}
        assert shipped <= inside, shipped - inside
    assert "da = da.__main__:main" in entry
    assert not any(name.startswith("tests/") for name in names)

    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for words in (
        ["train", "experiments/mini/source_only.yaml", "data.classes=cityscapes19", "--check"],
        ["report", "--table", "gta2city", "-o", "report", "--pictures", "0"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from da.__main__ import main; main()", *words],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (empty / "report/index.html").exists()
