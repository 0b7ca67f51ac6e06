"""Training in processes of their own, which tests can kill.

They are forked from a server that has TensorFlow loaded, which saves ten seconds for each.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kerasnet.train", "kerasnet.report", "kerasnet.tune.trials"])

# A model and a recipe in which everything that has a state is switched on.
BUSY = """
models:
  busy:
    input: [16, 16, 3]
    stem: [{conv: {filters: 8, kernel: 3}}, norm, act, {max_pool: 2}]
    stages:
      - {block: basic_plain_projection, width: 8}
      - {block: basic_plain_projection, width: 16, stride: 2}
    head: [global_avg_pool, {dropout: 0.3}, {dense: classes}]
    recipes: {"*": busy}
recipes:
  busy:
    epochs: 4
    batch_size: 20
    optimizer: {type: adam, learning_rate: 3e-3}
    schedule: {type: one_cycle, peak: 0.3}
    learning_rate_factors: {norm_bias: 8}
    weight_decay: {rate: 0.01, on: kernels}
    label_smoothing: 0.1
    gradient_clip: 1.0
    ema: {decay: 0.9}
    augment: {crop: {padding: 2}, flip: alternating, cutout: {size: 4}}
    validation_split: 0.1
# Which come with a ban of most of these.
datasets: {digits: {extends: digits, augment: {flip: true, cutout: true}}}
"""


def die_at_write(number: int, stage: str) -> None:
    """Make this process kill itself in its `number`-th write of a file.

    Args:
        number: from 1, over all files that are written atomically.
        stage: `begun`: the temporary file is empty; `half`: half of it is written; `written`:
            all of it, not synchronised; `synced`: not yet renamed; `renamed`: done.
    """
    import tempfile

    from kerasnet import files

    count = [0]
    make, sync, replace = tempfile.mkstemp, os.fsync, Path.replace
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731

    def mkstemp(*arguments: Any, **more: Any) -> Any:
        made = make(*arguments, **more)
        count[0] += 1
        if count[0] == number and stage == "begun":
            die()
        return made

    def fsync(descriptor: int) -> None:
        if count[0] == number and stage == "half":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        if count[0] == number and stage == "written":
            die()
        sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        if count[0] == number and stage == "synced":
            die()
        done = replace(self, target)
        if count[0] == number and stage == "renamed":
            die()
        return done

    files.tempfile.mkstemp, files.os.fsync = mkstemp, fsync
    Path.replace = rename  # type: ignore[method-assign]


def _child(
    arguments: list[str], log: str, before: Callable[..., None] | None, with_: tuple[Any, ...]
) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Ctrl-C in the terminal of the tests is not meant for this process.
    os.setsid()
    if before:
        before(*with_)
    from kerasnet.cli import main

    main(arguments)


@dataclass
class Training:
    """`kerasnet` with some arguments in a process of its own."""

    process: Any
    log: Path
    began: float

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds: float = 120) -> int:
        """Return the exit code; minus the signal's number if one killed it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s:\n{self.said}")
        return int(self.process.exitcode)

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        """Wait until something is so."""
        give_up = time.monotonic() + seconds
        while not condition():
            ended = not self.process.is_alive()
            assert not ended, f"ended with {self.process.exitcode}:\n{self.said}"
            assert time.monotonic() < give_up, f"waited in vain:\n{self.said}"
            time.sleep(0.002)

    def signal(self, signum: int) -> None:
        os.kill(self.process.pid, signum)


def start(
    *arguments: str,
    log: Path,
    before: Callable[..., None] | None = None,
    with_: tuple[Any, ...] = (),
) -> Training:
    """Start `kerasnet` with arguments.

    Args:
        arguments: of the command line.
        log: what it prints is appended to this file.
        before: called in the process before the command, with the arguments `with_`.
        with_: its arguments.
    """
    process = CONTEXT.Process(target=_child, args=(list(arguments), str(log), before, with_))
    process.start()
    return Training(process, log, time.monotonic())


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, -1 where there is none."""
    return max((int(f.stem[5:]) for f in run.glob("checkpoints/step-*.safetensors")), default=-1)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
