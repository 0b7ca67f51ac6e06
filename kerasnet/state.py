"""The state of a model in training as named arrays, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kerasnet.checkpoint import Arrays
from kerasnet.convert import OPTIMIZER, mismatches, weight_variables
from kerasnet.errors import BadInputError

if TYPE_CHECKING:
    import keras


def state_variables(model: keras.Model) -> dict[str, Any]:
    """Return every variable that training changes, by name: weights, generators, optimiser.

    The optimiser's include its step counter, its averages of the weights, and the loss scale.
    They are named by their place, for Keras numbers the optimisers of a process.

    Args:
        model: compiled, its optimiser built.
    """
    weights = {f"weights/{key}": v for key, v in weight_variables(model).items()}
    named = {id(variable) for variable in weights.values()}
    generators = {
        f"generators/{layer.name}/{i}": variable
        for layer in model.layers
        for i, variable in enumerate(layer.variables)
        if id(variable) not in named
    }
    optimizer = {
        f"{OPTIMIZER}/{i:04d}/{variable.name}": variable
        for i, variable in enumerate(model.optimizer.variables)
    }
    return {**weights, **generators, **optimizer}


def metric_variables(model: keras.Model) -> dict[str, Any]:
    """Return the running sums of the loss and the metrics by name."""
    # Keras makes them when it first computes the metrics.
    if not all(getattr(metric, "built", True) for metric in model.metrics):
        classes = model.output_shape[-1]
        model.compute_metrics(None, np.zeros(1, "int32"), np.zeros((1, classes), "float32"))
    return {f"metrics/{i}/{v.name}": v for i, v in enumerate(model.metrics_variables)}


def capture(variables: dict[str, Any]) -> Arrays:
    """Return copies of variables' values."""
    import keras

    return {
        key: np.array(keras.ops.convert_to_numpy(variable), order="C")
        for key, variable in variables.items()
    }


def restore(variables: dict[str, Any], arrays: Arrays, where: str) -> None:
    """Set variables, all of them or none.

    Raises:
        BadInputError: an array is missing, left over, or of another shape or dtype.
    """
    expected = {key: tuple(variable.shape) for key, variable in variables.items()}
    problems = mismatches({key: array.shape for key, array in arrays.items()}, expected)
    problems += [
        f"{key}: expected {variable.dtype}, received {arrays[key].dtype}"
        for key, variable in variables.items()
        if key in arrays and str(arrays[key].dtype) != str(variable.dtype)
    ]
    if problems:
        raise BadInputError(f"{where} does not fit this run:\n  " + "\n  ".join(problems[:10]))
    for key, variable in variables.items():
        variable.assign(arrays[key])
