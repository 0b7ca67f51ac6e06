"""How many epochs fit into a time: the parts of a run, measured before it begins.

The measurement trains a model of its own for some steps, evaluates it on training or validation
images and saves it into a folder that is removed again. Nothing of it is left in the run, which
begins afterwards as if it had not been.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kerasnet import data as datasets
from kerasnet import schema
from kerasnet.checkpoint import Progress
from kerasnet.config import with_values
from kerasnet.errors import BadInputError
from kerasnet.files import TEMPORARY
from kerasnet.progress import duration
from kerasnet.recipe import compile_model
from kerasnet.runs import METRICS, Run
from kerasnet.training import Saver, StepCallbacks, Training

Clock = Callable[[], float]

# Of the time, for what varies from one epoch to the next.
SPARE = 0.05
# A step's time is the mean over the last steps of so many seconds, and at least over two of them.
WINDOW = 1.0
_MOST_EXECUTIONS = 2**12
# Steps; four executions of more of them could take minutes.
_MOST_AT_ONCE = 16
# Of those that only measure.
_BATCHES = 2


@dataclass(frozen=True)
class Costs:
    """What the parts of a run take, in seconds.

    Attributes:
        start: building the model, and the first step and evaluation, which compile it.
        step: a step of training.
        validation: a pass over the validation images; 0 where there are none.
        state: a checkpoint.
        weights: the weights that are written after an epoch.
        test: reading the test images and a pass over them.
    """

    start: float
    step: float
    validation: float
    state: float
    weights: float
    test: float

    def epoch(self, steps: int, every: schema.EverySteps | schema.EveryMinutes) -> float:
        """Return the seconds of an epoch.

        Args:
            steps: in it.
            every: how often checkpoints are written besides the one at its end.
        """
        training = steps * self.step
        if isinstance(every, schema.EverySteps):
            between = steps // every.steps
        else:
            between = int(training / (60 * every.minutes))
        return training + self.validation + (between + 1) * self.state + self.weights


def choose(costs: Costs, config: schema.RunConfig, steps: int, run: Run) -> schema.RunConfig:
    """Return a configuration with as many epochs as fit into its budget, the schedule over them.

    Args:
        costs: what was measured.
        config: with a budget.
        steps: in an epoch.
        run: which an error names.

    Raises:
        BadInputError: not even one epoch fits.
    """
    assert config.budget is not None, "the configuration has a budget"
    epoch, rest = costs.epoch(steps, config.execution.checkpoint_every), costs.start + costs.test
    seconds = config.budget.seconds
    epochs = min(int((seconds * (1 - SPARE) - rest) / epoch), schema.MAX_EPOCHS)
    parts = (
        f"an epoch takes {_time(epoch)} ({steps:,} steps of {_time(costs.step)}, "
        f"{_time(costs.validation)} of validation, the rest checkpoints), the start and the test "
        f"{_time(rest)}"
    )
    if epochs < 1:
        least = math.ceil((epoch + rest) / (1 - SPARE))
        raise BadInputError(
            f"{run.path}: --budget of {_time(seconds)} is too short for one epoch: {parts}. Begin "
            f"a new run with --budget {least}s or more, or with fewer images (--limit-train); or "
            f"go on with this one for an epoch without a budget: {run.resume_command} --epochs 1"
        )
    found = config.budget.model_copy(
        update={"epochs": epochs, "step_seconds": costs.step, "reason": parts}
    )
    return with_values(config, {"recipe.epochs": epochs, "budget": found.model_dump(mode="json")})


def _time(seconds: float) -> str:
    """Write seconds for people: 0.0213 s, 7.5 s, 12:30."""
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)


# ---------------------------------------------------------------------------- the measurement


class Stopwatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Times the steps of a `model.fit` and ends it when it knows enough.

    A device may run behind the program that gives it work: it has done a step only when the step's
    result can be read. Reading each would slow it down, so that only every step is read whose
    number is a power of two, and the latest stretch between two of them counts.

    Args:
        clock: seconds.

    Attributes:
        first: seconds of the first step, or of the first that are executed at once.
        step: seconds of each of the latest steps.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.clock = clock
        self.first = self.step = math.nan
        self._executions = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Start."""
        self._last = (0, self.clock())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the clock after executions 1, 2, 4, 8, …"""
        self._executions += 1
        if self._executions & (self._executions - 1):
            return
        float(logs["loss"])
        (done, then), now = self._last, self.clock()
        self._last = (batch + 1, now)
        if self._executions == 1:
            self.first = now - then
            return
        self.step = (now - then) / (batch + 1 - done)
        long_enough = self._executions >= 4 and now - then >= WINDOW
        if long_enough or self._executions >= _MOST_EXECUTIONS:
            self.model.stop_training = True


def measure(
    make: Callable[[], keras.Model], training: Training, read_seconds: float,
    clock: Clock = time.monotonic,
) -> Costs:  # fmt: skip
    """Measure what the parts of a run take; the test images stay unread.

    Args:
        make: builds the run's model.
        training: of the run, which has not begun.
        read_seconds: what reading the test images takes.
        clock: seconds.

    Raises:
        EnvironmentFaultError: a checkpoint cannot be written.
    """
    began = clock()
    model = make()
    compile_model(model, training.config, training.steps)
    at_once = min(training.steps_per_execution, _MOST_AT_ONCE)
    model.steps_per_execution = at_once
    built = clock() - began
    state, weights = _saving(model, training)
    watch = Stopwatch(clock)
    _train(model, training, watch, at_once)
    compiling, image = _evaluation(model, training, clock)
    data = training.data
    return Costs(
        start=built + watch.first + compiling,
        step=watch.step,
        validation=image * len(data.validation or []),
        state=state,
        weights=weights,
        # Predictions are compiled on their own.
        test=read_seconds + compiling + image * data.source.count("test"),
    )


def _saving(model: keras.Model, training: Training) -> tuple[float, float]:
    """Return the seconds of a checkpoint and of the weights after an epoch."""
    score = None if training.data.validation is None else 0.0
    row = {**dict.fromkeys(METRICS, 0), "val_accuracy": score}
    with tempfile.TemporaryDirectory(TEMPORARY, ".budget.", training.run.path) as folder:
        trial = dataclasses.replace(
            training, run=Run(Path(folder)), progress=Progress(metrics=[row], best=score)
        )
        saver = Saver(trial, model)
        saver.save(model, {})
        state = saver.seconds
        saver.weights(model)
        return state, saver.seconds - state


def _train(model: keras.Model, training: Training, watch: Stopwatch, at_once: int) -> None:
    """Train for as many steps as it takes to know how long one is."""
    most = _MOST_EXECUTIONS * at_once
    images = training.batches(math.ceil(most / training.steps))
    callbacks = StepCallbacks([watch], add_history=True, model=model)
    model.fit(images, shuffle=False, epochs=1, steps_per_epoch=most, callbacks=callbacks, verbose=0)


def _evaluation(model: keras.Model, training: Training, clock: Clock) -> tuple[float, float]:
    """Return the seconds that an evaluation takes to compile, and those for an image."""
    data, batch = training.data, training.config.execution.evaluation_batch_size
    split = data.validation or data.train
    part = datasets.Split(split.images[: _BATCHES * batch], split.labels[: _BATCHES * batch])
    pipeline = datasets.evaluation_pipeline(part, inference=data.source.inference, batch_size=batch)
    seconds = []
    for _ in range(2):
        began = clock()
        model.evaluate(pipeline, verbose=0)
        seconds.append(clock() - began)
    return max(0.0, seconds[0] - seconds[1]), seconds[1] / len(part)
