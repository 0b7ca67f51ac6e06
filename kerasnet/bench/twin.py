"""The same nets in PyTorch, made from the same plans; and as a contestant.

Imports PyTorch, which kerasnet does not need otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from kerasnet import config as configs
from kerasnet import schema
from kerasnet.backend import cores
from kerasnet.bench.measure import Clock, highest_rate, ready_arrays
from kerasnet.keys import TORCH_NAMES, to_torch
from kerasnet.plan import Layer, Plan

# What may be overwritten by the activation after it: none of these needs its output for gradients.
_OVERWRITABLE = ("Conv2D", "BatchNormalization", "Dense", "Add")
_ACTIVATIONS: Mapping[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": lambda inplace: nn.GELU(),
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "elu": lambda inplace: nn.ELU(),
    "tanh": lambda inplace: nn.Tanh(),
    "sigmoid": lambda inplace: nn.Sigmoid(),
}


class TwinModel(nn.Module):  # type: ignore[misc]
    """A plan as a PyTorch module.

    Takes normalised images (batch, channels, height, width) and returns logits (batch, classes).
    Submodules have the plan's layer names. Weights start as PyTorch starts them.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.parts = nn.ModuleDict({x.name: _module(x, plan) for x in plan.layers[1:]})
        # A tensor is let go after its last use, as in a module written by hand.
        self._last = {name: layer.name for layer in plan.layers for name in layer.inputs}

    def forward(self, images: Any) -> Any:
        """Walk the plan's wiring."""
        tensors = {"input": images}
        for layer in self.plan.layers[1:]:
            inputs = [tensors[name] for name in layer.inputs]
            part = self.parts[layer.name]
            tensors[layer.name] = inputs[0] + inputs[1] if layer.type == "Add" else part(*inputs)
            del inputs
            for name in layer.inputs:
                if self._last[name] == layer.name:
                    tensors.pop(name, None)
        return tensors[self.plan.output.name]


class _Pad(nn.Module):  # type: ignore[misc]
    """Pads with zeros: height and width, or, for Keras with channels first, width and channels."""

    def __init__(self, padding: list[list[int]], data_format: str) -> None:
        super().__init__()
        first, second = padding
        on_channels = data_format == "channels_first"
        # PyTorch counts axes from the last: width, height, channels.
        sides = (first, [0, 0], second) if on_channels else (second, first)
        self.widths = tuple(amount for side in sides for amount in side)

    def forward(self, x: Any) -> Any:
        return nn.functional.pad(x, self.widths)


class _Scale(nn.Module):  # type: ignore[misc]
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Any) -> Any:
        return x * self.factor


def _module(layer: Layer, plan: Plan) -> nn.Module:
    """Return the module that computes what a layer of a plan does."""
    options, out = layer.options, layer.output_shape[-1]
    size = (layer.kernel, layer.stride, layer.padding)
    channels = plan.layer(layer.inputs[0]).output_shape[-1]
    makers: dict[str, Callable[[], nn.Module]] = {
        "Conv2D": lambda: nn.Conv2d(
            channels, out, *size, groups=options["groups"], bias=options["use_bias"]
        ),
        "BatchNormalization": lambda: _norm(layer),
        "Activation": lambda: _ACTIVATIONS[options["activation"]](inplace=_free(layer, plan)),
        "Dropout": lambda: nn.Dropout(options["rate"]),
        "MaxPooling2D": lambda: nn.MaxPool2d(*size),
        "AveragePooling2D": lambda: nn.AvgPool2d(*size),
        "GlobalAveragePooling2D": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "GlobalMaxPooling2D": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        "Flatten": nn.Flatten,
        "Dense": lambda: nn.Linear(channels, out, bias=options["use_bias"]),
        "ZeroPadding2D": lambda: _Pad(options["padding"], options["data_format"]),
        "Rescaling": lambda: _Scale(options["scale"]),
        "Add": nn.Identity,
    }
    return makers[layer.type]()


def _norm(layer: Layer) -> nn.Module:
    kind = nn.BatchNorm2d if len(layer.output_shape) == 3 else nn.BatchNorm1d
    options, channels = layer.options, layer.output_shape[-1]
    affine = options["center"] or options["scale"]
    made = kind(channels, options["epsilon"], 1 - options["momentum"], affine)
    if affine:
        made.weight.requires_grad_(options["scale"])
        made.bias.requires_grad_(options["center"])
    return made


def _free(layer: Layer, plan: Plan) -> bool:
    """Return whether an activation may write over its input, as hand-written nets do."""
    (name,) = layer.inputs
    users = sum(x.inputs.count(name) for x in plan.layers)
    return users == 1 and plan.layer(name).type in _OVERWRITABLE


# ---------------------------------------------------------------------------- weights


def copy_weights(model: TwinModel, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Set a twin's weights from a Keras model's.

    Args:
        model: the twin.
        arrays: by `layer/variable`, as `Plan.variables` names and shapes them.

    Raises:
        ValueError: an array is missing or left over.
    """
    if arrays.keys() != model.plan.variables().keys():
        raise ValueError("the weights are not those of the plan")
    with torch.no_grad():
        for key, array in arrays.items():
            name, _, variable = key.partition("/")
            moved = torch.from_numpy(to_torch(array, model.plan, name, variable))
            getattr(model.parts[name], TORCH_NAMES[variable]).copy_(moved)


# ---------------------------------------------------------------------------- the contestant


class Twin:
    """The training loop that PyTorch's users write, on batches that lie ready on the device.

    Args:
        config: a `schema.RunConfig` as plain values.
        channels_last: keep images and weights in the layout NHWC.
        bfloat16: compute under `torch.autocast`.
        fused: use Adam's fused form, where the device has it.
        lap: called with the name of each part of the start that is done: `data`, `build`.
    """

    def __init__(
        self, config: Mapping[str, Any], channels_last: bool, bfloat16: bool, fused: bool,
        lap: Callable[[str], None] = lambda part: None,
    ) -> None:  # fmt: skip
        read = schema.RunConfig.model_validate(config)
        torch.manual_seed(read.seed)
        torch.set_num_threads(cores())
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.bfloat16 = bfloat16
        images, labels = ready_arrays(read)
        self.batches = [
            (self._placed(x), torch.from_numpy(y).long().to(self.device))
            for x, y in zip(images, labels, strict=True)
        ]
        lap("data")
        model = TwinModel(configs.plan(read)).to(self.device)
        self.model = model.to(memory_format=self.layout).train()
        self.optimizer, self.fused = self._adam(fused)
        lap("build")

    def facts(self) -> dict[str, Any]:
        """Return how this contestant runs."""
        return {
            "precision": "mixed_bfloat16" if self.bfloat16 else "float32",
            "fused_adam": self.fused,
            "device": self.device,
            "threads": torch.get_num_threads(),
        }

    def run(self, steps: int, untimed: int) -> dict[str, float]:
        """Train for `untimed` steps and then, timed, for `steps`.

        Returns:
            `seconds` and `steps`: of the timed part.
        """
        clock = Clock(untimed, untimed + steps, lambda _: self._wait())
        for done in range(1, clock.total + 1):
            self._step(*self.batches[done % len(self.batches)])
            clock.step_ended(done)
        return {"seconds": clock.seconds, "steps": steps}

    def gemm(self, dtype: str, size: int, seconds: float) -> float:
        """Return FLOP/s of square matrix products, 2·size³ operations each."""
        kind = getattr(torch, dtype)
        a, b = (torch.randn(size, size, device=self.device).to(kind) for _ in range(2))

        def run(times: int) -> float:
            began = time.perf_counter()
            for _ in range(times):
                torch.mm(a, b)
            self._wait()
            return time.perf_counter() - began

        return highest_rate(run, 2.0 * size**3, seconds)

    def _placed(self, images: Any) -> Any:
        moved = torch.from_numpy(images).permute(0, 3, 1, 2)
        return moved.to(self.device).contiguous(memory_format=self.layout)

    def _adam(self, fused: bool) -> tuple[Any, bool]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if fused:
            try:
                return torch.optim.Adam(parameters, 1e-3, eps=1e-8, fused=True), True
            except RuntimeError:
                pass  # not every device has it in every version
        return torch.optim.Adam(parameters, 1e-3, eps=1e-8), False

    def _step(self, images: Any, labels: Any) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
