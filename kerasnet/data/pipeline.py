"""The tf.data pipelines of training and evaluation.

Randomness is stateless: a batch depends on nothing but the seed, the epoch and the step, so that a
resumed run sees the images an uninterrupted one would have seen. Alternating flips depend on the
seed, the epoch and the image's place in the data set instead.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kerasnet import backend, schema
from kerasnet.data.augment import (
    alternating,
    augment_batch,
    check_reflection,
    effective_augment,
)
from kerasnet.data.mixing import draw_mixes, mix
from kerasnet.data.splits import ALIGNMENT, Split
from kerasnet.errors import BadInputError

if TYPE_CHECKING:
    from kerasnet.data.splits import Bytes


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return how many full batches `n` images make; one of all images if they fill none.

    Raises:
        BadInputError: there are no images, or the batch size is not positive.
    """
    if n < 1 or batch_size < 1:
        raise BadInputError(f"cannot make batches of {batch_size} from {n} images")
    return max(1, n // batch_size)


def _as_tensor(images: Bytes) -> Any:
    """Return the images as a tensor in main memory, sharing the array's memory where possible."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        shareable = images.flags.c_contiguous and images.flags.writeable
        if shareable and images.ctypes.data % ALIGNMENT == 0:
            # tf.constant copies, and holds the data set thrice while it does.
            return tf.experimental.dlpack.from_dlpack(images.__dlpack__())
        return tf.constant(images)


def _normaliser(inference: schema.Inference, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Return the function from uint8 (n, *shape) to normalised float32 of the same shape."""
    import numpy as np
    import tensorflow as tf

    height, width, channels = shape
    if not len(inference.mean) == len(inference.std) == channels:
        raise BadInputError(
            f"mean {inference.mean} and std {inference.std} must have a number for each of the "
            f"images' {channels} channels"
        )
    std = np.array(inference.std)
    # Spread over the pixels, for TensorFlow broadcasts a vector of three four times slower.
    scale = np.tile(1 / (255 * std), height * width).astype(np.float32)
    offset = np.tile(-np.array(inference.mean) / std, height * width).astype(np.float32)

    def normalise(images: Any) -> Any:
        flat = tf.reshape(images, [-1, height * width * channels])
        result = tf.cast(flat, tf.float32) * scale + offset
        return tf.ensure_shape(
            tf.reshape(result, [-1, height, width, channels]), [images.shape[0], *shape]
        )

    return normalise


_ORDER, _AUGMENT, _MIX, _FLIP = 0, 1, 2, 3
# Batches made at the same time: each holds memory, and a core makes hundreds of thousands of small
# images in a second.
_MOST_CALLS = 8


def _key(purpose: int, seed: int, epoch: Any, step: Any) -> Any:
    """Return the seed, int64 (2,), of a stateless op: another one for every argument."""
    import tensorflow as tf

    return tf.stack([tf.constant(seed + (purpose << 32), tf.int64), epoch * 2**32 + step])


def _batch_indices(n: int, batch_size: int, seed: int, epochs: int, first_step: int) -> Any:
    """Return a tf.data.Dataset of (epoch, step in it, indices of the batch's images).

    An epoch's order sorts random numbers. `tf.random.experimental.index_shuffle` needs no sorting,
    but its permutations are visibly not uniform (chi-square p < 1e-28 for n = 5).
    """
    import tensorflow as tf

    steps, batch = steps_per_epoch(n, batch_size), min(n, batch_size)

    def epoch_steps(epoch: Any) -> Any:
        key = _key(_ORDER, seed, epoch, tf.constant(0, tf.int64))
        drawn = tf.random.stateless_uniform(
            [n], key, minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        order = tf.argsort(drawn, stable=True)[: steps * batch]
        step = tf.range(steps, dtype=tf.int64)
        each = (tf.fill([steps], epoch), step, tf.reshape(order, [steps, batch]))
        return tf.data.Dataset.from_tensor_slices(each)

    epochs_left = tf.data.Dataset.range(first_step // steps, epochs)
    found = epochs_left.flat_map(epoch_steps).skip(first_step % steps)
    return found.apply(tf.data.experimental.assert_cardinality(epochs * steps - first_step))


def training_pipeline(
    split: Split,
    *,
    inference: schema.Inference,
    augment: schema.Augment,
    allowed: schema.Allowed,
    batch_size: int,
    seed: int,
    epochs: int,
    first_step: int = 0,
    classes: int | None = None,
) -> Any:
    """Return the batches of a training run, as a `tf.data.Dataset`.

    The order is a permutation keyed by (seed, epoch), the augmentation is keyed by (seed, epoch,
    step), alternating flips by (seed, epoch, image): starting at any step gives exactly what an
    uninterrupted run would have seen from there.

    Args:
        split: the training images. Their array is shared, not copied: leave it as it is.
        inference: mean and std to normalise by.
        augment: the recipe's augmentations.
        allowed: those that the data set allows.
        batch_size: images a batch; a partial last batch is dropped, and another permutation drops
            other images. A smaller set gives one batch of all its images.
        seed: of order and augmentation, 0 to 2³¹ - 1.
        epochs: of the whole run, those already done included.
        first_step: optimiser steps already done since the run began.
        classes: how many there are; needed by mixup and cutmix only.

    Returns:
        `epochs * steps_per_epoch - first_step` batches of float32 images (batch, height, width,
        channels) and int32 labels (batch,); with mixup or cutmix, instead of the labels, the share
        of each class, float32 (batch, classes).

    Raises:
        BadInputError: no images, or a number out of range.
    """
    total = epochs * steps_per_epoch(len(split), batch_size)
    if not 0 <= first_step <= total or not 0 <= seed < 2**31:
        raise BadInputError(
            f"first_step must be 0 to {total}, not {first_step}; seed 0 to 2³¹ - 1, not {seed}"
        )
    chosen = effective_augment(augment, allowed)
    check_reflection(chosen.crop, min(split.images.shape[1:3]))
    if chosen.mixes and (classes is None or classes <= split.labels.max(initial=0)):
        raise BadInputError(
            f"mixup and cutmix need the number of classes, more than {split.labels.max()}; "
            f"received classes={classes}"
        )
    order = _batch_indices(len(split), batch_size, seed, epochs, first_step)
    return _mapped(order, _batch_maker(split, inference, chosen, seed, classes))


def _batch_maker(
    split: Split, inference: schema.Inference, augment: schema.Augment, seed: int,
    classes: int | None,
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:  # fmt: skip
    """Return the function from epoch, step and indices to a batch of training."""
    import tensorflow as tf

    shape = split.images.shape[1:]
    normalise = _normaliser(inference, shape)
    fill = [min(255, max(0, round(255 * m))) for m in inference.mean]
    images, labels = _as_tensor(split.images), _labels(split)

    first = _mirrored_at_first(len(split), seed) if augment.flip == "alternating" else None

    def augmented(images: Any, key: Any, mirrored: Any) -> Any:
        return normalise(augment_batch(images, augment, seed=key, fill=fill, mirrored=mirrored))

    # The compiler fuses what is within one function, and would compute each image twice to mix it.
    augmented, mixed = _compiled(augmented), _compiled(mix)

    def batch(epoch: Any, step: Any, indices: Any) -> tuple[Any, Any]:
        key = _key(_AUGMENT, seed, epoch, step)
        mirrored = None if first is None else alternating(tf.gather(first, indices), epoch)
        found = augmented(tf.gather(images, indices), key, mirrored)
        target = tf.gather(labels, indices)
        if not augment.mixes:
            return found, target
        key = _key(_MIX, seed, epoch, step)
        weight, box = draw_mixes(found.shape[:3], augment, seed=key)
        found, target = mixed(found, target, weight, box, classes)
        return found, target

    return batch


def _mirrored_at_first(n: int, seed: int) -> Any:
    """Return which of `n` images alternating flips mirror in the first epoch, bool (n,)."""
    import tensorflow as tf

    zero = tf.constant(0, tf.int64)
    with tf.device("CPU:0"):
        drawn = tf.random.stateless_uniform(
            [n], _key(_FLIP, seed, zero, zero), minval=None, maxval=None, dtype=tf.int32,
            alg="philox",
        )  # fmt: skip
        return tf.math.floormod(drawn, 2) == 1


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors that takes few passes over the pixels, if it can be had."""
    import tensorflow as tf

    made: Callable[..., Any] = tf.function(function, autograph=False, jit_compile=_compiles())
    return made


@functools.cache
def _compiles() -> bool:
    """Whether this TensorFlow can compile what a data set maps; not every build has the compiler.

    The same comes out without it, but for the last digits, more slowly.
    """
    import tensorflow as tf

    probe = tf.function(lambda number: number + 1, autograph=False, jit_compile=True)
    with _without_flags_of_another_compiler():
        try:
            return [int(number) for number in tf.data.Dataset.range(1).map(probe)] == [1]
        except tf.errors.OpError:
            return False


@contextlib.contextmanager
def _without_flags_of_another_compiler() -> Iterator[None]:
    """Hide `$XLA_FLAGS` where it is meant for JAX, whose compiler is another version.

    TensorFlow's reads it once, the first time that it compiles, and a flag that it does not know
    ends the process.
    """
    flags = os.environ.pop("XLA_FLAGS", None) if backend.name() != "tensorflow" else None
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def _mapped(source: Any, make: Callable[..., Any]) -> Any:
    """Return the batches made of a data set's elements, in order and ahead of their use."""
    import tensorflow as tf

    # Neither pipeline branches on a tensor's value, so AutoGraph has nothing to convert.
    made = tf.autograph.experimental.do_not_convert(make)
    calls = min(backend.cores(), _MOST_CALLS)
    batches = source.map(made, num_parallel_calls=calls, deterministic=True)
    return batches.prefetch(2).with_options(backend.untuned())


def _labels(split: Split) -> Any:
    import tensorflow as tf

    with tf.device("CPU:0"):
        return tf.constant(split.labels, tf.int32)


def evaluation_pipeline(split: Split, *, inference: schema.Inference, batch_size: int) -> Any:
    """Return the images once, in order, the last batch perhaps smaller, as a `tf.data.Dataset`.

    Args:
        split: the images. Their array is shared, not copied: leave it as it is.
        inference: mean and std to normalise by.
        batch_size: images a batch.

    Returns:
        Batches of float32 images (batch, height, width, channels) and int32 labels (batch,).

    Raises:
        BadInputError: there are no images, or the batch size is not positive.
    """
    import tensorflow as tf

    steps_per_epoch(len(split), batch_size)
    normalise = _normaliser(inference, split.images.shape[1:])
    images, labels = _as_tensor(split.images), _labels(split)

    def batch(start: Any) -> tuple[Any, Any]:
        stop = tf.minimum(start + batch_size, len(split))
        return normalise(images[start:stop]), labels[start:stop]

    starts = tf.data.Dataset.range(0, len(split), batch_size)
    return _mapped(starts, batch)
