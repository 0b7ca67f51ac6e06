"""Mixing the images of a batch and their labels, without state: mixup and cutmix."""

from __future__ import annotations

from typing import Any

from kerasnet import schema


def draw_mixes(shape: tuple[int, int, int], augment: schema.Augment, *, seed: Any) -> Any:
    """Draw how much each image of a batch keeps of itself, and where.

    An image's share is drawn for itself, not for the batch. TensorFlow cannot compile its gamma
    distribution, so this is apart from `mix`.

    Args:
        shape: images in the batch, height, width.
        augment: `mixup`, `cutmix` or both, of which each image then has one, either with
            probability one half.
        seed: int64 tensor (2,); equal seeds draw equal things.

    Returns:
        float32 (n,): the weight of the image's own pixels outside its rectangle, which is 1 for
        cutmix; and int32 (n, 4): top, bottom, left and right of the rectangle that is the other
        image's, clipped to the image, and empty for mixup.
    """
    import tensorflow as tf

    n, height, width = shape
    choice, y, x = tf.unstack(
        tf.random.stateless_uniform(
            [3, n], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
    )
    cuts = tf.fill([n], augment.cutmix is not None)
    if augment.mixup is not None and augment.cutmix is not None:
        cuts = tf.math.floormod(choice, 2) == 1
    weight, box = tf.ones([n]), tf.zeros([n, 4], tf.int32)
    if augment.cutmix is not None:
        side = tf.sqrt(1 - _beta(augment.cutmix.alpha, n, _other(seed, 1)))
        edges = [*_edges(y, side, height), *_edges(x, side, width)]
        box = tf.where(cuts[:, None], tf.stack(edges, 1), box)
    if augment.mixup is not None:
        weight = tf.where(cuts, weight, _beta(augment.mixup.alpha, n, _other(seed, 2)))
    return weight, box


def _other(seed: Any, number: int) -> Any:
    """Return another seed, whose draws have nothing to do with this one's."""
    import tensorflow as tf

    return seed + tf.constant([number << 40, 0], tf.int64)


def _edges(draws: Any, part: Any, size: int) -> tuple[Any, Any]:
    """Return where a part of an axis begins and ends; its centre is uniform over the axis."""
    import tensorflow as tf

    length = tf.cast(part * size, tf.int32)
    start = tf.math.floormod(draws, size) - length // 2
    return tf.maximum(start, 0), tf.minimum(start + length, size)


def _beta(alpha: float, n: int, seed: Any) -> Any:
    """Draw from Beta(alpha, alpha), float32 (n,).

    It is G / (G + G') for two gamma variates, here by their logarithms: those of a small shape are
    mostly below the smallest float. Gamma(alpha) is Gamma(alpha + 1) · U^(1 / alpha) (Marsaglia &
    Tsang 2000, section 6).
    """
    import tensorflow as tf

    larger = tf.random.stateless_gamma([2, n], seed, alpha + 1.0)
    uniform = 1 - tf.random.stateless_uniform([2, n], _other(seed, 3), alg="philox")
    logs = tf.math.log(larger) + tf.math.log(uniform) / alpha
    return tf.sigmoid(logs[0] - logs[1])


def mix(images: Any, labels: Any, weight: Any, box: Any, classes: int) -> tuple[Any, Any]:
    """Mix each image with the one before it in the batch, whose order is random.

    Mixup: Zhang et al. 2018, section 2. Cutmix: Yun et al. 2019, section 3.1; the label's share is
    the area that is left after clipping.

    Args:
        images: float32 tensor (n, height, width, channels).
        labels: int32 tensor (n,).
        weight: as `draw_mixes` returns it, like `box`.
        box: likewise.
        classes: how many there are.

    Returns:
        The images, and as float32 (n, classes) the share of each class in each.
    """
    import tensorflow as tf

    height, width = images.shape[1:3]
    top, bottom, left, right = (edge[:, None] for edge in tf.unstack(box, axis=1))
    y, x = tf.range(height)[None], tf.range(width)[None]
    cut = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    own = tf.where(cut[..., None], 0.0, weight[:, None, None, None])
    mixed = own * images + (1 - own) * tf.roll(images, 1, 0)
    area = tf.cast((bottom - top) * (right - left), tf.float32) / (height * width)
    share = weight[:, None] * (1 - area)
    targets = tf.one_hot(labels, classes)
    return mixed, share * targets + (1 - share) * tf.roll(targets, 1, 0)
