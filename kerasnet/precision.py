"""Which dtype policy a run uses, and where it does not apply."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import get_args

from kerasnet import schema
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.plan import Layer

# bfloat16 has to be this much faster on a CPU: what the measurement leaves out, such as casting the
# weights, costs more in it, and a choice should not hang on noise.
MIN_GAIN = 1.15
REQUESTS = ("auto", *get_args(schema.PrecisionName))


def layer_policy(layer: Layer, policy: str) -> str:
    """Return the dtype policy of one layer under a run's policy.

    The classification head computes in float32: logits in 8 or 11 bits of mantissa cost accuracy
    in the softmax (Micikevicius et al. 2018, section 3). Under `float64` it does not.
    """
    return "float32" if layer.name.endswith("_logits") and policy != "float64" else policy


def resolve(requested: str) -> schema.Precision:
    """Return the policy that a request comes to on this machine, and why.

    `auto` asks NVIDIA's driver for the compute capability rather than TensorFlow, which would take
    seconds to load: 8.0 and above are fast at bfloat16, 7.0 and above at float16. For a CPU,
    `confirm` decides later.

    Raises:
        BadInputError: no such policy.
    """
    if requested not in REQUESTS:
        raise BadInputError(
            f"there is no precision '{requested}'. {did_you_mean(requested, REQUESTS)}"
        )
    if requested != "auto":
        return schema.Precision(requested=requested, resolved=requested, reason="as asked")  # type: ignore[arg-type]
    capability = gpu_compute_capability()
    if capability is None:
        reason = "no GPU found; whether bfloat16 is faster is measured when training begins"
        return schema.Precision(requested="auto", resolved="float32", reason=reason)
    name, number = capability
    if number >= 8.0:
        return schema.Precision(
            requested="auto", resolved="mixed_bfloat16", reason=f"{name} is fast at bfloat16"
        )
    if number >= 7.0:
        return schema.Precision(
            requested="auto", resolved="mixed_float16", reason=f"{name} is fast at float16"
        )
    return schema.Precision(
        requested="auto", resolved="float32", reason=f"{name} has no fast 16-bit units"
    )


def confirm(
    precision: schema.Precision, devices: list[str], gain: Callable[[], float]
) -> schema.Precision:
    """Return the policy to use once the backend has said which devices it can use.

    The driver may know a GPU that the installed TensorFlow was not built for. On a CPU it is
    measured whether bfloat16 is faster: that depends on the CPU and on the model.

    Args:
        precision: what `resolve` returned.
        devices: as `keras.distribution.list_devices()` names them, such as `cpu:0`.
        gain: gives how many times as fast the model trains in mixed_bfloat16; see
            `probe.bfloat16_gain`.
    """
    on_gpu = any(not device.startswith("cpu") for device in devices)
    if precision.requested != "auto" or on_gpu:
        return precision
    found = gain()
    policy: schema.PrecisionName = "mixed_bfloat16" if found >= MIN_GAIN else "float32"
    said = "faster" if found >= MIN_GAIN else "hardly faster" if found > 1 else "not faster"
    reason = f"on this CPU bfloat16 is {said}"
    if found != 1:
        reason += f": {found:.2f} times float32's speed for the model's convolutions"
    return schema.Precision(requested="auto", resolved=policy, reason=reason)


def unused_gpu(devices: list[str]) -> str | None:
    """Return a warning where there is an NVIDIA GPU that the backend cannot use, else None.

    Args:
        devices: those of the backend; see `confirm`.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    found = None if hidden or any(not d.startswith("cpu") for d in devices) else (
        gpu_compute_capability()
    )  # fmt: skip
    if found is None:
        return None
    return (
        f"training on the CPU, although there is a GPU, {found[0]}: the backend that is installed "
        "cannot use it. TensorFlow's libraries for it come with the extra `cuda` (Linux)"
    )


def gpu_name(devices: list[str]) -> str | None:
    """Return the name of the NVIDIA GPU that is used, None where none is.

    Args:
        devices: those of the backend; see `confirm`.
    """
    if all(device.startswith("cpu") for device in devices):
        return None
    found = gpu_compute_capability()
    return found[0] if found else None


def gpu_compute_capability() -> tuple[str, float] | None:
    """Return the first NVIDIA GPU's name and compute capability, or None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        name, _, capability = answer.stdout.splitlines()[0].rpartition(",")
        return name.strip(), float(capability)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None  # a driver that does not answer is no GPU that could be used
