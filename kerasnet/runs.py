"""The run folder: what a training run writes, and how it is read back."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kerasnet import __version__, schema
from kerasnet.backend import cores
from kerasnet.checkpoint import newest_step
from kerasnet.config import read_config
from kerasnet.document import to_yaml
from kerasnet.errors import BadInputError
from kerasnet.files import (
    check_new,
    checked,
    locked,
    make_folder,
    read_json,
    remove_temporaries,
    write_atomically,
)

# What a folder of several runs has in place of a run's configuration.
SEEDS = "seeds.yaml"
METRICS = ("epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
TIMING = ("epoch", "seconds", "images_per_second", "validation_seconds", "checkpoint_seconds")
_VERSIONS = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "keras-tuner")


class Summary(BaseModel):
    """`summary.json`: what a finished run came to. Later versions may say more.

    A trial of a search has no test accuracy.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    model: str
    dataset: str
    recipe: str
    test_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    epochs: int
    data_remark: str | None = None
    test_loss: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    params: dict[str, int] = {}
    precision: str | None = None
    test_images: int | None = None
    run: str = ""


@dataclass(frozen=True)
class Run:
    """A run folder.

    It holds `config.yaml`, `metrics.csv`, `timing.csv`, `environment.json`, `checkpoints/`,
    `summary.json`, `predictions.npz` and `report.html`; the last three once training has ended.
    """

    path: Path

    @property
    def config(self) -> schema.RunConfig:
        """The resolved configuration; DocumentError where it is missing or wrong."""
        return read_config(self.path / "config.yaml")

    @property
    def finished(self) -> bool:
        """Whether the run has ended, and its test accuracy is known unless it was a trial."""
        return (self.path / "summary.json").is_file()

    @property
    def started(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.step > 0

    @property
    def step(self) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        return newest_step(self.checkpoints)

    def done(self, config: schema.RunConfig) -> bool:
        """Whether the run has ended and a configuration asks for nothing more."""
        return self.finished and config.recipe.epochs <= self.config.recipe.epochs

    @property
    def last_weights(self) -> Path:
        """The newest weights."""
        return self.checkpoints / "last.safetensors"

    @property
    def best_weights(self) -> Path:
        """The weights of the best validation accuracy; only where there is a validation split."""
        return self.checkpoints / "best.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints and weights."""
        return self.path / "checkpoints"

    @property
    def resume_command(self) -> str:
        """The shell line that goes on with this run."""
        return self.command_for(None)

    def command_for(self, config: schema.RunConfig | None) -> str:
        """Return the shell line that goes on with this run, by a configuration if it is another."""
        words = ["kerasnet", "fit", "--resume", str(self.path)]
        # Epochs that are still to be chosen are none that were asked for.
        chosen = None if config is None or config.epochs_open else config
        if chosen is not None and chosen.recipe.epochs != self.config.recipe.epochs:
            words += ["--epochs", str(chosen.recipe.epochs)]
            words += ["--rescale"] if chosen.horizon == chosen.recipe.epochs else []
        return shlex.join(words)

    def write_config(self, config: schema.RunConfig) -> None:
        """Write `config.yaml`."""
        again = shlex.join(["kerasnet", "fit", "--config", f"{self.path}/config.yaml"])
        comment = f"Everything this run used. Repeat it with: {again}"
        self._write("config.yaml", to_yaml(config, comment=comment))

    def write_environment(self, facts: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Write `environment.json`: versions and hardware, and further facts.

        Returns:
            The versions that were others when it was written before: name → (old, new).
        """
        versions = {name: _version(name) for name in _VERSIONS}
        known = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": _processor(),
            "cpus": cores(),
            **versions,
            **facts,
        }
        before = self._known_environment()
        self._write("environment.json", json.dumps(known, indent=2) + "\n")
        return {
            name: (str(before[name]), version)
            for name, version in versions.items()
            if name in before and before[name] != version
        }

    def _known_environment(self) -> dict[str, Any]:
        # It is written anew in any case; damage in it is no reason to stop.
        with contextlib.suppress(BadInputError):
            return read_object(self.path / "environment.json")
        return {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training this run; the lock goes with the process.

        Raises:
            BadInputError: another process trains it.
            EnvironmentFaultError: the folder cannot be written.
        """
        with locked(self.path, "trained"):
            yield

    def prepare(self) -> None:
        """Make the folder for checkpoints and remove what a killed process left half-written.

        Raises:
            BadInputError: `checkpoints` leads out of the run folder.
            EnvironmentFaultError: it cannot be made.
        """
        if self.checkpoints.is_symlink():
            raise BadInputError(
                f"{self.checkpoints}: is a link out of the run folder; expected a folder"
            )
        make_folder(self.checkpoints)
        for folder in (self.path, self.checkpoints):
            remove_temporaries(folder)

    def write_rows(
        self, name: str, fields: tuple[str, ...], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write `metrics.csv` or `timing.csv`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows([_cell(row.get(f)) for f in fields] for row in rows)
        self._write(name, text.getvalue())

    def metrics(self) -> list[dict[str, float | None]]:
        """Return the rows of `metrics.csv`; a cell that is empty is None.

        Raises:
            BadInputError: the file is not such a table.
        """
        return self._rows("metrics.csv")

    def timing(self) -> list[dict[str, float | None]]:
        """Return the rows of `timing.csv`, as `metrics` does."""
        return self._rows("timing.csv")

    def _rows(self, name: str) -> list[dict[str, float | None]]:
        file = self.path / name
        if not file.exists():
            return []
        try:
            with file.open(newline="") as stream:
                return [
                    {k: float(v) if v else None for k, v in row.items()}
                    for row in csv.DictReader(stream)
                ]
        except (ValueError, TypeError, csv.Error) as error:
            raise BadInputError(f"{file}: not a table of numbers: {error}") from error

    def write_predictions(
        self, labels: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any]
    ) -> None:
        """Write `predictions.npz`: labels int64 (N,), probabilities float32 (N, classes)."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, labels=labels.astype("int64"), probabilities=probabilities.astype("float32")
        )
        write_atomically(self.path / "predictions.npz", buffer.getvalue())

    def reopen(self) -> None:
        """Let a finished run be one that has not finished."""
        for name in ("summary.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, which marks the run as finished."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` holds.

        Raises:
            BadInputError: the run has not finished, or the file is damaged.
        """
        if not self.finished:
            raise BadInputError(
                f"{self.path}: this run has not finished. Go on with: {self.resume_command}"
            )
        file = self.path / "summary.json"
        found = read_object(file)
        checked(Summary, found, file, "a run's summary")
        return found

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())


def create_run(path: str | os.PathLike[str] | None, config: schema.RunConfig) -> Run:
    """Make a new run folder and write its configuration.

    Args:
        path: the folder; `runs/<model>-<dataset>-<time>` if not given.
        config: the resolved configuration.

    Raises:
        BadInputError: the folder exists and is not empty, or is a file.
        EnvironmentFaultError: it cannot be made.
    """
    folder = Path(path) if path else default_folder(config)
    check_new(folder)
    run = Run(make_folder(folder))
    with run.locked():
        # Once more, for another process may have begun a run here just now.
        check_new(folder)
        run.write_config(config.model_copy(update={"kerasnet": __version__}))
    return run


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object that a run's file holds.

    Raises:
        BadInputError: it cannot be read, or holds something else.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise BadInputError(f"{file}: expected a JSON object, received {type(found).__name__}")
    return found


def load_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Raises:
        BadInputError: it is none.
    """
    folder = Path(path)
    if (folder / SEEDS).is_file():
        raise BadInputError(
            f"{path}: holds the runs of several seeds, each in a folder of its own; name one of "
            f"them: {path}/seed-N"
        )
    if not (folder / "config.yaml").is_file():
        raise BadInputError(
            f"{path}: not a run folder: expected config.yaml in it. `kerasnet fit` makes one"
        )
    return Run(folder)


def default_folder(config: schema.RunConfig, prefix: str = "") -> Path:
    """Return `runs/<prefix><model>-<dataset>-<time>`, with a number behind it if it is taken."""
    dataset = Path(config.data.name).name or "data"
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{prefix}{config.architecture.name}-{dataset}-{stamp}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
