"""One process's part of a run: what it knows, what it saves, and how it follows `model.fit`."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kerasnet import data as datasets
from kerasnet import schema
from kerasnet.averaging import Averages
from kerasnet.backend import devices
from kerasnet.checkpoint import Arrays, Progress, write_checkpoint
from kerasnet.convert import save_weights
from kerasnet.interruption import Interrupted, Interruption, TimeIsUp
from kerasnet.progress import Reporter
from kerasnet.recipe import inner
from kerasnet.runs import METRICS, TIMING, Run
from kerasnet.state import capture, metric_variables, restore, state_variables


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on; the test images stay unread."""

    source: datasets.ImageData
    train: datasets.Split
    validation: datasets.Split | None

    @property
    def fingerprint(self) -> str:
        """A checksum of the training images and labels."""
        images = zlib.crc32(np.ascontiguousarray(self.train.images).data)
        return f"{zlib.crc32(self.train.labels.tobytes(), images):08x}"


class Diverged(Exception):  # noqa: N818
    """The loss or the weights are no longer finite numbers."""

    def __init__(self, step: int, what: str, rate: float) -> None:
        super().__init__(f"{what} at learning rate {rate:.3g}")
        self.step = step


def metrics_of(arrays: Arrays) -> Arrays:
    """Return those arrays of a checkpoint that are running sums of an epoch under way."""
    return {key: array for key, array in arrays.items() if key.startswith("metrics/")}


def rate_of(model: keras.Model, step: int) -> float:
    """Return the learning rate of the update of a step, counted from 1."""
    return float(inner(model.optimizer)._learning_rate(step - 1))


@dataclass
class Training:
    """What one process knows of the run that it trains."""

    run: Run
    config: schema.RunConfig
    data: TrainingData
    console: Console
    stop: Interruption
    on_epoch: Callable[[dict[str, Any]], None] | None
    progress: Progress
    arrays: Arrays

    def __post_init__(self) -> None:
        """Start the clock."""
        self.began = time.monotonic()

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return datasets.steps_per_epoch(len(self.data.train), self.config.recipe.batch_size)

    @property
    def steps_per_execution(self) -> int:
        """Steps between two returns to Python: so many that they come out even.

        Keras runs whole executions, and would go on into the next epoch's steps.
        """
        done = self.progress.step % self.steps
        wanted = self.config.execution.steps_per_execution
        common = math.gcd(self.steps, done)
        return max(k for k in range(1, wanted + 1) if common % k == 0)

    @property
    def batch(self) -> int:
        """Images in a step."""
        return min(self.config.recipe.batch_size, len(self.data.train))

    def batches(self, epochs: int, first_step: int = 0) -> Any:
        """Return the batches of so many epochs, from a step on; see `data.training_pipeline`."""
        config, recipe = self.config, self.config.recipe
        assert config.inference is not None, "known since the data were read"
        return datasets.training_pipeline(
            self.data.train, inference=config.inference, augment=recipe.augment,
            allowed=config.data.spec.augment, batch_size=recipe.batch_size, seed=config.seed,
            epochs=epochs, first_step=first_step, classes=config.classes,
        )  # fmt: skip

    def averages(self, model: keras.Model) -> Averages:
        """Return the averaged weights of the run's model."""
        return Averages(model, lambda: self.batches(1))


class Saver:
    """Writes the state and what is derived from it: tables and weights."""

    def __init__(self, training: Training, model: keras.Model) -> None:
        self.training, self.run, self.progress = training, training.run, training.progress
        self.averages = training.averages(model)
        self.seconds = 0.0
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()

    def due(self) -> bool:
        """Whether the configuration asks for a checkpoint after this step."""
        every = self.training.config.execution.checkpoint_every
        if isinstance(every, schema.EverySteps):
            return self.progress.step // every.steps > self._saved_step // every.steps
        return time.monotonic() - self._saved_at >= 60 * every.minutes

    def save(self, model: keras.Model, metrics: Arrays) -> None:
        """Write a checkpoint; `metrics` are the running sums of an epoch that is under way."""
        began = time.monotonic()
        self.progress.seconds = began - self.training.began
        state = capture(state_variables(model))
        for key, array in state.items():
            if key.startswith("weights/") and not np.isfinite(array).all():
                step = self.progress.step
                what = f"{key[8:]} is not finite after step {step:,}"
                raise Diverged(step, what, rate_of(model, step))
        keep = self.training.config.execution.keep_checkpoints
        write_checkpoint(self.run.checkpoints, self.progress, {**state, **metrics}, keep)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        self.seconds += self._saved_at - began

    def tables(self) -> None:
        """Write `metrics.csv` and `timing.csv`."""
        self.run.write_rows("metrics.csv", METRICS, self.progress.metrics)
        self.run.write_rows("timing.csv", TIMING, self.progress.timing)

    def weights(self, model: keras.Model) -> None:
        """Write the weights after an epoch, averaged where the recipe averages."""
        began = time.monotonic()
        config, row = self.training.config, self.progress.metrics[-1]
        assert config.inference is not None, "known since the data were read"
        metadata = {
            "model": config.architecture.name,
            "inference": config.inference.model_dump(mode="json"),
            "epoch": row["epoch"],
            "step": row["step"],
        }
        score = row["val_accuracy"]
        with self.averages():
            save_weights(model, self.run.last_weights, metadata)
            best = max(self.progress.metrics, key=lambda row: row["val_accuracy"] or 0.0)
            if score is not None and best is row:
                metadata["val_accuracy"] = score
                save_weights(model, self.run.best_weights, metadata)
        self.seconds += time.monotonic() - began


class StepCallbacks(keras.callbacks.CallbackList):  # type: ignore[misc]
    """Hands on what a training step returned without waiting for its numbers.

    Keras's own list reads them after each step, for which the step must have finished: a GPU would
    stand still between two steps.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Call every callback with the tensors of the last step so far, `batch`."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Follows training: shows it, saves it, and stops it when it must stop."""

    def __init__(self, training: Training, saver: Saver, reporter: Reporter) -> None:
        super().__init__()
        self.training, self.saver, self.reporter = training, saver, reporter
        self.progress, self.steps = training.progress, training.steps
        self._first = True
        # On a CPU the step has finished, and its numbers are there.
        self._check_always = all(device.startswith("cpu") for device in devices())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin an epoch, or go on with the one that a checkpoint was in the middle of."""
        done = self.progress.step - epoch * self.steps
        seen = 0.0
        if 0 < done < self.steps:
            seen = self._restore_metrics() * done
        # As large as the model's state, and not needed any more.
        self.training.arrays.clear()
        self._done_before, self._epoch = done, epoch
        self._validation, self.saver.seconds = 0.0, 0.0
        self._began = time.monotonic() - self.progress.epoch_seconds
        self._mark(done)
        self.reporter.epoch_begins(epoch + 1, done, seen)

    def _restore_metrics(self) -> float:
        """Set the running sums to what they were when the epoch was left; return the loss."""
        model = self.model
        where = str(self.training.run.checkpoints)
        restore(metric_variables(model), metrics_of(self.training.arrays), where)
        return float(model.get_metrics_result()["loss"])

    def _mark(self, done: int) -> None:
        """Measure the rate of training from here."""
        self._steady = (time.monotonic() - self.saver.seconds, done)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the step, show it, and save where that is asked for."""
        done = self._done_before + batch + 1
        self.progress.step = self._epoch * self.steps + done
        if self._first:
            self._first_step(done, logs)
        if done == self.steps:
            self.progress.unvalidated = {k: float(logs[k]) for k in ("loss", "accuracy")}
        wanted = self.reporter.wants(done)
        interrupted = self.training.stop.wanted
        due = done < self.steps and self.saver.due()
        if self._check_always or wanted or interrupted or due or done == self.steps:
            self._check(logs)
        if wanted:
            self.reporter.step_ended(done, float(logs["loss"]), float(logs["accuracy"]))
        if interrupted:
            self._interrupt()
        elif due:
            self._save()

    def _first_step(self, done: int, logs: Any) -> None:
        """Leave the first step, which compiles the model, out of the rate."""
        float(logs["loss"])  # a GPU's step has ended only when its result can be read
        self._first = False
        self.progress.first_step_seconds = time.monotonic() - self._steady[0]
        if done < self.steps:
            self._mark(done)
        # There is something to lose from now on.
        self.training.stop.hold()

    def _check(self, logs: Any) -> None:
        first = int(logs["first_nonfinite_step"])
        if first:
            # The count is an epoch's; it goes on over a resume as the other sums do.
            step = self._epoch * self.steps + first
            what = f"the loss of step {step:,} is no finite number"
            raise Diverged(step, what, rate_of(self.model, step))

    def _save(self) -> None:
        self.progress.epoch_seconds = time.monotonic() - self._began
        under_way = self.progress.unvalidated is None
        # On JAX, asking Keras for the callback's model brings its variables up to date.
        model = self.model
        self.saver.save(model, capture(metric_variables(model)) if under_way else {})

    def _interrupt(self) -> None:
        self._save()
        signum = self.training.stop.requested
        raise TimeIsUp if signum is None else Interrupted(signum)

    def on_test_begin(self, logs: Any = None) -> None:
        """Validate with the averaged weights."""
        self._trained = time.monotonic()
        self._averages().enter()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save and leave validation at a signal."""
        if self.training.stop.wanted:
            self._averages().leave()
            self._interrupt()

    def on_test_end(self, logs: Any = None) -> None:
        """Train on with the plain weights."""
        self._averages().leave()
        self._validation = time.monotonic() - self._trained

    def _averages(self) -> Averages:
        # On JAX, asking Keras for the callback's model brings its variables up to date.
        assert self.model is self.saver.averages.model
        return self.saver.averages

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save and show an epoch."""
        trained = time.monotonic() - self._validation
        progress = self.progress
        row = {
            "epoch": epoch + 1,
            "step": progress.step,
            **{k: float(logs[k]) if k in logs else None for k in METRICS[2:6]},
            "learning_rate": rate_of(self.model, inner(self.model.optimizer).iterations),
        }
        timing = self._timing(epoch, trained)
        progress.metrics.append(row)
        progress.timing.append(timing)
        progress.unvalidated, progress.epoch_seconds = None, 0.0
        score = row["val_accuracy"]
        if score is not None and (progress.best is None or score > progress.best):
            progress.best = score
        # The checkpoint comes first: whatever else is missing can be made from it again.
        self.saver.save(self.model, {})
        self.saver.weights(self.model)
        timing["checkpoint_seconds"] = self.saver.seconds
        self.saver.tables()
        self.reporter.epoch_ended(row, trained - self._began + self._validation)
        if self.training.on_epoch:
            self.training.on_epoch(row)

    def _timing(self, epoch: int, trained: float) -> dict[str, Any]:
        since, done = self._steady
        steady = trained - self.saver.seconds - since
        images = (self.steps - done) * self.training.batch
        self.progress.steady_seconds += steady
        self.progress.steady_images += images
        return {
            "epoch": epoch + 1,
            "seconds": trained - self._began,
            "images_per_second": images / steady if images else None,
            "validation_seconds": self._validation or None,
        }
