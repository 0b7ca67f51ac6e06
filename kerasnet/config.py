"""From names and options to a resolved run configuration, before TensorFlow loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kerasnet import __version__, backend, data, precision, schema
from kerasnet.convert import check_weights
from kerasnet.document import DocumentError, Problem, problems_of, read, validate
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.plan import Plan, plan_model
from kerasnet.registry import Registry, load_registry

# The options that stand for one field of a configuration, and that field's path.
OPTION_PATHS = {
    "epochs": "recipe.epochs",
    "batch_size": "recipe.batch_size",
    "learning_rate": "recipe.optimizer.learning_rate",
    "data_dir": "data.data_dir",
    "limit_train": "data.limit_train",
    "weights": "weights",
    "seed": "seed",
}
_FILES = ("data.data_dir", "weights")


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
    layers: str = "fast",
    overrides: Mapping[str, Any] | None = None,
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
        weights: file the first weights are read from.
        layers: `fast` or `stock`, see `build.build`.
        overrides: values of single fields by path, such as `recipe.epochs`.

    Raises:
        BadInputError: a name is unknown, data are not found, or the model does not fit them.
    """
    registry = registry or load_registry()
    architecture = registry.architecture(model)
    recipe_name = recipe or registry.recipe_for(model, dataset)
    spec = data.dataset_spec(dataset, registry.datasets)
    chosen = registry.recipes[recipe_name]
    folder = _text(data_dir)
    located = data.locate(dataset, spec, folder)
    classes, channels = spec.classes or located.classes, located.channels
    if classes is None or channels is None:
        # Only a data set that nobody described and that is still to be downloaded comes here.
        backend.load()
        opened = data.load_dataset(dataset, spec=spec, data_dir=folder)
        classes, channels = opened.classes, opened.image_shape[2]
    config = schema.RunConfig(
        kerasnet=__version__,
        architecture=architecture,
        input=[*architecture.model.input[:2], channels],
        classes=classes,
        recipe_name=recipe_name,
        recipe=chosen,
        horizon=chosen.epochs,
        data=schema.DataConfig(name=dataset, spec=spec, data_dir=folder, limit_train=limit_train),
        precision=precision.resolve(precision_request),
        execution=schema.Execution(
            layers=layers,  # type: ignore[arg-type]
            # XLA makes TensorFlow's training on a CPU three times slower; JAX is nothing without.
            jit_compile=backend.name() == "jax",
        ),
        seed=seed,
        weights=_text(weights),
    )
    return with_values(config, overrides or {})


def _text(path: str | os.PathLike[str] | None) -> str | None:
    # Absolute, so that the configuration means the same from any folder.
    return None if path is None else os.path.abspath(os.path.expanduser(os.fspath(path)))


def check(config: schema.RunConfig) -> Plan:
    """Return the plan of a run, having held its data and its weights file against it.

    Raises:
        BadInputError: the data or the weights are not there or do not fit, or the model does not
            fit the input.
    """
    located = data.locate(config.data.name, config.data.spec, config.data.data_dir)
    found = {"classes": located.classes, "channels": located.channels}
    for what, have in (("classes", config.classes), ("channels", config.input[2])):
        if found[what] is not None and found[what] != have:
            raise BadInputError(
                f"data set '{config.data.name}' has {found[what]} {what}, but the configuration "
                f"says {have}"
            )
    made = plan(config)
    if config.weights:
        check_weights(made, config.weights)
    return made


def plan(config: schema.RunConfig) -> Plan:
    """Return the plan of a run's model."""
    return plan_model(config.architecture, config.input, config.classes)


def with_values(config: schema.RunConfig, values: Mapping[str, Any]) -> schema.RunConfig:
    """Return a configuration with single fields replaced, each named by its path.

    A path is `recipe.optimizer.learning_rate` or `model.stages.0.width`: it starts at the
    configuration, and `model` stands for `architecture.model`. Changing `recipe.epochs` moves the
    schedule's horizon with it.

    Raises:
        BadInputError: there is no such field, or the value does not fit it.
    """
    if not values:
        return config
    plain = config.model_dump(mode="json", by_alias=True)
    for path, value in values.items():
        _set(plain, path, _text(value) if path in _FILES else value)
    if "recipe.epochs" in values and "horizon" not in values:
        plain["horizon"] = values["recipe.epochs"]
    try:
        return schema.RunConfig.model_validate(plain)
    except ValidationError as error:
        found = problems_of(error, schema.RunConfig, plain, ())
        raise DocumentError(found) from error


def _set(node: Any, path: str, value: Any) -> None:
    full = f"architecture.{path}" if path.split(".")[0] == "model" else path
    *parents, last = full.split(".")
    for part in [*parents, last]:
        key: Any = int(part) if isinstance(node, list) and part.isdigit() else part
        known = range(len(node)) if isinstance(node, list) else node
        if not isinstance(node, dict | list) or key not in known:
            names = [str(k) for k in known] if isinstance(node, dict | list) else []
            raise DocumentError(
                [Problem((), f"there is no field '{path}': '{part}' is unknown. "
                             f"{did_you_mean(part, names)}")]
            )  # fmt: skip
        if part is last:
            node[key] = value
        node = node[key]


def read_config(file: str | os.PathLike[str]) -> schema.RunConfig:
    """Read a `config.yaml`.

    Raises:
        DocumentError: it is no configuration; with line and column of each problem.
    """
    document = read(file)
    try:
        return validate(schema.RunConfig, document)
    except DocumentError as error:
        wrote = document.data.get("kerasnet")
        if wrote == __version__:
            raise
        hint = f"it was written by kerasnet {wrote}; this is {__version__}"
        raise DocumentError([*error.problems, Problem((), f"{file}: {hint}")]) from error
