"""What a registry, a search space and a run's configuration may say.

Every document is strict: an unknown key, a value of the wrong type or a number out of its range is
an error. Nothing here imports Keras.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from kerasnet.keys import check_template, pattern

# Bounds that no useful network reaches, so that a document from a stranger cannot ask for the
# machine's whole memory.
MAX_CHANNELS = 65_536
MAX_SIDE = 4_096
MAX_REPEATS = 1_000
MAX_STAGES = 100
MAX_OPS = 100
MAX_BATCH = 65_536
MAX_EPOCHS = 100_000
MAX_VALUES = 300


class Strict(BaseModel):
    """Base of every document class: immutable, no unknown keys, no silent conversions."""

    # Building the validators of fifty classes takes a tenth of a second; most commands need few.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, defer_build=True
    )


Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Kernel = Annotated[int, Field(ge=1, le=64)]
Stride = Annotated[int, Field(ge=1, le=64)]
Padding = Annotated[int, Field(ge=0, le=64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Below, both shapes of a float32 beta distribution's draws are 0; above, they are all one half.
Alpha = Annotated[float, Field(ge=1e-3, le=1e3)]
Shape = Annotated[list[Side], Field(min_length=3, max_length=3)]


def _check_prose(value: str) -> str:
    if not value.replace("\n", " ").replace("\t", " ").isprintable():
        raise ValueError("expected text without control characters, which a terminal would obey")
    return value


def _check_path(value: str) -> str:
    if "\0" in value:
        raise ValueError("expected the name of a file or folder, which holds no null character")
    return value


Prose = Annotated[str, Field(max_length=10_000), AfterValidator(_check_prose)]
PathName = Annotated[str, AfterValidator(_check_path)]
Activation = Literal["none", "relu", "relu6", "gelu", "silu", "swish", "elu", "tanh", "sigmoid"]

# ---------------------------------------------------------------------------- initialisers


class VarianceScaling(Strict):
    """`keras.initializers.VarianceScaling` (Glorot & Bengio 2010; He et al. 2015)."""

    scale: Positive = 1.0
    mode: Literal["fan_in", "fan_out", "fan_avg"] = "fan_in"
    distribution: Literal["truncated_normal", "untruncated_normal", "uniform"] = "truncated_normal"


class RandomNormal(Strict):
    """Normal values with mean zero."""

    stddev: Positive


class RandomUniform(Strict):
    """Uniform values in [-limit, limit)."""

    limit: Positive


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

    constant: Finite


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

# ---------------------------------------------------------------------------- norms and defaults


class Norm(Strict):
    """Batch normalisation (Ioffe & Szegedy 2015).

    `momentum` is Keras's: moving = momentum · moving + (1 - momentum) · batch.
    """

    type: Literal["batch_norm"] = "batch_norm"
    epsilon: Positive = 1e-3
    momentum: Fraction = 0.99
    center: bool = True
    scale: bool = True


class Defaults(Strict):
    """What the layers of an architecture use where they say nothing themselves."""

    norm: str = Field("bn", description="name of an entry in `norms`")
    act: Activation = "relu"
    bias: bool = Field(True, description="whether convolutions and dense layers have a bias")
    kernel_init: Initializer = "glorot_uniform"
    bias_init: Initializer = "zeros"


# ---------------------------------------------------------------------------- single layers


class Conv(Strict):
    """A convolution of a stem, an `after` list, a neck or a head."""

    filters: Channels
    kernel: Kernel
    stride: Stride = 1
    padding: Padding | None = Field(None, description="default: (kernel - 1) / 2, odd kernels only")
    groups: Channels = 1
    bias: bool | None = None
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None


class Pool(Strict):
    """A maximum or average over size × size windows."""

    size: Kernel
    stride: Stride | None = Field(None, description="default: size")
    padding: Padding = 0


class Dense(Strict):
    """A fully connected layer; `units: classes` makes it the classifier."""

    units: Channels | Literal["classes"]
    bias: bool | None = None
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None


class NormOp(Strict):
    """`norm`, or `norm: name`, or `norm: {name: ..., gamma_init: ...}`."""

    name: str | None = Field(None, description="default: the architecture's `defaults.norm`")
    gamma_init: Initializer = "ones"


def _short(key: str) -> BeforeValidator:
    """Let `dense: 512` stand for `dense: {units: 512}` and the like."""

    def expand(value: Any) -> Any:
        return value if isinstance(value, dict | BaseModel) else {key: value}

    return BeforeValidator(expand)


class ConvStep(Strict):
    """`conv: {filters: 64, kernel: 3}`."""

    conv: Conv


class NormStep(Strict):
    """`norm` or `norm: bn`."""

    norm: Annotated[NormOp, _short("name")]


class ActStep(Strict):
    """`act` or `act: relu`."""

    act: Activation | None = Field(None, description="default: the architecture's `defaults.act`")


class MaxPoolStep(Strict):
    """`max_pool: 2` or `max_pool: {size: 3, stride: 2, padding: 1}`."""

    max_pool: Annotated[Pool, _short("size")]


class AvgPoolStep(Strict):
    """`avg_pool: 2` or `avg_pool: {size: 2}`."""

    avg_pool: Annotated[Pool, _short("size")]


class DenseStep(Strict):
    """`dense: classes` or `dense: {units: 512, bias: false}`."""

    dense: Annotated[Dense, _short("units")]


class DropoutStep(Strict):
    """`dropout: 0.5`: the fraction set to zero (Srivastava et al. 2014)."""

    dropout: Fraction


class BareStep(Strict):
    """A layer with nothing to say: `global_avg_pool`, `global_max_pool` or `flatten`."""

    layer: Literal["global_avg_pool", "global_max_pool", "flatten"]


_STEPS: dict[str, type[Strict]] = {
    "conv": ConvStep,
    "norm": NormStep,
    "act": ActStep,
    "max_pool": MaxPoolStep,
    "avg_pool": AvgPoolStep,
    "dense": DenseStep,
    "dropout": DropoutStep,
}
_BARE = ("global_avg_pool", "global_max_pool", "flatten")
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


Step = Annotated[
    Annotated[ConvStep, Tag("conv")]
    | Annotated[NormStep, Tag("norm")]
    | Annotated[ActStep, Tag("act")]
    | Annotated[MaxPoolStep, Tag("max_pool")]
    | Annotated[AvgPoolStep, Tag("avg_pool")]
    | Annotated[DenseStep, Tag("dense")]
    | Annotated[DropoutStep, Tag("dropout")]
    | Annotated[BareStep, Tag("layer")],
    Discriminator(
        _step_tag,
        custom_error_type="step",
        custom_error_message="expected one layer, written as a name or as one `name: {...}` pair; "
        "layers are " + ", ".join(STEP_NAMES),
    ),
    BeforeValidator(_expand_step),
]
Steps = Annotated[list[Step], Field(max_length=MAX_OPS)]

# ---------------------------------------------------------------------------- blocks

_WIDTH = re.compile(r"(?:([1-9][0-9]{0,4}) \* )?width")


def _check_filters(value: int | str) -> int | str:
    if isinstance(value, str) and not _WIDTH.fullmatch(value):
        raise ValueError("expected a number of filters, `width`, or a multiple such as `4 * width`")
    return value


Filters = Annotated[Channels | str, AfterValidator(_check_filters)]


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
    filters: Filters = "width"
    takes_stride: bool = Field(False, description="whether this one strides when the block does")
    padding: Padding | None = Field(None, description="default: (kernel - 1) / 2, odd kernels only")
    groups: Channels = 1
    bias: bool | None = None
    norm: bool | str = Field(True, description="true: the default norm; false: none; or a name")
    act: Activation | None = Field(None, description="default: the architecture's `defaults.act`")
    dropout: Fraction | None = Field(None, description="before this convolution")
    kernel_init: Initializer | None = None
    gamma_init: Initializer = Field("ones", description="`zeros`: Goyal et al. 2017, section 5.1")


class Projection(Strict):
    """A 1×1 convolution on the shortcut, strided as the block is."""

    when: Literal["always", "change", "first"] = Field(
        "change",
        description="always; where stride or channels change, the input itself elsewhere; "
        "or in the first block of a stage",
    )
    norm: bool | str = True
    act: Activation = "none"
    bias: bool | None = None
    source: Literal["input", "preactivation"] = Field(
        "input", alias="from", description="what is projected"
    )
    kernel_init: Initializer | None = None


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
    order: Literal["conv-norm-act", "norm-act-conv"] = "conv-norm-act"
    convs: Annotated[list[BlockConv], Field(min_length=1, max_length=16)]
    shortcut: Shortcut = "none"
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

    block: str
    width: Channels
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = 1
    stride: Stride = 1
    strided_block: Literal["first", "last"] = "first"
    after: Steps = []


class Expect(Strict):
    """What the plan must come to; checked by `kerasnet validate`."""

    trainable: Annotated[int, Field(ge=0)] | None = None
    non_trainable: Annotated[int, Field(ge=0)] | None = None
    macs: Annotated[int, Field(ge=0)] | None = None
    features: list[Shape] | None = Field(None, description="the stages' output shapes, in order")


class Model(Strict):
    """An architecture: a stem, stages, an optional neck, and a head."""

    extends: str | None = Field(
        None, description="another model, whose fields this one starts from"
    )
    description: Prose = ""
    origin: Prose = Field("", description="paper and section")
    input: Shape = Field(description="height, width, channels")
    classes: Channels = 10
    defaults: Defaults = Field(default_factory=Defaults)
    stem: Steps = []
    stages: Annotated[list[Stage], Field(min_length=1, max_length=MAX_STAGES)]
    neck: Steps = []
    head: Annotated[Steps, Field(min_length=1)]
    recipes: dict[str, str] = Field(
        {}, description="data set → recipe; `*` stands for every data set not named"
    )
    keys: Annotated[list[str], Field(max_length=5)] = Field(
        [], description="key styles of PyTorch's files of this architecture; the first is written"
    )
    expect: Expect | None = None

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

    type: Literal["sgd"]
    learning_rate: Positive
    momentum: Fraction = 0.9
    nesterov: bool = True


class Adam(Strict):
    """Adam (Kingma & Ba 2015)."""

    type: Literal["adam"]
    learning_rate: Positive
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8


Optimizer = Annotated[Sgd | Adam, Field(discriminator="type")]


class WeightDecay(Strict):
    """Decoupled decay: w ← w - learning_rate · rate · w (Loshchilov & Hutter 2019)."""

    rate: NonNegative
    on: Literal["kernels", "all"] = Field(
        "kernels", description="kernels: neither biases nor normalisation parameters"
    )


class Constant(Strict):
    """The optimiser's learning rate throughout."""

    type: Literal["constant"] = "constant"


class StepSchedule(Strict):
    """The learning rate times `factor` after every `every` units."""

    type: Literal["step"]
    unit: Literal["epoch", "fraction"] = Field(description="fraction: of the horizon")
    every: Positive
    factor: Positive


class CosineSchedule(Strict):
    """Linear warm-up, then half a cosine down to `final` (Loshchilov & Hutter 2017)."""

    type: Literal["cosine"]
    unit: Literal["epoch", "fraction"] = Field("fraction", description="of `warmup`")
    warmup: NonNegative = 0.0
    final: NonNegative = Field(0.0, description="as a fraction of the learning rate")


class OneCycleSchedule(Strict):
    """Up from `initial` to the learning rate, then down to `final`, linearly (Smith 2018)."""

    type: Literal["one_cycle"]
    unit: Literal["epoch", "fraction"] = Field("fraction", description="of `peak`")
    peak: NonNegative = 0.25
    initial: NonNegative = Field(0.04, description="as a fraction of the learning rate")
    final: NonNegative = Field(0.0, description="as a fraction of the learning rate")


Schedule = Annotated[
    Constant | StepSchedule | CosineSchedule | OneCycleSchedule, Field(discriminator="type")
]


class Crop(Strict):
    """Pad every side by `padding` pixels, then crop to the old size at a random place."""

    padding: Annotated[int, Field(ge=1, le=64)]
    mode: Literal["zeros", "reflect"] = "zeros"


class Cutout(Strict):
    """Set a random square to the data set's mean colour (DeVries & Taylor 2017)."""

    size: Annotated[int, Field(ge=1, le=1024)]


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
    flip: Literal["none", "horizontal"] = Field("none", description="with probability one half")
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

    decay: Annotated[float, Field(gt=0, lt=1)]


class Recipe(Strict):
    """A way to train."""

    extends: str | None = Field(
        None, description="another recipe, whose fields this one starts from"
    )
    description: Prose = ""
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)]
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    optimizer: Optimizer
    schedule: Schedule = Field(default_factory=Constant)
    weight_decay: WeightDecay | None = None
    label_smoothing: Fraction = 0.0
    gradient_clip: Positive | None = Field(None, description="global norm (Pascanu et al. 2013)")
    ema: Ema | None = None
    augment: Augment = Field(default_factory=Augment)
    validation_split: Annotated[float, Field(ge=0, le=0.5)] = 0.1


# ---------------------------------------------------------------------------- data sets


class DatasetSource(Strict):
    """Where a data set comes from."""

    type: Literal["tfds", "digits", "folder"]
    name: PathName | None = Field(None, description="the data set's name in tensorflow-datasets")


class Allowed(Strict):
    """The augmentations that leave a picture's class as it is."""

    crop: bool = True
    flip: bool = True
    rand_augment: bool = True
    cutout: bool = True
    mixup: bool = True
    cutmix: bool = True


def _without_checksums(archives: Any) -> Any:
    # Configurations of older runs list the names alone.
    return dict.fromkeys(archives) if isinstance(archives, list) else archives


class Dataset(Strict):
    """A set of labelled images and what belongs to it: classes, normalisation, augmentations."""

    extends: str | None = Field(
        None, description="another data set, whose fields this one starts from"
    )
    description: Prose = ""
    origin: Prose = ""
    source: DatasetSource
    image: Shape | None = Field(None, description="height, width, channels; as stored if unset")
    classes: Annotated[int, Field(ge=2, le=MAX_CHANNELS)] | None = None
    class_names: list[str] | None = None
    mean: Annotated[list[Finite], Field(min_length=1, max_length=4)] | None = Field(
        None, description="per channel, of pixels scaled to [0, 1]; measured on train if unset"
    )
    std: Annotated[list[Positive], Field(min_length=1, max_length=4)] | None = None
    augment: Allowed = Field(default_factory=Allowed)
    archives: Annotated[
        dict[str, Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None],
        BeforeValidator(_without_checksums),
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


class KeyStyle(Strict):
    """How PyTorch's files of some program name a network's weights."""

    extends: str | None = Field(
        None, description="another key style, whose fields this one starts from"
    )
    description: Prose = ""
    origin: Prose = Field("", description="the program")
    rules: Annotated[
        dict[str, KeyRule], Field(min_length=1, max_length=32), BeforeValidator(_expand_rules)
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

    name: Name
    model: Model
    blocks: dict[str, Block]
    norms: dict[str, Norm]
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

    name: PathName
    spec: Dataset
    data_dir: PathName | None = None
    limit_train: Annotated[int, Field(ge=1, le=2**31)] | None = None


class Precision(Strict):
    """The dtype policy asked for and the one used."""

    requested: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
    resolved: PrecisionName
    reason: str = ""


class EverySteps(Strict):
    """`{steps: 500}`."""

    steps: Annotated[int, Field(ge=1)]


class EveryMinutes(Strict):
    """`{minutes: 5}`."""

    minutes: Positive


def _every_tag(value: Any) -> str:
    named = isinstance(value, EverySteps) or (isinstance(value, dict) and "steps" in value)
    return "steps" if named else "minutes"


Every = Annotated[
    Annotated[EverySteps, Tag("steps")] | Annotated[EveryMinutes, Tag("minutes")],
    Discriminator(_every_tag),
]


class Execution(Strict):
    """How steps are run and kept."""

    layers: Literal["stock", "fast"] = "stock"
    jit_compile: bool = False
    steps_per_execution: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="steps between two returns to Python; fewer where an epoch's steps need it"
    )
    evaluation_batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 500
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

    mean: list[Finite]
    std: list[Positive]
    resize: Annotated[list[Side], Field(min_length=2, max_length=2)] = Field(
        description="height, width"
    )
    class_names: list[str]
    temperature: Positive = 1.0


class RunConfig(Strict):
    """Everything a run needs: `config.yaml` in its folder."""

    kerasnet: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,50}$")] = Field(
        description="version that wrote it"
    )
    architecture: Architecture
    input: Shape
    classes: Channels
    recipe_name: Name
    recipe: Recipe
    horizon: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = Field(
        description="epochs the schedule spans"
    )
    data: DataConfig
    precision: Precision
    execution: Execution = Field(default_factory=Execution)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    weights: PathName | None = Field(None, description="file the first weights were read from")
    inference: Inference | None = Field(None, description="known once the data is read")


# ---------------------------------------------------------------------------- search spaces


class FloatRange(Strict):
    """A real number; `log: true` draws its logarithm uniformly."""

    type: Literal["float"]
    min: Finite
    max: Finite
    log: bool = False


class IntRange(Strict):
    """A whole number; `log: true` draws its logarithm uniformly."""

    type: Literal["int"]
    min: int
    max: int
    log: bool = False


class Choice(Strict):
    """One of several values."""

    type: Literal["choice"]
    values: Annotated[list[bool | int | float | str], Field(min_length=1, max_length=MAX_VALUES)]


Distribution = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


class Space(Strict):
    """A search space: fields of a recipe or model, by path, and how each is drawn."""

    description: Prose = ""
    parameters: Annotated[dict[str, Distribution], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _ranges(self) -> Space:
        # Each is tried before the first trial.
        values = sum(len(d.values) for d in self.parameters.values() if isinstance(d, Choice))
        if values > MAX_VALUES:
            raise ValueError(f"{values} values to choose from; the limit is {MAX_VALUES} in all")
        for path, d in self.parameters.items():
            if isinstance(d, FloatRange | IntRange):
                if d.min >= d.max:
                    raise ValueError(f"'{path}': `min` {d.min} is not below `max` {d.max}")
                if d.log and d.min <= 0:
                    raise ValueError(f"'{path}': `log: true` needs `min` above zero, not {d.min}")
        return self
