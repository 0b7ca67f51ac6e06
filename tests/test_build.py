"""Models against their plans, over the whole registry."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from agreement import assert_is_plan
from zoo import every_model

import kerasnet
from kerasnet import build as builder
from kerasnet import config as configs
from kerasnet import schema
from kerasnet.build import build, build_block, feature_model
from kerasnet.convert import load_weights, save_weights, weight_variables
from kerasnet.errors import BadInputError
from kerasnet.layers import FastConv2D
from kerasnet.plan import plan_model
from kerasnet.recipe import compile_model
from kerasnet.registry import load_registry

REGISTRY = load_registry()
MODELS = list(REGISTRY.models)
# Numbers are compared by default on what a core multiplies in a moment.
SMALL = every_model(macs=45e6)


def plan(name, **more):
    return plan_model(REGISTRY.architecture(name), **more)


def reduced(architecture):
    """Return the plan on an input of at most 64×64, where ImageNet's would take gigabytes."""
    height, width, channels = architecture.model.input
    return plan_model(architecture, (min(height, 64), min(width, 64), channels))


@pytest.mark.parametrize(
    ("name", "layers"),
    [*((name, "stock") for name in MODELS),
     *(pytest.param(*p.values, "fast", marks=p.marks) for p in every_model(macs=320e6))],
)  # fmt: skip
def test_model_is_its_plan(name, layers, monkeypatch):
    # Random numbers for a hundred million weights would take most of the time.
    monkeypatch.setattr(builder, "initializer", lambda spec, seed: keras.initializers.Zeros())
    made = plan(name)
    assert_is_plan(build(made, layers=layers), made, layers)


@pytest.mark.parametrize("name", SMALL)
def test_stock_and_fast_agree(name):
    made = reduced(REGISTRY.architecture(name))
    stock, fast = (build(made, layers=kind, seed=3) for kind in ("stock", "fast"))
    ours, theirs = weight_variables(stock), weight_variables(fast)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k].numpy(), theirs[k].numpy()) for k in ours)
    x = np.random.default_rng(0).normal(size=(8, *made.input_shape)).astype("float32")
    for training in (False, True):
        a = keras.ops.convert_to_numpy(stock(x, training=training))
        b = keras.ops.convert_to_numpy(fast(x, training=training))
        assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
    for key in (k for k in ours if "moving" in k):
        np.testing.assert_allclose(ours[key].numpy(), theirs[key].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["resnet50", "vgg16"])
def test_dtypes_layer_by_layer(name, policy):
    model = build(plan(name), layers="fast", policy=policy)
    compute = policy.removeprefix("mixed_")
    for layer in model.layers:
        expected = "float32" if layer.name in ("head_logits", "input") else compute
        assert layer.compute_dtype == expected, layer.name
        assert layer.variable_dtype == "float32"
        assert all(v.dtype == "float32" for v in layer.weights if "seed" not in v.path)
    assert model.output.dtype == "float32"
    y = model(np.zeros((2, 32, 32, 3), "float32"))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


def test_same_seed_same_weights_and_other_layers_keep_theirs():
    a, b = build(plan("resnet8"), seed=5), build(plan("resnet8", classes=3), seed=5)
    c = build(plan("resnet8"), seed=6)
    key = "stem_conv/kernel"
    first, second, third = (weight_variables(m)[key].numpy() for m in (a, b, c))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


@pytest.mark.parametrize(
    ("name", "key", "std"),
    [
        ("vgg16", "stage3_block1_conv1/kernel", (2 / (9 * 256)) ** 0.5),
        ("resnet50", "stage3_block2_conv2/kernel", (2 / (9 * 512)) ** 0.5),
        ("resnet20", "stage2_block2_conv2/kernel", (2 / (9 * 32)) ** 0.5),
    ],
)
def test_initial_weights_have_the_declared_spread(name, key, std):
    values = weight_variables(build(plan(name), seed=0))[key].numpy()
    assert values.std() == pytest.approx(std, rel=0.02)
    assert abs(values.mean()) < 0.02 * std * 10


def test_features_are_the_stage_outputs():
    whole = build(plan("resnet50"))
    model = feature_model(whole, plan("resnet50"))
    assert {k: tuple(v.shape[1:]) for k, v in model.output.items()} == plan(
        "resnet50"
    ).feature_shapes()
    one = feature_model(whole, plan("resnet50"), ["stem_pool"])
    assert tuple(one.output["stem_pool"].shape[1:]) == (8, 8, 64)
    with pytest.raises(BadInputError, match="has no layer"):
        feature_model(whole, plan("resnet50"), ["stem_pol"])


def test_build_block_works_on_its_own():
    x = keras.Input((32, 32, 48))
    y = build_block("bottleneck_sum", x, width=64, stride=2)
    assert y.shape == (None, 16, 16, 256)
    names = {layer.name for layer in keras.Model(x, y).layers}
    assert {"bottleneck_sum_conv1", "bottleneck_sum_shortcut_norm", "bottleneck_sum_merge"} <= names
    with pytest.raises(BadInputError, match="Did you mean 'bottleneck_sum'"):
        build_block("bottleneck_summ", x, width=64)
    with pytest.raises(BadInputError, match=r"Received: \(None, None, 32, 3\)"):
        build_block("basic", keras.Input((None, 32, 3)), width=64)


def test_padded_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = keras.Input((4, 4, 2))
    y = build_block("basic_padded", x, width=5, stride=2, seed=0)
    model = keras.Model(x, y)
    shortcut = keras.Model(x, model.get_layer("basic_padded_shortcut_pad").output)
    image = np.arange(1, 33, dtype="float32").reshape(1, 4, 4, 2)
    found = keras.ops.convert_to_numpy(shortcut(image))
    expected = np.pad(image[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (1, 2)])
    np.testing.assert_array_equal(found, expected)


# ---------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", SMALL)
def test_weights_round_trip_between_stock_and_fast(name, tmp_path):
    file = tmp_path / "w.safetensors"
    made = reduced(REGISTRY.architecture(name))
    fast = build(made, layers="fast", seed=1)
    save_weights(fast, file, {"model": name})
    stock = build(made, seed=2)
    assert load_weights(stock, file) == {"model": name}
    for key, variable in weight_variables(fast).items():
        np.testing.assert_array_equal(variable.numpy(), weight_variables(stock)[key].numpy())


def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path):
    file = tmp_path / "w.safetensors"
    save_weights(build(plan("resnet8", classes=3), seed=1), file)
    model = build(plan("resnet8"), seed=2)
    before = {k: v.numpy().copy() for k, v in weight_variables(model).items()}
    with pytest.raises(BadInputError, match=r"head_logits/kernel: expected shape \(64, 10\)"):
        load_weights(model, file)
    with pytest.raises(BadInputError, match="missing: stage1_block2_conv1/kernel"):
        load_weights(build(plan("resnet20")), file)
    for key, variable in weight_variables(model).items():
        np.testing.assert_array_equal(variable.numpy(), before[key])


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing", "suffix", "nan"])
def test_damaged_weights_are_bad_input(damage, tmp_path):
    file = tmp_path / ("w.h5" if damage == "suffix" else "w.safetensors")
    model = build(plan("resnet8"))
    if damage == "nan":
        model.get_layer("stem_conv").kernel.assign(np.full((3, 3, 3, 16), np.nan, "float32"))
    if damage != "missing":
        save_weights(model, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage in ("empty", "text"):
        file.write_text("" if damage == "empty" else "not weights at all")
    with pytest.raises(BadInputError, match=str(file)):
        load_weights(build(plan("resnet8")), file)


def test_keras_files_load_without_kerasnet(tmp_path):
    model = kerasnet.create_model("resnet20", seed=0)
    file = tmp_path / "m.keras"
    model.save(file)
    image = np.ones((1, 32, 32, 3), "float32")
    np.save(tmp_path / "y.npy", model.predict(image, verbose=0))
    code = (
        "import sys, keras, numpy as np\n"
        f"m = keras.models.load_model({str(file)!r})\n"
        "y = m.predict(np.ones((1, 32, 32, 3), 'float32'), verbose=0)\n"
        f"np.testing.assert_allclose(y, np.load({str(tmp_path / 'y.npy')!r}), rtol=1e-5)\n"
        "assert 'kerasnet' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# ---------------------------------------------------------------------------- create_model


def test_create_model_with_preprocessing_takes_images_of_any_size():
    model = kerasnet.create_model("resnet8", preprocessing="cifar10", seed=0)
    images = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), "uint8")
    y = model.predict(images, verbose=0)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)
    plain = kerasnet.create_model("resnet8", seed=0)
    small = images[:, :32, :32]
    spec = REGISTRY.datasets["cifar10"]
    x = (small / 255 - np.array(spec.mean)) / np.array(spec.std)
    logits = plain.predict(x.astype("float32"), verbose=0)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    np.testing.assert_allclose(model.predict(small, verbose=0), expected, atol=1e-5)


def test_create_model_refuses_what_it_cannot_do():
    with pytest.raises(BadInputError, match="Did you mean 'resnet50'"):
        kerasnet.create_model("resnet500")
    with pytest.raises(BadInputError, match="inference block"):
        kerasnet.create_model("resnet8", preprocessing=True)


def test_features_come_with_the_weights_asked_for(tmp_path):
    file = tmp_path / "w.safetensors"
    whole = kerasnet.create_model("resnet8", seed=1)
    save_weights(whole, file)
    model = kerasnet.create_model("resnet8", weights=file, features=["head_logits"])
    image = np.ones((1, 32, 32, 3), "float32")
    np.testing.assert_allclose(
        model.predict(image, verbose=0)["head_logits"], whole.predict(image, verbose=0), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"classes": 0}, "classes must lie in"),
        ({"classes": 2.5}, "classes must be a whole number"),
        ({"input_shape": (None, 32, 3)}, "height must be a whole number"),
        ({"input_shape": (32, 32)}, r"Received: \(32, 32\)"),
        ({"input_shape": (32, 32, 0)}, "channels must lie in"),
    ],
)
def test_sizes_from_python_are_checked(arguments, said):
    with pytest.raises(BadInputError, match=said):
        kerasnet.create_model("resnet8", **arguments)
    with pytest.raises(BadInputError, match="stride must lie in"):
        build_block("basic", keras.Input((8, 8, 3)), width=4, stride=0)


def test_list_models_globs():
    assert kerasnet.list_models("resnet?") == ["resnet8", "resnet9"]
    assert kerasnet.list_models("resnet[58]*")[:2] == ["resnet50", "resnet8"]
    assert len(kerasnet.list_models()) == len(REGISTRY.models) >= 40


# ---------------------------------------------------------------------------- fast layers


def convolved(cls, shape, kernel, filters, stride, dtype):
    """Return a convolution's output and gradients, of the same numbers each time, in float32."""
    import tensorflow as tf

    layer = cls(
        filters=filters, kernel_size=kernel, strides=stride, padding="same" if kernel > 1 else
        "valid", kernel_initializer=keras.initializers.GlorotNormal(seed=1), dtype=dtype,
    )  # fmt: skip
    x = tf.random.stateless_normal(shape, [1, 2])

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            weight = tf.random.stateless_normal(y.shape, [3, 4])
            loss = tf.reduce_sum(tf.cast(y, "float32") * weight)
        return y, *tape.gradient(loss, [x, layer.kernel, layer.bias])

    layer.build(shape)
    return [np.asarray(tf.cast(value, "float32")) for value in step(x)]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("sides", "kernel", "stride"),
    [
        ((8, 8), 3, 1), ((4, 6), 3, 1), ((3, 3), 3, 1), ((5, 3), 5, 1), ((4, 4), 7, 1),
        ((2, 8), 7, 1), ((2, 2), 3, 1), ((1, 2), 3, 1), ((1, 1), 3, 1), ((3, 2), 5, 1),
        ((4, 4), 1, 1), ((4, 4), 1, 2), ((5, 7), 1, 2), ((7, 5), 1, 3), ((16, 16), 3, 1),
    ],
)  # fmt: skip
def test_a_fast_convolution_is_a_stock_one(sides, kernel, stride, dtype):
    shape = (3, *sides, 5)
    stock = convolved(keras.layers.Conv2D, shape, kernel, 4, stride, dtype)
    fast = convolved(FastConv2D, shape, kernel, 4, stride, dtype)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for a, b in zip(stock, fast, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


def gradients(model, x, labels):
    import tensorflow as tf

    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, model.trainable_variables)

    found = step(x)
    return np.concatenate([np.ravel(g) for g in found])


def smooth(name):
    """Return the plan of a model with GELUs for ReLUs and means for maxima."""
    architecture = REGISTRY.architecture(name).model_dump(mode="json", by_alias=True)
    text = json.dumps(architecture).replace('"relu"', '"gelu"').replace("max_pool", "avg_pool")
    return reduced(schema.Architecture.model_validate_json(text))


@pytest.mark.parametrize("name", every_model(macs=45e6, always=["vgg16"]))
def test_one_step_gradients_of_stock_and_fast_agree(name):
    # A ReLU's gradient jumps at zero, a maximum's where two values tie: of two equal nets, rounding
    # decides which side a number is on, and the gradients of a deep one differ by a percent. Of
    # smooth functions they agree.
    made = smooth(name)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, *made.input_shape)).astype("float32")
    labels = rng.integers(0, 10, 32)
    stock, fast = (
        gradients(build(made, layers=kind, seed=3), x, labels) for kind in ("stock", "fast")
    )
    assert np.linalg.norm(fast - stock) <= 1e-4 * np.linalg.norm(stock)


def test_a_bias_before_a_norm_keeps_its_meaning():
    made = plan("resnet50")
    stock, fast = (build(made, layers=kind, seed=3) for kind in ("stock", "fast"))
    rng = np.random.default_rng(1)
    for key, variable in weight_variables(stock).items():
        if key.endswith(("/bias", "/moving_mean")):
            value = rng.normal(size=variable.shape).astype("float32")
            variable.assign(value)
            weight_variables(fast)[key].assign(value)
    x = rng.normal(size=(8, *made.input_shape)).astype("float32")
    for training in (False, True, False):
        a, b = (np.asarray(model(x, training=training)) for model in (stock, fast))
        assert np.abs(a - b).max() <= 1e-3 * np.abs(a).max()


def losses_of(layers, nudge, recipe, rate, steps=200):
    """Return a training's losses, its first weights nudged by one part in ten million."""
    config = configs.resolve(
        "resnet8", recipe=recipe, dataset="digits", layers=layers, precision_request="float32",
        overrides={"recipe.optimizer.learning_rate": rate},
    )  # fmt: skip
    model = build(configs.plan(config), layers=layers, seed=0)
    rng = np.random.default_rng(nudge)
    for variable in model.trainable_variables:
        noise = 1e-7 * rng.standard_normal(variable.shape).astype("float32")
        variable.assign(np.asarray(variable) * (1 + noise))
    compile_model(model, config, steps)
    split = kerasnet.load_dataset("digits").load("train")
    images, order = split.images.astype("float32") / 255, np.random.default_rng(0)
    found = []
    for _ in range(steps):
        chosen = order.integers(0, len(split), 32)
        model.reset_metrics()
        found.append(model.train_on_batch(images[chosen], split.labels[chosen].astype("int32"))[0])
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "rate"), [("small", 0.05), ("digits", 1e-3)])
def test_fast_layers_train_as_stock_ones_do(recipe, rate):
    stock = np.array([losses_of("stock", nudge, recipe, rate) for nudge in range(5)])
    fast = np.array([losses_of("fast", nudge, recipe, rate) for nudge in range(3)])
    assert fast[:, -10:].mean() < fast[:, :10].mean() / 2
    # Of six curves that differ by chance, one lies between the other five at two thirds of the
    # steps; a learning rate wrong by a hundredth brings that down to about a half.
    inside = (fast >= stock.min(axis=0)) & (fast <= stock.max(axis=0))
    assert inside.mean() >= 0.55
