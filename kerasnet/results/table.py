"""Result cards as a table, on a terminal and in a README."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerasnet.errors import BadInputError
from kerasnet.files import read_bytes, write_atomically
from kerasnet.progress import duration
from kerasnet.results.card import Card, card_files, read_card
from kerasnet.summary import table

BEGIN, END = "<!-- results -->", "<!-- /results -->"
NOTHING = "No result has been added yet: `kerasnet results add RUN` writes a card."
_MOST_BYTES = 2**22
_COLUMNS = (
    "model", "recipe", "data", "epochs", "test accuracy", "predicted", "published", "time of a run",
    "hardware",
)  # fmt: skip


def facts(name: str, card: Card) -> dict[str, Any]:
    """Return a card's row of `kerasnet results --json`; `seconds` are those of one run."""
    return {
        "name": name,
        **card.model_dump(
            mode="json",
            include={
                "model", "recipe", "dataset", "data_remark", "epochs", "precision",
                "test_accuracy", "test_accuracy_sd", "test_images", "seeds", "predicted",
                "published", "seconds", "images_per_second", "hardware", "command",
            },
        ),
    }  # fmt: skip


def overview(cards: Mapping[str, Card]) -> str:
    """Return the table of `kerasnet results`."""
    if not cards:
        return NOTHING
    rows = [(name, *_cells(card)) for name, card in cards.items()]
    return table(("card", *_COLUMNS), rows, ("epochs", "time of a run"))


def _cells(card: Card) -> tuple[str, ...]:
    published = card.published
    return (
        card.model,
        f"{card.recipe}, {card.precision}",
        f"{card.dataset} ({card.data_remark})",
        f"{card.epochs:,}",
        accuracy(card),
        "" if card.predicted is None else f"{card.predicted:.2%}",
        "" if published is None else f"{published.top1:.2f}% ({published.source})",
        duration(card.seconds),
        hardware(card),
    )


def accuracy(card: Card) -> str:
    """Return a card's test accuracy for people: `94.12% ± 0.15% (3 seeds)`."""
    n = len(card.seeds)
    spread = "" if card.test_accuracy_sd is None else f" ± {card.test_accuracy_sd:.2%}"
    return f"{card.test_accuracy:.2%}{spread} ({n} seed{'s' if n > 1 else ''})"


def hardware(card: Card) -> str:
    """Return what a card's runs were made on, for people."""
    found = card.hardware
    return found.gpu or f"{found.processor}, {found.cpus} CPU{'s' if found.cpus > 1 else ''}"


# ---------------------------------------------------------------------------- in a README


def markdown(folder: str | os.PathLike[str] | None, beside: Path) -> str:
    """Return a folder's cards as a table in Markdown.

    Args:
        folder: of the cards; those that ship with kerasnet if not given.
        beside: the folder of the page that the table is for, from which it links to the cards.
    """
    files = card_files(folder)
    if not files:
        return NOTHING
    header = (*_COLUMNS, "command")
    lines = [_line(header), _line(["---"] * len(header))]
    for file in files.values():
        card = read_card(file)
        model, *cells = map(_escaped, _cells(card))
        link = Path(os.path.relpath(file.resolve(), beside.resolve())).as_posix()
        lines.append(_line([f"[{model}]({link})", *cells, f"`{card.command}`"]))
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Keep a card's text from being more than text; what comes from a stranger may try."""
    for character in "\\|<>[]`*_":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def page_with(text: str, made: str, name: str) -> str:
    """Return a page with a table between its markers, in place of what was there.

    Raises:
        BadInputError: it does not have both markers, once each and in order.
    """
    counts = [text.count(marker) for marker in (BEGIN, END)]
    if counts != [1, 1] or text.index(BEGIN) > text.index(END):
        raise BadInputError(
            f"{name}: expected `{BEGIN}` and below it `{END}`, once each, where the table belongs; "
            f"received {counts[0]} and {counts[1]} of them"
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"


def update(file: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> bool:
    """Write a folder's cards into a page, and return whether that changed it.

    Raises:
        BadInputError: the page cannot be read or has no markers, or a card is wrong.
        EnvironmentFaultError: it cannot be written.
    """
    page = Path(file)
    try:
        text = read_bytes(page, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{page}: not a text file: expected UTF-8 ({error.reason})") from error
    new = page_with(text, markdown(folder, page.parent), str(page))
    if new != text:
        write_atomically(page, new.encode())
    return new != text
