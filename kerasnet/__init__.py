"""A Keras 3 model zoo whose architectures are data.

>>> import kerasnet
>>> model = kerasnet.create_model("resnet50")
>>> run = kerasnet.fit("resnet50", dataset="digits")
>>> run.summary()["test_accuracy"]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerasnet.api import convert_weights, create_model, evaluate, fit, list_models, lr_find
    from kerasnet.build import build_block
    from kerasnet.data import load_dataset
    from kerasnet.predicting import predict
    from kerasnet.runs import load_run

__version__ = "0.1.0"

__all__ = [
    "build_block",
    "convert_weights",
    "create_model",
    "evaluate",
    "fit",
    "list_models",
    "load_dataset",
    "load_run",
    "lr_find",
    "predict",
]

# Imported when first used, so that `import kerasnet` and the light commands start at once.
_PLACES = {
    "build_block": "kerasnet.build",
    "convert_weights": "kerasnet.api",
    "create_model": "kerasnet.api",
    "evaluate": "kerasnet.api",
    "fit": "kerasnet.api",
    "list_models": "kerasnet.api",
    "load_dataset": "kerasnet.data",
    "load_run": "kerasnet.runs",
    "lr_find": "kerasnet.api",
    "predict": "kerasnet.predicting",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kerasnet' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
