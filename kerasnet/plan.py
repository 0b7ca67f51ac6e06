"""From a spec to a plan: every layer with its wiring, shape, parameters and MACs, without Keras.

Shapes are (height, width, channels) or (features,), without the batch dimension. MACs are
multiply-accumulates of one image's forward pass, of convolutions and dense layers only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from kerasnet import schema
from kerasnet.document import DocPath, DocumentError, Problem, shown
from kerasnet.errors import BadInputError, did_you_mean

Shape = tuple[int, ...]

# Figures that no useful small network reaches. In float32 a layer's parameters take 1 GB at most, a
# model's 2 GB, one activation of one image 256 MB, and all its activations 8 GB.
MAX_LAYERS = 50_000
MAX_LAYER_PARAMS = 2**28
MAX_PARAMS = 2**29
MAX_ACTIVATION = 2**26
MAX_ACTIVATIONS = 2**31

_NON_NEGATIVE = {"relu", "relu6", "sigmoid"}
_KEEPS_SIGN = {"MaxPooling2D", "AveragePooling2D", "Dropout", "ZeroPadding2D", "Rescaling"}


@dataclass(frozen=True)
class Layer:
    """One layer. `type` is the name of a Keras class; `options` are its constructor's arguments.

    `padding` is explicit and symmetric: a Keras model that cannot express it in the layer itself
    puts a `ZeroPadding2D` named `<name>_pad` before it.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    output_shape: Shape
    params: int = 0
    trainable_params: int = 0
    macs: int = 0
    kernel: int | None = None
    stride: int | None = None
    padding: int | None = None
    stage: str = ""
    block: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_pad_layer(self) -> bool:
        """Whether Keras needs a layer of its own for the padding.

        `same` equals a padding of (kernel - 1) / 2 at stride 1 only.
        """
        if not self.padding:
            return False
        same = self.stride == 1 and 2 * self.padding + 1 == self.kernel
        return not (same and self.type == "Conv2D")


@dataclass(frozen=True)
class Plan:
    """A network as a flat list of layers in the order they are computed.

    Attributes:
        name: the model's, or the block's.
        input_shape: (height, width, channels).
        layers: the input first, the output last.
        features: the layers that give the stages' outputs.
        keys: how PyTorch's files name its weights, by the style's name.
    """

    name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    features: tuple[str, ...] = ()
    keys: Mapping[str, schema.KeyStyle] = field(default_factory=dict)

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @property
    def output(self) -> Layer:
        """The last layer."""
        return self.layers[-1]

    @property
    def params(self) -> dict[str, int]:
        """Parameter counts: trainable, non_trainable (moving statistics) and total."""
        total = sum(layer.params for layer in self.layers)
        trainable = sum(layer.trainable_params for layer in self.layers)
        return {"trainable": trainable, "non_trainable": total - trainable, "total": total}

    @property
    def parts(self) -> tuple[str, ...]:
        """`stem`, `stage1`, `stage2`, …, `neck`, `head`: those that have layers, in order."""
        return tuple(dict.fromkeys(layer.stage for layer in self.layers if layer.stage))

    def trained_params(self, freeze: Iterable[str]) -> int:
        """Return how many parameters are trained when some parts are not.

        Args:
            freeze: names of `parts`.

        Raises:
            BadInputError: there is no such part, or nothing would be trained.
        """
        frozen = set(freeze)
        for part in sorted(frozen - set(self.parts)):
            # Where no name is near, all of them are listed.
            near = did_you_mean(part, self.parts)
            known = f" Known: {', '.join(self.parts)}." if near.endswith("?") else ""
            raise BadInputError(f"{self.name} has no part '{shown(part)}' to freeze. {near}{known}")
        trained = sum(x.trainable_params for x in self.layers if x.stage not in frozen)
        if frozen and not trained:
            raise BadInputError(
                f"freezing {', '.join(p for p in self.parts if p in frozen)} leaves nothing of "
                f"{self.name} to train; leave out one of them, such as {self.parts[-1]}"
            )
        return trained

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image's forward pass."""
        return sum(layer.macs for layer in self.layers)

    def layer(self, name: str) -> Layer:
        """Return the layer of this name; KeyError where there is none."""
        return self._by_name[name]

    def variables(self) -> dict[str, Shape]:
        """Return the shape of every weight by `layer/variable`, as weights files are keyed."""
        return {
            f"{layer.name}/{name}": shape
            for layer in self.layers
            for name, shape in self._layer_variables(layer).items()
        }

    def _layer_variables(self, layer: Layer) -> dict[str, Shape]:
        options, out = layer.options, layer.output_shape[-1:]
        if layer.type == "BatchNormalization":
            affine = {"gamma": options["scale"], "beta": options["center"]}
            kept = [name for name, there in affine.items() if there]
            return dict.fromkeys((*kept, "moving_mean", "moving_variance"), out)
        if layer.type not in ("Conv2D", "Dense"):
            return {}
        channels = self.layer(layer.inputs[0]).output_shape[-1]
        bias = {"bias": out} if options["use_bias"] else {}
        if layer.type == "Dense":
            return {"kernel": (channels, *out), **bias}
        assert layer.kernel is not None
        kernel = (layer.kernel, layer.kernel, channels // options["groups"], *out)
        return {"kernel": kernel, **bias}

    def feature_shapes(self) -> dict[str, Shape]:
        """Return the output shape of every stage, by `stage1`, `stage2`, …"""
        return {
            f"stage{i}": self.layer(name).output_shape for i, name in enumerate(self.features, 1)
        }

    def to_json(self) -> dict[str, Any]:
        """Return the object that `kerasnet summary --json` prints."""
        kept = ("name", "type", "output_shape", "params", "trainable_params", "macs")
        spatial = ("kernel", "stride", "padding")
        return {
            "model": self.name,
            "input_shape": list(self.input_shape),
            "layers": [
                {
                    **{k: _plain(v) for k, v in asdict(x).items() if k in kept + spatial},
                    "inputs": list(x.inputs),
                }
                for x in self.layers
            ],
            "params": self.params,
            "macs": self.macs,
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ---------------------------------------------------------------------------- tracing


class _Tracer:
    """Appends layers to a plan, keeping names unique and shapes above zero."""

    def __init__(
        self,
        input_shape: Shape,
        defaults: schema.Defaults,
        norms: Mapping[str, schema.Norm],
        path: DocPath,
    ) -> None:
        self.defaults, self.norms = defaults, norms
        self.layers: dict[str, Layer] = {}
        self.params = self.activations = 0
        self.stage = self.block = ""
        self.path = path
        self.input = self.add("input", "InputLayer", (), tuple(input_shape))

    def fail(self, text: str) -> DocumentError:
        return DocumentError([Problem(self.path, text)])

    def shape(self, name: str) -> Shape:
        return self.layers[name].output_shape

    def add(self, name: str, kind: str, inputs: Sequence[str], shape: Shape, **more: Any) -> str:
        self._bound(name, more.get("params", 0), math.prod(shape))
        assert name not in self.layers, name
        self.layers[name] = Layer(
            name, kind, tuple(inputs), tuple(shape), stage=self.stage, block=self.block, **more
        )
        return name

    def _bound(self, name: str, params: int, activation: int) -> None:
        self.params += params
        self.activations += activation
        for number, limit, what in (
            (params, MAX_LAYER_PARAMS, "{} would have {:,} parameters"),
            (self.params, MAX_PARAMS, "up to {}, the model would have {:,} parameters"),
            (activation, MAX_ACTIVATION, "{} would give {:,} values an image"),
            (self.activations, MAX_ACTIVATIONS, "up to {}, {:,} values an image would be kept"),
        ):
            if number > limit:
                raise self.fail(
                    f"{what.format(name, number)}; the limit is {limit:,}. Use a smaller input, "
                    "fewer filters or units, or pool before it"
                )

    def _spatial(self, name: str, what: str, x: str) -> tuple[int, int, int]:
        shape = self.shape(x)
        if len(shape) != 3:
            raise self.fail(
                f"{what} {name} needs height × width × channels, but {x} gives "
                f"{format_shape(shape)}"
            )
        return shape[0], shape[1], shape[2]

    def _window(self, name: str, x: str, kernel: int, stride: int, padding: int) -> tuple[int, int]:
        height, width, _ = self._spatial(name, "the window of", x)
        if min(height, width) + 2 * padding < kernel:
            raise self.fail(
                f"the shape goes to zero: {name} slides a {kernel}×{kernel} window with padding "
                f"{padding} over {height}×{width}. Use a larger input, or stride and pool less "
                "before it"
            )
        return out_size(height, kernel, stride, padding), out_size(width, kernel, stride, padding)

    # ---- layers

    def conv(
        self,
        name: str,
        x: str,
        filters: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool | None = None,
        kernel_init: Any = None,
        bias_init: Any = None,
    ) -> str:
        channels = self._spatial(name, "the convolution", x)[2]
        if padding is None:
            if kernel % 2 == 0:
                raise self.fail(f"{name} has an even kernel ({kernel}), so give its `padding`")
            padding = (kernel - 1) // 2
        if filters > schema.MAX_CHANNELS:
            raise self.fail(f"{name} would have {filters:,} filters; the limit is "
                            f"{schema.MAX_CHANNELS:,}")  # fmt: skip
        if channels % groups or filters % groups:
            raise self.fail(f"{name}: {groups} groups divide neither {channels} input channels "
                            f"nor {filters} filters evenly")  # fmt: skip
        height, width = self._window(name, x, kernel, stride, padding)
        weights = kernel * kernel * (channels // groups) * filters
        use_bias = self.defaults.bias if bias is None else bias
        params = weights + filters * use_bias
        options = {
            "filters": filters,
            "groups": groups,
            "use_bias": use_bias,
            "kernel_initializer": plain(kernel_init or self.defaults.kernel_init),
            "bias_initializer": plain(bias_init or self.defaults.bias_init),
        }
        return self.add(
            name, "Conv2D", (x,), (height, width, filters), kernel=kernel, stride=stride,
            padding=padding, params=params, trainable_params=params,
            macs=height * width * weights, options=options,
        )  # fmt: skip

    def norm(self, name: str, x: str, which: str | None = None, gamma_init: Any = "ones") -> str:
        which = which or self.defaults.norm
        if which == "none":
            return x
        if which not in self.norms:
            raise self.fail(f"there is no norm '{shown(which)}'")
        spec = self.norms[which]
        channels = self.shape(x)[-1]
        trainable = channels * (spec.center + spec.scale)
        options = {
            "epsilon": spec.epsilon,
            "momentum": spec.momentum,
            "center": spec.center,
            "scale": spec.scale,
            "gamma_initializer": plain(gamma_init),
        }
        return self.add(
            name, "BatchNormalization", (x,), self.shape(x), params=trainable + 2 * channels,
            trainable_params=trainable, options=options,
        )  # fmt: skip

    def act(self, name: str, x: str, which: str | None = None) -> str:
        which = which or self.defaults.act
        if which == "none":
            return x
        return self.add(name, "Activation", (x,), self.shape(x), options={"activation": which})

    def dropout(self, name: str, x: str, rate: float) -> str:
        return self.add(name, "Dropout", (x,), self.shape(x), options={"rate": rate})

    def pool(
        self, name: str, x: str, kind: str, size: int, stride: int | None = None, padding: int = 0
    ) -> str:
        stride = stride or size
        if 2 * padding > size:
            raise self.fail(f"{name}: padding {padding} is more than half of size {size}")
        if padding and kind == "max" and not self._non_negative(x):
            raise self.fail(
                f"{name} pads with zeros, which is a maximum's neutral element only after an "
                f"activation without negative values such as relu; {x} may be negative"
            )
        height, width = self._window(name, x, size, stride, padding)
        cls = {"max": "MaxPooling2D", "avg": "AveragePooling2D"}[kind]
        shape = (height, width, self.shape(x)[2])
        return self.add(name, cls, (x,), shape, kernel=size, stride=stride, padding=padding)

    def _non_negative(self, x: str) -> bool:
        layer = self.layers[x]
        while layer.type in _KEEPS_SIGN:
            layer = self.layers[layer.inputs[0]]
        return layer.options.get("activation") in _NON_NEGATIVE

    def zero_pad(self, name: str, x: str, amount: int) -> str:
        height, width, channels = self._spatial(name, "padding", x)
        shape = (height + 2 * amount, width + 2 * amount, channels)
        # A padded shortcut's layer has the same type: its padding is of width and channels.
        options = {"padding": [[amount, amount]] * 2, "data_format": "channels_last"}
        return self.add(name, "ZeroPadding2D", (x,), shape, options=options)

    def scale(self, name: str, x: str, factor: float) -> str:
        return self.add(name, "Rescaling", (x,), self.shape(x), options={"scale": factor})

    def bare(self, name: str, x: str, kind: str) -> str:
        height, width, channels = self._spatial(name, kind, x)
        if kind == "flatten":
            return self.add(name, "Flatten", (x,), (height * width * channels,))
        cls = {"global_avg_pool": "GlobalAveragePooling2D", "global_max_pool": "GlobalMaxPooling2D"}
        return self.add(name, cls[kind], (x,), (channels,))

    def dense(self, name: str, x: str, units: int, spec: schema.Dense) -> str:
        shape = self.shape(x)
        if len(shape) != 1:
            raise self.fail(
                f"dense layer {name} needs a flat input, but {x} gives {format_shape(shape)}; put "
                "`flatten` or `global_avg_pool` before it"
            )
        use_bias = self.defaults.bias if spec.bias is None else spec.bias
        params = shape[0] * units + units * use_bias
        options = {
            "units": units,
            "use_bias": use_bias,
            "kernel_initializer": plain(spec.kernel_init or self.defaults.kernel_init),
            "bias_initializer": plain(spec.bias_init or self.defaults.bias_init),
        }
        return self.add(
            name, "Dense", (x,), (units,), params=params, trainable_params=params,
            macs=shape[0] * units, options=options,
        )  # fmt: skip


def out_size(n: int, kernel: int, stride: int, padding: int) -> int:
    """Return ⌊(n + 2·padding - kernel) / stride⌋ + 1, the output size along one side."""
    return (n + 2 * padding - kernel) // stride + 1


def format_shape(shape: Sequence[int]) -> str:
    """Write a shape as 8×8×64."""
    return "×".join(map(str, shape))


def plain(value: Any) -> Any:
    """Return a schema object as plain values, and anything else as it is."""
    return value.model_dump(mode="json") if isinstance(value, schema.Strict) else value


# ---------------------------------------------------------------------------- lists of steps

_ROLES = {
    "conv": "conv",
    "norm": "norm",
    "act": "act",
    "max_pool": "pool",
    "avg_pool": "pool",
    "global_avg_pool": "pool",
    "global_max_pool": "pool",
    "flatten": "flatten",
    "dense": "dense",
    "dropout": "dropout",
    "zero_pad": "pad",
    "scale": "scale",
}


def _kind(step: Any) -> str:
    if isinstance(step, schema.BareStep):
        return step.layer
    return str(next(iter(type(step).model_fields)))


def _role(step: Any) -> str:
    if schema.is_classifier(step):
        return "logits"
    return _ROLES[_kind(step)]


def _trace_steps(
    t: _Tracer, prefix: str, steps: Sequence[Any], x: str, classes: int, path: DocPath
) -> str:
    """Trace a stem, an `after` list, a neck or a head; number the roles that occur twice."""
    total = Counter(map(_role, steps))
    seen: Counter[str] = Counter()
    for i, step in enumerate(steps):
        role = _role(step)
        seen[role] += 1
        name = f"{prefix}_{role}{seen[role] if total[role] > 1 else ''}"
        t.path = (*path, i)
        x = _trace_step(t, name, step, x, classes)
    return x


def _trace_step(t: _Tracer, name: str, step: Any, x: str, classes: int) -> str:
    kind = _kind(step)
    value = getattr(step, "layer" if isinstance(step, schema.BareStep) else kind)
    trace: dict[str, Callable[[], str]] = {
        "conv": lambda: t.conv(name, x, **dict(value)),
        "norm": lambda: t.norm(name, x, value.name, value.gamma_init),
        "act": lambda: t.act(name, x, value),
        "max_pool": lambda: t.pool(name, x, "max", **dict(value)),
        "avg_pool": lambda: t.pool(name, x, "avg", **dict(value)),
        "dense": lambda: t.dense(name, x, classes if value.units == "classes" else value.units,
                                 value),
        "dropout": lambda: t.dropout(name, x, value),
        "zero_pad": lambda: t.zero_pad(name, x, value),
        "scale": lambda: t.scale(name, x, value),
    }  # fmt: skip
    return trace.get(kind, lambda: t.bare(name, x, kind))()


# ---------------------------------------------------------------------------- blocks


def _trace_block(
    t: _Tracer, prefix: str, block: schema.Block, x: str, width: int, stride: int, first: bool
) -> str:
    """Trace one block; `first` says whether it is the first of its stage."""
    if stride > 1 and not any(conv.takes_stride for conv in block.convs):
        raise t.fail(f"stride {stride}, but no convolution of the block has `takes_stride: true`")
    branch, preactivation = _trace_branch(t, prefix, block, x, width, stride)
    shortcut = _trace_shortcut(t, prefix, block, x, preactivation, branch, stride, first)
    if shortcut is None:
        return branch
    if t.shape(shortcut) != t.shape(branch):
        raise t.fail(
            f"the branch of {prefix} gives {format_shape(t.shape(branch))} and its shortcut "
            f"{format_shape(t.shape(shortcut))}, which cannot be added; use "
            "`shortcut: {project: {when: change}}`"
        )
    merged = t.add(f"{prefix}_merge", "Add", (branch, shortcut), t.shape(branch))
    return t.act(f"{prefix}_merge_act", merged, block.merge_act)


def _norm_name(norm: bool | str) -> str | None:
    """Return the norm's name, `none` for false, or nothing for true: the default norm."""
    if isinstance(norm, str):
        return norm
    return None if norm else "none"


def _trace_branch(
    t: _Tracer, prefix: str, block: schema.Block, x: str, width: int, stride: int
) -> tuple[str, str]:
    """Return the branch's output and the block's pre-activation (its input where there is none)."""
    preactivation = x
    for i, conv in enumerate(block.convs, 1):
        norm = _norm_name(conv.norm)

        def dropout(y: str, i: int = i, rate: float | None = conv.dropout) -> str:
            return t.dropout(f"{prefix}_dropout{i}", y, rate) if rate else y

        def normalise(y: str, i: int = i, norm: Any = norm, init: Any = conv.gamma_init) -> str:
            return t.norm(f"{prefix}_norm{i}", y, norm, init)

        def convolve(y: str, i: int = i, conv: schema.BlockConv = conv) -> str:
            return t.conv(
                f"{prefix}_conv{i}", y, schema.resolve_filters(conv.filters, width), conv.kernel,
                stride if conv.takes_stride else 1, conv.padding, conv.groups, conv.bias,
                conv.kernel_init,
            )  # fmt: skip

        if block.order == "conv-norm-act":
            x = t.act(f"{prefix}_act{i}", normalise(convolve(dropout(x))), conv.act)
        else:
            x = t.act(f"{prefix}_act{i}", normalise(x), conv.act)
            preactivation = x if i == 1 else preactivation
            x = convolve(dropout(x))
    return x, preactivation


def _trace_shortcut(
    t: _Tracer,
    prefix: str,
    block: schema.Block,
    x: str,
    preactivation: str,
    branch: str,
    stride: int,
    first: bool,
) -> str | None:
    if block.shortcut == "none":
        return None
    channels = t.shape(branch)[2]
    changes = stride > 1 or t.shape(x)[2] != channels
    if block.shortcut == "identity" or (block.shortcut == "padded" and not changes):
        return x
    if block.shortcut == "padded":
        return _trace_padded(t, prefix, x, channels, stride)
    assert isinstance(block.shortcut, schema.ProjectShortcut)
    project = block.shortcut.project
    if not {"always": True, "change": changes, "first": first}[project.when]:
        return _every_pixel(t, prefix, x, stride)
    source = preactivation if project.source == "preactivation" else x
    norm = _norm_name(project.norm)
    y = t.conv(
        f"{prefix}_shortcut_conv", source, channels, 1, stride, 0, 1, project.bias,
        project.kernel_init,
    )  # fmt: skip
    y = t.norm(f"{prefix}_shortcut_norm", y, norm)
    return t.act(f"{prefix}_shortcut_act", y, project.act)


def _every_pixel(t: _Tracer, prefix: str, x: str, stride: int) -> str:
    """Trace a shortcut that takes every stride-th pixel, or its input at stride 1."""
    return x if stride == 1 else t.pool(f"{prefix}_shortcut_pool", x, "max", 1, stride)


def _trace_padded(t: _Tracer, prefix: str, x: str, channels: int, stride: int) -> str:
    """Trace option A of He et al. 2015, section 3.3: take every stride-th pixel, add zero channels.

    The new channels are split evenly before and after the old ones.
    """
    x = _every_pixel(t, prefix, x, stride)
    height, width, old = t.shape(x)
    extra = channels - old
    if extra < 0:
        raise t.fail(f"a padded shortcut cannot go from {old} channels down to {channels}")
    if extra == 0:
        return x
    # With channels first, Keras pads the last two axes: of a channels-last tensor those are
    # width and channels.
    options = {
        "padding": [[0, 0], [extra // 2, extra - extra // 2]],
        "data_format": "channels_first",
    }
    return t.add(
        f"{prefix}_shortcut_pad", "ZeroPadding2D", (x,), (height, width, channels), options=options
    )


# ---------------------------------------------------------------------------- whole plans


def plan_model(
    architecture: schema.Architecture,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> Plan:
    """Plan a model.

    Args:
        architecture: the model with its blocks and norms.
        input_shape: (height, width, channels); the model's own if not given.
        classes: outputs of the classifier; the model's own if not given.

    Raises:
        DocumentError: a shape goes to zero, a block cannot stride or merge, or a size is absurd;
            the problem's path leads to the place in the model's spec.
    """
    model = architecture.model
    base: DocPath = ("models", architecture.name)
    shape = _input_shape(model.input if input_shape is None else input_shape)
    classes = _count("classes", model.classes if classes is None else classes)
    layers = most_layers(architecture)
    if layers > MAX_LAYERS:
        text = f"its stages come to as many as {layers:,} layers; the limit is {MAX_LAYERS:,}"
        raise DocumentError([Problem((*base, "stages"), text)])
    t = _Tracer(shape, model.defaults, architecture.norms, (*base, "input"))
    t.stage = "stem"
    x = _trace_steps(t, "stem", model.stem, t.input, classes, (*base, "stem"))
    features = []
    for number, stage in enumerate(model.stages, 1):
        t.stage = f"stage{number}"
        x = _trace_stage(t, architecture.blocks[stage.block], stage, x, classes,
                         (*base, "stages", number - 1))  # fmt: skip
        features.append(x)
    t.stage = "neck"
    x = _trace_steps(t, "neck", model.neck, x, classes, (*base, "neck"))
    t.stage = "head"
    _trace_steps(t, "head", model.head, x, classes, (*base, "head"))
    return Plan(
        architecture.name, shape, tuple(t.layers.values()), tuple(features), architecture.keys
    )


def most_layers(architecture: schema.Architecture) -> int:
    """Return how many layers a plan may have at most, without making it."""
    model = architecture.model
    total = 1 + len(model.stem) + len(model.neck) + len(model.head)
    for stage in model.stages:
        convs = architecture.blocks[stage.block].convs
        # Convolution, norm and activation; the shortcut's three, the sum and what follows.
        block = 3 * len(convs) + sum(conv.dropout is not None for conv in convs) + 5
        total += stage.repeats * block + len(stage.after)
    return total


def _trace_stage(
    t: _Tracer, block: schema.Block, stage: schema.Stage, x: str, classes: int, path: DocPath
) -> str:
    strided = 0 if stage.strided_block == "first" else stage.repeats - 1
    for i in range(stage.repeats):
        t.path, t.block = path, f"block{i + 1}"
        x = _trace_block(t, f"{t.stage}_block{i + 1}", block, x, stage.width,
                         stage.stride if i == strided else 1, i == 0)  # fmt: skip
    t.block = ""
    return _trace_steps(t, t.stage, stage.after, x, classes, (*path, "after"))


def plan_block(
    block: schema.Block,
    input_shape: Sequence[int],
    *,
    width: int,
    stride: int = 1,
    name: str = "block",
    defaults: schema.Defaults | None = None,
    norms: Mapping[str, schema.Norm] | None = None,
) -> Plan:
    """Plan one block on its own, as the first of a stage.

    Args:
        block: its spec.
        input_shape: (height, width, channels).
        width: what `width` means in the block's filters.
        stride: of the convolution that takes it, and of the shortcut.
        name: prefix of the layers' names.
        defaults: norm, activation, bias and initialisers where the block says nothing.
        norms: the norms by name.

    Raises:
        DocumentError: as `plan_model`.
    """
    shape = _input_shape(input_shape)
    width, stride = _count("width", width), _count("stride", stride)
    t = _Tracer(shape, defaults or schema.Defaults(), norms or {}, ("blocks", name))
    t.stage = name
    _trace_block(t, name, block, t.input, width, stride, first=True)
    return Plan(name, shape, tuple(t.layers.values()))


def _count(what: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise BadInputError(f"{what} must be a whole number. Received: {value!r}")
    if not 1 <= int(value) <= schema.MAX_CHANNELS:
        raise BadInputError(f"{what} must lie in 1…{schema.MAX_CHANNELS}. Received: {value!r}")
    return int(value)


def _input_shape(shape: Sequence[int]) -> Shape:
    if len(shape) != 3:
        raise BadInputError(
            f"the input shape is (height, width, channels). Received: {tuple(shape)}"
        )
    return tuple(map(_count, ("the input's height", "the input's width", "channels"), shape))


def check_expectations(model: schema.Model, plan: Plan) -> list[str]:
    """Return a sentence for each figure of `expect` that the plan does not come to."""
    if model.expect is None:
        return []
    found: dict[str, Any] = {
        **plan.params,
        "macs": plan.macs,
        "features": [list(s) for s in plan.feature_shapes().values()],
    }
    expected = model.expect.model_dump(exclude_none=True)
    return [
        f"`{key}` is {found[key]}, but {value} is expected"
        for key, value in expected.items()
        if found[key] != value
    ]


def millions(count: float) -> str:
    """Write a count as 14.8 M, 270 k or 812."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.{max(0, 2 - int(math.log10(count / limit)))}f} {unit}"
    return f"{count:.0f}"
