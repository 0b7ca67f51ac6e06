"""A budget: what is measured, what is chosen, and that the run does not notice it."""

from __future__ import annotations

import json
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from commands import run_cli
from hypothesis import given
from hypothesis import strategies as st
from processes import BUSY, newest_step, start
from rich.console import Console

import kerasnet
from kerasnet import budget, schema
from kerasnet.budget import SPARE, WINDOW, Costs, Stopwatch, choose
from kerasnet.checkpoint import Arrays, Progress
from kerasnet.config import new_run, repeated
from kerasnet.errors import BadInputError
from kerasnet.progress import seconds_of
from kerasnet.runs import Run, load_run
from kerasnet.training import Training

SECONDS = st.floats(1e-4, 1e4)
COSTS = st.builds(Costs, *[SECONDS] * 6)
HOURLY = schema.EveryMinutes(minutes=60.0)
TINY = "models: {tiny: {extends: resnet8, stages: [{block: basic, width: 32, stride: 2}]}}\n"


def asked(**options) -> schema.RunConfig:
    return new_run("resnet8", {"dataset": "digits", "precision": "float32", **options})


# ---------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("0.5h", 1800), ("1m2s", 62)],
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds
    assert asked(budget=text).budget == schema.Budget(seconds=seconds)
    assert asked(budget=float(seconds)).budget == schema.Budget(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-5m", "5 m", "1d", "0s", "1e3s", "nan", "9999999h", "١m"]
)
def test_what_is_no_duration(text):
    with pytest.raises(BadInputError, match="--budget takes 90s, 30m, 2h or 1h30m"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("every", "between"),
    [
        (schema.EverySteps(steps=500), 0), (schema.EverySteps(steps=100), 1),
        (schema.EverySteps(steps=30), 3), (schema.EveryMinutes(minutes=1.0), 3), (HOURLY, 0),
    ],
)  # fmt: skip
def test_an_epoch_is_its_steps_its_validation_and_its_checkpoints(every, between):
    costs = Costs(start=1000, step=2, validation=7, state=0.5, weights=0.25, test=1000)
    assert costs.epoch(100, every) == pytest.approx(200 + 7 + (between + 1) * 0.5 + 0.25)


@given(COSTS, st.integers(1, 10_000), st.floats(1, 1e6))
def test_as_many_epochs_as_fit_and_no_more(costs, steps, seconds):
    config = asked(budget=seconds)
    epoch = costs.epoch(steps, config.execution.checkpoint_every)
    rest, usable = costs.start + costs.test, seconds * (1 - SPARE)
    try:
        found = choose(costs, config, steps, Run("runs/x"))
    except BadInputError as error:
        assert rest + epoch > usable * (1 - 1e-9)
        least = int(str(error).split("with --budget ")[1].split("s")[0])
        assert choose(costs, asked(budget=least + 0.001), steps, Run("x")).recipe.epochs >= 1
        return
    epochs = found.recipe.epochs
    assert rest + epochs * epoch <= usable * (1 + 1e-9)
    assert rest + (epochs + 1) * epoch > usable * (1 - 1e-9) or epochs == schema.MAX_EPOCHS
    assert (found.horizon, found.budget.epochs, found.budget.seconds) == (epochs, epochs, seconds)
    assert found.budget.step_seconds == costs.step
    assert not found.epochs_open


def test_a_budget_for_less_than_an_epoch_says_what_one_needs():
    costs = Costs(start=12, step=0.5, validation=3, state=1, weights=1, test=8)
    with pytest.raises(BadInputError) as error:
        choose(costs, asked(budget="1m"), 200, Run("runs/x"))
    for said in ("runs/x: --budget of 1:00 is too short", "an epoch takes 1:45",
                 "200 steps of 0.5 s", "the start and the test 20 s", "--budget 132s or more",
                 "--limit-train", "kerasnet fit --resume runs/x --epochs 1"):  # fmt: skip
        assert said in str(error.value)


def test_the_schedule_spans_the_epochs_that_were_chosen():
    costs = Costs(start=1, step=0.1, validation=0, state=0, weights=0, test=0)
    config = asked(budget="100s")
    found = choose(costs, config, 10, Run("x"))
    assert (found.recipe.epochs, found.horizon) == (94, 94)
    same = {"epochs": 94}
    assert found.recipe.model_copy(update=same) == config.recipe.model_copy(update=same)


def test_epochs_take_the_place_of_a_budget_in_what_is_repeated():
    costs = Costs(start=1, step=0.1, validation=0, state=0, weights=0, test=0)
    found = choose(costs, asked(budget="100s"), 10, Run("x"))
    assert repeated(found, {}) == found
    assert repeated(found, {"epochs": 3}).budget is None
    again = repeated(found, {"budget": "2m"})
    assert (again.budget, again.epochs_open) == (schema.Budget(seconds=120.0), True)


# ---------------------------------------------------------------------------- the stopwatch


def watched(first: float, step: float, at_once: int = 1) -> tuple[Stopwatch, int]:
    """Return a stopwatch that followed steps of so many seconds, and how many there were."""
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    watch.set_model(SimpleNamespace(stop_training=False))
    watch.on_train_begin()
    done = 0
    while not watch.model.stop_training:
        now[0] += step * at_once if done else first
        done += at_once
        watch.on_train_batch_end(done - 1, {"loss": 1.0})
    return watch, done


@given(st.floats(0.01, 100), st.floats(1e-4, 100), st.integers(1, 20))
def test_the_first_step_is_no_part_of_a_steps_time(first, step, at_once):
    watch, done = watched(first, step, at_once)
    assert watch.first == pytest.approx(first)
    assert watch.step == pytest.approx(step, rel=1e-6)
    assert done >= 4 * at_once
    latest = done / 2 * step
    assert latest >= WINDOW * (1 - 1e-9) or done == budget._MOST_EXECUTIONS * at_once


def test_only_the_steps_are_read_that_are_needed():
    read = []

    class Number(SimpleNamespace):
        def __float__(self):
            read.append(self.step)
            return 1.0

    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    watch.set_model(SimpleNamespace(stop_training=False))
    watch.on_train_begin()
    for step in range(32):
        now[0] += 0.07
        watch.on_train_batch_end(step, {"loss": Number(step=step + 1)})
    assert read == [1, 2, 4, 8, 16, 32]


# ---------------------------------------------------------------------------- runs


@pytest.fixture
def tiny(tmp_path_factory) -> list[str]:
    file = tmp_path_factory.mktemp("registry") / "mine.yaml"
    file.write_text(TINY)
    return ["tiny", "--registry", str(file), "--dataset", "digits", "--limit-train", "100",
            "--precision", "float32"]  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """How often something was measured; the costs are such that two epochs fit into ten seconds."""
    calls: list[Training] = []

    def measure(make, training, reading):
        calls.append(training)
        return Costs(start=1, step=1, validation=0.5, state=0.1, weights=0.1, test=1)

    monkeypatch.setattr(budget, "measure", measure)
    return calls


def test_what_first_weights_cost_is_measured_too(tmp_path, tiny, monkeypatch):
    from kerasnet.registry import load_registry

    mine = tmp_path / "mine.yaml"
    mine.write_text("recipes: {white: {extends: digits, initial: {stem: whitening}}}")
    kernels = []

    def measure(make, training, reading):
        kernels.append(make().get_layer("stem_conv").kernel.numpy())
        return Costs(start=1, step=1, validation=0.5, state=0.1, weights=0.1, test=1)

    monkeypatch.setattr(budget, "measure", measure)
    for recipe in ("digits", "white"):
        kerasnet.fit(
            "resnet8", recipe=recipe, registry=load_registry(str(mine)), dataset="digits",
            limit_train=64, precision="float32", budget=10.0, out=tmp_path / recipe,
            console=Console(quiet=True),
        )  # fmt: skip
    plain, white = kernels
    # The first filter and its negative follow from the images; the seed's have no such pairs.
    np.testing.assert_allclose(white[..., :8], -white[..., 8:], atol=1e-6)
    assert np.abs(plain[..., :8] + plain[..., 8:]).max() > 0.01


def test_a_run_takes_the_epochs_that_fit_and_never_measures_again(tmp_path, capfd, measured, tiny):
    out = tmp_path / "run"
    code, said, _ = run_cli(capfd, "fit", *tiny, "--budget", "10s", "--out", str(out))
    assert code == 0
    assert "recipe digits: as many epochs as fit into 0:10" in said
    assert "2 epochs within 0:10: an epoch takes 3.7 s (3 steps of 1 s" in said
    config = load_run(out).config
    assert (config.recipe.epochs, config.horizon, config.budget.epochs) == (2, 2, 2)
    assert (config.budget.seconds, config.budget.step_seconds) == (10.0, 1.0)
    assert len(load_run(out).metrics()) == 2
    # The schedule has come to its end.
    assert load_run(out).metrics()[-1]["learning_rate"] < 1e-4

    repeat = ["fit", "--config", str(out / "config.yaml")]
    code, printed, _ = run_cli(capfd, *repeat, "--dry-run", "--json")
    assert schema.RunConfig.model_validate_json(printed) == config
    code, _, err = run_cli(capfd, "fit", "--resume", str(out), "--budget", "20s")
    assert (code, "--budget 20s: a run that goes on keeps" in err) == (2, True)
    longer = ["fit", "--resume", str(out), "--epochs", "3", "--dry-run", "--json"]
    code, printed, _ = run_cli(capfd, *longer)
    found = schema.RunConfig.model_validate_json(printed)
    assert (code, found.recipe.epochs, found.horizon, found.budget) == (0, 3, 2, config.budget)
    assert len(measured) == 1


def test_a_budget_that_is_too_short_leaves_a_run_that_can_be_gone_on_with(
    tmp_path, capfd, measured, tiny
):
    out = tmp_path / "run"
    code, _, err = run_cli(capfd, "fit", *tiny, "--budget", "3s", "--out", str(out))
    assert (code, "too short for one epoch" in err, "Traceback" in err) == (2, True, False)
    command = err.split("without a budget: ")[1].split()
    assert command == ["kerasnet", "fit", "--resume", str(out), "--epochs", "1"]
    code, printed, _ = run_cli(capfd, *command[1:], "--dry-run", "--json")
    config = schema.RunConfig.model_validate_json(printed)
    assert (config.recipe.epochs, config.horizon, config.budget) == (1, 1, None)
    assert len(measured) == 1


@pytest.mark.slow
def test_an_interrupted_measurement_is_made_again(tmp_path, capfd, monkeypatch, tiny, measured):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(budget, "measure", lambda *_: signal.raise_signal(signal.SIGINT))
        code, _, err = run_cli(capfd, "fit", *tiny, "--budget", "10s", "--out", str(out))
    assert code == 130
    # Not with the recipe's own number of epochs.
    assert err.rstrip().endswith(f"Go on with: kerasnet fit --resume {out}")
    assert load_run(out).config.epochs_open
    code, printed, _ = run_cli(capfd, "fit", "--resume", str(out), "--dry-run", "--json")
    assert json.loads(printed)["budget"]["epochs"] is None
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert (load_run(out).config.recipe.epochs, len(measured)) == (2, 1)


@pytest.mark.slow
def test_a_program_may_give_seconds(tmp_path, measured):
    run = kerasnet.fit(
        "resnet8", dataset="digits", limit_train=100, precision="float32", budget=10.0,
        train_on="train+validation", out=tmp_path / "run", console=Console(quiet=True),
    )  # fmt: skip
    assert (run.config.budget.epochs, run.config.data.train_on) == (2, "train+validation")
    assert [row["val_accuracy"] for row in run.metrics()] == [None, None]


@pytest.mark.parametrize("split", [0.1, pytest.param(0.0, marks=pytest.mark.slow)])
def test_what_is_measured_leaves_nothing_behind(tmp_path, tiny, split):
    from kerasnet.registry import load_registry
    from kerasnet.train import _settled, make_model, read_data

    registry = load_registry(tiny[2])
    options = {"dataset": "digits", "limit_train": 100, "precision": "float32"}
    config = kerasnet.config.with_values(
        new_run("tiny", options, registry), {"recipe.validation_split": split}
    )
    console = Console(quiet=True)
    data = read_data(config)
    config = _settled(config, data, console)
    training = Training(Run(tmp_path), config, data, console, None, None, Progress(), Arrays())
    loads, load = [], type(data.source).load
    type(data.source).load = lambda self, name: loads.append(name) or load(self, name)
    try:
        found = budget.measure(lambda: make_model(config), training, 3.0)
    finally:
        type(data.source).load = load
    assert loads == []
    assert list(tmp_path.iterdir()) == []
    assert training.progress == Progress()
    assert found.test > 3.0
    assert (found.validation > 0) == (split > 0)
    assert all(math.isfinite(value) and value >= 0 for value in vars(found).values())
    assert min(found.start, found.step, found.state, found.weights) > 0
    assert found.start > found.step


def _two_epochs(*_) -> None:
    """Measure truly, and choose two epochs whatever comes out."""
    budget.choose = lambda costs, config, steps, run: kerasnet.config.with_values(
        config, {"recipe.epochs": 2, "budget.epochs": 2, "budget.step_seconds": costs.step}
    )


@pytest.mark.slow
def test_a_run_goes_as_if_nothing_had_been_measured(tmp_path):
    file = tmp_path / "busy.yaml"
    file.write_text(BUSY)
    words = ["fit", "busy", "--registry", str(file), "--dataset", "digits", "--limit-train", "100",
             "--deterministic", "--steps-per-execution", "2"]  # fmt: skip
    runs = [tmp_path / "measured", tmp_path / "plain"]
    for run, more, before in zip(
        runs, [["--budget", "1h"], ["--epochs", "2"]], [_two_epochs, None], strict=True
    ):
        training = start(*words, *more, "--out", str(run), log=tmp_path / "log", before=before)
        assert training.wait() == 0, training.said
    for name in ("metrics.csv", "predictions.npz"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    names = [sorted(str(f.relative_to(run)) for f in run.rglob("*")) for run in runs]
    assert names[0] == names[1]
    assert load_run(runs[0]).config.budget.step_seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--train-on", "train+validation"]])
def test_a_run_ends_within_its_budget(tmp_path, more):
    out = tmp_path / "run"
    words = ["fit", "resnet8", "--dataset", "digits", "--budget", "30s", *more]
    training = start(*words, "--out", str(out), log=tmp_path / "log")
    assert training.wait(300) == 0, training.said
    found = load_run(out).summary()
    assert found["epochs"] == load_run(out).config.budget.epochs >= 3
    # Other programs may use the machine meanwhile, or just have stopped.
    assert 30 / 3 < found["seconds"] < 30 * 3


@pytest.mark.slow
def test_several_seeds_have_the_same_epochs(tmp_path):
    out = tmp_path / "runs"
    words = ["fit", "resnet8", "--dataset", "digits", "--limit-train", "200", "--budget", "8s"]
    training = start(*words, "--seeds", "0,1", "--out", str(out), log=tmp_path / "log")
    training.until(lambda: newest_step(out / "seed-1") > 0)
    training.signal(signal.SIGINT)
    assert training.wait() == 130, training.said
    training = start("fit", "--resume", str(out), log=tmp_path / "log")
    assert training.wait() == 0, training.said
    configs = [load_run(out / f"seed-{n}").config for n in (0, 1)]
    assert configs[0].budget == configs[1].budget
    assert configs[0].model_copy(update={"seed": 1}) == configs[1]
    assert training.said.count("within 0:08:") == 1


# ---------------------------------------------------------------------------- all images


def test_a_final_run_trains_on_the_validation_images_too(tmp_path, capfd, tiny):
    out = tmp_path / "run"
    all_of_them = ["--limit-train", "9999", "--train-on", "train+validation"]
    words = ["fit", *tiny, *all_of_them, "--epochs", "1", "--out", str(out)]
    code, printed, _ = run_cli(capfd, *words, "--json")
    found = json.loads(printed)
    # Without it, a tenth of them would be held back.
    assert (code, found["train_images"], found["val_accuracy"]) == (0, 1437, None)
    assert load_run(out).config.data.train_on == "train+validation"
    (row,) = load_run(out).metrics()
    assert row["val_loss"] is row["val_accuracy"] is None
    assert not load_run(out).best_weights.exists()
    assert np.load(out / "predictions.npz")["labels"].shape == (360,)
    code, _, err = run_cli(capfd, "fit", "--resume", str(out), "--train-on", "train")
    assert (code, "--train-on train contradicts the run, which has train+vali" in err) == (2, True)
    assert run_cli(capfd, "fit", "--resume", str(out), *all_of_them)[0] == 0
    assert asked().data.train_on == "train"
