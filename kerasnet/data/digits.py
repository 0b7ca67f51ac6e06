"""The digits that scikit-learn brings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from kerasnet.data.splits import TEST_SEED, Size, Split, SplitName, held_out, stratified

if TYPE_CHECKING:
    from kerasnet.data.splits import Bytes, Labels


class Digits:
    """scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998), 8×8, 20 % held out."""

    channels = 1
    classes: int | None = 10
    class_names: tuple[str, ...] | None = tuple("0123456789")
    has_validation = False
    where = "scikit-learn's digits"

    @cached_property
    def _splits(self) -> dict[str, Split]:
        import numpy as np
        from sklearn.datasets import load_digits

        found = load_digits()
        # Values are 0…16.
        images = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
        everything = Split(images, found.target.astype(np.int64))
        test = stratified(everything.labels, held_out(len(images)), TEST_SEED)
        return {"train": everything.take(~test), "test": everything.take(test)}

    def size(self) -> Size | None:
        """Return 8×8."""
        return (8, 8)

    def count(self, split: SplitName) -> int:
        """Return the number of images in the split."""
        return len(self._splits[split])

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        """Yield the whole split."""
        yield self._splits[split].images, self._splits[split].labels

    def place(self, split: SplitName, index: int) -> str:
        """Return the image's number."""
        return f"{self.where}: image {index} of split '{split}'"
