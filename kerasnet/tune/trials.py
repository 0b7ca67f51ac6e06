"""Training one trial of a search in its run folder, and writing down what became of it."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_tuner
from rich.console import Console

from kerasnet import schema
from kerasnet.config import with_values
from kerasnet.errors import (
    BadInputError,
    DivergedError,
    EnvironmentFaultError,
    InterruptedRunError,
    InUseError,
    KerasnetError,
    OutOfMemoryFaultError,
    OutOfTimeError,
)
from kerasnet.files import locked, make_folder
from kerasnet.runs import Run, create_run
from kerasnet.train import fit
from kerasnet.tune.records import OBJECTIVE, SearchFolder, Trial
from kerasnet.tune.space import apply, point

# A process that dies so often without getting any further will die of this trial again.
MAX_ATTEMPTS = 5
# A median of fewer curves says little.
MIN_CURVES = 4
_WAIT_SECONDS = 2.0
_END = {"state", "epochs", "error", "exit_code"}


class Hopeless(Exception):  # noqa: N818
    """Other trials were better after as many epochs."""


class TrialRunner:
    """Trains trials as an oracle gives them out.

    Args:
        folder: the search's.
        console: where training says how it goes.
        deadline: of `time.monotonic`; training is left then, after a step.

    Attributes:
        fault: why the search as a whole cannot go on here, where that is so.
    """

    def __init__(self, folder: SearchFolder, console: Console, deadline: float = math.inf) -> None:
        self.folder, self.asked, self.console = folder, folder.asked, console
        self.deadline = deadline
        self.fault: KerasnetError | None = None
        self._curves: dict[str, list[float]] = {}

    def __call__(self, name: str, drawn: Mapping[str, Any]) -> float:
        """Train a trial, or what is left of it, and return its validation accuracy, a fraction.

        Raises:
            FailedTrialError: it cannot be trained.
            FatalError: the search cannot go on here; `fault` says why.
        """
        if self.asked.base.precision.requested == "auto":
            # Who joined while the first machine still measured it has read that it is not known.
            self.asked = self.folder.asked
        try:
            ended = self._ended(name, drawn)
        except KerasnetError as error:
            self.fault = error
            raise keras_tuner.errors.FatalError(str(error)) from error
        if ended.state == "failed" and self.asked.algorithm != "hyperband":
            raise keras_tuner.errors.FailedTrialError(ended.error)
        # A diverged one gets the worst score, so that a search moves away from its values. A failed
        # one of hyperband gets it too: a round begins once those before it have scores.
        return ended.val_accuracy or 0.0

    def _ended(self, name: str, drawn: Mapping[str, Any]) -> Trial:
        place, waits = make_folder(self.folder.path / "records"), False
        while True:
            try:
                # Nobody may write its record while another process trains it.
                with locked(place, "trained", name):
                    return self._ended_here(name, drawn)
            except InUseError as error:
                if not waits:
                    self.console.print(f"trial {name}: {error}", markup=False, highlight=False)
                waits = True
                self._wait()

    def _ended_here(self, name: str, drawn: Mapping[str, Any]) -> Trial:
        known = self.folder.record(name)
        if known is not None and known.ended:
            return known
        trial = self._begun(name, drawn, known)
        try:
            if trial.attempts > MAX_ATTEMPTS:
                raise BadInputError(
                    f"the process that trained it was lost {MAX_ATTEMPTS} times in a row (out of "
                    "memory?)"
                )
            ended = self._trained(trial)
        except (OutOfTimeError, InterruptedRunError, InUseError):
            self._left(trial)
            raise
        except Exception as error:  # noqa: BLE001 - a search goes on without this trial
            ended = self._failed(trial, error)
        self.folder.write_record(ended)
        return ended

    def _wait(self) -> None:
        if time.monotonic() + _WAIT_SECONDS >= self.deadline:
            raise OutOfTimeError(f"{self.folder.path}: the time is up")
        time.sleep(_WAIT_SECONDS)

    def _begun(self, name: str, drawn: Mapping[str, Any], known: Trial | None) -> Trial:
        values = point(self.asked.space, drawn)
        epochs = int(drawn["tuner/epochs"] if "tuner/epochs" in drawn else self._epochs(values))
        continues = drawn.get("tuner/trial_id")
        before = self.folder.record(continues) if continues else None
        runs = before.runs if before else [
            str(self.folder.run(name, k).path.relative_to(self.folder.path))
            for k in range(self.asked.executions)
        ]  # fmt: skip
        found = sum(run.step for run in self._runs(runs))
        trial = Trial(
            trial=name, values=values, state="running", epochs=epochs, runs=runs,
            continues=continues, step=found,
            attempts=1 if known is None or found > known.step else known.attempts + 1,
        )  # fmt: skip
        self.folder.write_record(trial)
        return trial

    def _epochs(self, values: Mapping[str, Any]) -> int:
        """Return a point's epochs, which a space may vary."""
        try:
            return apply(self.asked.base, self.asked.space, values).recipe.epochs
        except BadInputError:
            # It is told of where the trial would begin.
            return self.asked.base.recipe.epochs

    def _runs(self, runs: list[str]) -> list[Run]:
        return [Run(self.folder.path / run) for run in runs]

    def _left(self, trial: Trial) -> None:
        """Note that a trial was left on purpose: the process was not lost."""
        state = {"state": "interrupted", "attempts": trial.attempts - 1}
        self.folder.write_record(trial.model_copy(update=state))

    def _trained(self, trial: Trial) -> Trial:
        before = self.folder.record(trial.continues) if trial.continues else None
        if before is not None and before.state in ("diverged", "failed"):
            return trial.model_copy(update=before.model_dump(include=_END))
        scores: list[float] = []
        seconds, best = -self._seconds_before(trial), None
        for execution, run in enumerate(self._runs(trial.runs)):
            summary = self._fit(trial, run, execution)
            if summary[OBJECTIVE] is None:
                raise BadInputError("it had no validation images to be scored on")
            scores.append(summary[OBJECTIVE])
            seconds += summary["seconds"]
            best = best or _best_epoch(run)
        return trial.model_copy(
            update={
                "state": "finished", "val_accuracy": statistics.fmean(scores), "scores": scores,
                "seconds": max(0.0, seconds), "best_epoch": best,
                "data_remark": summary.get("data_remark"),
            }
        )  # fmt: skip

    def _seconds_before(self, trial: Trial) -> float:
        """Return what its runs had taken when it began."""
        before = self.folder.record(trial.continues) if trial.continues else None
        return before.seconds + self._seconds_before(before) if before else 0.0

    def _fit(self, trial: Trial, run: Run, execution: int) -> dict[str, Any]:
        config = self._config(trial, run, execution)
        if not (run.path / "config.yaml").is_file():
            create_run(run.path, config)
        elif run.done(config):
            return run.summary()
        keras.backend.clear_session(free_memory=True)
        left = None if self.deadline == math.inf else self.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise OutOfTimeError(f"{run.path}: the time is up")
        watch = self._watch(trial) if execution == 0 else None
        if watch is not None and (rows := run.metrics()):
            # A process that was lost may not have come to it.
            watch(rows[-1])
        return fit(
            run, config=config, console=self.console, test=False, on_epoch=watch, seconds=left
        )

    def _config(self, trial: Trial, run: Run, execution: int) -> schema.RunConfig:
        base = self.asked.base
        if (run.path / "config.yaml").is_file():
            config = run.config
        else:
            config = apply(base, self.asked.space, trial.values)
            config = config.model_copy(update={"seed": (base.seed + execution) % 2**31})
        if self.asked.algorithm != "hyperband":
            return config
        # A schedule that were stretched each time would not be the one that is searched.
        longest = {"recipe.epochs": trial.epochs, "horizon": base.recipe.epochs}
        return with_values(config, longest)

    # ------------------------------------------------------------------------ what goes wrong

    def _failed(self, trial: Trial, error: Exception) -> Trial:
        """Return the record of a trial that could not be trained to its end.

        Raises:
            KerasnetError: no other trial could be trained either.
        """
        run = self._runs(trial.runs)[0]
        rows = run.metrics()
        update: dict[str, Any] = {"epochs": len(rows), "error": str(error), "exit_code": 1}
        if isinstance(error, Hopeless):
            update |= {"state": "stopped", "val_accuracy": rows[-1][OBJECTIVE]}
            update |= {"best_epoch": _best_epoch(run), "scores": [rows[-1][OBJECTIVE]]}
        elif isinstance(error, DivergedError):
            update["state"] = "diverged"
        elif isinstance(error, EnvironmentFaultError) and not isinstance(
            error, OutOfMemoryFaultError
        ):
            self._left(trial)
            raise error
        else:
            update["state"] = "failed"
            if not isinstance(error, KerasnetError):
                self.console.print(traceback.format_exc(), markup=False, highlight=False)
                update["error"] = f"{type(error).__name__}: {error}"
        if isinstance(error, KerasnetError):
            update["exit_code"] = error.exit_code
        timing = [row for run in self._runs(trial.runs) for row in run.timing()]
        seconds = sum(row["seconds"] or 0.0 for row in timing) - self._seconds_before(trial)
        update["seconds"] = max(0.0, seconds)
        self.console.print(f"{update['state']}: {update['error']}", markup=False, highlight=False)
        return trial.model_copy(update=update)

    # ------------------------------------------------------------------------ early stopping

    def _watch(self, trial: Trial) -> Callable[[dict[str, Any]], None] | None:
        """Return what looks at a trial after each epoch, where hopeless ones end early."""
        if not self.asked.stop_early or self.asked.algorithm == "hyperband":
            return None
        run = self._runs(trial.runs)[0]

        def look(row: dict[str, Any]) -> None:
            epoch = int(row["epoch"])
            # Also of epochs that other processes trained, before this one went on.
            before = [r for r in run.metrics() if (r["epoch"] or 0) < epoch]
            best = max(r[OBJECTIVE] or 0.0 for r in [*before, row])
            median = self._median(epoch)
            if median is not None and best < median and epoch < trial.epochs:
                raise Hopeless(
                    f"stopped after epoch {epoch}: its best validation accuracy so far, "
                    f"{best:.4f}, is below {median:.4f}, the median of the other trials"
                )

        return look

    def _median(self, epoch: int) -> float | None:
        """Return the median over ended trials of their mean accuracy up to an epoch.

        The median stopping rule of Golovin et al. 2017, section 3.2.2.
        """
        for other in self.folder.records():
            if other.state in ("finished", "stopped") and other.trial not in self._curves:
                self._curves[other.trial] = [score for _, score in self.folder.curve(other)]
        means = [statistics.fmean(c[:epoch]) for c in self._curves.values() if len(c) >= epoch]
        return statistics.median(means) if len(means) >= MIN_CURVES else None


def _best_epoch(run: Run) -> int | None:
    rows = [row for row in run.metrics() if row[OBJECTIVE] is not None]
    best = max(rows, key=lambda row: row[OBJECTIVE] or 0.0, default=None)
    return int(best["epoch"] or 0) if best else None
