"""A search as TensorBoard's HParams plugin reads it, written without TensorFlow."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kerasnet import schema
from kerasnet.errors import EnvironmentFaultError
from kerasnet.files import write_atomically
from kerasnet.page import clean
from kerasnet.tune.figures import Axis, Curve, axes_of, real
from kerasnet.tune.records import OBJECTIVE, Search, Trial

SCORE = "score"
# TensorBoard reads every file with `tfevents` in its name; one name keeps a second writing from
# adding to the first.
FILE = "events.out.tfevents.0.kerasnet"

Event = tuple[float, int, Any]  # seconds since 1970, step, tensorboard's Summary


def write_events(
    logdir: str | os.PathLike[str],
    search: Search,
    space: schema.Space,
    curves: Mapping[str, Curve],
    started: float,
) -> int:
    """Write a run for each trial: its values, its accuracy by epoch, its score.

    Files of an earlier writing are replaced, so a search that went on is written again in place.
    The runs are called after the trials: give each search its own `logdir`.

    Args:
        logdir: what `tensorboard --logdir` is given.
        search: what was found.
        space: what the trials were drawn from.
        curves: (epoch, validation accuracy as a fraction) by trial.
        started: when the search began, in seconds since 1970.

    Returns:
        How many runs were written.

    Raises:
        EnvironmentFaultError: a file cannot be written, or TensorBoard cannot be imported.
    """
    try:
        from tensorboard.plugins.hparams import summary_v2 as plugin
    except ImportError as error:
        raise EnvironmentFaultError(
            f"TensorBoard cannot be imported: {error}. Install it with: pip install tensorboard"
        ) from error
    folder, trials = Path(logdir), {trial.trial: trial for trial in search.trials}
    metrics = [plugin.Metric(OBJECTIVE, display_name="validation accuracy"),
               plugin.Metric(SCORE, display_name="score")]  # fmt: skip
    fields = [_field(axis) for axis in axes_of(space, search.trials)]
    experiment = plugin.hparams_config_pb(fields, metrics, time_created_secs=started)
    _write(folder / FILE, started, [(started, 0, experiment)])
    for name, trial in trials.items():
        _write(folder / name / FILE, started, _events(trial, curves.get(name, ()), started))
    return len(trials)


def _field(axis: Axis) -> Any:
    """Return a field as the plugin's `HParam`; it has no domain where values are of two kinds."""
    from tensorboard.plugins.hparams import summary_v2 as plugin

    name, shown = clean(axis.path), axis.name
    if not axis.choices:
        return plugin.HParam(name, plugin.RealInterval(axis.low, axis.high), display_name=shown)
    values = [_plain(value) for value in axis.choices]
    if len({type(value) for value in values}) == 1:
        return plugin.HParam(name, plugin.Discrete(values), display_name=shown)
    return plugin.HParam(name, display_name=shown)


def _plain(value: Any) -> Any:
    """Return a value as the plugin can hold it."""
    if isinstance(value, bool):
        return value
    return value if real(value) is not None else clean(str(value))


def _events(trial: Trial, curve: Curve, started: float) -> list[Event]:
    """Return a trial's events; epochs are taken to have lasted equally long."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.plugins.hparams import summary_v2 as plugin
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    seconds = trial.seconds if 0 <= trial.seconds < 1e9 else 0.0
    ended = started + seconds
    values = {clean(p): _plain(v) for p, v in trial.values.items() if v is not None}
    first = plugin.hparams_pb(values, trial_id=trial.trial, start_time_secs=started)
    events: list[Event] = [(started, 0, first)]
    for number, (epoch, accuracy) in enumerate(curve, start=1):
        at = started + seconds * number / len(curve)
        events.append((at, _step(epoch), scalar_pb(OBJECTIVE, accuracy)))
    if trial.val_accuracy is not None:
        events.append((ended, _step(trial.epochs), scalar_pb(SCORE, trial.val_accuracy)))
    if trial.state == "running":
        return events
    status = {
        "finished": api_pb2.STATUS_SUCCESS,
        "stopped": api_pb2.STATUS_SUCCESS,
        "interrupted": api_pb2.STATUS_UNKNOWN,
    }.get(trial.state, api_pb2.STATUS_FAILURE)
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended)
    last = plugin._summary_pb(
        metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)
    )
    return [*events, (ended, 0, last)]


def _step(epoch: int) -> int:
    return min(max(epoch, 0), 2**31)


def _write(file: Path, started: float, events: Iterable[Event]) -> None:
    """Write an event file whole: tensorboard's own writer adds to a folder, and may load TF."""
    from tensorboard.compat.proto.event_pb2 import Event as Record
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Record(wall_time=started, file_version="brain.Event:2").SerializeToString())
    for time, step, summary in events:
        assert math.isfinite(time)
        writer.write(Record(wall_time=time, step=step, summary=summary).SerializeToString())
    write_atomically(file, buffer.getvalue())
