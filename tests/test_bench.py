"""Benchmarks: the peers compute the same, the figures are what they say, errors teach.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run_cli, run_lightly
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kerasnet import config as configs
from kerasnet import schema
from kerasnet.bench import figures
from kerasnet.bench.scaling import of_depth
from kerasnet.bench.training import chosen_peers, synthetic_config
from kerasnet.bench.workers import Worker, turns, workers
from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.plan import plan_model
from kerasnet.registry import load_registry

REGISTRY = load_registry()
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")

positive = st.floats(1e-3, 1e6)
rounds = st.lists(positive, min_size=1, max_size=9)


# ---------------------------------------------------------------------------- figures


@given(rounds, positive)
def test_a_machine_that_slows_down_leaves_paired_ratios_alone(rates, factor):
    other = [rate * factor for rate in rates]
    assert figures.paired_ratio(other, rates) == pytest.approx(factor)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=9))
def test_a_paired_ratio_is_the_median_of_the_rounds_ratios(pairs):
    ours, theirs = zip(*pairs, strict=True)
    expected = statistics.median(a / b for a, b in pairs)
    assert figures.paired_ratio(ours, theirs) == expected
    assert figures.paired_ratios(ours, theirs) == [a / b for a, b in pairs]


def test_rounds_that_have_no_partner_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        figures.paired_ratio([1.0, 2.0], [1.0])


@given(rounds, positive)
def test_the_spread_has_no_unit_and_is_not_negative(values, factor):
    found = figures.spread(values)
    assert found >= 0
    assert figures.spread([v * factor for v in values]) == pytest.approx(found, rel=1e-9, abs=1e-9)


def test_one_disturbed_round_does_not_widen_the_spread():
    assert figures.spread([100.0, 101.0, 99.0, 100.0, 10.0]) < 0.02
    assert figures.spread([5.0]) == 0.0


@given(
    st.floats(-100, 100),
    st.floats(-100, 100),
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=8, unique=True),
)
def test_a_line_is_found_again(slope, intercept, x):
    found = figures.line(x, [slope * a + intercept for a in x])
    assert found[:2] == pytest.approx((slope, intercept), abs=1e-6)


def test_the_share_that_a_line_explains_of_what_is_none():
    assert figures.line([0, 1, 2, 3], [1, -1, -1, 1])[2] == pytest.approx(0)
    assert figures.line([0, 1, 2], [5, 5, 5])[2] == 1.0


def test_unrest_is_how_far_the_slowest_round_falls_short():
    assert figures.unrest([100.0, 80.0, 90.0]) == pytest.approx(0.2)
    assert figures.unrest([3.0]) == 0


def test_a_table_is_drawn_on_a_terminal_and_plain_elsewhere():
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=60)
        figures.show(console, ("", "images/s"), [("keras [x]", "12.0")], left=("",))
        shown = file.getvalue()
        assert "keras [x]" in shown
        assert ("┃" in shown) is terminal


def test_operations_of_training_are_six_for_each_mac():
    assert figures.training_gflops(10**9, 2.0) == pytest.approx(12.0)


@given(st.integers(1, 9), st.integers(0, 50))
def test_every_round_has_every_contestant_once_and_another_first(n, number):
    order = turns(range(n), number)
    assert sorted(order) == list(range(n))
    assert order[0] == number % n


# ---------------------------------------------------------------------------- choice of peers


def test_an_unknown_peer_is_answered_with_the_nearest(capsys):
    code, _, err = run_cli(capsys, "bench", "train", "resnet8", "--against", "torhc")
    assert code == 2
    assert "Did you mean 'torch'?" in err


def test_a_peer_that_is_missing_names_the_way_out(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else find(name)
    )
    code, _, err = run_cli(capsys, "bench", "train", "resnet8", "--against", "keras,torch")
    assert code == 2
    assert 'pip install ".[torch]"' in err
    said: list[str] = []
    assert chosen_peers(None, said.append) == ["keras"]
    assert "torch" in said[0]


@pytest.mark.parametrize(
    "arguments",
    [["resnet-50"], ["resnet8", "--recipe", "orginal"], ["resnet8", "--precision", "floot32"]],
    ids=" ".join,
)
def test_wrong_names_are_refused_before_anything_starts(arguments, capsys):
    code, out, err = run_cli(capsys, "bench", "train", *arguments)
    assert code == 2
    assert "Did you mean" in err
    assert not out


@pytest.mark.parametrize("command", ["train", "data", "startup", "scaling"])
def test_every_help_shows_an_example_and_loads_no_framework(command):
    said = run_lightly("bench", command, "--help")
    assert f"kerasnet bench {command}" in said.split("Example:")[1]


# ---------------------------------------------------------------------------- workers


@pytest.fixture
def _probe(monkeypatch):
    """Let workers find `probe`, which lies beside this file."""
    kept = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *kept]))


@pytest.mark.usefixtures("_probe")
def test_a_worker_that_dies_is_reported_with_what_it_said():
    with workers() as start:
        worker = start("probe", "probe:Probe", {})
        assert worker.ask("echo", value=[1, "é\n"]) == [1, "é\n"]
        assert worker.ask("peak_memory") > 1e6
        with pytest.raises(EnvironmentFaultError, match=r"(?s)probe.*exit code 7.*last words"):
            worker.ask("die", words="last words", code=7)


@pytest.mark.usefixtures("_probe")
def test_what_a_library_prints_is_no_answer():
    with workers() as start:
        worker = start("probe", "probe:Probe", {})
        assert worker.ask("chatter", text="TensorFlow was here") == "done"


@pytest.mark.usefixtures("_probe")
def test_errors_in_a_worker_keep_their_kind():
    with workers() as start:
        worker = start("probe", "probe:Probe", {})
        with pytest.raises(BadInputError, match="no such thing"):
            worker.ask("refuse", text="no such thing")
        with pytest.raises(EnvironmentFaultError, match=r"(?s)ZeroDivisionError.*Traceback"):
            worker.ask("fail")
        assert worker.ask("echo", value=1) == 1


@pytest.mark.usefixtures("_probe")
def test_a_worker_that_is_silent_is_given_up_and_leaves_no_process():
    with workers() as start:
        worker = start("probe", "probe:Probe", {})
        pid = worker.ask("pid")
        with pytest.raises(EnvironmentFaultError, match="no answer within"):
            worker.ask("sleep", timeout=0.2, seconds=60)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("_probe")
def test_a_worker_ends_with_its_parent():
    code = (
        "from kerasnet.bench.workers import Worker\n"
        "import os\n"
        "worker = Worker('probe', 'probe:Probe', {})\n"
        "print(worker.ask('pid'), flush=True)\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


@pytest.mark.usefixtures("_probe")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_and_says_so(signum):
    code = (
        "from kerasnet.bench.workers import workers\n"
        "from kerasnet.errors import InterruptedRunError\n"
        "try:\n"
        "    with workers() as start:\n"
        "        worker = start('probe', 'probe:Probe', {})\n"
        "        print(worker.ask('pid'), flush=True)\n"
        "        worker.ask('sleep', seconds=60)\n"
        "except InterruptedRunError as error: raise SystemExit(error.exit_code)\n"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signum)
        assert process.wait(timeout=30) == 128 + signum
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("_probe")
def test_a_worker_that_cannot_be_made_leaves_no_process():
    with pytest.raises(EnvironmentFaultError, match="takes no arguments"):
        Worker("probe", "probe:Probe", {"nonsense": 1})


# ---------------------------------------------------------------------------- the PyTorch twin


@needs_torch
@pytest.mark.parametrize("name", REGISTRY.models)
def test_the_twin_has_the_plans_parameters(name):
    import torch

    from kerasnet.bench.twin import TwinModel

    plan = plan_model(REGISTRY.architecture(name))
    # Shapes alone: random numbers for a hundred million weights would take seconds.
    with torch.device("meta"):
        twin = TwinModel(plan)
    trainable = sum(p.numel() for p in twin.parameters() if p.requires_grad)
    statistics_ = sum(b.numel() for n, b in twin.named_buffers() if "running" in n)
    assert trainable == plan.params["trainable"]
    assert statistics_ == plan.params["non_trainable"]


EVERY_LAYER = """
blocks:
  preactivated:
    order: norm-act-conv
    convs:
      - {kernel: 3, filters: width, takes_stride: true, groups: 2}
      - {kernel: 3, filters: width, dropout: 0.1}
    shortcut: {project: {when: change, source: preactivation}}
norms:
  centred: {type: batch_norm, epsilon: 1e-3, momentum: 0.99, scale: false}
models:
  every_layer:
    input: [12, 10, 3]
    defaults: {norm: bn, act: silu}
    stem:
      - conv: {filters: 8, kernel: 5, stride: 1, padding: 2}
      - norm
      - act: relu
      - avg_pool: {size: 3, stride: 1, padding: 1}
      - zero_pad: 1
    stages:
      - {block: basic_padded, width: 16, stride: 2, after: [{max_pool: 2}]}
      - {block: preactivated, width: 24}
      - {block: preactivated, width: 24}
      - {block: bottleneck_preact_keras, width: 6, repeats: 2, stride: 2, strided_block: last}
    head: [norm: centred, act: elu, flatten, {scale: 0.5}, dropout: 0.5, norm, {dense: 12},
           norm, act: gelu, {dense: classes}]
    recipes: {"*": small}
"""


@needs_torch
@pytest.mark.parametrize("name", ["resnet8", "vgg16", "every_layer"])
def test_the_twin_gives_the_stock_models_outputs(name, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(EVERY_LAYER)
    _compare(plan_model(load_registry(str(file)).architecture(name)))


def _compare(plan):
    from kerasnet import backend

    backend.load()
    import torch

    from kerasnet.bench.twin import TwinModel, copy_weights
    from kerasnet.build import build
    from kerasnet.convert import weight_variables

    model = build(plan, layers="stock", seed=1)
    rng = np.random.default_rng(0)
    for key, variable in weight_variables(model).items():
        if not key.endswith("kernel"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    twin = TwinModel(plan).eval()
    copy_weights(twin, {k: np.asarray(v) for k, v in weight_variables(model).items()})
    images = rng.standard_normal((4, *plan.input_shape), np.float32)
    with torch.no_grad():
        found = twin(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    expected = np.asarray(model(images, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# ---------------------------------------------------------------------------- whole benchmarks


def test_random_images_stand_for_a_data_set_that_need_not_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = synthetic_config(
        "resnet50", REGISTRY, recipe="original", batch=100, precision="float32"
    )
    assert (config.input, config.classes, config.recipe.batch_size) == ([32, 32, 3], 10, 100)
    assert config.recipe.augment.flip == "horizontal"
    assert config.data.spec.augment.flip


def _check_training(found):
    names = [entry["name"] for entry in found["results"]]
    assert found["kerasnet"] == names[0]
    assert {"kerasnet (float32)", "kerasnet (mixed_bfloat16)", "keras"} <= set(names)
    for entry in found["results"]:
        assert entry["images_per_second"] == statistics.median(entry["rounds"])
        assert len(entry["rounds"]) == found["rounds"]
        assert entry["gflops"] == pytest.approx(
            6 * found["macs"] * entry["images_per_second"] / 1e9
        )
        dtype = {"float32": "float32", "mixed_bfloat16": "bfloat16"}[entry["precision"]]
        peak = max(rates[dtype] for rates in found["gemm_peak"].values())
        assert entry["share_of_peak"] == pytest.approx(entry["gflops"] / peak)
        assert entry["peak_memory_bytes"] > 2**20
        assert entry["spread"] >= 0


@pytest.mark.usefixtures("_probe")
def test_bench_train_asks_every_contestant_in_every_round(capsys, monkeypatch):
    from kerasnet.bench import training

    monkeypatch.setattr(training, "KERASNET", "probe:Ours")
    monkeypatch.setattr(training, "KERAS", "probe:Trainer")
    arguments = "bench train resnet8 --rounds 2 --steps 3 --batch 8 --against keras"
    code, out, err = run_cli(capsys, *arguments.split(), "--json")
    assert code == 0, err
    found = json.loads(out)
    _check_training(found)
    assert (found["model"], found["batch"], found["rounds"]) == ("resnet8", 8, 2)
    assert found["ratios"] == {"keras": 1.0, "keras (mixed_bfloat16)": 1.0}
    assert found["input_bound_share"] == pytest.approx(0.5)
    assert found["pipeline_share"] == pytest.approx(0.01)
    assert "round 2/2" in err
    code, out, err = run_cli(capsys, *arguments.split())
    assert code == 0, err
    assert "keras (mixed_bfloat16)" in out
    assert "50.0% of a step" in out
    assert "busy" not in out


@pytest.mark.slow
def test_the_contestants_take_the_steps_that_they_are_asked_for(tmp_path, monkeypatch):
    from kerasnet.bench.contestants import keras, kerasnet

    monkeypatch.chdir(tmp_path)
    config = synthetic_config("resnet8", REGISTRY, recipe="original", batch=4, precision="auto")
    plain = config.model_dump(mode="json", by_alias=True)
    ours, ready = kerasnet(config=plain), kerasnet(config=plain, ready=True)
    for made in (ours, ready, keras(config=plain, policy="mixed_bfloat16")):
        found = made.run(steps=2, untimed=1)
        assert found["seconds"] > 0
        assert found["steps"] >= 2
        assert int(made.model.optimizer.iterations) >= 3
    assert ours.pipeline_seconds(steps=3) > 0
    assert ours.gemm(dtype="bfloat16", size=32, seconds=0.01) > 0
    assert {type(layer).__name__ for layer in ready.model.layers} == {
        type(layer).__name__ for layer in ours.model.layers
    }
    assert not list(tmp_path.iterdir())


@needs_torch
@pytest.mark.parametrize("better", [False, True])
def test_the_torch_contestant_learns(better):
    from kerasnet.bench.contestants import torch

    config = synthetic_config("resnet8", REGISTRY, recipe="original", batch=4, precision="auto")
    plain = config.model_dump(mode="json", by_alias=True)
    made = torch(config=plain, channels_last=better, bfloat16=better, fused=better)
    before = [p.detach().clone() for p in made.model.parameters()]
    assert made.run(steps=2, untimed=1)["steps"] == 2
    after = made.model.parameters()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert made.gemm(dtype="bfloat16", size=32, seconds=0.01) > 0


@pytest.mark.slow
def test_bench_train_of_the_real_contestants(capsys):
    peers = "torch,keras" if HAS_TORCH else "keras"
    arguments = f"bench train resnet8 --rounds 2 --steps 1 --batch 8 --against {peers} --json"
    code, out, err = run_cli(capsys, *arguments.split())
    assert code == 0, err
    found = json.loads(out)
    _check_training(found)
    assert len(found["ratios"]) == (5 if HAS_TORCH else 2)


DATA = ["bench", "data", "--rounds", "2", "--steps", "2", "--batch", "16", "--json"]


def _check_data(found):
    assert (found["image"], found["images"], found["batch"]) == ([32, 32, 3], 50_000, 16)
    names = [entry["name"] for entry in found["results"]]
    assert names == ["kerasnet", "per example", "keras layers", "gather and cast"]
    assert set(found["ratios"]) == set(names[1:])
    for entry in found["results"]:
        assert entry["images_per_second"] == statistics.median(entry["rounds"])


@pytest.mark.usefixtures("_probe")
def test_bench_data_asks_every_way_in_every_round(capsys, monkeypatch):
    from kerasnet.bench import data

    monkeypatch.setattr(data, "PIPELINES", "probe:Trainer")
    code, out, err = run_cli(capsys, *DATA)
    assert code == 0, err
    _check_data(json.loads(out))
    assert set(json.loads(out)["ratios"].values()) == {2.0}
    code, out, err = run_cli(capsys, *DATA[:-1])
    assert code == 0, err
    assert "2.00×" in out


@pytest.mark.slow
def test_bench_data_of_the_real_ways(capsys):
    code, out, err = run_cli(capsys, *DATA)
    assert code == 0, err
    _check_data(json.loads(out))


@pytest.mark.parametrize("way", ["kerasnet", "per_example", "keras_layers"])
def test_every_way_makes_normalised_batches(way):
    from kerasnet.bench.contestants import pipelines

    config = synthetic_config(
        "resnet20", REGISTRY, recipe="original", batch=500, precision="float32"
    )
    cutout = config.recipe.augment.model_copy(update={"cutout": schema.Cutout(size=4)})
    recipe = config.recipe.model_copy(update={"augment": cutout})
    plain = config.model_copy(update={"recipe": recipe}).model_dump(mode="json", by_alias=True)
    images, labels = next(pipelines(config=plain, way=way).batches)
    assert images.shape == (500, 32, 32, 3)
    assert images.dtype == "float32"
    assert labels.dtype == "int32"
    # Of uniform bytes by mean 1/2 and standard deviation 1/4; the padding is black.
    inner = np.asarray(images)[:, 8:24, 8:24]
    assert inner.min() == pytest.approx(-2, abs=0.01)
    assert inner.max() == pytest.approx(2, abs=0.01)
    assert inner.mean() == pytest.approx(0, abs=0.03)


def _check_startup(found):
    from kerasnet.bench.beginning import PARTS

    assert [x["name"] for x in found["commands"]] == [
        "--help", "list", "show", "validate", "summary",
    ]  # fmt: skip
    assert [x["name"] for x in found["results"]] == ["kerasnet", "keras"]
    assert set(found["ratios"]) == {"keras"}
    for entry in (*found["commands"], *found["results"]):
        assert entry["seconds"] > 0
    for entry in found["results"]:
        assert tuple(entry["parts"]) == PARTS


STARTUP = ["bench", "startup", "resnet8", "--against", "keras", "--batch", "8", "--rounds", "1"]


@pytest.mark.usefixtures("_probe")
def test_bench_startup_times_commands_and_beginnings(capsys, monkeypatch):
    from kerasnet.bench import startup

    monkeypatch.setattr(startup, "BEGINNING", "probe:Beginning")
    code, out, err = run_cli(capsys, *STARTUP, "--json")
    assert code == 0, err
    _check_startup(json.loads(out))
    monkeypatch.setattr(startup, "light_commands", lambda model: {"list": ["lsit"]})
    code, out, err = run_cli(capsys, *STARTUP)
    assert code == 4
    assert "kerasnet list failed" in err


@pytest.mark.slow
def test_bench_startup_of_real_nets(capsys):
    code, out, err = run_cli(capsys, *STARTUP, "--json")
    assert code == 0, err
    found = json.loads(out)
    _check_startup(found)
    for entry in found["results"]:
        assert sum(entry["parts"].values()) < entry["seconds"]


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_a_resnet_of_any_depth_has_so_many_layers_with_weights(depth):
    deep = synthetic_config("resnet20", REGISTRY, recipe="original", batch=8, precision="float32")
    layers = configs.plan(of_depth(deep, depth)).layers
    assert sum(layer.type in ("Conv2D", "Dense") for layer in layers) == depth


SCALING = ("bench", "scaling", "resnet8", "--rounds", "1", "--steps", "1", "--batch", "4",
           "--batches", "8,4", "--depths", "8,14")  # fmt: skip


def _check_scaling(found):
    assert [x["batch"] for x in found["by_batch"]] == [8, 4]
    assert [x["depth"] for x in found["by_depth"]] == [8, 14]
    for entry in (*found["by_batch"], *found["by_depth"]):
        assert entry["images_per_second"] > 0
        assert entry["peak_memory_bytes"] > 2**20
    assert set(found["fits"]) == {"peak_memory_bytes", "plan_seconds", "build_seconds"}
    for fit in found["fits"].values():
        assert fit["r2"] <= 1


@pytest.mark.usefixtures("_probe")
def test_bench_scaling_writes_tables_and_a_picture(capsys, monkeypatch, tmp_path):
    from kerasnet.bench import scaling

    monkeypatch.setattr(scaling, "KERASNET", "probe:Trainer")
    out_dir = tmp_path / "scaling"
    code, out, err = run_cli(capsys, *SCALING, "--out", str(out_dir), "--json")
    assert code == 0, err
    found = json.loads(out)
    _check_scaling(found)
    assert [x["images_per_second"] for x in found["by_batch"]] == [8, 4]
    with (out_dir / "depth.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["build_seconds"] for row in rows] == ["0.5", "0.5"]
    assert (out_dir / "batch.csv").read_text().startswith("batch,images_per_second,")
    assert (out_dir / "scaling.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run_cli(capsys, *SCALING)
    assert code == 0, err
    assert "R²" in out


@pytest.mark.slow
def test_bench_scaling_of_real_nets(capsys):
    code, out, err = run_cli(capsys, *SCALING, "--json")
    assert code == 0, err
    _check_scaling(json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--depths", "21"], "Did you mean 20"),
        (["--batches", "8,x"], "numbers such as"),
        (["--batches", "0"], "numbers such as"),
    ],
)
def test_numbers_that_are_none_are_refused(arguments, said, capsys):
    code, _, err = run_cli(capsys, "bench", "scaling", "resnet8", *arguments)
    assert code == 2
    assert said in err
