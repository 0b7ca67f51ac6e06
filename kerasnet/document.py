"""YAML 1.2 documents: read strictly, every value with its line and column, and written."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kerasnet.errors import BadInputError, did_you_mean

# A registry of a hundred families is about 100 KB and 10,000 values; one value takes up to 50 µs to
# read.
MAX_BYTES = 4_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 50
MAX_BITS = 64
MAX_PROBLEMS = 20

DocPath = tuple[str | int, ...]
T = TypeVar("T", bound=BaseModel)


class Place(NamedTuple):
    """A position in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: where, and what."""

    path: DocPath
    text: str
    place: Place | None = None

    def __str__(self) -> str:
        where = [str(self.place)] if self.place else []
        if self.path:
            where.append(dotted(self.path))
        return ": ".join([*where, self.text])


class DocumentError(BadInputError):
    """A document that cannot be used; `problems` holds each thing wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        lines = [str(problem) for problem in problems[:MAX_PROBLEMS]]
        if len(problems) >= MAX_PROBLEMS:
            lines.append(f"these are the first {MAX_PROBLEMS} problems; there may be more")
        super().__init__("\n".join(lines))


@dataclass
class Document:
    """Plain values, and the place of every key and list item by its path."""

    data: Any
    places: dict[DocPath, Place] = field(default_factory=dict)

    def place(self, path: DocPath) -> Place | None:
        """Return the place of `path`, or of the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path)


def dotted(path: DocPath) -> str:
    """Write a path as `models.resnet50.stages[0].width`."""
    text = ""
    for part in path:
        name = shown(str(part))
        text += f"[{name}]" if isinstance(part, int) else f".{name}" if text else name
    return text


def shown(text: str, most: int = 60) -> str:
    """Write text of a document as a terminal can show it: on one line, cut, without controls."""
    cut = text if len(text) <= most else text[: most - 3] + "..."
    return cut if cut.isprintable() else repr(cut)[1:-1]


# ---------------------------------------------------------------------------- reading


def _fail(place: Place | None, text: str, path: DocPath = ()) -> DocumentError:
    return DocumentError([Problem(path, text, place)])


def read(file: str | os.PathLike[str]) -> Document:
    """Read a YAML 1.2 file.

    Raises:
        DocumentError: it is no YAML mapping, too large, repeats a key, or has an alias or tag.
        BadInputError: it cannot be read, or is no file.
    """
    path = Path(file)
    try:
        # Reading a pipe would wait for whoever writes to it.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("expected a file, found a pipe or a device; write its text to a file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise BadInputError(f"{file}: cannot be read: {said}") from error
    if len(raw) > MAX_BYTES:
        raise _fail(Place(str(file), 1, 1), f"longer than the {MAX_BYTES:,} bytes that are read")
    return parse(raw, str(file))


def parse(raw: bytes, file: str) -> Document:
    """Read YAML 1.2 from bytes; `file` is the name errors give it. Raises as `read` does."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise _fail(
            Place(file, line, column),
            f"not a text file: expected UTF-8, received byte 0x{raw[error.start]:02x}",
        ) from error
    node = _compose(text, file)
    if node is None:
        raise _fail(Place(file, 1, 1), "the document is empty; expected a mapping")
    document = Document(None)
    document.data = _construct(node, (), file, document.places)
    if not isinstance(document.data, dict):
        raise _fail(
            document.places[()],
            f"expected a mapping of names to values, received {describe(document.data)}",
        )
    return document


def _compose(text: str, file: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _composer(file)
    try:
        return yaml.compose(text)
    except DocumentError:
        raise
    except MarkedYAMLError as error:
        said = " ".join(str(part) for part in (error.context, error.problem) if part)
        if "\\t" in said:
            said += "; YAML indents with spaces, not tabs"
        mark = error.problem_mark or error.context_mark
        raise _fail(_place(file, mark), f"not YAML: {shown(said, 300)}") from error
    except YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        first = str(error).splitlines()[0]
        raise _fail(Place(file, line, column), f"not YAML: {shown(first, 300)}") from error
    except (ValueError, OverflowError, AssertionError) as error:  # no such escape or version
        raise _fail(Place(file, 1, 1), f"not YAML: {shown(str(error), 300)}") from error


def _place(file: str, mark: Any) -> Place:
    return Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)


def _composer(file: str) -> type[Any]:
    """Return a composer that gives up as soon as a document asks for too much."""
    from ruamel.yaml.composer import Composer

    class Bounded(Composer):
        values = level = 0

        def compose_document(self) -> Any:
            event = self.parser.peek_event()
            if event.version not in (None, (1, 2)):
                raise _fail(_place(file, event.start_mark), "expected YAML 1.2, received YAML 1.1")
            return super().compose_document()

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.parser.peek_event()
            self.values += 1
            self.level += 1
            too_much = _too_much(event, self.values, self.level)
            if too_much:
                raise _fail(_place(file, event.start_mark), too_much)
            node = super().compose_node(parent, index)
            self.level -= 1
            return node

    return Bounded


def _too_much(event: Any, values: int, level: int) -> str | None:
    # Expanding aliases can grow exponentially.
    if event.anchor is not None:
        return (
            "anchors and aliases (`&name`, `*name`) are not allowed; write the value again, or "
            "use `extends`"
        )
    if values > MAX_VALUES:
        return f"more than {MAX_VALUES:,} keys and values"
    if level > MAX_DEPTH + 1:
        return f"nested more than {MAX_DEPTH} levels deep"
    return None


def _construct(node: Any, path: DocPath, file: str, places: dict[DocPath, Place]) -> Any:
    place = _place(file, node.start_mark)
    places.setdefault(path, place)
    fail = partial(_fail, place, path=path)
    kind, tag = type(node).__name__, _tag(node)
    if kind == "ScalarNode":
        return _scalar(node, tag, fail)
    if tag not in ("seq", "map"):
        raise fail(_tagged(node))
    if kind == "SequenceNode":
        return [_construct(n, (*path, i), file, places) for i, n in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        at = _place(file, key_node.start_mark)
        key = key_node.value
        if not isinstance(key, str) or _tag(key_node) not in _PLAIN:
            raise _fail(
                at, "expected a plain name as key, received a collection, tag or `<<`", path
            )
        if key in result:
            first = places[(*path, key)]
            raise _fail(at, f"duplicate key '{shown(key)}', first given on line {first.line}", path)
        places[(*path, key)] = at
        result[key] = _construct(value_node, (*path, key), file, places)
    return result


def _tag(node: Any) -> str | None:
    """Return the name of one of YAML's own tags, None for any other."""
    prefix, tag = "tag:yaml.org,2002:", str(node.tag)
    return tag.removeprefix(prefix) if tag.startswith(prefix) else None


def _tagged(node: Any) -> str:
    return f"tags such as {shown(str(node.tag))} are not allowed; write a plain value"


_PLAIN = ("str", "timestamp", "int", "float", "bool", "null")
_WORDS: dict[str | None, dict[str, bool | None]] = {
    "null": {"": None, "~": None, "null": None},
    "bool": {"true": True, "false": False},
}


def _scalar(node: Any, tag: str | None, fail: Any) -> Any:
    text = node.value
    if tag in ("int", "float") and "_" in text:
        return text  # digits may be grouped in YAML 1.1 only
    if text.lower() in _WORDS.get(tag, {}):
        return _WORDS[tag][text.lower()]
    try:
        if tag == "int":
            number = int(text, 0 if text[:2] in ("0o", "0x") else 10)
            if number.bit_length() > MAX_BITS:
                raise ValueError(f"longer than {MAX_BITS} bits")
            return number
        if tag == "float":
            return _float(text)
    except ValueError as error:
        raise fail(
            f"'{shown(text)}' is not a number that can be held: {shown(str(error), 200)}"
        ) from error
    if tag in ("str", "timestamp"):
        return text
    raise fail(_tagged(node))


def _float(text: str) -> float:
    special = {".inf": math.inf, "-.inf": -math.inf, "+.inf": math.inf, ".nan": math.nan}
    return special[text.lower()] if text.lower() in special else float(text)


# ---------------------------------------------------------------------------- validating


def describe(value: Any) -> str:
    """Name a received value briefly, with its type in YAML's words."""
    kinds: list[tuple[Any, str]] = [
        (bool, "true/false"),
        (int, "whole number"),
        (float, "number"),
        (str, "text"),
        (list, "list"),
        (dict, "mapping"),
    ]
    if value is None:
        return "nothing"
    kind = next((name for cls, name in kinds if isinstance(value, cls)), type(value).__name__)
    return f"{shown(repr(value))} ({kind})"


def problems_of(
    error: ValidationError, cls: type[BaseModel], data: Any, base: DocPath
) -> list[Problem]:
    """Turn pydantic's report into problems, one for each path in the document.

    Args:
        error: what pydantic raised while reading `data` as `cls`.
        cls: the class it was read as.
        data: the plain value.
        base: where `data` stands in its document.
    """
    grouped: dict[DocPath, list[str]] = {}
    missing: dict[DocPath, list[str]] = {}
    for item in error.errors(include_url=False)[:MAX_PROBLEMS]:
        path = _document_path(item["loc"], data, missing=item["type"] == "missing")
        if item["type"] == "union_tag_invalid":
            path = (*path, _tag_key(item))
        texts = grouped.setdefault((*base, *path), [])
        if item["type"] == "missing":
            # All that one class lacks is one sentence; several classes are alternatives.
            names = missing.setdefault(item["loc"][:-1], [])
            names.append(str(item["loc"][-1]))
            if len(names) > 1:
                texts.remove(_lacking(names[:-1], cls, item["loc"]))
            text = _lacking(names, cls, item["loc"])
        else:
            text = _sentence(item, cls)
        if text not in texts:
            texts.append(text)
    return [Problem(path, "; or ".join(texts)) for path, texts in grouped.items()]


def _document_path(loc: DocPath, data: Any, missing: bool) -> DocPath:
    """Drop from pydantic's location what is a union's tag rather than a key of the document."""
    path: list[str | int] = []
    node = data
    for part in loc[:-1] if missing else loc:
        inside_map = isinstance(node, dict) and part in node
        inside_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if inside_map or inside_list:
            path.append(part)
            node = node[part]
    return tuple(path)


# pydantic's errors by type, in YAML's words.
_EXPECTED = {
    "int_type": "a whole number", "int_parsing": "a whole number",
    "int_from_float": "a whole number", "float_type": "a number", "float_parsing": "a number",
    "bool_type": "true or false", "bool_parsing": "true or false", "string_type": "text",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping",
    "model_type": "a mapping", "model_attributes_type": "a mapping",
}  # fmt: skip


def _tag_key(item: Any) -> str:
    return str(item["ctx"]["discriminator"]).strip("'")


def _words(quoted: str) -> list[str]:
    """Return the words of `'a', 'b' or 'c'`."""
    return [word.strip("' ") for word in quoted.replace(" or ", ",").split(",")]


def _wanted(item: Any, cls: type[BaseModel]) -> str:
    """Say what was expected, and how a mapping would begin."""
    kind, context = item["type"], item.get("ctx", {})
    if kind in ("too_short", "too_long"):
        bound, n = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        return f"expected at {bound} {context[n]} items"
    if kind not in _EXPECTED:
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        return shown(message, 500)
    keys = _known_keys(cls, item["loc"]) if kind.startswith("model") and item["loc"] else []
    return f"expected {_EXPECTED[kind]}" + (f" of {', '.join(dict.fromkeys(keys))}" if keys else "")


def _lacking(names: list[str], cls: type[BaseModel], loc: DocPath) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    said = f"the key {quoted} is missing" if len(names) == 1 else f"the keys {quoted} are missing"
    inherits = len(loc) == 1 and "extends" in cls.model_fields
    return said + ("; `extends: NAME` begins with another entry's" if inherits else "")


def _sentence(item: Any, cls: type[BaseModel]) -> str:
    kind, loc = item["type"], item["loc"]
    if kind == "extra_forbidden":
        hint = did_you_mean(str(loc[-1]), _known_keys(cls, loc[:-1]))
        return f"unknown key '{shown(str(loc[-1]))}'. {hint}"
    if kind == "union_tag_not_found":
        return f"the key '{_tag_key(item)}' is missing"
    if kind == "union_tag_invalid":
        tag, tags = item["input"][_tag_key(item)], item["ctx"]["expected_tags"]
        hint = did_you_mean(tag, _words(tags)) if isinstance(tag, str) else ""
        return f"expected {tags}, received {describe(tag)}. {hint}".removesuffix(". ")
    message = _wanted(item, cls)
    if kind == "literal_error" and isinstance(item["input"], str):
        hint = did_you_mean(item["input"], _words(item["ctx"]["expected"]))
        return f"{message}, received {describe(item['input'])}. {hint}"
    if kind == "value_error" and isinstance(item["input"], dict):
        return str(message)
    return f"{message}, received {describe(item['input'])}"


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is None:
        is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return [annotation] if is_model else []
    return [cls for arg in get_args(annotation) for cls in _classes_in(arg)]


def _known_keys(cls: type[BaseModel], loc: DocPath) -> list[str]:
    """Return the keys that would have been accepted at pydantic's location `loc`."""
    candidates = [cls]
    for part in loc:
        fields = [
            info.annotation
            for c in candidates
            for name, info in c.model_fields.items()
            if part in (name, info.alias)
        ]
        if fields:
            candidates = [c for annotation in fields for c in _classes_in(annotation)]
            continue
        narrowed = [
            c
            for c in candidates
            if "type" in c.model_fields and part in get_args(c.model_fields["type"].annotation)
        ]
        candidates = narrowed or candidates
    return [info.alias or name for c in candidates for name, info in c.model_fields.items()]


def validate(cls: type[T], document: Document, path: DocPath = ()) -> T:
    """Read the value at `path` of a document as `cls`.

    Raises:
        DocumentError: with the place of each thing that does not fit.
    """
    value = document.data
    for part in path:
        value = value[part]
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        found = problems_of(error, cls, value, path)
        raise DocumentError(
            [Problem(p.path, p.text, document.place(p.path)) for p in found]
        ) from error


# ---------------------------------------------------------------------------- writing


def to_yaml(value: BaseModel | Mapping[str, Any], *, comment: str = "") -> str:
    """Write a schema object, or plain values, as YAML 1.2; short lists on one line."""
    from io import StringIO

    from ruamel.yaml import YAML

    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    stream = StringIO()
    yaml.dump(_fold(plain), stream)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + stream.getvalue()


# Text of these characters alone means the same with and without quotes.
_SIMPLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ ./()×*+-]*")


def _fold(value: Any) -> Any:
    """Copy values so that nothing is written as an alias, and quote what is not simple text."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {_fold(key): _fold(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fold(item) for item in value]
    if isinstance(value, str) and not _SIMPLE.fullmatch(value):
        return DoubleQuotedScalarString(value)
    return value
