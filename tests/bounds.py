"""A bound on what a call may take, and why it is refused."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from kerasnet.errors import BadInputError


@contextlib.contextmanager
def bounded(seconds: float, memory: float, until: float) -> Iterator[None]:
    """Fail if what is inside hangs, takes long, or adds much to the most memory ever held.

    Args:
        seconds: of processor time.
        memory: bytes above the most that this process has held.
        until: seconds after which it is interrupted.
    """

    def stop(signum: int, frame: object) -> None:
        raise AssertionError("no answer")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, until)
    start, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - start < seconds
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * unit < memory


def reason(call: Callable[[], Any]) -> str:
    """Return why something is refused, nothing if it is not."""
    try:
        call()
    except BadInputError as error:
        return str(error)
    return ""
