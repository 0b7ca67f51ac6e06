"""What it means that a model is its plan, and that two models give the same numbers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnet.convert import weight_variables
from kerasnet.plan import Plan


def wiring(model):
    """Return layer name → names of the layers that feed it."""
    return {
        layer.name: tuple(t._keras_history.operation.name for t in keras.tree.flatten(layer.input))
        if not isinstance(layer, keras.layers.InputLayer)
        else ()
        for layer in model.layers
    }


def assert_is_plan(model: keras.Model, made: Plan, layers: str) -> None:
    """Hold a model's layers, wiring, shapes, parameters and weights' names against its plan."""
    inputs = wiring(model)
    pads = {f"{x.name}_pad": x for x in made.layers if x.needs_pad_layer}
    assert set(inputs) == {x.name for x in made.layers} | set(pads)
    for x in made.layers:
        layer = model.get_layer(x.name)
        assert tuple(layer.output.shape[1:]) == x.output_shape
        assert layer.count_params() == x.params
        trainable = sum(int(np.prod(v.shape)) for v in layer.trainable_weights)
        assert trainable == x.trainable_params
        found = inputs[x.name]
        if x.needs_pad_layer:
            assert found == (f"{x.name}_pad",)
            found = inputs[found[0]]
        assert found == x.inputs
        if layers == "stock":
            assert type(layer).__name__ == x.type
            assert type(layer).__module__.startswith("keras.")
    shapes = {key: tuple(v.shape) for key, v in weight_variables(model).items()}
    assert shapes == made.variables()
    assert model.count_params() == made.params["total"]
    assert tuple(model.output_shape[1:]) == made.output.output_shape


def random_weights(made: Plan, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    """Return float64 weights by `layer/variable` under which values stay of the order of one."""

    def values(key: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        if key.endswith("/kernel"):
            return rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
        if key.endswith(("/gamma", "/moving_variance")):
            return rng.uniform(0.5, 1.5, shape)
        return rng.normal(0, 0.2, shape)

    return {key: values(key, shape) for key, shape in made.variables().items()}


def assign(model: keras.Model, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Set all of a model's weights."""
    variables = weight_variables(model)
    assert variables.keys() == weights.keys()
    for key, variable in variables.items():
        variable.assign(weights[key])


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference, as a fraction of the largest expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.isfinite(expected).all()
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
