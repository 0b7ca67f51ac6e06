"""A loss that is no finite number: found on the device, named by its step, and rolled back."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from rich.console import Console

import kerasnet
from kerasnet import config as configs
from kerasnet import data
from kerasnet.checkpoint import checkpoint_files, read_checkpoint
from kerasnet.cli import main
from kerasnet.errors import DivergedError
from kerasnet.recipe import FirstNonfiniteStep, SmoothedCrossentropy, compile_model
from kerasnet.runs import Run, create_run, load_run
from kerasnet.train import make_model

OPTIONS = {
    "dataset": "digits", "limit_train": 100, "batch_size": 10, "epochs": 3,
    "checkpoint_every": {"steps": 4},
}  # fmt: skip


def fit(folder, **more) -> Run:
    return kerasnet.fit("resnet8", out=folder, console=Console(quiet=True), **OPTIONS, **more)


def poison(monkeypatch, step: int, passes: int = 1) -> None:
    """Make the loss of one step NaN in the first `passes` pipelines that reach it.

    Its labels are all 0, which is no other batch's; NaN in images would be lost in a ReLU.
    """
    import tensorflow as tf

    make, call, left = data.training_pipeline, SmoothedCrossentropy.call, [passes]

    def poisoned(*arguments, **more):
        batches, first = make(*arguments, **more), more["first_step"]
        if left[0] and first < step:
            left[0] -= 1
            batches = batches.enumerate(first + 1).map(
                lambda i, batch: (batch[0], tf.where(i == step, 0, batch[1]))
            )
        return batches

    def loss(self, y_true, y_pred):
        found = call(self, y_true, y_pred)
        return keras.ops.where(keras.ops.all(y_true == 0), math.nan, found)

    monkeypatch.setattr("kerasnet.train.datasets.training_pipeline", poisoned)
    monkeypatch.setattr(SmoothedCrossentropy, "call", loss)


# 10 steps an epoch; every hundredth step and the last of an epoch are the ones that are looked at.
@pytest.mark.parametrize("step", [1, 7, 20])
def test_the_exact_step_is_named(tmp_path, monkeypatch, step):
    poison(monkeypatch, step)
    with pytest.raises(DivergedError, match=rf"the loss of step {step} is no finite number at"):
        fit(tmp_path / "run")
    last_good = 0 if step <= 4 else max(s for s in (4, 8, 10, 12, 16, 20, 24, 28) if s < step)
    found = checkpoint_files(tmp_path / "run" / "checkpoints")
    assert [int(f.stem[5:]) for f in found[:1]] == ([last_good] if last_good else [])


def test_the_step_is_named_where_steps_diverge_by_themselves(tmp_path, capfd):
    """Against a loop that reads every loss."""
    options = {**OPTIONS, "learning_rate": 1e9}
    config = configs.new_run("resnet8", options)
    model = make_model(config)
    compile_model(model, config, 10)
    source = data.load_dataset("digits")
    train, _ = data.split_validation(source.load("train"), 0.1, 0)
    batches = data.training_pipeline(
        data.limit(train, 100, 0), inference=source.inference, augment=config.recipe.augment,
        allowed=config.data.spec.augment, batch_size=10, seed=0, epochs=3,
    )  # fmt: skip
    expected = 0
    for step, (x, y) in enumerate(batches, 1):
        model.reset_metrics()
        if not math.isfinite(model.train_on_batch(x, y)[0]):
            expected = step
            break
    assert 1 < expected < 30
    run = create_run(tmp_path / "run", config)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--resume", str(run.path)])
    said = capfd.readouterr().err
    assert ended.value.code == 3
    rate = float(model.optimizer._learning_rate(expected - 1))
    assert f"the loss of step {expected} is no finite number at learning rate {rate:.3g}" in said
    assert f"Go on with: kerasnet fit --resume {run.path} --on-nan rollback" in said
    assert "a lower --learning-rate" in said
    assert not run.finished


@pytest.mark.slow
def test_rollback_halves_the_rate_and_ends(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 17)
    run = kerasnet.fit("resnet8", out=tmp_path / "run", **OPTIONS, on_nan="rollback")
    out = capsys.readouterr().out
    assert "the loss of step 17 is no finite number" in out
    assert "back to step 16, with 0.5 times the recipe's learning rates" in out
    summary = run.summary()
    assert summary["rollbacks"] == [{"diverged_at": 17, "back_to": 16, "learning_rate_scale": 0.5}]
    monkeypatch.undo()
    plain = fit(tmp_path / "plain")
    rates = [(a["learning_rate"], b["learning_rate"])
             for a, b in zip(run.metrics(), plain.metrics(), strict=True)]  # fmt: skip
    assert rates[0][0] == rates[0][1]
    assert [a for a, _ in rates[1:]] == pytest.approx([b / 2 for _, b in rates[1:]])
    assert [row["step"] for row in run.metrics()] == [10, 20, 30]


@pytest.mark.slow
def test_rollback_before_the_first_checkpoint_goes_to_the_start(tmp_path, monkeypatch):
    poison(monkeypatch, 3)
    run = fit(tmp_path / "run", on_nan="rollback")
    assert run.summary()["rollbacks"] == [
        {"diverged_at": 3, "back_to": 0, "learning_rate_scale": 0.5}
    ]


@pytest.mark.slow
def test_a_rollback_is_kept_over_a_crash(tmp_path, monkeypatch):
    """Between the rollback and the next checkpoint."""
    poison(monkeypatch, 6)
    monkeypatch.setattr("kerasnet.train._run_epochs", once_then_crash())
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "run", on_nan="rollback")
    newest = read_checkpoint(checkpoint_files(tmp_path / "run" / "checkpoints")[0])
    assert newest.progress.step == 4
    assert newest.progress.learning_rate_scale == 0.5
    monkeypatch.undo()
    run = kerasnet.fit(resume=tmp_path / "run", console=Console(quiet=True))
    assert [r["learning_rate_scale"] for r in run.summary()["rollbacks"]] == [0.5]


def once_then_crash():
    from kerasnet import train

    run_epochs, calls = train._run_epochs, []

    def run(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise ZeroDivisionError
        run_epochs(*arguments)

    return run


@pytest.mark.slow
def test_what_no_learning_rate_mends_is_given_up(tmp_path, monkeypatch):
    poison(monkeypatch, 2, passes=100)
    monkeypatch.setattr("kerasnet.train.MAX_ROLLBACKS", 2)
    with pytest.raises(DivergedError, match="after 2 rollbacks"):
        fit(tmp_path / "run", on_nan="rollback")


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The loss comes before the update: at a checkpoint it may still be fine."""
    import kerasnet.training as training

    capture = training.capture

    def broken(variables):
        arrays = capture(variables)
        if "weights/stem_conv/kernel" in arrays and calls.append(1) is None and len(calls) == 2:
            arrays["weights/stem_conv/kernel"][0, 0, 0, 0] = math.inf
        return arrays

    calls: list[int] = []
    monkeypatch.setattr(training, "capture", broken)
    with pytest.raises(DivergedError, match="stem_conv/kernel is not finite after step 8"):
        fit(tmp_path / "run")
    assert [f.stem for f in checkpoint_files(tmp_path / "run" / "checkpoints")] == ["step-00000004"]
    assert load_run(tmp_path / "run").started


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_metric_keeps_the_first_step(bad, smoothing):
    metric = FirstNonfiniteStep(SmoothedCrossentropy(smoothing))
    labels, fine = np.array([1, 2]), np.zeros((2, 4), "float32")
    broken = fine.copy()
    broken[1, 2] = bad
    for logits in (fine, fine, broken, fine, broken):
        metric.update_state(labels, logits)
    assert float(metric.result()) == 3
    metric.reset_state()
    metric.update_state(labels, fine)
    assert float(metric.result()) == 0
    assert keras.ops.is_tensor(metric.result())
