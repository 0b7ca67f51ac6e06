"""What every place that images are read from can do."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from kerasnet import schema
from kerasnet.errors import BadInputError

if TYPE_CHECKING:
    from kerasnet.data.splits import Bytes, Labels, Size, SplitName

SIZE_WAY_OUT = (
    "say which size they shall have: `image: [height, width, channels]` in the data set's registry "
    "entry, or `size=(height, width)` in Python"
)
MAX_CLASSES = schema.MAX_CHANNELS
MAX_NAME = 200


class Source(Protocol):
    """A place images are read from, opened without reading images and without TensorFlow.

    Attributes:
        channels: of an image.
        classes: their number.
        has_validation: whether there is a split 'validation'.
        where: the folder or file, for messages.
    """

    channels: int
    classes: int | None
    has_validation: bool
    where: str

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names in the order of the labels, None where nothing names them."""

    def size(self) -> Size | None:
        """Return the one size all training images have, else None."""

    def count(self, split: SplitName) -> int:
        """Return the number of images in the split."""

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        """Yield images and labels in a fixed order, perhaps resized to `size` already."""

    def place(self, split: SplitName, index: int) -> str:
        """Return where the image of this number in the split is stored, for messages."""


def checked_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return class names that can be printed and written down.

    Args:
        names: in the order of the labels.
        where: they come from, for messages.

    Raises:
        BadInputError: there are too many, or one is too long or has characters that steer a
            terminal or are not text.
    """
    if len(names) > MAX_CLASSES:
        raise BadInputError(f"{where} names {len(names)} classes; at most {MAX_CLASSES} can be")
    for name in names:
        if len(name) > MAX_NAME or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise BadInputError(
                f"{where}: a class must have a name of at most {MAX_NAME} printable characters, "
                f"not {name[:MAX_NAME]!a}: give it another"
            )
    return tuple(names)
