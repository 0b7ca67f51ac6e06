"""Where a layer's weights are in PyTorch's files, and how their axes lie there.

A key style of the registry maps our layers' names to PyTorch's modules by rules. A rule's pattern
is a layer's name in which `{s}` stands for a number, and `*` for anything; its template is the
module's name, in which `{s}`, `{s+1}` or `{s-1}` is that number, shifted, and `{index}` the layer's
place among all layers of the head, or of the network before the head, from 0 on.

Nothing here imports Keras; NumPy is imported where arrays are moved, as light commands read rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kerasnet.errors import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from kerasnet.plan import Layer, Plan, Shape
    from kerasnet.schema import KeyStyle

    Array = np.ndarray[Any, Any]

TORCH_NAMES = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip
# How many batches a PyTorch norm has seen; nothing here depends on it.
COUNTER = "num_batches_tracked"

_TOKEN = re.compile(r"\{([a-z]{1,20})\}|\*|[a-z0-9_]+")
_PLACE = re.compile(r"\{([a-z]{1,20})(?:([+-])([0-9]{1,3}))?\}")
_NUMBER = "([1-9][0-9]{0,5})"
# Names have three numbers at most: stage, block, and place in the block.
_MOST_NUMBERS = 3


# ---------------------------------------------------------------------------- rules


@lru_cache(maxsize=4096)
def pattern(text: str) -> re.Pattern[str]:
    """Return the expression that a rule's pattern stands for; its groups are the numbers.

    Raises:
        ValueError: it is none.
    """
    parts, end, names = [], 0, []
    for token in _TOKEN.finditer(text):
        if token.start() != end:
            break
        end = token.end()
        if token[1]:
            names.append(token[1])
            parts.append(f"(?P<{token[1]}>{_NUMBER[1:-1]})")
        else:
            parts.append(".*" if token[0] == "*" else token[0])
    if end != len(text) or not text:
        raise ValueError(
            "expected a layer's name in which {s} stands for a number and * for anything, such as "
            f"stage{{s}}_block{{b}}_conv{{i}}; cannot read {text[end : end + 20]!r}"
        )
    if len(names) > _MOST_NUMBERS or text.count("*") > 2:
        raise ValueError(f"at most {_MOST_NUMBERS} numbers and two * fit into a layer's name")
    if "index" in names or len(set(names)) < len(names) or "}{" in text:
        raise ValueError(
            "each number needs a name of its own, other than {index}, and something between it and "
            "the next"
        )
    return re.compile("".join(parts))


def check_template(template: str, layer: str) -> None:
    """Check the module's name that a rule gives.

    Args:
        template: the module's name.
        layer: the rule's pattern.

    Raises:
        ValueError: it has a placeholder that the pattern has not, or is no name.
    """
    known = [*pattern(layer).groupindex, "index"]
    for place in _PLACE.finditer(template):
        if place[1] not in known:
            hint = did_you_mean(place[1], known)
            raise ValueError(f"unknown placeholder {place[0]}. {hint}")
    if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", _PLACE.sub("1", template)):
        raise ValueError(
            "expected a module's name such as layer{s}.{b-1}.conv{i}, in which {s}, {s+1} and "
            "{s-1} write a number of the layer's name"
        )


def _written(template: str, numbers: Mapping[str, int]) -> str | None:
    """Fill a template's placeholders, or return None where a number would be below zero."""
    values = {
        place[0]: numbers[place[1]] + int(f"{place[2] or '+'}{place[3] or 0}")
        for place in _PLACE.finditer(template)
    }
    if any(value < 0 for value in values.values()):
        return None
    return _PLACE.sub(lambda place: str(values[place[0]]), template)


def dead_rules(style: KeyStyle) -> Iterator[tuple[str, str]]:
    """Yield the pattern of each rule that can never match, and why."""
    patterns = list(style.rules)
    fresh = 1 + max((int(n) for text in patterns for n in _numbers(text)), default=1)
    for i, text in enumerate(patterns):
        numbers = _numbers(text)
        names: tuple[str, ...] = ()
        if len(numbers) <= _MOST_NUMBERS:
            names = _possible_names(frozenset({"1", str(fresh), *numbers}))
        names = tuple(name for name in names if pattern(text).fullmatch(name))
        if not names:
            yield (
                text,
                "matches no layer that has weights; such layers have names like "
                + (
                    "stem_conv, stem_norm, stage1_block1_conv1, stage1_block1_norm1, "
                    "stage1_block1_shortcut_conv, head_dense1 and head_logits"
                ),
            )
            continue
        taken = [_taker(name, patterns[:i]) for name in names]
        if all(taken):
            yield text, f"can never match: the rule '{taken[0]}' before it takes its layers"


def _taker(name: str, patterns: list[str]) -> str | None:
    return next((text for text in patterns if pattern(text).fullmatch(name)), None)


def _numbers(text: str) -> list[str]:
    return [n[:6] for n in re.findall("[0-9]+", text)]


@lru_cache(maxsize=64)
def _possible_names(numbers: frozenset[str]) -> tuple[str, ...]:
    """Return what layers with weights may be called, with these numbers."""
    blocks = [f"stage{s}_block{b}" for s in numbers for b in numbers]
    parts = ["stem", "neck", "head", *(f"stage{s}" for s in numbers)]
    return (
        "head_logits",
        *(f"{p}_{role}{n}" for p in parts for role in ("conv", "norm", "dense")
          for n in ("", *numbers)),
        *(f"{b}_{role}{n}" for b in blocks for role in ("conv", "norm") for n in numbers),
        *(f"{b}_shortcut_{role}" for b in blocks for role in ("conv", "norm")),
    )  # fmt: skip


# ---------------------------------------------------------------------------- a model's keys


@dataclass(frozen=True)
class Slot:
    """One tensor of a file: whose it is here, its shape there, and whether a dense kernel is OIHW.

    Attributes:
        layer: our layer's name.
        variable: the layer's variable, such as `kernel`.
        shape: in the file.
        as_conv: a dense kernel is written as a convolution's.
    """

    layer: str
    variable: str
    shape: Shape
    as_conv: bool = False

    @property
    def ours(self) -> str:
        """`layer/variable`."""
        return f"{self.layer}/{self.variable}"


@dataclass(frozen=True)
class Slots:
    """A model's tensors by a style's keys.

    Attributes:
        by_key: the tensors.
        norms: norm layers' names by their modules' names.
        problems: what keeps the style from holding the whole model.
    """

    by_key: Mapping[str, Slot]
    norms: Mapping[str, str]
    problems: tuple[str, ...]


def slots(plan: Plan, style: KeyStyle) -> Slots:
    """Return where a model's weights are in a file of a style."""
    by_key: dict[str, Slot] = {}
    norms: dict[str, str] = {}
    modules: dict[str, str] = {}
    problems = []
    places, strided = _places(plan), _strided_blocks(plan)
    for key, shape in plan.variables().items():
        name, _, variable = key.partition("/")
        layer = plan.layer(name)
        if name not in modules:
            module, why = _module(layer, style, places, strided)
            modules[name] = module
            if why:
                problems.append(why)
            elif layer.type == "BatchNormalization":
                norms[module] = name
        if not modules[name]:
            continue
        as_conv = layer.type == "Dense" and _as_conv(name, style)
        slot = Slot(name, variable, _torch_shape(layer, plan, shape, as_conv), as_conv)
        there = f"{modules[name]}.{TORCH_NAMES[variable]}"
        if there in by_key:
            problems.append(f"gives {by_key[there].layer} and {name} the same key '{there}'")
        by_key[there] = slot
    return Slots(by_key, norms, tuple(problems))


def _places(plan: Plan) -> dict[str, int]:
    """Return each layer's place in its part: the head, or all before it."""
    head = [layer.name for layer in plan.layers[1:] if layer.stage == "head"]
    body = [layer.name for layer in plan.layers[1:] if layer.stage != "head"]
    return {name: i for part in (body, head) for i, name in enumerate(part)}


def _strided_blocks(plan: Plan) -> set[tuple[str, str]]:
    return {(x.stage, x.block) for x in plan.layers if x.block and (x.stride or 1) > 1}


def _module(
    layer: Layer, style: KeyStyle, places: Mapping[str, int], strided: set[tuple[str, str]]
) -> tuple[str, str]:
    """Return the name of a layer's module, or nothing and why there is none."""
    for text, rule in style.rules.items():
        match = pattern(text).fullmatch(layer.name)
        if match:
            numbers = {k: int(v) for k, v in match.groupdict().items()}
            use = rule.strided if rule.strided and (layer.stage, layer.block) in strided else None
            module = _written(use or rule.key, {**numbers, "index": places[layer.name]})
            if module is None:
                return "", f"the rule '{text}' gives {layer.name} a number below zero"
            return module, ""
    return "", f"has no rule for {layer.name}"


def _as_conv(name: str, style: KeyStyle) -> bool:
    return next(r.as_conv for text, r in style.rules.items() if pattern(text).fullmatch(name))


def detect(keys: Mapping[str, Any], plan: Plan, styles: Mapping[str, KeyStyle]) -> str | None:
    """Return the style that has a place for the most of a file's keys; None if none has any.

    Args:
        keys: the file's.
        plan: the model's.
        styles: by name; the first of equals is taken.
    """
    hits = {
        name: len(slots(plan, style).by_key.keys() & keys.keys()) for name, style in styles.items()
    }
    best = max(hits, key=lambda name: hits[name], default=None)
    return best if best is not None and hits[best] else None


# ---------------------------------------------------------------------------- axes


def _flattened(layer: Layer, plan: Plan) -> Shape | None:
    """Return (height, width, channels) of what was flattened to a layer's input features."""
    while layer.inputs:
        layer = plan.layer(layer.inputs[0])
        if layer.type == "Flatten":
            return plan.layer(layer.inputs[0]).output_shape
        if layer.type not in ("Dropout", "Activation", "BatchNormalization"):
            return None
    return None


def _torch_shape(layer: Layer, plan: Plan, shape: Shape, as_conv: bool) -> Shape:
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if len(shape) < 2:
        return shape
    if not as_conv:
        return shape[::-1]
    height, width, channels = _flattened(layer, plan) or (1, 1, shape[0])
    return (shape[1], channels, height, width)


def to_torch(array: Array, plan: Plan, layer: str, variable: str, as_conv: bool = False) -> Array:
    """Return a variable in PyTorch's order of axes and features.

    Args:
        array: (height, width, in, out) of a convolution, (in, out) of a dense layer, or a vector.
        plan: the model's.
        layer: the layer's name.
        variable: such as `kernel` or `gamma`.
        as_conv: write a dense kernel as that of a convolution over what was flattened.

    Returns:
        (out, in, height, width), (out, in), or a vector. What follows a flattening has its features
        channels first, as PyTorch flattens them. The variance is copied as it is, although
        PyTorch's is the unbiased one (n - 1) and Keras's the biased one (n).
    """
    import numpy as np

    order = _order(plan, layer, variable)
    moved = array if order is None else array[order]
    if array.ndim == 4:
        moved = moved.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        moved = moved.T.reshape(_torch_shape(plan.layer(layer), plan, array.shape, as_conv))
    return np.ascontiguousarray(moved)


def from_torch(array: Array, plan: Plan, layer: str, variable: str) -> Array:
    """Return the variable that `to_torch` gave."""
    import numpy as np

    order = _order(plan, layer, variable)
    if array.ndim == 4 and plan.layer(layer).type == "Conv2D":
        moved = array.transpose(2, 3, 1, 0)
    elif array.ndim >= 2:
        moved = array.reshape(len(array), -1).T
    else:
        moved = array
    if order is not None:
        moved = moved[np.argsort(order)]
    return np.ascontiguousarray(moved)


def _order(plan: Plan, layer: str, variable: str) -> Array | None:
    """Return where PyTorch's flattened features, channels first, are among Keras's; or None."""
    import numpy as np

    found = plan.layer(layer)
    if found.type == "Conv2D" or (found.type == "Dense" and variable == "bias"):
        return None
    flattened = _flattened(found, plan)
    if flattened is None:
        return None
    return np.arange(np.prod(flattened)).reshape(flattened).transpose(2, 0, 1).ravel()
