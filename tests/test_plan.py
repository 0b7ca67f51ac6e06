"""Plans against known figures, the formula, and bad sizes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasnet import schema
from kerasnet.document import DocumentError
from kerasnet.plan import check_expectations, out_size, plan_block, plan_model
from kerasnet.registry import load_registry

REGISTRY = load_registry()


def plan(name: str, **more):
    return plan_model(REGISTRY.architecture(name), **more)


@pytest.mark.parametrize(
    ("name", "trainable", "total", "macs"),
    [
        ("resnet50", 14_750_730, 14_795_658, 92.7e6),
        ("vgg16", 14_983_498, 14_984_522, 313.5e6),
        ("resnet8", 78_186, 78_666, 12.5e6),
        ("resnet20", 269_722, 271_098, 40.55e6),
    ],
)
def test_published_counts(name, trainable, total, macs):
    made = plan(name)
    assert made.params == {
        "trainable": trainable, "non_trainable": total - trainable, "total": total,
    }  # fmt: skip
    assert made.macs == pytest.approx(macs, rel=0.0006)


def test_resnet50_shapes_and_wiring():
    made = plan("resnet50")
    assert made.layer("stem_pool").output_shape == (8, 8, 64)
    assert list(made.feature_shapes().values()) == [(4, 4, 256), (2, 2, 512), (2, 2, 1024)]
    assert made.layer("stage1_block1_merge").inputs == (
        "stage1_block1_act3", "stage1_block1_shortcut_act",
    )  # fmt: skip
    strides = [x.stride for x in made.layers if x.name.endswith("_conv1")]
    assert strides == [1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]
    assert made.layer("stage1_block3_shortcut_conv").stride == 2
    assert made.output.name == "head_logits"


def test_vgg16_pools_after_the_2nd_4th_7th_10th_13th_convolution():
    kinds = [x.type for x in plan("vgg16").layers if x.type in ("Conv2D", "MaxPooling2D")]
    convs = [i for i, kind in enumerate(kinds) if kind == "MaxPooling2D"]
    assert [kinds[:i].count("Conv2D") for i in convs] == [2, 4, 7, 10, 13]


@pytest.mark.parametrize("name", REGISTRY.models)
def test_every_expectation_holds_and_every_input_is_an_earlier_layer(name):
    made = plan(name)
    assert check_expectations(REGISTRY.models[name], made) == []
    assert REGISTRY.models[name].expect is not None
    seen: set[str] = set()
    for layer in made.layers:
        assert set(layer.inputs) <= seen
        assert layer.name not in seen
        seen.add(layer.name)
    used = {i for x in made.layers for i in x.inputs}
    assert seen - used == {made.output.name}


@pytest.mark.parametrize("name", REGISTRY.models)
@settings(max_examples=20)
@given(
    height=st.integers(32, 80), width=st.integers(32, 80), channels=st.integers(1, 5),
    classes=st.integers(2, 300),
)  # fmt: skip
def test_any_input_size_and_class_count(name, height, width, channels, classes):
    made = plan(name, input_shape=(height, width, channels), classes=classes)
    assert made.output.output_shape == (classes,)
    for layer in made.layers:
        if layer.kernel is None:
            continue
        before = made.layer(layer.inputs[0]).output_shape
        for n, m in zip(before[:2], layer.output_shape[:2], strict=True):
            assert m == (n + 2 * layer.padding - layer.kernel) // layer.stride + 1


@given(
    n=st.integers(1, 60), kernel=st.integers(1, 9), stride=st.integers(1, 5),
    padding=st.integers(0, 4),
)  # fmt: skip
def test_out_size_counts_the_places_of_the_window(n, kernel, stride, padding):
    places = range(-padding, n + padding - kernel + 1, stride)
    if len(places):
        assert out_size(n, kernel, stride, padding) == len(places)


def test_a_class_count_changes_the_head_only():
    ten, seven = plan("resnet50"), plan("resnet50", classes=7)
    changed = [a.name for a, b in zip(ten.layers, seven.layers, strict=True) if a != b]
    assert changed == ["head_logits"]


def test_too_small_an_input_says_where_the_shape_goes_to_zero():
    with pytest.raises(DocumentError, match=r"stage5_pool slides a 2×2 window .* over 1×1"):
        plan("vgg16", input_shape=(16, 16, 3))


def block(**more) -> schema.Block:
    return schema.Block.model_validate({"convs": [{"kernel": 3, "takes_stride": True}], **more})


def test_pre_activation_projects_its_pre_activation():
    shortcut = {"project": {"from": "preactivation", "norm": False}}
    spec = block(order="norm-act-conv", shortcut=shortcut)
    made = plan_block(spec, (8, 8, 4), width=8, stride=2, norms=REGISTRY.norms)
    names = [x.name for x in made.layers]
    assert names == [
        "input", "block_norm1", "block_act1", "block_conv1", "block_shortcut_conv", "block_merge",
    ]  # fmt: skip
    assert made.layer("block_shortcut_conv").inputs == ("block_act1",)


def test_padded_shortcut_has_no_parameters():
    made = plan_block(block(shortcut="padded"), (8, 8, 4), width=9, stride=2, norms=REGISTRY.norms)
    shortcut = [x for x in made.layers if "shortcut" in x.name]
    assert [x.type for x in shortcut] == ["MaxPooling2D", "ZeroPadding2D"]
    assert [x.params for x in shortcut] == [0, 0]
    assert shortcut[1].options["padding"] == [[0, 0], [2, 3]]


@pytest.mark.parametrize(
    ("when", "stage_blocks"), [("always", [1, 2]), ("change", []), ("first", [1])]
)
def test_projection_where_the_shape_stays(when, stage_blocks):
    architecture = schema.Architecture(
        name="m",
        model=schema.Model.model_validate({
            "input": [8, 8, 4], "stages": [{"block": "b", "width": 4, "repeats": 2}],
            "head": ["global_avg_pool", {"dense": "classes"}],
        }),
        blocks={"b": block(shortcut={"project": {"when": when}})},
        norms=dict(REGISTRY.norms),
    )  # fmt: skip
    made = plan_model(architecture)
    found = [
        i for i in (1, 2) if any(x.name == f"stage1_block{i}_shortcut_conv" for x in made.layers)
    ]
    assert found == stage_blocks


def test_dropout_stands_before_its_convolution():
    made = plan_block(
        schema.Block.model_validate({"convs": [{"kernel": 1}, {"kernel": 3, "dropout": 0.3}]}),
        (4, 4, 4), width=4, norms=REGISTRY.norms,
    )  # fmt: skip
    assert made.layer("block_dropout2").inputs == ("block_act1",)
    assert made.layer("block_conv2").inputs == ("block_dropout2",)


def test_groups_divide_parameters_and_macs():
    whole = plan_block(block(), (8, 8, 8), width=8, norms=REGISTRY.norms)
    spec = {"convs": [{"kernel": 3, "groups": 4, "takes_stride": True}]}
    split = plan_block(block(**spec), (8, 8, 8), width=8, norms=REGISTRY.norms)
    assert whole.macs == 4 * split.macs
    with pytest.raises(DocumentError, match="4 groups divide neither"):
        plan_block(block(**spec), (8, 8, 6), width=8, norms=REGISTRY.norms)


def test_padded_max_pool_needs_values_that_are_not_negative():
    model = {
        "input": [8, 8, 3], "stages": [{"block": "conv3x3", "width": 4}],
        "stem": [{"conv": {"filters": 4, "kernel": 3}}, {"max_pool": {"size": 3, "padding": 1}}],
        "head": ["flatten", {"dense": "classes"}],
    }  # fmt: skip
    architecture = schema.Architecture(
        name="m", model=schema.Model.model_validate(model),
        blocks={"conv3x3": REGISTRY.blocks["conv3x3"]}, norms=dict(REGISTRY.norms),
    )  # fmt: skip
    with pytest.raises(DocumentError, match="stem_conv may be negative"):
        plan_model(architecture)


def with_stem(*steps, **more):
    model = {
        "input": [8, 6, 3], "stages": [{"block": "b", "width": 4}], "stem": list(steps),
        "head": ["global_avg_pool", {"dense": "classes"}], **more,
    }  # fmt: skip
    blocks = {
        "b": block(), "first": block(shortcut={"project": {"when": "first"}}),
        "identity": block(shortcut="identity"),
    }  # fmt: skip
    return plan_model(
        schema.Architecture(
            name="m", model=schema.Model.model_validate(model), blocks=blocks,
            norms=dict(REGISTRY.norms),
        )
    )  # fmt: skip


def test_zeros_may_be_told_to_take_part_in_a_maximum():
    made = with_stem({"conv": {"filters": 4, "kernel": 3}}, {"zero_pad": 2}, {"max_pool": 3})
    assert made.layer("stem_pad").output_shape == (12, 10, 4)
    assert made.layer("stem_pad").params == 0
    assert made.layer("stem_pool").output_shape == (4, 3, 4)
    with pytest.raises(DocumentError, match="needs height × width × channels"):
        with_stem(head=["flatten", {"zero_pad": 1}, {"dense": "classes"}])


def test_a_scale_keeps_the_shape():
    made = with_stem({"scale": 0.125})
    assert made.layer("stem_scale").options == {"scale": 0.125}
    assert made.layer("stem_scale").output_shape == (8, 6, 3)


def test_a_block_that_strides_after_the_first_takes_every_second_pixel():
    stage = {"width": 4, "repeats": 2, "stride": 2, "strided_block": "last"}
    made = with_stem(stages=[{"block": "first", **stage}])
    pool = made.layer("stage1_block2_shortcut_pool")
    assert (pool.kernel, pool.stride, pool.output_shape) == (1, 2, (4, 3, 4))
    assert made.layer("stage1_block2_merge").inputs == ("stage1_block2_act1", pool.name)
    with pytest.raises(DocumentError, match="cannot be added"):
        with_stem({"conv": {"filters": 4, "kernel": 3}}, stages=[{"block": "identity", **stage}])


def test_an_absurd_layer_is_refused():
    model = {
        "input": [64, 64, 3], "stages": [{"block": "conv3x3", "width": 512}],
        "head": ["flatten", {"dense": 65_000}, {"dense": "classes"}],
    }  # fmt: skip
    architecture = schema.Architecture(
        name="m", model=schema.Model.model_validate(model),
        blocks={"conv3x3": REGISTRY.blocks["conv3x3"]}, norms=dict(REGISTRY.norms),
    )  # fmt: skip
    with pytest.raises(DocumentError, match="parameters; the limit is"):
        plan_model(architecture)
