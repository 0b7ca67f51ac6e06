"""The weights that ship: trained by kerasnet itself, one file for a model and a data set."""

from __future__ import annotations

import os
from pathlib import Path

from kerasnet.errors import BadInputError
from kerasnet.files import shipped
from kerasnet.registry import Registry, load_registry

# In place of a weights file.
PRETRAINED = "pretrained"
_ENDING = ".safetensors"


def file_name(model: str, dataset: str) -> str:
    """Return what a model's shipped weights for a data set are called."""
    return f"{model}-{dataset}{_ENDING}"


def shipping(model: str, registry: Registry | None = None) -> dict[str, Path]:
    """Return the files of weights that ship for a model, by the data set they were trained on.

    Args:
        model: a model's name.
        registry: whose data sets are looked for; the built-in one if not given.
    """
    folder = shipped("results")
    found = {name: folder / file_name(model, name)
             for name in (registry or load_registry()).datasets}  # fmt: skip
    return {name: file for name, file in found.items() if file.is_file()}


def weights_of(
    weights: str | os.PathLike[str] | None, model: str, dataset: str | None = None,
    registry: Registry | None = None, *, other: bool | None = None,
) -> str | os.PathLike[str] | None:  # fmt: skip
    """Return a weights file: what was named, or for `pretrained` the one that ships.

    Args:
        weights: a file, `pretrained`, or None, which is returned.
        model: a model's name.
        dataset: what it was trained on; the only data set there is for this model if not given.
        registry: whose data sets are looked for.
        other: whether those of another data set will do where there are none of this one, as where
            the classifier begins anew; None where it cannot.

    Raises:
        BadInputError: none ships for the model, or for the data set, or several do.
    """
    if weights != PRETRAINED:
        return weights
    found = there = shipping(model, registry)
    if dataset in there or not other:
        there = {name: file for name, file in there.items() if dataset in (None, name)}
    if len(there) == 1:
        return next(iter(there.values()))
    if there:
        raise BadInputError(
            f"weights '{PRETRAINED}': {model} was trained on {', '.join(there)}. Name the file: "
            f"{', '.join(str(file) for file in there.values())}"
        )
    every = sorted(file.stem for file in shipped("results").glob(f"*{_ENDING}"))
    on = f" on {dataset}" if dataset else ""
    way_out = f"Train it with: kerasnet fit {model}{f' --dataset {dataset}' if dataset else ''}"
    if found and other is not None:
        way_out = "To start from another data set's, with a classifier of its own, add --reset-head"
    raise BadInputError(
        f"weights '{PRETRAINED}': none ship for {model}{on}; there are "
        f"{', '.join(every)}. {way_out}"
    )
