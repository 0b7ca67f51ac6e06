"""Which models of the registry a test of all of them runs by default."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from kerasnet.plan import plan_model
from kerasnet.registry import load_registry


def every_model(macs: float, always: Collection[str] = ("resnet50", "vgg16")) -> list[object]:
    """Return all models as parameters of a test, those of more MACs marked slow.

    Args:
        macs: of the largest one that runs by default.
        always: models that run by default however large they are.
    """
    registry = load_registry()
    costs = {name: plan_model(registry.architecture(name)).macs for name in registry.models}

    def slow(name: str) -> bool:
        return costs[name] > macs and name not in always

    return [pytest.param(name, marks=[pytest.mark.slow] if slow(name) else []) for name in costs]
