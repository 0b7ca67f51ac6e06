"""What the commands do, for programs and notebooks."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kerasnet import schema
from kerasnet.errors import BadInputError, InterruptedRunError
from kerasnet.registry import Registry, load_registry
from kerasnet.runs import Run

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from kerasnet.range_test import Found
    from kerasnet.seeds import SeedRuns


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names of the built-in models that match a shell pattern.

    Args:
        pattern: such as `resnet*`.
        pretrained: only those whose weights ship with kerasnet.
    """
    from kerasnet.pretrained import shipping

    registry = load_registry()
    return [name for name in registry.list_models(pattern)
            if not pretrained or shipping(name, registry)]  # fmt: skip


def create_model(
    name: str,
    classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    weights: str | os.PathLike[str] | None = None,
    features: bool | Iterable[str] = False,
    preprocessing: bool | str = False,
    *,
    reset_head: bool = False,
    freeze: str | Iterable[str] = (),
    registry: Registry | None = None,
    policy: str = "float32",
    seed: int | None = None,
) -> keras.Model:
    """Return a plain functional Keras model, made of stock layers only.

    Args:
        name: a model of the registry.
        classes: outputs of the classifier; the model's own if not given.
        input_shape: (height, width, channels); the model's own if not given.
        weights: a file of any format of `convert`, such as a run's
            `checkpoints/last.safetensors` or a PyTorch checkpoint; or `pretrained`: those that ship
            with kerasnet.
        features: True, or names of layers: return a dict of the stages' outputs instead of logits.
        preprocessing: True: take uint8 images and return probabilities, by the inference block in
            the weights file. A data set's name: by that data set's mean and standard deviation.
        reset_head: leave the classifier as it begins, for other classes than those of `weights`.
        freeze: parts that are not to be trained, of `stem`, `stage1`, …, `neck` and `head`; see
            `build.freeze`.
        registry: where the model is; the built-in one if not given.
        policy: dtype policy of every layer but the float32 head.
        seed: makes the initial weights reproducible.

    Returns:
        Without `preprocessing`: float32 normalised (batch, height, width, channels) → float32
        logits (batch, classes). With it: uint8 images of any size → probabilities.

    Raises:
        BadInputError: an unknown name, weights that do not fit, no inference block, or `freeze` or
            `reset_head` without weights.
    """
    from kerasnet import backend
    from kerasnet.config import check_start, parts

    frozen = parts(freeze)
    check_start(weights, reset_head, frozen)
    backend.load()
    from kerasnet.build import build, feature_model
    from kerasnet.build import freeze as freeze_parts
    from kerasnet.convert import load_weights
    from kerasnet.plan import plan_model
    from kerasnet.pretrained import weights_of

    registry = registry or load_registry()
    plan = plan_model(registry.architecture(name), input_shape, classes)
    if features is not False and preprocessing:
        raise BadInputError("`features` and `preprocessing` exclude each other")
    weights = weights_of(weights, name, registry=registry)
    model = build(plan, policy=policy, seed=seed)
    metadata = load_weights(model, weights, reset_head=reset_head) if weights else {}
    if reset_head:
        # Its class names are those of the file's own head.
        metadata.pop("inference", None)
    freeze_parts(model, plan, frozen)
    if features is not False:
        return feature_model(model, plan, features)
    if preprocessing is False:
        return model
    inference = _inference(preprocessing, metadata, registry, model, weights)
    return with_preprocessing(model, inference)


def _inference(
    wanted: bool | str, metadata: dict[str, Any], registry: Registry, model: keras.Model,
    weights: str | os.PathLike[str] | None,
) -> schema.Inference:  # fmt: skip
    if isinstance(wanted, str):
        spec = registry.datasets[wanted]
        if spec.mean is None or spec.std is None:
            raise BadInputError(f"data set '{wanted}' declares no mean and std in the registry")
        names = spec.class_names or [str(i) for i in range(model.output_shape[-1])]
        return schema.Inference(
            mean=spec.mean, std=spec.std, resize=list(model.input_shape[1:3]), class_names=names
        )
    from kerasnet.convert import inference_in

    found = inference_in(metadata, model.input_shape[-1], weights or "weights")
    if found is None:
        raise BadInputError(
            "preprocessing=True needs weights that carry an inference block, as those of a run do; "
            "or name a data set: preprocessing='cifar10'"
        )
    if tuple(found.resize) != model.input_shape[1:3]:
        height, width = found.resize
        raise BadInputError(
            f"the weights' inference block makes images of {height}×{width}; the model's have "
            f"{'×'.join(map(str, model.input_shape[1:3]))}. Name a data set instead, such as "
            f"preprocessing='cifar10', or give input_shape=({height}, {width}, {len(found.mean)})"
        )
    return found


def with_preprocessing(model: keras.Model, inference: schema.Inference) -> keras.Model:
    """Wrap a model so that it takes uint8 images of any size and returns probabilities.

    Args:
        model: normalised images → logits.
        inference: how images become the model's input and logits become probabilities.
    """
    import keras

    channels = model.input_shape[-1]
    images = keras.Input((None, None, channels), dtype="uint8", name="images")
    x = keras.layers.Resizing(*inference.resize, antialias=True, name="resize")(images)
    scale = [1 / (255 * s) for s in inference.std]
    offset = [-m / s for m, s in zip(inference.mean, inference.std, strict=True)]
    x = keras.layers.Rescaling(scale, offset, name="normalise", dtype="float32")(x)
    x = keras.layers.Rescaling(1 / inference.temperature, name="temperature")(model(x))
    x = keras.layers.Softmax(name="probabilities", dtype="float32")(x)
    return keras.Model(images, x, name=f"{model.name}_from_images")


def fit(
    model: str | None = None,
    *,
    resume: Run | SeedRuns | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    budget: str | float | None = None,
    seeds: Collection[int] | None = None,
    batch_size: int | None = None,
    learning_rate: float | Literal["find"] | None = None,
    precision: str | None = None,
    deterministic: bool | None = None,
    rescale: bool = False,
    registry: Registry | None = None,
    console: Console | None = None,
    **options: Any,
) -> Run | SeedRuns:
    """Train a model as `kerasnet fit` does and return its run folder.

    Args:
        model: a model of the registry; not needed with `resume`.
        resume: a run to go on with, from its newest checkpoint, or the runs of several seeds; what
            has finished is returned as it is, unless `epochs` makes it longer.
        out: a new run's folder; `runs/<model>-<dataset>-<time>` if not given.
        epochs: length, and on a new run the schedule's horizon.
        budget: in place of `epochs`: as many as fit into it, such as `"1h30m"` or seconds.
        seeds: train a run for each, one after another, in `seed-<seed>/` of the folder.
        batch_size: images in a step.
        learning_rate: the schedule's highest; `find`: what a range test suggests, see `lr_find`.
        precision: `auto`, `float32`, `mixed_bfloat16` or `mixed_float16`.
        deterministic: the same bits each time on the same machine; for the whole process.
        rescale: with `resume`: the schedule spans the new number of epochs.
        registry: where the model is; the built-in one if not given.
        console: where progress goes; standard output if not given.
        **options: `recipe`, `dataset`, `data_dir`, `seed`, `limit_train`, `input_size` (height and
            width that images are brought to, the model's own if not given), `train_on` (`train` or
            `train+validation`: no images are held back), `weights`, `reset_head`
            (True: the classifier begins anew), `freeze` (parts that are not trained, such as
            `["stem", "stage1"]`), and `checkpoint_every` (`{"steps": N}` or `{"minutes": N}`),
            `keep_checkpoints`, `on_nan`, `steps_per_execution`.

    Returns:
        The run, or with several seeds their folder; `run.summary()["test_accuracy"]` is the result,
        or the results' mean.

    Raises:
        KerasnetError: as the command; BadInputError, DivergedError, EnvironmentFaultError or
            InterruptedRunError.
    """
    from rich.console import Console

    from kerasnet import fitting

    named = {"epochs": epochs, "budget": budget, "batch_size": batch_size, "precision": precision,
             "learning_rate": learning_rate, "deterministic": deterministic}  # fmt: skip
    work = fitting.asked(
        model, {k: v for k, v in {**named, **options}.items() if v is not None},
        resume=resume, rescale=rescale, out=out, registry=registry, several=seeds,
    )  # fmt: skip
    work.check_result(work.train(console or Console()))
    assert work.run is not None, "made by training"
    return work.run


def result_of(run: Run) -> dict[str, Any]:
    """Return a finished run's summary, and write the report if that was not done any more.

    Raises:
        BadInputError: the run has not finished, or its files are damaged.
    """
    found = run.summary()
    if found.get("test_accuracy") is not None and not (run.path / "report.html").exists():
        from kerasnet.report import write_report

        write_report(run.path)
    return found


def train_run(
    run: Run,
    console: Console | None = None,
    config: schema.RunConfig | None = None,
    test: bool = True,
) -> dict[str, Any]:
    """Train a run folder to its end, write its report, and return its summary.

    Args:
        run: the folder; training goes on from its newest checkpoint.
        console: where progress goes.
        config: in place of the one in the folder.
        test: whether the test set is read, once, at the end; without that there is no report.

    Raises:
        KerasnetError: as `fit`.
    """
    from rich.console import Console

    from kerasnet import backend
    from kerasnet.interruption import Interrupted, Interruption

    console = console or Console()
    deterministic = (config or run.config).execution.deterministic
    try:
        with run.locked(), Interruption(console), console.status("loading TensorFlow"):
            backend.load(deterministic)
    except Interrupted as signal:
        raise InterruptedRunError(
            f"{run.path}: interrupted before it began. Go on with: {run.resume_command}",
            signal.signum,
        ) from signal
    from kerasnet.report import write_report
    from kerasnet.train import fit as train

    result = train(run, config=config, console=console, test=test)
    if test:
        write_report(run.path)
    return result


def lr_find(
    model: str,
    *,
    out: str | os.PathLike[str] | None = None,
    min: float = 1e-7,
    max: float = 10.0,
    steps: int = 150,
    registry: Registry | None = None,
    console: Console | None = None,
    **options: Any,
) -> Found:
    """Find a learning rate as `kerasnet lr-find` does: by a range test (Smith 2015, section 3.3).

    One training whose rate grows from `min` to `max`, on the training images alone.

    Args:
        model: a model of the registry.
        out: a new folder; `runs/lr-find-<model>-<dataset>-<time>` if not given.
        min: learning rate of the first step.
        max: learning rate of the last step.
        steps: how many steps; the test ends early where the loss diverges.
        registry: where the model is; the built-in one if not given.
        console: where progress goes; standard output if not given.
        **options: `recipe`, `dataset`, `data_dir`, `batch_size`, `limit_train`, `precision`,
            `seed`, `weights` and others as for `fit`.

    Returns:
        What was found: `found.suggestion.rate`, its reason, and `found.curve`.

    Raises:
        KerasnetError: BadInputError, DivergedError, EnvironmentFaultError or InterruptedRunError.
    """
    from kerasnet.config import check, new_run
    from kerasnet.files import check_new
    from kerasnet.runs import default_folder

    spec = {"min": min, "max": max, "steps": steps}
    given = {k: v for k, v in options.items() if v is not None}
    config = new_run(model, {**given, "learning_rate": "find", "lr_find": spec}, registry)
    check(config)
    folder = Path(out) if out is not None else default_folder(config, prefix="lr-find-")
    check_new(folder)
    return _find_rate(config, folder, console)


def _find_rate(config: schema.RunConfig, folder: Path, console: Console | None) -> Found:
    from rich.console import Console

    from kerasnet import backend
    from kerasnet.interruption import Interrupted, Interruption

    console = console or Console()
    try:
        with Interruption(console):
            with console.status("loading TensorFlow"):
                backend.load(config.execution.deterministic)
            from kerasnet.train import find_rate

            return find_rate(config, folder, console)
    except Interrupted as signal:
        raise InterruptedRunError(
            "interrupted before a learning rate was found", signal.signum
        ) from signal


def evaluate(
    run: Run | str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    dataset: str = "cifar10",
    data_dir: str | None = None,
    best: bool = False,
    tta: Literal["flip"] | None = None,
    registry: Registry | None = None,
) -> dict[str, Any]:
    """Measure the test accuracy of a run's weights again, or that of a weights file.

    Args:
        run: a run folder; or else
        model: a model of the registry, and
        weights: a file of any format of `convert`, or `pretrained`, in float32 and on
        dataset: as for `fit`, normalised as the weights say, or else as the registry does.
        data_dir: folder searched first for the data.
        best: the weights of a run's best validation accuracy instead of the last.
        tta: test-time augmentation, `flip`: the mean of the logits of each image and of its mirror
            image; not for a data set that forbids flips.
        registry: where the model is; the built-in one if not given.

    Returns:
        `test_accuracy` (a fraction), `test_loss`, `test_images` and what was evaluated, never with
        test-time augmentation. With `tta`, beside them `tta`, `test_accuracy_tta` and
        `test_loss_tta`, from the same reading of the test set.

    Raises:
        BadInputError: the weights or the data are not there or do not fit, or `tta` is none that
            the data set allows.
    """
    from kerasnet import backend
    from kerasnet.config import check, check_tta, for_weights
    from kerasnet.runs import load_run

    if run is not None:
        if model is not None or weights is not None:
            raise BadInputError("evaluate takes a run, or a model and weights, not both")
        opened = run if isinstance(run, Run) else load_run(run)
        check_tta(opened.config, tta)
        backend.load()
        from kerasnet.train import evaluate as measure

        return measure(opened, data_dir=data_dir, best=best, tta=tta)
    if model is None or weights is None or best:
        raise BadInputError("evaluate needs a run, or a model and weights; `best` goes with a run")
    config = for_weights(model, weights, dataset=dataset, data_dir=data_dir, registry=registry)
    check_tta(config, tta)
    check(config)
    backend.load()
    from kerasnet.train import evaluate_weights

    return evaluate_weights(config, tta=tta)


def convert_weights(
    source: str | os.PathLike[str],
    model: str,
    out: str | os.PathLike[str],
    *,
    keys: str | None = None,
    classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    reset_head: bool = False,
    state_dict: str | None = None,
    registry: Registry | None = None,
) -> dict[str, Any]:
    """Write a model's weights in another format, as `kerasnet convert` does.

    Args:
        source: `.pt`, `.pth`, `.ckpt` (PyTorch), `.safetensors`, `.weights.h5` or `.keras`; or
            `pretrained`: those that ship with kerasnet.
        model: a model of the registry.
        out: the file to write, its format told by the same endings.
        keys: key style of what is written; see `convert.convert`.
        classes: outputs of the classifier; the model's own if not given.
        input_shape: (height, width, channels); the model's own if not given.
        reset_head: write the classifier's initial values instead of the file's.
        state_dict: key of the state dict to read, in a PyTorch checkpoint that holds several.
        registry: where the model and the key styles are; the built-in one if not given.

    Returns:
        What was done; see `convert.convert`.

    Raises:
        BadInputError: the file does not fit the model.
    """
    from kerasnet import convert as formats
    from kerasnet.plan import plan_model
    from kerasnet.pretrained import weights_of

    registry = registry or load_registry()
    plan = plan_model(registry.architecture(model), input_shape, classes)
    return formats.convert(
        weights_of(source, model, registry=registry) or source, out, plan, registry.key_styles,
        keys=keys, reset_head=reset_head, state_dict=state_dict,
    )  # fmt: skip
