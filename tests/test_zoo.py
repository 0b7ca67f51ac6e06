"""The families: their plans as they were, and the same numbers as Keras's own applications."""

from __future__ import annotations

import re

import golden
import keras
import numpy as np
import pytest

from kerasnet import schema
from kerasnet.build import build
from kerasnet.convert import weight_variables
from kerasnet.document import parse
from kerasnet.errors import BadInputError
from kerasnet.plan import plan_model
from kerasnet.registry import load_registry, overlay

REGISTRY = load_registry()


def plan(name, **more):
    return plan_model(REGISTRY.architecture(name), **more)


# ---------------------------------------------------------------------------- plans


@pytest.mark.parametrize("name", REGISTRY.models)
def test_the_plan_is_the_golden_one(name):
    file = golden.FOLDER / f"{name}.txt"
    known = file.read_text() if file.exists() else "no such file"
    # A list shows the first lines that differ; the whole text would fill the screen.
    found = golden.text_of(plan(name)).splitlines()
    assert found == known.splitlines(), f"if this is meant, write the files by: {golden.COMMAND}"


def test_there_is_no_golden_file_without_a_model():
    assert {file.stem for file in golden.FOLDER.iterdir()} == set(REGISTRY.models)


def test_a_golden_file_tells_wiring_and_options_apart():
    architecture = REGISTRY.architecture("resnet8").model_dump(mode="json", by_alias=True)
    first = golden.text_of(plan_model(schema.Architecture.model_validate(architecture)))
    assert first == golden.text_of(plan("resnet8"))
    architecture["norms"]["bn"]["epsilon"] = 2e-5
    other_norm = golden.text_of(plan_model(schema.Architecture.model_validate(architecture)))
    assert first != other_norm
    assert "0.9" in first


def deep(n: int):
    """Return the plan of a pre-activation ResNet of 9n + 2 layers (He et al. 2016)."""
    stages = ", ".join(
        f"{{block: bottleneck_preact, width: {width}, repeats: {n}, stride: {stride}}}"
        for width, stride in ((16, 1), (32, 2), (64, 2))
    )
    text = f"models: {{deep: {{extends: preresnet164, stages: [{stages}]}}}}"
    return plan_model(overlay(parse(text.encode(), "f")).architecture("deep"))


@pytest.mark.parametrize(("n", "trainable"), [(18, 1_703_258), (111, 10_327_706)])
def test_depth_is_a_number(n, trainable):
    made = deep(n)
    assert made.params["trainable"] == trainable
    assert sum(x.type in ("Conv2D", "Dense") for x in made.layers) == 9 * n + 2 + 3


def test_a_network_of_10001_layers_plans():
    n = 1111
    made = deep(n)
    # Three norms and three convolutions a block, one projection a stage.
    expected = 3 * 3 * 3 * 16 + 2 * 256 + 256 * 10 + 10
    channels = 16
    for width in (16, 32, 64):
        for inside in [channels] + [4 * width] * (n - 1):
            expected += 2 * (inside + 2 * width) + width * (inside + 9 * width + 4 * width)
        expected += channels * 4 * width
        channels = 4 * width
    assert made.params["trainable"] == expected
    assert sum(x.type in ("Conv2D", "Dense") for x in made.layers) == 9 * n + 2 + 3
    assert made.output.output_shape == (10,)


def test_what_others_report_is_not_inherited():
    text = "models: {mine: {extends: resnet110, description: mine}}"
    registry = overlay(parse(text.encode(), "f"))
    assert registry.models["resnet110"].published.top1 == 93.57
    assert registry.models["mine"].published is None
    assert registry.models["mine"].expect is None


# ---------------------------------------------------------------------------- Keras's own

# The published counts of keras.applications, 1000 classes: all parameters.
KERAS = {
    "resnet50_keras": ("ResNet50", 25_636_712),
    "resnet101_keras": ("ResNet101", 44_707_176),
    "resnet152_keras": ("ResNet152", 60_419_944),
    "resnet50v2_keras": ("ResNet50V2", 25_613_800),
    "resnet101v2_keras": ("ResNet101V2", 44_675_560),
    "resnet152v2_keras": ("ResNet152V2", 60_380_648),
    "vgg16_imagenet": ("VGG16", 138_357_544),
    "vgg19_imagenet": ("VGG19", 143_667_240),
}
DEEP = [name for name in KERAS if "101" in name or "152" in name]


@pytest.mark.parametrize("name", KERAS)
def test_the_published_parameters_of_kerass_applications(name):
    assert plan(name).params["total"] == KERAS[name][1]


def layer_name(theirs: str, preactivated: bool) -> str:
    """Return our name of a layer of keras.applications that has weights."""
    fixed = {
        "conv1_conv": "stem_conv", "conv1_bn": "stem_norm", "post_bn": "neck_norm",
        "predictions": "head_logits", "fc1": "head_dense1", "fc2": "head_dense2",
    }  # fmt: skip
    if theirs in fixed:
        return fixed[theirs]
    if found := re.fullmatch(r"block(\d)_conv(\d)", theirs):
        return f"stage{found[1]}_block{found[2]}_conv1"
    found = re.fullmatch(r"conv(\d)_block(\d+)_(preact|\d)_(conv|bn)", theirs)
    stage, block, number, kind = found.groups()
    role = "norm" if kind == "bn" else "conv"
    # There, a norm is numbered by the convolution before it; here by its own convolution.
    if number == "preact":
        number = "1"
    elif preactivated and role == "norm":
        number = str(int(number) + 1)
    place = f"shortcut_{role}" if number == "0" else f"{role}{number}"
    return f"stage{int(stage) - 1}_block{block}_{place}"


def reference(name, policy, input_shape, classes):
    """Return Keras's own model, with logits for outputs."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return getattr(keras.applications, KERAS[name][0])(
            weights=None, input_shape=input_shape, classes=classes, classifier_activation=None
        )
    finally:
        keras.config.set_dtype_policy(before)


def randomise(variables):
    """Give every weight by `layer/variable` random values, statistics too."""
    rng = np.random.default_rng(7)
    for key, variable in variables.items():
        shape = tuple(variable.shape)
        if key.endswith("kernel"):
            values = rng.normal(scale=(2 / np.prod(shape[:-1])) ** 0.5, size=shape)
        elif key.endswith("moving_variance"):
            values = rng.uniform(0.5, 2, shape)
        elif key.endswith("gamma"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(scale=0.3, size=shape)
        variable.assign(values)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in DEEP else []) for n in KERAS]
)
def test_same_weights_same_numbers_as_keras(name, policy, tolerance):
    # Both sides even and odd on the way down: 80, 40, 20, 10, 5, 3 and 56, 28, 14, 7, 4, 2.
    shape, classes = (80, 56, 3), 7
    theirs = reference(name, policy, shape, classes)
    made = plan(name, input_shape=shape, classes=classes)
    # Every weight is set below.
    ours = build(made, policy=policy)
    variables = weight_variables(ours)
    randomise(variables)
    left = set(variables)
    for layer in theirs.layers:
        for variable in layer.weights:
            key = f"{layer_name(layer.name, 'v2' in name)}/{variable.name}"
            variable.assign(variables[key])
            left.remove(key)
    assert not left
    assert theirs.count_params() == made.params["total"]
    # The input of Keras's models is always float32.
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype("float32").astype(policy)
    expected, found = (np.asarray(model(x, training=False)) for model in (theirs, ours))
    assert found.dtype == policy
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{name} {policy}: maximum difference {difference:.1e} of max |y|")
    assert difference <= tolerance


def test_float64_is_float64_throughout():
    model = build(plan("resnet9"), policy="float64")
    assert {layer.compute_dtype for layer in model.layers[1:]} == {"float64"}
    assert {layer.output.dtype for layer in model.layers} == {"float64"}
    assert {v.dtype for v in model.weights} == {"float64"}
    assert model.input.dtype == model.output.dtype == "float64"
    with pytest.raises(BadInputError, match="no float64"):
        build(plan("resnet9"), policy="float64", layers="fast")
