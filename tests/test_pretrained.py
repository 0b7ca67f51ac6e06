"""Weights that ship: written from runs in float16, calibrated, found by one word, and as said."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run_cli
from rich.console import Console
from safetensors.numpy import load_file, save_file

import kerasnet
from kerasnet import pretrained
from kerasnet.config import new_run, validated, with_values
from kerasnet.convert import read_arrays
from kerasnet.data.places import without_place
from kerasnet.document import Document
from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.files import shipped
from kerasnet.results.add import add
from kerasnet.results.card import MAX_SHIPPED_BYTES, cards_in, read_card
from kerasnet.results.ship import best_temperature, ship
from kerasnet.runs import create_run, load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; not to be changed."""
    return kerasnet.fit(
        "resnet8", dataset="digits", epochs=3, precision="float32", console=Console(quiet=True),
        out=tmp_path_factory.mktemp("runs") / "run",
    ).path  # fmt: skip


@pytest.fixture(scope="module")
def results(trained, tmp_path_factory):
    """A folder with the run's card and weights."""
    folder = tmp_path_factory.mktemp("kept") / "results"
    add([trained], folder=folder, weights=True)
    return folder


@pytest.fixture
def ships(results, monkeypatch):
    """The folder, as if it shipped with kerasnet."""
    monkeypatch.setattr(pretrained, "shipped", lambda _: results)
    return results


def test_a_run_s_weights_ship_beside_its_card(trained, results):
    card = read_card(results / "resnet8-digits-digits-3.json")
    file = results / "resnet8-digits.safetensors"
    found = card.shipped
    assert found is not None
    assert (found.file, found.seed, found.validation_images) == (file.name, 0, 144)
    assert found.bytes == file.stat().st_size < 200_000
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    halves, whole = load_file(file), load_file(load_run(trained).last_weights)
    assert halves.keys() == whole.keys()
    for key, array in whole.items():
        assert halves[key].dtype == np.float16
        np.testing.assert_allclose(halves[key], array, rtol=1e-3, atol=1e-6)
    assert found.test_accuracy == pytest.approx(card.test_accuracy, abs=2.1 / 360)
    assert found.validation_loss <= found.validation_loss_before
    _, metadata = read_arrays(file)
    assert metadata["inference"]["temperature"] == found.temperature
    assert not [f for f in results.iterdir() if f.suffix not in (".json", ".safetensors")]


def test_a_model_begins_with_them(ships):
    card = read_card(ships / "resnet8-digits-digits-3.json")
    digits = kerasnet.load_dataset("digits", size=(32, 32)).load("test")
    model = kerasnet.create_model("resnet8", weights="pretrained", preprocessing=True)
    found = model.predict(digits.images, verbose=0)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (found.argmax(axis=1) == digits.labels).mean() == card.shipped.test_accuracy
    logits = kerasnet.create_model("resnet8", weights="pretrained").predict(
        (digits.images / 255 - model_mean(ships)) / model_std(ships), verbose=0
    )
    cold = np.exp(logits / card.shipped.temperature)
    np.testing.assert_allclose(found, cold / cold.sum(axis=1, keepdims=True), atol=2e-4)


def inference(folder: Path) -> dict:
    return read_arrays(folder / "resnet8-digits.safetensors")[1]["inference"]


def model_mean(folder: Path) -> np.ndarray:
    return np.array(inference(folder)["mean"])


def model_std(folder: Path) -> np.ndarray:
    return np.array(inference(folder)["std"])


def test_they_are_evaluated_and_fine_tuned_by_the_word(ships, tmp_path, capfd):
    card = read_card(ships / "resnet8-digits-digits-3.json")
    code, out, _ = run_cli(capfd, "evaluate", "--model", "resnet8", "--weights", "pretrained",
                           "--dataset", "digits", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["test_accuracy"] == card.shipped.test_accuracy
    code, out, _ = run_cli(capfd, "fit", "resnet8", "--weights", "pretrained", "--dataset",
                           "digits", "--dry-run", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["weights"] == str(ships / "resnet8-digits.safetensors")


def test_they_are_converted_by_the_word(ships, tmp_path, capsys):
    file = tmp_path / "resnet8.safetensors"
    code, _, err = run_cli(capsys, "convert", "pretrained", "--model", "resnet8", "--out",
                           str(file))  # fmt: skip
    assert code == 0, err
    whole, halves = load_file(file), load_file(ships / "resnet8-digits.safetensors")
    assert whole.keys() == halves.keys()
    for key, array in whole.items():
        np.testing.assert_array_equal(array, halves[key].astype(np.float32))


def test_their_images_have_to_fit_the_model(ships):
    options = {"weights": "pretrained", "preprocessing": True}
    with pytest.raises(BadInputError, match=r"makes images of 32×32; the model's have 64×64\."):
        kerasnet.create_model("resnet8", input_shape=(64, 64, 3), **options)


def test_lists_of_cards_tell_what_ships(ships, capsys):
    code, out, _ = run_cli(capsys, "results", "--results", str(ships), "--json")
    assert code == 0
    (found,) = json.loads(out)
    card = read_card(ships / "resnet8-digits-digits-3.json")
    assert found["shipped"] == card.shipped.model_dump(mode="json")
    assert found["train_images"] == card.train_images == 1293


def test_they_are_named_by_the_word_wherever_weights_are(ships, tmp_path, capfd):
    file = str(ships / "resnet8-digits.safetensors")
    words = ["fit", "resnet8", "--dataset", "digits", "--dry-run", "--json"]
    _, out, _ = run_cli(capfd, *words)
    (tmp_path / "config.yaml").write_text(out)
    _, out, _ = run_cli(capfd, "fit", "--config", str(tmp_path / "config.yaml"), "--weights",
                        "pretrained", "--dry-run", "--json")  # fmt: skip
    assert json.loads(out)["weights"] == file
    begun = create_run(tmp_path / "run", validated(Document(json.loads(out)))[0])
    code, out, err = run_cli(capfd, "fit", "--resume", str(begun.path), "--weights", "pretrained",
                             "--dry-run", "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["weights"] == file


def test_another_data_set_s_will_do_for_a_new_classifier(ships):
    options = {"dataset": "cifar100", "weights": "pretrained"}
    config = new_run("resnet8", options | {"reset_head": True}, shape=(100, 3))
    assert config.weights == str(ships / "resnet8-digits.safetensors")
    with pytest.raises(BadInputError, match="with a classifier of its own, add --reset-head"):
        new_run("resnet8", options, shape=(100, 3))


def test_what_does_not_ship_is_said(ships, capfd):
    code, _, err = run_cli(capfd, "evaluate", "--model", "resnet20", "--weights", "pretrained",
                           "--dataset", "digits")  # fmt: skip
    assert code == 2
    assert (
        "weights 'pretrained': none ship for resnet20 on digits; there are resnet8-digits. Train "
        "it with: kerasnet fit resnet20 --dataset digits"
    ) in err
    with pytest.raises(BadInputError, match="none ship for resnet8 on cifar10") as caught:
        pretrained.weights_of("pretrained", "resnet8", "cifar10")
    assert "--reset-head" not in str(caught.value)


def test_lists_tell_what_ships(ships, capsys):
    _, out, _ = run_cli(capsys, "list", "resnet?*", "--json")
    weights = {row["name"]: row["pretrained"] for row in json.loads(out)}
    assert {name: found for name, found in weights.items() if found} == {"resnet8": ["digits"]}
    assert kerasnet.list_models("resnet?*", pretrained=True) == ["resnet8"]
    _, out, _ = run_cli(capsys, "list", "--pretrained")
    assert re.search(r"^resnet8 .*  digits  ", out, re.MULTILINE)
    assert "resnet20" not in out
    code, _, err = run_cli(capsys, "list", "vgg*", "--pretrained")
    assert code == 2
    assert "no weights ship for a model that matches 'vgg*'" in err


def test_a_model_of_several_data_sets_asks_which(ships, tmp_path, monkeypatch):
    both = shutil.copytree(ships, tmp_path / "results")
    shutil.copy(both / "resnet8-digits.safetensors", both / "resnet8-cifar10.safetensors")
    monkeypatch.setattr(pretrained, "shipped", lambda _: both)
    with pytest.raises(BadInputError, match=r"resnet8 was trained on cifar10, digits\. Name the"):
        pretrained.weights_of("pretrained", "resnet8")
    found = pretrained.weights_of("pretrained", "resnet8", "digits")
    assert found == both / "resnet8-digits.safetensors"
    assert pretrained.weights_of("mine.pth", "resnet8") == "mine.pth"
    assert pretrained.weights_of(None, "resnet8") is None


def test_weights_that_float16_cannot_hold_do_not_ship(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    file = load_run(run).last_weights
    arrays, metadata = read_arrays(file)
    arrays["stem_conv/kernel"] = arrays["stem_conv/kernel"] * 1e6
    save_file(arrays, file, {key: json.dumps(value) for key, value in metadata.items()})
    with pytest.raises(BadInputError, match=r"stem_conv/kernel: holds .* nothing above 65,504"):
        add([run], folder=tmp_path / "results", weights=True)
    assert not (tmp_path / "results").exists()


def test_one_file_has_one_card(trained, results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    file = folder / "resnet8-digits-digits-3.json"
    with pytest.raises(BadInputError, match=r"are the weights of .*digits-3\.json\. Remove that"):
        add([trained], folder=folder, name="another", weights=True)
    assert (
        read_card(file).shipped.sha256
        == hashlib.sha256((folder / "resnet8-digits.safetensors").read_bytes()).hexdigest()
    )
    assert not (folder / "another.json").exists()


def test_a_card_that_is_written_again_keeps_its_weights(trained, results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    file, card = add([trained], folder=folder, predicted=0.9, force=True)
    assert card.shipped == read_card(file).shipped == read_card(results / file.name).shipped
    assert card.shipped is not None


def test_a_card_that_is_replaced_leaves_no_weights_of_another_model(trained, results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    old, of_another = (
        folder / "resnet8-digits-digits-3.json",
        folder / "resnet20-digits.safetensors",
    )
    (folder / "resnet8-digits.safetensors").rename(of_another)
    text = old.read_text().replace("resnet8-digits.safetensors", of_another.name)
    old.write_text(text)
    with pytest.raises(BadInputError, match=r"resnet20-digits\.safetensors, which would be left"):
        add([trained], folder=folder, weights=True, force=True)
    assert old.read_text() == text


def test_weights_are_measured_on_the_images_they_were_trained_on(trained, tmp_path):
    run = load_run(shutil.copytree(trained, tmp_path / "run"))
    run.write_config(with_values(run.config, {"seed": 5}))
    with pytest.raises(BadInputError, match=r"these are not the images that .*run was trained on"):
        ship(run, tmp_path)
    run.write_config(with_values(run.config, {"seed": 0}))
    run.write_summary({**run.summary(), "data_remark": "stored as JPEG"})
    # The same images under another name.
    assert ship(run, tmp_path)
    for file in run.checkpoints.glob("step-*"):
        file.unlink()
    with pytest.raises(BadInputError, match=r"was trained on \(stored as JPEG\)"):
        ship(run, tmp_path)


def test_a_full_disk_leaves_weights_and_card_as_they_were(trained, results, small_disk):
    folder = shutil.copytree(results, small_disk / "results")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    size = len(before["resnet8-digits.safetensors"])
    free = shutil.disk_usage(small_disk).free - size - 8192
    (small_disk / "filler").write_bytes(bytes(free))
    with pytest.raises(EnvironmentFaultError, match=r"digits-3\.json: cannot be written"):
        add([trained], folder=folder, weights=True, force=True, predicted=0.9)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_weights_are_not_left_without_their_card(trained, results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    run = shutil.copytree(trained, tmp_path / "run")
    file = load_run(run).last_weights
    arrays, metadata = read_arrays(file)
    arrays["head_logits/bias"] = arrays["head_logits/bias"] + np.float32(1e-6)
    save_file(arrays, file, {key: json.dumps(value) for key, value in metadata.items()})
    with pytest.raises(BadInputError, match=r"not of these runs\. Add --ship, which replaces"):
        add([run], folder=folder, force=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    _, card = add([run], folder=folder, force=True, weights=True)
    digest = hashlib.sha256((folder / "resnet8-digits.safetensors").read_bytes()).hexdigest()
    assert card.shipped.sha256 == digest


def test_weights_that_say_nothing_of_their_images_do_not_ship(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    file = load_run(run).last_weights
    arrays, metadata = read_arrays(file)
    del metadata["inference"]
    save_file(arrays, file, {key: json.dumps(value) for key, value in metadata.items()})
    with pytest.raises(BadInputError, match=r"last\.safetensors: not a run's weights, which say"):
        add([run], folder=tmp_path / "results", weights=True)
    assert not (tmp_path / "results").exists()


def test_weights_of_ones_own_data_do_not_ship(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    opened = load_run(run)
    opened.write_config(with_values(opened.config, {"data.name": "mine"}))
    with pytest.raises(BadInputError, match="'mine', and what ships on a data set of the registry"):
        ship(opened, tmp_path / "results")


def test_a_run_that_held_nothing_back_does_not_ship(tmp_path):
    run = kerasnet.fit(
        "resnet8", dataset="digits", epochs=1, precision="float32", console=Console(quiet=True),
        limit_train=64, train_on="train+validation", out=tmp_path / "run",
    ).path  # fmt: skip
    with pytest.raises(BadInputError, match="held no validation images back"):
        add([run], folder=tmp_path / "results", weights=True)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 10))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(10, p=share) for share in shares])
    assert best_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.06)


def test_labels_that_are_all_likeliest_have_no_temperature():
    labels = np.arange(10)
    with pytest.raises(BadInputError, match=r"of 10 validation images 100\.00% are told right"):
        best_temperature(np.eye(10)[labels], labels)


def test_every_file_that_ships_has_one_card():
    named = [card.shipped.file for card in cards_in().values() if card.shipped]
    assert sorted(file.name for file in shipped("results").glob("*.safetensors")) == sorted(named)


SHIPPED = [name for name, card in cards_in().items() if card.shipped]


def test_the_small_nets_ship():
    assert {"resnet8", "resnet20"} <= {cards_in()[name].model for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_what_its_card_says(name):
    card = cards_in()[name]
    assert card.shipped is not None
    file = pretrained.weights_of("pretrained", card.model, card.dataset)
    assert Path(file).name == card.shipped.file
    content = Path(file).read_bytes()
    assert len(content) == card.shipped.bytes <= MAX_SHIPPED_BYTES + 2**17
    assert hashlib.sha256(content).hexdigest() == card.shipped.sha256
    assert card.shipped.test_accuracy == pytest.approx(card.runs[0].test_accuracy, abs=2e-3)
    arrays, metadata = read_arrays(file)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    assert metadata["inference"]["temperature"] == card.shipped.temperature
    assert kerasnet.create_model(card.model, weights="pretrained", preprocessing=True)
    assert (
        f"| `{card.model}` | {card.dataset} | {card.shipped.test_accuracy:.2%} | "
        f"{card.shipped.bytes / 1e6:.2f} MB | {card.shipped.temperature:.2f} | "
        f"{card.shipped.validation_loss_before:.3f} | {card.shipped.validation_loss:.3f} |"
    ) in (Path(__file__).parents[1] / "docs" / "weights.md").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_reaches_on_cifar10_what_its_card_says(name, capsys):
    if not (Path(os.environ.get("KERASNET_DATA_DIR", "/nowhere")) / "cifar10").is_dir():
        pytest.skip("KERASNET_DATA_DIR does not hold a prepared cifar10")
    card = cards_in()[name]
    code, out, _ = run_cli(capsys, "evaluate", "--model", card.model, "--weights", "pretrained",
                           "--dataset", card.dataset, "--json")  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["test_accuracy"] == pytest.approx(card.shipped.test_accuracy, abs=0.02)
    if without_place(found["data_remark"]) == card.data_remark:
        # Five images, for another processor's rounding.
        assert found["test_accuracy"] == pytest.approx(card.shipped.test_accuracy, abs=5e-4)
