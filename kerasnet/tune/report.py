"""What a search found, as one HTML page, as CSV, as JSON and for TensorBoard.

Everything here reads the search's folder (see `kerasnet/tune/records.py`), never its memory, so it
works on a search that has ended, on one that goes on and on one that was killed. What the folder
says may come from a stranger: it is escaped, and nothing outside the folder is read. Neither
TensorFlow nor Keras is imported.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kerasnet import schema
from kerasnet.errors import BadInputError, EnvironmentFaultError, KerasnetError
from kerasnet.files import write_atomically
from kerasnet.page import clean, percent, plural, render, shortened
from kerasnet.progress import duration
from kerasnet.tune import figures
from kerasnet.tune.figures import Axis, Curve, axes_of
from kerasnet.tune.records import Search, SearchFolder, Trial, load_search
from kerasnet.tune.search import fit_command

Context = dict[str, Any]

COLUMNS = (
    "trial", "state", "val_accuracy", "best_epoch", "epochs", "seconds", "continues", "error",
)  # fmt: skip
TRIAL_ROWS = 500  # of the table and the figures; CSV and JSON have every trial
PANELS = 12
ERROR_LENGTH = 300
METRICS_LIMIT = 2**24  # bytes of one trial's metrics.csv


@dataclass(frozen=True)
class _Found:
    """A search folder, read: its curves are by trial, empty where there is no run folder."""

    folder: Path
    asked: schema.SearchConfig
    search: Search
    best: Trial | None
    curves: Mapping[str, Curve]
    newer: Sequence[str]


# ---------------------------------------------------------------------------- reading


def _read(directory: str | os.PathLike[str]) -> _Found:
    folder, search = load_search(directory)
    known = {trial.trial for trial in search.trials if trial.ended}
    return _Found(
        folder=folder.path,
        asked=folder.asked,
        search=search,
        best=search.best,
        curves={trial.trial: _curve(folder, trial) for trial in search.trials},
        newer=[t.trial for t in folder.records() if t.ended and t.trial not in known],
    )


def _curve(folder: SearchFolder, trial: Trial) -> Curve:
    """Return a trial's (epoch, validation accuracy); none where its run folder is missing."""
    run = Path(trial.runs[0]) if trial.runs else Path("trials") / trial.trial
    file = folder.path / run / "metrics.csv"
    try:
        inside = file.resolve().is_relative_to(folder.path.resolve())
        found = file.stat() if inside else None
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInputError(f"{clean(str(file))}: cannot be read: {error}") from error
    if found is None:
        raise BadInputError(
            f"{clean(str(file))}: trial {trial.trial} has its run outside the search's folder; "
            "expected one inside it, such as trials/0000"
        )
    if not stat.S_ISREG(found.st_mode) or found.st_size > METRICS_LIMIT:
        raise BadInputError(f"{file}: expected a file of at most {METRICS_LIMIT:,} bytes")
    try:
        curve = folder.curve(trial)
    except KerasnetError:
        raise
    except OSError as error:
        raise EnvironmentFaultError(f"{file}: cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(
            f"{file}: expected the columns epoch and val_accuracy and numbers in them ({error}). "
            "Remove the file, and the report is written without this trial's curve"
        ) from error
    # A diverging run may end with NaN, and an accuracy outside of [0, 1] is none.
    return [(epoch, accuracy) for epoch, accuracy in curve if 0 <= accuracy <= 1]


# ---------------------------------------------------------------------------- the page


def write_search_report(directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a search folder, ended or not, and return its path.

    The same files give the same bytes; the page is replaced in one step.

    Args:
        directory: the folder that `kerasnet tune` wrote.

    Raises:
        BadInputError: it is no search folder, no trial has ended, or a file is damaged (named).
        EnvironmentFaultError: a file cannot be read, or the page cannot be written.
    """
    return _write_page(_read(directory))


def _write_page(found: _Found) -> Path:
    search = found.search
    # The figures of thousands of trials would show nothing; the best ones are what matters.
    kept = {trial.trial for trial in search.ranked[:TRIAL_ROWS]}
    kept |= {found.best.trial} if found.best else set()
    shown = search.model_copy(update={"trials": [t for t in search.trials if t.trial in kept]})
    axes = axes_of(found.asked.space, shown.trials)
    page = render(
        "search.html.j2",
        head=_headline(found),
        best=_best(found),
        where=_where(shown, axes, found.best),
        went=_went(shown, found),
        trials=_table(shown, axes, found),
        setup=_setup(found),
        ranges=_ranges(found.asked.space),
    )
    target = found.folder / "report.html"
    write_atomically(target, page.encode(errors="replace"))
    return target


def _headline(found: _Found) -> Context:
    """Return the title, the best score in large, and the facts beside it."""
    search, best = found.search, found.best
    states = Counter[str](trial.state for trial in search.trials)
    remark = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    limit = f"{search.limit_train:,} training images" if search.limit_train else "all images"
    facts = [
        ("Trials", f"{len(search.trials):,}", remark),
        ("Algorithm", search.algorithm, f"seed {search.seed}"),
        ("Epochs", f"{search.epochs:,}", "of the longest trial"),
        ("Images", limit, ""),
        ("Time", duration(search.seconds), "of all trials together"),
    ]
    if search.executions > 1:
        facts.append(("Executions", f"{search.executions:,}", "of each trial, by other seeds"))
    return {
        "model": clean(search.model),
        "dataset": clean(search.dataset),
        "space": clean(search.space),
        "recipe": clean(search.recipe),
        "remark": clean(search.data_remark or ""),
        "folder": clean(found.folder.resolve().name),
        "version": found.asked.kerasnet,
        "score": percent(best.val_accuracy) if best and best.val_accuracy is not None else "",
        "detail": _detail(best) if best else "",
        "facts": [tuple(map(clean, fact)) for fact in facts],
        "notes": _notes(found, states),
    }


def _detail(best: Trial) -> str:
    parts = [f"trial {best.trial}, {plural(best.epochs, 'epoch')}"]
    if best.best_epoch is not None:
        parts.append(f"its best epoch {best.best_epoch:,}")
    if len(best.scores) > 1:
        parts.append(f"mean of {len(best.scores)} executions ({_range(best)})")
    return ", ".join(parts)


def _range(trial: Trial) -> str:
    return f"{100 * min(trial.scores):.2f} – {percent(max(trial.scores))}"


def _notes(found: _Found, states: Counter[str]) -> Iterator[str]:
    """Yield what a reader must know before the numbers."""
    search = found.search
    ended = sum(trial.ended for trial in search.trials)
    if not search.complete:
        of = f" of {search.planned:,}" if search.planned else ""
        yield f"This search is unfinished: {plural(ended, 'trial')}{of} ended."
    if found.newer:
        yield (
            f"{plural(len(found.newer), 'trial')} ended after search.json was written and "
            "will show once the search has gone on."
        )
    if search.trials and states["diverged"] == len(search.trials):
        yield "Every trial diverged: search lower learning rates."
    elif found.best is None:
        yield "No trial was trained to its end: there is no best one yet."
    if (missing := _without_run(found)) and any(found.curves.values()):
        yield (
            f"{plural(missing, 'trial')} of those trained have no curve here: metrics.csv is "
            "missing from their run folders."
        )
    elif missing:
        yield "There are no learning curves: no run folder lies in trials/."


def _without_run(found: _Found) -> int:
    return sum(t.epochs > 0 and not found.curves[t.trial] for t in found.search.trials)


def _best(found: _Found) -> Context:
    """Return the best values and the line that retrains them."""
    best = found.best
    values = [(clean(path), _written(value)) for path, value in best.values.items()] if best else []
    # By where the folder is now; it may have been moved since.
    command = fit_command(SearchFolder(found.folder), found.asked.base) if best else ""
    return {"chosen": values, "command": clean(command)}


def _written(value: Any) -> str:
    """Return a value in full, as a configuration would say it."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return clean(repr(value) if isinstance(value, float) else str(value))


def _where(search: Search, axes: Sequence[Axis], best: Trial | None) -> Context:
    """Return the figures of scores over values."""
    rows = [axes[i : i + figures.AXES] for i in range(0, len(axes), figures.AXES)]
    numeric = [axis for axis in axes if axis.numeric]
    # The learning rate matters most, and first.
    numeric.sort(key=lambda axis: axis.path.rpartition(".")[2] != "learning_rate")
    panels = [
        {
            "title": f"Score against {shortened(axis.name, 40).replace('_', ' ')}, %",
            **figures.against(f"against{i}", axis, search, best, len(numeric) == 1),
        }
        for i, axis in enumerate(numeric[:PANELS])
    ]
    return {
        "parallel": [
            figures.parallel(f"parallel{i}", row, search.trials, best) for i, row in enumerate(rows)
        ],
        "panels": panels,
        "left_out": max(0, len(numeric) - PANELS),
        "several": any(len(trial.scores) > 1 for trial in search.trials),
    }


def _went(search: Search, found: _Found) -> Context:
    """Return the learning curves and the best score so far."""
    curves = {t.trial: found.curves[t.trial] for t in search.trials if found.curves[t.trial]}
    so_far = [score for score in figures.best_so_far(search.trials) if score is not None]
    return {
        "curves": figures.curves("curves", search, curves, found.best) if curves else None,
        "progress": figures.progress("progress", search, found.best) if search.trials else None,
        "falls": any(b < a for a, b in pairwise(so_far)),
        "continued": any(trial.continues for trial in search.trials),
        "several": search.executions > 1,
    }


def _table(search: Search, axes: Sequence[Axis], found: _Found) -> Context:
    """Return the trials, best first, as rows of text."""
    several = any(len(trial.scores) > 1 for trial in search.trials)
    columns = [(shortened(axis.name, 30).replace("_", " "), clean(axis.path)) for axis in axes]
    rows = []
    for trial in search.ranked:
        rows.append(
            {
                "trial": trial.trial,
                "best": found.best is not None and trial.trial == found.best.trial,
                "cells": [_cell(trial.values.get(axis.path)) for axis in axes],
                "state": trial.state,
                "score": "–" if trial.val_accuracy is None else percent(trial.val_accuracy),
                "range": _range(trial) if len(trial.scores) > 1 else "–",
                "best_epoch": "–" if trial.best_epoch is None else f"{trial.best_epoch:,}",
                "epochs": f"{trial.epochs:,}",
                "time": duration(trial.seconds),
                "continues": clean(trial.continues or "–"),
                "error": shortened(_one_line(trial.error or ""), ERROR_LENGTH),
            }
        )
    return {
        "columns": columns,
        "rows": rows,
        "several": several,
        "continued": any(trial.continues for trial in search.trials),
        "total": len(found.search.trials),
    }


def _cell(value: Any) -> str:
    return "–" if value is None else figures.label(value)


def _one_line(text: str) -> str:
    return clean(" ".join(text.split()))


def _setup(found: _Found) -> list[tuple[str, str]]:
    """Return how the trials were drawn and trained, in words."""
    asked, base = found.asked, found.asked.base
    rows = [
        ("Space", f"{asked.space_name}: {asked.space.description}".removesuffix(": ")),
        ("Model", base.architecture.name),
        ("Data", found.search.dataset),
        ("Recipe", base.recipe_name),
        ("Validation split", percent(base.recipe.validation_split, 0)),
        ("Batch size", f"{base.recipe.batch_size:,}"),
        ("Schedule", f"{base.recipe.schedule.type}, over {plural(base.horizon, 'epoch')}"),
        ("Precision", base.precision.resolved),
        ("Early stop", "of trials worse than the median" if asked.stop_early else "none"),
        ("First weights", base.weights or "drawn at random"),
    ]
    return [(name, clean(value)) for name, value in rows]


def _ranges(space: schema.Space) -> list[tuple[str, str]]:
    """Return each varied field with what it is drawn from."""
    rows = []
    for path, drawn in space.parameters.items():
        if isinstance(drawn, schema.Choice):
            listed = ", ".join(_written(value) for value in drawn.names[: figures.CHOICES])
            more = len(drawn.names) - figures.CHOICES
            said = f"one of {listed}" + (f" and {more} more" if more > 0 else "")
        else:
            kind = "a whole number" if isinstance(drawn, schema.IntRange) else "a number"
            ends = f"{figures.label(drawn.min)} to {figures.label(drawn.max)}"
            said = f"{kind} from {ends}" + (", its logarithm uniform" if drawn.log else "")
            if drawn.step is not None:
                said += f", in {'factors' if drawn.log else 'steps'} of {figures.label(drawn.step)}"
        if drawn.relative:
            said += ", times the field's own value"
        if drawn.when:
            said += "".join(
                f", where {parent} is {' or '.join(map(_written, values))}"
                for parent, values in drawn.when.items()
            )
        rows.append((clean(path), said))
    return rows


# ---------------------------------------------------------------------------- for programs


def search_csv(search: Search) -> str:
    """Return a search's trials as comma-separated values (RFC 4180), in the order begun.

    The columns are `COLUMNS` and the path of every varied field. `val_accuracy` is a fraction; what
    is absent is an empty cell; true and false are written so. Control characters in texts are
    replaced.
    """
    paths = list(dict.fromkeys(path for trial in search.trials for path in trial.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *map(clean, paths)])
    for trial in search.trials:
        given = {
            **trial.model_dump(),
            "error": None if trial.error is None else _one_line(trial.error),
        }
        cells = [given[name] for name in COLUMNS] + [trial.values.get(path) for path in paths]
        writer.writerow(["" if cell is None else _written(cell) for cell in cells])
    return out.getvalue()


def write_hparams(directory: str | os.PathLike[str], logdir: str | os.PathLike[str]) -> int:
    """Write a search folder as event files of TensorBoard's HParams plugin, a run for each trial.

    Args:
        directory: the folder that `kerasnet tune` wrote.
        logdir: what `tensorboard --logdir` is given; files of an earlier writing are replaced.

    Returns:
        How many runs were written.

    Raises:
        BadInputError: as `write_search_report`.
        EnvironmentFaultError: a file cannot be read or written.
    """
    return _write_hparams(_read(directory), logdir)


def _write_hparams(found: _Found, logdir: str | os.PathLike[str]) -> int:
    from kerasnet.tune.hparams import write_events

    # The file stays as it is, so the same search gives the same events whenever it is written.
    started = (found.folder / "search.yaml").stat().st_mtime
    return write_events(logdir, found.search, found.asked.space, found.curves, started)


def report(
    directory: str, as_json: bool, as_csv: bool, tensorboard: str | None,
    publish: str | None = None,
) -> None:  # fmt: skip
    """Print what a search found, or write its page and print the page's path.

    Args:
        directory: the folder that `kerasnet tune` wrote.
        as_json: print one object: the `Search`, and `curves`, the (epoch, validation accuracy)
            pairs by trial.
        as_csv: print `search_csv`.
        tensorboard: also write event files into this folder, and say so on stderr.
        publish: also write what was found to this file, without what concerns this machine alone,
            and say so on stderr.

    Raises:
        BadInputError: as `write_search_report`, or both JSON and CSV are asked for, or what is to
            be published is not complete.
        EnvironmentFaultError: a file cannot be read or written.
    """
    if as_json and as_csv:
        raise BadInputError("--json and --csv: expected one of them, received both")
    found = _read(directory)
    if tensorboard is not None:
        runs = plural(_write_hparams(found, tensorboard), "run")
        print(
            f"{runs} for TensorBoard: tensorboard --logdir {shlex.quote(tensorboard)}",
            file=sys.stderr,
        )
    if publish is not None:
        _publish(found, publish)
        print(f"{publish}: written", file=sys.stderr)
    if as_json:
        # By way of JSON, in which what is no finite number is null.
        plain = json.loads(found.search.model_dump_json())
        print(json.dumps({**plain, "curves": found.curves}, indent=2))
    elif as_csv:
        print(search_csv(found.search), end="")
    else:
        print(_write_page(found))


def _publish(found: _Found, file: str) -> None:
    if not found.search.complete:
        way = SearchFolder(found.folder).resume_command
        raise BadInputError(f"{found.folder}: the search is not complete. Go on with: {way}")
    if not file.endswith(".json"):
        raise BadInputError(f"--publish takes a file whose name ends in .json, not '{clean(file)}'")
    plain = {**found.search.published(), "curves": found.curves}
    write_atomically(Path(file), (json.dumps(plain, indent=2) + "\n").encode())
