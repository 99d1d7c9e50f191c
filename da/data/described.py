"""Data sets as descriptions: a short YAML says where images and labels lie, how splits are listed, what labels hold.

The shipped ones are the files of `da/data/sets`; `da/data/sets/folders.yaml` explains every key. Another one is named
by its path: `data.source.dataset=my_set.yaml`.
"""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict

from da.config import Section, Tree, UserError, check, expanded, parse_yaml, read_text
from da.data import folders
from da.data.folders import IMAGE_SUFFIXES, DataSet, Sample
from da.labels import LabelSpace, Scheme

SHIPPED = Path(__file__).with_name("sets")
PLAIN = "folders"  # the description of two plain folders, which may be anybody's
LOSSY = (".jpg", ".jpeg", ".webp")  # formats that change a label's values
_WORD = re.compile(r"\{(\w+)\}")


class Split(Section):
    """One split: values of placeholders, and what differs from the other splits."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    list: str | None = None  # a file below the root with one name a line, or image and label
    images: str | None = None
    labels: str | None = None


class Description(Section):
    """A description file; `da/data/sets/folders.yaml` explains every key."""

    root: str = ""
    tree: str | None = None
    images: str
    labels: str | None = None
    splits: dict[str, Split] = {"all": Split()}
    ids: Any = None
    leave_out: tuple[str, ...] = ()


def shipped() -> list[str]:
    """Names of the descriptions that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read(path: Path) -> Description:
    """A description file.

    Raises:
        UserError: it cannot be read, or has mistakes, a line each.
    """
    try:
        values = parse_yaml(read_text(path), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    tree = Tree()
    tree.add(values, str(path))
    found = check(Description, tree)
    if not _are_ids(found.ids):
        raise UserError(
            f"{path}: ids: give a scheme of the class list, or {{name of the class list: scheme, or {{class: value}}}}"
        )
    for name, split in found.splits.items():
        images, labels = split.images or found.images, split.labels or found.labels or ""
        words = set(_WORD.findall(images))
        if "name" not in words:
            raise UserError(f"{path}: splits.{name}: the pattern of its images has no {{name}}: {images}")
        if unknown := set(_WORD.findall(labels)) - words:
            raise UserError(f"{path}: splits.{name}: labels: {{{min(unknown)}}} does not occur in images: {images}")
    return found


def _are_ids(ids: Any) -> bool:
    if ids is None or isinstance(ids, str):
        return True
    return isinstance(ids, dict) and all(isinstance(of_list, str | dict) for of_list in ids.values())


def find(name: str) -> DataSet:
    """The data set of a shipped description, or of the description file `name`.

    Raises:
        UserError: neither, or mistakes in the file.
    """
    if name in shipped():
        path = SHIPPED / f"{name}.yaml"
    elif folders.is_description(name):
        path = expanded(name)
    else:
        raise UserError(
            f"dataset: {name!r} is neither a description file (.yaml) nor one of {', '.join(folders.known())}"
        )
    return _data_set(name, path, read(path))


def _data_set(name: str, path: Path, of: Description) -> DataSet:
    tree = of.tree or "  ".join(filter(None, (of.images, of.labels)))
    usual = [split for split in ("train", "val") if split in of.splits]

    @functools.lru_cache(maxsize=8)
    def scheme(classes: LabelSpace) -> Scheme:
        if of.ids is None:
            return classes.scheme(classes.stored_as)
        if isinstance(of.ids, str):
            return classes.scheme(of.ids)
        if classes.name not in of.ids:
            known = ", ".join(of.ids)
            raise UserError(f"{path}: ids: none for the classes {classes.name}, only for {known}; add them")
        stored = of.ids[classes.name]
        where = f"{path}: ids.{classes.name}"
        return classes.scheme(stored) if isinstance(stored, str) else classes.spelled_out(stored, where)

    return DataSet(
        name=name,
        splits=tuple(of.splits),
        checked=dict.fromkeys([*usual, *(["all"] if name == PLAIN else [])] or of.splits, True),
        root=of.root,
        tree=tree,
        scan=functools.partial(_scan, of, path, tree),
        scheme=scheme,
        read_stored=_read_stored,
        lists=tuple(split.list for split in of.splits.values() if split.list),
        own=name == PLAIN or name not in shipped(),
        splits_may_lack=name == PLAIN,
        version=hashlib.sha256(of.model_dump_json().encode()).hexdigest()[:8],
        everything=functools.partial(_everything, of, path, tree),
    )


def _read_stored(path: Path) -> np.ndarray:
    if path.suffix.lower() in LOSSY:
        raise UserError(f"{path}: {path.suffix} is a lossy format, which changes ids; save labels as PNG")
    return folders.read_stored(path)


def _scan(of: Description, path: Path, tree: str, root: Path, split: str, with_labels: bool = True) -> list[Sample]:
    chosen = of.splits.get(split, Split())
    images, labels = chosen.images or of.images, chosen.labels or of.labels
    if with_labels and labels is None:
        raise UserError(
            f"{path}: split {split} has no labels; name another split, or add `labels:` (a target needs none: "
            "data check --images-only)"
        )
    names = chosen.list if split in of.splits else split
    if chosen.list and not folders.list_file(root, chosen.list) and (beside := path.parent / chosen.list).is_file():
        names = str(beside)
    if names and (pairs := _pairs(root, names)):
        return [sample if with_labels else sample._replace(label=None) for sample in pairs]
    fixed = {key: str(value) for key, value in (chosen.model_extra or {}).items()}
    found = list(_walk(root, images, fixed))
    if not found:
        raise folders.wrong_root(root, f"no images {_filled(images, fixed)}", tree)
    called = _names(found)
    listings = _Listings()
    samples = [
        Sample(name, image, listings.find(root / _filled(labels or "", words)) if with_labels else None)
        for name, (words, image) in zip(called, found)
        if name not in of.leave_out
    ]
    if names is None:
        return samples
    return folders.select(samples, folders.read_list(root, names, tuple(of.splits)), root, names)


def _everything(of: Description, path: Path, tree: str, root: Path) -> list[Sample]:
    """The labelled images of all splits, whatever their lists name."""
    found: dict[Path, Sample] = {}
    for split in of.splits.values():
        whole = of.model_copy(update={"splits": {"all": split.model_copy(update={"list": None})}})
        with contextlib.suppress(UserError):  # a split that is not there, or has no labels
            found |= {sample.image: sample for sample in _scan(whole, path, tree, root, "all")}
    return list(found.values())


def _filled(pattern: str, words: Mapping[str, str]) -> str:
    return _WORD.sub(lambda match: words.get(match[1], match[0]), pattern)


def _names(found: list[tuple[dict[str, str], Path]]) -> list[str]:
    """What each image is called: its {name}, or all placeholders where two share it."""
    short = [words["name"] for words, _ in found]
    return short if len(set(short)) == len(short) else ["-".join(words.values()) for words, _ in found]


def _walk(folder: Path, pattern: str, fixed: Mapping[str, str]) -> Iterator[tuple[dict[str, str], Path]]:
    """The files below `folder` that fit a pattern, in the order of their names, each with its placeholders' values."""
    part, _, rest = _filled(pattern, fixed).partition("/")
    here = folder / part
    if rest and not _WORD.search(part):
        if here.is_dir():
            yield from _walk(here, rest, fixed)
        return
    form = _expression(part, is_file=not rest)
    names = sorted(n for n in folders.files_in(folder) if form.fullmatch(n))
    if not rest and names:
        folders.require_files(folder, names)
    for name in names:
        match = form.fullmatch(name)
        assert match
        words = match.groupdict()
        if rest:
            if (folder / name).is_dir():
                yield from ((words | more, path) for more, path in _walk(folder / name, rest, {**fixed, **words}))
        elif not (folder / name).is_dir():
            yield {**fixed, **words}, folder / name


def _expression(part: str, is_file: bool) -> re.Pattern[str]:
    """A component of a pattern; the suffix `.*` is that of any picture, and suffixes may be written in capitals."""
    base, dot, suffix = part.rpartition(".") if is_file else (part, "", "")
    pieces = _WORD.split(base if dot else part)
    text = "".join(f"(?P<{piece}>.+)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))
    if not dot:
        return re.compile(text)
    ends = "|".join(re.escape(s[1:]) for s in IMAGE_SUFFIXES) if suffix == "*" else re.escape(suffix)
    return re.compile(rf"{text}\.(?i:{ends})")


class _Listings:
    """Label files by name, each folder listed once."""

    def __init__(self) -> None:
        self.by_folder: dict[Path, dict[str, str]] = {}

    def find(self, path: Path) -> Path:
        """The file that a filled pattern means: with any picture's suffix where it ends in `.*`, a PNG first, and in
        small or capital letters; a path that does not exist where there is none."""
        if path.parent not in self.by_folder:
            self.by_folder[path.parent] = {name.lower(): name for name in folders.files_in(path.parent)}
        there = self.by_folder[path.parent]
        stem = path.name.removesuffix(".*")
        endings = IMAGE_SUFFIXES if stem != path.name else ("",)
        found = next((there[(stem + end).lower()] for end in endings if (stem + end).lower() in there), None)
        return path.with_name(found or stem + endings[0])


def _pairs(root: Path, split: str) -> list[Sample]:
    """The samples of a list of two columns, image and label; empty where the list has one column.

    Raises:
        UserError: a line of the list names files elsewhere than below the root.
    """
    path = folders.list_file(root, split)
    lines = folders.read_lines(path) if path else []
    columns = [_columns(line) for line in lines]
    if not path or not all(len(parts) == 2 for parts in columns):
        return []
    samples = [Sample("", *(_below(root, part, path) for part in parts)) for parts in columns]
    names = [folders.stem(s.image.name) for s in samples]
    if len(set(names)) < len(names):
        names = [folders.stem(s.image.relative_to(root).as_posix()).replace("/", "-") for s in samples]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: {max(names, key=names.count)} stands there twice; name it once")
    return [s._replace(name=name) for s, name in zip(samples, names)]


def _columns(line: str) -> list[str]:
    """Image and label, parted by a tab, a comma or a space; the whole line where it does not name two pictures."""
    for separator in ("\t", ",", None):
        parts = [part.strip() for part in line.split(separator)]
        if len(parts) == 2 and all(part.lower().endswith(IMAGE_SUFFIXES) for part in parts):
            return parts
    return [line]


def _below(root: Path, name: str, path: Path) -> Path:
    """A file of a list, whose leading slash may mean the root."""
    given = Path(name.replace("\\", "/"))
    if given.is_absolute():
        here = Path(os.path.abspath(root))
        inside = root / (given.relative_to(here) if given.is_relative_to(here) else name.lstrip("/"))
        if os.path.exists(inside):
            return inside
        raise UserError(
            f"{path}: {name} lies outside of {root}, perhaps on another machine; write paths from {root} on"
        )
    return root / given
