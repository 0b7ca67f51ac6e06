"""Contestants that take turns, and what was measured of them."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from kerasnet import backend
from kerasnet.bench import figures
from kerasnet.bench.workers import Worker, turns
from kerasnet.progress import duration

# A round shorter than this would measure the clock's and the scheduler's noise.
ROUND_SECONDS = 2.0
_PROBE, _MOST_STEPS = 3, 5_000

Say = Callable[[str], None]


@dataclass
class Contestant:
    """One way to do the same, its process, and what was measured of it.

    Attributes:
        name: in every table.
        kind: `module:callable` that made it.
        worker: its process.
        facts: how it runs, in its own words.
        start_seconds: of its first two steps, compilation included.
        steps: that are timed in a round.
        rates: images a second, one a round.
        memory: the largest resident set of its process, in bytes; 0 while not known.
    """

    name: str
    kind: str
    worker: Worker
    facts: dict[str, Any]
    start_seconds: float = 0.0
    steps: int = 0
    rates: list[float] = field(default_factory=list)
    memory: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what every benchmark says of a contestant."""
        return {
            "name": self.name,
            "images_per_second": statistics.median(self.rates),
            "spread": figures.spread(self.rates),
            "peak_memory_bytes": self.memory,
            "start_seconds": self.start_seconds,
            "steps": self.steps,
            "rounds": self.rates,
            "facts": self.facts,
        }


class Rounds:
    """Starts contestants and lets them take turns.

    A contestant has the methods `facts()`, a dict, and `run(steps, untimed)`, a dict of `seconds`
    and `steps` of what was timed.

    Args:
        batch: images in a step.
        rounds: in which each contestant is measured once.
        steps: timed in a round; as many as take two seconds if not given.
        untimed: steps before them.
        say: told what is being done.
    """

    def __init__(
        self, batch: int, rounds: int, steps: int | None, say: Say, untimed: int = 2
    ) -> None:
        self.batch, self.rounds, self.steps, self.untimed = batch, rounds, steps, untimed
        self.say = say
        self.contestants: list[Contestant] = []

    def enter(
        self, start: Callable[..., Worker], name: str, kind: str, arguments: Mapping[str, Any]
    ) -> Contestant:
        """Start a contestant, let it do its first steps, and find how many make a round."""
        self.say(f"starting {name}")
        environment = {**os.environ, "KERAS_BACKEND": backend.name()}
        worker = start(name, kind, arguments, environment)
        entered = Contestant(name, kind, worker, worker.ask("facts"))
        began = perf_counter()
        worker.ask("run", steps=1, untimed=1)
        entered.start_seconds = perf_counter() - began
        entered.steps = self.steps or self._enough(worker)
        self.contestants.append(entered)
        return entered

    def _enough(self, worker: Worker) -> int:
        found = worker.ask("run", steps=_PROBE, untimed=1)
        each = float(found["seconds"]) / float(found["steps"])
        return max(_PROBE, min(_MOST_STEPS, math.ceil(ROUND_SECONDS / each)))

    def play(self, between: Callable[[str], None] = lambda where: None) -> None:
        """Measure every contestant in every round.

        Args:
            between: called after each round with words that say which.
        """
        began = perf_counter()
        for number in range(self.rounds):
            where = f"round {number + 1}/{self.rounds}"
            for turn, contestant in enumerate(turns(self.contestants, number), 1):
                found = contestant.worker.ask(
                    "run", steps=contestant.steps, untimed=self.untimed if not self.steps else 1
                )
                contestant.rates.append(found["steps"] * self.batch / found["seconds"])
                done = number * len(self.contestants) + turn
                share = done / (self.rounds * len(self.contestants))
                self.say(
                    f"{where}: {contestant.name}  {contestant.rates[-1]:,.1f} images/s  "
                    f"ETA {duration((perf_counter() - began) * (1 / share - 1))}"
                )
            between(where)
        for contestant in self.contestants:
            contestant.memory = contestant.worker.ask("peak_memory")

    def ratios(self, ours: Contestant, *others: Contestant) -> dict[str, float]:
        """Return by how much one contestant is faster than others, by their names."""
        return {x.name: figures.paired_ratio(ours.rates, x.rates) for x in others}
