"""First weights that a recipe asks for: which variables they are, their values, and their runs."""

from __future__ import annotations

import re

import numpy as np
import pytest
from commands import run_cli
from rich.console import Console
from zoo import every_model

from kerasnet import config as configs
from kerasnet import data, initial, range_test, schema, train
from kerasnet.build import build, feature_model
from kerasnet.convert import read_arrays, save_weights, weight_variables
from kerasnet.document import DocumentError, parse, to_yaml, validate
from kerasnet.errors import KerasnetError
from kerasnet.plan import plan_model
from kerasnet.registry import load_registry, overlay
from kerasnet.runs import create_run
from kerasnet.tune.space import check_space

REGISTRY = load_registry()
OPTIONS = {
    "branch_gamma": 0.25, "shortcut": "identity", "shortcut_beta": 0.5, "convs": "identity",
    "stem": "whitening",
}  # fmt: skip
PLAIN = schema.Inference(mean=[0.5] * 3, std=[0.25] * 3, resize=[32, 32], class_names=["a", "b"])


def plan_of(name: str, shape=None):
    return plan_model(REGISTRY.architecture(name), shape)


def asked(**options) -> schema.Initial:
    return schema.Initial(**options)


def pictures(n: int, shape, seed: int = 0) -> data.Split:
    """Return images of blurred noise, whose neighbouring pixels and channels are correlated."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    noise = rng.normal(size=(n, height + 4, width + 4, channels))
    windows = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), (1, 2)).mean((-2, -1))
    mixed = windows + 0.5 * windows.mean(-1, keepdims=True) + 0.05 * rng.normal(size=windows.shape)
    images = np.clip(128 + 250 * mixed, 0, 255).astype(np.uint8)
    return data.Split(images, np.arange(n) % 2)


def arrays(model) -> dict[str, np.ndarray]:
    return {key: np.array(variable.numpy()) for key, variable in weight_variables(model).items()}


def applied(plan, spec, seed=3, images=None, **options):
    """Return a model with the seed's own weights, and one with a recipe's first weights."""
    model = build(plan, seed=seed, **options)
    before = arrays(model)
    images = images or pictures(8, plan.input_shape)
    initial.apply(model, plan, spec, images, PLAIN, seed)
    return model, before


# ---------------------------------------------------------------------------- which variables


def named(plan) -> dict[str, set[str]]:
    """Return what each option is for, by the layers' names and shapes alone."""
    names = [layer.name for layer in plan.layers]
    blocks = [name.removesuffix("_merge") for name in names if name.endswith("_merge")]
    norms = {b: [n for n in names if re.fullmatch(rf"{b}_norm\d+", n)] for b in blocks}
    shapes = {key: shape for key, shape in plan.variables().items() if key.endswith("conv/kernel")}
    convs = [x for x in plan.layers if x.type == "Conv2D"]
    return {
        "branch_gamma": {f"{max(found)}/gamma" for found in norms.values()},
        "shortcut": {
            key for key, shape in shapes.items()
            if "_shortcut_" in key and shape[2] == shape[3]
        },
        "shortcut_beta": {f"{n}/beta" for n in names if n.endswith("_shortcut_norm")},
        "convs": {
            f"{x.name}/kernel" for x in convs[1:]
            if x.kernel in (3, 5, 7) and x.options["groups"] == 1
        },
        "stem": {f"{convs[0].name}/kernel"},
    }  # fmt: skip


@pytest.mark.parametrize("name", REGISTRY.models)
def test_each_option_is_for_what_the_layers_are_called(name):
    plan = plan_of(name)
    for option, expected in named(plan).items():
        spec = asked(**{option: OPTIONS[option]})
        if expected:
            assert initial.touched(plan, spec) == dict.fromkeys(expected, option)
        else:
            with pytest.raises(DocumentError, match=rf"recipe\.initial\.{option}: {name} has no "):
                initial.touched(plan, spec)


@pytest.mark.parametrize("name", [n for n in REGISTRY.models if named(plan_of(n))["branch_gamma"]])
def test_a_gamma_of_zero_is_refused_where_a_relu_would_keep_the_branch_dead(name):
    plan = plan_of(name)
    (norm, *_) = sorted(named(plan)["branch_gamma"])
    relu = norm.removesuffix("/gamma").replace("norm", "act")
    if any(layer.name == relu for layer in plan.layers):
        for gamma in (0.0, 1e-50):
            with pytest.raises(DocumentError, match="small positive number") as error:
                initial.touched(plan, asked(branch_gamma=gamma))
            assert name in str(error.value)
        assert initial.touched(plan, asked(branch_gamma=1e-3))
    else:
        assert initial.touched(plan, asked(branch_gamma=0.0))


def fitting(plan) -> schema.Initial:
    """Return every option that a model has a place for."""
    return asked(**{option: OPTIONS[option] for option, found in named(plan).items() if found})


@pytest.mark.parametrize("name", every_model(2e7))
def test_all_other_variables_keep_the_seeds_bits(name):
    plan = plan_of(name)
    spec = fitting(plan)
    model, before = applied(plan, spec)
    after, changed = arrays(model), initial.touched(plan, spec)
    assert set(spec.asked) == set(changed.values())
    for key, array in after.items():
        if key not in changed:
            assert array.tobytes() == before[key].tobytes(), key
        elif changed[key] == "branch_gamma":
            assert (array == 0.25).all()
        elif changed[key] == "shortcut_beta":
            assert (array == 0.5).all()
        elif changed[key] == "shortcut":
            assert np.array_equal(array[0, 0], np.eye(array.shape[-1]))
        else:
            assert array.shape == before[key].shape
            assert not np.array_equal(array, before[key])


MINE = """
norms: {{plain: {{type: batch_norm, scale: false}}}}
blocks: {{b: {{convs: [{{kernel: 3, norm: {norm}, act: none}}], shortcut: identity}}}}
models:
  mine:
    input: [8, 8, 3]
    stem: {stem}
    stages: [{{block: b, width: 3}}]
    head: [global_avg_pool, {{dense: classes}}]
"""


@pytest.mark.parametrize(
    ("norm", "stem", "option", "said"),
    [
        ("false", "[]", "branch_gamma", "mine: the branch of stage1_block1 has no batch norm"),
        ("plain", "[]", "branch_gamma", "stage1_block1_norm1, which has no gamma"),
        ("bn", "[]", "convs", "mine has no convolution of an odd kernel above 1×1"),
        ("bn", "[act]", "stem", "stage1_block1_conv1, the first convolution, takes the output of "
         "stem_act"),
        ("bn", "[{conv: {filters: 3, kernel: 3, groups: 3}}]", "stem", "has 3 groups"),
        ("bn", "[{zero_pad: 8}, {conv: {filters: 3, kernel: 24, padding: 0}}]", "stem",
         "no 24×24 window that lies within an image of 8×8×3"),
        ("bn", "[{zero_pad: 16}, {conv: {filters: 3, kernel: 32, padding: 0}}]", "stem",
         "patches of 32×32×3 values; the limit"),
    ],
)  # fmt: skip
def test_what_a_model_lacks_is_named(norm, stem, option, said):
    registry = overlay(parse(MINE.format(norm=norm, stem=stem).encode(), "mine.yaml"))
    plan = plan_model(registry.architecture("mine"))
    with pytest.raises(DocumentError) as error:
        initial.touched(plan, asked(**{option: OPTIONS[option]}))
    assert said in str(error.value)


def test_a_norm_that_the_shortcut_needs_too_is_no_branch_s(tmp_path):
    text = MINE.format(norm="bn", stem="[]").replace(
        "convs: [{kernel: 3, norm: bn, act: none}], shortcut: identity",
        "order: norm-act-conv, convs: [{kernel: 3}], "
        "shortcut: {project: {when: always, from: preactivation, norm: false}}",
    )
    registry = overlay(parse(text.encode(), "mine.yaml"))
    plan = plan_model(registry.architecture("mine"))
    with pytest.raises(DocumentError, match=r"block1_norm1 is the shortcut's too; leave it out"):
        initial.touched(plan, asked(branch_gamma=0.1))


# ---------------------------------------------------------------------------- what they compute


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
@pytest.mark.parametrize("layers", ["fast", "stock"])
def test_with_a_gamma_of_zero_each_block_is_its_shortcut(name, layers):
    plan = plan_of(name, (16, 16, 3))
    model, _ = applied(plan, asked(branch_gamma=0.0), layers=layers)
    blocks = [x.name.removesuffix("_merge") for x in plan.layers if x.type == "Add"]
    ways = {b: plan.layer(f"{b}_merge").inputs[1] for b in blocks}
    # The input has no layer whose output could be asked for, and no block begins at it here.
    inside = feature_model(model, plan, [*ways.values(), *(f"{b}_merge_act" for b in blocks)])
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    for training in (False, True):
        found = {key: np.array(value) for key, value in inside(images, training=training).items()}
        for block, way in ways.items():
            assert np.array_equal(found[f"{block}_merge_act"], np.maximum(found[way], 0))
            assert found[way].std() > 0


@pytest.mark.parametrize(
    ("layers", "policy"), [("fast", "float32"), ("stock", "float32"), ("fast", "mixed_bfloat16")]
)
def test_an_identity_shortcut_hands_on_its_input(layers, policy):
    plan = plan_of("resnet50")
    model, _ = applied(plan, asked(shortcut="identity"), layers=layers, policy=policy)
    names = [k.split("/")[0] for k in initial.touched(plan, asked(shortcut="identity"))]
    assert len(names) == 10
    sources = {name: plan.layer(name).inputs[0] for name in names}
    inside = feature_model(model, plan, [*sources, *sources.values()])
    found = inside(np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32"))
    for name, source in sources.items():
        stride = plan.layer(name).stride
        taken = np.array(found[source], "float32")[:, ::stride, ::stride]
        assert np.array_equal(np.array(found[name], "float32"), taken)


def test_an_identity_convolution_hands_on_the_channels_that_it_can():
    registry = overlay(parse(b"""
models:
  wider:
    extends: vgg11
    input: [16, 16, 3]
    defaults: {bias: false}
    stages:
      - {block: conv3x3, width: 8, repeats: 2}
      - {block: conv3x3, width: 12, after: [max_pool: 2]}
      - {block: conv3x3, width: 5}
""", "mine.yaml"))  # fmt: skip
    plan = plan_model(registry.architecture("wider"))
    model, before = applied(plan, asked(convs="identity"), layers="stock")
    assert np.array_equal(arrays(model)["stage2_block1_conv1/kernel"][..., 8:],
                          before["stage2_block1_conv1/kernel"][..., 8:])  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    names = ["stage1_block1_act1", "stage1_block2_conv1", "stage2_block1_conv1", "stage2_pool",
             "stage3_block1_conv1"]  # fmt: skip
    found = {k: np.array(v) for k, v in feature_model(model, plan, names)(images).items()}
    assert np.array_equal(found["stage1_block2_conv1"], found["stage1_block1_act1"])
    assert np.array_equal(found["stage2_block1_conv1"][..., :8], found["stage1_block1_act1"])
    assert np.array_equal(found["stage3_block1_conv1"], found["stage2_pool"][..., :5])


# ---------------------------------------------------------------------------- whitening


def slow_patches(images, inference, plan) -> np.ndarray:
    """Return, one after the other, the patches that the first convolution sees in whole."""
    conv = next(x for x in plan.layers if x.type == "Conv2D")
    padding = conv.padding
    if plan.layer(conv.inputs[0]).type == "ZeroPadding2D":
        padding += plan.layer(conv.inputs[0]).options["padding"][0][0]
    found = []
    for image in images:
        pixels = (image.astype("float64") / 255 - inference.mean) / inference.std
        for i in range(conv.output_shape[0]):
            for j in range(conv.output_shape[1]):
                y, x = i * conv.stride - padding, j * conv.stride - padding
                patch = pixels[max(y, 0) : y + conv.kernel, max(x, 0) : x + conv.kernel]
                if min(y, x) >= 0 and patch.shape[:2] == (conv.kernel, conv.kernel):
                    found.append(((i, j), patch.reshape(-1)))
    return found


@pytest.mark.parametrize(
    ("name", "shape", "filters"),
    [("resnet8", (14, 15, 3), 16), ("resnet50", (20, 20, 3), 64), ("vgg16", (32, 32, 3), 64),
     ("resnet50_keras", (33, 33, 1), 64)],
)  # fmt: skip
def test_whitening_is_the_plain_formula(name, shape, filters):
    plan, images = plan_of(name, shape), pictures(6, shape)
    inference = PLAIN.model_copy(update={"mean": [0.4] * shape[2], "std": [0.3] * shape[2]})
    conv = next(x for x in plan.layers if x.type == "Conv2D")
    patches = np.array([patch for _, patch in slow_patches(images.images, inference, plan)])
    assert len(patches) > 100
    covariance = np.cov(patches, rowvar=False, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    model = build(plan, seed=0)
    spec = asked(stem="whitening", whitening_epsilon=1e-3)
    seeds = arrays(model)[f"{conv.name}/kernel"]
    initial.apply(model, plan, spec, images, inference, 0)
    made = arrays(model)[f"{conv.name}/kernel"].reshape(-1, filters)
    pairs = min(len(values), filters // 2)
    for i in range(pairs):
        expected = vectors[:, -1 - i] / np.sqrt(values[-1 - i] + 1e-3)
        sign = np.sign(expected @ made[:, i])
        # Neighbouring eigenvalues may be as good as equal: then only what they span is fixed.
        apart = min(abs(np.delete(values, len(values) - 1 - i) - values[-1 - i])) / values[-1 - i]
        if apart > 1e-3:
            assert np.allclose(made[:, i], sign * expected, atol=1e-3 * abs(expected).max())
        assert np.array_equal(made[:, pairs + i], -made[:, i])
        assert made[abs(made[:, i]).argmax(), i] > 0
    kept = seeds.reshape(-1, filters)[:, 2 * pairs :]
    assert np.array_equal(made[:, 2 * pairs :], kept)
    assert kept.shape[1] == max(0, filters - 2 * len(values))


def real(name: str) -> tuple[data.Split, schema.Inference]:
    source = data.load_dataset(name, size=(32, 32))
    return data.limit(source.load("train"), 60, 0), source.inference


@pytest.mark.parametrize("dataset", ["digits", pytest.param("cifar10", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["resnet8", "resnet50"])
def test_whitened_outputs_are_decorrelated_and_of_unit_variance(name, dataset):
    try:
        images, inference = real(dataset)
    except KerasnetError as error:
        pytest.skip(f"needs {dataset}: {error}")
    plan = plan_of(name)
    model = build(plan, seed=0)
    spec = asked(stem="whitening", whitening_epsilon=1e-6)
    initial.apply(model, plan, spec, images, inference, 0)
    std, mean = np.array(inference.std), np.array(inference.mean)
    pixels = ((images.images / 255 - mean) / std).astype("float32")
    outputs = np.array(feature_model(model, plan, ["stem_conv"])(pixels)["stem_conv"], "float64")
    places = {place for place, _ in slow_patches(images.images[:1], inference, plan)}
    rows, columns = ([min(p), max(p) + 1] for p in zip(*places, strict=True))
    inside = outputs[:, slice(*rows), slice(*columns)].reshape(-1, outputs.shape[-1])
    half = inside.shape[1] // 2
    covariance = np.cov(inside[:, :half], rowvar=False, bias=True)
    off = covariance - np.diag(np.diag(covariance))
    # λ / (λ + epsilon): one, but for directions in which the pictures do not vary at all.
    variances = np.diag(covariance)
    assert abs(off).max() < 0.01
    assert (variances < 1.01).all()
    patches = np.array([patch for _, patch in slow_patches(images.images, inference, plan)])
    values = np.linalg.eigvalsh(np.cov(patches, rowvar=False, bias=True))[::-1][:half]
    assert np.allclose(variances, values / (values + 1e-6), atol=0.01)
    assert (variances > 0.99).sum() >= 8
    assert np.allclose(inside[:, half:], -inside[:, :half], atol=1e-5)


def test_of_too_few_filters_the_odd_one_has_the_next_eigenvalue():
    covariance = np.diag([4.0, 1.0, 9.0])
    made = initial.whitened(np.zeros((1, 1, 3, 5), "float32"), covariance, 0.0)
    assert np.allclose(
        made[0, 0].T, [[0, 0, 1 / 3], [1 / 2, 0, 0], [0, 1, 0], [0, 0, -1 / 3], [-1 / 2, 0, 0]]
    )


def test_the_seed_chooses_the_images_and_nothing_else_does(monkeypatch):
    monkeypatch.setattr(initial, "IMAGES", 6)
    plan, images = plan_of("resnet8", (12, 12, 3)), pictures(40, (12, 12, 3))
    kernels = {}
    for seed, layers in ((0, "stock"), (0, "fast"), (1, "stock")):
        model, _ = applied(plan, asked(stem="whitening"), seed, images, layers=layers)
        kernels[seed, layers] = arrays(model)["stem_conv/kernel"]
    assert kernels[0, "stock"].tobytes() == kernels[0, "fast"].tobytes()
    assert not np.allclose(kernels[0, "stock"], kernels[1, "stock"], atol=1e-4)


def test_patches_are_looked_at_in_parts_that_fit_into_memory(monkeypatch):
    images = pictures(9, (10, 11, 2), seed=4).images
    inference = PLAIN.model_copy(update={"mean": [0.5, 0.4], "std": [0.2, 0.3]})
    whole = initial.patch_covariance(images, inference, 3, 2, 1)
    monkeypatch.setattr(initial, "_CHUNK", 1)
    assert np.allclose(initial.patch_covariance(images, inference, 3, 2, 1), whole, atol=1e-12)
    monkeypatch.setattr(initial, "MAX_PATCHES", 3 * 30 * 30)
    seen = []
    monkeypatch.setattr(data, "limit", lambda split, n, seed: seen.append(n) or split)
    applied(plan_of("resnet8"), asked(stem="whitening"))
    assert seen == [3]


# ---------------------------------------------------------------------------- runs

TINY = """
models:
  tiny:
    input: [16, 16, 3]
    stem: [{conv: {filters: 8, kernel: 3}}, norm, act, {max_pool: 2}]
    stages:
      - {block: basic_plain_projection, width: 8}
      - {block: bottleneck_sum, width: 2}
    head: [global_avg_pool, {dense: classes}]
    recipes: {"*": still}
recipes:
  still:
    epochs: 2
    batch_size: 20
    optimizer: {type: sgd, learning_rate: 1e-30, momentum: 0.0}
    initial: {branch_gamma: 0.25, shortcut: identity, convs: identity, stem: whitening}
"""


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "tiny.yaml"
    made.write_text(TINY)
    return str(made)


def tiny(file: str, **options):
    given = {"dataset": "digits", "limit_train": 60, "precision": "float32", "epochs": 1}
    return configs.new_run("tiny", {**given, **options}, load_registry(file))


def expected_of(config) -> dict[str, np.ndarray]:
    """Return the first weights of a run, worked out beside it."""
    plan = configs.plan(config)
    model = build(plan, seed=config.seed)
    loaded = train.read_data(config)
    inference = loaded.source.inference
    initial.apply(model, plan, config.recipe.initial, loaded.train, inference, config.seed)
    return {k: v for k, v in arrays(model).items() if "moving" not in k}


def same(found, expected) -> None:
    for key, array in expected.items():
        assert np.allclose(found[key], array, rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("layers", ["fast", pytest.param("stock", marks=pytest.mark.slow)])
def test_a_run_begins_with_them(file, layers, tmp_path):
    config = configs.with_values(tiny(file), {"execution.layers": layers})
    run = create_run(tmp_path / "run", config)
    train.fit(run, console=Console(quiet=True))
    expected = expected_of(config)
    same(read_arrays(run.last_weights)[0], expected)
    assert (expected["stage1_block1_norm2/gamma"] == 0.25).all()


class Stopped(Exception):  # noqa: N818
    """Ends a training after an epoch."""


def test_a_run_that_goes_on_has_its_own_weights(file, tmp_path, monkeypatch):
    config = configs.with_values(tiny(file, epochs=2), {"recipe.optimizer.learning_rate": 0.05})
    whole, parts = (create_run(tmp_path / name, config) for name in ("whole", "parts"))
    train.fit(whole, console=Console(quiet=True))

    def stop(row):
        raise Stopped

    with pytest.raises(Stopped):
        train.fit(parts, console=Console(quiet=True), on_epoch=stop)
    monkeypatch.setattr(initial, "apply", None)
    train.fit(parts, console=Console(quiet=True))
    ours, theirs = (read_arrays(run.last_weights)[0] for run in (parts, whole))
    for key, array in theirs.items():
        assert np.allclose(ours[key], array, rtol=1e-4, atol=1e-5), key


def test_weights_of_a_file_stay_what_they_are(file, tmp_path):
    config = tiny(file)
    start = build(configs.plan(config), seed=9)
    save_weights(start, tmp_path / "start.safetensors")
    config = tiny(file, weights=tmp_path / "start.safetensors")
    model = train._first_model(config, train.read_data(config))
    for key, array in arrays(start).items():
        assert array.tobytes() == arrays(model)[key].tobytes()


def test_a_range_test_begins_with_them_too(file, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(range_test, "find", lambda model, *rest: seen.append(arrays(model)))
    config = tiny(file, learning_rate="find")
    train.find_rate(config, tmp_path, Console(quiet=True))
    same(seen[0], expected_of(config))


# ---------------------------------------------------------------------------- the command line


def test_a_dry_run_shows_them(file, capsys):
    code, out, _ = run_cli(capsys, "fit", "tiny", "--registry", file, "--dataset", "digits",
                           "--dry-run")  # fmt: skip
    assert code == 0
    assert "  initial: {branch_gamma: 0.25, shortcut: identity," in out


def zero(file: str) -> str:
    text = TINY.replace("branch_gamma: 0.25", "branch_gamma: 0")
    made = file.replace("tiny", "zero")
    with open(made, "w") as stream:
        stream.write(text)
    return made


def test_a_model_that_its_recipe_does_not_fit_is_told_with_line_and_column(file, capsys):
    made = zero(file)
    code, out, err = run_cli(capsys, "validate", made)
    assert (code, out) == (2, "")
    assert f"{made}:10:15: models.tiny.recipes.*: recipe 'still': initial.branch_gamma: " in err
    assert "stage2_block1_norm3 is followed by stage2_block1_act3, a relu" in err


def test_a_run_that_does_not_fit_is_refused_before_its_folder_is_made(file, tmp_path, capsys):
    code, _, err = run_cli(
        capsys, "fit", "vgg16", "--registry", file, "--recipe", "still", "--dataset", "digits",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 2
    assert "recipe.initial.branch_gamma: vgg16 has no residual branch" in err
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_does_not_fit_is_told_with_line_and_column(file, tmp_path, capsys):
    plain = tiny(file).model_dump(mode="json", by_alias=True)
    plain["recipe"]["initial"]["branch_gamma"] = 0.0
    made = tmp_path / "config.yaml"
    made.write_text(to_yaml(plain))
    lines = made.read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "branch_gamma: 0.0" in text)
    code, _, err = run_cli(capsys, "validate", str(made))
    assert code == 2
    assert f"{made}:{line}:" in err
    assert "recipe.initial.branch_gamma: received 0" in err


@pytest.mark.parametrize("given", ["{branch_gamma: -1}", "{shortcut: zeros}", "{steam: whitening}"])
def test_what_it_may_not_say_is_refused(given, tmp_path, capsys):
    made = tmp_path / "mine.yaml"
    made.write_text(f"recipes:\n  r: {{extends: small, initial: {given}}}\n")
    code, _, err = run_cli(capsys, "validate", str(made))
    assert code == 2
    assert f"{made}:2:" in err


SPACE = "parameters:\n  recipe.initial.branch_gamma: {type: choice, values: [null, 0, 0.1]}\n"


def test_a_search_space_names_them_by_path(tmp_path, capsys):
    made = tmp_path / "space.yaml"
    made.write_text(SPACE)
    code, out, _ = run_cli(capsys, "validate", str(made))
    assert code == 0
    assert "1 parameter" in out
    document = parse(SPACE.encode(), "space.yaml")
    space = validate(schema.Space, document)
    check_space(configs.resolve("resnet8", dataset="digits"), space, document)
    with pytest.raises(DocumentError, match=r"space.yaml:2:3: .*recipe\.initial\.branch_gamma"):
        check_space(configs.resolve("resnet50", dataset="digits"), space, document)


def test_the_start_of_a_run_says_what_its_first_weights_are(file, tmp_path, capsys):
    from kerasnet.fitting import _start_of

    config = tiny(file)
    said = "branch_gamma 0.25, shortcut identity, convs identity, stem whitening"
    assert _start_of(config, configs.plan(config)) == f"first weights: {said}\n"
    config = config.model_copy(update={"weights": "w.safetensors"})
    assert f"first weights ({said}) are not used" in _start_of(config, configs.plan(config))


def test_recipes_without_them_are_as_they_were():
    recipe = REGISTRY.recipes["default"]
    assert recipe.initial.asked == {}
    plan = plan_of("resnet8", (16, 16, 3))
    model, before = applied(plan, recipe.initial)
    assert all(array.tobytes() == before[key].tobytes() for key, array in arrays(model).items())
