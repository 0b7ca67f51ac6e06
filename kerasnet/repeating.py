"""What makes two runs the same training, and the shell line that repeats one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kerasnet import schema
from kerasnet.registry import load_registry

# They say what something is or where it lies, what else there is, when the state is saved, or how
# it came to another field's value; two runs that differ in them alone are the same training.
_PROSE = ("description", "origin", "extends", "expect", "published")
_NO_MATTER = (
    "kerasnet", "inference", "lr_find", "budget", "architecture.keys", "architecture.model.keys",
    "architecture.model.recipes", "data.data_dir",
    "precision.requested", "precision.reason", "execution.checkpoint_every",
    "execution.keep_checkpoints",
)  # fmt: skip


def fit_line(name: str | None, options: Mapping[str, Any]) -> str:
    """Return the shell line of `fit` with the options that say something.

    Args:
        name: of the model; None where an option says it.
        options: by the command line's names; True is a flag, a list its items by commas, and a
            tuple a size.
    """
    usual = {"dataset": "cifar10", "precision": "auto", "seed": 0}
    words = ["kerasnet", "fit", *([name] if name else [])]
    for option, value in options.items():
        if value is None or value is False or value == usual.get(option):
            continue
        words.append(f"--{option.replace('_', '-')}")
        if isinstance(value, list):
            words.append(",".join(map(str, value)))
        elif isinstance(value, tuple):
            words.append("x".join(map(str, value)))
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def differences(a: schema.RunConfig, b: schema.RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of each field in which two trainings differ, and what either has there.

    None stands for a field that one of them lacks.
    """
    x, y = (dict(_fields(c.model_dump(mode="json", by_alias=True), ())) for c in (a, b))
    for path in x | y:
        if x.get(path) != y.get(path):
            yield path, x.get(path), y.get(path)


def _fields(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    name = ".".join(path)
    if name in _NO_MATTER or (path and path[-1] in _PROSE):
        return
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _fields(item, (*path, str(key)))
    else:
        yield name, value


def portable(config: schema.RunConfig) -> schema.RunConfig:
    """Return a configuration that names no place of this machine.

    The data are found again by `--data-dir` and the like; of a folder of pictures, its last name
    stays.
    """
    data = config.data.model_copy(update={"data_dir": None})
    source = data.spec.source
    if source.type == "folder":
        found = source.model_copy(update={"name": _last(source.name or data.name)})
        spec = data.spec.model_copy(update={"source": found})
        data = data.model_copy(update={"name": _last(data.name), "spec": spec})
    return config.model_copy(update={"data": data})


def _last(path: str) -> str:
    return Path(path).name or "data"


def fit_options(config: schema.RunConfig) -> dict[str, Any] | None:
    """Return the options of `fit` that resolve to the same training by the built-in registry.

    None where no options do: a name or an entry of somebody's own registry, or a folder of
    pictures, which has another place on every machine. The data need not be on this one.
    """
    from kerasnet.config import OPTION_PATHS, new_run

    registry = load_registry()
    model, data = config.architecture.name, config.data
    if model not in registry.models or config.recipe_name not in registry.recipes:
        return None
    if data.spec.source.type == "folder":
        return None
    given: dict[str, Any] = {"recipe": config.recipe_name, "dataset": data.name,
             "precision": config.precision.resolved}  # fmt: skip
    if config.input[:2] != registry.models[model].input[:2]:
        given["input_size"] = tuple(config.input[:2])
    shape = config.classes, config.input[2]
    base = new_run(model, given, registry, shape)
    changed = {path: value for path, value, _ in differences(config, base)}
    options = {k: changed[path] for k, path in OPTION_PATHS.items() if path in changed}
    if any(differences(new_run(model, given | options, registry, shape), config)):
        return None
    return given | options
