"""From a run's configuration to a trained model: compile, `model.fit`, evaluate.

A run goes through any number of processes. Each starts from the newest checkpoint in the run
folder, or from the beginning where there is none; nothing else decides where training goes on.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kerasnet import backend, precision, schema
from kerasnet import data as datasets
from kerasnet.build import build
from kerasnet.checkpoint import (
    Arrays,
    Checkpoint,
    Progress,
    Rollback,
    checkpoint_files,
    newest_checkpoint,
    write_checkpoint,
)
from kerasnet.config import plan as plan_of
from kerasnet.convert import load_weights, save_weights
from kerasnet.errors import (
    BadInputError,
    DivergedError,
    EnvironmentFaultError,
    InterruptedRunError,
)
from kerasnet.interruption import Interrupted, Interruption
from kerasnet.progress import Reporter
from kerasnet.recipe import averaged, compile_model, inner, swap_averages
from kerasnet.runs import METRICS, TIMING, Run
from kerasnet.state import capture, metric_variables, restore, state_variables

# A learning rate a thousand times lower that still diverges is not the learning rate's fault.
MAX_ROLLBACKS = 10

# ---------------------------------------------------------------------------- what a run trains on


@dataclass(frozen=True)
class _Data:
    """What a run trains on; the test images stay unread."""

    source: datasets.ImageData
    train: datasets.Split
    validation: datasets.Split | None

    @property
    def fingerprint(self) -> str:
        """A checksum of the training images and labels."""
        images = zlib.crc32(np.ascontiguousarray(self.train.images).data)
        return f"{zlib.crc32(self.train.labels.tobytes(), images):08x}"


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


# ---------------------------------------------------------------------------- one process's part


class _Diverged(Exception):  # noqa: N818
    """The loss or the weights are no longer finite numbers."""

    def __init__(self, step: int, what: str, rate: float) -> None:
        super().__init__(f"{what} at learning rate {rate:.3g}")
        self.step = step


def _rate(model: keras.Model, step: int) -> float:
    """Return the learning rate of the update of a step, counted from 1."""
    return float(inner(model.optimizer)._learning_rate(step - 1))


@dataclass
class _Session:
    """What one process knows of the run that it trains."""

    run: Run
    config: schema.RunConfig
    data: _Data
    console: Console
    stop: Interruption
    on_epoch: Callable[[dict[str, Any]], None] | None
    progress: Progress
    arrays: Arrays

    def __post_init__(self) -> None:
        """Start the clock where the last process stopped it."""
        self.began = time.monotonic() - self.progress.seconds

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return datasets.steps_per_epoch(len(self.data.train), self.config.recipe.batch_size)

    @property
    def batch(self) -> int:
        """Images in a step."""
        return min(self.config.recipe.batch_size, len(self.data.train))


class _Saver:
    """Writes the state and what is derived from it: tables and weights."""

    def __init__(self, session: _Session) -> None:
        self.session, self.run, self.progress = session, session.run, session.progress
        self.seconds = 0.0
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()

    def due(self) -> bool:
        """Whether the configuration asks for a checkpoint after this step."""
        every = self.session.config.execution.checkpoint_every
        if isinstance(every, schema.EverySteps):
            return self.progress.step // every.steps > self._saved_step // every.steps
        return time.monotonic() - self._saved_at >= 60 * every.minutes

    def save(self, model: keras.Model, metrics: Arrays) -> None:
        """Write a checkpoint; `metrics` are the running sums of an epoch that is under way."""
        began = time.monotonic()
        self.progress.seconds = began - self.session.began
        state = capture(state_variables(model))
        for key, array in state.items():
            if key.startswith("weights/") and not np.isfinite(array).all():
                step = self.progress.step
                what = f"{key[8:]} is not finite after step {step:,}"
                raise _Diverged(step, what, _rate(model, step))
        keep = self.session.config.execution.keep_checkpoints
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
        config, row = self.session.config, self.progress.metrics[-1]
        assert config.inference is not None, "known since the data were read"
        metadata = {
            "model": config.architecture.name,
            "inference": config.inference.model_dump(mode="json"),
            "epoch": row["epoch"],
            "step": row["step"],
        }
        score = row["val_accuracy"]
        with averaged(model):
            save_weights(model, self.run.last_weights, metadata)
            if score is not None and score == self.progress.best:
                metadata["val_accuracy"] = score
                save_weights(model, self.run.best_weights, metadata)
        self.seconds += time.monotonic() - began


class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Follows training: shows it, saves it, and stops it when it must stop."""

    def __init__(self, session: _Session, saver: _Saver, reporter: Reporter) -> None:
        super().__init__()
        self.session, self.saver, self.reporter = session, saver, reporter
        self.progress, self.steps = session.progress, session.steps
        self._first = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        done = self.progress.step - epoch * self.steps
        seen = 0.0
        if 0 < done < self.steps:
            seen = self._restore_metrics() * done
        self._done_before, self._epoch = done, epoch
        self._validation, self.saver.seconds = 0.0, 0.0
        self._began = time.monotonic() - self.progress.epoch_seconds
        self._mark(done)
        self.reporter.epoch_begins(epoch + 1, done, seen)

    def _restore_metrics(self) -> float:
        """Set the running sums to what they were when the epoch was left; returns the loss."""
        model, classes = self.model, self.session.config.classes
        # Keras makes their variables when it first computes them.
        model.compute_metrics(None, np.zeros(1, "int32"), np.zeros((1, classes), "float32"))
        metrics = {k: a for k, a in self.session.arrays.items() if k.startswith("metrics/")}
        restore(metric_variables(model), metrics, str(self.session.run.checkpoints))
        return float(model.get_metrics_result()["loss"])

    def _mark(self, done: int) -> None:
        """Measure the rate of training from here."""
        self._steady = (time.monotonic() - self.saver.seconds, done)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        done = self._done_before + batch + 1
        self.progress.step = self._epoch * self.steps + done
        if self._first:
            self._first_step(done, logs)
        if done == self.steps:
            self.progress.unvalidated = {k: float(logs[k]) for k in ("loss", "accuracy")}
        if self.reporter.wants(done):
            self._check(logs)
            self.reporter.step_ended(done, float(logs["loss"]), float(logs["accuracy"]))
        if self.session.stop.requested is not None:
            self._check(logs)
            self._interrupt()
        elif done < self.steps and self.saver.due():
            self._check(logs)
            self._save()

    def _first_step(self, done: int, logs: Any) -> None:
        """Leave the first step, which compiles the model, out of the rate."""
        float(logs["loss"])  # a GPU's step has ended only when its result can be read
        self._first = False
        self.progress.first_step_seconds = time.monotonic() - self._steady[0]
        if done < self.steps:
            self._mark(done)
        # There is something to lose from now on.
        self.session.stop.hold()

    def _check(self, logs: Any) -> None:
        first = int(logs["first_nonfinite_step"])
        if first:
            # The count is an epoch's; it goes on over a resume as the other sums do.
            step = self._epoch * self.steps + first
            what = f"the loss of step {step:,} is no finite number"
            raise _Diverged(step, what, _rate(self.model, step))

    def _save(self) -> None:
        self.progress.epoch_seconds = time.monotonic() - self._began
        under_way = self.progress.unvalidated is None
        metrics = capture(metric_variables(self.model)) if under_way else {}
        # On JAX, asking Keras for the callback's model brings its variables up to date.
        self.saver.save(self.model, metrics)

    def _interrupt(self) -> None:
        signum = self.session.stop.requested
        assert signum is not None
        self._save()
        raise Interrupted(signum)

    def on_test_begin(self, logs: Any = None) -> None:
        self._trained = time.monotonic()
        swap_averages(self.model)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.session.stop.requested is not None:
            swap_averages(self.model)
            self._interrupt()

    def on_test_end(self, logs: Any = None) -> None:
        swap_averages(self.model)
        self._validation = time.monotonic() - self._trained

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        trained = time.monotonic() - self._validation
        progress = self.progress
        row = {
            "epoch": epoch + 1,
            "step": progress.step,
            **{k: float(logs[k]) if k in logs else None for k in METRICS[2:6]},
            "learning_rate": _rate(self.model, inner(self.model.optimizer).iterations),
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
        if self.session.on_epoch:
            self.session.on_epoch(row)

    def _timing(self, epoch: int, trained: float) -> dict[str, Any]:
        since, done = self._steady
        steady, images = (
            trained - self.saver.seconds - since,
            (self.steps - done) * self.session.batch,
        )
        self.progress.steady_seconds += steady
        self.progress.steady_images += images
        return {
            "epoch": epoch + 1,
            "seconds": trained - self._began,
            "images_per_second": images / steady if images else None,
            "validation_seconds": self._validation or None,
        }


# ---------------------------------------------------------------------------- fit


def fit(
    run: Run,
    *,
    config: schema.RunConfig | None = None,
    console: Console | None = None,
    test: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train the model of a run folder to its end and leave everything about it there.

    It goes on from the newest checkpoint in the folder that is whole, so that a run that was ended
    at any moment, and one that is to be longer, are continued by the same call.

    Args:
        run: a folder made by `runs.create_run`.
        config: in place of the one in the folder, as `config.continued` returns it.
        console: where progress goes; standard output if not given.
        test: whether to read the test set, once, at the end. A search does not.
        on_epoch: called after each epoch with its row of `metrics.csv`.

    Returns:
        What `summary.json` holds: `test_accuracy` (a fraction; None without `test`), `epochs`,
        `images_per_second`, `params` and more.

    Raises:
        BadInputError: the data, the weights or every checkpoint do not fit or are damaged, or
            another process trains this run.
        DivergedError: the loss is no longer a finite number.
        EnvironmentFaultError: the run folder cannot be written, or memory ran out.
        InterruptedRunError: by Ctrl-C or SIGTERM; the state was saved after the step.
    """
    console = console or Console()
    try:
        with run.locked(), Interruption(console) as stop:
            run.prepare()
            return _fit(run, config or run.config, console, stop, test, on_epoch)
    except Interrupted as signal:
        raise InterruptedRunError(
            f"{run.path}: interrupted; {_way_on(run)}", signal.signum
        ) from signal
    except EnvironmentFaultError as error:
        raise EnvironmentFaultError(f"{error}; {_way_on(run)}") from error


def _way_on(run: Run) -> str:
    """Say what is kept of a run that has stopped, and how to go on with it."""
    files = checkpoint_files(run.checkpoints)
    kept = f"the newest checkpoint is {files[0]}" if files else "there is no checkpoint yet"
    return f"{kept}. Go on with: {run.resume_command}"


def _fit(
    run: Run, config: schema.RunConfig, console: Console, stop: Interruption, test: bool,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:  # fmt: skip
    backend.load(deterministic=config.execution.deterministic)
    keras.utils.set_random_seed(config.seed)
    found = _newest(run, config, console)
    data = _read_data(config)
    if test:
        # Hours of training must not end at a damaged file that could have been known of.
        data.source.check("test")
    config = _settled(run, config, data, console)
    if found is None:
        progress, arrays = Progress(data=data.fingerprint), Arrays()
    else:
        progress, arrays = found.progress, found.arrays
        _check_same_data(found, data)
    session = _Session(run, config, data, console, stop, on_epoch, progress, arrays)
    model = _train_through(session)
    with averaged(model):
        summary = _summary(session)
        if test:
            summary |= test_model(model, config, data.source, run)
    run.write_summary(summary)
    return summary


def _newest(run: Run, config: schema.RunConfig, console: Console) -> Checkpoint | None:
    # Weights, at most three further copies of them in an optimiser, and room for what is small.
    bound = 2**26 + 6 * 4 * plan_of(config).params["total"]

    found = newest_checkpoint(
        run.checkpoints, bound, lambda error: _say(console, f"passed over: {error}", "yellow")
    )
    if found is not None:
        _say(console, f"going on from {found.file}, step {found.progress.step:,}")
    return found


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True, style=style)


def _check_same_data(found: Checkpoint, data: _Data) -> None:
    if found.progress.data != data.fingerprint:
        raise BadInputError(
            f"{data.source.located.path or data.source.name}: these are not the training images "
            f"that {found.file} was trained on (checksum {data.fingerprint}, expected "
            f"{found.progress.data}). Say where those are with --data-dir"
        )


def _settled(run: Run, config: schema.RunConfig, data: _Data, console: Console) -> schema.RunConfig:
    """Write what is known now that the data and the devices are, and return the configuration."""
    devices = backend.devices()
    known: dict[str, Any] = {"inference": data.source.inference}
    # A configuration with an inference block was run before: what it used then, it uses again.
    known["precision"] = (
        config.precision if config.inference else precision.confirm(config.precision, devices)
    )
    if known["precision"] != config.precision:
        _say(console, f"precision float32 ({known['precision'].reason})")
    config = config.model_copy(update=known)
    run.reopen()
    run.write_config(config)
    facts = {"backend": keras.backend.backend(), "devices": devices,
             "data": data.source.located.remark}  # fmt: skip
    for name, (old, new) in run.write_environment(facts).items():
        _say(console, f"{name} was {old} when this run began and is {new} now: bits may differ")
    return config


def _train_through(session: _Session) -> keras.Model:
    """Train to the last epoch, going back to a checkpoint where the configuration says so."""
    while True:
        try:
            return _train(session)
        except _Diverged as error:
            _roll_back(session, error)
            keras.backend.clear_session()


def _roll_back(session: _Session, error: _Diverged) -> None:
    """Put the session back to the newest checkpoint, with half the learning rate."""
    run, tried = session.run, len(session.progress.rollbacks)
    if session.config.execution.on_nan == "stop" or tried >= MAX_ROLLBACKS:
        after = f" after {tried} rollbacks" if tried else ""
        raise DivergedError(
            f"{run.path}: {error}{after}; {_way_on(run)} --on-nan rollback, which halves the "
            "learning rate, or begin again with a lower --learning-rate or with `gradient_clip` in "
            "the recipe"
        ) from error
    found = _newest(run, session.config, session.console)
    scale = session.progress.learning_rate_scale / 2
    history = session.progress.rollbacks
    if found is None:
        session.progress, session.arrays = Progress(data=session.data.fingerprint), Arrays()
    else:
        session.progress, session.arrays = found.progress, found.arrays
    back_to = session.progress.step
    session.progress.learning_rate_scale = scale
    session.progress.rollbacks = [
        *history, Rollback(diverged_at=error.step, back_to=back_to, learning_rate_scale=scale)
    ]  # fmt: skip
    _say(session.console, f"{error}: back to step {back_to:,}, with {scale:g} times the recipe's "
                          "learning rates")  # fmt: skip


def _train(session: _Session) -> keras.Model:
    config, progress = session.config, session.progress
    recipe, batch = config.recipe, session.batch
    model = make_model(config)
    compile_model(model, config, session.steps, progress.learning_rate_scale)
    saver = _Saver(session)
    if session.arrays:
        state = {k: a for k, a in session.arrays.items() if not k.startswith("metrics/")}
        restore(state_variables(model), state, str(session.run.checkpoints))
    if progress.rollbacks and progress.rollbacks[-1].back_to == progress.step:
        # A run that is killed now must not forget that it was rolled back.
        metrics = {k: a for k, a in session.arrays.items() if k.startswith("metrics/")}
        saver.save(model, metrics)
    saver.tables()
    if progress.metrics and progress.step == len(progress.metrics) * session.steps:
        saver.weights(model)
    reporter = Reporter(session.console, recipe.epochs, session.steps, batch)
    try:
        _run_epochs(model, session, _Recorder(session, saver, reporter))
    except Exception as error:
        if _is_out_of_memory(error):
            raise EnvironmentFaultError(
                f"{session.run.path}: memory ran out at batch size {batch}. Try a smaller "
                "--batch-size in a new run"
            ) from error
        raise
    finally:
        reporter.close()
    session.stop.release()
    return model


def _run_epochs(model: keras.Model, session: _Session, recorder: _Recorder) -> None:
    """Call `model.fit` for what is left: of the epoch under way first, then of the run."""
    config, progress, steps = session.config, session.progress, session.steps
    inference, recipe = session.data.source.inference, config.recipe
    validation = session.data.validation and datasets.evaluation_pipeline(
        session.data.validation, inference=inference,
        batch_size=config.execution.evaluation_batch_size,
    )  # fmt: skip
    epoch = len(progress.metrics)
    if progress.unvalidated is not None:
        _end_epoch(model, recorder, epoch, validation)
        epoch += 1
    while epoch < recipe.epochs:
        done = progress.step - epoch * steps
        images = datasets.training_pipeline(
            session.data.train, inference=inference, augment=recipe.augment,
            allowed=config.data.spec.augment, batch_size=recipe.batch_size, seed=config.seed,
            epochs=recipe.epochs, first_step=progress.step,
        )  # fmt: skip
        last = epoch + 1 if done else recipe.epochs
        model.fit(
            images, shuffle=False, initial_epoch=epoch, epochs=last, steps_per_epoch=steps - done,
            validation_data=validation, callbacks=[recorder], verbose=0,
        )  # fmt: skip
        epoch = last


def _end_epoch(model: keras.Model, recorder: _Recorder, epoch: int, validation: Any) -> None:
    """Validate and record an epoch that a process ended before doing so."""
    recorder.set_model(model)
    recorder.on_epoch_begin(epoch)
    logs: dict[str, Any] = dict(recorder.progress.unvalidated or {})
    if validation is not None:
        found = model.evaluate(validation, callbacks=[recorder], verbose=0, return_dict=True)
        logs |= {f"val_{key}": value for key, value in found.items()}
    recorder.on_epoch_end(epoch, logs)


def _is_out_of_memory(error: Exception) -> bool:
    """Tell by the name, or by XLA's status, for the backends have no error class in common."""
    name = type(error).__name__
    return (
        isinstance(error, MemoryError)
        or name in ("ResourceExhaustedError", "OutOfMemoryError")
        or "RESOURCE_EXHAUSTED" in str(error)
    )


def _summary(session: _Session) -> dict[str, Any]:
    config, progress = session.config, session.progress
    images, seconds = progress.steady_images, progress.steady_seconds
    return {
        "model": config.architecture.name,
        "dataset": config.data.name,
        "data_remark": session.data.source.located.remark,
        "recipe": config.recipe_name,
        "precision": config.precision.resolved,
        "test_accuracy": None,
        "test_loss": None,
        "val_accuracy": progress.metrics[-1]["val_accuracy"],
        "best_val_accuracy": progress.best,
        "epochs": config.recipe.epochs,
        "train_images": len(session.data.train),
        "images_per_second": images / seconds if images else None,
        "first_step_seconds": progress.first_step_seconds,
        "seconds": time.monotonic() - session.began,
        "rollbacks": [rollback.model_dump() for rollback in progress.rollbacks],
        "params": plan_of(config).params,
        "run": str(session.run.path),
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
