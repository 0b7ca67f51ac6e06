"""`kerasnet results …`: parse, call, print."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from kerasnet.errors import BadInputError
from kerasnet.options import DataDirOption, EndJsonOption, JsonOption, RegistryOption
from kerasnet.terminal import example, say

app = typer.Typer(
    name="results",
    help="List what was reached, with the card behind each number; add cards and verify them.",
    rich_markup_mode=None,
    invoke_without_command=True,
    epilog=example(
        "kerasnet results",
        "kerasnet results --results cards --against resnet8-cifar10-small-60",
        "kerasnet results add runs/resnet20-0 runs/resnet20-1 runs/resnet20-2",
        "kerasnet results verify resnet20-cifar10-small-60",
        "kerasnet results table README.md",
    ),
)

FolderOption = Annotated[
    str | None,
    typer.Option(
        "--results", metavar="DIR", help="Of the cards. [default: those that ship with kerasnet]"
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="CARD",
        help="Hold cards of its model and data against this one: what differs and what it brought.",
    ),
]


@app.callback()
def list_(
    context: typer.Context,
    results: FolderOption = None,
    against: AgainstOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the result cards: what was reached by which recipe, how often, and on what."""
    if context.invoked_subcommand is not None:
        early = [flag for flag, value in {"--results": results, "--against": against,
                                          "--json": as_json}.items() if value]  # fmt: skip
        if early:
            raise BadInputError(
                f"{early[0]} belongs behind the command: kerasnet results "
                f"{context.invoked_subcommand} … {early[0]}"
            )
        return
    from kerasnet.results.card import cards_in
    from kerasnet.results.compare import compare_with
    from kerasnet.results.table import beside, facts, overview

    cards = cards_in(results)
    if as_json:
        rows = [facts(name, card) for name, card in cards.items()]
        if against is not None:
            found = compare_with(cards, against)
            rows = [facts(one.name, one.card) | {"against": against, **one.to_json()}
                    for one in found]  # fmt: skip
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        typer.echo(overview(cards) if against is None else beside(cards, against))


@app.command(
    epilog=example(
        "kerasnet results add runs/resnet50-20",
        "kerasnet results add runs/seeds --predicted 0.91 --name resnet20-long",
    )
)
def add(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Finished runs that differ in their seeds alone, or a folder of seed-0, seed-1, …",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="The card's. [default: MODEL-DATASET-RECIPE-EPOCHS]")
    ] = None,
    results: Annotated[
        str, typer.Option("--results", metavar="DIR", help="Where the card is written.")
    ] = "results",
    predicted: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="FRACTION",
            help="The accuracy that was expected before the runs were made.",
        ),
    ] = None,
    ship: Annotated[
        bool,
        typer.Option(
            "--ship", help="Write the first run's weights beside it, in float16 and calibrated."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write over another card of this name.")
    ] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the card of one configuration's finished runs."""
    from rich.console import Console

    from kerasnet.registry import load_registry
    from kerasnet.results.add import add as write
    from kerasnet.results.table import accuracy, facts

    file, card = write(
        runs, name=name, folder=results, predicted=predicted, force=force, weights=ship,
        registry=load_registry(registry),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"file": str(file), **facts(file.stem, card)}, indent=2,
                              ensure_ascii=False))  # fmt: skip
        return
    of_results = ["kerasnet", "results"]
    say(
        Console(),
        f"{file}: {card.model} on {card.dataset} ({card.data_remark}), {card.recipe}, "
        f"{card.epochs} epochs: test accuracy {accuracy(card)}\n"
        f"again: {card.command}\n"
        f"hold it against its beginning: {shlex.join([*of_results, 'verify', str(file)])}\n"
        f"list it: {shlex.join([*of_results, '--results', str(file.parent)])}",
    )


@app.command(
    epilog=example(
        "kerasnet results table README.md",
        "kerasnet results table PAGE.md --results cards --against resnet8-cifar10-small-60",
    )
)
def table(
    page: Annotated[
        str, typer.Argument(metavar="FILE", help="A page with <!-- results --> <!-- /results -->.")
    ],
    results: FolderOption = None,
    against: AgainstOption = None,
) -> None:
    """Write the table of all cards into a page, between its markers."""
    from kerasnet.results.table import update

    changed = update(page, results, against)
    typer.echo(f"{page}: {'written' if changed else 'says this already'}")


@app.command(
    epilog=example(
        "kerasnet results verify resnet20-cifar10-small-60",
        "kerasnet results verify results/mine.json --data-dir ~/data --json",
    )
)
def verify(
    card: Annotated[str, typer.Argument(metavar="CARD", help="A card's name or file.")],
    results: FolderOption = None,
    data_dir: DataDirOption = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A new run folder. [default: runs/verify-…]"),
    ] = None,
    as_json: EndJsonOption = False,
) -> None:
    """Repeat a card's first two epochs and hold them against its curve.

    Exits with 0 if they agree and with 5 if they do not. The test set is not read.
    """
    from rich.console import Console

    from kerasnet.errors import DisagreementError
    from kerasnet.files import check_new
    from kerasnet.results.card import find_card, read_card
    from kerasnet.results.verify import report
    from kerasnet.results.verify import verify as repeat

    file = find_card(card, results)
    known = read_card(file)
    if out:
        check_new(out)
    console = Console(stderr=as_json)
    verdict = repeat(str(file), known, data_dir=data_dir, out=out, console=console)
    if as_json:
        typer.echo(json.dumps(verdict.to_json(), indent=2, ensure_ascii=False))
    else:
        say(console, f"\n{report(verdict)}")
    if verdict.disagreements:
        raise DisagreementError(f"{file}: {verdict.message}")
