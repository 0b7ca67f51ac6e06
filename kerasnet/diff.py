"""What differs between two plans."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kerasnet.plan import Layer, Plan, format_shape
from kerasnet.summary import table

_COLUMNS = 80
_MOST_LABEL = 20
_FIELDS = ("type", "inputs", "output_shape", "kernel", "stride", "padding", "params")

Fields = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Difference:
    """Two plans, `a` and `b`, and the fields that differ by the name of a layer of both."""

    labels: tuple[str, str]
    a: Plan
    b: Plan
    changed: dict[str, Fields]

    @property
    def only_a(self) -> list[Layer]:
        """The layers that `b` lacks, in order."""
        return _missing(self.a, self.b)

    @property
    def only_b(self) -> list[Layer]:
        """The layers that `a` lacks, in order."""
        return _missing(self.b, self.a)

    @property
    def totals(self) -> dict[str, tuple[int, int]]:
        """Parameters, MACs of one image, and layers of either plan."""
        return {
            "params": (self.a.params["total"], self.b.params["total"]),
            "trainable": (self.a.params["trainable"], self.b.params["trainable"]),
            "macs": (self.a.macs, self.b.macs),
            "layers": (len(self.a.layers), len(self.b.layers)),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the object that `kerasnet diff --json` prints."""
        return {
            "a": self.labels[0],
            "b": self.labels[1],
            "totals": {what: list(pair) for what, pair in self.totals.items()},
            "only_a": [layer.name for layer in self.only_a],
            "only_b": [layer.name for layer in self.only_b],
            "changed": [
                {"name": name, "fields": {key: list(pair) for key, pair in fields.items()}}
                for name, fields in self.changed.items()
            ],
        }


def compare(a: Plan, b: Plan, labels: tuple[str, str] | None = None) -> Difference:
    """Compare two plans layer by layer.

    Layers are matched by name, which a plan holds once and which says where a layer stands; their
    order shows in their inputs. MACs follow from the other fields, so only their sum is compared.

    Args:
        a: the first plan.
        b: the second plan.
        labels: what to call them; their own names if not given.
    """
    other = {layer.name: layer for layer in b.layers}
    both = {
        layer.name: _changes(_facts(layer), _facts(other[layer.name]))
        for layer in a.layers
        if layer.name in other
    }
    changed = {name: fields for name, fields in both.items() if fields}
    return Difference(labels or (a.name, b.name), a, b, changed)


def _missing(plan: Plan, other: Plan) -> list[Layer]:
    names = {layer.name for layer in other.layers}
    return [layer for layer in plan.layers if layer.name not in names]


def _facts(layer: Layer) -> dict[str, Any]:
    """Return a layer's fields and options as JSON has them."""
    fields = {key: getattr(layer, key) for key in _FIELDS}
    # The number of filters or units is in the shape.
    options = {k: v for k, v in layer.options.items() if k not in ("filters", "units")}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in (fields | options).items()}


def _changes(a: dict[str, Any], b: dict[str, Any]) -> Fields:
    return {key: (a.get(key), b.get(key)) for key in a | b if a.get(key) != b.get(key)}


# ---------------------------------------------------------------------------- in words


def report(found: Difference) -> str:
    """Write a difference for people, 80 columns wide.

    A stage or block that one plan lacks is named as a whole; layers with the same changes share a
    paragraph.
    """
    labels = [_cut(label) for label in found.labels]
    if not (found.only_a or found.only_b or found.changed):
        return f"no difference between the plans of {labels[0]} and {labels[1]}"
    rows = [
        (what, f"{x:,}", f"{y:,}", f"{y - x:+,}" if x != y else "")
        for what, (x, y) in found.totals.items()
    ]
    header = ("", *labels, "difference")
    paragraphs = [table(header, rows, header[1:])]
    sides = ((labels[0], found.a, found.only_a), (labels[1], found.b, found.only_b))
    for label, plan, layers in sides:
        if layers:
            names = _wrapped(_wholes(plan, layers), 2)
            paragraphs.append(f"only in {label}: {_count(len(layers))}\n{names}")
    if found.changed:
        words = _in_words(found.changed)
        paragraphs.append(f"changed, {labels[0]} → {labels[1]}: {_count(len(found.changed))}")
        paragraphs += [f"{_wrapped(names, 2)}\n{said}" for said, names in words.items()]
    return "\n\n".join(paragraphs)


def _cut(label: str) -> str:
    return label if len(label) <= _MOST_LABEL else f"…{label[1 - _MOST_LABEL :]}"


def _count(layers: int) -> str:
    return f"{layers:,} layer{'s' if layers != 1 else ''}"


def _wrapped(items: Sequence[str], indent: int) -> str:
    """Return items on lines that break between items, or between the words of a lone one."""
    # A no-break space is a letter to textwrap.
    whole = [item.replace(" ", "\u00a0") for item in items] if len(items) > 1 else items
    filled = textwrap.fill(
        ", ".join(whole), _COLUMNS, initial_indent=" " * indent, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return filled.replace("\u00a0", " ")


def _wholes(plan: Plan, layers: Sequence[Layer]) -> list[str]:
    """Name layers, whole stages and whole blocks among them by a name and a count."""
    names = {layer.name for layer in layers}
    shared = [layer for layer in plan.layers if layer.name not in names]
    kept = {layer.stage for layer in shared} | {(layer.stage, layer.block) for layer in shared}
    counts: dict[str, int] = {}
    for layer in layers:
        if layer.stage not in kept:
            name = layer.stage
        elif layer.block and (layer.stage, layer.block) not in kept:
            name = f"{layer.stage}_{layer.block}"
        else:
            name = layer.name
        counts[name] = counts.get(name, 0) + 1
    return [name if name in names else f"{name} ({_count(n)})" for name, n in counts.items()]


def _in_words(changed: dict[str, Fields]) -> dict[str, list[str]]:
    """Return the names of the layers that changed, by what changed."""
    words: dict[str, list[str]] = {}
    for name, fields in changed.items():
        lines = [f"{key}: {_show(key, x)} → {_show(key, y)}" for key, (x, y) in fields.items()]
        words.setdefault("\n".join(_wrapped([line], 6) for line in lines), []).append(name)
    return words


def _show(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key == "output_shape":
        return format_shape(value)
    if key == "inputs":
        return " + ".join(value)
    if isinstance(value, str):
        return value
    return f"{value:,}" if key == "params" else json.dumps(value)
