"""Search spaces: what a file may say, what is drawn from it, and what a point comes to."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
from commands import run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mutations import damaged

from kerasnet import config as configs
from kerasnet import json_schema, registry, schema
from kerasnet.document import Document, DocumentError, parse, to_yaml, validate
from kerasnet.errors import BadInputError
from kerasnet.files import shipped
from kerasnet.tune import space as spaces

MODELS = ("resnet8", "resnet20", "resnet50", "vgg16")
SHIPPED = ("learning_rate", "optimizer", "augmentation", "architecture")
EVERYTHING = """
parameters:
  recipe.optimizer:
    type: choice
    values:
      sgd: {type: sgd, learning_rate: 0.1}
      adam: {type: adam, learning_rate: 1e-3}
  recipe.optimizer.learning_rate:
    {type: float, min: 0.1, max: 10, log: true, step: 10, relative: true}
  recipe.optimizer.nesterov:
    {type: choice, values: [true, false], when: {recipe.optimizer: sgd}}
  recipe.optimizer.momentum:
    {type: float, min: 0.5, max: 0.9, step: 0.1, when: {recipe.optimizer.nesterov: true}}
  slow.beta_1:
    {field: recipe.optimizer.beta_1, type: choice, values: [0, 0.5], when: {recipe.optimizer: adam}}
  recipe.gradient_clip: {type: choice, values: [null, 1, 2.5]}
  recipe.epochs: {type: int, min: 2, max: 16, log: true, step: 2}
  model.stages.*.width: {type: int, min: 1, max: 3, relative: true}
  model.stages.*.block: {type: choice, values: [basic, basic_preact]}
"""


def made(text: str) -> tuple[schema.Space, Document]:
    document = parse(text.encode(), "mine.yaml")
    return validate(schema.Space, document), document


def space_of(**parameters: object) -> tuple[schema.Space, Document]:
    return made(to_yaml({"parameters": parameters}))


def base(model: str = "resnet8", dataset: str = "digits") -> schema.RunConfig:
    return configs.resolve(model, dataset=dataset)


def read_or_made(name: str) -> tuple[schema.Space, Document]:
    return made(EVERYTHING) if name == "everything" else spaces.read_space(name)


CHECKED = {
    (name, model): (spaces.check_space(base(model), *read_or_made(name)), read_or_made(name)[0])
    for name in (*SHIPPED, "everything")
    for model in MODELS
}


def drawn(data: st.DataObject, space: schema.Space) -> dict[str, object]:
    """Draw a point as keras-tuner does: only what the values above ask for."""
    values: dict[str, object] = {}
    for name, d in space.parameters.items():
        if all(p in values and values[p] in wanted for p, wanted in d.when.items()):
            values[name] = data.draw(one_of(d), label=name)
    return values


def one_of(d: schema.Distribution) -> st.SearchStrategy[object]:
    if d.points is not None:
        return st.sampled_from(d.points)
    assert not isinstance(d, schema.Choice)
    return (st.integers if isinstance(d, schema.IntRange) else st.floats)(d.min, d.max)


# ---------------------------------------------------------------------------- points


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CHECKED)), st.data())
def test_every_point_is_a_configuration_that_can_be_planned(case, data):
    config, space = CHECKED[case]
    values = drawn(data, space)
    point = spaces.apply(config, space, values)
    configs.plan(point)
    assert schema.RunConfig.model_validate(point.model_dump(mode="json", by_alias=True)) == point
    assert spaces.point(space, values) == values
    assert set(point.architecture.blocks) == {s.block for s in point.architecture.model.stages}
    paths = [space.parameters[name].field or name for name in values]
    for name, value in values.items():
        d = space.parameters[name]
        if not d.relative and not any(path.startswith(f"{name}.") for path in paths):
            meant = d.meant(value) if isinstance(d, schema.Choice) else value
            for held in configs.fields(point, d.field or name).values():
                if isinstance(meant, dict):
                    assert meant.items() <= held.items()
                elif not isinstance(meant, list):
                    assert held == meant


@settings(max_examples=50, deadline=None)
@given(st.data(), st.floats(1e-3, 50))
def test_a_multiple_of_a_whole_number_is_rounded_and_at_least_one(data, factor):
    config, _ = CHECKED["learning_rate", data.draw(st.sampled_from(MODELS))]
    space, _ = made(
        "parameters:\n  model.stages.*.width: {type: float, min: 1e-3, max: 50, relative: true}\n"
        "  recipe.optimizer.learning_rate: {type: float, min: 1e-3, max: 50, relative: true}\n"
    )
    point = spaces.apply(config, space, dict.fromkeys(space.parameters, factor))
    for old, new in zip(
        config.architecture.model.stages, point.architecture.model.stages, strict=True
    ):
        assert abs(new.width - old.width * factor) <= 0.5 or new.width == 1 > old.width * factor
    rate = config.recipe.optimizer.learning_rate
    assert point.recipe.optimizer.learning_rate == pytest.approx(rate * factor)


def test_parameters_are_set_in_order_and_a_mapping_replaces_a_field():
    config, space = CHECKED["everything", "resnet8"]
    values = {
        "recipe.optimizer": "sgd", "recipe.optimizer.learning_rate": 0.1,
        "recipe.optimizer.nesterov": True, "recipe.optimizer.momentum": 0.7,
        "recipe.gradient_clip": None, "recipe.epochs": 8, "model.stages.*.width": 2,
    }  # fmt: skip
    point = spaces.apply(config, space, values)
    optimizer = schema.Sgd(type="sgd", learning_rate=0.1 * 0.1, momentum=0.7, nesterov=True)
    assert point.recipe.optimizer == optimizer
    assert point.recipe.gradient_clip is None
    assert (point.recipe.epochs, point.horizon) == (8, 8)
    assert [stage.width for stage in point.architecture.model.stages] == [32, 64, 128]
    other = spaces.apply(config, space, {"recipe.optimizer": "adam", "slow.beta_1": 0.5})
    assert other.recipe.optimizer == schema.Adam(type="adam", learning_rate=1e-3, beta_1=0.5)


def test_values_of_a_condition_that_fails_are_dropped_and_unknown_ones_refused():
    _, space = CHECKED["everything", "resnet8"]
    values = {
        "recipe.optimizer": "adam", "recipe.optimizer.nesterov": "true",
        "recipe.optimizer.momentum": 0.9, "recipe.gradient_clip": "null", "tuner/epochs": 3,
    }  # fmt: skip
    left = {"recipe.optimizer": "adam", "recipe.gradient_clip": None}
    assert spaces.point(space, values) == left
    with pytest.raises(BadInputError, match=r"no value 'adm' \(text\). Did you mean 'adam'"):
        spaces.point(space, {"recipe.optimizer": "adm"})
    with pytest.raises(BadInputError, match=r"no parameter 'recipe.epoch'"):
        spaces.point(space, {"recipe.epoch": 3})


def test_epochs_within_a_whole_recipe_move_the_horizon():
    recipe = registry.load_registry().recipes["small"].model_dump(mode="json", by_alias=True)
    space, document = space_of(recipe={"type": "choice", "values": {"small": recipe}})
    config = spaces.check_space(base(), space, document)
    point = spaces.apply(config, space, {"recipe": "small"})
    assert (config.horizon, point.recipe.epochs, point.horizon) == (8, 60, 60)


# ---------------------------------------------------------------------------- blocks


def test_a_point_is_the_model_a_registry_would_have():
    space, document = space_of(**{
        "model.stages.*.block": {"type": "choice", "values": ["bottleneck_v1", "basic"]},
        "model.stages.*.repeats": {"type": "int", "min": 2, "max": 3, "relative": True},
        "model.defaults.norm": {"type": "choice", "values": ["bn", "bn_keras"]},
    })  # fmt: skip
    config = spaces.check_space(base(), space, document)
    assert {"basic", "bottleneck_v1"} < set(config.architecture.blocks)
    values = {"model.stages.*.block": "bottleneck_v1", "model.stages.*.repeats": 2,
              "model.defaults.norm": "bn_keras"}  # fmt: skip
    found = spaces.apply(config, space, values).architecture
    stage = "{block: bottleneck_v1, width: %d, repeats: 2, stride: %d}"
    stages = ", ".join(stage % sizes for sizes in ((16, 1), (32, 2), (64, 2)))
    written = f"{{extends: resnet8, defaults: {{norm: bn_keras}}, stages: [{stages}]}}"
    mine = registry.overlay(parse(f"models: {{mine: {written}}}".encode(), "mine.yaml"))
    assert found.model_copy(update={"name": "mine"}) == mine.architecture("mine")
    # Without a change, nothing is lost.
    assert spaces.apply(config, space, {}) == base()


def test_blocks_of_ones_own_registry_can_be_chosen():
    text = "blocks: {narrow: {extends: bottleneck_v1, convs: [{kernel: 3, takes_stride: true}]}}"
    mine = registry.overlay(parse(text.encode(), "mine.yaml"))
    space, document = space_of(**{
        "model.stages.1.block": {"type": "choice", "values": ["narrow", "basic"]}
    })  # fmt: skip
    config = spaces.check_space(base(), space, document, mine)
    assert "narrow" in config.architecture.blocks
    with pytest.raises(DocumentError, match="there is no block 'narrow'"):
        spaces.check_space(base(), space, document)


# ---------------------------------------------------------------------------- checks

SGD = "recipe.optimizer: {type: choice, values: {sgd: {type: sgd, learning_rate: 0.1}, " \
      "adam: {type: adam, learning_rate: 0.1}}}"  # fmt: skip
RATE = "recipe.optimizer.learning_rate"
SMOOTH = "recipe.label_smoothing"
ZERO = f"{SMOOTH}: {{type: choice, values: [0]"


# `§` stands where the problem is.
MISTAKES = [
    (f"§{RATE}: {{type: float, min: 1, max: 2, step: 3}}", "`step` 3.0 leads from `min` 1.0 past"),
    (f"§{RATE}: {{type: float, min: 1, max: 2, step: 1e-3}}", "more than 300 values"),
    (f"{RATE}: {{type: float, min: 1, max: 2, §step: 0}}", "greater than 0"),
    (f"§{RATE}: {{type: float, min: 1, max: 8, log: true, step: 1}}", "is a factor above 1"),
    ("§recipe.epochs: {type: int, min: 1, max: 8, log: true, step: 1}", "is a factor above 1"),
    ("recipe.epochs: {type: int, min: 1, max: 8, §step: 0.5}", "whole number"),
    (f"§{SMOOTH}: {{type: choice, values: [0.1, a], relative: true}}", "'a' is none"),
    ("§recipe.augment.flip: {type: float, min: 1, max: 2, relative: true}",
     "multiplies a number, and 'recipe.augment.flip' is 'none' (text)"),
    ("§recipe.epochs: {type: float, min: 1, max: 1e308, relative: true}", "has no end"),
    ("§model.*.width: {type: int, min: 1, max: 2}", "'width' is unknown"),
    ("§model.neck.*.norm: {type: choice, values: [bn]}", "'*' is unknown"),
    ("§model.stages.².width: {type: int, min: 1, max: 2}", "'²' is unknown"),
    ("§model.stages.*.widht: {type: int, min: 1, max: 2}", "Did you mean 'width'?"),
    ("§other: {type: choice, values: [0.2]}", "no field 'other'"),
    (f"{SMOOTH}: {{type: choice, values: {{§a b: 0}}}}", "pattern"),
    (f"§{SMOOTH}: {{type: choice, values: {{a: 0, b: [1]}}}}", "recipe.label_smoothing"),
    (f"{SMOOTH}: {{type: choice, §values: [0, 0.1, 0.0]}}", "'0.0' is there twice"),
    (f"{SMOOTH}: {{type: choice, values: [§.nan]}}", "finite number"),
    (f'{SMOOTH}: {{type: choice, §values: {{a: [{{b: "\\ud800"}}]}}}}', "without a UTF-8 form"),
    (f"{SGD}\n  §recipe.optimizer.momentum: {{type: float, min: 0, max: 0.9}}",
     "at recipe.optimizer adam: there is no field 'recipe.optimizer.momentum': 'momentum' is "
     "unknown. Known: beta_1, beta_2, epsilon, learning_rate, type.; `when: {recipe.optimizer: …}` "
     "says where it is drawn"),
    (f"{SGD}\n  §recipe.optimizer.momentum: {{type: float, min: 0, max: 2, when: "
     "{recipe.optimizer: sgd}}", "less than 1"),
    (f"{SGD}\n  {ZERO}, when: {{§recipe.optimiser: sgd}}}}",
     "no parameter 'recipe.optimiser' above. Did you mean 'recipe.optimizer'?"),
    (f"{ZERO}, when: {{§recipe.optimizer: sgd}}}}\n  {SGD}", "is declared below"),
    (f"{ZERO}, when: {{§{SMOOTH}: 0}}}}", "a condition is on a choice above it"),
    (f"recipe.epochs: {{type: int, min: 1, max: 2}}\n  {ZERO}, when: {{§recipe.epochs: 1}}}}",
     "'recipe.epochs' is a range; a condition is on a choice"),
    (f"{SGD}\n  {ZERO}, when: {{recipe.optimizer: [sgd, §adm]}}}}",
     "'recipe.optimizer' has no value 'adm'. Did you mean 'adam'?"),
    (f"{SGD}\n  {ZERO}, when: {{§recipe.optimizer: true}}}}", "has no value 'true'"),
    (f"{SGD}\n  {ZERO}, when: {{§recipe.optimizer: []}}}}", "at least 1 item"),
    (f"{SGD}\n  recipe.augment.flip: {{type: choice, values: [none], "
     f"when: {{recipe.optimizer: sgd}}}}\n  {ZERO}, "
     "§when: {recipe.augment.flip: none, recipe.optimizer: adam}}",
     "never drawn: no value of 'recipe.optimizer' meets all its conditions"),
    (f"{ZERO}}}\n  §other: {{field: {SMOOTH}, type: choice, values: [0.2]}}",
     f"'{SMOOTH}' sets the same field"),
    ("§model.stages.*.block: {type: choice, values: [basic, botleneck_v1]}",
     "there is no block 'botleneck_v1'. Did you mean 'bottleneck_v1'?"),
    ("§model.stages.*.block: {type: choice, values: [basic, residual_sum]}",
     "models.resnet8.stages[1]"),
    ("§model.defaults.norm: {type: choice, values: [bn, nosuch]}", "nosuch"),
    ("§recipe.validation_split: {type: float, min: 0, max: 0.1}", "at the test set"),
    ("§model.stages.*.width: {type: int, min: 1, max: 1500, relative: true}", "65536"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_is_told_with_line_and_column(text, said):
    text = f"parameters:\n  {text}\n"
    before = text[: text.index("§")]
    with pytest.raises(DocumentError) as error:
        spaces.check_space(base(), *made(text.replace("§", "")))
    problem = error.value.problems[0]
    assert said in problem.text
    assert problem.place is not None
    place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    assert problem.place[1:] == place


def test_what_cannot_be_together_is_told_of_the_whole_space():
    both = made(
        "parameters:\n"
        "  model.stages.*.width: {type: int, min: 1, max: 64, relative: true}\n"
        "  model.stages.*.repeats: {type: int, min: 1, max: 40, relative: true}\n"
    )
    with pytest.raises(
        DocumentError,
        match=r"mine.yaml:1:1: parameters: at model.stages.\*.width 64, "
        r"model.stages.\*.repeats 40: models.resnet8.stages.* the limit is",
    ):
        spaces.check_space(base(), *both)


def test_values_are_tried_where_they_are_drawn():
    # A padded shortcut cannot lose channels, but it is never drawn here.
    config, _ = CHECKED["architecture", "resnet20"]
    assert config.architecture.model.stages[0].block == "basic_padded"
    narrow = {"model.stages.*.width": {"type": "choice", "values": [0.5], "relative": True}}
    with pytest.raises(DocumentError, match="padded shortcut cannot go from 16 channels down"):
        spaces.check_space(base("resnet20"), *space_of(**narrow))


def test_many_conditions_on_many_values_are_refused_in_good_time():
    parents = {"seed": {"type": "choice", "values": list(range(60))}}
    children = {
        f"model.stages.{i}.width": {
            "type": "choice", "values": [8, 16, 24, 32], "when": {"seed": list(range(60))}
        }
        for i in range(3)
    }  # fmt: skip
    with pytest.raises(DocumentError, match="more than 600 values and conditions to try"):
        spaces.check_space(base(), *space_of(**parents, **children))


def test_a_search_needs_images_held_back():
    space, document = spaces.read_space("optimizer")
    config = configs.resolve("resnet8", dataset="digits", recipe="original")
    with pytest.raises(BadInputError, match="validation_split 0"):
        spaces.check_space(config, space, document)


def test_a_damaged_space_is_refused_or_searched_and_never_a_surprise():
    texts = [EVERYTHING, SMALL, *((shipped("tuning") / f"{n}.yaml").read_text() for n in SHIPPED)]
    editor = jsonschema.Draft7Validator(json_schema.generate("space"))
    config, used = base("resnet20"), 0
    for seed in range(150):
        try:
            document = parse(damaged(str(seed), texts), "mine.yaml")
            space = validate(schema.Space, document)
            assert list(editor.iter_errors(document.data)) == [], f"damaged('{seed}')"
            checked = spaces.check_space(config, space, document)
            spaces.points(spaces.fitting(checked, space)[0])
            used += 1
        except BadInputError:
            continue
    assert used > 10


@pytest.mark.parametrize("name", [*SHIPPED, "everything"])
def test_editors_accept_what_is_read(name):
    space, document = read_or_made(name)
    checker = jsonschema.Draft7Validator(json_schema.generate("space"))
    assert list(checker.iter_errors(document.data)) == []
    # `search.yaml` holds a space as it is written out again.
    again = parse(to_yaml(space).encode(), "again.yaml")
    assert validate(schema.Space, again) == space
    assert list(checker.iter_errors(again.data)) == []


# ---------------------------------------------------------------------------- grids


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("type: float, min: 0, max: 1, step: 0.1", [i / 10 for i in range(11)]),
        ("type: float, min: 0.1, max: 0.75, step: 0.2", [0.1, 0.3, 0.5, 0.7]),
        ("type: float, min: 1e-3, max: 10, log: true, step: 10", [1e-3, 0.01, 0.1, 1, 10]),
        ("type: int, min: 6, max: 13, step: 3", [6, 9, 12]),
        ("type: int, min: 2, max: 32, log: true, step: 2", [2, 4, 8, 16, 32]),
        ("type: float, min: 0, max: 1", None),
    ],
)
def test_a_step_gives_these_values(text, values):
    space, document = made(f"parameters: {{recipe.label_smoothing: {{{text}}}}}")
    (d,) = space.parameters.values()
    assert d.points == values
    assert spaces.points(space) == (values and len(values))
    if values is None:
        with pytest.raises(DocumentError, match=r"mine.yaml:1:14: .* give the range a `step`"):
            spaces.check_grid(space, document)
    else:
        spaces.check_grid(space, document)


def test_the_points_of_a_grid_are_counted_where_conditions_hold():
    _, space = CHECKED["everything", "resnet8"]
    # SGD: 5 momenta with nesterov and one without; Adam: two betas.
    assert spaces.points(space) == (5 + 1 + 2) * 3 * 3 * 4 * 3 * 2
    assert spaces.points(spaces.read_space("architecture")[0]) == 80
    assert spaces.points(spaces.read_space("optimizer")[0]) is None
    loose = {f"data.x{i}": {"type": "choice", "values": [0, 1]} for i in range(40)}
    last = {"seed": {"type": "int", "min": 0, "max": 1, "when": dict.fromkeys(loose, 0)}}
    with pytest.raises(BadInputError, match="more than 10,000 points"):
        spaces.points(space_of(**loose, **last)[0])
    assert spaces.points(space_of(**loose)[0]) == 2**40


def every_point(space: schema.Space) -> list[dict[str, object]]:
    names = list(space.parameters)
    found: list[dict[str, object]] = []
    for values in itertools.product(*(d.points for d in space.parameters.values())):
        point = spaces.point(space, dict(zip(names, values, strict=True)))
        if point not in found:
            found.append(point)
    return found


# ---------------------------------------------------------------------------- keras-tuner

SMALL = """
parameters:
  recipe.optimizer:
    {type: choice, values: {adam: {type: adam, learning_rate: 1e-3},
                            sgd: {type: sgd, learning_rate: 0.1}}}
  recipe.optimizer.nesterov: {type: choice, values: [false, true], when: {recipe.optimizer: sgd}}
  recipe.optimizer.momentum:
    {type: float, min: 0.1, max: 0.4, step: 0.1, when: {recipe.optimizer.nesterov: true}}
  recipe.gradient_clip: {type: choice, values: [null, 1], when: {recipe.optimizer: [adam]}}
"""


def searched(space: schema.Space, tmp_path, kind: str, **options) -> list[dict[str, object]]:
    """Return the values of each trial of a search, as keras-tuner has them."""
    import keras_tuner

    found: list[dict[str, object]] = []

    class Recorder(getattr(keras_tuner, kind)):
        def run_trial(self, trial, *args, **kwargs):
            found.append(dict(trial.hyperparameters.values))
            return {"score": len(found) % 5}

    tuner = Recorder(
        objective=keras_tuner.Objective("score", "max"), seed=1,
        hyperparameters=spaces.hyperparameters(space), directory=str(tmp_path), **options,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        tuner.search(verbose=0)
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RandomSearch", {"max_trials": 12}),
        ("BayesianOptimization", {"max_trials": 6, "num_initial_points": 5}),
        ("Hyperband", {"max_epochs": 3}),
        ("GridSearch", {}),
    ],
)
def test_keras_tuner_draws_only_what_conditions_allow(kind, options, tmp_path):
    space, _ = made(SMALL)
    trials = searched(space, tmp_path, kind, **options)
    every = every_point(space)
    points = []
    for values in trials:
        own = {k for k in values if not k.startswith("tuner/")}
        point = spaces.point(space, values)
        assert own == set(point)
        assert point in every
        points.append(json.dumps(point))
    assert len(set(points)) > 3
    if kind == "GridSearch":
        assert len(points) == len(set(points)) == len(every) == spaces.points(space) == 7
    if kind == "RandomSearch":
        assert [json.dumps(spaces.point(space, values)) for values in
                searched(space, tmp_path / "b", kind, **options)] == points  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["optimizer", "augmentation", "everything"]), st.integers(0, 2**31))
def test_what_workers_are_sent_is_the_same_point(name, seed):
    """Through keras-tuner's own messages, which reorder parameters and add inactive values."""
    space, _ = read_or_made(name)
    hps = spaces.hyperparameters(space)
    for i, hp in enumerate(hps.space):
        if hps.is_active(hp):
            hps.values[hp.name] = hp.random_sample(seed + i)
    hps.ensure_active_values()
    with contextlib.redirect_stdout(io.StringIO()):
        sent = type(hps).from_proto(hps.to_proto())
    before = spaces.point(space, hps.values)
    assert before.keys() == hps.values.keys()
    assert spaces.point(space, sent.values) == before
    sent.ensure_active_values()
    assert spaces.point(space, sent.values) == before
    assert set(sent.values) == set(before)


def test_a_choice_keeps_its_kinds():
    lists = {"a": [1, 2], "b": [1, 0.5], "c": [True, False], "d": [None, "x", 1]}
    space, _ = space_of(**{name: {"type": "choice", "values": v} for name, v in lists.items()})
    values = spaces.hyperparameters(space).values
    assert values == {"a": 1, "b": 1.0, "c": "true", "d": "null"}
    assert spaces.point(space, values) == {"a": 1, "b": 1, "c": True, "d": None}


# ---------------------------------------------------------------------------- shipped spaces


def test_the_shipped_spaces_are_these():
    assert sorted(p.stem for p in shipped("tuning").glob("*.yaml")) == sorted(SHIPPED)
    found = {name: list(spaces.read_space(name)[0].parameters) for name in SHIPPED}
    assert found["optimizer"] == [
        "recipe.optimizer", "sgd.learning_rate", "adam.learning_rate", "recipe.optimizer.momentum",
        "recipe.weight_decay", "recipe.weight_decay.rate", "recipe.label_smoothing",
    ]  # fmt: skip
    named = {name.split(".")[2] for name in found["augmentation"]}
    assert named == set(schema.Augment.model_fields)
    assert found["architecture"] == [
        "model.stages.*.width", "model.stages.*.repeats", "model.stages.*.block", "model.neck",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("recipe", ["default", "small", "vgg", "digits"])
def test_a_shipped_space_fits_every_recipe(name, recipe):
    space, document = spaces.read_space(name)
    config = configs.resolve("resnet8", dataset="digits", recipe=recipe)
    assert spaces.check_space(config, space, document).recipe == config.recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_fits_every_model_or_says_why(name):
    refused = {}
    space, document = spaces.read_space(name)
    for model in registry.load_registry().models:
        try:
            spaces.check_space(base(model), space, document)
        except DocumentError as error:
            refused[model] = str(error)
    place = "architecture.yaml:5:1: parameters: at model.stages.*.width 2"
    assert [text for text in refused.values() if place not in text] == []
    assert [text for text in refused.values() if "the limit is" not in text] == []
    wide = ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
    expected = [f"{model}_imagenet" for model in wide] if name == "architecture" else []
    assert list(refused) == expected


def test_points_of_the_architecture_space_are_the_networks_they_say():
    config, space = CHECKED["architecture", "resnet20"]
    values = {"model.stages.*.width": 0.5, "model.stages.*.repeats": 1.5,
              "model.stages.*.block": "basic_preact", "model.neck": "norm_act"}  # fmt: skip
    plan = configs.plan(spaces.apply(config, space, values))
    assert plan.feature_shapes() == {
        "stage1": (32, 32, 8),
        "stage2": (16, 16, 16),
        "stage3": (8, 8, 32),
    }
    assert "stage3_block4_merge" in {layer.name for layer in plan.layers}
    assert [layer.type for layer in plan.layers if layer.stage == "neck"] == [
        "BatchNormalization", "Activation",
    ]  # fmt: skip


# ---------------------------------------------------------------------------- the page

DOC = Path(__file__).parents[1] / "docs" / "search-spaces.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "yaml"])
def test_what_the_page_shows_can_be_searched(text):
    space, document = made(text)
    config = spaces.check_space(base(), space, document)
    hps = spaces.hyperparameters(space)
    configs.plan(spaces.apply(config, space, hps.values))
    told = [int(n) for n in re.findall(r"# (\d+)", text)]
    if told:
        assert [len(d.points) for d in space.parameters.values()] == told
        spaces.check_grid(space, document)


def test_the_page_prints_what_is_printed_and_its_program_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(next(text for kind, text in BLOCKS if kind == "yaml"))
    (console,) = [text for kind, text in BLOCKS if kind == "console"]
    command, _, printed = console.partition("\n")
    code, out, _ = run_cli(capsys, *shlex.split(command)[2:])
    assert (code, out) == (0, printed)
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    names: dict[str, object] = {}
    exec(program, names)
    trial = names["trial"]
    assert isinstance(trial, schema.RunConfig)
    rate = schema.Sgd(type="sgd", learning_rate=0.05, momentum=0.95, nesterov=True)
    assert trial.recipe.optimizer == rate


# ---------------------------------------------------------------------------- without effect


def test_what_a_data_set_forbids_is_not_searched():
    config, space = CHECKED["augmentation", "resnet8"]
    left, said = spaces.fitting(config, space)
    gone = set(space.parameters) - set(left.parameters)
    assert {name.split(".")[2] for name in gone} == {"flip", "cutout", "cutmix"}
    assert len(said) == len(gone)
    assert "recipe.augment.flip: it is left out; here it changes nothing" in said
    for name in SHIPPED[:2]:
        assert spaces.fitting(CHECKED[name, "resnet8"][0], read_or_made(name)[0])[1] == []


def test_a_search_from_a_file_s_weights_keeps_to_what_they_fit():
    config = configs.new_run("resnet8", {"weights": "pretrained"}, shape=(10, 3))
    space, document = made(
        "parameters:\n"
        "  recipe.optimizer.learning_rate: {type: float, min: 0.01, max: 0.1}\n"
        "  recipe.initial.stem: {type: choice, values: [null, whitening]}\n"
    )
    left, said = spaces.fitting(spaces.check_space(config, space, document), space)
    assert list(left.parameters) == ["recipe.optimizer.learning_rate"]
    assert said == ["recipe.initial.stem: it is left out; here it changes nothing"]
    space, document = made(
        "parameters:\n  model.stages.2.width: {type: choice, values: [64, 96]}\n"
    )
    with pytest.raises(BadInputError, match=r"mine.yaml:2:3: .* does not fit resnet8"):
        spaces.check_space(config, space, document)


def test_values_that_come_to_the_same_are_searched_once():
    config, space = CHECKED["architecture", "resnet8"]  # one block a stage
    left, said = spaces.fitting(config, space)
    repeats = left.parameters["model.stages.*.repeats"]
    assert isinstance(repeats, schema.Choice)
    assert repeats.values == [0.5, 1.5]
    assert "model.stages.*.repeats: 2 is left out; here it is 1.5" in said
    assert spaces.points(left) == 40
    schema.Space.model_validate(left.model_dump(mode="json"))


def test_a_value_that_others_depend_on_stays():
    space, document = made(
        "parameters:\n"
        "  recipe.augment:\n"
        "    {type: choice, values: {none: {}, cutout: {cutout: {size: 4}}, "
        "mixup: {cutout: {size: 8}}}}\n"
        "  recipe.augment.mixup: {type: choice, values: {weak: {alpha: 0.1}, strong: {}}, "
        "when: {recipe.augment: mixup}}\n"
        "  recipe.augment.cutout.size: {type: int, min: 4, max: 8, when: "
        "{recipe.augment: [cutout, mixup]}}\n"
    )
    config = spaces.check_space(base(), space, document)
    left, _ = spaces.fitting(config, space)
    choice = left.parameters["recipe.augment"]
    assert isinstance(choice, schema.Choice)
    assert list(choice.names) == ["none", "mixup"]
    assert left.parameters["recipe.augment.mixup"].when == {"recipe.augment": ["mixup"]}
    assert "recipe.augment.cutout.size" not in left.parameters


def test_a_space_without_any_effect_is_refused():
    space, document = made("parameters: {recipe.augment.flip: {type: choice, values: [none]}}")
    with pytest.raises(BadInputError, match="nothing of this space changes anything"):
        spaces.fitting(spaces.check_space(base(), space, document), space)
