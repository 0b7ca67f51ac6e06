"""Telling the classes of pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import run_cli
from PIL import Image
from rich.console import Console

import kerasnet
from kerasnet.convert import save_weights
from kerasnet.errors import BadInputError
from kerasnet.registry import load_registry

TINY = """
models:
  tiny:
    extends: resnet8
    stem: [conv: {filters: 4, kernel: 3}, norm, act]
    stages: [{block: basic, width: 4, stride: 2}]
  grey: {extends: tiny, input: [16, 24, 1]}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("registry") / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


@pytest.fixture(scope="module")
def trained(registry, tmp_path_factory):
    return kerasnet.fit(
        "tiny", registry=load_registry(registry), dataset="digits", epochs=2, precision="float32",
        out=tmp_path_factory.mktemp("runs") / "tiny", console=Console(quiet=True),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The first test images as PNG, in a folder; more of them than are read at once."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(kerasnet.load_dataset("digits").load("test").images[:300]):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def test_a_run_tells_what_it_told_at_its_end(trained, digits):
    found = kerasnet.predict(digits, trained)
    assert [one.file for one in found] == sorted(map(str, digits.iterdir()))
    told = np.array([[dict(one.classes)[str(i)] for i in range(10)] for one in found])
    with np.load(trained.path / "predictions.npz") as kept:
        np.testing.assert_allclose(told, kept["probabilities"][:300], atol=1e-5)
    for one in found:
        values = [p for _, p in one.classes]
        assert values == sorted(values, reverse=True)
        assert one.to_json(2)["class"] == one.classes[0][0]


def test_pictures_are_named_one_by_one(trained, digits, capfd):
    files = [str(digits / "007.png"), str(digits / "003.png")]
    code, out, err = run_cli(capfd, "predict", str(trained.path), *files, "--top", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["file"] for one in found] == files
    expected = kerasnet.predict(files[0], trained.path)[0]
    assert found[0]["class"] == expected.classes[0][0]
    listed = [(one["class"], one["probability"]) for one in found[0]["classes"]]
    assert [name for name, _ in listed] == [name for name, _ in expected.classes[:2]]
    assert [p for _, p in listed] == pytest.approx([p for _, p in expected.classes[:2]], rel=1e-4)
    code, out, err = run_cli(capfd, "predict", str(trained.path), *files, "--top", "1")
    assert code == 0, err
    name, p = expected.classes[0]
    assert out.splitlines()[2].split() == [files[0], name, f"{p:.1%}"]


def test_weights_that_ship_are_calibrated(tmp_path, capfd):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), "uint8")
    Image.fromarray(pixels[0]).save(tmp_path / "noise.png")
    words = ["--model", "resnet8", "--weights", "pretrained", str(tmp_path / "noise.png")]
    code, out, err = run_cli(capfd, "predict", *words, "--top", "10", "--json")
    assert code == 0, err
    (found,) = json.loads(out)
    model = kerasnet.create_model("resnet8", weights="pretrained", preprocessing=True)
    names = load_registry().datasets["cifar10"].class_names
    expected = dict(zip(names, model.predict(pixels, verbose=0)[0], strict=True))
    told = {one["class"]: one["probability"] for one in found["classes"]}
    assert told == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_model_of_grey_images_takes_any_picture(registry, tmp_path):
    known = load_registry(registry)
    block = {"mean": [0.5], "std": [0.25], "resize": [16, 24], "class_names": ["a", "b", "c"]}
    model = kerasnet.create_model("grey", 3, registry=known, seed=1)
    save_weights(model, tmp_path / "w.safetensors", {"inference": block})
    colours = np.random.default_rng(0).integers(0, 256, (16, 24, 3), "uint8")
    Image.fromarray(colours).save(tmp_path / "colours.png")
    Image.open(tmp_path / "colours.png").convert("L").save(tmp_path / "grey.png")
    found = kerasnet.predict(
        [tmp_path / "colours.png", tmp_path / "grey.png"], model="grey",
        weights=tmp_path / "w.safetensors", registry=known,
    )  # fmt: skip
    assert found[0].classes == found[1].classes
    grey = np.asarray(Image.open(tmp_path / "grey.png"))[None, :, :, None]
    logits = np.asarray(model(((grey / 255 - 0.5) / 0.25).astype("float32")), "float64")[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert dict(found[0].classes) == pytest.approx(dict(zip("abc", expected, strict=True)), 1e-4)


@pytest.mark.parametrize(("words", "said"), [
    (["RUN"], "name pictures after the run folder"),
    (["RUN", "nothing.png"], "nothing.png: there is no such picture"),
    (["RUN", "empty"], "empty holds no pictures"),
    (["RUN", "text.png"], "text.png cannot be read as an image"),
    (["empty", "text.png"], "empty: not a run folder"),
    (["--model", "resnet8", "text.png"], "a run folder, or a model and weights"),
    (["--weights", "pretrained", "text.png"], "a run folder, or a model and weights"),
    (["--model", "resnet8", "--weights", "pretrained", "--best", "text.png"], "goes with a run"),
    (["--model", "resnet9", "--weights", "pretrained", "text.png"], "none ship for resnet9"),
    (["--model", "resnet8", "--weights", "none.safetensors", "text.png"], "no such weights file"),
    (["--model", "resnet8", "--weights", "plain.safetensors", "text.png"],
     "does not say which images and classes it is for"),
])  # fmt: skip
def test_what_cannot_be_told(trained, tmp_path, capfd, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("text")
    if "plain.safetensors" in words:
        save_weights(kerasnet.create_model("resnet8"), tmp_path / "plain.safetensors")
    words = [str(trained.path) if word == "RUN" else word for word in words]
    code, out, err = run_cli(capfd, "predict", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_python_says_it_too(trained, digits):
    with pytest.raises(BadInputError, match="a run folder, or a model and weights"):
        kerasnet.predict(digits)
    with pytest.raises(BadInputError, match="a run folder, or a model and weights"):
        kerasnet.predict(digits, trained, model="resnet8", weights="pretrained")
