"""What a registry, a search space and a run's configuration may say.

Every document is strict: an unknown key, a value of the wrong type or a number out of its range is
an error. Nothing here imports Keras.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from kerasnet.document import shown
from kerasnet.errors import did_you_mean
from kerasnet.keys import check_template, pattern

# Bounds that no useful network reaches, so that a document from a stranger cannot ask for the
# machine's whole memory.
MAX_CHANNELS = 65_536
MAX_SIDE = 4_096
MAX_REPEATS = 5_000
MAX_STAGES = 100
MAX_OPS = 100
MAX_BATCH = 65_536
MAX_EPOCHS = 100_000
MAX_SEEDS = 1_000
MAX_VALUES = 300
MAX_FACTOR = 1_000.0


class Strict(BaseModel):
    """Base of every document class: immutable, no unknown keys, no silent conversions."""

    # Building the validators of fifty classes takes a tenth of a second; most commands need few.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Kernel = Annotated[int, Field(ge=1, le=64, description="side of the window, in pixels")]
Stride = Annotated[int, Field(ge=1, le=64, description="pixels from one window to the next")]
Padding = Annotated[int, Field(ge=0, le=64, description="pixels added on every side")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Below, both shapes of a float32 beta distribution's draws are 0; above, they are all one half.
Alpha = Annotated[float, Field(ge=1e-3, le=1e3)]
Shape = Annotated[list[Side], Field(min_length=3, max_length=3)]


@dataclass(frozen=True)
class WithPattern:
    """Adds to the JSON Schema of a text what a check in Python says about it."""

    pattern: str

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the text's schema with the pattern."""
        return {**handler(core), "pattern": self.pattern}


def _check_prose(value: str) -> str:
    if not value.replace("\n", " ").replace("\t", " ").isprintable():
        raise ValueError("expected text without control characters, which a terminal would obey")
    return value


def _check_path(value: str) -> str:
    if "\0" in value:
        raise ValueError("expected the name of a file or folder, which holds no null character")
    return value


# The patterns are for editors; the checks after them say in words what is wrong, and know more.
Prose = Annotated[
    str,
    Field(max_length=10_000, description="what it is, in a sentence"),
    AfterValidator(_check_prose),
    WithPattern(r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$"),
]
PathName = Annotated[str, AfterValidator(_check_path), WithPattern(r"^[^\u0000]*$")]
Activation = Literal["none", "relu", "relu6", "gelu", "silu", "swish", "elu", "tanh", "sigmoid"]

# ---------------------------------------------------------------------------- initialisers


class VarianceScaling(Strict):
    """`keras.initializers.VarianceScaling` (Glorot & Bengio 2010; He et al. 2015)."""

    scale: Positive = Field(1.0, description="the variance is scale / fan")
    mode: Literal["fan_in", "fan_out", "fan_avg"] = Field(
        "fan_in", description="the fan: inputs of a weight, outputs, or the mean of both"
    )
    distribution: Literal["truncated_normal", "untruncated_normal", "uniform"] = Field(
        "truncated_normal", description="what the weights are drawn from"
    )


class RandomNormal(Strict):
    """Normal values with mean zero."""

    stddev: Positive = Field(description="standard deviation")


class RandomUniform(Strict):
    """Uniform values in [-limit, limit)."""

    limit: Positive = Field(description="half the width of the interval")


class VarianceScalingInit(Strict):
    """`{variance_scaling: {...}}`."""

    variance_scaling: VarianceScaling


class NormalInit(Strict):
    """`{normal: {stddev: ...}}`."""

    normal: RandomNormal


class UniformInit(Strict):
    """`{uniform: {limit: ...}}`."""

    uniform: RandomUniform


class ConstantInit(Strict):
    """`{constant: value}`."""

    constant: Finite = Field(description="what every weight starts as")


NamedInitializer = Literal[
    "zeros",
    "ones",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
]

KEYED_INITIALIZERS = {
    "variance_scaling": VarianceScalingInit,
    "normal": NormalInit,
    "uniform": UniformInit,
    "constant": ConstantInit,
}


def _initializer_tag(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    for key, cls in KEYED_INITIALIZERS.items():
        if isinstance(value, cls) or (isinstance(value, dict) and key in value):
            return key
    return "name"


Initializer = Annotated[
    Annotated[NamedInitializer, Tag("name")]
    | Annotated[VarianceScalingInit, Tag("variance_scaling")]
    | Annotated[NormalInit, Tag("normal")]
    | Annotated[UniformInit, Tag("uniform")]
    | Annotated[ConstantInit, Tag("constant")],
    Discriminator(_initializer_tag),
]
KernelInit = Annotated[
    Initializer | None, Field(description="default: the architecture's `defaults.kernel_init`")
]
BiasInit = Annotated[
    Initializer | None, Field(description="default: the architecture's `defaults.bias_init`")
]
Bias = Annotated[bool | None, Field(description="default: the architecture's `defaults.bias`")]

# ---------------------------------------------------------------------------- norms and defaults


class Norm(Strict):
    """Batch normalisation (Ioffe & Szegedy 2015).

    `momentum` is Keras's: moving = momentum · moving + (1 - momentum) · batch.
    """

    type: Literal["batch_norm"] = Field("batch_norm", description="kind of normalisation")
    epsilon: Positive = Field(1e-3, description="added to the variance")
    momentum: Fraction = Field(0.99, description="share of the old moving statistics that stays")
    center: bool = Field(True, description="whether there is a learned offset, beta")
    scale: bool = Field(True, description="whether there is a learned factor, gamma")


class Defaults(Strict):
    """What the layers of an architecture use where they say nothing themselves."""

    norm: str = Field("bn", description="name of an entry in `norms`")
    act: Activation = Field("relu", description="activation of layers that name none")
    bias: bool = Field(True, description="whether convolutions and dense layers have a bias")
    kernel_init: Initializer = Field("glorot_uniform", description="first weights")
    bias_init: Initializer = Field("zeros", description="first biases")


# ---------------------------------------------------------------------------- single layers


class Conv(Strict):
    """A convolution of a stem, an `after` list, a neck or a head."""

    filters: Channels = Field(description="output channels")
    kernel: Kernel
    stride: Stride = 1
    padding: Padding | None = Field(None, description="default: (kernel - 1) / 2, odd kernels only")
    groups: Channels = Field(1, description="groups the channels are split into")
    bias: Bias = None
    kernel_init: KernelInit = None
    bias_init: BiasInit = None


class Pool(Strict):
    """A maximum or average over size × size windows."""

    size: Kernel
    stride: Stride | None = Field(None, description="default: size")
    padding: Padding = 0


class Dense(Strict):
    """A fully connected layer; `units: classes` makes it the classifier."""

    units: Channels | Literal["classes"] = Field(
        description="outputs; `classes`: one for each class"
    )
    bias: Bias = None
    kernel_init: KernelInit = None
    bias_init: BiasInit = None


class NormOp(Strict):
    """`norm`, or `norm: name`, or `norm: {name: ..., gamma_init: ...}`."""

    name: str | None = Field(None, description="default: the architecture's `defaults.norm`")
    gamma_init: Initializer = Field("ones", description="first scale factors")


def _short(key: str, accepted: Any) -> BeforeValidator:
    """Let `dense: 512` stand for `dense: {units: 512}` and the like; `accepted` is either form."""

    def expand(value: Any) -> Any:
        return value if isinstance(value, dict | BaseModel) else {key: value}

    return BeforeValidator(expand, json_schema_input_type=accepted)


class ConvStep(Strict):
    """`conv: {filters: 64, kernel: 3}`."""

    conv: Conv


class NormStep(Strict):
    """`norm` or `norm: bn`."""

    norm: Annotated[NormOp, _short("name", NormOp | str | None)]


class ActStep(Strict):
    """`act` or `act: relu`."""

    act: Activation | None = Field(description="default: the architecture's `defaults.act`")


class MaxPoolStep(Strict):
    """`max_pool: 2` or `max_pool: {size: 3, stride: 2, padding: 1}`."""

    max_pool: Annotated[Pool, _short("size", Pool | Kernel)]


class AvgPoolStep(Strict):
    """`avg_pool: 2` or `avg_pool: {size: 2}`."""

    avg_pool: Annotated[Pool, _short("size", Pool | Kernel)]


class DenseStep(Strict):
    """`dense: classes` or `dense: {units: 512, bias: false}`."""

    dense: Annotated[Dense, _short("units", Dense | Channels | Literal["classes"])]


class DropoutStep(Strict):
    """`dropout: 0.5`: the fraction set to zero (Srivastava et al. 2014)."""

    dropout: Fraction = Field(description="fraction set to zero")


class ZeroPadStep(Strict):
    """`zero_pad: 1`: rows and columns of zeros on each of the four sides.

    Before a `max_pool`, unlike the pool's own `padding`, the zeros take part in the maximum.
    """

    zero_pad: Annotated[int, Field(ge=1, le=64)] = Field(description="of them on each side")


class ScaleStep(Strict):
    """`scale: 0.125`: every value times a constant."""

    scale: Positive = Field(description="the constant")


class BareStep(Strict):
    """A layer with nothing to say: `global_avg_pool`, `global_max_pool` or `flatten`."""

    layer: Literal["global_avg_pool", "global_max_pool", "flatten"] = Field(
        description="its name; the name alone does as well"
    )


_STEPS: dict[str, type[Strict]] = {
    "conv": ConvStep,
    "norm": NormStep,
    "act": ActStep,
    "max_pool": MaxPoolStep,
    "avg_pool": AvgPoolStep,
    "dense": DenseStep,
    "dropout": DropoutStep,
    "zero_pad": ZeroPadStep,
    "scale": ScaleStep,
}
_BareName = Literal["global_avg_pool", "global_max_pool", "flatten"]
_BARE = get_args(_BareName)
STEP_NAMES = (*_STEPS, *_BARE)


def _expand_step(value: Any) -> Any:
    """Write `norm` as `{norm: null}` and `flatten` as `{layer: flatten}`."""
    if isinstance(value, str):
        if value in _BARE:
            return {"layer": value}
        if value in ("norm", "act"):
            return {value: None}
    return value


def _step_tag(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return next((k for k, c in _STEPS.items() if isinstance(value, c)), "layer")
    if isinstance(value, dict) and len(value) == 1:
        key = next(iter(value))
        if key == "layer" or key in _STEPS:
            return str(key)
    return None


_WrittenStep = Annotated[
    Annotated[ConvStep, Tag("conv")]
    | Annotated[NormStep, Tag("norm")]
    | Annotated[ActStep, Tag("act")]
    | Annotated[MaxPoolStep, Tag("max_pool")]
    | Annotated[AvgPoolStep, Tag("avg_pool")]
    | Annotated[DenseStep, Tag("dense")]
    | Annotated[DropoutStep, Tag("dropout")]
    | Annotated[ZeroPadStep, Tag("zero_pad")]
    | Annotated[ScaleStep, Tag("scale")]
    | Annotated[BareStep, Tag("layer")],
    Discriminator(
        _step_tag,
        custom_error_type="step",
        custom_error_message="expected one layer, written as a name or as one `name: {...}` pair; "
        "layers are " + ", ".join(STEP_NAMES),
    ),
]
Step = Annotated[
    _WrittenStep,
    BeforeValidator(
        _expand_step, json_schema_input_type=_WrittenStep | _BareName | Literal["norm", "act"]
    ),
]
Steps = Annotated[list[Step], Field(max_length=MAX_OPS)]

# ---------------------------------------------------------------------------- blocks

_WIDTH = re.compile(r"(?:([1-9][0-9]{0,4}) \* )?width")


def _check_filters(value: int | str) -> int | str:
    if isinstance(value, str) and not _WIDTH.fullmatch(value):
        raise ValueError("expected a number of filters, `width`, or a multiple such as `4 * width`")
    return value


Filters = Annotated[
    Channels | Annotated[str, WithPattern(f"^{_WIDTH.pattern}$")], AfterValidator(_check_filters)
]


def resolve_filters(filters: int | str, width: int) -> int:
    """Return the number a `filters` field means in a stage of this width."""
    if isinstance(filters, int):
        return filters
    match = _WIDTH.fullmatch(filters)
    assert match is not None, "checked when the document was read"
    return int(match.group(1) or 1) * width


class BlockConv(Strict):
    """One convolution of a block's branch, with the norm and activation that belong to it."""

    kernel: Kernel
    filters: Filters = Field(
        "width", description="output channels: a number, `width` or `4 * width`"
    )
    takes_stride: bool = Field(False, description="whether this one strides when the block does")
    padding: Padding | None = Field(None, description="default: (kernel - 1) / 2, odd kernels only")
    groups: Channels = Field(1, description="groups the channels are split into")
    bias: Bias = None
    norm: bool | str = Field(True, description="true: the default norm; false: none; or a name")
    act: Activation | None = Field(None, description="default: the architecture's `defaults.act`")
    dropout: Fraction | None = Field(None, description="before this convolution")
    kernel_init: KernelInit = None
    gamma_init: Initializer = Field("ones", description="`zeros`: Goyal et al. 2017, section 5.1")


class Projection(Strict):
    """A 1×1 convolution on the shortcut, strided as the block is."""

    when: Literal["always", "change", "first"] = Field(
        "change",
        description="always; where stride or channels change, the input itself elsewhere; "
        "or in the first block of a stage, where another block that strides takes every "
        "stride-th pixel of its input",
    )
    norm: bool | str = Field(True, description="true: the default norm; false: none; or a name")
    act: Activation = Field("none", description="after the projection and its norm")
    bias: Bias = None
    source: Literal["input", "preactivation"] = Field(
        "input", alias="from", description="what is projected"
    )
    kernel_init: KernelInit = None


class ProjectShortcut(Strict):
    """`shortcut: {project: {...}}`."""

    project: Projection


def _shortcut_tag(value: Any) -> str:
    return "project" if isinstance(value, dict | BaseModel) else "name"


Shortcut = Annotated[
    Annotated[Literal["none", "identity", "padded"], Tag("name")]
    | Annotated[ProjectShortcut, Tag("project")],
    Discriminator(_shortcut_tag),
]


class Block(Strict):
    """A branch of convolutions, a shortcut around it, and how the two meet."""

    extends: str | None = Field(
        None, description="another block, whose fields this one starts from"
    )
    description: Prose = ""
    origin: Prose = Field("", description="paper and figure")
    order: Literal["conv-norm-act", "norm-act-conv"] = Field(
        "conv-norm-act", description="of each convolution, its norm and its activation"
    )
    convs: Annotated[list[BlockConv], Field(min_length=1, max_length=16)] = Field(
        description="the branch, from input to output"
    )
    shortcut: Shortcut = Field(
        "none",
        description="what is added to the branch: nothing, the input, the input with zero "
        "channels around its own, or a projection of it",
    )
    merge_act: Activation = Field("none", description="after branch and shortcut are added")

    @model_validator(mode="after")
    def _consistent(self) -> Block:
        if sum(conv.takes_stride for conv in self.convs) > 1:
            raise ValueError("at most one convolution of a block may have `takes_stride: true`")
        if self.shortcut == "none" and self.merge_act != "none":
            raise ValueError("`merge_act` needs a shortcut to merge with; `shortcut` is `none`")
        return self


# ---------------------------------------------------------------------------- models


class Stage(Strict):
    """Blocks of one width, one of which may stride, and the layers after them."""

    block: str = Field(description="name of an entry in `blocks`")
    width: Channels = Field(description="what `width` means in the block's filters")
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = Field(1, description="blocks in a row")
    stride: Stride = Field(1, description="of one of the blocks; the others have 1")
    strided_block: Literal["first", "last"] = Field(
        "first", description="which of the blocks has the stride"
    )
    after: Steps = Field([], description="layers after the blocks")


class Expect(Strict):
    """What the plan must come to; checked by `kerasnet validate`."""

    trainable: Annotated[int, Field(ge=0)] | None = Field(
        None, description="parameters that are trained"
    )
    non_trainable: Annotated[int, Field(ge=0)] | None = Field(None, description="moving statistics")
    macs: Annotated[int, Field(ge=0)] | None = Field(
        None, description="multiply-accumulates an image"
    )
    features: list[Shape] | None = Field(None, description="the stages' output shapes, in order")


# What JSON Schema can say of "ends in `dense: classes`": that it is there.
_UNITS = {"properties": {"units": {"const": "classes"}}, "required": ["units"], "type": "object"}
_CLASSIFIER: dict[str, Any] = {
    "properties": {"dense": {"anyOf": [{"const": "classes"}, _UNITS]}},
    "required": ["dense"],
    "type": "object",
}


class Published(Strict):
    """What others report for this architecture; not measured here."""

    dataset: Name = Field(description="the data set's name, in the registry or elsewhere")
    top1: Annotated[float, Field(gt=0, le=100)] = Field(description="test accuracy in percent")
    source: Prose = Field(description="paper and table, or program")


class Model(Strict):
    """An architecture: a stem, stages, an optional neck, and a head."""

    extends: str | None = Field(
        None, description="another model, whose fields this one starts from"
    )
    description: Prose = ""
    origin: Prose = Field("", description="paper and section")
    input: Shape = Field(description="height, width, channels")
    classes: Channels = Field(10, description="outputs of the classifier")
    defaults: Defaults = Field(default_factory=Defaults)
    stem: Steps = Field([], description="layers before the stages")
    stages: Annotated[list[Stage], Field(min_length=1, max_length=MAX_STAGES)] = Field(
        description="the body, in order"
    )
    neck: Steps = Field([], description="layers between the stages and the head")
    head: Annotated[Steps, Field(min_length=1)] = Field(
        description="the last layers; they end in `dense: classes`",
        json_schema_extra={"contains": _CLASSIFIER},
    )
    recipes: dict[str, str] = Field(
        {}, description="data set → recipe; `*` stands for every data set not named"
    )
    keys: Annotated[list[str], Field(max_length=5)] = Field(
        [], description="key styles of PyTorch's files of this architecture; the first is written"
    )
    expect: Expect | None = None
    published: Published | None = Field(
        None, description="what others report for this architecture"
    )

    @model_validator(mode="after")
    def _one_classifier(self) -> Model:
        parts = [self.stem, self.neck, self.head, *(stage.after for stage in self.stages)]
        found = [step for part in parts for step in part if is_classifier(step)]
        if len(found) != 1 or not is_classifier(self.head[-1]):
            raise ValueError("the head must end in `dense: classes`, the model's only one")
        return self


def is_classifier(step: Any) -> bool:
    """Whether a step is `dense: classes`."""
    return isinstance(step, DenseStep) and step.dense.units == "classes"


# ---------------------------------------------------------------------------- recipes


class Sgd(Strict):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""

    type: Literal["sgd"] = Field(description="kind of optimiser")
    learning_rate: Positive = Field(description="highest learning rate; the schedule lowers it")
    momentum: Fraction = Field(0.9, description="share of the old velocity that stays")
    nesterov: bool = Field(True, description="whether the gradient is taken a step ahead")


class Adam(Strict):
    """Adam (Kingma & Ba 2015)."""

    type: Literal["adam"] = Field(description="kind of optimiser")
    learning_rate: Positive = Field(description="highest learning rate; the schedule lowers it")
    beta_1: Fraction = Field(0.9, description="share of the old mean gradient that stays")
    beta_2: Fraction = Field(0.999, description="share of the old mean squared gradient that stays")
    epsilon: Positive = Field(1e-8, description="added to the divisor")


Optimizer = Annotated[Sgd | Adam, Field(discriminator="type")]


class WeightDecay(Strict):
    """Decoupled decay: w ← w - learning_rate · rate · w (Loshchilov & Hutter 2019)."""

    rate: NonNegative = Field(description="times the learning rate: what a step takes off a weight")
    on: Literal["kernels", "all"] = Field(
        "kernels", description="kernels: neither biases nor normalisation parameters"
    )


class LearningRateFactors(Strict):
    """What the learning rate of some variables is times the others' (Page 2019).

    It is the rate that is multiplied, not the gradient, which Adam would divide by again. Weight
    decay with `on: all` goes on by the plain rate, as in Jordan 2024, section 3.4.
    """

    norm_bias: Annotated[float, Field(gt=0, le=MAX_FACTOR)] = Field(
        1.0, description="of batch normalisation's offsets, beta; Jordan 2024 takes 64"
    )


class Constant(Strict):
    """The optimiser's learning rate throughout."""

    # Among the schedules the type is what tells them apart, so that only programs may leave it out.
    model_config = ConfigDict(json_schema_extra={"required": ["type"]})

    type: Literal["constant"] = Field("constant", description="kind of schedule")


class StepSchedule(Strict):
    """The learning rate times `factor` after every `every` units."""

    type: Literal["step"] = Field(description="kind of schedule")
    unit: Literal["epoch", "fraction"] = Field(description="fraction: of the horizon")
    every: Positive = Field(description="units from one change to the next")

    @field_validator("every")
    @classmethod
    def _changes(cls, value: float, info: ValidationInfo) -> float:
        if value >= 1 and info.data.get("unit") == "fraction":
            raise ValueError(
                f"{value:g} of the whole training: the learning rate would never change; for "
                "epochs say `unit: epoch`"
            )
        return value

    factor: Positive = Field(description="what the learning rate is multiplied by")


def _before_the_end(value: float, info: ValidationInfo) -> float:
    if value >= 1 and info.data.get("unit") == "fraction":
        raise ValueError(
            f"{value:g} of the whole training leaves no time to come down again; for epochs say "
            "`unit: epoch`"
        )
    return value


class CosineSchedule(Strict):
    """Linear warm-up, then half a cosine down to `final` (Loshchilov & Hutter 2017)."""

    type: Literal["cosine"] = Field(description="kind of schedule")
    unit: Literal["epoch", "fraction"] = Field(
        "fraction", description="of `warmup`; a fraction is one of the horizon"
    )
    warmup: NonNegative = Field(0.0, description="how long the rate rises at first")
    final: NonNegative = Field(0.0, description="as a fraction of the learning rate")

    @field_validator("warmup")
    @classmethod
    def _ends(cls, value: float, info: ValidationInfo) -> float:
        return _before_the_end(value, info)


class OneCycleSchedule(Strict):
    """Up from `initial` to the learning rate, then down to `final`, linearly (Smith 2018)."""

    type: Literal["one_cycle"] = Field(description="kind of schedule")
    unit: Literal["epoch", "fraction"] = Field(
        "fraction", description="of `peak`; a fraction is one of the horizon"
    )
    peak: NonNegative = Field(0.25, description="when the highest rate is reached")
    initial: NonNegative = Field(0.04, description="as a fraction of the learning rate")
    final: NonNegative = Field(0.0, description="as a fraction of the learning rate")

    @field_validator("peak")
    @classmethod
    def _ends(cls, value: float, info: ValidationInfo) -> float:
        return _before_the_end(value, info)


Schedule = Annotated[
    Constant | StepSchedule | CosineSchedule | OneCycleSchedule, Field(discriminator="type")
]


class Crop(Strict):
    """Pad every side by `padding` pixels, then crop to the old size at a random place."""

    padding: Annotated[int, Field(ge=1, le=64)] = Field(description="pixels added on every side")
    mode: Literal["zeros", "reflect"] = Field("zeros", description="what the added pixels hold")


class Cutout(Strict):
    """Set a random square to the data set's mean colour (DeVries & Taylor 2017)."""

    size: Annotated[int, Field(ge=1, le=1024)] = Field(description="side of the square, in pixels")


class RandAugment(Strict):
    """Random operations in sequence, one magnitude for all (Cubuk et al. 2020).

    What a magnitude means in degrees, pixels and so on: `kerasnet.data.rand_augment`.
    """

    layers: Annotated[int, Field(ge=1, le=10)] = Field(
        2, description="operations an image, the paper's N"
    )
    magnitude: Annotated[float, Field(ge=0, le=10)] = Field(
        9.0, description="their strength, the paper's M; 10 is the strongest"
    )


class Mixup(Strict):
    """Blend each image and its label with another's (Zhang et al. 2018)."""

    alpha: Alpha = Field(0.2, description="an image's own weight is Beta(alpha, alpha)")


class Cutmix(Strict):
    """Paste a rectangle of another image, whose label counts by its area (Yun et al. 2019)."""

    alpha: Alpha = Field(1.0, description="the area left, before clipping, is Beta(alpha, alpha)")


class Augment(Strict):
    """What is done to training images, in this order. A data set may forbid some of it.

    With both mixup and cutmix, each image has one of the two, either with probability one half.
    """

    crop: Crop | None = None
    flip: Literal["none", "horizontal", "alternating"] = Field(
        "none",
        description="horizontal: mirrored with probability one half; alternating: so in the first "
        "epoch, and from then on the other way round than in the epoch before (Jordan 2024, "
        "section 3.6)",
    )
    rand_augment: RandAugment | None = None
    cutout: Cutout | None = None
    mixup: Mixup | None = None
    cutmix: Cutmix | None = None

    @property
    def mixes(self) -> bool:
        """Whether targets are distributions over the classes instead of labels."""
        return self.mixup is not None or self.cutmix is not None


class Ema(Strict):
    """Exponential moving average of the weights, used at the end (Polyak & Juditsky 1992)."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of the old average that stays at each step"
    )


# Larger ones overflow in half precision before anything is learnt.
Gamma = Annotated[float, Field(ge=0, le=1e3)]
Beta = Annotated[float, Field(ge=-1e3, le=1e3)]


class Initial(Strict):
    """First weights in place of the seed's own; a run that starts from a file uses none of it.

    Which layers each of these is for follows from the model's wiring: see `kerasnet.initial`.
    """

    branch_gamma: Gamma | None = Field(
        None,
        description="gamma of the last batch norm of every residual branch; 0 makes each block its "
        "shortcut at first (Goyal et al. 2017, section 5.1)",
    )
    shortcut: Literal["identity"] | None = Field(
        None,
        description="projections of as many channels to as many hand on their input (Zagoruyko & "
        "Komodakis 2017, DiracNets)",
    )
    shortcut_beta: Beta | None = Field(
        None,
        description="beta of the batch norm behind every projection on a shortcut; 1 lets through "
        "most of what a ReLU after it would cut off",
    )
    convs: Literal["identity"] | None = Field(
        None,
        description="filters of odd kernels above 1×1 hand on a channel each, while there are "
        "channels; not the first convolution's (Jordan 2024, section 3.3)",
    )
    stem: Literal["whitening"] | None = Field(
        None,
        description="the first convolution decorrelates patches of training images (Page 2018; "
        "Jordan 2024, section 3.2)",
    )
    whitening_epsilon: Positive = Field(
        5e-4, description="added to the variances that whitening divides by"
    )

    @property
    def asked(self) -> dict[str, Any]:
        """What each option is set to that is on, by its name."""
        every = self.model_dump(exclude={"whitening_epsilon"})
        return {option: value for option, value in every.items() if value is not None}


class Recipe(Strict):
    """A way to train."""

    extends: str | None = Field(
        None, description="another recipe, whose fields this one starts from"
    )
    description: Prose = ""
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = Field(
        description="passes over the training images"
    )
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = Field(description="images in a step")
    optimizer: Optimizer = Field(description="how gradients become steps")
    schedule: Schedule = Field(
        default_factory=Constant, description="how the learning rate changes"
    )
    learning_rate_factors: LearningRateFactors = Field(default_factory=LearningRateFactors)
    weight_decay: WeightDecay | None = None
    label_smoothing: Fraction = Field(
        0.0, description="share of each target that is spread over all classes"
    )
    gradient_clip: Positive | None = Field(None, description="global norm (Pascanu et al. 2013)")
    ema: Ema | None = None
    augment: Augment = Field(default_factory=Augment)
    validation_split: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="share of the training images that is held back"
    )
    initial: Initial = Field(default_factory=Initial)


# ---------------------------------------------------------------------------- data sets


class DatasetSource(Strict):
    """Where a data set comes from."""

    type: Literal["tfds", "digits", "folder"] = Field(
        description="tfds: tensorflow-datasets; digits: scikit-learn's; folder: one folder a class"
    )
    name: PathName | None = Field(None, description="the data set's name in tensorflow-datasets")


class Allowed(Strict):
    """The augmentations that leave a picture's class as it is."""

    crop: bool = Field(True, description="whether a recipe may crop")
    flip: bool = Field(True, description="whether a recipe may mirror")
    rand_augment: bool = Field(True, description="whether a recipe may use RandAugment")
    cutout: bool = Field(True, description="whether a recipe may use cutout")
    mixup: bool = Field(True, description="whether a recipe may use mixup")
    cutmix: bool = Field(True, description="whether a recipe may use cutmix")


_Archives = dict[str, Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None]


def _without_checksums(archives: Any) -> Any:
    # Configurations of older runs list the names alone.
    listed = isinstance(archives, list) and all(isinstance(name, str) for name in archives)
    return dict.fromkeys(archives) if listed else archives


class Dataset(Strict):
    """A set of labelled images and what belongs to it: classes, normalisation, augmentations."""

    extends: str | None = Field(
        None, description="another data set, whose fields this one starts from"
    )
    description: Prose = ""
    origin: Prose = Field("", description="paper")
    source: DatasetSource
    image: Shape | None = Field(None, description="height, width, channels; as stored if unset")
    classes: Annotated[int, Field(ge=2, le=MAX_CHANNELS)] | None = Field(
        None, description="how many; counted if unset"
    )
    class_names: list[str] | None = Field(None, description="in the order of the labels")
    mean: Annotated[list[Finite], Field(min_length=1, max_length=4)] | None = Field(
        None, description="per channel, of pixels scaled to [0, 1]; measured on train if unset"
    )
    std: Annotated[list[Positive], Field(min_length=1, max_length=4)] | None = Field(
        None, description="per channel, as `mean`"
    )
    augment: Allowed = Field(default_factory=Allowed)
    archives: Annotated[
        _Archives,
        BeforeValidator(_without_checksums, json_schema_input_type=_Archives | list[str]),
    ] = Field({}, description="archive files that hold the same data: name and MD5, or null")

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        if self.source.type == "tfds" and self.source.name is None:
            raise ValueError("`source.name` is needed when `source.type` is `tfds`")
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` go together: give both or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("`mean` and `std` need the same number of channels")
        names = self.class_names
        if names is not None and self.classes is not None and len(names) != self.classes:
            raise ValueError(f"{len(names)} class names for {self.classes} classes")
        return self


# ---------------------------------------------------------------------------- key styles


class KeyRule(Strict):
    """What the module of a layer is called in a PyTorch file, in the language of `keys`."""

    layer: SkipJsonSchema[str] = Field("", exclude=True, repr=False)
    key: Annotated[str, Field(max_length=200)] = Field(
        description="module, such as layer{s}.{b-1}.conv{i}"
    )
    strided: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="module where the layer's block strides"
    )
    as_conv: bool = Field(
        False, description="a dense layer's kernel is a convolution's: out, channels, height, width"
    )

    @field_validator("key", "strided")
    @classmethod
    def _known_places(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            pattern(info.data.get("layer", ""))
            check_template(value, info.data.get("layer", ""))
        return value


def _expand_rules(value: Any) -> Any:
    """Tell each rule its layer, and let `stem_conv: conv1` stand for `stem_conv: {key: conv1}`."""
    if not isinstance(value, dict):
        return value
    return {layer: _expand_rule(layer, rule) for layer, rule in value.items()}


def _expand_rule(layer: str, rule: Any) -> Any:
    if isinstance(rule, KeyRule):
        return rule
    if not isinstance(rule, dict):
        return {"layer": layer, "key": rule}
    if "layer" in rule:
        raise ValueError(f"'{layer}': the key 'layer' is the rule's own name; leave it out")
    return {"layer": layer, **rule}


_WrittenRules = Annotated[
    dict[str, KeyRule | Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=32)
]


class KeyStyle(Strict):
    """How PyTorch's files of some program name a network's weights."""

    extends: str | None = Field(
        None, description="another key style, whose fields this one starts from"
    )
    description: Prose = ""
    origin: Prose = Field("", description="the program")
    rules: Annotated[
        dict[str, KeyRule],
        Field(min_length=1, max_length=32),
        BeforeValidator(_expand_rules, json_schema_input_type=_WrittenRules),
    ] = Field(description="layer → module; of those that match, the first counts")


# ---------------------------------------------------------------------------- the registry


# Names become parts of file names and of layer names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]

SECTIONS: dict[str, type[Strict]] = {
    "norms": Norm,
    "blocks": Block,
    "models": Model,
    "recipes": Recipe,
    "datasets": Dataset,
    "key_styles": KeyStyle,
}

# ---------------------------------------------------------------------------- runs

PrecisionName = Literal["float32", "mixed_bfloat16", "mixed_float16"]


class Architecture(Strict):
    """A model with every block and norm it uses, so that it needs no registry."""

    name: Name = Field(description="of the model")
    model: Model
    blocks: dict[str, Block] = Field(description="each block that a stage names")
    norms: dict[str, Norm] = Field(description="each norm that the model or a block names")
    keys: dict[str, KeyStyle] = Field({}, description="the key styles that the model names")

    @model_validator(mode="after")
    def _complete(self) -> Architecture:
        unknown = {stage.block for stage in self.model.stages} - set(self.blocks)
        if unknown:
            raise ValueError(f"`blocks` lacks {', '.join(sorted(unknown))}, which a stage names")
        unknown = set(self.model.keys) - set(self.keys)
        if unknown:
            raise ValueError(f"`keys` lacks {', '.join(sorted(unknown))}, which the model names")
        return self


class DataConfig(Strict):
    """Which images a run reads."""

    name: PathName = Field(description="of the data set, or its folder")
    spec: Dataset
    data_dir: PathName | None = Field(
        None, description="folder where the data are looked for first"
    )
    limit_train: Annotated[int, Field(ge=1, le=2**31)] | None = Field(
        None, description="train on this many images only"
    )
    train_on: Literal["train", "train+validation"] = Field(
        "train", description="train+validation: nothing is held back"
    )


class Precision(Strict):
    """The dtype policy asked for and the one used."""

    requested: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = Field(
        description="what was asked for"
    )
    resolved: PrecisionName = Field(description="the dtype policy in use")
    reason: str = Field("", description="why this one")


class EverySteps(Strict):
    """`{steps: 500}`."""

    steps: Annotated[int, Field(ge=1)] = Field(description="steps from one checkpoint to the next")


class EveryMinutes(Strict):
    """`{minutes: 5}`."""

    minutes: Positive = Field(description="minutes from one checkpoint to the next")


def _every_tag(value: Any) -> str:
    named = isinstance(value, EverySteps) or (isinstance(value, dict) and "steps" in value)
    return "steps" if named else "minutes"


Every = Annotated[
    Annotated[EverySteps, Tag("steps")] | Annotated[EveryMinutes, Tag("minutes")],
    Discriminator(_every_tag),
]


class Execution(Strict):
    """How steps are run and kept."""

    layers: Literal["stock", "fast"] = Field(
        "stock", description="stock: Keras's own; fast: the same results, computed faster"
    )
    jit_compile: bool = Field(False, description="whether XLA compiles the step")
    steps_per_execution: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="steps between two returns to Python; fewer where an epoch's steps need it"
    )
    evaluation_batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = Field(
        500, description="images in a step that only measures"
    )
    deterministic: bool = Field(False, description="the same bits on the same machine, slower")
    checkpoint_every: Every = Field(
        EveryMinutes(minutes=5.0), description="beside the one at the end of each epoch"
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = Field(
        2, description="the newest; more than one lets a damaged one be passed over"
    )
    on_nan: Literal["stop", "rollback"] = Field(
        "stop",
        description="when the loss is no finite number; rollback: go on from the newest "
        "checkpoint with half the learning rate",
    )


class Inference(Strict):
    """How an image becomes the model's input, and an output a named class."""

    mean: list[Finite] = Field(description="per channel, of pixels scaled to [0, 1]")
    std: list[Positive] = Field(description="per channel, as `mean`")
    resize: Annotated[list[Side], Field(min_length=2, max_length=2)] = Field(
        description="height, width"
    )
    class_names: list[str] = Field(description="in the order of the outputs")
    temperature: Positive = Field(1.0, description="what logits are divided by")


Seed = Annotated[int, Field(ge=0, lt=2**31)]

# In one order, so that the same parts are the same configuration.
Parts = Annotated[
    list[Annotated[str, Field(max_length=100)]],
    Field(max_length=MAX_STAGES + 3),
    AfterValidator(lambda parts: sorted(set(parts))),
]


# Rates of which no optimiser makes anything.
LOWEST_RATE, HIGHEST_RATE = 1e-12, 1e6
Rate = Annotated[float, Field(ge=LOWEST_RATE, le=HIGHEST_RATE)]


class RangeTest(Strict):
    """A learning-rate range test (Smith 2015, section 3.3), and the rate it found."""

    min: Rate = Field(1e-7, description="learning rate of the first step")
    max: Rate = Field(10.0, description="learning rate of the last step")
    steps: Annotated[int, Field(ge=20, le=10_000)] = Field(150, description="how many there are")
    suggestion: Positive | None = Field(
        None, description="what it found; null until it was run, which a run does once"
    )
    reason: Prose = Field("", description="why this rate")

    @model_validator(mode="after")
    def _range(self) -> RangeTest:
        # A slope is measured over a decade.
        if self.max < 10 * self.min:
            raise ValueError(
                f"`max` {self.max:g} must be at least ten times `min`, which is {self.min:g}"
            )
        return self


class Budget(Strict):
    """How long a run may take, and the number of epochs that this was found to be enough for."""

    seconds: Positive = Field(
        description="from the first step to the test accuracy, checkpoints included"
    )
    step_seconds: Positive | None = Field(None, description="what a training step took")
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] | None = Field(
        None, description="how many fit; null until it was measured, which a run does once"
    )
    reason: Prose = Field("", description="what an epoch and the rest take")


class RunConfig(Strict):
    """Everything a run needs: `config.yaml` in its folder."""

    kerasnet: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,50}$")] = Field(
        description="version that wrote it"
    )
    architecture: Architecture
    input: Shape = Field(description="height, width, channels")
    classes: Channels = Field(description="outputs of the classifier")
    recipe_name: Name = Field(description="of the recipe in the registry")
    recipe: Recipe
    horizon: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = Field(
        description="epochs the schedule spans"
    )
    data: DataConfig
    precision: Precision
    execution: Execution = Field(default_factory=Execution)
    seed: Seed = Field(
        0, description="of data order, augmentation, first weights and the validation split"
    )
    weights: PathName | None = Field(None, description="file the first weights were read from")
    reset_head: bool = Field(
        False, description="the classifier begins with its seed's values, not the file's"
    )
    freeze: Parts = Field([], description="not trained: stem, stage1, stage2, …, neck, head")
    inference: Inference | None = Field(None, description="known once the data is read")
    lr_find: RangeTest | None = Field(
        None, description="the range test whose suggestion is the recipe's learning rate"
    )
    budget: Budget | None = Field(
        None, description="the time that the recipe's number of epochs was chosen for"
    )

    @property
    def epochs_open(self) -> bool:
        """Whether the number of epochs is still to be chosen for the budget."""
        return self.budget is not None and self.budget.epochs is None

    @property
    def rate_open(self) -> bool:
        """Whether the learning rate is still to be found by a range test."""
        return self.lr_find is not None and self.lr_find.suggestion is None


def _each_once(seeds: list[int]) -> list[int]:
    twice = next((seed for i, seed in enumerate(seeds) if seed in seeds[:i]), None)
    if twice is not None:
        raise ValueError(f"seed {twice} is there twice; each run needs its own")
    return seeds


class SeedsConfig(Strict):
    """Several runs that differ by their seed: `seeds.yaml` in the folder that holds them."""

    kerasnet: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,50}$")] = Field(
        description="version that wrote it"
    )
    seeds: Annotated[
        list[Seed], Field(min_length=1, max_length=MAX_SEEDS), AfterValidator(_each_once)
    ] = Field(description="of one run after another, each in `seed-<seed>/`")
    base: RunConfig = Field(description="what every run is like, but for its seed")


# ---------------------------------------------------------------------------- search spaces


Scalar = bool | int | Finite | str | None
Relative = Annotated[
    bool, Field(description="whether what is drawn multiplies what the field holds itself")
]
FieldPath = Annotated[
    str | None,
    Field(
        description="path of the field where the parameter's name is another; several may share it"
    ),
]
_Wanted = Annotated[list[Scalar], Field(min_length=1, max_length=MAX_VALUES)]
When = Annotated[
    dict[
        str,
        Annotated[
            _Wanted,
            BeforeValidator(
                lambda value: value if isinstance(value, list) else [value],
                json_schema_input_type=Scalar | _Wanted,
            ),
        ],
    ],
    Field(description="drawn only where each of these choices, declared above, has such a value"),
]


def _check_step(d: FloatRange | IntRange) -> None:
    """Refuse a step that gives fewer than two values, or too many."""
    if d.step is None or d.min >= d.max or (d.log and d.min <= 0):
        return  # without a step all is well; the others are told with the whole space
    if d.log and d.step <= 1:
        raise ValueError(f"with `log: true`, `step` is a factor above 1, not {d.step}")
    count = _steps(d)
    if count < 1:
        raise ValueError(f"`step` {d.step} leads from `min` {d.min} past `max` {d.max}")
    if count >= MAX_VALUES:
        raise ValueError(f"`step` {d.step} gives more than {MAX_VALUES} values; take a larger one")


def _steps(d: FloatRange | IntRange) -> float:
    """Return how many steps lead from `min` to `max`; a hair may be missing to the last."""
    assert d.step is not None
    if d.log:
        return (math.log(d.max) - math.log(d.min)) / math.log(d.step) + 1e-8
    return (d.max - d.min) / d.step + 1e-8


class FloatRange(Strict):
    """A real number; `log: true` draws its logarithm uniformly."""

    type: Literal["float"] = Field(description="kind of range")
    min: Finite = Field(description="lowest value")
    max: Finite = Field(description="highest value")
    log: bool = Field(False, description="whether the logarithm is drawn uniformly")
    step: Positive | None = Field(
        None, description="from one value to the next: a difference; with `log`, a factor"
    )
    relative: Relative = False
    field: FieldPath = None
    when: When = {}

    @model_validator(mode="after")
    def _step(self) -> FloatRange:
        _check_step(self)
        return self

    @property
    def points(self) -> list[float] | None:
        """The values that can be drawn; None where there is no step and thus no end of them."""
        if self.step is None:
            return None
        values = [
            self.min * self.step**i if self.log else self.min + self.step * i
            for i in range(math.floor(_steps(self)) + 1)
        ]
        # As people write them: 0.3, not 0.30000000000000004.
        return [min(float(f"{value:.15g}"), self.max) for value in values]


class IntRange(Strict):
    """A whole number; `log: true` draws its logarithm uniformly."""

    type: Literal["int"] = Field(description="kind of range")
    min: int = Field(description="lowest value")
    max: int = Field(description="highest value")
    log: bool = Field(False, description="whether the logarithm is drawn uniformly")
    step: Annotated[int, Field(ge=1)] | None = Field(
        None, description="from one value to the next: a difference; with `log`, a factor"
    )
    relative: Relative = False
    field: FieldPath = None
    when: When = {}

    @model_validator(mode="after")
    def _step(self) -> IntRange:
        _check_step(self)
        return self

    @property
    def points(self) -> list[int] | None:
        """The values that can be drawn by steps; None where there is no step."""
        if self.step is None:
            return None
        steps = range(math.floor(_steps(self)) + 1)
        return [self.min * self.step**i if self.log else self.min + self.step * i for i in steps]


def written(value: Scalar) -> str:
    """Write a value of a choice so that different ones look different: `true`, `null`, `0.5`."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(float(value))


_Values = Annotated[list[Scalar], Field(min_length=1, max_length=MAX_VALUES)]
_Labelled = Annotated[dict[Name, Any], Field(min_length=1, max_length=MAX_VALUES)]


def _check_text(value: Any) -> Any:
    """Refuse text anywhere in a plain value that no file could hold."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{value!r:.60} has characters without a UTF-8 form") from error
    elif isinstance(value, list | dict):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_text(item)
    return value


class Choice(Strict):
    """One of several values."""

    type: Literal["choice"] = Field(description="kind of range")
    values: Annotated[
        Annotated[_Values, Tag("list")] | Annotated[_Labelled, Tag("labels")],
        Discriminator(lambda value: "labels" if isinstance(value, dict) else "list"),
        AfterValidator(_check_text),
    ] = Field(description="what is chosen from: a list, or values of any kind by their labels")
    relative: Relative = False
    field: FieldPath = None
    when: When = {}

    @model_validator(mode="after")
    def _multiplies(self) -> Choice:
        if self.relative:
            of = self.values.values() if isinstance(self.values, dict) else self.values
            wrong = [value for value in of if type(value) not in (int, float)]
            if wrong:
                raise ValueError(
                    f"`relative: true` multiplies, so that all values are numbers; {wrong[0]!r:.60}"
                    " is none"
                )
        return self

    @property
    def names(self) -> list[Scalar]:
        """What is drawn and recorded: the labels, or the values themselves."""
        return list(self.values)

    @property
    def points(self) -> list[Scalar]:
        """The values that can be drawn."""
        return self.names

    def meant(self, name: Any) -> Any:
        """Return the value that a label stands for; without labels, what was drawn."""
        return self.values[name] if isinstance(self.values, dict) else name


Distribution = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


def conditions(parameters: dict[str, Distribution]) -> dict[str, dict[str, list[Scalar]]]:
    """Return, by parameter, every choice that decides whether it is drawn, and how.

    A condition's own conditions are among them. The values are those that leave the parameter
    drawn; where there are none of a choice, it never is.

    Args:
        parameters: of a space, each condition on a choice above it.
    """
    found: dict[str, dict[str, list[Scalar]]] = {}
    for path, d in parameters.items():
        asked: dict[str, set[str]] = {}
        for parent, values in d.when.items():
            for name, allowed in {**found[parent], parent: values}.items():
                texts = {written(value) for value in allowed}
                asked[name] = asked.get(name, texts) & texts
        found[path] = {}
        for name, texts in asked.items():
            choice = parameters[name]
            assert isinstance(choice, Choice)
            found[path][name] = [value for value in choice.names if written(value) in texts]
    return found


def _values(parameters: dict[str, Distribution]) -> int:
    return sum(len(d.values) for d in parameters.values() if isinstance(d, Choice))


def _check_parameters(parameters: dict[str, Distribution]) -> dict[str, Distribution]:
    """Refuse conditions that cannot be, and two parameters that set one field at once."""
    if _values(parameters) > MAX_VALUES:
        return parameters  # refused as a whole
    wrong = [
        problem
        for i, (name, d) in enumerate(parameters.items())
        for problem in _wrong_conditions(name, d, parameters, list(parameters)[:i])
    ] or list(_contradictions(parameters))
    if wrong:
        lines: list[InitErrorDetails] = [
            {"type": PydanticCustomError("value_error", "{t}", {"t": t}), "loc": loc, "input": {}}
            for loc, t in wrong
        ]
        raise ValidationError.from_exception_data("Space", lines)
    return parameters


_Wrong = Iterator[tuple[tuple[str | int, ...], str]]


def _wrong_conditions(
    name: str, d: Distribution, parameters: dict[str, Distribution], above: list[str]
) -> _Wrong:
    """Yield where a condition is on what is no choice above, or on a value that it lacks."""
    for parent, values in d.when.items():
        choice = parameters.get(parent)
        if choice is None:
            hint = did_you_mean(parent, above)
            yield (name, "when", parent), f"there is no parameter '{shown(parent)}' above. {hint}"
        elif parent not in above:
            text = f"'{shown(parent)}' is declared below; a condition is on a choice above it"
            yield (name, "when", parent), text
        elif not isinstance(choice, Choice):
            text = f"'{shown(parent)}' is a range; a condition is on a choice"
            yield (name, "when", parent), text
        else:
            known = [written(value) for value in choice.names]
            for i, value in enumerate(values):
                if written(value) not in known:
                    hint = did_you_mean(written(value), known)
                    text = f"'{shown(parent)}' has no value '{shown(written(value))}'. {hint}"
                    yield (name, "when", parent, i), text


def _contradictions(parameters: dict[str, Distribution]) -> _Wrong:
    """Yield choices with a value twice, and parameters never drawn or that set another's field."""
    asked = conditions(parameters)
    seen: dict[str, list[str]] = {}
    for name, d in parameters.items():
        texts = [written(value) for value in d.names] if isinstance(d, Choice) else []
        twice = next((text for i, text in enumerate(texts) if text in texts[:i]), None)
        if twice is not None:
            yield (name, "values"), f"'{shown(twice)}' is there twice; each value counts once"
        for parent, values in asked[name].items():
            if not values:
                text = f"it is never drawn: no value of '{shown(parent)}' meets all its conditions"
                yield (name, "when"), text
        others = seen.setdefault(d.field or name, [])
        for other in others:
            if not d.relative and not _exclude(asked[name], asked[other]):
                text = f"'{shown(other)}' sets the same field; their `when` must exclude each other"
                yield (name,), text
        others.append(name)


def _exclude(one: dict[str, list[Scalar]], other: dict[str, list[Scalar]]) -> bool:
    """Whether two sets of conditions never hold at once."""
    return any(
        not {written(v) for v in one[parent]} & {written(v) for v in other[parent]}
        for parent in one.keys() & other.keys()
    )


class Space(Strict):
    """A search space: fields of a recipe or model, by path, and how each is drawn."""

    description: Prose = ""
    parameters: Annotated[
        dict[str, Distribution],
        Field(min_length=1, max_length=64),
        AfterValidator(_check_parameters),
    ] = Field(
        description="fields by path, such as `recipe.optimizer.learning_rate`; `*` in a path "
        "stands for every item of a list or every key of a mapping"
    )

    @model_validator(mode="after")
    def _ranges(self) -> Space:
        # Each is tried before the first trial.
        values = _values(self.parameters)
        if values > MAX_VALUES:
            raise ValueError(f"{values} values to choose from; the limit is {MAX_VALUES} in all")
        for path, d in self.parameters.items():
            if isinstance(d, FloatRange | IntRange):
                if d.min >= d.max:
                    raise ValueError(f"'{path}': `min` {d.min} is not below `max` {d.max}")
                if d.log and d.min <= 0:
                    raise ValueError(f"'{path}': `log: true` needs `min` above zero, not {d.min}")
        return self


class SearchConfig(Strict):
    """Everything that a process needs to take part in a search: `search.yaml` in its folder."""

    kerasnet: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,50}$")] = Field(
        description="version that wrote it"
    )
    space_name: PathName = Field(description="how the user named the space")
    space: Space
    base: RunConfig = Field(
        description="what every trial starts from; its epochs are the longest trial's, and its "
        "seed draws the points"
    )
    algorithm: Literal["random", "bayesian", "hyperband", "grid"] = Field(
        description="how points are drawn"
    )
    trials: Annotated[int, Field(ge=1, le=MAX_VALUES)] | None = Field(
        None, description="how many points; null where the algorithm decides"
    )
    executions: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="trainings of each point, by as many seeds"
    )
    stop_early: bool = Field(
        True, description="whether a trial ends that is worse than the median of the others"
    )
