"""Which precision is chosen where."""

from __future__ import annotations

import pytest

from kerasnet import precision, probe
from kerasnet.errors import BadInputError
from kerasnet.plan import plan_model
from kerasnet.registry import load_registry

REGISTRY = load_registry()


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put a driver's query tool with a given answer on the path."""

    def install(script: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


@pytest.mark.parametrize(
    ("script", "policy", "said"),
    [
        ("echo 'NVIDIA H200, 9.0'", "mixed_bfloat16", "NVIDIA H200 is fast at bfloat16"),
        ("echo 'NVIDIA A100-SXM4-40GB, 8.0'", "mixed_bfloat16", "bfloat16"),
        ("echo 'Tesla V100, 7.0'", "mixed_float16", "Tesla V100 is fast at float16"),
        ("echo 'Tesla P4, 6.1'", "float32", "no fast 16-bit units"),
        ("exit 9", "float32", "no GPU found"),
        ("echo garbage", "float32", "no GPU found"),
        ("true", "float32", "no GPU found"),
    ],
)
def test_auto_follows_the_first_gpu(script, policy, said, driver):
    driver(script)
    found = precision.resolve("auto")
    assert (found.requested, found.resolved) == ("auto", policy)
    assert said in found.reason


def test_auto_is_float32_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert precision.resolve("auto").resolved == "float32"


@pytest.mark.parametrize(
    ("gain", "policy", "said"),
    [
        (1.8, "mixed_bfloat16", "bfloat16 is faster: 1.80 times"),
        (1.15, "mixed_bfloat16", "faster: 1.15 times"),
        (1.1, "float32", "hardly faster: 1.10 times"),
        (0.7, "float32", "not faster: 0.70 times"),
        (1.0, "float32", "bfloat16 is not faster"),
    ],
)
def test_on_a_cpu_auto_is_what_measures_faster(gain, policy, said, driver):
    driver("exit 9")
    found = precision.confirm(precision.resolve("auto"), ["cpu:0"], lambda: gain)
    assert (found.requested, found.resolved) == ("auto", policy)
    assert said in found.reason


def test_a_gpu_that_the_backend_cannot_use_counts_for_nothing(driver):
    driver("echo 'Tesla V100, 7.0'")
    auto = precision.resolve("auto")
    assert precision.confirm(auto, ["cpu:0"], lambda: 1.0).resolved == "float32"
    assert precision.confirm(auto, ["cpu:0", "gpu:0"], lambda: 1.0) == auto


def test_a_gpu_that_the_backend_cannot_use_is_named(driver, monkeypatch):
    driver("echo 'Tesla V100, 7.0'")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said = precision.unused_gpu(["cpu:0"])
    assert "although there is a GPU, Tesla V100" in said
    assert precision.unused_gpu(["cpu:0", "gpu:0"]) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert precision.unused_gpu(["cpu:0"]) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver("exit 9")
    assert precision.unused_gpu(["cpu:0"]) is None


def test_what_is_asked_for_is_not_measured():
    def gain() -> float:
        raise AssertionError

    asked = precision.resolve("mixed_bfloat16")
    assert precision.confirm(asked, ["cpu:0"], gain) == asked


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(BadInputError, match="Did you mean 'mixed_bfloat16'"):
        precision.resolve("mixed_bfloat61")


# ---------------------------------------------------------------------------- measuring


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Let measuring give 1.5, count how often it is done, and keep answers in a new folder."""
    calls = []

    def measure(plan, groups, batch):
        calls.append((plan.name, batch))
        return 1.5

    monkeypatch.setattr(probe, "_measure", measure)
    monkeypatch.setattr(probe, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(probe, "cache_folder", lambda: tmp_path / "cache")
    return calls


def test_a_machine_is_measured_once_for_a_model_and_batch_size(measured):
    one, other = (plan_model(REGISTRY.architecture(name)) for name in ("resnet8", "resnet20"))
    assert [probe.bfloat16_gain(one, 32) for _ in range(3)] == [1.5] * 3
    assert probe.bfloat16_gain(one, 64) == probe.bfloat16_gain(other, 32) == 1.5
    assert measured == [("resnet8", 32), ("resnet8", 64), ("resnet20", 32)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"gain": "fast"}', '{"gain": null}'])
def test_a_damaged_answer_is_measured_again(content, measured, tmp_path):
    made = plan_model(REGISTRY.architecture("resnet8"))
    probe.bfloat16_gain(made, 32)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(content)
    assert probe.bfloat16_gain(made, 32) == 1.5
    assert len(measured) == 2


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(measured, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    assert probe.bfloat16_gain(plan_model(REGISTRY.architecture("resnet8")), 32) == 1.5


def test_a_cpu_without_bfloat16_is_not_measured(measured, monkeypatch):
    monkeypatch.setattr(probe, "_has_bfloat16", lambda: False)
    assert probe.bfloat16_gain(plan_model(REGISTRY.architecture("resnet8")), 32) == 1.0
    assert measured == []


@pytest.mark.parametrize("name", list(REGISTRY.models))
def test_the_convolutions_measured_make_up_most_of_a_model(name):
    made = plan_model(REGISTRY.architecture(name))
    groups = probe._groups(made)
    convolutions = sum(x.macs for x in made.layers if x.type == "Conv2D")
    covered = sum(chain[0].macs * count for chain, count in groups)
    assert 0.75 * convolutions <= covered <= convolutions
    assert len(groups) <= 13
    assert all(chain[0].type == "Conv2D" for chain, _ in groups)


def test_measuring_gives_a_ratio_of_speeds():
    made = plan_model(REGISTRY.architecture("resnet8"))
    assert 0.05 < probe._measure(made, probe._groups(made), 4) < 20
