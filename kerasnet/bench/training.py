"""`kerasnet bench train`: images a second of training steps, beside PyTorch and stock Keras."""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from kerasnet import backend, schema
from kerasnet import config as configs
from kerasnet import precision as precisions
from kerasnet.bench import figures
from kerasnet.bench.contestants import KERAS, KERASNET, TORCH
from kerasnet.bench.workers import Worker, turns, workers
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.registry import Registry

PEERS = ("torch", "keras")
READY = "kerasnet (ready batches)"
# A round shorter than this would measure the clock's and the scheduler's noise.
ROUND_SECONDS = 2.0
_PROBE, _GEMM_SECONDS = 2, 0.3
_DTYPES = {"float32": "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}

Say = Callable[[str], None]


@dataclass
class Contestant:
    """One way to train, its process, and what was measured of it.

    Attributes:
        name: in every table.
        framework: whose matrix products it can measure.
        worker: its process.
        precision: dtype policy, or what corresponds to it.
        facts: how it runs, in its own words.
        start_seconds: of the first steps, compilation included.
        steps: that are timed in a round.
        rates: images a second, one a round.
    """

    name: str
    framework: str
    worker: Worker
    precision: str
    facts: dict[str, Any]
    start_seconds: float = 0.0
    steps: int = 0
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median over the rounds, in images a second."""
        return statistics.median(self.rates)


def chosen_peers(against: str | None, say: Say) -> list[str]:
    """Return the peers to compare with.

    Args:
        against: names separated by commas; all that can be imported if not given.
        say: told what is left out, and why.

    Raises:
        BadInputError: a name is unknown, or one that is asked for is not installed.
    """
    install = 'pip install "kerasnet[torch]"'
    missing = importlib.util.find_spec("torch") is None
    if against is None:
        if missing:
            say(f"left out: torch, which is not installed ({install})")
        return [peer for peer in PEERS if peer != "torch" or not missing]
    names = [name.strip() for name in against.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise BadInputError(f"--against: there is no peer '{name}'. "
                                f"{did_you_mean(name, PEERS)}")  # fmt: skip
    if "torch" in names and missing:
        raise BadInputError(
            f"--against torch: PyTorch is not installed. Install it with {install}, or compare "
            "with --against keras"
        )
    return list(dict.fromkeys(names))


def synthetic_config(
    model: str, registry: Registry, *, recipe: str, batch: int | None, precision: str
) -> schema.RunConfig:
    """Return the configuration of a run on random images of the model's own input shape.

    Args:
        model: name in the registry.
        registry: where names are looked up.
        recipe: name in the registry.
        batch: images in a step; the recipe's if not given.
        precision: as `kerasnet fit --precision`.

    Raises:
        BadInputError: a name is unknown.
    """
    # The embedded images need no file; what is configured for them is put in place below.
    options: dict[str, Any] = {"recipe": recipe, "dataset": "digits", "precision": precision}
    if recipe not in registry.recipes:
        raise BadInputError(
            f"there is no recipe '{recipe}'. {did_you_mean(recipe, registry.recipes)}"
        )
    if batch is not None:
        options["batch_size"] = batch
    config = configs.new_run(model, options, registry)
    spec = config.data.spec.model_copy(update={"augment": schema.Allowed()})
    own = config.architecture.model
    return config.model_copy(
        update={
            "input": list(own.input),
            "classes": own.classes,
            "data": config.data.model_copy(update={"spec": spec}),
        }
    )


# ---------------------------------------------------------------------------- the run


class TrainBench:
    """Starts the contestants, lets them take turns, and says what came of it.

    Args:
        config: as `synthetic_config` returns it.
        peers: out of `PEERS`.
        rounds: in which each contestant trains once.
        steps: timed in a round; as many as take two seconds if not given.
        say: told what is being done.
    """

    def __init__(
        self, config: schema.RunConfig, peers: Sequence[str], rounds: int, steps: int | None,
        say: Say,
    ) -> None:  # fmt: skip
        self.config, self.peers, self.rounds, self.steps = config, peers, rounds, steps
        self.say = say
        self.contestants: list[Contestant] = []
        self.peaks: dict[str, dict[str, float]] = {}
        self.memory: dict[str, int] = {}
        self.plan = configs.plan(config)

    def run(self) -> dict[str, Any]:
        """Measure, and return what `--json` prints.

        Raises:
            EnvironmentFaultError: a worker ended, or was silent too long.
            InterruptedRunError: by Ctrl-C or SIGTERM.
        """
        with workers() as start:
            for name, kind, arguments in self._entries(start):
                self._enter(start, name, kind, arguments)
            for number in range(self.rounds):
                for contestant in turns(self.contestants, number):
                    self._measure(contestant, number)
                self._measure_peaks(number)
            self.memory = {x.name: x.worker.ask("peak_memory") for x in self.contestants}
        return self.result()

    def _entries(self, start: Callable[..., Worker]) -> Iterable[tuple[str, str, dict[str, Any]]]:
        """Give every contestant's name, kind and arguments, kerasnet as it trains by itself first.

        What its precision comes to is known only when it has started.
        """
        plain = self.config.model_dump(mode="json", by_alias=True)
        yield "kerasnet", KERASNET, {"config": plain}
        resolved = self.contestants[0].precision
        for policy in ("float32", "mixed_bfloat16"):
            if policy != resolved:
                asked = precisions.resolve(policy).model_dump(mode="json")
                yield f"kerasnet ({policy})", KERASNET, {"config": {**plain, "precision": asked}}
        yield READY, KERASNET, {"config": plain, "ready": True}
        if "torch" in self.peers:
            for name, last, half in (("torch", False, False),
                                     ("torch (channels_last)", True, False),
                                     ("torch (channels_last, bfloat16)", True, True)):  # fmt: skip
                yield name, TORCH, {"config": plain, "channels_last": last, "bfloat16": half,
                                      "fused": last}  # fmt: skip
        if "keras" in self.peers:
            yield "keras", KERAS, {"config": plain, "policy": "float32"}
            yield "keras (mixed_bfloat16)", KERAS, {"config": plain, "policy": "mixed_bfloat16"}

    def _enter(
        self, start: Callable[..., Worker], name: str, kind: str, arguments: Mapping[str, Any]
    ) -> None:
        """Start a contestant, let it train its first steps, and find how many make a round."""
        self.say(f"starting {name}")
        worker = start(name, kind, arguments, {**os.environ, "KERAS_BACKEND": backend.name()})
        facts = worker.ask("facts")
        precision = facts["precision"]
        if name == "kerasnet":
            name = f"kerasnet ({precision})"
        framework = "torch" if kind == TORCH else backend.name()
        entered = Contestant(name, framework, worker, precision, facts)
        began = perf_counter()
        worker.ask("train", steps=1, untimed=1)
        entered.start_seconds = perf_counter() - began
        probe = worker.ask("train", steps=_PROBE, untimed=1)
        each = probe["seconds"] / probe["steps"]
        entered.steps = self.steps or max(_PROBE, min(5_000, math.ceil(ROUND_SECONDS / each)))
        self.contestants.append(entered)

    def _measure(self, contestant: Contestant, number: int) -> None:
        self.say(f"round {number + 1}/{self.rounds}: {contestant.name}")
        untimed = 2 if self.steps is None else 1
        found = contestant.worker.ask("train", steps=contestant.steps, untimed=untimed)
        images = found["steps"] * self.config.recipe.batch_size
        contestant.rates.append(images / found["seconds"])

    def _measure_peaks(self, number: int) -> None:
        """Let one process of each framework multiply large matrices in every dtype there is."""
        on_gpu = any("gpu" in str(d) for d in self.contestants[0].facts["devices"])
        size = 8192 if on_gpu else 2048
        dtypes = sorted({_DTYPES[x.precision] for x in self.contestants})
        for framework, first in {x.framework: x for x in reversed(self.contestants)}.items():
            self.say(f"round {number + 1}/{self.rounds}: matrix products by {framework}")
            rates = self.peaks.setdefault(framework, {})
            for dtype in dtypes:
                rate = first.worker.ask("gemm", dtype=dtype, size=size, seconds=_GEMM_SECONDS)
                rates[dtype] = max(rates.get(dtype, 0.0), rate / 1e9)

    # ---- results

    def result(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        ours, *others = self.contestants
        peers = [x for x in others if not x.name.startswith("kerasnet")]
        ready = next(x for x in others if x.name == READY)
        ratios = {x.name: figures.paired_ratio(ours.rates, x.rates) for x in peers}
        # Time without the pipeline over time with it, for rates are inverse to times.
        kept = figures.paired_ratio(ours.rates, ready.rates)
        return {
            "model": self.plan.name,
            "batch": self.config.recipe.batch_size,
            "rounds": self.rounds,
            "recipe": self.config.recipe_name,
            "kerasnet": ours.name,
            "macs": self.plan.macs,
            "results": [self._entry(x) for x in self.contestants],
            "ratios": ratios,
            "input_bound_share": 1 - kept,
            "gemm_peak": self.peaks,
        }

    def _entry(self, x: Contestant) -> dict[str, Any]:
        gflops = figures.training_gflops(self.plan.macs, x.rate)
        peak = max(rates[_DTYPES[x.precision]] for rates in self.peaks.values())
        return {
            "name": x.name,
            "images_per_second": x.rate,
            "spread": figures.spread(x.rates),
            "gflops": gflops,
            "share_of_peak": gflops / peak,
            "precision": x.precision,
            "peak_memory_bytes": self.memory[x.name],
            "start_seconds": x.start_seconds,
            "steps": x.steps,
            "rounds": x.rates,
            "facts": x.facts,
        }
