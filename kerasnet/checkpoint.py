"""Checkpoints: everything a run needs to go on as if it had never stopped, in one checked file.

A checkpoint is a safetensors file. Its header carries the progress of the run and a SHA-256 of the
whole file, in which the checksum's own characters count as zeros. Reading one executes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kerasnet.errors import BadInputError
from kerasnet.files import read_bytes, write_atomically

Arrays = dict[str, np.ndarray[Any, Any]]
Row = dict[str, float | int | None]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_NAME = re.compile(r"step-([0-9]{8,12})\.safetensors")
_NO_SUM = b"0" * 64
_SUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')


class Rollback(BaseModel):
    """A return to a checkpoint after the loss was no longer finite."""

    model_config = ConfigDict(extra="forbid")

    diverged_at: int
    back_to: int
    learning_rate_scale: float


class Progress(BaseModel):
    """How far a run has come. Steps count the batches seen, from the run's first.

    Attributes:
        step: batches seen.
        metrics: the rows of `metrics.csv`, one for each epoch that has ended.
        timing: the rows of `timing.csv`.
        unvalidated: loss and accuracy of an epoch whose last step was done but which has no row.
        best: highest validation accuracy of an epoch, a fraction.
        learning_rate_scale: factor of every learning rate; below 1 after a rollback.
        rollbacks: the returns to a checkpoint so far.
        data: fingerprint of the training images.
        backend: of Keras; the others keep some of the state in other types.
        seconds: the run has taken, over all the processes that it went through.
        epoch_seconds: the epoch under way has taken in earlier processes.
        steady_seconds: of training, without each process's first step.
        steady_images: trained on in that time.
        first_step_seconds: of the latest process, mostly compilation.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    step: int = Field(0, ge=0)
    metrics: list[Row] = []
    timing: list[Row] = []
    unvalidated: dict[str, float] | None = None
    best: float | None = Field(None, ge=0, le=1)
    learning_rate_scale: float = Field(1.0, gt=0, le=1)
    rollbacks: list[Rollback] = []
    data: str = ""
    backend: str = ""
    seconds: Seconds = 0.0
    epoch_seconds: Seconds = 0.0
    steady_seconds: Seconds = 0.0
    steady_images: int = Field(0, ge=0)
    first_step_seconds: Seconds | None = None


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a file: the progress, and the state's arrays by name."""

    file: Path
    progress: Progress
    arrays: Arrays


class DamagedCheckpointError(BadInputError):
    """A checkpoint that is truncated, altered, or none."""


def checkpoint_files(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, the newest first; other files are left out."""
    found = [(int(m[1]), f) for f in folder.glob("step-*") if (m := _NAME.fullmatch(f.name))]
    return [file for _, file in sorted(found, reverse=True)]


def newest_step(folder: Path) -> int:
    """Return the step of a folder's newest checkpoint, 0 where there is none."""
    return max(
        (int(m[1]) for f in folder.glob("step-*") if (m := _NAME.fullmatch(f.name))), default=0
    )


def write_checkpoint(folder: Path, progress: Progress, arrays: Arrays, keep: int) -> Path:
    """Write a checkpoint durably, then remove all but the newest `keep`.

    Args:
        folder: where checkpoints are.
        progress: how far the run has come; its step names the file.
        arrays: the state, by name.
        keep: how many checkpoints stay, this one included.

    Raises:
        EnvironmentFaultError: it cannot be written; older checkpoints are left as they were.
    """
    from safetensors.numpy import save

    file = folder / f"step-{progress.step:08d}.safetensors"
    header = {"progress": progress.model_dump_json(), "sha256": _NO_SUM.decode()}
    content = memoryview(save(arrays, metadata=header))
    found = _SUM.search(content, 0, _header_end(content))
    assert found is not None, "safetensors writes the header first, as compact JSON"
    start, stop = found.span(1)
    total = hashlib.sha256(content).hexdigest().encode()
    write_atomically(file, content[:start], total, content[stop:])
    for old in checkpoint_files(folder)[keep:]:
        # One too many does no harm, and the new one is there.
        with contextlib.suppress(OSError):
            old.unlink()
    return file


def read_checkpoint(file: Path, max_bytes: int | None = None) -> Checkpoint:
    """Read a checkpoint and hold it against its checksum.

    Args:
        file: the checkpoint.
        max_bytes: a larger file is refused before it is read.

    Raises:
        DamagedCheckpointError: not one byte of it may differ from what was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = memoryview(_bytes(file, max_bytes))
    end = _header_end(content)
    found = _SUM.search(content, 0, end)
    if found is None:
        raise DamagedCheckpointError(f"{file}: is truncated, or no checkpoint: it has no checksum")
    start, stop = found.span(1)
    total = hashlib.sha256(content[:start])
    total.update(_NO_SUM)
    total.update(content[stop:])
    if total.hexdigest().encode() != found[1]:
        raise DamagedCheckpointError(f"{file}: is truncated or altered: its checksum differs")
    try:
        arrays = load(content.obj)
        header = json.loads(bytes(content[8:end]))["__metadata__"]
        return Checkpoint(file, Progress.model_validate_json(header["progress"]), arrays)
    # ValueError: of pydantic too.
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise DamagedCheckpointError(f"{file}: not a checkpoint of kerasnet: {error}") from error


def _bytes(file: Path, max_bytes: int | None) -> bytes:
    try:
        return read_bytes(file, file.stat().st_size if max_bytes is None else max_bytes)
    except (BadInputError, OSError) as error:
        raise DamagedCheckpointError(str(error)) from error


def _header_end(content: memoryview) -> int:
    return min(len(content), 8 + int.from_bytes(content[:8], "little"))


def newest_checkpoint(
    folder: Path, max_bytes: int | None, on_damaged: Callable[[DamagedCheckpointError], None]
) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None where there are no checkpoints.

    Damaged ones newer than it are renamed, so that they never count among those that are kept.

    Args:
        folder: where checkpoints are.
        max_bytes: a larger file counts as damaged.
        on_damaged: told of each that is passed over.

    Raises:
        BadInputError: there are checkpoints, and all of them are damaged.
    """
    damaged = []
    for file in checkpoint_files(folder):
        try:
            found = read_checkpoint(file, max_bytes)
        except DamagedCheckpointError as error:
            damaged.append((file, error))
            on_damaged(error)
        else:
            for bad, _ in damaged:
                with contextlib.suppress(OSError):
                    bad.replace(bad.with_suffix(".damaged"))
            return found
    if damaged:
        listed = "\n  ".join(str(error) for _, error in damaged)
        raise BadInputError(f"{folder}: every checkpoint is damaged:\n  {listed}")
    return None
