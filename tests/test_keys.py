"""Key styles: the language of their rules, and the axes of what they name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import run_cli, run_lightly

from kerasnet import keys
from kerasnet.document import DocumentError
from kerasnet.plan import Plan, plan_model
from kerasnet.registry import load_registry

REGISTRY = load_registry()
# What a network needs to have every kind of weight: groups, two flattened positions, a norm there.
GROUPED = """
models:
  grouped:
    input: [8, 6, 4]
    stem:
      - conv: {filters: 6, kernel: 3, stride: 2, groups: 2}
    stages:
      - {block: basic, width: 6}
    head: [flatten, norm, dropout: 0.5, act, {dense: 5}, act, {dense: classes}]
    keys: [mine]
key_styles:
  mine:
    rules:
      stem_conv: stem
      stage{s}_block{b}_conv{i}: blocks.{s-1}.{b-1}.conv{i+1}
      stage*norm{i}: norms.{index}
      head_norm: norm
      head_dense: {key: fc.1, as_conv: true}
      head_logits: fc.2
"""


def planned(name: str, **more) -> Plan:
    return plan_model(REGISTRY.architecture(name), **more)


def names(plan: Plan, style: str) -> dict[str, str]:
    found = keys.slots(plan, REGISTRY.key_styles[style])
    return {slot.ours: key for key, slot in found.by_key.items()}


@pytest.mark.parametrize(
    ("model", "key", "ours"),
    [
        ("resnet50", "layer1.0.weight", "stem_conv/kernel"),
        ("resnet50", "layer2.0.layer.0.0.weight", "stage1_block1_conv1/kernel"),
        ("resnet50", "layer2.2.downsize.1.running_mean", "stage1_block3_shortcut_norm/moving_mean"),
        ("resnet50", "layer2.0.make_equal_channel.0.bias", "stage1_block1_shortcut_conv/bias"),
        ("resnet50", "layer4.5.layer.2.1.running_var", "stage3_block6_norm3/moving_variance"),
        ("resnet50", "fc.weight", "head_logits/kernel"),
        ("vgg16", "features.0.weight", "stage1_block1_conv1/kernel"),
        ("vgg16", "features.28.bias", "stage5_block3_conv1/bias"),
        ("vgg16", "classifier.1.weight", "head_dense/kernel"),
        ("vgg16", "classifier.2.running_mean", "head_norm/moving_mean"),
        ("vgg16", "classifier.5.bias", "head_logits/bias"),
    ],
)
def test_the_published_keys_are_those_of_the_two_networks(model, key, ours):
    plan = planned(model)
    (style,) = plan.keys
    assert names(plan, style)[ours] == key


def test_every_model_that_names_styles_is_mapped_whole():
    named = [name for name in REGISTRY.models if REGISTRY.models[name].keys]
    assert {"resnet50", "vgg16"} <= set(named)
    for name in named:
        plan = planned(name)
        for style in plan.keys.values():
            found = keys.slots(plan, style)
            assert found.problems == ()
            assert {slot.ours for slot in found.by_key.values()} == set(plan.variables())


def test_other_programs_keys():
    resnet = planned("resnet8")
    assert names(resnet, "torchvision_resnet")["stage2_block1_shortcut_conv/kernel"] == (
        "layer2.0.downsample.0.weight"
    )
    kuangliu = names(resnet, "kuangliu_resnet")
    assert kuangliu["stage2_block1_shortcut_conv/kernel"] == "layer2.0.shortcut.0.weight"
    assert kuangliu["head_logits/bias"] == "linear.bias"
    assert kuangliu["stage1_block1_norm2/beta"] == "layer1.0.bn2.bias"


# ---------------------------------------------------------------------------- axes


@pytest.fixture
def grouped(tmp_path) -> Plan:
    file = tmp_path / "grouped.yaml"
    file.write_text(GROUPED)
    return plan_model(load_registry(str(file)).architecture("grouped"))


def test_every_variable_comes_back_bit_identical(grouped):
    rng = np.random.default_rng(0)
    found = keys.slots(grouped, grouped.keys["mine"])
    for slot in found.by_key.values():
        ours = rng.standard_normal(grouped.variables()[slot.ours], "float32")
        there = keys.to_torch(ours, grouped, slot.layer, slot.variable, slot.as_conv)
        assert there.shape == slot.shape
        back = keys.from_torch(there, grouped, slot.layer, slot.variable)
        np.testing.assert_array_equal(back, ours)


def test_a_grouped_kernel_has_the_inputs_of_one_group(grouped):
    found = keys.slots(grouped, grouped.keys["mine"])
    assert found.by_key["stem.weight"].shape == (6, 2, 3, 3)
    kernel = np.arange(3 * 3 * 2 * 6).reshape(3, 3, 2, 6)
    there = keys.to_torch(kernel, grouped, "stem_conv", "kernel")
    assert there[5, 1, 2, 0] == kernel[2, 0, 1, 5]


def test_a_dense_layer_after_a_flattening_is_a_convolution_over_all_of_it(grouped):
    """timm's way: its kernel slides over one position, as large as the image."""
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((4 * 3 * 6, 5))
    images = rng.standard_normal((2, 4, 3, 6))
    as_conv = keys.to_torch(kernel, grouped, "head_dense", "kernel", as_conv=True)
    assert as_conv.shape == (5, 6, 4, 3)
    expected = images.reshape(2, -1) @ kernel
    np.testing.assert_allclose(np.einsum("nhwc,ochw->no", images, as_conv), expected)
    linear = keys.to_torch(kernel, grouped, "head_dense", "kernel")
    flat = images.transpose(0, 3, 1, 2).reshape(2, -1)
    np.testing.assert_allclose(flat @ linear.T, expected)


def test_a_norm_after_a_flattening_has_its_features_moved_too(grouped):
    mean = np.arange(4 * 3 * 6.0)
    there = keys.to_torch(mean, grouped, "head_norm", "moving_mean")
    np.testing.assert_array_equal(there, mean.reshape(4, 3, 6).transpose(2, 0, 1).ravel())


# ---------------------------------------------------------------------------- the registry


def test_a_users_file_brings_a_style_and_extends_another(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "key_styles:\n"
        "  mine:\n    extends: torchvision_resnet\n    rules: {head_logits: classifier}\n"
        "models: {small: {extends: resnet8, keys: [mine, torchvision_resnet]}}\n"
    )
    code, out, _ = run_cli(capsys, "validate", str(file))
    assert (code, out) == (0, f"{file}: valid (1 key style, 1 model)\n")
    plan = plan_model(load_registry(str(file)).architecture("small"))
    assert list(plan.keys) == ["mine", "torchvision_resnet"]
    found = keys.slots(plan, plan.keys["mine"]).by_key
    assert {"conv1.weight", "classifier.weight"} <= found.keys()


def test_a_style_is_shown_without_loading_numpy(tmp_path):
    shown = json.loads(run_lightly("show", "published_resnet", "--json"))
    rule = shown["key_styles"]["published_resnet"]["rules"]["stage{s}_block{b}_shortcut_conv"]
    assert rule["strided"] == "layer{s+1}.{b-1}.downsize.0"
    file = tmp_path / "mine.yaml"
    file.write_text(GROUPED)
    run_lightly("validate", str(file))


BAD_RULES = [
    ("stem_conv: conv{s}", 4, "unknown placeholder {s}"),
    ("stage{s}_block{b}_conv{i}: layer{x-1}", 4, "unknown placeholder {x-1}"),
    ("stage{s}_block{b}_conv{i}: layer{b", 4, "expected a module's name"),
    ("stage{s}_block{b}_conv{i}: {key: a, strided: 'b.{z}'}", 4, "unknown placeholder {z}"),
    ("stem_conv: {key: conv1, stride: b}", 4, "unknown key 'stride'"),
    ("stem_conv: {layer: stem_norm, key: conv1}", 3, "the key 'layer' is the rule's own name"),
    ("stem_conv: 7", 4, "expected text"),
    ("Stem-conv: conv1", 4, "expected a layer's name"),
    ("stage{index}_norm: bn", 4, "a name of its own"),
    ("stage{s}{b}_norm: bn", 4, "a name of its own"),
    ("stage{s}_conv{s}: bn", 4, "a name of its own"),
    ("stage{a}_{b}_{c}_{d}: bn", 4, "at most 3 numbers"),
    ("steam_conv: conv1", 4, "matches no layer that has weights"),
    ("stem_pool: pool", 4, "matches no layer that has weights"),
    ("stage1_2_3_4: pool", 4, "matches no layer that has weights"),
    ("stem*: conv1\n      stem_norm: bn1", 5, "can never match: the rule 'stem*'"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "line", "said"), BAD_RULES, ids=lambda v: str(v)[:40])
def test_a_rule_that_cannot_be_is_told_with_its_place(rules, line, said, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(f"key_styles:\n  mine:\n    rules:\n      {rules}\n")
    code, _, err = run_cli(capsys, "validate", str(file))
    assert code == 2
    assert f"mine.yaml:{line}:" in err
    assert said in err


BAD_STYLES = [
    ("stem_conv: conv1", "has no rule for stem_norm"),
    (
        "stem*: conv1\n      stage*: layer{index}\n      head_logits: fc",
        "the same key 'conv1.bias'",
    ),
    ("stem*: a\n      stage*: b.{index}\n      head_logits: fc.{index-2}", "a number below zero"),
]


@pytest.mark.parametrize(("rules", "said"), BAD_STYLES, ids=["missing", "same", "negative"])
def test_a_style_that_does_not_hold_its_model_is_told_at_the_model(rules, said, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"key_styles:\n  mine:\n    rules:\n      {rules}\n"
        "models:\n  small:\n    extends: resnet8\n    keys: [torchvision_resnet, mine]\n"
    )
    with pytest.raises(DocumentError) as error:
        load_registry(str(file))
    found = [p for p in error.value.problems if said in p.text]
    assert found
    assert found[0].path == ("models", "small", "keys", 1)
    assert found[0].place is not None
    assert "key style 'mine'" in found[0].text


def test_a_style_there_is_not_is_told_with_the_nearest(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("models: {small: {extends: resnet8, keys: [torchvision_resnets]}}\n")
    code, _, err = run_cli(capsys, "validate", str(file))
    assert code == 2
    assert "there is no key style 'torchvision_resnets'. Did you mean 'torchvision_resnet'?" in err
