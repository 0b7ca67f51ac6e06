"""Telling a person, or a log file, how training goes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from kerasnet.errors import BadInputError

# Every this many steps the mean loss is printed, as the published programs do.
LINE_EVERY = 100
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(budget: str) -> float:
    """Return the seconds in 90s, 30m or 1h30m.

    Raises:
        BadInputError: it is no such duration.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([smh])", budget)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != budget or not 0 < seconds < 1e9:
        raise BadInputError(f"--budget takes 90s, 30m, 2h or 1h30m, not '{budget}'")
    return seconds


def duration(seconds: float) -> str:
    """Write seconds as 0:07, 12:30 or 2:05:00."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _passed(step: int, before: int, every: int) -> bool:
    """Whether a multiple of `every` lies after `before` and not after `step`."""
    return step // every > before // every


class Reporter:
    """Shows training steps on a console: a bar on a terminal, plain lines elsewhere.

    Steps count from 1 within an epoch. Means come from Keras as running means over the epoch; the
    loss shown is the mean over the last `LINE_EVERY` steps, recovered from two running means.
    """

    def __init__(
        self, console: Console, epochs: int, steps: int, batch_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.console, self.epochs, self.steps, self.batch_size = console, epochs, steps, batch_size
        self.clock = clock
        self.rate = 0.0
        self._bar: Progress | None = None
        self._started = False

    def epoch_begins(self, epoch: int, done: int = 0, loss: float = 0.0) -> None:
        """Start epoch `epoch`, counted from 1, or go on with it.

        Args:
            epoch: its number.
            done: steps that were done before.
            loss: sum of their losses.
        """
        self.epoch = epoch
        self._marks, self._shown = (done, loss), done
        self._last = (done, self.clock())
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn(f"epoch {epoch}/{self.epochs}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"), console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, completed=done, said="starting")

    def wants(self, step: int) -> bool:
        """Whether the values after this step are shown."""
        every = 10 if self._bar else LINE_EVERY
        return _passed(step, self._shown, every) or step == self.steps or not self._started

    def step_ended(self, step: int, loss: float, accuracy: float) -> None:
        """Show the running means after a step of this epoch."""
        now = self.clock()
        if not self._started:
            # The first step compiles the model, which says nothing about the rate of the rest.
            self._started, self._last = True, (step, now)
        done, since = self._last
        if step > done and now > since:
            self.rate = (step - done) * self.batch_size / (now - since)
        start, total = self._marks
        self._shown = step
        recent = (loss * step - total) / max(1, step - start)
        said = f"loss {recent:.4f}  accuracy {accuracy:.4f}  {self._pace(step)}"
        if self._bar:
            self._bar.update(self._task, completed=step, said=said)
        if _passed(step, start, LINE_EVERY):
            self._print(f"step {step}/{self.steps}  {said}")
            self._marks, self._last = (step, loss * step), (step, now)

    def _pace(self, step: int) -> str:
        left = (self.epochs - self.epoch) * self.steps + self.steps - step
        eta = left * self.batch_size / self.rate if self.rate else math.inf
        return f"{self.rate:,.0f} images/s  ETA {duration(eta)}"

    def _print(self, text: str, **more: Any) -> None:
        self.console.print(
            f"epoch {self.epoch}/{self.epochs}  {text}", highlight=False, soft_wrap=True, **more
        )

    def epoch_ended(self, row: dict[str, Any], seconds: float) -> None:
        """Show an epoch's row of `metrics.csv`."""
        self.close()
        shown = [
            f"{k} {row[k]:.4f}"
            for k in ("loss", "accuracy", "val_loss", "val_accuracy")
            if row.get(k) is not None
        ]
        self._print(
            f"{'  '.join(shown)}  learning rate {row['learning_rate']:.3g}  {duration(seconds)}  "
            f"{self._pace(self.steps)}",
            style="bold",
        )

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar:
            self._bar.stop()
            self._bar = None


class RateReporter:
    """Shows the steps of a range test: a bar on a terminal, a line for every tenth of it elsewhere.

    Args:
        console: where to.
        steps: of the whole test.
        clock: seconds.
    """

    def __init__(
        self, console: Console, steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self.steps, self.clock = console, steps, clock
        self._shown = 0
        self._first: tuple[int, float] | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("range test"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"), console=console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=steps, said="starting")

    def step_ended(self, step: int, rate: float, loss: float, last: bool = False) -> None:
        """Show a step, counted from 1, its learning rate and the smoothed loss; maybe the last."""
        if self._first is None:
            # The first step compiles the model, which says nothing about the rest.
            self._first = (step, self.clock())
        start, since = self._first
        pace = (self.clock() - since) / (step - start) if step > start else math.inf
        left = duration(pace * (self.steps - step))
        said = f"learning rate {rate:.3g}  loss {loss:.4f}  ETA {left}"
        if self._bar:
            self._bar.update(self._task, completed=step, said=said)
        if last or step == self.steps or _passed(step, self._shown, max(1, self.steps // 10)):
            self._shown = step
            self.console.print(
                f"range test  step {step}/{self.steps}  {said}", highlight=False, soft_wrap=True
            )

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar:
            self._bar.stop()
            self._bar = None
