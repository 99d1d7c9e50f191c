"""`data describe`: look at an unknown folder and write a first description and class list for its owner to correct.

Pictures that hold few values or colours, in a format without loss, are taken for labels, and set beside the images of
the same names. Parts of paths that are called train, val or test become splits. What the classes are called is nowhere
in pictures: they are numbered.
"""

import colorsys
import os
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from da.config import UserError
from da.data import folders
from da.data.described import LOSSY
from da.labels import COLORS, IGNORE, label_space, pack, shipped

MOST_FILES = 500_000  # pictures below a folder that are looked at
LOOKED_AT = 24  # files of each folder that are opened to tell labels from images
RARE = 5e-4  # share of all pixels below which a value is taken for noise
READ = 200  # labels whose values are read
FEW = 64  # values or colours of a label at most
_SPLIT = re.compile(
    r"(?P<split>training|train|validation|valid|val|testing|test)(?P<rest>$|[_\-. ].*|annot|labels?|masks?)", re.I
)
_CALLED = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


class _Group(NamedTuple):
    """Files of one kind: those of one folder, or of several that differ in {split} or {folder}."""

    pattern: str  # of the folder, with placeholders
    suffix: str  # `.*` where there are several
    files: dict[tuple[str, ...], list[Path]]  # by the values of the placeholders
    is_label: bool

    @property
    def total(self) -> int:
        return sum(map(len, self.files.values()))


class _Pairing(NamedTuple):
    """How the names of labels follow from those of images."""

    images: str  # pattern of the file name
    labels: str
    matched: int


def describe(root: Path, out: Path) -> str:
    """Write `<root's name>.yaml`, its description, and `<root's name>_classes.yaml`, its class list, into `out`; where
    nothing tells training from validation also lists of both. Returns what was found and what to do next.

    Raises:
        UserError: no pictures, no images, or files of those names are there already.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    name = re.sub(r"\W+", "_", root.resolve().name).strip("_") or "data"
    description, classes = out / f"{name}.yaml", out / f"{name}_classes.yaml"
    for path in (description, classes):
        if path.exists():
            raise UserError(f"{path}: is there already, perhaps corrected by hand; delete it or give another -o FOLDER")
    groups = _groups(root)
    images = max((g for g in groups if not g.is_label), key=lambda g: g.total, default=None)
    if images is None:
        raise UserError(f"{root}: no images found in it, only pictures that look like labels; are they elsewhere?")
    best = max(
        ((_pair(images, labels), labels) for labels in groups if labels.is_label),
        key=lambda found: found[0].matched,
        default=None,
    )
    if best is None or not best[0].matched:
        return _images_alone(root, images, description)
    pairing, labels = best
    out.mkdir(parents=True, exist_ok=True)
    splits, lists = _splits(root, images, labels, pairing, out / name)
    ids, told = _classes(labels, classes)
    content: dict[str, Any] = {
        "root": str(root.resolve()),
        "images": _join(images.pattern, pairing.images),
        "labels": _join(labels.pattern, pairing.labels),
        "splits": splits,
        **ids,
    }
    _write(description, f"# {root.name}: guessed by `data describe`; correct what is wrong.", content)
    chosen = str(classes) if classes.exists() else next(iter(ids["ids"]))
    both = [s for s in ("train", "val") if s in splits]
    train, val = (both[0], both[-1]) if both else (next(iter(splits)),) * 2
    check = f"python -m da data check {root} --as {description} --classes {chosen} --figure {out / name}.png"
    settings = [
        f"data.{key}.{k}={v}"
        for key, split in (("source", train), ("val", val))
        for k, v in (("dataset", description), ("root", root.resolve()), ("split", split))
    ]
    return "\n".join(
        [
            f"{images.total} images, {pairing.matched} of them with labels: {content['images']}, {content['labels']}",
            f"splits: {', '.join(splits)}"
            + (f" (written: {', '.join(map(str, lists))}; every fifth validates)" if lists else ""),
            *told,
            f"written: {description}" + (f", {classes}: give the classes their names" if classes.exists() else ""),
            f"then:  {check}",
            f"       python -m da train experiments/mini/oracle.yaml experiment={name} data.classes={chosen} \\\n"
            f"         {' '.join(settings)}",
        ]
    )


def _images_alone(root: Path, images: _Group, description: Path) -> str:
    """An unlabelled folder, which may be a target."""
    content = {"root": str(root.resolve()), "images": _join(images.pattern, f"{{name}}{images.suffix}")}
    values = sorted({words[0] for words in images.files if words}) if "{split}" in images.pattern else []
    if values:
        content["splits"] = {_called(value): {"split": value} for value in values}  # type: ignore[assignment]
    description.parent.mkdir(parents=True, exist_ok=True)
    _write(description, f"# {root.name}: guessed by `data describe`; no labels were found.", content)
    split = _called(values[0]) if values else "all"
    return (
        f"{images.total} images without labels: {content['images']}\nwritten: {description}\n"
        f"then:  data.target.dataset={description} data.target.split={split}"
    )


def _groups(root: Path) -> list[_Group]:
    """The pictures below `root` by folder and suffix, told apart as images and labels, and folders that differ in one
    part of their paths joined."""
    by_folder: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    count = 0
    for folder, below, names in os.walk(root):
        below[:] = sorted(n for n in below if not n.startswith("."))
        for n in sorted(folders.files_in(Path(folder)).intersection(names)):
            suffix = os.path.splitext(n)[1].lower()
            if suffix in folders.IMAGE_SUFFIXES:
                by_folder[str(Path(folder).relative_to(root))][suffix].append(Path(folder) / n)
                count += 1
                if count > MOST_FILES:
                    raise UserError(f"{root}: more than {MOST_FILES:,} pictures; name a folder further down")
    if not count:
        raise UserError(f"{root}: no pictures in it; known are {', '.join(folders.IMAGE_SUFFIXES)}")
    kinds: _Kinds = defaultdict(dict)
    for folder, by_suffix in by_folder.items():
        parts = [part for files in by_suffix.values() for part in _parted(files)]
        for is_label in (True, False):
            files = sorted(path for which, part in parts if which is is_label for path in part)
            if files:
                words: list[str] = []
                pattern = "/".join(_generalised(piece, words) for piece in Path(folder).parts)
                kinds[pattern, is_label].setdefault(tuple(words), []).extend(files)
    return [
        _Group(pattern, _suffix_of(files), files, is_label) for (pattern, is_label), files in _joined(kinds).items()
    ]


def _suffix_of(files: dict[tuple[str, ...], list[Path]]) -> str:
    found = {path.suffix for paths in files.values() for path in paths}
    return found.pop() if len({suffix.lower() for suffix in found}) == 1 else ".*"


def _generalised(piece: str, words: list[str]) -> str:
    """A part of a path with {split} in place of a word that names one, which is added to `words`."""
    match = _SPLIT.fullmatch(piece)
    if match is None or words:
        return piece
    words.append(match["split"])
    return "{split}" + match["rest"]


_Kinds = dict[tuple[str, bool], dict[tuple[str, ...], list[Path]]]


def _joined(kinds: _Kinds) -> _Kinds:
    """Folders that differ in their last part only, three or more of them, as one with the placeholder {folder}."""
    siblings: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for pattern, is_label in kinds:
        parent, _, last = pattern.rpartition("/")
        if "{" not in last:
            siblings[parent, is_label].append(last)
    found: _Kinds = defaultdict(dict)
    for (pattern, is_label), files in kinds.items():
        parent, _, last = pattern.rpartition("/")
        join = parent and len(siblings.get((parent, is_label), ())) >= 3 and "{" not in last
        for words, paths in files.items():
            key = (f"{parent}/{{folder}}", is_label) if join else (pattern, is_label)
            found[key].setdefault((*words, last) if join else words, []).extend(paths)
    return found


def _parted(files: list[Path]) -> list[tuple[bool, list[Path]]]:
    """The files of one folder and suffix as labels and images: a folder is one or the other, unless all of one kind end
    alike, as `a.png` and `a_mask.png`."""
    looked = {path: _looks_like_a_label(path) for path in files[:: max(1, len(files) // LOOKED_AT)]}
    labels = [path for path, is_label in looked.items() if is_label]
    readable = [path for path, is_label in looked.items() if is_label is not None]
    share = len(labels) / max(1, len(readable))
    if 0.2 < share < 0.8 and len(labels) > 1:
        ending = os.path.commonprefix([path.stem[::-1] for path in labels])[::-1].lstrip("0123456789")
        if ending and not all(path.stem.endswith(ending) for path in looked):
            parts = [[p for p in files if p.stem.endswith(ending) is which] for which in (True, False)]
            return [(True, parts[0]), (False, parts[1])]
    return [(share >= 0.5, files)]


def _looks_like_a_label(path: Path) -> bool | None:
    """Few values, or nearly all pixels of a few, as of a label that went through JPEG; None: not readable."""
    try:
        values, counts = np.unique(_numbers(folders.read_stored(path)), return_counts=True)
    except UserError:
        return None
    return len(values) <= FEW and path.suffix.lower() not in LOSSY or np.sort(counts)[-8:].sum() > 0.8 * counts.sum()


def _numbers(stored: np.ndarray) -> np.ndarray:
    """Values, or colours packed into numbers, of a label."""
    return stored if stored.ndim == 2 else pack(stored[..., :3]) if stored.shape[-1] > 2 else stored[..., 0]


def _pair(images: _Group, labels: _Group) -> _Pairing:
    """The best way to get the name of a label from that of its image, by how many images it gives one."""
    if ("{folder}" in labels.pattern) and "{folder}" not in images.pattern:
        return _Pairing("", "", 0)
    of_images = sorted(path.stem for paths in images.files.values() for path in paths)
    of_labels = sorted(path.stem for paths in labels.files.values() for path in paths)
    some = of_labels[:: max(1, len(of_labels) // 50)]
    backwards = sorted(stem[::-1] for stem in of_images)
    tails = Counter(_tails(stem, of_images) for stem in some)
    heads = Counter(tuple(part[::-1] for part in _tails(stem[::-1], backwards)) for stem in some)
    there, found = set(of_labels), []
    for image_affix, label_affix in [("", ""), *(pair for pair, _ in tails.most_common(3))]:
        names = [s.removesuffix(image_affix) + label_affix for s in of_images if s.endswith(image_affix)]
        found.append((sum(n in there for n in names), f"{{name}}{image_affix}", f"{{name}}{label_affix}"))
    for image_affix, label_affix in (pair for pair, _ in heads.most_common(3)):
        names = [label_affix + s.removeprefix(image_affix) for s in of_images if s.startswith(image_affix)]
        found.append((sum(n in there for n in names), f"{image_affix}{{name}}", f"{label_affix}{{name}}"))
    matched, image, label = max(found, key=lambda f: (f[0], -len(f[1]) - len(f[2])))
    return _Pairing(image + images.suffix, label + labels.suffix, matched)


def _tails(stem: str, of_images: Sequence[str]) -> tuple[str, str]:
    """What an image's and a label's name end in behind what they share, for the image that shares most."""
    at = bisect_left(of_images, stem)
    near = [of_images[i] for i in (at - 1, at) if 0 <= i < len(of_images)]
    common = max((os.path.commonprefix([stem, other]) for other in near), key=len, default="")
    other = next(o for o in near if o.startswith(common))
    return other[len(common) :], stem[len(common) :]


def _splits(
    root: Path, images: _Group, labels: _Group, pairing: _Pairing, beside: Path
) -> tuple[dict[str, Any], list[Path]]:
    """The splits: by folder, by lists that are there, or by lists that are written, which are returned too."""
    if "{split}" in images.pattern:
        labelled = {words[0] for words in labels.files} if "{split}" in labels.pattern else None
        values = sorted({words[0] for words in images.files}, key=lambda v: ("train", "val", "test").index(_called(v)))
        return {_called(v): {"split": v} for v in values if labelled is None or v in labelled}, []
    form = re.compile(re.escape(_stem(pairing.images)).replace(re.escape("{name}"), "(.+)"))
    names = {m[1] for paths in images.files.values() for path in paths if (m := form.fullmatch(path.stem))}
    if found := _lists(root, names):
        return {split: {"list": path.relative_to(root).as_posix()} for split, path in sorted(found.items())}, []
    stems = {path.stem for paths in labels.files.values() for path in paths}
    form = re.compile(re.escape(_stem(pairing.labels)).replace(re.escape("{name}"), "(.+)"))
    whole = sorted(names & {m[1] for stem in stems if (m := form.fullmatch(stem))})
    if len(whole) < 2:
        return {"all": {}}, []
    validating = whole[4::5] or whole[-1:]
    written = []
    for split, part in (("train", [n for n in whole if n not in set(validating)]), ("val", validating)):
        written.append(beside.with_name(f"{beside.name}_{split}.txt").resolve())
        written[-1].write_text("".join(f"{n}\n" for n in part), encoding="utf-8", errors="surrogateescape")
    return {"train": {"list": written[0].name}, "val": {"list": written[1].name}, "all": {}}, written


def _stem(pattern: str) -> str:
    return pattern.rpartition(".")[0]


def _lists(root: Path, names: set[str]) -> dict[str, Path]:
    """Text files called after splits whose lines name the images."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.txt"))[:1000]:
        match = _SPLIT.fullmatch(path.stem)
        if match is None or match["rest"] or path.stat().st_size > 2**24:
            continue
        lines = folders.read_lines(path)
        called = [folders.stem(re.split(r"[/\\]", line.split()[0])[-1]) for line in lines]
        if called and sum(n in names for n in called) > 0.8 * len(called):
            found.setdefault(_called(match["split"]), path)
    return found


def _called(value: str) -> str:
    return _CALLED.get(value.lower(), value.lower())


def _classes(labels: _Group, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The description's `ids`, and what was found in words; writes a class list, unless a shipped one fits."""
    files = [file for paths in labels.files.values() for file in paths]
    files = files[:: max(1, len(files) // READ)]
    pixels: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}  # of values, of colours
    in_files: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    colors: dict[int, tuple[int, int, int]] = {}
    for file in folders.progress(files, "values of labels", len(files), "file"):
        try:
            stored = folders.read_stored(file)
        except UserError:  # `data check` names it
            continue
        is_rgb = stored.ndim == 3 and stored.shape[-1] > 2
        there, counts = np.unique(_numbers(stored), return_counts=True)
        pixels[is_rgb].update(dict(zip(there.tolist(), counts.tolist())))
        in_files[is_rgb].update(there.tolist())
        colors |= {} if is_rgb else _palette(file)
    by_color = pixels[True].total() > pixels[False].total()
    enough = RARE * pixels[by_color].total()
    found = in_files[by_color]
    values = sorted(v for v, n in found.items() if (n > 1 or len(files) < 10) and pixels[by_color][v] >= enough)
    rare = sorted(found.keys() - values)
    if len(values) > FEW or not values:
        raise UserError(
            f"{files[0].parent}: {len(values)} values that labels share; are these labels, stored without loss?"
        )
    if not by_color and (values[-1] > 255 or any(v != int(v) for v in values)):
        raise UserError(f"{files[0].parent}: labels hold {values[-1]}; store class numbers from 0 to 255, as 8-bit PNG")
    if by_color:
        colors = {v: (v >> 16, v >> 8 & 255, v & 255) for v in values}
    if fits := _shipped_fit(values, colors, by_color):
        return {"ids": {fits[0]: fits[1]}}, [f"labels hold {fits[1]} of the class list {fits[0]}, which is shipped"]
    void = [] if by_color or values == [0, IGNORE] or IGNORE not in values else [IGNORE]
    left = [] if by_color else [f"value {v}" for v in rare[:20]]
    _write_classes(path, [v for v in values if v not in void], void, colors, by_color, left)
    what = "colours" if by_color else f"values {', '.join(map(str, values[:20]))}"
    told = [f"labels hold {len(values)} {what}" + (", 255 taken for void" if void else "")]
    if rare:
        kind = "colours" if by_color else "values"
        told.append(f"left out, since one label alone has them or hardly a pixel: {len(rare)} {kind}")
        if len(rare) > 8:
            told.append(
                "so many rare ones look like labels stored with loss (JPEG) or resized smoothly; see data check"
            )
    if lossy := {file.suffix for file in files if file.suffix.lower() in LOSSY}:
        told.append(f"labels are {', '.join(lossy)}, a format with loss, which training refuses; save them as PNG")
    return {}, told


def _palette(file: Path) -> dict[int, tuple[int, int, int]]:
    """The colours of a palette picture by index."""
    with Image.open(file) as image:
        if image.mode != "P" or image.palette is None:
            return {}
        flat = list(image.getpalette() or [])
    return {i: (flat[3 * i], flat[3 * i + 1], flat[3 * i + 2]) for i in range(len(flat) // 3)}


def _shipped_fit(values: list[int], colors: dict[int, tuple[int, int, int]], by_color: bool) -> tuple[str, str] | None:
    """A shipped class list and its scheme that the values and their colours belong to."""
    for name in shipped():
        space = label_space(name)
        for scheme_name in dict.fromkeys([space.stored_as, *space.schemes]):
            scheme = space.scheme(scheme_name)
            if by_color and scheme.table is None and len(values) > 3 and set(values) <= scheme.colors.keys():
                return name, scheme_name
            if by_color or scheme.table is None or not colors:
                continue
            own = [v for v in values if v < 256 and scheme.known[v] and scheme.table[v] != IGNORE]
            same = [v for v in own if colors.get(v) == space.colors[scheme.table[v]]]
            if len(own) > 2 and len(same) == len(own) and all(v < 256 and scheme.known[v] for v in values):
                return name, scheme_name
    return None


def _write_classes(
    path: Path,
    values: list[int],
    void: list[int],
    colors: dict[int, tuple[int, int, int]],
    by_color: bool,
    left_out: Sequence[str],
) -> None:
    if len(values) < 2:
        raise UserError(f"{path}: labels hold one value alone, {values}; there is nothing to tell apart")
    taken = [colors[v] for v in values if v in colors]
    shown = taken if len(set(taken)) == len(values) else list(_distinct(len(values)))
    lines = [
        "# Guessed by `data describe`: give the classes their names; the value of what is no class goes to `void`.",
        "# da/classes/binary.yaml explains every key.",
        *(f"# Left out, since one label alone has it, or hardly a pixel: {text}" for text in left_out),
        "classes:",
        *(
            f"  class{i}: {{color: {list(color)}}}"
            if by_color
            else f"  class{i}: {{color: {list(color)}, stored: {value}}}"
            for i, (value, color) in enumerate(zip(values, shown))
        ),
        *([] if by_color else ["schemes:", f"  stored: {{title: stored values, void: {void}}}"]),
        f"stored_as: {COLORS if by_color else 'stored'}",
    ]
    if (0, 0, 0) in shown:
        free = next(c for c in ((128, 128, 128), (255, 255, 255), (1, 1, 1)) if c not in shown)
        lines.append(f"ignore_color: {list(free)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _distinct(count: int) -> Iterable[tuple[int, int, int]]:
    """Colours far apart in hue, and in brightness from turn to turn."""
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb(
            i * 0.618034 % 1, 0.75 - 0.25 * (i // 7 % 2), 0.95 - 0.25 * (i // 14 % 3)
        )
        yield round(255 * red), round(255 * green), round(255 * blue)


def _join(folder: str, name: str) -> str:
    return name if folder in ("", ".") else f"{folder}/{name}"


def _write(path: Path, heading: str, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
    path.write_text(f"{heading}\n# da/data/sets/folders.yaml explains every key.\n{text}", encoding="utf-8")
