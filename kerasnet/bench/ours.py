"""kerasnet as a contestant: the steps that `kerasnet fit` makes, timed.

Imports Keras and TensorFlow; `backend.load` comes first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import keras
from rich.console import Console

from kerasnet import backend, data, schema
from kerasnet.bench.fitting import fit_clock, matrix_product_rate, ready_batches
from kerasnet.bench.measure import Clock, random_split
from kerasnet.checkpoint import Arrays, Progress
from kerasnet.interruption import Interruption
from kerasnet.progress import Reporter
from kerasnet.recipe import compile_model
from kerasnet.runs import Run
from kerasnet.train import confirmed, make_model
from kerasnet.training import Recorder, Saver, StepCallbacks, Training, TrainingData


class _TimedRecorder(Recorder):
    """The recorder that follows every training, with a clock, and without files at the end."""

    def __init__(self, training: Training, model: keras.Model, clock: Clock) -> None:
        reporter = Reporter(training.console, 1, clock.total, training.batch)
        super().__init__(training, Saver(training, model), reporter)
        self.steps, self.clock = clock.total, clock

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        self.clock.step_ended(batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write no checkpoint: that is a cost of epochs, not of steps."""


class Ours:
    """A run of a configuration on random images, without a run folder.

    Args:
        config: a `schema.RunConfig` as plain values.
        ready: whether batches lie ready in memory, instead of coming from the training pipeline.
        lap: called with the name of each part of the start that is done: `data`, `build`.
    """

    def __init__(
        self, config: Mapping[str, Any], ready: bool = False,
        lap: Callable[[str], None] = lambda part: None,
    ) -> None:  # fmt: skip
        read = schema.RunConfig.model_validate(config)
        settled = confirmed(read)
        inference = schema.Inference(
            mean=[0.5] * read.input[2], std=[0.25] * read.input[2], resize=read.input[:2],
            class_names=[str(i) for i in range(read.classes)],
        )  # fmt: skip
        self.config = read.model_copy(update={"precision": settled, "inference": inference})
        keras.utils.set_random_seed(read.seed)
        self.split = random_split(self.config)
        self.batches = ready_batches(self.config) if ready else None
        lap("data")
        self.model = make_model(self.config)
        self.steps_per_epoch = data.steps_per_epoch(len(self.split), read.recipe.batch_size)
        compile_model(self.model, self.config, self.steps_per_epoch)
        self.model.steps_per_execution = self.config.execution.steps_per_execution
        lap("build")

    def facts(self) -> dict[str, Any]:
        """Return how this contestant runs."""
        return {
            "precision": self.config.precision.resolved,
            "jit_compile": bool(self.model.jit_compile),
            "steps_per_execution": self._at_once,
            "backend": keras.backend.backend(),
            "devices": backend.devices(),
        }

    @property
    def _at_once(self) -> int:
        return int(getattr(self.model, "steps_per_execution", 1) or 1)

    def run(self, steps: int, untimed: int) -> dict[str, float]:
        """Train for `untimed` steps and then, timed, for `steps`.

        Both are rounded up to what the model executes at once.

        Returns:
            `seconds` and `steps`: of the timed part.
        """
        once = self._at_once
        untimed, steps = -(-untimed // once) * once, -(-steps // once) * once
        clock = fit_clock(untimed, untimed + steps)
        recorder = _TimedRecorder(self._training(), self.model, clock)
        self.model.fit(
            self._images(clock.total), shuffle=False, epochs=1, steps_per_epoch=clock.total,
            callbacks=StepCallbacks([recorder], add_history=True, model=self.model), verbose=0,
        )  # fmt: skip
        return {"seconds": clock.seconds, "steps": steps}

    def pipeline_seconds(self, steps: int) -> float:
        """Return how long the pipeline alone takes for a batch, over `steps` of them."""
        batches = iter(self._images(2 * steps))
        # The first ones come out of what was made before anybody asked.
        for _ in range(steps):
            next(batches)
        began = time.perf_counter()
        for _ in range(steps):
            next(batches)
        return (time.perf_counter() - began) / steps

    def build_seconds(self) -> float:
        """Return how long it takes to build the model once more, without compiling it."""
        began = time.perf_counter()
        make_model(self.config)
        return time.perf_counter() - began

    def gemm(self, dtype: str, size: int, seconds: float) -> float:
        """Return FLOP/s of large matrix products."""
        return matrix_product_rate(dtype, size, seconds)

    def _training(self) -> Training:
        # The recorder asks a run's data for nothing but their number, as nothing is written.
        images = TrainingData(cast(Any, None), self.split, None)
        console = Console(file=sys.stderr)
        return Training(
            Run(Path()), self._never_saving(), images, console, Interruption(console), None,
            Progress(), Arrays(),
        )  # fmt: skip

    def _never_saving(self) -> schema.RunConfig:
        never = schema.EveryMinutes(minutes=1e9)
        execution = self.config.execution.model_copy(update={"checkpoint_every": never})
        return self.config.model_copy(update={"execution": execution})

    def _images(self, steps: int) -> Any:
        if self.batches is not None:
            return self.batches
        return self._training().batches(-(-steps // self.steps_per_epoch))
