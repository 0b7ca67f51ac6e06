"""A search from its question to its outcome, in this process or by others."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from kerasnet import __version__, schema
from kerasnet.document import to_yaml
from kerasnet.errors import (
    BadInputError,
    DivergedError,
    EnvironmentFaultError,
    InterruptedRunError,
    OutOfTimeError,
    did_you_mean,
)
from kerasnet.files import check_new, make_folder, remove_temporaries, write_atomically
from kerasnet.tune.records import Search, SearchFolder, Trial, best_of
from kerasnet.tune.space import apply, points

if TYPE_CHECKING:
    from rich.console import Console

ALGORITHMS = get_args(schema.SearchConfig.model_fields["algorithm"].annotation)
DEFAULT_TRIALS = 10
# Li et al. 2018 use 3 or 4.
HYPERBAND_FACTOR = 3


def ask(
    base: schema.RunConfig,
    space: schema.Space,
    *,
    space_name: str,
    algorithm: str = "random",
    trials: int | None = None,
    executions: int = 1,
    stop_early: bool = True,
) -> schema.SearchConfig:
    """Return what a search is asked for, held against what can be known before it begins.

    Args:
        base: what every trial starts from, as `space.check_space` returns it.
        space: the fields that vary.
        space_name: how the user named the space.
        algorithm: `random`, `bayesian`, `hyperband` or `grid`.
        trials: how many points; 10 if not given, all of them for `grid`. `hyperband` decides.
        executions: trainings of each point, whose mean is its score.
        stop_early: whether a trial ends that is worse than the median of the others.

    Raises:
        BadInputError: the algorithm is unknown, or it and the rest do not go together.
    """
    if algorithm not in ALGORITHMS:
        raise BadInputError(
            f"there is no algorithm '{algorithm}'. {did_you_mean(algorithm, ALGORITHMS)}"
        )
    if algorithm == "hyperband":
        if trials is not None:
            raise BadInputError("--trials: hyperband derives them from --epochs; leave it out")
        if "recipe.epochs" in space.parameters:
            raise BadInputError(
                f"space '{space_name}' varies recipe.epochs, which hyperband chooses; choose "
                "another --algorithm"
            )
    elif algorithm != "grid":
        trials = trials or DEFAULT_TRIALS
    return schema.SearchConfig(
        kerasnet=__version__, space_name=space_name, space=space, base=base,
        algorithm=algorithm,  # type: ignore[arg-type]
        trials=trials, executions=executions, stop_early=stop_early,
    )  # fmt: skip


def planned(asked: schema.SearchConfig) -> int | None:
    """Return how many trials a search will have, if no budget ends it; None where that is open."""
    if asked.algorithm == "hyperband":
        rounds = [r for bracket in hyperband_plan(asked.base.recipe.epochs) for r in bracket]
        return sum(trials for trials, _ in rounds)
    try:
        number = points(asked.space)
    except BadInputError:
        # More than are counted, and than anybody trains.
        number = None
    return min((n for n in (number, asked.trials) if n is not None), default=None)


def hyperband_plan(epochs: int, factor: int = HYPERBAND_FACTOR) -> list[list[tuple[int, int]]]:
    """Return hyperband's brackets: for each of its rounds, how many trials and to which epoch.

    Args:
        epochs: of the longest trial.
        factor: by which each round is longer and has fewer trials.
    """
    brackets = 0
    while epochs >= factor**brackets:
        brackets += 1
    last = math.ceil(1 + math.log(epochs, factor))
    return [
        [
            (math.ceil(last / (b + 1) * factor ** (b - r)), math.ceil(epochs / factor ** (b - r)))
            for r in range(b + 1)
        ]
        for b in reversed(range(brackets))
    ]


def begin(out: str | os.PathLike[str], asked: schema.SearchConfig) -> SearchFolder:
    """Make a search folder.

    Raises:
        BadInputError: it is not empty.
        EnvironmentFaultError: it cannot be made.
    """
    check_new(out)
    folder = SearchFolder(make_folder(out))
    folder.write_asked(asked)
    return folder


def unsettled(folder: SearchFolder) -> bool:
    """Whether it is still to be chosen what depends on the devices."""
    return folder.asked.base.precision.requested == "auto"


def tidy(folder: SearchFolder) -> None:
    """Remove what processes that were killed while writing left, but for the trials' folders."""
    for place in (folder.path, *folder.path.glob("*/"), *folder.path.glob("keras-tuner/*/")):
        remove_temporaries(place)


def settle(folder: SearchFolder) -> None:
    """Choose, once for all trials, what depends on the devices; the backend must be loaded."""
    from kerasnet.train import confirmed

    if unsettled(folder):
        asked = folder.asked
        found = confirmed(asked.base)
        fixed = found.model_copy(update={"requested": found.resolved})
        base = asked.base.model_copy(update={"precision": fixed})
        folder.write_asked(asked.model_copy(update={"base": base}))


# ---------------------------------------------------------------------------- outcome


def snapshot(folder: SearchFolder, asked: schema.SearchConfig | None = None) -> Search:
    """Return what is known of a search now."""
    asked = asked or folder.asked
    trials = [t if t.ended else _so_far(folder, t) for t in folder.records()]
    number, base = planned(asked), asked.base
    ended = sum(trial.ended for trial in trials)
    best = best_of(trials, asked.algorithm)
    return Search(
        model=base.architecture.name, dataset=base.data.name,
        data_remark=next((t.data_remark for t in trials if t.data_remark), None),
        recipe=base.recipe_name, space=asked.space_name, algorithm=asked.algorithm,
        seed=base.seed, epochs=base.recipe.epochs, executions=asked.executions,
        limit_train=base.data.limit_train, precision=base.precision.resolved, planned=number,
        complete=number is not None and ended >= number,
        seconds=sum(trial.seconds for trial in trials), trials=trials, best=best,
        command=fit_command(folder, base) if best else None,
    )  # fmt: skip


def _so_far(folder: SearchFolder, trial: Trial) -> Trial:
    """Return a trial that has not ended with what its run folder says by now."""
    with contextlib.suppress(BadInputError):
        curve = folder.curve(trial)
        if curve:
            scores = {"val_accuracy": curve[-1][1], "best_epoch": max(curve, key=_second)[0]}
            return trial.model_copy(update={"epochs": curve[-1][0], **scores})
    return trial.model_copy(update={"epochs": 0})


def _second(pair: tuple[int, float]) -> float:
    return pair[1]


def publish(
    folder: SearchFolder, asked: schema.SearchConfig | None = None, *, complete: bool = False
) -> Search:
    """Write `search.json` and `best.yaml`, and return what was found.

    Args:
        folder: the search's.
        asked: what it was asked for; read if not given.
        complete: that no point is left, where there are fewer than were planned.
    """
    asked = asked or folder.asked
    found = snapshot(folder, asked)
    found = found.model_copy(update={"complete": complete or found.complete})
    if found.best is not None:
        text = to_yaml(best_config(asked, found.best), comment=f"Train it: {found.command}")
        write_atomically(folder.path / "best.yaml", text.encode())
    text = json.dumps(found.model_dump(mode="json"), indent=2) + "\n"
    write_atomically(folder.path / "search.json", text.encode())
    return found


def best_config(asked: schema.SearchConfig, best: Trial) -> schema.RunConfig:
    """Return the configuration that trains a trial's values on all images but the test set's."""
    config = apply(asked.base, asked.space, best.values)
    whole = {"train_on": "train+validation", "limit_train": None}
    return config.model_copy(update={"data": config.data.model_copy(update=whole)})


def fit_command(folder: SearchFolder, base: schema.RunConfig) -> str:
    """Return the shell line that trains the best values and reads the test set, once."""
    import shlex

    words = ["kerasnet", "fit", base.architecture.name, "--from-search", str(folder.path)]
    return shlex.join(words)


def check_outcome(folder: SearchFolder, found: Search) -> None:
    """Refuse an outcome in which there is nothing to choose from.

    Raises:
        DivergedError: every trial that ended diverged, or failed.
        KerasnetError: every trial failed.
    """
    ended = [trial for trial in found.trials if trial.ended]
    if any(trial.state in ("finished", "stopped") for trial in ended) or not ended:
        return
    first = ended[0]
    diverged = [trial for trial in ended if trial.state == "diverged"]
    more = f"the first said: {first.error}"
    if diverged:
        raise DivergedError(
            f"{folder.path}: all {len(ended)} trials diverged or failed; {more}. Search lower "
            "learning rates, or set `gradient_clip` in the recipe"
        )
    kind = EnvironmentFaultError if first.exit_code == 4 else BadInputError
    raise kind(f"{folder.path}: all {len(ended)} trials failed; {more}")


# ---------------------------------------------------------------------------- in this process


@contextlib.contextmanager
def going_on(folder: SearchFolder, command: str | None = None) -> Iterator[None]:
    """Say how to go on with a search that is interrupted or meets a fault.

    Args:
        folder: the search's.
        command: the shell line that does; the search's own if not given.

    Raises:
        InterruptedRunError: by Ctrl-C or SIGTERM.
        EnvironmentFaultError: as what it is caused by.
    """
    from kerasnet.interruption import Interrupted

    on = f"Go on with: {command or folder.resume_command}"
    try:
        yield
    except Interrupted as error:
        raise InterruptedRunError(f"{folder.path}: interrupted. {on}", error.signum) from error
    except InterruptedRunError as error:
        signum = error.exit_code - 128
        raise InterruptedRunError(f"{folder.path}: interrupted. {on}", signum) from error
    except EnvironmentFaultError as error:
        raise type(error)(f"{error}. {on}") from error


def search_here(folder: SearchFolder, console: Console, deadline: float = math.inf) -> None:
    """Train trials in this process, one after another, until there are no more or time is up.

    Args:
        folder: the search's.
        console: where training says how it goes.
        deadline: of `time.monotonic`.

    Raises:
        InterruptedRunError: by Ctrl-C or SIGTERM; state saved after the step.
        EnvironmentFaultError: the folder cannot be written, or the like.
    """
    import keras_tuner

    from kerasnet.tune.oracles import RunFolderTuner, make_oracle
    from kerasnet.tune.trials import TrialRunner

    runner, oracle = TrialRunner(folder, console, deadline), make_oracle(folder.asked)
    oracle.deadline = deadline
    tuner = RunFolderTuner(oracle, folder.path, runner, deadline)
    try:
        tuner.search()
    except OutOfTimeError:
        return
    except keras_tuner.errors.FatalError as error:
        assert runner.fault is not None, "only this runner ends a search"
        if not isinstance(runner.fault, OutOfTimeError):
            raise runner.fault from error
