"""What a search found: its page, CSV, JSON and TensorBoard events, from folders written by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Page, check_self_contained
from search_folders import (
    KIND,
    MOMENTUM,
    RATE,
    WIDE,
    make_hyperband,
    make_search,
    write_curve,
    write_record,
    write_search,
)

from kerasnet import schema
from kerasnet.errors import BadInputError
from kerasnet.runs import METRICS
from kerasnet.tune import figures
from kerasnet.tune import report as reports
from kerasnet.tune.records import Search, Trial

EVIL = [
    "<script>alert(1)</script>",
    '" onload=\'x\' $x_$ id="y"',
    "a\x1b[31m\x00b\n雪 &amp;",
]


def page_of(folder: Path) -> Page:
    """Write the page and parse it."""
    text = reports.write_search_report(folder).read_text(encoding="utf-8")
    check_self_contained(text)
    return Page(text)


def picture(page: Page, start: str) -> str:
    """Return what the figure says whose description begins so."""
    (found,) = [label for label in page.pictures if label.startswith(start)]
    return found


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A search of three trials to damage."""
    make_search(tmp_path / "search", 3, epochs=2)
    return tmp_path / "search"


# ---------------------------------------------------------------------------- the page


def test_a_search_of_many_fields(tmp_path: Path) -> None:
    remark = "images stored as JPEG, a little harder than the original"
    # The line names where the folder is now, not where the search once wrote it.
    folder = tmp_path / "a & b"
    search = make_search(
        folder, 14, WIDE, epochs=8, seed=5, data_remark=remark, limit_train=5000,
        command="kerasnet fit --from-search elsewhere",
    )  # fmt: skip
    page, best = page_of(folder), search.best
    assert best is not None
    assert best.val_accuracy is not None
    words = page.words
    for expected in (
        "resnet8 on digits : learning_rate",
        f"{100 * best.val_accuracy:.2f} % best validation accuracy trial {best.trial}",
        "10 finished, 2 stopped, 2 diverged",
        "5,000 training images",
        "seed 7",
        "7:28",
        remark,
        f"kerasnet fit resnet8 --from-search '{folder}'",
        "No trial has read the test set",
        "a number from 1e-05 to 1, its logarithm uniform",
        "one of cosine, linear, constant",
        "the loss of step 12 is not a finite number",
        "learning_rate (log)",
        "no score",
        "absent",
    ):
        assert expected in words
    assert all(f"{path} {value}" in words for path, value in best.values.items())
    assert "unfinished" not in words
    assert "learning_rate, label_smoothing, momentum, type, batch_size and validation accuracy" in (
        picture(page, "Parallel coordinates of 14 trials")
    )
    # A panel for each numeric field, and none for the choice of words.
    against = [p for p in page.pictures if p.startswith("Validation accuracy against")]
    assert [label.split()[3] for label in against] == [
        "learning_rate", "label_smoothing,", "momentum,", "batch_size,",
    ]  # fmt: skip
    assert "(log axis)" in against[0]
    assert f"the best is trial {best.trial}" in picture(page, "Learning curves of 12 trials over 8")
    assert f"best so far {100 * best.val_accuracy:.2f} %" in picture(page, "Scores of 14 trials")


def test_the_table_has_every_trial_with_the_best_marked(tmp_path: Path) -> None:
    search = make_search(tmp_path, 14, WIDE, seed=5)
    text = reports.write_search_report(tmp_path).read_text(encoding="utf-8")
    rows = text.split('id="trials"')[1].split("<tbody>")[1].split("</tbody>")[0].split("<tr")[1:]
    assert len(rows) == 14
    assert ["best" in row.split(">")[0] for row in rows] == [True] + [False] * 13
    for row, trial in zip(rows, search.ranked, strict=True):
        cells = Page(f"<table><tr{row}</table>").words
        assert cells.startswith(trial.trial)
        assert trial.state in cells
        assert ("–" in cells) == (trial.val_accuracy is None or MOMENTUM not in trial.values)


def test_the_same_folder_gives_the_same_bytes(small: Path) -> None:
    first = reports.write_search_report(small).read_bytes()
    assert reports.write_search_report(small).read_bytes() == first
    assert not list(small.glob(".report*"))


def test_two_hundred_trials_stay_small(tmp_path: Path) -> None:
    make_search(tmp_path, 200, WIDE, epochs=20)
    page = page_of(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert picture(page, "Scores of 200 trials")
    assert "0199" in page.words


def test_more_trials_than_a_table_holds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reports, "TRIAL_ROWS", 2)
    search = make_hyperband(tmp_path)
    page = page_of(tmp_path)
    assert "here and in the figures; the CSV has all" in page.words
    assert search.best is not None
    # The best one is shown even where shorter trials had higher scores.
    assert f"the best is trial {search.best.trial}" in picture(page, "Learning curves of 2")
    assert len(reports.search_csv(search).splitlines()) == 14


def test_one_trial(tmp_path: Path) -> None:
    make_search(tmp_path, 1, epochs=1, seed=1)
    page = page_of(tmp_path)
    assert "promises a little too much" not in page.words
    assert "Learning curves of 1 trials over 1 epochs" in picture(page, "Learning curves")


def test_every_trial_diverged(tmp_path: Path) -> None:
    lost = {"state": "diverged", "error": "step 3: NaN", "exit_code": 3}
    trials = [Trial(trial=f"{i:04d}", values={RATE: 10.0**i}, **lost) for i in range(3)]
    write_search(tmp_path, trials)
    page = page_of(tmp_path)
    assert "Every trial diverged: search lower learning rates" in page.words
    assert "best validation accuracy" not in page.words
    assert "There are none." in page.words
    assert "none has a score" in picture(page, "Validation accuracy against learning_rate")
    assert "3 diverged" in page.words


@pytest.mark.parametrize("state", ["failed", "running", "interrupted", "stopped"])
def test_no_trial_finished(state: str, tmp_path: Path) -> None:
    trial = Trial(trial="0000", values={RATE: 0.1}, state=state, error="x" * 9999)
    write_search(tmp_path, [trial], planned=9, complete=False)
    page = page_of(tmp_path)
    assert "there is no best one yet" in page.words
    ended = 0 if state in ("running", "interrupted") else 1
    assert f"unfinished: {ended} trial{'s' * (ended == 0)} of 9 ended" in page.words
    assert "x" * 9999 not in page.words


def test_a_search_without_trials(tmp_path: Path) -> None:
    write_search(tmp_path, [], complete=False)
    assert "No trial has been begun" in page_of(tmp_path).words


def test_hyperband_goes_on_and_its_best_is_one_of_the_longest(tmp_path: Path) -> None:
    search = make_hyperband(tmp_path)
    assert search.best is not None
    page = page_of(tmp_path)
    assert search.best.trial == "0012"
    assert "The best is chosen among those trained longest" in page.words
    assert "It falls where a trial trained for longer" in page.words
    assert "0012 " in page.words
    so_far = figures.best_so_far(search.trials)
    assert so_far[4:9] == [0.9] * 5
    assert so_far[-1] == search.best.val_accuracy
    found = json.loads(printed(tmp_path, as_json=True))
    assert found["curves"]["0000"] == [[1, pytest.approx(0.15)]]
    assert [epoch for epoch, _ in found["curves"]["0012"]] == list(range(1, 10))


def test_several_executions_show_their_range(tmp_path: Path) -> None:
    search = make_search(tmp_path, 4, executions=3, seed=6)
    best = search.best
    assert best is not None
    low, high = 100 * min(best.scores), 100 * max(best.scores)
    words = page_of(tmp_path).words
    assert f"mean of 3 executions ({low:.2f} – {high:.2f} %)" in words
    assert "from the lowest to the highest execution" in words


def test_missing_run_folders_are_told(small: Path) -> None:
    assert "missing from their run folders" not in page_of(small).words
    (small / "trials/0001/metrics.csv").unlink()
    assert "1 trial of those trained have no curve" in page_of(small).words
    for name in ("0000", "0002"):
        (small / f"trials/{name}/metrics.csv").unlink()
    page = page_of(small)
    assert "no run folder lies in trials/" in page.words
    assert not [label for label in page.pictures if label.startswith("Learning curves")]


def test_an_outcome_is_published_without_the_machine_s_paths(small: Path, capsys) -> None:
    file, search = small.parent / "found.json", json.loads((small / "search.json").read_text())
    search["data_remark"] = "read from /home/me/data/cifar10/3.0.2; stored as JPEG"
    (small / "search.json").write_text(json.dumps(search))
    code, _, said = run_cli(capsys, "tune", "report", str(small), "--publish", str(file))
    assert (code, said) == (0, f"{file}: written\n")
    found = json.loads(file.read_text())
    assert found["data_remark"] == "version 3.0.2; stored as JPEG"
    assert [trial["values"] for trial in found["trials"]] == [t["values"] for t in search["trials"]]
    assert not {"command", "runs", "attempts"} & (found.keys() | found["trials"][0].keys())
    assert Search.model_validate(found).best is not None
    (small / "search.json").write_text(json.dumps({**search, "complete": False}))
    code, _, said = run_cli(capsys, "tune", "report", str(small), "--publish", str(file))
    assert code == 2
    assert f"the search is not complete. Go on with: kerasnet tune --resume {small}" in said
    assert json.loads(file.read_text()) == found


def test_a_trial_that_ended_since_is_told(small: Path) -> None:
    assert "after search.json was written" not in page_of(small).words
    write_record(small, Trial(trial="0003", values={RATE: 0.1}, state="failed"))
    write_record(small, Trial(trial="0004", values={RATE: 0.1}, state="running"))
    assert "1 trial ended after search.json was written" in page_of(small).words


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    tags, attribute, control = EVIL
    trials = [
        Trial(trial="0000", values={tags: attribute, RATE: 0.1}, state="failed", error=control),
        Trial(trial="0001", values={tags: control, RATE: 1e300}, state="finished",
              val_accuracy=0.5, epochs=10**400, best_epoch=10**400, continues=tags,
              seconds=1e308),
    ]  # fmt: skip
    write_search(tmp_path, trials, model=tags, dataset=attribute, data_remark=control,
                 space=tags, algorithm=tags, command=control)  # fmt: skip
    page = page_of(tmp_path)
    assert "<script>alert(1)</script>" in page.words
    assert attribute.replace("  ", " ") in page.words
    assert "a�[31m�b 雪 &amp;" in page.words
    assert "\x1b" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    for option in ({"as_json": True}, {"as_csv": True}):
        assert not set(printed(tmp_path, **option)) & {"\x1b", "\x00"}
    assert reports.write_hparams(tmp_path, tmp_path / "log") == 2


def test_values_beside_another_space(tmp_path: Path) -> None:
    """search.json may hold paths and values that search.yaml does not know."""
    trials = [
        Trial(trial="0000", values={"other": None, KIND: "new", RATE: 50.0}, state="finished",
              val_accuracy=0.2, epochs=1),
        Trial(trial="0001", values={"other.more": True, RATE: -1.0}, state="finished",
              val_accuracy=0.2, epochs=1),
    ]  # fmt: skip
    write_search(tmp_path, trials, {RATE: WIDE[RATE], KIND: WIDE[KIND]})
    page = page_of(tmp_path)
    assert "(log axis)" not in picture(page, "Validation accuracy against learning_rate")
    assert "learning_rate, type, more and" in picture(page, "Parallel coordinates")
    assert "absent" in page.words


# ---------------------------------------------------------------------------- axes

RATES = schema.FloatRange(type="float", min=1e-5, max=1.0, log=True)
WORDS = schema.Choice(type="choice", values=[True, 1.5, "a"])


def axis(drawn: Any, *values: Any, path: str = RATE) -> figures.Axis:
    """Return the axis of a space with one field."""
    trials = [Trial(trial=str(i), values={path: v}, state="failed") for i, v in enumerate(values)]
    (found,) = figures.axes_of(schema.Space(parameters={path: drawn}), trials)
    return found


def test_places_on_axes() -> None:
    rate = axis(RATES, 0.1)
    assert rate.place(1e-5) == pytest.approx(0)
    assert rate.place(10**-2.5) == pytest.approx(0.5)
    assert rate.place(None) is None
    assert rate.place("a") is None
    assert [text for _, text in rate.ticks()] == ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]
    words = axis(WORDS, True)
    assert not words.numeric
    assert [words.place(v) for v in (True, 1.5, "a", 1)] == [1 / 6, 0.5, 5 / 6, None]
    assert axis(RATES, 5.0).high == 5.0
    linear = schema.FloatRange(type="float", min=0.1, max=0.5)
    assert axis(linear, 0.2).log  # a learning rate always is
    assert not axis(linear, 0.2, path="recipe.label_smoothing").log


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6), at=st.floats(0, 1), log=st.booleans(),
)  # fmt: skip
def test_every_value_lies_between_its_ends(low, width, at, log) -> None:
    low = abs(low) + 1e-6 if log else low
    drawn = schema.FloatRange(type="float", min=low, max=low + width, log=log)
    value = min(low + at * width, low + width)
    found = axis(drawn, value, path="x")
    place = found.place(value)
    assert place is not None
    assert -1e-6 <= place <= 1 + 1e-6
    ticks = list(found.ticks())
    assert 1 <= len(ticks) <= 20
    assert all(-1e-6 <= tick <= 1 + 1e-6 for tick, _ in ticks)


# ---------------------------------------------------------------------------- CSV and JSON


def printed(folder: Path, as_json: bool = False, as_csv: bool = False) -> str:
    """Return what `report` prints."""
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()) as out:
        reports.report(str(folder), as_json, as_csv, None)
    return out.getvalue()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False), TEXTS,
)  # fmt: skip
TRIALS = st.builds(
    Trial, trial=st.from_regex(r"[0-9]{1,9}", fullmatch=True),
    values=st.dictionaries(TEXTS.filter(str.isprintable), VALUES, max_size=4),
    state=st.sampled_from(["running", "finished", "failed", "stopped", "diverged"]),
    val_accuracy=st.none() | st.floats(0, 1), epochs=st.integers(0, 99),
    seconds=st.floats(0, 1e6), error=st.none() | TEXTS,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(trials=st.lists(TRIALS, max_size=5))
def test_csv_reads_back(trials: list[Trial]) -> None:
    text = reports.search_csv(search_of(trials))
    header, *rows = csv.reader(io.StringIO(text))
    fixed = len(reports.COLUMNS)
    assert tuple(header[:fixed]) == reports.COLUMNS
    assert len(rows) == len(trials)
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    for row, trial in zip(rows, trials, strict=True):
        cells = dict(zip(header[:fixed], row[:fixed], strict=True))
        assert (cells["trial"], cells["state"]) == (trial.trial, trial.state)
        accuracy = float(cells["val_accuracy"]) if cells["val_accuracy"] else None
        assert accuracy == trial.val_accuracy
        assert float(cells["seconds"]) == trial.seconds
        values = dict(zip(header[fixed:], row[fixed:], strict=True))
        for path, value in trial.values.items():
            cell = values[path]
            if isinstance(value, bool) or value is None:
                assert cell == {True: "true", False: "false", None: ""}[value]
            elif isinstance(value, str):
                assert len(cell) == len(value)
                assert cell == value or not value.isprintable()
            else:
                assert type(value)(cell) == value


def search_of(trials: list[Trial]) -> Search:
    """Return a search of these trials."""
    return Search(
        model="m", dataset="d", recipe="r", space="s", algorithm="random", seed=0, epochs=1,
        executions=1, complete=True, seconds=1.0, trials=trials,
    )  # fmt: skip


def test_what_report_prints(small: Path, capsys) -> None:
    written = json.loads((small / "search.json").read_text())
    found = json.loads(printed(small, as_json=True))
    curves = found.pop("curves")
    assert found == written
    assert [[epoch for epoch, _ in curve] for curve in curves.values()] == [[1, 2]] * 3
    assert list(curves) == [trial["trial"] for trial in written["trials"]]
    assert curves["0000"][-1][1] == pytest.approx(written["trials"][0]["val_accuracy"])
    assert printed(small, as_csv=True) == reports.search_csv(Search.model_validate(written))
    assert not (small / "report.html").exists()
    reports.report(str(small), False, False, str(small / "log"))
    out, err = capsys.readouterr()
    assert out == f"{small / 'report.html'}\n"
    assert "3 runs for TensorBoard: tensorboard --logdir" in err
    assert (small / "report.html").is_file()
    with pytest.raises(BadInputError, match="received both"):
        reports.report(str(small), True, True, None)


def test_numbers_that_are_none_are_null_in_json(small: Path) -> None:
    found = json.loads((small / "search.json").read_text())
    (small / "search.json").write_text(json.dumps({**found, "seconds": math.nan}))
    assert json.loads(printed(small, as_json=True), parse_constant=pytest.fail)["seconds"] is None
    assert page_of(small)


# ---------------------------------------------------------------------------- bad folders


def test_no_search_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInputError, match="not a search folder"):
            reports.write_search_report(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("search.json", "{", "not JSON"),
        ("search.json", "[]", "not a search's outcome"),
        ("search.json", "\x00", "not JSON"),
        ("search.yaml", "space_name: 3\n", "search.yaml"),
        ("records/0001.json", '{"trial": "../../etc"}', "not a trial's record"),
        ("records/0001.json", "null", "not a trial's record"),
        ("trials/0001/metrics.csv", "epoch,loss\n1,2\n", "val_accuracy"),
        ("trials/0001/metrics.csv", "epoch,val_accuracy\nx,0.5\n", "not a table of numbers"),
    ],
)
def test_damage_names_the_file_and_writes_nothing(name, text, said, small: Path) -> None:
    (small / name).write_text(text)
    with pytest.raises(BadInputError, match=said) as error:
        reports.report(str(small), False, False, str(small / "log"))
    assert Path(name).name in str(error.value)
    assert not (small / "report.html").exists()
    assert not (small / "log").exists()


def test_nothing_outside_the_folder_is_read(small: Path, tmp_path: Path) -> None:
    write_curve(tmp_path, "secret", [0.125])
    written = json.loads((small / "search.json").read_text())
    for run in ("../secret", str(tmp_path / "secret"), "trials/link"):
        if run == "trials/link":
            (small / run).symlink_to(tmp_path / "secret")
        written["trials"][0]["runs"] = [run]
        (small / "search.json").write_text(json.dumps(written))
        with pytest.raises(BadInputError, match="outside the search's folder"):
            reports.write_search_report(small)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_no_curve(small: Path) -> None:
    (small / "trials/0001/metrics.csv").unlink()
    os.mkfifo(small / "trials/0001/metrics.csv")
    with pytest.raises(BadInputError, match="expected a file"):
        reports.write_search_report(small)


def test_an_accuracy_that_is_no_number_is_left_out(small: Path) -> None:
    rows = ["1,1,1,1,1,0.25,1", "2,1,1,1,nan,nan,1", "3,1,1,1,1,7,1"]
    text = "\n".join([",".join(METRICS), *rows]) + "\n"
    (small / "trials/0001/metrics.csv").write_text(text)
    assert json.loads(printed(small, as_json=True))["curves"]["0001"] == [[1, 0.25]]
    assert page_of(small)


# ---------------------------------------------------------------------------- TensorBoard

# TensorBoard's own reader and the HParams plugin's own backend, in a process without TensorFlow.
READ = """
import json, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None
from kerasnet.tune.report import report
folder, log = sys.argv[1:]
report(folder, False, True, log)
report(folder, False, True, log)
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment
from tensorboard.plugins.hparams import list_session_groups
from tensorboard.util.tensor_util import make_ndarray

def tensors(run, tag):
    found = EventAccumulator(f"{log}/{run}").Reload()
    return [[e.step, float(make_ndarray(e.tensor_proto))] for e in found.Tensors(tag)]

runs = EventMultiplexer().AddRunsFromDirectory(log)
runs.Reload()
provider = MultiplexerDataProvider(runs, log)
plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=log))
asked = context.RequestContext()
experiment = get_experiment.Handler(asked, plugin, "", api_pb2.GetExperimentRequest()).run()
every = api_pb2.ListSessionGroupsRequest(
    start_index=0, slice_size=99, allowed_statuses=[0, 1, 2, 3],
    col_params=[api_pb2.ColParams(metric=api_pb2.MetricName(tag="score"))],
)
groups = list_session_groups.Handler(asked, plugin, "", every).run().session_groups
value = lambda v: getattr(v, v.WhichOneof("kind"))
print(json.dumps({
    "fields": {i.name: i.WhichOneof("domain") for i in experiment.hparam_infos},
    "metrics": [m.name.tag for m in experiment.metric_infos],
    "curve": tensors("0000", "val_accuracy"), "score": tensors("0000", "score"),
    "trials": {g.name: {
        "values": {k: value(v) for k, v in g.hparams.items()},
        "metrics": {m.name.tag: m.value for m in g.metric_values},
        "status": g.sessions[0].status} for g in groups},
}))
"""


def test_tensorboard_reads_the_events_without_tensorflow(tmp_path: Path) -> None:
    parameters = {**WIDE, "model.x": {"type": "choice", "values": [True, "a"]}}
    search = make_search(tmp_path / "s", 14, parameters, epochs=3, seed=2)
    line = [sys.executable, "-c", READ, str(tmp_path / "s"), str(tmp_path / "log")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    # Written twice, it is there once.
    assert len(list((tmp_path / "log").rglob("*tfevents*"))) == 14 + 1
    assert found["fields"][RATE] == "domain_interval"
    assert found["fields"][KIND] == "domain_discrete"
    assert found["fields"]["model.x"] is None
    assert found["metrics"] == ["val_accuracy", "score"]
    curve = json.loads(printed(tmp_path / "s", as_json=True))["curves"]["0000"]
    assert found["curve"] == [[e, pytest.approx(y)] for e, y in curve]
    assert found["score"] == [[3, pytest.approx(search.trials[0].val_accuracy)]]
    assert set(found["trials"]) == {trial.trial for trial in search.trials}
    for trial in search.trials:
        one = found["trials"][trial.trial]
        assert one["values"] == trial.values
        if trial.val_accuracy is not None:
            assert one["metrics"]["score"] == pytest.approx(trial.val_accuracy)
        assert one["status"] == (2 if trial.state == "diverged" else 1)  # failure, success
    assert {trial.state for trial in search.trials} >= {"finished", "diverged"}


def test_the_same_search_gives_the_same_events(small: Path, tmp_path: Path) -> None:
    def written() -> dict[str, bytes]:
        assert reports.write_hparams(small, tmp_path / "log") == 3
        files = (tmp_path / "log").rglob("*tfevents*")
        return {str(file): file.read_bytes() for file in files}

    first = written()
    assert len(first) == 4
    assert written() == first


def test_import_is_light() -> None:
    heavy = "{'tensorflow', 'keras', 'keras_tuner', 'matplotlib', 'tensorboard', 'jinja2'}"
    code = f"import sys, kerasnet.tune.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
