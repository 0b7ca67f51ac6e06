"""The range test: what it suggests and refuses, what it reads, and runs that begin with one."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from commands import assert_refused_lightly, run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from synthetic import paint_classes

import kerasnet
from kerasnet import config as configs
from kerasnet import data, range_test, schema
from kerasnet.errors import BadInputError, DivergedError
from kerasnet.progress import RateReporter
from kerasnet.range_test import Curve, Follower, smooth, suggest
from kerasnet.registry import load_registry
from kerasnet.runs import load_run

SPEC = schema.RangeTest()
SMALL = ["resnet8", "--dataset", "digits", "--limit-train", "200", "--precision", "float32"]
TEST = ["lr-find", *SMALL, "--steps", "40"]
TINY = "models: {tiny: {extends: resnet8, stages: [{block: basic, width: 32, stride: 2}]}}\n"
FINITE = st.floats(-1e3, 1e3)


def rates(steps: int = 150, low: float = 1e-7, high: float = 10.0) -> np.ndarray:
    return np.geomspace(low, high, steps)


def curve(losses, low: float = 1e-7, high: float = 10.0, steps: int | None = None) -> Curve:
    """Return what a test of `steps` steps would have kept of losses."""
    steps = steps or len(losses)
    console = Console(quiet=True)
    spec = schema.RangeTest(min=low, max=high, steps=steps)
    follower = Follower(spec, RateReporter(console, steps))
    model = SimpleNamespace(optimizer=SimpleNamespace(iterations=0), stop_training=False)
    follower.set_model(model)
    for step, loss in enumerate(losses):
        model.optimizer.iterations += 1
        follower.on_train_batch_end(step, {"batch_loss": loss})
        if model.stop_training:
            break
    return follower.curve()


def valley(falls: float, rises: float, low=1e-7, high=10.0, steps=150) -> np.ndarray:
    """Losses that fall by 2 about one rate and rise without bound about another."""
    x = np.log10(rates(steps, low, high))
    fall = 2 / (1 + np.exp(-3 * (x - math.log10(falls))))
    return 3 - fall + 0.3 * np.exp(2 * (x - math.log10(rises)))


# ---------------------------------------------------------------------------- the smoothed curve


@given(st.lists(FINITE, min_size=1, max_size=60), st.integers(20, 10_000))
def test_the_average_stays_within_what_it_averages(losses, steps):
    found = smooth(losses, steps)
    assert len(found) == len(losses)
    assert found[0] == pytest.approx(losses[0])
    slack = 1e-9 * (1 + max(map(abs, losses)))
    for i, value in enumerate(found):
        assert min(losses[: i + 1]) - slack <= value <= max(losses[: i + 1]) + slack


@given(st.lists(FINITE, min_size=1, max_size=40), FINITE, st.floats(0.01, 100))
def test_the_average_moves_and_scales_with_the_losses(losses, offset, factor):
    plain = smooth(losses, 150)
    moved = smooth([offset + factor * loss for loss in losses], 150)
    np.testing.assert_allclose(moved, offset + factor * plain, rtol=1e-6, atol=1e-6)


def test_the_average_is_the_weighted_mean_of_what_was_seen():
    losses, stays = [3.0, 1.0, 2.0, 5.0], 0.9  # a fifteenth of 150 steps is ten
    weights = stays ** np.arange(4)[::-1]
    assert smooth(losses, 150)[-1] == pytest.approx(np.average(losses, weights=weights))


# ---------------------------------------------------------------------------- the suggestion


@settings(deadline=None, max_examples=40)
@given(
    falls=st.floats(-5.5, -3), width=st.floats(1.5, 3), noise=st.floats(0, 0.05),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_suggestion_lies_between_where_the_loss_falls_and_where_it_rises(
    falls, width, noise, seed
):
    losses = valley(10**falls, 10 ** (falls + width))
    losses += np.random.default_rng(seed).normal(0, noise, len(losses))
    found = suggest(curve(losses))
    assert 10**falls / 3 < found.rate < 10 ** (falls + width)
    assert 10**falls / 3 < found.steepest <= found.least
    assert found.rate <= found.least / 10 * 1.01
    assert found.reason


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 100), st.floats(-2, 2))
def test_the_suggestion_follows_the_rates_and_not_the_size_of_the_loss(factor, decades):
    scale = 10**decades
    plain = suggest(curve(valley(1e-4, 1e-2, 1e-6, 1, 120), 1e-6, 1))
    moved = valley(1e-4 * scale, 1e-2 * scale, 1e-6 * scale, scale, 120)
    found = suggest(curve(factor * moved, 1e-6 * scale, scale))
    assert found.rate == pytest.approx(plain.rate * scale, rel=0.02)


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_least():
    found = suggest(curve(valley(1e-4, 1e-2)))
    assert found.rate == pytest.approx(found.least / 10, rel=0.01)
    assert found.rate < math.sqrt(found.steepest * found.least)
    assert found.reason.startswith("a tenth of")
    # The average lags by nine steps, half a decade, behind the losses.
    assert 1e-4 < found.steepest < 5e-4


def test_on_a_long_plateau_the_suggestion_is_nearer_to_the_fall():
    found = suggest(curve(valley(1e-5, 1)))
    assert found.rate == pytest.approx(math.sqrt(found.steepest * found.least), rel=0.01)
    assert found.rate < found.least / 10
    assert found.reason.startswith("half-way")


def test_the_steepest_fall_is_not_sought_in_the_noise_of_the_first_steps():
    losses = valley(1e-4, 1e-2)
    losses[0] += 3
    assert suggest(curve(losses)).steepest > 1e-4


@pytest.mark.parametrize("noise", [0, 0.1, 0.5])
def test_noise_alone_is_hardly_ever_a_reason_for_a_rate(noise):
    suggested = 0
    for seed in range(100):
        losses = 2.3 + np.random.default_rng(seed).normal(0, noise, 150).clip(-1.5, 1.5)
        losses[100:] += np.linspace(0, 5, 50)
        try:
            suggest(curve(losses))
            suggested += 1
        except (BadInputError, DivergedError) as error:
            assert "does not fall" in str(error)  # noqa: PT017
    assert suggested <= 2


@pytest.mark.parametrize(
    ("losses", "error", "said"),
    [
        (np.full(150, 2.3), BadInputError, "does not fall between learning rates of 1e-07 and 10"),
        (np.linspace(3, 1, 150), BadInputError, "still falls at the highest learning rate, 10: "
         "try --max 1000"),
        ([2.0, 900.0], DivergedError, "try --min 1e-10"),
        ([2.0, 1.9, math.nan], DivergedError, "diverged 3 steps after"),
        ([math.nan], DivergedError, "no learning rate mends that"),
        ([math.inf], DivergedError, "no learning rate mends that"),
        ([2.0] * 60 + [1e9], DivergedError, "try --min 1e-10"),
        ([4.0, 3.0, 2.0, 1.0, 1.5, 2.0, 90.0], BadInputError, "below the lowest that was tried"),
    ],
)  # fmt: skip
def test_a_curve_without_an_answer_gives_no_rate(losses, error, said):
    with pytest.raises(error, match=said):
        suggest(curve(losses, steps=150))


def test_a_short_steep_curve_has_a_suggestion():
    losses = [3.0, 2.6, 2.2, 1.8, 1.5, 1.4, 1.5, 2.0, 3.0, 90.0]
    found = suggest(curve(losses, 1e-4, 1, steps=20))
    assert 1e-4 < found.rate < rates(20, 1e-4, 1)[9]


def test_the_test_ends_where_the_smoothed_loss_is_four_times_its_least():
    losses = np.concatenate([np.full(80, 2.0), 2.0 * 1.5 ** np.arange(1, 71)])
    found = curve(losses)
    assert found.smoothed[-1] > 4 * found.smoothed.min() >= found.smoothed[-2]
    assert found.diverged == found.rates[-1]
    assert len(found.rates) < 150


def test_a_step_that_loss_scaling_leaves_out_is_no_point_of_the_curve():
    follower = Follower(SPEC, RateReporter(Console(quiet=True), 150))
    model = SimpleNamespace(optimizer=SimpleNamespace(iterations=0), stop_training=False)
    follower.set_model(model)
    for step, updates in enumerate([0, 0, 1, 2]):
        model.optimizer.iterations = updates
        follower.on_train_batch_end(step, {"batch_loss": 2.0 + step})
    assert follower.losses == [4.0, 5.0]
    np.testing.assert_allclose(follower.rates, rates()[:2])


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def tiny(tmp_path_factory) -> list[str]:
    """Words that train a network which takes a second to build."""
    file = tmp_path_factory.mktemp("registry") / "mine.yaml"
    file.write_text(TINY)
    return ["tiny", "--registry", str(file), *SMALL[1:]]


def table(folder) -> list[dict[str, float]]:
    with (folder / "lr-find.csv").open(newline="") as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def reads():
    """What was asked of data sets, and the images that were trained on."""
    return {"splits": [], "trained": []}


@pytest.fixture
def spied(monkeypatch, reads):
    load, pipeline = data.ImageData.load, data.training_pipeline

    def loaded(self, split):
        reads["splits"].append(split)
        return load(self, split)

    def trained(split, **options):
        reads["trained"].append(split.images.copy())
        return pipeline(split, **options)

    reads["splits"].clear()
    reads["trained"].clear()
    monkeypatch.setattr(data.ImageData, "load", loaded)
    monkeypatch.setattr(data, "training_pipeline", trained)
    return reads


def test_the_command_writes_the_curve_and_reads_training_images_only(tmp_path, capfd, spied):
    out = tmp_path / "found"
    code, printed, progress = run_cli(capfd, *TEST, "--out", str(out), "--json")
    assert code == 0
    found = json.loads(printed)
    assert json.loads((out / "lr-find.json").read_text()) == found
    assert (out / "lr-find.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in out.iterdir()) == ["lr-find.csv", "lr-find.json", "lr-find.png"]
    # Forty steps of 32 images are seven passes over 180.
    assert "range test  step 40/40  learning rate" in progress
    rows = table(out)
    assert [row["step"] for row in rows] == list(range(1, found["steps_done"] + 1))
    np.testing.assert_allclose([r["learning_rate"] for r in rows], rates(40)[: len(rows)], 1e-6)
    np.testing.assert_allclose(
        [r["smoothed_loss"] for r in rows], smooth([r["loss"] for r in rows], 40), rtol=1e-6
    )
    assert 1e-7 < found["suggestion"] < found["candidates"]["least"] * 1.01
    assert found["reason"]

    assert set(spied["splits"]) == {"train"}
    config = configs.resolve("resnet8", dataset="digits", limit_train=200)
    train = data.load_dataset("digits").load("train")
    _, held_back = data.split_validation(train, config.recipe.validation_split, config.seed)
    (images,) = spied["trained"]
    assert len(images) == 200
    assert not {i.tobytes() for i in images} & {i.tobytes() for i in held_back.images}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_curve(tmp_path, tiny):
    options = {
        "dataset": "digits", "registry": load_registry(tiny[2]), "limit_train": 100,
        "precision": "float32", "steps": 40, "console": Console(quiet=True),
    }  # fmt: skip

    def losses(name: str, seed: int) -> list[float]:
        # So short a curve may hold no answer; it is written all the same.
        with contextlib.suppress(BadInputError):
            kerasnet.lr_find("tiny", out=tmp_path / name, seed=seed, **options)
        return [row["loss"] for row in table(tmp_path / name)][:30]

    a, b, other = losses("a", 3), losses("b", 3), losses("c", 4)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    assert not np.allclose(a, other, rtol=1e-2)


def test_a_program_gets_the_rate_and_the_curve(tmp_path, tiny):
    found = kerasnet.lr_find(
        "tiny", out=tmp_path / "out", dataset="digits", registry=load_registry(tiny[2]),
        limit_train=200, precision="float32", steps=100, console=Console(quiet=True),
    )  # fmt: skip
    assert found.config.recipe.optimizer.learning_rate == found.suggestion.rate
    assert found.config.lr_find.suggestion == found.suggestion.rate
    assert len(found.curve.rates) == len(found.curve.losses) == len(found.curve.smoothed)
    assert found.to_json() == json.loads((tmp_path / "out" / "lr-find.json").read_text())


def test_a_rate_for_fine_tuning_is_found_from_the_file_s_weights(tmp_path, capfd):
    pets = paint_classes(tmp_path / "pets", "cat", "dog")
    start = ["--weights", "pretrained", "--reset-head", "--freeze", "stem,stage1"]
    words = ["lr-find", "resnet8", "--dataset", pets, "--input-size", "24",
             "--batch-size", "8", "--steps", "40", "--min", "1e-4"]  # fmt: skip
    code, printed, _ = run_cli(capfd, *words, *start, "--out", str(tmp_path / "tuned"))
    assert code == 0
    assert "--input-size 24x24 --weights pretrained --reset-head --freeze stem,stage1" in printed
    code, printed, _ = run_cli(capfd, *words, "--out", str(tmp_path / "scratch"))
    tuned, scratch = (table(tmp_path / name)[0]["loss"] for name in ("tuned", "scratch"))
    assert tuned != pytest.approx(scratch, abs=1e-3)
    code, _, said = run_cli(capfd, *words, *start[2:], "--out", str(tmp_path / "none"))
    assert code == 2
    assert "--weights FILE" in said


def test_rates_that_are_all_too_high_are_said_to_be(tmp_path, capfd, tiny):
    out = tmp_path / "high"
    code, printed, err = run_cli(
        capfd, "lr-find", *tiny, "--min", "1e4", "--max", "1e6", "--out", str(out)
    )  # fmt: skip
    assert code == 3
    assert "suggested" not in printed
    assert "try --min 10" in err
    assert json.loads((out / "lr-find.json").read_text())["suggestion"] is None
    assert table(out)


def test_rates_that_are_all_too_low_are_said_to_be(tmp_path, capfd, tiny):
    low = ["--min", "1e-12", "--max", "1e-10", "--steps", "20"]
    code, _, err = run_cli(capfd, "lr-find", *tiny, *low, "--out", str(tmp_path / "low"))
    assert code == 2
    assert "does not fall" in err or "still falls" in err
    assert "--max 1e-08" in err


BAD = [
    (["lr-find", "resnet500"], "Did you mean 'resnet50'?"),
    ([*TEST, "--min", "1", "--max", "0.1"], "`max` 0.1 must be at least ten times `min`"),
    ([*TEST, "--min", "0.1", "--max", "0.1"], "`max` 0.1 must be at least ten times `min`"),
    ([*TEST, "--min", "0"], "lr_find.min"),
    ([*TEST, "--min", "-1"], "lr_find.min"),
    ([*TEST, "--max", "nan"], "lr_find.max"),
    ([*TEST, "--max", "1e300"], "lr_find.max"),
    ([*TEST, "--steps", "5"], "lr_find.steps"),
    ([*TEST, "--steps", "1000000"], "lr_find.steps"),
    ([*TEST, "--out", __file__], "is a file"),
    ([*TEST, "--batch-size", "100000"], "recipe.batch_size"),
    (["fit", *SMALL, "--learning-rate", "finde"], "Did you mean 'find'?"),
    (["fit", *SMALL, "--learning-rate", ""], "--learning-rate takes a number or `find`"),
]


def test_bad_input_is_refused_before_tensorflow_loads():
    assert_refused_lightly(BAD)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path, tiny):
    words = [*tiny, "--steps", "500", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "kerasnet.cli", "lr-find", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert "step 50/500" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted before a learning rate was found" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- runs


@pytest.fixture
def counted(monkeypatch):
    """How often a range test was run, each of 100 steps."""
    calls = []
    find = range_test.find

    def once(model, config, *more):
        calls.append(config)
        return find(model, configs.with_values(config, {"lr_find.steps": 100}), *more)

    monkeypatch.setattr(range_test, "find", once)
    return calls


def test_a_run_begins_with_the_rate_it_finds_and_never_measures_again(
    tmp_path, capfd, counted, spied, tiny
):
    out, again, other = (tmp_path / name for name in ("run", "again", "other"))
    code, said, _ = run_cli(
        capfd, "fit", *tiny, "--epochs", "1", "--learning-rate", "find", "--out", str(out)
    )
    assert code == 0
    assert "adam at a rate to be found" in said
    assert spied["splits"].index("test") == len(spied["splits"]) - 1
    found = json.loads((out / "lr-find.json").read_text())
    config = load_run(out).config
    assert config.recipe.optimizer.learning_rate == found["suggestion"]
    assert config.lr_find.suggestion == found["suggestion"]
    assert config.lr_find.reason == found["reason"]
    assert table(out)
    assert (out / "lr-find.png").is_file()
    assert len(counted) == 1

    code, _, err = run_cli(capfd, "fit", "--resume", str(out), "--learning-rate", "find")
    assert code == 2
    assert f"keeps its learning rate, {found['suggestion']:g}" in err
    assert run_cli(capfd, "fit", "--resume", str(out), "--epochs", "2")[0] == 0
    assert load_run(out).config.lr_find == config.lr_find

    repeat = ["fit", "--config", str(out / "config.yaml"), "--epochs", "1"]
    assert run_cli(capfd, *repeat, "--out", str(again))[0] == 0
    assert load_run(again).config.lr_find == config.lr_find
    assert len(counted) == 1
    # What was trained before the rate was known leaves no trace in what follows.
    first = [load_run(run).metrics()[0]["loss"] for run in (out, again)]
    assert first[0] == pytest.approx(first[1], rel=1e-3)

    dry = [*repeat, "--learning-rate", "0.01", "--out", str(other), "--dry-run", "--json"]
    code, printed, _ = run_cli(capfd, *dry)
    assert code == 0
    assert json.loads(printed)["lr_find"] is None


@pytest.mark.slow
def test_a_run_that_was_ended_while_it_measured_measures_when_it_goes_on(
    tmp_path, capfd, counted, monkeypatch, tiny
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(range_test, "find", lambda *_: signal.raise_signal(signal.SIGINT))
        code, _, err = run_cli(
            capfd, "fit", *tiny, "--epochs", "1", "--learning-rate", "find", "--out", str(out)
        )
    assert code == 130
    assert "--resume" in err
    assert load_run(out).config.lr_find == schema.RangeTest()
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert len(counted) == 1
    config = load_run(out).config
    assert config.lr_find.suggestion == config.recipe.optimizer.learning_rate


def test_a_program_may_ask_for_the_rate_too(tmp_path):
    with pytest.raises(BadInputError, match="takes a number or `find`, not 'search'"):
        kerasnet.fit("resnet8", dataset="digits", learning_rate="search", out=tmp_path / "run")
    config = configs.new_run("resnet8", {"dataset": "digits", "learning_rate": "find"})
    assert config.lr_find == schema.RangeTest()
    assert callable(kerasnet.lr_find)
