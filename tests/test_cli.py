"""The light commands: what they print, and what they must not load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from commands import run_cli as run
from commands import run_lightly

from kerasnet.cli import main
from kerasnet.config import resolve
from kerasnet.document import to_yaml
from kerasnet.plan import plan_model
from kerasnet.registry import load_registry

REGISTRY = load_registry()


LIGHT = [
    ["--help"],
    ["fit", "--help"],
    ["lr-find", "--help"],
    ["list"],
    ["list", "--json"],
    ["show", "resnet50"],
    ["validate", "REGISTRY"],
    ["summary"],
    ["summary", "resnet50"],
    ["summary", "resnet50", "--json"],
    ["summary", "vgg16", "--explain"],
    ["summary", "bottleneck_sum"],
    ["schema"],
    ["results"],
    ["diff", "resnet50", "vgg16"],
    ["diff", "resnet8", "CONFIG"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_load_neither_tensorflow_nor_keras(arguments, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("models: {mine: {extends: resnet8, classes: 3}}\n")
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(resolve("resnet8", dataset="digits")))
    files = {"REGISTRY": str(file), "CONFIG": str(config)}
    words = [files.get(word, word) for word in arguments]
    assert run_lightly(*words).strip()


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "show",
        "validate",
        "summary",
        "diff",
        "schema",
        "fit",
        "evaluate",
        "predict",
        "tune",
        "lr-find",
    ],
)
def test_every_help_shows_an_example(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    example = out.split("Example:")[1]
    assert example.strip().startswith(f"kerasnet {command}")


def test_list_json_is_a_list_of_objects(capsys):
    code, out, _ = run(capsys, "list", "resnet?*", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows][:3] == ["resnet50", "resnet8", "resnet20"]
    for row in rows:
        assert list(row) == [
            "name", "params", "macs", "input", "origin", "published", "pretrained",
        ]  # fmt: skip
        assert row["origin"]
    assert (rows[0]["params"], rows[0]["input"]) == (14_795_658, [32, 32, 3])
    assert rows[2]["published"] == {
        "dataset": "cifar10", "top1": 91.25, "source": "He et al. 2015, table 6",
    }  # fmt: skip
    assert next(row for row in rows if row["name"] == "resnet34_cifar")["published"] is None


@pytest.mark.parametrize("key", ["name", "params", "macs"])
def test_list_sorts(key, capsys):
    rows = {
        more: json.loads(run(capsys, "list", "--sort", key, "--json", *more)[1])
        for more in ((), ("--reverse",))
    }
    values = [row[key] for row in rows[()]]
    assert len(values) >= 40
    assert values == sorted(values)
    assert rows["--reverse",] == rows[()][::-1]


def test_list_shows_what_others_report(capsys):
    _, out, _ = run(capsys, "list", "resnet1*", "--reverse")
    last = re.split(r"  +", out.splitlines()[-1])
    assert last[0] == "resnet110"
    assert last[-2:] == ["93.57 % cifar10", "He et al. 2015, section 4.2"]


@pytest.mark.parametrize("name", REGISTRY.models)
def test_summary_json_is_the_frozen_form(name, capsys):
    code, out, _ = run(capsys, "summary", name, "--json")
    found = json.loads(out)
    plan = plan_model(REGISTRY.architecture(name))
    assert code == 0
    assert list(found) == ["model", "input_shape", "layers", "params", "macs"]
    assert found["params"] == plan.params
    assert found["macs"] == plan.macs == sum(row["macs"] for row in found["layers"])
    assert {tuple(row) for row in found["layers"]} == {
        ("name", "type", "output_shape", "params", "trainable_params", "macs", "kernel", "stride",
         "padding", "inputs")
    }  # fmt: skip
    assert [row["name"] for row in found["layers"]] == [x.name for x in plan.layers]


@pytest.mark.parametrize("depth", ["stage", "block", "layer"])
@pytest.mark.parametrize("name", REGISTRY.models)
def test_tables_of_every_depth_add_up(name, depth, capsys):
    code, out, _ = run(capsys, "summary", name, "--depth", depth)
    header, _, *rows = out.split("\n\n")[1].splitlines()
    start = header.index("params") + len("params")
    params = [int(row[:start].split()[-1].replace(",", "")) for row in rows]
    assert code == 0
    assert sum(params) == plan_model(REGISTRY.architecture(name)).params["total"]
    assert out.rstrip().splitlines()[-2].startswith(f"parameters: {sum(params):,} (")


def test_explain_writes_the_arithmetic(capsys):
    _, out, _ = run(capsys, "summary", "resnet50", "--explain")
    assert "stem_conv: 7×7 convolution, ⌊(32 + 2·3 - 7)/2⌋ + 1 = 16" in out
    assert "stem_pool: 3×3 maximum, ⌊(16 + 2·1 - 3)/2⌋ + 1 = 8" in out
    assert "stage1_block3_conv1: 1×1 convolution, ⌊(8 + 2·0 - 1)/2⌋ + 1 = 4" in out
    assert "head_pool: mean over all 2×2 places; 2×2×1024 → 1024" in out
    _, out, _ = run(capsys, "summary", "resnet8", "--explain", "--input-size", "33x20")
    assert "⌊(33 + 2·1 - 3)/2⌋ + 1 = 17 high, ⌊(20 + 2·1 - 3)/2⌋ + 1 = 10 wide" in out


def test_summary_of_all_models_has_a_row_each(capsys):
    _, out, _ = run(capsys, "summary")
    rows = out.splitlines()[2:]
    assert [row.split()[0] for row in rows] == list(REGISTRY.models)
    assert "stem 8×8×64 → stage1 4×4×256 → stage2 2×2×512 → stage3 2×2×1024 → head 10" in rows[0]


def test_classes_and_input_size(capsys):
    _, out, _ = run(
        capsys, "summary", "resnet50", "--json", "--classes", "100", "--input-size", "64"
    )
    found = json.loads(out)
    assert found["input_shape"] == [64, 64, 3]
    assert found["layers"][-1]["output_shape"] == [100]


def test_show_fills_in_what_is_extended(capsys):
    _, out, _ = run(capsys, "show", "bottleneck_sum", "--json")
    block = json.loads(out)["blocks"]["bottleneck_sum"]
    assert block["shortcut"]["project"] == {
        "when": "always", "norm": True, "act": "relu", "bias": None, "from": "input",
        "kernel_init": None,
    }  # fmt: skip
    assert block["order"] == "conv-norm-act"
    _, out, _ = run(capsys, "show", "digits")
    assert "recipes:" in out
    assert "datasets:" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--sort", "size"], "takes name, params or macs"),
        (["show", "resnet500"], "Did you mean 'resnet50'?"),
        (["show", "ResNet50"], "Did you mean 'resnet50'?"),
        (["show", "resnet18"], "Did you mean 'resnet18_cifar' or 'resnet18_imagenet'?"),
        (["show", "resnet50v2"], "Did you mean 'resnet50v2_keras'?"),
        (["summary", "botleneck_sum"], "Did you mean 'bottleneck_sum'?"),
        (["list", "alexnet"], "no model matches 'alexnet'"),
        (["summary", "vgg16", "--input-size", "16"], "goes to zero"),
        (["summary", "vgg16", "--input-size", "x"], "--input-size takes"),
        (["summary", "vgg16", "--input-size", "99999999999"], "--input-size"),
        (["summary", "vgg16", "--depth", "leaf"], "--depth takes stage, block or layer"),
        (["summary", "vgg16", "--width", "3"], "are for blocks"),
        (["summary", "basic", "--classes", "3"], "is a block"),
        (["summary", "--registry", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["fit"], "name a model"),
        (["fit", "resnet500"], "Did you mean 'resnet50'?"),
        (["fit", "resnet50", "--recipe", "origina"], "Did you mean 'original'?"),
        (["fit", "resnet50", "--dataset", "digits", "--precision", "fp8"], "no precision 'fp8'"),
        (["fit", "resnet50", "--dataset", "digits", "--learning-rate", "-1"], "learning_rate"),
        (["fit", "resnet50", "--dataset", "digits", "--learning-rate", "nan"], "learning_rate"),
        (
            ["fit", "resnet50", "--dataset", "digits", "--weights", "no.safetensors"],
            "no such weights",
        ),
        (["fit", "resnet50", "--dataset", "digits", "--out", __file__, "--dry-run"], "is a file"),
        (["fit", "resnet50", "--dataset", "~nobody/x"], "nor an existing folder"),
        (["fit", "resnet50", "--dataset", "x" * 5000], "x"),
        (["summary", "--explain"], "--explain needs the name"),
        (["summary", "--depth", "stage"], "--depth needs the name"),
        (["summary", "resnet8", "--explain", "--json"], "exclude each other"),
        (["validate", "/dev/zero"], "found a pipe or a device"),
        (["tune", "resnet8", "--dataset", "digits", "--algorithm", "gird"], "no algorithm"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", "resnet50", "--epochs", "0"], "--epochs"),
        (["evaluate", "nowhere"], "not a run folder"),
        (["tune", "resnet20", "--space", "learning_rat"], "Did you mean 'learning_rate'?"),
        (["tune", "resnet20", "--dataset", "digits", "--recipe", "original"], "validation_split 0"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_exit_2_with_one_message(arguments, said, capsys):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_a_terminal_without_unicode_is_no_traceback():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "kerasnet.cli", "summary", "resnet8", "--depth", "stage"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert "78,666" in done.stdout


def test_a_backend_that_cannot_be_loaded_is_exit_4(tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": "garbage"}
    command = [sys.executable, "-m", "kerasnet.cli", "fit", "resnet8", "--dataset", "digits",
               "--out", str(tmp_path / "a")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 4
    assert "the backend 'garbage' cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_exit_4(capsys):
    code, _, err = run(capsys, "fit", "resnet8", "--dataset", "digits", "--out", "/proc/nothing")
    assert code == 4
    assert "/proc/nothing" in err


def test_a_reader_that_goes_away_is_no_traceback():
    command = f"{sys.executable} -m kerasnet.cli summary resnet50 --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def test_a_terminal_obeys_nothing_in_a_message(capfd, tmp_path):
    name = str(tmp_path / "\x1b[2Jgone\x07.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["validate", name])
    err = capfd.readouterr().err
    assert ended.value.code == 2
    assert "\x1b" not in err
    assert "\\x1b[2Jgone\\x07.yaml" in err
