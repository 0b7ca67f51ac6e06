"""Training by one set of weights, measuring and saving by their average."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kerasnet.recipe import inner

# Of training, over which batch normalisation's statistics are taken.
BATCHES = 32
Values = list[tuple[Any, NDArray[Any]]]


class Averages:
    """The averaged weights of a model in training; does nothing where the recipe has none.

    Moving statistics of batch normalisation belong to the plain weights. Those of the averaged ones
    are taken anew, from the first batches of training (Izmailov et al. 2018, section 3.1).

    Args:
        model: compiled, its optimiser built.
        batches: returns those of training, (images, targets).
    """

    def __init__(self, model: keras.Model, batches: Callable[[], Iterable[Any]]) -> None:
        self.model, self.batches = model, batches
        self._kept: Values = []
        self._measured: tuple[int, Values] | None = None

    @property
    def used(self) -> bool:
        """Whether the recipe averages."""
        return bool(inner(self.model.optimizer).use_ema)

    def enter(self) -> None:
        """Let the model have its averaged weights."""
        if not self.used:
            return
        self._swap()
        self._kept = _copies(self.model.non_trainable_variables)
        step = int(inner(self.model.optimizer).iterations)
        if self._measured is None or self._measured[0] != step:
            _measure(self.model, itertools.islice(self.batches(), BATCHES))
            self._measured = step, _copies(_statistics(self.model))
            # Dropout has drawn numbers that training is to draw.
            _assign(self._kept, but=_statistics(self.model))
        else:
            _assign(self._measured[1])

    def leave(self) -> None:
        """Let the model have the weights that are trained."""
        if self.used:
            self._swap()
            _assign(self._kept)
            self._kept = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Let the model have its averaged weights for a while."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def _swap(self) -> None:
        # Keras's `SwapEMAWeights` adds and subtracts on TensorFlow, which rounds.
        optimizer = inner(self.model.optimizer)
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
            kept = _copy(variable)
            variable.assign(average)
            average.assign(kept)


def _copy(variable: Any) -> NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(variable))


def _copies(variables: Iterable[Any]) -> Values:
    return [(variable, _copy(variable)) for variable in variables]


def _assign(values: Values, but: Iterable[Any] = ()) -> None:
    left_out = {id(variable) for variable in but}
    for variable, value in values:
        if id(variable) not in left_out:
            variable.assign(value)


def _norms(model: keras.Model) -> list[Any]:
    """Return the layers whose moving statistics training changes; frozen ones keep theirs."""
    kind = keras.layers.BatchNormalization
    return [layer for layer in model.layers if isinstance(layer, kind) and layer.trainable]


def _statistics(model: keras.Model) -> list[Any]:
    return [v for norm in _norms(model) for v in (norm.moving_mean, norm.moving_variance)]


def _measure(model: keras.Model, batches: Iterable[Any]) -> None:
    """Set moving statistics to the mean of batches' own, those of later batches weighing more."""
    norms = _norms(model)
    if not norms:
        return
    for variable in _statistics(model):
        variable.assign(np.zeros(variable.shape, "float32"))
    number = 0
    for images, *_ in batches:
        model(images, training=True)
        number += 1
    for norm in norms:
        # From zero, so many updates come to this share of the mean.
        share = 1 - norm.momentum**number
        for variable in (norm.moving_mean, norm.moving_variance):
            variable.assign(_copy(variable) / share)
