"""Averaged weights: measured and saved with batch statistics of their own, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

import kerasnet
from kerasnet import averaging
from kerasnet.averaging import BATCHES, Averages
from kerasnet.build import build
from kerasnet.config import new_run, with_values
from kerasnet.convert import weight_variables
from kerasnet.document import parse
from kerasnet.plan import plan_model
from kerasnet.recipe import compile_model
from kerasnet.registry import load_registry, overlay

MODEL = b"""
models:
  tiny:
    input: [8, 8, 3]
    stem: [{conv: {filters: 4, kernel: 3}}, norm, act]
    stages: [{block: basic, width: 4}]
    head: [global_avg_pool, {dropout: 0.5}, {dense: classes}]
"""


def batches(n: int = 5):
    rng = np.random.default_rng(3)
    return [
        (rng.normal(1, 2, (16, 8, 8, 3)).astype("float32"), rng.integers(0, 10, 16))
        for _ in range(n)
    ]


def trained(ema: dict | None, layers: str = "fast"):
    """Return a model after a few steps."""
    registry = overlay(parse(MODEL, "mine.yaml"))
    values = {"recipe.ema": ema, "recipe.optimizer.learning_rate": 0.1}
    config = with_values(new_run("resnet8", {"dataset": "digits", "precision": "float32"}), values)
    model = build(plan_model(registry.architecture("tiny")), seed=0, layers=layers)
    compile_model(model, config, 5)
    for images, labels in batches():
        model.train_on_batch(images, labels)
    return model


def values(model) -> dict[str, bytes]:
    held = [*model.variables, *model.optimizer.variables]
    return {f"{i}/{v.path}": np.array(v).tobytes() for i, v in enumerate(held)}


@pytest.mark.parametrize("layers", ["fast", "stock"])
def test_statistics_are_those_of_the_averaged_weights(layers):
    model = trained({"decay": 0.9}, layers)
    before = values(model)
    plain = {key: np.array(v) for key, v in weight_variables(model).items()}
    with Averages(model, batches)():
        found = {key: np.array(v) for key, v in weight_variables(model).items()}
        stem = model.get_layer("stem_conv")
        outputs = [np.array(stem(images)) for images, _ in batches()]
        # A fast layer leaves its bias to the norm.
        bias = 0 if layers == "stock" else found["stem_conv/bias"]
        means = [out.mean((0, 1, 2)) + bias for out in outputs]
        momentum = model.get_layer("stem_norm").momentum
        weights = momentum ** np.arange(len(means))[::-1]
        expected = np.average(means, axis=0, weights=weights)
        np.testing.assert_allclose(found["stem_norm/moving_mean"], expected, atol=1e-5)
        variances = [out.var((0, 1, 2)) for out in outputs]
        expected = np.average(variances, axis=0, weights=weights)
        np.testing.assert_allclose(found["stem_norm/moving_variance"], expected, rtol=1e-4)
    assert all(not np.array_equal(found[key], plain[key]) for key in plain if "kernel" in key)
    # Weights, statistics, averages, and what dropout will draw.
    assert values(model) == before


def test_at_one_step_they_are_measured_once():
    asked = []

    def counted():
        asked.append(1)
        return batches()

    model = trained({"decay": 0.9})
    averages = Averages(model, counted)
    seen = []
    for _ in range(2):
        with averages():
            seen.append(values(model))
    assert seen[0] == seen[1]
    assert len(asked) == 1
    model.train_on_batch(*batches()[0])
    with averages():
        assert values(model) != seen[0]
    assert len(asked) == 2


def test_without_averages_nothing_is_done():
    model = trained(None)
    before = values(model)
    averages = Averages(model, lambda: pytest.fail("batches were asked for"))
    with averages():
        assert values(model) == before
    assert values(model) == before


def test_so_many_batches_are_enough(monkeypatch):
    model = trained({"decay": 0.9})
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield batches(1)[0]

    with Averages(model, endless)():
        pass
    assert len(taken) == BATCHES


def test_norms_that_are_not_trained_keep_their_statistics():
    model = trained({"decay": 0.9})
    norm = model.get_layer("stem_norm")
    norm.trainable = False
    kept = np.array(norm.moving_mean)
    assert norm not in averaging._norms(model)
    with Averages(model, batches)():
        assert np.array_equal(norm.moving_mean, kept)


def test_a_short_training_is_measured_by_fitting_statistics(tmp_path):
    """By the plain weights' statistics it has less than 0.5 here, seed 0."""
    registry = load_registry(str(_file(tmp_path)))
    run = kerasnet.fit(
        "resnet8", recipe="slow", dataset="digits", precision="float32", registry=registry,
        out=tmp_path / "run", console=Console(quiet=True),
    )  # fmt: skip
    rows = run.metrics()
    assert rows[-1]["val_accuracy"] > 0.6
    assert kerasnet.evaluate(run)["test_accuracy"] == run.summary()["test_accuracy"]


def _file(folder):
    file = folder / "mine.yaml"
    file.write_text("recipes: {slow: {extends: digits, epochs: 3, ema: {decay: 0.99}}}\n")
    return file
