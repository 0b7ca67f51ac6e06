"""Result cards as a table, on a terminal and in a README."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kerasnet.errors import BadInputError
from kerasnet.files import read_bytes, write_atomically
from kerasnet.progress import duration
from kerasnet.results.card import Card, card_files, read_card
from kerasnet.results.compare import CONFIDENCE, Comparison, compare_with
from kerasnet.summary import table

BEGIN, END = "<!-- results -->", "<!-- /results -->"
NOTHING = "No result has been added yet: `kerasnet results add RUN` writes a card."
_MOST_BYTES = 2**22
_COLUMNS = (
    "model", "recipe", "data", "epochs", "test accuracy", "predicted", "published", "time of a run",
    "hardware",
)  # fmt: skip
_BESIDE = ("differs in", "test accuracy", f"difference ({CONFIDENCE:.0%})")


def facts(name: str, card: Card) -> dict[str, Any]:
    """Return a card's row of `kerasnet results --json`; `seconds` are those of one run."""
    return {
        "name": name,
        **card.model_dump(
            mode="json",
            include={
                "model", "recipe", "dataset", "data_remark", "train_images", "epochs", "precision",
                "test_accuracy", "test_accuracy_sd", "test_images", "seeds", "predicted",
                "published", "seconds", "images_per_second", "hardware", "command", "shipped",
            },
        ),
    }  # fmt: skip


def overview(cards: Mapping[str, Card]) -> str:
    """Return the table of `kerasnet results`, narrower than that of a page."""
    if not cards:
        return NOTHING
    header = ("card", "model", "recipe", "data", "epochs", "test accuracy", "predicted",
              "published", "time of a run")  # fmt: skip
    rows = []
    for name, card in cards.items():
        epochs, reached, predicted = _cells(card)[3:6]
        published = card.published
        rows.append((
            name, card.model, card.recipe, card.dataset, epochs, reached, predicted,
            "" if published is None else f"{published.top1:.2f}%", duration(card.seconds),
        ))  # fmt: skip
    return table(header, rows, ("epochs", "time of a run"))


def beside(cards: Mapping[str, Card], against: str) -> str:
    """Return the table of `kerasnet results --against`; differences are in percentage points."""
    found = compare_with(cards, against)
    rows = [(against, "", accuracy(cards[against]), "")]
    rows += [(one.name, *_cells_beside(one)) for one in found]
    return table(("card", *_BESIDE), rows, ("test accuracy", _BESIDE[-1]))


def _cells_beside(one: Comparison) -> tuple[str, str, str]:
    changes = ", ".join(f"{path}: {_value(value)}" for path, value in one.changes.items())
    difference = f"{100 * one.difference:+.2f}"
    if one.low is not None and one.high is not None:
        difference += f" ({100 * one.low:+.2f} … {100 * one.high:+.2f})"
    return changes, accuracy(one.card), difference


def _value(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False).strip('"')


def _cells(card: Card) -> tuple[str, ...]:
    published = card.published
    return (
        card.model,
        f"{card.recipe}, {card.precision}",
        f"{card.dataset} ({card.data_remark}), {card.train_images:,} images",
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


def markdown(
    folder: str | os.PathLike[str] | None, page_folder: Path, against: str | None = None
) -> str:
    """Return a folder's cards as a table in Markdown.

    Args:
        folder: of the cards; those that ship with kerasnet if not given.
        page_folder: that of the page that the table is for, from which it links to the cards.
        against: the name of the card that those of its model and data are held against.
    """
    files = card_files(folder)
    if not files:
        return NOTHING
    cards = {name: read_card(file) for name, file in files.items()}

    def link(name: str, text: str) -> str:
        place = os.path.relpath(files[name].resolve(), page_folder.resolve())
        return f"[{_escaped(text)}]({Path(place).as_posix()})"

    if against is not None:
        found = compare_with(cards, against)
        base = cards[against]
        header = ["recipe", *_BESIDE]
        rows = [[link(against, base.recipe), "", accuracy(base), ""]]
        rows += [[link(one.name, one.card.recipe), *map(_escaped, _cells_beside(one))]
                 for one in found]  # fmt: skip
    else:
        header = [*_COLUMNS, "command"]
        rows = [[link(name, card.model), *map(_escaped, _cells(card)[1:]), f"`{card.command}`"]
                for name, card in cards.items()]  # fmt: skip
    return "\n".join(map(_line, (header, ["---"] * len(header), *rows)))


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


def update(
    file: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    against: str | None = None,
) -> bool:
    """Write a folder's cards into a page, and return whether that changed it; see `markdown`.

    Raises:
        BadInputError: the page cannot be read or has no markers, or a card is wrong.
        EnvironmentFaultError: it cannot be written.
    """
    page = Path(file)
    try:
        text = read_bytes(page, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{page}: not a text file: expected UTF-8 ({error.reason})") from error
    new = page_with(text, markdown(folder, page.parent, against), str(page))
    if new != text:
        write_atomically(page, new.encode())
    return new != text
