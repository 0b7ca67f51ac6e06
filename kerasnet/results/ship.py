"""From a finished run to weights that ship: in float16, and with a temperature."""

from __future__ import annotations

import hashlib
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasnet import backend, schema
from kerasnet.config import with_values
from kerasnet.convert import read_arrays, save_arrays
from kerasnet.data.places import without_place
from kerasnet.document import shown
from kerasnet.errors import BadInputError
from kerasnet.files import checked, make_folder
from kerasnet.precision import resolve
from kerasnet.pretrained import file_name
from kerasnet.registry import load_registry
from kerasnet.results.add import images_checksum
from kerasnet.results.card import MAX_SHIPPED_BYTES, Shipped
from kerasnet.runs import Run

if TYPE_CHECKING:
    from kerasnet.training import TrainingData

# Of a temperature's logarithm.
_BOUND = 3.0

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def ship(run: Run, folder: Path) -> Shipped:
    """Write a run's last weights in float16, with a temperature, and measure what is written.

    The temperature is that of Guo et al. 2017, section 4.2: the one number, by which logits are
    divided, that makes the validation images' labels most likely. The accuracy is the same for any.

    Args:
        run: a finished one that held validation images back.
        folder: where `<model>-<dataset>.safetensors` is written.

    Raises:
        BadInputError: the data are somebody's own, or others than the run's; there were no
            validation images, or no temperature fits them; a weight is too large for float16, or
            the file would be larger than what ships.
        EnvironmentFaultError: the file cannot be written.
    """
    config = run.config
    if config.data.name not in load_registry().datasets:
        raise BadInputError(
            f"{run.path}: was trained on '{shown(config.data.name)}', and what ships on a data set "
            f"of the registry. Leave --ship out, and hand on {run.last_weights}"
        )
    arrays, metadata = read_arrays(run.last_weights)
    inference = checked(schema.Inference, metadata.get("inference"), run.last_weights,
                        "a run's weights, which say how images are normalised")  # fmt: skip
    halves = {key: _half(array, f"{run.last_weights}: {key}") for key, array in arrays.items()}
    size = sum(array.nbytes for array in halves.values())
    if size > MAX_SHIPPED_BYTES:
        raise BadInputError(
            f"{run.path}: its weights take {size:,} bytes in float16; what ships has at most "
            f"{MAX_SHIPPED_BYTES:,}. Leave --ship out, and hand on {run.last_weights}"
        )
    backend.load()
    model, dataset = config.architecture.name, config.data.name
    file = make_folder(folder) / file_name(model, dataset)
    # Logits are those of what ships, not of what was trained.
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / file.name
        save_arrays(halves, draft, metadata)
        measured = _measured(run, draft)
    calibrated = inference.model_copy(update={"temperature": measured["temperature"]})
    save_arrays(halves, file, {**metadata, "inference": calibrated.model_dump(mode="json")})
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Shipped(file=file.name, bytes=file.stat().st_size, sha256=digest, seed=config.seed,
                   **measured)  # fmt: skip


def _half(array: NDArray[np.floating[Any]], where: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise BadInputError(
            f"{where}: holds {np.abs(array).max():g}, and float16 nothing above 65,504"
        )
    return half


def _measured(run: Run, file: Path) -> dict[str, Any]:
    """Return the temperature, and what the weights come to on validation and test images."""
    from kerasnet.train import logits_of, make_model, read_data, scores, test_model

    config = run.config
    data = read_data(config)
    _check_same(run, data)
    if data.validation is None:
        raise BadInputError(
            f"{run.path}: held no validation images back, and a temperature is chosen by them. "
            "Train with a `validation_split`, and without --train-on train+validation"
        )
    # As `evaluate --weights` has them.
    like = {"weights": str(file), "precision": resolve("float32").model_dump(mode="json")}
    model = make_model(with_values(config, like))
    logits = logits_of(model, config, data.validation, data.source.inference)
    temperature = best_temperature(logits, data.validation.labels)
    tested = test_model(model, config, data.source, None)
    return {
        "temperature": temperature,
        "validation_images": len(data.validation),
        "validation_loss": scores(logits / temperature, data.validation.labels)[1],
        "validation_loss_before": scores(logits, data.validation.labels)[1],
        "test_accuracy": tested["test_accuracy"],
        "test_loss": tested["test_loss"],
    }


def _check_same(run: Run, data: TrainingData) -> None:
    """Refuse to measure a run on other images than its own."""
    here, there = data.fingerprint, images_checksum(run)
    remarks = [without_place(r) for r in (data.source.located.remark, run.summary()["data_remark"])]
    # A checksum says more than the name of the place.
    if here == there or (there is None and remarks[0] == remarks[1]):
        return
    known = f", checksum {there}" if there else ""
    raise BadInputError(
        f"{data.source.located.path or data.source.name}: {remarks[0]}, checksum {here}; these are "
        f"not the images that {run.path} was trained on ({remarks[1]}{known}). Put those to where "
        "the run found them, or KERASNET_DATA_DIR to where they are"
    )


def best_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Return by what logits are to be divided for the least cross-entropy (Guo et al. 2017).

    Args:
        logits: (n, classes).
        labels: (n,).

    Raises:
        BadInputError: there is none, as where every label is the likeliest already.
    """
    from scipy.optimize import minimize_scalar

    from kerasnet.train import scores

    def loss(log_temperature: float) -> float:
        return scores(logits / math.exp(log_temperature), labels)[1]

    # The loss is convex in the temperature's inverse, so that in its logarithm it has one valley.
    found = float(minimize_scalar(
        loss, bounds=(-_BOUND, _BOUND), method="bounded", options={"xatol": 1e-4}
    ).x)  # fmt: skip
    if abs(found) > _BOUND - 0.01:
        raise BadInputError(
            f"no temperature calibrates these weights: of {len(labels):,} validation images "
            f"{scores(logits, labels)[0]:.2%} are told right, and the best lies beyond "
            f"{math.exp(found):.3g}. Hold more images back"
        )
    return round(math.exp(found), 4)
