"""Search spaces as data: read, held against a model and a recipe, and drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kerasnet import data, schema
from kerasnet.config import plan, with_values
from kerasnet.document import Document, DocumentError, Problem, read, validate
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import shipped


def read_space(name: str) -> tuple[schema.Space, Document]:
    """Read a search space: one of those in `tuning/` by name, or a YAML file.

    Raises:
        BadInputError: there is none of that name.
        DocumentError: the file is wrong; with line and column.
    """
    file = Path(name)
    if not file.is_file():
        known = sorted(p.stem for p in shipped("tuning").glob("*.yaml"))
        if name not in known:
            raise BadInputError(
                f"there is no search space '{name}', nor a file of that name. "
                f"{did_you_mean(name, known)}"
            )
        file = shipped("tuning") / f"{name}.yaml"
    document = read(file)
    return validate(schema.Space, document), document


def check_space(
    config: schema.RunConfig, space: schema.Space, document: Document, registry: Any = None
) -> schema.RunConfig:
    """Check that every field a space names exists and takes every value drawn for it.

    Raises:
        DocumentError: with the line and column of each parameter that does not fit.
        BadInputError: the recipe holds no images back for validation.
    """
    problems = []
    for path, distribution in space.parameters.items():
        if isinstance(distribution, schema.Choice):
            ends: list[Any] = list(distribution.values)
        else:
            ends = [distribution.min, distribution.max]
        try:
            for value in ends:
                changed = with_values(config, {path: value})
                if not path.startswith("recipe."):
                    plan(changed)
        except DocumentError as error:
            where = ("parameters", path)
            texts = "; ".join(str(p) for p in error.problems)
            problems.append(Problem(where, texts, document.place(where)))
    if problems:
        raise DocumentError(problems)
    return config


def hyperparameters(space: schema.Space) -> Any:
    """Return a space as keras-tuner's `HyperParameters`."""
    import keras_tuner

    made = keras_tuner.HyperParameters()
    for path, d in space.parameters.items():
        if isinstance(d, schema.Choice):
            made.Choice(path, d.values)
        else:
            declare = made.Float if isinstance(d, schema.FloatRange) else made.Int
            declare(path, d.min, d.max, sampling="log" if d.log else "linear")
    return made


def apply(config, space, values):
    return with_values(config, values)


def points(space):
    return None
