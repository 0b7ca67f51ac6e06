"""From names and options to a resolved run configuration, before TensorFlow loads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kerasnet import __version__, backend, data, initial, precision, schema
from kerasnet.convert import check_weights, inference_in, metadata_of
from kerasnet.document import (
    Document,
    DocumentError,
    Problem,
    problems_of,
    read,
    shown,
    validate,
)
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.plan import Plan, plan_model
from kerasnet.pretrained import weights_of
from kerasnet.registry import Registry, load_registry

# The options that stand for one field of a configuration, and that field's path.
OPTION_PATHS = {
    "epochs": "recipe.epochs",
    "batch_size": "recipe.batch_size",
    "learning_rate": "recipe.optimizer.learning_rate",
    "data_dir": "data.data_dir",
    "limit_train": "data.limit_train",
    "weights": "weights",
    "reset_head": "reset_head",
    "freeze": "freeze",
    "seed": "seed",
    "deterministic": "execution.deterministic",
    "steps_per_execution": "execution.steps_per_execution",
    "checkpoint_every": "execution.checkpoint_every",
    "keep_checkpoints": "execution.keep_checkpoints",
    "on_nan": "execution.on_nan",
    "lr_find": "lr_find",
    "train_on": "data.train_on",
    "budget": "budget",
}
# Test-time augmentations.
TTA = ("flip",)
# In place of a learning rate: measure it.
FIND = "find"
_FILES = ("data.data_dir", "weights")
# Those that `resolve` takes itself.
_ARGUMENTS = ("data_dir", "limit_train", "weights", "seed")
# What may differ from one process of a run to the next; everything else is the run itself.
CHANGEABLE = ("data_dir", "checkpoint_every", "keep_checkpoints", "on_nan")
_FIXED = {**OPTION_PATHS, "name": "architecture.name", "recipe": "recipe_name",
          "dataset": "data.name", "precision": "precision.requested"}  # fmt: skip


def resolve(
    model: str,
    *,
    registry: Registry | None = None,
    recipe: str | None = None,
    dataset: str = "cifar10",
    data_dir: str | os.PathLike[str] | None = None,
    precision_request: str = "auto",
    seed: int = 0,
    limit_train: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    input_size: int | Sequence[int] | None = None,
    layers: str = "fast",
    overrides: Mapping[str, Any] | None = None,
    shape: tuple[int, int] | None = None,
) -> schema.RunConfig:
    """Return everything a run needs, checked as far as it can be without TensorFlow.

    Args:
        model: name in the registry.
        registry: where names are looked up; the built-in one if not given.
        recipe: name in the registry; the one the model names for the data set if not given.
        dataset: name in the registry or in tensorflow-datasets, or a folder of class folders.
        data_dir: folder searched first for the data.
        precision_request: `auto`, `float32`, `mixed_bfloat16` or `mixed_float16`.
        seed: of data order, augmentation, initial weights and the validation split.
        limit_train: train on this many images only.
        weights: file the first weights are read from, or `pretrained`.
        input_size: height and width that images are brought to, or one number for both; the
            model's own if not given.
        layers: `fast` or `stock`, see `build.build`.
        overrides: values of single fields by path, such as `recipe.epochs`.
        shape: the numbers of classes and of channels; the data are looked for if not given.

    Raises:
        BadInputError: a name is unknown, data are not found, or the model does not fit them.
    """
    registry = registry or load_registry()
    architecture = registry.architecture(model)
    recipe_name = recipe or registry.recipe_for(model, dataset)
    spec = data.dataset_spec(dataset, registry.datasets)
    chosen = registry.recipes[recipe_name]
    folder = _text(data_dir)
    classes, channels = shape or _shape(dataset, spec, folder)
    config = schema.RunConfig(
        kerasnet=__version__,
        architecture=architecture,
        input=[*architecture.model.input[:2], channels],
        classes=classes,
        recipe_name=recipe_name,
        recipe=chosen,
        horizon=chosen.epochs,
        data=schema.DataConfig(name=dataset, spec=spec, data_dir=folder),
        precision=precision.resolve(precision_request),
        execution=schema.Execution(
            layers=layers,  # type: ignore[arg-type]
            # XLA makes TensorFlow's training on a CPU three times slower; JAX is nothing without.
            jit_compile=backend.name() == "jax",
        ),
    )
    # Whoever overrides nothing does not train, and keeps the classifier.
    other = None if overrides is None else bool(overrides.get("reset_head"))
    weights = weights_of(weights, model, dataset, registry, other=other)
    given: dict[str, Any] = {
        "seed": seed,
        "weights": _text(weights),
        "data.limit_train": limit_train,
    }
    if input_size is not None:
        given["input"] = [*_size(input_size), channels]
    return with_values(config, {**given, **(overrides or {})})


def _size(given: int | Sequence[int]) -> list[int]:
    sides: Any = [given, given] if isinstance(given, int) else given
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise BadInputError(
            f"input_size takes a height and a width, such as (64, 48), or one number for both, not "
            f"{shown(repr(given))}"
        )
    return list(sides)


def _shape(dataset: str, spec: schema.Dataset, folder: str | None) -> tuple[int, int]:
    """Return how many classes and channels a data set has."""
    located = data.locate(dataset, spec, folder)
    classes, channels = spec.classes or located.classes, located.channels
    if classes is None or channels is None:
        # Only a data set that nobody described and that is still to be downloaded comes here.
        backend.load()
        opened = data.load_dataset(dataset, spec=spec, data_dir=folder)
        classes, channels = opened.classes, opened.image_shape[2]
    return classes, channels


def new_run(
    model: str,
    options: Mapping[str, Any],
    registry: Registry | None = None,
    shape: tuple[int, int] | None = None,
) -> schema.RunConfig:
    """Return the configuration of a new run, from options by the command line's names.

    Args:
        model: name in the registry.
        options: by the command line's names.
        registry: see `resolve`.
        shape: see `resolve`.

    Raises:
        BadInputError: as `resolve`.
    """
    given = _to_measure(options)
    requested = given.pop("precision", "auto")
    fields = [k for k in given if k in OPTION_PATHS and k not in _ARGUMENTS]
    overrides = {OPTION_PATHS[k]: given.pop(k) for k in fields}
    config = resolve(
        model, registry=registry, precision_request=requested, overrides=overrides, shape=shape,
        **given,
    )  # fmt: skip
    check_start(config.weights, config.reset_head, config.freeze)
    return config


def for_weights(
    model: str,
    weights: str | os.PathLike[str],
    *,
    dataset: str = "cifar10",
    data_dir: str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
) -> schema.RunConfig:
    """Return a configuration by which a weights file is evaluated, in float32.

    Images have the size that they were trained on, where the file says so.

    Raises:
        BadInputError: as `resolve`.
    """
    registry = registry or load_registry()
    # A configuration has a recipe, which plays no part in it: any will do.
    config = resolve(
        model, registry=registry, recipe=next(iter(registry.recipes)), dataset=dataset,
        data_dir=data_dir, weights=weights, precision_request="float32",
    )  # fmt: skip
    file = str(config.weights)
    trained = inference_in(metadata_of(file), config.input[2], file)
    if trained is None:
        return config
    return with_values(config, {"input": [*trained.resize, config.input[2]]})


def repeated(config: schema.RunConfig, options: Mapping[str, Any]) -> schema.RunConfig:
    """Return the configuration of a new run like another one, but for some options.

    Raises:
        BadInputError: an option is none that stands for a field, or its value does not fit it.
    """
    given = _to_measure(options)
    overrides: dict[str, Any] = {}
    if "precision" in given:
        resolved = precision.resolve(given.pop("precision"))
        # Without an inference block, the devices are asked once more.
        overrides = {"precision": resolved.model_dump(mode="json"), "inference": None}
    if "weights" in given:
        reset = given.get("reset_head", config.reset_head)
        given["weights"] = weights_of(given["weights"], config.architecture.name, config.data.name,
                                      other=bool(reset))  # fmt: skip
    clash = ", ".join(f"--{key.replace('_', '-')}" for key in given if key not in OPTION_PATHS)
    if clash:
        raise BadInputError(f"--config fixes what {clash} would choose; give one of them")
    made = with_values(config, overrides | {OPTION_PATHS[k]: v for k, v in given.items()})
    check_start(made.weights, made.reset_head, made.freeze)
    return made


def _to_measure(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new run's options with `find` and a budget as the measurements they stand for.

    Raises:
        BadInputError: the learning rate is another word, or the budget is no duration or would
            choose what `epochs` says.
    """
    from kerasnet.progress import seconds_of

    given = dict(options)
    budget, epochs = given.get("budget"), given.get("epochs")
    if budget is not None:
        if epochs is not None:
            raise BadInputError(
                f"--budget {budget} chooses the number of epochs, so that it excludes --epochs "
                f"{epochs}; give one of them"
            )
        seconds = seconds_of(budget) if isinstance(budget, str) else budget
        given["budget"] = {"seconds": seconds}
    elif epochs is not None:
        # In a configuration that is repeated, the epochs are not those of its budget any more.
        given["budget"] = None
    rate = given.get("learning_rate")
    if isinstance(rate, str):
        if rate != FIND:
            raise BadInputError(
                f"--learning-rate takes a number or `{FIND}`, not '{shown(rate)}'. "
                f"{did_you_mean(rate, [FIND])}"
            )
        del given["learning_rate"]
        given.setdefault("lr_find", {})
    elif rate is not None:
        # In a configuration that is repeated, the test's finding is not what is trained with.
        given["lr_find"] = None
    return given


def check_start(
    weights: str | os.PathLike[str] | None, reset_head: bool, freeze: Iterable[str]
) -> None:
    """Refuse to keep from training what has learnt nothing.

    Raises:
        BadInputError: without weights there is nothing to freeze and no other head to reset, or
            the head is both reset and frozen.
    """
    frozen = parts(freeze)
    asked = ["--reset-head"] if reset_head else []
    asked += [f"--freeze {','.join(frozen)}"] if frozen else []
    if asked and not weights:
        raise BadInputError(
            f"{' and '.join(asked)}: a new model has learnt nothing yet. Name the file to start "
            "from with --weights FILE"
        )
    if reset_head and "head" in frozen:
        raise BadInputError(
            "--reset-head and --freeze head: the classifier would keep its random first values; "
            "leave one of them out"
        )


def parts(freeze: str | Iterable[str]) -> list[str]:
    """Return the parts in one order, each once, of `stem,stage1` or several such texts."""
    texts = [freeze] if isinstance(freeze, str) else freeze
    return sorted({part.strip() for text in texts for part in str(text).split(",")})


def _text(path: str | os.PathLike[str] | None) -> str | None:
    # Absolute, so that the configuration means the same from any folder.
    return None if path is None else os.path.abspath(os.path.expanduser(os.fspath(path)))


def _stored(path: str, value: Any) -> Any:
    """Return an option's value as a configuration holds it at a path."""
    if path in _FILES:
        return _text(value)
    return parts(value) if path == "freeze" else value


def check(config: schema.RunConfig, weights: bool = True) -> Plan:
    """Return the plan of a run, having held its data and its weights file against it.

    Args:
        config: the run's.
        weights: whether the file of first weights is still needed.

    Raises:
        BadInputError: the data or the weights are not there or do not fit, or the model does not
            fit the input or the recipe's first weights.
    """
    located = data.locate(config.data.name, config.data.spec, config.data.data_dir)
    found = {"classes": located.classes, "channels": located.channels}
    for what, have in (("classes", config.classes), ("channels", config.input[2])):
        if found[what] is not None and found[what] != have:
            raise BadInputError(
                f"data set '{config.data.name}' has {found[what]} {what}, but the configuration "
                f"says {have}"
            )
    return beginning(config, weights)


def beginning(config: schema.RunConfig, weights: bool = True) -> Plan:
    """Return the plan of a run, having held what it begins with against it.

    Args:
        config: the run's.
        weights: whether the file of first weights is still needed.

    Raises:
        BadInputError: as `check`, but for the data, which are not looked for.
    """
    made = fitting_plan(config)
    made.trained_params(config.freeze)
    if config.weights and weights:
        check_weights(made, config.weights, reset_head=config.reset_head)
    return made


def check_tta(config: schema.RunConfig, tta: str | None) -> None:
    """Refuse test-time augmentation that the data set forbids.

    Raises:
        BadInputError: it does, or there is none of that name.
    """
    if tta is None:
        return
    if tta not in TTA:
        raise BadInputError(f"--tta takes flip, not '{shown(tta)}'. {did_you_mean(tta, TTA)}")
    if not config.data.spec.augment.flip:
        raise BadInputError(
            f"--tta flip: data set '{config.data.name}' forbids flips, for a mirror image may be "
            "of another class; leave it out"
        )


def plan(config: schema.RunConfig) -> Plan:
    """Return the plan of a run's model."""
    return plan_model(config.architecture, config.input, config.classes)


def fitting_plan(config: schema.RunConfig) -> Plan:
    """Return the plan of a run's model, having held the recipe's first weights against it.

    Raises:
        DocumentError: the model does not fit its input, or lacks what `recipe.initial` sets.
    """
    made = plan(config)
    if not config.weights:
        initial.touched(made, config.recipe.initial)
    return made


def with_values(config: schema.RunConfig, values: Mapping[str, Any]) -> schema.RunConfig:
    """Return a configuration with single fields replaced, each named by its path.

    A path is `recipe.optimizer.learning_rate` or `model.stages.0.width`: it starts at the
    configuration, `model` stands for `architecture.model`, and `*` for every item of a list or
    every key of a mapping. Changing `recipe.epochs` moves the schedule's horizon with it.

    Raises:
        BadInputError: there is no such field, or the value does not fit it.
    """
    if not values:
        return config
    plain = config.model_dump(mode="json", by_alias=True)
    for path, value in values.items():
        _set(plain, path, _stored(path, value))
    if "recipe.epochs" in values and "horizon" not in values:
        plain["horizon"] = values["recipe.epochs"]
    try:
        return schema.RunConfig.model_validate(plain)
    except ValidationError as error:
        found = problems_of(error, schema.RunConfig, plain, ())
        raise DocumentError(found) from error


def continued(
    config: schema.RunConfig, options: Mapping[str, Any], rescale: bool = False
) -> schema.RunConfig:
    """Return the configuration with which a run goes on.

    Args:
        config: the run's.
        options: what the user asks for, by the command line's names. `epochs` makes the run
            longer and leaves the schedule as it was; where data lie, how often checkpoints are
            written and what is done about NaN may change; all others must be what they were.
        rescale: whether the schedule is to span the new number of epochs.

    Raises:
        BadInputError: an option contradicts the run, or `epochs` would shorten it.
    """
    if options.get("learning_rate") == FIND:
        raise BadInputError(
            f"--learning-rate {FIND}: a run that goes on keeps its learning rate, "
            f"{config.recipe.optimizer.learning_rate:g}; begin a new one to measure another"
        )
    if "budget" in options:
        raise BadInputError(
            f"--budget {options['budget']}: a run that goes on keeps its number of epochs; "
            "--epochs N makes it longer, or begin a new run"
        )
    plain = config.model_dump(mode="json")
    changed = {}
    for option, value in options.items():
        if option == "weights":
            value = weights_of(value, config.architecture.name, config.data.name,
                               other=config.reset_head or None)  # fmt: skip
        if option in CHANGEABLE:
            changed[OPTION_PATHS[option]] = value
        elif option != "epochs":
            _check_same(option, value, plain)
    epochs = options.get("epochs", config.recipe.epochs)
    # Whoever says how many epochs there are spares a run that has not begun the measurement.
    says = config.epochs_open and "epochs" in options
    if epochs < config.recipe.epochs and not says:
        raise BadInputError(
            f"--epochs {epochs} would shorten the run, which has {config.recipe.epochs}; begin a "
            "new one"
        )
    changed["recipe.epochs"] = epochs
    changed["horizon"] = epochs if rescale or says else config.horizon
    if says:
        changed["budget"] = None
    return with_values(config, changed)


def remark_on_schedule(config: schema.RunConfig) -> str:
    """Return what is odd about a schedule over so few epochs; empty where nothing is."""
    schedule = config.recipe.schedule
    if config.epochs_open or schedule.type not in ("cosine", "one_cycle"):
        return ""
    field = "warmup" if schedule.type == "cosine" else "peak"
    up = getattr(schedule, field)
    if schedule.unit != "epoch" or up < config.horizon:
        return ""
    return (
        f"the learning rate only rises: it does so for {up:g} epochs (recipe.schedule.{field}), "
        f"and there are {config.horizon}"
    )


def _check_same(option: str, value: Any, plain: dict[str, Any]) -> None:
    """Refuse an option that says something else than the run's configuration."""
    flag = f"--{option.replace('_', '-')}" if option != "name" else "the model"
    if option not in _FIXED:
        said = "x".join(map(str, value)) if isinstance(value, tuple) else value
        raise BadInputError(f"{flag} {said}: a run that goes on carries all of this; leave it out")
    held: Any = plain
    for part in _FIXED[option].split("."):
        held = held[part]
    same = [held, plain["precision"]["resolved"]] if option == "precision" else [held]
    if option == "dataset" and plain["data"]["spec"]["source"]["type"] == "folder":
        same.append(plain["data"]["spec"]["source"]["name"])
        value = _text(value) if _text(value) in same else value
    if _stored(_FIXED[option], value) not in same:
        said = flag if value is True else f"{flag} {value}"
        raise BadInputError(
            f"{said} contradicts the run, which has {held} ({_FIXED[option]} in its "
            "config.yaml); leave it out, or begin a new run"
        )


def fields(config: schema.RunConfig, path: str) -> dict[str, Any]:
    """Return each field that a path names, by its own path, and what it holds as plain values.

    Args:
        config: the configuration that the path starts from, as in `with_values`.
        path: one in which `*` may stand for every item of a list or every key of a mapping.

    Raises:
        DocumentError: there is no such field.
    """
    found: list[tuple[list[str], Any]] = [([], config.model_dump(mode="json", by_alias=True))]
    for part in path_parts(path):
        found = [
            ([*names, str(key)], node[key])
            for names, node in found
            for key in _keys(node, part, path)
        ]
    return {".".join(names): value for names, value in found}


def path_parts(path: str) -> list[str]:
    """Return the parts of a path from the configuration on: `model` is `architecture.model`."""
    return (f"architecture.{path}" if path.split(".")[0] == "model" else path).split(".")


def _keys(node: Any, part: str, path: str) -> list[Any]:
    """Return the keys or places in a list that a part of a path names, `*` all there are."""
    known: Any = range(len(node)) if isinstance(node, list) else node
    inside = isinstance(node, dict | list)
    if part == "*" and inside and node:
        return list(known)
    number = isinstance(node, list) and part.isdecimal() and len(part) < 10
    key: Any = int(part) if number else part
    if inside and key in known:
        return [key]
    names = [str(k) for k in known] if inside else []
    hint = did_you_mean(part, names)
    text = f"there is no field '{shown(path, 200)}': '{shown(part)}' is unknown. {hint}"
    raise DocumentError([Problem((), text)])


def _set(node: Any, path: str, value: Any) -> None:
    *parents, last = path_parts(path)
    nodes = [node]
    for part in parents:
        nodes = [node[key] for node in nodes for key in _keys(node, part, path)]
    for node in nodes:
        for key in _keys(node, last, path):
            node[key] = value


def validated(document: Document) -> tuple[schema.RunConfig, Plan]:
    """Return the configuration in a document, and its plan.

    Raises:
        DocumentError: it is no configuration, or its model fits no input; with line and column.
    """
    config = validate(schema.RunConfig, document)
    try:
        return config, fitting_plan(config)
    except DocumentError as error:
        problems = []
        for problem in error.problems:
            # A plan names places as a registry has them: `models.resnet50.stem`.
            of_plan = problem.path[:1] == ("models",)
            path = ("architecture", "model", *problem.path[2:]) if of_plan else problem.path
            problems.append(Problem(path, problem.text, document.place(path)))
        raise DocumentError(problems) from error


def read_config(file: str | os.PathLike[str]) -> schema.RunConfig:
    """Read a `config.yaml`, or the configuration in a result card.

    Args:
        file: of it, or a run's folder, or the name of a card that ships with kerasnet.

    Raises:
        DocumentError: it is no configuration; with line and column of each problem.
    """
    file = _file_meant(file)
    document = _inside_card(read(file))
    try:
        return validated(document)[0]
    except DocumentError as error:
        wrote = document.data.get("kerasnet")
        if wrote == __version__:
            raise
        hint = f"it was written by kerasnet {shown(str(wrote))}; this is {__version__}"
        raise DocumentError([*error.problems, Problem((), f"{file}: {hint}")]) from error


def _file_meant(file: str | os.PathLike[str]) -> str | os.PathLike[str]:
    from kerasnet.runs import load_run

    if os.path.isdir(file):
        return load_run(file).path / "config.yaml"
    if os.path.exists(file) or Path(file).name != os.fspath(file):
        return file
    from kerasnet.results.card import card_files

    return card_files().get(os.fspath(file), file)


def _inside_card(document: Document) -> Document:
    """Return the configuration that a result card holds; any other document as it is."""
    inner = document.data.get("config")
    if not isinstance(inner, dict) or "architecture" in document.data:
        return document
    places = {path[1:]: at for path, at in document.places.items() if path[:1] == ("config",)}
    return Document(inner, places)
