"""YAML with `base:` files and dotted overrides -> frozen, checked sections. Knows no torch.

    files    `base: [a.yaml, b.yaml]` is read first, later files win, mappings merge, lists replace
    command  `section.key=value`, the value parsed as YAML, wins over every file
    paths    `${GTA5_ROOT}` and other environment variables that end in `_ROOT` are the only interpolation

Every room that reads settings defines them as a `Section` beside the code that reads them. All mistakes are
reported at once, each with its file, its key, what was expected and the nearest known key.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class UserError(Exception):
    """A mistake the user can mend. The command line prints it without a traceback and exits with code 2."""


class Section(BaseModel):
    """Base of every settings section: unknown keys are errors, types are strict, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Section)
COMMAND_LINE = "command line"


class _Loader(yaml.SafeLoader):
    """SafeLoader with its traps mended: `1e-4` is a number; `on`, `no` and dates are text; equal keys are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"{self.name}:{key_node.start_mark.line + 1}: key {key!r} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
_EXPONENT = r"[eE][-+]?[0-9]+"
_FLOAT = rf"^[-+]?([0-9][0-9_]*\.[0-9_]*({_EXPONENT})?|\.[0-9]+({_EXPONENT})?|[0-9]+{_EXPONENT}|\.(inf|nan))$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT, re.I), list("-+0123456789."))


def parse_yaml(text: str, name: str) -> Any:
    """Parse `text`; errors name the file `name` and the line."""
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise UserError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    finally:
        loader.dispose()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees: mappings merge, everything else (lists too) is replaced by `high`."""
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return out


class Tree:
    """A merged settings tree that remembers which file each key came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    def add(self, values: Mapping[str, Any], name: str) -> None:
        self.values = merge(self.values, values)
        self.origin |= dict.fromkeys(flatten(values), name)

    def where(self, key: str) -> str:
        """The file that set `key`, or one of its parents or children."""
        for candidate, name in reversed(self.origin.items()):
            if candidate == key or candidate.startswith(key + ".") or key.startswith(candidate + "."):
                return name
        return next(reversed(self.origin.values()), COMMAND_LINE)


def read_tree(files: Iterable[str | Path], overrides: Iterable[str] = ()) -> Tree:
    """Read YAML files (with their `base:` files) and `key=value` overrides into one tree.

    Raises:
        UserError: a missing file, bad YAML, a circular `base:`, a malformed override.
    """
    tree = Tree()
    for file in files:
        _add_file(tree, Path(file), ())
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            raise UserError(f"{COMMAND_LINE}: {text!r} is not of the form section.key=value")
        nested: Any = parse_yaml(value, f"{COMMAND_LINE} {key}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        tree.add(nested, COMMAND_LINE)
    tree.values = _interpolate(tree.values, tree)
    return tree


def _add_file(tree: Tree, path: Path, parents: tuple[Path, ...]) -> None:
    if path.resolve() in parents:
        raise UserError(f"{path}: `base:` files form a circle")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        by = f" (named by `base:` in {parents[-1]})" if parents else ""
        raise UserError(f"{path}: cannot be read{by}: {error.strerror}") from error
    values = parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    base = values.pop("base", [])
    for parent in [base] if isinstance(base, str) else base:
        _add_file(tree, path.parent / parent, (*parents, path.resolve()))
    tree.add(values, str(path))


def _interpolate(value: Any, tree: Tree, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _interpolate(v, tree, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_interpolate(v, tree, key) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        variable = match.group(1)
        if not variable.endswith("_ROOT"):
            raise UserError(
                f"{tree.where(key)}: {key}: ${{{variable}}} is not filled in; only variables that end in _ROOT are"
            )
        return os.environ.get(variable) or match.group(0)  # the data set tells what is expected of one that is not set

    return re.sub(r"\$\{(\w+)\}", replace, value)


def check(schema: type[S], tree: Tree) -> S:
    """Build `schema` from `tree`, or raise one UserError that lists every mistake, a line each."""
    try:
        return schema.model_validate_json(json.dumps(tree.values))
    except ValidationError as error:
        lines = [_explain(schema, tree, dict(e)) for e in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(schema: type[Section], tree: Tree, error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"] if not str(part).startswith("(")]  # a choice between kinds
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "known here: " + ", ".join(known)
        return f"{tree.where(key)}: {key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{tree.where('.'.join(location[:-1]) or key)}: {key}: required, but not given"
    got = json.dumps(error["input"])
    message = error["msg"].removeprefix("Value error, ")
    return f"{tree.where(key)}: {key}: {message[0].lower() + message[1:]}; got {got[:80]}"


def _known_keys(schema: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of the section at `path` inside `schema`."""
    for part in path:
        if part.isdigit():  # of a list
            continue
        inner = models_in(schema.model_fields[part].annotation) if part in schema.model_fields else []
        if not inner:
            return []
        schema = inner[0]
    return list(schema.model_fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type holds, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per key whose value differs: `method.lr: 0.1 -> 0.2`."""
    a, b = flatten(old), flatten(new)
    keys = [k for k in {**a, **b} if a.get(k, "(absent)") != b.get(k, "(absent)")]
    return [f"{k}: {a.get(k, '(absent)')} -> {b.get(k, '(absent)')}" for k in keys]
