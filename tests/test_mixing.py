"""mixup and cutmix: weights as on paper, targets that agree with the pixels, and training."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console
from scipy import stats

import kerasnet
from kerasnet import config as configs
from kerasnet import data, schema
from kerasnet.data import pipeline
from kerasnet.data.mixing import draw_mixes, mix
from kerasnet.errors import BadInputError
from kerasnet.recipe import Accuracy, FirstNonfiniteStep, SmoothedCrossentropy, compile_model
from kerasnet.registry import load_registry
from kerasnet.train import make_model

tf = pytest.importorskip("tensorflow")

MIXUP = schema.Augment(mixup=schema.Mixup(alpha=0.4))
CUTMIX = schema.Augment(cutmix=schema.Cutmix(alpha=1.0))
BOTH = schema.Augment(mixup=schema.Mixup(alpha=0.4), cutmix=schema.Cutmix(alpha=1.0))
EVERYTHING = BOTH.model_copy(update={"rand_augment": schema.RandAugment(layers=1)})
PLAIN = schema.Inference(mean=[0.0], std=[1.0], resize=[8, 8], class_names=[])


def drawn(augment: schema.Augment, n: int = 4000, side: int = 32) -> tuple[Any, Any]:
    weight, box = draw_mixes((n, side, side), augment, seed=tf.constant([3, 4], tf.int64))
    return weight.numpy(), box.numpy()


def plain_pictures(n: int, side: int = 8) -> data.Split:
    """Image i has the value i everywhere, and the class i, so that a mixture can be told."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, side, side, 1))
    return data.Split(images.copy(), np.arange(n, dtype=np.int64))


def batches(augment: schema.Augment, n: int = 40, **more: Any) -> list[Any]:
    arguments = {"batch_size": 8, "seed": 5, "epochs": 2, "classes": n, **more}
    found = data.training_pipeline(
        plain_pictures(n), inference=PLAIN, augment=augment, allowed=schema.Allowed(), **arguments
    )
    return list(found.as_numpy_iterator())


# ---------------------------------------------------------------------------- weights


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.2, 1.0, 5.0, 1e3])
def test_mixup_weights_are_beta_distributed(alpha: float) -> None:
    weight, box = drawn(schema.Augment(mixup=schema.Mixup(alpha=alpha)))
    assert np.isfinite(weight).all()
    assert ((weight >= 0) & (weight <= 1)).all()
    assert not box.any()
    # A float32 is exactly 0 or 1 where the distribution is only close to it.
    cells = np.linspace(0, 1, 21)[1:-1]
    inner = np.histogram(weight, [-1, *cells, 2])[0]
    expected = np.diff(stats.beta(alpha, alpha).cdf([0, *cells, 1])) * len(weight)
    kept = expected > 5
    rest = [inner[~kept].sum()], [expected[~kept].sum()]
    if expected[~kept].sum() > 5:
        found, sizes = np.append(inner[kept], rest[0]), np.append(expected[kept], rest[1])
    else:
        found, sizes = inner[kept], expected[kept]
    assert stats.chisquare(found, sizes * found.sum() / sizes.sum()).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.4, 1.0, 5.0])
def test_mixup_weights_pass_a_kolmogorov_smirnov_test(alpha: float) -> None:
    weight, _ = drawn(schema.Augment(mixup=schema.Mixup(alpha=alpha)))
    assert stats.kstest(weight.astype(float), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_rectangles_are_those_of_the_paper() -> None:
    """Against the paper's procedure, one rectangle after the other (appendix A)."""
    side, n = 32, 6000
    weight, box = drawn(CUTMIX, n, side)
    assert (weight == 1).all()
    random = np.random.RandomState(0)
    areas = []
    for _ in range(n):
        length = int(side * math.sqrt(1 - random.beta(1, 1)))
        y, x = (random.randint(side) - length // 2 for _ in range(2))
        tall, wide = (min(k + length, side) - max(k, 0) for k in (y, x))
        areas.append(tall * wide)
    top, bottom, left, right = box.T
    assert ((top >= 0) & (top <= bottom) & (bottom <= side)).all()
    assert ((left >= 0) & (left <= right) & (right <= side)).all()
    assert stats.ks_2samp((bottom - top) * (right - left), areas).pvalue > 0.001
    # Those that no edge clips are as often here as there.
    inside = (top > 0) & (bottom < side)
    assert stats.ks_2samp(top[inside], side - bottom[inside]).pvalue > 0.001


def test_with_both_each_image_has_one_or_the_other() -> None:
    weight, box = drawn(BOTH)
    cuts = box[:, 1] > box[:, 0]
    assert (weight[cuts] == 1).all()
    # Rectangles without a pixel are rare.
    assert stats.binomtest(int((weight == 1).sum()), len(weight)).pvalue > 0.001
    mixup, _ = drawn(MIXUP)
    blended = weight[weight < 1]
    assert stats.ks_2samp(blended, mixup[mixup < 1]).pvalue > 0.001


# ---------------------------------------------------------------------------- images and targets


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 6), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 999)
)
def test_mixtures_are_what_a_loop_makes_of_them(n: int, height: int, width: int, seed: int) -> None:
    random = np.random.RandomState(seed)
    images = random.rand(n, height, width, 3).astype(np.float32)
    labels = random.randint(0, 4, n).astype(np.int32)
    weight, box = draw_mixes((n, height, width), BOTH, seed=tf.constant([seed, 1], tf.int64))
    mixed, targets = mix(tf.constant(images), tf.constant(labels), weight, box, 4)
    for i in range(n):
        own, (top, bottom, left, right) = float(weight[i]), box.numpy()[i]
        expected = own * images[i] + (1 - own) * images[i - 1]
        expected[top:bottom, left:right] = images[i - 1, top:bottom, left:right]
        share = own if own < 1 else 1 - (bottom - top) * (right - left) / (height * width)
        target = np.zeros(4)
        target[labels[i]] += share
        target[labels[i - 1]] += 1 - share
        np.testing.assert_allclose(mixed[i], expected, atol=1e-6)
        np.testing.assert_allclose(targets[i], target, atol=1e-6)


@pytest.mark.parametrize("augment", [MIXUP, CUTMIX, BOTH])
def test_targets_sum_to_one_and_agree_with_the_pixels(augment: schema.Augment) -> None:
    n = 40
    for images, targets in batches(augment, n):
        assert (targets.dtype, targets.shape) == (np.float32, (8, n))
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
        assert ((targets > 0).sum(1) <= 2).all()
        # The mean of an image is the mean of its two values, each by its share.
        np.testing.assert_allclose(
            images.mean((1, 2, 3)) * 255, (targets * np.arange(n)).sum(1), atol=1e-3
        )


def test_without_mixing_labels_stay_whole_numbers() -> None:
    for _, labels in batches(schema.Augment(flip="horizontal")):
        assert (labels.dtype, labels.shape) == (np.int32, (8,))


@pytest.fixture(scope="module")
def whole() -> list[Any]:
    """A run that was not interrupted."""
    return batches(EVERYTHING)


@pytest.mark.parametrize("first_step", [1, 5])
def test_a_resumed_run_sees_the_same_mixtures(first_step: int, whole: list[Any]) -> None:
    rest = batches(EVERYTHING, first_step=first_step)
    for found, expected in zip(rest, whole[first_step:], strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_every_step_of_every_seed_mixes_otherwise() -> None:
    shares = [y.max(1) for seed in (5, 6) for _, y in batches(MIXUP, seed=seed)]
    inner = np.concatenate(shares)
    inner = inner[inner < 0.999]
    assert len(inner) > 100
    assert len(np.unique(inner)) > len(inner) - 3


def test_the_pipeline_says_what_it_gives() -> None:
    found = data.training_pipeline(
        plain_pictures(40), inference=PLAIN, augment=BOTH, allowed=schema.Allowed(), batch_size=8,
        seed=0, epochs=1, classes=40,
    )  # fmt: skip
    images, targets = found.element_spec
    assert (images.shape.as_list(), images.dtype) == ([8, 8, 8, 1], tf.float32)
    assert (targets.shape.as_list(), targets.dtype) == ([8, 40], tf.float32)


@pytest.mark.slow
def test_without_the_compiler_the_same_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"crop": schema.Crop(padding=2), "flip": "horizontal", "cutout": schema.Cutout(size=3)}
    everything = EVERYTHING.model_copy(update=more)
    assert pipeline._compiles()
    compiled = batches(everything, epochs=1)
    monkeypatch.setattr(pipeline, "_compiles", lambda: False)
    for found, expected in zip(batches(everything, epochs=1), compiled, strict=True):
        # The place a rotation takes a pixel from may be rounded to either of two.
        assert (np.abs(found[0] - expected[0]) < 1e-5).mean() > 0.99
        np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_flags_meant_for_jax_do_not_end_the_process() -> None:
    """TensorFlow's compiler ends it at a flag that it does not know."""
    code = "import os; from kerasnet.data import pipeline as p; print(p._compiles(), os.environ)"
    flag = "--xla_flag_of_a_newer_jax=1"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flag}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.startswith("True"), found.stderr
    assert flag in found.stdout


# ---------------------------------------------------------------------------- bad values


@pytest.mark.parametrize("classes", [None, 7])
def test_mixing_needs_the_number_of_classes(classes: int | None) -> None:
    with pytest.raises(BadInputError, match=f"number of classes, more than 39; .*{classes}"):
        batches(MIXUP, classes=classes)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [0, -1.0, 1e9, math.nan])
def test_alphas_out_of_range_are_refused_by_name(kind: str, alpha: float) -> None:
    with pytest.raises(ValidationError, match=rf"{kind}\.alpha"):
        schema.Augment.model_validate({kind: {"alpha": alpha}})


@pytest.mark.parametrize("name", ["mixup", "cutmix", "rand_augment"])
def test_a_data_set_can_forbid_it(name: str) -> None:
    left = data.effective_augment(EVERYTHING, schema.Allowed(**{name: False}))
    assert left == EVERYTHING.model_copy(update={name: None})


def test_older_documents_have_it_off() -> None:
    found = schema.Augment.model_validate({"crop": {"padding": 4}, "flip": "horizontal"})
    assert (found.mixup, found.cutmix, found.rand_augment, found.mixes) == (None, None, None, False)
    assert schema.Allowed.model_validate({"flip": False}).mixup


# ---------------------------------------------------------------------------- loss and metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_of_one_class_are_its_label(smoothing: float) -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4)).astype("float32"), np.arange(6) % 4
    shares = keras.ops.one_hot(labels, 4)
    loss = SmoothedCrossentropy(smoothing)
    assert float(loss(shares, logits)) == pytest.approx(float(loss(labels, logits)), 1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_shares_is_kerass_and_linear_in_them(smoothing: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 4)).astype("float32")
    shares = random.dirichlet(np.ones(4), 6).astype("float32")
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    loss = SmoothedCrossentropy(smoothing)
    assert float(loss(shares, logits)) == pytest.approx(float(theirs(shares, logits)), 1e-5)
    by_class = [loss.call(np.full(6, k), logits) for k in range(4)]
    expected = sum(np.asarray(found) * shares[:, k] for k, found in enumerate(by_class))
    np.testing.assert_allclose(loss.call(shares, logits), expected, rtol=1e-5)


def test_accuracy_takes_both_and_counts_the_largest_share() -> None:
    logits = np.eye(4, dtype="float32")[[0, 1, 2, 3]]
    accuracy = Accuracy()
    accuracy.update_state(np.array([0, 1, 0, 0]), logits)
    assert float(accuracy.result()) == 0.5
    shares = np.array([[0.6, 0.4, 0, 0], [0.6, 0.4, 0, 0], [0, 0.3, 0.7, 0], [0, 0, 0.1, 0.9]])
    accuracy.update_state(shares.astype("float32"), logits)
    assert float(accuracy.result()) == 5 / 8


def test_steps_that_are_not_finite_are_found_with_shares_too() -> None:
    metric = FirstNonfiniteStep(SmoothedCrossentropy(0.1))
    shares = np.full((2, 4), 0.25, "float32")
    for value in (0.0, math.nan, 0.0):
        metric.update_state(shares, np.full((2, 4), value, "float32"))
    assert float(metric.result()) == 2


def test_one_compiled_model_trains_on_shares_and_validates_on_labels() -> None:
    config = configs.resolve(
        "resnet8", dataset="digits", overrides={"recipe.epochs": 1, "recipe.batch_size": 8}
    )
    model = make_model(config)
    compile_model(model, config, 2)
    random = np.random.default_rng(0)
    x = random.normal(size=(16, 32, 32, 3)).astype("float32")
    shares = random.dirichlet(np.ones(10), 16).astype("float32")
    labels = np.arange(16) % 10
    history = model.fit(x, shares, batch_size=8, validation_data=(x, labels), verbose=0).history
    assert all(math.isfinite(history[key][0]) for key in ("loss", "val_loss"))
    logits = model.predict(x, verbose=0)
    assert history["val_accuracy"][0] == pytest.approx((logits.argmax(1) == labels).mean())


REGISTRY = """
recipes:
  mixed:
    extends: digits
    augment: {mixup: {alpha: 0.2}, cutmix: {alpha: 1.0}, rand_augment: {layers: 1, magnitude: 5}}
datasets:
  all_digits: {extends: digits, augment: {cutmix: true}}
"""


def test_a_recipe_that_mixes_trains_from_a_registry_to_a_result(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(REGISTRY)
    run = kerasnet.fit(
        "resnet8", dataset="all_digits", recipe="mixed", registry=load_registry(file),
        limit_train=120, batch_size=40, epochs=1, out=tmp_path / "run",
        console=Console(quiet=True),
    )  # fmt: skip
    assert run.config.recipe.augment.mixup == schema.Mixup(alpha=0.2)
    assert run.config.data.spec.augment.cutmix
    row = run.metrics()[0]
    assert all(math.isfinite(row[k]) for k in ("loss", "accuracy", "val_loss", "val_accuracy"))
    assert 0 <= run.summary()["test_accuracy"] <= 1
