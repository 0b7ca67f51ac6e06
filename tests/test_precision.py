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


def test_a_gpu_that_the_backend_cannot_use_changes_auto_only(driver):
    driver("echo 'NVIDIA H200, 9.0'")
    auto, asked = precision.resolve("auto"), precision.resolve("mixed_bfloat16")
    assert precision.confirm(auto, ["cpu:0"]).resolved == "float32"
    assert "cannot use it" in precision.confirm(auto, ["cpu:0"]).reason
    assert precision.confirm(auto, ["cpu:0", "gpu:0"]) == auto
    assert precision.confirm(asked, ["cpu:0"]) == asked


def test_an_unknown_precision_names_the_nearest():
    with pytest.raises(BadInputError, match="Did you mean 'mixed_bfloat16'"):
        precision.resolve("mixed_bfloat61")
