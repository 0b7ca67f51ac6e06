"""Weights in and out: PyTorch's files, kerasnet's and Keras's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run_cli

import kerasnet
from kerasnet import convert, keys
from kerasnet.errors import BadInputError
from kerasnet.plan import Plan, plan_model
from kerasnet.registry import load_registry
from kerasnet.torch_files import read_state_dict, write_state_dict

REGISTRY = load_registry()
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
# The smallest network that has a style of keys, a norm without a bias before it, and a projection.
SMALL = """
models:
  small:
    extends: resnet8
    stem: [conv: {filters: 4, kernel: 3}, norm, act]
    stages: [{block: basic, width: 4}, {block: basic, width: 8, stride: 2}]
    keys: [torchvision_resnet, kuangliu_resnet]
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("registry") / "small.yaml"
    file.write_text(SMALL)
    return str(file)


def planned(name: str, file: str | None = None, **more) -> Plan:
    return plan_model(load_registry(file).architecture(name), **more)


def fabricated(plan: Plan, style: str | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights of a model as its PyTorch twin would have them."""
    rng = np.random.default_rng(seed)
    found = {}
    chosen = {**REGISTRY.key_styles, **plan.keys}[style or next(iter(plan.keys))]
    for key, slot in keys.slots(plan, chosen).by_key.items():
        found[key] = rng.uniform(0.5, 1.5, slot.shape).astype("float32")
        if slot.variable == "moving_variance":
            counter = f"{key.rpartition('.')[0]}.num_batches_tracked"
            found[counter] = rng.integers(1, 10**12, ())
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        assert found[key].tobytes() == np.asarray(array).tobytes(), key


# ---------------------------------------------------------------------------- the two networks


def _twin(name: str, side: int):
    import twins

    made = twins.ResNet50() if name == "resnet50" else twins.VGG16(side=side)
    return twins.with_random_statistics(made, seed=1)


@needs_torch
@pytest.mark.parametrize(("name", "side"), [("resnet50", 32), ("vgg16", 32), ("vgg16", 64)])
def test_a_twins_weights_give_its_logits_and_come_back(name, side, tmp_path):
    import torch

    twin = _twin(name, side)
    file, ours, back = (tmp_path / n for n in ("twin.ckpt", "w.safetensors", "back.pth"))
    torch.save(twin.state_dict(), file)
    shape = (side, side, 3)
    done = kerasnet.convert_weights(file, name, ours, input_shape=shape)
    assert done["tensors"] == len([k for k in twin.state_dict() if "num_batches" not in k])
    assert done["parameters"] == planned(name, input_shape=shape).params["total"]
    kerasnet.convert_weights(ours, name, back, input_shape=shape)
    images = np.random.default_rng(0).standard_normal((4, *shape), "float32")
    with torch.no_grad():
        expected = twin(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    model = kerasnet.create_model(name, input_shape=shape, weights=file)
    for weights in (file, ours):
        if weights == ours:
            model.set_weights([np.ones_like(w) for w in model.get_weights()])
            convert.load_weights(model, ours)
        found = np.asarray(model(images, training=False))
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"{name} at {side}: largest difference {difference:.2e} of the largest logit")
        assert difference <= 1e-4
    loaded = torch.load(back, weights_only=True)
    assert_same(
        {key: tensor.numpy() for key, tensor in loaded.items()},
        {key: tensor.numpy() for key, tensor in twin.state_dict().items()},
    )
    twin.load_state_dict(loaded)


@pytest.mark.parametrize(("name", "side"), [("resnet50", 32), ("vgg16", 64)])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_state_dicts_with_the_published_keys_come_back_bit_identical(name, side, suffix, tmp_path):
    plan = planned(name, input_shape=(side, side, 3))
    state, file = fabricated(plan), tmp_path / f"in{suffix}"
    if suffix == ".ckpt":
        write_state_dict(state, file)
    else:
        convert.save_arrays(state, file, {"format": "pt"})
    ours, back = tmp_path / "w.safetensors", tmp_path / "back.pt"
    size = {"input_shape": (side, side, 3)}
    kerasnet.convert_weights(file, name, ours, **size)
    arrays, metadata = convert.read_arrays(ours)
    assert {key: array.shape for key, array in arrays.items()} == plan.variables()
    assert metadata["pytorch"]["keys"] == next(iter(plan.keys))
    kerasnet.convert_weights(ours, name, back, **size)
    assert_same(read_state_dict(back), state)


def test_pytorchs_files_are_converted_without_keras(tmp_path):
    write_state_dict(fabricated(planned("resnet50")), tmp_path / "in.pt")
    code = (
        "import sys, kerasnet\n"
        "for a, b in [('in.pt', 'w.safetensors'), ('w.safetensors', 'back.ckpt')]:\n"
        "    kerasnet.convert_weights(a, 'resnet50', b)\n"
        "assert not {'keras', 'tensorflow', 'torch'} & set(sys.modules), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "back.ckpt").read_bytes() == (tmp_path / "in.pt").read_bytes()


# ---------------------------------------------------------------------------- formats and styles


def small(registry: str, source: Path, out: Path, **more) -> dict:
    return kerasnet.convert_weights(source, "small", out, registry=load_registry(registry), **more)


def test_one_style_becomes_another_and_the_counters_travel(registry, tmp_path):
    plan = planned("small", registry)
    state = fabricated(plan, "kuangliu_resnet")
    write_state_dict(state, tmp_path / "in.pth")
    done = small(registry, tmp_path / "in.pth", tmp_path / "a.pt", keys="torchvision_resnet")
    assert (done["input_keys"], done["output_keys"]) == ("kuangliu_resnet", "torchvision_resnet")
    moved = read_state_dict(tmp_path / "a.pt")
    assert moved.keys() == fabricated(plan, "torchvision_resnet").keys()
    counter = state["layer2.0.shortcut.1.num_batches_tracked"]
    assert moved["layer2.0.downsample.1.num_batches_tracked"] == counter
    # Without a style, they are written as they came in.
    small(registry, tmp_path / "in.pth", tmp_path / "w.safetensors")
    small(registry, tmp_path / "w.safetensors", tmp_path / "back.pth")
    assert_same(read_state_dict(tmp_path / "back.pth"), state)


def test_a_file_without_counters_comes_back_without_them(registry, tmp_path):
    state = fabricated(planned("small", registry))
    state = {key: array for key, array in state.items() if "num_batches" not in key}
    write_state_dict(state, tmp_path / "in.pt")
    small(registry, tmp_path / "in.pt", tmp_path / "w.safetensors")
    small(registry, tmp_path / "w.safetensors", tmp_path / "back.pt")
    assert_same(read_state_dict(tmp_path / "back.pt"), state)


@pytest.fixture(scope="module")
def trained(registry, tmp_path_factory) -> Path:
    """Weights as a run leaves them: kerasnet's keys, and metadata."""
    rng = np.random.default_rng(2)
    shapes = planned("small", registry).variables()
    file = tmp_path_factory.mktemp("trained") / "last.safetensors"
    inference = {"mean": [0.5] * 3, "std": [0.2] * 3, "resize": [32, 32],
                 "class_names": [str(i) for i in range(10)], "temperature": 1.0}  # fmt: skip
    arrays = {key: rng.uniform(0.5, 1.5, shape).astype("float32") for key, shape in shapes.items()}
    convert.save_arrays(arrays, file, {"model": "small", "epoch": 3, "inference": inference})
    return file


def test_metadata_survive_and_new_counters_are_zero(registry, trained, tmp_path):
    expected, metadata = convert.read_arrays(trained)
    small(registry, trained, tmp_path / "b.safetensors")
    assert convert.read_arrays(tmp_path / "b.safetensors")[1] == metadata
    assert_same(convert.read_arrays(tmp_path / "b.safetensors")[0], expected)
    done = small(registry, trained, tmp_path / "c.safetensors", keys="kuangliu_resnet")
    assert done["output_keys"] == "kuangliu_resnet"
    there, kept = convert.read_arrays(tmp_path / "c.safetensors")
    assert kept == {"format": "pt", **metadata}
    assert there["bn1.num_batches_tracked"].dtype == np.int64
    assert there["bn1.num_batches_tracked"] == 0
    small(registry, tmp_path / "c.safetensors", tmp_path / "d.safetensors")
    arrays, again = convert.read_arrays(tmp_path / "d.safetensors")
    assert again.pop("pytorch")["keys"] == "kuangliu_resnet"
    assert again == metadata
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_are_written_for_plain_keras_and_read_back(suffix, registry, trained, tmp_path):
    out, back = tmp_path / f"small{suffix}", tmp_path / "back.safetensors"
    assert small(registry, trained, out)["output_keys"] == "keras"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    small(registry, out, back)
    expected, found = convert.read_arrays(trained)[0], convert.read_arrays(back)[0]
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)
    known = load_registry(registry)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), "float32")
    model = kerasnet.create_model("small", weights=out, registry=known)
    logits = np.asarray(model(images, training=False))
    assert np.ptp(logits) > 0
    if suffix == ".keras":
        import keras

        plain = keras.saving.load_model(out)
        np.testing.assert_array_equal(np.asarray(plain(images, training=False)), logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_floats_become_float32_and_it_is_said(dtype, suffix, registry, tmp_path, capsys):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    state = fabricated(planned("small", registry))
    low = {k: a.astype(kind) if a.dtype == np.float32 else a for k, a in state.items()}
    file, out = tmp_path / f"in{suffix}", tmp_path / "out.safetensors"
    write_state_dict(low, file) if suffix == ".pt" else convert.save_arrays(low, file)
    code, said, err = run_cli(
        capsys, "convert", str(file), "--model", "small", "--registry", registry, "--out", str(out)
    )
    assert (code, err) == (0, "")
    tensors = len(planned("small", registry).variables())
    assert f"{dtype} became float32 in {tensors} tensors" in said
    arrays = convert.read_arrays(out)[0]
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    expected = low["fc.weight"].astype("float32").T
    np.testing.assert_array_equal(arrays["head_logits/kernel"], expected)


def test_a_chosen_state_dict_of_several(registry, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = fabricated(planned("small", registry))
    tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in state.items()}
    torch.save({"a": {"x": torch.zeros(1)}, "b": tensors}, tmp_path / "in.ckpt")
    with pytest.raises(BadInputError, match="2 state dicts"):
        small(registry, tmp_path / "in.ckpt", tmp_path / "o.pt")
    small(registry, tmp_path / "in.ckpt", tmp_path / "o.pt", state_dict="b")
    assert_same(read_state_dict(tmp_path / "o.pt"), state)


# ---------------------------------------------------------------------------- another head


def test_a_reset_head_is_what_the_seed_gives_and_the_rest_is_the_files(registry, tmp_path):
    state = fabricated(planned("small", registry, classes=7))
    write_state_dict(state, tmp_path / "seven.pt")
    with pytest.raises(BadInputError, match="all but the classifier fits: --reset-head") as error:
        small(registry, tmp_path / "seven.pt", tmp_path / "w.safetensors")
    assert "fc.weight: expected shape (10, 8), received (7, 8)" in str(error.value)
    done = small(registry, tmp_path / "seven.pt", tmp_path / "w.safetensors", reset_head=True)
    assert done["reset"] == ["head_logits"]
    known = load_registry(registry)
    fresh = kerasnet.create_model("small", registry=known, seed=0)
    expected = {k: np.asarray(v) for k, v in convert.weight_variables(fresh).items()}
    convert.load_weights(fresh, tmp_path / "seven.pt", reset_head=True)
    loaded = {k: np.asarray(v) for k, v in convert.weight_variables(fresh).items()}
    written = convert.read_arrays(tmp_path / "w.safetensors")[0]
    for key, array in written.items():
        np.testing.assert_array_equal(array, loaded[key])
        assert np.array_equal(array, expected[key]) == key.startswith("head_logits/"), key


def test_other_classes_are_kept_when_they_are_named(registry, tmp_path):
    state = fabricated(planned("small", registry, classes=7))
    write_state_dict(state, tmp_path / "seven.pt")
    small(registry, tmp_path / "seven.pt", tmp_path / "w.safetensors", classes=7)
    assert convert.read_arrays(tmp_path / "w.safetensors")[0]["head_logits/kernel"].shape == (8, 7)
    write_state_dict({**state, "fc.extra": np.zeros(1, "float32")}, tmp_path / "more.pt")
    with pytest.raises(BadInputError, match=r"left over: fc\.extra"):
        small(registry, tmp_path / "more.pt", tmp_path / "w.safetensors", reset_head=True)


# ---------------------------------------------------------------------------- what is refused


def _without(state):
    del state["layer2.0.downsample.1.running_mean"]


def _more(state):
    state["layer2.0.downsampled.1.running_mean"] = np.zeros(8, "float32")


def _other_shape(state):
    state["layer1.0.conv1.weight"] = np.zeros((4, 4, 1, 1), "float32")


def _nan(state):
    state["layer1.0.bn1.running_var"][1] = np.nan


def _whole_numbers(state):
    state["bn1.weight"] = np.ones(4, "int64")


def _too_large(state):
    state["bn1.weight"] = np.full(4, 1e300)


def _no_count(state):
    state["bn1.num_batches_tracked"] = np.float32(0.5)


def _foreign(state):
    state.clear()
    state.update({"encoder.weight": np.zeros(3, "float32")})


REFUSED = [
    (_without, ["missing: layer2.0.downsample.1.running_mean"], True),
    (_more, ["left over: layer2.0.downsampled.1.running_mean"], True),
    (
        lambda s: (_without(s), _more(s)),
        [
            "missing: layer2.0.downsample.1.running_mean (nearest: "
            "layer2.0.downsampled.1.running_mean)",
            "left over: layer2.0.downsampled.1.running_mean (nearest: "
            "layer2.0.downsample.1.running_mean)",
        ],
        True,
    ),
    (_other_shape, ["layer1.0.conv1.weight: expected shape (4, 4, 3, 3), received (4, 4, 1, 1)"],
     True),
    (_nan, ["layer1.0.bn1.running_var: has values that are not finite"], True),
    (_whole_numbers, ["bn1.weight: expected floating-point numbers, received int64"], True),
    (_too_large, ["bn1.weight: has values too large for float32"], True),
    (_no_count, ["bn1.num_batches_tracked: expected one whole number"], True),
    (_foreign, ["missing: conv1.weight", "left over: encoder.weight"], False),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said", "whole"), REFUSED)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_does_not_fit_is_listed_and_nothing_is_written(
    change, said, whole, suffix, registry, tmp_path, capsys
):
    state = fabricated(planned("small", registry))
    change(state)
    state = {key: np.asarray(array) for key, array in state.items()}
    file, out = tmp_path / f"in{suffix}", tmp_path / "out.safetensors"
    write_state_dict(state, file) if suffix == ".pt" else convert.save_arrays(state, file)
    code, _, err = run_cli(
        capsys, "convert", str(file), "--model", "small", "--registry", registry, "--out", str(out)
    )
    assert code == 2
    assert f"{file} does not fit small:" in err
    for words in said:
        assert words in err
    if whole:
        assert len(err.splitlines()) == 1 + len(said)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("source", "out", "more", "code", "said"),
    [
        ("in.pt", "out.bin", [], 2, "out.bin: expected a weights file whose name ends in .pt"),
        ("in.pt", "out.h5", [], 2, "Keras's weights end in .weights.h5"),
        ("in.pt", ".pt", [], 2, "expected a weights file"),
        ("in.zip", "out.pt", [], 2, "in.zip: expected a weights file whose name ends in"),
        ("none.pt", "out.pt", [], 2, "none.pt: there is no such weights file"),
        ("none.keras", "out.pt", [], 2, "none.keras: there is no such weights file"),
        ("in.pt", "folder.pt", [], 2, "folder.pt: is a folder"),
        ("in.pt", "file/out.pt", [], 4, "file/out.pt: cannot be written"),
        ("in.pt", "out.pt", ["--keys", "torchvision_resnets"], 2,
         "no key style 'torchvision_resnets'. Did you mean 'torchvision_resnet'?"),
        ("in.pt", "out.pt", ["--keys", "torchvision_vgg"], 2,
         "key style 'torchvision_vgg' has no rule for stem_conv"),
        ("in.pt", "out.keras", ["--keys", "torchvision_resnet"], 2, "files have Keras's own"),
        ("w.safetensors", "out.pt", ["--state-dict", "ema"], 2, "--state-dict is for .pt"),
        ("in.pt", "out.pt", ["--model", "smal"], 2, "there is no model 'smal'. Did you mean"),
        ("in.pt", "out.pt", ["--input-size", "a"], 2, "--input-size takes"),
        ("text.pt", "out.pt", [], 2, "text.pt"),
        ("text.safetensors", "out.pt", [], 2, "not a readable safetensors file"),
        ("text.keras", "out.pt", [], 2, "not a weights file that Keras wrote"),
        ("text.weights.h5", "out.pt", [], 2, "not a weights file that Keras wrote"),
    ],
)  # fmt: skip
def test_wrong_names_leave_everything_as_it_was(
    source, out, more, code, said, registry, trained, tmp_path, capsys
):
    write_state_dict(fabricated(planned("small", registry)), tmp_path / "in.pt")
    (tmp_path / "w.safetensors").write_bytes(trained.read_bytes())
    (tmp_path / "folder.pt").mkdir()
    for name in ("file", "in.zip", *(f"text{s}" for s in (".pt", ".safetensors", ".keras"))):
        (tmp_path / name).write_text("not weights")
    (tmp_path / "text.weights.h5").write_text("not weights")
    before = sorted(p.name for p in tmp_path.iterdir())
    model = [] if "--model" in more else ["--model", "small"]
    found, _, err = run_cli(
        capsys, "convert", str(tmp_path / source), *model, "--registry", registry, *more,
        "--out", str(tmp_path / out),
    )  # fmt: skip
    assert (found, said in err) == (code, True), err
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert list((tmp_path / "folder.pt").iterdir()) == []


def test_a_model_without_a_style_needs_one_named(tmp_path, trained, capsys):
    shapes = planned("resnet8").variables()
    file = tmp_path / "w.safetensors"
    convert.save_arrays({key: np.ones(shape, "float32") for key, shape in shapes.items()}, file)
    out = tmp_path / "o.pt"
    words = ["convert", str(file), "--model", "resnet8", "--out", str(out)]
    code, _, err = run_cli(capsys, *words)
    assert (code, REGISTRY.models["resnet8"].keys) == (2, [])
    assert "choose one with --keys. Those that fit: " in err
    fit = set(err.strip().rpartition(": ")[2].split(", "))
    assert len(fit) > 1
    codes = {style: run_cli(capsys, *words, "--keys", style)[0] for style in REGISTRY.key_styles}
    assert {style for style, code in codes.items() if code == 0} == fit < codes.keys()
    words = ["--out", str(out), "--keys", "torchvision_resnet", "--json"]
    code, said, _ = run_cli(capsys, "convert", str(file), "--model", "resnet8", *words)
    assert code == 0
    assert json.loads(said)["output_keys"] == "torchvision_resnet"


def test_metadata_of_a_stranger_are_not_believed(registry, trained, tmp_path):
    arrays = convert.read_arrays(trained)[0]
    for count in ("many", 2**70, 1.5, True):
        extras = {"keys": ["?"], "num_batches_tracked": {"stem_norm": count, "nobody": 3}}
        convert.save_arrays(arrays, tmp_path / "w.safetensors", {"pytorch": extras})
        with pytest.raises(BadInputError, match="num_batches_tracked of stem_norm"):
            small(registry, tmp_path / "w.safetensors", tmp_path / "o.pt")
    convert.save_arrays(arrays, tmp_path / "w.safetensors", {"pytorch": "?"})
    small(registry, tmp_path / "w.safetensors", tmp_path / "o.pt")
    assert (read_state_dict(tmp_path / "o.pt")["bn1.num_batches_tracked"]) == 0


def _linked(file: h5py.File) -> None:
    file["layers/conv2d/vars"].move("0", "gone")
    file["layers/conv2d/vars/0"] = h5py.ExternalLink("elsewhere.h5", "/x")


def _huge(file: h5py.File) -> None:
    del file["layers/conv2d/vars/0"]
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((2**40,))
    held = file["layers/conv2d/vars"].id
    h5py.h5d.create(held, b"0", h5py.h5t.IEEE_F32LE, space, dcpl=layout)


def _packed(file: h5py.File) -> None:
    value = file["layers/conv2d/vars/0"][()]
    del file["layers/conv2d/vars/0"]
    file.create_dataset("layers/conv2d/vars/0", data=value, compression="gzip")


def _renamed(file: h5py.File) -> None:
    file["layers/conv2d/vars"].attrs["name"] = "stem_convolution"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_linked, "expected arrays written one after the other"),
        (_huge, "expected shape \\(3, 3, 3, 4\\), received \\(1099511627776,\\)"),
        (_packed, "expected arrays written one after the other"),
        (_renamed, "missing: stem_conv/bias \\(nearest: stem_convolution/1\\)"),
    ],
)
def test_a_hostile_hdf5_file_is_refused(change, said, registry, trained, tmp_path):
    file = tmp_path / "small.weights.h5"
    small(registry, trained, file)
    with h5py.File(file, "r+") as opened:
        change(opened)
    with pytest.raises(BadInputError, match=said):
        convert.check_weights(planned("small", registry), file)


def test_a_keras_file_that_unpacks_to_too_much_is_refused(registry, tmp_path):
    file = tmp_path / "bomb.keras"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2**27))
    with pytest.raises(BadInputError, match="more than"):
        convert.check_weights(planned("small", registry), file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(BadInputError, match="not a weights file that Keras wrote"):
        convert.check_weights(planned("small", registry), file)


# ---------------------------------------------------------------------------- who takes weights


def test_fit_holds_a_checkpoint_against_its_plan_before_it_begins(tmp_path, capfd):
    write_state_dict(fabricated(planned("resnet50")), tmp_path / "r.ckpt")
    write_state_dict(fabricated(planned("vgg16")), tmp_path / "v.ckpt")
    words = ["fit", "resnet50", "--dataset", "digits", "--dry-run", "--json", "--weights"]
    code, out, _ = run_cli(capfd, *words, str(tmp_path / "r.ckpt"))
    assert code == 0
    config = json.loads(out)
    assert config["weights"] == str(tmp_path / "r.ckpt")
    # So that a later edit of the registry cannot change what a run's weights mean.
    assert list(config["architecture"]["keys"]) == ["published_resnet"]
    code, _, err = run_cli(capfd, *words, str(tmp_path / "v.ckpt"))
    assert code == 2
    assert "v.ckpt does not fit resnet50" in err


def test_a_runs_fast_layers_begin_with_a_checkpoints_weights(registry, trained, tmp_path):
    from kerasnet.config import new_run
    from kerasnet.train import make_model

    small(registry, trained, tmp_path / "w.pt")
    options = {"dataset": "digits", "weights": tmp_path / "w.pt", "precision": "mixed_bfloat16"}
    config = new_run("small", options, load_registry(registry))
    assert config.execution.layers == "fast"
    found = convert.weight_variables(make_model(config))
    expected = convert.read_arrays(trained)[0]
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key]), array)


def test_weights_without_a_run_are_evaluated(registry, trained, tmp_path, capfd):
    write = tmp_path / "w.pt"
    small(registry, trained, write)
    words = ["--model", "small", "--weights", str(write), "--dataset", "digits", "--json"]
    code, out, err = run_cli(capfd, "evaluate", *words, "--registry", registry)
    assert code == 0, err
    found = json.loads(out)
    source = kerasnet.load_dataset("digits")
    split = source.load("test")
    mean, std = np.array(source.inference.mean), np.array(source.inference.std)
    images = ((split.images / 255 - mean) / std).astype("float32")
    model = kerasnet.create_model("small", weights=trained, registry=load_registry(registry))
    right = (np.asarray(model(images)).argmax(axis=1) == split.labels).mean()
    assert found["test_images"] == len(split.labels) == 360
    assert found["test_accuracy"] == pytest.approx(right, abs=1 / 360)
    assert (found["model"], found["weights"]) == ("small", str(write))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a run folder (and --best), or --model NAME and --weights FILE"),
        (["--model", "resnet8"], "--model NAME and --weights FILE"),
        (["--model", "resnet8", "--weights", "none.pt", "--best"], "a run folder (and --best)"),
        (["--model", "resnet8", "--weights", "none.pt", "--dataset", "digits"],
         "none.pt: there is no such weights file"),
        (["runs/x", "--dataset", "digits"], "--dataset: a run folder says all of this"),
    ],
)  # fmt: skip
def test_evaluate_says_what_it_needs(words, said, capfd):
    code, _, err = run_cli(capfd, "evaluate", *words)
    assert code == 2
    assert said in err
    with pytest.raises(BadInputError, match="not both"):
        kerasnet.evaluate("runs/x", model="resnet8")
    with pytest.raises(BadInputError, match="needs a run, or a model and weights"):
        kerasnet.evaluate(model="resnet8")


def test_a_model_of_others_reads_kerasnets_own_files_only(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head_logits")])
    convert.save_weights(model, tmp_path / "w.safetensors")
    assert convert.load_weights(model, tmp_path / "w.safetensors") == {}
    model.save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(BadInputError, match="only models that kerasnet built"):
        convert.load_weights(model, tmp_path / "w.weights.h5")
