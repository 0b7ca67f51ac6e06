"""The errors a user can meet, each with the exit code the command line gives it."""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable


class KerasnetError(Exception):
    """Base of every error that is reported without a traceback.

    The message says where, what was expected, what was received, and the way out.
    """

    exit_code = 1


class BadInputError(KerasnetError, ValueError):
    """Something the user wrote or named is wrong: a registry, an option, a data set, a file."""

    exit_code = 2


class InUseError(BadInputError):
    """Another process works in this folder."""


class DivergedError(KerasnetError):
    """Training produced a loss that is not a finite number."""

    exit_code = 3


class EnvironmentFaultError(KerasnetError):
    """The machine failed: no disk space, no memory, a read-only folder, a lost process."""

    exit_code = 4


class DisagreementError(KerasnetError):
    """A result was repeated, and something else came out.

    It has a code of its own: nothing that was written or named is wrong, training went well, and so
    did the machine; whoever verifies results must tell this from all of these.
    """

    exit_code = 5


class OutOfMemoryFaultError(EnvironmentFaultError):
    """Memory ran out, which a smaller model or batch may not need."""


class OutOfTimeError(KerasnetError):
    """A run was given so much time and has used it; its state was saved."""


class InterruptedRunError(KerasnetError):
    """The user pressed Ctrl-C, or somebody ended the process with SIGTERM.

    Args:
        message: where, and how to go on.
        signum: the signal's number.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def is_wrong_name(error: OSError) -> bool:
    """Return whether the system refused a file's name, which is what somebody wrote."""
    return error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)


_MOST_COMPARED, _MOST_LISTED = 300, 50
# A name cut short says more than one that resembles it; of many there is nothing to choose from.
_SHORTEST_BEGINNING, _MOST_BEGINNINGS = 3, 4


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence naming the nearest known name, or listing all of them.

    Names that begin with what was received are nearer than any other. Upper and lower case are the
    same here.

    Args:
        name: what was received.
        known: every name that would have been accepted.
    """
    names = sorted(known)
    # Comparing with thousands of a stranger's names would take seconds.
    lower = {n.lower(): n for n in names[:_MOST_COMPARED]}
    given = name[:100].lower()
    near = [n for n in lower if n.startswith(given)]
    if len(given) < _SHORTEST_BEGINNING or not 1 <= len(near) <= _MOST_BEGINNINGS:
        near = difflib.get_close_matches(given, lower, n=1, cutoff=0.6)
    if near:
        quoted = [f"'{lower[n]}'" for n in near]
        return f"Did you mean {' or '.join(quoted)}?"
    if not names:
        return "There are none."
    more = len(names) - _MOST_LISTED
    rest = f" and {more} more" if more > 0 else ""
    return "Known: " + ", ".join(names[:_MOST_LISTED]) + rest + "."
