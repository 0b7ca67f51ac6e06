"""Loading TensorFlow and Keras without their start-up lines on the user's screen."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from kerasnet.errors import EnvironmentFaultError


def name() -> str:
    """Return the Keras backend that `load` will choose: `$KERAS_BACKEND`, or TensorFlow."""
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def on_tensorflow() -> bool:
    """Whether the loaded Keras computes with TensorFlow."""
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def load(deterministic: bool = False) -> None:
    """Import TensorFlow and Keras quietly.

    Args:
        deterministic: from now on, for the whole process, every operation gives the same bits each
            time on the same machine. On JAX this works only before its first operation.

    Raises:
        EnvironmentFaultError: they cannot be imported; with everything they printed.
    """
    os.environ["KERAS_BACKEND"] = name()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if deterministic and name() == "jax":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    _import()
    if deterministic:
        _make_deterministic()


def _make_deterministic() -> None:
    import tensorflow as tf

    # The pipelines are TensorFlow's on every backend.
    tf.config.experimental.enable_op_determinism()
    if name() == "torch":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _import() -> None:
    if "tensorflow" in sys.modules and "keras" in sys.modules:
        return
    with tempfile.TemporaryFile("w+b") as log:
        try:
            with _standard_error_into(log.fileno()):
                import keras
                import tensorflow as tf

                tf.config.list_physical_devices()
                keras.backend.backend()
                # Its warnings speak of tracing, which is no user's concern.
                tf.get_logger().setLevel("ERROR")
        # A broken installation fails in many ways; each must show what it printed.
        except Exception as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            raise EnvironmentFaultError(
                f"the backend '{name()}' cannot be loaded: {error}\n{said}\nInstall kerasnet again "
                "in a fresh environment, or set KERAS_BACKEND to tensorflow"
            ) from error


@contextlib.contextmanager
def gradients_released() -> Iterator[None]:
    """Let go of the custom gradients that are made meanwhile.

    TensorFlow registers each for as long as the process lives, and with it the graph that it was
    made in and the variables of that graph: all weights and the optimiser's state.
    """
    if not on_tensorflow():
        yield
        return
    from tensorflow.python.framework import ops

    known = ops.gradient_registry._registry
    before = set(known)
    try:
        yield
    finally:
        for name in set(known) - before:
            del known[name]


def devices() -> list[str]:
    """Return the devices that the loaded backend can use, such as `cpu:0` and `gpu:0`."""
    import keras

    if name() != "torch":
        return [str(device).lower() for device in keras.distribution.list_devices()]
    # Keras has no distribution, and so no list of devices, on PyTorch.
    import torch

    return ["cpu:0", *(f"gpu:{i}" for i in range(torch.cuda.device_count()))]


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def untuned() -> Any:
    """Return tf.data options without autotuning.

    Its thread sleeps between two looks at the pipeline, at last for a minute, and whoever lets go
    of an iterator waits for it to wake up: that was up to 20 s at the end of a training.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


@contextlib.contextmanager
def _standard_error_into(descriptor: int) -> Iterator[None]:
    """Send file descriptor 2 elsewhere: the lines come from C++, which knows no `sys.stderr`."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
