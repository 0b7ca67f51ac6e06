"""Repeating the beginning of a card's first run, and holding it against the card.

What must be equal is: the training images, by their checksum, and the steps and learning rates of
the schedule. Loss and accuracy of training are means over an epoch's images; they are held against
each other within what chance does to them (`tolerance`). Loss and accuracy on validation images are
shown and not judged: they are those of one moment, at which the moving statistics of batch
normalisation lag behind weights that change fast.
"""

from __future__ import annotations

import math
import os
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kerasnet import schema
from kerasnet.data.places import without_place
from kerasnet.results.card import RATE_TOLERANCE, Card, Row
from kerasnet.results.compare import CONFIDENCE
from kerasnet.runs import Run
from kerasnet.summary import table

if TYPE_CHECKING:
    from rich.console import Console

EPOCHS = 2
# Of fewer values a standard deviation says next to nothing.
ENOUGH_SEEDS = 3
FIELDS = ("step", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
_BY_CHANCE = ("loss", "accuracy")


@dataclass(frozen=True)
class Compared:
    """A number of a card's curve beside the one that came out now.

    Attributes:
        epoch: from 1.
        field: of a row.
        expected: the card's; None where the card has none.
        found: the repeated run's.
        tolerance: by how much they may differ; None where that is not judged.
    """

    epoch: int
    field: str
    expected: float | None
    found: float | None
    tolerance: float | None

    @property
    def difference(self) -> float | None:
        """What came out minus what the card says."""
        if self.expected is None or self.found is None:
            return None
        return self.found - self.expected

    @property
    def agrees(self) -> bool:
        """Whether the two are as near as they must be."""
        if self.tolerance is None:
            return True
        return self.difference is not None and abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class Verdict:
    """What a repetition came to.

    Attributes:
        card: the card's name.
        seed: of the run that was repeated.
        seeds: how many the card has.
        run: the folder of the repetition; None where the images are others and none was trained.
        images: checksums of the training images, the card's and those here.
        data: what is known of the images' origin, on the card and here.
        compared: every number of the repeated epochs.
        machines: what differs of the hardware and the versions: name → (card's, this one's).
    """

    card: str
    seed: int
    seeds: int
    run: str | None
    images: tuple[str | None, str | None]
    data: tuple[str, str]
    compared: list[Compared]
    machines: dict[str, tuple[Any, Any]]

    @property
    def disagreements(self) -> list[str]:
        """What does not agree, in words."""
        said = []
        if self.run is None:
            said.append(
                f"these are other training images ({self.data[1]}, checksum {self.images[1]}) than "
                f"the card's ({self.data[0]}, checksum {self.images[0]})"
            )
        for one in self.compared:
            if not one.agrees:
                said.append(
                    f"{one.field} of epoch {one.epoch} is {_number(one.found)}, the card has "
                    f"{_number(one.expected)}; {_number(one.tolerance)} apart is allowed"
                )
        return said

    @property
    def message(self) -> str:
        """What does not agree, for an error."""
        said = f"was not repeated: {'; '.join(self.disagreements)}. "
        if self.run is None:
            return said + "Nothing was trained; say where the card's images are with --data-dir"
        said += f"The run is {self.run}"
        if self.machines and self.seeds < ENOUGH_SEEDS:
            said += (
                ". The card was made on another machine or with other versions, and has too few "
                f"seeds ({self.seeds}) to say how far apart their rounding may lead: look at the "
                f"figures, or make a card of {ENOUGH_SEEDS} seeds"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Return the object that `kerasnet results verify --json` prints."""
        return {
            "card": self.card,
            "agrees": not self.disagreements,
            "disagreements": self.disagreements,
            "seed": self.seed,
            "run": self.run,
            "images_checksum": {"card": self.images[0], "here": self.images[1]},
            "data_remark": {"card": self.data[0], "here": self.data[1]},
            "compared": [
                {
                    "epoch": one.epoch, "field": one.field, "card": one.expected,
                    "here": one.found, "difference": one.difference, "tolerance": one.tolerance,
                    "agrees": one.agrees if one.tolerance is not None else None,
                }
                for one in self.compared
            ],
            "machines": {k: {"card": a, "here": b} for k, (a, b) in self.machines.items()},
        }  # fmt: skip


def tolerance(card: Card, epoch: int, field: str) -> float | None:
    """Return by how much a repeated number may differ from a card's first run, None if by any.

    Rounding differs from one machine to another, and training makes it grow until two runs of one
    seed are as far apart as runs of two seeds. So the bound on loss and accuracy is that of a
    difference between two such runs, each with a deviation of two parts: the spread over the card's
    seeds in that epoch, where there are three or more, by Student's quantile for so many; and what
    sampling alone does to a mean over so many images: for an accuracy p that is √(p(1 - p)/n), and
    for a loss l it is l/√n, as if the losses of single images were distributed exponentially. In at
    most a twentieth of such verifications one of the numbers lies outside (Dunn 1961).

    The learning rate of mixed_float16 is not judged: a step whose gradients overflow does not count
    for the schedule, and which do is a matter of rounding.

    On one machine two runs of `resnet8` gave the same five digits. mixed_bfloat16 in place of
    float32, which rounds far more coarsely than another machine, stays within sampling alone for
    `resnet8` (over two epochs at most 0.07 points of accuracy on CIFAR-10, where sampling alone
    does 0.22; 0.9 on digits, five seeds), but not for `resnet50` on digits (6.8 points, five times
    what sampling does, and 21 % of the loss), whose seeds lie as far apart: a card of such a net
    needs three of them.

    Args:
        card: the card.
        epoch: from 1.
        field: of a row.
    """
    if field == "step":
        return 0.0
    if field == "learning_rate":
        rate = card.config.recipe.optimizer.learning_rate
        return None if card.precision == "mixed_float16" else RATE_TOLERANCE * rate
    if field not in _BY_CHANCE:
        return None
    from scipy.special import ndtri, stdtrit

    rows = [run.curve[epoch - 1] for run in card.runs]
    n, value = card.train_images, getattr(rows[0], field)
    if field == "accuracy":
        share = (value * n + 1) / (n + 2)  # never 0 or 1, where sampling would do nothing
        sampling = math.sqrt(share * (1 - share) / n)
    else:
        sampling = abs(value) / math.sqrt(n)
    level = 1 - (1 - CONFIDENCE) / (2 * EPOCHS * len(_BY_CHANCE))
    parts = [float(ndtri(level)) * sampling]
    values = [getattr(row, field) for row in rows]
    if len(values) >= ENOUGH_SEEDS:
        parts.append(float(stdtrit(len(values) - 1, level)) * statistics.stdev(values))
    return math.sqrt(2) * math.hypot(*parts)


def compare(card: Card, rows: Sequence[Row]) -> list[Compared]:
    """Hold the first epochs of a repeated run against a card's first run."""
    return [
        Compared(here.epoch, field, getattr(there, field), getattr(here, field),
                 tolerance(card, here.epoch, field))
        for there, here in zip(card.runs[0].curve, rows, strict=False)
        for field in FIELDS
    ]  # fmt: skip


# ---------------------------------------------------------------------------- repeating


@dataclass(frozen=True)
class _Repetition(Run):
    """A run that is gone on with by beginning again; trained to its end, it would be tested."""

    card: str
    data_dir: str | os.PathLike[str] | None

    def command_for(self, config: schema.RunConfig | None) -> str:
        more = ["--data-dir", str(self.data_dir)] if self.data_dir else []
        return shlex.join(["kerasnet", "results", "verify", self.card, *more])


def beginning(card: Card, data_dir: str | os.PathLike[str] | None = None) -> schema.RunConfig:
    """Return the configuration of a card's first epochs, their schedule that of the whole run."""
    from kerasnet.config import with_values

    config = card.config
    epochs = {"recipe.epochs": min(EPOCHS, card.epochs), "horizon": config.horizon}
    return with_values(config, epochs | ({"data.data_dir": data_dir} if data_dir else {}))


def verify(
    name: str,
    card: Card,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Verdict:
    """Repeat the first two epochs of a card's first seed; the test set is not read.

    Nothing is trained on other images than the card's.

    Args:
        name: of the card, for messages.
        card: what is repeated.
        data_dir: folder searched first for the data.
        out: the repetition's folder; `runs/verify-<model>-<dataset>-<time>` if not given.
        console: where progress goes; standard output if not given.

    Raises:
        KerasnetError: BadInputError, DivergedError, EnvironmentFaultError or InterruptedRunError;
            as `fit`.
    """
    from kerasnet import backend
    from kerasnet.config import check
    from kerasnet.runs import create_run, default_folder

    config = beginning(card, data_dir)
    check(config)
    backend.load(config.execution.deterministic)
    from kerasnet.train import read_data

    data = read_data(config)
    images = card.runs[0].images_checksum, data.fingerprint
    remarks = card.data_remark, without_place(data.source.located.remark)
    del data
    if images[0] not in (None, images[1]):
        return Verdict(name, config.seed, len(card.seeds), None, images, remarks, [], {})
    made = create_run(out or default_folder(config, prefix="verify-"), config)
    run = _Repetition(made.path, name, data_dir)
    from kerasnet.api import train_run
    from kerasnet.results.add import curve, machine

    train_run(run, console, test=False)
    here, there = machine([run]), card.model_dump(mode="json", include={"hardware", "versions"})
    differ = {
        key: (value, here[part].get(key))
        for part, held in there.items()
        for key, value in held.items()
        if value != here[part].get(key)
    }
    rows = curve(run, config.recipe.epochs)
    return Verdict(
        name, config.seed, len(card.seeds), str(run.path), images, remarks, compare(card, rows),
        differ,
    )  # fmt: skip


# ---------------------------------------------------------------------------- in words


def report(verdict: Verdict) -> str:
    """Return the rows of both curves, their differences, and what came of it."""
    if verdict.run is None:
        return verdict.disagreements[0]
    epochs = sorted({one.epoch for one in verdict.compared})
    lines = []
    for epoch in epochs:
        ones = [one for one in verdict.compared if one.epoch == epoch]
        for what, values in (
            ("card", [_number(one.expected) for one in ones]),
            ("here", [_number(one.found) for one in ones]),
            ("difference", [_number(one.difference) for one in ones]),
            ("allowed", ["–" if one.tolerance is None else _number(one.tolerance) for one in ones]),
        ):
            lines.append((str(epoch) if what == "card" else "", what, *values))
    header = ("epoch", "", *(field.replace("_", " ") for field in FIELDS))
    paragraphs = [table(header, lines, header[2:])]
    if verdict.machines:
        said = "; ".join(f"{k} {a} there, {b} here" for k, (a, b) in verdict.machines.items())
        paragraphs.append(f"the card was made on another machine or with other versions: {said}")
    if verdict.images[0] is None:
        paragraphs.append("whether these are the same training images cannot be said: no checksum")
    if not verdict.disagreements:
        paragraphs.append(f"{verdict.card}: seed {verdict.seed} begins as the card says")
    return "\n\n".join(paragraphs)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
