"""What the contestants that train by `keras.Model.fit` have in common.

Imports Keras; the caller has chosen its backend.
"""

from __future__ import annotations

import time
from typing import Any

import keras

from kerasnet import schema
from kerasnet.bench.measure import Clock, highest_rate, ready_arrays


def fit_clock(untimed: int, total: int) -> Clock:
    """Return a clock whose steps give Keras's logs: when the loss can be read, the step is done."""
    return Clock(untimed, total, lambda logs: float(logs["loss"]))


class ClockCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """A clock, and nothing else, as a Keras callback."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the clock."""
        self.clock.step_ended(batch + 1, logs)


def ready_batches(config: schema.RunConfig) -> Any:
    """Return an endless `tf.data.Dataset` of a few normalised batches that lie in memory.

    float32 (batch, height, width, channels) and int32 (batch,).
    """
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(ready_arrays(config))
    return batches.repeat().prefetch(tf.data.AUTOTUNE)


def matrix_product_rate(dtype: str, size: int, seconds: float) -> float:
    """Return FLOP/s of square matrix products by Keras's backend, 2·size³ operations each.

    Args:
        dtype: of the operands and the result.
        size: of a side.
        seconds: for about so long is measured.
    """
    ops = keras.ops
    a, b = (ops.cast(keras.random.normal((size, size), seed=i), dtype) for i in (1, 2))

    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            product = ops.matmul(a, b)
        # The device has done them all when a number of the last one can be read.
        float(ops.convert_to_numpy(ops.cast(product[0, 0], "float32")))
        return time.perf_counter() - began

    return highest_rate(run, 2.0 * size**3, seconds)
