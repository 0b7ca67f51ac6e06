"""Reading the pickles of the Python CIFAR archives without running them.

A pickle is a program, and `pickle` believes what it says of sizes. The steps that the pickle of a
batch needs are followed here one by one: they make numbers, texts, lists, tuples and dictionaries.
What they say of arrays is only written down.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kerasnet.errors import BadInputError

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
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    """A name that a pickle asks for."""

    kind: str


@dataclass(eq=False)
class _Made:
    """What a pickle says of an object: what it is made from, and what it holds."""

    kind: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Reader:
    """Follows the steps of one pickle; anything unexpected is a ValueError or the like."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        """Return what the pickle holds."""
        steps: Iterable[tuple[Any, Any, Any]] = pickletools.genops(content)
        for number, (step, argument, _) in enumerate(steps):
            if number > MAX_STEPS:
                raise ValueError("no CIFAR batch needs so many steps")
            if step.name in _LITERALS:
                self.stack.append(argument)
            elif step.name in ("BINSTRING", "SHORT_BINSTRING"):
                # The bytes of Python 2, which pickletools takes for text.
                self.stack.append(argument.encode("latin1"))
            elif step.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[step.name])
            elif "PUT" in step.name or step.name == "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif "GET" in step.name:
                self.stack.append(self.memo[argument])
            elif step.name not in ("PROTO", "FRAME", "STOP"):
                self._build(step.name, argument)
        return self.stack.pop()

    def _build(self, step: str, argument: Any) -> None:
        if step == "MARK":
            self.marks.append(len(self.stack))
        elif step == "EMPTY_LIST":
            self.stack.append([])
        elif step == "EMPTY_DICT":
            self.stack.append({})
        elif step == "TUPLE" or step in _TUPLES:
            items = self._last(_TUPLES[step]) if step in _TUPLES else self._since_mark()
            self.stack.append(tuple(items))
        elif step in ("APPEND", "APPENDS"):
            items = self._last(1) if step == "APPEND" else self._since_mark()
            list.extend(self.stack[-1], items)
        elif step in ("SETITEM", "SETITEMS"):
            items = self._last(2) if step == "SETITEM" else self._since_mark()
            self._set(items)
        elif step == "GLOBAL":
            self._name(argument)
        elif step == "STACK_GLOBAL":
            self._name(" ".join(self._last(2)))
        elif step == "REDUCE":
            self._call(*self._last(2))
        elif step == "BUILD":
            state = self.stack.pop()
            if not isinstance(self.stack[-1], _Made):
                raise ValueError("it changes what is no array")
            self.stack[-1].state = state
        else:
            raise ValueError(f"no CIFAR batch needs {step}")

    def _last(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _set(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple goes as deep as it is nested, and numbers can be made to collide.
            if not isinstance(key, bytes | str):
                raise ValueError("a key is no text")
            dict.__setitem__(self.stack[-1], key, value)

    def _name(self, name: str) -> None:
        if name not in _NAMES:
            raise ValueError(f"it asks for {name[:100]!a}, which no CIFAR batch needs")
        self.stack.append(_Name(_NAMES[name]))

    def _call(self, function: Any, arguments: Any) -> None:
        match function, arguments:
            case _Name("text"), (str(text), _):
                self.stack.append(text.encode("latin1"))
            case _Name("array" | "dtype" as kind), tuple():
                self.stack.append(_Made(kind, arguments))
            case _:
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
        found = _Reader().read(content)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
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
        case _Made(
            "array",
            _,
            (_, (int(rows), int(columns)), _Made("dtype", ("u1" | b"u1", *_)), fortran, bytes(raw)),
        ) if min(rows, columns) >= 0 and rows * columns == len(raw):
            flat = np.frombuffer(raw, np.uint8)
            return flat.reshape(columns, rows).T if fortran else flat.reshape(rows, columns)
    raise BadInputError(f"{where} is not a table of uint8")
