"""What becomes of trials: records, early stopping and time, with a training that costs nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import keras_tuner
import pytest
from rich.console import Console

from kerasnet.config import resolve
from kerasnet.errors import EnvironmentFaultError, InterruptedRunError, InUseError
from kerasnet.files import locked
from kerasnet.runs import METRICS, TIMING, Run
from kerasnet.tune import commands, process, search, trials
from kerasnet.tune.oracles import RunFolderTuner, make_oracle
from kerasnet.tune.records import SearchFolder, Trial
from kerasnet.tune.space import check_space, read_space

RATE = "recipe.optimizer.learning_rate"
RATES = f"{RATE}: {{type: choice, values: [0.1, 0.2, 0.3, 0.4, 0.5]}}"
LENGTHS = "recipe.epochs: {type: choice, values: [2, 4, 8]}"
SECONDS = 10.0


class Training:
    """Stands for `train.fit`: writes down given accuracies, from where the run folder is on."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}
        self.lost_in: dict[str, int] = {}

    def __call__(self, run: Run, *, config: Any, on_epoch: Any, **_: Any) -> dict[str, Any]:
        name, rows = run.path.name, run.metrics()
        for epoch in range(len(rows) + 1, config.recipe.epochs + 1):
            if self.lost_in.get(name) == epoch:
                del self.lost_in[name]
                raise InterruptedRunError("interrupted")
            row = dict.fromkeys(METRICS, 1.0)
            row |= {"epoch": epoch, "step": epoch, "val_accuracy": self.curves[name][epoch - 1]}
            rows = [*rows, row]
            run.write_rows("metrics.csv", METRICS, rows)
            timing = [{"epoch": row["epoch"], "seconds": SECONDS} for row in rows]
            run.write_rows("timing.csv", TIMING, timing)
            if on_epoch:
                on_epoch(row)
        run.write_config(config)
        found = {
            "model": "resnet8", "dataset": "digits", "recipe": "digits", "run": str(run.path),
            "epochs": config.recipe.epochs, "seconds": SECONDS * config.recipe.epochs,
            "val_accuracy": rows[-1]["val_accuracy"],
        }  # fmt: skip
        run.write_summary(found)
        return found


@pytest.fixture
def training(monkeypatch) -> Training:
    found = Training()
    monkeypatch.setattr(trials, "fit", found)
    return found


def begun(folder: Path, parameters: list[str], epochs: int, **more: Any) -> SearchFolder:
    file = folder / "space.yaml"
    file.write_text("parameters:\n" + "".join(f"  {line}\n" for line in parameters))
    space, document = read_space(str(file))
    base = resolve(
        "resnet8", dataset="digits", overrides={"recipe.epochs": epochs},
        precision_request="float32",
    )  # fmt: skip
    base = check_space(base, space, document)
    return search.begin(folder / "search", search.ask(base, space, space_name="x", **more))


def train(folder: SearchFolder, name: str, drawn: dict[str, Any] | None = None) -> Trial:
    """Train a trial as a new process would, and return its record."""
    trials.TrialRunner(folder, Console(quiet=True))(name, {RATE: 0.1, **(drawn or {})})
    found = folder.record(name)
    assert found is not None
    return found


def train_four(folder: SearchFolder, training: Training) -> None:
    """Train so many trials of four epochs as the median rule needs."""
    for name in "0123":
        training.curves[name] = [0.5, 0.6, 0.7, 0.8]
        train(folder, name)


@pytest.mark.parametrize("lost_in", [None, 2, 3, 4])
def test_a_trial_that_goes_on_is_judged_by_its_best_epoch_of_all(lost_in, tmp_path, training):
    folder = begun(tmp_path, [RATES], 4, algorithm="grid")
    train_four(folder, training)
    # Its third epoch is worse than the median, but its best so far is not.
    training.curves["4"] = [0.5, 0.9, 0.3, 0.95]
    if lost_in is not None:
        training.lost_in["4"] = lost_in
        with pytest.raises(keras_tuner.errors.FatalError):
            train(folder, "4")
    found = train(folder, "4")
    assert (found.state, found.val_accuracy, found.error) == ("finished", 0.95, None)


def test_a_process_that_is_lost_before_it_stops_a_hopeless_trial(tmp_path, training, monkeypatch):
    folder = begun(tmp_path, [RATES], 4, algorithm="grid")
    train_four(folder, training)
    training.curves["4"] = [0.1, 0.1, 0.1, 0.1]
    training.lost_in["4"] = 2
    look = trials.TrialRunner._watch
    # The epoch was written down, and nobody came to look at it.
    monkeypatch.setattr(trials.TrialRunner, "_watch", lambda *_: lambda _: None)
    with pytest.raises(keras_tuner.errors.FatalError):
        train(folder, "4")
    monkeypatch.setattr(trials.TrialRunner, "_watch", look)
    found = train(folder, "4")
    assert (found.state, found.epochs) == ("stopped", 1)
    assert "its best validation accuracy so far, 0.1000, is below 0.5000" in (found.error or "")


def test_trials_of_several_lengths(tmp_path, training):
    folder = begun(tmp_path, [RATES, LENGTHS], 4, algorithm="grid")
    for name in "0123":
        training.curves[name] = [0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.85]
        found = train(folder, name, {"recipe.epochs": 8})
        assert (found.epochs, len(folder.curve(found))) == (8, 8)
    # In its own last epoch there is nothing left to stop.
    training.curves["4"] = [0.5, 0.5]
    found = train(folder, "4", {"recipe.epochs": 2})
    assert (found.state, found.epochs) == ("finished", 2)
    training.curves["5"] = [0.5, 0.9]
    train(folder, "5", {"recipe.epochs": 2})
    best = search.snapshot(folder).best
    assert best is not None
    assert best.trial == "5"


def test_hyperband_counts_a_run_s_time_once(tmp_path, training):
    folder = begun(tmp_path, [RATES], 9, algorithm="hyperband")
    training.curves["0"] = [0.1] * 9
    found = [
        train(folder, "0", {"tuner/epochs": 1}),
        train(folder, "1", {"tuner/epochs": 3, "tuner/trial_id": "0"}),
        train(folder, "2", {"tuner/epochs": 9, "tuner/trial_id": "1"}),
    ]
    assert [trial.seconds for trial in found] == [10.0, 20.0, 60.0]


def test_a_search_that_runs_does_not_become_longer(tmp_path):
    folder = begun(tmp_path, [RATES], 1, algorithm="random", trials=2)
    before = (folder.path / "search.yaml").read_bytes()
    with locked(folder.path, "searched"), pytest.raises(InUseError):
        commands._resumed(str(folder.path), 5)
    assert (folder.path / "search.yaml").read_bytes() == before
    commands._resumed(str(folder.path), 5)
    assert folder.asked.trials == 5


# ---------------------------------------------------------------------------- signs of life


@pytest.fixture
def pulse(tmp_path) -> process._Pulse:
    return process._Pulse(SearchFolder(tmp_path), "worker0")


def test_a_worker_that_is_writing_that_it_lives_is_not_lost(pulse, tmp_path):
    beats = process._Beats(SearchFolder(tmp_path), 60.0)
    pulse.beat()
    assert beats.lost(["worker0"]) == []
    # As it is in the middle of writing, and for good where the disk is full.
    pulse.file.write_text("")
    assert beats.lost(["worker0"]) == []
    pulse.stop()
    assert pulse.file.exists()
    pulse.file.unlink()
    assert beats.lost(["worker0"]) == ["worker0"]


def test_a_worker_that_says_nothing_is_lost_in_time(pulse, tmp_path):
    beats = process._Beats(SearchFolder(tmp_path), 0.05)
    pulse.beat()
    assert beats.lost(["worker0"]) == []
    time.sleep(0.1)
    assert beats.lost(["worker0"]) == ["worker0"]


def test_a_worker_that_leaves_takes_its_own_file_only(pulse, tmp_path, monkeypatch):
    beats = process._Beats(SearchFolder(tmp_path), 60.0)
    pulse.beat()
    assert beats.lost(["worker0"]) == []
    with monkeypatch.context() as patch:
        # A process that was started in its place, by its name.
        patch.setattr(process.os, "getpid", lambda: 1)
        process._Pulse(SearchFolder(tmp_path), "worker0").beat()
    pulse.stop()
    assert beats.lost(["worker0"]) == []


# ---------------------------------------------------------------------------- faults of the chief


def test_a_fault_of_the_oracle_is_kept_and_locks_nobody_out(tmp_path, monkeypatch):
    folder = begun(tmp_path, [RATES], 1, algorithm="random", trials=2)
    oracle = make_oracle(folder.asked)
    RunFolderTuner(oracle, folder.path, None)
    given = oracle.create_trial("worker0")
    full = OSError(28, "No space left on device")

    def fails(*_: Any, **__: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(type(oracle), "_save_trial", fails)
        with pytest.raises(OSError, match="No space left"):
            oracle.update_trial(given.trial_id, {"val_accuracy": 0.5})
    assert isinstance(oracle.fault, EnvironmentFaultError)
    assert "No space left on device" in str(oracle.fault)
    other = threading.Thread(target=oracle.give_up, args=("worker0",), daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
