"""Random registries for hypothesis: valid by construction, changed at random, or surely broken.

A registry is plain values as a user would write them: `{"norms": …, "blocks": …, "models": …}`
with one model named `m`. Images and widths are small, so that a network is built in milliseconds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

from hypothesis import strategies as st

from kerasnet import schema
from kerasnet.plan import out_size

Path = tuple[str | int, ...]

ACTIVATIONS = get_args(schema.Activation)
NON_NEGATIVE = ("relu", "relu6", "sigmoid")
# Pairs of convolutions, kernel and padding, of which the second takes off what the first adds.
PAIRS = [[(2, 1), (2, 0)], [(4, 2), (4, 1)], [(3, 2), (3, 0)], [(2, 1), (4, 1)]]
fractions = st.sampled_from([0.0, 0.1, 0.5, 0.9])
widths = st.integers(1, 8)

initializers = st.sampled_from(get_args(schema.NamedInitializer)) | st.one_of(
    st.builds(
        lambda options: {"variance_scaling": options},
        st.fixed_dictionaries(
            {},
            optional={
                "scale": st.floats(0.1, 4.0),
                "mode": st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
                "distribution": st.sampled_from(
                    ["truncated_normal", "untruncated_normal", "uniform"]
                ),
            },
        ),
    ),
    st.floats(0.01, 1.0).map(lambda x: {"normal": {"stddev": x}}),
    st.floats(0.01, 1.0).map(lambda x: {"uniform": {"limit": x}}),
    st.floats(-1.0, 1.0).map(lambda x: {"constant": x}),
)

norms = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("batch_norm"),
        "epsilon": st.sampled_from([1e-5, 1e-3, 0.1]),
        "momentum": fractions,
        "center": st.booleans(),
        "scale": st.booleans(),
    },
)


@dataclass(frozen=True)
class Size:
    """What the layers so far give; height and width are 0 once it is flat."""

    height: int
    width: int
    channels: int
    non_negative: bool = False

    @property
    def side(self) -> int:
        """The shorter side."""
        return min(self.height, self.width)

    def after(self, kernel: int, stride: int, padding: int) -> Size:
        """Return the size after a window has slid over this one; values may change their sign."""
        height, width = (out_size(n, kernel, stride, padding) for n in (self.height, self.width))
        return Size(height, width, self.channels)

    def activated(self, act: str) -> Size:
        """Return this size after an activation."""
        keeps = act == "none" and self.non_negative
        return replace(self, non_negative=act in NON_NEGATIVE or keeps)


class Writer:
    """Writes a registry, knowing the size at each place, so that everything fits."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.norms = {"bn": draw(norms)}
        if self.rarely(3):
            self.norms["other"] = draw(norms)
        self.blocks: dict[str, Any] = {}
        self.elastic: list[str] = []  # blocks that fit wherever they stand
        self.defaults = self.some(
            norm=self.norm_names(), act=st.sampled_from(ACTIVATIONS), bias=st.booleans(),
            kernel_init=initializers, bias_init=initializers,
        )  # fmt: skip
        self.size = Size(*draw(st.tuples(*[st.integers(1, 12)] * 2, st.integers(1, 4))))

    # ---- drawing

    def rarely(self, n: int) -> bool:
        """Return True once in `n` times; hypothesis shrinks to False."""
        return bool(self.draw(st.integers(1, n)) == n)

    def pick(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def some(self, **strategies: st.SearchStrategy[Any]) -> dict[str, Any]:
        """Draw about a third of some optional fields."""
        return {key: self.draw(x) for key, x in strategies.items() if self.rarely(3)}

    def norm_names(self) -> st.SearchStrategy[str]:
        return st.sampled_from([*self.norms, "none"])

    def act(self, act: str | None) -> str:
        return act or self.defaults.get("act", "relu")

    def groups(self, *channels: int) -> dict[str, int]:
        """Draw a number of groups that divides all of some channels."""
        common = math.gcd(*channels)
        return {"groups": self.pick(*(n for n in range(1, common + 1) if common % n == 0))}

    # ---- layers one by one

    def window(self) -> dict[str, int]:
        """Draw a convolution's window that fits, and slide it."""
        kernel, stride = self.pick(1, 2, 3, 3, 4, 5, 7), self.pick(1, 1, 2, 3)
        least = max(0, math.ceil((kernel - self.size.side) / 2))
        padding = self.draw(st.integers(least, least + 2))
        if kernel % 2 and self.rarely(2):
            padding, given = (kernel - 1) // 2, {}
        else:
            given = {"padding": padding}
        self.size = self.size.after(kernel, stride, padding)
        return {"kernel": kernel, **({"stride": stride} if stride > 1 else {}), **given}

    def conv(self) -> dict[str, Any]:
        before, filters = self.size.channels, self.draw(widths)
        made = {
            "filters": filters, **self.window(), **self.some(bias=st.booleans()),
            **self.some(kernel_init=initializers, bias_init=initializers),
        }  # fmt: skip
        if self.rarely(3):
            made |= self.groups(before, filters)
        self.size = replace(self.size, channels=filters)
        return {"conv": made}

    def norm(self) -> Any:
        self.size = replace(self.size, non_negative=False)
        long = self.some(name=self.norm_names(), gamma_init=initializers)
        return self.pick("norm", {"norm": self.draw(self.norm_names())}, {"norm": long})

    def activation(self) -> Any:
        act = self.draw(st.none() | st.sampled_from(ACTIVATIONS))
        self.size = self.size.activated(self.act(act))
        return "act" if act is None else {"act": act}

    def pool(self, kind: str) -> Any:
        size = self.draw(st.integers(1, min(3, self.size.side + 1)))
        needed = max(0, math.ceil((size - self.size.side) / 2))
        most = size // 2 if kind == "avg_pool" or self.size.non_negative else 0
        size = size if needed <= most else 1
        padding = self.draw(st.integers(needed, most)) if needed <= most and size > 1 else 0
        stride = self.pick(None, 1, 2, 3)
        kept = self.size.non_negative
        self.size = replace(self.size.after(size, stride or size, padding), non_negative=kept)
        if stride is None and padding == 0:
            return {kind: self.pick(size, {"size": size})}
        return {kind: {"size": size, "padding": padding} | ({"stride": stride} if stride else {})}

    def zero_pad(self) -> Any:
        amount = self.draw(st.integers(1, 2))
        sides = {side: getattr(self.size, side) + 2 * amount for side in ("height", "width")}
        self.size = replace(self.size, **sides)
        return {"zero_pad": amount}

    def scale(self) -> Any:
        return {"scale": self.pick(0.125, 1.0, 3.0)}

    def dropout(self) -> Any:
        return {"dropout": self.draw(fractions)}

    def dense(self) -> Any:
        units = self.draw(widths)
        self.size = Size(0, 0, units)
        return {"dense": self.pick(units, self.dense_options(units))}

    def dense_options(self, units: int | str) -> dict[str, Any]:
        more = self.some(bias=st.booleans(), kernel_init=initializers, bias_init=initializers)
        return {"units": units, **more}

    def flat(self) -> str:
        """Draw a layer that leaves features only."""
        kind = self.pick("global_avg_pool", "global_max_pool", "flatten")
        places = self.size.height * self.size.width if kind == "flatten" else 1
        self.size = Size(0, 0, self.size.channels * places)
        return str(kind)

    def steps(self, most: int) -> list[Any]:
        """Draw a list of layers that fit the present size, flat or not."""
        both = [self.norm, self.activation, self.dropout, self.scale]
        pools = [lambda: self.pool("max_pool"), lambda: self.pool("avg_pool")]
        spatial = [self.conv, *pools, self.zero_pad, *both]
        return [
            self.pick(*(spatial if self.size.height else [self.dense, *both]))()
            for _ in range(self.draw(st.integers(0, most)))
        ]

    # ---- blocks and stages

    def stage(self) -> dict[str, Any]:
        """Draw a stage, and its block unless an earlier one is used again."""
        stage = {"width": self.draw(widths), **self.some(repeats=st.integers(1, 3))}
        if self.elastic and self.rarely(3):
            stage["block"] = self.pick(*self.elastic)
            block = self.blocks[stage["block"]]
            if any(conv.get("takes_stride") for conv in block["convs"]):
                stage |= self.some(stride=st.integers(1, 3), strided_block=self.ends())
        else:
            stage["block"] = f"b{len(self.blocks) + 1}"
            block = self.blocks[stage["block"]] = self.block(stage)
        self.walk(block, stage)
        return stage

    def ends(self) -> st.SearchStrategy[str]:
        return st.sampled_from(["first", "last"])

    def block(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Draw a block that fits a stage, and the stage's stride."""
        kind = self.pick("none", "identity", "padded", "project", "project")
        shortcut = {"project": self.projection()} if kind == "project" else kind
        block = {"shortcut": shortcut} | self.some(order=st.just("norm-act-conv"))
        if kind != "none":
            block |= self.some(merge_act=st.sampled_from(ACTIVATIONS))
        once = stage.get("repeats", 1) == 1
        if kind != "identity":
            stage |= self.some(stride=st.integers(1, 3))
            stage |= self.some(strided_block=self.ends())
        stride = stage.get("stride", 1)
        windows = self.free_windows(stride) if kind == "none" and once else None
        windows = windows or self.windows(stride, once)
        block["convs"] = convs = [{**w, **self.conv_fields()} for w in windows]
        last = self.last_filters(kind, stage)
        convs[-1].pop("filters", None)
        if last != "width" or self.rarely(2):
            convs[-1]["filters"] = last
        self.group(convs, stage)
        anywhere = kind == "project" and shortcut["project"].get("when") != "first"
        if anywhere and all(map(elastic, convs)):
            self.elastic.append(stage["block"])
        return block

    def projection(self) -> dict[str, Any]:
        return {
            **self.some(when=st.sampled_from(["always", "change", "first"])),
            **self.some(norm=st.booleans() | self.norm_names(), bias=st.booleans()),
            **self.some(act=st.sampled_from(ACTIVATIONS), kernel_init=initializers),
            **({"from": self.pick("input", "preactivation")} if self.rarely(2) else {}),
        }

    def conv_fields(self) -> dict[str, Any]:
        filters = widths | st.sampled_from(["width", "2 * width", "3 * width"])
        return self.some(
            filters=filters, bias=st.booleans(), norm=st.booleans() | self.norm_names(),
            act=st.sampled_from(ACTIVATIONS), dropout=fractions, kernel_init=initializers,
            gamma_init=initializers,
        )  # fmt: skip

    def free_windows(self, stride: int) -> list[dict[str, Any]] | None:
        """Draw windows of any kind for a block that stands once and has no shortcut."""
        before, found = self.size, []
        striding = self.draw(st.integers(0, 1))
        for i in range(self.draw(st.integers(1, 3))):
            size, window = self.size, self.window()
            step = stride if i == striding else 1
            if i == striding:
                window["takes_stride"] = True
            # Only the block's stride counts, not one drawn for the window alone.
            window.pop("stride", None)
            kernel = window["kernel"]
            self.size = size.after(kernel, step, window.get("padding", (kernel - 1) // 2))
            found.append(window)
        self.size = before
        takes = any("takes_stride" in window for window in found)
        return found if takes or stride == 1 else None

    def windows(self, stride: int, once: bool) -> list[dict[str, Any]]:
        """Draw windows that together only stride: n becomes ⌈n / stride⌉."""
        singles = []
        for _ in range(self.draw(st.integers(1, 2))):
            kernel = self.pick(1, 3, 3, 5, 7)
            explicit = {"padding": (kernel - 1) // 2} if self.rarely(2) else {}
            singles.append({"kernel": kernel, **explicit})
        if stride > 1 or self.rarely(2):
            singles[-1]["takes_stride"] = True
        even = self.size.height % 2 == self.size.width % 2 == 0
        if stride == 2 and once and even and self.rarely(2):
            kernel = self.pick(2, 4)
            singles[-1] |= {"kernel": kernel, "padding": kernel // 2 - 1}
        # After a convolution that strides, an image may be too small for a pair.
        if self.size.side > 4 and self.rarely(4):
            pair = [{"kernel": k, "padding": p} for k, p in self.pick(*PAIRS)]
            singles = [*pair, *singles]
        backwards = once and self.size.side > 4 * stride and self.rarely(2)
        return singles[::-1] if backwards else singles

    def last_filters(self, kind: str, stage: dict[str, Any]) -> int | str:
        """Draw what a block gives, so that its shortcut can be added."""
        before, width = self.size.channels, stage["width"]
        if kind == "identity":
            width = stage["width"] = self.pick(
                *(n for n in range(1, before + 1) if before % n == 0)
            )
            times = before // width
        elif kind == "padded":
            times = math.ceil(before / width) + self.draw(st.integers(0, 1))
        else:
            times = self.draw(st.integers(1, 3))
        return self.pick(times * width, "width" if times == 1 else f"{times} * width")

    def group(self, convs: list[dict[str, Any]], stage: dict[str, Any]) -> None:
        """Give some convolutions groups that divide their channels in every repeat."""
        filters = [resolved(conv, stage["width"]) for conv in convs]
        for i, conv in enumerate(convs):
            again = [filters[-1]] if stage.get("repeats", 1) > 1 else []
            before = [filters[i - 1]] if i else [self.size.channels, *again]
            if self.rarely(4):
                conv |= self.groups(*before, filters[i])

    def walk(self, block: dict[str, Any], stage: dict[str, Any]) -> None:
        """Go through a stage's blocks."""
        repeats, stride = stage.get("repeats", 1), stage.get("stride", 1)
        strided = 0 if stage.get("strided_block", "first") == "first" else repeats - 1
        for i in range(repeats):
            for conv in block["convs"]:
                kernel = conv["kernel"]
                step = stride if conv.get("takes_stride") and i == strided else 1
                self.size = self.size.after(kernel, step, conv.get("padding", (kernel - 1) // 2))
        act = "none"
        if block["shortcut"] != "none":
            act = block.get("merge_act", "none")
        elif "order" not in block:
            act = self.act(block["convs"][-1].get("act"))
        channels = resolved(block["convs"][-1], stage["width"])
        self.size = replace(self.size, channels=channels).activated(act)

    # ---- the whole

    def registry(self) -> dict[str, Any]:
        """Draw everything."""
        start = self.size
        model: dict[str, Any] = {"stem": self.steps(3), "stages": []}
        for _ in range(self.draw(st.integers(1, 3))):
            stage = self.stage()
            if self.rarely(3):
                stage["after"] = self.steps(2)
            model["stages"].append(stage)
        if self.rarely(3):
            model["neck"] = self.steps(2)
        self.flatten_early(model)
        head = self.steps(1)
        head += [self.flat()] if self.size.height else []
        head += self.steps(2)
        classifier = {"dense": self.pick("classes", self.dense_options("classes"))}
        model |= {"input": [start.height, start.width, start.channels], "head": [*head, classifier]}
        model |= self.some(classes=st.integers(1, 5), description=st.just("Drawn at random."))
        if self.defaults:
            model["defaults"] = self.defaults
        model = {key: value for key, value in model.items() if value or key != "stem"}
        return {"norms": self.norms, "blocks": self.blocks, "models": {"m": model}}

    def flatten_early(self, model: dict[str, Any]) -> None:
        """Now and then leave features already after the last stage or in the neck."""
        if self.rarely(8):
            place = model if "neck" in model or self.rarely(2) else model["stages"][-1]
            key = "neck" if place is model else "after"
            place[key] = [*place.get(key, []), self.flat(), *self.steps(1)]


def resolved(conv: dict[str, Any], width: int) -> int:
    """Return how many filters a block's convolution has."""
    return schema.resolve_filters(conv.get("filters", "width"), width)


def elastic(conv: dict[str, Any]) -> bool:
    """Whether a convolution takes any channels and, at stride 1, keeps any image's size."""
    half = (conv["kernel"] - 1) / 2
    return "groups" not in conv and conv.get("padding", half) == half


@st.composite
def registries(draw: Any) -> dict[str, Any]:
    """Draw a valid registry whose model `m` fits together."""
    return Writer(draw).registry()


# ---------------------------------------------------------------------------- changed


def places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value of a document, with its path."""
    yield path, value
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))


def at(document: Any, path: Path) -> Any:
    """Return the value at a path."""
    for part in path:
        document = document[part]
    return document


def put(document: dict[str, Any], path: Path, value: Any) -> None:
    """Set the value at a path."""
    at(document, path[:-1])[path[-1]] = value


def drop(document: dict[str, Any], path: Path) -> None:
    """Remove the value at a path."""
    del at(document, path[:-1])[path[-1]]


def inside(document: dict[str, Any], wanted: Callable[[Path, Any], bool]) -> list[Path]:
    """Return the paths inside entries whose values are wanted."""
    return [path for path, value in places(document) if len(path) > 2 and wanted(path, value)]


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# What the schema allows for a number, a name or a choice, whether or not the whole then fits.
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "kernel": st.integers(1, 9),
    "padding": st.none() | st.integers(0, 6),
    "stride": st.integers(1, 6),
    "groups": st.integers(1, 6),
    "filters": st.integers(1, 9),
    "width": st.integers(1, 9),
    "repeats": st.integers(1, 4),
    "size": st.integers(1, 9),
    "takes_stride": st.booleans(),
    "strided_block": st.sampled_from(["first", "last"]),
    "shortcut": st.sampled_from(["none", "identity", "padded", {"project": {"when": "first"}}]),
    "when": st.sampled_from(["always", "change", "first"]),
    "order": st.sampled_from(["conv-norm-act", "norm-act-conv"]),
    "act": st.sampled_from(ACTIVATIONS),
    "merge_act": st.sampled_from(ACTIVATIONS),
    "input": st.lists(st.integers(1, 9), min_size=3, max_size=3),
}


@st.composite
def changed_registries(draw: Any) -> dict[str, Any]:
    """Draw a registry in which each value is allowed, but which need not fit together."""
    document = copy.deepcopy(draw(registries()))
    found = inside(document, lambda path, _: path[-1] in OTHERS)
    chosen = draw(st.lists(st.sampled_from(found), min_size=1, max_size=3, unique=True))
    # What lies inside a value goes before the value itself.
    for path in sorted(chosen, key=len, reverse=True):
        put(document, path, draw(OTHERS[str(path[-1])]))
    return document


@st.composite
def extending_registries(draw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a registry, and the same one written with `extends`."""
    plain = draw(registries())
    split = copy.deepcopy(plain)
    for name, block in plain["blocks"].items():
        shared = {key: block[key] for key in block if key == "shortcut" or draw(st.booleans())}
        parent = f"{name}_parent"
        rest = {key: value for key, value in block.items() if shared.get(key) != value}
        split["blocks"][parent] = {"convs": [{"kernel": 1}], **shared}
        split["blocks"][name] = {"extends": parent, "convs": block["convs"], **rest}
    model = plain["models"]["m"]
    split["models"]["parent"] = {**model, "classes": 7, "head": ["flatten", {"dense": "classes"}]}
    flat_already = any(isinstance(x, str) and x != "norm" and x != "act" for x in flat_parts(model))
    if flat_already:
        split["models"]["parent"]["head"] = [{"dense": "classes"}]
    split["models"]["m"] = {
        "extends": "parent", "classes": model.get("classes", 10), "head": model["head"],
    }  # fmt: skip
    return plain, split


def flat_parts(model: dict[str, Any]) -> list[Any]:
    """Return the layers before the head that may leave features only."""
    return [*model.get("neck", []), *model["stages"][-1].get("after", [])]


# ---------------------------------------------------------------------------- broken

Break = Callable[[Any, dict[str, Any]], None]


def rename_key(draw: Any, document: dict[str, Any]) -> None:
    """Misspell a key."""
    found = inside(document, lambda path, _: isinstance(path[-1], str))
    path = draw(st.sampled_from(found))
    value = at(document, path)
    drop(document, path)
    key = str(path[-1])
    put(document, (*path[:-1], draw(st.sampled_from([key + "x", key.upper(), " " + key]))), value)


def wrong_type(draw: Any, document: dict[str, Any]) -> None:
    """Put a value of a type that fits nowhere."""
    path = draw(st.sampled_from(inside(document, lambda *_: True)))
    simple = not isinstance(at(document, path), dict | list)
    put(document, path, draw(st.sampled_from([{"no": "such"}, [[1]]] if simple else [-1.5, "x"])))


def out_of_range(draw: Any, document: dict[str, Any]) -> None:
    """Put a number that is too large, negative, or none."""
    path = draw(st.sampled_from(inside(document, lambda _, value: is_number(value))))
    whole, negative = isinstance(at(document, path), int), "constant" not in path
    values = [-1, 10**6, 10**30, 1.5] if whole else [math.nan, math.inf, *[-1.0] * negative]
    put(document, path, draw(st.sampled_from(values)))


def nothing_of_that_name(draw: Any, document: dict[str, Any]) -> None:
    """Name a block, norm, recipe or data set there is not."""
    model = document["models"]["m"]
    stage, block = (
        model["stages"][-1],
        document["blocks"][draw(st.sampled_from([*document["blocks"]]))],
    )
    choice = draw(st.integers(0, 4))
    if choice == 0:
        stage["block"] = "nobody"
    elif choice == 1:
        model["defaults"] = {**model.get("defaults", {}), "norm": "nobody"}
    elif choice == 2:
        block["convs"][0]["norm"] = "nobody"
    elif choice == 3:
        model["recipes"] = {"*": "nobody"}
    else:
        model["recipes"] = {"nobody": "original"}


def circle(draw: Any, document: dict[str, Any]) -> None:
    """Let entries extend one another in a circle, or one that there is not."""
    section = draw(st.sampled_from(["norms", "blocks", "models"]))
    entries = document[section]
    names = [f"link{i}" for i in range(draw(st.integers(1, 3)))]
    ends = draw(st.sampled_from([names[0], names[-1], "nobody"]))
    for name, parent in zip(names, [*names[1:], ends], strict=True):
        entries[name] = {"extends": parent}
    if section != "norms":
        entries[next(iter(entries))]["extends"] = names[0]


def missing_or_empty(draw: Any, document: dict[str, Any]) -> None:
    """Leave out, or leave empty, what there must be."""
    block = ("blocks", draw(st.sampled_from([*document["blocks"]])))
    model = ("models", "m")
    required: list[Path] = [
        (*model, "input"), (*model, "stages"), (*model, "head"), (*block, "convs"),
        (*block, "convs", 0, "kernel"), (*model, "stages", 0, "block"),
        (*model, "stages", 0, "width"),
    ]  # fmt: skip
    path = draw(st.sampled_from(required))
    if isinstance(at(document, path), list) and draw(st.booleans()):
        put(document, path, [])
    else:
        drop(document, path)


def classifier(draw: Any, document: dict[str, Any]) -> None:
    """Take the classifier away, or add another."""
    head = document["models"]["m"]["head"]
    if draw(st.booleans()):
        head.pop()
    else:
        head.insert(0, {"dense": "classes"})


BREAKS: list[Break] = [
    rename_key, wrong_type, out_of_range, nothing_of_that_name, circle, missing_or_empty,
    classifier,
]  # fmt: skip


@st.composite
def broken_registries(draw: Any) -> tuple[dict[str, Any], str]:
    """Draw a registry with one mistake in it, and what kind of mistake it is."""
    document = copy.deepcopy(draw(registries()))
    change = draw(st.sampled_from(BREAKS))
    change(draw, document)
    return document, change.__name__
