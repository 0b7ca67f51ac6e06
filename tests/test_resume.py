"""A run can be ended at any moment and goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run_cli
from processes import BUSY, Training, die_at_write, fill, newest_step, start
from rich.console import Console

import kerasnet
from kerasnet.checkpoint import checkpoint_files, read_checkpoint, write_checkpoint
from kerasnet.convert import read_arrays
from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.runs import load_run

EXACT = ("metrics.csv", "predictions.npz")
STAGES = ("begun", "half", "written", "synced", "renamed")


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("registry") / "busy.yaml"
    file.write_text(BUSY)
    return str(file)


def new(registry: str, out: Path, *more: str) -> list[str]:
    return [
        "fit", "busy", "--registry", registry, "--dataset", "digits", "--limit-train", "200",
        "--deterministic", "--checkpoint-every", "3", "steps", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(registry, tmp_path_factory):
    """A run that nothing interrupted, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    # The first start waits for TensorFlow's import, which is no part of the run.
    assert start("list", log=folder / "first.log").wait() == 0
    training = start(*new(registry, folder / "run"), log=folder / "log")
    assert training.wait() == 0, training.said
    return folder / "run", time.monotonic() - training.began


def same(one: Path, other: Path) -> None:
    """Assert that two runs ended bit by bit alike, whatever happened to them on the way."""
    for name in EXACT:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert newest_step(one) == newest_step(other)
    ends = [read_checkpoint(checkpoint_files(r / "checkpoints")[0]).arrays for r in (one, other)]
    assert ends[0].keys() == ends[1].keys()
    assert any(key.startswith("generators/") for key in ends[0])
    assert any(key.endswith("average") for key in ends[0])
    for key, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][key], key)
    for name in ("last", "best"):
        weights = [read_arrays(r / "checkpoints" / f"{name}.safetensors") for r in (one, other)]
        assert weights[0][1] == weights[1][1]
        for key, array in weights[0][0].items():
            np.testing.assert_array_equal(array, weights[1][0][key], f"{name} {key}")
    assert not list(other.rglob("*.temporary"))
    results = [load_run(r).summary() for r in (one, other)]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


def contents(run: Path) -> dict[Path, bytes]:
    """Return what is in a run folder, but for its lock, which names its latest process."""
    return {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.name != ".lock"}


def go_on(registry: str, run: Path) -> Training:
    """Do what a person does after a crash: resume, or begin again where nothing had begun."""
    begun = (run / "config.yaml").exists()
    arguments = ["fit", "--resume", str(run)] if begun else new(registry, run)
    return start(*arguments, log=run.with_suffix(".log"))


# ---------------------------------------------------------------------------- killed


def killed_at_write(registry: str, run: Path, number: int, stage: str) -> int:
    """Kill a training in its `number`-th write of a file; return the newest checkpoint's step."""
    training = start(
        *new(registry, run), log=run.with_suffix(".log"), before=die_at_write, with_=(number, stage)
    )
    assert training.wait() == -signal.SIGKILL, training.said
    return newest_step(run)


def killed_at_time(registry: str, run: Path, seconds: float) -> int:
    """Kill a training after some seconds; return the newest checkpoint's step."""
    training = start(*new(registry, run), log=run.with_suffix(".log"))
    time.sleep(seconds)
    training.process.kill()
    assert training.wait() in (-signal.SIGKILL, 0)
    return newest_step(run)


@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (2, "half"),
        pytest.param(17, "written", marks=pytest.mark.slow),
        pytest.param(34, "renamed", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(registry, whole, tmp_path, number, stage):
    killed_at_write(registry, tmp_path / "run", number, stage)
    resumed = go_on(registry, tmp_path / "run")
    assert resumed.wait() == 0, resumed.said
    same(whole[0], tmp_path / "run")


@pytest.mark.slow
def test_twenty_kills_over_the_whole_run(registry, whole, tmp_path):
    draw = random.Random(20)
    steps = []
    for i in range(20):
        run = tmp_path / f"{i}"
        if i % 2:
            # Ten parts of the run's time, a random instant in each.
            step = killed_at_time(registry, run, whole[1] * (i // 2 + draw.random()) / 10)
        else:
            step = killed_at_write(registry, run, draw.randint(1, 40), draw.choice(STAGES))
        again = go_on(registry, run)
        if i % 5 == 0:
            again.until(lambda run=run, step=step: newest_step(run) > step)
            again.process.kill()
            again.wait()
            again = go_on(registry, run)
        assert again.wait() == 0, again.said
        same(whole[0], run)
        steps.append(step)
    print(f"newest checkpoint at each kill: {steps}")
    last = newest_step(whole[0])
    assert min(steps) == -1
    assert any(0 < step < last for step in steps)
    assert len(set(steps)) > 6


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_killed_run_in_mixed_precision(registry, tmp_path, precision):
    """The loss scale grows and shrinks with the steps, and skips some."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = ("--precision", precision)
    assert start(*new(registry, whole, *options), log=tmp_path / "log").wait() == 0
    training = start(*new(registry, run, *options), log=tmp_path / "log")
    training.until(lambda: newest_step(run) >= 15)
    training.process.kill()
    training.wait()
    again = go_on(registry, run)
    assert again.wait() == 0, again.said
    same(whole, run)
    arrays = read_checkpoint(checkpoint_files(run / "checkpoints")[0]).arrays
    scaled = any(key.endswith("dynamic_scale") for key in arrays)
    assert scaled == (precision == "mixed_float16")


@pytest.mark.slow
def test_a_kill_while_tensorflow_loads(registry, whole, tmp_path):
    command = [sys.executable, "-m", "kerasnet.cli", *new(registry, tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (tmp_path / "run" / "config.yaml").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = go_on(registry, tmp_path / "run")
    assert again.wait() == 0, again.said
    same(whole[0], tmp_path / "run")


# ---------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="SIGINT", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    ],
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    registry, whole, tmp_path, signum, code
):
    run = tmp_path / "run"
    # Without checkpoints of its own, so that the one found later is the signal's.
    training = start(
        *new(registry, run, "--checkpoint-every", "60", "minutes"), log=tmp_path / "log"
    )
    training.until(lambda: newest_step(run) >= 18)
    training.signal(signum)
    assert training.wait() == code, training.said
    assert "finishing this step, then saving" in training.said
    assert f"Go on with: kerasnet fit --resume {run}" in training.said
    assert "Traceback" not in training.said
    again = start("fit", "--resume", str(run), log=tmp_path / "log")
    assert again.wait() == 0, again.said
    same(whole[0], run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["on_test_begin", pytest.param("on_test_end", marks=pytest.mark.slow)]
)
def test_a_signal_during_validation(registry, whole, tmp_path, moment):
    run = tmp_path / "run"
    training = start(
        *new(registry, run), log=tmp_path / "log", before=signal_at, with_=(moment, 20)
    )
    assert training.wait() == 143, training.said
    # The last step of the second epoch is done; its row is written if its validation was.
    assert newest_step(run) == (20 if moment == "on_test_begin" else 21)
    rows = load_run(run).metrics()
    assert len(rows) == (1 if moment == "on_test_begin" else 2)
    again = start("fit", "--resume", str(run), log=tmp_path / "log")
    assert again.wait() == 0, again.said
    same(whole[0], run)


def signal_at(moment: str, step: int) -> None:
    """Make this process end itself at a moment of the validation after a step."""
    from kerasnet.training import Recorder

    do = getattr(Recorder, moment)

    def and_signal(self: Recorder, logs: object = None) -> None:
        do(self, logs)
        if self.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(Recorder, moment, and_signal)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_without_damage(registry, whole, tmp_path):
    run = tmp_path / "run"
    training = start(*new(registry, run), log=tmp_path / "log", before=slow_steps, with_=(run,))
    training.until(lambda: newest_step(run) >= 9)
    training.signal(signal.SIGINT)
    training.until(lambda: "finishing this step" in training.said)
    training.signal(signal.SIGINT)
    before = time.monotonic()
    assert training.wait() == 130
    assert time.monotonic() - before < 2  # the step takes five
    again = start("fit", "--resume", str(run), log=tmp_path / "log")
    assert again.wait() == 0, again.said
    same(whole[0], run)


def slow_steps(run: Path) -> None:
    """Make the steps of this process take five seconds once there is a checkpoint at step 9."""
    from kerasnet.progress import Reporter

    wants = Reporter.wants

    def slow(self: Reporter, step: int) -> bool:
        if newest_step(run) >= 9:
            time.sleep(5)
        return wants(self, step)

    Reporter.wants = slow  # type: ignore[method-assign]


def test_a_signal_before_the_first_step(registry, tmp_path):
    run = tmp_path / "run"
    training = start(*new(registry, run), log=tmp_path / "log")
    training.until((run / "environment.json").exists)
    training.signal(signal.SIGTERM)
    assert training.wait() == 143, training.said
    assert "there is no checkpoint yet. Go on with:" in training.said


# ---------------------------------------------------------------------------- the run's lock


HOLDER = """
import sys, time
from kerasnet.runs import Run
from pathlib import Path
with Run(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_in_use_is_refused_and_after_a_kill_it_is_not(whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    before = contents(run)
    code, _, err = run_cli(capfd, "fit", "--resume", str(run), "--epochs", "5")
    assert code == 2
    assert f"is being trained by another process (process {holder.pid} on" in err
    assert contents(run) == before
    with pytest.raises(BadInputError, match="another process"):
        kerasnet.fit(resume=run, epochs=5, console=Console(quiet=True))
    holder.kill()
    holder.wait()
    code, out, _ = run_cli(capfd, "fit", "--resume", str(run), "--epochs", "5", "--dry-run")
    assert code == 0
    assert "epochs: 5" in out


# ---------------------------------------------------------------------------- options


def test_a_finished_run_says_so(whole, capfd):
    before = contents(whole[0])
    code, out, _ = run_cli(capfd, "fit", "--resume", str(whole[0]))
    assert code == 0
    assert "has finished its 4 epochs" in out
    code, out, err = run_cli(capfd, "fit", "--resume", str(whole[0]), "--json")
    assert json.loads(out)["test_accuracy"] == load_run(whole[0]).summary()["test_accuracy"]
    assert "has finished" in err
    assert kerasnet.fit(resume=whole[0]).finished
    assert contents(whole[0]) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["resnet20"], "the model resnet20 contradicts the run, which has busy"),
        (["--batch-size", "21"], "--batch-size 21 contradicts the run, which has 20"),
        (["--seed", "1"], "--seed 1 contradicts the run, which has 0"),
        (["--learning-rate", "0.1"], "--learning-rate 0.1 contradicts the run, which has 0.003"),
        (["--recipe", "default"], "--recipe default contradicts the run, which has busy"),
        (["--dataset", "cifar10"], "--dataset cifar10 contradicts the run, which has digits"),
        (["--limit-train", "10"], "--limit-train 10 contradicts"),
        (["--precision", "mixed_float16"], "--precision mixed_float16 contradicts"),
        (["--weights", "w.safetensors"], "--weights w.safetensors contradicts the run"),
        (["--registry", "mine.yaml"], "--registry mine.yaml: a run that goes on carries all"),
        (["--config", "c.yaml"], "--config c.yaml: a run that goes on carries all"),
        (["--out", "elsewhere"], "--out elsewhere: a run that goes on carries all"),
        (["--epochs", "3"], "--epochs 3 would shorten the run, which has 4"),
        (["--checkpoint-every", "3", "hours"], "takes `500 steps` or `5 minutes`, not '3 hours'"),
        (["--checkpoint-every", "x", "steps"], "takes `500 steps` or `5 minutes`, not 'x steps'"),
        (["--on-nan", "ignore"], "on_nan"),
    ],
)
def test_what_contradicts_a_run_is_named(whole, capfd, options, said):
    code, _, err = run_cli(capfd, "fit", "--resume", str(whole[0]), *options)
    assert code == 2
    assert said in err


def test_what_agrees_with_a_run_is_accepted(whole, capfd):
    code, out, _ = run_cli(
        capfd, "fit", "busy", "--resume", str(whole[0]), "--batch-size", "20", "--precision",
        "float32", "--deterministic", "--out", str(whole[0]), "--checkpoint-every", "9", "minutes",
        "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["execution"]["checkpoint_every"] == {"minutes": 9.0}


@pytest.mark.parametrize(("rescale", "horizon"), [([], 4), (["--rescale"], 9)])
def test_more_epochs_leave_the_schedule_alone_unless_asked(whole, capfd, rescale, horizon):
    code, out, _ = run_cli(
        capfd, "fit", "--resume", str(whole[0]), "--epochs", "9", *rescale, "--dry-run", "--json"
    )
    assert code == 0
    config = json.loads(out)
    assert (config["recipe"]["epochs"], config["horizon"]) == (9, horizon)
    assert load_run(whole[0]).config.recipe.epochs == 4


def test_a_finished_run_is_made_longer_by_one_process(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    again = ("fit", "--resume", str(run), "--epochs", "6", "--rescale")
    trainings = [start(*again, log=tmp_path / f"{i}.log") for i in range(2)]
    codes = [training.wait() for training in trainings]
    assert sorted(codes) == [0, 2], [t.said for t in trainings]
    rows = load_run(run).metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[:4] == load_run(whole[0]).metrics()
    assert load_run(run).summary()["epochs"] == 6


@pytest.mark.slow
def test_a_longer_run_may_be_interrupted_too(registry, tmp_path, whole):
    """Four epochs made six, with the schedule of four, are six with a horizon of four."""
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        shutil.copytree(whole[0], run)
    again = ("--epochs", "6")
    assert start("fit", "--resume", str(one), *again, log=tmp_path / "log").wait() == 0
    training = start(
        "fit", "--resume", str(two), *again, log=tmp_path / "log", before=die_at_write,
        with_=(9, "synced"),
    )  # fmt: skip
    assert training.wait() == -signal.SIGKILL, training.said
    assert start("fit", "--resume", str(two), log=tmp_path / "log").wait() == 0
    assert load_run(two).config.horizon == 4
    same(one, two)


@pytest.mark.slow
def test_a_run_outlives_the_file_it_began_with(registry, whole, tmp_path, capfd):
    first = tmp_path / "first.safetensors"
    shutil.copy(whole[0] / "checkpoints" / "last.safetensors", first)
    run = tmp_path / "run"
    training = start(*new(registry, run, "--weights", str(first)), log=tmp_path / "log")
    training.until(lambda: newest_step(run) >= 6)
    training.signal(signal.SIGTERM)
    assert training.wait() == 143
    first.unlink()
    code, _, err = run_cli(capfd, "fit", "--resume", str(run))
    assert code == 0, err


def test_a_report_that_was_not_written_any_more(whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    (run / "report.html").unlink()
    code, _, _ = run_cli(capfd, "fit", "--resume", str(run))
    assert code == 0
    assert (run / "report.html").read_bytes() == (whole[0] / "report.html").read_bytes()


@pytest.mark.slow
def test_a_report_of_fewer_epochs_does_not_stay(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    again = ("fit", "--resume", str(run), "--epochs", "5")
    training = start(*again, log=tmp_path / "log", before=die_at_write, with_=(3, "synced"))
    assert training.wait() == -signal.SIGKILL, training.said
    assert "stays at 0, at which nothing is learnt (--rescale stretches it)" in " ".join(
        training.said.replace("stretches the schedule", "stretches it").split()
    )
    assert not (run / "report.html").exists()
    assert not (run / "summary.json").exists()


def test_a_run_without_checkpoints_is_not_begun_again(whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    for file in checkpoint_files(run / "checkpoints"):
        file.unlink()
    before = contents(run)
    code, _, err = run_cli(capfd, "fit", "--resume", str(run), "--epochs", "9")
    assert code == 2
    assert "no checkpoint is left to go on from" in err
    assert contents(run) == before


def test_rescale_needs_resume(capfd):
    code, _, err = run_cli(capfd, "fit", "resnet8", "--dataset", "digits", "--rescale")
    assert (code, "--rescale goes with --resume" in err) == (2, True)


@pytest.mark.parametrize("missing", ["nowhere", "."])
def test_what_is_no_run_is_said(tmp_path, capfd, missing):
    code, _, err = run_cli(capfd, "fit", "--resume", str(tmp_path / missing))
    assert (code, "not a run folder: expected config.yaml in it" in err) == (2, True)


# ---------------------------------------------------------------------------- damage


@pytest.fixture
def unfinished(whole, tmp_path) -> Path:
    """A copy of the run that was ended before its test."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    (run / "summary.json").unlink()
    return run


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(whole, unfinished, tmp_path):
    newest, before = checkpoint_files(unfinished / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    training = start("fit", "--resume", str(unfinished), log=tmp_path / "log")
    assert training.wait() == 0, training.said
    said = " ".join(training.said.split())
    assert f"passed over: {newest}: is truncated or altered: its checksum differs" in said
    assert f"going on from {before}" in said
    same(whole[0], unfinished)


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(unfinished, capfd):
    for file in checkpoint_files(unfinished / "checkpoints"):
        file.write_bytes(b"")
    code, _, err = run_cli(capfd, "fit", "--resume", str(unfinished))
    assert code == 2
    assert "every checkpoint is damaged" in err
    assert len(checkpoint_files(unfinished / "checkpoints")) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("width: 16", "width: 17", "does not fit this run"),
        # As if the data set had been replaced: other images under the same name.
        ("limit_train: 200", "limit_train: 190", "not the training images"),
    ],
)
def test_what_does_not_belong_to_a_run_leaves_it_as_it_was(whole, tmp_path, capfd, old, new, said):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    file = run / "config.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.name != ".lock"}
    code, _, err = run_cli(capfd, "fit", "--resume", str(run), "--epochs", "5", "--rescale")
    assert code == 2
    assert said in err
    assert {
        f: f.read_bytes() for f in run.rglob("*") if f.is_file() and f.name != ".lock"
    } == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 15},
        {"step": 39},
        {"step": 41},
        {"unvalidated": {}},
        {"unvalidated": {"loss": 1.0, "accuracy": 1.0}},
        {"metrics": [{"a": 1}] * 4},
        {"metrics": []},
        {"backend": "jax"},
        {"data": "0"},
        {"learning_rate_scale": 2.0},
        {"best": -1.0},
        {"steady_seconds": -1.0},
    ],
    ids=str,
)
def test_a_strangers_progress_is_held_against_the_run(unfinished, capfd, wrong):
    found = read_checkpoint(checkpoint_files(unfinished / "checkpoints")[0])
    for file in checkpoint_files(unfinished / "checkpoints"):
        file.unlink()
    progress = found.progress.model_copy(update=wrong)
    file = write_checkpoint(unfinished / "checkpoints", progress, found.arrays, keep=1)
    code, _, err = run_cli(capfd, "fit", "--resume", str(unfinished))
    assert code == 2
    assert str(file) in err


def test_missing_running_sums_are_noticed_before_anything_is_touched(whole, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    found = read_checkpoint(checkpoint_files(run / "checkpoints")[0])
    middle = found.progress.model_copy(update={"step": 33, "metrics": found.progress.metrics[:3]})
    for file in checkpoint_files(run / "checkpoints"):
        file.unlink()
    write_checkpoint(run / "checkpoints", middle, found.arrays, keep=1)
    before = contents(run)
    code, _, err = run_cli(capfd, "fit", "--resume", str(run), "--epochs", "5")
    assert code == 2
    assert "missing: metrics/" in err
    assert contents(run) == before


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_a_checkpoint_that_is_no_file(whole, unfinished, tmp_path, kind, capfd):
    bad = unfinished / "checkpoints" / "step-00000099.safetensors"
    if kind == "pipe":
        os.mkfifo(bad)
    elif kind == "device":
        bad.symlink_to("/dev/zero")
    elif kind == "folder":
        bad.mkdir()
    else:
        with bad.open("wb") as stream:
            stream.truncate(2**42)
    code, out, _ = run_cli(capfd, "fit", "--resume", str(unfinished))
    assert code == 0
    assert f"passed over: {bad}" in out


def test_checkpoints_that_lead_out_of_the_folder_are_refused(unfinished, tmp_path, capfd):
    elsewhere = tmp_path / "elsewhere"
    (unfinished / "checkpoints").rename(elsewhere)
    (unfinished / "checkpoints").symlink_to(elsewhere)
    before = sorted(f.name for f in elsewhere.iterdir())
    code, _, err = run_cli(capfd, "fit", "--resume", str(unfinished))
    assert code == 2
    assert "is a link out of the run folder" in err
    assert sorted(f.name for f in elsewhere.iterdir()) == before


def test_a_lock_that_is_a_link_is_not_followed(unfinished, tmp_path, capfd):
    precious = tmp_path / "precious"
    precious.write_text("do not truncate")
    (unfinished / ".lock").unlink()
    (unfinished / ".lock").symlink_to(precious)
    code, _, err = run_cli(capfd, "fit", "--resume", str(unfinished))
    assert code == 4
    assert ".lock: cannot be written" in err
    assert precious.read_text() == "do not truncate"


# ---------------------------------------------------------------------------- a full disk


def limit_file_size(size: int) -> None:
    """Let this process write no file larger than this, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(registry, whole, tmp_path):
    run = tmp_path / "run"
    first = start(*new(registry, run), log=tmp_path / "log")
    first.until(lambda: newest_step(run) >= 9)
    first.signal(signal.SIGTERM)
    assert first.wait() == 143
    kept = {f: f.read_bytes() for f in checkpoint_files(run / "checkpoints")}
    full = start(
        "fit", "--resume", str(run), log=tmp_path / "log", before=limit_file_size, with_=(50_000,)
    )
    assert full.wait() == 4, full.said
    assert "cannot be written: File too large" in full.said
    assert f"Go on with: kerasnet fit --resume {run}" in full.said
    assert "Traceback" not in full.said
    assert {f: f.read_bytes() for f in checkpoint_files(run / "checkpoints")} == kept
    assert not list(run.rglob("*.temporary"))
    again = start("fit", "--resume", str(run), log=tmp_path / "log")
    assert again.wait() == 0, again.said
    same(whole[0], run)


def test_a_disk_that_fills_during_a_run(registry, whole, small_disk, tmp_path):
    run, filler = small_disk / "run", small_disk / "filler"
    training = start(*new(registry, run), log=tmp_path / "log")
    training.until(lambda: newest_step(run) >= 6)
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    assert training.wait() == 4, training.said
    assert "No space left on device" in training.said
    assert "the newest checkpoint is" in training.said
    assert "Traceback" not in training.said
    read_checkpoint(checkpoint_files(run / "checkpoints")[0])
    filler.unlink()
    again = start("fit", "--resume", str(run), log=tmp_path / "log")
    assert again.wait() == 0, again.said
    same(whole[0], run)


def test_a_disk_that_cannot_be_written(whole, small_disk, capfd):
    run = small_disk / "run"
    shutil.copytree(whole[0], run)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, _, err = run_cli(capfd, "fit", "--resume", str(run), "--epochs", "9")
    assert code == 4
    assert "Read-only file system" in err
    code, _, err = run_cli(capfd, "fit", "resnet8", "--dataset", "digits", "--out",
                           str(small_disk / "other"))  # fmt: skip
    assert code == 4
    assert "Read-only file system" in err
    # What needs no writing still works.
    assert kerasnet.evaluate(run)["test_accuracy"] == load_run(run).summary()["test_accuracy"]


def limit_memory(size: int) -> None:
    """Let this process have no more than this, as a small machine would."""
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@pytest.mark.slow
def test_memory_that_does_not_suffice(tmp_path):
    registry = tmp_path / "huge.yaml"
    registry.write_text("""
models:
  huge:
    input: [64, 64, 3]
    stem: [{conv: {filters: 16000, kernel: 1}}, act]
    stages: [{block: basic_plain_projection, width: 4}]
    head: [global_avg_pool, {dense: classes}]
    recipes: {"*": digits}
""")
    run = tmp_path / "run"
    training = start(
        "fit", "huge", "--registry", str(registry), "--dataset", "digits", "--batch-size", "1400",
        "--out", str(run), log=tmp_path / "log", before=limit_memory, with_=(20 * 2**30,),
    )  # fmt: skip
    assert training.wait(180) == 4, training.said
    assert "training at batch size 1293: memory ran out" in training.said
    assert "Try a smaller --batch-size" in training.said
    assert "Traceback" not in training.said


# ---------------------------------------------------------------------------- environment


def test_other_versions_than_before_are_mentioned(unfinished, capfd):
    file = unfinished / "environment.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"tensorflow": "1.15.0"}))
    code, out, _ = run_cli(capfd, "fit", "--resume", str(unfinished))
    assert code == 0
    assert "tensorflow was 1.15.0 and is" in out


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", '{"tensorflow": [1]}', "[" * 100_000])
def test_a_damaged_environment_is_written_anew(unfinished, capfd, content):
    (unfinished / "environment.json").write_text(content)
    assert run_cli(capfd, "fit", "--resume", str(unfinished))[0] == 0
    assert "tensorflow" in json.loads((unfinished / "environment.json").read_text())


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "[" * 100_000, "{}", '{"model": 1}'])
def test_a_damaged_summary_is_named(whole, tmp_path, capfd, content):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(content)
    code, _, err = run_cli(capfd, "fit", "--resume", str(tmp_path / "run"))
    assert code == 2
    assert "summary.json: " in err


@pytest.mark.parametrize("content", ["epoch,loss\n1,x\n", "a\n1,2\n", "\xff"])
def test_damaged_metrics_are_named(whole, tmp_path, content):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_bytes(content.encode("latin1"))
    with pytest.raises(BadInputError, match=r"metrics\.csv: not a table of numbers"):
        load_run(tmp_path / "run").metrics()


def test_an_environment_error_says_what_is_kept(unfinished, monkeypatch):
    def full(*_: object) -> None:
        raise EnvironmentFaultError("no space")

    monkeypatch.setattr("kerasnet.runs.Run.write_rows", full)
    with pytest.raises(EnvironmentFaultError, match=r"no space; the newest checkpoint is .*Go on"):
        kerasnet.fit(resume=unfinished, console=Console(quiet=True))
    assert os.listdir(unfinished / "checkpoints")
