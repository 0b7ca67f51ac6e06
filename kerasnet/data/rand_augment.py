"""RandAugment (Cubuk et al. 2020) of a batch of images, without state.

Each layer draws for each image one of fourteen operations (section 3), uniformly, and whether it
goes one way or the other. A magnitude M from 0 to 10 gives each a strength M / 10 of the largest
that AutoAugment uses (Cubuk et al. 2019, table 6):

| operation | at magnitude 10 |
|---|---|
| identity, auto_contrast, equalize | no magnitude |
| rotate | ± 30 degrees about the centre |
| shear_x, shear_y | ± 0.3 pixels a pixel, about the centre |
| translate_x, translate_y | ± 150 / 331 of the side |
| solarize | values from 256 · (1 - M / 10) on are inverted |
| posterize | 8 - 4 · M / 10 bits are kept, rounded to a whole number |
| color, contrast, brightness, sharpness | factor 1 ± 0.9 · M / 10, as in PIL's ImageEnhance |

Moved pixels are the nearest ones. An image with other than three channels is grey where they are
equal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from kerasnet import schema
from kerasnet.data.pixels import take_pixels

MAX_MAGNITUDE = 10


def rand_augment(
    images: Any, settings: schema.RandAugment, *, seed: Any, fill: Sequence[int]
) -> Any:
    """Apply random operations, drawn for each image by itself.

    Args:
        images: uint8 tensor (n, height, width, channels), all of it static.
        settings: layers and magnitude.
        seed: int64 tensor (2,); equal seeds do equal things.
        fill: the colour of what is moved into the picture, an integer 0…255 a channel.

    Returns:
        uint8 tensor of the same shape.
    """
    import tensorflow as tf

    draws = tf.random.stateless_uniform(
        [images.shape[0], settings.layers, 2], seed, minval=None, maxval=None, dtype=tf.int32,
        alg="philox",
    )  # fmt: skip
    operations = tf.math.floormod(draws[:, :, 0], len(OPERATIONS))
    way = tf.cast(1 - 2 * tf.math.floormod(draws[:, :, 1], 2), tf.float32)
    return apply_operations(images, operations, way * (settings.magnitude / MAX_MAGNITUDE), fill)


def apply_operations(images: Any, operations: Any, strengths: Any, fill: Sequence[int]) -> Any:
    """Apply given operations to each image, one after the other.

    Where this is compiled it is a loop without Python, in which an image costs no more than its own
    operations. Doing all fourteen to the whole batch and choosing afterwards is slower.

    Args:
        images: uint8 tensor (n, height, width, channels), all of it static.
        operations: int32 tensor (n, layers), indices in `OPERATIONS`.
        strengths: float32 tensor (n, layers), from -1 to 1; the sign is the way.
        fill: the colour of what is moved into the picture, an integer 0…255 a channel.

    Returns:
        uint8 tensor of the same shape.
    """
    import tensorflow as tf

    def apply(given: tuple[Any, Any, Any]) -> Any:
        image, chosen, strength = given

        def step(layer: Any, image: Any) -> tuple[Any, Any]:
            branches = [
                functools.partial(make, image, strength[layer], fill)
                for make in OPERATIONS.values()
            ]
            changed = tf.switch_case(chosen[layer], branches)
            return layer + 1, tf.ensure_shape(changed, image.shape)

        return tf.while_loop(lambda layer, _: layer < chosen.shape[0], step, (0, image))[1]

    result = tf.map_fn(apply, (images, operations, strengths), fn_output_signature=tf.uint8)
    return tf.ensure_shape(result, images.shape)


# ---------------------------------------------------------------------------- moving pixels

# Each operation takes an image, uint8 (height, width, channels), its strength, a float32 scalar
# from -1 to 1, and the fill colour.


def _affine(
    image: Any, fill: Sequence[int], *, cosine: Any = 1.0, sine: Any = 0.0, shear: Sequence[Any],
    by: Sequence[Any],
) -> Any:  # fmt: skip
    """Take each pixel from the nearest to an affine function of its place, about the centre."""
    import tensorflow as tf

    height, width, _ = image.shape
    y = (tf.range(height, dtype=tf.float32) + 0.5 - height / 2)[:, None]
    x = (tf.range(width, dtype=tf.float32) + 0.5 - width / 2)[None]
    source_y = tf.floor(cosine * y + (shear[0] - sine) * x + by[0] + height / 2)
    source_x = tf.floor(cosine * x + (shear[1] + sine) * y + by[1] + width / 2)
    y, x = tf.cast(source_y, tf.int32), tf.cast(source_x, tf.int32)
    return take_pixels(image[None], y[None], x[None], fill)[0]


def _rotate(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    import tensorflow as tf

    angle = strength * math.radians(30)
    return _affine(
        image, fill, cosine=tf.cos(angle), sine=tf.sin(angle), shear=(0.0, 0.0), by=(0.0, 0.0)
    )


def _shear_x(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    return _affine(image, fill, shear=(0.0, 0.3 * strength), by=(0.0, 0.0))


def _shear_y(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    return _affine(image, fill, shear=(0.3 * strength, 0.0), by=(0.0, 0.0))


def _translate_x(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    by = strength * (150 / 331 * image.shape[1])
    return _affine(image, fill, shear=(0.0, 0.0), by=(0.0, by))


def _translate_y(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    by = strength * (150 / 331 * image.shape[0])
    return _affine(image, fill, shear=(0.0, 0.0), by=(by, 0.0))


# ---------------------------------------------------------------------------- changing values


def _identity(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    import tensorflow as tf

    return tf.identity(image)


def _auto_contrast(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    """Stretch each channel to 0…255, as PIL's ImageOps.autocontrast."""
    import tensorflow as tf

    values = tf.cast(image, tf.float32)
    low, high = tf.reduce_min(values, [0, 1]), tf.reduce_max(values, [0, 1])
    stretched = tf.floor((values - low) * 255 / tf.maximum(high - low, 1))
    return tf.cast(tf.where(high > low, stretched, values), tf.uint8)


def _equalize(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    """Make the histogram of each channel even, as PIL's ImageOps.equalize."""
    import tensorflow as tf

    channels = image.shape[2]
    values = tf.cast(image, tf.int32) + 256 * tf.range(channels)
    counts = tf.tensor_scatter_nd_add(
        tf.zeros([256 * channels], tf.int32), tf.reshape(values, [-1, 1]),
        tf.ones([math.prod(image.shape)], tf.int32),
    )  # fmt: skip
    counts, levels = tf.reshape(counts, [channels, 256]), tf.range(256)[None]
    below = tf.cumsum(counts, axis=1, exclusive=True)
    highest = tf.reduce_max(tf.where(counts > 0, levels, 0), 1, keepdims=True)
    # All pixels but those of the highest value.
    step = tf.reduce_sum(tf.where(levels < highest, counts, 0), 1, keepdims=True) // 255
    table = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, levels), tf.uint8)
    return tf.gather(tf.reshape(table, [-1]), values)


def _solarize(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    import tensorflow as tf

    threshold = 256 * (1 - tf.abs(strength))
    return tf.where(tf.cast(image, tf.float32) < threshold, image, 255 - image)


def _posterize(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    import tensorflow as tf

    lost = tf.cast(tf.round(4 * tf.abs(strength)), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, lost), lost)


# ---------------------------------------------------------------------------- blending


def _blend(degenerate: Any, image: Any, strength: Any) -> Any:
    """Blend as PIL's ImageEnhance does: factor 0 the degenerate image, 1 the image."""
    import tensorflow as tf

    degenerate = tf.cast(degenerate, tf.float32)
    blended = degenerate + (1 + 0.9 * strength) * (tf.cast(image, tf.float32) - degenerate)
    return tf.cast(tf.floor(tf.clip_by_value(blended, 0.0, 255.0)), tf.uint8)


def _grey(image: Any) -> Any:
    """Return the luma, int32 (height, width, 1), as PIL rounds it (ITU-R BT.601)."""
    import tensorflow as tf

    whole, channels = tf.cast(image, tf.int32), image.shape[2]
    if channels == 3:
        weights = tf.constant([19595, 38470, 7471])
        return (tf.reduce_sum(whole * weights, -1, keepdims=True) + 2**15) // 2**16
    return tf.reduce_sum(whole, -1, keepdims=True) // channels


def _color(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    return _blend(_grey(image), image, strength)


def _contrast(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    import tensorflow as tf

    mean = tf.floor(tf.reduce_mean(tf.cast(_grey(image), tf.float32)) + 0.5)
    return _blend(mean, image, strength)


def _brightness(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    return _blend(0, image, strength)


def _sharpness(image: Any, strength: Any, fill: Sequence[int]) -> Any:
    """Blend with the image smoothed by PIL's ImageFilter.SMOOTH, which leaves the border."""
    import tensorflow as tf

    height, width, _ = image.shape
    if min(height, width) < 3:
        return tf.identity(image)
    whole = tf.cast(image, tf.int32)
    sums = whole[:-2] + whole[1:-1] + whole[2:]
    sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
    # The kernel is 1 everywhere but 5 in the middle; half of 13 is added to round.
    inner = (sums + 4 * whole[1:-1, 1:-1] + 6) // 13
    y, x = tf.range(height)[:, None, None], tf.range(width)[None, :, None]
    border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    smoothed = tf.where(border, whole, tf.pad(inner, [[1, 1], [1, 1], [0, 0]]))
    return _blend(smoothed, image, strength)


OPERATIONS: dict[str, Callable[[Any, Any, Sequence[int]], Any]] = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
