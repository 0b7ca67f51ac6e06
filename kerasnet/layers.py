"""Layers that compute what Keras's own do, with the same variables, faster.

What is fastest depends on a convolution's shape and on the backend; `FastConv2D` chooses. The
choices hold for TensorFlow on CPUs, where they were measured (docs/performance.md). Elsewhere, and
for every other shape, the layers fall back to the stock computation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from kerasnet.backend import on_tensorflow
from kerasnet.plan import Layer

# The longest side of an image up to which a kernel's gradient is faster as a product for each tap.
TAPS_MAX_SIDE = 8


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation over the last axis by TensorFlow's fused operation.

    Takes and returns (batch, height, width, channels) in the compute dtype; statistics are
    float32. Same variables and same moving statistics (biased variance) as the stock layer. In
    float32 on a CPU the statistics of a batch are the stock layer's own; see `precise_norm`.

    Args:
        conv: the convolution before this layer, where its bias is left to this layer. Over a batch
            the bias goes with the mean, so that it costs nothing and its gradient is exactly zero.
    """

    def __init__(self, *, conv: FastConv2D | None = None, **more: Any) -> None:
        super().__init__(**more)
        # Keras would count the layer's variables twice if it tracked it.
        self._bias = (lambda: conv.bias) if conv is not None else None

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise with the batch's statistics when training, with the moving ones otherwise."""
        if not on_tensorflow() or len(inputs.shape) != 4 or mask is not None:
            return super().call(self._biased(inputs), training=training, mask=mask)
        import tensorflow as tf

        use_batch = bool(training) and self.trainable
        bias = tf.cast(self._bias(), tf.float32) if self._bias else None
        scale, offset = self._or_constant(self.gamma, 1.0), self._or_constant(self.beta, 0.0)
        if use_batch:
            # The bias needs a gradient, even if it is zero.
            offset = offset if bias is None else offset + 0.0 * bias
            mean = variance = tf.constant([], tf.float32)
        else:
            mean, variance = self.moving_mean.value, self.moving_variance.value
            if bias is not None:
                # Not with the mean, for which the operation has no gradient: the convolution may
                # be trained where this layer is not.
                offset = offset + bias * scale * tf.math.rsqrt(variance + self.epsilon)
        if use_batch and inputs.dtype == tf.float32 and _on_cpu():
            y, mean, variance = precise_norm(inputs, scale, offset, self.epsilon)
            self._update_moving(mean if bias is None else mean + bias, variance)
            return y
        # Unlike tf.compat.v1.nn.fused_batch_norm, the raw operation leaves epsilon as it is.
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=mean, variance=variance,
            epsilon=self.epsilon, is_training=use_batch,
        )  # fmt: skip
        if use_batch:
            # The operation returns the unbiased variance; Keras keeps the biased one.
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
            biased = variance * ((count - 1.0) / count)
            self._update_moving(mean if bias is None else mean + bias, biased)
        return y

    def _biased(self, inputs: Any) -> Any:
        if self._bias is None:
            return inputs
        return keras.ops.add(inputs, keras.ops.cast(self._bias(), inputs.dtype))

    def _or_constant(self, variable: Any, value: float) -> Any:
        import tensorflow as tf

        return tf.fill([self.moving_mean.shape[0]], value) if variable is None else variable.value

    def _update_moving(self, mean: Any, variance: Any) -> None:
        import tensorflow as tf

        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            # Every operation saved here is saved for each layer when the graph is made.
            tf.raw_ops.ResourceApplyGradientDescent(
                var=moving.value.handle, alpha=1.0 - self.momentum, delta=moving.value - batch
            )


def precise_norm(x: Any, scale: Any, offset: Any, epsilon: float) -> Any:
    """Normalise over a batch with the statistics that Keras computes, bit for bit.

    On a CPU, TensorFlow's fused operation sums a channel's values one after another, with about
    twice the rounding error, which Adam's first steps make visible.

    Args:
        x: (batch, height, width, channels), float32.
        scale: (channels,), float32, as `offset` is.
        epsilon: what is added to the variance.

    Returns:
        A tuple of the normalised x, and the mean and biased variance, which carry no gradient.
    """
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def normalised(x: Any, scale: Any, offset: Any) -> Any:
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        y, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon,
            is_training=False,
        )  # fmt: skip

        def gradient(dy: Any, *_: Any) -> Any:
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=dy, x=x, scale=scale, reserve_space_1=mean, reserve_space_2=variance,
                reserve_space_3=tf.constant([], tf.float32), epsilon=epsilon, is_training=True,
            )[:3]  # fmt: skip

        return (y, mean, variance), gradient

    return normalised(x, scale, offset)


class FastConv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """A convolution, computed in the way that is fastest for its shape.

    Takes (batch, height, width, channels) and returns (batch, height', width', filters), both in
    the compute dtype, as the stock layer does.

    Args:
        bias_in_norm: whether the bias is left to the batch normalisation that follows.
    """

    def __init__(self, *, bias_in_norm: bool = False, **more: Any) -> None:
        super().__init__(**more)
        self._bias_in_norm = bias_in_norm

    def call(self, inputs: Any) -> Any:
        """Convolve."""
        if self._bias_in_norm:
            return self.convolution_op(inputs, self.kernel)
        return super().call(inputs)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return (batch, height', width', filters), without the bias."""
        chosen = self._method(inputs.shape[1:3])
        if chosen is None:
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        # A gradient of our own must see a tensor, not the variable behind it.
        return chosen(inputs, tf.convert_to_tensor(kernel))

    def _method(self, sides: tuple[int, int]) -> Callable[[Any, Any], Any] | None:
        if not on_tensorflow() or self.groups != 1 or None in sides:
            return None
        height, width = self.kernel_size
        if (height, width) == (1, 1):
            return lambda x, kernel: pointwise(x, kernel, self.strides)
        odd = height == width and height % 2 == 1
        if not odd or self.strides != (1, 1) or self.padding != "same" or not _on_cpu():
            return None
        if max(sides) <= (height + 1) // 2:
            return dense_convolution
        return tap_convolution if max(sides) <= TAPS_MAX_SIDE else None


def _on_cpu() -> bool:
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def pointwise(x: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    """Return a 1×1 convolution without padding, as one matrix product.

    Args:
        x: (batch, height, width, channels).
        kernel: (1, 1, channels, filters).
        strides: vertical and horizontal.

    Returns:
        (batch, ⌈height / vertical⌉, ⌈width / horizontal⌉, filters).
    """
    import tensorflow as tf

    if tuple(strides) != (1, 1):
        x = subsampled(x, strides)
    channels, filters = kernel.shape[2:]
    product = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(kernel, [channels, filters]))
    return tf.reshape(product, [-1, *x.shape[1:3], filters])


def subsampled(x: Any, strides: tuple[int, int]) -> Any:
    """Return every `strides`-th row and column of (batch, height, width, channels).

    TensorFlow's own gradient of a strided slice is several times slower than this one's padding.
    """
    import tensorflow as tf

    down, across = strides
    height, width, channels = x.shape[1:]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def sliced(x: Any) -> Any:
        y = x[:, ::down, ::across, :]
        rows, columns = y.shape[1:3]

        def gradient(dy: Any) -> Any:
            apart = tf.reshape(dy, [-1, rows, 1, columns, 1, channels])
            blank = [[0, 0], [0, 0], [0, down - 1], [0, 0], [0, across - 1], [0, 0]]
            whole = tf.reshape(tf.pad(apart, blank), [-1, rows * down, columns * across, channels])
            return whole[:, :height, :width]

        return y, gradient

    return sliced(x)


def _overlap(side: int, shift: int) -> slice:
    """Return which of `side` places still lie inside when moved back by `shift`."""
    # Under a large kernel all may lie outside; a negative end would count from the far side.
    return slice(max(0, shift), max(0, min(side, side + shift)))


@functools.cache
def _tap_gradient() -> Any:
    import tensorflow as tf

    # Traced once for all convolutions of the same shape, and inlined like any other function.
    return tf.function(tap_gradient, autograph=False)


def tap_gradient(x: Any, dy: Any, size: int) -> Any:
    """Return the kernel's gradient of a convolution of stride 1 that keeps the image's size.

    Each of the kernel's taps sees its own part of the image, and its gradient is one matrix
    product over all pixels that it sees; pixels of the padding are not multiplied at all.

    Args:
        x: the convolution's input, (batch, height, width, channels).
        dy: the gradient of its output, (batch, height, width, filters).
        size: the kernel's side, odd.

    Returns:
        (size, size, channels, filters).
    """
    import tensorflow as tf

    height, width, channels = x.shape[1:]
    filters, half = dy.shape[-1], size // 2
    # With rows outermost, taking some of them copies nothing.
    x, dy = tf.transpose(x, [1, 2, 0, 3]), tf.transpose(dy, [1, 2, 0, 3])
    taps: dict[tuple[int, int], Any] = {}
    for j in range(-half, half + 1):
        columns_x, columns_dy = x[:, _overlap(width, j)], dy[:, _overlap(width, -j)]
        for i in range(-half, half + 1):
            seen = tf.reshape(columns_x[_overlap(height, i)], [-1, channels])
            given = tf.reshape(columns_dy[_overlap(height, -i)], [-1, filters])
            taps[i, j] = tf.matmul(seen, given, transpose_a=True)
    stacked = tf.stack([taps[place] for place in sorted(taps)])
    return tf.reshape(stacked, [size, size, channels, filters])


def tap_convolution(x: Any, kernel: Any) -> Any:
    """Return a convolution of stride 1 and padding `same` whose kernel gradient goes by taps.

    Args:
        x: (batch, height, width, channels).
        kernel: (size, size, channels, filters); size odd.

    Returns:
        (batch, height, width, filters).
    """
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolved(x: Any, kernel: Any) -> Any:
        def gradient(dy: Any) -> tuple[Any, Any]:
            dx = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, strides=[1, 1, 1, 1],
                padding="SAME",
            )  # fmt: skip
            return dx, _tap_gradient()(x, dy, kernel.shape[0])

        return tf.nn.conv2d(x, kernel, 1, "SAME"), gradient

    return convolved(x, kernel)


def dense_convolution(x: Any, kernel: Any) -> Any:
    """Return a convolution of stride 1 and padding `same` of an image that lies under the kernel.

    Where each output pixel sees every input pixel, the image is a vector and its output pixel that
    vector times a part of the kernel: a 3×3 kernel on a 2×2 image multiplies 16 times for each
    channel and filter, not 36 times.

    Args:
        x: (batch, height, width, channels); height and width at most (size + 1) / 2.
        kernel: (size, size, channels, filters); size odd.

    Returns:
        (batch, height, width, filters).
    """
    import tensorflow as tf

    height, width, channels = x.shape[1:]
    size, filters = kernel.shape[0], kernel.shape[-1]
    pixels = [(a, b) for a in range(height) for b in range(width)]

    def part(kernel: Any, a: int, b: int) -> Any:
        top, left = size // 2 - a, size // 2 - b
        seen = kernel[top : top + height, left : left + width]
        return tf.reshape(seen, [height * width * channels, filters])

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolved(x: Any, kernel: Any) -> Any:
        vectors = tf.reshape(x, [-1, height * width * channels])
        outputs = [tf.matmul(vectors, part(kernel, a, b)) for a, b in pixels]

        def gradient(dy: Any) -> tuple[Any, Any]:
            # One large product is faster than one for each pixel.
            whole = tf.concat([part(kernel, a, b) for a, b in pixels], -1)
            flat = tf.reshape(dy, [-1, height * width * filters])
            dx = tf.reshape(tf.matmul(flat, whole, transpose_b=True), tf.shape(x))
            return dx, _tap_gradient()(x, dy, size)

        return tf.reshape(tf.stack(outputs, 1), [-1, height, width, filters]), gradient

    return convolved(x, kernel)


def fast_makers(layers: Iterable[Layer]) -> Mapping[str, Callable[..., Any]]:
    """Return the makers of fast layers by the plan's type; see `build.apply`.

    Args:
        layers: all layers of the plan: what follows a convolution decides who adds its bias.
    """
    from kerasnet import build

    layers = list(layers)
    normed = _normed_convolutions(layers)
    convolutions: dict[str, FastConv2D] = {}

    def norm(layer: Layer, *, dtype: Any, seed: int | None) -> Any:
        options = build.options(layer, seed)
        before = convolutions[layer.inputs[0]] if layer.inputs[0] in normed else None
        return FusedBatchNormalization(conv=before, **options, name=layer.name, dtype=dtype)

    def conv(layer: Layer, *, dtype: Any, seed: int | None) -> Any:
        def cls(**options: Any) -> FastConv2D:
            return FastConv2D(bias_in_norm=layer.name in normed, **options)

        made = convolutions[layer.name] = build.conv(layer, dtype=dtype, seed=seed, cls=cls)
        return made

    return {"BatchNormalization": norm, "Conv2D": conv}


def _normed_convolutions(layers: list[Layer]) -> set[str]:
    """Return the convolutions with a bias whose output goes to one batch normalisation alone."""
    types = {layer.name: layer.type for layer in layers}
    users: dict[str, list[str]] = {}
    for layer in layers:
        for name in layer.inputs:
            users.setdefault(name, []).append(layer.name)
    return {
        layer.name
        for layer in layers
        if layer.type == "Conv2D"
        and layer.options["use_bias"]
        and [types[user] for user in users.get(layer.name, [])] == ["BatchNormalization"]
    }
