"""The launcher of a search keeps its processes alive, and leaves none behind."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import time

import pytest
from rich.console import Console

from kerasnet import config as configs
from kerasnet import schema
from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.interruption import Interrupted, Interruption
from kerasnet.tune import launch
from kerasnet.tune import search as searches
from kerasnet.tune.launch import Launcher
from kerasnet.tune.records import SearchFolder

SHELL = """#!/bin/sh
cd {folder}
read role
name=$(echo "$role" | sed 's/.*"name":"\\([^"]*\\)".*/\\1/')
echo "$role" >> $name.roles
echo $$ >> pids
{script}
"""
RATE = "recipe.optimizer.learning_rate"


@pytest.fixture
def folder(tmp_path) -> SearchFolder:
    rates = {"type": "float", "min": 1e-5, "max": 1.0, "log": True}
    space = schema.Space.model_validate({"parameters": {RATE: rates}})
    base = configs.resolve("resnet8", dataset="digits")
    asked = searches.ask(base, space, space_name="rates", trials=3)
    return searches.begin(tmp_path / "search", asked)


@pytest.fixture
def actor(folder, monkeypatch):
    """Let shell scripts stand in for the processes; `$name` is whose part is played.

    Each appends its role to `<name>.roles`, and its number to `pids`.
    """
    monkeypatch.setattr(launch, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(launch, "GRACE_SECONDS", 3.0)

    def play(script: str) -> None:
        file = folder.path / "actor"
        file.write_text(SHELL.format(folder=folder.path, script=script))
        file.chmod(0o755)
        monkeypatch.setattr(launch.sys, "executable", str(file))

    return play


def run(launcher: Launcher, seconds: float = 20) -> None:
    """Do what a search does with its launcher."""
    give_up = time.monotonic() + seconds
    with launcher:
        for _ in launcher.wait():
            assert time.monotonic() < give_up, "hangs"


def roles(folder: SearchFolder, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder.path / f"{name}.roles").read_text().splitlines()]


def alive(folder: SearchFolder) -> list[int]:
    found = []
    file = folder.path / "pids"
    for pid in map(int, file.read_text().split() if file.exists() else ()):
        try:
            os.kill(pid, 0)
            found.append(pid)
        except ProcessLookupError:
            pass
    return found


@pytest.fixture(autouse=True)
def nobody_is_left(folder):
    yield
    assert alive(folder) == []


def test_it_ends_when_all_workers_have(folder, actor):
    actor("[ $name = chief ] && exec sleep 60; exit 0")
    run(Launcher(folder, 2))
    found = roles(folder, "chief") + roles(folder, "worker0") + roles(folder, "worker1")
    assert [role["kind"] for role in found] == ["chief", "worker", "worker"]
    assert len({role["address"] for role in found}) == 1
    assert found[0]["address"].startswith("127.0.0.1:")


def test_workers_share_the_processors(folder, actor, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 7, 8}, raising=False)
    actor("[ $name = chief ] && exec sleep 60; echo $OMP_NUM_THREADS >> threads")
    run(Launcher(folder, 2))
    assert [roles(folder, f"worker{i}")[0]["cpus"] for i in range(2)] == [[2, 3], [5, 7]]
    assert (folder.path / "threads").read_text().split() == ["2", "2"]


def test_a_worker_that_is_killed_is_started_again_by_its_name(folder, actor):
    actor("""
[ $name = chief ] && exec sleep 60
[ $name = worker1 ] && [ $(wc -l < worker1.roles) -lt 3 ] && kill -9 $$
exit 0""")
    run(Launcher(folder, 2))
    assert len(roles(folder, "worker1")) == 3
    assert len(roles(folder, "worker0")) == 1


def test_a_worker_that_is_started_again_has_no_more_time(folder, actor):
    actor("""
[ $name = chief ] && exec sleep 60
sleep 1
[ $(wc -l < worker0.roles) -lt 2 ] && kill -9 $$
exit 0""")
    run(Launcher(folder, 1, deadline=time.monotonic() + 100))
    first, second = (role["seconds"] for role in roles(folder, "worker0"))
    assert 98 < first <= 100
    assert second < first - 0.9


def test_a_chief_that_is_killed_takes_the_workers_along(folder, actor):
    actor("""
[ $name = chief ] && [ $(wc -l < chief.roles) = 1 ] && sleep 0.2 && kill -9 $$
[ $name != chief ] && [ $(wc -l < $name.roles) = 2 ] && exit 0
exec sleep 60""")
    run(Launcher(folder, 2))
    for name in ("chief", "worker0", "worker1"):
        first, second = roles(folder, name)
        assert first["name"] == second["name"]
    assert len({roles(folder, name)[1]["address"] for name in ("chief", "worker0")}) == 1


def test_when_the_chief_has_nothing_left_workers_that_load_are_ended(folder, actor):
    """A worker may still be importing when another has trained the only trial."""
    actor("[ $name = chief ] && sleep 0.3 && exit 0; exec sleep 60")
    run(Launcher(folder, 3))
    assert len(roles(folder, "chief")) == 1


@pytest.mark.parametrize("address", [False, True])
def test_workers_elsewhere_may_go_on(folder, actor, address):
    """With an address the chief decides; without, nobody but these workers can be at anything."""
    actor("[ $name = chief ] && sleep 1; exit 0")
    began = time.monotonic()
    run(Launcher(folder, 1, address=f"127.0.0.1:{free_port()}" if address else None))
    assert (time.monotonic() - began > 0.9) == address


def test_losses_that_lead_nowhere_end_it(folder, actor):
    actor('[ $name = chief ] && exec sleep 60; echo "it was $name"; exit 1')
    said = (
        r"ended with exit code 1, the 6th process in a row without any trial getting further; "
        r".*\n  it was worker0"
    )
    with pytest.raises(EnvironmentFaultError, match=said):
        run(Launcher(folder, 1))
    assert len(roles(folder, "worker0")) == 6


def test_a_process_that_ends_while_it_is_looked_at_is_started_again(folder, actor, monkeypatch):
    actor("""
[ $name = chief ] && exec sleep 60
[ $(wc -l < worker0.roles) -lt 3 ] && exit 1
exit 0""")
    asked, ended = launch._Process.code, set()

    def code(process):
        """Say once more that a process runs which has just ended."""
        found = asked.fget(process)
        first = found is not None and process.running.pid not in ended
        ended.add(process.running.pid if found is not None else None)
        return None if first else found

    monkeypatch.setattr(launch._Process, "code", property(code))
    run(Launcher(folder, 1))
    assert len(roles(folder, "worker0")) == 3


def test_progress_makes_losses_forgotten(folder, actor):
    actor("""
[ $name = chief ] && exec sleep 60
number=$(wc -l < worker0.roles)
mkdir -p trials/0/checkpoints
touch trials/0/checkpoints/step-$number.safetensors
[ $number -lt 20 ] && kill -9 $$
exit 0""")
    run(Launcher(folder, 1))
    assert len(roles(folder, "worker0")) == 20


def test_two_trials_that_kill_their_processes_do_not_end_it(folder, actor):
    """Each is tried five times until it counts as failed."""
    actor("""
[ $name = chief ] && exec sleep 60
[ $(wc -l < $name.roles) -le 5 ] && kill -9 $$
exit 0""")
    run(Launcher(folder, 2))
    assert [len(roles(folder, f"worker{i}")) for i in range(2)] == [6, 6]


@pytest.mark.parametrize(
    ("code", "error"), [(4, EnvironmentFaultError), (2, BadInputError)], ids=str
)
@pytest.mark.parametrize("who", ["chief", "worker1"])
def test_what_no_other_process_could_mend_ends_it(folder, actor, who, code, error):
    actor(f"""
[ $name != {who} ] && exec sleep 60
echo "kerasnet: error: the disk is full"
exit {code}""")
    with pytest.raises(error, match=f"{who} ended with exit code {code}:\n.*the disk is full"):
        run(Launcher(folder, 2))
    assert len(roles(folder, who)) == 1


def test_a_worker_that_does_not_end_is_killed(folder, actor):
    actor("""
[ $name = worker0 ] && trap '' TERM
[ $name != worker1 ] && while true; do sleep 0.1; done
sleep 0.5; echo sorry; exit 4""")
    began = time.monotonic()
    with pytest.raises(EnvironmentFaultError, match="sorry"):
        run(Launcher(folder, 2))
    assert 3 < time.monotonic() - began < 8


def test_workers_end_before_the_chief(folder, actor):
    """What they hand in while they end must have somebody who takes it."""
    actor("""
trap 'date +%s%N > $name.end; exit 0' TERM
[ $name = worker0 ] && trap 'sleep 0.3; date +%s%N > worker0.end; exit 0' TERM
[ $name = worker1 ] && sleep 0.5 && echo sorry && exit 4
while true; do sleep 0.05; done""")
    with pytest.raises(EnvironmentFaultError):
        run(Launcher(folder, 2))
    ends = {name: int((folder.path / f"{name}.end").read_text()) for name in ("worker0", "chief")}
    assert ends["worker0"] < ends["chief"]


def test_a_process_that_cannot_be_started_leaves_no_other(folder, actor, monkeypatch):
    actor("exec sleep 60")
    start, started = launch.subprocess.Popen, []

    def fails(*arguments, **more):
        if len(started) == 2:
            raise OSError("no memory to fork")
        started.append(start(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", fails)
    with pytest.raises(EnvironmentFaultError, match="no memory to fork"):
        run(Launcher(folder, 2))
    assert [process.poll() is None for process in started] == [False, False]


# ---------------------------------------------------------------------------- addresses


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_is_taken_is_said_at_once(folder, actor, shares):
    """A chief listens with SO_REUSEPORT, by which two may have the same port."""
    actor("exec sleep 60")
    with socket.socket() as taken:
        if shares:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EnvironmentFaultError, match=f"{address}: a chief cannot listen there"):
            run(Launcher(folder, 1, address=address))


@pytest.mark.parametrize("address", ["203.0.113.5:5000", "no-such-host.invalid:5000"])
def test_an_address_of_no_interface_is_said_at_once(folder, actor, address):
    actor("exec sleep 60")
    with pytest.raises(EnvironmentFaultError, match="Choose another HOST:PORT"):
        run(Launcher(folder, 1, address=address))


def test_joined_workers_have_names_of_their_own(folder, actor, monkeypatch):
    """keras-tuner takes a name with `chief` in it for the chief's."""
    monkeypatch.setattr(launch.platform, "node", lambda: "The.Chief of staff")
    actor("exit 0")
    run(Launcher(folder, 2, address="127.0.0.1:9", chief=False))
    names = sorted(f.name for f in folder.path.glob("*.roles"))
    assert len(names) == 2
    assert not any("chief" in name for name in names)
    assert all(name.startswith(f"the-c-of-staff-{os.getpid()}-") for name in names)


def test_time_that_is_up_is_told_to_every_process(folder, actor):
    actor("[ $name = chief ] && exec sleep 60; exit 0")
    run(Launcher(folder, 1, deadline=0.0))
    assert [roles(folder, name)[0]["seconds"] for name in ("chief", "worker0")] == [0.0, 0.0]
    (folder.path / "chief.roles").unlink()
    run(Launcher(folder, 1, deadline=math.inf))
    assert roles(folder, "chief")[0]["seconds"] is None


def test_a_signal_while_a_process_is_started_leaves_none_behind(folder, actor, monkeypatch):
    spawn = Launcher._spawn
    started = []

    def interrupted(self, role):
        found = spawn(self, role)
        started.append(found)
        if role.name == "worker1":
            # Nobody has noted the process yet.
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return found

    monkeypatch.setattr(Launcher, "_spawn", interrupted)
    actor("exec sleep 60")
    with (
        pytest.raises(Interrupted),
        Interruption(Console(quiet=True)) as stop,
        Launcher(folder, 3, stop=stop),
    ):
        pass
    assert [process.role.name for process in started] == ["chief", "worker0", "worker1"]
    assert all(process.code is not None for process in started)
