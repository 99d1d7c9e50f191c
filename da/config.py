"""YAML with `base:` files and dotted overrides -> frozen, checked sections. Knows no torch.

    files    `base: [a.yaml, b.yaml]` is read first, later files win, mappings merge, lists replace
    command  `section.key=value` wins over every file, `section.0.key=value` over an entry of a list; a value that
             begins with `[`, `{` or a quote is YAML, any other is taken as it is typed: a number, true, false, null, or
             text, also where the text looks like a number
    paths    `${GTA5_ROOT}` and other environment variables that end in `_ROOT` are the only interpolation

Every room that reads settings defines them as a `Section` beside the code that reads them. All mistakes are
reported at once, each with its file, its key, what was expected and the nearest known key.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class UserError(Exception):
    """A mistake the user can mend. The command line prints it without a traceback and exits with code 2."""


class Section(BaseModel):
    """Base of every settings section: unknown keys are errors, types are strict, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)
Pixels = Annotated[int, Field(ge=1, le=2**15)]  # width or height of an image
# The YAML files of experiments and tables: beside the package in a checkout, inside it where it is installed.
_INSTALLED = Path(__file__).with_name("experiments")
EXPERIMENTS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "experiments"
COMMAND_LINE = "command line"


LARGEST = 1e30  # number that is not whole in a setting
MOST_FILES = 100  # that one experiment is read from
MOST_NODES = 20_000  # in a YAML file, each alias counted as what it stands for
_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = [_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")]


class _Loader(yaml.SafeLoader):
    """SafeLoader with its traps mended: `1e-4` is a number; `on`, `no`, dates, times, `010` and `1_000` are text; equal
    keys, and aliases that multiply, are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"{self.name}:{key_node.start_mark.line + 1}: key {key!r} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.removeprefix(_TAG) in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"^(?:0|-?[1-9][0-9]*)$"), list("-0123456789"))
_EXPONENT = r"[eE][-+]?[0-9]+"
_FLOAT = rf"^[-+]?([0-9]+\.[0-9]*({_EXPONENT})?|\.[0-9]+({_EXPONENT})?|[0-9]+{_EXPONENT}|\.(inf|nan))$"
_Loader.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT, re.I), list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader`, or another reader of YAML, would not take for text."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in yaml.SafeDumper.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers
}


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML that `parse_yaml` reads back as `values`."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def read_text(path: Path) -> str:
    """A text that a person wrote: UTF-8, with or without a byte-order mark, any line ends.

    Raises:
        UserError: it is in another encoding.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def parse_yaml(text: str, name: str) -> Any:
    """Parse `text`; errors name the file `name` and the line."""
    try:
        loader = _Loader(text)
        loader.name = name
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, name, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{name}{line}: not valid YAML: {reason}") from error
    except RecursionError as error:
        raise UserError(f"{name}: not valid YAML: nested too deep") from error
    except (ValueError, TypeError) as error:  # a number of thousands of digits; a list as a key
        raise UserError(f"{name}: not valid YAML: {error}") from error


def _count(node: yaml.Node, name: str, known: dict[int, int]) -> int:
    """The nodes in `node`, each alias counted as what it stands for.

    Raises:
        UserError: there are more than `MOST_NODES`, a node holds itself, or a tag is not one of plain values.
    """
    line = f"{name}:{node.start_mark.line + 1}"
    if node.tag not in _KNOWN_TAGS:
        raise UserError(f"{line}: the tag {node.tag.replace(_TAG, '!!')} is not known here; leave it out")
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # as long as it is counted
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        below = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_count(part, name, known) for part in below)
    if known[id(node)] > MOST_NODES:
        raise UserError(f"{line}: more than {MOST_NODES} values, as of aliases that multiply; write fewer")
    return known[id(node)]


def parse_value(text: str, name: str) -> Any:
    """The value of `key=text` on the command line, where `#` and `:` are nothing special."""
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        return parse_yaml(text, name)
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return text if tag == _TAG + "merge" else loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}, "c": [{"d": 2}]}` -> `{"a.b": 1, "c.0.d": 2}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees: mappings merge, everything else (lists too) is replaced by `high`, of which numbers as keys name
    the entries of a list: `{"a": {"0": {"b": 1}}}`."""
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            out[key] = merge(below, value)
        elif isinstance(value, Mapping) and isinstance(below, list) and _names_entries(value, below):
            entries = merge({str(n): entry for n, entry in enumerate(below)}, {str(n): v for n, v in value.items()})
            out[key] = list(entries.values())
        else:
            out[key] = value
    return out


def _names_entries(value: Mapping[Any, Any], of: list[Any]) -> bool:
    return bool(value) and value.keys() <= {*range(len(of)), *map(str, range(len(of)))}


class Tree:
    """A merged settings tree that remembers which file each key came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.typed: dict[str, str] = {}  # values of the command line, as they were typed
        self.files = 0

    def add(self, values: Mapping[str, Any], name: str) -> None:
        self.values = merge(self.values, values)
        self.origin |= dict.fromkeys(flatten(values), name)

    def where(self, key: str) -> str:
        """The file that set `key`, or one of its parents or children."""
        for candidate, name in reversed(self.origin.items()):
            if candidate == key or candidate.startswith(key + ".") or key.startswith(candidate + "."):
                return name
        return next(reversed(self.origin.values()), COMMAND_LINE)


def experiment_file(name: str) -> Path:
    """The file that a command names: a path, or a shipped one from wherever the command is called:
    `experiments/mini/source_only.yaml`."""
    path = Path(name)
    parts = path.parts[1:] if path.parts[:1] == ("experiments",) else path.parts
    inside = EXPERIMENTS.joinpath(*parts)
    return inside if not path.exists() and not path.is_absolute() and inside.is_file() else path


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
        tree.add(_nested(key, parse_value(value, f"{COMMAND_LINE}: {key}")), COMMAND_LINE)
        tree.typed[key] = value.strip()
    tree.values = _interpolate(tree.values, tree)
    return tree


def _add_file(tree: Tree, path: Path, parents: tuple[Path, ...]) -> None:
    if path.resolve() in parents:
        raise UserError(f"{path}: `base:` files form a circle")
    tree.files += 1
    if tree.files > MOST_FILES:
        raise UserError(f"{path}: more than {MOST_FILES} files are read through `base:`; name each once")
    try:
        text = read_text(path)
    except OSError as error:
        by = f" (named by `base:` in {parents[-1]})" if parents else ""
        there = [found.name for found in experiment_file(str(path)).parent.glob("*.yaml")]
        near = difflib.get_close_matches(path.name, there, 1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise UserError(f"{path}: cannot be read{by}: {error.strerror}{hint}") from error
    values = parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines at the top level")
    base = values.pop("base", [])
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list) or not all(isinstance(parent, str) and parent for parent in bases):
        raise UserError(f"{path}: base: give the path of a file, or a list of them; got {json.dumps(base)[:80]}")
    for parent in bases:
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
    for key, value in flatten(tree.values).items():
        if problem := _problem(value):
            raise UserError(f"{tree.where(key)}: {key}: {problem}")
    try:
        return schema.model_validate_json(json.dumps(tree.values))
    except ValidationError as error:
        mistakes = error.errors()
    keys = [".".join(map(str, mistake["loc"])) for mistake in mistakes if mistake["type"] == "string_type"]
    text = {key: tree.typed[key] for key in keys if tree.typed.get(key) and tree.where(key) == COMMAND_LINE}
    if not text:
        raise UserError("\n".join(_explain(schema, tree, dict(mistake)) for mistake in mistakes))
    for key, value in text.items():
        tree.values = merge(tree.values, _nested(key, value))
        del tree.typed[key]
    return check(schema, tree)


def read_named(schema: type[S], path: Path) -> dict[str, S]:
    """A YAML file of which each key names one `schema`.

    Raises:
        UserError: the file is absent or malformed; the message names the key.
    """
    found = {}
    for name, values in read_tree([path]).values.items():
        entry = Tree()
        entry.add(values, f"{path}: {name}")
        found[name] = check(schema, entry)
    return found


def _problem(value: Any) -> str:
    """What no setting may hold, whatever its type; "" where there is no such thing."""
    if isinstance(value, list):
        return next(filter(None, map(_problem, value)), "")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of more than 64 bits"
    if isinstance(value, float) and LARGEST < abs(value) < math.inf:  # pydantic speaks of infinity
        return f"a number beyond {LARGEST:g}, which single precision can hardly hold"
    if isinstance(value, str) and "\0" in value:
        return "holds a NUL character"
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        return "holds a name that is not UTF-8; rename it, or make a link to it under another name"
    return ""


def _nested(key: str, value: Any) -> Any:
    """`a.b`, 1 -> `{"a": {"b": 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


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
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # of several sections together; the message begins with the one to change
        return f"{tree.where(message.partition(':')[0])}: {message}"
    got = json.dumps(error["input"])
    return f"{tree.where(key)}: {key}: {message[0].lower() + message[1:]}; got {got[:80]}"


def _known_keys(schema: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of the section at `path` inside `schema`."""
    of_names = False
    for part in path:
        if part.isdigit() or of_names:  # of a list, or a name that the user chose
            of_names = False
            continue
        field = schema.model_fields.get(part)
        inner = models_in(field.annotation) if field else []
        if not field or not inner:
            return []
        of_names = get_origin(field.annotation) is dict
        schema = inner[0]
    return list(schema.model_fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type holds, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def expanded(path: str) -> Path:
    """A path that a user gave, with `~` filled in.

    Raises:
        UserError: this user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: this user has no home folder; write the path without ~") from error


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per key whose value differs: `method.lr: 0.1 -> 0.2`."""
    a, b = flatten(old), flatten(new)
    keys = [k for k in {**a, **b} if a.get(k, "(absent)") != b.get(k, "(absent)")]
    return [f"{k}: {a.get(k, '(absent)')} -> {b.get(k, '(absent)')}" for k in keys]
