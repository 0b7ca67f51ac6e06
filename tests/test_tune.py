"""Searches: every trial a run folder, no look at the test set, and what becomes of bad trials."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from commands import run_cli
from synthetic import paint_classes

from kerasnet import config as configs
from kerasnet import data, schema, train
from kerasnet.document import parse
from kerasnet.errors import DivergedError, EnvironmentFaultError, OutOfMemoryFaultError
from kerasnet.files import shipped
from kerasnet.registry import load_registry
from kerasnet.runs import load_run
from kerasnet.tune.records import Search, best_of, load_search, open_search, short_names
from kerasnet.tune.space import point, read_space

SMALL = ["resnet8", "--dataset", "digits", "--limit-train", "100", "--epochs", "1"]
RATE = "recipe.optimizer.learning_rate"


@pytest.fixture
def splits_read(monkeypatch):
    """The splits of data sets that are read, in order."""
    read = []
    load = data.ImageData.load

    def spy(self, split):
        read.append(split)
        return load(self, split)

    monkeypatch.setattr(data.ImageData, "load", spy)
    return read


def a_summary(run, accuracy, seconds=1.0):
    return {"val_accuracy": accuracy, "seconds": seconds, "run": str(run.path)}


@pytest.fixture
def fake_fit(monkeypatch):
    """Replaces training: `fake_fit(accuracy_of)` takes a configuration, and may raise."""
    from kerasnet.tune import trials

    def use(accuracy_of, curve=lambda accuracy, epoch: accuracy):
        def fit(run, *, config, on_epoch=None, **_):
            accuracy = accuracy_of(config)
            rows = []
            for epoch in range(1, config.recipe.epochs + 1):
                score = curve(accuracy, epoch)
                row = dict.fromkeys(("loss", "accuracy", "val_loss", "learning_rate"), 1.0)
                rows.append({"epoch": epoch, "step": epoch, "val_accuracy": score, **row})
                run.write_rows("metrics.csv", train.METRICS, rows)
                if on_epoch is not None:
                    on_epoch(rows[-1])
            return a_summary(run, accuracy)

        monkeypatch.setattr(trials, "fit", fit)

    return use


def space_file(folder, **parameters):
    file = folder / "space.yaml"
    lines = [f"  {path}: {text}\n" for path, text in parameters.items()]
    file.write_text("parameters:\n" + "".join(lines))
    return str(file)


def test_a_search_trains_run_folders_and_never_reads_the_test_set(tmp_path, capfd, splits_read):
    out = tmp_path / "search"
    code, printed, progress = run_cli(
        capfd, "tune", *SMALL, "--trials", "2", "--seed", "1", "--out", str(out), "--json"
    )
    found = json.loads(printed)
    assert code == 0
    assert "test" not in splits_read
    assert "2/2 ended" in progress
    assert json.loads((out / "search.json").read_text()) == found
    assert found["complete"]
    rates = [trial["values"][RATE] for trial in found["trials"]]
    assert len(set(rates)) == 2
    assert all(1e-5 <= rate <= 1 for rate in rates)
    for trial in found["trials"]:
        run = load_run(out / trial["runs"][0])
        assert run.config.recipe.optimizer.learning_rate == trial["values"][RATE]
        assert run.metrics()[-1]["val_accuracy"] == pytest.approx(trial["val_accuracy"], abs=1e-6)
        assert not (run.path / "predictions.npz").exists()
        assert run.summary()["test_accuracy"] is None
    best = max(found["trials"], key=lambda t: t["val_accuracy"])
    assert found["best"] == best
    splits_read.clear()
    words = shlex.split(found["command"])
    assert words == ["kerasnet", "fit", "resnet8", "--from-search", str(out)]
    code, retrained, _ = run_cli(capfd, *words[1:], "--out", str(tmp_path / "best"), "--json")
    assert code == 0
    summary = load_run(tmp_path / "best").summary()
    assert json.loads(retrained)["test_accuracy"] == summary["test_accuracy"]
    assert splits_read == ["train", "test"]
    # 1797 images, a fifth of them for the test; nothing is held back any more.
    assert summary["train_images"] == 1437
    config = load_run(tmp_path / "best").config
    assert config.recipe.optimizer.learning_rate == best["values"][RATE]
    assert summary["val_accuracy"] is None


@pytest.mark.slow
def test_a_folder_s_own_validation_images_are_trained_on_in_the_end(tmp_path, capfd):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 4), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                image = rng.integers(0, 256, (8, 8, 3), dtype="uint8")
                Image.fromarray(image).save(folder / f"{i}.png")
    out = tmp_path / "s"
    code, _, _ = run_cli(
        capfd, "tune", "resnet8", "--dataset", str(tmp_path / "pets"), "--epochs", "1", "--trials",
        "1", "--out", str(out),
    )  # fmt: skip
    assert code == 0
    code, _, err = run_cli(
        capfd, "fit", "--from-search", str(out), "--out", str(tmp_path / "best"), "--json"
    )
    assert code == 0, err
    assert load_run(out / "trials" / "0").summary()["train_images"] == 16
    assert load_run(tmp_path / "best").summary()["train_images"] == 24


def test_from_search_needs_a_search_with_a_finished_trial(tmp_path, capfd):
    code, _, err = run_cli(capfd, "fit", "--from-search", str(tmp_path))
    assert code == 2
    assert "not a search folder" in err
    code, _, err = run_cli(
        capfd, "tune", *SMALL, "--out", str(tmp_path / "s"), "--trials", "1", "--budget", "0.001s"
    )
    assert code == 0
    assert "--resume" in err + _
    code, _, err = run_cli(capfd, "fit", "resnet8", "--from-search", str(tmp_path / "s"))
    assert code == 2
    assert "kerasnet tune --resume" in err
    code, _, err = run_cli(capfd, "fit", "--from-search", "s", "--resume", "r")
    assert code == 2
    assert "exclude each other" in err


# ---------------------------------------------------------------------------- trials that go wrong


def test_a_trial_that_diverges_scores_worst_and_the_search_goes_on(tmp_path, capfd):
    space = space_file(tmp_path, **{RATE: "{type: choice, values: [1e30, 1e-3]}"})
    code, printed, _ = run_cli(
        capfd, "tune", *SMALL, "--space", space, "--trials", "2", "--out", str(tmp_path / "s")
    )
    assert code == 0
    states = [line.split()[-1] for line in printed.splitlines()
              if line.rstrip().endswith((" finished", " diverged"))]  # fmt: skip
    assert states == ["finished", "diverged"]
    assert "train it: kerasnet fit resnet8 --from-search" in printed
    _, found = load_search(tmp_path / "s")
    (diverged,) = [trial for trial in found.trials if trial.state == "diverged"]
    assert diverged.val_accuracy is None
    assert "no finite number" in (diverged.error or "")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RuntimeError("broken pipe dream"), "failed"),
        (OutOfMemoryFaultError("memory ran out"), "failed"),
        (DivergedError("no finite number"), "diverged"),
    ],
)
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(
    error, state, tmp_path, capfd, fake_fit
):
    seen = []

    def accuracy_of(config):
        seen.append(config.recipe.optimizer.learning_rate)
        if len(seen) % 2:
            raise error
        return 0.5

    fake_fit(accuracy_of)
    # More failures in a row than keras-tuner takes.
    code, _, _ = run_cli(capfd, "tune", *SMALL, "--trials", "9", "--out", str(tmp_path / "s"))
    assert code == 0
    _, found = load_search(tmp_path / "s")
    assert [trial.state for trial in found.trials] == [state, "finished"] * 4 + [state]
    assert all(str(error) in (t.error or "") for t in found.trials if t.state == state)
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DivergedError("no finite number"), 3),
        (RuntimeError("broken pipe dream"), 2),
        (OutOfMemoryFaultError("memory ran out"), 4),
    ],
)
def test_a_search_whose_trials_all_go_wrong_says_so(error, code, tmp_path, capfd, fake_fit):
    def accuracy_of(config):
        raise error

    fake_fit(accuracy_of)
    found, _, err = run_cli(capfd, "tune", *SMALL, "--trials", "6", "--out", str(tmp_path / "s"))
    assert found == code
    assert f"all 6 trials {'diverged or failed' if code == 3 else 'failed'}" in err
    assert str(error) in err
    assert (tmp_path / "s" / "search.json").is_file()


@pytest.mark.slow
def test_an_error_that_no_other_point_can_mend_ends_the_search(tmp_path, capfd, monkeypatch):
    def fails(self, split):
        raise EnvironmentFaultError("disk full")

    monkeypatch.setattr(data.ImageData, "load", fails)
    code, _, err = run_cli(capfd, "tune", *SMALL, "--trials", "3", "--out", str(tmp_path / "s"))
    assert code == 4
    assert err.count("disk full") == 1
    assert "kerasnet tune --resume" in err
    monkeypatch.undo()
    code, printed, _ = run_cli(capfd, "tune", "--resume", str(tmp_path / "s"), "--json")
    assert code == 0
    assert [t["state"] for t in json.loads(printed)["trials"]] == ["finished"] * 3


def test_a_trial_whose_process_is_lost_over_and_over_is_given_up(tmp_path, capfd, fake_fit):
    fake_fit(lambda config: 0.5)
    out = tmp_path / "s"
    code, _, _ = run_cli(capfd, "tune", *SMALL, "--trials", "1", "--out", str(out))
    assert code == 0
    folder = open_search(out)
    (trial,) = folder.records()
    lost = trial.model_copy(update={"state": "running", "attempts": 5, "val_accuracy": None})
    folder.write_record(lost)
    state = out / "keras-tuner" / "oracle.json"
    oracle = json.loads(state.read_text())
    oracle |= {"end_order": [], "ongoing_trials": {"tuner0": trial.trial}}
    state.write_text(json.dumps(oracle))
    code, _, err = run_cli(capfd, "tune", "--resume", str(out))
    assert code == 2
    assert "was lost 5 times in a row" in err


# ---------------------------------------------------------------------------- what trials are


def test_hopeless_trials_stop_early(tmp_path, capfd, fake_fit):
    # keras-tuner's grid begins with the first value.
    values = [0.9, 0.8, 0.7, 0.6, 0.75, 0.1]
    space = space_file(tmp_path, **{RATE: f"{{type: choice, values: {values}}}"})
    fake_fit(lambda config: config.recipe.optimizer.learning_rate, lambda a, epoch: a * epoch / 4)
    options = ["--epochs", "4", "--space", space, "--algorithm", "grid"]
    for out, more, state, epochs in (
        ("s", (), "stopped", 1),
        ("t", ("--no-early-stopping",), "finished", 4),
    ):
        code, printed, _ = run_cli(
            capfd, "tune", *SMALL[:5], *options, *more, "--out", str(tmp_path / out), "--json"
        )
        assert code == 0
        trials = {t["values"][RATE]: t for t in json.loads(printed)["trials"]}
        assert (trials[0.1]["state"], trials[0.1]["epochs"]) == (state, epochs)
        # Four curves are asked for; the fifth is as good as the median of those.
        assert [trials[v]["state"] for v in values[:5]] == ["finished"] * 5
    assert json.loads(printed)["best"]["values"][RATE] == 0.9


def test_every_point_is_trained_by_as_many_seeds_as_asked(tmp_path, capfd, fake_fit):
    fake_fit(lambda config: config.seed / 10)
    code, printed, _ = run_cli(
        capfd, "tune", *SMALL, "--trials", "2", "--seed", "3", "--executions", "3", "--out",
        str(tmp_path / "s"), "--json",
    )  # fmt: skip
    assert code == 0
    for trial in json.loads(printed)["trials"]:
        assert trial["scores"] == [0.3, 0.4, 0.5]
        assert trial["val_accuracy"] == pytest.approx(0.4)
        assert trial["runs"] == [f"trials/{trial['trial']}{end}" for end in ("", "-2", "-3")]
        seeds = [load_run(tmp_path / "s" / run).config.seed for run in trial["runs"]]
        assert seeds == [3, 4, 5]


def test_a_trial_leaves_no_graph_behind(tmp_path, capfd):
    from tensorflow.python.framework import ops

    # What is registered there keeps graphs, weights and an optimiser's state in memory.
    before = set(ops.gradient_registry._registry)
    code, _, _ = run_cli(capfd, "tune", *SMALL, "--trials", "1", "--out", str(tmp_path / "s"))
    assert code == 0
    assert set(ops.gradient_registry._registry) == before


def test_hyperband_goes_on_with_the_same_runs_under_one_schedule(tmp_path, capfd):
    code, printed, _ = run_cli(
        capfd, "tune", *SMALL[:-1], "3", "--algorithm", "hyperband", "--out", str(tmp_path / "s"),
        "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(printed)
    (longer,) = [trial for trial in found["trials"] if trial["continues"]]
    before = next(t for t in found["trials"] if t["trial"] == longer["continues"])
    assert (before["epochs"], longer["epochs"]) == (1, 3)
    assert longer["runs"] == before["runs"]
    run = load_run(tmp_path / "s" / longer["runs"][0])
    assert run.config.horizon == 3
    rates = [row["learning_rate"] for row in run.metrics()]
    assert len(rates) == 3
    # A trial that was trained in one go has the same rates, but for their scale.
    whole = next(t for t in found["trials"] if t["epochs"] == 3 and not t["continues"])
    other = [r["learning_rate"] for r in load_run(tmp_path / "s" / whole["runs"][0]).metrics()]
    scale = longer["values"][RATE] / whole["values"][RATE]
    assert rates == pytest.approx([scale * rate for rate in other], rel=1e-4)
    assert found["best"]["epochs"] == 3


def test_more_trials_of_a_finished_search(tmp_path, capfd, fake_fit):
    fake_fit(lambda config: 0.5)
    out = str(tmp_path / "s")
    first = json.loads(run_cli(capfd, "tune", *SMALL, "--trials", "2", "--out", out, "--json")[1])
    more = json.loads(run_cli(capfd, "tune", "--resume", out, "--trials", "12", "--json")[1])
    assert more["trials"][:2] == first["trials"]
    assert len({t["trial"] for t in more["trials"]}) == 12
    code, _, err = run_cli(capfd, "tune", "--resume", out, "--trials", "3")
    assert code == 2
    assert "would shorten" in err


@pytest.mark.parametrize("algorithm", ["random", pytest.param("bayesian", marks=pytest.mark.slow)])
def test_the_same_seed_repeats_a_search(algorithm, tmp_path, capfd, fake_fit):
    def accuracy_of(config):
        return 1 / (1 + abs(np.log10(config.recipe.optimizer.learning_rate) + 2))

    fake_fit(accuracy_of)

    def searched(name, seed):
        code, printed, _ = run_cli(
            capfd, "tune", *SMALL, "--algorithm", algorithm, "--trials", "6", "--seed", seed,
            "--out", str(tmp_path / name), "--json",
        )  # fmt: skip
        assert code == 0
        return [(t["values"], t["scores"]) for t in json.loads(printed)["trials"]]

    first = searched("a", "0")
    assert first == searched("b", "0")
    assert first != searched("c", "1")


# ---------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trials", "3"], "name a model"),
        (["resnet8", "--algorithm", "gird"], "Did you mean 'grid'?"),
        (["resnet8", "--algorithm", "hyperband", "--trials", "3"], "hyperband derives them"),
        (["resnet8", "--budget", "soon"], "90s, 30m"),
        (["resnet8", "--budget", "0s"], "90s, 30m"),
        (["resnet8", "--chief", "5000"], "HOST:PORT"),
        (["--join", "host:0", "--out", "x"], "HOST:PORT"),
        (["--join", "host:5000"], "needs --out"),
        (["--join", "host:5000", "--out", "x", "--seed", "1"], "--seed"),
        (["--resume", "x", "--epochs", "3", "--no-early-stopping"], "--no-early-stopping"),
        (["--resume", "x"], "not a search folder"),
        (["resnet8", "--workers", "0"], "goes with --chief"),
        (["resnet8", "--recipe", "original"], "validation_split 0"),
        (["resnet8", "--freeze", "stem"], "with --weights FILE"),
        (["resnet8", "--input-size", "3x3x3"], "64 or 64x48"),
        (["--resume", "x", "--reset-head"], "--reset-head"),
        (["--resume", "x", "--dry-run"], "goes with a new search"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, said, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = arguments[0] == "resnet8"
    code, _, err = run_cli(capfd, "tune", *arguments, *(["--dataset", "digits"] if model else []))
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_prints_the_search_and_leaves_nothing(as_json, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["tune", *SMALL, "--space", "augmentation", "--dry-run", "--out", "search"]
    code, printed, said = run_cli(capfd, *words, *(["--json"] if as_json else []))
    assert code == 0
    asked = schema.SearchConfig.model_validate(
        json.loads(printed) if as_json else parse(printed.encode(), "printed").data
    )
    assert asked.space_name == "augmentation"
    assert asked.base.recipe.epochs == 1
    # Digits are not mirrored, so that searching flips would train every point twice.
    assert "recipe.augment.flip" not in asked.space.parameters
    assert "recipe.augment.flip: it is left out" in said
    assert not list(tmp_path.iterdir())


def test_a_search_fine_tunes(tmp_path, capfd, fake_fit):
    pets = paint_classes(tmp_path / "pets", "cat", "dog")
    space = space_file(
        tmp_path,
        **{RATE: "{type: choice, values: [0.01, 0.1]}",
           "recipe.initial.stem": "{type: choice, values: [null, whitening]}"},
    )  # fmt: skip
    trained = []

    def accuracy_of(config):
        trained.append(config)
        return 0.5

    fake_fit(accuracy_of)
    start = ["resnet8", "--dataset", pets, "--epochs", "1", "--input-size", "24",
             "--weights", "pretrained", "--space", space, "--algorithm", "grid"]  # fmt: skip
    code, _, said = run_cli(capfd, "tune", *start, "--out", str(tmp_path / "no"))
    assert code == 2
    assert "head" in said  # ten classes do not fit two
    code, _, said = run_cli(
        capfd, "tune", *start, "--reset-head", "--freeze", "stem,stage1",
        "--out", str(tmp_path / "search"), "--json",
    )  # fmt: skip
    assert code == 0
    # A file's weights are the first weights, whatever the recipe says of them.
    assert "recipe.initial.stem: it is left out" in said
    assert sorted(c.recipe.optimizer.learning_rate for c in trained) == [0.01, 0.1]
    for config in trained:
        assert config.weights.endswith(".safetensors")
        assert (config.reset_head, config.freeze) == (True, ["stage1", "stem"])
        assert config.input == [24, 24, 3]


def test_an_existing_folder_is_left_alone(tmp_path, capfd):
    (tmp_path / "mine.txt").write_text("precious")
    code, _, err = run_cli(capfd, "tune", *SMALL, "--out", str(tmp_path))
    assert code == 2
    assert "not empty" in err


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"trial": "0"}', '{"trial": "../x"}'])
def test_a_damaged_record_is_named(damage, tmp_path, capfd, fake_fit):
    fake_fit(lambda config: 0.5)
    out = tmp_path / "s"
    run_cli(capfd, "tune", *SMALL, "--trials", "1", "--out", str(out))
    (out / "records" / "0.json").write_text(damage)
    code, _, err = run_cli(capfd, "tune", "--resume", str(out))
    assert code == 2
    assert str(out / "records" / "0.json") in err


def test_short_names_tell_paths_apart():
    paths = ["recipe.optimizer.learning_rate", "model.stages.0.width", "model.stages.1.width"]
    assert list(short_names(paths).values()) == ["learning_rate", "0.width", "1.width"]


def test_the_options_of_a_retraining_go_over_the_search_s(tmp_path, capfd, fake_fit):
    fake_fit(lambda config: 0.5)
    out = str(tmp_path / "s")
    run_cli(capfd, "tune", *SMALL, "--trials", "1", "--out", out)
    options = ["--epochs", "7", "--limit-train", "50", "--seed", "9", "--dry-run", "--json"]
    code, printed, _ = run_cli(capfd, "fit", "resnet8", "--from-search", out, *options)
    assert code == 0
    config = configs.schema.RunConfig.model_validate(json.loads(printed))
    assert (config.recipe.epochs, config.horizon, config.seed) == (7, 7, 9)
    assert (config.data.limit_train, config.data.train_on) == (50, "train+validation")
    code, _, err = run_cli(capfd, "fit", "resnet20", "--from-search", out)
    assert code == 2
    assert "is a run of resnet8" in err


# ---------------------------------------------------------------------------- published searches

PUBLISHED = sorted(shipped("tuning").glob("*.json"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_a_published_search_is_one_of_a_space_that_ships(file):
    found = Search.model_validate(json.loads(file.read_text()))
    space, _ = read_space(found.space)
    assert found.complete
    assert len(found.trials) >= 12
    assert found.model in file.stem
    assert found.best == best_of(found.trials, found.algorithm)
    for trial in found.trials:
        assert point(space, trial.values) == trial.values
    assert "/" not in (found.data_remark or "")


def test_the_default_rate_is_near_the_one_that_was_searched():
    recipe = load_registry().recipes["default"]
    cited = [file for file in PUBLISHED if file.name in recipe.description]
    assert cited, "the recipe names the search that its rate comes from"
    found = Search.model_validate(json.loads(cited[0].read_text()))
    assert found.best is not None
    best = found.best.values["recipe.optimizer.learning_rate"]
    # Of a longer training on more images, less than the best of a short one.
    assert best / 2 <= recipe.optimizer.learning_rate <= best
