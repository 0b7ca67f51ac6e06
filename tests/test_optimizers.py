"""The fused optimisers against Keras's own."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kerasnet import schema
from kerasnet.optimizers import FusedAdam, FusedSGD
from kerasnet.recipe import inner, make_optimizer

PAIRS = {
    "adam": (FusedAdam, keras.optimizers.Adam, {"beta_1": 0.8, "epsilon": 1e-5}),
    "adam, amsgrad": (FusedAdam, keras.optimizers.Adam, {"amsgrad": True}),
    "sgd": (FusedSGD, keras.optimizers.SGD, {}),
    "momentum": (FusedSGD, keras.optimizers.SGD, {"momentum": 0.9}),
    "nesterov": (FusedSGD, keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
}


def trained(cls, options, dtype="float32"):
    """Return the variables and the state after some updates with changing learning rates."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "gamma": (2, 2, 5)}
    variables = [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for name, shape in shapes.items()
    ]
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.5)
    optimizer = cls(learning_rate=rate, name="same", **options)
    optimizer.build(variables)
    optimizer.exclude_from_weight_decay(var_list=variables[1:2])

    @tf.function(autograph=False)
    def step(*gradients):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for _ in range(7):
        step(*(tf.cast(rng.normal(size=s), dtype) for s in shapes.values()))
    state = {v.path.split("/", 1)[-1]: np.asarray(v) for v in optimizer.variables}
    return [np.asarray(v) for v in variables], state


@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1}, {"global_clipnorm": 0.5}])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_fused_optimizer_updates_as_keras_does(pair, more):
    fused, stock, options = PAIRS[pair]
    ours, our_state = trained(fused, {**options, **more})
    theirs, their_state = trained(stock, {**options, **more})
    assert [k.split("/")[-1] for k in our_state] == [k.split("/")[-1] for k in their_state]
    for a, b in zip([*ours, *our_state.values()], [*theirs, *their_state.values()], strict=True):
        # An update is a twentieth; one minus a power of 0.999 has four digits left in float32.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


# ---------------------------------------------------------------------------- rate factors

FACTOR = 64.0
SHAPES = {"kernel": (3, 4), "bias": (4,), "gamma": (5,), "beta": (5,)}
OPTIMIZERS = {
    "adam": {"type": "adam", "learning_rate": 2e-3},
    "momentum": {"type": "sgd", "learning_rate": 0.1, "nesterov": False},
    "nesterov": {"type": "sgd", "learning_rate": 0.1},
    "sgd": {"type": "sgd", "learning_rate": 0.1, "momentum": 0.0},
}


def recipe(optimizer, norm_bias=1.0, **more):
    return schema.Recipe.model_validate(
        {
            "epochs": 1, "batch_size": 1, "optimizer": OPTIMIZERS[optimizer],
            "learning_rate_factors": {"norm_bias": norm_bias}, **more,
        }
    )  # fmt: skip


def updated(made_of, steps=1, start=0.0, rate_scale=1.0, loss_scale=False, rate=None):
    """Return the variables after some steps, by name, and the optimiser."""
    import tensorflow as tf

    rng = np.random.default_rng(1)
    variables = {
        name: keras.Variable(np.full(shape, start, "float32"), name=name)
        for name, shape in SHAPES.items()
    }
    optimizer = make_optimizer(made_of, 10, 1, [*variables.values()], rate_scale, rate)
    if loss_scale:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    optimizer.build([*variables.values()])

    @tf.function(autograph=False)
    def step(*gradients):
        optimizer.apply(list(gradients), [*variables.values()])

    for _ in range(steps):
        step(*(tf.constant(rng.normal(size=s), tf.float32) for s in SHAPES.values()))
    return {name: np.asarray(v) for name, v in variables.items()}, optimizer


DECAY = {"weight_decay": {"rate": 0.1, "on": "kernels"}}


@pytest.mark.parametrize(
    "how",
    [
        ({}, {}),
        (DECAY, {}),
        ({"gradient_clip": 0.5}, {}),
        ({"ema": {"decay": 0.9}}, {}),
        ({}, {"loss_scale": True}),
        ({}, {"rate_scale": 0.25}),
        ({}, {"rate": keras.optimizers.schedules.ExponentialDecay(1e-3, 5, 2.0)}),
    ],
    ids=["plain", "decay", "clipped", "averaged", "loss scaling", "rolled back", "range test"],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_beta_is_factor_times_the_plain_one(optimizer, how):
    more, way = how
    plain, _ = updated(recipe(optimizer, **more), **way)
    found, made = updated(recipe(optimizer, FACTOR, **more), **way)
    # Variables begin at zero and the factor is a power of two, so that nothing is rounded.
    assert np.abs(plain["beta"]).min() > 0
    np.testing.assert_array_equal(found.pop("beta"), FACTOR * plain.pop("beta"))
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    if "ema" in more:
        average = inner(made)._model_variables_moving_average[list(SHAPES).index("beta")]
        assert np.abs(np.asarray(average)).min() > 0


def flat(values):
    return np.concatenate([values[name].ravel() for name in SHAPES])


@pytest.mark.parametrize("loss_scale", [False, True])
def test_all_gradients_together_have_at_most_the_recipe_s_norm(loss_scale):
    free, clipped, not_needed = (
        flat(updated(recipe("sgd", gradient_clip=clip), loss_scale=loss_scale)[0])
        for clip in (None, 0.25, 1000.0)
    )
    scale = 8.0 if loss_scale else 1.0
    gradient = -free / 0.1
    assert np.linalg.norm(gradient * scale) > 1
    np.testing.assert_allclose(clipped, -0.1 * 0.25 * gradient / np.linalg.norm(gradient), 1e-5)
    np.testing.assert_array_equal(not_needed, free)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_average_is_the_recipe_s(optimizer):
    made_of = recipe(optimizer, ema={"decay": 0.75})
    first, second = (flat(updated(made_of, steps=n)[0]) for n in (1, 2))
    averages = inner(updated(made_of, steps=2)[1])._model_variables_moving_average
    found = flat(dict(zip(SHAPES, map(np.asarray, averages), strict=True)))
    np.testing.assert_allclose(found, 0.75 * first + 0.25 * second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_later_steps_are_keras_own_at_a_higher_rate(optimizer):
    """Those of two of Keras's optimisers, one of which has `FACTOR` times the rate."""
    made_of = recipe(optimizer, FACTOR)
    found, _ = updated(made_of, steps=6)
    rng = np.random.default_rng(1)
    spec, stock = made_of.optimizer.model_dump(exclude={"type"}), []
    cls = keras.optimizers.Adam if optimizer == "adam" else keras.optimizers.SGD
    variables = {n: keras.Variable(np.zeros(s, "float32"), name=n) for n, s in SHAPES.items()}
    for name in SHAPES:
        rate = spec["learning_rate"] * (FACTOR if name == "beta" else 1)
        stock.append(cls(**{**spec, "learning_rate": rate}))
    for _ in range(6):
        gradients = [rng.normal(size=s).astype("float32") for s in SHAPES.values()]
        for one, gradient, variable in zip(stock, gradients, variables.values(), strict=True):
            one.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    for name, variable in variables.items():
        scale = float(np.abs(variable).max())
        np.testing.assert_allclose(found[name], variable, rtol=1e-5, atol=3e-6 * scale)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_goes_by_the_plain_rate(optimizer):
    """`on: all` takes as much off a beta as off any other variable (Jordan 2024, section 3.4)."""
    rate = OPTIMIZERS[optimizer]["learning_rate"]
    moved = {}
    for start in (0.0, 1.0):
        made_of = recipe(optimizer, FACTOR, weight_decay={"rate": 0.1, "on": "all"})
        moved[start] = updated(made_of, start=start)[0]["beta"] - np.float32(start)
    np.testing.assert_allclose(moved[1.0] - moved[0.0], -0.1 * rate, atol=1e-5)


OTHER_BACKEND = """
import keras, numpy as np
from test_optimizers import FACTOR, OPTIMIZERS, SHAPES, recipe
from kerasnet.recipe import make_optimizer

def stepped(made_of):
    rng = np.random.default_rng(1)
    names = {n: keras.Variable(np.zeros(s, "float32"), name=n) for n, s in SHAPES.items()}
    variables = [*names.values()]
    optimizer = make_optimizer(made_of, 10, 1, variables)
    optimizer.build(variables)
    drawn = [rng.normal(size=shape) for shape in SHAPES.values()]
    gradients = [keras.ops.convert_to_tensor(g, "float32") for g in drawn]
    optimizer.apply(gradients, variables)
    return {n: keras.ops.convert_to_numpy(v) for n, v in names.items()}

for optimizer in OPTIMIZERS:
    plain, found = stepped(recipe(optimizer)), stepped(recipe(optimizer, FACTOR))
    for name, value in plain.items():
        assert np.abs(value).min() > 0
        times = FACTOR if name == "beta" else 1
        assert np.allclose(found[name], times * value, rtol=1e-6, atol=0), (optimizer, name)
print(keras.backend.backend())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_multiply_the_rate_as_well(backend):
    pytest.importorskip(backend, reason=f"needs {backend}")
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND], capture_output=True, text=True, timeout=120,
        cwd=os.path.dirname(__file__), env={**os.environ, "KERAS_BACKEND": backend},
    )  # fmt: skip
    assert done.stdout.split() == [backend], done.stderr


def test_gradients_in_half_precision_update_float32_variables():
    ours, _ = trained(FusedAdam, {}, "bfloat16")
    theirs, _ = trained(keras.optimizers.Adam, {}, "bfloat16")
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)
