"""Weights in safetensors files, keyed `layer/variable`.

Keras's own `.weights.h5` is keyed by class and order, so that a fast layer could not read a stock
layer's file. A safetensors file is read without executing anything in it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import write_atomically

if TYPE_CHECKING:
    import keras


def weight_variables(model: keras.Model) -> dict[str, Any]:
    """Return a model's weights by `layer/variable`; random generators' states are none."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.weights
        if not variable.path.startswith("seed_generator") and "seed" not in variable.name
    }


def save_weights(
    model: keras.Model, file: str | os.PathLike[str], metadata: dict[str, Any] | None = None
) -> None:
    """Write a model's weights atomically.

    Args:
        model: any model whose layers have unique names.
        file: ends in `.safetensors`.
        metadata: stored in the file's header as JSON, by key.

    Raises:
        EnvironmentFaultError: the file cannot be written; an older one is left as it was.
    """
    arrays = {
        key: np.ascontiguousarray(np.asarray(variable.numpy()))
        for key, variable in weight_variables(model).items()
    }
    save_arrays(arrays, file, metadata)


def save_arrays(
    arrays: dict[str, np.ndarray[Any, Any]],
    file: str | os.PathLike[str],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write named arrays as `save_weights` does."""
    from safetensors.numpy import save

    header = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    write_atomically(Path(file), save(arrays, metadata=header))


def read_arrays(
    file: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Return the arrays of a safetensors file by name, and its metadata.

    Raises:
        BadInputError: the file is missing, truncated or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(file)
    if not path.is_file():
        raise BadInputError(f"{file}: there is no such weights file")
    if path.suffix != ".safetensors":
        raise BadInputError(
            f"{file}: expected a .safetensors file keyed `layer/variable`, received "
            f"'{path.suffix or path.name}'"
        )
    try:
        with safe_open(path, framework="numpy") as opened:
            arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BadInputError(f"{file}: not a readable safetensors file: {error}") from error
    return arrays, {key: _json(value) for key, value in header.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # other programs store plain text in the header


def load_weights(model: keras.Model, file: str | os.PathLike[str]) -> dict[str, Any]:
    """Set a model's weights from a file, all of them or none.

    Returns:
        The file's metadata.

    Raises:
        BadInputError: something is missing, left over, of the wrong shape, or not finite.
    """
    arrays, metadata = read_arrays(file)
    variables = weight_variables(model)
    problems = _mismatches(arrays, variables)
    if problems:
        shown = problems[:10] + ([f"… and {len(problems) - 10} more"] if problems[10:] else [])
        raise BadInputError(f"{file} does not fit {model.name}:\n  " + "\n  ".join(shown))
    for key, variable in variables.items():
        variable.assign(arrays[key])
    return metadata


def _mismatches(arrays: dict[str, Any], variables: dict[str, Any]) -> list[str]:
    missing = [k for k in variables if k not in arrays]
    left_over = [k for k in arrays if k not in variables]
    problems = [f"missing: {key}. {did_you_mean(key, left_over)}" for key in missing]
    problems += [f"left over: {key}" for key in left_over]
    for key, variable in variables.items():
        if key not in arrays:
            continue
        if tuple(arrays[key].shape) != tuple(variable.shape):
            problems.append(
                f"{key}: expected shape {tuple(variable.shape)}, received {arrays[key].shape}"
            )
        elif not np.isfinite(arrays[key]).all():
            problems.append(f"{key}: has values that are not finite")
    return problems
