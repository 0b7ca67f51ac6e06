"""Following pickles without running them.

A pickle is a program, and `pickle` believes what it says of functions and of sizes. Its steps are
followed here one by one: they make numbers, texts, lists, tuples and dictionaries. What they say of
anything else is only written down.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

# What following a damaged or hostile pickle may raise.
DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError)

MAX_NAME = 500

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Name:
    """A name that a pickle asks for."""

    text: str


@dataclass(eq=False)
class Made:
    """What a pickle says of an object: what it is made from, and what it holds."""

    kind: str
    arguments: Any = ()
    state: Any = None


class Reader:
    """Follows the steps of pickles; anything unexpected is one of DAMAGE.

    A subclass says what is made of names, calls, keys and further steps.

    Args:
        purpose: what the pickles should be, for messages.
        max_steps: that all pickles read may have together.
    """

    literals = frozenset(
        {
            *("BININT", "BININT1", "BININT2", "LONG1"),
            *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
        }
    )

    def __init__(self, purpose: str, max_steps: int) -> None:
        self.purpose, self.steps_left = purpose, max_steps
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, content: bytes | IO[bytes]) -> Any:
        """Return what the pickle holds; a stream is left behind its end."""
        self.stack, self.marks, self.memo = [], [], {}
        steps: Iterable[tuple[Any, Any, Any]] = pickletools.genops(content)
        for step, argument, _ in steps:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise ValueError(f"no {self.purpose} needs so many steps")
            if step.name in self.literals:
                self.stack.append(argument)
            elif step.name in ("BINSTRING", "SHORT_BINSTRING"):
                # The bytes of Python 2, which pickletools takes for text.
                self.stack.append(self.python2_text(argument.encode("latin1")))
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
            items = self.last(_TUPLES[step]) if step in _TUPLES else self.since_mark()
            self.stack.append(tuple(items))
        elif step in ("APPEND", "APPENDS"):
            items = self.last(1) if step == "APPEND" else self.since_mark()
            self.append(self.stack[-1], items)
        elif step in ("SETITEM", "SETITEMS"):
            items = self.last(2) if step == "SETITEM" else self.since_mark()
            for key, value in zip(items[::2], items[1::2], strict=True):
                self.set(self.stack[-1], key, value)
        elif step == "GLOBAL":
            self.stack.append(self.name(argument))
        elif step == "STACK_GLOBAL":
            parts = self.last(2)
            # The same long text may be asked for a million times.
            if sum(map(len, parts)) > MAX_NAME:
                raise ValueError("it asks for a name that is too long")
            self.stack.append(self.name(" ".join(parts)))
        elif step == "REDUCE":
            self.stack.append(self.call(*self.last(2)))
        elif step == "BUILD":
            state = self.stack.pop()
            self.change(self.stack[-1], state)
        else:
            self.other(step)

    def last(self, count: int) -> list[Any]:
        """Take that many objects from the stack."""
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def python2_text(self, content: bytes) -> Any:
        """Return what a text of Python 2 becomes."""
        return content

    def append(self, target: Any, items: list[Any]) -> None:
        """Append to a list."""
        list.extend(target, items)

    def set(self, target: Any, key: Any, value: Any) -> None:
        """Set an item of a dictionary."""
        # Hashing a tuple goes as deep as it is nested, and numbers can be made to collide.
        if not isinstance(key, bytes | str):
            raise ValueError("a key is no text")
        dict.__setitem__(target, key, value)

    def name(self, name: str) -> Any:
        """Return what stands for a name, given as `module name`."""
        return Name(name)

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what stands for a call's result."""
        raise NotImplementedError

    def change(self, target: Any, state: Any) -> None:
        """Note an object's state."""
        if not isinstance(target, Made):
            raise ValueError("it changes what is no object")
        target.state = state

    def other(self, step: str) -> None:
        """Follow a step that only some pickles have."""
        raise ValueError(f"no {self.purpose} needs {step}")
