"""From a run's configuration to a trained model: compile, `model.fit`, evaluate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kerasnet import backend, precision, schema
from kerasnet import data as datasets
from kerasnet.build import build
from kerasnet.config import plan as plan_of
from kerasnet.convert import load_weights, save_weights
from kerasnet.errors import BadInputError, DivergedError, EnvironmentFaultError
from kerasnet.progress import Reporter
from kerasnet.runs import METRICS, TIMING, Run

# ---------------------------------------------------------------------------- schedule and loss


@keras.saving.register_keras_serializable("kerasnet")
class RecipeSchedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of a recipe's schedule at an optimiser step.

    Args:
        learning_rate: the recipe's learning rate, the schedule's highest.
        spec: a schedule of `kerasnet.schema`, as plain values.
        steps_per_epoch: optimiser steps in one epoch.
        horizon: epochs the schedule spans; after it, the rate stays at its last value.
    """

    def __init__(
        self, learning_rate: float, spec: dict[str, Any], steps_per_epoch: int, horizon: int
    ) -> None:
        self.learning_rate, self.spec = learning_rate, dict(spec)
        self.steps_per_epoch, self.horizon = steps_per_epoch, horizon

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of the update that follows `step` updates; float32 scalar."""
        ops, spec = keras.ops, self.spec
        step = ops.cast(step, "float32")
        total = float(self.horizon * self.steps_per_epoch)
        unit = total if spec.get("unit") == "fraction" else float(self.steps_per_epoch)
        if spec["type"] == "constant":
            scale = ops.ones_like(step)
        elif spec["type"] == "step":
            scale = spec["factor"] ** ops.floor(step / (spec["every"] * unit))
        elif spec["type"] == "cosine":
            warmup = min(spec["warmup"] * unit, total)
            done = ops.clip((step - warmup) / max(1.0, total - warmup), 0.0, 1.0)
            down = spec["final"] + (1 - spec["final"]) * 0.5 * (1 + ops.cos(math.pi * done))
            scale = ops.where(step < warmup, (step + 1) / max(1.0, warmup), down)
        else:
            peak = min(spec["peak"] * unit, total)
            up = spec["initial"] + (1 - spec["initial"]) * step / max(1.0, peak)
            done = ops.clip((step - peak) / max(1.0, total - peak), 0.0, 1.0)
            scale = ops.where(step < peak, up, 1 + (spec["final"] - 1) * done)
        return self.learning_rate * scale

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "spec": self.spec,
            "steps_per_epoch": self.steps_per_epoch,
            "horizon": self.horizon,
        }


@keras.saving.register_keras_serializable("kerasnet")
class SmoothedCrossentropy(keras.losses.Loss):  # type: ignore[misc]
    """Cross-entropy of float logits (batch, classes) and integer labels (batch,).

    The target is 1 - `label_smoothing` for the label plus `label_smoothing` spread evenly over all
    classes (Szegedy et al. 2016, section 7).
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "loss", **more: Any) -> None:
        super().__init__(name=name, **more)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each example, (batch,)."""
        ops = keras.ops
        logits = ops.cast(y_pred, "float32")
        hard = ops.sparse_categorical_crossentropy(y_true, logits, from_logits=True)
        if not self.label_smoothing:
            return hard
        even = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        return (1 - self.label_smoothing) * hard + self.label_smoothing * even

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


def make_optimizer(
    recipe: schema.Recipe, steps_per_epoch: int, horizon: int, variables: Sequence[Any]
) -> Any:
    """Return a recipe's Keras optimiser.

    Args:
        recipe: optimiser, schedule, decay, clipping and averaging.
        steps_per_epoch: optimiser steps in one epoch.
        horizon: epochs the schedule spans.
        variables: the model's trainable variables, of which some are not decayed.
    """
    spec = recipe.optimizer
    rate = RecipeSchedule(
        spec.learning_rate, recipe.schedule.model_dump(mode="json"), steps_per_epoch, horizon
    )
    decay = recipe.weight_decay.rate if recipe.weight_decay else 0.0
    common = {
        "learning_rate": rate,
        "weight_decay": decay or None,
        "global_clipnorm": recipe.gradient_clip,
        "use_ema": recipe.ema is not None,
        "ema_momentum": recipe.ema.decay if recipe.ema else 0.99,
    }
    if isinstance(spec, schema.Sgd):
        made = keras.optimizers.SGD(momentum=spec.momentum, nesterov=spec.nesterov, **common)
    else:
        made = keras.optimizers.Adam(
            beta_1=spec.beta_1, beta_2=spec.beta_2, epsilon=spec.epsilon, **common
        )
    if decay and recipe.weight_decay and recipe.weight_decay.on == "kernels":
        kept = [v for v in variables if v.name != "kernel"]
        if kept:
            made.exclude_from_weight_decay(var_list=kept)
    return made


# ---------------------------------------------------------------------------- callbacks


class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows steps, and writes a row of metrics, a row of timing and the weights each epoch."""

    def __init__(
        self, run: Run, reporter: Reporter, metadata: dict[str, Any],
        rate: Callable[[int], float], steps: int, batch: int,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.run, self.reporter, self.metadata = run, reporter, metadata
        self.rate, self.steps, self.batch, self.on_epoch = rate, steps, batch, on_epoch
        self.best = -math.inf
        self.first_step_seconds: float | None = None
        self.steady_seconds, self.steady_images = 0.0, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.reporter.epoch_begins(epoch + 1)
        self._began = self._steady_since = time.monotonic()
        self._validation = 0.0
        self._steady_steps = self.steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.first_step_seconds is None:
            self._first_step(logs)
        if self.reporter.wants(batch + 1):
            loss = float(logs["loss"])
            step = int(self.model.optimizer.iterations)
            if not math.isfinite(loss):
                raise DivergedError(self._advice(step, loss))
            self.reporter.step_ended(batch + 1, loss, float(logs["accuracy"]))

    def _first_step(self, logs: Any) -> None:
        """Leave the first step, which compiles the model, out of the rate."""
        float(logs["loss"])  # a GPU's step has ended only when its result can be read
        now = time.monotonic()
        self.first_step_seconds = now - self._began
        if self.steps > 1:
            self._steady_since, self._steady_steps = now, self.steps - 1

    def _advice(self, step: int, loss: float) -> str:
        return (
            f"{self.run.path}: the loss became {loss} by step {step}, at learning rate "
            f"{self.rate(step):.3g}. Try a lower --learning-rate"
            + (f"; the last good weights are {self.run.last_weights}"
               if self.run.last_weights.exists() else "")
        )  # fmt: skip

    def on_test_begin(self, logs: Any = None) -> None:
        self._trained = time.monotonic()

    def on_test_end(self, logs: Any = None) -> None:
        self._validation = time.monotonic() - self._trained

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        trained = time.monotonic() - self._validation
        steady, images = trained - self._steady_since, self._steady_steps * self.batch
        step = int(self.model.optimizer.iterations)
        row = {
            "epoch": epoch + 1,
            "step": step,
            **{k: float(logs[k]) for k in METRICS[2:6] if k in logs},
            "learning_rate": self.rate(max(0, step - 1)),
        }
        if not math.isfinite(row["loss"]):
            raise DivergedError(self._advice(step, row["loss"]))
        self._save(row)
        self.run.append("metrics.csv", METRICS, row)
        timing = {
            "epoch": epoch + 1,
            "seconds": trained - self._began,
            "images_per_second": images / steady,
            "validation_seconds": self._validation or None,
        }
        self.run.append("timing.csv", TIMING, timing)
        self.steady_seconds += steady
        self.steady_images += images
        self.reporter.epoch_ended(row, trained - self._began + self._validation)
        if self.on_epoch:
            self.on_epoch(row)

    def _save(self, row: dict[str, Any]) -> None:
        metadata = {**self.metadata, "epoch": row["epoch"], "step": row["step"]}
        save_weights(self.model, self.run.last_weights, metadata)
        score = row.get("val_accuracy")
        if score is not None and score > self.best:
            self.best = score
            save_weights(self.model, self.run.best_weights, {**metadata, "val_accuracy": score})


# ---------------------------------------------------------------------------- fit


@dataclass(frozen=True)
class _Data:
    """What a run trains on; the test images stay unread."""

    source: datasets.ImageData
    train: datasets.Split
    validation: datasets.Split | None


def _read_data(config: schema.RunConfig) -> _Data:
    size = (config.input[0], config.input[1])
    source = datasets.load_dataset(
        config.data.name, spec=config.data.spec, data_dir=config.data.data_dir, size=size
    )
    if source.classes != config.classes:
        raise BadInputError(
            f"{config.data.name} has {source.classes} classes; this run's model has "
            f"{config.classes}"
        )
    train = source.load("train")
    validation = None
    if source.has_validation:
        validation = source.load("validation")
    elif config.recipe.validation_split:
        train, validation = datasets.split_validation(
            train, config.recipe.validation_split, config.seed
        )
    if config.data.limit_train:
        train = datasets.limit(train, config.data.limit_train, config.seed)
    return _Data(source, train, validation)


def make_model(config: schema.RunConfig) -> keras.Model:
    """Build a run's model, with first weights from its seed or from its weights file.

    Raises:
        BadInputError: the weights file does not fit the model.
    """
    model = build(
        plan_of(config), layers=config.execution.layers, policy=config.precision.resolved,
        seed=config.seed,
    )  # fmt: skip
    if config.weights:
        load_weights(model, config.weights)
    return model


def compile_model(model: keras.Model, config: schema.RunConfig, steps_per_epoch: int) -> None:
    """Compile a model for a run's recipe and precision."""
    optimizer = make_optimizer(
        config.recipe, steps_per_epoch, config.horizon, model.trainable_variables
    )
    if config.precision.resolved == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=SmoothedCrossentropy(config.recipe.label_smoothing),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        jit_compile=config.execution.jit_compile,
    )


def fit(
    run: Run,
    *,
    console: Console | None = None,
    test: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train the model of a run folder and leave everything about it there.

    Args:
        run: a folder made by `runs.create_run`.
        console: where progress goes; standard output if not given.
        test: whether to read the test set, once, at the end. A search does not.
        on_epoch: called after each epoch with its row of `metrics.csv`.

    Returns:
        What `summary.json` holds: `test_accuracy` (a fraction; None without `test`), `epochs`,
        `images_per_second`, `params` and more.

    Raises:
        BadInputError: the data or the weights do not fit.
        DivergedError: the loss is no longer a finite number.
        EnvironmentFaultError: the run folder cannot be written.
    """
    began = time.monotonic()
    console = console or Console()
    config = run.config
    keras.utils.set_random_seed(config.seed)
    data = _read_data(config)
    devices = backend.devices()
    known: dict[str, Any] = {"inference": data.source.inference}
    # A configuration with an inference block was run before: what it used then, it uses again.
    known["precision"] = (
        config.precision if config.inference else precision.confirm(config.precision, devices)
    )
    if known["precision"] != config.precision:
        console.print(f"precision float32 ({known['precision'].reason})", highlight=False)
    config = config.model_copy(update=known)
    run.write_config(config)
    run.write_environment({"backend": keras.backend.backend(), "devices": devices,
                           "data": data.source.located.remark})  # fmt: skip
    model = make_model(config)
    recorder = _train(run, config, model, data, console, on_epoch)
    summary = _summary(run, config, data, recorder, time.monotonic() - began)
    if test:
        summary |= test_model(model, config, data.source, run)
    run.write_summary(summary)
    return summary


def _train(
    run: Run, config: schema.RunConfig, model: keras.Model, data: _Data, console: Console,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> _Recorder:  # fmt: skip
    recipe = config.recipe
    steps = datasets.steps_per_epoch(len(data.train), recipe.batch_size)
    batch = min(recipe.batch_size, len(data.train))
    compile_model(model, config, steps)
    inference = data.source.inference
    images = datasets.training_pipeline(
        data.train, inference=inference, augment=recipe.augment,
        allowed=config.data.spec.augment, batch_size=recipe.batch_size, seed=config.seed,
        epochs=recipe.epochs,
    )  # fmt: skip
    validation = data.validation and datasets.evaluation_pipeline(
        data.validation, inference=inference, batch_size=config.execution.evaluation_batch_size
    )
    rate = _inner(model.optimizer)._learning_rate
    recorder = _Recorder(
        run, Reporter(console, recipe.epochs, steps, batch),
        {"model": config.architecture.name, "inference": inference.model_dump(mode="json")},
        lambda step: float(rate(step)), steps, batch, on_epoch,
    )  # fmt: skip
    # The averaged weights must be in the model before the recorder saves it.
    averaging = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if recipe.ema else []
    try:
        model.fit(
            images, shuffle=False, epochs=recipe.epochs, steps_per_epoch=steps,
            validation_data=validation, callbacks=[*averaging, recorder], verbose=0,
        )  # fmt: skip
    except _out_of_memory() as error:
        raise EnvironmentFaultError(
            f"{run.path}: the device ran out of memory at batch size {batch}. Try a smaller "
            "--batch-size"
        ) from error
    finally:
        recorder.reporter.close()
    return recorder


def _out_of_memory() -> type[Exception]:
    import tensorflow as tf

    error: type[Exception] = tf.errors.ResourceExhaustedError
    return error


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _summary(
    run: Run, config: schema.RunConfig, data: _Data, recorder: _Recorder, seconds: float
) -> dict[str, Any]:
    last = run.metrics()[-1]
    return {
        "model": config.architecture.name,
        "dataset": config.data.name,
        "data_remark": data.source.located.remark,
        "recipe": config.recipe_name,
        "precision": config.precision.resolved,
        "test_accuracy": None,
        "test_loss": None,
        "val_accuracy": last["val_accuracy"],
        "best_val_accuracy": recorder.best if math.isfinite(recorder.best) else None,
        "epochs": config.recipe.epochs,
        "train_images": len(data.train),
        "images_per_second": recorder.steady_images / recorder.steady_seconds,
        "first_step_seconds": recorder.first_step_seconds,
        "seconds": seconds,
        "params": plan_of(config).params,
        "run": str(run.path),
    }


# ---------------------------------------------------------------------------- evaluate


def test_model(
    model: keras.Model, config: schema.RunConfig, source: datasets.ImageData, run: Run | None
) -> dict[str, Any]:
    """Read the test set and return `test_accuracy`, a fraction, `test_loss` and `test_images`.

    The loss is the cross-entropy without label smoothing. With a run, its `predictions.npz` is
    written.
    """
    split = source.load("test")
    pipeline = datasets.evaluation_pipeline(
        split, inference=source.inference, batch_size=config.execution.evaluation_batch_size
    )
    logits = np.asarray(model.predict(pipeline, verbose=0), "float64")
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    if run is not None:
        run.write_predictions(split.labels, np.exp(log_probabilities))
    chosen = log_probabilities[np.arange(len(split)), split.labels]
    return {
        "test_accuracy": float((logits.argmax(axis=1) == split.labels).mean()),
        "test_loss": float(-chosen.mean()),
        "test_images": len(split),
    }


def evaluate(run: Run, *, data_dir: str | None = None, best: bool = False) -> dict[str, Any]:
    """Evaluate a run's weights on its test set.

    Args:
        run: a run folder with weights.
        data_dir: folder searched first for the data; the run's own if not given.
        best: use the weights of the best validation accuracy instead of the last.

    Raises:
        BadInputError: there are no such weights, or the data are not found.
    """
    config = run.config
    weights = run.best_weights if best else run.last_weights
    if not weights.is_file():
        raise BadInputError(f"{weights}: this run has no such weights yet")
    config = config.model_copy(update={"weights": str(weights)})
    source = datasets.load_dataset(
        config.data.name, spec=config.data.spec, data_dir=data_dir or config.data.data_dir,
        size=(config.input[0], config.input[1]),
    )  # fmt: skip
    found = test_model(make_model(config), config, source, None)
    return {
        "model": config.architecture.name,
        "dataset": config.data.name,
        "data_remark": source.located.remark,
        "weights": str(weights),
        **found,
    }
