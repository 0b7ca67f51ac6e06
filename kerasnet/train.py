"""From a run's configuration to a trained model: compile, `model.fit`, evaluate.

A run goes through any number of processes. Each starts from the newest checkpoint in the run
folder, or from the beginning where there is none; nothing else decides where training goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from kerasnet import backend, budget, initial, precision, range_test, schema
from kerasnet import data as datasets
from kerasnet.averaging import Averages
from kerasnet.build import build, freeze
from kerasnet.checkpoint import (
    Arrays,
    Checkpoint,
    Progress,
    Rollback,
    checkpoint_files,
    newest_checkpoint,
)
from kerasnet.config import plan as plan_of
from kerasnet.config import remark_on_schedule
from kerasnet.convert import inference_in, load_weights
from kerasnet.errors import (
    BadInputError,
    DivergedError,
    EnvironmentFaultError,
    InterruptedRunError,
    OutOfMemoryFaultError,
    OutOfTimeError,
)
from kerasnet.interruption import Interrupted, Interruption, TimeIsUp
from kerasnet.page import plural
from kerasnet.probe import bfloat16_gain
from kerasnet.progress import Reporter, duration
from kerasnet.recipe import compile_model
from kerasnet.runs import METRICS, Run
from kerasnet.state import metric_variables, restore, state_variables
from kerasnet.terminal import say
from kerasnet.training import (
    Diverged,
    Recorder,
    Saver,
    StepCallbacks,
    Training,
    TrainingData,
    metrics_of,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# A learning rate a thousand times lower that still diverges is not the learning rate's fault.
MAX_ROLLBACKS = 10
_MOST_NAMES = 10


def read_data(config: schema.RunConfig) -> TrainingData:
    """Read a run's training images, and those it holds back; never the test images.

    Raises:
        BadInputError: they are not found, damaged, or of other classes than the configuration's.
    """
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
    if config.data.train_on == "train+validation":
        if source.has_validation:
            train = datasets.joined(train, source.load("validation"))
    elif source.has_validation:
        validation = source.load("validation")
    elif config.recipe.validation_split:
        train, validation = datasets.split_validation(
            train, config.recipe.validation_split, config.seed
        )
    if config.data.limit_train:
        train = datasets.limit(train, config.data.limit_train, config.seed)
    return TrainingData(source, train, validation)


def make_model(config: schema.RunConfig) -> keras.Model:
    """Build a run's model, with first weights from its seed or from its weights file.

    Raises:
        BadInputError: the weights file does not fit the model, or there is nothing like what the
            configuration freezes.
    """
    return _loaded(config)[0]


def _loaded(config: schema.RunConfig) -> tuple[keras.Model, dict[str, Any]]:
    """Return a run's model, and the metadata of its weights file."""
    plan = plan_of(config)
    model = build(
        plan, layers=config.execution.layers, policy=config.precision.resolved, seed=config.seed
    )
    metadata = {}
    if config.weights:
        metadata = load_weights(model, config.weights, reset_head=config.reset_head)
    freeze(model, plan, config.freeze)
    return model, metadata


def _first_model(config: schema.RunConfig, data: TrainingData) -> keras.Model:
    """Build the model of a run that begins, with the first weights that its recipe asks for."""
    model = make_model(config)
    if not config.weights:
        images, inference = data.train, data.source.inference
        initial.apply(model, plan_of(config), config.recipe.initial, images, inference, config.seed)
    return model


# ---------------------------------------------------------------------------- fit


def fit(
    run: Run,
    *,
    config: schema.RunConfig | None = None,
    console: Console | None = None,
    test: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    seconds: float | None = None,
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
        seconds: after so many the run is left as at a signal, after a step.

    Returns:
        What `summary.json` holds: `test_accuracy` (a fraction; None without `test`), `epochs`,
        `images_per_second`, `params` and more.

    Raises:
        BadInputError: the data, the weights or every checkpoint do not fit or are damaged, or
            another process trains this run.
        DivergedError: the loss is no longer a finite number.
        EnvironmentFaultError: the run folder cannot be written, or memory ran out.
        InterruptedRunError: by Ctrl-C or SIGTERM; the state was saved after the step.
        OutOfTimeError: `seconds` have passed; the state was saved after the step.
    """
    console = console or Console()
    try:
        with run.locked(), Interruption(console, seconds) as stop:
            run.prepare()
            config = config or run.config
            backend.load(deterministic=config.execution.deterministic)
            with backend.gradients_released():
                return _fit(run, config, console, stop, test, on_epoch)
    except TimeIsUp as error:
        raise OutOfTimeError(f"{run.path}: the time is up; {_way_on(run, config)}") from error
    except Interrupted as signal:
        message = f"{run.path}: interrupted; {_way_on(run, config)}"
        raise InterruptedRunError(message, signal.signum) from signal
    except EnvironmentFaultError as error:
        raise type(error)(f"{error}; {_way_on(run, config)}") from error


def _way_on(run: Run, config: schema.RunConfig | None = None) -> str:
    """Say what is kept of a run that has stopped, and how to go on with it."""
    return f"{_kept(run)}. Go on with: {run.command_for(config)}"


def _kept(run: Run) -> str:
    files = checkpoint_files(run.checkpoints)
    return f"the newest checkpoint is {files[0]}" if files else "there is no checkpoint yet"


def _fit(
    run: Run, config: schema.RunConfig, console: Console, stop: Interruption, test: bool,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:  # fmt: skip
    keras.utils.set_random_seed(config.seed)
    found = _newest(run, config, console)
    if found is None and (run.finished or run.last_weights.is_file()):
        raise BadInputError(
            f"{run.checkpoints}: no checkpoint is left to go on from. Begin a new run, from the "
            f"last weights with --weights {run.last_weights}"
        )
    data = read_data(config)
    reading = time.monotonic()
    if test:
        # Hours of training must not end at a damaged file that could have been known of.
        data.source.check("test")
    reading = time.monotonic() - reading
    _say_data(console, data, test)
    begins = f"{run.path}: training at batch size {min(config.recipe.batch_size, len(data.train))}"
    with _memory(begins, "--batch-size"):
        config = _settled(config, data, console)
        if found is None and config.rate_open:
            config = _with_found_rate(run, config, data, console)
        training = Training(run, config, data, console, stop, on_epoch, _start(data), Arrays())
        if found is None and config.epochs_open:
            config = _with_chosen_epochs(training, reading)
            training = dataclasses.replace(training, config=config)
    if found is not None:
        _check_fits(found, training)
        _go_back_to(found, training)
        training.began -= found.progress.seconds
    with _memory(begins, "--batch-size"):
        model, averages = _train_through(training)
    evaluation = f"evaluating at batch size {config.execution.evaluation_batch_size}"
    with _memory(f"{run.path}: {evaluation}", "evaluation_batch_size"), averages():
        summary = _summary(training)
        if test:
            summary |= test_model(model, config, data.source, run)
    run.write_summary(summary)
    return summary


def _with_found_rate(
    run: Run, config: schema.RunConfig, data: TrainingData, console: Console
) -> schema.RunConfig:
    """Return the configuration with a measured learning rate, having written it to the run."""
    found = range_test.find(_first_model(config, data), config, data, run.path, console)
    # From here on the run is one like any other: a resumed one must not measure again.
    run.write_config(found.config)
    rate = found.suggestion
    say(console, f"learning rate {rate.rate:g}: {rate.reason}", style="bold")
    _forget_models(config)
    return found.config


def _with_chosen_epochs(training: Training, reading: float) -> schema.RunConfig:
    """Return the configuration with the epochs that fit into its budget, and write it to the run.

    Args:
        training: of a run that has not begun.
        reading: seconds that reading the test images takes.
    """
    run, config, console = training.run, training.config, training.console
    # Otherwise this model's state would be kept for as long as the run's own.
    with console.status("measuring the time of an epoch"), backend.gradients_released():
        costs = budget.measure(lambda: _first_model(config, training.data), training, reading)
    chosen = budget.choose(costs, config, training.steps, run)
    assert chosen.budget is not None
    run.write_config(chosen)
    epochs, within = plural(chosen.recipe.epochs, "epoch"), duration(chosen.budget.seconds)
    say(console, f"{epochs} within {within}: {chosen.budget.reason}", style="bold")
    if remark := remark_on_schedule(chosen):
        say(console, remark, style="yellow")
    _forget_models(config)
    return chosen


def _forget_models(config: schema.RunConfig) -> None:
    """Let a run begin as if nothing had been trained in this process."""
    keras.backend.clear_session(free_memory=True)
    keras.utils.set_random_seed(config.seed)


def find_rate(config: schema.RunConfig, folder: Path, console: Console) -> range_test.Found:
    """Run a learning-rate range test alone; neither validation nor test images are used.

    Args:
        config: with `lr_find`, which says what to try.
        folder: where the curve is written; made if it is missing.
        console: where progress goes.

    Raises:
        KerasnetError: as `range_test.find`, or the data do not fit, or memory ran out.
    """
    backend.load(deterministic=config.execution.deterministic)
    keras.utils.set_random_seed(config.seed)
    data = read_data(config)
    batch = min(config.recipe.batch_size, len(data.train))
    with _memory(f"{folder}: measuring at batch size {batch}", "--batch-size"):
        config = _settled(config, data, console)
        return range_test.find(_first_model(config, data), config, data, folder, console)


def _start(data: TrainingData) -> Progress:
    return Progress(data=data.fingerprint, backend=keras.backend.backend())


def _go_back_to(found: Checkpoint, training: Training) -> None:
    training.progress, training.arrays = found.progress, found.arrays


@contextlib.contextmanager
def _memory(where: str, option: str) -> Iterator[None]:
    """Turn every backend's error about memory into one."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        advice = (
            f"Try a smaller {option} in a new run"
            if option.startswith("--")
            else f"Lower `{option}` in config.yaml"
        )
        raise OutOfMemoryFaultError(f"{where}: memory ran out. {advice}") from error


def _newest(run: Run, config: schema.RunConfig, console: Console) -> Checkpoint | None:
    # Weights and three copies of them in an optimiser come to 16 bytes a parameter.
    bound = 2**26 + 24 * plan_of(config).params["total"]
    found = newest_checkpoint(
        run.checkpoints, bound, lambda error: say(console, f"passed over: {error}", style="yellow")
    )
    if found is not None:
        say(console, f"going on from {found.file}, step {found.progress.step:,}")
    return found


def _check_fits(found: Checkpoint, training: Training) -> None:
    """Hold a checkpoint, which may be a stranger's, against the run.

    Raises:
        BadInputError: it was written by another backend, of other images, or says what cannot be.
    """
    progress, data, steps = found.progress, training.data, training.steps
    if progress.backend != keras.backend.backend():
        raise BadInputError(
            f"{found.file}: was written with Keras on {progress.backend or 'another backend'}; "
            f"this is {keras.backend.backend()}. Set KERAS_BACKEND={progress.backend}"
        )
    if progress.data != data.fingerprint:
        raise BadInputError(
            f"{data.source.located.path or data.source.name}: these are not the training images "
            f"that {found.file} was trained on (checksum {data.fingerprint}, expected "
            f"{progress.data}). Say where those are with --data-dir"
        )
    done = progress.step - len(progress.metrics) * steps
    validating = progress.unvalidated is not None
    fits = (
        found.arrays
        and (done == steps if validating else 0 <= done < steps)
        and (not validating or progress.unvalidated.keys() == {"loss", "accuracy"})  # type: ignore[union-attr]
        and all(set(row) == set(METRICS) for row in progress.metrics)
        and progress.step <= training.config.recipe.epochs * steps
    )
    if not fits:
        raise BadInputError(
            f"{found.file}: does not fit this run: step {progress.step} after "
            f"{len(progress.metrics)} epochs of {steps} steps"
        )


def _say_data(console: Console, data: TrainingData, test: bool) -> None:
    source, names = data.source, data.source.class_names
    counts = [f"{len(data.train):,} images to train on"]
    counts += [f"{len(data.validation):,} for validation"] if data.validation else []
    counts += [f"{source.count('test'):,} for the test"] if test else []
    say(
        console,
        f"{len(names)} classes ({_listed(names)}): {', '.join(counts)}; {source.located.remark}",
    )


def _settled(config: schema.RunConfig, data: TrainingData, console: Console) -> schema.RunConfig:
    """Return the configuration with what is known now that the data and the devices are."""
    known: dict[str, Any] = {"inference": data.source.inference}
    # A configuration with an inference block was run before: what it used then, it uses again.
    if not config.inference:
        known["precision"] = confirmed(config)
        warning = precision.unused_gpu(backend.devices())
        if warning:
            say(console, warning, style="bold")
        if known["precision"] != config.precision:
            found = known["precision"]
            say(console, f"precision {found.resolved} ({found.reason})")
    return config.model_copy(update=known)


def confirmed(config: schema.RunConfig) -> schema.Precision:
    """Return the precision of a run on the devices that the backend can use."""
    # On other backends than TensorFlow, bfloat16 was never measured on a CPU.
    known = backend.on_tensorflow()
    return precision.confirm(
        config.precision, backend.devices(),
        lambda: bfloat16_gain(plan_of(config), config.recipe.batch_size) if known else 1.0,
    )  # fmt: skip


def _write_facts(training: Training) -> None:
    """Write what this process knows; from here on the run is one that has not finished."""
    run = training.run
    run.reopen()
    run.write_config(training.config)
    devices = backend.devices()
    facts = {
        "backend": keras.backend.backend(),
        "devices": devices,
        "gpu": precision.gpu_name(devices),
        "data": training.data.source.located.remark,
    }
    for name, (old, new) in run.write_environment(facts).items():
        say(training.console, f"{name} was {old} and is {new} now: the last digits may differ")


def _train_through(training: Training) -> tuple[keras.Model, Averages]:
    """Train to the last epoch, going back to a checkpoint where the configuration says so."""
    while True:
        try:
            return _train(training)
        except Diverged as error:
            _roll_back(training, error)
            keras.backend.clear_session()


def _roll_back(training: Training, error: Diverged) -> None:
    """Put the training back to the newest checkpoint, with half the learning rate."""
    run, tried = training.run, len(training.progress.rollbacks)
    again = "a lower --learning-rate, or `gradient_clip` in the recipe"
    if tried >= MAX_ROLLBACKS:
        raise DivergedError(
            f"{run.path}: {error} after {tried} rollbacks; {_kept(run)}. Begin a new run with "
            f"{again}"
        ) from error
    if training.config.execution.on_nan == "stop":
        raise DivergedError(
            f"{run.path}: {error}; {_way_on(run)} --on-nan rollback, which halves the learning "
            f"rate, or begin a new run with {again}"
        ) from error
    scale = training.progress.learning_rate_scale / 2
    history = training.progress.rollbacks
    found = _newest(run, training.config, training.console)
    if found is None:
        training.progress, training.arrays = _start(training.data), Arrays()
    else:
        _go_back_to(found, training)
    back_to = training.progress.step
    training.progress.learning_rate_scale = scale
    training.progress.rollbacks = [
        *history, Rollback(diverged_at=error.step, back_to=back_to, learning_rate_scale=scale)
    ]  # fmt: skip
    say(training.console, f"{error}: back to step {back_to:,}, with {scale:g} times the recipe's "
                          "learning rates")  # fmt: skip


def _train(training: Training) -> tuple[keras.Model, Averages]:
    config, progress = training.config, training.progress
    if training.arrays:
        # A checkpoint holds all weights; the file that the run began with may be gone.
        model = make_model(config.model_copy(update={"weights": None}))
    else:
        model = _first_model(config, training.data)
    compile_model(model, config, training.steps, progress.learning_rate_scale)
    model.steps_per_execution = training.steps_per_execution
    saver = Saver(training, model)
    if training.arrays:
        _restore(model, training)
    # Nothing that is there is touched before the state fits.
    _write_facts(training)
    if progress.rollbacks and progress.rollbacks[-1].back_to == progress.step:
        # A run that is killed now must not forget that it was rolled back.
        saver.save(model, metrics_of(training.arrays))
    saver.tables()
    if progress.metrics and progress.step == len(progress.metrics) * training.steps:
        saver.weights(model)
    epochs = config.recipe.epochs
    reporter = Reporter(training.console, epochs, training.steps, training.batch)
    try:
        _run_epochs(model, training, Recorder(training, saver, reporter))
    finally:
        reporter.close()
    training.stop.release()
    return model, saver.averages


def _restore(model: keras.Model, training: Training) -> None:
    """Set the model's state to the checkpoint's, having looked at its running sums too."""
    where, metrics = str(training.run.checkpoints), metrics_of(training.arrays)
    state = {key: array for key, array in training.arrays.items() if key not in metrics}
    restore(state_variables(model), state, where)
    progress = training.progress
    if progress.unvalidated is None and progress.step > len(progress.metrics) * training.steps:
        restore(metric_variables(model), metrics, where)


def _run_epochs(model: keras.Model, training: Training, recorder: Recorder) -> None:
    """Call `model.fit` for what is left: of the epoch under way first, then of the run."""
    config, progress, steps = training.config, training.progress, training.steps
    inference, recipe = training.data.source.inference, config.recipe
    validation = training.data.validation and datasets.evaluation_pipeline(
        training.data.validation, inference=inference,
        batch_size=config.execution.evaluation_batch_size,
    )  # fmt: skip
    epoch = len(progress.metrics)
    if progress.unvalidated is not None:
        _end_epoch(model, recorder, epoch, validation)
        epoch += 1
    while epoch < recipe.epochs:
        done = progress.step - epoch * steps
        images = training.batches(recipe.epochs, progress.step)
        last = epoch + 1 if done else recipe.epochs
        callbacks = StepCallbacks([recorder], add_history=True, model=model)
        model.fit(
            images, shuffle=False, initial_epoch=epoch, epochs=last, steps_per_epoch=steps - done,
            validation_data=validation, callbacks=callbacks, verbose=0,
        )  # fmt: skip
        epoch = last


def _end_epoch(model: keras.Model, recorder: Recorder, epoch: int, validation: Any) -> None:
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


def _summary(training: Training) -> dict[str, Any]:
    config, progress = training.config, training.progress
    plan = plan_of(config)
    images, seconds = progress.steady_images, progress.steady_seconds
    return {
        "model": config.architecture.name,
        "dataset": config.data.name,
        "data_remark": training.data.source.located.remark,
        "recipe": config.recipe_name,
        "precision": config.precision.resolved,
        "test_accuracy": None,
        "test_loss": None,
        "val_accuracy": progress.metrics[-1]["val_accuracy"],
        "best_val_accuracy": progress.best,
        "epochs": config.recipe.epochs,
        "train_images": len(training.data.train),
        "images_per_second": images / seconds if images and seconds else None,
        "first_step_seconds": progress.first_step_seconds,
        "seconds": time.monotonic() - training.began,
        "rollbacks": [rollback.model_dump() for rollback in progress.rollbacks],
        "params": {**plan.params, "trained": plan.trained_params(config.freeze)},
        "run": str(training.run.path),
    }


# ---------------------------------------------------------------------------- evaluate


def test_model(
    model: keras.Model, config: schema.RunConfig, source: datasets.ImageData, run: Run | None,
    tta: Literal["flip"] | None = None, inference: schema.Inference | None = None,  # noqa: PT028
) -> dict[str, Any]:  # fmt: skip
    """Read the test set and return `test_accuracy`, a fraction, `test_loss` and `test_images`.

    The loss is the cross-entropy without label smoothing. With a run, its `predictions.npz` is
    written.

    Args:
        model: the configuration's.
        config: the run's.
        source: the data set, read once.
        run: where the predictions are written, if anywhere.
        tta: `flip`: measure once more, by the mean of the logits of each image and of its mirror
            image (Jordan 2024, section 3.5), as `test_accuracy_tta` and `test_loss_tta`. What is
            measured without it, and written, stays what it is.
        inference: how images are normalised; as the data set says if not given.
    """
    inference = inference or source.inference
    split = source.load("test")
    logits = logits_of(model, config, split, inference)
    if run is not None:
        run.write_predictions(split.labels, np.exp(log_probabilities(logits)))
    accuracy, loss = scores(logits, split.labels)
    found = {"test_accuracy": accuracy, "test_loss": loss, "test_images": len(split)}
    if tta is None:
        return found
    mirrored = dataclasses.replace(split, images=np.ascontiguousarray(split.images[:, :, ::-1]))
    both = (logits + logits_of(model, config, mirrored, inference)) / 2
    accuracy, loss = scores(both, split.labels)
    return {**found, "tta": tta, "test_accuracy_tta": accuracy, "test_loss_tta": loss}


def logits_of(
    model: keras.Model, config: schema.RunConfig, split: datasets.Split,
    inference: schema.Inference,
) -> FloatArray:  # fmt: skip
    """Return the logits of a split's images, float64 (n, classes)."""
    pipeline = datasets.evaluation_pipeline(
        split, inference=inference, batch_size=config.execution.evaluation_batch_size
    )
    found: FloatArray = np.asarray(model.predict(pipeline, verbose=0), "float64")
    return found


def log_probabilities(logits: FloatArray) -> FloatArray:
    """Return the logarithm of the softmax of logits, (n, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def scores(logits: FloatArray, labels: IntArray) -> tuple[float, float]:
    """Return the accuracy and the mean cross-entropy of logits (n, classes), labels (n,)."""
    chosen = log_probabilities(logits)[np.arange(len(labels)), labels]
    return float((logits.argmax(axis=1) == labels).mean()), float(-chosen.mean())


def evaluate(
    run: Run, *, data_dir: str | None = None, best: bool = False,
    tta: Literal["flip"] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a run's weights on its test set.

    Args:
        run: a run folder with weights.
        data_dir: folder searched first for the data; the run's own if not given.
        best: use the weights of the best validation accuracy instead of the last.
        tta: as for `test_model`; the caller has seen that the data set allows it.

    Raises:
        BadInputError: there are no such weights, or the data are not found.
    """
    config = run.config
    weights = run.best_weights if best else run.last_weights
    if not weights.is_file():
        raise BadInputError(f"{weights}: this run has no such weights yet")
    # The head is the run's own by now.
    config = config.model_copy(update={"weights": str(weights), "reset_head": False})
    return evaluate_weights(config, data_dir=data_dir, tta=tta)


def evaluate_weights(
    config: schema.RunConfig, *, data_dir: str | None = None, tta: Literal["flip"] | None = None
) -> dict[str, Any]:
    """Evaluate the weights file that a configuration names on its test set; `tta` as `evaluate`.

    Images are normalised as the file says, and as the data set says where it says nothing.

    Raises:
        BadInputError: the weights do not fit the model, are of other classes, or the data are not
            found.
    """
    source = datasets.load_dataset(
        config.data.name, spec=config.data.spec, data_dir=data_dir or config.data.data_dir,
        size=(config.input[0], config.input[1]),
    )  # fmt: skip
    model, metadata = _loaded(config)
    inference = inference_in(metadata, config.input[2], str(config.weights))
    if inference is not None:
        _check_same_classes(config, tuple(inference.class_names), source)
    found = test_model(model, config, source, None, tta, inference)
    return {
        "model": config.architecture.name,
        "dataset": config.data.name,
        "data_remark": source.located.remark,
        "weights": config.weights,
        **found,
    }


def _check_same_classes(
    config: schema.RunConfig, told: tuple[str, ...], source: datasets.ImageData
) -> None:
    """Refuse weights that tell other classes apart than the data have, or number them otherwise."""
    names = source.class_names
    if told == names or not source.named or told == tuple(map(str, range(len(told)))):
        return
    i = next(i for i, pair in enumerate(zip(told, names, strict=True)) if pair[0] != pair[1])
    raise BadInputError(
        f"{config.weights} tells {_listed(told)} apart; {config.data.name} has {_listed(names)}: "
        f"class {i} is '{told[i]}' there and '{names[i]}' here. To train on these: kerasnet fit "
        f"{config.architecture.name} --dataset {config.data.name} --weights {config.weights} "
        "--reset-head"
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join((*names[:_MOST_NAMES], *["…"] * (len(names) > _MOST_NAMES)))
