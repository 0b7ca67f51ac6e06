"""`kerasnet bench train`: images a second of training steps, beside PyTorch and stock Keras."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from kerasnet import backend, schema
from kerasnet import config as configs
from kerasnet import precision as precisions
from kerasnet.bench import figures
from kerasnet.bench.contestants import KERAS, KERASNET, TORCH
from kerasnet.bench.rounds import Contestant, Rounds, Say
from kerasnet.bench.workers import workers
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.registry import Registry

PEERS = ("torch", "keras")
READY = "kerasnet (ready batches)"
_GEMM_SECONDS = 0.5
_PIPELINE_BATCHES = 50
_DTYPES = {"float32": "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


def chosen_peers(against: str | None, say: Say) -> list[str]:
    """Return the peers to compare with.

    Args:
        against: names separated by commas; all that can be imported if not given.
        say: told what is left out, and why.

    Raises:
        BadInputError: a name is unknown, or one that is asked for is not installed.
    """
    install = 'pip install ".[torch]", in the checkout'
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
        self.config, self.peers, self.say = config, peers, say
        self.plan = configs.plan(config)
        self.rounds = Rounds(config.recipe.batch_size, rounds, steps, say)
        # GFLOP/s of matrix products by framework, dtype and round.
        self.products: dict[str, dict[str, list[float]]] = {}
        self.pipeline: list[float] = []

    def run(self) -> dict[str, Any]:
        """Measure, and return what `--json` prints.

        Raises:
            EnvironmentFaultError: a worker ended, or was silent too long.
            InterruptedRunError: by Ctrl-C or SIGTERM.
        """
        plain = self.config.model_dump(mode="json", by_alias=True)
        with workers() as start:
            ours = self.rounds.enter(start, "kerasnet", KERASNET, {"config": plain})
            # What its precision comes to is known only when it has started.
            ours.name = f"kerasnet ({ours.facts['precision']})"
            for name, kind, arguments in self._others(ours.facts["precision"]):
                self.rounds.enter(start, name, kind, {"config": plain, **arguments})
            self.rounds.play(self._between)
        return self._result()

    def _others(self, resolved: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Give the name, the kind and the options of every other contestant."""
        config = self.config
        for policy in ("float32", "mixed_bfloat16"):
            if policy != resolved:
                asked = config.model_copy(update={"precision": precisions.resolve(policy)})
                plain = asked.model_dump(mode="json", by_alias=True)
                yield f"kerasnet ({policy})", KERASNET, {"config": plain}
        yield READY, KERASNET, {"ready": True}
        if "torch" in self.peers:
            for name, last, half in (("torch", False, False),
                                     ("torch (channels_last)", True, False),
                                     ("torch (channels_last, bfloat16)", True, True)):  # fmt: skip
                yield name, TORCH, {"channels_last": last, "bfloat16": half, "fused": last}
        if "keras" in self.peers:
            yield "keras", KERAS, {"policy": "float32"}
            yield "keras (mixed_bfloat16)", KERAS, {"policy": "mixed_bfloat16"}

    def _between(self, where: str) -> None:
        ours = self.rounds.contestants[0]
        self.say(f"{where}: the input pipeline alone")
        self.pipeline.append(ours.worker.ask("pipeline_seconds", steps=_PIPELINE_BATCHES))
        self._measure_products(where)

    def _measure_products(self, where: str) -> None:
        """Let one process of each framework multiply large matrices in every dtype there is."""
        entered = self.rounds.contestants
        on_gpu = any(not device.startswith("cpu") for device in entered[0].facts["devices"])
        dtypes = sorted({_DTYPES[x.facts["precision"]] for x in entered})
        firsts = {"torch" if x.kind == TORCH else backend.name(): x for x in reversed(entered)}
        for framework, first in firsts.items():
            self.say(f"{where}: matrix products by {framework}")
            rates = self.products.setdefault(framework, {})
            for dtype in dtypes:
                rate = first.worker.ask(
                    "gemm", dtype=dtype, size=8192 if on_gpu else 2048, seconds=_GEMM_SECONDS
                )
                rates.setdefault(dtype, []).append(rate / 1e9)

    def _result(self) -> dict[str, Any]:
        ours, *others = self.rounds.contestants
        ready = next(x for x in others if x.name == READY)
        # Time without the pipeline over time with it, for rates are inverse to times.
        kept = self.rounds.ratios(ours, ready)[READY]
        return {
            "model": self.plan.name,
            "batch": self.rounds.batch,
            "rounds": self.rounds.rounds,
            "recipe": self.config.recipe_name,
            "kerasnet": ours.name,
            "macs": self.plan.macs,
            "results": [self._entry(x) for x in self.rounds.contestants],
            "ratios": self.rounds.ratios(ours, *(x for x in others if x.kind != KERASNET)),
            "input_bound_share": 1 - kept,
            "pipeline_share": self._pipeline_share(ours),
            "gemm_peak": self._peaks(),
            "machine_unrest": max(
                figures.unrest(rates) for by in self.products.values() for rates in by.values()
            ),
        }

    def _peaks(self) -> dict[str, dict[str, float]]:
        """Return the highest GFLOP/s of matrix products by framework and dtype."""
        return {
            framework: {dtype: max(rates) for dtype, rates in by.items()}
            for framework, by in self.products.items()
        }

    def _pipeline_share(self, ours: Contestant) -> float:
        """Return the time of the pipeline alone over the time of a step, a batch each."""
        step = self.rounds.batch / statistics.median(ours.rates)
        return statistics.median(self.pipeline) / step

    def _entry(self, x: Contestant) -> dict[str, Any]:
        common = x.to_json()
        gflops = figures.training_gflops(self.plan.macs, common["images_per_second"])
        precision = x.facts["precision"]
        peak = max(rates[_DTYPES[precision]] for rates in self._peaks().values())
        more = {"gflops": gflops, "share_of_peak": gflops / peak, "precision": precision}
        return {**common, **more}
