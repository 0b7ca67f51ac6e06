"""Moving the pixels of a batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def take_pixels(images: Any, y: Any, x: Any, outside: Sequence[int]) -> Any:
    """Return images whose pixels are taken from given places, all by one gather.

    Args:
        images: uint8 tensor (n, height, width, channels), all of it static.
        y: int32 row in the image of each pixel of the result; y and x broadcast to (n or 1, height,
            width).
        x: likewise its column.
        outside: the colour of places outside the image, an integer 0…255 a channel.

    Returns:
        uint8 tensor of the same shape.
    """
    import tensorflow as tf

    n, height, width, channels = images.shape
    # 64-bit indices are slower, and needed by gigantic batches only.
    integer = tf.int32 if n * height * width < 2**31 else tf.int64
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    row = tf.cast(tf.clip_by_value(y, 0, height - 1), integer)
    row = (tf.range(n, dtype=integer)[:, None, None] * height + row) * width
    index = row + tf.cast(tf.clip_by_value(x, 0, width - 1), integer)
    found = tf.gather(tf.reshape(images, [-1, channels]), index)
    found = tf.where(inside[..., None], found, tf.constant(list(outside), tf.uint8))
    return tf.ensure_shape(found, images.shape)
