"""Who may be measured: what a worker calls, in its own process, to make a contestant.

A name in `module:function` form is a contestant's kind.
"""

from __future__ import annotations

from typing import Any

KERASNET, KERAS, TORCH, PIPELINES, BEGINNING = (
    f"{__name__}:{name}" for name in ("kerasnet", "keras", "torch", "pipelines", "beginning")
)


def kerasnet(**options: Any) -> Any:
    """Make kerasnet's training a contestant; see `ours.Ours`."""
    from kerasnet import backend

    backend.load()
    from kerasnet.bench.ours import Ours

    return Ours(**options)


def keras(**options: Any) -> Any:
    """Make stock Keras one; see `stock.Stock`. Nothing is set up for it that users would not."""
    from kerasnet.bench.stock import Stock

    return Stock(**options)


def torch(**options: Any) -> Any:
    """Make PyTorch one; see `twin.Twin`."""
    from kerasnet.bench.twin import Twin

    return Twin(**options)


def pipelines(**options: Any) -> Any:
    """Make a way of making batches one; see `pipelines.Pipelines`."""
    from kerasnet import backend

    backend.load()
    from kerasnet.bench.pipelines import Pipelines

    return Pipelines(**options)


def beginning(**options: Any) -> Any:
    """Make the way to a first step one; see `beginning.Beginning`. It imports nothing yet."""
    from kerasnet.bench.beginning import Beginning

    return Beginning(**options)
