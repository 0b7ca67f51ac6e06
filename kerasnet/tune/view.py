"""Showing a search while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kerasnet.errors import KerasnetError
from kerasnet.progress import duration
from kerasnet.tune.records import Search, SearchFolder, Trial, short_names, shown_value
from kerasnet.tune.search import publish, snapshot

_SECONDS = 1.0
_MOST_ROWS = 25


class View:
    """Shows a search folder's state for as long as it is entered.

    Args:
        folder: the search's.
        console: where to.
        epochs: whether plain lines tell of every epoch, where nobody else does.
        writes: whether what was found is also written down whenever a trial has ended.
    """

    def __init__(
        self, folder: SearchFolder, console: Console, epochs: bool = True, writes: bool = True
    ) -> None:
        self.folder, self.console, self.epochs, self.writes = folder, console, epochs, writes
        self._asked = folder.asked
        self._known: dict[str, Trial] = {t.trial: t for t in folder.records() if t.ended}
        self._began, self._before = time.monotonic(), len(self._known)
        self._written = self._before
        self._stop = threading.Event()

    def __enter__(self) -> View:
        """Begin to look."""
        self._live = (
            Live(console=self.console, transient=True, refresh_per_second=1)
            if self.console.is_terminal
            else None
        )
        if self._live is not None:
            self._live.start()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Show the last state and stop."""
        self._stop.set()
        self._thread.join()
        self._look()
        if self._live is not None:
            self._live.stop()

    def _loop(self) -> None:
        while not self._stop.wait(_SECONDS):
            self._look()

    def _look(self) -> None:
        # A file that is damaged or gone is told of by whoever needs it.
        with contextlib.suppress(KerasnetError, OSError):
            found = snapshot(self.folder, self._asked)
            ended = sum(trial.ended for trial in found.trials)
            if self.writes and ended != self._written:
                publish(self.folder, self._asked)
                self._written = ended
            if self._live is not None:
                self._live.update(self._picture(found))
            else:
                self._lines(found)

    # ------------------------------------------------------------------------ plain lines

    def _lines(self, found: Search) -> None:
        for trial in found.trials:
            before = self._known.get(trial.trial)
            if before is None or (before.state, before.epochs) != (trial.state, trial.epochs):
                text = self._change(found, trial, before)
                if text:
                    self.console.print(f"trial {trial.trial}: {text}", highlight=False,
                                       markup=False, soft_wrap=True)  # fmt: skip
                self._known[trial.trial] = trial

    def _change(self, found: Search, trial: Trial, before: Trial | None) -> str | None:
        if before is None and not trial.ended:
            values = ", ".join(
                f"{short} {shown_value(trial.values[path])}"
                for path, short in short_names(trial.values).items()
            )
            goes_on = f", goes on with trial {trial.continues}" if trial.continues else ""
            return f"{values}{goes_on}"
        if trial.ended:
            score = "" if trial.val_accuracy is None else f", val accuracy {trial.val_accuracy:.4f}"
            why = f" ({trial.error})" if trial.error else ""
            return f"{trial.state}{score}, {duration(trial.seconds)}{why}; {self._rest(found)}"
        if trial.state == "running" and trial.epochs and self.epochs:
            return f"epoch {trial.epochs}, val accuracy {trial.val_accuracy or 0.0:.4f}"
        return None

    def _rest(self, found: Search) -> str:
        best = f"best {found.best.val_accuracy:.4f}, " if found.best else ""
        return f"{best}{self._ended(found)} ended, ETA {duration(self._eta(found))}"

    @staticmethod
    def _ended(found: Search) -> str:
        ended = sum(trial.ended for trial in found.trials)
        return f"{ended}/{found.planned}" if found.planned else str(ended)

    def _eta(self, found: Search) -> float:
        done = sum(trial.ended for trial in found.trials) - self._before
        if not found.planned or done < 1:
            return math.inf
        left = max(0, found.planned - done - self._before)
        return (time.monotonic() - self._began) / done * left

    # ------------------------------------------------------------------------ on a terminal

    def _picture(self, found: Search) -> RenderableType:
        title = f"{found.model} on {found.dataset}: {found.algorithm} over {found.space}"
        tails = [
            Text(f"{file.stem}: {line}", style="dim", no_wrap=True, overflow="ellipsis")
            for file in sorted(self.folder.path.glob("workers/*.log"))
            if file.stem != "chief" and (line := _last_line(file))
        ]
        shown = _shown(found.trials)
        parts: list[RenderableType] = [
            Text(title, style="bold"), _table(found, shown), *tails, Text(self._rest(found))
        ]  # fmt: skip
        if len(shown) < len(found.trials):
            parts.insert(2, Text(f"… and {len(found.trials) - len(shown)} more", style="dim"))
        return Group(*parts)


def _shown(trials: list[Trial]) -> list[Trial]:
    """Return the trials that a screen has room for: those under way, and the best."""
    under_way = [trial for trial in trials if not trial.ended]
    ended = sorted((t for t in trials if t.ended), key=_score, reverse=True)
    return [*under_way, *ended][:_MOST_ROWS]


def _score(trial: Trial) -> float:
    return -1.0 if trial.val_accuracy is None else trial.val_accuracy


def columns(found: Search) -> list[str]:
    """Return the headers of a table of trials."""
    names = short_names(_paths(found))
    return ["trial", *names.values(), "val accuracy", "best epoch", "epochs", "time", "state"]


def cells(found: Search, trial: Trial) -> list[str]:
    """Return a trial's row of a table: values, score, epochs, time and state."""
    values = [shown_value(trial.values[p]) if p in trial.values else "" for p in _paths(found)]
    accuracy = "" if trial.val_accuracy is None else f"{trial.val_accuracy:.4f}"
    took = duration(trial.seconds) if trial.ended else ""
    best = str(trial.best_epoch or "")
    return [trial.trial, *values, accuracy, best, str(trial.epochs), took, trial.state]


def _paths(found: Search) -> list[str]:
    return list(dict.fromkeys(path for trial in found.trials for path in trial.values))


def _table(found: Search, trials: list[Trial]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    header = columns(found)
    for name in header:
        table.add_column(name, justify="left" if name == header[-1] else "right")
    best = found.best.trial if found.best else None
    for trial in trials:
        row = [Text(cell) for cell in cells(found, trial)]
        table.add_row(*row, style="green" if trial.trial == best else None)
    return table


def _last_line(file: Path) -> str:
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - 2000))
        lines = stream.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""
