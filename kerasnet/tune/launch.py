"""Starting and watching the processes of a search, so that none hangs or is left behind."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.files import make_folder
from kerasnet.interruption import Interruption
from kerasnet.tune.process import LOST_SECONDS, Role, check_free
from kerasnet.tune.records import SearchFolder

# So often in a row a process may end by itself without any trial getting further.
MAX_LOSSES = 5
# A step that is under way, and a checkpoint of a large model, take their time.
GRACE_SECONDS = 120.0
_POLL_SECONDS = 0.25
_TAIL = 5
_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


@dataclass
class _Process:
    """A process and the end of what it says."""

    role: Role
    log: Path
    running: subprocess.Popen[bytes]

    @property
    def code(self) -> int | None:
        return self.running.poll()

    def said(self) -> str:
        """Return the last that it wrote."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-_TAIL:]
            return "".join(f"\n  {line}" for line in lines)
        return ""


class Launcher:
    """The processes of a search on this machine; they end when the context does.

    Args:
        folder: the search's.
        workers: how many processes train.
        threads: processors for each; so many that all are used, if not given.
        address: of the chief, `host:port`; on this machine's loopback if not given.
        chief: whether the chief runs here, too.
        deadline: of `time.monotonic`; nothing is begun after it, and training is left.
        patience: after so many seconds without a word a process counts as lost.
        stop: what catches signals, of which none may come between a process and the note of it.
    """

    def __init__(
        self, folder: SearchFolder, workers: int, *, threads: int | None = None,
        address: str | None = None, chief: bool = True, deadline: float = math.inf,
        patience: float = LOST_SECONDS, stop: Interruption | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.workers, self.address = folder, workers, address
        self.has_chief, self.deadline, self.patience = chief, deadline, patience
        self.cpus = _shares(workers, threads)
        self._chief: _Process | None = None
        self._training: list[_Process] = []
        self._losses, self._state = 0, ""
        self._held = contextlib.nullcontext if stop is None else stop.held

    def __enter__(self) -> Launcher:
        """Start all processes."""
        try:
            self._begin()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes: workers leave after their step, and save."""
        self.end()

    def wait(self) -> Iterator[None]:
        """Yield now and then until there is nothing left to do.

        Raises:
            EnvironmentFaultError: the processes cannot be kept running.
        """
        while not self._over():
            yield
            time.sleep(_POLL_SECONDS)

    def _begin(self) -> None:
        if self.has_chief:
            address = self.address or f"127.0.0.1:{_free_port()}"
            check_free(address)
            with self._held():
                self._chief = self._start("chief", address, "chief", [])
        else:
            assert self.address is not None, "there is a chief somewhere"
            address = self.address
        # keras-tuner takes any name with "chief" in it for the chief's.
        host = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:40].lower().replace("chief", "c")
        names = [f"worker{i}" if self.has_chief else f"{host}-{os.getpid()}-{i}"
                 for i in range(self.workers)]  # fmt: skip
        self._training = []
        for i, name in enumerate(names):
            with self._held():
                self._training.append(self._start("worker", address, name, self.cpus[i]))

    def _start(self, kind: str, address: str, name: str, cpus: list[int]) -> _Process:
        left = None if self.deadline == math.inf else max(0.0, self.deadline - time.monotonic())
        role = Role(kind=kind, folder=str(self.folder.path), address=address, name=name,
                    seconds=left, cpus=cpus, patience=self.patience)  # fmt: skip
        return self._spawn(role)

    def _spawn(self, role: Role) -> _Process:
        log = self.folder.path / "workers" / f"{role.name}.log"
        make_folder(log.parent)
        threads = {key: str(len(role.cpus)) for key in _THREADS} if role.cpus else {}
        try:
            with log.open("ab") as stream:
                running = subprocess.Popen(
                    [sys.executable, "-P", "-m", "kerasnet.tune.process"],
                    stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT,
                    # Its own session, so that Ctrl-C comes to this process alone.
                    start_new_session=True,
                    env={**os.environ, **threads, "PYTHONUNBUFFERED": "1"},
                )  # fmt: skip
        except OSError as error:
            raise EnvironmentFaultError(f"{role.name} cannot be started: {error}") from error
        assert running.stdin is not None
        # It stays open: the process ends when this one does.
        with contextlib.suppress(OSError):
            running.stdin.write(role.model_dump_json().encode() + b"\n")
            running.stdin.flush()
        return _Process(role, log, running)

    # ------------------------------------------------------------------------ watching

    def _over(self) -> bool:
        """Look at every process once; start again what was lost."""
        chief, code = self._chief, self._chief.code if self._chief else None
        if chief is not None and code is not None:
            if code == 0:
                # Nothing is left to do for workers that have not been told so yet.
                return True
            self._lost(chief, code)
            # A new chief gives out again what was under way, so nobody must be at it.
            self._end_workers()
            self._begin()
            return False
        # Asked once: whoever is lost between two answers would count as done by the second.
        codes = [process.code for process in self._training]
        for i, code in enumerate(codes):
            if code:
                self._lost(self._training[i], code)
                # Under its old name it is given the trial that it was at.
                role = self._training[i].role
                with self._held():
                    self._training[i] = self._start("worker", role.address, role.name, role.cpus)
        # Where there is an address, workers on other machines may still train.
        return all(code == 0 for code in codes) and (chief is None or self.address is None)

    def _lost(self, process: _Process, code: int) -> None:
        """Count a process that ended by itself.

        Raises:
            KerasnetError: it said why; no other would get further.
            EnvironmentFaultError: such losses lead nowhere.
        """
        name = process.role.name
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        for kind in (BadInputError, EnvironmentFaultError):
            if code == kind.exit_code:
                raise kind(f"{name} {how}:{process.said()}")
        state = self._progress()
        self._losses = self._losses + 1 if state == self._state else 1
        self._state = state
        # Each worker may be at a trial that kills it, until that trial counts as failed.
        if self._losses > MAX_LOSSES * max(1, self.workers):
            raise EnvironmentFaultError(
                f"{name} {how}, the {self._losses}th process in a row without any trial getting "
                f"further; {process.log} ends with:{process.said()}"
            )

    def _progress(self) -> str:
        """Return what changes when any trial gets further."""
        steps = [trial.state for trial in self.folder.records()]
        found = sorted(str(f) for f in self.folder.path.glob("trials/*/checkpoints/step-*"))
        return "\n".join([*steps, *found])

    # ------------------------------------------------------------------------ ending

    def end(self) -> None:
        """End what still runs, the workers first; a process that does not is killed."""
        self._end_workers()
        if self._chief is not None:
            _end([self._chief])

    def _end_workers(self) -> None:
        _end(self._training)


def _end(processes: list[_Process]) -> None:
    for process in processes:
        if process.code is None:
            process.running.terminate()
    until = time.monotonic() + GRACE_SECONDS
    try:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.running.wait(max(0.1, until - time.monotonic()))
    finally:
        # Also where a second Ctrl-C ends the waiting.
        for process in processes:
            if process.code is None:
                process.running.send_signal(signal.SIGKILL)
                process.running.wait()
            _close(process.running.stdin)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _shares(workers: int, threads: int | None) -> list[list[int]]:
    """Return each worker's processors: `threads` of them, the same for two only where they lack."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(workers)]
    cpus = sorted(os.sched_getaffinity(0))
    each = min(threads or max(1, len(cpus) // max(1, workers)), len(cpus))
    return [[cpus[(i * each + k) % len(cpus)] for k in range(each)] for i in range(workers)]
