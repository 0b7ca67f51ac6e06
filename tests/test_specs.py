"""Random architectures: the plan is the model, stock and fast layers agree, mistakes are told."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from agreement import assert_is_plan, assign, difference, random_weights
from commands import run_cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import (
    ACTIVATIONS,
    BREAKS,
    broken_registries,
    changed_registries,
    extending_registries,
    places,
    registries,
)

from kerasnet import schema
from kerasnet.build import LayerSet, build
from kerasnet.convert import weight_variables
from kerasnet.document import Document, DocumentError, parse, to_yaml, validate
from kerasnet.plan import Plan, plan_model
from kerasnet.registry import Registry, load_registry

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed; `pip install '.[torch]'`",
)
KINDS: tuple[LayerSet, ...] = ("stock", "fast")


def examples(few: int, many: int) -> Any:
    """Give a test `number`: a few examples by default, and many as a slow variant."""
    slow = pytest.param(many, marks=pytest.mark.slow)
    return pytest.mark.parametrize("number", [few, slow])


def each(strategy: st.SearchStrategy[Any], number: int, check: Callable[[Any], None]) -> None:
    """Call a check with so many examples."""
    lenient = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    settings(max_examples=number, deadline=None, suppress_health_check=lenient)(
        given(strategy)(check)
    )()


def architecture(document: dict[str, Any]) -> schema.Architecture:
    """Return the model of a registry that stands for itself, without the built-in one."""
    sections = {section: document.get(section, {}) for section in schema.SECTIONS}
    return Registry(Document(sections)).architecture("m")


def planned(document: dict[str, Any]) -> Plan:
    return plan_model(architecture(document))


def images(made: Plan, rng: np.random.Generator, number: int = 4) -> np.ndarray[Any, Any]:
    return rng.standard_normal((number, *made.input_shape), np.float32)


# ---------------------------------------------------------------------------- what is valid


def assert_models_are_plan(made: Plan) -> float:
    """Build a plan both ways, hold both against it, and return how far they are apart."""
    models = [build(made, layers=kind, seed=3) for kind in KINDS]
    for model, kind in zip(models, KINDS, strict=True):
        assert_is_plan(model, made, kind)
    first, second = (
        {key: np.asarray(variable) for key, variable in weight_variables(model).items()}
        for model in models
    )
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key])
    rng = np.random.default_rng(0)
    weights, x = random_weights(made, rng), images(made, rng)
    for model in models:
        assign(model, weights)
    stock, fast = (model(x, training=False) for model in models)
    return difference(fast, stock)


@examples(20, 1000)
def test_a_valid_architecture_is_built_as_planned(number, record_property):
    apart = []

    def check(document: dict[str, Any]) -> None:
        apart.append(assert_models_are_plan(planned(document)))
        assert apart[-1] <= 1e-4

    each(registries(), number, check)
    record_property("stock and fast differ by", max(apart))
    print(f"\n{len(apart)} architectures; stock and fast differ by {max(apart):.1e} at most")


@examples(100, 3000)
def test_what_does_not_fit_together_is_a_document_error(number):
    came = Counter[str]()

    def check(document: dict[str, Any]) -> None:
        try:
            made = planned(document)
        except DocumentError:
            came["error"] += 1
            return
        came["plan"] += 1
        assert all(n > 0 for layer in made.layers for n in layer.output_shape)

    each(changed_registries(), number, check)
    print(f"\n{dict(came)}")
    assert min(came["plan"], came["error"]) > number / 10


@examples(8, 300)
def test_what_fits_together_by_chance_is_built_as_planned(number):
    def check(document: dict[str, Any]) -> None:
        try:
            made = planned(document)
        except DocumentError:
            return
        assert assert_models_are_plan(made) <= 1e-4

    each(changed_registries(), number, check)


# What these say has no part in the network, or is about files and tests of the registry itself.
ELSEWHERE = {"extends", "origin", "recipes", "expect", "published", "keys"}
DRAWN = (
    schema.Norm, schema.Defaults, schema.Conv, schema.Pool, schema.Dense, schema.NormOp,
    schema.BlockConv, schema.Projection, schema.Block, schema.Stage, schema.Model,
    schema.VarianceScaling,
)  # fmt: skip


@pytest.mark.slow
def test_everything_the_schema_allows_is_drawn():
    seen = set[str]()

    def check(document: dict[str, Any]) -> None:
        for path, value in places(document):
            seen.update(str(part) for part in (*path[-1:], value) if isinstance(part, str))

    each(registries(), 1000, check)
    fields = {info.alias or name for cls in DRAWN for name, info in cls.model_fields.items()}
    assert fields | {*schema.STEP_NAMES, *schema.KEYED_INITIALIZERS} <= seen | ELSEWHERE
    assert {*ACTIVATIONS, *get_args(schema.NamedInitializer)} <= seen


@examples(25, 500)
def test_an_architecture_is_read_back_as_it_was_written(number):
    def check(document: dict[str, Any]) -> None:
        written = architecture(document)
        text = to_yaml(written)
        read = validate(schema.Architecture, parse(text.encode(), "mine.yaml"))
        assert read == written
        assert to_yaml(read) == text
        assert schema.Architecture.model_validate(written.model_dump(by_alias=True)) == written
        assert (
            schema.Architecture.model_validate_json(written.model_dump_json(by_alias=True))
            == written
        )
        assert plan_model(read) == plan_model(written)

    each(registries(), number, check)


@examples(8, 200)
def test_a_users_file_means_the_same_with_and_without_extends(number, tmp_path):
    def check(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
        plain, extending = documents
        made = planned(plain)
        expect = {**made.params, "macs": made.macs}
        del expect["total"]
        extending["models"]["m"]["expect"] = expect
        file = tmp_path / "mine.yaml"
        file.write_text(to_yaml(extending))
        found = plan_model(load_registry(str(file)).architecture("m"))
        assert found == made
        key = min(expect)
        expect[key] += 1
        file.write_text(to_yaml(extending))
        with pytest.raises(DocumentError, match=rf"`{key}` is {expect[key] - 1}, but"):
            load_registry(str(file))

    each(extending_registries(), number, check)


# ---------------------------------------------------------------------------- training


def smooth(made: schema.Architecture) -> schema.Architecture:
    """Replace activations whose gradient jumps, so that rounding cannot decide on which side."""
    text = re.sub('"relu6?"', '"sigmoid"', made.model_dump_json(by_alias=True))
    return schema.Architecture.model_validate_json(text)


def one_step(made: Plan, kind: LayerSet, weights: Any, x: Any, pull: Any) -> dict[str, Any]:
    """Return a training step's outputs, all its gradients, and its moving statistics."""
    import tensorflow as tf

    model = build(made, layers=kind, seed=3)
    assign(model, weights)
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x, training=True)
        loss = tf.reduce_sum(y * pull)
    kept = [v.value for v in model.trainable_variables]
    found = {
        "outputs": [y],
        "gradients": tape.gradient(loss, [x, *kept], unconnected_gradients="zero"),
        "statistics": [v for key, v in weight_variables(model).items() if "moving" in key],
    }
    # A bias before a norm has no gradient but rounding's, so the gradients count together.
    return {
        key: np.concatenate([[0], *(np.ravel(np.asarray(value)) for value in values)])
        for key, values in found.items()
    }


def assert_steps_agree(document: dict[str, Any]) -> None:
    made = plan_model(smooth(architecture(document)))
    rng = np.random.default_rng(0)
    weights, x = random_weights(made, rng), images(made, rng, 8)
    pull = rng.standard_normal((8, *made.output.output_shape), np.float32)
    stock, fast = (one_step(made, kind, weights, x, pull) for kind in KINDS)
    # What stock Keras makes of rounding its input bounds what can be asked for.
    nudged = x * (1 + rng.uniform(-3e-7, 3e-7, x.shape).astype("float32"))
    moved = one_step(made, "stock", weights, nudged, pull)
    for key, values in stock.items():
        allowed = 1e-3 * np.linalg.norm(values) + 20 * np.linalg.norm(moved[key] - values)
        assert np.linalg.norm(fast[key] - values) <= allowed + 1e-5, key


@examples(6, 300)
def test_one_training_step_of_stock_and_fast_agrees(number):
    each(registries(), number, assert_steps_agree)


# ---------------------------------------------------------------------------- PyTorch


@needs_torch
@pytest.mark.slow
def test_a_valid_architecture_gives_what_it_gives_in_pytorch(record_property):
    import torch

    from kerasnet.bench.twin import TwinModel, copy_weights

    apart = []

    def check(document: dict[str, Any]) -> None:
        made = planned(document)
        rng = np.random.default_rng(0)
        weights, x = random_weights(made, rng), images(made, rng)
        model, twin = build(made), TwinModel(made).eval()
        assign(model, weights)
        copy_weights(twin, weights)
        with torch.no_grad():
            found = twin(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        apart.append(difference(model(x, training=False), found))
        assert apart[-1] <= 1e-4

    each(registries(), 300, check)
    record_property("Keras and PyTorch differ by", max(apart))
    print(f"\n{len(apart)} architectures; Keras and PyTorch differ by {max(apart):.1e} at most")


# ---------------------------------------------------------------------------- what is broken


@examples(30, 300)
def test_a_mistake_is_told_with_its_place(number, tmp_path, capsys):
    kinds = Counter[str]()

    def check(broken: tuple[dict[str, Any], str]) -> None:
        content, kind = broken
        kinds[kind] += 1
        file = tmp_path / "mine.yaml"
        file.write_text(to_yaml(content))
        code, out, err = run_cli(capsys, "validate", str(file))
        assert (code, out) == (2, ""), (kind, out)
        assert re.search(r"mine\.yaml:\d+:\d+: ", err), (kind, err)
        assert "Traceback" not in err

    each(broken_registries(), number, check)
    print(f"\n{dict(kinds)}")
    assert number < 300 or set(kinds) == {change.__name__ for change in BREAKS}
