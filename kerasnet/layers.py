"""Layers that compute what Keras's own do, with the same variables, faster.

On TensorFlow, Keras 3's batch normalisation is written as many small operations, and a 1×1
convolution is slower than the matrix product it is. Elsewhere these layers fall back to the stock
computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from kerasnet.plan import Layer


def _on_tensorflow() -> bool:
    return bool(keras.backend.backend() == "tensorflow")


@keras.saving.register_keras_serializable("kerasnet")
class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation over the last axis by TensorFlow's fused operation.

    Takes and returns (batch, height, width, channels) in the compute dtype; statistics are
    float32. Same variables and same moving statistics (biased variance) as the stock layer.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise with the batch's statistics when training, with the moving ones otherwise."""
        if not _on_tensorflow() or len(inputs.shape) != 4 or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        use_batch = bool(training) and self.trainable
        # Unlike tf.compat.v1.nn.fused_batch_norm, the raw operation leaves epsilon as it is.
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self._or_constant(self.gamma, 1.0),
            offset=self._or_constant(self.beta, 0.0),
            mean=tf.zeros([0]) if use_batch else tf.cast(self.moving_mean, tf.float32),
            variance=tf.zeros([0]) if use_batch else tf.cast(self.moving_variance, tf.float32),
            epsilon=self.epsilon,
            is_training=use_batch,
        )
        if use_batch:
            self._update_moving(inputs, mean, variance)
        return y

    def _or_constant(self, variable: Any, value: float) -> Any:
        import tensorflow as tf

        if variable is None:
            return tf.fill([self.moving_mean.shape[0]], value)
        return tf.cast(variable, tf.float32)

    def _update_moving(self, inputs: Any, mean: Any, variance: Any) -> None:
        import tensorflow as tf

        # The operation returns the unbiased variance; Keras keeps the biased one.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
        biased = variance * ((count - 1.0) / count)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, biased)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))


@keras.saving.register_keras_serializable("kerasnet")
class PointwiseConv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """A 1×1 convolution without padding, computed as one matrix product."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return (batch, ⌈height/stride⌉, ⌈width/stride⌉, filters)."""
        if not _on_tensorflow():
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        down, across = self.strides
        if (down, across) != (1, 1):
            inputs = inputs[:, ::down, ::across, :]
        shape = tf.shape(inputs)
        flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
        product = tf.matmul(flat, tf.reshape(kernel, [inputs.shape[-1], self.filters]))
        return tf.reshape(product, [shape[0], inputs.shape[1], inputs.shape[2], self.filters])


def fast_makers() -> Mapping[str, Callable[..., Any]]:
    """Return the makers of fast layers by the plan's type; see `build.apply`."""
    from kerasnet import build

    def norm(layer: Layer, *, dtype: Any, seed: int | None) -> Any:
        options = build.options(layer, seed)
        return FusedBatchNormalization(**options, name=layer.name, dtype=dtype)

    def conv(layer: Layer, *, dtype: Any, seed: int | None) -> Any:
        pointwise = (layer.kernel, layer.padding, layer.options["groups"]) == (1, 0, 1)
        cls = PointwiseConv2D if pointwise else keras.layers.Conv2D
        return build.conv(layer, dtype=dtype, seed=seed, cls=cls)

    return {"BatchNormalization": norm, "Conv2D": conv}
