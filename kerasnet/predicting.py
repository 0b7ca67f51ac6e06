"""What trained weights say of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnet import schema
from kerasnet.convert import inference_in, metadata_of
from kerasnet.data.folder import images_below, read_image
from kerasnet.errors import BadInputError
from kerasnet.pretrained import PRETRAINED, weights_of
from kerasnet.registry import Registry, load_registry
from kerasnet.runs import Run, load_run

if TYPE_CHECKING:
    PathLike = str | os.PathLike[str]

_AT_ONCE = 256


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Attributes:
        file: the picture.
        classes: the names of all classes with their probabilities, the likeliest first.
    """

    file: str
    classes: tuple[tuple[str, float], ...]

    def to_json(self, most: int | None = None) -> dict[str, Any]:
        """Return the object that `kerasnet predict --json` prints, with so many classes at most."""
        listed = [{"class": name, "probability": p} for name, p in self.classes[:most]]
        return {"file": self.file, "class": self.classes[0][0], "classes": listed}


def trained(
    run: Run | PathLike | None = None,
    *,
    model: str | None = None,
    weights: PathLike | None = None,
    best: bool = False,
    registry: Registry | None = None,
) -> schema.RunConfig:
    """Return a configuration of a model with weights, and of the images that these take.

    Args:
        run: a run folder; or else
        model: a model of the registry, and
        weights: a file of kerasnet's, or `pretrained`.
        best: a run's weights of the best validation accuracy instead of the last.
        registry: where the model is; the built-in one if not given.

    Raises:
        BadInputError: neither or both are given, there are no such weights, or they do not say
            which images and classes they are for, as PyTorch's do not.
    """
    if (run is None) == (model is None and weights is None) or (weights is None) != (model is None):
        raise BadInputError("predict takes a run folder, or a model and weights")
    if run is not None:
        opened = run if isinstance(run, Run) else load_run(run)
        file: PathLike = opened.best_weights if best else opened.last_weights
        channels = opened.config.input[2]
        made = opened.config
    else:
        if best:
            raise BadInputError("predict: `best` goes with a run")
        assert model is not None
        registry = registry or load_registry()
        architecture = registry.architecture(model)
        file = weights_of(weights, model, registry=registry) or PRETRAINED
        channels = architecture.model.input[2]
        made = None
    inference = inference_in(metadata_of(file), channels, file)
    if inference is None:
        raise BadInputError(
            f"{file} does not say which images and classes it is for, as weights of a run do: "
            "train with them (kerasnet fit --weights), or measure them with kerasnet evaluate"
        )
    shape = [*inference.resize, channels]
    classes = len(inference.class_names)
    if made is None:
        from kerasnet.config import resolve

        assert registry is not None
        made = resolve(
            str(model), registry=registry, recipe=next(iter(registry.recipes)),
            precision_request="float32", shape=(classes, channels),
        )  # fmt: skip
    return made.model_copy(
        update={
            "weights": os.fspath(file),
            "reset_head": False,
            "freeze": [],
            "input": shape,
            "classes": classes,
            "inference": inference,
        }
    )


def pictures(files: Sequence[PathLike]) -> list[Path]:
    """Return the pictures that are named, and those in folders that are, sorted.

    Raises:
        BadInputError: there is none of a name, or a folder holds none.
    """
    found: list[Path] = []
    for name in map(Path, files):
        if not name.is_dir():
            found.append(name)
            continue
        inside = sorted(images_below(name))
        if not inside:
            raise BadInputError(f"{name} holds no pictures")
        found += inside
    for file in found:
        if not file.is_file():
            raise BadInputError(f"{file}: there is no such picture")
    return found


def predict(
    files: Sequence[PathLike] | PathLike,
    run: Run | PathLike | None = None,
    *,
    model: str | None = None,
    weights: PathLike | None = None,
    best: bool = False,
    registry: Registry | None = None,
) -> list[Prediction]:
    """Tell the classes of pictures, as `kerasnet predict` does.

    They are brought to the size and scale of the training images. The probabilities are the
    softmax of the logits, divided by the temperature of the weights (Guo et al. 2017); that of a
    run's is 1.

    Args:
        files: pictures, or folders of them.
        run: a run folder; or else
        model: a model of the registry, and
        weights: a file of kerasnet's, or `pretrained`.
        best: a run's weights of the best validation accuracy instead of the last.
        registry: where the model is; the built-in one if not given.

    Returns:
        One for each picture, in the order of the names.

    Raises:
        BadInputError: a picture cannot be read, or as `trained`.
    """
    config = trained(run, model=model, weights=weights, best=best, registry=registry)
    given = [files] if isinstance(files, str | os.PathLike) else files
    return list(_told(config, pictures(given)))


def _told(config: schema.RunConfig, files: list[Path]) -> Iterator[Prediction]:
    import numpy as np

    from kerasnet import backend
    from kerasnet.data import Split

    backend.load()
    from kerasnet.train import log_probabilities, logits_of, make_model

    inference = config.inference
    assert inference is not None
    height, width, channels = config.input
    names, model = inference.class_names, make_model(config)
    for start in range(0, len(files), _AT_ONCE):
        some = files[start : start + _AT_ONCE]
        images = np.concatenate([read_image(file, (height, width), channels) for file in some])
        split = Split(images, np.zeros(len(some), np.int64))
        logits = logits_of(model, config, split, inference) / inference.temperature
        for file, row in zip(some, np.exp(log_probabilities(logits)), strict=True):
            order = np.argsort(-row, kind="stable")
            yield Prediction(str(file), tuple((names[i], float(row[i])) for i in order))
