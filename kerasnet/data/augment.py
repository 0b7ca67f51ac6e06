"""Augmentations of a batch of images, without state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kerasnet import schema
from kerasnet.data.pixels import take_pixels
from kerasnet.data.rand_augment import rand_augment
from kerasnet.errors import BadInputError


def effective_augment(augment: schema.Augment, allowed: schema.Allowed) -> schema.Augment:
    """Return the augmentations without those that the data set forbids."""
    off = schema.Augment()
    forbidden = {
        name: getattr(off, name) for name in schema.Allowed.model_fields
        if not getattr(allowed, name)
    }  # fmt: skip
    return augment.model_copy(update=forbidden)


def augment_batch(
    images: Any, augment: schema.Augment, *, seed: Any, fill: Sequence[int], mirrored: Any = None
) -> Any:
    """Crop, flip, change by RandAugment and cut out, at random, each image by itself.

    The numbers that decide one augmentation do not depend on which others are on. Nothing here
    branches on a tensor's value, so that all of it can be compiled into few passes over the pixels.
    Mixing is not done here, for it concerns labels too: `mixing`.

    Args:
        images: uint8 tensor (n, height, width, channels); all of it must be static.
        augment: what to do. Crop: He et al. 2015, section 4.2. RandAugment: `rand_augment`. Cutout:
            DeVries & Taylor 2017; its centre is uniform over the image, so the square may reach
            over the edge.
        seed: integer tensor (2,); equal seeds do equal things.
        fill: the colour of cut-out squares and of what RandAugment moves into the picture, an
            integer 0…255 a channel.
        mirrored: with `flip: alternating`, which images to mirror, bool tensor (n,); it hangs on
            what a batch does not know: `alternating`.

    Returns:
        uint8 tensor of the same shape.

    Raises:
        BadInputError: reflection needs more pixels than the image has, or alternating flips need
            `mirrored`.
    """
    import tensorflow as tf

    n, height, width, _ = images.shape
    check_reflection(augment.crop, min(height, width))
    if augment.flip == "alternating" and mirrored is None:
        raise BadInputError("flip: alternating: say which images to mirror, `mirrored`")
    seed = tf.cast(seed, tf.int64)
    draws = tf.random.stateless_uniform(
        [5, n], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    if augment.crop is not None or augment.flip != "none":
        if augment.flip == "horizontal":
            mirrored = tf.math.floormod(draws[2], 2) == 1
        images = _cropped(images, augment, draws, mirrored)
    if augment.rand_augment is not None:
        other = seed + tf.constant([1 << 40, 0], tf.int64)
        images = rand_augment(images, augment.rand_augment, seed=other, fill=fill)
    if augment.cutout is not None:
        images = _cut_out(images, augment.cutout, draws, fill)
    return images


def _below(draws: Any, bound: int) -> Any:
    """Return numbers from 0 to below the bound, (n, 1)."""
    import tensorflow as tf

    return tf.math.floormod(draws, bound)[:, None]


def alternating(first: Any, epoch: Any) -> Any:
    """Return which images alternating flips mirror in an epoch (Jordan 2024, section 3.6).

    Args:
        first: bool tensor (n,): those mirrored in epoch 0.
        epoch: integer tensor, from 0.

    Returns:
        bool tensor (n,).
    """
    import tensorflow as tf

    return tf.math.logical_xor(first, tf.math.floormod(epoch, 2) == 1)


def _cropped(images: Any, augment: schema.Augment, draws: Any, mirrored: Any) -> Any:
    """Crop and flip, for which each pixel is taken from another place of its image."""
    import tensorflow as tf

    _, height, width, channels = images.shape
    y, x, crop = tf.range(height)[None], tf.range(width)[None], augment.crop
    if augment.flip != "none":
        x = tf.where(mirrored[:, None], width - 1 - x, x)
    if crop is not None:
        y = _shifted(y, _below(draws[0], 2 * crop.padding + 1), height, crop)
        x = _shifted(x, _below(draws[1], 2 * crop.padding + 1), width, crop)
    return take_pixels(images, y[:, :, None], x[:, None, :], [0] * channels)


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


def _shifted(place: Any, offset: Any, size: int, crop: schema.Crop) -> Any:
    """Return where cropped pixels come from along an axis; with zeros, perhaps from outside."""
    import tensorflow as tf

    moved = place + offset - crop.padding
    if crop.mode == "reflect":
        moved = (size - 1) - tf.abs((size - 1) - tf.abs(moved))
    return moved


def _cut_out(images: Any, cutout: schema.Cutout, draws: Any, fill: Sequence[int]) -> Any:
    import tensorflow as tf

    def within(size: int, centre: Any) -> Any:
        place, start = tf.range(size)[None], centre - cutout.size // 2
        return (place >= start) & (place < start + cutout.size)

    _, height, width, _ = images.shape
    cut = within(height, _below(draws[3], height))[:, :, None]
    cut &= within(width, _below(draws[4], width))[:, None, :]
    return tf.where(cut[..., None], tf.constant(list(fill), tf.uint8), images)
