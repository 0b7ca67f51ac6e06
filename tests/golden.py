"""The plans of all models as text, kept in `tests/golden`: `python tests/golden.py` writes them.

A file names each kind of layer with its options once. Then a line a layer: name, kind, output
shape, parameters, kernel/stride/padding, and `<` its inputs where those are not just the layer of
the line before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from kerasnet.files import write_atomically
from kerasnet.plan import Layer, Plan, format_shape, plan_model
from kerasnet.registry import load_registry

FOLDER = Path(__file__).parent / "golden"
COMMAND = "python tests/golden.py"
# Told by the shape.
_SIZES = ("filters", "units")


def text_of(plan: Plan) -> str:
    """Return a plan as its golden file holds it."""
    kinds: dict[str, str] = {}
    lines = list(_layer_lines(plan, kinds))
    head = [
        f"{plan.name}: parameters {plan.params['trainable']} + {plan.params['non_trainable']}, "
        f"MACs {plan.macs}",
        f"features: {' '.join(plan.features)}",
        *(f"{key} = {kind}" for kind, key in kinds.items()),
    ]
    return "\n".join([*head, "", *lines, ""])


def _layer_lines(plan: Plan, kinds: dict[str, str]) -> Iterator[str]:
    before: tuple[str, ...] = ()
    for layer in plan.layers:
        key = kinds.setdefault(_kind(layer), f"k{len(kinds) + 1}")
        words = [layer.name, key, format_shape(layer.output_shape), str(layer.params)]
        if layer.kernel is not None:
            words.append(f"{layer.kernel}/{layer.stride}/{layer.padding}")
        if layer.inputs != before:
            words += ["<", *layer.inputs]
        yield " ".join(words)
        before = (layer.name,)


def _kind(layer: Layer) -> str:
    options = {k: v for k, v in sorted(layer.options.items()) if k not in _SIZES}
    return f"{layer.type} {json.dumps(options)}" if options else layer.type


def main() -> None:
    """Write the file of every model and remove those of models that are gone."""
    registry = load_registry()
    for name in registry.models:
        text = text_of(plan_model(registry.architecture(name)))
        write_atomically(FOLDER / f"{name}.txt", text.encode())
    for file in FOLDER.iterdir():
        if file.stem not in registry.models:
            os.unlink(file)


if __name__ == "__main__":
    main()
