"""Which precision trains a model fastest on this machine's CPU, by trying its convolutions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from kerasnet import __version__
from kerasnet.errors import EnvironmentFaultError
from kerasnet.files import cache_folder, write_atomically
from kerasnet.plan import Layer, Plan, Shape

Groups = list[tuple[list[Layer], int]]
# As Linux names the instructions of x86 and of ARM.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_POLICIES = ("float32", "mixed_bfloat16")

# Convolutions that make up this share of the multiplications stand for all.
_SHARE = 0.75
_ROUNDS = 5


def bfloat16_gain(plan: Plan, batch_size: int) -> float:
    """Return how many times as fast a model's convolutions train in mixed_bfloat16.

    Those of a few shapes that make up most of the multiplications are run forward and backward,
    with the norm and activation that follow. What was found is kept in the user's cache folder, so
    that a machine gives the same answer each time.

    Args:
        plan: the model's.
        batch_size: images in a step.

    Returns:
        Seconds in float32 divided by seconds in mixed_bfloat16; 1 where the CPU has no
        instructions for bfloat16, for software is always slower.
    """
    if not _has_bfloat16():
        return 1.0
    groups = _groups(plan)
    file = cache_folder() / f"precision-{_key(plan, groups, batch_size)}.json"
    try:
        return float(json.loads(file.read_bytes())["gain"])
    except (OSError, ValueError, KeyError, TypeError):
        gain = _measure(plan, groups, batch_size)
    # Where it cannot be kept, it is measured again.
    with contextlib.suppress(EnvironmentFaultError):
        write_atomically(file, json.dumps({"gain": gain}).encode())
    return gain


def _has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; True where it does not say."""
    flags = _cpu_line("flags", "Features")
    return flags is None or not _BFLOAT16.isdisjoint(flags.split())


def _cpu_line(*starts: str) -> str | None:
    """Return what Linux says of the first core, None on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next((line for line in lines if line.startswith(starts)), "")
    except OSError:
        return None


def _groups(plan: Plan) -> Groups:
    """Return convolutions of different shapes and how often each occurs, the costliest first.

    Each comes with the layers after it that keep its shape: a norm and an activation.
    """
    counts: Counter[Any] = Counter()
    costs: Counter[Any] = Counter()
    first: dict[Any, Layer] = {}
    for layer in plan.layers:
        if layer.type == "Conv2D":
            key = (*_shapes(plan, layer), layer.kernel, layer.stride, layer.padding)
            counts[key] += 1
            costs[key] += layer.macs
            first.setdefault(key, layer)
    chosen: Groups = []
    seen = 0
    for key, cost in costs.most_common():
        if seen >= _SHARE * sum(costs.values()):
            break
        chosen.append((_chain(plan, first[key]), counts[key]))
        seen += cost
    return chosen


def _shapes(plan: Plan, layer: Layer) -> tuple[Shape, Shape]:
    return plan.layer(layer.inputs[0]).output_shape, layer.output_shape


def _chain(plan: Plan, layer: Layer) -> list[Layer]:
    users = [other for other in plan.layers if layer.name in other.inputs]
    if len(users) != 1 or users[0].inputs != (layer.name,):
        return [layer]
    same = users[0].type != "Conv2D" and users[0].output_shape == layer.output_shape
    return [layer, *_chain(plan, users[0])] if same else [layer]


def _key(plan: Plan, groups: Groups, batch_size: int) -> str:
    import tensorflow as tf

    kinds = [
        [(*_shapes(plan, x), x.type, x.kernel, x.stride) for x in chain] for chain, _ in groups
    ]
    machine = [platform.machine(), _cpu_line("model name"), os.cpu_count()]
    counts = [count for _, count in groups]
    what = [__version__, tf.__version__, machine, batch_size, kinds, counts]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _measure(plan: Plan, groups: Groups, batch_size: int) -> float:
    seconds = dict.fromkeys(_POLICIES, 0.0)
    for chain, count in groups:
        shape = _shapes(plan, chain[0])[0]
        steps = {policy: _step(chain, (batch_size, *shape), policy) for policy in _POLICIES}
        best = dict.fromkeys(_POLICIES, math.inf)
        # Taking turns, so that other work on the machine falls on both.
        for _ in range(_ROUNDS):
            for policy, step in steps.items():
                began = time.perf_counter()
                step()
                best[policy] = min(best[policy], time.perf_counter() - began)
        for policy in _POLICIES:
            seconds[policy] += count * best[policy]
    return seconds["float32"] / seconds["mixed_bfloat16"]


def _step(chain: list[Layer], shape: Shape, policy: str) -> Callable[[], Any]:
    """Return a function that runs layers forward and backward, which it has done once."""
    import keras
    import tensorflow as tf

    from kerasnet.build import apply

    x = tf.cast(tf.random.stateless_normal(shape, [0, 0]), policy.removeprefix("mixed_"))
    tensors = {chain[0].inputs[0]: keras.Input(shape[1:], dtype=x.dtype.name)}
    before = tensors[chain[0].inputs[0]]
    apply(chain, tensors, layers="fast", policy=policy, seed=0)
    model = keras.Model(before, tensors[chain[-1].name])

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def step() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
        return tape.gradient(y, [x, *model.trainable_variables])

    step()
    made: Callable[[], Any] = step
    return made
