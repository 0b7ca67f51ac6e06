"""From finished run folders to a result card."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasnet import schema
from kerasnet.checkpoint import checkpoint_files, read_checkpoint
from kerasnet.data.places import without_place
from kerasnet.document import DocumentError, dotted, read, shown
from kerasnet.errors import BadInputError
from kerasnet.files import checked, write_together
from kerasnet.pretrained import file_name
from kerasnet.registry import Registry, load_registry
from kerasnet.repeating import differences, fit_line, fit_options, portable
from kerasnet.report import read_predictions
from kerasnet.results.card import (
    MAX_BYTES,
    RATE_TOLERANCE,
    Card,
    Hardware,
    Row,
    SeedResult,
    Shipped,
    card_files,
    mean_and_sd,
    mean_speed,
    read_card,
    to_text,
)
from kerasnet.runs import METRICS, Run, Summary, load_run, read_object

_VERSIONS = ("python", "tensorflow", "keras", "numpy", "tensorflow-datasets", "backend")
# More would not be looked through, whatever a file says.
_MOST_LOST = 1_000_000
_SEED_FOLDER = re.compile(r"seed-([0-9]{1,10})")


def add(
    paths: Sequence[str | os.PathLike[str]],
    *,
    name: str | None = None,
    folder: str | os.PathLike[str] = "results",
    predicted: float | None = None,
    force: bool = False,
    weights: bool = False,
    registry: Registry | None = None,
) -> tuple[Path, Card]:
    """Write the card of finished runs of one configuration.

    Args:
        paths: run folders that differ in nothing but their seeds, or a folder of `seed-0` and so
            on, which holds them.
        name: of the card; `<model>-<dataset>-<recipe>-<epochs>` if not given.
        folder: where cards are.
        predicted: the test accuracy, a fraction, that was expected before the runs were made.
        force: replace a card of this name that says something else.
        weights: write the first run's weights beside the card, in float16; see `ship.ship`.
        registry: which says what is published of the model; the built-in one if not given.

    Returns:
        The card's file, and the card.

    Raises:
        BadInputError: a run has not finished, its files do not agree, the runs differ in more than
            their seeds, or there is another card of this name or of these shipped weights.
        EnvironmentFaultError: the card cannot be written.
    """
    runs = [run for path in paths for run in _runs_at(Path(path))]
    name = name or _default_name(runs[0].config)
    if not schema.NAME.fullmatch(name):
        raise BadInputError(f"--name takes letters, digits and . _ + -, not '{shown(name)}'")
    file = Path(folder) / f"{name}.json"
    card = make_card(runs, file, predicted=predicted, registry=registry)
    if file.exists() and not force:
        _check_same(file, card)
    shipped, content = _to_ship(runs[0], file, card) if weights else _shipped_already(file, card)
    card = card.model_copy(update={"shipped": shipped})
    text = to_text(card).encode()
    if len(text) > MAX_BYTES:
        raise BadInputError(
            f"{file}: would come to {len(text):,} bytes, more than the {MAX_BYTES:,} that are "
            "read; add fewer seeds"
        )
    weights_file = {file.parent / shipped.file: content} if shipped and content else {}
    write_together({**weights_file, file: text})
    return file, card


def _runs_at(path: Path) -> list[Run]:
    """Return the run at a path, or those of a folder of seeds, by seed."""
    found = {int(m[1]) for f in path.glob("seed-*") if (m := _SEED_FOLDER.fullmatch(f.name))}
    if (path / "config.yaml").is_file() or not found:
        return [load_run(path)]
    missing = sorted(_asked_seeds(path) - found)
    if missing:
        raise BadInputError(
            f"{path}: seed {missing[0]} has not been trained, and a card is of all seeds that were "
            f"asked for. Go on with: kerasnet fit --resume {path}"
        )
    return [load_run(path / f"seed-{seed}") for seed in sorted(found)]


def _asked_seeds(path: Path) -> set[int]:
    """Return the seeds that a folder was made for, where it says that."""
    file = path / "seeds.yaml"
    asked = read(file).data.get("seeds") if file.is_file() else []
    if not isinstance(asked, list) or not all(isinstance(seed, int) for seed in asked):
        raise BadInputError(f"{file}: expected a list of whole numbers as `seeds`")
    return set(asked)


def _default_name(config: schema.RunConfig) -> str:
    dataset = re.sub(r"[^A-Za-z0-9._+-]", "-", portable(config).data.name)
    epochs = config.recipe.epochs
    return f"{config.architecture.name}-{dataset}-{config.recipe_name}-{epochs}"


def _check_same(file: Path, card: Card) -> None:
    """Refuse to write over a card that says something else."""
    way_out = "Choose another --name, or write over it with --force"
    try:
        old = read_card(file)
    except DocumentError as error:
        raise BadInputError(f"{file}: is there already, and no card. {way_out}") from error
    here, there = (
        c.model_dump(mode="json", by_alias=True, exclude={"shipped"}) for c in (card, old)
    )
    for field, value in here.items():
        if value != there[field]:
            raise BadInputError(
                f"{file}: there is another card of this name: its `{field}` is "
                f"{shown(str(there[field]))}, that of the runs {shown(str(value))}. {way_out}"
            )


def _to_ship(run: Run, file: Path, card: Card) -> tuple[Shipped, bytes]:
    """Return what is said of a run's weights that ship, and the content of their file.

    Raises:
        BadInputError: another card says that they are its own, or as `ship`.
    """
    from kerasnet.results.ship import ship

    name = file_name(card.model, card.dataset)
    old = _held(file)
    if old is not None and old.file != name:
        raise BadInputError(
            f"--ship: {file} is the card of {file.parent / old.file}, which would be left without "
            "one. Remove both first, or choose another --name"
        )
    for other in card_files(file.parent).values() if file.parent.is_dir() else ():
        held = read_card(other).shipped if other.stem != file.stem else None
        if held is not None and held.file == name:
            raise BadInputError(
                f"--ship: {file.parent / name} are the weights of {other}. Remove that card and "
                f"its weights first, or add these runs in its place: --name {other.stem} --force"
            )
    # Beside the card nothing is replaced before all is known to be right.
    with tempfile.TemporaryDirectory() as place:
        shipped = ship(run, Path(place))
        return shipped, (Path(place) / shipped.file).read_bytes()


def _shipped_already(file: Path, card: Card) -> tuple[Shipped | None, bytes]:
    """Return what the card in a file ships, and no content: that of its weights stays.

    Raises:
        BadInputError: they are not those of the first run, and would be left without a card.
    """
    old = _held(file)
    if old is None or read_card(file).runs[0].weights_sha256 == card.runs[0].weights_sha256:
        return old, b""
    raise BadInputError(
        f"{file}: {file.parent / old.file} are the weights of the card that is there, and not of "
        "these runs. Add --ship, which replaces them, or remove both first"
    )


def _held(file: Path) -> Shipped | None:
    """Return what the card in a file says of its shipped weights; None where there is no card."""
    try:
        return read_card(file).shipped
    except BadInputError:
        return None


def make_card(
    runs: Sequence[Run],
    file: Path,
    *,
    predicted: float | None = None,
    registry: Registry | None = None,
) -> Card:
    """Return the card of finished runs; see `add`.

    Args:
        runs: of one configuration, each of another seed.
        file: the card's, which the command names where only the card has the configuration.
        predicted: see `add`.
        registry: see `add`.
    """
    registry = registry or load_registry()
    configs = [_config(run) for run in runs]
    _check_seeds_alone_differ(runs, [portable(config) for config in configs])
    summaries = [_summary(run, config) for run, config in zip(runs, configs, strict=True)]
    results = [_result(*each) for each in zip(runs, configs, summaries, strict=True)]
    _check_same_data(runs, summaries)
    config, summary = portable(configs[0]), summaries[0]
    mean, sd = mean_and_sd([found.test_accuracy for found in results])
    facts = {
        "format": 1,
        "model": config.architecture.name,
        "recipe": config.recipe_name,
        "dataset": config.data.name,
        "data_remark": without_place(summary.data_remark or ""),
        "test_accuracy": mean,
        "test_accuracy_sd": sd,
        "test_images": summary.test_images,
        "predicted": predicted,
        "published": _published(config, registry),
        "epochs": config.recipe.epochs,
        "seeds": [found.seed for found in results],
        "precision": config.precision.resolved,
        "train_images": summary.train_images,
        "seconds": mean_and_sd([found.seconds for found in results])[0],
        "images_per_second": mean_speed(results),
        "command": _command(configs, file),
        **machine(runs),
        "config": config.model_dump(mode="json", by_alias=True),
        "runs": [found.model_dump(mode="json") for found in results],
        "shipped": None,
    }
    return checked(Card, facts, runs[0].path, "what a card can hold")


def _config(run: Run) -> schema.RunConfig:
    config = run.config
    if config.weights:
        raise BadInputError(
            f"{run.path}: began from {config.weights}. A card is of runs that begin with their "
            "seed's weights, so that its command alone repeats them"
        )
    return config


def _check_seeds_alone_differ(runs: Sequence[Run], configs: Sequence[schema.RunConfig]) -> None:
    first, paths = configs[0], [str(run.path) for run in runs]
    for path, config in zip(paths[1:], configs[1:], strict=True):
        found = next(differences(first, config.model_copy(update={"seed": first.seed})), None)
        if found is not None:
            field, here, there = found
            raise BadInputError(
                f"{paths[0]} and {path} are not seeds of one configuration: {field} is "
                f"{shown(str(here))} and {shown(str(there))}. Add them as cards of their own"
            )
    by_seed: dict[int, str] = {}
    for path, config in zip(paths, configs, strict=True):
        if config.seed in by_seed:
            raise BadInputError(
                f"{by_seed[config.seed]} and {path} have the same seed, {config.seed}: name each "
                "seed's run once"
            )
        by_seed[config.seed] = path


class _Tested(Summary):
    """The summary of a run of which a card can be made."""

    test_accuracy: float
    test_loss: float
    test_images: int
    train_images: int
    seconds: float
    data_remark: str


def _summary(run: Run, config: schema.RunConfig) -> _Tested:
    """Return what a run came to, held against its configuration."""
    found, file = run.summary(), run.path / "summary.json"
    if found.get("test_accuracy") is None:
        raise BadInputError(
            f"{run.path}: its test accuracy was never measured, as in a search's trials. Train it "
            f"with: kerasnet fit --config {run.path}/config.yaml"
        )
    summary = checked(_Tested, found, file, "the summary of a run that was tested")
    said = {"model": config.architecture.name, "dataset": config.data.name,
            "recipe": config.recipe_name, "epochs": config.recipe.epochs}  # fmt: skip
    for field, value in said.items():
        if getattr(summary, field) != value:
            raise BadInputError(
                f"{file}: {field} is {getattr(summary, field)}, but config.yaml says {value}. "
                f"Train the run again with: kerasnet fit --config {run.path}/config.yaml"
            )
    return summary


def _check_same_data(runs: Sequence[Run], summaries: Sequence[_Tested]) -> None:
    first = summaries[0]

    def of(summary: _Tested, field: str) -> str:
        return without_place(str(getattr(summary, field)))

    for run, found in zip(runs[1:], summaries[1:], strict=True):
        for field in ("data_remark", "train_images", "test_images"):
            here, there = of(first, field), of(found, field)
            if here != there:
                raise BadInputError(
                    f"{runs[0].path} and {run.path} had other data: {field} is "
                    f"{shown(here)} and {shown(there)}. Add them as cards of their own"
                )


def _result(run: Run, config: schema.RunConfig, summary: _Tested) -> SeedResult:
    predictions = run.path / "predictions.npz"
    _check_accuracy(run, config, summary, predictions)
    return SeedResult(
        seed=config.seed,
        test_accuracy=summary.test_accuracy,
        test_loss=summary.test_loss,
        seconds=summary.seconds,
        images_per_second=summary.images_per_second,
        weights_sha256=_sha256(run.last_weights, run),
        predictions_sha256=_sha256(predictions, run),
        images_checksum=images_checksum(run),
        curve=_curve_of(run, config),
    )


def _check_accuracy(
    run: Run, config: schema.RunConfig, summary: _Tested, predictions: Path
) -> None:
    """Count once more how many of the test images were told right."""
    found = read_predictions(predictions, config.classes)
    if found is None:
        raise BadInputError(
            f"{predictions}: is missing or empty, so that nobody can count the accuracy once more. "
            f"Train the run again with: kerasnet fit --config {run.path}/config.yaml"
        )
    chosen = found.probabilities[np.arange(len(found.labels)), found.labels]
    best = (found.probabilities == found.probabilities.max(axis=1, keepdims=True)).sum(axis=1)
    # Probabilities are stored in float32, in which two classes' may be equal that were not.
    highest = chosen >= found.probabilities.max(axis=1)
    most, least = int(highest.sum()), int((highest & (best == 1)).sum())
    told = summary.test_accuracy * len(found.labels)
    if len(found.labels) != summary.test_images or not least - 0.01 <= told <= most + 0.01:
        raise BadInputError(
            f"{predictions}: {most:,} of {len(found.labels):,} images are told right in it, but "
            f"summary.json says {summary.test_accuracy:.4%} of {summary.test_images:,}. One of the "
            f"two was changed; train the run again with: kerasnet fit --config "
            f"{run.path}/config.yaml"
        )


def _sha256(file: Path, run: Run) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(
            f"{file}: cannot be read: {error.strerror or error}. A card holds its checksum; train "
            f"the run again with: kerasnet fit --config {run.path}/config.yaml"
        ) from error


def images_checksum(run: Run) -> str | None:
    """Return the checksum of a run's training images, None where no checkpoint is left."""
    files = checkpoint_files(run.checkpoints)
    return (read_checkpoint(files[0]).progress.data or None) if files else None


def curve(run: Run, epochs: int) -> list[Row]:
    """Return the rows of a run's `metrics.csv`.

    Raises:
        BadInputError: it does not have a row for each of so many epochs.
    """
    file, rows = run.path / "metrics.csv", run.metrics()
    if [row.get("epoch") for row in rows] != list(range(1, epochs + 1)):
        raise BadInputError(
            f"{file}: expected a row for each of {epochs} epochs, received {len(rows)}. Train the "
            f"run again with: kerasnet fit --config {run.path}/config.yaml"
        )
    return [checked(Row, _row(row), file, "a table of a run's epochs") for row in rows]


def _curve_of(run: Run, config: schema.RunConfig) -> list[Row]:
    """Return a run's rows, having held their learning rates against the configuration's schedule.

    A run that halved its rate after it diverged, or that was given another horizon on the way, is
    none that its configuration repeats.
    """
    from kerasnet import backend

    backend.load()
    import keras

    from kerasnet.recipe import RecipeSchedule

    rows, recipe = curve(run, config.recipe.epochs), config.recipe
    rate, spec = recipe.optimizer.learning_rate, recipe.schedule.model_dump()
    steps = rows[0].step
    schedule = RecipeSchedule(rate, spec, steps, config.horizon)
    # A step whose gradients overflow float16 is left out, and the schedule does not count it.
    most_lost = min(steps, _MOST_LOST) if config.precision.resolved == "mixed_float16" else 0
    lost = 0
    for row in rows:
        if row.step != row.epoch * steps:
            raise BadInputError(
                f"{run.path}/metrics.csv: epoch {row.epoch} ends at step {row.step:,}, and the "
                f"first at {steps:,}: expected as many in each. Train the run again with: kerasnet "
                f"fit --config {run.path}/config.yaml"
            )
        last = row.step - 1 - lost
        before = np.arange(last, max(last - most_lost, 0) - 1, -1)
        rates = keras.ops.convert_to_numpy(schedule(before))
        alike = np.flatnonzero(np.abs(row.learning_rate - rates) <= RATE_TOLERANCE * rate)
        if not alike.size:
            raise BadInputError(
                f"{run.path}/metrics.csv: the learning rate of epoch {row.epoch} is "
                f"{row.learning_rate:.4g}, and its configuration's {rates[0]:.4g}: it was "
                "lowered after training diverged, or the schedule was stretched on the way, so "
                f"that no command repeats it. Train it again with: kerasnet fit --config "
                f"{run.path}/config.yaml"
            )
        lost += int(alike[0])
    return rows


def _row(found: dict[str, float | None]) -> dict[str, Any]:
    row: dict[str, Any] = {key: found.get(key) for key in METRICS}
    whole = {k: int(v) for k in ("epoch", "step") if (v := row[k]) is not None and v.is_integer()}
    return row | whole


def _published(config: schema.RunConfig, registry: Registry) -> Any:
    name, data = config.architecture.name, config.data
    found = registry.models[name].published if name in registry.models else None
    # A folder of pictures may be called like a data set.
    same = found is not None and data.spec.source.type != "folder" and found.dataset == data.name
    return found.model_dump(mode="json") if found is not None and same else None


def _command(configs: Sequence[schema.RunConfig], file: Path) -> str:
    """Return the line that makes all the runs again, by names that everybody has where they do."""
    config, seeds = configs[0], [config.seed for config in configs]
    options = fit_options(config)
    name = None if options is None else config.architecture.name
    if options is None:
        # Nobody else has this machine's folders.
        place = Path(file.parent.name) if file.is_absolute() else file.parent
        options = {"config": (place / file.name).as_posix()}
    options.pop("seed", None)
    return fit_line(name, options | ({"seeds": seeds} if len(seeds) > 1 else {"seed": seeds[0]}))


def machine(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the hardware and the versions that all the runs were made with."""
    all_facts = [_environment(run) for run in runs]
    for run, facts in zip(runs[1:], all_facts[1:], strict=True):
        for (path, here), there in zip(
            _leaves(all_facts[0]), (value for _, value in _leaves(facts)), strict=True
        ):
            if here != there:
                raise BadInputError(
                    f"{runs[0].path} and {run.path} were made on different machines: {path} is "
                    f"{shown(str(here))} and {shown(str(there))}. Add them as cards of their own"
                )
    return all_facts[0]


def _leaves(facts: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(dotted((part, key)), value) for part, held in facts.items()
            for key, value in held.items()]  # fmt: skip


def _environment(run: Run) -> dict[str, Any]:
    file = run.path / "environment.json"
    found = read_object(file)
    facts = {key: found.get(key) for key in ("processor", "cpus", "gpu")}
    hardware = checked(Hardware, facts | {"devices": found.get("devices", [])}, file,
                       "a description of a machine")  # fmt: skip
    versions = {key: str(found.get(key, "unknown")) for key in _VERSIONS}
    return {
        "hardware": hardware.model_dump(mode="json"),
        "versions": {"kerasnet": run.config.kerasnet, **versions},
    }
