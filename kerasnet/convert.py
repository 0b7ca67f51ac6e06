"""Weights in safetensors files, keyed `layer/variable`.

Keras's own `.weights.h5` is keyed by class and order, so that a fast layer could not read a stock
layer's file. A safetensors file is read without executing anything in it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import write_atomically

if TYPE_CHECKING:
    import keras

    from kerasnet.plan import Plan


CLASSIFIER = "head_logits"
_T = TypeVar("_T")


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


@contextlib.contextmanager
def _opened(file: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file, every failure a BadInputError."""
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
            yield opened
    except (SafetensorError, OSError) as error:
        raise BadInputError(f"{file}: not a readable safetensors file: {error}") from error


def read_arrays(
    file: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Return the arrays of a safetensors file by name, and its metadata.

    Raises:
        BadInputError: the file is missing, truncated or of another kind.
    """
    with _opened(file) as opened:
        arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        header = opened.metadata() or {}
    return arrays, {key: _json(value) for key, value in header.items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # other programs store plain text in the header


def load_weights(
    model: keras.Model, file: str | os.PathLike[str], *, reset_head: bool = False
) -> dict[str, Any]:
    """Set a model's weights from a file, all of them or none.

    Args:
        model: the model.
        file: keyed `layer/variable`.
        reset_head: leave the classifier as it is, and what the file has for it unread.

    Returns:
        The file's metadata.

    Raises:
        BadInputError: something is missing, left over, of the wrong shape, or not finite.
    """
    arrays, metadata = read_arrays(file)
    variables = weight_variables(model)
    if reset_head:
        arrays, variables = _headless(arrays), _headless(variables)
    expected = {key: tuple(variable.shape) for key, variable in variables.items()}
    problems = _misfits({key: array.shape for key, array in arrays.items()}, expected)
    problems += [
        f"{key}: has values that are not finite"
        for key, array in arrays.items()
        if not np.isfinite(array).all()
    ]
    _refuse(problems, file, model.name)
    for key, variable in variables.items():
        variable.assign(arrays[key])
    return metadata


def check_weights(plan: Plan, file: str | os.PathLike[str], *, reset_head: bool = False) -> None:
    """Hold a weights file's names and shapes against a plan, without Keras.

    Raises:
        BadInputError: as `load_weights`, but for values, which are not read.
    """
    with _opened(file) as opened:
        shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    expected = plan.variables()
    if reset_head:
        shapes, expected = _headless(shapes), _headless(expected)
    _refuse(_misfits(shapes, expected), file, plan.name)


def _headless(named: Mapping[str, _T]) -> dict[str, _T]:
    """Return what does not belong to the classifier."""
    return {key: value for key, value in named.items() if not key.startswith(f"{CLASSIFIER}/")}


def _misfits(
    received: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return `mismatches`, and the way out where the classifier alone is another."""
    problems = mismatches(received, expected)
    if problems and not mismatches(_headless(received), _headless(expected)):
        problems.append("all but the classifier fits: --reset-head begins it anew")
    return problems


def _refuse(problems: list[str], file: str | os.PathLike[str], model: str) -> None:
    if problems:
        shown = problems[:10] + ([f"… and {len(problems) - 10} more"] if problems[10:] else [])
        raise BadInputError(f"{file} does not fit {model}:\n  " + "\n  ".join(shown))


def mismatches(
    received: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return what is missing, left over, or of another shape."""
    left_over = [key for key in received if key not in expected]
    problems = [
        f"missing: {key}. {did_you_mean(key, left_over)}" for key in expected if key not in received
    ]
    problems += [f"left over: {key}" for key in left_over]
    problems += [
        f"{key}: expected shape {shape}, received {received[key]}"
        for key, shape in expected.items()
        if key in received and tuple(received[key]) != tuple(shape)
    ]
    return problems
