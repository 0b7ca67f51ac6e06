"""The fused optimisers against Keras's own."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerasnet.optimizers import FusedAdam, FusedSGD

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


def test_gradients_in_half_precision_update_float32_variables():
    ours, _ = trained(FusedAdam, {}, "bfloat16")
    theirs, _ = trained(keras.optimizers.Adam, {}, "bfloat16")
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)
