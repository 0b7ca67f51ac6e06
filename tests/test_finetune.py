"""Fine-tuning: what comes from the file, what begins anew, and what is not trained."""

from __future__ import annotations

import json
import shutil
import signal
import time

import keras
import numpy as np
import pytest
from commands import run_cli
from processes import BUSY, die_at_write, start
from rich.console import Console
from synthetic import paint_classes

import kerasnet
from kerasnet import config as configs
from kerasnet import train
from kerasnet.build import build, freeze
from kerasnet.checkpoint import checkpoint_files, read_checkpoint
from kerasnet.convert import load_weights, read_arrays, save_weights, weight_variables
from kerasnet.document import read
from kerasnet.errors import BadInputError
from kerasnet.plan import plan_model
from kerasnet.recipe import compile_model
from kerasnet.registry import load_registry
from kerasnet.runs import create_run, load_run

# A convolution of one part whose bias the normalisation of the next part takes over.
CHAIN = """
blocks:
  late: {order: norm-act-conv, convs: [{kernel: 3, filters: width}], shortcut: none}
models:
  chain:
    input: [8, 8, 3]
    defaults: {norm: bn, act: relu, bias: true, kernel_init: he_normal, bias_init: {constant: 0.3}}
    stem: [{conv: {filters: 4, kernel: 3}}]
    stages: [{block: late, width: 4}, {block: late, width: 4}]
    head: [norm, act, global_avg_pool, {dense: classes}]
    recipes: {"*": small}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """A registry of one model, trained by a recipe with decay, averages, clipping and dropout."""
    made = tmp_path_factory.mktemp("registry") / "busy.yaml"
    made.write_text(BUSY)
    return str(made)


@pytest.fixture(scope="module")
def pretrained(file, tmp_path_factory):
    """A run on the ten digits."""
    return kerasnet.fit(
        "busy", registry=load_registry(file), dataset="digits", limit_train=100, epochs=1,
        precision="float32", out=tmp_path_factory.mktemp("runs") / "digits",
        console=Console(quiet=True),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> str:
    """A folder of three classes of 20 pictures."""
    return paint_classes(tmp_path_factory.mktemp("data") / "pets", "cat", "dog", "eel")


@pytest.fixture
def options(file, pretrained, pets) -> list[str]:
    return [
        "fit", "busy", "--registry", file, "--dataset", pets, "--weights",
        str(pretrained.last_weights), "--precision", "float32",
    ]  # fmt: skip


def part_of(key: str) -> str:
    return key.split("_")[0]


# ---------------------------------------------------------------------------- training


def tuning(file, pretrained, pets, layers: str):
    """Return the configuration of two epochs on three other classes, lower parts frozen."""
    given = {"dataset": pets, "weights": pretrained.last_weights, "reset_head": True,
             "freeze": "stem,stage1", "epochs": 2, "seed": 5, "precision": "float32"}  # fmt: skip
    config = configs.new_run("busy", given, load_registry(file))
    return configs.with_values(config, {"execution.layers": layers})


@pytest.fixture(scope="module", params=["fast", "stock"])
def tuned(request, file, pretrained, pets, tmp_path_factory):
    config = tuning(file, pretrained, pets, request.param)
    run = create_run(tmp_path_factory.mktemp("runs") / request.param, config)
    train.fit(run, console=Console(quiet=True))
    return run


def test_frozen_parts_keep_every_bit_and_the_rest_is_trained(pretrained, tuned):
    before, old = read_arrays(pretrained.last_weights)
    after, metadata = read_arrays(tuned.last_weights)
    assert {part_of(key) for key in after} == {"stem", "stage1", "stage2", "head"}
    first = weight_variables(build(configs.plan(tuned.config), seed=5))
    for key, array in after.items():
        if part_of(key) in ("stem", "stage1"):
            assert array.tobytes() == before[key].tobytes(), key
        elif not (part_of(key) == "stage2" and key.endswith("bias")):
            # Over a batch, the bias before a normalisation has no effect.
            start = first[key].numpy() if part_of(key) == "head" else before[key]
            assert array.shape == start.shape
            assert not np.array_equal(array, start), key
    assert metadata["inference"]["class_names"] == ["cat", "dog", "eel"]
    assert metadata["inference"]["mean"] != old["inference"]["mean"]


def test_the_summary_counts_what_is_trained(tuned):
    summary = tuned.summary()
    trained = train.make_model(tuned.config).trainable_variables
    assert summary["params"]["trained"] == sum(int(np.prod(v.shape)) for v in trained)
    assert summary["params"]["trained"] < summary["params"]["trainable"]
    assert kerasnet.evaluate(tuned)["test_accuracy"] == summary["test_accuracy"]


class Stopped(Exception):  # noqa: N818
    """Ends a training after an epoch."""


@pytest.mark.parametrize("tuned", ["fast"], indirect=True)
def test_a_run_that_was_stopped_goes_on_without_the_file(file, pretrained, pets, tuned, tmp_path):
    weights = shutil.copy(pretrained.last_weights, tmp_path / "start.safetensors")
    config = tuning(file, pretrained, pets, "fast").model_copy(update={"weights": str(weights)})
    run = create_run(tmp_path / "run", config)

    def stop(row):
        raise Stopped

    with pytest.raises(Stopped):
        train.fit(run, console=Console(quiet=True), on_epoch=stop)
    weights.unlink()
    train.fit(run, console=Console(quiet=True))
    for row, one in zip(run.metrics(), tuned.metrics(), strict=True):
        assert row == pytest.approx(one, rel=1e-4)
    ours, theirs = (read_arrays(r.last_weights)[0] for r in (run, tuned))
    for key, array in theirs.items():
        if part_of(key) in ("stem", "stage1"):
            assert ours[key].tobytes() == array.tobytes(), key
        np.testing.assert_allclose(ours[key], array, rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("classes", [10, 3])
def test_a_reset_head_begins_with_the_seeds_values_and_the_rest_with_the_files(pretrained, classes):
    config = pretrained.config.model_copy(
        update={"weights": str(pretrained.last_weights), "reset_head": True, "classes": classes}
    )
    arrays, _ = read_arrays(pretrained.last_weights)
    first = weight_variables(build(configs.plan(config), seed=config.seed))
    for key, variable in weight_variables(train.make_model(config)).items():
        expected = first[key].numpy() if part_of(key) == "head" else arrays[key]
        np.testing.assert_array_equal(variable.numpy(), expected, key)


def test_a_damaged_head_does_not_matter_where_it_begins_anew(pretrained, tmp_path):
    model = build(configs.plan(pretrained.config), seed=1)
    model.get_layer("head_logits").kernel.assign(np.full((16, 10), np.nan))
    save_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(BadInputError, match="head_logits/kernel: has values that are not finite"):
        load_weights(model, tmp_path / "w.safetensors")
    other = build(configs.plan(pretrained.config), seed=2)
    kept = other.get_layer("head_logits").kernel.numpy()
    load_weights(other, tmp_path / "w.safetensors", reset_head=True)
    np.testing.assert_array_equal(other.get_layer("head_logits").kernel.numpy(), kept)
    for key, variable in weight_variables(other).items():
        if part_of(key) != "head":
            np.testing.assert_array_equal(variable.numpy(), weight_variables(model)[key].numpy())


def test_the_command_fine_tunes_and_says_what_it_trains(options, tmp_path, capfd):
    out = tmp_path / "run"
    code, said, _ = run_cli(
        capfd, *options, "--reset-head", "--freeze", "stage2,stem", "--freeze", "stage1",
        "--epochs", "1", "--out", str(out),
    )  # fmt: skip
    assert code == 0
    run = load_run(out)
    params = run.summary()["params"]
    # Sixteen channels into three classes.
    assert params["trained"] == 16 * 3 + 3
    assert f"trains 51 of {params['total']:,} parameters (not stem, stage1, stage2)" in said
    assert "its classifier begun anew" in said
    code, said, _ = run_cli(
        capfd, "fit", "--config", str(out / "config.yaml"), "--dry-run", "--json"
    )
    again = json.loads(said)
    assert (code, again["reset_head"], again["freeze"]) == (0, True, ["stage1", "stage2", "stem"])
    assert again["weights"] == run.config.weights
    code, said, _ = run_cli(
        capfd, "fit", "--resume", str(out), "--freeze", "stem,stage1,stage2", "--reset-head"
    )
    assert (code, "has finished its 1 epochs" in said) == (0, True), said
    code, _, err = run_cli(capfd, "fit", "--resume", str(out), "--freeze", "stem")
    assert (code, "contradicts the run" in err) == (2, True)


@pytest.mark.slow
def test_a_frozen_run_that_was_killed_ends_as_if_it_had_not_been(options, tmp_path):
    weights = tmp_path / "start.safetensors"
    place = options.index("--weights") + 1
    options[place] = str(shutil.copy(options[place], weights))
    options += ["--reset-head", "--freeze", "stem,stage1", "--deterministic", "--epochs", "3",
                "--checkpoint-every", "1", "steps", "--out"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    training = start(*options, str(whole), log=tmp_path / "whole.log")
    assert training.wait() == 0, training.said
    training = start(
        *options, str(killed), log=tmp_path / "log", before=die_at_write, with_=(12, "half")
    )
    assert training.wait() == -signal.SIGKILL, training.said
    assert checkpoint_files(killed / "checkpoints")
    # A checkpoint holds all weights; the file is not read again.
    weights.unlink()
    training = start("fit", "--resume", str(killed), log=tmp_path / "log")
    assert training.wait() == 0, training.said
    for name in ("metrics.csv", "predictions.npz"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    one, other = (
        read_checkpoint(checkpoint_files(run / "checkpoints")[0]).arrays for run in (whole, killed)
    )
    assert one.keys() == other.keys()
    for key, array in one.items():
        assert array.tobytes() == other[key].tobytes(), key
    # Only what is trained has an average.
    config = load_run(whole).config
    trained = len(train.make_model(config.model_copy(update={"weights": None})).trainable_variables)
    assert sum(key.endswith("average") for key in one) == trained


# ---------------------------------------------------------------------------- fast layers


def chain(tmp_path, layers: str, frozen: list[str]):
    (tmp_path / "chain.yaml").write_text(CHAIN)
    plan = plan_model(load_registry(tmp_path / "chain.yaml").architecture("chain"))
    model = build(plan, layers=layers, seed=1)
    draw = np.random.default_rng(2)
    for key, variable in weight_variables(model).items():
        if key.endswith(("moving_mean", "moving_variance", "bias")):
            variable.assign(draw.uniform(0.5, 1.5, variable.shape))
    freeze(model, plan, frozen)
    return model


def gradients(model, training: bool) -> dict[str, np.ndarray]:
    import tensorflow as tf

    draw = np.random.default_rng(3)
    images = draw.normal(size=(6, 8, 8, 3)).astype("float32")
    with tf.GradientTape() as tape:
        logits = model(images, training=training)
        loss = tf.reduce_sum(logits * draw.normal(size=logits.shape))
    found = tape.gradient(loss, [v.value for v in model.trainable_variables])
    paths = [v.path for v in model.trainable_variables]
    assert all(g is not None for g in found)
    return {path: np.asarray(g) for path, g in zip(paths, found, strict=True)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [[], ["stem"], ["stage1"], ["stage2"], ["head"]])
def test_fast_layers_freeze_as_stock_ones_where_a_bias_crosses_into_a_frozen_part(
    tmp_path, frozen, training
):
    stock, fast = (chain(tmp_path, layers, frozen) for layers in ("stock", "fast"))
    before = {key: variable.numpy() for key, variable in weight_variables(stock).items()}
    theirs, ours = (gradients(model, training) for model in (stock, fast))
    assert theirs.keys() == ours.keys()
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=1e-3, atol=1e-4, err_msg=key)
    if frozen == ["stage1"]:
        assert np.abs(ours["stem_conv/bias"]).max() > 1e-2
    for key, variable in weight_variables(stock).items():
        value = weight_variables(fast)[key].numpy()
        np.testing.assert_allclose(value, variable.numpy(), rtol=1e-4, atol=1e-5, err_msg=key)
        moves = training and "moving" in key and part_of(key) not in frozen
        assert np.array_equal(value, before[key]) != moves, key


@pytest.mark.slow
def test_a_run_whose_lower_parts_are_frozen_is_faster():
    registry = load_registry()
    config = configs.resolve("resnet20", dataset="digits", registry=registry)
    images = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype("float32")
    labels = np.arange(64) % 10
    models = {}
    for frozen in ((), ("stem", "stage1", "stage2")):
        model = models[frozen] = build(configs.plan(config), layers="fast", seed=0)
        freeze(model, configs.plan(config), frozen)
        compile_model(model, config, 10)
        model.train_on_batch(images, labels)
    rounds = []
    for _ in range(20):
        # In turns, for other programs may run.
        rounds.append([])
        for model in models.values():
            began = time.perf_counter()
            float(model.train_on_batch(images, labels)[0])
            rounds[-1].append(time.perf_counter() - began)
    whole, part = np.median(rounds, axis=0)
    print(f"a step takes {1000 * whole:.0f} ms, {1000 * part:.0f} ms with frozen lower parts")
    assert part < 0.8 * whole


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), ["head_logits/kernel: expected shape (16, 3), received (16, 10)", "--reset-head"]),
        (("--reset-head", "--freeze", "stag1"), ["no part 'stag1'", "'stage1'?", "stem, stage1, "]),
        (("--reset-head", "--freeze", "neck"), ["no part 'neck'", "stage2"]),
        (("--reset-head", "--freeze", "stem,,stage1"), ["no part ''"]),
        (("--reset-head", "--freeze", "stem,stage1,stage2,head"), ["leave one of them out"]),
        (("--freeze", "stem,stage1,stage2,head"), ["leaves nothing of busy to train"]),
        (("--reset-head", "--freeze", "head"), ["random first values"]),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(options, tmp_path, capfd, more, said):
    code, _, err = run_cli(capfd, *options, *more, "--out", str(tmp_path / "run"))
    assert code == 2
    assert all(text in err for text in said), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [("--freeze", "stem"), ("--reset-head",)])
def test_without_weights_there_is_nothing_to_keep(tmp_path, capfd, more):
    code, _, err = run_cli(
        capfd, "fit", "resnet8", "--dataset", "digits", *more, "--out", str(tmp_path / "run")
    )
    assert (code, "--weights FILE" in err, more[0] in err) == (2, True, True)
    assert not (tmp_path / "run").exists()


def test_another_networks_file_is_refused_with_the_head_reset_too(options, tmp_path, capfd):
    options[1] = "resnet8"
    code, _, err = run_cli(capfd, *options, "--reset-head", "--out", str(tmp_path / "run"))
    assert (code, "does not fit resnet8" in err, "--reset-head" in err) == (2, True, False)


def test_a_configuration_with_an_unknown_part_is_refused(pretrained, tmp_path, capfd):
    text = (pretrained.path / "config.yaml").read_text()
    assert "freeze: []" in text
    text = text.replace("freeze: []", "freeze: [stem9]").replace("weights:", "weights: w.h5 #", 1)
    (tmp_path / "config.yaml").write_text(text)
    assert read(tmp_path / "config.yaml").data["freeze"] == ["stem9"]
    code, _, err = run_cli(capfd, "fit", "--config", str(tmp_path / "config.yaml"), "--dry-run")
    assert (code, "no part 'stem9'" in err) == (2, True), err


# ---------------------------------------------------------------------------- Python


def test_create_model_takes_the_same_options(file, pretrained):
    registry, weights = load_registry(file), pretrained.last_weights
    model = kerasnet.create_model(
        "busy", 5, registry=registry, weights=weights, reset_head=True, freeze=["stem", "stage1"],
        seed=4,
    )  # fmt: skip
    trained = {part_of(v.path) for v in model.trainable_variables}
    assert trained == {"stage2", "head"}
    arrays, _ = read_arrays(weights)
    before = {key: v.numpy() for key, v in weight_variables(model).items()}
    np.testing.assert_array_equal(before["stem_conv/kernel"], arrays["stem_conv/kernel"])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).normal(size=(10, 16, 16, 3)).astype("float32")
    model.train_on_batch(images, np.arange(10) % 5)
    for key, variable in weight_variables(model).items():
        if part_of(key) in ("stem", "stage1"):
            np.testing.assert_array_equal(variable.numpy(), before[key], key)
    with pytest.raises(BadInputError, match="inference block"):
        kerasnet.create_model(
            "busy", 5, registry=registry, weights=weights, reset_head=True, preprocessing=True
        )
    with pytest.raises(BadInputError, match="--weights FILE"):
        kerasnet.create_model("busy", registry=registry, freeze="stem")


def test_create_model_takes_parts_from_a_generator(file, pretrained):
    model = kerasnet.create_model(
        "busy", 5, registry=load_registry(file), weights=pretrained.last_weights, reset_head=True,
        freeze=(part for part in ["stem", "stage1"]),
    )  # fmt: skip
    assert {part_of(v.path) for v in model.trainable_variables} == {"stage2", "head"}
