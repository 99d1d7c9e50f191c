"""README and the pages of docs/: their links lead somewhere, and their commands are commands of this code."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from tiny import REPOSITORY

from da.cli import parser
from da.run import load_config
from third_party.kinds import KINDS

README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
ROOTS = ("GTA5_ROOT", "CITYSCAPES_ROOT", "SYNTHIA_ROOT", "VOC_ROOT", "ADE20K_ROOT")
STAGES = ["source_only", "cycada_pixel", "cycada_pixel_segmenter", "cycada_feature", "cycada_feature_only", "oracle"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


@pytest.fixture(autouse=True)
def roots(monkeypatch):
    for variable in ROOTS:
        monkeypatch.setenv(variable, f"/data/{variable}")


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of links and pictures inside the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z]+://", target)]


def anchors(page: Path) -> set[str]:
    """What a `#` may name: GitHub's form of the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = next(n for n in range(100) if (f"{plain}-{n}" if n else plain) not in found)
        found.add(f"{plain}-{number}" if number else plain)
    return found


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the page's shell blocks, comments left out."""
    found, begun = [], ""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        assert language, f"{page.name}: a code block without a language"
        for line in block.splitlines() if language == "bash" else ():
            begun += line.removesuffix("\\") + ("" if line.endswith("\\") else "\n")
            try:
                words = shlex.split(begun, comments=True) if begun.endswith("\n") else None
            except ValueError:  # the quotation goes on in the next line
                continue
            if words is not None:
                found += [words] if words else []
                begun = ""
        assert not begun, f"{page.name}: {begun}"
    return found


def parts(words: list[str]) -> list[list[str]]:
    """The commands between `&&`."""
    found: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word)
    return found


def settings(words: list[str]) -> list[str]:
    return [word for word in words if re.match(r"[a-z_.0-9]+=", word)]


@pages
def test_every_link_leads_somewhere(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert path.is_relative_to(REPOSITORY)
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}: {sorted(anchors(path))}"


def test_every_page_is_linked_and_readme_is_short():
    reached, todo = {README}, [README]
    while todo:
        page = todo.pop()
        for target in links(page):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path not in reached:
                reached.add(path)
                todo.append(path)
    assert not set(PAGES) - reached
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pages
def test_every_file_that_is_named_exists(page):
    for name in re.findall(r"`((?:da|docs|experiments|launch|tests|third_party)/[\w./-]*)`", prose(page)):
        assert "max_squares" in name or (REPOSITORY / name).exists(), f"{page.name}: {name}"


@pages
def test_every_command_is_one(page):
    """Known words, and where the experiment is shipped also known settings."""
    for line in commands(page):
        for words in parts(line):
            if words[:3] == ["python", "-m", "da"]:
                check_da(words[3:])
            elif words[:3] == ["python", "-m", "third_party.convert"]:
                assert words[3] in KINDS
            elif any(word.startswith("launch/") for word in words):
                check_launch(words)


@pages
def test_every_command_in_a_sentence_has_a_name(page):
    for rest in re.findall(r"`python -m da ([^`]*)`", prose(page)):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([*shlex.split(rest)[: 2 if rest.startswith("data") else 1], "--help"])
        assert ended.value.code == 0, rest


def check_da(words: list[str]) -> None:
    options, rest = parser().parse_known_args(words)  # SystemExit where it is none
    assert rest == settings(rest), words
    if options.command == "train":
        files = [word for word in options.words if word.endswith(".yaml")]
        assert files, words
        if all((REPOSITORY / file).exists() for file in files):
            load_config([str(REPOSITORY / file) for file in files], settings([*options.words, *rest]))
        else:
            assert all("max_squares" in file or file == "FILE.yaml" for file in files), words


def check_launch(words: list[str]) -> None:
    place = next(n for n, word in enumerate(words) if word.startswith("launch/"))
    before, script, given = words[:place], REPOSITORY / words[place], words[place + 1 :]
    assert script.exists(), words
    assert before[-1] == "bash" or "sbatch" in before, words
    text = script.read_text(encoding="utf-8")
    if script.name == "test.sh":
        return
    if script.name == "seeds.sh":
        load_config([str(REPOSITORY / given[0])], settings(given))
        assert all(word.isdigit() or "=" in word for word in given[1:]), words
        return
    if script.name == "finetune.sh":
        file = given[1] if given[1].startswith("experiments/") else "experiments/mini/finetune.yaml"
        load_config([str(REPOSITORY / file)], settings(given))
        assert "=" not in given[0] + given[1]
        assert all("=" in word for word in given[2:]), words
        return
    if script.name in ("ladder.sh", "few_labels.sh", "gpu_check.sh"):
        if script.name == "few_labels.sh":
            load_config([str(REPOSITORY / "experiments/mini/finetune.yaml")], settings(given))
        else:
            assert not given or (REPOSITORY / "experiments" / given[0]).is_dir(), words
        variables = [word.partition("=")[0] for word in before if "=" in word]
        assert all(re.search(rf"^#   {variable}=", text, re.M) for variable in variables), words
        return
    assert all("=" in word for word in given), words
    if script.name == "gta2city_cycada.sh":
        assert f'stages="{" ".join(STAGES)}"' in text
        files = {stage: stage for stage in STAGES}
    elif script.name == "selfsup.sh":
        tasks = re.findall(r"^TASKS=.*:-([\w ]+)", text, re.M)[0].split()
        files = {task: task for task in tasks} | {"": "finetune"}
    else:
        chosen = dict(word.split("=", 1) for word in before if "=" in word and not word.startswith("-"))
        own = re.search(r'^train_table gta2city "[^"]*" (\w+)', text, re.M)
        assert own, script
        files = {"": chosen.get("EXPERIMENT", own[1])}
    for stage, file in files.items():
        own_words = [word.removeprefix(f"{stage}:") for word in given if ":" not in word.partition("=")[0]]
        own_words += [word.partition(":")[2] for word in given if word.startswith(f"{stage}:") and stage]
        if stage == "oracle":  # whose source is the target's data set
            own_words = [w for w in own_words if not w.startswith("data.source") or f"oracle:{w}" in given]
        load_config([str(REPOSITORY / f"experiments/mini/{file}.yaml")], own_words)


@pages
def test_yaml_blocks_are_settings(page):
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "yaml":
            keys = set(yaml.safe_load(block))
            assert keys <= {"base", "trainer", "method", "data", "model", "run", "eval", "init", "loss"}, keys


def test_tables_link_each_method_and_the_licence_is_said():
    files = {p.stem for p in (REPOSITORY / "da/trainers").glob("*.py")}
    methods = {file for file in files if not file.startswith(("__", "base"))}
    assert methods <= {Path(target).stem for target in links(README)}
    assert (REPOSITORY / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{citation["version"]}"' in project
    assert citation["license"] == "MIT"
