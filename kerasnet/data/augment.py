"""Augmentations of a batch of images, without state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kerasnet import schema
from kerasnet.errors import BadInputError


def effective_augment(augment: schema.Augment, allowed: schema.Allowed) -> schema.Augment:
    """Return the augmentations without those that the data set forbids."""
    return schema.Augment(
        crop=augment.crop if allowed.crop else None,
        flip=augment.flip if allowed.flip else "none",
        cutout=augment.cutout if allowed.cutout else None,
    )


def augment_batch(images: Any, augment: schema.Augment, *, seed: Any, fill: Sequence[int]) -> Any:
    """Crop, flip and cut out at random, each image by itself, all of them at once.

    Every augmentation here says, for each pixel, which pixel of its image it is taken from, or that
    it is black or the mean colour; so one gather does them all. The numbers that decide one
    augmentation do not depend on which others are on.

    Args:
        images: uint8 tensor (n, height, width, channels); all but n must be static.
        augment: what to do. Crop: He et al. 2015, section 4.2. Cutout: DeVries & Taylor 2017; its
            centre is uniform over the image, so the square may reach over the edge.
        seed: integer tensor (2,); equal seeds do equal things.
        fill: the colour of cut-out squares, an integer 0…255 a channel.

    Returns:
        uint8 tensor of the same shape.

    Raises:
        BadInputError: reflection needs more pixels than the image has.
    """
    import tensorflow as tf

    if augment.crop is None and augment.flip == "none" and augment.cutout is None:
        return images
    height, width, channels = images.shape[1:]
    check_reflection(augment.crop, min(height, width))
    draws = tf.random.stateless_uniform(
        [5, tf.shape(images)[0]], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    # 32-bit indices are faster, and large enough unless the batch is gigantic.
    n = images.shape[0]
    integer = tf.int32 if n is not None and n * height * width < 2**30 else tf.int64
    index = _source_pixels(augment, draws, height, width, integer)
    colours = tf.constant([[0] * channels, list(fill)], tf.uint8)
    table = tf.concat([colours, tf.reshape(images, [-1, channels])], 0)
    return tf.ensure_shape(tf.gather(table, index), images.shape)


def _source_pixels(
    augment: schema.Augment, draws: Any, height: int, width: int, integer: Any
) -> Any:
    """Return where each pixel comes from, (n, height, width): 0 black, 1 the fill, then pixels."""
    import tensorflow as tf

    def below(row: int, bound: int) -> Any:
        return tf.cast(tf.math.floormod(draws[row], bound), integer)[:, None]

    crop, cutout, outside = augment.crop, augment.cutout, None
    y = source_y = tf.range(height, dtype=integer)[None]
    x = source_x = tf.range(width, dtype=integer)[None]
    if augment.flip != "none":
        source_x = tf.where(below(2, 2) == 1, width - 1 - x, x)
    if crop is not None:
        source_y, out_y = _shifted(source_y, below(0, 2 * crop.padding + 1), height, crop)
        source_x, out_x = _shifted(source_x, below(1, 2 * crop.padding + 1), width, crop)
        outside = out_y[:, :, None] | out_x[:, None, :] if crop.mode == "zeros" else None
    image = tf.range(tf.shape(draws, out_type=integer)[1])[:, None]
    index = ((image * height + source_y) * width)[:, :, None] + source_x[:, None, :] + 2
    if outside is not None:
        index = tf.where(outside, tf.constant(0, integer), index)
    if cutout is not None:
        cut = _within(y, below(3, height), cutout)[:, :, None]
        cut &= _within(x, below(4, width), cutout)[:, None, :]
        index = tf.where(cut, tf.constant(1, integer), index)
    return index


def check_reflection(crop: schema.Crop | None, side: int) -> None:
    """Check that images have enough pixels to be reflected.

    Args:
        crop: how they are cropped, if they are.
        side: the shorter one, in pixels.

    Raises:
        BadInputError: they have not.
    """
    if crop is not None and crop.mode == "reflect" and crop.padding >= side:
        raise BadInputError(
            f"crop: reflection by {crop.padding} pixels needs images larger than that, "
            f"not of {side} pixels"
        )


def _shifted(place: Any, offset: Any, size: int, crop: schema.Crop) -> tuple[Any, Any]:
    """Return where cropped pixels come from along an axis, and which come from outside."""
    import tensorflow as tf

    moved = place + offset - crop.padding
    outside = (moved < 0) | (moved >= size)
    if crop.mode == "reflect":
        moved = (size - 1) - tf.abs((size - 1) - tf.abs(moved))
    return moved, outside


def _within(place: Any, centre: Any, cutout: schema.Cutout) -> Any:
    start = centre - cutout.size // 2
    return (place >= start) & (place < start + cutout.size)
