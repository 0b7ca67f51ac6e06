"""The search folder: what was asked, what each trial came to, and how both are read back.

`search.yaml` is written before TensorFlow loads and says everything that a process needs to take
part in the search or to go on with it. A trial's training is a run folder, `trials/<trial>` (and
`trials/<trial>-2` and so on where a point is trained several times); `records/<trial>.json` says
what is known of it. keras-tuner's own state lies in `keras-tuner/`; where it and a record differ,
the record is right. `search.json` and `best.yaml` are made from all of these and can be made again.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kerasnet import schema
from kerasnet.document import read, to_yaml, validate
from kerasnet.errors import BadInputError
from kerasnet.files import checked, read_json, write_atomically
from kerasnet.runs import Run

OBJECTIVE = "val_accuracy"
Fraction = Annotated[float, Field(ge=0, le=1)]
State = Literal["running", "interrupted", "finished", "stopped", "diverged", "failed"]


class Trial(BaseModel):
    """One point of a search and what became of it.

    A trial that ended is `finished`; `stopped`, early, for others were better after as many
    epochs; `diverged`, its loss no finite number; or `failed`, with its error. One that has not
    ended is `running` or, where no process trains it, `interrupted`. `attempts` counts how often a
    process began at the same `step` and was lost.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    trial: str = Field(pattern=r"^[0-9]{1,9}$")
    values: dict[str, bool | int | float | str | None]
    state: State
    val_accuracy: Fraction | None = None
    scores: list[Fraction] = []
    epochs: int = 0
    best_epoch: int | None = None
    seconds: float = 0.0
    runs: list[str] = []
    continues: str | None = None
    error: str | None = None
    exit_code: int = 0
    data_remark: str | None = None
    attempts: int = 0
    step: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more is trained for this trial."""
        return self.state not in ("running", "interrupted")


@dataclass(frozen=True)
class SearchFolder:
    """The folder of a search."""

    path: Path

    @property
    def asked(self) -> schema.SearchConfig:
        """What was asked for; DocumentError where it is missing or wrong."""
        return validate(schema.SearchConfig, read(self.path / "search.yaml"))

    @property
    def resume_command(self) -> str:
        """The shell line that goes on with this search."""
        return shlex.join(["kerasnet", "tune", "--resume", str(self.path)])

    def run(self, trial: str, execution: int = 0) -> Run:
        """Return a trial's run folder; `execution` counts from 0."""
        name = trial if execution == 0 else f"{trial}-{execution + 1}"
        return Run(self.path / "trials" / name)

    def write_asked(self, asked: schema.SearchConfig) -> None:
        """Write `search.yaml`."""
        comment = f"What this search was asked for. Go on with it: {self.resume_command}"
        text = to_yaml(asked, comment=comment)
        write_atomically(self.path / "search.yaml", text.encode())

    def record(self, trial: str) -> Trial | None:
        """Return what is known of a trial, None where it was never begun.

        Raises:
            BadInputError: the file is damaged.
        """
        file = self.path / "records" / f"{trial}.json"
        return _read_trial(file) if file.is_file() else None

    def write_record(self, trial: Trial) -> None:
        """Write what is known of a trial."""
        text = json.dumps(trial.model_dump(mode="json"), indent=2) + "\n"
        write_atomically(self.path / "records" / f"{trial.trial}.json", text.encode())

    def records(self) -> list[Trial]:
        """Return the trials that were begun, in that order.

        Raises:
            BadInputError: a file is damaged.
        """
        found = [_read_trial(file) for file in (self.path / "records").glob("*.json")]
        return sorted(found, key=lambda trial: int(trial.trial))

    def curve(self, trial: Trial) -> list[tuple[int, float]]:
        """Return (epoch, validation accuracy) of a trial's first execution, so far as trained."""
        run = Run(self.path / trial.runs[0]) if trial.runs else self.run(trial.trial)
        rows = run.metrics()
        curve = [(int(row["epoch"] or 0), row[OBJECTIVE]) for row in rows]
        return [
            (epoch, accuracy)
            for epoch, accuracy in curve
            if accuracy is not None and (not trial.ended or epoch <= trial.epochs)
        ]


def open_search(path: str | os.PathLike[str]) -> SearchFolder:
    """Open a search folder.

    Raises:
        BadInputError: it is none.
    """
    folder = Path(path)
    if not (folder / "search.yaml").is_file():
        raise BadInputError(
            f"{path}: not a search folder: expected search.yaml in it. `kerasnet tune` makes one"
        )
    return SearchFolder(folder)


def _read_trial(file: Path) -> Trial:
    what = "a trial's record (without the file the trial is looked at again)"
    return checked(Trial, read_json(file), file, what)


class Search(BaseModel):
    """What a search found; the trials are in the order they were begun.

    It is the object that `kerasnet tune --json` prints and `search.json` holds.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    dataset: str
    data_remark: str | None = None
    recipe: str
    space: str
    algorithm: str
    seed: int
    epochs: int
    executions: int
    limit_train: int | None = None
    precision: str | None = None
    planned: int | None = None
    complete: bool
    seconds: float
    trials: list[Trial]
    best: Trial | None = None
    command: str | None = None

    def published(self) -> dict[str, Any]:
        """Return it as JSON without what concerns one machine alone, such as folders."""
        from kerasnet.data.places import without_place

        of_trials = {"data_remark", "runs", "attempts", "step", "exit_code"}
        plain = self.model_dump(
            mode="json", exclude={"command": True, "trials": {"__all__": of_trials},
                                  "best": of_trials},
        )  # fmt: skip
        return {**plain, "data_remark": without_place(self.data_remark or "")}

    @property
    def ranked(self) -> list[Trial]:
        """The trials, best first; those without a score last."""
        return sorted(self.trials, key=lambda t: -1.0 if t.val_accuracy is None else t.val_accuracy,
                      reverse=True)  # fmt: skip


def best_of(trials: list[Trial], algorithm: str) -> Trial | None:
    """Return the trial of the highest validation accuracy among those trained to their end."""
    finished = [t for t in trials if t.state == "finished" and t.val_accuracy is not None]
    if algorithm == "hyperband":
        # Only those that came to the longest training can be compared.
        longest = max((t.epochs for t in finished), default=0)
        finished = [t for t in finished if t.epochs == longest]
    return max(finished, key=lambda t: t.val_accuracy or 0.0, default=None)


def load_search(path: str | os.PathLike[str]) -> tuple[SearchFolder, Search]:
    """Return a search folder and what was found in it so far.

    Raises:
        BadInputError: it is no search folder, or nothing has been written there yet.
    """
    folder = open_search(path)
    file = folder.path / "search.json"
    if not file.is_file():
        raise BadInputError(
            f"{path}: no trial has ended yet; look again later, or go on with: "
            f"{folder.resume_command}"
        )
    return folder, checked(Search, read_json(file), file, "a search's outcome")


def shown_value(value: Any) -> str:
    """Write a value of a search space for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_names(paths: Mapping[str, Any] | list[str]) -> dict[str, str]:
    """Return the shortest ends of dotted paths that tell them apart, by path."""
    found = {}
    for path in paths:
        parts = path.split(".")
        for n in range(1, len(parts) + 1):
            end = ".".join(parts[-n:])
            if sum(other == end or other.endswith(f".{end}") for other in paths) == 1:
                break
        found[path] = end
    return found
