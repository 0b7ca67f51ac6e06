"""Keras as its users write it, as a contestant: stock layers, plain `compile`, plain `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from kerasnet import config as configs
from kerasnet import schema
from kerasnet.bench.fitting import (
    ClockCallback,
    fit_clock,
    matrix_product_rate,
    ready_batches,
)
from kerasnet.build import build


class Stock:
    """The same net from Keras's own layers, optimiser, loss and metric, on ready batches.

    Args:
        config: a `schema.RunConfig` as plain values.
        policy: dtype policy of every layer but the float32 head.
        lap: called with the name of each part of the start that is done: `data`, `build`.
    """

    def __init__(
        self, config: Mapping[str, Any], policy: str, lap: Callable[[str], None] = lambda part: None
    ) -> None:
        self.config, self.policy = schema.RunConfig.model_validate(config), policy
        keras.utils.set_random_seed(self.config.seed)
        self.batches = ready_batches(self.config)
        lap("data")
        self.model = build(configs.plan(self.config), layers="stock", policy=policy)
        self.model.compile(
            optimizer=keras.optimizers.Adam(1e-3, epsilon=1e-8),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        lap("build")

    def facts(self) -> dict[str, Any]:
        """Return how this contestant runs."""
        return {
            "precision": self.policy,
            "jit_compile": bool(self.model.jit_compile),
            "backend": keras.backend.backend(),
        }

    def run(self, steps: int, untimed: int) -> dict[str, float]:
        """Train for `untimed` steps and then, timed, for `steps`.

        Returns:
            `seconds` and `steps`: of the timed part.
        """
        clock = fit_clock(untimed, untimed + steps)
        self.model.fit(
            self.batches, shuffle=False, epochs=1, steps_per_epoch=clock.total,
            callbacks=[ClockCallback(clock)], verbose=0,
        )  # fmt: skip
        return {"seconds": clock.seconds, "steps": steps}

    def gemm(self, dtype: str, size: int, seconds: float) -> float:
        """Return FLOP/s of large matrix products."""
        return matrix_product_rate(dtype, size, seconds)
