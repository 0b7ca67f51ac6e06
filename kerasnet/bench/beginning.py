"""From a new process to its first training step, as a contestant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

PARTS = ("import", "data", "build", "first step")
Lap = Callable[[str], None]


class Beginning:
    """Imports a library, makes a net and data, and trains one step; once in a process.

    Args:
        config: a `schema.RunConfig` as plain values.
        who: `kerasnet`, `keras` or `torch`.
    """

    def __init__(self, config: Mapping[str, Any], who: str) -> None:
        self.config, self.who = config, who
        self.parts: dict[str, float] = {}

    def begin(self) -> dict[str, float]:
        """Return the seconds of each of `PARTS`.

        What `kerasnet fit` executes in one go, perhaps several steps, counts as the first step.
        """
        self._last = time.perf_counter()
        contestant = {"kerasnet": self._kerasnet, "keras": self._keras, "torch": self._torch}
        made = contestant[self.who]()
        made.run(steps=0, untimed=1)
        self._lap("first step")
        return self.parts

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = now - self._last
        self._last = now

    def _kerasnet(self) -> Any:
        from kerasnet import backend

        backend.load()
        from kerasnet.bench.ours import Ours

        self._lap("import")
        return Ours(self.config, lap=self._lap)

    def _keras(self) -> Any:
        from kerasnet.bench.stock import Stock

        self._lap("import")
        return Stock(self.config, "float32", lap=self._lap)

    def _torch(self) -> Any:
        from kerasnet.bench.twin import Twin

        self._lap("import")
        return Twin(self.config, False, False, False, lap=self._lap)
