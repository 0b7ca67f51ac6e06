"""Result cards of one model and data set held against one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.repeating import differences
from kerasnet.results.card import Card, mean_and_sd

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """What a card reached beside another one.

    `difference` is that of the mean test accuracies, a fraction; `low` and `high` are the ends of
    its confidence interval, None where there are too few seeds for one. `changes` has the path of
    each field of the configuration that differs, and its value here, None where there is none;
    paths within the recipe leave `recipe.` out.
    """

    name: str
    card: Card
    changes: dict[str, Any]
    difference: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        """Return all but the card."""
        return {"changes": self.changes, "difference": self.difference, "low": self.low,
                "high": self.high, "confidence": CONFIDENCE}  # fmt: skip


def compare_with(cards: Mapping[str, Card], against: str) -> list[Comparison]:
    """Hold cards against one of them, the best first.

    The intervals hold together: with 95 % confidence every difference lies in its own. The variance
    over seeds is taken to be that of all the cards together, and the level is divided by the number
    of comparisons (Dunn 1961). Two cards alone have Student's interval.

    Args:
        cards: by name; those of another model or of other data are left out.
        against: the name of the card that the others are held against.

    Raises:
        BadInputError: there is no such card, or no other one of its model and data.
    """
    if against not in cards:
        raise BadInputError(f"--against: there is no result card '{against}'. "
                            f"{did_you_mean(against, cards)}")  # fmt: skip
    base = cards[against]
    others = {name: card for name, card in cards.items()
              if name != against and _of_what(card) == _of_what(base)}  # fmt: skip
    if not others:
        raise BadInputError(
            f"--against {against}: there is no other card of {base.model} on {base.dataset} "
            f"({base.data_remark}). `kerasnet results add RUN` writes one"
        )
    half_width = _half_widths([base, *others.values()])
    found = []
    for name, card in others.items():
        difference, half = card.test_accuracy - base.test_accuracy, half_width(base, card)
        ends = (None, None) if half is None else (difference - half, difference + half)
        found.append(Comparison(name, card, _changes(base, card), difference, *ends))
    return sorted(found, key=lambda one: (-one.difference, one.name))


def _of_what(card: Card) -> tuple[str, str, str, int]:
    return card.model, card.dataset, card.data_remark, card.test_images


def _half_widths(cards: list[Card]) -> Any:
    from scipy.special import stdtrit

    freedom = sum(len(card.runs) - 1 for card in cards)
    if not freedom:
        return lambda a, b: None
    squares = 0.0
    for card in cards:
        values = [run.test_accuracy for run in card.runs]
        squares += (mean_and_sd(values)[1] or 0.0) ** 2 * (len(values) - 1)
    quantile = float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * (len(cards) - 1))))
    sd = math.sqrt(squares / freedom)
    return lambda a, b: quantile * sd * math.sqrt(1 / len(a.runs) + 1 / len(b.runs))


def _changes(base: Card, card: Card) -> dict[str, Any]:
    here = card.config.model_dump(mode="json", by_alias=True)
    found = {_there(path, here) if value is None else path: value
             for path, _, value in differences(base.config, card.config)
             if path not in ("seed", "recipe_name")}  # fmt: skip
    # What a thing of another type does not have says nothing more.
    replaced = {path.removesuffix("type") for path in found if path.endswith(".type")}
    return {path.removeprefix("recipe."): value for path, value in found.items()
            if value is not None or f"{path.rpartition('.')[0]}." not in replaced}  # fmt: skip


def _there(path: str, config: Any) -> str:
    """Return the first part of a path that a configuration has nothing at."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        held = dict(enumerate(config)) if isinstance(config, list) else config
        key = int(part) if isinstance(config, list) else part
        if not isinstance(held, dict) or held.get(key) is None:
            return ".".join(parts[: i + 1])
        config = held[key]
    return path
