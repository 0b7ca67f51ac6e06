"""Several runs that differ by their seed, one after another, and the mean of what they come to.

`seeds.yaml` is written before TensorFlow loads and says everything about all of them; the runs lie
beside it, each in `seed-<seed>/`. So whatever ends the process, the folder alone is gone on with.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnet import __version__, schema
from kerasnet.config import CHANGEABLE, OPTION_PATHS, continued, fields, with_values
from kerasnet.document import read, shown, to_yaml, validate
from kerasnet.errors import BadInputError, DivergedError, InterruptedRunError
from kerasnet.files import check_new, locked, make_folder, remove_temporaries, write_atomically
from kerasnet.runs import SEEDS, Run, create_run, default_folder
from kerasnet.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

# What the runs have in common, of that which each of them comes to.
_COMMON = ("model", "dataset", "data_remark", "recipe", "precision", "epochs", "train_images",
           "test_images", "params")  # fmt: skip
_LENGTH = ("recipe.epochs", "horizon", "budget")
_MEASURED = ("precision", "inference")
_FOUND = ("lr_find", "recipe.optimizer.learning_rate")
# What a run that goes on takes over from the folder.
_CHANGED = tuple(OPTION_PATHS[option] for option in CHANGEABLE)
_SHARED = (*_LENGTH, *_CHANGED)


def seeds_of(text: str) -> list[int]:
    """Return the seeds in `0,1,2`.

    Raises:
        BadInputError: it is no such list, or a seed is there twice.
    """
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,10}\s*", part) for part in parts):
        raise BadInputError(
            f"--seeds takes whole numbers from 0 to {2**31 - 1} such as 0,1,2, not '{shown(text)}'"
        )
    return checked_seeds([int(part) for part in parts])


def checked_seeds(seeds: Collection[int]) -> list[int]:
    """Return seeds as a list.

    Raises:
        BadInputError: there are none or too many, one is there twice, or is no seed.
    """
    found = list(seeds)
    if not 1 <= len(found) <= schema.MAX_SEEDS:
        raise BadInputError(f"--seeds takes 1 to {schema.MAX_SEEDS} seeds, not {len(found)}")
    for i, seed in enumerate(found):
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise BadInputError(f"--seeds: a seed lies in 0…{2**31 - 1}; received {seed!r:.60}")
        if seed in found[:i]:
            raise BadInputError(f"--seeds: {seed} is there twice; each run needs a seed of its own")
    return found


@dataclass(frozen=True)
class SeedRun(Run):
    """A run of several; whoever goes on with it goes on with all.

    Attributes:
        whole: the folder that holds the runs.
    """

    whole: Path

    def command_for(self, config: schema.RunConfig | None) -> str:
        """Return the shell line that goes on with all the runs; their folder knows the rest."""
        return SeedRuns(self.whole).resume_command


@dataclass(frozen=True)
class SeedRuns:
    """A folder of runs that differ by their seed: `seeds.yaml`, `seed-0/`, `seed-1/`, …"""

    path: Path

    @property
    def asked(self) -> schema.SeedsConfig:
        """What `seeds.yaml` says; DocumentError where it is missing or wrong."""
        return validate(schema.SeedsConfig, read(self.path / SEEDS))

    @property
    def runs(self) -> list[Run]:
        """The runs, in the order of their seeds, those not yet begun among them."""
        return [self.run(seed) for seed in self.asked.seeds]

    @property
    def finished(self) -> bool:
        """Whether every run has ended."""
        return not self.left(self.shared())

    @property
    def resume_command(self) -> str:
        """The shell line that goes on with the runs."""
        return shlex.join(["kerasnet", "fit", "--resume", str(self.path)])

    def run(self, seed: int) -> Run:
        """Return the run of a seed."""
        return SeedRun(self.path / f"seed-{seed}", self.path)

    def write_asked(self, asked: schema.SeedsConfig) -> None:
        """Write `seeds.yaml`."""
        text = to_yaml(asked, comment=f"Go on with: {self.resume_command}")
        write_atomically(self.path / SEEDS, text.encode())

    # ------------------------------------------------------------------------ what is trained

    def shared(self) -> schema.SeedsConfig:
        """Return what `seeds.yaml` says, with what the first run has measured for all of them.

        That is the precision, the number of epochs where there is a budget, and the learning rate
        where a range test is to find it.
        """
        asked = self.asked
        if not _to_measure(asked.base):
            return asked
        for seed in asked.seeds:
            found = self.run(seed).config if _begun(self.run(seed)) else None
            if found is None or _to_measure(found):
                continue
            values = _values(found, (*_MEASURED, *(_FOUND if asked.base.rate_open else ())))
            if asked.base.epochs_open:
                if found.budget is None:
                    continue  # it was given a number of its own instead
                # By itself it may have been made longer since.
                values["budget"] = found.budget.model_dump(mode="json")
                values |= dict.fromkeys(("recipe.epochs", "horizon"), found.budget.epochs)
            return asked.model_copy(update={"base": with_values(asked.base, values)})
        return asked

    def continued(self, options: Mapping[str, Any], rescale: bool = False) -> schema.SeedsConfig:
        """Return what the runs are to go on with; see `config.continued`.

        Raises:
            BadInputError: an option contradicts the runs.
        """
        asked = self.shared()
        if "seed" in options:
            raise BadInputError(
                f"--seed {options['seed']}: {self.path} trains the seeds "
                f"{', '.join(map(str, asked.seeds))}; leave it out"
            )
        return asked.model_copy(update={"base": continued(asked.base, options, rescale)})

    def config(self, asked: schema.SeedsConfig, seed: int) -> schema.RunConfig:
        """Return the configuration that a seed's run begins or goes on with.

        Raises:
            BadInputError: another seed's run is in its place.
        """
        run = self.run(seed)
        if not _begun(run):
            return asked.base.model_copy(update={"seed": seed})
        config = run.config
        if config.seed != seed:
            raise BadInputError(
                f"{run.path}/config.yaml: expected a run of seed {seed}, received one of seed "
                f"{config.seed}. Move it elsewhere"
            )
        # One that somebody made longer by itself stays so.
        length, base = config.recipe.epochs, asked.base
        alone = not config.epochs_open and (base.epochs_open or length > base.recipe.epochs)
        paths = _CHANGED if alone else _SHARED
        if _to_measure(config) and not _to_measure(asked.base):
            # It ended before it had measured what another one has by now.
            paths = (*paths, *_MEASURED, *_FOUND)
        return with_values(config, _values(asked.base, paths))

    def left(self, asked: schema.SeedsConfig) -> list[int]:
        """Return the seeds whose runs have not come to the end that is asked for."""
        return [
            seed
            for seed in asked.seeds
            if not self.run(seed).finished or not self.run(seed).done(self.config(asked, seed))
        ]

    # ------------------------------------------------------------------------ training

    def train(self, console: Console, asked: schema.SeedsConfig) -> dict[str, Any]:
        """Train what is left of the runs, one after another, and return `summary`.

        A run that diverges does not keep the others from being trained.

        Args:
            console: where progress goes.
            asked: what is to be trained, as `shared` or `continued` returns it.

        Raises:
            KerasnetError: as `train.fit`, but for a run that diverged.
        """
        diverged: dict[int, str] = {}
        with self._signals(console), locked(self.path, "trained"):
            remove_temporaries(self.path)
            for seed in self.left(asked):
                if asked != self.asked:
                    self.write_asked(asked)
                place = f"run {asked.seeds.index(seed) + 1} of {len(asked.seeds)}"
                say(console, f"\nseed {seed}, {place}", style="bold")
                try:
                    self._train(seed, self.config(asked, seed), console)
                except DivergedError as error:
                    diverged[seed] = str(error)
                    say(console, diverged[seed], style="red")
                _let_go()
                asked = self.shared()
            return self._summary(asked, diverged)

    def _train(self, seed: int, config: schema.RunConfig, console: Console) -> None:
        from kerasnet.api import train_run
        from kerasnet.fitting import say_start

        run = self.run(seed)
        if not _begun(run):
            create_run(run.path, config)
        say_start(console, config, run)
        train_run(run, console, config)

    @contextlib.contextmanager
    def _signals(self, console: Console) -> Iterator[None]:
        """Catch the signals that come between two runs."""
        from kerasnet.interruption import Interrupted, Interruption

        try:
            with Interruption(console):
                yield
        except Interrupted as signal:
            message = f"{self.path}: interrupted. Go on with: {self.resume_command}"
            raise InterruptedRunError(message, signal.signum) from signal

    # ------------------------------------------------------------------------ the outcome

    def summary(self) -> dict[str, Any]:
        """Return the object that `fit --json` prints.

        `test_accuracy` is the mean over the seeds, `test_accuracy_sd` the standard deviation over
        n - 1 (None for a single one), and `runs` each run's summary.

        Raises:
            BadInputError: a run has not finished, or its files are damaged.
        """
        return self._summary(self.shared(), {})

    def _summary(self, asked: schema.SeedsConfig, diverged: Mapping[int, str]) -> dict[str, Any]:
        from kerasnet.api import result_of

        left = [seed for seed in self.left(asked) if seed not in diverged]
        if left:
            raise BadInputError(
                f"{self.path}: {_named(left)} has not finished. Go on with: {self.resume_command}"
            )
        runs = {seed: self.run(seed) for seed in asked.seeds if seed not in diverged}
        found = [
            {"seed": seed, **result_of(run), "run": str(run.path)} for seed, run in runs.items()
        ]
        scores = [_score(result) for result in found]
        rates = [result["images_per_second"] for result in found]
        known = all(rate is not None for rate in rates) and rates
        return {
            **{key: _same([result.get(key) for result in found]) for key in _COMMON},
            "seeds": asked.seeds,
            "test_accuracy": statistics.fmean(scores) if scores else None,
            "test_accuracy_sd": statistics.stdev(scores) if len(scores) > 1 else None,
            "diverged": dict(diverged),
            "images_per_second": statistics.fmean(rates) if known else None,
            "seconds": sum(result.get("seconds") or 0.0 for result in found),
            "run": str(self.path),
            "runs": found,
        }


def _to_measure(config: schema.RunConfig) -> bool:
    return config.inference is None or config.epochs_open or config.rate_open


def _begun(run: Run) -> bool:
    return (run.path / "config.yaml").is_file()


def _values(config: schema.RunConfig, paths: Collection[str]) -> dict[str, Any]:
    return {path: fields(config, path)[path] for path in paths}


def _same(values: list[Any]) -> Any:
    """Return what all values are; None where they differ, or there are none."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _named(seeds: list[int]) -> str:
    return f"the run of seed {seeds[0]}" + (f" (and {len(seeds) - 1} more)" if seeds[1:] else "")


def _score(result: Mapping[str, Any]) -> float:
    accuracy = result.get("test_accuracy")
    if accuracy is None:
        raise BadInputError(f"{result['run']}: its test accuracy was never measured")
    return float(accuracy)


def _let_go() -> None:
    """Free what a run leaves in memory, so that any number of them fit."""
    import keras

    keras.backend.clear_session(free_memory=True)


def begin(out: str | os.PathLike[str] | None, asked: schema.SeedsConfig) -> SeedRuns:
    """Make a folder for runs of several seeds.

    Args:
        out: the folder; `runs/<model>-<dataset>-<time>` if not given.
        asked: what is to be trained.

    Raises:
        BadInputError: the folder exists and is not empty, or is a file.
        EnvironmentFaultError: it cannot be made.
    """
    folder = Path(out) if out else default_folder(asked.base)
    check_new(folder)
    found = SeedRuns(make_folder(folder))
    with locked(folder, "trained"):
        # Once more, for another process may have begun here just now.
        check_new(folder)
        found.write_asked(asked)
    return found


def is_seeds(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds the runs of several seeds."""
    return (Path(path) / SEEDS).is_file()


def for_seeds(config: schema.RunConfig, seeds: Collection[int]) -> schema.SeedsConfig:
    """Return what a folder for a configuration and several seeds says.

    Raises:
        BadInputError: as `checked_seeds`.
    """
    found = checked_seeds(seeds)
    base = config.model_copy(update={"seed": found[0], "kerasnet": __version__})
    return schema.SeedsConfig(kerasnet=__version__, seeds=found, base=base)


def check_diverged(result: Mapping[str, Any]) -> None:
    """Say at the end which runs diverged.

    Raises:
        DivergedError: one did.
    """
    diverged: dict[int, str] = result["diverged"]
    if diverged:
        said = "\n".join(f"seed {seed}: {message}" for seed, message in diverged.items())
        raise DivergedError(
            f"{result['run']}: {len(diverged)} of {len(result['seeds'])} runs diverged; the others "
            f"are kept\n{said}"
        )


def say_result(console: Console, result: Mapping[str, Any]) -> None:
    """Print the mean, its spread and every value."""
    from kerasnet.summary import table

    rows = [
        [str(run["seed"]), f"{run['test_accuracy']:.2%}", f"{run['test_loss']:.4f}", run["run"]]
        for run in result["runs"]
    ]
    rows += [[str(seed), "diverged", "", ""] for seed in result["diverged"]]
    header = ["seed", "test accuracy", "test loss", "run folder"]
    say(console, "\n" + table(header, rows, header[:3]))
    count, mean, spread = len(result["runs"]), result["test_accuracy"], result["test_accuracy_sd"]
    if mean is not None:
        of = f" on {result['test_images']:,} images" if result["test_images"] else ""
        sd = "" if spread is None else f" ± {spread:.2%} (mean ± standard deviation, n = {count})"
        say(console, f"\ntest accuracy {mean:.2%}{sd}{of}", style="bold green")
    if result["data_remark"]:
        say(console, f"data: {result['data_remark']}")
    say(console, f"run folders in {result['run']}")
