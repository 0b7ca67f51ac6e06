"""The processes of a search: a chief that draws the points, and workers that train them.

Each is started as `python -m kerasnet.tune.process` with a line of JSON on standard input that says
what it is to do, and ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from kerasnet.errors import EnvironmentFaultError, InterruptedRunError, KerasnetError
from kerasnet.tune.records import SearchFolder, open_search

# After so long a process on another machine counts as lost.
LOST_SECONDS = 60.0
# So often within that time a worker says that it lives, and asks whether the chief does.
_BEATS = 12
_LAST_ANSWER_SECONDS = 1.0


class Role(BaseModel):
    """What a process is to do.

    Attributes:
        kind: `chief` or `worker`.
        folder: the search's.
        address: of the chief, `host:port`.
        name: of a worker.
        seconds: after so many nothing new is begun and training is left.
        cpus: the processors that the process may use; all if empty.
        patience: after so many seconds without a word from another process, it counts as lost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    folder: str
    address: str
    name: str = "chief"
    seconds: float | None = None
    cpus: list[int] = []
    patience: float = LOST_SECONDS

    @property
    def beat(self) -> float:
        """Seconds from one sign of life to the next."""
        return self.patience / _BEATS

    @property
    def deadline(self) -> float:
        """The end of `seconds` by `time.monotonic`."""
        return math.inf if self.seconds is None else time.monotonic() + self.seconds


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; ValueError where it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(address)
    return host.strip("[]"), int(port)


def answers(address: str, timeout: float = 5.0) -> bool:
    """Return whether something listens at `host:port`."""
    try:
        with socket.create_connection(split_address(address), timeout):
            return True
    except OSError:
        return False


def check_free(address: str) -> None:
    """Check that `host:port` can be listened at.

    gRPC would share a port with another chief, and half of the workers would train for the other.

    Raises:
        EnvironmentFaultError: it is taken, or no address of this machine.
    """
    host, port = split_address(address)
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as found:
            # What a chief left behind that was just killed is no obstacle.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(where)
            found.listen()
    except OSError as error:
        raise EnvironmentFaultError(
            f"{address}: a chief cannot listen there: {error.strerror or error}. Choose another "
            "HOST:PORT with --chief"
        ) from error


def main() -> None:
    """Be the chief or a worker; ends the process with the code that `kerasnet` would have."""
    role = Role.model_validate_json(sys.stdin.readline())
    if role.cpus and hasattr(os, "sched_setaffinity"):
        # Before TensorFlow counts them.
        os.sched_setaffinity(0, role.cpus)
    os.environ["KERASTUNER_ORACLE_IP"], port = split_address(role.address)
    os.environ["KERASTUNER_ORACLE_PORT"] = str(port)
    os.environ["KERASTUNER_TUNER_ID"] = role.name
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        {"chief": _chief, "worker": _worker}[role.kind](role, open_search(role.folder))
    except KerasnetError as error:
        print(f"kerasnet: error: {error}", file=sys.stderr, flush=True)
        _leave(error.exit_code)
    _leave(0)


def _leave(code: int) -> None:
    # A server's threads would keep an interpreter that shuts down in the ordinary way.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


# ---------------------------------------------------------------------------- chief


def _chief(role: Role, folder: SearchFolder) -> None:
    from kerasnet import backend

    deadline = role.deadline
    signal.signal(signal.SIGTERM, lambda *_: _leave(128 + signal.SIGTERM))
    backend.load()
    from kerasnet.tune.oracles import RunFolderTuner, make_oracle

    oracle = make_oracle(folder.asked)
    oracle.deadline = deadline
    tuner = RunFolderTuner(oracle, folder.path, None)
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            tuner.search()
        except BaseException as error:  # noqa: BLE001 - the main thread reports it
            failure.append(error)

    threading.Thread(target=serve, daemon=True).start()
    beats = _Beats(folder, role.patience)
    over_since: float | None = None
    while True:
        time.sleep(0.5)
        if failure:
            raise EnvironmentFaultError(f"{role.address}: cannot be served: {failure[0]}")
        if oracle.fault is not None:
            raise oracle.fault
        for lost in beats.lost(list(oracle.ongoing_trials)):
            print(f"{lost} is lost; another goes on with its trial", flush=True)
            oracle.give_up(lost)
        # Who joined without a budget of its own would train on; it notices that the chief has left.
        late = time.monotonic() >= deadline + role.patience
        if late or ((oracle.over or time.monotonic() >= deadline) and not oracle.ongoing_trials):
            over_since = over_since or time.monotonic()
            # Those that still wait for an answer are told, too.
            wait = role.beat if oracle.tuner_ids else _LAST_ANSWER_SECONDS
            if time.monotonic() - over_since > wait:
                return


class _Beats:
    """Tells which workers have stopped writing that they live, by the chief's own clock."""

    def __init__(self, folder: SearchFolder, patience: float) -> None:
        self.folder, self.patience = folder, patience
        self._seen: dict[str, tuple[str, float]] = {}

    def lost(self, names: list[str]) -> list[str]:
        """Return those of some workers that have left, or said nothing for so long."""
        found, now = [], time.monotonic()
        for name in names:
            before, since = self._seen.get(name, (None, now))
            try:
                # While it is written, and for good where the disk is full, it is empty.
                beat = _beat_file(self.folder, name).read_text() or before or ""
            except FileNotFoundError:
                beat = ""
            except OSError:
                beat = before or ""
            # Who leaves takes its file along.
            left = beat == "" and before not in (None, "")
            if left or (beat == before and now - since > self.patience):
                found.append(name)
                self._seen.pop(name, None)
            elif beat != before:
                self._seen[name] = (beat, now)
        return found


def _beat_file(folder: SearchFolder, name: str) -> Path:
    return folder.path / "workers" / f"{name}.beat"


# ---------------------------------------------------------------------------- worker


def _worker(role: Role, folder: SearchFolder) -> None:
    from rich.console import Console

    from kerasnet.interruption import Interrupted, Interruption

    console = Console(width=160)
    deadline, lost = role.deadline, threading.Event()
    pulse = _Pulse(folder, role.name)
    _every(role.beat, pulse.beat)
    try:
        with Interruption(console):
            _train(role, folder, console, deadline, lost)
    except (Interrupted, InterruptedRunError) as error:
        if lost.is_set():
            _without_chief(role, folder)
            return
        signum = error.signum if isinstance(error, Interrupted) else error.exit_code - 128
        raise InterruptedRunError("interrupted", signum) from error
    finally:
        pulse.stop()


def _without_chief(role: Role, folder: SearchFolder) -> None:
    """Tell a chief that is lost from one that has left with its search done."""
    from kerasnet.tune.search import snapshot

    if not snapshot(folder).complete:
        raise EnvironmentFaultError(
            f"{role.address}: the chief has not answered for {role.patience:.0f} s. What was "
            "trained is kept; start the chief again, and join it again"
        )


def _train(
    role: Role, folder: SearchFolder, console: Any, deadline: float, lost: threading.Event
) -> None:
    from kerasnet import backend

    backend.load()
    from kerasnet.tune.search import search_here

    _every(role.beat, _asking(role, lost))
    search_here(folder, console, deadline)


def _every(seconds: float, do: Callable[[], None]) -> None:
    def loop() -> None:
        while True:
            do()
            time.sleep(seconds)

    threading.Thread(target=loop, daemon=True).start()


class _Pulse:
    """A worker's file, whose content changes for as long as it lives."""

    def __init__(self, folder: SearchFolder, name: str) -> None:
        self.file, self.count = _beat_file(folder, name), 0
        self._writing = threading.Lock()
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def beat(self) -> None:
        """Say that this process lives."""
        with self._writing:
            self.count += 1
            try:
                self.file.write_text(json.dumps({"beat": self.count, "process": os.getpid()}))
            except OSError as error:
                print(f"{self.file}: {error}", file=sys.stderr)

    def stop(self) -> None:
        """Say that it leaves; it says nothing after that."""
        self._writing.acquire()
        with contextlib.suppress(OSError, ValueError):
            # After its launcher was lost, another process may have its name by now.
            if json.loads(self.file.read_text())["process"] == os.getpid():
                self.file.unlink(missing_ok=True)


def _asking(role: Role, lost: threading.Event) -> Callable[[], None]:
    heard = [time.monotonic()]

    def ask() -> None:
        if answers(role.address):
            heard[0] = time.monotonic()
        elif time.monotonic() - heard[0] > role.patience and not lost.is_set():
            lost.set()
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


if __name__ == "__main__":
    main()
