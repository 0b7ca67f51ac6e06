"""Keras's optimisers, updating each variable in one operation on TensorFlow.

Keras writes an update as a dozen small operations for every variable. Their time goes into reading
and writing the same memory again, and in `resnet50` into dispatching thousands of operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import keras

from kerasnet.backend import on_tensorflow


class _FusedDecay:
    """Decoupled weight decay in one pass over a variable; see `schema.WeightDecay`."""

    def _apply_weight_decay(self, variables: Iterable[Any]) -> None:
        if not on_tensorflow() or self.weight_decay is None:  # type: ignore[attr-defined]
            super()._apply_weight_decay(variables)  # type: ignore[misc]
            return
        import tensorflow as tf

        rate = tf.cast(self.learning_rate, tf.float32) * self.weight_decay  # type: ignore[attr-defined]
        for variable in variables:
            if self._use_weight_decay(variable):  # type: ignore[attr-defined]
                value = variable.value
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=value.handle, alpha=rate, delta=value.read_value()
                )


class _RateFactors:
    """Learning rates of some variables that are multiples of the others'."""

    _rate_factors: Mapping[Any, float] = MappingProxyType({})

    def multiply_learning_rate(self, variables: Iterable[Any], factor: float) -> None:
        """Update variables by `factor` times the learning rate (Page 2019).

        Weight decay goes on by the plain rate, and clipping sees the gradients as they are.

        Args:
            variables: of the model; those named before go back to the plain rate.
            factor: 1 changes nothing, not even the last digit.
        """
        made = {self._var_key(v): factor for v in variables} if factor != 1 else {}  # type: ignore[attr-defined]
        # A plain dictionary would become one of TensorFlow's, that keeps its values for saving.
        self._rate_factors = MappingProxyType(made)

    def _rate(self, variable: Any, learning_rate: Any) -> Any:
        """Return a variable's learning rate, a scalar of the plain one's type."""
        factor = self._rate_factors.get(self._var_key(variable))  # type: ignore[attr-defined]
        return learning_rate if factor is None else learning_rate * factor


class FusedAdam(_FusedDecay, _RateFactors, keras.optimizers.Adam):  # type: ignore[misc]
    """Adam (Kingma & Ba 2015), with the state and the arithmetic of `keras.optimizers.Adam`."""

    def _backend_update_step(self, grads: Any, variables: Any, learning_rate: Any) -> None:
        if on_tensorflow():
            import tensorflow as tf

            step = tf.cast(self.iterations + 1, tf.float32)
            # Once for all variables: each constant of its own would have to be compiled.
            self._shared = {
                "beta1_power": tf.pow(self.beta_1, step),
                "beta2_power": tf.pow(self.beta_2, step),
                "lr": tf.cast(learning_rate, tf.float32),
                "beta1": tf.constant(self.beta_1),
                "beta2": tf.constant(self.beta_2),
                "epsilon": tf.constant(self.epsilon),
            }
        super()._backend_update_step(grads, variables, learning_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable."""
        if not on_tensorflow() or self.amsgrad:
            super().update_step(gradient, variable, self._rate(variable, learning_rate))
            return
        import tensorflow as tf

        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            grad=tf.cast(gradient, variable.dtype),
            **self._shared | {"lr": self._rate(variable, self._shared["lr"])},
        )


class FusedSGD(_FusedDecay, _RateFactors, keras.optimizers.SGD):  # type: ignore[misc]
    """SGD with momentum, with the state and the arithmetic of `keras.optimizers.SGD`."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable."""
        rate = self._rate(variable, learning_rate)
        if not on_tensorflow() or not self.momentum:
            super().update_step(gradient, variable, rate)
            return
        import tensorflow as tf

        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(rate, tf.float32),
            grad=tf.cast(gradient, variable.dtype),
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )
