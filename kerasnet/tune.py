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
from kerasnet.config import with_values
from kerasnet.document import Document, DocumentError, Problem, read, to_yaml, validate
from kerasnet.errors import BadInputError, DivergedError, did_you_mean
from kerasnet.files import shipped, write_atomically
from kerasnet.progress import duration
from kerasnet.runs import create_run
from kerasnet.summary import table

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


def read_space(name: str) -> tuple[schema.Space, Document]:
    """Read a search space: one of those in `tuning/` by name, or a YAML file.

    Raises:
        BadInputError: there is none of that name.
        DocumentError: the file is wrong; with line and column.
    """
    file = Path(name)
    if not file.is_file():
        known = sorted(p.stem for p in shipped("tuning").glob("*.yaml"))
        if name not in known:
            raise BadInputError(
                f"there is no search space '{name}', nor a file of that name. "
                f"{did_you_mean(name, known)}"
            )
        file = shipped("tuning") / f"{name}.yaml"
    document = read(file)
    return validate(schema.Space, document), document


def check_space(config: schema.RunConfig, space: schema.Space, document: Document) -> None:
    """Check that every field a space names exists and takes every value drawn for it.

    Raises:
        DocumentError: with the line and column of each parameter that does not fit.
        BadInputError: the recipe holds no images back for validation.
    """
    problems = []
    for path, distribution in space.parameters.items():
        if isinstance(distribution, schema.Choice):
            ends: list[Any] = list(distribution.values)
        else:
            ends = [distribution.min, distribution.max]
        try:
            for value in ends:
                with_values(config, {path: value})
        except DocumentError as error:
            where = ("parameters", path)
            texts = "; ".join(str(p) for p in error.problems)
            problems.append(Problem(where, texts, document.place(where)))
    if problems:
        raise DocumentError(problems)
    if not config.recipe.validation_split and config.data.spec.source.type != "folder":
        raise BadInputError(
            f"recipe '{config.recipe_name}' has validation_split 0, so a search would have to look "
            "at the test set; choose another --recipe"
        )


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
    if algorithm not in ALGORITHMS:
        raise BadInputError(
            f"there is no algorithm '{algorithm}'. {did_you_mean(algorithm, ALGORITHMS)}"
        )
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"{folder}: already there and not empty; choose another with --out")
    done: list[Trial] = []
    tuner = _make_tuner(space, trials, config.seed, folder, _runner(config, folder, console, done,
                                                                      trials))  # fmt: skip
    tuner.search(verbose=0)
    best = max(done, key=lambda t: t.val_accuracy)
    write_atomically(folder / "best.yaml", to_yaml(with_values(config, best.values)).encode())
    found = Search(
        config.architecture.name, config.data.name, space_name, algorithm, config.seed,
        tuple(done), fit_command(config, best, folder),
    )  # fmt: skip
    write_atomically(
        folder / "search.json", (json.dumps(found.to_json(), indent=2) + "\n").encode()
    )
    return found


def _runner(
    config: schema.RunConfig, folder: Path, console: Console, done: list[Trial], total: int
) -> Callable[[str, dict[str, Any]], float]:
    """Return the function that trains one point as a run folder and records it in `done`."""

    def train(trial: str, values: dict[str, Any]) -> float:
        import keras

        from kerasnet.train import fit

        keras.backend.clear_session(free_memory=True)
        said = ", ".join(f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}"
                         for path, value in values.items())  # fmt: skip
        console.print(f"trial {len(done) + 1}/{total}: {said}", highlight=False, style="bold")
        run = create_run(folder / "trials" / trial, with_values(config, values))
        try:
            summary = fit(run, console=console, test=False)
            state, score, seconds = "finished", summary[OBJECTIVE], summary["seconds"]
        except DivergedError as error:
            # The worst possible score, so that a search moves away from such rates.
            console.print(f"diverged: {error}", highlight=False, markup=False)
            state, score, seconds = "diverged", 0.0, 0.0
        done.append(Trial(trial, values, state, score, seconds, str(run.path)))
        return float(score)

    return train


def _make_tuner(
    space: schema.Space, trials: int, seed: int, folder: Path,
    train: Callable[[str, dict[str, Any]], float],
) -> Any:  # fmt: skip
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
        hyperparameters=_hyperparameters(space),
        directory=str(folder),
        project_name="keras-tuner",
    )


def _hyperparameters(space: schema.Space) -> Any:
    import keras_tuner

    made = keras_tuner.HyperParameters()
    for path, d in space.parameters.items():
        if isinstance(d, schema.Choice):
            made.Choice(path, d.values)
        else:
            declare = made.Float if isinstance(d, schema.FloatRange) else made.Int
            declare(path, d.min, d.max, sampling="log" if d.log else "linear")
    return made


def fit_command(config: schema.RunConfig, best: Trial, folder: Path) -> str:
    """Return the shell line that trains the best point again, with the test set at its end."""
    if set(best.values) != {"recipe.optimizer.learning_rate"}:
        return shlex.join(["kerasnet", "fit", "--config", str(folder / "best.yaml")])
    rate = best.values["recipe.optimizer.learning_rate"]
    words = ["kerasnet", "fit", config.architecture.name, "--dataset", config.data.name,
             "--recipe", config.recipe_name, "--epochs", str(config.recipe.epochs),
             "--learning-rate", f"{rate:.6g}"]  # fmt: skip
    for option, value in (("--data-dir", config.data.data_dir),
                          ("--limit-train", config.data.limit_train)):  # fmt: skip
        words += [option, str(value)] if value is not None else []
    return shlex.join(words)
