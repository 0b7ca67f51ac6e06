"""`kerasnet bench startup`: how long light commands take, and how long until a net trains."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from kerasnet import backend, schema
from kerasnet.bench import figures
from kerasnet.bench.beginning import PARTS
from kerasnet.bench.contestants import BEGINNING
from kerasnet.bench.figures import show
from kerasnet.bench.rounds import Say
from kerasnet.bench.workers import interruptible, turns, workers
from kerasnet.errors import EnvironmentFaultError
from kerasnet.files import shipped
from kerasnet.terminal import say

_LONGEST = 120.0


def light_commands(model: str) -> dict[str, list[str]]:
    """Return the commands that need no framework, by the name that tables have."""
    return {
        "--help": ["--help"],
        "list": ["list"],
        "show": ["show", model],
        "validate": ["validate", str(shipped("registry.yaml"))],
        "summary": ["summary", model],
    }


class StartupBench:
    """Runs light commands and first training steps, each in a new process, in turns.

    Args:
        config: as `training.synthetic_config` returns it.
        peers: out of `training.PEERS`, beside kerasnet.
        rounds: in which everything is done once.
        tell: told what is being done.
    """

    def __init__(
        self, config: schema.RunConfig, peers: Sequence[str], rounds: int, tell: Say
    ) -> None:
        self.config, self.rounds, self.tell = config, rounds, tell
        self.who = ("kerasnet", *peers)
        self.plain = config.model_dump(mode="json", by_alias=True)
        self.commands = light_commands(config.architecture.name)
        self.seconds: dict[str, list[float]] = {name: [] for name in (*self.commands, *self.who)}
        self.parts: dict[str, list[Mapping[str, float]]] = {who: [] for who in self.who}

    def run(self) -> dict[str, Any]:
        """Measure, and return what `--json` prints.

        Raises:
            EnvironmentFaultError: a process failed, or took too long.
            InterruptedRunError: by Ctrl-C or SIGTERM.
        """
        with interruptible():
            for number in range(self.rounds):
                for name in turns([*self.commands, *self.who], number):
                    self.tell(f"round {number + 1}/{self.rounds}: {name}")
                    self._measure(name)
        return self._result()

    def _measure(self, name: str) -> None:
        began = perf_counter()
        if name in self.commands:
            self._command(name)
        else:
            self._begin(name)
        self.seconds[name].append(perf_counter() - began)

    def _command(self, name: str) -> None:
        words = [sys.executable, "-P", "-m", "kerasnet.cli", *self.commands[name]]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_LONGEST, text=True)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFaultError(
                f"kerasnet {name} did not end within {_LONGEST:.0f} s"
            ) from error
        if done.returncode:
            raise EnvironmentFaultError(f"kerasnet {name} failed:\n{done.stderr.strip()}")

    def _begin(self, who: str) -> None:
        environment = {**os.environ, "KERAS_BACKEND": backend.name()}
        with workers() as start:
            worker = start(who, BEGINNING, {"config": self.plain, "who": who}, environment)
            self.parts[who].append(worker.ask("begin"))

    def _result(self) -> dict[str, Any]:
        return {
            "model": self.config.architecture.name,
            "batch": self.config.recipe.batch_size,
            "rounds": self.rounds,
            "commands": [{"name": name, **self._of(name)} for name in self.commands],
            "results": [
                {"name": who, **self._of(who), "parts": self._median_parts(who)} for who in self.who
            ],
            "ratios": {
                peer: figures.paired_ratio(self.seconds["kerasnet"], self.seconds[peer])
                for peer in self.who[1:]
            },
        }

    def _of(self, name: str) -> dict[str, float]:
        values = self.seconds[name]
        return {"seconds": statistics.median(values), "spread": figures.spread(values)}

    def _median_parts(self, who: str) -> dict[str, float]:
        return {part: statistics.median(x[part] for x in self.parts[who]) for part in PARTS}


def report(console: Any, result: Mapping[str, Any]) -> None:
    """Print both tables and what their columns mean."""
    rows = [(x["name"], f"{x['seconds']:.2f} s", f"{x['spread']:.1%}") for x in result["commands"]]
    show(console, ("command", "time", "spread"), rows, left=("command",))
    say(console, f"\nfirst training step of {result['model']}, batch {result['batch']}, "
                 "in a new process")  # fmt: skip
    rows = [
        (x["name"], f"{x['seconds']:.1f} s", f"{x['spread']:.1%}",
         *(f"{x['parts'][part]:.1f} s" for part in PARTS),
         f"{result['ratios'][x['name']]:.2f}×" if x["name"] in result["ratios"] else "")
        for x in result["results"]
    ]  # fmt: skip
    show(console, ("", "time", "spread", *PARTS, "kerasnet takes"), rows, left=("",))
    say(
        console,
        "time: median over rounds, of the whole process; spread: interquartile range over median; "
        "data: random\nimages are made; kerasnet takes: its time over this one's, the median of "
        "each round's ratio",
    )
