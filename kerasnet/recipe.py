"""From a recipe to what Keras compiles a model with: schedule, loss, optimiser and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from kerasnet import schema
from kerasnet.optimizers import FusedAdam, FusedSGD

# ---------------------------------------------------------------------------- schedule and loss


@keras.saving.register_keras_serializable("kerasnet")
class RecipeSchedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of a recipe's schedule at an optimiser step.

    Args:
        learning_rate: the recipe's learning rate, the schedule's highest.
        spec: a schedule of `kerasnet.schema`, as plain values.
        steps_per_epoch: optimiser steps in one epoch.
        horizon: epochs the schedule spans; after it, the rate stays at its last value.
    """

    def __init__(
        self, learning_rate: float, spec: dict[str, Any], steps_per_epoch: int, horizon: int
    ) -> None:
        self.learning_rate, self.spec = learning_rate, dict(spec)
        self.steps_per_epoch, self.horizon = steps_per_epoch, horizon

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of the update that follows `step` updates; float32 scalar."""
        ops, spec = keras.ops, self.spec
        step = ops.cast(step, "float32")
        total = float(self.horizon * self.steps_per_epoch)
        unit = total if spec.get("unit") == "fraction" else float(self.steps_per_epoch)
        if spec["type"] == "constant":
            scale = ops.ones_like(step)
        elif spec["type"] == "step":
            scale = spec["factor"] ** ops.floor(step / (spec["every"] * unit))
        elif spec["type"] == "cosine":
            warmup = min(spec["warmup"] * unit, total)
            done = ops.clip((step - warmup) / max(1.0, total - warmup), 0.0, 1.0)
            down = spec["final"] + (1 - spec["final"]) * 0.5 * (1 + ops.cos(math.pi * done))
            scale = ops.where(step < warmup, (step + 1) / max(1.0, warmup), down)
        else:
            peak = min(spec["peak"] * unit, total)
            up = spec["initial"] + (1 - spec["initial"]) * step / max(1.0, peak)
            done = ops.clip((step - peak) / max(1.0, total - peak), 0.0, 1.0)
            scale = ops.where(step < peak, up, 1 + (spec["final"] - 1) * done)
        return self.learning_rate * scale

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "spec": self.spec,
            "steps_per_epoch": self.steps_per_epoch,
            "horizon": self.horizon,
        }


def _are_shares(y_true: Any, y_pred: Any) -> bool:
    """Whether targets are shares of the classes, not labels: training may mix, validation not."""
    return len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == y_pred.shape[-1]


@keras.saving.register_keras_serializable("kerasnet")
class SmoothedCrossentropy(keras.losses.Loss):  # type: ignore[misc]
    """Cross-entropy of float logits (batch, classes) and integer labels (batch,).

    The target is 1 - `label_smoothing` for the label plus `label_smoothing` spread evenly over all
    classes (Szegedy et al. 2016, section 7). In place of labels it takes each class's share, float
    (batch, classes), which mixing gives; it is smoothed likewise.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "loss", **more: Any) -> None:
        super().__init__(name=name, **more)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each example, (batch,)."""
        ops = keras.ops
        logits = ops.cast(y_pred, "float32")
        crossentropy = (
            ops.categorical_crossentropy if _are_shares(y_true, y_pred)
            else ops.sparse_categorical_crossentropy
        )  # fmt: skip
        hard = crossentropy(y_true, logits, from_logits=True)
        if not self.label_smoothing:
            return hard
        even = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        return (1 - self.label_smoothing) * hard + self.label_smoothing * even

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


class Accuracy(keras.metrics.SparseCategoricalAccuracy):  # type: ignore[misc]
    """The fraction of examples whose largest logit is that of the label.

    Where a target is shares of the classes, its label is the class of the largest share.
    """

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Count a batch: labels (batch,) or shares (batch, classes), and logits."""
        if _are_shares(y_true, y_pred):
            y_true = keras.ops.argmax(y_true, axis=-1)
        return super().update_state(y_true, y_pred, sample_weight)


class FirstNonfiniteStep(keras.metrics.Metric):  # type: ignore[misc]
    """The first step since the last reset whose loss was not finite, from 1; 0 while there is none.

    It is kept on the device, so that it names the step also where several are run at once.
    """

    def __init__(self, loss: SmoothedCrossentropy, name: str = "first_nonfinite_step") -> None:
        # Whole numbers up to 2**24 are exact, and a GPU keeps no integer variables.
        super().__init__(name=name, dtype="float32")
        self.loss = loss
        self.steps = self.add_variable((), "zeros", name="steps")
        self.first = self.add_variable((), "zeros", name="first")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Look at a batch: what the loss takes."""
        ops = keras.ops
        steps, first = ops.convert_to_tensor(self.steps) + 1, ops.convert_to_tensor(self.first)
        fine = ops.isfinite(self.loss(y_true, y_pred))
        self.steps.assign(steps)
        self.first.assign(ops.where(ops.logical_or(fine, first > 0), first, steps))

    def result(self) -> Any:
        """Return the step, a float32 scalar."""
        return keras.ops.convert_to_tensor(self.first)


class BatchLoss(keras.metrics.Metric):  # type: ignore[misc]
    """The loss of the last batch alone; the one that Keras reports is an epoch's running mean."""

    def __init__(self, loss: SmoothedCrossentropy, name: str = "batch_loss") -> None:
        super().__init__(name=name, dtype="float32")
        self.loss = loss
        self.last = self.add_variable((), "zeros", name="last")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Look at a batch: what the loss takes."""
        self.last.assign(self.loss(y_true, y_pred))

    def result(self) -> Any:
        """Return the loss, a float32 scalar."""
        return keras.ops.convert_to_tensor(self.last)


def make_optimizer(
    recipe: schema.Recipe,
    steps_per_epoch: int,
    horizon: int,
    variables: Sequence[Any],
    rate_scale: float = 1.0,
    rate: Any = None,
) -> Any:
    """Return a recipe's Keras optimiser.

    Args:
        recipe: optimiser, schedule, learning-rate factors, decay, clipping and averaging.
        steps_per_epoch: optimiser steps in one epoch.
        horizon: epochs the schedule spans.
        variables: the model's trainable variables, of which some are not decayed, and some have a
            learning rate of their own.
        rate_scale: a factor of every learning rate, below 1 after a run was rolled back.
        rate: a Keras schedule in place of the recipe's.
    """
    spec = recipe.optimizer
    if rate is None:
        highest, schedule = spec.learning_rate * rate_scale, recipe.schedule.model_dump(mode="json")
        rate = RecipeSchedule(highest, schedule, steps_per_epoch, horizon)
    decay = recipe.weight_decay.rate if recipe.weight_decay else 0.0
    common = {
        "learning_rate": rate,
        "weight_decay": decay or None,
        "global_clipnorm": recipe.gradient_clip,
        "use_ema": recipe.ema is not None,
        "ema_momentum": recipe.ema.decay if recipe.ema else 0.99,
    }
    if isinstance(spec, schema.Sgd):
        made = FusedSGD(momentum=spec.momentum, nesterov=spec.nesterov, name="sgd", **common)
    else:
        made = FusedAdam(
            beta_1=spec.beta_1, beta_2=spec.beta_2, epsilon=spec.epsilon, name="adam", **common
        )
    if decay and recipe.weight_decay and recipe.weight_decay.on == "kernels":
        kept = [v for v in variables if v.name != "kernel"]
        if kept:
            made.exclude_from_weight_decay(var_list=kept)
    made.multiply_learning_rate(
        [v for v in variables if v.name == "beta"], recipe.learning_rate_factors.norm_bias
    )
    # `Model.fit` would end by writing the averages over the weights, from which a run could not
    # go on.
    made.finalize_variable_values = lambda variables: None
    return made


def inner(optimizer: Any) -> Any:
    """Return the optimiser that loss scaling may be wrapped around."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def compile_model(
    model: keras.Model, config: schema.RunConfig, steps_per_epoch: int, rate_scale: float = 1.0,
    rate: Any = None,
) -> None:  # fmt: skip
    """Compile a model for a run's recipe and precision, with all of the optimiser's variables.

    Args:
        model: one whose outputs are logits.
        config: the run's.
        steps_per_epoch: optimiser steps in one epoch.
        rate_scale: a factor of every learning rate of the recipe's schedule.
        rate: a Keras schedule in place of the recipe's; each batch's own loss is then reported
            too, as `batch_loss`.
    """
    optimizer = make_optimizer(
        config.recipe, steps_per_epoch, config.horizon, model.trainable_variables, rate_scale, rate
    )
    if config.precision.resolved == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = SmoothedCrossentropy(config.recipe.label_smoothing)
    metrics = [Accuracy(name="accuracy"), FirstNonfiniteStep(loss)]
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=metrics if rate is None else [*metrics, BatchLoss(loss)],
        jit_compile=config.execution.jit_compile,
    )
    optimizer.build(model.trainable_variables)
