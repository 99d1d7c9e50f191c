"""The label space of a run as a value: class names and colours, groups, subsets, and how label files store them.

A label space is read from a short YAML: one that is shipped in `da/classes`, named by its stem, or any other file.
`da/classes/binary.yaml` explains every key. Its classes are numbered in the order of the file: the trainIds 0 to n - 1,
n from 2 to 255. Every other pixel is `IGNORE`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from da.config import Section, Tree, UserError, check, expanded, read_tree

IGNORE = 255  # the trainId of pixels that belong to no class
UNKNOWN = 254  # mark in a scheme's table: a stored value that it does not know
MAX_CLASSES = 255
SHIPPED = Path(__file__).with_name("classes")
DEFAULT = "cityscapes19"
TRAIN_IDS = "trainids"  # a scheme of every label space: the class numbers
COLORS = "colors"  # another: the classes' own colours

_Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[_Channel, _Channel, _Channel]  # RGB


class _Class(Section):
    """A class: its colour, and a column per scheme: the stored value, or several, or the colour or colours."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    color: Color


class _Without(Section):
    without: tuple[str, ...]


class _Scheme(Section):
    """What the columns of a scheme leave open."""

    title: str | None = None  # what messages call its values; default: the scheme's name
    colors: bool = False  # label files hold RGB colours instead of values
    void: Any = ()  # stored values that are no class: numbers, ranges such as 0-34, colours, or `rest`: all others


class _File(Section):
    classes: dict[str, _Class]
    groups: dict[str, tuple[str, ...]] = {}
    subsets: dict[str, tuple[str, ...] | _Without] = {}
    schemes: dict[str, _Scheme] = {}
    stored_as: str = TRAIN_IDS
    ignore_color: Color = (0, 0, 0)


class Scheme:
    """How label files store the classes: by numbers from 0 to 255, or by RGB colours.

    Attributes:
        title: what its values are called, such as "Cityscapes ids".
        classes: trainIds that it stores.
        table: (256,) uint8, stored value -> trainId, `IGNORE`, or `UNKNOWN` where the scheme has no such value; None
            where colours are stored.
        known: (256,) bool, the stored values that the scheme has.
        colors: packed RGB colour (see `pack`) -> trainId or `IGNORE`; empty where numbers are stored.
        rest: what every other colour is, `IGNORE` or `UNKNOWN`.
        stored: what is written for a trainId, (256,) uint8 or (256, 3) RGB; for `IGNORE` the first void value.
    """

    def __init__(self, title: str, classes: Mapping[int, Sequence[Any]], void: Sequence[Any], rest: bool, rgb: bool):
        self.title = title
        self.classes = frozenset(classes)
        self.table: np.ndarray | None = None
        self.known = np.full(256, rest)
        self.colors: dict[int, int] = {}
        self.rest = IGNORE if rest else UNKNOWN
        self.stored = np.zeros((256, 3) if rgb else 256, np.uint8)
        for number, values in classes.items():
            self.stored[number] = values[0]
        if void:
            self.stored[IGNORE] = void[0]
        else:  # with `rest`: a value, or a grey, that no class has
            taken = self.stored[list(classes)].tolist()
            self.stored[IGNORE] = next((v for v in range(255, -1, -1) if ([v] * 3 if rgb else v) not in taken), 0)
        if rgb:
            self.colors = {pack_one(color): IGNORE for color in void}
            self.colors |= {pack_one(color): number for number, values in classes.items() for color in values}
            return
        self.table = np.full(256, self.rest, np.uint8)
        self.table[list(void)] = IGNORE
        self.known[list(void)] = True
        for number, values in classes.items():
            self.table[list(values)] = number
            self.known[list(values)] = True

    @functools.cached_property
    def color_table(self) -> np.ndarray:
        """(2^24,) uint8: packed colour -> trainId, `rest` elsewhere; 16 MiB, made when the first file asks."""
        table = np.full(1 << 24, self.rest, np.uint8)
        for color, number in self.colors.items():
            table[color] = number
        return table


def pack(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours -> (...) uint32, one number per colour."""
    wide = rgb.astype(np.uint32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def pack_one(color: Sequence[int]) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]


class LabelSpace:
    """The classes of a run. Two of them are equal if all that their files say is equal.

    Args:
        name: the stem of the file.
        content: what the file says.
        where: what errors call it, as a rule the file's path.

    Attributes:
        names: of the classes; their number is `len(space)`.
        palette: (256, 3) uint8 RGB by trainId; row `IGNORE` is the colour of ignored pixels.
        groups: trainIds by name of the group, in the file's order.
        subsets: trainIds by name: all classes under their number ("19"), then those of the file.
        stored_as: the scheme that predictions are written in.

    Raises:
        UserError: mistakes in the file, a line each.
    """

    def __init__(self, name: str, content: Mapping[str, Any], where: str) -> None:
        tree = Tree()
        tree.add(content, where)
        file = check(_File, tree)
        self.name, self.where = name, where
        self.content: dict[str, Any] = json.loads(json.dumps(content))  # keys are text
        self.names = tuple(file.classes)
        odd = [name for name in self.names if not name.strip() or name != name.strip() or not name.isprintable()]
        if odd:
            raise UserError(f"{where}: classes: {odd[0]!r} is no name; give letters without blanks around them")
        if not 2 <= len(self) <= MAX_CLASSES:
            raise UserError(f"{where}: classes: {len(self)} of them; give 2 to {MAX_CLASSES}")
        self.colors = tuple(entry.color for entry in file.classes.values())
        self.ignore_color = file.ignore_color
        self._require_distinct_colors()
        self.palette = np.zeros((256, 3), np.uint8)
        self.palette[: len(self)] = self.colors
        self.palette[IGNORE] = file.ignore_color
        self.groups = {
            group: self._numbers(members, f"{where}: groups.{group}") for group, members in file.groups.items()
        }
        self.subsets = {str(len(self)): tuple(range(len(self)))}
        for subset, members in file.subsets.items():
            self.subsets[subset] = self._subset(subset, members)
        self._schemes = self._read_schemes(file)
        self.stored_as = file.stored_as
        lacking = [n for n, name in enumerate(self.names) if n not in self.scheme(self.stored_as).classes]
        if lacking:
            raise UserError(
                f"{where}: classes.{self.names[lacking[0]]}: no value in column {self.stored_as}; give it one"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSpace) and (self.name, self._text) == (other.name, other._text)

    def __hash__(self) -> int:
        return hash((self.name, self._text))

    def __repr__(self) -> str:
        return f"LabelSpace({self.name}: {', '.join(self.names)})"

    def __reduce__(self) -> tuple[Any, ...]:  # tables are made anew where they are needed
        return LabelSpace, (self.name, self.content, self.where)

    @functools.cached_property
    def _text(self) -> str:
        return json.dumps([self.names, self.content], sort_keys=True)

    @property
    def is_shipped(self) -> bool:
        return self.name in shipped() and self == label_space(self.name)

    def dump(self) -> str | dict[str, Any]:
        """What `label_space` makes this of again: the name of a shipped one, else all that the file says."""
        return self.name if self.is_shipped else {"name": self.name, **self.content}

    @property
    def means(self) -> dict[str, str]:
        """What results call the mean IoU over each subset: `{"19": "mIoU19", ...}`."""
        return {name: f"mIoU{name}" if name.isdigit() else f"mIoU_{name}" for name in self.subsets}

    def subset(self, name: int | str | None) -> tuple[int, ...]:
        """The trainIds of a subset; None: all.

        Raises:
            UserError: there is none of that name.
        """
        if name is None:
            return tuple(range(len(self)))
        if str(name) not in self.subsets:
            raise UserError(f"eval.classes: {self.name} has no subset {name}; known: {', '.join(self.subsets)}")
        return self.subsets[str(name)]

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of what `scheme` knows."""
        return tuple(self._schemes)

    def scheme(self, name: str) -> Scheme:
        """How a kind of label file stores these classes.

        Raises:
            UserError: there is no such scheme.
        """
        if name not in self._schemes:
            known = ", ".join(self._schemes)
            raise UserError(
                f"{self.where}: no column or scheme {name!r} for these label files; known: {known}; name a data set of "
                "these classes, or the class list of that data set (data.classes)"
            )
        return self._schemes[name]

    def spelled_out(self, stored: Mapping[str, Any], where: str) -> Scheme:
        """A scheme that stands outside the file: class name -> stored value or values, beside `void`, `colors`, `title`
        as in `schemes`.

        Raises:
            UserError: no such class, or a wrong value; the message begins with `where`.
        """
        words = {key: value for key, value in stored.items() if key in _Scheme.model_fields}
        tree = Tree()
        tree.add(words, where)
        columns = {key: value for key, value in stored.items() if key not in words}
        self._numbers(list(columns), where)
        return self._scheme(where, columns, check(_Scheme, tree), where)

    def to_stored(self, train_ids: np.ndarray) -> np.ndarray:
        """(H, W) uint8 trainIds -> what a label file of `stored_as` holds: (H, W) uint8, or (H, W, 3) RGB."""
        return self.scheme(self.stored_as).stored[train_ids]

    def difference(self, other: "LabelSpace") -> str:
        """Where the classes of `other` differ in name or order, in words; empty where they do not."""
        if self.names == other.names:
            return ""
        parts = [f"{self.name} has {len(self)} classes, {other.name} {len(other)}"]
        for one, two in ((self, other), (other, self)):
            if only := [name for name in one.names if name not in two.names]:
                parts.append(f"only in {one.name}: {_some(only)}")
        return "; ".join(parts if len(parts) > 1 else [*parts, "their order differs"])

    def merged_from(self, other: "LabelSpace", merge: Mapping[str, Sequence[str]] | None) -> np.ndarray | None:
        """How predictions of `other`'s classes are scored under these: (256,) uint8, trainId there -> trainId here.

        A class goes where `merge` (name here -> names there) puts it, else to the class of its own name, else nowhere:
        it is then `len(self)`, always wrong. None where the classes are the same.

        Raises:
            UserError: the classes differ and there is no `merge`, or it names an unknown class, or one twice.
        """
        difference = other.difference(self)
        if merge is None:
            if not difference:
                return None
            raise UserError(
                f"data.classes: the checkpoint has other classes than the data ({difference}); say which is which, "
                "eval.merge={class of the data: [classes of the checkpoint]}; equal names need no mention"
            )
        if not difference:
            raise UserError("eval.merge: checkpoint and data have the same classes; leave it out")
        table = np.full(256, len(self), np.uint8)
        for number, name in enumerate(other.names):
            if name in self.names:
                table[number] = self.names.index(name)
        taken: set[str] = set()
        nothing = [n for n in self.names if n not in merge and n not in other.names]
        if nothing:
            raise UserError(
                f"eval.merge: no class of the checkpoint counts as {nothing[0]}; name some, or say {nothing[0]}: []"
            )
        for name, parts in merge.items():
            (number,) = self._numbers([name], "eval.merge")
            for part, there in zip(parts, other._numbers(parts, f"eval.merge.{name}")):
                if part in taken:
                    raise UserError(f"eval.merge: {part} is given twice; name one class for it")
                taken.add(part)
                table[there] = number
        return table

    def _numbers(self, names: Sequence[str], where: str) -> tuple[int, ...]:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise UserError(f"{where}: {_some(unknown)}: no class of {self.name}; known: {', '.join(self.names)}")
        return tuple(self.names.index(name) for name in names)

    def _subset(self, name: str, members: tuple[str, ...] | _Without) -> tuple[int, ...]:
        key = f"{self.where}: subsets.{name}"
        if isinstance(members, _Without):
            left_out = self._numbers(members.without, key)
            found = tuple(number for number in range(len(self)) if number not in left_out)
        else:
            found = tuple(sorted(self._numbers(members, key)))
        if not found or (name.isdigit() and int(name) != len(found)):
            raise UserError(f"{key}: it has {len(found)} classes; call it by their number, or by a word")
        return found

    def _require_distinct_colors(self) -> None:
        seen: dict[Color, str] = {self.ignore_color: "ignored pixels (ignore_color)"}
        for name, color in zip(self.names, self.colors):
            if color in seen:
                raise UserError(
                    f"{self.where}: classes.{name}.color: {list(color)} is also that of {seen[color]}; give another"
                )
            seen[color] = name

    def _read_schemes(self, file: _File) -> dict[str, Scheme]:
        columns: dict[str, dict[str, Any]] = {name: {} for name in file.schemes}
        for name, entry in file.classes.items():
            for column, stored in (entry.model_extra or {}).items():
                columns.setdefault(column, {})[name] = stored
        own: dict[str, Any] = {name: list(color) for name, color in zip(self.names, self.colors)}
        numbers: dict[str, Any] = dict(zip(self.names, range(len(self))))
        columns = {TRAIN_IDS: numbers, COLORS: own} | {k: v for k, v in columns.items() if v}
        defaults = {
            TRAIN_IDS: _Scheme(title=f"trainIds of {self.name}", void=[IGNORE]),
            COLORS: _Scheme(title=f"colours of {self.name}", colors=True, void=[list(self.ignore_color)]),
        }
        given = defaults | file.schemes
        found = {}
        for scheme, stored in columns.items():
            settings = given.get(scheme, _Scheme())
            if scheme == COLORS:
                settings = settings.model_copy(update={"colors": True})
            found[scheme] = self._scheme(scheme, stored, settings, f"{self.where}: {scheme}")
        return found

    def _scheme(self, name: str, stored: Mapping[str, Any], settings: _Scheme, where: str) -> Scheme:
        rest = settings.void == "rest"
        void = [] if rest else _values(settings.void, settings.colors, f"{where}: void")
        classes = {
            self.names.index(owner): _values(values, settings.colors, f"{where}: {owner}")
            for owner, values in stored.items()
        }
        owners: dict[Any, int] = {}
        for number, values in classes.items():
            for value in values:
                if owners.setdefault(value, number) != number:
                    both = f"{self.names[owners[value]]} and {self.names[number]}"
                    raise UserError(f"{where}: {value} is stored for {both}; give each its own")
        for item in [] if rest else settings.void:  # a range may hold the values of classes, a single value may not
            if not isinstance(item, str) and _values([item], settings.colors, where)[0] in owners:
                raise UserError(f"{where}: {item} is both void and stored for a class; take it out of one")
        void = [value for value in void if value not in owners]
        return Scheme(settings.title or f"{name} values", classes, void, rest, settings.colors)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """As a setting: a shipped name, a file, or what `dump` gave."""
        return core_schema.no_info_plain_validator_function(
            _validated, serialization=core_schema.plain_serializer_function_ser_schema(LabelSpace.dump)
        )


def shipped() -> list[str]:
    """Names of the label spaces that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@functools.lru_cache(maxsize=64)
def _shipped_space(name: str) -> LabelSpace:
    path = SHIPPED / f"{name}.yaml"
    return LabelSpace(name, read_tree([path]).values, str(path))


def label_space(given: str | Mapping[str, Any] | LabelSpace) -> LabelSpace:
    """The label space of a setting `data.classes`: a shipped name, a file, or what `LabelSpace.dump` gave.

    Raises:
        UserError: no such name or file, or mistakes in it.
    """
    if isinstance(given, LabelSpace):
        return given
    if isinstance(given, Mapping):
        content = dict(given)
        name = str(content.pop("name", "classes"))
        return LabelSpace(name, content, f"data.classes {name}")
    if given in shipped():
        return _shipped_space(given)
    path = expanded(given)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"data.classes: {given!r} is neither a YAML file nor one of {', '.join(shipped())}")
    content = read_tree([path]).values
    if not content:
        raise UserError(f"{path}: is empty; da/classes/binary.yaml shows what stands in a class list")
    return LabelSpace(path.stem, content, str(path))


def _validated(given: Any) -> LabelSpace:
    if not isinstance(given, str | Mapping | LabelSpace):
        raise ValueError(f"give one of {', '.join(shipped())}, or a YAML file")
    try:
        return label_space(given)
    except UserError as error:
        raise ValueError(str(error)) from error


def _values(given: Any, rgb: bool, where: str) -> list[Any]:
    """Stored values as numbers from 0 to 255, or as (r, g, b): one, several, or ranges such as `0-34`."""
    if rgb:
        colors = [given] if isinstance(given, list) and given and isinstance(given[0], int) else given
        if not isinstance(colors, list | tuple) or not all(_is_color(color) for color in colors):
            raise UserError(f"{where}: {str(given)[:60]} is not a colour [r, g, b] of 0 to 255, nor a list of them")
        return [tuple(color) for color in colors]
    found: list[int] = []
    for item in given if isinstance(given, list | tuple) else [given]:
        first, dash, last = item.partition("-") if isinstance(item, str) else (item, "", item)
        ends = [int(e) if isinstance(e, str) and e.strip().isdigit() else e for e in (first, last if dash else first)]
        if not all(_is_byte(end) for end in ends):
            raise UserError(
                f"{where}: {str(item)[:60]!r} is not a stored value from 0 to 255, nor a range such as 0-34"
            )
        low, high = (int(end) for end in ends)
        found += range(low, high + 1)
    return found


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_color(color: Any) -> bool:
    return isinstance(color, list | tuple) and len(color) == 3 and all(_is_byte(channel) for channel in color)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


Subset = int | str | None  # a name in `LabelSpace.subsets`; None: all classes
MergeMap = dict[str, tuple[str, ...]]
