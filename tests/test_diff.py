"""`kerasnet diff`: what differs between two plans, in words and as JSON."""

from __future__ import annotations

import json

import pytest
from commands import run_cli as run

from kerasnet.config import resolve, with_values
from kerasnet.diff import compare, report
from kerasnet.document import parse, to_yaml
from kerasnet.plan import plan_model
from kerasnet.registry import load_registry, overlay

REGISTRY = load_registry()


def planned(model: str, more: str = "") -> object:
    """Plan resnet8 with fields of a child laid over it."""
    text = f"models: {{{model}: {{extends: resnet8, {more}}}}}\n"
    return plan_model(overlay(parse(text.encode(), "mine.yaml")).architecture(model))


@pytest.mark.parametrize("name", list(REGISTRY.models))
def test_a_plan_does_not_differ_from_itself(name):
    plan = plan_model(REGISTRY.architecture(name))
    found = compare(plan, plan)
    assert (found.changed, found.only_a, found.only_b) == ({}, [], [])
    assert report(found) == f"no difference between the plans of {name} and {name}"


def test_a_field_of_every_kind_that_changes_is_named():
    a = planned("a", "stem: [conv: {filters: 16, kernel: 3}, norm, act, max_pool: 2]")
    b = planned(
        "b",
        "stem: [conv: {filters: 16, kernel: 5, stride: 2, bias: false}, norm, act, avg_pool: 2]",
    )
    found = compare(a, b)
    assert (found.only_a, found.only_b) == ([], [])
    assert found.changed["stem_conv"] == {
        "output_shape": ([32, 32, 16], [16, 16, 16]),
        "kernel": (3, 5),
        "stride": (1, 2),
        "padding": (1, 2),
        "params": (448, 1200),
        "use_bias": (True, False),
    }
    assert found.changed["stem_pool"]["type"] == ("MaxPooling2D", "AveragePooling2D")
    said = report(found)
    assert "  stem_conv\n      output_shape: 32×32×16 → 16×16×16\n      kernel: 3 → 5\n" in said
    assert "      use_bias: true → false" in said


def test_layers_with_the_same_change_share_a_paragraph():
    a, b = planned("a"), planned("b", "defaults: {act: gelu}")
    found = compare(a, b)
    changed = [layer.name for layer in a.layers if layer.options.get("activation") == "relu"]
    assert list(found.changed) == [n for n in changed if "merge" not in n]
    assert report(found).count("activation: relu → gelu") == 1


def test_what_only_one_has_is_named_by_whole_blocks_and_stages():
    a = planned("a")
    stages = ", ".join(
        f"{{block: basic_plain_projection, width: {w}, repeats: {n}, stride: {s}}}"
        for w, n, s in ((16, 2, 1), (32, 1, 2), (64, 1, 2), (64, 1, 2))
    )
    b = planned("b", f"stages: [{stages}]")
    found = compare(a, b)
    added = [x for x in b.layers if x.stage == "stage4" or "stage1_block2" in x.name]
    assert found.only_b == added
    assert compare(b, a).only_a == added
    assert "only in b: 15 layers\n  stage1_block2 (7 layers), stage4 (8 layers)" in report(found)
    assert found.changed["stage2_block1_conv1"]["inputs"] == (
        ["stage1_block1_merge_act"],
        ["stage1_block2_merge_act"],
    )


def test_json_and_text_tell_the_same(capsys):
    code, out, _ = run(capsys, "diff", "resnet8", "resnet20", "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found) == ["a", "b", "totals", "only_a", "only_b", "changed"]
    assert found["totals"] == {
        "params": [78_666, 271_098],
        "trainable": [78_186, 269_722],
        "macs": [12_501_632, 40_551_040],
        "layers": [29, 73],
    }
    assert found["only_a"] == ["stage2_block1_shortcut_conv", "stage3_block1_shortcut_conv"]
    assert {"name": "stem_conv", "fields": {"params": [448, 432], "use_bias": [True, False]}} in (
        found["changed"]
    )
    _, text, _ = run(capsys, "diff", "resnet8", "resnet20")
    assert f"only in resnet20: {len(found['only_b'])} layers" in text
    assert f"changed, resnet8 → resnet20: {len(found['changed'])} layers" in text


@pytest.mark.parametrize("names", [("resnet50", "vgg16"), ("resnet50", "resnet20")], ids=" ".join)
def test_it_fits_eighty_columns(names, capsys):
    _, out, _ = run(capsys, "diff", *names)
    assert max(map(len, out.splitlines())) <= 80
    assert "(13 layers)" in out  # no break inside


def test_two_blocks_are_compared_layer_by_layer(capsys):
    _, out, _ = run(capsys, "diff", "basic", "bottleneck_v1", "--json")
    found = json.loads(out)
    assert (found["a"], found["b"]) == ("basic", "bottleneck_v1")
    assert found["only_a"] == []
    assert found["changed"][0]["fields"]["kernel"] == [3, 1]


def test_a_run_is_compared_by_its_configuration(capsys, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = with_values(resolve("resnet8", dataset="digits"), {"input": [32, 32, 1]})
    (folder / "config.yaml").write_text(to_yaml(config))
    for name in (folder, folder / "config.yaml"):
        code, out, _ = run(capsys, "diff", "resnet8", str(name), "--json")
        found = json.loads(out)
        assert code == 0
        assert [change["name"] for change in found["changed"]] == ["input", "stem_conv"]
        assert found["changed"][0]["fields"] == {"output_shape": [[32, 32, 3], [32, 32, 1]]}
    _, out, _ = run(capsys, "diff", "resnet8", str(folder), "--input-size", "64x64x3")
    assert out.startswith("no difference between the plans of resnet8 and …")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet8", "wrn16_5"], "Did you mean 'wrn16_4'?"),
        (["resnet8", "."], "config.yaml: cannot be read"),
        (["resnet8", "resnet20", "--input-size", "x"], "--input-size takes"),
        (["resnet8", "vgg16", "--input-size", "8"], "goes to zero"),
        (["resnet8"], "B"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_exit_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "diff", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
