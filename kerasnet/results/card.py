"""The result card: one configuration's runs over seeds, as a JSON file, and how it is read back.

A card holds everything that its accuracy rests on and nothing of the machine that made it but its
hardware and versions: no path. Reading one imports neither NumPy nor TensorFlow.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kerasnet import schema
from kerasnet.document import Document, DocumentError, read, shown, validate
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import read_json, shipped

# A run of 300 epochs comes to 40 KB.
MAX_BYTES = 2**22
MAX_RUNS = 100
MAX_CARDS = 2_000
# Of the tensors; a header comes on top of them.
MAX_SHIPPED_BYTES = 1_000_000
_LINE = 110
# Of the highest learning rate; float32 has seven digits, of which a schedule's cosine costs some.
RATE_TOLERANCE = 1e-4

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Row(schema.Strict):
    """An epoch of a run: a row of its `metrics.csv`."""

    epoch: Count
    step: Count
    loss: schema.Finite
    accuracy: Share
    val_loss: schema.Finite | None
    val_accuracy: Share | None
    learning_rate: schema.NonNegative


class SeedResult(schema.Strict):
    """One run of a configuration.

    The checksum of the images is that of the run's training images and labels, in their order; it
    depends on the seed where that chooses the images that are held back.
    """

    seed: schema.Seed
    test_accuracy: Share
    test_loss: schema.Finite
    seconds: schema.Positive
    images_per_second: schema.Positive | None
    weights_sha256: Sha256
    predictions_sha256: Sha256
    images_checksum: Annotated[str, Field(pattern="^[0-9a-f]{8}$")] | None
    curve: Annotated[list[Row], Field(min_length=1, max_length=schema.MAX_EPOCHS)]


class Hardware(schema.Strict):
    """What the runs were made on; devices as the backend names them, such as `gpu:0`."""

    processor: Text
    cpus: Count
    devices: list[Text]
    gpu: Text | None = None


class Shipped(schema.Strict):
    """Weights in float16 that ship beside the card.

    `test_accuracy` is theirs, after rounding; the losses are before and after the logits are
    divided by the temperature, the test's without it.
    """

    file: Annotated[str, Field(pattern=r"^[0-9A-Za-z._+-]+\.safetensors$", max_length=200)]
    bytes: Annotated[int, Field(ge=1, le=MAX_SHIPPED_BYTES + 2**17)]
    sha256: Sha256
    seed: schema.Seed
    temperature: schema.Positive
    validation_images: Count
    validation_loss_before: schema.Finite
    validation_loss: schema.Finite
    test_accuracy: Share
    test_loss: schema.Finite


class Card(schema.Strict):
    """`results/NAME.json`: accuracies are fractions, means are over the seeds, times in seconds.

    `test_accuracy_sd` is the standard deviation over the seeds (n - 1). `predicted` was said before
    the runs were made; `published` is what others report for the architecture, in percent.
    """

    format: Literal[1] = 1
    model: schema.Name
    recipe: schema.Name
    dataset: Text
    data_remark: Text
    test_accuracy: Share
    test_accuracy_sd: schema.NonNegative | None
    test_images: Count
    predicted: Share | None = None
    published: schema.Published | None = None
    epochs: Count
    seeds: Annotated[list[schema.Seed], Field(min_length=1, max_length=MAX_RUNS)]
    precision: schema.PrecisionName
    train_images: Count
    seconds: schema.Positive
    images_per_second: schema.Positive | None
    command: Annotated[Text, Field(pattern=r"^kerasnet fit [^`|<>\x00-\x1f]+$")]
    hardware: Hardware
    versions: dict[str, Text]
    config: schema.RunConfig
    runs: Annotated[list[SeedResult], Field(min_length=1, max_length=MAX_RUNS)]
    shipped: Shipped | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Card:
        """Refuse a card whose parts say different things: somebody wrote into it by hand."""
        mean, sd = mean_and_sd([run.test_accuracy for run in self.runs])
        config = self.config
        said: dict[str, tuple[Any, Any]] = {
            "seeds": (self.seeds, [run.seed for run in self.runs]),
            "seconds": (self.seconds, mean_and_sd([run.seconds for run in self.runs])[0]),
            "images_per_second": (self.images_per_second, mean_speed(self.runs)),
            "versions.kerasnet": (self.versions.get("kerasnet"), config.kerasnet),
            "test_accuracy": (self.test_accuracy, mean),
            "test_accuracy_sd": (self.test_accuracy_sd, sd),
            "model": (self.model, config.architecture.name),
            "recipe": (self.recipe, config.recipe_name),
            "dataset": (self.dataset, config.data.name),
            "epochs": (self.epochs, config.recipe.epochs),
            "precision": (self.precision, config.precision.resolved),
            "the first of `seeds`": (self.seeds[0], config.seed),
            "epochs of every curve": (
                [self.epochs] * len(self.runs), [len(run.curve) for run in self.runs],
            ),
        }  # fmt: skip
        for field, (here, elsewhere) in said.items():
            if not _same(here, elsewhere):
                raise ValueError(
                    f"{field}: the card says {here}, but what it is taken from says {elsewhere}. A "
                    "card is written by `kerasnet results add`, never by hand"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected each once, received {self.seeds}")
        for run in self.runs:
            if [row.epoch for row in run.curve] != list(range(1, self.epochs + 1)):
                raise ValueError(f"the curve of seed {run.seed} does not count its epochs from 1")
        return self

    @model_validator(mode="after")
    def _no_paths(self) -> Card:
        for place, text in _texts(self.model_dump(mode="json", by_alias=True)):
            found = _MACHINE_PATH.search(text)
            if found:
                raise ValueError(
                    f"{place} holds {shown(found[0])}, a path of one machine, which nobody else has"
                )
        return self


# An absolute path of two parts at least, or one with a drive; neither a URL nor `and/or`.
_MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:[^\s/]+/)+[^\s/]*|\b[A-Za-z]:\\\S*|(?<!\S)~\w*/\S*")


_DIGITS = re.compile(r"(\D*)(\d*)")


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, f"{place}[{i}]")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return bool(a == b)


def mean_speed(runs: Sequence[SeedResult]) -> float | None:
    """Return the mean images per second of the runs that know theirs, None if none does."""
    speeds = [run.images_per_second for run in runs if run.images_per_second]
    return mean_and_sd(speeds)[0] if speeds else None


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation (n - 1), None for a single value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), sd


# ---------------------------------------------------------------------------- files


def to_text(card: Card) -> str:
    """Return a card as its file holds it: JSON, a short list or mapping on one line."""
    # A field that did not exist when the card was written does not come into it.
    return _written(card.model_dump(mode="json", by_alias=True, exclude_unset=True), "") + "\n"


def _written(value: Any, indent: str) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    inner = f"{indent}  "
    nested = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or (
        len(flat) <= _LINE and not any(isinstance(item, dict | list) for item in nested)
    ):
        return flat
    if isinstance(value, list):
        items = [f"{inner}{_written(item, inner)}" for item in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    items = [f"{inner}{json.dumps(k, ensure_ascii=False)}: {_written(v, inner)}"
             for k, v in value.items()]  # fmt: skip
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"


def read_card(file: Path) -> Card:
    """Read a card.

    Raises:
        BadInputError: it cannot be read, is too large, or is no JSON.
        DocumentError: it is no card; with line and column of each thing that is wrong.
    """
    data = read_json(file, MAX_BYTES)
    if not isinstance(data, dict):
        raise BadInputError(f"{file}: expected a result card, received {type(data).__name__}")
    try:
        return validate(Card, Document(data))
    except DocumentError:
        # JSON is YAML, whose reader is slower and knows where everything stands.
        return validate(Card, read(file))


def cards_in(folder: str | os.PathLike[str] | None = None) -> dict[str, Card]:
    """Return a folder's cards by name, sorted.

    Args:
        folder: of JSON files; those that ship with kerasnet if not given.

    Raises:
        BadInputError: there is no such folder, or a file in it is no card.
    """
    files = card_files(folder)
    return {name: read_card(file) for name, file in files.items()}


def card_files(folder: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """Return the files of a folder's cards by name; see `cards_in`."""
    path = shipped("results") if folder is None else Path(folder)
    if not path.is_dir():
        raise BadInputError(
            f"{path}: there is no such folder of result cards. `kerasnet results add RUN` makes one"
        )
    files = sorted(path.glob("*.json"), key=_by_number)
    if len(files) > MAX_CARDS:
        raise BadInputError(
            f"{path}: holds {len(files):,} JSON files; expected at most {MAX_CARDS:,}"
        )
    return {file.stem: file for file in files}


def _by_number(file: Path) -> list[tuple[str, int]]:
    """Sort 8 epochs before 20."""
    return [(text, int(digits or 0)) for text, digits in _DIGITS.findall(file.stem)]


def find_card(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the file of a card.

    Args:
        name: of a card in the folder, or a file.
        folder: see `cards_in`.

    Raises:
        BadInputError: there is none, with the nearest name.
    """
    if name.endswith(".json") or os.sep in name:
        return Path(name)
    known = card_files(folder)
    if name not in known:
        raise BadInputError(f"there is no result card '{name}'. {did_you_mean(name, known)}")
    return known[name]
