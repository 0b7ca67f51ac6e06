"""What all contestants have in common: random images, a clock, a rate. Imports no framework."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasnet import data, schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

# More than fits any cache, as CIFAR-10 does, whatever the size of an image.
MAX_IMAGES, MAX_BYTES = 50_000, 2**28
_READY = 4
_BURSTS = 3


class Clock:
    """Times steps after the first few.

    Args:
        untimed: steps before the clock starts, at least one.
        total: steps in all.
        wait: called before the clock is looked at, with what the step gave; returns when the
            device has done the step.
    """

    def __init__(self, untimed: int, total: int, wait: Callable[[Any], Any]) -> None:
        self.untimed, self.total, self.wait = untimed, total, wait
        self.seconds = 0.0

    def step_ended(self, done: int, result: Any = None) -> None:
        """Look at the clock after step `done`, counted from 1, if it is one that matters."""
        if done not in (self.untimed, self.total):
            return
        self.wait(result)
        now = time.perf_counter()
        if done == self.untimed:
            self._began = now
        else:
            self.seconds = now - self._began


def highest_rate(run: Callable[[int], float], operations: float, seconds: float) -> float:
    """Return the highest of a few rates, in operations a second.

    Args:
        run: does something so many times and returns the seconds that it took.
        operations: of one time.
        seconds: for about so long is measured.
    """
    run(1)
    times = max(1, int(seconds / _BURSTS / max(run(2) / 2, 1e-6)))
    return operations * times / min(run(times) for _ in range(_BURSTS))


def random_images(config: schema.RunConfig) -> int:
    """Return how many images stand for a data set.

    50,000, as in CIFAR-10, or as many as 256 MiB hold, but a batch at least.
    """
    size = math.prod(config.input)
    return max(config.recipe.batch_size, min(MAX_IMAGES, MAX_BYTES // size))


def random_split(config: schema.RunConfig) -> data.Split:
    """Return random images uint8 (n, height, width, channels) and labels int64 (n,), by the seed.

    n is `random_images`.
    """
    from kerasnet.data.splits import buffer

    rng = np.random.default_rng(config.seed)
    n = random_images(config)
    images = buffer((n, *config.input))
    images[:] = rng.integers(0, 256, images.shape, np.uint8)
    return data.Split(images, rng.integers(0, config.classes, n))


def ready_arrays(config: schema.RunConfig) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return a few normalised batches by the configuration's seed.

    Images float32 (batches, batch, height, width, channels), labels int32 (batches, batch).
    """
    rng = np.random.default_rng(config.seed)
    shape = (_READY, config.recipe.batch_size)
    images = rng.standard_normal((*shape, *config.input), np.float32)
    return images, rng.integers(0, config.classes, shape).astype(np.int32)
