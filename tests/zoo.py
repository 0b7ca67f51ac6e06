"""Which models of the registry a test of all of them runs by default."""

from __future__ import annotations

import pytest

from kerasnet.plan import plan_model
from kerasnet.registry import load_registry


def every_model(macs: float) -> list[object]:
    """Return all models as parameters of a test, those of more MACs marked slow."""
    registry = load_registry()
    costs = {name: plan_model(registry.architecture(name)).macs for name in registry.models}
    return [
        pytest.param(name, marks=[pytest.mark.slow] if cost > macs else [])
        for name, cost in costs.items()
    ]
