"""The registry: load it strictly, resolve `extends`, look things up by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kerasnet import __version__, keys, schema
from kerasnet.document import (
    MAX_PROBLEMS,
    MAX_VALUES,
    Document,
    DocumentError,
    Problem,
    dotted,
    read,
    shown,
    validate,
)
from kerasnet.errors import BadInputError, EnvironmentFaultError, did_you_mean
from kerasnet.files import cache_folder, shipped, write_atomically

if TYPE_CHECKING:
    from kerasnet.plan import Plan

# Entries that may extend one another in a row, entries of a section, and layers of all models of a
# registry: without an end to each, checking a small file could take hours.
MAX_CHAIN = 50
MAX_ENTRIES = 2_000
MAX_LAYERS = 200_000

T = TypeVar("T", bound=schema.Strict)

SINGULAR = {
    "norms": "norm",
    "blocks": "block",
    "models": "model",
    "recipes": "recipe",
    "datasets": "data set",
    "key_styles": "key style",
}


class Section(Mapping[str, T], Generic[T]):
    """The entries of one section by name, each validated when it is first asked for."""

    def __init__(self, registry: Registry, name: str, cls: type[T]) -> None:
        self._registry, self._name, self._cls = registry, name, cls
        self._read: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._read:
            entries = self._registry.document.data[self._name]
            if name not in entries:
                kind = SINGULAR[self._name]
                raise BadInputError(f"there is no {kind} '{name}'. {did_you_mean(name, entries)}")
            self._read[name] = validate(self._cls, self._registry.document, (self._name, name))
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._registry.document.data[self._name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry.document.data[self._name])

    def __len__(self) -> int:
        return len(self._registry.document.data[self._name])


class Registry:
    """Blocks, models, recipes, data sets and key styles by name, `extends` resolved."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.norms = Section(self, "norms", schema.Norm)
        self.blocks = Section(self, "blocks", schema.Block)
        self.models = Section(self, "models", schema.Model)
        self.recipes = Section(self, "recipes", schema.Recipe)
        self.datasets = Section(self, "datasets", schema.Dataset)
        self.key_styles = Section(self, "key_styles", schema.KeyStyle)

    def list_models(self, pattern: str = "*") -> list[str]:
        """Return the names of the models that match a shell pattern, in the registry's order."""
        return [name for name in self.models if fnmatchcase(name, pattern)]

    def architecture(self, name: str) -> schema.Architecture:
        """Return a model with every block and norm it uses.

        Raises:
            BadInputError: there is no such model, or it names something there is not.
        """
        model = self.models[name]
        problems = list(islice(self._dangling(name, model), MAX_PROBLEMS))
        for block in {stage.block for stage in model.stages if stage.block in self.blocks}:
            problems += self._dangling_norms(block)
        if problems:
            raise DocumentError(problems)
        return assembled(name, model, self.blocks, self.norms, self.key_styles)

    def recipe_for(self, model: str, dataset: str) -> str:
        """Return the name of the recipe a model uses on a data set.

        Raises:
            BadInputError: the model names none, neither for this data set nor for `*`.
        """
        recipes = self.models[model].recipes
        for key in (dataset, "*"):
            if key in recipes:
                return recipes[key]
        raise BadInputError(
            f"model '{model}' names no recipe for '{dataset}'; give one with --recipe. "
            f"Known: {', '.join(sorted(self.recipes))}."
        )

    def problems(self, own: Document | None = None) -> list[Problem]:
        """Read every entry, check every reference, and plan every model; return what is wrong.

        Args:
            own: a document laid over another; only its entries are read and planned.

        Returns:
            The first problems, by their place; not more than `MAX_PROBLEMS`.
        """
        found: dict[Problem, None] = {}
        for problem in self._problems(own or self.document):
            found[problem] = None
            if len(found) == MAX_PROBLEMS:
                break
        return sorted(found, key=lambda p: (p.place is None, p.place or ()))

    def _problems(self, own: Document) -> Iterator[Problem]:
        for kind in ("norms", "blocks", "recipes", "datasets", "key_styles"):
            section: Section[Any] = getattr(self, kind)
            for name in own.data.get(kind, {}):
                try:
                    section[name]
                except DocumentError as error:
                    yield from error.problems
        for name in own.data.get("key_styles", {}):
            yield from self._dead_rules(name)
        for name in own.data.get("blocks", {}):
            yield from self._dangling_norms(name)
        models = own.data.get("models", {})
        too_many = self._too_many_layers(models)
        yield from too_many
        if not too_many:
            for name in models:
                yield from self._model_problems(name)

    def _too_many_layers(self, models: Iterable[str]) -> list[Problem]:
        """Add up what planning these models would come to, before any is planned."""
        from kerasnet import plan

        total = 0
        for name in models:
            try:
                layers = plan.most_layers(self.architecture(name))
            except DocumentError:
                continue  # told with the model
            total += layers if layers <= plan.MAX_LAYERS else 0
            if total > MAX_LAYERS:
                path = ("models", name)
                text = f"with it, the models come to {total:,} layers; the limit is {MAX_LAYERS:,}"
                return [Problem(path, text, self.document.place(path))]
        return []

    def _missing(self, path: tuple[str | int, ...], kind: str, got: str, known: Any) -> Problem:
        text = f"there is no {kind} '{shown(got)}'. {did_you_mean(got, known)}"
        return Problem(path, text, self.document.place(path))

    def _missing_norms(self, base: tuple[str, ...], named: _Named) -> Iterator[Problem]:
        for path, norm in named:
            if norm not in self.norms and norm != "none":
                yield self._missing((*base, *path), "norm", norm, self.norms)

    def _dangling_norms(self, block: str) -> list[Problem]:
        try:
            named = _norms_of_block(self.blocks[block])
        except DocumentError:
            return []  # told already
        return list(self._missing_norms(("blocks", block), named))

    def _model_problems(self, name: str) -> list[Problem]:
        from kerasnet.plan import check_expectations, plan_model

        try:
            plan = plan_model(self.architecture(name))
            expected = check_expectations(self.models[name], plan)
            path = ("models", name, "expect")
            found = [Problem(path, text, self.document.place(path)) for text in expected]
            return [*found, *self._unmapped(plan), *self._unfit_recipes(plan)]
        except DocumentError as error:
            return [
                Problem(p.path, p.text, p.place or self.document.place(p.path))
                for p in error.problems
            ]

    def _dead_rules(self, style: str) -> list[Problem]:
        """Return each rule of a key style that can never match."""
        try:
            dead = list(keys.dead_rules(self.key_styles[style]))
        except DocumentError:
            return []  # told already
        paths = [("key_styles", style, "rules", rule) for rule, _ in dead]
        return [
            Problem(path, text, self.document.place(path))
            for path, (_, text) in zip(paths, dead, strict=True)
        ]

    def _unmapped(self, plan: Plan) -> Iterator[Problem]:
        """Yield what keeps a model's key styles from holding all of its weights."""
        for i, (style, spec) in enumerate(plan.keys.items()):
            path = ("models", plan.name, "keys", i)
            for text in keys.slots(plan, spec).problems[:MAX_PROBLEMS]:
                yield Problem(path, f"key style '{style}' {text}", self.document.place(path))

    def _unfit_recipes(self, plan: Plan) -> Iterator[Problem]:
        """Yield each recipe that a model names and whose first weights it has no place for."""
        from kerasnet import initial

        for dataset, name in self.models[plan.name].recipes.items():
            path = ("models", plan.name, "recipes", dataset)
            try:
                recipe = self.recipes[name]
            except DocumentError:
                continue  # told already
            try:
                initial.touched(plan, recipe.initial)
            except DocumentError as error:
                for problem in error.problems:
                    text = f"recipe '{name}': {dotted(problem.path[1:])}: {problem.text}"
                    yield Problem(path, text, self.document.place(path))

    def _dangling(self, name: str, model: schema.Model) -> Iterator[Problem]:
        """Yield each reference of a model to something that is not in the registry."""
        base = ("models", name)
        for i, stage in enumerate(model.stages):
            if stage.block not in self.blocks:
                at = (*base, "stages", i, "block")
                yield self._missing(at, "block", stage.block, self.blocks)
        for dataset, recipe in model.recipes.items():
            path = (*base, "recipes", dataset)
            if recipe not in self.recipes:
                yield self._missing(path, "recipe", recipe, self.recipes)
            if dataset != "*" and dataset not in self.datasets:
                yield self._missing(path, "data set", dataset, self.datasets)
        for i, style in enumerate(model.keys):
            if style not in self.key_styles:
                yield self._missing((*base, "keys", i), "key style", style, self.key_styles)
        yield from self._missing_norms(base, _norms_of_model(model))


def assembled(
    name: str,
    model: schema.Model,
    blocks: Mapping[str, schema.Block],
    norms: Mapping[str, schema.Norm],
    keys: Mapping[str, schema.KeyStyle],
) -> schema.Architecture:
    """Return a model with those blocks, norms and key styles that it uses, and no others."""
    used = {stage.block: blocks[stage.block] for stage in model.stages}
    named = norms_of(used.values()) | {norm for _, norm in _norms_of_model(model)}
    # A norm that is not there is told when the model is planned.
    kept = {norm: norms[norm] for norm in sorted(named) if norm != "none" and norm in norms}
    styles = {style: keys[style] for style in model.keys}
    return schema.Architecture(name=name, model=model, blocks=used, norms=kept, keys=styles)


def norms_of(blocks: Iterable[schema.Block]) -> set[str]:
    """Return the names of the norms that blocks name, which may be `none`."""
    return {norm for block in blocks for _, norm in _norms_of_block(block)}


_Named = Iterator[tuple[tuple[str | int, ...], str]]


def _norms_of_model(model: schema.Model) -> _Named:
    """Yield the path and the name of each norm that a model itself names."""
    yield ("defaults", "norm"), model.defaults.norm
    lists: list[tuple[tuple[str | int, ...], list[Any]]] = [
        (("stem",), model.stem),
        (("neck",), model.neck),
        (("head",), model.head),
        *((("stages", i, "after"), stage.after) for i, stage in enumerate(model.stages)),
    ]
    for path, steps in lists:
        for i, step in enumerate(steps):
            if isinstance(step, schema.NormStep) and step.norm.name:
                yield (*path, i), step.norm.name


def _norms_of_block(block: schema.Block) -> _Named:
    """Yield the path and the name of each norm that a block names."""
    for i, conv in enumerate(block.convs):
        if isinstance(conv.norm, str):
            yield ("convs", i, "norm"), conv.norm
    if isinstance(block.shortcut, schema.ProjectShortcut):
        norm = block.shortcut.project.norm
        if isinstance(norm, str):
            yield ("shortcut", "project", "norm"), norm


# ---------------------------------------------------------------------------- loading


@lru_cache(maxsize=1)
def _built_in_registry() -> Registry:
    return Registry(_built_in())


def load_registry(file: str | None = None) -> Registry:
    """Return the built-in registry, with a user's file laid over it.

    Args:
        file: a registry that adds to the built-in one, or replaces entries of the same name.

    Raises:
        DocumentError: the file is wrong; every problem with its line and column.
    """
    if file is None:
        return _built_in_registry()
    return overlay(read(file))


def overlay(document: Document) -> Registry:
    """Return the built-in registry with a document laid over it; raises as `load_registry`."""
    own = _sections(document)
    registry = Registry(_resolve(own, _built_in()))
    problems = registry.problems(own)
    if problems:
        raise DocumentError(problems)
    return registry


def _sections(document: Document) -> Document:
    """Check that a document holds known sections, each a mapping of names to mappings."""
    problems = []
    named = "expected a name of letters, digits and . _ + -, at most 100 of them"

    def report(path: tuple[str | int, ...], text: str) -> None:
        problems.append(Problem(path, text, document.place(path)))

    for section, entries in document.data.items():
        if len(problems) >= MAX_PROBLEMS:
            break
        if section not in schema.SECTIONS:
            hint = did_you_mean(section, schema.SECTIONS)
            report((section,), f"unknown key '{shown(section)}'. {hint}")
        elif not isinstance(entries, dict):
            report((section,), "expected a mapping of names to entries")
        elif len(entries) > MAX_ENTRIES:
            report((section,), f"{len(entries):,} entries; the limit is {MAX_ENTRIES:,}")
        else:
            for name, entry in entries.items():
                if not schema.NAME.fullmatch(name):
                    report((section, name), f"{named}; received {name!r:.60}")
                elif not isinstance(entry, dict):
                    report((section, name), f"expected a mapping, received {entry!r:.60}")
    if problems:
        raise DocumentError(problems)
    return document


def _resolve(own: Document, base: Document | None = None) -> Document:
    """Lay a document over a base and replace every `extends` by what it stands for."""
    data: dict[str, Any] = {name: {} for name in schema.SECTIONS}
    places = dict(base.places) if base else {}
    if base:
        data = {name: dict(base.data[name]) for name in schema.SECTIONS}
    resolver = _Resolver(own, base)
    for section, entries in own.data.items():
        for name in entries:
            entry, entry_places = resolver.entry(section, name, ())
            data[section][name] = entry
            places |= {(section, name, *rest): place for rest, place in entry_places.items()}
    return Document(data, {**places, **{p: q for p, q in own.places.items() if len(p) < 3}})


def merge(parent: Any, child: Any) -> Any:
    """Merge maps deeply; anything else, and a map whose `type` changes, replaces the parent's."""
    if not (isinstance(parent, Mapping) and isinstance(child, Mapping)):
        return child
    if "type" in child and "type" in parent and child["type"] != parent["type"]:
        return child
    # `{normal: ...}` is another initialiser than `{constant: ...}`, not a field more of it.
    alternatives = len(parent) == len(child) == 1 and {*parent, *child} <= {
        *schema.KEYED_INITIALIZERS
    }
    if alternatives and parent.keys() != child.keys():
        return child
    return {**parent, **{k: merge(parent[k], v) if k in parent else v for k, v in child.items()}}


class _Resolver:
    """Follows `extends` from entry to entry."""

    def __init__(self, own: Document, base: Document | None) -> None:
        self.own, self.base = own, base
        self._done: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {}
        self._chains: dict[tuple[str, str], int] = {}
        self._values = 0
        self._places: dict[tuple[Any, ...], dict[tuple[str | int, ...], Any]] = {}
        for path, place in own.places.items():
            self._places.setdefault(path[:2], {})[path[2:]] = place

    def entry(self, section: str, name: str, chain: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
        own = self.own.data.get(section, {})
        # An entry that extends its own name means the one of the base that it replaces.
        if name not in own or (chain and chain[-1] == name and self._in_base(section, name)):
            assert self.base is not None
            return self.base.data[section][name], {}
        if (section, name) not in self._done:
            self._done[section, name] = self._entry(section, name, chain)
        return self._done[section, name]

    def _entry(self, section: str, name: str, chain: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
        entry = self.own.data[section][name]
        places = self._places[section, name]
        parent = entry.get("extends")
        if parent is None:
            return entry, places
        self._check(section, name, parent, (*chain, name))
        merged, merged_places = self.entry(section, parent, (*chain, name))
        self._chains[section, name] = self._chains.get((section, parent), 0) + 1
        self._values += len(merged_places)
        if self._values > MAX_VALUES:
            text = f"`extends` repeats more than {MAX_VALUES:,} keys and values of this file"
            path = (section, name, "extends")
            raise DocumentError([Problem(path, text, self.own.place(path))])
        # What a parent comes to, in size or in accuracy, says nothing about its child.
        own_only = ("extends", "expect", "published")
        kept = {k: v for k, v in merged.items() if k not in own_only}
        own_fields = {k: v for k, v in entry.items() if k != "extends"}
        return merge(kept, own_fields), {**merged_places, **places}

    def _in_base(self, section: str, name: str) -> bool:
        return self.base is not None and name in self.base.data[section]

    def _check(self, section: str, name: str, parent: Any, chain: tuple[str, ...]) -> None:
        path = (section, name, "extends")
        place = self.own.place(path)
        known = {*self.own.data.get(section, {}), *(self.base.data[section] if self.base else {})}
        if not isinstance(parent, str) or parent not in known:
            hint = did_you_mean(str(parent), known - {name})
            text = f"there is no {SINGULAR[section]} '{shown(str(parent))}' to extend. {hint}"
            raise DocumentError([Problem(path, text, place)])
        if len(chain) + self._chains.get((section, parent), 0) > MAX_CHAIN:
            text = f"`extends` goes through more than {MAX_CHAIN} entries"
            raise DocumentError([Problem(path, text, place)])
        if parent in chain and not (parent == name and self._in_base(section, parent)):
            loop = " → ".join([*chain[chain.index(parent) :], parent])
            raise DocumentError([Problem(path, f"`extends` goes in a circle: {loop}", place)])


def _read_built_in() -> Document:
    return _resolve(_sections(read(shipped("registry.yaml"))))


def _built_in() -> Document:
    """Read the built-in registry from its compiled form, which parses fifty times faster."""
    source = shipped("registry.yaml")
    raw = source.read_bytes()
    key = hashlib.sha256(raw + __version__.encode()).hexdigest()
    compiled = cache_folder() / f"registry-{key[:32]}.json"
    try:
        data = json.loads(compiled.read_text())
        if data.pop("sha256") == key:
            return Document(data)
    except (OSError, ValueError, KeyError, AttributeError):
        pass  # absent, torn or foreign: the source below is what counts
    document = _read_built_in()
    problems = Registry(document).problems()
    if problems:
        raise DocumentError(problems)
    # The compiled form only saves time: where it cannot be kept, the source is read again.
    with contextlib.suppress(EnvironmentFaultError):
        write_atomically(compiled, json.dumps({"sha256": key, **document.data}).encode())
    return document


def validate_file(file: str) -> dict[str, int]:
    """Check a registry, a search space, a run's configuration or a result card.

    They are told apart by their keys.

    Returns:
        How many of what the file holds, such as `{"models": 4, "blocks": 7}`.

    Raises:
        DocumentError: with the line and column of each problem.
    """
    document = read(file)
    if "parameters" in document.data:
        space = validate(schema.Space, document)
        return {"parameters": len(space.parameters)}
    if "architecture" in document.data:
        from kerasnet.config import validated

        config, plan = validated(document)
        return {"epochs": config.recipe.epochs, "layers": len(plan.layers)}
    if "test_accuracy" in document.data:
        from kerasnet.results.card import Card

        card = validate(Card, document)
        return {"runs": len(card.runs), "epochs": card.epochs}
    overlay(document)
    return {section: len(entries) for section, entries in document.data.items()}
