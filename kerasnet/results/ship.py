"""From a finished run to weights that ship: in float16, and with a temperature."""

from __future__ import annotations

import hashlib
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnet import backend
from kerasnet.config import for_weights
from kerasnet.convert import read_arrays, save_arrays
from kerasnet.errors import BadInputError
from kerasnet.files import make_folder
from kerasnet.pretrained import file_name
from kerasnet.results.card import MAX_SHIPPED_BYTES, Shipped
from kerasnet.runs import Run

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def ship(run: Run, folder: Path, data_dir: str | None = None) -> Shipped:
    """Write a run's last weights in float16, with a temperature, and measure what is written.

    The temperature is that of Guo et al. 2017, section 4.2: the one number, by which logits are
    divided, that makes the validation images' labels most likely. The accuracy is the same for any.

    Args:
        run: a finished one that held validation images back.
        folder: where `<model>-<dataset>.safetensors` is written.
        data_dir: folder searched first for the data; the run's own if not given.

    Raises:
        BadInputError: there were no validation images, a weight is too large for float16, or the
            file would be larger than what ships.
        EnvironmentFaultError: the file cannot be written.
    """
    config = run.config
    arrays, metadata = read_arrays(run.last_weights)
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
        measured = _measured(run, draft, data_dir)
    inference = {**metadata["inference"], "temperature": measured["temperature"]}
    save_arrays(halves, file, {**metadata, "inference": inference})
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


def _measured(run: Run, file: Path, data_dir: str | None) -> dict[str, Any]:
    """Return the temperature, and what the weights come to on validation and test images."""
    from kerasnet.train import logits_of, make_model, read_data, scores, test_model

    config = run.config
    data = read_data(config)
    if data.validation is None:
        raise BadInputError(
            f"{run.path}: held no validation images back, and a temperature is chosen by them. "
            "Train with a `validation_split`, and without --train-on train+validation"
        )
    like = for_weights(
        config.architecture.name, file, dataset=config.data.name,
        data_dir=data_dir or config.data.data_dir,
    )  # fmt: skip
    model = make_model(like.model_copy(update={"architecture": config.architecture}))
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


def best_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Return by what logits are to be divided for the least cross-entropy (Guo et al. 2017).

    Args:
        logits: (n, classes).
        labels: (n,).
    """
    from scipy.optimize import minimize_scalar

    from kerasnet.train import scores

    def loss(log_temperature: float) -> float:
        return scores(logits / math.exp(log_temperature), labels)[1]

    # In the logarithm it is a convex valley for all but logits that are all alike.
    found = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-4})
    return round(math.exp(float(found.x)), 4)
