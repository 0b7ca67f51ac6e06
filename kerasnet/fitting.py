"""What `kerasnet fit` and `kerasnet.fit` do with what they were asked for, up to the training.

One run or several seeds, new or gone on with: `asked` returns which, checked as far as it can be
without TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnet import config as configs
from kerasnet import schema, seeds
from kerasnet.errors import BadInputError
from kerasnet.files import check_new
from kerasnet.registry import Registry, load_registry
from kerasnet.runs import Run, create_run, load_run
from kerasnet.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from kerasnet.plan import Plan

PathLike = str | os.PathLike[str]


@dataclass
class One:
    """A run to train.

    Attributes:
        config: what it is to be trained by.
        run: its folder, None where it is still to be made.
        out: where a new one is to be.
    """

    config: schema.RunConfig
    run: Run | None = None
    out: PathLike | None = None

    @property
    def shown(self) -> schema.RunConfig:
        """What `--dry-run` prints."""
        return self.config

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.run is not None and self.run.done(self.config)

    def check(self) -> None:
        """Hold the data, the weights and the folder against what is asked for.

        Raises:
            BadInputError: they do not fit, or another process trains the run.
        """
        if self.done:
            return
        if self.run is not None:
            with self.run.locked():
                pass  # a run in use is refused here, before anything is loaded
        configs.check(self.config, weights=self.run is None or not self.run.started)
        if self.run is None and self.out is not None:
            check_new(self.out)

    def train(self, console: Console) -> dict[str, Any]:
        """Train, or go on, and return the run's summary."""
        from kerasnet.api import result_of, train_run

        if self.run is not None and self.done:
            say(
                console,
                f"{self.run.path}: has finished its {self.config.recipe.epochs} epochs; --epochs "
                "with a larger number makes it longer, --rescale the schedule with it",
            )
            return {**result_of(self.run), "run": str(self.run.path)}
        new = self.run is None
        _say_beyond(console, self.config)
        run = self.run = self.run or create_run(self.out, self.config)
        say_start(console, self.config, run)
        return train_run(run, console, None if new else self.config)

    def say_result(self, console: Console, result: Mapping[str, Any]) -> None:
        """Print what a training came to."""
        say_result(console, result)

    def check_result(self, result: Mapping[str, Any]) -> None:
        """Raise what is to be said after the result: nothing."""


@dataclass
class Several:
    """Runs of several seeds to train.

    Attributes:
        asked: what they are to be trained by.
        run: their folder, None where it is still to be made.
        out: where a new one is to be.
    """

    asked: schema.SeedsConfig
    run: seeds.SeedRuns | None = None
    out: PathLike | None = None

    @property
    def shown(self) -> schema.SeedsConfig:
        """What `--dry-run` prints."""
        return self.asked

    @property
    def config(self) -> schema.RunConfig:
        """What every run is trained by, but for its seed."""
        return self.asked.base

    def check(self) -> None:
        """Hold the data, the weights and the folder against what is asked for.

        Raises:
            BadInputError: they do not fit.
        """
        left = self.asked.seeds if self.run is None else self.run.left(self.asked)
        if left:
            begun = self.run is not None and all(self.run.run(seed).started for seed in left)
            configs.check(self.config, weights=not begun)
        if self.run is None and self.out is not None:
            check_new(self.out)

    def train(self, console: Console) -> dict[str, Any]:
        """Train what is left and return the mean with every run's summary."""
        _say_beyond(console, self.config)
        self.run = self.run or seeds.begin(self.out, self.asked)
        return self.run.train(console, self.asked)

    def say_result(self, console: Console, result: Mapping[str, Any]) -> None:
        """Print the mean, its spread and every value."""
        seeds.say_result(console, result)

    def check_result(self, result: Mapping[str, Any]) -> None:
        """Raise what is to be said after the result.

        Raises:
            DivergedError: a run diverged.
        """
        seeds.check_diverged(result)


def asked(
    name: str | None,
    options: Mapping[str, Any],
    *,
    resume: Run | seeds.SeedRuns | PathLike | None = None,
    rescale: bool = False,
    out: PathLike | None = None,
    config: PathLike | None = None,
    from_search: PathLike | None = None,
    registry: Registry | PathLike | None = None,
    several: Collection[int] | None = None,
) -> One | Several:
    """Return what is to be trained, checked as far as it can be without TensorFlow.

    Args:
        name: of a model.
        options: by the command line's names; see `config.OPTION_PATHS`.
        resume: what to go on with.
        rescale: with `resume`: the schedule spans the new number of epochs.
        out: the folder of what is new.
        config: a configuration file to repeat.
        from_search: a search folder, whose best trial is trained.
        registry: where names are looked up, or a file laid over the built-in registry.
        several: seeds, one run for each.

    Raises:
        BadInputError: something is unknown or does not fit, or options contradict each other.
    """
    if from_search is not None:
        if config is not None or resume is not None:
            raise BadInputError("--from-search, --config and --resume exclude each other")
        config = _best_of(from_search)
    if resume is None:
        if rescale:
            raise BadInputError("--rescale goes with --resume; a new run's schedule spans --epochs")
        found = _begun(_new(name, config, registry, options), options, several, out)
    else:
        if several is not None:
            raise BadInputError(
                "--seeds: what goes on has its seeds; leave it out, or begin new runs"
            )
        others = {"name": name, "config": config, "registry": registry, "out": _other(out, resume)}
        given = {**options, **{key: value for key, value in others.items() if value is not None}}
        found = _resumed(resume, given, rescale)
    found.check()
    return found


def _begun(
    config: schema.RunConfig, options: Mapping[str, Any], several: Collection[int] | None,
    out: PathLike | None,
) -> One | Several:  # fmt: skip
    if several is None:
        return One(config, out=out)
    if "seed" in options:
        raise BadInputError(f"--seeds and --seed {options['seed']}: give one of them")
    return Several(seeds.for_seeds(config, several), out=out)


def _resumed(
    resume: Run | seeds.SeedRuns | PathLike, given: Mapping[str, Any], rescale: bool
) -> One | Several:
    if isinstance(resume, seeds.SeedRuns):
        return Several(resume.continued(given, rescale), resume)
    if not isinstance(resume, Run):
        if seeds.is_seeds(resume):
            return _resumed(seeds.SeedRuns(Path(resume)), given, rescale)
        resume = load_run(resume)
    return One(configs.continued(resume.config, given, rescale), resume)


def _new(
    name: str | None, file: PathLike | None, registry: Registry | PathLike | None,
    given: Mapping[str, Any],
) -> schema.RunConfig:  # fmt: skip
    """Resolve a run from the options, or from a configuration file with the options over it."""
    if file is None:
        if name is None:
            raise BadInputError(
                "name a model, such as `kerasnet fit resnet50`, or give --config or --resume"
            )
        if registry is not None and not isinstance(registry, Registry):
            registry = load_registry(os.fspath(registry))
        return configs.new_run(name, given, registry)
    config = configs.read_config(file)
    if name is not None and name != config.architecture.name:
        raise BadInputError(f"{file} is a run of {config.architecture.name}, not of {name}")
    return configs.repeated(config, {**given, **({"registry": registry} if registry else {})})


def _best_of(search: PathLike) -> str:
    """Return the configuration file of a search's best trial."""
    from kerasnet.tune.records import load_search

    folder, found = load_search(search)
    if found.best is None:
        way = (
            "None did; search lower learning rates, or another space" if found.complete
            else f"Go on with: {folder.resume_command}"
        )  # fmt: skip
        raise BadInputError(f"{search}: no trial has been trained to its end. {way}")
    return str(folder.path / "best.yaml")


def _other(out: PathLike | None, resume: Run | seeds.SeedRuns | PathLike) -> PathLike | None:
    """Return `out` if it is another folder than the one that is gone on with."""
    folder = resume.path if isinstance(resume, Run | seeds.SeedRuns) else resume
    same = out is None or os.path.realpath(out) == os.path.realpath(folder)
    return None if same else out


# ---------------------------------------------------------------------------- what is said


def _say_beyond(console: Console, config: schema.RunConfig) -> None:
    """Say what becomes of the learning rate after the end of a schedule that comes down to it."""
    schedule = config.recipe.schedule
    if config.recipe.epochs <= config.horizon or schedule.type not in ("cosine", "one_cycle"):
        return
    rate = config.recipe.optimizer.learning_rate * schedule.final
    learns = "" if rate else ", at which nothing is learnt"
    say(
        console,
        f"the schedule spans {config.horizon} epochs; after them the learning rate stays at "
        f"{rate:g}{learns} (--rescale stretches the schedule)",
    )


def say_start(console: Console, config: schema.RunConfig, run: Run) -> None:
    """Print what is about to be trained, and where."""
    from kerasnet.page import plural
    from kerasnet.plan import format_shape, millions
    from kerasnet.progress import duration

    plan, recipe, precision = configs.plan(config), config.recipe, config.precision
    rate = f"{recipe.optimizer.learning_rate:g}"
    if config.rate_open:
        rate = "at a rate to be found"
    epochs = plural(recipe.epochs, "epoch")
    if config.epochs_open and config.budget is not None:
        epochs = f"as many epochs as fit into {duration(config.budget.seconds)}"
    say(
        console,
        f"{config.architecture.name} ({millions(plan.params['total'])} parameters, "
        f"{millions(plan.macs)} MACs) on {config.data.name}, input {format_shape(config.input)}\n"
        f"recipe {config.recipe_name}: {epochs}, batch {recipe.batch_size}, "
        f"{recipe.optimizer.type} {rate}, seed {config.seed}\n"
        f"precision {precision.resolved} ({precision.reason})\n"
        + _start_of(config, plan)
        + f"run folder {run.path}",
    )
    if remark := configs.remark_on_schedule(config):
        say(console, remark, style="yellow")


def _start_of(config: schema.RunConfig, plan: Plan) -> str:
    """Say which weights are not the seed's, and which are not trained."""
    asked = ", ".join(f"{option} {value}" for option, value in config.recipe.initial.asked.items())
    if not config.weights:
        return f"first weights: {asked}\n" if asked else ""
    new = ", its classifier begun anew" if config.reset_head else ""
    frozen = [part for part in plan.parts if part in config.freeze]
    but = f" (not {', '.join(frozen)})" if frozen else ""
    trained, total = plan.trained_params(frozen), plan.params["total"]
    unused = f", so that the recipe's first weights ({asked}) are not used" if asked else ""
    return (
        f"starts from {config.weights}{new}{unused}\n"
        f"trains {trained:,} of {total:,} parameters{but}\n"
    )


def say_result(console: Console, result: Mapping[str, Any]) -> None:
    """Print the test accuracy of a run and where it lies."""
    accuracy, images, loss = (result.get(f"test_{what}") for what in ("accuracy", "images", "loss"))
    if accuracy is None:
        say(console, "the test set was not read")
    else:
        on = f" on {images:,} images" if images else ""
        more = f" (test loss {loss:.4f})" if loss is not None else ""
        say(console, f"test accuracy {accuracy:.2%}{on}{more}", style="bold green")
    if result.get("data_remark"):
        say(console, f"data: {result['data_remark']}")
    say(console, f"run folder {result['run']} (report.html, metrics.csv, checkpoints/)")
