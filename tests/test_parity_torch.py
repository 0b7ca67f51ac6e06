"""The same numbers as PyTorch's: the main networks and torchvision's layouts, written anew."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import pytest
from agreement import assign, difference

from kerasnet.build import build
from kerasnet.keys import from_torch, slots
from kerasnet.plan import Plan, plan_model
from kerasnet.registry import load_registry

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed; `pip install '.[torch]'`",
)

CLASSES = 7
# On the way down, sides are even and odd: 80, 40, 20, 10, 5, 3 and 56, 28, 14, 7, 4, 2.
SHAPES = {
    "resnet18_imagenet": (80, 56, 3),
    "resnet50_imagenet": (80, 56, 3),
    # Its pools divide five times by two, and what is flattened is 2×1×512.
    "vgg16_bn_imagenet": (64, 32, 3),
    "resnet50": (32, 32, 3),
    "vgg16": (32, 32, 3),
}
# Names that the published weights have, and how many there are without the counters
# `num_batches_tracked`.
KNOWN_KEYS = {
    "resnet18_imagenet": (102, "conv1.weight bn1.running_mean layer1.0.conv1.weight "
                          "layer2.0.downsample.0.weight layer4.1.bn2.running_var fc.bias"),
    "resnet50_imagenet": (267, "layer1.0.conv3.weight layer1.0.downsample.1.weight "
                          "layer3.5.bn3.bias layer4.2.conv2.weight fc.weight"),
    "vgg16_bn_imagenet": (84, "features.0.weight features.1.running_mean features.40.bias "
                          "features.41.running_var classifier.0.weight classifier.6.bias"),
    "resnet50": (320, "layer1.0.weight layer2.0.layer.0.0.weight fc.weight "
                      "layer2.0.make_equal_channel.0.bias layer2.2.downsize.1.running_mean"),
    "vgg16": (34, "features.0.weight classifier.1.weight classifier.2.running_var"),
}  # fmt: skip


def plan(name: str) -> Plan:
    architecture = load_registry().architecture(name)
    return plan_model(architecture, input_shape=SHAPES[name], classes=CLASSES)


def layout(name: str) -> Any:
    """Return a PyTorch model as it was made."""
    import twins
    import twins_torchvision

    if name in ("resnet50", "vgg16"):
        return {"resnet50": twins.ResNet50, "vgg16": twins.VGG16}[name](CLASSES)
    if name.startswith("vgg"):
        return twins_torchvision.Vgg16Bn(SHAPES[name][:2], CLASSES)
    return getattr(twins_torchvision, name.removesuffix("_imagenet"))(CLASSES)


def twin(name: str) -> Any:
    """Return a PyTorch model with random weights and statistics, in evaluation mode."""
    from twins_torchvision import randomise

    model = layout(name)
    randomise(model)
    return model.eval()


def arrays_of(state: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {key: value.numpy() for key, value in state.items() if "num_batches" not in key}


def converted(state: dict[str, np.ndarray[Any, Any]], made: Plan) -> dict[str, Any]:
    """Return a state dict's arrays by `layer/variable`, by the model's first key style."""
    found = slots(made, next(iter(made.keys.values())))
    assert not found.problems
    assert {key: slot.shape for key, slot in found.by_key.items()} == {
        key: value.shape for key, value in state.items()
    }
    return {
        slot.ours: from_torch(state[key], made, slot.layer, slot.variable)
        for key, slot in found.by_key.items()
    }


@pytest.mark.parametrize("name", SHAPES)
def test_the_twins_have_the_published_names(name):
    import torch

    number, known = KNOWN_KEYS[name]
    # Without memory behind it.
    with torch.device("meta"):
        keys = [key for key in layout(name).state_dict() if "num_batches" not in key]
    assert len(keys) == number
    assert set(known.split()) <= set(keys)
    assert all(re.fullmatch(r"[a-z]+\d*(\.\w+)*\.(weight|bias|running_\w+)", key) for key in keys)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("name", SHAPES)
def test_same_weights_same_numbers(name, policy, tolerance, record_property):
    import torch

    made, theirs = plan(name), twin(name).to(getattr(torch, policy))
    ours = build(made, policy=policy)
    assign(ours, converted(arrays_of(theirs.state_dict()), made))
    # Through thirteen layers without norms, less of the image would be left.
    x = 8 * np.random.default_rng(1).standard_normal((2, *made.input_shape)).astype(policy)
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
