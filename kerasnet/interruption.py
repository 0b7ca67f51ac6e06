"""Ctrl-C and SIGTERM: once to finish the step and save, twice to leave at once."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from rich.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal ended what was being done. Like KeyboardInterrupt, no `except Exception` stops it.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class TimeIsUp(BaseException):
    """What was being done has had all the time it was given."""


class Interruption:
    """While entered, catches SIGINT and SIGTERM; only the main thread can catch anything.

    A signal raises `Interrupted` where the program is; after `hold` it is kept in `requested` until
    somebody asks. A second one leaves the process at once, even from a long step: a thread is told
    of signals as they come, before the interpreter has time for its handlers.
    """

    def __init__(self, console: Console, seconds: float | None = None) -> None:
        self.console = console
        self.requested: int | None = None
        self._held = False
        self._ends = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def wanted(self) -> bool:
        """Whether what is being done is to end: at a signal, or its time is up."""
        return self.requested is not None or time.monotonic() >= self._ends

    def __enter__(self) -> Interruption:
        """Catch signals."""
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._reading, self._writing = socket.socketpair()
            self._writing.setblocking(False)
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
            self._descriptor = signal.set_wakeup_fd(
                self._writing.fileno(), warn_on_full_buffer=False
            )
            self._handlers = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave signals to whoever caught them before."""
        if self._active:
            for signum, handler in self._handlers.items():
                # None stands for a handler that Python did not install and cannot restore.
                signal.signal(signum, handler or signal.SIG_DFL)
            signal.set_wakeup_fd(self._descriptor)
            self._writing.shutdown(socket.SHUT_RDWR)
            self._writing.close()
            self._watcher.join()
            self._reading.close()

    def hold(self) -> None:
        """Keep signals for `requested` from now on."""
        self._held = True

    def release(self) -> None:
        """Let a signal raise again; raises the one that was kept."""
        self._held = False
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep a signal for a while; it raises at the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.release()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.requested = signum
        if not self._held:
            raise Interrupted(signum)

    def _watch(self) -> None:
        seen = False
        while signum := self._reading.recv(1):
            if signum[0] in SIGNALS and seen:
                self._leave(signum[0])
            elif signum[0] in SIGNALS:
                seen = True
                if self._held:
                    # Not here, for output that nobody takes would hold up the second signal.
                    threading.Thread(target=self._say, daemon=True).start()

    def _say(self) -> None:
        text = "finishing this step, then saving; once more leaves at once"
        self.console.print(text, highlight=False, soft_wrap=True)

    def _leave(self, signum: int) -> None:
        if self.console.is_terminal:
            with contextlib.suppress(OSError, ValueError):
                os.write(self.console.file.fileno(), b"\x1b[?25h")
        os._exit(128 + signum)
