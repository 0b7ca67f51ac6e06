"""The same numbers as PyTorch: torchvision's layouts, written anew, with the same weights."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import pytest
from agreement import assign, difference

from kerasnet.build import build
from kerasnet.plan import Plan, plan_model
from kerasnet.registry import load_registry

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed; `pip install 'kerasnet[torch]'`",
)

CLASSES = 7
# On the way down, sides are even and odd: 80, 40, 20, 10, 5, 3 and 56, 28, 14, 7, 4, 2.
SHAPES = {
    "resnet18_imagenet": (80, 56, 3),
    "resnet50_imagenet": (80, 56, 3),
    # Its pools divide five times by two, and what is flattened is 2×1×512.
    "vgg16_bn_imagenet": (64, 32, 3),
}
# Names that torchvision's published weights have, and how many there are without the counters
# `num_batches_tracked`.
KNOWN_KEYS = {
    "resnet18_imagenet": (102, "conv1.weight bn1.running_mean layer1.0.conv1.weight "
                          "layer2.0.downsample.0.weight layer4.1.bn2.running_var fc.bias"),
    "resnet50_imagenet": (267, "layer1.0.conv3.weight layer1.0.downsample.1.weight "
                          "layer3.5.bn3.bias layer4.2.conv2.weight fc.weight"),
    "vgg16_bn_imagenet": (84, "features.0.weight features.1.running_mean features.40.bias "
                          "features.41.running_var classifier.0.weight classifier.6.bias"),
}  # fmt: skip


def plan(name: str) -> Plan:
    architecture = load_registry().architecture(name)
    return plan_model(architecture, input_shape=SHAPES[name], classes=CLASSES)


def twin(name: str) -> Any:
    """Return a PyTorch model with random weights and statistics, in evaluation mode."""
    import twins_torchvision as twins

    if name.startswith("vgg"):
        model = twins.Vgg16Bn(SHAPES[name][:2], CLASSES)
    else:
        model = getattr(twins, name.removesuffix("_imagenet"))(CLASSES)
    twins.randomise(model)
    return model.eval()


def arrays_of(state: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {key: value.numpy() for key, value in state.items() if "num_batches" not in key}


def converted(state: dict[str, np.ndarray[Any, Any]], made: Plan) -> dict[str, Any]:
    """Return a state dict's arrays by `layer/variable`, matched by the order of the layers."""
    modules = dict.fromkeys(key.rpartition(".")[0] for key in state)
    layers = [layer for layer in made.layers if layer.params]
    found = {}
    for module, layer in zip(modules, layers, strict=True):
        normed = layer.type == "BatchNormalization"
        names = {"weight": "gamma", "bias": "beta"} if normed else {"weight": "kernel"}
        names |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
        for key in [key for key in state if key.rpartition(".")[0] == module]:
            variable = key.rpartition(".")[2]
            value = moved(state[key], made, layer.inputs[0])
            found[f"{layer.name}/{names.get(variable, variable)}"] = value
    return found


def moved(value: Any, made: Plan, before: str) -> Any:
    """Return a weight with its axes in Keras's order."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if value.ndim == 2 and made.layer(before).type == "Flatten":
        height, width, channels = made.layer(made.layer(before).inputs[0]).output_shape
        apart = value.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
        return apart.reshape(-1, value.shape[0])
    return value.T


@pytest.mark.parametrize("name", SHAPES)
def test_the_twins_have_torchvisions_names(name):
    number, known = KNOWN_KEYS[name]
    state = arrays_of(twin(name).state_dict())
    assert len(state) == number
    assert set(known.split()) <= set(state)
    assert all(re.fullmatch(r"[a-z]+\d*(\.\w+)*\.(weight|bias|running_\w+)", key) for key in state)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("name", SHAPES)
def test_same_weights_same_numbers_as_torchvision(name, policy, tolerance, record_property):
    import torch

    made, theirs = plan(name), twin(name).to(getattr(torch, policy))
    ours = build(made, policy=policy)
    assign(ours, converted(arrays_of(theirs.state_dict()), made))
    x = np.random.default_rng(1).standard_normal((2, *made.input_shape)).astype(policy)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    found = np.asarray(ours(x, training=False))
    assert found.dtype == expected.dtype == policy
    apart = difference(found, expected)
    record_property("maximum difference", apart)
    print(f"\n{name} {policy}: maximum difference {apart:.1e} of max |y|")
    assert apart <= tolerance
    # A comparison of numbers that do not depend on the image would show nothing.
    assert difference(expected[:1], expected[1:]) > 0.01
