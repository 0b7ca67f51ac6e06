"""Which precision is chosen where."""

from __future__ import annotations

import pytest

from kerasnet import precision
from kerasnet.errors import BadInputError


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


def test_what_is_asked_for_is_not_measured():
    def gain() -> float:
        raise AssertionError

    asked = precision.resolve("mixed_bfloat16")
    assert precision.confirm(asked, ["cpu:0"], gain) == asked


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(BadInputError, match="Did you mean 'mixed_bfloat16'"):
        precision.resolve("mixed_bfloat61")
