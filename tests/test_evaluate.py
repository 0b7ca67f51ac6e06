"""Test-time augmentation, which stands beside what is measured without it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from commands import run_cli
from rich.console import Console

import kerasnet
from kerasnet.config import new_run
from kerasnet.convert import save_weights
from kerasnet.data import ImageData
from kerasnet.errors import BadInputError
from kerasnet.registry import load_registry
from kerasnet.runs import create_run

# Digits of which it is said that they may be mirrored, and a network that trains in no time.
MIRRORED = """
models:
  tiny:
    extends: resnet8
    stem: [conv: {filters: 4, kernel: 3}, norm, act]
    stages: [{block: basic, width: 4, stride: 2}]
datasets:
  mirrored: {extends: digits, augment: {flip: true}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("registry") / "mirrored.yaml"
    file.write_text(MIRRORED)
    return str(file)


@pytest.fixture(scope="module")
def weights(registry, tmp_path_factory) -> str:
    """Weights that tell an image from its mirror image, as those that training left do."""
    model = kerasnet.create_model("tiny", registry=load_registry(registry), seed=1)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(model, file)
    return str(file)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The splits that are read, one after the other."""
    read: list[str] = []
    load = ImageData.load
    monkeypatch.setattr(
        ImageData, "load", lambda self, split: (read.append(split), load(self, split))[1]
    )
    return read


def expected(registry: str, weights: str) -> tuple[float, float]:
    """The accuracy and loss by the mean of the logits of images and of mirror images."""
    source = kerasnet.load_dataset("digits")
    split = source.load("test")
    mean, std = np.array(source.inference.mean), np.array(source.inference.std)
    images = ((split.images / 255 - mean) / std).astype("float32")
    model = kerasnet.create_model("tiny", registry=load_registry(registry), weights=weights)
    logits = np.mean(
        [np.asarray(model(i), "float64") for i in (images, images[:, :, ::-1])], axis=0
    )
    total = np.log(np.exp(logits).sum(axis=1))
    loss = (total - logits[np.arange(len(split)), split.labels]).mean()
    return float((logits.argmax(axis=1) == split.labels).mean()), float(loss)


def test_flips_are_reported_apart_from_one_reading(registry, weights, loads, capfd):
    words = ["--model", "tiny", "--weights", weights, "--registry", registry]
    words += ["--dataset", "mirrored"]
    code, out, err = run_cli(capfd, "evaluate", *words, "--json")
    assert code == 0, err
    plain = json.loads(out)
    assert not {key for key in plain if "tta" in key}
    loads.clear()
    code, out, err = run_cli(capfd, "evaluate", *words, "--tta", "flip", "--json")
    assert code == 0, err
    assert loads == ["test"]
    found = json.loads(out)
    assert {key: found[key] for key in plain} == plain
    assert set(found) - set(plain) == {"tta", "test_accuracy_tta", "test_loss_tta"}
    accuracy, loss = expected(registry, weights)
    assert found["tta"] == "flip"
    assert found["test_accuracy_tta"] == pytest.approx(accuracy, abs=1 / 360)
    assert found["test_loss_tta"] == pytest.approx(loss, rel=1e-4)
    assert found["test_loss_tta"] != found["test_loss"]


def test_a_run_is_measured_with_flips_too(registry, weights, loads, tmp_path, capfd):
    config = new_run("tiny", {"dataset": "mirrored"}, load_registry(registry))
    run = create_run(tmp_path / "run", config)
    run.prepare()
    shutil.copy(weights, run.last_weights)
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*") if file.is_file()}
    found = kerasnet.evaluate(run, tta="flip")
    assert loads == ["test"]
    accuracy, _ = expected(registry, weights)
    assert found["test_accuracy_tta"] == pytest.approx(accuracy, abs=2 / 360)
    code, out, err = run_cli(capfd, "evaluate", str(run.path), "--tta", "flip")
    assert code == 0, err
    said = " ".join((out + err).split())
    assert f"test accuracy {found['test_accuracy']:.2%} on 360 images" in said
    assert f"with test-time augmentation (flip): {found['test_accuracy_tta']:.2%}" in said
    assert {f: f.stat().st_mtime_ns for f in run.path.rglob("*") if f.is_file()} == before


def test_what_a_data_set_forbids_is_not_done_to_test_images(weights, registry, tmp_path, capfd,
                                                            loads):  # fmt: skip
    words = ["--model", "tiny", "--weights", weights, "--registry", registry]
    words += ["--dataset", "digits"]
    config = new_run("tiny", {"dataset": "digits"}, load_registry(registry))
    run = create_run(tmp_path / "run", config)
    for arguments in (words, [str(run.path)]):
        code, out, err = run_cli(capfd, "evaluate", *arguments, "--tta", "flip")
        assert (code, out) == (2, "")
        assert "--tta flip: data set 'digits' forbids flips" in err
    with pytest.raises(BadInputError, match="forbids flips"):
        kerasnet.evaluate(run, tta="flip")
    code, _, err = run_cli(capfd, "evaluate", str(run.path), "--tta", "flop")
    assert code == 2
    assert "--tta takes flip, not 'flop'. Did you mean 'flip'?" in err
    assert loads == []


# ---------------------------------------------------------------------------- a file's own images


DIGITS = [str(i) for i in range(10)]


def carrying(registry, weights, file, names, shift, **more):
    """Write the weights again, with what a run's say of its images."""
    model = kerasnet.create_model("tiny", registry=load_registry(registry), weights=weights)
    block = {"mean": [shift] * 3, "std": [0.5] * 3, "resize": [32, 32], "class_names": names}
    save_weights(model, file, {"inference": block | more})
    return ["--model", "tiny", "--weights", str(file), "--registry", registry, "--dataset"]


def test_images_are_normalised_as_the_weights_were_trained(registry, weights, tmp_path, capfd):
    losses = []
    for i, mean in enumerate((0.0, 0.9)):
        words = carrying(registry, weights, tmp_path / f"{i}.safetensors", DIGITS, mean)
        code, out, err = run_cli(capfd, "evaluate", *words, "digits", "--json")
        assert code == 0, err
        losses.append(json.loads(out)["test_loss"])
    split = kerasnet.load_dataset("digits").load("test")
    model = kerasnet.create_model("tiny", registry=load_registry(registry), weights=weights)
    for mean, loss in zip((0.0, 0.9), losses, strict=True):
        logits = np.asarray(model((split.images / 255 - mean).astype("float32") / 0.5), "float64")
        total = np.log(np.exp(logits).sum(axis=1))
        told = total - logits[np.arange(len(split)), split.labels]
        assert loss == pytest.approx(told.mean(), rel=1e-4)


def test_images_have_the_size_that_the_weights_were_trained_on(registry, loads, tmp_path, capfd):
    words = ["fit", "tiny", "--registry", registry, "--dataset", "digits", "--limit-train", "64",
             "--epochs", "1", "--precision", "float32"]  # fmt: skip
    out = tmp_path / "run"
    code, said, err = run_cli(capfd, *words, "--input-size", "16x24", "--out", str(out), "--json")
    assert code == 0, err
    assert "input 16×24×3" in err
    run = kerasnet.load_run(out)
    assert run.config.input == [16, 24, 3]
    words = ["--model", "tiny", "--weights", str(run.last_weights), "--registry", registry]
    code, again, err = run_cli(capfd, "evaluate", *words, "--dataset", "digits", "--json")
    assert code == 0, err
    for key in ("test_accuracy", "test_loss"):
        assert json.loads(again)[key] == pytest.approx(json.loads(said)[key], rel=1e-5)
    for more, told in (
        (["--config", str(out)], "--config fixes what --input-size would choose"),
        (["--resume", str(out)], "--input-size 32x32: a run that goes on carries all of this"),
    ):
        code, _, err = run_cli(capfd, "fit", *more, "--input-size", "32")
        assert (code, told in err) == (2, True), err
    for size in ("16x24x3", "16x24x1", "a"):
        code, _, err = run_cli(capfd, "fit", "resnet8", "--input-size", size)
        assert (code, f"--input-size takes 64 or 64x48, not '{size}'" in err) == (2, True), err


@pytest.mark.parametrize("size", ["64", (64, 48, 3), (0, 0), 0, 2.5, (64.5, 64)])
def test_a_size_that_is_none(size):
    with pytest.raises(BadInputError, match="input"):
        new_run("resnet8", {"dataset": "digits", "input_size": size})
    assert new_run("resnet8", {"dataset": "digits", "input_size": 64}).input == [64, 64, 3]


def test_weights_of_other_classes_are_not_measured(registry, weights, loads, tmp_path, capfd):
    from PIL import Image

    for split in ("train", "test"):
        for name in "abcdefghij":
            (tmp_path / "letters" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "letters" / split / name / "0.png")
    words = carrying(registry, weights, tmp_path / "w.safetensors", list("bacdefghij"), 0.5)
    code, out, err = run_cli(capfd, "evaluate", *words, str(tmp_path / "letters"))
    assert (code, out, loads) == (2, "", [])
    assert "w.safetensors tells b, a, c, d, e, f, g, h, i, j apart;" in err
    assert "letters has a, b, c, d, e, f, g, h, i, j: class 0 is 'b' there and 'a' here" in err
    assert f"--dataset {tmp_path / 'letters'} --weights {words[3]} --reset-head" in err
    code, _, err = run_cli(capfd, "evaluate", *words, "digits")
    assert (code, "class 0 is 'b' there and '0' here" in err) == (2, True)
    # Numbers name nothing that could be another thing.
    words = carrying(registry, weights, tmp_path / "n.safetensors", DIGITS, 0.5)
    code, _, err = run_cli(capfd, "evaluate", *words, str(tmp_path / "letters"))
    assert code == 0, err


@pytest.mark.parametrize(("block", "said"), [
    ({"resize": [0, 32]}, "not what weights say of their images: resize.0:"),
    ({"mean": [0.5], "std": [0.5]}, "was trained on images of 1 channels; these have 3"),
])  # fmt: skip
def test_weights_that_say_what_cannot_be(registry, weights, tmp_path, capfd, block, said):
    words = carrying(registry, weights, tmp_path / "w.safetensors", DIGITS, 0.5, **block)
    code, out, err = run_cli(capfd, "evaluate", *words, "digits")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'w.safetensors'}: {said}" in err


def test_a_forgotten_option_is_named(weights, capfd):
    code, _, err = run_cli(capfd, "evaluate", "resnet20", "--weights", weights)
    assert code == 2
    assert f"name the model: kerasnet evaluate --model resnet20 --weights {weights}" in err


@pytest.mark.slow
def test_training_takes_no_part_in_it(registry, tmp_path, loads):
    run = kerasnet.fit(
        "tiny", dataset="mirrored", registry=load_registry(registry), epochs=1, limit_train=64,
        out=tmp_path / "run", console=Console(quiet=True),
    )  # fmt: skip
    assert loads == ["train", "test"]
    assert not {key for key in run.summary() if "tta" in key}
