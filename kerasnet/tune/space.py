"""Search spaces as data: read, held against a model and a recipe, and drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from kerasnet import data, schema
from kerasnet.config import beginning, fields, path_parts, with_values
from kerasnet.document import (
    MAX_PROBLEMS,
    Document,
    DocumentError,
    Problem,
    describe,
    read,
    shown,
    validate,
)
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import shipped
from kerasnet.registry import Registry, assembled, load_registry, norms_of

# How often a model is planned before the first trial, and how many combinations of choices on
# which others depend are told apart when a grid is counted.
MAX_TRIES = 2 * schema.MAX_VALUES
MAX_STATES = 10_000

Values = dict[str, Any]
_State = tuple[tuple[str, str | None], ...]


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


# ---------------------------------------------------------------------------- points


def point(space: schema.Space, drawn: Mapping[str, Any]) -> Values:
    """Return what keras-tuner drew as the space has it, by path in the space's order.

    Left out are keras-tuner's own entries (`tuner/epochs`) and what is not drawn at this point: in
    a parallel search, keras-tuner sends workers values of parameters whose condition fails.

    Args:
        space: the space drawn from.
        drawn: values by path: keras-tuner's or, read back from a record, those of this function.

    Raises:
        BadInputError: a path is not in the space, or a choice has no such value.
    """
    for path in drawn:
        if path not in space.parameters and not path.startswith("tuner/"):
            hint = did_you_mean(path, space.parameters)
            raise BadInputError(f"the space has no parameter '{shown(path)}'. {hint}")
    found: Values = {}
    for path, d in space.parameters.items():
        if path in drawn and _is_drawn(d, found):
            found[path] = _named(path, d, drawn[path])
    return found


def _is_drawn(d: schema.Distribution, values: Mapping[str, Any]) -> bool:
    """Whether a parameter's conditions hold, given the values of those above it."""
    return all(parent in values and _among(values[parent], of) for parent, of in d.when.items())


def _among(value: Any, values: list[Any]) -> bool:
    return schema.written(value) in [schema.written(other) for other in values]


def _named(path: str, d: schema.Distribution, drawn: Any) -> Any:
    """Return the value of a choice that keras-tuner or a record names."""
    if not isinstance(d, schema.Choice):
        return drawn
    for name in d.names:
        if schema.written(name) == schema.written(drawn):
            return name
    known = did_you_mean(schema.written(drawn), [schema.written(name) for name in d.names])
    raise BadInputError(f"'{path}' has no value {describe(drawn)}. {known}")


def apply(
    config: schema.RunConfig, space: schema.Space, values: Mapping[str, Any]
) -> schema.RunConfig:
    """Return the configuration of a point: the parameters are set in the space's order.

    A parameter without a value leaves its field alone. Blocks and norms that the result does not
    use are left out of it and, if its architecture is another one, what was known of the old.

    Args:
        config: what every point starts from, as `check_space` returns it.
        space: the fields that vary.
        values: by path, as drawn or as recorded; see `point`.

    Raises:
        BadInputError: a path or a value is not the space's, or the configuration cannot be.
    """
    made, pending = config, Values()
    for path, name in point(space, values).items():
        d = space.parameters[path]
        path = d.field or path
        value = d.meant(name) if isinstance(d, schema.Choice) else name
        if d.relative or any(_within(path, other) for other in pending):
            made, pending = with_values(made, pending), {}
        if d.relative:
            pending |= {at: _times(at, own, value) for at, own in fields(made, path).items()}
        else:
            pending[path] = value
            if path == "recipe" and isinstance(value, dict) and "epochs" in value:
                pending["horizon"] = value["epochs"]
    return _settled(config, with_values(made, pending))


def _within(path: str, other: str) -> bool:
    """Whether a path may lead into the field of another one, or to the same field."""
    inner, outer = path_parts(path), path_parts(other)
    pairs = zip(inner, outer, strict=False)
    return len(inner) >= len(outer) and all(a == b or "*" in (a, b) for a, b in pairs)


def _times(path: str, own: Any, factor: Any) -> Any:
    """Return a field's own value times what was drawn: a whole number where it is one."""
    if type(own) not in (int, float):
        text = f"`relative: true` multiplies a number, and '{path}' is {describe(own)}"
        raise DocumentError([Problem((), text)])
    product = own * factor
    if not isinstance(own, int):
        return float(product)
    if not math.isfinite(product):
        raise DocumentError([Problem((), f"'{path}' is {own}; times {factor}, it has no end")])
    return max(1, round(product))


def _settled(config: schema.RunConfig, made: schema.RunConfig) -> schema.RunConfig:
    """Return a configuration with the architecture that a registry's model would come to."""
    old, new = _trimmed(config.architecture), _trimmed(made.architecture)
    if new != old:
        # As with `extends`: what a model comes to, in size or accuracy, says nothing of another.
        bare = new.model.model_copy(update={"expect": None, "published": None})
        new = new.model_copy(update={"model": bare})
    return made.model_copy(update={"architecture": new})


def _trimmed(architecture: schema.Architecture) -> schema.Architecture:
    held = architecture
    return assembled(held.name, held.model, held.blocks, held.norms, held.keys)


# ---------------------------------------------------------------------------- checks


def check_space(
    config: schema.RunConfig,
    space: schema.Space,
    document: Document,
    registry: Registry | None = None,
) -> schema.RunConfig:
    """Check that every field a space names exists and takes every value drawn for it.

    Each value of a choice and both ends of a range are tried where the parameter is drawn: with
    every value that its conditions ask for, and with every value of a choice above it whose field
    holds its own. Then all first and all last values are tried together.

    Args:
        config: what every point starts from.
        space: the fields that vary.
        document: what the space was read from.
        registry: where blocks and norms are looked up; the built-in one if not given.

    Returns:
        The configuration with the blocks and norms of the registry that the space names, of which
        `apply` keeps those that a point uses.

    Raises:
        DocumentError: with the line and column of each parameter that does not fit.
        BadInputError: the recipe holds no images back for validation.
    """
    registry = registry or load_registry()
    base = _with_named(config, space, registry)
    problems = list(islice(_misfits(base, space, document, registry), MAX_PROBLEMS))
    problems = problems or _corners(base, space, document)
    if problems:
        raise DocumentError(problems)
    if not _has_validation(config):
        raise BadInputError(
            f"recipe '{config.recipe_name}' has validation_split 0, so a search would have to look "
            "at the test set; choose another --recipe"
        )
    return base


def _misfits(
    base: schema.RunConfig, space: schema.Space, document: Document, registry: Registry
) -> Iterator[Problem]:
    """Yield what is wrong with each parameter, tried by itself."""
    tries = 0
    for path, contexts in _contexts(space).items():
        d = space.parameters[path]
        ends = _ends(d)
        tries += len(ends) * len(contexts)
        where = ("parameters", path)
        if tries > MAX_TRIES:
            text = f"with it, more than {MAX_TRIES} values and conditions to try; leave some out"
            yield Problem(where, text, document.place(where))
            return
        try:
            _check_blocks(base, path, d, registry)
            for context in contexts:
                for value in ends:
                    _try(base, space, context, {path: value})
        except DocumentError as error:
            texts = "; ".join(str(p) for p in error.problems)
            loose = [other for other in _around(space, path) if other not in d.when]
            hint = f"; `when: {{{loose[0]}: …}}` says where it is drawn" if loose else ""
            yield Problem(where, texts + hint, document.place(where))


def _ends(d: schema.Distribution) -> list[Any]:
    """Return the values that are tried: all of a choice, both ends of a range."""
    if isinstance(d, schema.Choice):
        return d.points
    return [d.points[0], d.points[-1]] if d.points else [d.min, d.max]


def _try(base: schema.RunConfig, space: schema.Space, context: Values, drawn: Values) -> None:
    """Make and plan the configuration of a point at which the rest is as in the model.

    Where that fails, the rest is drawn as well: with another block, a width may do.
    """
    try:
        _planned(base, space, {**context, **drawn})
    except DocumentError as error:
        if _can_be(base, space, _filled(space, {**context, **drawn})):
            return
        if not context:
            raise
        if not _can_be(base, space, context):
            return  # told with what the context is made of
        raise _at(context, error) from error


def _at(values: Values, error: DocumentError) -> DocumentError:
    """Return an error with the point at which it came up."""
    at = ", ".join(f"{path} {_text(value)}" for path, value in values.items())
    texts = "; ".join(str(p) for p in error.problems)
    return DocumentError([Problem((), f"at {at}: {texts}")])


def _text(value: Any) -> str:
    return str(value) if type(value) in (int, float) else schema.written(value)


def _corners(base: schema.RunConfig, space: schema.Space, document: Document) -> list[Problem]:
    """Return what keeps the space's first or last point, all in all, from being planned."""
    for which in (0, -1):
        values = _filled(space, {path: _ends(d)[which] for path, d in space.parameters.items()})
        try:
            _planned(base, space, values)
        except DocumentError as error:
            texts = "; ".join(str(p) for p in _at(values, error).problems)
            return [Problem(("parameters",), texts, document.place(("parameters",)))]
    return []


def _planned(base: schema.RunConfig, space: schema.Space, values: Values) -> None:
    made = apply(base, space, values)
    planned = (made.architecture, made.input, made.recipe.initial)
    if planned != (base.architecture, base.input, base.recipe.initial):
        try:
            beginning(made)
        except DocumentError:
            raise
        except BadInputError as error:  # the point's model lacks a part, or weights of its shape
            raise DocumentError([Problem((), str(error))]) from error
    if made.recipe.validation_split == 0 != base.recipe.validation_split:
        text = "without images held back for validation, a search would look at the test set"
        raise DocumentError([Problem((), text)])


def _can_be(base: schema.RunConfig, space: schema.Space, values: Values) -> bool:
    try:
        _planned(base, space, values)
    except DocumentError:
        return False
    return True


def _filled(space: schema.Space, values: Values) -> Values:
    """Return a point with the first value of every parameter that has none."""
    found: Values = {}
    for path, d in space.parameters.items():
        if _is_drawn(d, found):
            found[path] = values.get(path, _ends(d)[0])
    return found


def _contexts(space: schema.Space) -> dict[str, list[Values]]:
    """Return, by parameter, the points of the others at which it is tried.

    They hold all that its conditions ask for, one of them varied at a time, and likewise each
    choice above whose field holds the parameter's own.
    """
    asked = schema.conditions(space.parameters)
    found: dict[str, list[Values]] = {}
    for path, d in space.parameters.items():
        first = {parent: values[0] for parent, values in asked[path].items()}
        contexts = [{**first, parent: v} for parent in d.when for v in asked[path][parent]]
        around = [other for other in _around(space, path) if other not in first]
        if not contexts and all(asked[other] for other in around):
            contexts = [first]
        for other in around:
            choice = space.parameters[other]
            assert isinstance(choice, schema.Choice)
            both = {**_first_of(asked[other]), **first}
            contexts += [{**both, other: name} for name in choice.names]
        texts = [tuple((p, schema.written(v)) for p, v in c.items()) for c in contexts]
        found[path] = list(dict(zip(texts, contexts, strict=True)).values())
    return found


def _first_of(asked: Mapping[str, list[Any]]) -> Values:
    return {parent: values[0] for parent, values in asked.items()}


def _around(space: schema.Space, path: str) -> list[str]:
    """Return the choices above a parameter whose field holds the parameter's own."""
    inner = space.parameters[path].field or path
    found = []
    for other, d in space.parameters.items():
        if other == path:
            break
        outer = d.field or other
        larger = len(path_parts(inner)) > len(path_parts(outer))
        if isinstance(d, schema.Choice) and larger and _within(inner, outer):
            found.append(other)
    return found


def _check_blocks(
    base: schema.RunConfig, path: str, d: schema.Distribution, registry: Registry
) -> None:
    """Refuse names of blocks that nobody defines, with the nearest one that somebody does."""
    if not isinstance(d, schema.Choice) or path_parts(d.field or path)[-1] != "block":
        return
    known = {*base.architecture.blocks, *registry.blocks}
    for value in (d.meant(name) for name in d.names):
        if isinstance(value, str) and value not in known:
            text = f"there is no block '{shown(value)}'. {did_you_mean(value, known)}"
            raise DocumentError([Problem((), text)])


def _with_named(
    config: schema.RunConfig, space: schema.Space, registry: Registry
) -> schema.RunConfig:
    """Return a configuration with the blocks and norms that a space's choices may name."""
    choices = [d for d in space.parameters.values() if isinstance(d, schema.Choice)]
    names = {text for d in choices for name in d.names for text in _texts(d.meant(name))}
    held = config.architecture
    blocks = {name: registry.blocks[name] for name in sorted(names) if name in registry.blocks}
    norms = {
        name: registry.norms[name]
        for name in sorted(names | norms_of(blocks.values()))
        if name in registry.norms
    }
    update = {"blocks": {**blocks, **held.blocks}, "norms": {**norms, **held.norms}}
    return config.model_copy(update={"architecture": held.model_copy(update=update)})


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a plain value, keys aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _has_validation(config: schema.RunConfig) -> bool:
    if config.recipe.validation_split:
        return True
    if config.data.spec.source.type != "folder":
        return False
    return data.load_dataset(config.data.name, spec=config.data.spec, size=(8, 8)).has_validation


# ---------------------------------------------------------------------------- what has an effect


def fitting(config: schema.RunConfig, space: schema.Space) -> tuple[schema.Space, list[str]]:
    """Leave out of a space what changes nothing here, so that no point is trained twice.

    A data set may forbid an augmentation; half of one block is one block; a recipe's first weights
    are nothing to a model that begins with a file's.

    Args:
        config: what every point starts from, as `check_space` returns it.
        space: the fields that vary.

    Returns:
        The space, and a sentence for each parameter or value that it no longer has.

    Raises:
        BadInputError: nothing is left.
    """
    kept, said = dict(space.parameters), list[str]()
    contexts = _contexts(space)
    # From the last on: a value is as good as another only if nothing depends on which it is.
    for path, d in reversed(space.parameters.items()):
        left, same = _distinct(config, space, path, contexts[path], kept)
        if not left:
            said.append(f"{path}: it is left out; here it changes nothing")
            del kept[path]
        elif same and isinstance(d, schema.Choice):
            said += [f"{path}: {_text(a)} is left out; here it is {_text(b)}" for a, b in same]
            kept[path] = _only(d, left)
        else:
            continue
        for name, other in kept.items():
            if path in other.when:
                kept[name] = _narrowed(other, path, left)
    if not kept:
        raise BadInputError("nothing of this space changes anything for this model and data set")
    return schema.Space(description=space.description, parameters=kept), said[::-1]


def _distinct(
    config: schema.RunConfig, space: schema.Space, path: str, contexts: list[Values],
    kept: Mapping[str, schema.Distribution],
) -> tuple[list[Any], list[tuple[Any, Any]]]:  # fmt: skip
    """Return the values of a parameter that differ, and the others with what each is the same as.

    There are none if whatever is drawn leaves all as it is.
    """
    found: list[tuple[Any, list[schema.RunConfig | None]]] = []
    same = []
    for value in _ends(space.parameters[path]):
        effects = [_effect(config, space, {**context, path: value}) for context in contexts]
        known = [v for v, e in found if e == effects and _alike(kept, path, v, value)]
        if known:
            same.append((value, known[0]))
        else:
            found.append((value, effects))
    if len(found) == 1 and found[0][1] == [_effect(config, space, c) for c in contexts]:
        return [], []
    return [value for value, _ in found], same


def _effect(
    config: schema.RunConfig, space: schema.Space, values: Values
) -> schema.RunConfig | None:
    """Return what a point comes to where the data set is heard, None if it cannot be."""
    try:
        made = apply(config, space, values)
    except DocumentError:
        return None
    done: dict[str, Any] = {
        "augment": data.effective_augment(made.recipe.augment, made.data.spec.augment)
    }
    if made.weights:
        done["initial"] = schema.Initial()
    return made.model_copy(update={"recipe": made.recipe.model_copy(update=done)})


def _alike(parameters: Mapping[str, schema.Distribution], path: str, one: Any, other: Any) -> bool:
    """Whether the same parameters are drawn with either value of a choice."""
    asked = [d.when[path] for d in parameters.values() if path in d.when]
    return all(_among(one, values) == _among(other, values) for values in asked)


def _only(d: schema.Choice, names: list[Any]) -> schema.Choice:
    """Return a choice of some of its values."""
    values = {n: d.values[n] for n in names} if isinstance(d.values, dict) else names
    return d.model_copy(update={"values": values})


def _narrowed(d: schema.Distribution, parent: str, left: list[Any]) -> schema.Distribution:
    """Return a parameter whose condition on a choice asks only for values that are left."""
    values = [value for value in d.when[parent] if _among(value, left)]
    when = {**d.when, parent: values}
    if not values:
        del when[parent]
    return d.model_copy(update={"when": when})


# ---------------------------------------------------------------------------- grids


def check_grid(space: schema.Space, document: Document) -> None:
    """Refuse a grid over what has no end of values.

    keras-tuner would take ten values of such a range without saying so.

    Raises:
        DocumentError: with the line and column of each range that needs a step.
    """
    problems = []
    for path, d in space.parameters.items():
        if _size(d) is None:
            where = ("parameters", path)
            kind = "a factor" if d.log else "a difference"  # type: ignore[union-attr]
            text = f"a grid needs a number of values: give the range a `step`, {kind}, or a choice"
            problems.append(Problem(where, text, document.place(where)))
    if problems:
        raise DocumentError(problems)


def points(space: schema.Space) -> int | None:
    """Return how many points a grid over a space has, None if a range has no step.

    A parameter counts where its condition holds.

    Raises:
        BadInputError: too many choices on which others depend, for a grid to be of use.
    """
    if any(_size(d) is None for d in space.parameters.values()):
        return None
    last = {parent: path for path, d in space.parameters.items() for parent in d.when}
    # How many points the parameters so far have, by what the others still depend on.
    counts: dict[_State, int] = {(): 1}
    for path, d in space.parameters.items():
        after: dict[_State, int] = {}
        for state, count in counts.items():
            for value, times in _branches(d, dict(state), path in last):
                kept = tuple((name, at) for name, at in state if last[name] != path)
                key = (*kept, (path, value)) if path in last else kept
                after[key] = after.get(key, 0) + count * times
        if len(after) > MAX_STATES:
            raise BadInputError(f"a grid over this space has more than {MAX_STATES:,} points")
        counts = after
    return sum(counts.values())


def _branches(
    d: schema.Distribution, state: Mapping[str, str | None], decides: bool
) -> list[tuple[str | None, int]]:
    """Return each value that others depend on, None for any, and how many values it stands for."""
    drawn = all(
        state[parent] in [schema.written(value) for value in values]
        for parent, values in d.when.items()
    )
    if not drawn:
        return [(None, 1)]
    if decides and isinstance(d, schema.Choice):
        return [(schema.written(name), 1) for name in d.names]
    return [(None, _size(d) or 1)]


def _size(d: schema.Distribution) -> int | None:
    """Return how many values a parameter has, None where there is no end of them."""
    if d.points is not None:
        return len(d.points)
    if isinstance(d, schema.IntRange) and not d.log:
        return d.max - d.min + 1
    return None


# ---------------------------------------------------------------------------- keras-tuner


def hyperparameters(space: schema.Space) -> Any:
    """Return a space as keras-tuner's `HyperParameters`; `point` reads what it draws.

    Each parameter carries all conditions above its own too: in a parallel search keras-tuner may
    look at it before it knows that its parent is not drawn.
    """
    import keras_tuner

    asked = schema.conditions(space.parameters)
    entries = []
    for path, d in space.parameters.items():
        above = [
            {"name": parent, "values": _drawable(space.parameters[parent], values)}
            for parent, values in asked[path].items()
        ]
        entry = _entry(d)
        entry["config"] |= {
            "name": path,
            "default": None,
            "conditions": [{"class_name": "Parent", "config": config} for config in above],
        }
        entries.append(entry)
    read = keras_tuner.HyperParameters.from_config({"space": entries, "values": {}})
    made = keras_tuner.HyperParameters()
    made.merge(read)
    return made


def _entry(d: schema.Distribution) -> dict[str, Any]:
    """Return a distribution in the form that keras-tuner keeps in its files.

    Ranges with a step become choices: keras-tuner loses their last value to rounding
    (1.0 // 0.1 is 9), and draws from both alike.
    """
    if d.points is not None:
        values = _drawable(d, d.points)
        return {"class_name": "Choice", "config": {"values": values, "ordered": None}}
    assert isinstance(d, schema.FloatRange | schema.IntRange)
    sampling = "log" if d.log else "linear"
    config = {"min_value": d.min, "max_value": d.max, "step": None, "sampling": sampling}
    kind = "Float" if isinstance(d, schema.FloatRange) else "Int"
    return {"class_name": kind, "config": config}


def _drawable(d: schema.Distribution, values: list[Any]) -> list[Any]:
    """Return values of a choice as keras-tuner can hold them: of one kind, which is not bool.

    keras-tuner makes whole numbers of true and false and refuses null and mixed kinds.
    """
    kinds = {type(value) for value in d.points or []}
    if kinds in ({str}, {int}):
        return values
    if kinds <= {int, float}:
        return [float(value) for value in values]
    return [schema.written(value) for value in values]
