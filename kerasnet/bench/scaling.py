"""`kerasnet bench scaling`: speed and memory by batch size and by depth, and the time to build."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from kerasnet import config as configs
from kerasnet import schema
from kerasnet.bench import figures
from kerasnet.bench.contestants import KERASNET
from kerasnet.bench.figures import show
from kerasnet.bench.rounds import Rounds, Say
from kerasnet.bench.workers import workers
from kerasnet.errors import BadInputError
from kerasnet.files import make_folder, write_atomically
from kerasnet.plan import millions
from kerasnet.terminal import say

# He et al. 2015, section 4.2: three stages of n blocks of two convolutions, and two layers more.
DEEP_MODEL, STAGES = "resnet20", 3
_TIMES = 5
# Planning takes a millisecond, which any other work on the machine may double.
_PLAN_TIMES = 50
_COMMON = ("images_per_second", "spread", "peak_memory_bytes", "start_seconds", "steps")
BATCH_FIELDS = ("batch", *_COMMON)
DEPTH_FIELDS = ("depth", "layers", "params", "macs", "plan_seconds", "build_seconds", *_COMMON)


def of_depth(config: schema.RunConfig, depth: int) -> schema.RunConfig:
    """Return the configuration of a ResNet for CIFAR with another number of layers.

    Args:
        config: of `DEEP_MODEL`.
        depth: 6n + 2.

    Raises:
        BadInputError: it is not, for a positive n.
    """
    n, rest = divmod(depth - 2, 2 * STAGES)
    if rest or n < 1:
        near = 2 * STAGES * max(1, n) + 2
        raise BadInputError(
            f"--depths: a ResNet for CIFAR has 6n + 2 layers, not {depth}. Did you mean {near}?"
        )
    repeats = {f"model.stages.{i}.repeats": n for i in range(STAGES)}
    return configs.with_values(config, repeats)


class ScalingBench:
    """Measures a model by batch size, and the ResNets for CIFAR by depth.

    Every point has a process of its own, one after the other, so that its peak memory is its own.

    Args:
        config: of the model, as `training.synthetic_config` returns it.
        deep: of `DEEP_MODEL`.
        batches: batch sizes.
        depths: numbers of layers.
        rounds: measured at each point.
        steps: timed in a round; as many as take two seconds if not given.
        tell: told what is being done.

    Raises:
        BadInputError: a depth is none.
    """

    def __init__(
        self, config: schema.RunConfig, deep: schema.RunConfig, batches: Sequence[int],
        depths: Sequence[int], rounds: int, steps: int | None, tell: Say,
    ) -> None:  # fmt: skip
        self.config, self.deep, self.batches = config, deep, batches
        self.configs = {depth: of_depth(deep, depth) for depth in depths}
        self.rounds, self.steps, self.tell = rounds, steps, tell

    def run(self) -> dict[str, Any]:
        """Measure, and return what `--json` prints.

        Raises:
            EnvironmentFaultError: a worker ended, or was silent too long.
            InterruptedRunError: by Ctrl-C or SIGTERM.
        """
        by_batch = [self._by_batch(batch) for batch in self.batches]
        by_depth = [self._by_depth(depth) for depth in self.configs]
        return {
            "model": self.config.architecture.name,
            "rounds": self.rounds,
            "by_batch": by_batch,
            "deep_model": DEEP_MODEL,
            "deep_batch": self.deep.recipe.batch_size,
            "by_depth": by_depth,
            "fits": {
                **_fits(by_batch, "batch", ("peak_memory_bytes",)),
                **_fits(by_depth, "layers", ("plan_seconds", "build_seconds")),
            },
        }

    def _by_batch(self, batch: int) -> dict[str, Any]:
        config = configs.with_values(self.config, {"recipe.batch_size": batch})
        found = self._measured(config, f"{self.config.architecture.name}, batch {batch}")
        return {name: found.get(name, batch) for name in BATCH_FIELDS}

    def _by_depth(self, depth: int) -> dict[str, Any]:
        config = self.configs[depth]
        plan = configs.plan(config)
        own = {
            "depth": depth,
            "layers": len(plan.layers),
            "params": plan.params["total"],
            "macs": plan.macs,
            "plan_seconds": _plan_seconds(config),
        }
        found = {**self._measured(config, f"depth {depth}"), **own}
        return {name: found[name] for name in DEPTH_FIELDS}

    def _measured(self, config: schema.RunConfig, name: str) -> dict[str, Any]:
        turns = Rounds(config.recipe.batch_size, self.rounds, self.steps, self.tell)
        plain = config.model_dump(mode="json", by_alias=True)
        with workers() as start:
            entered = turns.enter(start, name, KERASNET, {"config": plain})
            turns.play()
            built = [entered.worker.ask("build_seconds") for _ in range(_TIMES)]
        # Whatever else the machine does only adds to the time.
        return {**entered.to_json(), "build_seconds": min(built)}


def _plan_seconds(config: schema.RunConfig) -> float:
    taken = []
    for _ in range(_PLAN_TIMES):
        began = perf_counter()
        configs.plan(config)
        taken.append(perf_counter() - began)
    return min(taken)


def _fits(
    rows: Sequence[Mapping[str, Any]], x: str, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the straight line through each of some columns over column `x`, and its R²."""
    if len(rows) < 2:
        return {}
    found = {name: figures.line([r[x] for r in rows], [r[name] for r in rows]) for name in names}
    return {
        name: {"over": x, **dict(zip(("slope", "intercept", "r2"), line, strict=True))}
        for name, line in found.items()
    }


# ---------------------------------------------------------------------------- what is left of it


def report(console: Any, result: Mapping[str, Any]) -> None:
    """Print both tables, and what grows in a straight line."""
    common = ("images/s", "spread", "peak MiB")
    say(console, f"{result['model']}, {result['rounds']} rounds")
    sizes = [(str(x["batch"]), *_cells(x)) for x in result["by_batch"]]
    show(console, ("batch", *common), sizes)
    say(console, f"\nResNets for CIFAR, batch {result['deep_batch']}")
    nets = [
        (str(x["depth"]), millions(x["params"]), millions(x["macs"]), *_cells(x),
         f"{1000 * x['plan_seconds']:.1f} ms", f"{x['build_seconds']:.2f} s",
         f"{x['start_seconds']:.1f} s")
        for x in result["by_depth"]
    ]  # fmt: skip
    show(console, ("depth", "params", "MACs", *common, "plan", "build", "first steps"), nets)
    for name, line in result["fits"].items():
        say(console, f"{name} = {line['slope']:.3g} × {line['over']} + {line['intercept']:.3g}, "
                     f"R² {line['r2']:.4f}")  # fmt: skip
    say(
        console,
        "images/s: median over rounds; spread: interquartile range over median; plan: spec to "
        "layers; build: plan\nto Keras model, once more in a process that has built one; both the "
        "shortest of a few",
    )


def _cells(x: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        f"{x['images_per_second']:,.1f}",
        f"{x['spread']:.1%}",
        f"{x['peak_memory_bytes'] / 2**20:,.0f}",
    )


def write(folder: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write `batch.csv`, `depth.csv` and `scaling.png` into a folder.

    Raises:
        EnvironmentFaultError: they cannot be written.
    """
    made = make_folder(folder)
    for name, fields in (("batch", BATCH_FIELDS), ("depth", DEPTH_FIELDS)):
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(result[f"by_{name}"])
        write_atomically(made / f"{name}.csv", text.getvalue().encode())
    _draw(made / "scaling.png", result)


def _draw(file: Path, result: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot's, needs no display and leaves no state.
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3)
    by_batch, by_depth = result["by_batch"], result["by_depth"]
    model, deep = result["model"], f"ResNets, batch {result['deep_batch']}"
    memory = ("peak_memory_bytes", 2**-20, "peak memory, MiB")
    speed = ("images_per_second", 1, "images/s")
    _curve(axes[0, 0], by_batch, "batch", speed, model, "both")
    _curve(axes[0, 1], by_batch, "batch", memory, model, "x")
    _curve(axes[0, 2], by_depth, "layers", ("build_seconds", 1, "build, s"), deep, "")
    _curve(axes[1, 0], by_depth, "depth", speed, deep, "both")
    _curve(axes[1, 1], by_depth, "depth", memory, deep, "")
    _curve(axes[1, 2], by_depth, "layers", ("plan_seconds", 1000, "plan, ms"), deep, "")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(file, buffer.getvalue())


def _curve(
    axes: Any, rows: Sequence[Mapping[str, Any]], x: str, what: tuple[str, float, str],
    title: str, log: str,
) -> None:  # fmt: skip
    """Draw a column over another; `log` names the logarithmic axes: `both`, `x` or none."""
    column, factor, label = what
    places = [row[x] for row in rows]
    axes.plot(places, [row[column] * factor for row in rows], marker="o")
    axes.set(title=title, xlabel=x, ylabel=label)
    axes.grid(alpha=0.3)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(place) for place in places])
        axes.minorticks_off()
    if log == "both":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
