"""The pickles of the Python CIFAR archives, read without running them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kerasnet.errors import BadInputError
from kerasnet.pickles import DAMAGE, Made, Name, Reader

if TYPE_CHECKING:
    from kerasnet.data.splits import Bytes

# The largest batch, CIFAR-100's 50,000 training images, has 200,000 steps; written by Python 3 for
# Python 2, which calls a function for each text, three times as many.
MAX_STEPS = 2_000_000

_NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy dtype": "dtype",
    "numpy ndarray": "class",
    "_codecs encode": "text",
}


class _Reader(Reader):
    """Follows the pickle of a batch, which makes no more than arrays of bytes and texts."""

    def __init__(self, size: int) -> None:
        super().__init__("CIFAR batch", MAX_STEPS)
        self._room = size

    def name(self, name: str) -> Name:
        if name not in _NAMES:
            raise ValueError(f"it asks for {name[:100]!a}, which no CIFAR batch needs")
        return Name(_NAMES[name])

    def call(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case Name("text"), (str(text), _):
                # The same long text may come a million times, which nobody writes.
                self._room -= len(text)
                if self._room < 0:
                    raise ValueError("its texts are longer than itself")
                return text.encode("latin1")
            case Name("array" | "dtype" as kind), tuple():
                return Made(kind, arguments)
        raise ValueError("it calls what no CIFAR batch needs")


def unpickle(content: bytes, where: str) -> dict[Any, Any]:
    """Return the dictionary a pickle holds; texts of Python 2 are bytes.

    Args:
        content: the pickle.
        where: it is from, for messages.

    Raises:
        BadInputError: it is damaged, asks for anything but arrays, or holds no dictionary.
    """
    try:
        found = _Reader(len(content)).read(content)
    except DAMAGE as e:
        raise BadInputError(f"{where} is not a CIFAR batch: {e}") from e
    if not isinstance(found, dict):
        raise BadInputError(f"{where} is not a CIFAR batch: no dictionary in it")
    return found


def pickled_table(found: Any, where: str) -> Bytes:
    """Return the table that `unpickle` found, uint8 of shape (rows, columns).

    Args:
        found: a value of the dictionary.
        where: it is from, for messages.

    Raises:
        BadInputError: it is not a whole table of uint8.
    """
    import numpy as np

    match found:
        # Version, shape, type, whether in Fortran's order, and content, as NumPy writes them.
        case Made(
            "array",
            _,
            (_, (int(rows), int(columns)), Made("dtype", ("u1" | b"u1", *_)), fortran, bytes(raw)),
        ) if min(rows, columns) >= 0 and rows * columns == len(raw):
            flat = np.frombuffer(raw, np.uint8)
            return flat.reshape(columns, rows).T if fortran else flat.reshape(rows, columns)
    raise BadInputError(f"{where} is not a table of uint8")
