"""Training: recipes, run folders, precision, and the numbers that come out."""

from __future__ import annotations

import csv
import json
import math
import shutil

import keras
import numpy as np
import pytest
from commands import run_cli
from rich.console import Console

import kerasnet
from kerasnet import config as configs
from kerasnet import schema
from kerasnet.build import build
from kerasnet.checkpoint import Arrays, Progress
from kerasnet.config import read_config
from kerasnet.convert import read_arrays, weight_variables
from kerasnet.data import Split
from kerasnet.errors import BadInputError
from kerasnet.plan import plan_model
from kerasnet.progress import Reporter, duration
from kerasnet.recipe import RecipeSchedule, SmoothedCrossentropy, compile_model, make_optimizer
from kerasnet.registry import load_registry
from kerasnet.runs import create_run, load_run
from kerasnet.train import fit
from kerasnet.training import Training, TrainingData

REGISTRY = load_registry()
SMALL = ["resnet8", "--dataset", "digits", "--limit-train", "300", "--batch-size", "50"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return kerasnet.fit(
        "resnet8", dataset="digits", limit_train=300, batch_size=50, epochs=2, out=folder,
        console=Console(quiet=True), seed=3, precision="float32",
    )  # fmt: skip


def small_config(**values) -> schema.RunConfig:
    return configs.resolve(
        "resnet8", dataset="digits", limit_train=100,
        overrides={"recipe.epochs": 1, "recipe.batch_size": 50, **values},
    )  # fmt: skip


# ---------------------------------------------------------------------------- schedules


def rates(spec: dict, steps: int, per_epoch: int, horizon: int) -> list[float]:
    schedule = RecipeSchedule(0.6, spec, per_epoch, horizon)
    return [float(schedule(step)) for step in range(steps)]


def test_step_schedule_divides_by_three_every_twenty_epochs():
    spec = {"type": "step", "unit": "epoch", "every": 20, "factor": 1 / 3}
    found = rates(spec, 45 * 2, 2, 45)
    assert found[0] == found[39] == pytest.approx(0.6)
    assert found[40] == pytest.approx(0.2)
    assert found[80] == pytest.approx(0.6 / 9)


def test_step_schedule_by_fraction_follows_the_horizon():
    spec = {"type": "step", "unit": "fraction", "every": 0.5, "factor": 0.1}
    assert rates(spec, 40, 10, 4)[19:21] == pytest.approx([0.6, 0.06])


def test_cosine_warms_up_and_ends_at_its_final_value():
    spec = {"type": "cosine", "unit": "epoch", "warmup": 1, "final": 0.1}
    found = rates(spec, 61, 10, 6)
    assert found[:10] == pytest.approx([0.06 * (i + 1) for i in range(10)])
    assert found[10] == pytest.approx(0.6)
    assert found[35] == pytest.approx(0.6 * (0.1 + 0.9 * 0.5))
    assert found[60] == pytest.approx(0.06)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_one_cycle_peaks_once_and_ends_at_zero():
    spec = {"type": "one_cycle", "unit": "fraction", "peak": 0.25, "initial": 0.04, "final": 0.0}
    found = rates(spec, 101, 20, 5)
    assert found[0] == pytest.approx(0.024)
    assert found[25] == pytest.approx(0.6) == max(found)
    assert found[100] == pytest.approx(0, abs=1e-9)


def test_the_rate_stays_where_it_is_after_the_horizon():
    spec = {"type": "cosine", "unit": "fraction", "warmup": 0, "final": 0.2}
    assert rates(spec, 50, 10, 2)[20:] == pytest.approx([0.12] * 30)


@pytest.mark.parametrize("name", REGISTRY.recipes)
def test_every_recipe_of_the_registry_trains_a_step(name):
    recipe = REGISTRY.recipes[name]
    model = build(plan_model(REGISTRY.architecture("resnet8")), seed=0)
    config = small_config().model_copy(update={"recipe": recipe, "horizon": recipe.epochs})
    compile_model(model, config, 10)
    before = weight_variables(model)["stem_conv/kernel"].numpy().copy()
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    loss = model.train_on_batch(x, np.arange(8))[0]
    assert math.isfinite(loss)
    assert not np.array_equal(before, weight_variables(model)["stem_conv/kernel"].numpy())


# ---------------------------------------------------------------------------- loss, optimiser


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_smoothed_loss_equals_kerass_with_one_hot_labels(smoothing):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(6, 10)).astype("float32") * 4, np.arange(6)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    expected = float(theirs(keras.ops.one_hot(labels, 10), logits))
    assert float(SmoothedCrossentropy(smoothing)(labels, logits)) == pytest.approx(expected, 1e-6)


@pytest.mark.parametrize("on", ["kernels", "all"])
def test_decay_falls_on_what_the_recipe_says(on):
    recipe = schema.Recipe.model_validate({
        "epochs": 1, "batch_size": 1, "optimizer": {"type": "sgd", "learning_rate": 0.1},
        "weight_decay": {"rate": 0.5, "on": on},
    })  # fmt: skip
    model = build(plan_model(REGISTRY.architecture("resnet8")), seed=0)
    variables = model.trainable_variables
    optimizer = make_optimizer(recipe, 1, 1, variables)
    for v in variables:
        v.assign(keras.ops.ones_like(v))
    optimizer.apply([keras.ops.zeros_like(v) for v in variables], variables)
    for v in variables:
        expected = 1 - 0.1 * 0.5 if on == "all" or v.name == "kernel" else 1.0
        np.testing.assert_allclose(keras.ops.convert_to_numpy(v), expected, rtol=1e-6)


def test_averaged_weights_are_what_is_saved_and_measured(tmp_path):
    values = {"recipe.ema": {"decay": 0.9}, "recipe.epochs": 2}
    run = create_run(tmp_path / "ema", small_config(**values))
    seen = []
    summary = fit(run, console=Console(quiet=True), on_epoch=seen.append)
    plain = create_run(tmp_path / "plain", small_config(**{"recipe.epochs": 2}))
    fit(plain, console=Console(quiet=True), test=False)
    ema, raw = (read_arrays(r.last_weights)[0] for r in (run, plain))
    key = "stem_conv/kernel"
    start = weight_variables(build(configs.plan(run.config), seed=0))[key].numpy()
    # The same steps were taken; their average lies nearer to the start than their end does.
    assert 0 < np.abs(ema[key] - start).max() < np.abs(raw[key] - start).max()
    assert kerasnet.evaluate(run)["test_accuracy"] == summary["test_accuracy"]
    assert len(seen) == 2


# ---------------------------------------------------------------------------- run folders


def test_run_folder_holds_what_is_promised(trained):
    names = {p.name for p in trained.path.iterdir()}
    assert names == {
        "config.yaml", "metrics.csv", "timing.csv", "environment.json", "checkpoints",
        "summary.json", "predictions.npz", "report.html", ".lock",
    }  # fmt: skip
    header, *rows = csv.reader((trained.path / "metrics.csv").open())
    assert header == [
        "epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate",
    ]  # fmt: skip
    assert [row[:2] for row in rows] == [["1", "6"], ["2", "12"]]
    predictions = np.load(trained.path / "predictions.npz", allow_pickle=False)
    labels, probabilities = predictions["labels"], predictions["probabilities"]
    assert (labels.dtype, probabilities.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    assert trained.summary()["test_accuracy"] == pytest.approx(accuracy)
    assert trained.finished
    environment = json.loads((trained.path / "environment.json").read_text())
    assert environment["keras"] == keras.__version__


def test_config_repeats_the_run_and_no_registry_can_change_it(trained, tmp_path, capfd):
    code, out, err = run_cli(
        capfd, "fit", "--config", str(trained.path / "config.yaml"), "--out",
        str(tmp_path / "again"), "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert {"test_accuracy", "epochs", "images_per_second", "params", "run"} <= set(result)
    assert "epoch 2/2" in err
    again = load_run(tmp_path / "again")
    assert again.config.model_copy(update={"seed": 3}) == trained.config
    first, second = trained.metrics()[0], again.metrics()[0]
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-3)


def test_a_configuration_is_also_named_by_what_holds_it(trained, capfd):
    code, out, err = run_cli(capfd, "fit", "--config", str(trained.path), "--dry-run")
    assert code == 0, err
    assert f"name: {trained.config.architecture.name}\n" in out
    assert read_config("resnet8-cifar10-small-60").architecture.name == "resnet8"
    for name, said in (("resnet8-cifar10-small-61", "61: cannot be read: No such file"),
                       (str(trained.checkpoints), "not a run folder"), ("x" * 300, "too long"),
                       ("", "cannot be read")):  # fmt: skip
        code, _, err = run_cli(capfd, "fit", "--config", name, "--dry-run")
        assert (code, said in err) == (2, True), err


def test_a_checkpoint_is_no_weights_file(trained, capfd):
    file = max(trained.checkpoints.glob("step-*.safetensors"))
    words = ["--config", str(trained.path), "--weights", str(file), "--dry-run"]
    code, _, err = run_cli(capfd, "fit", *words)
    assert code == 2
    assert f"{file}: is the whole state of a run, for kerasnet fit --resume; " in err
    assert f"last.safetensors of the same folder ({trained.last_weights})" in err


def test_evaluate_measures_what_the_run_did(trained, capfd):
    code, _, err = run_cli(capfd, "evaluate", str(trained.path), "--dataset", "digits")
    assert code == 2
    assert f"--model NAME --weights {trained.last_weights} --dataset DATASET" in err
    code, out, _ = run_cli(capfd, "evaluate", str(trained.path), "--json")
    assert code == 0
    assert json.loads(out)["test_accuracy"] == trained.summary()["test_accuracy"]
    code, out, _ = run_cli(capfd, "evaluate", str(trained.path), "--best")
    assert code == 0
    assert "test accuracy" in out


def test_weights_carry_their_inference_block(trained):
    _, metadata = read_arrays(trained.last_weights)
    assert metadata["inference"]["class_names"] == [str(i) for i in range(10)]
    model = kerasnet.create_model("resnet8", weights=trained.last_weights, preprocessing=True)
    data = kerasnet.load_dataset("digits").load("test")
    found = model.predict(data.images, verbose=0)
    expected = np.load(trained.path / "predictions.npz")["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_training_continues_from_a_weights_file(trained, tmp_path, capfd):
    code, out, _ = run_cli(
        capfd, "fit", *SMALL, "--weights", str(trained.last_weights), "--epochs", "1",
        "--learning-rate", "1e-9", "--out", str(tmp_path / "more"), "--json",
    )  # fmt: skip
    assert code == 0
    # A rate of almost nothing leaves the kernels; the moving statistics still follow the data.
    before, after = (read_arrays(r.last_weights)[0]["stem_conv/kernel"]
                     for r in (trained, load_run(tmp_path / "more")))  # fmt: skip
    np.testing.assert_allclose(before, after, atol=1e-6)
    assert json.loads(out)["epochs"] == 1


def test_a_run_outlives_the_weights_it_began_with(trained, tmp_path, capfd):
    start = tmp_path / "start.safetensors"
    shutil.copy(trained.last_weights, start)
    run = kerasnet.fit(
        "resnet8", dataset="digits", limit_train=100, batch_size=50, epochs=1, weights=start,
        out=tmp_path / "a", console=Console(quiet=True),
    )  # fmt: skip
    start.unlink()
    assert run_cli(capfd, "evaluate", str(run.path))[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\nclasses: 10", "\nclasses: 7", "10 classes, but the configuration says 7"),
        ("input: [32, 32, 3]", "input: [32, 32, 1]", "3 channels, but the configuration says 1"),
        ("block: basic_plain_projection", "block: nosuch", "`blocks` lacks nosuch"),
        ("kerasnet: 0.1.0", "kerasnet: 9.9.9\nfuture: 1", "written by kerasnet 9.9.9"),
    ],
)
def test_a_configuration_that_does_not_hold_together(trained, tmp_path, capfd, old, new, said):
    text = (trained.path / "config.yaml").read_text()
    assert old in text
    (tmp_path / "c.yaml").write_text(text.replace(old, new))
    code, _, err = run_cli(capfd, "fit", "--config", str(tmp_path / "c.yaml"), "--dry-run")
    assert code == 2
    assert said in err


def test_weights_of_another_model_are_refused_before_training(trained, tmp_path, capfd):
    code, _, err = run_cli(
        capfd, "fit", "resnet20", "--dataset", "digits", "--weights", str(trained.last_weights),
        "--out", str(tmp_path / "x"),
    )  # fmt: skip
    assert code == 2
    assert "does not fit resnet20" in err
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capfd):
    (tmp_path / "mine.txt").write_text("precious")
    code, _, err = run_cli(capfd, "fit", *SMALL, "--out", str(tmp_path))
    assert code == 2
    assert "not empty" in err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_dry_run_prints_a_configuration_and_leaves_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_cli(capfd, "fit", *SMALL, "--epochs", "5", "--dry-run")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.yaml").write_text(out)
    config = configs.read_config(tmp_path / "c.yaml")
    assert (config.recipe.epochs, config.horizon, config.recipe.batch_size) == (5, 5, 50)
    code, out, _ = run_cli(
        capfd, "fit", "--config", "c.yaml", "--epochs", "7", "--dry-run", "--json"
    )
    assert (json.loads(out)["recipe"]["epochs"], json.loads(out)["horizon"]) == (7, 7)
    code, out, _ = run_cli(capfd, "validate", "c.yaml")
    assert code == 0


def test_files_named_beside_a_configuration_are_kept_absolute(trained, capfd, monkeypatch):
    monkeypatch.chdir(trained.path)
    code, out, _ = run_cli(
        capfd, "fit", "--config", "config.yaml", "--weights", "checkpoints/last.safetensors",
        "--data-dir", ".", "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["weights"] == str(trained.last_weights)
    assert json.loads(out)["data"]["data_dir"] == str(trained.path)


def test_a_configuration_and_what_contradicts_it(trained, capfd):
    file = str(trained.path / "config.yaml")
    code, _, err = run_cli(capfd, "fit", "resnet20", "--config", file)
    assert (code, "is a run of resnet8, not of resnet20" in err) == (2, True)
    code, _, err = run_cli(capfd, "fit", "--config", file, "--dataset", "cifar10")
    assert (code, "--config fixes what --dataset would choose" in err) == (2, True)


@pytest.mark.slow
def test_plain_lines_where_standard_output_is_no_terminal(tmp_path, capfd):
    code, out, _ = run_cli(
        capfd, "fit", *SMALL, "--epochs", "1", "--out", str(tmp_path / "a"), "--batch-size", "2"
    )
    assert code == 0
    steps = [line for line in out.splitlines() if " step " in line]
    assert [line.split("  ")[1] for line in steps] == ["step 100/150"]
    assert sum("images/s" in line and "ETA" in line for line in out.splitlines()) == 2
    assert "\x1b" not in out
    assert "test accuracy" in out
    assert str(tmp_path / "a") in out


def test_the_loss_shown_is_the_mean_of_the_last_hundred_steps(capsys):
    clock = iter(range(1000))
    reporter = Reporter(Console(), 1, 200, 10, clock=lambda: next(clock))
    reporter.epoch_begins(1)
    losses = np.linspace(3, 1, 200)
    for step in range(1, 201):
        if reporter.wants(step):
            reporter.step_ended(step, losses[:step].mean(), 0.5)
    first, second = capsys.readouterr().out.splitlines()
    assert f"loss {losses[:100].mean():.4f}" in first
    assert f"loss {losses[100:].mean():.4f}" in second


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (750, "12:30"), (7500, "2:05:00"), (math.inf, "?")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_wrong_class_count_is_refused(tmp_path):
    config = small_config().model_copy(update={"classes": 7})
    run = create_run(tmp_path / "a", config)
    with pytest.raises(BadInputError, match="10 classes; this run's model has 7"):
        fit(run, console=Console(quiet=True))


# ---------------------------------------------------------------------------- execution


@pytest.mark.parametrize("asked", [pytest.param(4, marks=pytest.mark.slow), 1000])
def test_several_steps_per_execution_train_as_single_ones(asked, trained, tmp_path):
    run = kerasnet.fit(
        "resnet8", dataset="digits", limit_train=300, batch_size=50, epochs=2, out=tmp_path / "a",
        console=Console(quiet=True), seed=3, precision="float32", steps_per_execution=asked,
    )  # fmt: skip
    assert run.config.execution.steps_per_execution == asked
    for row, one in zip(run.metrics(), trained.metrics(), strict=True):
        assert row == pytest.approx(one, rel=1e-4)
    assert run.metrics()[-1]["step"] == 12
    assert run.summary()["test_accuracy"] == trained.summary()["test_accuracy"]


@pytest.mark.parametrize(
    ("step", "asked", "used"), [(0, 4, 3), (0, 6, 6), (0, 7, 6), (3, 6, 3), (8, 6, 2), (7, 6, 1)]
)
def test_executions_come_out_even(step, asked, used, trained):
    config = configs.with_values(trained.config, {"execution.steps_per_execution": asked})
    split = kerasnet.load_dataset("digits").load("train")
    limited = Split(split.images[:300], split.labels[:300])
    training = Training(
        trained, config, TrainingData(None, limited, None), Console(quiet=True), None, None,
        Progress(step=step), Arrays(),
    )  # fmt: skip
    assert training.steps == 6
    assert training.steps_per_execution == used


# ---------------------------------------------------------------------------- precision


def test_mixed_float16_skips_an_overflow_and_lowers_the_scale():
    config = small_config()
    config = config.model_copy(
        update={"precision": schema.Precision(requested="mixed_float16", resolved="mixed_float16")}
    )
    model = build(configs.plan(config), layers="fast", policy="mixed_float16", seed=0)
    compile_model(model, config, 10)
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32"), np.arange(8)
    model.train_on_batch(x, y)
    optimizer.dynamic_scale.assign(1e30)
    before = {k: v.numpy().copy() for k, v in weight_variables(model).items() if "moving" not in k}
    steps = int(optimizer.inner_optimizer.iterations)
    model.train_on_batch(x, y)
    assert float(optimizer.dynamic_scale) == pytest.approx(5e29)
    assert int(optimizer.inner_optimizer.iterations) == steps
    for key, value in before.items():
        np.testing.assert_array_equal(weight_variables(model)[key].numpy(), value)


@pytest.mark.parametrize(
    "precision",
    ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)],
)
def test_low_precision_trains(precision, tmp_path):
    run = kerasnet.fit(
        "resnet8", dataset="digits", precision=precision, out=tmp_path / "a", epochs=3,
        limit_train=200, batch_size=25, console=Console(quiet=True),
    )  # fmt: skip
    losses = [row["loss"] for row in run.metrics()]
    assert run.config.precision.resolved == precision
    assert losses[2] < losses[0]
    assert all(map(math.isfinite, losses))


# ---------------------------------------------------------------------------- full size


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["auto", "mixed_bfloat16"])
def test_resnet50_learns_digits(precision, tmp_path):
    run = kerasnet.fit(
        "resnet50", dataset="digits", precision=precision, out=tmp_path / "a",
        console=Console(quiet=True),
    )  # fmt: skip
    assert run.summary()["test_accuracy"] >= 0.95
