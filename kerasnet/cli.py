"""The command line: parse, call, print.

Commands that stop at the plan import neither TensorFlow nor Keras; the others import them inside.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kerasnet import __version__
from kerasnet.bench.commands import app as bench_app
from kerasnet.errors import BadInputError, KerasnetError, did_you_mean, is_wrong_name
from kerasnet.options import (
    DataDirOption,
    EndJsonOption,
    FreezeOption,
    InputSizeOption,
    JsonOption,
    LimitTrainOption,
    PrecisionOption,
    RecipeOption,
    RegistryOption,
    ResetHeadOption,
    SeedOption,
    WeightsOption,
    image_size,
    input_shape,
)
from kerasnet.results.commands import app as results_app
from kerasnet.terminal import example, say
from kerasnet.tune.commands import app as tune_app

if TYPE_CHECKING:
    from rich.console import Console

    from kerasnet.plan import Plan
    from kerasnet.registry import Registry
    from kerasnet.schema import RunConfig, SeedsConfig

app = typer.Typer(
    name="kerasnet",
    help="A Keras 3 model zoo whose architectures are data.\n\n"
    "Try it: kerasnet fit resnet50 --dataset digits",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench_app)
app.add_typer(results_app)
app.add_typer(tune_app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kerasnet {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _registry(file: str | None) -> Registry:
    from kerasnet.registry import load_registry

    return load_registry(file)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


# ---------------------------------------------------------------------------- light commands


@app.command(
    "list", epilog=example("kerasnet list 'resnet*'", "kerasnet list --sort macs --reverse")
)
def list_(
    pattern: Annotated[str, typer.Argument(metavar="GLOB", help="Such as 'resnet*'.")] = "*",
    sort: Annotated[
        str | None,
        typer.Option(metavar="name|params|macs", help="[default: the registry's order]"),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Last first.")] = False,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only those whose weights ship with kerasnet.")
    ] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models with size, input, published test accuracy, weights that ship and origin."""
    from kerasnet.plan import plan_model
    from kerasnet.pretrained import shipping
    from kerasnet.summary import model_facts, model_table

    if sort not in (None, "name", "params", "macs"):
        raise BadInputError(f"--sort takes name, params or macs, not '{sort}'")
    known = _registry(registry)
    names = known.list_models(pattern)
    if not names:
        raise BadInputError(f"no model matches '{pattern}'. {did_you_mean(pattern, known.models)}")
    weights = {name: list(shipping(name, known)) for name in names}
    if pretrained:
        names = [name for name in names if weights[name]]
        if not names:
            raise BadInputError(
                f"no weights ship for a model that matches '{pattern}'. `kerasnet list "
                "--pretrained` has those for which some do"
            )
    facts = [model_facts(plan_model(known.architecture(n)), known.models[n], weights[n])
             for n in names]  # fmt: skip
    if sort:
        facts.sort(key=lambda row: row[sort])
    if reverse:
        facts.reverse()
    if as_json:
        _print_json(facts)
    else:
        typer.echo(model_table(facts))


@app.command(epilog=example("kerasnet show bottleneck_sum", "kerasnet show resnet50 --json"))
def show(
    name: Annotated[str, typer.Argument(help="A model, block, recipe, data set or norm.")],
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print an entry of the registry with everything that it extends filled in."""
    from kerasnet.schema import SECTIONS

    known = _registry(registry)
    found = {s: {name: getattr(known, s)[name]} for s in SECTIONS if name in getattr(known, s)}
    if not found:
        names = {n for s in SECTIONS for n in getattr(known, s)}
        raise BadInputError(f"the registry has no '{name}'. {did_you_mean(name, names)}")
    plain = {
        section: {n: e.model_dump(mode="json", by_alias=True, exclude={"extends"})
                  for n, e in entries.items()}
        for section, entries in found.items()
    }  # fmt: skip
    if as_json:
        _print_json(plain)
    else:
        from kerasnet.document import to_yaml

        typer.echo(to_yaml(plain), nl=False)


@app.command(epilog=example("kerasnet validate mine.yaml"))
def validate(
    file: Annotated[str, typer.Argument(help="A registry, a space, a config.yaml or a card.")],
    as_json: JsonOption = False,
) -> None:
    """Check a file: every key, value, reference and shape; errors name line and column."""
    from kerasnet.registry import validate_file

    found = validate_file(file)
    if as_json:
        _print_json({"file": file, "valid": True, **found})
    else:
        named = {what.replace("_", " "): n for what, n in found.items()}
        counts = [f"{n} {what.removesuffix('s') if n == 1 else what}" for what, n in named.items()]
        typer.echo(f"{file}: valid ({', '.join(counts)})")


@app.command(
    epilog=example(
        "kerasnet summary resnet50 --depth stage",
        "kerasnet summary vgg16 --explain",
        "kerasnet summary bottleneck_sum --input-size 8x8x64 --width 64 --stride 2",
    )
)
def summary(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|BLOCK", help="All models if not given.")
    ] = None,
    as_json: JsonOption = False,
    classes: Annotated[int | None, typer.Option(min=1, help="Outputs of the classifier.")] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="N|HxW|HxWxC", help="Size of the input image.")
    ] = None,
    depth: Annotated[
        str, typer.Option(metavar="stage|block|layer", help="A row for each.")
    ] = "layer",
    explain: Annotated[bool, typer.Option("--explain", help="Write out the arithmetic.")] = False,
    width: Annotated[
        int | None, typer.Option(min=1, help="Of a block alone. [default: 64]")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Of a block alone. [default: 1]")
    ] = None,
    registry: RegistryOption = None,
) -> None:
    """Print a model's or a block's layers with shapes, parameters and MACs."""
    from kerasnet import summary as show_plan

    if depth not in ("stage", "block", "layer"):
        raise BadInputError(f"--depth takes stage, block or layer, not '{depth}'")
    known = _registry(registry)
    if explain and as_json:
        raise BadInputError("--explain and --json exclude each other")
    if name is None:
        if explain or depth != "layer":
            option = "--explain" if explain else "--depth"
            raise BadInputError(f"{option} needs the name of a model or a block")
        plans = [_plan(known, n, classes, input_size, width, stride) for n in known.models]
        if as_json:
            _print_json([plan.to_json() for plan in plans])
        else:
            typer.echo(show_plan.overview(plans))
        return
    plan = _plan(known, name, classes, input_size, width, stride)
    if as_json:
        _print_json(plan.to_json())
    elif explain:
        typer.echo(show_plan.explain(plan))
    else:
        typer.echo(show_plan.layer_table(plan, depth))  # type: ignore[arg-type]


@app.command(
    epilog=example(
        "kerasnet diff resnet8 resnet20",
        "kerasnet diff resnet20 runs/resnet20-digits-20260101-120000 --json",
    )
)
def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A model, a block (of width 64), a run folder or config.yaml."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    input_size: Annotated[
        str | None, typer.Option(metavar="N|HxW|HxWxC", help="Size of both input images.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what differs between two plans: totals, layers, wiring and options."""
    from kerasnet.diff import compare, report

    known = _registry(registry)
    plans = [_compared_plan(known, name, input_size) for name in (a, b)]
    found = compare(plans[0], plans[1], (a, b))
    if as_json:
        _print_json(found.to_json())
    else:
        typer.echo(report(found))


@app.command(epilog=example("kerasnet schema --out kerasnet.schema.json", "kerasnet schema space"))
def schema(
    kind: Annotated[
        str, typer.Argument(metavar="registry|space|config", help="Of which kind of file.")
    ] = "registry",
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it here, into a .json file.")
    ] = None,
) -> None:
    """Print the JSON Schema of a file that kerasnet reads, for completion in editors."""
    from pathlib import Path

    from kerasnet.files import write_atomically
    from kerasnet.json_schema import shipped_file

    found = shipped_file(kind).read_bytes()
    if out is None:
        typer.echo(found, nl=False)
        return
    if not out.endswith(".json") or Path(out).is_dir():
        # Whoever names a registry here would lose it.
        raise BadInputError(f"--out takes a file whose name ends in .json, not '{out}'")
    write_atomically(Path(out), found)
    typer.echo(f"wrote {out}; a YAML file beside it says in its first line:\n"
               f"# yaml-language-server: $schema={Path(out).name}")  # fmt: skip


def _compared_plan(known: Registry, name: str, input_size: str | None) -> Plan:
    """Return the plan of a model, a block, a run folder or a configuration file."""
    from kerasnet.plan import plan_model

    if name in known.models or name in known.blocks or not os.path.exists(name):
        # Two blocks have layers of the same names, whatever they are called themselves.
        return _plan(known, name, None, input_size, None, None, block_name="block")
    # `config.read_config` would load NumPy, and hold the model against the run's own input.
    from kerasnet.document import read, validate
    from kerasnet.schema import RunConfig

    file = os.path.join(name, "config.yaml") if os.path.isdir(name) else name
    config = validate(RunConfig, read(file))
    shape = input_shape(input_size, config.input)
    return plan_model(config.architecture, shape, config.classes)


def _plan(
    known: Registry, name: str, classes: int | None, input_size: str | None,
    width: int | None, stride: int | None, block_name: str | None = None,
) -> Plan:  # fmt: skip
    from kerasnet.plan import plan_block, plan_model

    if name in known.models:
        if width is not None or stride is not None:
            raise BadInputError(f"--width and --stride are for blocks; '{name}' is a model")
        architecture = known.architecture(name)
        return plan_model(architecture, input_shape(input_size, architecture.model.input), classes)
    if name not in known.blocks:
        names = [*known.models, *known.blocks]
        raise BadInputError(f"there is no model or block '{name}'. {did_you_mean(name, names)}")
    if classes is not None:
        raise BadInputError(f"--classes is for models; '{name}' is a block")
    return plan_block(
        known.blocks[name], input_shape(input_size, [32, 32, 64]), width=width or 64,
        stride=stride or 1, name=block_name or name, norms=known.norms,
    )  # fmt: skip


# ---------------------------------------------------------------------------- training


@app.command(
    epilog=example(
        "kerasnet fit resnet50 --dataset digits",
        "kerasnet fit resnet50 --recipe original --epochs 3",
        "kerasnet fit resnet20 --dataset photos/ --out runs/photos",
        "kerasnet fit resnet20 --dataset photos/ --weights w.safetensors --reset-head "
        "--freeze stem,stage1",
        "kerasnet fit resnet20 --seeds 0,1,2 --budget 1h --train-on train+validation",
        "kerasnet fit --resume runs/photos --epochs 80 --rescale",
    )
)
def fit(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A model; or give --config.")
    ] = None,
    recipe: RecipeOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="A registry entry, a name in tensorflow-datasets, or a folder of class-named "
            "folders. [default: cifar10]",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Length, and the schedule's horizon.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="10m|1h30m", help="As many epochs as fit into it, by a measured step time."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a step.")] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE|find",
            help="The schedule's highest learning rate; find: what lr-find suggests.",
        ),
    ] = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="A run for each, one after another, in DIR/seed-N; mean ± standard deviation.",
        ),
    ] = None,
    limit_train: LimitTrainOption = None,
    input_size: InputSizeOption = None,
    train_on: Annotated[
        str | None,
        typer.Option(
            metavar="train|train+validation",
            help="train+validation: hold no images back, for a recipe that is chosen already. "
            "[default: train]",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The run folder. [default: runs/MODEL-DATASET-TIME]"),
    ] = None,
    weights: WeightsOption = None,
    reset_head: ResetHeadOption = False,
    freeze: FreezeOption = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="Repeat a run's config.yaml or a card.")
    ] = None,
    from_search: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Train the best of a search, on the validation images too."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with a run folder, or with that of --seeds."),
    ] = None,
    rescale: Annotated[
        bool, typer.Option("--rescale", help="With --resume: the schedule spans the new --epochs.")
    ] = False,
    checkpoint_every: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="N steps|minutes", help="Beside each epoch's end. [default: 5 minutes]"
        ),
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The newest N stay. [default: 2]")
    ] = None,
    steps_per_execution: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, metavar="N", help="Steps between two returns to Python. [default: 1]"
        ),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits each time, on one machine.")
    ] = False,
    on_nan: Annotated[
        str | None,
        typer.Option(
            metavar="stop|rollback",
            help="rollback: go on from a checkpoint with half the learning rate. [default: stop]",
        ),
    ] = None,
    registry: RegistryOption = None,
    as_json: EndJsonOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve, check and print the configuration only.")
    ] = False,
) -> None:
    """Train a model and measure its test accuracy."""
    from kerasnet import fitting
    from kerasnet.seeds import seeds_of

    options = {
        "recipe": recipe, "dataset": dataset, "data_dir": data_dir, "epochs": epochs,
        "budget": budget, "batch_size": batch_size, "learning_rate": _rate(learning_rate),
        "precision": precision, "seed": seed, "limit_train": limit_train, "train_on": train_on,
        "weights": weights, "reset_head": reset_head or None, "freeze": freeze or None,
        "checkpoint_every": _every(checkpoint_every), "keep_checkpoints": keep_checkpoints,
        "steps_per_execution": steps_per_execution, "deterministic": deterministic or None,
        "on_nan": on_nan, "input_size": image_size(input_size),
    }  # fmt: skip
    work = fitting.asked(
        name, {key: value for key, value in options.items() if value is not None},
        resume=resume, rescale=rescale, out=out, config=config, from_search=from_search,
        registry=registry, several=None if seeds is None else seeds_of(seeds),
    )  # fmt: skip
    if dry_run:
        _print_config(work.shown, as_json)
        return
    console = _console(to_stderr=as_json)
    result = work.train(console)
    if as_json:
        _print_json(result)
    else:
        work.say_result(console, result)
    work.check_result(result)


def _rate(text: str | None) -> float | str | None:
    """Return the number that `--learning-rate` gives, or else its word, as the schema takes it."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _every(words: tuple[str, str] | None) -> dict[str, float] | None:
    """Return what `--checkpoint-every 500 steps` says, as the schema takes it."""
    if words is None:
        return None
    number, unit = words
    try:
        if unit in ("step", "steps"):
            return {"steps": int(number)}
        if unit in ("minute", "minutes"):
            return {"minutes": float(number)}
    except ValueError:
        pass
    raise BadInputError(
        f"--checkpoint-every takes `500 steps` or `5 minutes`, not '{number} {unit}'"
    )


def _print_config(config: RunConfig | SeedsConfig, as_json: bool) -> None:
    from kerasnet.document import to_yaml

    if as_json:
        _print_json(config.model_dump(mode="json", by_alias=True))
    else:
        typer.echo(to_yaml(config), nl=False)


def _console(to_stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr)


@app.command(
    epilog=example(
        "kerasnet evaluate runs/resnet50-digits-20260101-120000 --json",
        "kerasnet evaluate runs/resnet20-cifar10-20260101-120000 --tta flip",
        "kerasnet evaluate --model resnet50 --weights resnet50.ckpt --dataset cifar10",
    )
)
def evaluate(
    run: Annotated[
        str | None, typer.Argument(help="A run folder; or give --model and --weights.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="A model.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|pretrained",
            help="Its weights; formats as for convert. pretrained: those that ship with kerasnet.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Of --weights; as for fit. [default: cifar10]"),
    ] = None,
    data_dir: DataDirOption = None,
    best: Annotated[
        bool, typer.Option("--best", help="Weights of the best validation accuracy.")
    ] = False,
    tta: Annotated[
        str | None,
        typer.Option(
            metavar="flip", help="Measure also by each image and its mirror image together."
        ),
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the test accuracy of a run's weights again, or that of a weights file."""
    from kerasnet.api import evaluate as measure

    if run is None:
        if model is None or weights is None or best:
            raise BadInputError(
                "evaluate takes a run folder (and --best), or --model NAME and --weights FILE"
            )
        result = measure(
            model=model, weights=weights, dataset=dataset or "cifar10", data_dir=data_dir,
            tta=tta, registry=_registry(registry),  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        others = {"--model": model, "--weights": weights, "--dataset": dataset,
                  "--registry": registry}  # fmt: skip
        given = [option for option, value in others.items() if value is not None]
        if given:
            if weights is not None and model is None and not os.path.isdir(run):
                raise BadInputError(
                    f"{run} is no run folder; of weights, name the model: kerasnet evaluate "
                    f"--model {run} --weights {weights}"
                )
            weights = f"{run}/checkpoints/{'best' if best else 'last'}.safetensors"
            raise BadInputError(
                f"{', '.join(given)}: a run folder says all of this; leave it out, or evaluate its "
                f"weights: --model NAME --weights {weights} --dataset DATASET"
            )
        result = _evaluate_run(run, data_dir, best, tta)
    if as_json:
        _print_json(result)
    else:
        say(
            _console(),
            f"{result['model']} on {result['dataset']}: test accuracy "
            f"{result['test_accuracy']:.2%} on {result['test_images']:,} images (test loss "
            f"{result['test_loss']:.4f})",
        )
        if tta:
            say(
                _console(),
                f"with test-time augmentation ({tta}): {result['test_accuracy_tta']:.2%} (test "
                f"loss {result['test_loss_tta']:.4f})",
            )


def _evaluate_run(folder: str, data_dir: str | None, best: bool, tta: str | None) -> dict[str, Any]:
    from kerasnet.api import evaluate as measure
    from kerasnet.config import check, check_tta, with_values
    from kerasnet.runs import load_run

    opened = load_run(folder)
    check_tta(opened.config, tta)
    # The weights that the run began with are not needed any more.
    values: dict[str, Any] = {"weights": None}
    if data_dir:
        values["data.data_dir"] = data_dir
    check(with_values(opened.config, values))
    return measure(opened, data_dir=data_dir, best=best, tta=tta)  # type: ignore[arg-type]


@app.command(
    epilog=example(
        "kerasnet predict runs/photos cat.jpg dog.jpg",
        "kerasnet predict --model resnet20 --weights pretrained holiday/ --json",
    )
)
def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|PICTURE",
            help="A run folder, unless --model and --weights are given, and pictures, or folders "
            "of them.",
        ),
    ],
    model: Annotated[str | None, typer.Option(metavar="NAME", help="A model.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|pretrained",
            help="Its weights, from a run. pretrained: those that ship with kerasnet.",
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="A run's weights of the best validation accuracy.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Name the N likeliest.")] = 3,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which classes pictures show."""
    from kerasnet.predicting import predict as tell
    from kerasnet.summary import table

    run = None
    if model is None and weights is None:
        run, *arguments = arguments
    if not arguments:
        raise BadInputError(f"name pictures after the run folder: kerasnet predict {run} cat.jpg")
    found = tell(
        arguments, run, model=model, weights=weights, best=best, registry=_registry(registry)
    )
    if as_json:
        _print_json([one.to_json(top) for one in found])
        return
    rows = [(one.file, *(f"{name} {p:.1%}" for name, p in one.classes[:top])) for one in found]
    width = len(rows[0]) - 1
    say(_console(), table(("picture", "class", *[""] * (width - 1)), rows, ()))


# ---------------------------------------------------------------------------- weights


@app.command(
    epilog=example(
        "kerasnet convert resnet50.ckpt --model resnet50 --out resnet50.safetensors",
        "kerasnet convert resnet50.safetensors --model resnet50 --out resnet50.keras",
        "kerasnet convert runs/photos/checkpoints/last.safetensors --model resnet20 --out r.pt",
    )
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Ends in .pt, .pth, .ckpt (PyTorch), .safetensors, .weights.h5 or .keras; or "
            "pretrained: the weights that ship with kerasnet.",
        ),
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="A model.")],
    out: Annotated[str, typer.Option(metavar="OUT", help="Ends like IN.")],
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="STYLE",
            help="How PyTorch's keys are written; also for .safetensors, which have kerasnet's "
            "own without it. [default: as they came in, or the model's first]",
        ),
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Outputs of the classifier.")] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="N|HxW|HxWxC", help="Size of the input image.")
    ] = None,
    reset_head: Annotated[
        bool, typer.Option("--reset-head", help="Begin the classifier anew.")
    ] = False,
    state_dict: Annotated[
        str | None, typer.Option(metavar="KEY", help="Where IN holds several of PyTorch's.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert weights between PyTorch, kerasnet and Keras."""
    from kerasnet import api

    known = _registry(registry)
    shape = input_shape(input_size, known.models[model].input) if input_size else None
    result = api.convert_weights(
        source, model, out, keys=keys, classes=classes, input_shape=shape, reset_head=reset_head,
        state_dict=state_dict, registry=known,
    )  # fmt: skip
    if as_json:
        _print_json(result)
        return
    done = [
        f"{source} ({result['input_keys']} keys) → {out} ({result['output_keys']} keys)",
        f"{model}: {result['tensors']:,} tensors, {result['parameters']:,} parameters",
        *(f"{dtype} became float32 in {n:,} tensors" for dtype, n in result["cast"].items()),
        *(f"{layer} begins anew" for layer in result["reset"]),
    ]
    say(_console(), "\n".join(done))


@app.command(
    "lr-find",
    epilog=example(
        "kerasnet lr-find resnet20 --dataset digits",
        "kerasnet lr-find resnet50 --recipe original --min 1e-6 --max 1 --steps 200",
        "kerasnet lr-find resnet20 --dataset photos/ --weights pretrained --reset-head",
        "kerasnet fit resnet20 --dataset digits --learning-rate find",
    ),
)
def lr_find(
    name: Annotated[str, typer.Argument(help="A model.")],
    recipe: RecipeOption = None,
    dataset: Annotated[str, typer.Option(metavar="NAME|DIR", help="As for fit.")] = "cifar10",
    data_dir: DataDirOption = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a step.")] = None,
    limit_train: LimitTrainOption = None,
    input_size: InputSizeOption = None,
    weights: WeightsOption = None,
    reset_head: ResetHeadOption = False,
    freeze: FreezeOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    lowest: Annotated[float, typer.Option("--min", help="Learning rate of the first step.")] = 1e-7,
    highest: Annotated[float, typer.Option("--max", help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[
        int, typer.Option(help="How many; fewer are run where the loss diverges.")
    ] = 150,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="A new folder. [default: runs/lr-find-MODEL-DATASET-TIME]"
        ),
    ] = None,
    registry: RegistryOption = None,
    as_json: EndJsonOption = False,
) -> None:
    """Find a learning rate by one short training in which it grows (Smith 2015)."""
    from kerasnet import api
    from kerasnet.repeating import fit_line

    options = {
        "recipe": recipe, "dataset": dataset, "data_dir": data_dir, "batch_size": batch_size,
        "limit_train": limit_train, "precision": precision, "seed": seed,
        "input_size": image_size(input_size), "weights": weights,
        "reset_head": reset_head or None, "freeze": freeze or None,
    }  # fmt: skip
    console = _console(to_stderr=as_json)
    found = api.lr_find(
        name, out=out, min=lowest, max=highest, steps=steps, registry=_registry(registry),
        console=console, **options,
    )  # fmt: skip
    if as_json:
        _print_json(found.to_json())
        return
    suggestion = found.suggestion
    say(console, f"suggested learning rate {suggestion.rate:g}", style="bold green")
    say(console, suggestion.reason)
    given = {**options, "registry": registry, "learning_rate": suggestion.rate}
    say(console, f"train with it: {fit_line(name, given)}")
    say(console, f"curve: {found.folder}/lr-find.png (.csv, .json)")


# ---------------------------------------------------------------------------- entry


def _fail(message: str, code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        code = code or 1  # whoever read our output is gone; the message below still matters
    # Names of a stranger's files may hold what a terminal would obey.
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)
    print(f"kerasnet: error: {shown}", file=sys.stderr)
    raise SystemExit(code)


def _guarded(call: Callable[[], Any]) -> None:
    """Turn every error a user can meet into a message and an exit code."""
    try:
        call()
    except KerasnetError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe went away; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except MemoryError:
        _fail("out of memory. Try a smaller --batch-size or --limit-train", 4)
    except OSError as error:
        name = str(error.filename or "the system")[:200]
        _fail(f"{name}: {error.strerror or error}", 2 if is_wrong_name(error) else 4)
    except UnicodeEncodeError as error:
        _fail(f"{error.object[:200]!r}: not text that can be written: {error.reason}", 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always ends in SystemExit with the documented code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without × or → must not end a command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _guarded(lambda: app(list(arguments) if arguments is not None else None))


if __name__ == "__main__":
    main()
