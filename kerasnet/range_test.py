"""The learning-rate range test (Smith 2015, "Cyclical Learning Rates", section 3.3).

One short training whose learning rate grows by the same factor with every step. Where the loss
falls, the rate is high enough to learn; where it rises again, it is too high. `docs/` says in
learning-rates.md how a rate is chosen between the two, and why.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console

from kerasnet import data as datasets
from kerasnet import schema
from kerasnet.config import with_values
from kerasnet.errors import BadInputError, DivergedError, KerasnetError
from kerasnet.files import write_atomically
from kerasnet.progress import RateReporter
from kerasnet.recipe import compile_model, inner
from kerasnet.training import TrainingData

FloatArray = npt.NDArray[np.float64]

# The curve is averaged over this share of the test, so that it is as smooth, and lags behind by as
# much of the range, whatever the number of steps.
SMOOTHING = 1 / 15
# Above this many times its least value the smoothed loss has left the range that is of use.
DIVERGED = 4.0
# A line fitted over fewer steps would take noise for a fall.
FEWEST = 5
# The slope is that of a line fitted over a decade of rates.
DECADE = math.log(10)
# The median of the square of a standard normal variable, and the variance of a second difference of
# independent ones.
_MEDIAN_SQUARE, _BEND_VARIANCE = 0.4549, 6.0
# A fall that noise alone would hardly make, in standard deviations of the smoothed loss.
SURE = 4.0
STEM = "lr-find"


class Smoothed:
    """Exponential moving average, corrected for its start (Kingma & Ba 2015, section 3).

    Args:
        steps: of the whole test; the average is over `SMOOTHING` of them.
    """

    def __init__(self, steps: int) -> None:
        self.stays = 1 - 1 / max(1.0, SMOOTHING * steps)
        self._sum = self._weight = 0.0

    def add(self, loss: float) -> float:
        """Return the average after another loss."""
        self._sum = self.stays * self._sum + (1 - self.stays) * loss
        self._weight = self.stays * self._weight + 1 - self.stays
        return self._sum / self._weight


@dataclass(frozen=True)
class Curve:
    """What a range test measured: float64 arrays, a value for each step.

    Attributes:
        rates: learning rate of the step's update.
        losses: of the step's batch, before the update.
        smoothed: the losses' average.
        steps: how many there were to be.
        diverged: rate of the last step, if the loss ended the test there.
    """

    rates: FloatArray
    losses: FloatArray
    smoothed: FloatArray
    steps: int
    diverged: float | None


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, why this one, and what else the curve shows.

    Attributes:
        rate: the suggestion, to three digits.
        reason: in words.
        steepest: where the smoothed loss falls fastest against the logarithm of the rate.
        least: where it is least.
        least_loss: what it is there.
        diverged: where the test ended early, if it did.
    """

    rate: float
    reason: str
    steepest: float
    least: float
    least_loss: float
    diverged: float | None

    @property
    def candidates(self) -> dict[str, float | None]:
        """The rates that other rules would have led to, or looked at."""
        return {
            "steepest": self.steepest,
            "least": self.least,
            "tenth_of_least": self.least / 10,
            "diverged": self.diverged,
        }


@dataclass(frozen=True)
class Found:
    """A range test: what was trained, its curve and its suggestion.

    Attributes:
        config: the configuration that was trained, with the suggestion in it.
        curve: what was measured.
        suggestion: a learning rate and its reason.
        folder: where `lr-find.json`, `lr-find.csv` and `lr-find.png` are.
    """

    config: schema.RunConfig
    curve: Curve
    suggestion: Suggestion
    folder: str

    def to_json(self) -> dict[str, Any]:
        """Return the object that `kerasnet lr-find --json` prints and `lr-find.json` holds."""
        return _facts(self.config, self.folder) | {
            "steps_done": len(self.curve.rates),
            "suggestion": self.suggestion.rate,
            "reason": self.suggestion.reason,
            "least_loss": self.suggestion.least_loss,
            "candidates": self.suggestion.candidates,
        }


def _facts(config: schema.RunConfig, folder: str) -> dict[str, Any]:
    spec = _spec(config)
    return {
        "model": config.architecture.name,
        "dataset": config.data.name,
        "recipe": config.recipe_name,
        "optimizer": config.recipe.optimizer.type,
        "batch_size": config.recipe.batch_size,
        "precision": config.precision.resolved,
        "seed": config.seed,
        "min": spec.min,
        "max": spec.max,
        "steps": spec.steps,
        "smoothing": Smoothed(spec.steps).stays,
        "folder": folder,
    }


def _spec(config: schema.RunConfig) -> schema.RangeTest:
    assert config.lr_find is not None, "the configuration asks for a range test"
    return config.lr_find


# ---------------------------------------------------------------------------- the suggestion


def rate_at(spec: schema.RangeTest, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    return float(spec.min * (spec.max / spec.min) ** (step / (spec.steps - 1)))


def smooth(losses: Sequence[float] | FloatArray, steps: int) -> FloatArray:
    """Return the moving average of losses, float64 of the same length.

    Args:
        losses: of one step after the other.
        steps: of the whole test, which may have ended early.
    """
    average = Smoothed(steps)
    return np.array([average.add(float(loss)) for loss in losses])


def suggest(curve: Curve) -> Suggestion:
    """Choose a learning rate from a curve.

    It is a tenth of where the smoothed loss is least, or, where that is lower, half-way on the
    logarithmic axis between the least loss and the steepest fall.

    Raises:
        DivergedError: the loss diverged before it could fall.
        BadInputError: it did not fall at all, or was still falling at the highest rate.
    """
    rates, smoothed = curve.rates, curve.smoothed
    # The last step of a test that ended early is where the loss had left the curve.
    usable = len(rates) - (curve.diverged is not None)
    if usable < FEWEST:
        _refuse_start(curve)
    losses, smoothed = curve.losses[:usable], smoothed[:usable]
    least = int(np.argmin(smoothed))
    if not _falls(losses, smoothed, least, curve.steps):
        _refuse_level(curve)
    if least == len(rates) - 1:
        raise BadInputError(
            f"the loss still falls at the highest learning rate, {rates[-1]:.3g}: try --max "
            f"{_round(100 * rates[-1]):g}"
        )
    low = float(rates[_steepest(np.log(rates[:usable]), losses, smoothed, least)])
    high = float(rates[least])
    rate, reason = _chosen(low, high)
    if rate < rates[0]:
        raise BadInputError(
            f"the loss is least at a learning rate of {high:.3g}, a tenth of which, {rate:.3g}, is "
            f"below the lowest that was tried: try --min {_round(rates[0] / 1000):g}"
        )
    return Suggestion(_round(rate), reason, low, high, float(smoothed[least]), curve.diverged)


def _chosen(low: float, high: float) -> tuple[float, str]:
    """Return the suggestion and its reason from the rates of the steepest fall and least loss."""
    tenth, middle = high / 10, math.sqrt(low * high)
    if tenth <= middle:
        return tenth, (
            f"a tenth of {high:.3g}, where the smoothed loss is least (it falls fastest at "
            f"{low:.3g})"
        )
    return middle, (
        f"half-way on the logarithmic axis between {low:.3g}, where the smoothed loss falls "
        f"fastest, and {high:.3g}, where it is least; that is lower than a tenth of the latter"
    )


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")


def _refuse_start(curve: Curve) -> NoReturn:
    """Say that a test ended before there was a curve."""
    first = float(curve.rates[0]) if len(curve.rates) else math.nan
    if not np.isfinite(curve.losses[:1]).all() or not len(curve.rates):
        raise DivergedError(
            "the loss is no finite number before anything was learnt: no learning rate mends that. "
            "Look at the data, the first weights and the precision"
        )
    raise DivergedError(
        f"the loss diverged {len(curve.rates)} steps after it began at a learning rate of "
        f"{first:.3g}: try --min {_round(first / 1000):g}"
    )


def _refuse_level(curve: Curve) -> NoReturn:
    """Say that the loss went nowhere but up, or nowhere at all."""
    first, last = float(curve.rates[0]), float(curve.rates[-1])
    tried = f"the loss does not fall between learning rates of {first:.3g} and {last:.3g}"
    if curve.diverged is not None:
        raise DivergedError(f"{tried}, where it diverges: try --min {_round(first / 1000):g}")
    higher, lower = _round(100 * last), _round(first / 1000)
    raise BadInputError(f"{tried}: try --max {higher:g}, --min {lower:g}, or more --steps")


def _falls(losses: FloatArray, smoothed: FloatArray, least: int, steps: int) -> bool:
    """Whether the smoothed loss falls by more than the noise of single batches explains.

    The noise is what second differences hold, from which a steady fall cancels; their median keeps
    a few wild batches from counting.
    """
    if least == 0:
        return False
    bends = np.diff(losses[: max(3, least + 1)], 2)
    noise = math.sqrt(float(np.median(bends**2)) / (_BEND_VARIANCE * _MEDIAN_SQUARE))
    level, number = _level(losses, least)
    # As far as noise alone moves both: the median of the first losses and the least average.
    weights = _weights(steps, least + 1)
    apart = noise * math.sqrt(math.pi / 2 / number + float(weights @ weights))
    # Rounding alone is no fall either.
    return level - float(smoothed[least]) > max(SURE * apart, 1e-6 * abs(level))


def _level(losses: FloatArray, least: int) -> tuple[float, int]:
    """Return where the loss starts, the median of a fifth of the curve, and of how many losses."""
    number = max(1, min(len(losses) // 5, least))
    return float(np.median(losses[:number])), number


def _weights(steps: int, number: int) -> FloatArray:
    """Return the weights of losses, the newest first, in their average; their sum is 1."""
    powers = Smoothed(steps).stays ** np.arange(number)
    found: FloatArray = powers / powers.sum()
    return found


def _steepest(log_rates: FloatArray, losses: FloatArray, smoothed: FloatArray, least: int) -> int:
    """Return the step of the fall to the least loss about which a line over a decade falls fastest.

    The fall begins where the loss was last within a tenth of its height below where it started: an
    average of the first few losses is as good as none, and jumps.
    """
    level, _ = _level(losses, least)
    high = np.flatnonzero(smoothed[:least] >= level - (level - smoothed[least]) / 10)
    first = int(high[-1]) if len(high) else 0
    half = max(1, round(DECADE / 2 / float(log_rates[1] - log_rates[0])))
    # At the ends of the curve the line is shorter, on both sides alike.
    reach = {i: min(half, i, len(smoothed) - 1 - i) for i in range(first, least + 1)}
    enough = min(max(1, half // 2), max(reach.values()))
    slopes = {
        i: _slope(log_rates[i - n : i + n + 1], smoothed[i - n : i + n + 1])
        for i, n in reach.items()
        if n >= enough
    }
    return min(slopes, key=lambda i: slopes[i])


def _slope(x: FloatArray, y: FloatArray) -> float:
    """Return the slope of the line of least squares."""
    return float(np.polynomial.polynomial.polyfit(x - x.mean(), y, 1)[1])


# ---------------------------------------------------------------------------- the training


class Follower(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes the loss of every update, and ends the test where there is no more to see."""

    def __init__(self, spec: schema.RangeTest, reporter: RateReporter) -> None:
        super().__init__()
        self.spec, self.reporter = spec, reporter
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged: float | None = None
        self._average = Smoothed(spec.steps)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note a step whose update was made."""
        # On JAX, asking Keras for the callback's model brings its variables up to date.
        model, loss = self.model, float(logs["batch_loss"])
        updates = int(inner(model.optimizer).iterations)
        # Loss scaling leaves out the update of a step whose gradients overflow.
        skipped = updates == len(self.losses)
        if skipped and math.isfinite(loss):
            return
        rate = rate_at(self.spec, updates - (not skipped))
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(self._average.add(loss))
        # Written so that what is no number is too much as well.
        if not self.smoothed[-1] <= DIVERGED * min(self.smoothed):
            self.diverged = rate
            model.stop_training = True
        self.reporter.step_ended(batch + 1, rate, self.smoothed[-1], last=model.stop_training)

    def curve(self) -> Curve:
        """Return what was measured."""
        rates, losses, smoothed = map(np.array, (self.rates, self.losses, self.smoothed))
        return Curve(rates, losses, smoothed, self.spec.steps, self.diverged)


def measure(
    model: keras.Model, config: schema.RunConfig, data: TrainingData, console: Console
) -> Curve:
    """Train a model through a range of learning rates; it is of no use afterwards.

    Args:
        model: the configuration's, not yet trained.
        config: with `lr_find`, and all that belongs to its training but the schedule.
        data: only the training images are read, those held back for validation not among them.
        console: where progress goes.

    Returns:
        A point for each step, up to the one in which the smoothed loss exceeded `DIVERGED` times
        its least value or was no finite number.
    """
    spec, recipe = _spec(config), config.recipe
    steps = datasets.steps_per_epoch(len(data.train), recipe.batch_size)
    growth = keras.optimizers.schedules.ExponentialDecay
    compile_model(model, config, steps, rate=growth(spec.min, spec.steps - 1, spec.max / spec.min))
    images = datasets.training_pipeline(
        data.train, inference=data.source.inference, augment=recipe.augment,
        allowed=config.data.spec.augment, batch_size=recipe.batch_size, seed=config.seed,
        epochs=math.ceil(spec.steps / steps), classes=config.classes,
    )  # fmt: skip
    reporter = RateReporter(console, spec.steps)
    follower = Follower(spec, reporter)
    try:
        model.fit(
            images, shuffle=False, epochs=1, steps_per_epoch=spec.steps, callbacks=[follower],
            verbose=0,
        )  # fmt: skip
    finally:
        reporter.close()
    return follower.curve()


def find(
    model: keras.Model, config: schema.RunConfig, data: TrainingData, folder: Path,
    console: Console,
) -> Found:  # fmt: skip
    """Run a range test and write `lr-find.csv`, `lr-find.png` and `lr-find.json` into a folder.

    Args:
        model: as for `measure`.
        config: as for `measure`.
        data: as for `measure`.
        folder: made if it is missing.
        console: where progress goes.

    Raises:
        DivergedError: the loss diverged before it fell; the curve is written nevertheless.
        BadInputError: it did not fall, or had not stopped falling; likewise.
        EnvironmentFaultError: the files cannot be written.
    """
    curve = measure(model, config, data, console)
    try:
        suggestion = suggest(curve)
    except KerasnetError as error:
        _write(folder, config, curve, None, {"suggestion": None, "reason": str(error)})
        raise type(error)(f"{folder}: {error}. The curve is in {STEM}.png there") from error
    values = {
        "recipe.optimizer.learning_rate": suggestion.rate,
        "lr_find.suggestion": suggestion.rate,
        "lr_find.reason": suggestion.reason,
    }
    found = Found(with_values(config, values), curve, suggestion, str(folder))
    _write(folder, config, curve, suggestion, found.to_json())
    return found


# ---------------------------------------------------------------------------- the files


def _write(
    folder: Path, config: schema.RunConfig, curve: Curve, suggestion: Suggestion | None,
    outcome: dict[str, Any],
) -> None:  # fmt: skip
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("step", "learning_rate", "loss", "smoothed_loss"))
    points = zip(curve.rates, curve.losses, curve.smoothed, strict=True)
    rows.writerows([i, *(f"{x:.9g}" for x in point)] for i, point in enumerate(points, 1))
    picture = _picture(config, curve, suggestion)
    facts = _facts(config, str(folder)) | {"steps_done": len(curve.rates)} | outcome
    write_atomically(folder / f"{STEM}.csv", text.getvalue().encode())
    write_atomically(folder / f"{STEM}.png", picture)
    write_atomically(folder / f"{STEM}.json", (json.dumps(facts, indent=2) + "\n").encode())


def _picture(config: schema.RunConfig, curve: Curve, suggestion: Suggestion | None) -> bytes:
    """Return the curve as a PNG."""
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot's, needs no display and leaves no state.
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, color="0.75", linewidth=0.8, label="loss of a batch")
    axes.plot(curve.rates, curve.smoothed, color="C0", label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion.steepest, color="C2", linestyle=":", label="falls fastest")
        axes.axvline(suggestion.least, color="C1", linestyle=":", label="least")
        axes.axvline(suggestion.rate, color="C3", label=f"suggested: {suggestion.rate:g}")
    axes.set_xscale("log")
    axes.set_ylim(*_limits(curve))
    axes.set(
        title=f"{config.architecture.name} on {config.data.name}, recipe {config.recipe_name}",
        xlabel="learning rate", ylabel="loss",
    )  # fmt: skip
    axes.title.set_parse_math(False)  # a folder may be called "$x$"
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _limits(curve: Curve) -> tuple[float, float]:
    """Return limits of the loss's axis by which a divergence does not flatten the rest."""
    finite = curve.losses[np.isfinite(curve.losses)]
    if not len(finite):
        return 0.0, 1.0
    top = 1.5 * float(np.max(finite[: max(1, len(curve.losses) // 3)]))
    return min(0.0, float(finite.min())), top if top > 0 else 1.0
