"""Searches in real processes: killed, interrupted, out of time or space, and joined."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from processes import CONTEXT, Training, fill, start
from rich.console import Console

from kerasnet.errors import EnvironmentFaultError
from kerasnet.tune.records import SearchFolder, Trial, load_search

SMALL = ("resnet8", "--dataset", "digits", "--limit-train", "100", "--no-early-stopping")
RATE = "recipe.optimizer.learning_rate"
DIVERGING = f"parameters:\n  {RATE}: {{type: float, min: 1e6, max: 1e7, log: true}}\n"
RATES = f"parameters:\n  {RATE}: {{type: float, min: 1e-4, max: 1e-1, log: true}}\n"


@pytest.fixture
def out(tmp_path):
    """A folder for a search; whatever process still works in it after a test is ended."""
    folder = tmp_path / "search"
    yield folder
    left = processes(folder)
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
    assert not left, "a process was left behind"


@pytest.fixture
def rates(tmp_path) -> str:
    (tmp_path / "rates.yaml").write_text(RATES)
    return str(tmp_path / "rates.yaml")


def tune(out: Path, *arguments: str) -> Training:
    """Start `kerasnet tune`; what it says goes into a file beside the search folder."""
    return start("tune", *arguments, log=out.with_suffix(".log"))


def go_on(out: Path, *arguments: str, seconds: float = 300) -> Training:
    """Go on with a search to its end."""
    resumed = tune(out, "--resume", str(out), *arguments)
    assert resumed.wait(seconds) == 0, resumed.said + logs(out)
    return resumed


def processes(out: Path) -> dict[str, int]:
    """Return the chief and the workers of a search that run, by name: those that write its logs."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = Path(os.readlink(place / "fd" / "1"))
            if said.parent == out / "workers" and (place / "stat").read_text().split()[2] != "Z":
                found[said.stem] = int(place.name)
        except OSError:
            continue
    return found


def logs(out: Path) -> str:
    return "".join(
        f"\n--- {f.name}:\n{f.read_text(errors='replace')}"
        for f in sorted(out.glob("workers/*.log"))
    )


def until(condition, seconds: float, out: Path) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "waited in vain" + logs(out)
        time.sleep(0.05)


def records(out: Path) -> list[Trial]:
    return SearchFolder(out).records()


def ended(out: Path) -> dict[str, Trial]:
    return {t.trial: t for t in records(out) if t.ended}


def under_way(out: Path) -> list[Trial]:
    """Return trials that have a checkpoint and have not ended."""
    return [t for t in records(out) if not t.ended and SearchFolder(out).run(t.trial).step]


class Snapshot:
    """What had been trained when a search was killed, and what must be so when it has ended."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.ended = ended(out)
        self.written = {name: self._times(name) for name in self.ended}
        self.steps = {t.trial: SearchFolder(out).run(t.trial).step for t in under_way(out)}

    def _times(self, name: str) -> list[int]:
        run = SearchFolder(self.out).run(name).path
        return [(run / f).stat().st_mtime_ns for f in ("metrics.csv", "summary.json")]

    def _gone_on(self, said: str, name: str, step: int) -> bool:
        """Whether a log tells that a trial went on from its checkpoint, or from a newer one."""
        found = re.findall(
            rf"going on from {self.out}/trials/{name}/checkpoints/.*step ([\d,]+)", said
        )
        return any(int(number.replace(",", "")) >= step for number in found)

    def check(self, trials: int, all_lost: bool = True) -> None:
        """Assert that all trials have ended, none was trained twice, and checkpoints were used.

        Args:
            trials: how many there are.
            all_lost: whether every trial under way was; otherwise at least one.
        """
        said = logs(self.out)
        for name, trial in self.ended.items():
            assert SearchFolder(self.out).record(name) == trial
            assert self._times(name) == self.written[name], name
        resumed = [name for name, step in self.steps.items() if self._gone_on(said, name, step)]
        assert resumed == list(self.steps) if all_lost else resumed, said
        found = load_search(self.out)[1]
        assert found.complete
        assert [int(t.trial) for t in found.trials] == list(range(trials))
        assert {t.state for t in found.trials} == {"finished"}
        for t in found.trials:
            assert len(SearchFolder(self.out).curve(t)) == t.epochs
        assert found.best.val_accuracy == max(t.val_accuracy for t in found.trials)


# ---------------------------------------------------------------------------- to the end


def test_two_workers_search_and_leave_nothing_behind(out):
    search = tune(out, *SMALL, "--epochs", "1", "--trials", "3", "--workers", "2", "--out",
                  str(out), "--json")  # fmt: skip
    assert search.wait(240) == 0, search.said + logs(out)
    assert processes(out) == {}
    found = json.loads(search.said[search.said.index("{\n") :])
    assert found == json.loads((out / "search.json").read_text())
    assert found["complete"]
    assert [t["state"] for t in found["trials"]] == ["finished"] * 3
    assert sorted(t["runs"][0] for t in found["trials"]) == [f"trials/{i}" for i in range(3)]
    for i in range(3):
        summary = json.loads((out / f"trials/{i}/summary.json").read_text())
        assert summary["test_accuracy"] is None
        assert not (out / f"trials/{i}/predictions.npz").exists()
    assert "Traceback" not in search.said + logs(out)
    assert not list(out.rglob("*.temporary"))
    assert not list(out.glob("workers/*.beat"))


def test_a_search_is_complete_when_no_point_is_left(out, tmp_path):
    """A logarithmic range of whole numbers has no step, so that nobody counts its points."""
    space = tmp_path / "few.yaml"
    space.write_text("parameters:\n  recipe.batch_size: {type: int, min: 30, max: 31, log: true}\n")
    search = tune(out, *SMALL, "--space", str(space), "--epochs", "1", "--trials", "4", "--out",
                  str(out))  # fmt: skip
    assert search.wait(100) == 0, search.said
    assert sorted(t.values["recipe.batch_size"] for t in records(out)) == [30, 31]
    assert load_search(out)[1].complete
    assert "the time is up" not in search.said
    assert tune(out, "--resume", str(out)).wait(60) == 0
    assert load_search(out)[1].complete


@pytest.mark.slow
def test_one_process_and_two_draw_the_same_points(out, tmp_path):
    asked = (*SMALL, "--epochs", "1", "--trials", "4", "--seed", "0")
    one = tmp_path / "one"
    assert tune(one, *asked, "--out", str(one)).wait(200) == 0
    assert tune(out, *asked, "--workers", "2", "--out", str(out)).wait(300) == 0
    assert [t.values for t in records(one)] == [t.values for t in records(out)]


# ---------------------------------------------------------------------------- killed


def killable(out: Path, rates: str, *more: str) -> Training:
    return tune(out, *SMALL, "--space", rates, "--epochs", "12", "--trials", "6", "--workers", "2",
                "--out", str(out), *more)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("who", ["worker0", "chief"])
def test_a_search_outlives_its_processes(out, rates, who, seed):
    search, draw = killable(out, rates), random.Random(f"{who} {seed}")
    for _ in range(2):
        search.until(lambda: under_way(out) and who in processes(out), 200)
        time.sleep(draw.uniform(0, 3))
        before, victim = Snapshot(out), processes(out)[who]
        os.kill(victim, signal.SIGKILL)
        search.until(lambda victim=victim: processes(out).get(who) not in (None, victim), 200)
    assert search.wait(500) == 0, search.said + logs(out)
    assert processes(out) == {}
    before.check(6, all_lost=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_everything_is_killed_and_goes_on(out, rates, seed):
    search, draw = killable(out, rates), random.Random(seed)
    search.until(lambda: under_way(out), 200)
    time.sleep(draw.uniform(0, 8))
    for pid in [search.process.pid, *processes(out).values()]:
        os.kill(pid, signal.SIGKILL)
    search.wait()
    before = Snapshot(out)
    go_on(out, "--workers", "2")
    before.check(6)


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_end_by_themselves(out, rates):
    search = killable(out, rates)
    search.until(lambda: under_way(out), 200)
    search.process.kill()
    search.wait()
    began = time.monotonic()
    until(lambda: not processes(out), 60, out)
    print(f"orphans ended after {time.monotonic() - began:.1f} s")
    before = Snapshot(out)
    assert {t.state for t in records(out) if not t.ended} == {"interrupted"}
    go_on(out, "--workers", "2")
    before.check(6)


@pytest.mark.slow
def test_going_on_while_orphans_still_save(out, rates):
    search = killable(out, rates)
    search.until(lambda: under_way(out), 200)
    search.process.kill()
    search.wait()
    go_on(out, "--workers", "2")
    assert [t.state for t in records(out)] == ["finished"] * 6
    assert max(t.attempts for t in records(out)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_search_in_one_process_is_killed_and_goes_on(out, rates, seed):
    search = tune(out, *SMALL, "--space", rates, "--epochs", "6", "--trials", "4", "--out",
                  str(out))  # fmt: skip
    search.until(lambda: under_way(out), 100)
    time.sleep(random.Random(seed).uniform(0, 6))
    search.process.kill()
    search.wait()
    before = Snapshot(out)
    (out / "workers").mkdir(exist_ok=True)
    resumed = go_on(out)
    (out / "workers" / "resumed.log").write_text(resumed.said)
    before.check(4)


@pytest.mark.slow
def test_hyperband_is_killed_and_goes_on(out, rates):
    search = tune(out, *SMALL, "--space", rates, "--algorithm", "hyperband", "--epochs", "3",
                  "--workers", "2", "--out", str(out))  # fmt: skip
    search.until(lambda: len(ended(out)) >= 2, 300)
    for pid in [search.process.pid, *processes(out).values()]:
        os.kill(pid, signal.SIGKILL)
    search.wait()
    go_on(out, "--workers", "2")
    found = load_search(out)[1]
    assert found.complete
    assert [t.state for t in found.trials] == ["finished"] * found.planned
    longer = [t for t in found.trials if t.continues]
    assert longer
    for t in longer:
        first = SearchFolder(out).record(t.continues)
        assert (t.runs, t.values, first.epochs < t.epochs) == (first.runs, first.values, True)


# ---------------------------------------------------------------------------- interrupted


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_ends_all(out, rates, signum, code):
    search = killable(out, rates)
    search.until(lambda: under_way(out), 200)
    search.signal(signum)
    began = time.monotonic()
    assert search.wait(60) == code, search.said
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert processes(out) == {}
    assert f"interrupted. Go on with: kerasnet tune --resume {out}" in search.said
    assert "Traceback" not in search.said + logs(out)
    before = Snapshot(out)
    assert {t.state for t in records(out) if not t.ended} == {"interrupted"}
    go_on(out, "--workers", "2")
    before.check(6)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.0, 4.0])
def test_a_signal_while_processes_load(out, rates, moment):
    search = killable(out, rates)
    search.until(lambda: len(processes(out)) == 3, 60)
    time.sleep(moment)
    search.signal(signal.SIGINT)
    assert search.wait(60) == 130, search.said + logs(out)
    assert processes(out) == {}


def test_a_signal_to_a_search_in_one_process(out, rates):
    search = tune(out, *SMALL, "--space", rates, "--epochs", "30", "--trials", "2", "--out",
                  str(out))  # fmt: skip
    search.until(lambda: under_way(out), 100)
    search.signal(signal.SIGINT)
    assert search.wait(60) == 130, search.said
    assert f"interrupted. Go on with: kerasnet tune --resume {out}" in search.said
    assert "Traceback" not in search.said
    assert [t.state for t in records(out)] == ["interrupted"]
    # One that was left on purpose was not lost.
    assert records(out)[0].attempts == 0
    found = load_search(out)[1]
    assert not found.complete
    assert found.best is None


# ---------------------------------------------------------------------------- out of time


@pytest.mark.slow
def test_a_budget_ends_a_search_in_one_process(out, rates):
    search = tune(out, *SMALL, "--space", rates, "--epochs", "100", "--trials", "9", "--budget",
                  "6s", "--out", str(out))  # fmt: skip
    assert search.wait(60) == 0, search.said
    said = " ".join(search.said.split())
    assert "the time is up before all trials have ended" in said
    assert f"go on with: kerasnet tune --resume {out}" in said
    (trial,) = records(out)
    assert (trial.state, trial.attempts) == ("interrupted", 0)
    step = SearchFolder(out).run("0").step
    assert step > 0
    again = tune(out, "--resume", str(out), "--budget", "5s")
    assert again.wait(60) == 0, again.said
    assert f"going on from {out}/trials/0/checkpoints" in again.said
    assert SearchFolder(out).run("0").step > step


@pytest.mark.slow
@pytest.mark.parametrize("chief", [False, True])
def test_a_budget_ends_all_processes(out, rates, chief):
    more = ("--chief", f"127.0.0.1:{free_port()}") if chief else ()
    search = tune(out, *SMALL, "--space", rates, "--epochs", "1000", "--trials", "9", "--budget",
                  "60s", "--workers", "2", "--out", str(out), *more)  # fmt: skip
    assert search.wait(100) == 0, search.said + logs(out)
    assert processes(out) == {}
    assert 55 < time.monotonic() - search.began < 85
    assert [t.state for t in records(out)] == ["interrupted"] * 2
    before = Snapshot(out)
    go_on(out, "--workers", "1", "--budget", "40s")
    assert len(before.steps) == 2
    assert any(SearchFolder(out).run(name).step > step for name, step in before.steps.items())


@pytest.mark.slow
def test_a_chief_that_nobody_joins_ends_with_its_budget(out, rates):
    search = tune(out, *SMALL, "--space", rates, "--trials", "2", "--budget", "20s", "--workers",
                  "0", "--chief", f"127.0.0.1:{free_port()}", "--out", str(out))  # fmt: skip
    assert search.wait(60) == 0, search.said + logs(out)
    assert records(out) == []


# ---------------------------------------------------------------------------- diverging


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers", [None, pytest.param("2", marks=pytest.mark.slow)], ids=["here", "workers"]
)
def test_when_all_trials_diverge_it_says_so(out, tmp_path, workers):
    space = tmp_path / "wild.yaml"
    space.write_text(DIVERGING)
    more = ("--workers", workers) if workers else ()
    search = tune(out, *SMALL, "--space", str(space), "--epochs", "2", "--trials", "2", "--out",
                  str(out), *more)  # fmt: skip
    assert search.wait(240) == 3, search.said + logs(out)
    said = " ".join(search.said.split())
    assert f"{out}: all 2 trials diverged or failed; the first said: " in said
    assert "Search lower learning rates" in said
    assert "Traceback" not in search.said + logs(out)
    assert [(t.state, t.val_accuracy) for t in records(out)] == [("diverged", None)] * 2
    assert processes(out) == {}
    found = load_search(out)[1]
    assert (found.complete, found.best) == (True, None)
    if workers is None:
        # Going on with it trains nothing, and says the same.
        again = tune(out, "--resume", str(out))
        assert again.wait(60) == 3, again.said


# ---------------------------------------------------------------------------- a full disk


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers", [None, pytest.param("2", marks=pytest.mark.slow)], ids=["here", "workers"]
)
def test_a_disk_that_fills_during_a_search(small_disk, rates, workers):
    out, filler = small_disk / "search", small_disk / "filler"
    more, trials = (("--workers", workers), "3") if workers else ((), "1")
    log = small_disk.parent / "log"
    search = start("tune", *SMALL, "--space", rates, "--epochs", "12", "--trials", trials,
                   "--out", str(out), *more, log=log)  # fmt: skip
    search.until(lambda: out.exists() and under_way(out), 200)
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    assert search.wait(100) == 4, search.said + logs(out)
    assert "No space left on device" in search.said
    assert f"Go on with: kerasnet tune --resume {out}" in " ".join(search.said.split())
    assert "Traceback" not in search.said
    assert processes(out) == {}
    filler.unlink()
    before = ended(out)
    again = start("tune", "--resume", str(out), *more, log=log)
    assert again.wait(300) == 0, again.said + logs(out)
    assert [t.state for t in records(out)] == ["finished"] * int(trials)
    assert all(SearchFolder(out).record(name) == trial for name, trial in before.items())


# ---------------------------------------------------------------------------- other machines


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def joined(out: str, address: str, log: str, patience: float) -> None:
    """Do what `kerasnet tune --join` does, with less patience."""
    from kerasnet.tune import session

    os.setsid()
    with open(log, "a") as stream:
        try:
            console = Console(file=stream)
            session.join(SearchFolder(Path(out)), address, 1, 1, math.inf, console, patience)
        except EnvironmentFaultError as error:
            stream.write(f"{error}\n")
            raise SystemExit(4) from error


def join(out: Path, address: str, patience: float = 60.0) -> Training:
    log = out.with_suffix(".joined")
    process = CONTEXT.Process(target=joined, args=(str(out), address, str(log), patience))
    process.start()
    return Training(process, log, time.monotonic())


def chief(out: Path, rates: str, address: str, patience: float, *, workers: int = 0,
          trials: int = 4, epochs: int = 6) -> Training:  # fmt: skip
    """Start a search that others can join, with less patience than the command line has."""
    made = tune(out, *SMALL, "--space", rates, "--epochs", str(epochs), "--trials", str(trials),
                "--out", str(out), "--budget", "1s")  # fmt: skip
    assert made.wait(60) == 0, made.said
    log = out.with_suffix(".chief")
    arguments = (str(out), address, str(log), workers, patience)
    process = CONTEXT.Process(target=led, args=arguments)
    process.start()
    return Training(process, log, time.monotonic())


def led(out: str, address: str, log: str, workers: int, patience: float) -> None:
    from kerasnet.tune import session

    os.setsid()
    with open(log, "a") as stream:
        session.search(SearchFolder(Path(out)), Console(file=stream), workers=workers,
                       address=address, patience=patience)  # fmt: skip


def test_a_port_that_is_taken_is_said_before_anything_starts(out, rates):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        search = tune(out, *SMALL, "--space", rates, "--trials", "2", "--chief", address, "--out",
                      str(out))  # fmt: skip
        assert search.wait(60) == 4, search.said
    said = " ".join(search.said.split())
    assert f"{address}: a chief cannot listen there: Address already in use" in said
    assert f"Go on with: kerasnet tune --resume {out}" in said
    assert processes(out) == {}


@pytest.mark.slow
def test_joining_where_nobody_is_says_so(out, rates):
    made = tune(out, *SMALL, "--space", rates, "--trials", "2", "--budget", "1s", "--out", str(out))
    assert made.wait(60) == 0
    address = f"127.0.0.1:{free_port()}"
    member = join(out, address, patience=3)
    assert member.wait(60) == 4, member.said + logs(out)
    assert f"{address}: the chief has not answered for 3 s" in member.said
    assert "start the chief again" in member.said
    assert processes(out) == {}


@pytest.mark.slow
def test_two_launchers_join_one_chief(out, rates):
    address = f"127.0.0.1:{free_port()}"
    leader = chief(out, rates, address, 60)
    members = [join(out, address), join(out, address)]
    assert leader.wait(400) == 0, leader.said + logs(out)
    for member in members:
        assert member.wait(90) == 0, member.said + logs(out)
    assert processes(out) == {}
    found = load_search(out)[1]
    assert found.complete
    assert [t.state for t in found.trials] == ["finished"] * 4
    used = [f for f in out.glob("workers/*-0.log") if "epoch" in f.read_text()]
    assert len(used) == 2, "both have trained"


@pytest.mark.slow
def test_a_joined_worker_that_is_lost_for_good_is_replaced(out, rates):
    address = f"127.0.0.1:{free_port()}"
    leader = chief(out, rates, address, 6, workers=1, trials=3, epochs=20)
    member = join(out, address, 6)
    name = lambda: next((n for n in processes(out) if n.endswith("-0")), None)  # noqa: E731
    leader.until(lambda: len(under_way(out)) == 2 and name(), 300)
    lost = processes(out)[name()]
    member.process.kill()
    os.kill(lost, signal.SIGKILL)
    member.wait()
    assert leader.wait(400) == 0, leader.said + logs(out)
    assert "is lost; another goes on with its trial" in (out / "workers/chief.log").read_text()
    assert [t.state for t in records(out)] == ["finished"] * 3
    assert "going on from" in (out / "workers/worker0.log").read_text()
    assert processes(out) == {}


@pytest.mark.slow
def test_a_joined_launcher_that_is_interrupted_leaves_its_trial_at_once(out, rates):
    address = f"127.0.0.1:{free_port()}"
    leader = chief(out, rates, address, 60, workers=1, trials=3, epochs=20)
    member = join(out, address)
    leader.until(lambda: len(under_way(out)) == 2, 300)
    os.kill(member.process.pid, signal.SIGTERM)
    member.wait()
    began = time.monotonic()
    chief_log = out / "workers/chief.log"
    leader.until(lambda: "is lost; another goes on" in chief_log.read_text(), 30)
    assert time.monotonic() - began < 10
    assert leader.wait(400) == 0, leader.said + logs(out)
    assert [t.state for t in records(out)] == ["finished"] * 3


@pytest.mark.slow
def test_a_chief_that_is_killed_finds_those_that_joined_again(out, rates):
    address = f"127.0.0.1:{free_port()}"
    leader = chief(out, rates, address, 60, workers=0, trials=3, epochs=20)
    member = join(out, address)
    leader.until(lambda: "epoch" in logs(out), 300)
    os.kill(processes(out)["chief"], signal.SIGKILL)
    assert leader.wait(400) == 0, leader.said + logs(out)
    assert member.wait(90) == 0, member.said + logs(out)
    assert [t.state for t in records(out)] == ["finished"] * 3
