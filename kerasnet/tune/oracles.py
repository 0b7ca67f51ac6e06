"""keras-tuner's algorithms with a state that survives being killed, and the tuner that asks them.

keras-tuner's own files may be left half-written, know of trials that were never begun, or forget
where a grid was. What it calls an oracle draws the points and keeps their scores.
"""

from __future__ import annotations

import functools
import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import base_tuner, trial

from kerasnet import schema
from kerasnet.errors import (
    BadInputError,
    EnvironmentFaultError,
    KerasnetError,
    OutOfTimeError,
)
from kerasnet.files import write_atomically
from kerasnet.tune.records import OBJECTIVE
from kerasnet.tune.search import HYPERBAND_FACTOR
from kerasnet.tune.space import hyperparameters

Drawn = dict[str, Any]
# keras-tuner would end a search, and with several processes hang, after a few failures in a row.
_NEVER = 2**31
_IDLE_SECONDS = 0.5


def _synchronized(method: Callable[..., Any]) -> Callable[..., Any]:
    """As keras-tuner's, but an error sets `fault` and does not keep the lock."""

    @keras_tuner.synchronized  # type: ignore[untyped-decorator]
    def held(self: Durable, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs), None
        except Exception as error:  # noqa: BLE001 - raised once the lock is free
            self.fault = (
                error if isinstance(error, KerasnetError)
                else EnvironmentFaultError(f"keras-tuner: {error!r}")
            )  # fmt: skip
            return None, error

    @functools.wraps(method)
    def call(self: Durable, *args: Any, **kwargs: Any) -> Any:
        found, error = held(self, *args, **kwargs)
        if error is not None:
            raise error
        return found

    return call


class Durable(keras_tuner.Oracle):  # type: ignore[misc]
    """An oracle whose files are there whole, and which says when it has no more to give out.

    Attributes:
        deadline: of `time.monotonic`; after it no trial is begun.
        over: whether somebody was told that there is nothing left to do.
        fault: what went wrong in a call from another process.
    """

    deadline, over = math.inf, False
    fault: KerasnetError | None = None
    trials: dict[str, Any]
    ongoing_trials: dict[str, Any]
    tuner_ids: set[str]
    _retry_queue: list[str]
    _tried_so_far: set[str]

    @_synchronized
    def create_trial(self, tuner_id: str) -> Any:
        """Return the next trial for a tuner, as keras-tuner does."""
        if time.monotonic() >= self.deadline and tuner_id not in self.ongoing_trials:
            self.tuner_ids.discard(tuner_id)
            found = trial.Trial(self.get_space(), status=trial.TrialStatus.STOPPED)
        else:
            found = super().create_trial(tuner_id)
        if found.status == trial.TrialStatus.STOPPED:
            self._stopped(tuner_id, found)
        return found

    @_synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, Any], step: int = 0) -> Any:
        """Record a trial's score, as keras-tuner does."""
        return super().update_trial(trial_id, metrics, step=step)

    def _stopped(self, tuner_id: str, found: Any) -> None:
        # Whoever trains may be lost, and somebody must be there to go on with its trial.
        if self.ongoing_trials and time.monotonic() < self.deadline:
            found.status = trial.TrialStatus.IDLE
            self.tuner_ids.add(tuner_id)
        else:
            self.over = True

    @_synchronized
    def end_trial(self, ended: Any) -> None:
        """Record a trial's end, as keras-tuner does."""
        if ended.trial_id in self.end_order:
            # A tuner that was thought to be lost was not, and another went on with its trial.
            self._leave(ended.trial_id)
            return
        super().end_trial(ended)
        self._leave(ended.trial_id)

    def _leave(self, trial_id: str) -> None:
        """Let nobody go on with a trial that has ended."""
        under_way = self.ongoing_trials.items()
        self.ongoing_trials = {key: t for key, t in under_way if t.trial_id != trial_id}
        self._retry_queue = [key for key in self._retry_queue if key != trial_id]

    @_synchronized
    def give_up(self, tuner_id: str) -> None:
        """Let another tuner go on with the trial of one that is lost."""
        self.tuner_ids.discard(tuner_id)
        lost = self.ongoing_trials.pop(tuner_id, None)
        if lost is not None:
            self._retry_queue.append(lost.trial_id)
            self.save()

    def _random_values(self) -> Drawn | None:
        """Draw a point that was not tried; None where there is none left."""
        drawn: Drawn | None = super()._random_values()
        if drawn is None:
            # keras-tuner gives up after some draws; here all points are looked at.
            left = [values for values in self._points() if not self._duplicate(values)]
            drawn = random.Random(self._seed_state).choice(left) if left else None  # noqa: S311
        return drawn

    def _points(self, *chosen: Any) -> Iterator[Drawn]:
        """Yield the points of the grid, in order, that begin with some values.

        None stands for one that is not drawn.
        """
        space = self.hyperparameters.space
        drawn = keras_tuner.HyperParameters()
        for parameter, value in zip(space, chosen, strict=False):
            drawn.merge([parameter])
            if drawn.is_active(parameter):
                drawn.values[parameter.name] = value
        if len(chosen) == len(space):
            yield dict(drawn.values)
            return
        drawn.merge([space[len(chosen)]])
        active = drawn.is_active(space[len(chosen)])
        for value in space[len(chosen)].values if active else [None]:
            yield from self._points(*chosen, value)

    def save(self) -> None:
        """Write the state but for the trials."""
        _write(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, saved: Any) -> None:
        _write(str(Path(self._get_trial_dir(saved.trial_id)) / "trial.json"), saved.get_state())

    @property
    def saved(self) -> bool:
        """Whether there is a state to read."""
        return Path(self._get_oracle_fname()).is_file()

    def reload(self) -> None:
        """Read the state and the trials; those under way are given out again.

        Raises:
            BadInputError: a file is damaged.
        """
        try:
            super().reload()
            # In the order they were begun, for a point may depend on it. One whose file is there
            # and that the state does not know of is drawn again.
            self.trials = {key: self.trials[key] for key in self.start_order}
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise BadInputError(
                f"{self._project_dir}: keras-tuner's state is damaged: {error}. Begin a new search "
                "in another folder"
            ) from error
        # An ended trial leaves those under way only after the state was written.
        ended = set(self.end_order)
        self._retry_queue = [key for key in dict.fromkeys(self._retry_queue) if key not in ended]


def _write(file: str, state: Any) -> None:
    write_atomically(Path(file), json.dumps(state).encode())


class RandomOracle(Durable, keras_tuner.oracles.RandomSearchOracle):  # type: ignore[misc]
    """Points drawn independently (Bergstra & Bengio 2012)."""


class BayesianOracle(Durable, keras_tuner.oracles.BayesianOptimizationOracle):  # type: ignore[misc]
    """Points by a Gaussian process's upper confidence bound (Srinivas et al. 2010)."""

    def populate_space(self, trial_id: str) -> Drawn:
        """Draw a point; the same one in a search that was interrupted before."""
        self._random_state = np.random.RandomState((self.seed + len(self.trials)) % 2**32)
        with warnings.catch_warnings():
            # That a length scale is at its bound is no user's concern.
            warnings.simplefilter("ignore")
            drawn: Drawn = super().populate_space(trial_id)
        if drawn["values"] and self._duplicate(drawn["values"]):
            drawn = self._random_populate_space()
        return drawn


class HyperbandOracle(Durable, keras_tuner.oracles.HyperbandOracle):  # type: ignore[misc]
    """Many short trainings of which the best are continued (Li et al. 2018)."""

    def _random_values(self) -> Drawn | None:
        """Draw a point; one that was tried before where there is no other.

        Without it a bracket of more trials than there are points would never be full.
        """
        drawn = super()._random_values()
        if drawn is None:
            tried, self._tried_so_far = self._tried_so_far, set()
            drawn = super()._random_values()
            self._tried_so_far = tried
        return drawn


class GridOracle(Durable):
    """Every point of a grid, in order."""

    def populate_space(self, trial_id: str) -> Drawn:
        """Return the first point that was not tried."""
        for values in self._points():
            if not self._duplicate(values):
                return {"status": trial.TrialStatus.RUNNING, "values": values}
        return {"status": trial.TrialStatus.STOPPED, "values": None}


def make_oracle(asked: schema.SearchConfig) -> Durable:
    """Return the oracle of a search."""
    common = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "seed": _seed(asked.base.seed),
        "hyperparameters": hyperparameters(asked.space),
        "max_consecutive_failed_trials": _NEVER,
    }
    if asked.algorithm == "hyperband":
        return HyperbandOracle(
            max_epochs=asked.base.recipe.epochs, factor=HYPERBAND_FACTOR, **common
        )
    kinds = {"random": RandomOracle, "bayesian": BayesianOracle, "grid": GridOracle}
    return kinds[asked.algorithm](max_trials=asked.trials, **common)


def _seed(seed: int) -> int:
    """Return what keras-tuner draws with.

    It takes 0 for no seed, and draws with its seed, the next whole number and so on: by seeds 0 and
    1, two searches would have all points but one in common.
    """
    return 1 + int(np.random.SeedSequence(seed).generate_state(1)[0]) % 2**31


class RunFolderTuner(base_tuner.BaseTuner):  # type: ignore[misc]
    """Takes points from an oracle, here or in another process, and has them trained.

    Args:
        oracle: as `make_oracle` returns it.
        folder: the search's.
        train: takes a trial's name and all that was drawn for it, and returns its score.
        deadline: of `time.monotonic`; OutOfTimeError ends the search then.
    """

    def __init__(
        self, oracle: Durable, folder: Path, train: Callable[[str, Drawn], float] | None,
        deadline: float = math.inf,
    ) -> None:  # fmt: skip
        self._train, self._idle, self._deadline = train, False, deadline
        # Without a file of its own it has nothing to reload, and says nothing about it.
        super().__init__(oracle, directory=str(folder), project_name="keras-tuner")
        oracle.verbose = 0
        if not self._is_worker() and oracle.saved:
            oracle.reload()

    def save(self) -> None:
        """Write the oracle's state, where it is this process's."""
        if not self._is_worker():
            self.oracle.save()

    def pre_create_trial(self) -> None:
        """Wait a little where there was nothing to do yet."""
        if time.monotonic() >= self._deadline:
            # The chief may have more time than this process.
            raise OutOfTimeError("the time is up")
        if self._idle:
            time.sleep(_IDLE_SECONDS)
        self._idle = True

    def on_trial_begin(self, trial: Any) -> None:
        """Note that there was something to do."""
        self._idle = False

    def _try_run_and_update_trial(self, begun: Any, *_: Any, **__: Any) -> None:
        """Run a trial and hand in its score.

        keras-tuner would take every error, also one of its own oracle, for the trial's, and print
        it.
        """
        begun.status = trial.TrialStatus.COMPLETED
        try:
            self._run_and_update_trial(begun)
        except keras_tuner.errors.FailedTrialError as error:
            begun.status, begun.message = trial.TrialStatus.FAILED, str(error)

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Train a trial and return its score."""
        assert self._train is not None, "a chief trains nothing"
        return {OBJECTIVE: self._train(trial.trial_id, dict(trial.hyperparameters.values))}
