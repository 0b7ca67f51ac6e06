"""Searches: every trial a run folder, no look at the test set, a line that retrains the best."""

from __future__ import annotations

import json
import shlex

import pytest
from commands import run_cli

from kerasnet import config as configs
from kerasnet import data, tune
from kerasnet.document import DocumentError
from kerasnet.errors import EnvironmentFaultError
from kerasnet.files import shipped
from kerasnet.registry import load_registry
from kerasnet.runs import load_run

SMALL = ["resnet8", "--dataset", "digits", "--limit-train", "100", "--epochs", "1"]
RATE = "recipe.optimizer.learning_rate"


def test_a_search_trains_run_folders_and_never_reads_the_test_set(tmp_path, capfd, monkeypatch):
    read = []
    load = data.ImageData.load

    def spy(self, split):
        read.append(split)
        return load(self, split)

    monkeypatch.setattr(data.ImageData, "load", spy)
    out = tmp_path / "search"
    code, printed, progress = run_cli(
        capfd, "tune", *SMALL, "--trials", "2", "--seed", "1", "--out", str(out), "--json"
    )
    found = json.loads(printed)
    assert code == 0
    assert "test" not in read
    assert "trial 2/2" in progress
    assert json.loads((out / "search.json").read_text()) == found
    assert len(found["trials"]) == 2
    rates = [trial["values"][RATE] for trial in found["trials"]]
    assert len(set(rates)) == 2
    assert all(1e-5 <= rate <= 1 for rate in rates)
    for trial in found["trials"]:
        run = load_run(trial["run"])
        assert run.config.recipe.optimizer.learning_rate == trial["values"][RATE]
        assert run.metrics()[-1]["val_accuracy"] == pytest.approx(trial["val_accuracy"], abs=1e-6)
        assert not (run.path / "predictions.npz").exists()
        assert run.summary()["test_accuracy"] is None
    best = max(found["trials"], key=lambda t: t["val_accuracy"])
    assert found["best"] == best
    assert (
        configs.read_config(out / "best.yaml").recipe.optimizer.learning_rate
        == (best["values"][RATE])
    )
    words = shlex.split(found["command"])
    assert words[:3] == ["kerasnet", "fit", "resnet8"]
    monkeypatch.setattr(data.ImageData, "load", load)
    code, retrained, _ = run_cli(capfd, *words[1:], "--out", str(tmp_path / "best"), "--json")
    assert code == 0
    assert 0 <= json.loads(retrained)["test_accuracy"] <= 1


def test_a_trial_that_diverges_scores_worst_and_the_search_goes_on(tmp_path, capfd):
    space = tmp_path / "space.yaml"
    space.write_text(f"parameters:\n  {RATE}: {{type: choice, values: [1e30, 1e-3]}}\n")
    code, printed, _ = run_cli(
        capfd, "tune", *SMALL, "--space", str(space), "--trials", "2", "--out", str(tmp_path / "s")
    )
    assert code == 0
    table = [
        line.split() for line in printed.splitlines() if line.endswith(("finished", "diverged"))
    ]
    assert [row[-1] for row in table] == ["finished", "diverged"]
    assert "train it: kerasnet fit resnet8" in printed


def test_same_seed_draws_the_same_points(tmp_path):
    space, _ = tune.read_space("learning_rate")

    def drawn(seed: int, folder: str) -> list[float]:
        found: list[float] = []

        def train(trial, values):
            found.append(values[RATE])
            return 0.5

        tune.make_tuner(space, 4, seed, tmp_path / folder, train).search()
        return found

    assert drawn(0, "a") == drawn(0, "b")
    assert drawn(0, "c") != drawn(1, "d")


@pytest.mark.parametrize("file", sorted(shipped("tuning").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_space_fits_every_model(file):
    space, document = tune.read_space(str(file))
    config = configs.resolve("resnet8", dataset="digits")
    tune.check_space(config, space, document)


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("parameters:\n  recipe.optimiser.learning_rate: {type: float, min: 1, max: 2}\n", 2, 3,
         "Did you mean 'optimizer'?"),
        ("parameters:\n  recipe.epochs: {type: float, min: 1.5, max: 2}\n", 2, 3, "recipe.epochs"),
        ("parameters:\n  recipe.epochs: {type: int, min: 9, max: 2}\n", 1, 1, "is not below `max`"),
        (f"parameters:\n  {RATE}: {{type: float, min: 0, max: 2, log: true}}\n", 1, 1,
         "above zero"),
        (f"parameters:\n  {RATE}: {{type: flaot, min: 1, max: 2}}\n", 2, 3, "flaot"),
        ("parameters: {}\n", 1, 1, "at least 1 item"),
    ],
)  # fmt: skip
def test_a_wrong_space_names_its_line(text, line, column, said, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    config = configs.resolve("resnet8", dataset="digits")
    with pytest.raises(DocumentError) as error:
        tune.check_space(config, *tune.read_space(str(file)))
    (problem,) = error.value.problems
    assert said in problem.text
    assert problem.place is not None
    assert problem.place[1:] == (line, column)


def test_a_space_may_vary_the_architecture():
    config = configs.resolve("resnet8", dataset="digits")
    wide = configs.with_values(config, {"model.stages.0.width": 24})
    assert configs.plan(wide).layer("stage1_block1_conv1").output_shape == (32, 32, 24)


@pytest.mark.parametrize("values", ["[basic, nosuch]", "[conv3x3, basic]"])
def test_a_space_whose_models_cannot_be_built_is_refused_at_once(values, tmp_path, capfd):
    space = tmp_path / "space.yaml"
    space.write_text(f"parameters:\n  model.stages.1.block: {{type: choice, values: {values}}}\n")
    code, _, err = run_cli(
        capfd, "tune", *SMALL, "--space", str(space), "--out", str(tmp_path / "s")
    )
    assert code == 2
    assert f"{space}:2:3: " in err
    assert not (tmp_path / "s").exists()


def test_an_error_that_no_other_point_can_mend_ends_the_search(tmp_path, capfd, monkeypatch):
    def fails(self, split):
        raise EnvironmentFaultError("disk full")

    monkeypatch.setattr(data.ImageData, "load", fails)
    code, _, err = run_cli(capfd, "tune", *SMALL, "--trials", "3", "--out", str(tmp_path / "s"))
    assert code == 4
    assert err.count("disk full") == 1


def test_the_line_that_retrains_stands_for_the_same_configuration(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("models: {wide: {extends: resnet8, stages: [{block: basic, width: 24}]}}\n")
    values = {RATE: 0.0123456789}
    best = tune.Trial("0", values, "finished", 0.5, 1.0, "x")
    own = configs.resolve("wide", registry=load_registry(str(mine)), dataset="digits")
    assert tune.fit_command(own, best, tmp_path) == (f"kerasnet fit --config {tmp_path}/best.yaml")
    built_in = configs.resolve(
        "resnet8", dataset="digits", seed=7, precision_request="mixed_bfloat16"
    )
    line = tune.fit_command(built_in, best, tmp_path)
    assert "--seed 7 --precision mixed_bfloat16" in line
    assert "--learning-rate 0.0123456789" in line


def test_an_existing_folder_is_left_alone(tmp_path, capfd):
    (tmp_path / "mine.txt").write_text("precious")
    code, _, err = run_cli(capfd, "tune", *SMALL, "--out", str(tmp_path))
    assert code == 2
    assert "not empty" in err
