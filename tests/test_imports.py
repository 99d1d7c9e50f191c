"""The direction of imports between rooms (README, "Where things are"), read from the source itself."""

import ast
from pathlib import Path

import da

ROOT = Path(da.__file__).parent

# room -> project rooms it may import besides itself
ALLOWED = {
    "labels": {"config"},
    "config": set(),
    "kernels": {"labels"},
    "losses": {"config", "labels", "kernels"},
    "supervised": {"config", "labels", "losses"},
    "data": {"config", "labels", "tune"},
    "nets": {"config", "labels"},
    "engine": {"config", "labels"},
    "evaluation": {"config", "labels"},
    "comparison": {"config", "labels", "evaluation"},
    "experiment": {"config", "data", "engine", "evaluation", "nets", "supervised"},
    "trainers": {"config", "labels", "losses", "supervised", "data", "nets", "engine", "evaluation", "experiment"},
    "trial": {"data", "engine", "trainers"},
    "pictures": {"config", "labels", "data", "nets", "engine", "evaluation", "trainers"},
    "pretraining": {"config", "data", "nets", "engine", "evaluation", "trainers"},
    "run": {"config", "labels", "data", "nets", "engine", "evaluation", "trainers", "trial", "pictures", "pretraining"},
    "ensemble": {"config", "engine", "run", "trainers"},
    "evaluate": {"config", "labels", "data", "engine", "evaluation", "run", "trainers", "ensemble"},
    "pseudo_labels": {"config", "labels", "data", "engine", "evaluation", "run", "ensemble"},
    "translate": {"config", "data", "engine", "nets", "run", "trainers"},
    "report": {"config", "engine", "comparison", "run", "trainers"},
    "predict": {"config", "labels", "data", "engine", "evaluation", "run", "ensemble"},
    "export": {"config", "labels", "engine", "evaluation", "nets", "run", "trainers"},
    "environment": {"data", "engine"},
    "bench": {"config", "labels", "losses", "supervised", "data", "nets", "engine", "evaluation", "trainers", "run"},
    "gpu_check": {"config", "data", "engine", "trainers", "run", "bench", "environment"},
    "cli": {
        "config",
        "labels",
        "data",
        "engine",
        "environment",
        "evaluation",
        "bench",
        "gpu_check",
        "evaluate",
        "export",
        "pictures",
        "predict",
        "pseudo_labels",
        "report",
        "run",
        "trainers",
        "translate",
    },
    "tune": set(),
    "__main__": {"cli", "tune"},
    "__init__": set(),
}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files() -> dict[Path, str]:
    return {p: p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")}


def test_rooms_import_only_what_the_table_allows():
    wrong = []
    for path, own in files().items():
        for module in imports(path):
            if module.split(".")[0] == "da" and room(module) not in ALLOWED[own] | {own, "__init__"}:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_da_never_imports_third_party_and_trainers_stay_apart():
    wrong = []
    for path, own in files().items():
        for module in imports(path):
            if module.startswith("third_party"):
                wrong.append(f"{path}: {module}")
            if own != "trainers":
                continue
            other_trainer = module.startswith("da.trainers.") and not module.split(".")[2].startswith("base")
            if module.startswith("torch.distributed") or other_trainer:
                wrong.append(f"{path}: {module}")
    assert not wrong


def test_config_and_labels_know_no_torch():
    for name in ("config.py", "labels.py", "cli.py"):
        top = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
        modules = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module for n in top if isinstance(n, ast.ImportFrom)}
        assert not any(m.split(".")[0] in {"torch", "torchvision"} for m in modules), name


def test_only_the_logging_room_prints():
    for path, own in files().items():
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        printing = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not printing or own == "cli", path  # cli prints errors to stderr


def test_trainers_are_short_and_cite_their_paper():
    for path in (ROOT / "trainers").glob("*.py"):
        if path.stem == "__init__" or path.stem.startswith("base"):
            continue
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 200, path
        opening = ast.get_docstring(ast.parse(text))
        assert "Differs from the authors' code" in opening, path
        assert f"python -m da train experiments/mini/{path.stem}" in opening, path
        assert "print(" not in text, path
