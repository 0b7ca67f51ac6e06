"""Labelled images in memory, and dividing them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kerasnet.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Labels = NDArray[np.int64]

SplitName = Literal["train", "validation", "test"]
Size = tuple[int, int]
Shape = tuple[int, int, int]

TEST_FRACTION = 0.2
# The part of a set without a test split that is held out must be the same in every run.
TEST_SEED = 0
ALIGNMENT = 64
CHUNK = 500


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory.

    Attributes:
        images: uint8, (n, height, width, channels).
        labels: int64, (n,), counted from 0.
    """

    images: Bytes
    labels: Labels

    def __post_init__(self) -> None:
        """Check shapes and dtypes (`BadInputError`)."""
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype.name != "uint8":
            raise BadInputError(
                f"images must be uint8 of shape (n, height, width, channels), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if labels.shape != images.shape[:1] or labels.dtype.name != "int64":
            raise BadInputError(
                f"labels must be int64 of shape ({len(images)},), "
                f"not {labels.dtype} of shape {labels.shape}"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, where: NDArray[np.bool_]) -> Split:
        """Return a copy of the images where the mask, bool of shape (n,), is true."""
        import numpy as np

        chosen = np.flatnonzero(where)
        images = buffer((len(chosen), *self.images.shape[1:]))
        np.take(self.images, chosen, axis=0, out=images)
        return Split(images, self.labels[chosen])


def buffer(shape: tuple[int, ...]) -> Bytes:
    """Return an uninitialised uint8 array that TensorFlow can use without copying it."""
    import numpy as np

    size = math.prod(shape)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].reshape(shape)


def stratified(labels: Labels, count: int, seed: int, leave: int = 0) -> NDArray[np.bool_]:
    """Choose `count` examples, each class in proportion; `leave` of each class stay unchosen."""
    import numpy as np

    # RandomState's stream is frozen by NEP 19, default_rng's is not.
    rng = np.random.RandomState(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    share = sizes * (count / max(len(labels), 1))
    quota = np.floor(share + 1e-9).astype(np.int64)
    largest_remainder = np.argsort(quota - share, kind="stable")
    quota[largest_remainder[: count - int(quota.sum())]] += 1
    quota = np.minimum(quota, np.maximum(sizes - leave, 0))
    chosen = np.zeros(len(labels), np.bool_)
    for label, number in zip(classes, quota, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:number]] = True
    return chosen


def held_out(n: int) -> int:
    """Return how many of `n` images stand for a test split, rounded up as scikit-learn does."""
    return math.ceil(TEST_FRACTION * n - 1e-9)


def split_validation(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Hold out part of the training images, the classes in proportion.

    Args:
        train: the images to divide.
        fraction: of the images, in [0, 1); 0 gives an empty validation split.
        seed: decides which; equal seeds hold out equal images.

    Returns:
        What is left to train on, and the validation images. At least one image of every class stays
        in the first, so classes of a single image are not in the second.

    Raises:
        BadInputError: the fraction is out of range, or no class has an image to spare.
    """
    import numpy as np

    if not 0 <= fraction < 1:
        raise BadInputError(f"the validation fraction must be in [0, 1), not {fraction}")
    if fraction == 0:
        return train, train.take(np.zeros(len(train), np.bool_))
    count = max(1, round(fraction * len(train)))
    held_out = stratified(train.labels, count, seed, leave=1)
    if not held_out.any():
        raise BadInputError(
            f"{len(train)} training images are too few to hold out {fraction:g} of them for "
            "validation: every class needs two; set `validation_split: 0` in the recipe"
        )
    return train.take(~held_out), train.take(held_out)


def joined(first: Split, second: Split) -> Split:
    """Return the images of one split and then those of another, of the same size."""
    import numpy as np

    images = buffer((len(first) + len(second), *first.images.shape[1:]))
    np.concatenate([first.images, second.images], out=images)
    return Split(images, np.concatenate([first.labels, second.labels]))


def limit(split: Split, n: int, seed: int) -> Split:
    """Return `n` of the images in their order, the classes in proportion; all if there are fewer.

    Raises:
        BadInputError: `n` is not positive.
    """
    if n < 1:
        raise BadInputError(f"a limit on the number of images must be positive, not {n}")
    return split if n >= len(split) else split.take(stratified(split.labels, n, seed))
