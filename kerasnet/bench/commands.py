"""`kerasnet bench …`: parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kerasnet.options import EndJsonOption, RegistryOption
from kerasnet.terminal import example, say

if TYPE_CHECKING:
    from rich.console import Console

    from kerasnet.registry import Registry

app = typer.Typer(
    name="bench",
    help="Measure speed and memory beside other libraries, in the same run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

BatchOption = Annotated[int, typer.Option(min=1, max=2**20, help="Images in a step.")]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Timed in a round. [default: two seconds of them]")
]
AgainstOption = Annotated[
    str | None, typer.Option(metavar="torch,keras", help="[default: those that are installed]")
]
PrecisionOption = Annotated[str, typer.Option(metavar="auto|float32|mixed_bfloat16|mixed_float16")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Each contestant is measured so often.")]


def _known(file: str | None) -> Registry:
    from kerasnet.registry import load_registry

    return load_registry(file)


def _progress() -> Callable[[str], None]:
    from rich.console import Console

    console = Console(stderr=True)
    return lambda text: say(console, text)


def _print(result: dict[str, Any], as_json: bool, report: Callable[[Console, Any], None]) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console

    report(Console(), result)


@app.command(
    epilog=example(
        "kerasnet bench train resnet50",
        "kerasnet bench train vgg16 --against keras --rounds 3 --json",
    )
)
def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the registry.")],
    against: AgainstOption = None,
    batch: BatchOption = 100,
    rounds: RoundsOption = 5,
    steps: StepsOption = None,
    precision: PrecisionOption = "auto",
    recipe: Annotated[
        str, typer.Option(help="kerasnet trains by it; peers use Adam.")
    ] = "original",
    registry: RegistryOption = None,
    as_json: EndJsonOption = False,
) -> None:
    """Images a second of training, beside PyTorch and stock Keras.

    Every contestant has a process of its own and they take turns. kerasnet trains as `fit` does,
    from random uint8 images in memory, which it crops, flips and normalises; the peers train by
    Adam, and are given batches that lie ready. Compare ratios, which are taken within each round;
    more rounds help on a busy machine.
    """
    from kerasnet.bench.training import TrainBench, chosen_peers, synthetic_config
    from kerasnet.bench.training_report import report

    say = _progress()
    peers = chosen_peers(against, say)
    config = synthetic_config(
        model, _known(registry), recipe=recipe, batch=batch, precision=precision
    )
    _print(TrainBench(config, peers, rounds, steps, say).run(), as_json, report)


@app.command(epilog=example("kerasnet bench data", "kerasnet bench data --recipe default --json"))
def data(
    recipe: Annotated[str, typer.Option(help="Whose augmentations are made.")] = "original",
    batch: BatchOption = 100,
    rounds: RoundsOption = 5,
    steps: StepsOption = None,
    registry: RegistryOption = None,
    as_json: EndJsonOption = False,
) -> None:
    """Images a second of the training pipeline, beside hand-written ones.

    50,000 random 32×32×3 images are cropped, flipped and normalised on the processor: by kerasnet,
    by tf.data one image at a time, and by Keras's layers on batches; and gathered and cast only.
    """
    from kerasnet.bench.data import report, run
    from kerasnet.bench.training import synthetic_config

    config = synthetic_config(
        "resnet20", _known(registry), recipe=recipe, batch=batch, precision="float32"
    )
    _print(run(config, rounds, steps, _progress()), as_json, report)


@app.command(epilog=example("kerasnet bench startup resnet50"))
def startup(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="A model.")] = "resnet50",
    against: AgainstOption = None,
    batch: BatchOption = 100,
    rounds: RoundsOption = 3,
    registry: RegistryOption = None,
    as_json: EndJsonOption = False,
) -> None:
    """How long light commands take, and how long until the first training step has ended.

    Everything runs in a new process, in turns: kerasnet as `fit` starts, stock Keras and PyTorch
    with the same net.
    """
    from kerasnet.bench.startup import StartupBench, report
    from kerasnet.bench.training import chosen_peers, synthetic_config

    say = _progress()
    peers = chosen_peers(against, say)
    config = synthetic_config(
        model, _known(registry), recipe="original", batch=batch, precision="auto"
    )
    _print(StartupBench(config, peers, rounds, say).run(), as_json, report)


def _numbers(option: str, text: str) -> list[int]:
    """Return the numbers in `16,32,64`."""
    from kerasnet.errors import BadInputError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise BadInputError(f"{option} takes numbers such as 16,32,64, not '{text}'")
    return [int(word) for word in dict.fromkeys(words)]


@app.command(epilog=example("kerasnet bench scaling resnet50 --out runs/scaling"))
def scaling(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the registry.")],
    batches: Annotated[
        str, typer.Option(metavar="N,N,…", help="Batch sizes of MODEL.")
    ] = "16,32,64,128,256,512",
    depths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Layers, 6n + 2, of ResNets for CIFAR.")
    ] = "8,14,20,32,56,110",
    batch: Annotated[int, typer.Option(min=1, max=2**20, help="Batch size of the ResNets.")] = 100,
    rounds: RoundsOption = 3,
    steps: StepsOption = None,
    precision: PrecisionOption = "auto",
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write batch.csv, depth.csv, scaling.png.")
    ] = None,
    registry: RegistryOption = None,
    as_json: EndJsonOption = False,
) -> None:
    """Speed and peak memory by batch size and by depth, and the time to plan and build.

    Each point is a process of its own that trains on random images as `fit` does.
    """
    from kerasnet.bench.scaling import DEEP_MODEL, ScalingBench, report, write
    from kerasnet.bench.training import synthetic_config

    known = _known(registry)
    config, deep = (
        synthetic_config(name, known, recipe="original", batch=batch, precision=precision)
        for name in (model, DEEP_MODEL)
    )
    bench = ScalingBench(
        config, deep, _numbers("--batches", batches), _numbers("--depths", depths), rounds, steps,
        _progress(),
    )  # fmt: skip
    result = bench.run()
    if out:
        write(out, result)
    _print(result, as_json, report)
