"""`kerasnet tune …`: parse, call, print."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kerasnet.errors import BadInputError
from kerasnet.options import (
    DataDirOption,
    EndJsonOption,
    FreezeOption,
    InputSizeOption,
    LimitTrainOption,
    PrecisionOption,
    RegistryOption,
    ResetHeadOption,
    WeightsOption,
    image_size,
)
from kerasnet.terminal import example, say

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from kerasnet import schema
    from kerasnet.tune.records import Search, SearchFolder


class _Group(TyperGroup):
    """Commands of which `search` is meant where none is named: `kerasnet tune resnet20`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["search", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="tune",
    cls=_Group,
    help="Search learning rates, or any other fields, on the validation split.",
    rich_markup_mode=None,
    add_help_option=False,
)


@app.command(
    epilog=example(
        "kerasnet tune resnet20 --dataset digits --trials 6 --epochs 4",
        "kerasnet tune resnet20 --space optimizer --algorithm bayesian --budget 2h --workers 2",
        "kerasnet tune --resume runs/rates --trials 24",
        "kerasnet tune report runs/rates",
    )
)
def search(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A model; or give --resume or --join.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="A space in tuning/, or a YAML file. [default: learning_rate]"
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            metavar="random|bayesian|hyperband|grid",
            help="How points are drawn. [default: random]",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="How many points are trained. [default: 10; all of a grid]"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of each trial; of hyperband's longest.")
    ] = None,
    executions: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Trainings of a point, by as many seeds. [default: 1]"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="30m|1h30m", help="Nothing is begun after it, and training is left."),
    ] = None,
    early_stopping: Annotated[
        bool,
        typer.Option(help="End trials that are worse than the median of the others so far."),
    ] = True,
    recipe: Annotated[str | None, typer.Option(help="What every trial starts from.")] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="As for fit. [default: cifar10]")
    ] = None,
    data_dir: DataDirOption = None,
    limit_train: LimitTrainOption = None,
    input_size: InputSizeOption = None,
    weights: WeightsOption = None,
    reset_head: ResetHeadOption = False,
    freeze: FreezeOption = None,
    precision: PrecisionOption = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Of the points and of training. [default: 0]"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A new folder. [default: runs/tune-MODEL-DATASET-TIME]"),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Go on with a search; also with more --trials."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=1024, metavar="N", help="Train in N processes, with a chief."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Processors for each worker. [default: all, shared out]"
        ),
    ] = None,
    chief: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Let workers on other machines join here. Whoever reaches the port can take part: "
            "open it to trusted networks only.",
        ),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Train for a chief; --out is the folder it shares."),
    ] = None,
    registry: RegistryOption = None,
    as_json: EndJsonOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve, check and print the search only.")
    ] = False,
) -> None:
    """Search learning rates, or any other fields, on the validation split."""
    asked = {
        "name": name, "space": space, "algorithm": algorithm, "epochs": epochs,
        "executions": executions, "recipe": recipe, "dataset": dataset, "data_dir": data_dir,
        "limit_train": limit_train, "precision": precision, "seed": seed, "registry": registry,
        "input_size": image_size(input_size), "weights": weights,
        "reset_head": reset_head or None, "freeze": freeze or None,
    }  # fmt: skip
    given = {key: value for key, value in asked.items() if value is not None}
    _check(given, trials, out, resume, join, chief, workers, early_stopping, dry_run)
    deadline = math.inf
    if budget is not None:
        from kerasnet.progress import seconds_of

        deadline = time.monotonic() + seconds_of(budget)
    from kerasnet.tune import search as searches

    if resume is not None:
        folder = _resumed(resume, trials)
    elif join is not None:
        folder = _shared(out)
    else:
        config, place = _asked(given, trials, out, early_stopping)
        if dry_run:
            _print_asked(config, as_json)
            return
        folder = searches.begin(place, config)
    from kerasnet.tune import session

    console = _console(to_stderr=as_json)
    if join is not None:
        session.join(folder, join, workers or 1, threads, deadline, console)
        return
    found = session.search(folder, console, workers=workers, threads=threads, address=chief,
                           deadline=deadline)  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        _say_result(console, folder, found)


@app.command(
    epilog=example(
        "kerasnet tune report runs/rates",
        "kerasnet tune report runs/rates --csv > trials.csv",
        "kerasnet tune report runs/rates --tensorboard logs",
        "kerasnet tune report runs/rates --publish tuning/learning_rate.resnet20.json",
    )
)
def report(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A search folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all curves.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row for each trial.")] = False,
    tensorboard: Annotated[
        str | None,
        typer.Option(metavar="LOGDIR", help="Write the trials for TensorBoard's HParams there."),
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the outcome there, without this machine's paths."),
    ] = None,
) -> None:
    """Write what a search found, as one HTML page, JSON, CSV or for TensorBoard."""
    from kerasnet.tune.report import report as write

    write(folder, as_json, as_csv, tensorboard, publish)


# ---------------------------------------------------------------------------- what is asked

_NOT_OF_A_RUN = ("name", "space", "algorithm", "executions", "registry")


def _check(
    given: dict[str, Any], trials: int | None, out: str | None, resume: str | None,
    join: str | None, chief: str | None, workers: int | None, early_stopping: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Refuse options that do not go together."""
    from kerasnet.tune.process import split_address

    for option, address in (("--chief", chief), ("--join", join)):
        try:
            if address is not None:
                split_address(address)
        except ValueError:
            raise BadInputError(
                f"{option} takes HOST:PORT, such as 192.168.0.7:5000, not '{address}'"
            ) from None
    carried = [f"--{key.replace('_', '-')}" if key != "name" else "the model" for key in given]
    carried += [] if early_stopping else ["--no-early-stopping"]
    if resume is not None:
        clash = carried + (["--out"] if out else []) + (["--join"] if join else [])
        if clash:
            raise BadInputError(
                f"{', '.join(clash)}: a search that goes on carries all of this; leave it out"
            )
    elif join is not None:
        clash = carried + (["--trials"] if trials else []) + (["--chief"] if chief else [])
        if clash:
            raise BadInputError(f"{', '.join(clash)}: the chief knows all of this; leave it out")
        if out is None:
            raise BadInputError(
                "--join needs --out DIR: the search folder, which all machines share"
            )
    elif "name" not in given:
        raise BadInputError("name a model, such as `kerasnet tune resnet20`, or give --resume")
    if dry_run and (resume is not None or join is not None):
        raise BadInputError("--dry-run goes with a new search; `kerasnet tune report` shows others")
    if workers == 0 and chief is None:
        raise BadInputError("--workers 0 goes with --chief: others must join")


def _asked(
    given: dict[str, Any], trials: int | None, out: str | None, early_stopping: bool
) -> tuple[schema.SearchConfig, str | Path]:
    """Return a new search and its folder to be, checked as far as it can be without TensorFlow."""
    from kerasnet.config import check, new_run
    from kerasnet.files import check_new
    from kerasnet.registry import load_registry
    from kerasnet.runs import default_folder
    from kerasnet.tune import search as searches
    from kerasnet.tune.space import check_grid, check_space, fitting, read_space

    known = load_registry(given.get("registry"))
    space_name = given.get("space", "learning_rate")
    space, document = read_space(space_name)
    base = new_run(given["name"], {k: v for k, v in given.items() if k not in _NOT_OF_A_RUN}, known)
    check(base)
    base = check_space(base, space, document, known)
    space, left_out = fitting(base, space)
    algorithm = given.get("algorithm", "random")
    if algorithm == "grid":
        check_grid(space, document)
    asked = searches.ask(
        base, space, space_name=space_name, algorithm=algorithm, trials=trials,
        executions=given.get("executions", 1), stop_early=early_stopping,
    )  # fmt: skip
    folder = out or default_folder(base, prefix="tune-")
    check_new(folder)
    for text in left_out:
        say(_console(to_stderr=True), text)
    return asked, folder


def _print_asked(asked: schema.SearchConfig, as_json: bool) -> None:
    from kerasnet.document import to_yaml

    if as_json:
        plain = asked.model_dump(mode="json", by_alias=True)
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        typer.echo(to_yaml(asked), nl=False)


def _resumed(path: str, trials: int | None) -> SearchFolder:
    """Open a search to go on with, with more trials where that is asked for."""
    from kerasnet.config import check
    from kerasnet.files import locked
    from kerasnet.tune.records import open_search

    folder = open_search(path)
    asked = folder.asked
    check(asked.base)
    if trials is not None and trials != asked.trials:
        if asked.trials is None:
            raise BadInputError(
                f"--trials: {asked.algorithm} decides by itself how many there are; leave it out"
            )
        if trials < asked.trials:
            raise BadInputError(
                f"--trials {trials} would shorten the search, which has {asked.trials}"
            )
        with locked(folder.path, "searched"):
            folder.write_asked(asked.model_copy(update={"trials": trials}))
    return folder


def _shared(path: str | None) -> SearchFolder:
    from kerasnet.config import check
    from kerasnet.tune.records import open_search

    assert path is not None, "checked before"
    folder = open_search(path)
    check(folder.asked.base)
    return folder


# ---------------------------------------------------------------------------- what is said


def _console(to_stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr)


def _say_result(console: Console, folder: SearchFolder, found: Search) -> None:
    from kerasnet.summary import table
    from kerasnet.tune.view import cells, columns

    header = columns(found)
    rows = [cells(found, trial) for trial in found.ranked]
    say(console, f"\n{table(header, rows, header[1:-1])}")
    best = found.best
    if not found.complete:
        on = folder.resume_command
        say(console, f"\nthe time is up before all trials have ended; go on with: {on}")
    if best is None:
        say(console, "\nno trial has been trained to its end")
        return
    spread = ""
    if len(best.scores) > 1:
        spread = f" (mean of {len(best.scores)}: {min(best.scores):.4f}…{max(best.scores):.4f})"
    said = f"\nbest: trial {best.trial}, validation accuracy {best.val_accuracy:.4f}{spread}"
    say(console, said, style="bold green")
    for path, value in best.values.items():
        say(console, f"  {path}: {value:g}" if isinstance(value, float) else f"  {path}: {value}")
    say(console, f"train it: {found.command}\nsee it:   kerasnet tune report {folder.path}")
