"""Worker processes, and the rounds in which they take turns."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any, TypeVar

from kerasnet.errors import BadInputError, EnvironmentFaultError, InterruptedRunError

# TensorFlow compiles the largest nets for minutes on a slow machine.
TIMEOUT = 1800.0
_TAIL = 20
_T = TypeVar("_T")


class Worker:
    """One contestant's process. While it is asked nothing it waits on a pipe and uses no processor.

    Args:
        name: for messages.
        kind: `module:callable` that makes the contestant there.
        arguments: of the contestant's constructor, as JSON has them.
        environment: of the process; the parent's if not given.

    Raises:
        EnvironmentFaultError: the process cannot be started, or ended, or was silent too long.
        BadInputError: it refused its input.
    """

    def __init__(
        self, name: str, kind: str, arguments: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._answers: queue.Queue[str] = queue.Queue()
        # Its own session, so that Ctrl-C comes to the parent alone, which then ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kerasnet.bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._exchange({"ask": "make", "kind": kind, "arguments": arguments}, TIMEOUT)
        except BaseException:
            self.kill()
            raise

    def ask(self, what: str, timeout: float = TIMEOUT, **arguments: Any) -> Any:
        """Call a method of the contestant.

        Args:
            what: its name; or `peak_memory`, in bytes.
            timeout: seconds after which the process is given up.
            **arguments: of the method, as JSON has them.

        Returns:
            What the method returned.
        """
        return self._exchange({"ask": what, "arguments": arguments}, timeout)

    def kill(self) -> None:
        """End the process and forget what it said."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for entry in self._process.stdout:
                self._answers.put(entry)
        self._answers.put("")

    def _exchange(self, request: Mapping[str, Any], timeout: float) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            entry = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise self._fault(f"gave no answer within {timeout:.0f} s") from None
        except OSError:
            entry = ""
        if not entry:
            code = self._process.wait()
            killed = " (out of memory?)" if code == -signal.SIGKILL else ""
            raise self._fault(f"ended with exit code {code}{killed}")
        return self._unpacked(json.loads(entry))

    def _unpacked(self, answer: Mapping[str, Any]) -> Any:
        if "error" not in answer:
            return answer["answer"]
        if answer["exit_code"] == BadInputError.exit_code:
            raise BadInputError(answer["error"])
        raise self._fault(answer["error"])

    def _fault(self, what: str) -> EnvironmentFaultError:
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").splitlines()[-_TAIL:]
        lines = "\n".join(["the last it said was:", *(f"  {x}" for x in said)] if said else [])
        return EnvironmentFaultError(f"the worker of {self.name}: {what}\n{lines}".rstrip())


@contextlib.contextmanager
def workers() -> Iterator[Callable[..., Worker]]:
    """Give a function that starts workers, called as `Worker`; they end with the context.

    Raises:
        InterruptedRunError: by Ctrl-C or SIGTERM.
    """
    with contextlib.ExitStack() as stack:

        def start(*arguments: Any, **more: Any) -> Worker:
            worker = Worker(*arguments, **more)
            stack.callback(worker.kill)
            return worker

        stack.enter_context(interruptible())
        yield start


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into an error, so that no process is left behind.

    Raises:
        InterruptedRunError: by one of them.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise InterruptedRunError("interrupted; nothing was measured to the end", signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, leave) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            # None stands for a handler that Python did not install and cannot restore.
            signal.signal(signum, handler or signal.SIG_DFL)


def turns(contestants: Sequence[_T], number: int) -> list[_T]:
    """Return the order of round `number`, counted from 0: each begins a round in turn.

    A contestant that always came after the same one would always meet the machine as that one
    leaves it: warm, or with its memory full.
    """
    first = number % len(contestants)
    return [*contestants[first:], *contestants[:first]]
