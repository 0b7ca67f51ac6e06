"""`kerasnet bench data`: images a second of the training pipeline beside hand-written ones."""

from __future__ import annotations

from typing import Any

from kerasnet import schema
from kerasnet.bench.contestants import PIPELINES
from kerasnet.bench.figures import show
from kerasnet.bench.measure import random_images
from kerasnet.bench.rounds import Rounds, Say
from kerasnet.bench.workers import workers
from kerasnet.terminal import say

WAYS = {
    "kerasnet": "kerasnet",
    "per example": "per_example",
    "keras layers": "keras_layers",
    "gather and cast": "gather",
}
# Enough to empty what was prepared while others were measured.
_UNTIMED = 32


def run(config: schema.RunConfig, rounds: int, steps: int | None, tell: Say) -> dict[str, Any]:
    """Measure every way to make a recipe's batches, and return what `--json` prints.

    Args:
        config: as `training.synthetic_config` returns it.
        rounds: in which each way is measured once.
        steps: batches timed in a round; as many as take two seconds if not given.
        tell: told what is being done.

    Raises:
        EnvironmentFaultError: a worker ended, or was silent too long.
        InterruptedRunError: by Ctrl-C or SIGTERM.
    """
    turns = Rounds(config.recipe.batch_size, rounds, steps, tell, _UNTIMED)
    plain = config.model_dump(mode="json", by_alias=True)
    with workers() as start:
        ours, *others = (
            turns.enter(start, name, PIPELINES, {"config": plain, "way": way})
            for name, way in WAYS.items()
        )
        turns.play()
    return {
        "recipe": config.recipe_name,
        "image": config.input,
        "images": random_images(config),
        "batch": turns.batch,
        "rounds": rounds,
        "results": [x.to_json() for x in turns.contestants],
        "ratios": turns.ratios(ours, *others),
    }


def report(console: Any, result: dict[str, Any]) -> None:
    """Print the table and what its columns mean."""
    say(
        console,
        f"{result['images']:,} random images in memory, {result['image']}, batch "
        f"{result['batch']}, recipe {result['recipe']}, {result['rounds']} rounds",
    )
    rows = [
        (x["name"], f"{x['images_per_second']:,.0f}", f"{x['spread']:.1%}",
         f"{x['peak_memory_bytes'] / 2**20:,.0f}",
         f"{result['ratios'][x['name']]:.2f}×" if x["name"] in result["ratios"] else "")
        for x in result["results"]
    ]  # fmt: skip
    show(console, ("", "images/s", "spread", "peak MiB", "kerasnet is"), rows, left=("",))
    say(
        console,
        "per example: tf.data maps one image at a time; keras layers: ZeroPadding2D, RandomCrop, "
        "RandomFlip,\nNormalization on whole batches; gather and cast: no augmentation, the least "
        "that a batch costs.\nimages/s: median over rounds; spread: interquartile range over "
        "median; kerasnet is: the median of each round's ratio",
    )
