"""One sitting of a search: processes, the view of them, and the outcome that is written down."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console

from kerasnet import backend
from kerasnet.files import locked
from kerasnet.interruption import Interruption
from kerasnet.tune.launch import Launcher
from kerasnet.tune.process import LOST_SECONDS
from kerasnet.tune.search import (
    check_outcome,
    going_on,
    publish,
    search_here,
    settle,
    tidy,
    unsettled,
)
from kerasnet.tune.view import View

if TYPE_CHECKING:
    from kerasnet.tune.records import Search, SearchFolder


def search(
    folder: SearchFolder,
    console: Console,
    *,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    deadline: float = math.inf,
    patience: float = LOST_SECONDS,
) -> Search:
    """Search until every trial has ended or time is up, and return what was found.

    The test set is never read. What was trained before, in this folder, is kept and counts.

    Args:
        folder: as `search.begin` made it, or of a search to go on with.
        console: where progress goes.
        workers: how many processes train; this one alone if not given.
        threads: processors for each worker.
        address: of the chief, `host:port`, where workers on other machines are to join.
        deadline: of `time.monotonic`.
        patience: after so many seconds without a word a process counts as lost.

    Raises:
        BadInputError: another process searches in this folder, or every trial failed.
        DivergedError: every trial diverged.
        EnvironmentFaultError: the folder cannot be written, or processes are lost over and over.
        InterruptedRunError: by Ctrl-C or SIGTERM; what was trained is kept.
    """
    complete = False
    with going_on(folder), locked(folder.path, "searched"):
        try:
            with Interruption(console) as stop:
                tidy(folder)
                if unsettled(folder) or (workers is None and address is None):
                    with console.status("loading TensorFlow"):
                        backend.load(folder.asked.base.execution.deterministic)
                        settle(folder)
                if workers is None and address is None:
                    _here(folder, console, deadline)
                else:
                    number = 1 if workers is None else workers
                    launcher = Launcher(
                        folder, number, threads=threads, address=address, deadline=deadline,
                        patience=patience, stop=stop,
                    )  # fmt: skip
                    _there(folder, launcher, console)
            # Only time can end a search that has points left.
            complete = time.monotonic() < deadline
        finally:
            found = publish(folder, complete=complete)
    check_outcome(folder, found)
    return found


def _here(folder: SearchFolder, console: Console, deadline: float) -> None:
    if not console.is_terminal:
        with View(folder, console, epochs=False):
            search_here(folder, console, deadline)
        return
    with _log(folder.path / "workers" / "training.log") as stream, View(folder, console):
        search_here(folder, Console(file=stream, width=160), deadline)


def _log(file: Path) -> IO[str]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("a", buffering=1)


def _there(folder: SearchFolder, launcher: Launcher, console: Console) -> None:
    with View(folder, console, writes=launcher.has_chief), launcher:
        for _ in launcher.wait():
            pass


def join(
    folder: SearchFolder, address: str, workers: int, threads: int | None, deadline: float,
    console: Console, patience: float = LOST_SECONDS,
) -> None:  # fmt: skip
    """Train for a chief on another machine, until it has nothing left to do.

    Args:
        folder: the search's, on a disk that all machines share.
        address: the chief's, `host:port`.
        workers: how many processes train here.
        threads: processors for each of them.
        deadline: of `time.monotonic`.
        console: where progress goes.
        patience: after so many seconds without a word from the chief it counts as lost.

    Raises:
        EnvironmentFaultError: the chief does not answer, or processes are lost over and over.
        InterruptedRunError: by Ctrl-C or SIGTERM; what was trained is kept.
    """
    again = shlex.join(["kerasnet", "tune", "--join", address, "--out", str(folder.path)])
    with going_on(folder, again), Interruption(console) as stop:
        launcher = Launcher(folder, workers, threads=threads, address=address, chief=False,
                            deadline=deadline, patience=patience, stop=stop)  # fmt: skip
        _there(folder, launcher, console)
