"""Searches with keras-tuner in which every trial is a run folder."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kerasnet import schema
from kerasnet.config import resolve, with_values
from kerasnet.document import to_yaml
from kerasnet.errors import BadInputError, DivergedError, KerasnetError, did_you_mean
from kerasnet.files import check_new, make_folder, write_atomically
from kerasnet.progress import duration
from kerasnet.runs import create_run
from kerasnet.summary import table
from kerasnet.tune.space import hyperparameters

ALGORITHMS = ("random",)
OBJECTIVE = "val_accuracy"


@dataclass(frozen=True)
class Trial:
    """One trained point of a search; `val_accuracy` is a fraction, after the last epoch."""

    trial: str
    values: dict[str, Any]
    state: str
    val_accuracy: float
    seconds: float
    run: str


@dataclass(frozen=True)
class Search:
    """What a search found; the trials are in the order they were run."""

    model: str
    dataset: str
    space: str
    algorithm: str
    seed: int
    trials: tuple[Trial, ...]
    command: str

    @property
    def best(self) -> Trial:
        """The trial of the highest validation accuracy; the first of equals."""
        return max(self.trials, key=lambda t: t.val_accuracy)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `kerasnet tune --json` prints and `search.json` holds."""
        plain = asdict(self)
        return {**plain, "trials": list(plain["trials"]), "best": asdict(self.best)}

    def table(self) -> str:
        """Return the trials, best first, as text."""
        paths = list(self.best.values)
        header = ("trial", *(p.rpartition(".")[2] for p in paths), "val accuracy", "time", "state")
        rows = [
            (t.trial, *(f"{t.values[p]:.3g}" if isinstance(t.values[p], float) else str(t.values[p])
                        for p in paths),
             f"{t.val_accuracy:.4f}", duration(t.seconds), t.state)
            for t in sorted(self.trials, key=lambda t: -t.val_accuracy)
        ]  # fmt: skip
        return table(header, rows, header[1:-1])


def check_search(algorithm: str, out: str | os.PathLike[str]) -> None:
    """Check what can be checked of a search before TensorFlow loads.

    Raises:
        BadInputError: the algorithm is unknown, or the folder is in use.
    """
    if algorithm not in ALGORITHMS:
        raise BadInputError(
            f"there is no algorithm '{algorithm}'. {did_you_mean(algorithm, ALGORITHMS)}"
        )
    check_new(out)


def search(
    config: schema.RunConfig,
    space: schema.Space,
    *,
    space_name: str,
    algorithm: str = "random",
    trials: int,
    out: str | os.PathLike[str],
    console: Console,
) -> Search:
    """Train `trials` points of a space and return them; never reads the test set.

    Args:
        config: what every trial starts from; its seed also draws the points.
        space: the fields that vary.
        space_name: how the user named the space.
        algorithm: `random` (Bergstra & Bengio 2012).
        trials: how many points.
        out: a new folder: `trials/<n>/` are run folders, `search.json` the outcome, `best.yaml`
            the best trial's configuration.
        console: where progress goes.

    Raises:
        BadInputError: the algorithm is unknown or the folder is not empty.
    """
    check_search(algorithm, out)
    folder = make_folder(out)
    runner = _Runner(config, folder, console, trials)
    runner.search(space)
    done = runner.done
    if not any(trial.state == "finished" for trial in done):
        raise DivergedError(f"{folder}: every trial diverged; search lower learning rates")
    best = max(done, key=lambda t: t.val_accuracy)
    write_atomically(folder / "best.yaml", to_yaml(with_values(config, best.values)).encode())
    found = Search(
        config.architecture.name, config.data.name, space_name, algorithm, config.seed,
        tuple(done), fit_command(config, best, folder),
    )  # fmt: skip
    text = json.dumps(found.to_json(), indent=2) + "\n"
    write_atomically(folder / "search.json", text.encode())
    return found


class _Runner:
    """Trains points as run folders and records them in `done`."""

    def __init__(
        self, config: schema.RunConfig, folder: Path, console: Console, trials: int
    ) -> None:
        self.config, self.folder, self.console, self.trials = config, folder, console, trials
        self.done: list[Trial] = []
        self.failures: list[KerasnetError] = []

    def search(self, space: schema.Space) -> None:
        """Train every trial.

        keras-tuner swallows all errors but its own fatal one, which here stands for the first
        that the user must see.
        """
        import keras_tuner

        tuner = make_tuner(space, self.trials, self.config.seed, self.folder, self.train)
        try:
            tuner.search(verbose=0)
        except keras_tuner.errors.FatalError:
            raise self.failures[0] from None
        if not self.done:
            raise BadInputError(f"{self.folder}: keras-tuner drew no point of this space")

    def train(self, trial: str, values: dict[str, Any]) -> float:
        """Train one point and return its validation accuracy, a fraction."""
        import keras
        import keras_tuner

        keras.backend.clear_session(free_memory=True)
        said = ", ".join(
            f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}"
            for path, value in values.items()
        )
        number = f"trial {len(self.done) + 1}/{self.trials}"
        self.console.print(f"{number}: {said}", highlight=False, style="bold")
        try:
            finished = self._train(trial, values)
        except KerasnetError as error:
            self.failures.append(error)
            raise keras_tuner.errors.FatalError(str(error)) from error
        self.done.append(finished)
        return finished.val_accuracy

    def _train(self, trial: str, values: dict[str, Any]) -> Trial:
        from kerasnet.train import fit

        run = create_run(self.folder / "trials" / trial, with_values(self.config, values))
        try:
            summary = fit(run, console=self.console, test=False)
        except DivergedError as error:
            # The worst possible score, so that a search moves away from such rates.
            self.console.print(f"diverged: {error}", highlight=False, markup=False)
            return Trial(trial, values, "diverged", 0.0, 0.0, str(run.path))
        if summary[OBJECTIVE] is None:
            raise BadInputError(f"{run.path}: this trial had no validation images to be scored on")
        return Trial(
            trial, values, "finished", summary[OBJECTIVE], summary["seconds"], str(run.path)
        )


def make_tuner(
    space: schema.Space, trials: int, seed: int, folder: Path,
    train: Callable[[str, dict[str, Any]], float],
) -> Any:  # fmt: skip
    """Return a keras-tuner random search whose trials are trained by a function.

    Args:
        space: the fields that vary.
        trials: how many points are drawn.
        seed: of the drawing.
        folder: where keras-tuner keeps its state.
        train: takes a trial's name and its values by path, and returns its score.
    """
    import keras_tuner

    class RunFolderTuner(keras_tuner.RandomSearch):  # type: ignore[misc]
        """A tuner whose trials are run folders."""

        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            return {OBJECTIVE: train(trial.trial_id, dict(trial.hyperparameters.values))}

    return RunFolderTuner(
        objective=keras_tuner.Objective(OBJECTIVE, "max"),
        max_trials=trials,
        # keras-tuner takes seed 0 for no seed.
        seed=seed + 1,
        hyperparameters=hyperparameters(space),
        directory=str(folder),
        project_name="keras-tuner",
    )


def fit_command(config: schema.RunConfig, best: Trial, folder: Path) -> str:
    """Return the shell line that trains the best point again, with the test set at its end.

    It names model and options where that comes to the same configuration, else `best.yaml`.
    """
    rate = best.values.get("recipe.optimizer.learning_rate")
    again = shlex.join(["kerasnet", "fit", "--config", str(folder / "best.yaml")])
    if rate is None or len(best.values) > 1:
        return again
    name, requested = config.architecture.name, config.precision.requested
    overrides = {"recipe.optimizer.learning_rate": rate, "recipe.epochs": config.recipe.epochs}
    options: dict[str, Any] = {
        "recipe": config.recipe_name,
        "dataset": config.data.name,
        "data_dir": config.data.data_dir,
        "seed": config.seed,
        "limit_train": config.data.limit_train,
    }
    try:
        made = resolve(name, precision_request=requested, overrides=overrides, **options)
    except KerasnetError:
        return again  # the registry that was searched is not the built-in one
    if made != with_values(config, best.values):
        return again
    words = ["kerasnet", "fit", name]
    given = {**options, "precision": requested, "epochs": config.recipe.epochs,
             "learning_rate": repr(rate)}  # fmt: skip
    usual = {"seed": 0, "precision": "auto"}
    for option, value in given.items():
        if value is not None and value != usual.get(option):
            words += [f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(words)
