"""Ways to make training batches, as contestants: kerasnet's and those that users write by hand.

Imports TensorFlow and Keras; `backend.load` comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasnet import data, schema
from kerasnet.bench.measure import random_split

# What hand-written pipelines commonly hold back to shuffle in.
SHUFFLE = 10_000
_EPOCHS = 100_000


class Pipelines:
    """One way to crop, flip and normalise random uint8 images in memory.

    Args:
        config: a `schema.RunConfig` as plain values; its recipe says what is done to an image.
        way: `kerasnet`, `per_example`, `keras_layers`, or `gather`, which changes no pixel.
    """

    def __init__(self, config: Mapping[str, Any], way: str) -> None:
        self.config = schema.RunConfig.model_validate(config)
        self.way = way
        self.split = random_split(self.config)
        channels = self.config.input[2]
        self.mean, self.std = [0.5] * channels, [0.25] * channels
        ways: dict[str, Callable[[], Any]] = {
            "kerasnet": self._kerasnet,
            "per_example": self._per_example,
            "keras_layers": self._keras_layers,
            "gather": self._gather,
        }
        self.batches = iter(ways[way]())

    def facts(self) -> dict[str, Any]:
        """Return what is done."""
        augment = self.config.recipe.augment.model_dump(mode="json")
        return {"augment": None if self.way == "gather" else augment}

    def run(self, steps: int, untimed: int) -> dict[str, float]:
        """Take `untimed` batches and then, timed, `steps` of them.

        Returns:
            `seconds` and `steps`: of the timed part.
        """
        for _ in range(untimed):
            next(self.batches)
        began = time.perf_counter()
        for _ in range(steps):
            next(self.batches)
        return {"seconds": time.perf_counter() - began, "steps": steps}

    # ---- the ways

    def _kerasnet(self) -> Any:
        inference = schema.Inference(
            mean=self.mean, std=self.std, resize=self.config.input[:2],
            class_names=[str(i) for i in range(self.config.classes)],
        )  # fmt: skip
        return data.training_pipeline(
            self.split, inference=inference, augment=self.config.recipe.augment,
            allowed=schema.Allowed(), batch_size=self.config.recipe.batch_size,
            seed=self.config.seed, epochs=_EPOCHS,
        )  # fmt: skip

    def _examples(self) -> Any:
        labels = self.split.labels.astype("int32")
        return tf.data.Dataset.from_tensor_slices((self.split.images, labels)).repeat()

    def _per_example(self) -> Any:
        """Do to each image alone what the recipe says, as most tutorials write it."""
        examples = self._examples().shuffle(SHUFFLE, seed=self.config.seed)
        changed = examples.map(self._changed, num_parallel_calls=tf.data.AUTOTUNE)
        batches = changed.batch(self.config.recipe.batch_size, drop_remainder=True)
        return batches.prefetch(tf.data.AUTOTUNE)

    def _changed(self, image: Any, label: Any) -> tuple[Any, Any]:
        augment, shape = self.config.recipe.augment, self.config.input
        if augment.crop:
            pad = augment.crop.padding
            mode = "REFLECT" if augment.crop.mode == "reflect" else "CONSTANT"
            image = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]], mode)
            image = tf.image.random_crop(image, shape)
        if augment.flip != "none":
            image = tf.image.random_flip_left_right(image)
        image = (tf.cast(image, tf.float32) / 255.0 - self.mean) / self.std
        if augment.cutout:
            image = _cut_out(image, shape, augment.cutout.size)
        return image, label

    def _keras_layers(self) -> Any:
        """Change batches by Keras's preprocessing layers, mapped as Keras's guide maps them.

        They have no padding by reflection, so this pads with zeros in its place.
        """
        augment, (height, width, _) = self.config.recipe.augment, self.config.input
        layers = keras.layers
        steps: list[Any] = []
        if augment.crop:
            steps += [layers.ZeroPadding2D(augment.crop.padding), layers.RandomCrop(height, width)]
        if augment.flip != "none":
            steps.append(layers.RandomFlip("horizontal"))
        if augment.cutout:
            area = augment.cutout.size**2 / (height * width)
            steps.append(layers.RandomErasing(1.0, (area, area), fill_value=127.5))
        mean, std = 255 * np.array(self.mean), 255 * np.array(self.std)
        steps.append(layers.Normalization(mean=mean, variance=std**2))

        def changed(images: Any, labels: Any) -> tuple[Any, Any]:
            images = tf.cast(images, tf.float32)
            for step in steps:
                named = {"training": True} if isinstance(step, _RANDOM) else {}
                images = step(images, **named)
            return images, labels

        batches = self._examples().shuffle(SHUFFLE, seed=self.config.seed)
        batches = batches.batch(self.config.recipe.batch_size, drop_remainder=True)
        return batches.map(changed, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _gather(self) -> Any:
        """Gather and cast: the least that random batches of floats cost."""
        batch = self.config.recipe.batch_size
        steps = data.steps_per_epoch(len(self.split), batch)
        order = np.random.default_rng(self.config.seed).permutation(len(self.split))
        images = tf.constant(self.split.images)
        labels = tf.constant(self.split.labels.astype("int32"))

        def gathered(chosen: Any) -> tuple[Any, Any]:
            return tf.cast(tf.gather(images, chosen), tf.float32), tf.gather(labels, chosen)

        chosen = order[: steps * batch].reshape(steps, -1).astype("int32")
        batches = tf.data.Dataset.from_tensor_slices(chosen).repeat()
        return batches.map(gathered, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


_RANDOM = (keras.layers.RandomCrop, keras.layers.RandomFlip, keras.layers.RandomErasing)


def _cut_out(image: Any, shape: list[int], size: int) -> Any:
    """Set a square of a normalised image to the mean, its centre anywhere in the image."""
    height, width, _ = shape
    y = tf.random.uniform([], 0, height, tf.int32) - size // 2
    x = tf.random.uniform([], 0, width, tf.int32) - size // 2
    rows, columns = tf.range(height)[:, None], tf.range(width)[None]
    inside = (rows >= y) & (rows < y + size) & (columns >= x) & (columns < x + size)
    return tf.where(inside[..., None], 0.0, image)
