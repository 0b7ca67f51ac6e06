"""The points of a search: drawn alike by the same seed, by whatever process, killed or not."""

from __future__ import annotations

import collections
import math
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import keras_tuner
import pytest
from processes import CONTEXT, die_at_write
from rich.console import Console

from kerasnet import config as configs
from kerasnet import schema
from kerasnet.errors import BadInputError, DivergedError
from kerasnet.files import locked, make_folder, write_atomically
from kerasnet.runs import METRICS, TIMING, Run
from kerasnet.tune import search as searches
from kerasnet.tune import trials
from kerasnet.tune.oracles import GridOracle, RunFolderTuner, make_oracle
from kerasnet.tune.records import OBJECTIVE, SearchFolder, Trial, best_of

RATE = "recipe.optimizer.learning_rate"
ALGORITHMS = ("random", "bayesian", "hyperband", "grid")
STAGES = ("begun", "half", "written", "synced", "renamed")
# A Gaussian process takes a second for a point; its first three points are random.
TRIALS = {"random": 6, "bayesian": 4, "hyperband": None, "grid": None}
Drawn = dict[str, Any]


def asked(algorithm: str, seed: int = 0, trials: int | None = None, **more: Any):
    """Return a search of one rate: drawn, or for a grid one of seven."""
    rates = {"type": "float", "min": 1e-5, "max": 1.0, "log": True}
    if algorithm == "grid":
        rates = {"type": "choice", "values": [10.0**-n for n in range(7)]}
    space = schema.Space.model_validate({"parameters": {RATE: more.pop("rates", rates)}})
    overrides = {"recipe.epochs": more.pop("epochs", 3), "seed": seed}
    base = configs.resolve("resnet8", dataset="digits", overrides=overrides)
    return searches.ask(base, space, space_name="rates", algorithm=algorithm,
                        trials=trials or TRIALS[algorithm], **more)  # fmt: skip


def score(drawn: Drawn) -> float:
    """Return what a point is worth; longer trainings are worth more."""
    bend = math.exp(-((math.log10(drawn[RATE]) + 2.5) ** 2))
    return bend * (1 - 0.5 / drawn.get("tuner/epochs", 1))


class Points(list):
    """A `train` that keeps what it was given, and may end the search after some points."""

    def __init__(self, most: float = math.inf) -> None:
        self.most = most

    def __call__(self, name: str, drawn: Drawn) -> float:
        if len(self) >= self.most:
            raise keras_tuner.errors.FatalError("enough")
        self.append((name, drawn))
        return score(drawn)


def drawn_by(folder: Path, wanted: schema.SearchConfig, most: float = math.inf) -> Points:
    """Search in a folder, or go on with it, and return the points that were trained."""
    points = Points(most)
    try:
        RunFolderTuner(make_oracle(wanted), folder, points).search()
    except keras_tuner.errors.FatalError:
        assert len(points) == most
    return points


@pytest.fixture
def unsaved(monkeypatch):
    """Oracles that keep their state in memory, which is a hundred times as fast."""
    monkeypatch.setattr("kerasnet.tune.oracles._write", lambda file, state: None)


# ---------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "hyperband"])
def test_the_seed_decides_the_points(algorithm, tmp_path, unsaved):
    first, again, other = (
        drawn_by(tmp_path / str(i), asked(algorithm, seed)) for i, seed in enumerate((0, 0, 1))
    )
    assert len(first) == searches.planned(asked(algorithm))
    assert first == again
    assert not {p[RATE] for _, p in first} & {p[RATE] for _, p in other}
    assert all(1e-5 <= p[RATE] <= 1 for _, p in first + other)
    assert max(map(score, (p for _, p in first))) == max(map(score, (p for _, p in again)))


def test_the_largest_seed_can_be_used(tmp_path, unsaved):
    points = drawn_by(tmp_path, asked("bayesian", 2**31 - 1, trials=4))
    assert len({p[RATE] for _, p in points}) == 4


# ---------------------------------------------------------------------------- going on


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_goes_on_where_it_was(algorithm, tmp_path):
    wanted = asked(algorithm)
    whole = drawn_by(tmp_path / "whole", wanted)
    stops = [3] if algorithm == "bayesian" else range(1, len(whole))
    for most in stops:
        folder = tmp_path / str(most)
        before = drawn_by(folder, wanted, most)
        assert before + drawn_by(folder, wanted) == whole, most
        assert drawn_by(folder, wanted) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_that_is_interrupted_at_every_trial(algorithm, tmp_path):
    wanted = asked(algorithm, trials=5 if algorithm == "bayesian" else None)
    whole = drawn_by(tmp_path / "whole", wanted)
    found = []
    while some := drawn_by(tmp_path / "parts", wanted, 1):
        found += some
    assert found == whole


@pytest.mark.parametrize("algorithm", ["random", "bayesian"])
def test_more_trials_are_those_of_a_longer_search(algorithm, tmp_path):
    whole = drawn_by(tmp_path / "whole", asked(algorithm, trials=4))
    shorter = drawn_by(tmp_path / "parts", asked(algorithm, trials=2))
    rest = drawn_by(tmp_path / "parts", asked(algorithm, trials=4))
    assert [p for _, p in shorter + rest] == [p for _, p in whole]
    assert sorted(int(name) for name, _ in shorter + rest) == list(range(4))


@pytest.mark.parametrize("file", ["oracle.json", "trial_2/trial.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"trial_id": 7}', "null", "[" * 99999])
def test_a_damaged_state_is_named(tmp_path, file, content):
    drawn_by(tmp_path, asked("random"), 3)
    (tmp_path / "keras-tuner" / file).write_text(content)
    with pytest.raises(BadInputError, match="keras-tuner's state is damaged"):
        drawn_by(tmp_path, asked("random"))


# ---------------------------------------------------------------------------- hyperband


@pytest.mark.parametrize("epochs", range(1, 31))
def test_the_plan_of_hyperband_is_what_is_trained(epochs, tmp_path, unsaved):
    points = drawn_by(tmp_path, asked("hyperband", epochs=epochs))
    counts = collections.Counter((p["tuner/initial_epoch"], p["tuner/epochs"]) for _, p in points)
    planned: collections.Counter[tuple[int, int]] = collections.Counter()
    for bracket in searches.hyperband_plan(epochs):
        before = 0
        for number, last in bracket:
            planned[before, last] += number
            before = last
    assert counts == planned
    assert max(p["tuner/epochs"] for _, p in points) == epochs
    ends = dict(points)
    for _, drawn in points:
        if drawn["tuner/initial_epoch"]:
            before = ends[drawn["tuner/trial_id"]]
            assert before["tuner/epochs"] == drawn["tuner/initial_epoch"]
            assert before[RATE] == drawn[RATE]


# ---------------------------------------------------------------------------- grids


def grid_of(space: keras_tuner.HyperParameters, trials: int | None = None) -> GridOracle:
    return GridOracle(objective=keras_tuner.Objective(OBJECTIVE, "max"), hyperparameters=space,
                      max_trials=trials)  # fmt: skip


def conditional() -> keras_tuner.HyperParameters:
    """Two optimisers, of which each has fields of its own: 3 × 2 and 4 points, times 2."""
    space = keras_tuner.HyperParameters()
    space.Choice("optimizer", ["sgd", "adam"])
    with space.conditional_scope("optimizer", ["sgd"]):
        space.Choice("momentum", [0.0, 0.5, 0.9])
        space.Boolean("nesterov")
    with space.conditional_scope("optimizer", ["adam"]):
        space.Int("beta", 1, 4)
    space.Choice("width", [8, 16])
    return space


def visited(folder: Path, oracle: GridOracle, most: float = math.inf) -> list[Drawn]:
    points: list[Drawn] = []

    def train(name: str, drawn: Drawn) -> float:
        if len(points) >= most:
            raise keras_tuner.errors.FatalError("enough")
        points.append(drawn)
        return 0.5

    try:
        RunFolderTuner(oracle, folder, train).search()
    except keras_tuner.errors.FatalError:
        assert len(points) == most
    return points


def test_a_grid_visits_every_point_once(tmp_path):
    points = visited(tmp_path, grid_of(conditional()))
    sgd = [
        {"optimizer": "sgd", "momentum": m, "nesterov": n, "width": w}
        for m in (0.0, 0.5, 0.9) for n in (False, True) for w in (8, 16)
    ]  # fmt: skip
    adam = [{"optimizer": "adam", "beta": b, "width": w} for b in range(1, 5) for w in (8, 16)]
    assert sorted(map(sorted_items, points)) == sorted(map(sorted_items, sgd + adam))


def sorted_items(point: Drawn) -> list[tuple[str, str]]:
    return sorted((key, str(value)) for key, value in point.items())


def test_a_part_of_a_grid_and_going_on_with_it(tmp_path):
    whole = visited(tmp_path / "whole", grid_of(conditional()))
    part = visited(tmp_path / "part", grid_of(conditional(), 7))
    assert part == whole[:7]
    assert visited(tmp_path / "part", grid_of(conditional(), 7)) == []
    for most in (1, 6, 19):
        before = visited(tmp_path / str(most), grid_of(conditional()), most)
        assert before + visited(tmp_path / str(most), grid_of(conditional())) == whole


# ---------------------------------------------------------------------------- few points


FEW = {"type": "choice", "values": [1e-4, 1e-3, 1e-2]}


@pytest.mark.parametrize("algorithm", ["random", "bayesian"])
def test_a_space_of_few_points_is_searched_through(algorithm, tmp_path):
    for seed in range(5):
        points = drawn_by(tmp_path / str(seed), asked(algorithm, seed, trials=9, rates=FEW))
        assert sorted(p[RATE] for _, p in points) == FEW["values"]


def test_a_space_too_large_for_a_grid_can_be_drawn_from():
    """Of fifteen choices on each of which another depends, nobody counts the points."""
    parameters: dict[str, Any] = {}
    for i in range(15):
        parameters[f"model.stages.{i}.width"] = {"type": "choice", "values": [8, 16]}
    for i in range(15):
        parameters[f"model.stages.{i}.repeats"] = {
            "type": "choice", "values": [1, 2], "when": {f"model.stages.{i}.width": 8}
        }  # fmt: skip
    space = schema.Space.model_validate({"parameters": parameters})
    wanted = asked("random", trials=7).model_copy(update={"space": space})
    assert searches.planned(wanted) == 7


def test_a_random_search_finds_the_last_of_many_points(tmp_path, unsaved):
    rates = {"type": "choice", "values": [n / 100 for n in range(1, 101)]}
    points = drawn_by(tmp_path, asked("random", trials=200, rates=rates))
    assert sorted(p[RATE] for _, p in points) == rates["values"]


def test_hyperband_trains_its_whole_plan_where_points_are_few(tmp_path, unsaved):
    wanted = asked("hyperband", epochs=9, rates=FEW)
    points = drawn_by(tmp_path, wanted)
    assert len(points) == searches.planned(wanted)
    assert max(p["tuner/epochs"] for _, p in points) == 9


# ---------------------------------------------------------------------------- several at once


class Crew:
    """Tuners by name, that take trials from one oracle and hand them in."""

    def __init__(self, folder: Path, wanted: schema.SearchConfig) -> None:
        self.oracle = make_oracle(wanted)
        self.oracle.verbose = 0
        self.oracle._set_project_dir(str(folder), "keras-tuner")
        self.begun: list[str] = []

    def take(self, name: str) -> Any:
        trial = self.oracle.create_trial(name)
        if trial.status == "RUNNING" and trial.trial_id not in self.begun:
            self.begun.append(trial.trial_id)
        return trial

    def end(self, trial: Any, state: str = "COMPLETED") -> None:
        if state == "COMPLETED":
            found = {OBJECTIVE: score(trial.hyperparameters.values)}
            self.oracle.update_trial(trial.trial_id, found)
        trial.status = state
        self.oracle.end_trial(trial)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("fails", [False, True])
def test_several_tuners_at_once(algorithm, fails, tmp_path, unsaved):
    wanted = asked(algorithm)
    crew, chance = Crew(tmp_path, wanted), random.Random(3)
    under_way: dict[str, Any] = {}
    stopped: set[str] = set()
    for _ in range(1000):
        name = chance.choice(["a", "b", "c"])
        if name in under_way:
            crew.end(under_way.pop(name), "FAILED" if fails and chance.random() < 0.4
                     else "COMPLETED")  # fmt: skip
        elif name not in stopped:
            trial = crew.take(name)
            assert trial.trial_id not in {t.trial_id for t in under_way.values()}
            if trial.status == "RUNNING":
                under_way[name] = trial
            elif trial.status == "STOPPED":
                assert not under_way, "somebody must be there to take a lost trial"
                stopped.add(name)
        if len(stopped) == 3:
            break
    assert stopped == {"a", "b", "c"}
    assert crew.oracle.over
    assert not crew.oracle.tuner_ids
    assert len(set(crew.begun)) == len(crew.begun)
    # Of hyperband's trials that failed, none goes on.
    expected = 7 if algorithm == "grid" else searches.planned(wanted)
    assert len(crew.begun) == expected or (fails and algorithm == "hyperband")
    assert sorted(crew.oracle.end_order) == sorted(crew.oracle.start_order) == sorted(crew.begun)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_lost_tuners_trial_is_taken_over(algorithm, tmp_path):
    crew = Crew(tmp_path, asked(algorithm))
    one, two = crew.take("a"), crew.take("b")
    assert one.trial_id != two.trial_id
    # Under its old name, a process that was started again gets what it was at.
    assert crew.take("a").trial_id == one.trial_id
    crew.oracle.give_up("a")
    crew.oracle.give_up("a")
    crew.end(two)
    again = crew.take("b")
    assert (again.trial_id, again.hyperparameters.values) == (
        one.trial_id, one.hyperparameters.values
    )  # fmt: skip
    assert crew.oracle.tuner_ids == {"b"}
    # The one that seemed lost comes back, and both hand it in.
    assert crew.take("a").trial_id not in (one.trial_id, two.trial_id)
    crew.end(again)
    crew.end(again)
    assert crew.oracle.end_order == [two.trial_id, one.trial_id]


def test_a_trial_that_was_given_up_survives_the_chief(tmp_path):
    wanted = asked("random", trials=2)
    crew = Crew(tmp_path, wanted)
    crew.end(crew.take("a"))
    lost = crew.take("b")
    crew.oracle.give_up("b")
    points = drawn_by(tmp_path, wanted)
    assert [name for name, _ in points] == [lost.trial_id]


def test_nobody_leaves_while_a_trial_is_under_way(tmp_path):
    crew = Crew(tmp_path, asked("random", trials=1))
    one = crew.take("a")
    assert crew.take("b").status == "IDLE"
    assert not crew.oracle.over
    crew.oracle.give_up("a")
    assert crew.take("b").trial_id == one.trial_id
    crew.end(one)
    assert [crew.take(name).status for name in "abc"] == ["STOPPED"] * 3
    assert crew.oracle.over


def test_after_the_deadline_no_trial_is_begun(tmp_path):
    crew = Crew(tmp_path, asked("random"))
    one = crew.take("a")
    crew.oracle.deadline = 0.0
    assert crew.take("b").status == "STOPPED"
    # What is under way may be handed in, and a process that came back goes on with it.
    assert crew.take("a").trial_id == one.trial_id
    crew.end(one)
    assert crew.take("a").status == "STOPPED"
    assert crew.oracle.over
    assert not crew.oracle.tuner_ids
    assert len(drawn_by(tmp_path, asked("random"))) == TRIALS["random"] - 1


# ---------------------------------------------------------------------------- failures


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_failures_in_a_row_do_not_end_a_search(algorithm, tmp_path, unsaved):
    tried = []

    def train(name: str, drawn: Drawn) -> float:
        tried.append(name)
        raise keras_tuner.errors.FailedTrialError("no")

    wanted = asked(algorithm)
    RunFolderTuner(make_oracle(wanted), tmp_path, train).search()
    expected = {"grid": 7, "hyperband": searches.hyperband_plan(3)}
    if algorithm == "hyperband":
        # No trial goes on, so only the first rounds are trained.
        assert len(tried) == sum(bracket[0][0] for bracket in expected["hyperband"])
    else:
        assert len(tried) == expected.get(algorithm, TRIALS[algorithm])


# ---------------------------------------------------------------------------- killed


def fake_fit(run: Run, *, config: schema.RunConfig, seconds: float | None = None, on_epoch=None,
             **_: Any) -> dict[str, Any]:  # fmt: skip
    """Stand in for training: a step an epoch, each with a checkpoint, and a log of them all."""
    rate = config.recipe.optimizer.learning_rate
    with locked(run.path, "trained"):
        run.prepare()
        run.reopen()
        run.write_config(config)
        for epoch in range(run.step + 1, config.recipe.epochs + 1):
            log(run, f"{run.path.name} {epoch}")
            if rate > 0.5:
                raise DivergedError("the loss is nan")
            if rate < 3e-5:
                raise BadInputError("it cannot be built")
            write_atomically(run.checkpoints / f"step-{epoch:08}.safetensors", b"x")
            write_rows(run, rate, epoch)
        write_rows(run, rate, config.recipe.epochs)
        value = score({RATE: rate, "tuner/epochs": config.recipe.epochs})
        summary = {
            "model": "m", "dataset": "d", "recipe": "r", "epochs": config.recipe.epochs,
            "seconds": 1.0 * config.recipe.epochs, OBJECTIVE: value,
        }  # fmt: skip
        run.write_summary(summary)
    return summary


def write_rows(run: Run, rate: float, epochs: int) -> None:
    done = range(1, epochs + 1)
    scores = [score({RATE: rate, "tuner/epochs": epoch}) for epoch in done]
    rows = [{"epoch": epoch, OBJECTIVE: value} for epoch, value in zip(done, scores, strict=True)]
    run.write_rows("metrics.csv", METRICS, rows)
    run.write_rows("timing.csv", TIMING, [{"epoch": epoch, "seconds": 1.0} for epoch in done])


def log(run: Run, line: str) -> None:
    with (run.path.parent.parent / "trained.log").open("a") as stream:
        stream.write(f"{line}\n")


def trained(folder: Path) -> list[str]:
    """Return which epochs of which runs were begun, in that order."""
    file = folder / "trained.log"
    return file.read_text().splitlines() if file.exists() else []


def search_in(folder: str, wanted: schema.SearchConfig) -> None:
    """Search, or go on, as `kerasnet tune` does, but for the training."""
    trials.fit, trials.keras.backend.clear_session = fake_fit, lambda **_: None
    place = SearchFolder(Path(folder))
    if not (place.path / "search.yaml").exists():
        place = searches.begin(folder, wanted)
    searches.tidy(place)
    searches.search_here(place, Console(quiet=True))
    searches.publish(place)


def killed_search(folder: str, wanted: schema.SearchConfig, number: int, stage: str) -> None:
    die_at_write(number, stage)
    search_in(folder, wanted)


def outcome(folder: Path) -> list[dict[str, Any]]:
    """Return the records, but for what may differ after a kill."""
    records = SearchFolder(folder).records()
    return [t.model_dump(exclude={"attempts", "step", "seconds"}) for t in records]


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """What trains the trials of a search, but for the training."""
    monkeypatch.setattr(trials, "fit", fake_fit)
    monkeypatch.setattr(trials.keras.backend, "clear_session", lambda **_: None)
    monkeypatch.setattr(trials, "_WAIT_SECONDS", 0.01)
    folder = searches.begin(tmp_path / "search", asked("random"))
    return trials.TrialRunner(folder, Console(quiet=True))


@pytest.mark.parametrize("state", ["finished", "diverged", "failed"])
def test_a_trial_that_another_process_trains_is_waited_for(runner, state):
    """It is neither counted as lost, nor written about, nor trained again."""
    folder, drawn = runner.folder, {RATE: 1e-3}
    begun = Trial(trial="0", values=drawn, state="running", runs=["trials/0"], attempts=1)
    folder.write_record(begun)
    found = []
    waiting = threading.Thread(target=lambda: found.append(runner._ended("0", drawn)))
    with locked(folder.path / "records", "trained", "0"):
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
        assert folder.record("0") == begun
        ended = begun.model_copy(update={"state": state, "val_accuracy": 0.25})
        folder.write_record(ended)
    waiting.join(10)
    assert found == [ended]
    assert trained(folder.path) == []


def test_a_run_that_somebody_goes_on_with_by_hand_is_waited_for(runner):
    folder, drawn = runner.folder, {RATE: 1e-3}
    found = []
    waiting = threading.Thread(target=lambda: found.append(runner("0", drawn)))
    with locked(make_folder(folder.run("0").path), "trained"):
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
    waiting.join(10)
    assert found == [score(drawn | {"tuner/epochs": 3})]
    assert folder.record("0").attempts == 1


def test_a_trial_that_kills_its_process_each_time_counts_as_failed(runner, monkeypatch):
    class Killed(BaseException):
        pass

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(trials, "fit", dies)
    for _ in range(trials.MAX_ATTEMPTS):
        with pytest.raises(Killed):
            runner("0", {RATE: 1e-3})
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="was lost 5 times in a row"):
        runner("0", {RATE: 1e-3})
    assert runner.folder.record("0").state == "failed"


def test_time_that_is_up_is_no_loss(runner):
    runner.deadline = 0.0
    with (
        locked(make_folder(runner.folder.path / "records"), "trained", "0"),
        pytest.raises(keras_tuner.errors.FatalError, match="the time is up"),
    ):
        runner("0", {RATE: 1e-3})
    assert runner.folder.record("0") is None


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Searches by algorithm, that nothing interrupted: their question, and their folder."""
    found = {}

    def make(algorithm: str) -> tuple[schema.SearchConfig, Path]:
        if algorithm not in found:
            folder = tmp_path_factory.mktemp(algorithm) / "search"
            wanted = asked(algorithm, seed=4, trials=None if algorithm == "hyperband" else 4)
            process = CONTEXT.Process(target=search_in, args=(str(folder), wanted))
            process.start()
            process.join(60)
            assert process.exitcode == 0
            assert len(SearchFolder(folder).records()) == searches.planned(wanted)
            found[algorithm] = wanted, folder
        return found[algorithm]

    return make


def kill_and_go_on(
    wanted: schema.SearchConfig, whole: Path, folder: Path, number: int, stage: str
) -> bool:
    """Kill a search at a write, go on, and compare; return whether it came to that write."""
    process = CONTEXT.Process(target=killed_search, args=(str(folder), wanted, number, stage))
    process.start()
    process.join(60)
    if process.exitcode == 0:
        return False
    assert process.exitcode == -signal.SIGKILL
    place = SearchFolder(folder)
    begun = trained(folder)
    ended = {t.trial: t for t in place.records() if t.ended}
    again = CONTEXT.Process(target=search_in, args=(str(folder), wanted))
    again.start()
    again.join(60)
    assert again.exitcode == 0
    assert outcome(folder) == outcome(whole)
    assert all(place.record(name) == trial for name, trial in ended.items())
    best, expected = (
        best_of(found.records(), found.asked.algorithm) for found in (place, SearchFolder(whole))
    )
    assert (best.trial, best.val_accuracy) == (expected.trial, expected.val_accuracy)
    # At most the epoch that was under way was begun twice.
    twice = [line for line, n in collections.Counter(trained(folder)).items() if n > 1]
    assert twice in ([], begun[-1:])
    assert set(trained(folder)) == set(trained(whole))
    assert not list(folder.rglob("*.temporary"))
    return True


@pytest.mark.parametrize("algorithm", [pytest.param("random", marks=pytest.mark.slow), "hyperband"])
def test_a_search_killed_while_it_writes(algorithm, uninterrupted, tmp_path):
    wanted, whole = uninterrupted(algorithm)
    draw = random.Random(algorithm)
    numbers = sorted(draw.sample(range(1, 60), 4))
    assert all(
        kill_and_go_on(wanted, whole, tmp_path / f"{n}", n, draw.choice(STAGES)) for n in numbers
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_killed_at_each_write(algorithm, uninterrupted, tmp_path):
    wanted, whole = uninterrupted(algorithm)
    number, first = 1, ALGORITHMS.index(algorithm)
    # Neighbouring writes are killed at different stages, and another algorithm's at others.
    while kill_and_go_on(
        wanted, whole, tmp_path / f"{number}", number, STAGES[(number + first) % len(STAGES)]
    ):
        number += 1
    print(f"killed at each of {number - 1} writes")
    assert number > 60
