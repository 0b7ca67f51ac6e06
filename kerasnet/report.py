"""A run folder as one HTML page that needs nothing but itself.

`write_report` reads what a run left behind (see `kerasnet/runs.py`), never the run's memory, so it
works on a finished run, on one that is still going and on one that was killed. Figures are drawn
by matplotlib into inline SVG whose colours are CSS variables; the page has no script and loads
nothing. matplotlib, Jinja2 and scikit-learn are imported where they are used: importing this
module is quick and never brings in TensorFlow.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.files import write_atomically
from kerasnet.page import (
    COOL,
    INK,
    MUTED,
    PAPER,
    WARM,
    clean,
    draw,
    label_values,
    number,
    percent,
    plural,
    render,
    round_values,
    shortened,
)
from kerasnet.progress import duration
from kerasnet.runs import METRICS, TIMING, Summary
from kerasnet.schema import RunConfig

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Context = dict[str, Any]

COMMAND = "kerasnet fit --config config.yaml"

MATRIX_CLASSES = 20  # beyond this the cells of a confusion matrix are too small to read
PAIR_ROWS = 20
MISTAKE_ROWS = 12
CLASS_ROWS = 50
EPOCH_ROWS = 100
CALIBRATION_BINS = 15

# ---------------------------------------------------------------------------- statistics


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, as fractions (Wilson 1927).

    It stays inside [0, 1] and keeps its coverage near 100 %, where the normal one does not.

    Args:
        correct: how many of the trials succeeded.
        total: how many trials there were.
        z: half-width in standard deviations; the default gives 95 %.

    Raises:
        BadInputError: unless 0 ≤ correct ≤ total and total ≥ 1.
    """
    if total < 1 or not 0 <= correct <= total:
        raise BadInputError(
            f"wilson_interval: expected 0 ≤ correct ≤ total and total ≥ 1, "
            f"received correct={correct}, total={total}."
        )
    share = correct / total
    weight = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the bound is 0 or 1 exactly; rounding would leave it a hair off.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Reliability:
    """Predictions binned by confidence; `accuracy` and `confidence` are NaN in empty bins."""

    edges: FloatArray
    counts: IntArray
    accuracy: FloatArray
    confidence: FloatArray

    @property
    def error(self) -> float:
        """The expected calibration error, as a fraction (Guo et al. 2017, equation 3)."""
        used = self.counts > 0
        gaps = np.abs(self.accuracy[used] - self.confidence[used])
        return float(np.sum(self.counts[used] * gaps) / np.sum(self.counts))


def reliability(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = CALIBRATION_BINS
) -> Reliability:
    """Bin predictions by confidence, in `bins` equal intervals open below, closed above.

    Args:
        confidence: probability of the predicted class, in [0, 1], one for each example.
        correct: whether the prediction was right, one for each example.
        bins: how many intervals (Guo et al. 2017 use 15).

    Raises:
        BadInputError: if there is no example, or the two differ in length.
    """
    sure = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if sure.ndim != 1 or sure.shape != right.shape or sure.size == 0 or bins < 1:
        raise BadInputError(
            "reliability: expected two lists of the same length, at least 1, and at least 1 bin, "
            f"received shapes {sure.shape} and {right.shape} and {bins} bins."
        )
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.digitize(sure, edges[1:-1], right=True)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin is the NaN we want
        accuracy = np.bincount(place, weights=right, minlength=bins) / counts
        mean = np.bincount(place, weights=sure, minlength=bins) / counts
    return Reliability(edges, counts.astype(np.int64), accuracy, mean)


def expected_calibration_error(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = CALIBRATION_BINS
) -> float:
    """Return the mean gap between confidence and accuracy, as a fraction (Guo et al. 2017).

    Arguments and errors are those of `reliability`.
    """
    return reliability(confidence, correct, bins).error


# ---------------------------------------------------------------------------- reading


class TestedSummary(Summary):
    """The summary of a run whose test accuracy was measured."""

    test_accuracy: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Predictions:
    """`predictions.npz`, checked: (N,) labels and (N, C) probabilities, N ≥ 1."""

    labels: IntArray
    probabilities: npt.NDArray[np.float32]
    predicted: IntArray
    confidence: FloatArray

    @property
    def right(self) -> BoolArray:
        """Whether each example's most probable class is its label."""
        return np.asarray(self.predicted == self.labels, dtype=np.bool_)


@dataclass(frozen=True)
class _Run:
    """A run folder's files, each None where it is missing or empty."""

    folder: Path
    config: RunConfig | None
    config_text: str | None
    metrics: Mapping[str, FloatArray] | None
    timing: Mapping[str, FloatArray] | None
    environment: Mapping[str, Any] | None
    summary: TestedSummary | None
    predictions: Predictions | None
    names: Sequence[str] = field(default_factory=list)


def _corrupt(path: Path, expected: str, received: str) -> BadInputError:
    return BadInputError(
        f"{path}: expected {expected}, received {received}. "
        "Remove the file to write the report without it, or restore it from a copy of the run."
    )


def _read_text(path: Path) -> str | None:
    """Return a file's text, or None if it is missing or blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise _corrupt(path, "text in UTF-8", f"bytes that are not ({error.reason})") from error
    except OSError as error:
        raise EnvironmentFaultError(f"{path}: cannot be read: {error.strerror}.") from error
    return text if text.strip() else None


def _first_complaint(error: Exception) -> str:
    """Return the first thing an exception complains about, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"at '{where}': {first['msg']}" if where else str(first["msg"])
    return " ".join(str(error).split()) or type(error).__name__


def _read_config(path: Path) -> tuple[RunConfig | None, str | None]:
    text = _read_text(path)
    if text is None:
        return None, None
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        config = RunConfig.model_validate(YAML(typ="safe", pure=True).load(text))
    except (YAMLError, ValueError, RecursionError) as error:
        raise _corrupt(path, "a run's configuration", _first_complaint(error)) from error
    return config, text


def _read_json(path: Path) -> dict[str, Any] | None:
    text = _read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "JSON", _first_complaint(error)) from error
    if not isinstance(value, dict):
        raise _corrupt(path, "a JSON object", type(value).__name__)
    return value


def _read_summary(path: Path) -> TestedSummary | None:
    value = _read_json(path)
    if value is None:
        return None
    try:
        return TestedSummary.model_validate(value)
    except ValidationError as error:
        raise _corrupt(path, "a run's summary", _first_complaint(error)) from error


def _read_table(path: Path, columns: Sequence[str]) -> dict[str, FloatArray] | None:
    """Read a CSV file of numbers, by epoch; an empty cell is NaN."""
    text = _read_text(path)
    if text is None:
        return None
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise _corrupt(path, "comma-separated values", str(error)) from error
    header = rows.pop(0)
    absent = [name for name in columns if name not in header]
    if absent:
        raise _corrupt(path, f"the columns {', '.join(columns)}", f"no column '{absent[0]}'")
    if rows and not text.endswith("\n") and len(rows[-1]) != len(header):
        rows.pop()  # a process that was killed, or is writing now, leaves half a line
    by_epoch: dict[float, list[float]] = {}
    for line, row in enumerate(rows, start=2):
        if row:
            values = _numbers(path, line, row, header, columns)
            by_epoch[values[0]] = values  # a resumed run may say an epoch twice: the last counts
    if not by_epoch:
        return None
    table = np.array([by_epoch[epoch] for epoch in sorted(by_epoch)], dtype=np.float64)
    return {name: table[:, index] for index, name in enumerate(columns)}


def _numbers(
    path: Path, line: int, row: list[str], header: list[str], columns: Sequence[str]
) -> list[float]:
    """Return one CSV row's numbers in the order of `columns`, the first of which is the epoch."""
    if len(row) != len(header):
        raise _corrupt(path, f"{len(header)} values in line {line}", str(len(row)))
    cells = dict(zip(header, row, strict=True))
    values = []
    for name in columns:
        cell = cells[name].strip()
        try:
            values.append(float(cell) if cell else math.nan)
        except ValueError as error:
            raise _corrupt(path, f"a number for {name} in line {line}", repr(cell)) from error
    if not math.isfinite(values[0]):
        raise _corrupt(path, f"the epoch's number in line {line}", repr(row[0]))
    return values


def read_predictions(path: Path, classes: int | None) -> Predictions | None:
    """Return what a `predictions.npz` holds, None where it is missing or empty.

    Args:
        path: the file, which may come from a stranger.
        classes: how many there must be, if that is known.

    Raises:
        BadInputError: it is damaged, or labels and probabilities do not fit each other.
        EnvironmentFaultError: it cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            labels = np.asarray(archive["labels"])
            probabilities = np.asarray(archive["probabilities"])
    except PermissionError as error:
        raise EnvironmentFaultError(f"{path}: cannot be read: {error.strerror}.") from error
    # What a broken archive raises depends on where it broke; a bare array is no context manager.
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise _corrupt(path, "labels and probabilities", _first_complaint(error)) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise _corrupt(path, "a NumPy archive", _first_complaint(error)) from error
    if labels.shape == (0,):
        return None
    _check_predictions(path, labels, probabilities, classes)
    predicted = np.argmax(probabilities, axis=1).astype(np.int64)
    confidence = np.max(probabilities, axis=1).astype(np.float64).clip(0.0, 1.0)
    return Predictions(
        labels.astype(np.int64), probabilities.astype(np.float32), predicted, confidence
    )


def _check_predictions(
    path: Path, labels: npt.NDArray[Any], probabilities: npt.NDArray[Any], classes: int | None
) -> None:
    """Raise BadInputError unless labels and probabilities fit each other and the run."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _corrupt(path, "whole-number labels (N,)", f"{labels.dtype} {labels.shape}")
    if probabilities.ndim != 2 or probabilities.dtype.kind != "f" or probabilities.shape[1] < 1:
        received = f"{probabilities.dtype} {probabilities.shape}"
        raise _corrupt(path, "probabilities (N, classes)", received)
    if len(labels) != len(probabilities):
        raise _corrupt(path, f"{len(labels)} rows of probabilities", str(len(probabilities)))
    width = probabilities.shape[1]
    if classes is not None and width != classes:
        raise _corrupt(path, f"{classes} classes as in config.yaml", str(width))
    if labels.min() < 0 or labels.max() >= width:
        received = f"{labels.min()} to {labels.max()}"
        raise _corrupt(path, f"labels from 0 to {width - 1}", received)
    # A softmax in low precision sums to one within a few parts in a thousand.
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if not np.all(np.abs(sums - 1) < 0.02) or probabilities.min() < 0:
        raise _corrupt(path, "probabilities that sum to 1", "others (logits, or NaN?)")


def _class_names(path: Path, config: RunConfig | None, classes: int) -> list[str]:
    """Return a name for each class: the run's, else the data set's, else its number."""
    if config is not None and config.inference is not None and config.inference.class_names:
        names = config.inference.class_names
        if len(names) != classes:
            raise _corrupt(path, f"{classes} names in inference.class_names", str(len(names)))
        return [clean(name) for name in names]
    if config is not None and config.data.spec.class_names is not None:
        names = config.data.spec.class_names
        if len(names) == classes:
            return [clean(name) for name in names]
    return [str(index) for index in range(classes)]


def _read_run(folder: Path) -> _Run:
    if not folder.is_dir():
        raise BadInputError(f"{folder}: expected a run folder, received no folder of that name.")
    config, text = _read_config(folder / "config.yaml")
    classes = config.classes if config else None
    predictions = read_predictions(folder / "predictions.npz", classes)
    width = predictions.probabilities.shape[1] if predictions else (classes or 0)
    run = _Run(
        folder=folder,
        config=config,
        config_text=text,
        metrics=_read_table(folder / "metrics.csv", METRICS),
        # Older runs did not time their checkpoints, which a report does not show.
        timing=_read_table(folder / "timing.csv", TIMING[:4]),
        environment=_read_json(folder / "environment.json"),
        summary=_read_summary(folder / "summary.json"),
        predictions=predictions,
        names=_class_names(folder / "config.yaml", config, width),
    )
    if all(part is None for part in (config, run.metrics, run.summary, predictions)):
        raise BadInputError(
            f"{folder}: expected a run folder with config.yaml, metrics.csv and the like, received "
            "one with none of them. Name the folder that `kerasnet fit` printed."
        )
    return run


# ---------------------------------------------------------------------------- wording


def _phrase(part: BaseModel) -> str:
    """Return a piece of configuration as `sgd: learning rate 0.1, momentum 0.9, nesterov`."""
    words = []
    for key, value in part.model_dump(exclude_none=True, exclude={"type"}).items():
        if value is False:
            continue
        name = key.replace("_", " ")
        if value is True:
            words.append(name)
        elif isinstance(value, dict):
            inner = " ".join(f"{k} {v}" for k, v in value.items())
            words.append(f"{name} ({inner})")
        else:
            words.append(f"{name} {value}")
    kind = getattr(part, "type", None)
    listed = ", ".join(words)
    return f"{kind}: {listed}" if kind and listed else str(kind or listed or "none")


# ---------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _Line:
    """One curve: its name, its values by epoch (NaN: a gap), its colour."""

    name: str
    values: FloatArray
    colour: str


def _paint_curves(axes: Any, epochs: FloatArray, lines: Sequence[_Line]) -> None:
    """Draw curves over epochs, and write each one's name at its end."""
    from matplotlib.ticker import MaxNLocator

    margin = 0.03 * float(epochs[-1] - epochs[0]) or 0.5
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.set_xlabel("epoch")
    for line in lines:
        values = np.where(np.isfinite(line.values), line.values, np.nan)
        axes.plot(epochs, values, color=line.colour, solid_capstyle="round")
        shown = np.isfinite(values)
        if len(epochs) > 25:  # there, only points with gaps on both sides need a dot to be seen
            padded = np.pad(shown, 1)
            shown = shown & ~padded[:-2] & ~padded[2:]
        axes.plot(epochs[shown], values[shown], "o", color=line.colour, mew=0, clip_on=False)
    if len(lines) > 1:
        _name_ends(axes, epochs, lines)


def _name_ends(axes: Any, epochs: FloatArray, lines: Sequence[_Line]) -> None:
    """Write each line's name beside its last point, pushed apart where they would touch."""
    axes.get_ylim()  # settles the limits that the transforms below depend on
    ends = []
    for line in lines:
        shown = np.flatnonzero(np.isfinite(line.values))
        if len(shown):
            point = (epochs[shown[-1]], line.values[shown[-1]])
            place = axes.transAxes.inverted().transform(axes.transData.transform(point))
            ends.append((float(place[1]), line))
    ends.sort(key=lambda end: end[0])
    heights = [height for height, _ in ends]
    if len(heights) == 2 and heights[1] - heights[0] < 0.1:
        middle = sum(heights) / 2
        heights = [middle - 0.05, middle + 0.05]
    for height, (_, line) in zip(heights, ends, strict=True):
        axes.text(1.01, height, line.name, color=line.colour, va="center", transform=axes.transAxes)


def _curves(
    key: str, title: str, epochs: FloatArray, lines: Sequence[_Line], **options: bool
) -> Context:
    """Return one of the small figures over epochs; `log` and `zero` set the vertical axis."""
    finite = [line.values[np.isfinite(line.values)] for line in lines]
    gaps = sum(line.values.size - f.size for line, f in zip(lines, finite, strict=True))
    told = ", ".join(
        f"{line.name} from {number(f[0])} to {number(f[-1])}"
        for line, f in zip(lines, finite, strict=True)
        if f.size
    )

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        if options.get("log"):
            axes.set_yscale("log")
        _paint_curves(axes, epochs, lines)
        if options.get("log"):
            low, high = axes.get_ylim()
            label_values(axes.yaxis, round_values(low, high, log=True))
        if options.get("zero"):
            axes.set_ylim(bottom=0)

    span = f"epochs {number(epochs[0])} to {number(epochs[-1])}"
    figure = draw(key, f"{title} over {span}: {told or 'no finite value'}.", (4.4, 2.5), paint)
    remark = f"{plural(gaps, 'value')} not finite: shown as gaps." if gaps else ""
    return {**figure, "title": title, "remark": remark}


def _matrix(counts: IntArray, names: Sequence[str]) -> Context:
    """Return the confusion matrix as a figure; rows are true classes, columns predictions."""
    classes = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    short = [shortened(name, 14) for name in names]
    side = 2.6 + 0.26 * classes
    size = _cell_font(72 * (side - 1.5) / classes, len(str(counts.max())))

    def paint(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot(xlim=(0, classes), ylim=(classes, 0), aspect="equal")
        for (row, column), count in np.ndenumerate(counts):
            # The square root keeps a mistake of one in a hundred visible beside the diagonal.
            depth = math.sqrt(shares[row, column])
            colour = COOL if row == column else WARM
            if count:
                box = Rectangle((column, row), 1, 1, color=colour, alpha=depth, linewidth=0)
                axes.add_patch(box)
            ink = PAPER if depth > 0.75 else INK if count else MUTED
            middle = (column + 0.5, row + 0.5)
            axes.text(*middle, str(count), color=ink, ha="center", va="center", size=size)
        ticks = np.arange(classes) + 0.5
        axes.set_xticks(ticks, short, rotation=90 if max(map(len, short)) > 3 else 0)
        axes.set_yticks(ticks, short)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    pairs = _confused(*_as_pairs(counts), names, np.sum(counts, axis=1), rows=3)
    worst = "; ".join(f"{p['true']} taken for {p['predicted']}, {p['count']} times" for p in pairs)
    label = f"Confusion matrix of {classes} classes. Most frequent mistakes: {worst or 'none'}."
    return draw("confusion", label, (side, side), paint)


def _cell_font(width: float, digits: int) -> float:
    """Return the font size at which a number fits a cell; both in points."""
    return min(8.0, 0.85 * width / (0.62 * digits))


def _calibration(binned: Reliability) -> Context:
    """Return the reliability diagram, with the histogram of confidence under it."""
    width = 1 / len(binned.counts)
    left = binned.edges[:-1]
    used = binned.counts > 0

    def paint(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        inner = {"width": 0.86 * width, "align": "edge", "linewidth": 0}
        start = left[used] + 0.07 * width
        top.bar(start, binned.accuracy[used], color=COOL, alpha=0.55, **inner)
        ends = (left[used], left[used] + width)
        top.hlines(binned.confidence[used], *ends, color=WARM, linewidth=2)
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, dashes=(3, 3))
        top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        bottom.bar(start, binned.counts[used] / binned.counts.sum(), color=MUTED, **inner)
        bottom.set(xlabel="confidence", ylabel="share", ylim=(0, 1))
        bottom.set_yticks([0, 0.5, 1])

    mean = float(np.sum(binned.counts[used] * binned.confidence[used]) / binned.counts.sum())
    label = (
        f"Reliability diagram in {len(binned.counts)} bins: expected calibration error "
        f"{percent(binned.error)}, mean confidence {percent(mean)}."
    )
    return draw("reliability", label, (3.6, 3.9), paint)


# ---------------------------------------------------------------------------- sections


def _headline(run: _Run) -> Context:
    """Return the title, the accuracy in large, and the facts beside it."""
    summary, config, metrics = run.summary, run.config, run.metrics
    name = summary.model if summary else config.architecture.name if config else run.folder.name
    data = summary.dataset if summary else config.data.name if config else ""
    context: Context = {
        "model": clean(name),
        "dataset": clean(data),
        "remark": summary.data_remark if summary else None,
        "folder": run.folder.resolve().name,
        "version": config.kerasnet if config else None,
        "notes": [],
        "facts": _facts(run),
    }
    if summary is None:
        done = int(metrics["epoch"][-1]) if metrics else 0
        of = f" of {config.recipe.epochs:,}" if config else ""
        context["notes"].append(
            f"This run is unfinished: {done:,}{of} epochs are done, "
            "and summary.json has not been written."
        )
    return {**context, **_accuracy(run, context["notes"])}


def _accuracy(run: _Run, notes: list[str]) -> Context:
    """Return the headline's number; what the run's files disagree on goes to `notes`."""
    summary, metrics = run.summary, run.metrics
    if run.predictions is not None:
        right = run.predictions.right
        correct, total = int(right.sum()), right.size
        if summary and abs(summary.test_accuracy - correct / total) > 0.5 / total:
            notes.append(
                f"summary.json says {percent(summary.test_accuracy)} and predictions.npz "
                f"{percent(correct / total)}: are they from the same run? "
                "This page follows the predictions."
            )
        low, high = wilson_interval(correct, total)
        between = f"95 % interval (Wilson) {100 * low:.2f} – {percent(high)}"
        detail = f"{between}, {correct:,} of {plural(total, 'test image')}"
        return {"accuracy": percent(correct / total), "kind": "test accuracy", "detail": detail}
    if summary:
        detail = "No interval: predictions.npz is missing or empty."
        return {
            "accuracy": percent(summary.test_accuracy),
            "kind": "test accuracy",
            "detail": detail,
        }
    for column, kind in (("val_accuracy", "validation accuracy"), ("accuracy", "train accuracy")):
        if metrics is None or not np.isfinite(metrics[column]).any():
            continue
        known = np.flatnonzero(np.isfinite(metrics[column]))
        detail = f"after epoch {number(metrics['epoch'][known[-1]])}"
        value = percent(float(metrics[column][known[-1]]))
        return {"accuracy": value, "kind": f"{kind} so far", "detail": detail}
    return {"accuracy": None, "kind": "", "detail": ""}


def _facts(run: _Run) -> list[tuple[str, str, str]]:
    """Return the headline's (name, value, remark) triples, leaving out what is unknown."""
    summary, config, timing = run.summary, run.config, run.timing
    facts: list[tuple[str, str, str]] = []
    if summary and summary.test_loss is not None:
        facts.append(("Test loss", number(summary.test_loss), ""))
    if summary:
        facts.append(("Epochs", f"{summary.epochs:,}", f"recipe {summary.recipe}"))
    elif config:
        facts.append(
            ("Epochs planned", f"{config.recipe.epochs:,}", f"recipe {config.recipe_name}")
        )
    seconds = summary.seconds if summary else None
    if seconds is None and timing:
        seconds = float(np.nansum(timing["seconds"]))
    if seconds is not None:
        facts.append(("Time", duration(seconds), ""))
    speed = summary.images_per_second if summary else None
    if speed is None and timing and np.isfinite(timing["images_per_second"]).any():
        speed = float(np.nanmedian(timing["images_per_second"]))
    if speed is not None:
        remark = summary.precision if summary else config.precision.resolved if config else None
        facts.append(("Images per second", number(speed, 3), remark or ""))
    if summary and "total" in summary.params:
        trainable = summary.params.get("trainable")
        remark = f"{trainable:,} trainable" if trainable is not None else ""
        facts.append(("Parameters", f"{summary.params['total']:,}", remark))
    return facts


def _training(run: _Run) -> Context:
    """Return the curves, and under them the numbers they show."""
    figures: list[Context] = []
    missing = []
    context: Context = {"text": "", "columns": METRICS, "rows": [], "every": 1}
    if run.metrics is None:
        missing.append("metrics.csv is missing or has no rows: no epoch has finished.")
    else:
        figures += _metric_figures(run.metrics)
        context["text"] = _last_epoch(run.metrics)
        context["every"] = every = math.ceil(len(run.metrics["epoch"]) / EPOCH_ROWS)
        # Counted from the end, so that the last epoch is always among them.
        picked = range(len(run.metrics["epoch"]))[::-1][::every][::-1]
        context["rows"] = [[number(run.metrics[c][i]) for c in METRICS] for i in picked]
    if run.timing is None:
        missing.append("timing.csv is missing or has no rows: throughput is not known.")
    else:
        line = _Line("images per second", run.timing["images_per_second"], COOL)
        title = "Throughput, images per second"
        figures.append(_curves("throughput", title, run.timing["epoch"], [line], zero=True))
    return {**context, "figures": figures, "missing": missing}


def _metric_figures(metrics: Mapping[str, FloatArray]) -> list[Context]:
    """Return loss, accuracy and learning rate by epoch."""
    validated = bool(np.isfinite([metrics["val_loss"], metrics["val_accuracy"]]).any())

    def pair(name: str, scale: float) -> list[_Line]:
        lines = [_Line("train", scale * metrics[name], COOL)]
        if validated:
            lines.append(_Line("validation", scale * metrics[f"val_{name}"], WARM))
        return lines

    losses = np.concatenate([line.values for line in pair("loss", 1.0)])
    losses = losses[np.isfinite(losses)]
    log = bool(losses.size and losses.min() > 0 and losses.max() / losses.min() > 50)
    epochs = metrics["epoch"]
    rate = _Line("learning rate", metrics["learning_rate"], COOL)
    return [
        _curves("loss", "Loss, log scale" if log else "Loss", epochs, pair("loss", 1.0), log=log),
        _curves("accuracy", "Accuracy, %", epochs, pair("accuracy", 100.0)),
        _curves("rate", "Learning rate", epochs, [rate], zero=True),
    ]


def _last_epoch(metrics: Mapping[str, FloatArray]) -> str:
    """Return a sentence or two on where training stands."""
    text = (
        f"After epoch {number(metrics['epoch'][-1])} ({number(metrics['step'][-1])} steps): "
        f"train loss {number(metrics['loss'][-1])}, "
        f"train accuracy {percent(metrics['accuracy'][-1])}"
    )
    validation = metrics["val_accuracy"]
    if not np.isfinite(validation).any():
        return f"{text}. No validation split."
    best = int(np.nanargmax(np.where(np.isfinite(validation), validation, np.nan)))
    return (
        f"{text}, validation accuracy {percent(validation[-1])}. "
        f"Best validation accuracy {percent(validation[best])}, "
        f"epoch {number(metrics['epoch'][best])}."
    )


def _test(run: _Run) -> Context:
    """Return what the test predictions show, or only why they show nothing."""
    if run.predictions is None:
        why = "it is written once, at the end of a run" if run.summary is None else "restore it"
        return {"missing": f"predictions.npz is missing or empty ({why})."}
    predictions, names = run.predictions, run.names
    binned = reliability(predictions.confidence, predictions.right)
    context: Context = {
        "missing": "",
        "matrix": None,
        "pairs": [],
        "calibration": _calibration(binned),
        "error": percent(binned.error),
        "bins": len(binned.counts),
        "mistakes": _mistakes(predictions, names),
        "wide": len(names) > 12,  # a matrix that needs the page's width
        "wrong": int(np.sum(~predictions.right)),
        **_classes(predictions, names),
    }
    if len(names) <= MATRIX_CLASSES:
        from sklearn.metrics import confusion_matrix

        known = np.arange(len(names))
        counts = confusion_matrix(predictions.labels, predictions.predicted, labels=known)
        context["matrix"] = _matrix(np.asarray(counts, dtype=np.int64), names)
    else:
        wrong = ~predictions.right
        pairs = np.stack([predictions.labels[wrong], predictions.predicted[wrong]], axis=1)
        unique, counts = np.unique(pairs, axis=0, return_counts=True)
        totals = np.bincount(predictions.labels, minlength=len(names))
        context["pairs"] = _confused(unique, counts, names, totals, rows=PAIR_ROWS)
    return context


def _as_pairs(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return a confusion matrix's mistakes as (true, predicted) rows and how many of each."""
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    pairs = np.argwhere(mistakes > 0)
    return pairs, mistakes[mistakes > 0]


def _confused(
    pairs: IntArray, counts: IntArray, names: Sequence[str], totals: IntArray, rows: int
) -> list[Context]:
    """Return the most frequent (true, predicted) pairs, at most `rows`."""
    order = np.argsort(-counts, kind="stable")[:rows]
    return [
        {
            "true": names[pairs[i, 0]],
            "predicted": names[pairs[i, 1]],
            "count": int(counts[i]),
            "share": percent(counts[i] / totals[pairs[i, 0]], 1),
        }
        for i in order
    ]


def _classes(predictions: Predictions, names: Sequence[str]) -> Context:
    """Return precision, recall and F1 of each class; past CLASS_ROWS, of the worst ones.

    Accuracy within a class is its recall; `accuracy` is the one-against-the-rest kind.
    """
    from sklearn.metrics import precision_recall_fscore_support

    count = len(names)
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=np.arange(count), zero_division=np.nan
    )
    guessed = np.bincount(predictions.predicted, minlength=count)
    hits = np.bincount(predictions.labels[predictions.right], minlength=count)
    accuracy = 1 - (support + guessed - 2 * hits) / len(predictions.labels)
    # NaN, a class the test set lacks, sorts last.
    shown = np.arange(count) if count <= CLASS_ROWS else np.argsort(recall)[:CLASS_ROWS]
    rows = [
        {
            "name": names[i],
            "images": f"{int(support[i]):,}",
            "recall": percent(recall[i], 1),
            "bar": round(100 * recall[i], 1) if math.isfinite(recall[i]) else 0,
            "precision": percent(precision[i], 1),
            "f1": percent(f1[i], 1),
            "accuracy": percent(accuracy[i], 1),
        }
        for i in shown
    ]
    return {"classes": rows, "class_count": count}


def _mistakes(predictions: Predictions, names: Sequence[str]) -> list[Context]:
    """Return the wrong predictions of highest probability; ties go by index."""
    wrong = np.flatnonzero(~predictions.right)
    order = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:MISTAKE_ROWS]
    return [
        {
            "index": int(i),
            "true": names[predictions.labels[i]],
            "predicted": names[predictions.predicted[i]],
            "probability": f"{predictions.confidence[i]:.4f}",
            "of_true": f"{predictions.probabilities[i, predictions.labels[i]]:.4f}",
        }
        for i in order
    ]


def _setup(config: RunConfig | None) -> list[tuple[str, str]]:
    """Return how the run was trained, in words."""
    if config is None:
        return []
    recipe, data, execution = config.recipe, config.data, config.execution
    limit = f", the first {data.limit_train:,} training images" if data.limit_train else ""
    rows = [
        ("Recipe", ": ".join(part for part in (config.recipe_name, recipe.description) if part)),
        ("Optimiser", _phrase(recipe.optimizer)),
        ("Schedule", f"{_phrase(recipe.schedule)}, over {plural(config.horizon, 'epoch')}"),
        ("Batch size", f"{recipe.batch_size:,}"),
        ("Learning-rate factors", _phrase(recipe.learning_rate_factors)),
        ("Weight decay", _phrase(recipe.weight_decay) if recipe.weight_decay else "none"),
        ("Label smoothing", f"{recipe.label_smoothing:g}"),
        ("Gradient clip", f"{recipe.gradient_clip:g}" if recipe.gradient_clip else "none"),
        ("Weight average", _phrase(recipe.ema) if recipe.ema else "none"),
        ("Augmentation", _phrase(recipe.augment)),
        ("Validation split", percent(recipe.validation_split, 0)),
        ("Data", ": ".join(p for p in (data.name, data.spec.description) if p) + limit),
        ("Input", f"{' × '.join(map(str, config.input))}, {config.classes:,} classes"),
        ("Precision", _precision(config)),
        ("Execution", _phrase(execution)),
        ("Seed", str(config.seed)),
        ("First weights", config.weights or "drawn at random"),
    ]
    return [(name, clean(value)) for name, value in rows]


def _precision(config: RunConfig) -> str:
    used = config.precision
    reason = f"; {used.reason}" if used.reason else ""
    return f"{used.resolved} (asked for: {used.requested}{reason})"


def _architecture(config: RunConfig | None) -> Context:
    """Return the network's stages. A table of layers, from the plan, belongs here too."""
    if config is None:
        return {"stages": [], "origin": "", "description": ""}
    model = config.architecture.model
    stages = [
        {
            "name": f"stage{index}",
            "block": stage.block,
            "width": stage.width,
            "repeats": stage.repeats,
            "stride": f"{stage.stride} ({stage.strided_block})" if stage.stride > 1 else "1",
        }
        for index, stage in enumerate(model.stages, start=1)
    ]
    return {"stages": stages, "origin": model.origin, "description": model.description}


def _environment(run: _Run) -> list[tuple[str, str]]:
    """Return environment.json as rows; null is a dash, and other things than text are JSON."""
    return [
        (key, value if isinstance(value, str) else "–" if value is None else json.dumps(value))
        for key, value in (run.environment or {}).items()
    ]


# ---------------------------------------------------------------------------- writing


def _render(run: _Run) -> str:
    return render(
        "report.html.j2",
        head=_headline(run),
        training=_training(run),
        test=_test(run),
        setup=_setup(run.config),
        architecture=_architecture(run.config),
        environment=_environment(run),
        config_text=run.config_text,
        command=COMMAND,
    )


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    The same files give the same bytes. A file that is missing or empty leaves a sentence where its
    part would be. The page is replaced in one step, so a reader never meets half of it.

    Args:
        run: the folder that `kerasnet fit` wrote.

    Raises:
        BadInputError: the folder is no run's, or one of its files is corrupt (it is named).
        EnvironmentFaultError: a file cannot be read, or the page cannot be written.
    """
    run = Path(run)
    page = _render(_read_run(run))
    target = run / "report.html"
    write_atomically(target, page.encode(errors="replace"))
    return target
