"""Several seeds: what is trained, what is gone on with, and what comes out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from commands import assert_refused_lightly, run_cli
from processes import BUSY, die_at_write, newest_step, start
from rich.console import Console

import kerasnet
from kerasnet import api, config, schema, seeds
from kerasnet.document import to_yaml
from kerasnet.errors import BadInputError, DivergedError
from kerasnet.runs import Run, create_run
from kerasnet.seeds import SeedRuns, seeds_of

QUICK = ["resnet8", "--dataset", "digits", "--limit-train", "100", "--precision", "float32"]
EXACT = ("metrics.csv", "predictions.npz")


@pytest.mark.parametrize(
    ("text", "found"),
    [("0,1,2", [0, 1, 2]), ("7", [7]), (" 3, 1", [3, 1]), ("2147483647", [2**31 - 1])],
)
def test_seeds_are_read_in_their_order(text, found):
    assert seeds_of(text) == found


def test_any_collection_of_whole_numbers_will_do():
    assert seeds.checked_seeds(range(3)) == [0, 1, 2]
    for wrong, said in (((0, True), "True"), ((0, 1.0), "1.0"), ((), "not 0"), (("0",), "'0'")):
        with pytest.raises(BadInputError, match=said):
            seeds.checked_seeds(wrong)


FIT = ["fit", *QUICK]
BAD = [
    ([*FIT, "--seeds", ""], "--seeds takes whole numbers from 0 to 2147483647 such as"),
    ([*FIT, "--seeds", "0,,1"], "not '0,,1'"),
    ([*FIT, "--seeds", "0,1,"], "not '0,1,'"),
    ([*FIT, "--seeds", "-1,0"], "not '-1,0'"),
    ([*FIT, "--seeds", "0-3"], "not '0-3'"),
    ([*FIT, "--seeds", "1,2,01"], "1 is there twice"),
    ([*FIT, "--seeds", "2147483648"], "a seed lies in 0…2147483647"),
    ([*FIT, "--seeds", ",".join(map(str, range(1001)))], "1 to 1000 seeds, not 1001"),
    ([*FIT, "--seeds", "0,1", "--seed", "3"], "--seeds and --seed 3: give one of them"),
    ([*FIT, "--seeds", "0,1", "--out", __file__], "is a file"),
    (["fit", "--resume", "DIR", "--seeds", "0,1"], "--seeds: what goes on has its seeds"),
    (["fit", "--resume", "DIR", "--seed", "0"], "--seed 0: DIR trains the seeds 2, 0"),
    (["fit", "--resume", "DIR", "--batch-size", "7"], "--batch-size 7 contradicts the run"),
    (["fit", "--resume", "DIR", "--epochs", "1"], "--epochs 1 would shorten the run, which has 8"),
    (["fit", "--resume", "DIR", "--budget", "1m"], "--budget 1m: a run that goes on keeps"),
    (["evaluate", "DIR"], "holds the runs of several seeds"),
    ([*FIT, "--budget", "1d"], "--budget takes 90s, 30m, 2h or 1h30m, not '1d'"),
    ([*FIT, "--budget", "0s"], "not '0s'"),
    ([*FIT, "--budget", ""], "not ''"),
    ([*FIT, "--budget", "1m", "--epochs", "3"], "excludes --epochs 3; give one of them"),
    ([*FIT, "--train-on", "validation"], "data.train_on"),
]  # fmt: skip


def asked(*words: int, epochs: int = 8) -> schema.SeedsConfig:
    options = {"dataset": "digits", "precision": "float32", "epochs": epochs}
    return seeds.for_seeds(config.new_run("resnet8", options), words)


def test_bad_input_is_refused_before_tensorflow_loads(tmp_path):
    folder = seeds.begin(tmp_path / "runs", asked(2, 0)).path
    before = (folder / "seeds.yaml").read_bytes()
    assert_refused_lightly(json.loads(json.dumps(BAD).replace("DIR", str(folder))))
    assert (folder / "seeds.yaml").read_bytes() == before
    assert not list(folder.glob("seed-*"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[2, 0]", "[0, 0]", "0 is there twice"),
        ("[2, 0]", "[two, 0]", "seeds[0]"),
        ("[2, 0]", "[-2, 0]", "seeds[0]"),
        ("seeds:", "seed:", "Did you mean 'seeds'?"),
        ("batch_size: 32", "batch_sise: 32", "Did you mean 'batch_size'?"),
    ],
)
def test_a_folder_that_says_what_cannot_be_is_refused(tmp_path, capfd, old, new, said):
    file = seeds.begin(tmp_path / "runs", asked(2, 0)).path / "seeds.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    code, _, err = run_cli(capfd, "fit", "--resume", str(file.parent))
    assert (code, said in err, "seeds.yaml:" in err) == (2, True, True), err


def test_a_dry_run_prints_the_configuration_and_the_seeds(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_cli(capfd, *FIT, "--seeds", "2,0", "--dry-run", "--json")
    found = json.loads(out)
    assert (code, found["seeds"], found["base"]["seed"]) == (0, [2, 0], 2)
    code, out, _ = run_cli(capfd, *FIT, "--seeds", "2,0", "--dry-run")
    assert (code, "seeds: [2, 0]\n" in out, "name: resnet8" in out) == (0, True, True)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- without training


@pytest.fixture
def trained(monkeypatch):
    """In place of training: what was trained, in order, and how seeds end."""
    done: list[tuple[int, int, schema.RunConfig]] = []
    ends: dict[int, BaseException] = {}

    def train_run(run: Run, console, config):
        config = config.model_copy(
            update={
                "inference": schema.Inference(
                    mean=[0.0], std=[1.0], resize=[1, 1], class_names=["a"]
                )
            }
        )
        if config.epochs_open:
            values = {"recipe.epochs": 5, "budget.epochs": 5, "budget.step_seconds": 0.25}
            config = kerasnet.config.with_values(config, values)
        if config.rate_open:
            found = {0: 0.003}.get(config.seed, 0.1)
            values = {"lr_find.suggestion": found, "recipe.optimizer.learning_rate": found}
            config = kerasnet.config.with_values(config, values)
        run.reopen()
        run.write_config(config)
        done.append((config.seed, config.recipe.epochs, config))
        if config.seed in ends:
            raise ends[config.seed]
        result = {
            "model": "resnet8", "dataset": "digits", "data_remark": None, "recipe": "digits",
            "precision": "float32", "test_accuracy": (90 + config.seed) / 100, "test_loss": 0.5,
            "test_images": 360, "train_images": 100, "epochs": config.recipe.epochs,
            "images_per_second": 100.0 + config.seed, "seconds": 2.0, "params": {"total": 7},
            "run": str(run.path),
        }  # fmt: skip
        run.write_summary(result)
        (run.path / "report.html").write_text("")
        return result

    monkeypatch.setattr(api, "train_run", train_run)
    monkeypatch.setattr(seeds, "_let_go", lambda: None)
    return done, ends


def test_the_object_that_is_printed(trained, tmp_path, capfd):
    out = tmp_path / "runs"
    code, printed, progress = run_cli(capfd, *FIT, "--seeds", "1,4,2", "--out", str(out), "--json")
    found = json.loads(printed)
    assert code == 0
    assert "seed 4, run 2 of 3" in progress
    assert found["seeds"] == [1, 4, 2]
    assert found["test_accuracy"] == pytest.approx(0.91 + 0.04 / 3)
    assert found["test_accuracy_sd"] == pytest.approx(statistics.stdev([0.91, 0.94, 0.92]))
    assert [run["seed"] for run in found["runs"]] == [1, 4, 2]
    assert [run["test_accuracy"] for run in found["runs"]] == [0.91, 0.94, 0.92]
    assert [Path(run["run"]) for run in found["runs"]] == [out / f"seed-{n}" for n in (1, 4, 2)]
    assert (found["model"], found["epochs"], found["params"]) == ("resnet8", 8, {"total": 7})
    assert (found["images_per_second"], found["seconds"]) == (pytest.approx(307 / 3), 6.0)
    assert (found["diverged"], found["run"]) == ({}, str(out))
    assert SeedRuns(out).summary() == found


def test_what_is_printed_for_people(trained, tmp_path, capfd):
    _, said, _ = run_cli(capfd, *FIT, "--seeds", "1,4,2", "--out", str(tmp_path / "runs"))
    lines = [line.split() for line in said.splitlines()]
    assert ["1", "91.00%", "0.5000", str(tmp_path / "runs" / "seed-1")] in lines
    spread = "92.33% ± 1.53% (mean ± standard deviation, n = 3) on 360 images"
    assert f"test accuracy {spread}" in said
    _, said, _ = run_cli(capfd, *FIT, "--seeds", "3", "--out", str(tmp_path / "one"))
    assert "test accuracy 93.00% on 360 images" in said
    assert SeedRuns(tmp_path / "one").summary()["test_accuracy_sd"] is None


def test_a_run_that_diverges_leaves_the_others(trained, tmp_path, capfd):
    done, ends = trained
    out = tmp_path / "runs"
    ends[1] = DivergedError("the loss is no number")
    words = [*FIT, "--seeds", "0,1,2", "--out", str(out), "--json"]
    code, printed, err = run_cli(capfd, *words)
    assert code == 3
    assert [seed for seed, *_ in done] == [0, 1, 2]
    assert err.rstrip().endswith(
        f"{out}: 1 of 3 runs diverged; the others are kept\nseed 1: the loss is no number"
    )
    found = json.loads(printed)
    assert found["diverged"] == {"1": "the loss is no number"}
    assert [run["seed"] for run in found["runs"]] == [0, 2]
    assert found["test_accuracy"] == pytest.approx(0.91)
    with pytest.raises(BadInputError, match="the run of seed 1 has not finished"):
        SeedRuns(out).summary()

    code, said, _ = run_cli(capfd, "fit", "--resume", str(out), "--on-nan", "rollback")
    assert (code, "diverged" in said, len(done)) == (3, True, 4)
    assert (done[-1][0], done[-1][2].execution.on_nan) == (1, "rollback")
    del ends[1]
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert [seed for seed, *_ in done[4:]] == [1]
    assert SeedRuns(out).asked.base.execution.on_nan == "rollback"


def test_where_all_diverge_there_is_no_mean(trained, tmp_path, capfd):
    _, ends = trained
    ends |= {0: DivergedError("no number"), 1: DivergedError("nor here")}
    out = tmp_path / "runs"
    code, printed, _ = run_cli(capfd, *FIT, "--seeds", "0,1", "--out", str(out), "--json")
    assert (code, json.loads(printed)["test_accuracy"], json.loads(printed)["runs"]) == (
        3,
        None,
        [],
    )
    code, printed, err = run_cli(capfd, "fit", "--resume", str(out))
    assert (code, "2 of 2 runs diverged" in err, "%" in printed) == (3, True, False)


def test_more_epochs_are_for_all_of_them_and_remembered(trained, tmp_path, capfd):
    done, ends = trained
    out = tmp_path / "runs"
    words = [*FIT, "--seeds", "0,1,2", "--out", str(out)]
    assert run_cli(capfd, *words)[0] == 0
    before = (out / "seed-0" / "config.yaml").read_bytes()
    assert run_cli(capfd, "fit", "--resume", str(out), "--epochs", "11", "--dry-run")[0] == 0
    assert SeedRuns(out).asked.base.recipe.epochs == 8
    ends[1] = BadInputError("damaged")
    code, _, err = run_cli(capfd, "fit", "--resume", str(out), "--epochs", "11")
    assert (code, "damaged" in err) == (2, True)
    assert (out / "seed-0" / "config.yaml").read_bytes() != before
    assert [(seed, epochs) for seed, epochs, _ in done] == [
        (0, 8), (1, 8), (2, 8), (0, 11), (1, 11)
    ]  # fmt: skip
    del ends[1]
    assert not SeedRuns(out).finished
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert [(seed, epochs) for seed, epochs, _ in done[5:]] == [(1, 11), (2, 11)]
    assert all(found.horizon == 8 for *_, found in done)
    assert SeedRuns(out).finished


def test_a_run_that_was_made_longer_by_itself_stays_so(trained, tmp_path, capfd):
    done, _ = trained
    out = tmp_path / "runs"
    assert run_cli(capfd, *FIT, "--seeds", "0,1", "--out", str(out))[0] == 0
    assert run_cli(capfd, "fit", "--resume", str(out / "seed-1"), "--epochs", "20")[0] == 0
    (out / "seed-1" / "summary.json").unlink()
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert [(seed, epochs) for seed, epochs, _ in done[2:]] == [(1, 20), (1, 20)]
    assert SeedRuns(out).summary()["epochs"] is None


def test_what_is_measured_is_measured_once(trained, tmp_path, capfd):
    done, ends = trained
    out = tmp_path / "runs"
    ends[0] = BadInputError("interrupted")
    words = [*FIT, "--seeds", "0,1,2", "--budget", "1m", "--out", str(out)]
    assert run_cli(capfd, *words)[0] == 2
    assert SeedRuns(out).asked.base.epochs_open
    ends.clear()
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert [(seed, epochs) for seed, epochs, _ in done] == [(0, 5), (0, 5), (1, 5), (2, 5)]
    budget = schema.Budget(seconds=60.0, epochs=5, step_seconds=0.25)
    assert all((c.budget, c.horizon) == (budget, 5) for *_, c in done)
    assert SeedRuns(out).asked.base.inference == done[0][2].inference


def test_a_rate_that_is_found_is_found_once(trained, tmp_path, capfd):
    done, _ = trained
    words = [*FIT, "--seeds", "0,1,2", "--learning-rate", "find", "--out", str(tmp_path / "runs")]
    assert run_cli(capfd, *words)[0] == 0
    assert [c.recipe.optimizer.learning_rate for *_, c in done] == [0.003] * 3
    assert {c.lr_find.suggestion for *_, c in done} == {0.003}
    assert not SeedRuns(tmp_path / "runs").asked.base.rate_open


def test_a_rate_that_another_run_has_found_is_taken_over(trained, tmp_path, capfd, monkeypatch):
    done, _ = trained
    out, finding = tmp_path / "runs", api.train_run

    def train_run(run: Run, console, config):
        if config.seed == 0 and config.rate_open:
            run.write_config(config)
            raise DivergedError("no rate")
        return finding(run, console, config)

    monkeypatch.setattr(api, "train_run", train_run)
    words = [*FIT, "--seeds", "0,1,2", "--learning-rate", "find", "--out", str(out)]
    assert run_cli(capfd, *words)[0] == 3
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert [(seed, c.recipe.optimizer.learning_rate) for seed, _, c in done] == [
        (1, 0.1), (2, 0.1), (0, 0.1)
    ]  # fmt: skip
    assert {c.precision.resolved for *_, c in done} == {done[0][2].precision.resolved}


@pytest.mark.parametrize("measured", [True, False])
def test_a_length_of_its_own_is_not_the_others(trained, tmp_path, capfd, monkeypatch, measured):
    done, ends = trained
    out = tmp_path / "runs"
    ends[0] = BadInputError("interrupted")
    words = [*FIT, "--seeds", "0,1", "--budget", "1m", "--out", str(out)]
    if measured:
        assert run_cli(capfd, *words)[0] == 2
    else:
        base = config.with_values(asked(0, 1).base, {"budget": {"seconds": 60.0}})
        seeds.begin(out, seeds.for_seeds(base, [0, 1]))
        create_run(out / "seed-0", base)
    ends.clear()
    assert run_cli(capfd, "fit", "--resume", str(out / "seed-0"), "--epochs", "20")[0] == 0
    (out / "seed-0" / "summary.json").unlink()
    assert run_cli(capfd, "fit", "--resume", str(out))[0] == 0
    assert [(seed, epochs, c.horizon) for seed, epochs, c in done][-2:] == [
        (0, 20, 5 if measured else 20), (1, 5, 5)
    ]  # fmt: skip


def test_another_seeds_run_is_not_taken_for_ones_own(trained, tmp_path, capfd):
    out = tmp_path / "runs"
    words = [*FIT, "--seeds", "0,1", "--out", str(out)]
    assert run_cli(capfd, *words)[0] == 0
    shutil.rmtree(out / "seed-1")
    shutil.copytree(out / "seed-0", out / "seed-1")
    code, _, err = run_cli(capfd, "fit", "--resume", str(out))
    assert (code, "expected a run of seed 1, received one of seed 0" in err) == (2, True)


def test_a_program_gets_the_folder(trained, tmp_path):
    done, ends = trained
    options = {"dataset": "digits", "epochs": 3, "console": Console(quiet=True)}
    found = kerasnet.fit("resnet8", seeds=range(2), out=tmp_path / "runs", **options)
    assert isinstance(found, SeedRuns)
    assert (found.finished, found.summary()["seeds"]) == (True, [0, 1])
    assert [run.path.name for run in found.runs] == ["seed-0", "seed-1"]
    for run in found.runs:
        assert run.command_for(run.config) == f"kerasnet fit --resume {found.path}"
    for resumed in (found, found.path):
        assert kerasnet.fit(resume=resumed, console=Console(quiet=True)).path == found.path
    assert len(done) == 2
    ends[1] = DivergedError("no number")
    with pytest.raises(DivergedError, match="seed 1: no number"):
        kerasnet.fit("resnet8", seeds=[0, 1], out=tmp_path / "more", **options)


def test_two_processes_do_not_share_a_folder(tmp_path, capfd):
    folder = seeds.begin(tmp_path / "runs", asked(0, 1)).path
    with kerasnet.files.locked(folder, "trained"):
        code, _, err = run_cli(capfd, "fit", "--resume", str(folder))
    assert (code, "is being trained by another process" in err) == (2, True)
    assert not list(folder.glob("seed-*"))


# ---------------------------------------------------------------------------- in processes


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    file = tmp_path_factory.mktemp("registry") / "busy.yaml"
    file.write_text(BUSY)
    return ["fit", "busy", "--registry", str(file), "--dataset", "digits", "--limit-train", "100",
            "--deterministic", "--epochs", "2", "--checkpoint-every", "2", "steps"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> Path:
    """A folder of two finished runs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    training = start(*words, "--seeds", "2,0", "--out", str(folder / "runs"), log=folder / "log")
    assert training.wait() == 0, training.said
    return folder / "runs"


def same(one: Path, other: Path) -> None:
    for name in EXACT:
        assert (one / name).read_bytes() == (other / name).read_bytes(), (one, name)


def test_a_seed_among_several_is_the_run_of_that_seed(words, whole, tmp_path):
    training = start(*words, "--seed", "0", "--out", str(tmp_path / "run"), log=tmp_path / "log")
    assert training.wait() == 0, training.said
    same(tmp_path / "run", whole / "seed-0")
    metrics = [(whole / f"seed-{n}" / "metrics.csv").read_bytes() for n in (0, 2)]
    assert metrics[0] != metrics[1]


def test_what_has_finished_is_said_without_tensorflow_and_left_alone(whole):
    before = {f: f.read_bytes() for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}
    code = (
        "import sys\n"
        "from kerasnet.cli import main\n"
        f"try: main(['fit', '--resume', {str(whole)!r}, '--json'])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    values = [kerasnet.load_run(whole / f"seed-{n}").summary()["test_accuracy"] for n in (2, 0)]
    assert [run["test_accuracy"] for run in found["runs"]] == values
    assert found["test_accuracy"] == pytest.approx(statistics.fmean(values))
    after = {f: f.read_bytes() for f in whole.rglob("*") if f.is_file() and f.name != ".lock"}
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 0])
def test_an_interruption_says_how_to_go_on_with_all(words, whole, tmp_path, seed):
    out = tmp_path / "runs"
    training = start(*words, "--seeds", "2,0", "--out", str(out), log=tmp_path / "log")
    training.until(lambda: newest_step(out / f"seed-{seed}") >= 2)
    training.signal(signal.SIGINT)
    assert training.wait() == 130, training.said
    assert training.said.rstrip().endswith(f"Go on with: kerasnet fit --resume {out}")
    training = start("fit", "--resume", str(out), log=tmp_path / "log")
    assert training.wait() == 0, training.said
    for n in (2, 0):
        same(out / f"seed-{n}", whole / f"seed-{n}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 9, 16, 20, 25, 30])
@pytest.mark.parametrize("stage", ["half", "renamed"])
def test_killed_runs_end_as_if_they_had_not_been(words, whole, tmp_path, number, stage):
    out = tmp_path / "runs"
    new = [*words, "--seeds", "2,0", "--out", str(out)]
    training = start(*new, log=tmp_path / "log", before=die_at_write, with_=(number, stage))
    assert training.wait() == -signal.SIGKILL, training.said
    begun = (out / "seeds.yaml").exists()
    assert begun or (number, stage) == (1, "half")
    on = ["fit", "--resume", str(out)] if begun else new
    training = start(*on, log=tmp_path / "log")
    assert training.wait() == 0, training.said
    for n in (2, 0):
        same(out / f"seed-{n}", whole / f"seed-{n}")
    assert not list(out.rglob("*.temporary"))


@pytest.mark.slow
def test_a_signal_between_two_runs(words, whole, tmp_path):
    out = tmp_path / "runs"
    training = start(*words, "--seeds", "2,0", "--out", str(out), log=tmp_path / "log")
    training.until(lambda: (out / "seed-2" / "report.html").exists())
    training.signal(signal.SIGTERM)
    assert training.wait() == 143, training.said
    assert training.said.rstrip().endswith(f"Go on with: kerasnet fit --resume {out}")
    assert "Traceback" not in training.said
    training = start("fit", "--resume", str(out), log=tmp_path / "log")
    assert training.wait() == 0, training.said
    same(out / "seed-0", whole / "seed-0")


def _note_memory(log: str) -> None:
    """Note the memory in use after each of the runs that follow in this process."""
    let_go = seeds._let_go

    def noted() -> None:
        let_go()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with open(log, "a") as file:
            print(pages * os.sysconf("SC_PAGE_SIZE"), file=file)

    seeds._let_go = noted


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_from_run_to_run(tmp_path):
    log, out = tmp_path / "memory", tmp_path / "runs"
    words = ["fit", "resnet20", *QUICK[1:], "--epochs", "1", "--seeds", "0,1,2,3,4,5,6,7"]
    training = start(
        *words, "--out", str(out), log=tmp_path / "log", before=_note_memory, with_=(str(log),)
    )
    assert training.wait(400) == 0, training.said
    used = [int(line) for line in log.read_text().split()]
    assert len(used) == 8
    # The first ones load what is loaded once.
    assert max(used[4:]) - max(used[1:4]) < 40e6, used


def test_the_file_is_written_before_anything_else(words, tmp_path):
    out = tmp_path / "runs"
    new = [*words, "--seeds", "2,0", "--out", str(out)]
    training = start(*new, log=tmp_path / "log", before=die_at_write, with_=(1, "renamed"))
    assert training.wait() == -signal.SIGKILL, training.said
    assert {f.name for f in out.iterdir()} == {"seeds.yaml", ".lock"}
    found = SeedRuns(out).asked
    assert (found.seeds, found.base.recipe.epochs) == ([2, 0], 2)
    assert to_yaml(found) in (out / "seeds.yaml").read_text()
