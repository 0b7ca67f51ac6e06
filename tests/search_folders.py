"""Search folders written by hand, as a search leaves them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from kerasnet import config as configs
from kerasnet.runs import METRICS, Run
from kerasnet.schema import SearchConfig, Space
from kerasnet.tune.records import Search, SearchFolder, Trial, best_of

RATE = "recipe.optimizer.learning_rate"
SMOOTHING = "recipe.label_smoothing"
MOMENTUM = "recipe.optimizer.momentum"
KIND = "recipe.schedule.type"
BATCH = "recipe.batch_size"
WIDE: dict[str, Any] = {
    RATE: {"type": "float", "min": 1e-5, "max": 1.0, "log": True},
    SMOOTHING: {"type": "float", "min": 0.0, "max": 0.2},
    MOMENTUM: {"type": "float", "min": 0.8, "max": 0.99},
    KIND: {"type": "choice", "values": ["cosine", "linear", "constant"]},
    BATCH: {"type": "choice", "values": [32, 64, 128]},
}


def drawn(parameters: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return a point of a space; momentum is absent in some."""
    values: dict[str, Any] = {}
    for path, d in parameters.items():
        if d["type"] == "choice":
            values[path] = d["values"][rng.integers(len(d["values"]))]
        elif d.get("log"):
            values[path] = float(np.exp(rng.uniform(math.log(d["min"]), math.log(d["max"]))))
        else:
            values[path] = float(rng.uniform(d["min"], d["max"]))
    if MOMENTUM in values and rng.random() < 0.3:
        del values[MOMENTUM]
    return values


def make_trial(
    number: int, values: dict[str, Any], epochs: int, rng: np.random.Generator, executions: int = 1
) -> tuple[Trial, list[float]]:
    """Return a trial and its curve: good near a rate of 0.01, divergent above 0.4."""
    rate = values.get(RATE, 0.01)
    name = f"{number:04d}"
    top = 0.1 + 0.75 * math.exp(-((math.log10(rate / 0.01) / 1.3) ** 2)) + 0.02 * rng.normal()
    top = min(max(top, 0.08), 0.99)
    curve = [0.1 + (top - 0.1) * (1 - math.exp(-e / 2)) for e in range(1, epochs + 1)]
    given: dict[str, Any] = {"trial": name, "values": values, "runs": [f"trials/{name}"]}
    if rate > 0.4:
        error = f"trials/{name}: the loss of step 12 is not a finite number"
        return Trial(**given, state="diverged", error=error, exit_code=3, seconds=4.0), []
    if top < 0.15 and epochs > 2:
        cut = curve[: epochs // 2]
        more = {"state": "stopped", "val_accuracy": cut[-1], "scores": [cut[-1]]}
        return Trial(**given, **more, epochs=len(cut), best_epoch=len(cut), seconds=20.0), cut
    scores = [min(1.0, max(0.0, curve[-1] + 0.02 * rng.normal())) for _ in range(executions)]
    if executions == 1:
        scores = [curve[-1]]
    more = {"state": "finished", "val_accuracy": float(np.mean(scores)), "scores": scores}
    return Trial(**given, **more, epochs=epochs, best_epoch=epochs, seconds=40.0), curve


def write_curve(folder: Path, run: str, curve: list[float]) -> None:
    """Write a run folder that holds nothing but its metrics."""
    rows = [
        dict.fromkeys(METRICS, 0.5) | {"epoch": e, "step": 10 * e, "val_accuracy": y}
        for e, y in enumerate(curve, start=1)
    ]
    Run(folder / run).write_rows("metrics.csv", METRICS, rows)


def write_search(
    folder: Path, trials: list[Trial], parameters: dict[str, Any] | None = None, **more: Any
) -> Search:
    """Write `search.yaml`, `records/` and `search.json`."""
    best = best_of(trials, more.get("algorithm", "random"))
    given: dict[str, Any] = {
        "model": "resnet8", "dataset": "digits", "recipe": "digits", "space": "learning_rate",
        "algorithm": "random", "seed": 7, "epochs": 6, "executions": 1, "planned": len(trials),
        "complete": True, "seconds": sum(t.seconds for t in trials), "trials": trials,
        "best": best, "command": "kerasnet fit --from-search found" if best else None,
    }  # fmt: skip
    search = Search(**{**given, **more})
    asked = SearchConfig(
        kerasnet="0.1.0", space_name=search.space,
        space=Space.model_validate({"parameters": parameters or {RATE: WIDE[RATE]}}),
        base=configs.resolve("resnet8", dataset="digits"), algorithm="random", trials=1,
    )  # fmt: skip
    SearchFolder(folder).write_asked(asked)
    (folder / "search.json").write_text(search.model_dump_json())
    (folder / "records").mkdir(exist_ok=True)
    for trial in trials:
        write_record(folder, trial)
    return search


def write_record(folder: Path, trial: Trial) -> None:
    """Write what is known of a trial."""
    (folder / "records" / f"{trial.trial}.json").write_text(trial.model_dump_json())


def make_search(
    folder: Path, count: int, parameters: dict[str, Any] | None = None, *,
    epochs: int = 6, executions: int = 1, seed: int = 0, **more: Any,
) -> Search:  # fmt: skip
    """Write a folder of `count` trials, with their curves."""
    parameters = parameters or {RATE: WIDE[RATE]}
    rng = np.random.default_rng(seed)
    made = [make_trial(i, drawn(parameters, rng), epochs, rng, executions) for i in range(count)]
    for trial, curve in made:
        write_curve(folder, trial.runs[0], curve)
    given = {"epochs": epochs, "executions": executions, **more}
    return write_search(folder, [trial for trial, _ in made], parameters, **given)


def make_hyperband(folder: Path) -> Search:
    """Write nine trials of one epoch, of which three go on to three epochs and one to nine.

    The fifth has the highest score of all, after its one epoch.
    """
    rng, trials = np.random.default_rng(3), []
    curves = [[0.1 + 0.05 * e / (n + 1) for e in range(1, 10)] for n in range(9)]
    curves[4] = [0.9]
    for number, curve in enumerate(curves):
        length = 9 if number == 0 else 3 if number < 3 else 1
        write_curve(folder, f"trials/{number:04d}", curve[:length])
        values = drawn({RATE: WIDE[RATE]}, rng)
        trials.append(_rung(number, values, number, curve, 1))
    for number, length, start, before in (
        (9, 3, 0, 0),
        (10, 3, 1, 1),
        (11, 3, 2, 2),
        (12, 9, 0, 9),
    ):
        values = trials[start].values
        trials.append(_rung(number, values, start, curves[start], length, f"{before:04d}"))
    return write_search(folder, trials, algorithm="hyperband", epochs=9)


def _rung(
    number: int, values: dict[str, Any], run: int, curve: list[float], epochs: int,
    continues: str | None = None,
) -> Trial:  # fmt: skip
    score = curve[epochs - 1]
    return Trial(
        trial=f"{number:04d}", values=values, state="finished", val_accuracy=score, scores=[score],
        epochs=epochs, best_epoch=epochs, seconds=10.0, runs=[f"trials/{run:04d}"],
        continues=continues,
    )  # fmt: skip
