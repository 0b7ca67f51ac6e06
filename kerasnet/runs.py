"""The run folder: what a training run writes, and how it is read back."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kerasnet import __version__, schema
from kerasnet.config import read_config
from kerasnet.document import to_yaml
from kerasnet.errors import BadInputError
from kerasnet.files import check_new, make_folder, write_atomically

METRICS = ("epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
TIMING = ("epoch", "seconds", "images_per_second", "validation_seconds")
_VERSIONS = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "keras-tuner")


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
        """Whether the run has ended and its test accuracy is known."""
        return (self.path / "summary.json").is_file()

    @property
    def last_weights(self) -> Path:
        """The newest weights."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def best_weights(self) -> Path:
        """The weights of the best validation accuracy; only where there is a validation split."""
        return self.path / "checkpoints" / "best.safetensors"

    def write_config(self, config: schema.RunConfig) -> None:
        """Write `config.yaml`."""
        again = f"kerasnet fit --config {self.path}/config.yaml"
        comment = f"Everything this run used. Repeat it with: {again}"
        self._write("config.yaml", to_yaml(config, comment=comment))

    def write_environment(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write `environment.json`: versions and hardware, and further facts."""
        versions = {name: _version(name) for name in _VERSIONS}
        known = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": _processor(),
            "cpus": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            **versions,
            **(facts or {}),
        }
        self._write("environment.json", json.dumps(known, indent=2) + "\n")

    def append(self, name: str, fields: tuple[str, ...], row: Mapping[str, Any]) -> None:
        """Append one row to `metrics.csv` or `timing.csv`, whole or not at all."""
        file = self.path / name
        text = file.read_text() if file.exists() else ",".join(fields) + "\n"
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([_cell(row.get(f)) for f in fields])
        self._write(name, text + line.getvalue())

    def metrics(self) -> list[dict[str, float | None]]:
        """Return the rows of `metrics.csv`; a cell that is empty is None."""
        file = self.path / "metrics.csv"
        if not file.exists():
            return []
        with file.open(newline="") as stream:
            return [
                {k: float(v) if v else None for k, v in row.items()}
                for row in csv.DictReader(stream)
            ]

    def write_predictions(
        self, labels: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any]
    ) -> None:
        """Write `predictions.npz`: labels int64 (N,), probabilities float32 (N, classes)."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, labels=labels.astype("int64"), probabilities=probabilities.astype("float32")
        )
        write_atomically(self.path / "predictions.npz", buffer.getvalue())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, which marks the run as finished."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` holds.

        Raises:
            BadInputError: the run has not finished, or the file is damaged.
        """
        file = self.path / "summary.json"
        try:
            return dict(json.loads(file.read_text()))
        except FileNotFoundError as error:
            raise BadInputError(f"{self.path}: this run has not finished") from error
        except ValueError as error:
            raise BadInputError(f"{file}: not JSON: {error}") from error

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
    make_folder(folder / "checkpoints")
    run = Run(folder)
    run.write_config(config.model_copy(update={"kerasnet": __version__}))
    return run


def load_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Raises:
        BadInputError: it is none.
    """
    folder = Path(path)
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
