"""RandAugment: each operation is PIL's, and each is drawn as often as the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError
from scipy import stats

from kerasnet import data, schema
from kerasnet.data.rand_augment import OPERATIONS, apply_operations, rand_augment

tf = pytest.importorskip("tensorflow")

FILL = (120, 110, 100)
NAMES = list(OPERATIONS)


def picture(height: int = 32, width: int = 24, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Not of noise alone, whose histogram is even and which every smoothing makes grey."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    ramp = 40 + 90 * (np.sin(y / 5)[..., None] + np.cos(x / 7)[..., None] + 1) / 3
    noise = random.randint(0, 60, (height, width, channels))
    return np.clip(ramp * (0.5 + 0.5 * random.rand(channels)) + noise, 0, 255).astype(np.uint8)


def enhance(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, s: kind(image).enhance(1 + 0.9 * s)


def affine(matrix: Callable[[float, int, int], tuple[float, ...]]):
    """A PIL transformation about the centre; `matrix` gives a, b, c, d, e, f about it."""

    def apply(image: Image.Image, s: float) -> Image.Image:
        a, b, c, d, e, f = matrix(s, *image.size)
        x, y = image.width / 2, image.height / 2
        about = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
        return image.transform(
            image.size, Image.Transform.AFFINE, about, Image.Resampling.NEAREST, fillcolor=FILL
        )

    return apply


def turn(s: float, w: int, h: int) -> tuple[float, ...]:
    cosine, sine = math.cos(math.radians(30 * s)), math.sin(math.radians(30 * s))
    return cosine, sine, 0, -sine, cosine, 0


PIL: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, s: image,
    "auto_contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "rotate": affine(turn),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "color": enhance(ImageEnhance.Color),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "shear_x": affine(lambda s, w, h: (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": affine(lambda s, w, h: (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": affine(lambda s, w, h: (1, 0, s * w * 150 / 331, 0, 1, 0)),
    "translate_y": affine(lambda s, w, h: (1, 0, 0, 0, 1, s * h * 150 / 331)),
}
STRENGTHS = (-1.0, -0.9, -0.35, 0.0, 0.11, 0.5, 0.9, 1.0)


def applied(images: np.ndarray, names: list[str], strengths: list[float]) -> np.ndarray:
    operations = tf.constant([[NAMES.index(name)] for name in names])
    sizes = tf.constant([[s] for s in strengths], tf.float32)

    @tf.function(jit_compile=True, autograph=False)
    def run(images, operations, sizes):
        return apply_operations(images, operations, sizes, FILL[: images.shape[-1]])

    return run(tf.constant(images), operations, sizes).numpy()


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]:
    """Every operation at every strength, ours and PIL's, compiled once."""
    keys = [(name, s) for name in NAMES for s in STRENGTHS]
    images = np.stack([picture(seed=i) for i in range(len(keys))])
    found = applied(images, [name for name, _ in keys], [s for _, s in keys])
    return {
        key: (ours, np.asarray(PIL[key[0]](Image.fromarray(image), key[1])))
        for key, ours, image in zip(keys, found, images, strict=True)
    }


def test_there_are_the_papers_fourteen() -> None:
    assert set(PIL) == set(NAMES)
    assert len(NAMES) == 14


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_gives_what_pil_gives(name: str, results) -> None:
    for strength in STRENGTHS:
        ours, theirs = results[name, strength]
        different = ours != theirs
        if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
            # A place on the edge between two pixels may fall to either.
            assert different.any(-1).mean() < 0.01, strength
        else:
            assert np.abs(ours.astype(int) - theirs).max() <= 1, strength
            assert different.mean() < 0.02, strength


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("auto_contrast", "equalize")])
def test_strength_zero_changes_nothing(name: str, results) -> None:
    ours, _ = results[name, 0.0]
    key = [(n, s) for n in NAMES for s in STRENGTHS].index((name, 0.0))
    np.testing.assert_array_equal(ours, picture(seed=key))


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
def test_a_plain_image_is_left_as_it_is(name: str, value: int) -> None:
    image = np.full((5, 6, 3), value, np.uint8)
    np.testing.assert_array_equal(OPERATIONS[name](tf.constant(image), 0.5, FILL), image)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    channels=st.integers(1, 4),
    strength=st.floats(-1, 1, width=32),
    seed=st.integers(0, 99),
)
def test_any_size_and_number_of_channels_goes_through(
    name: str, height: int, width: int, channels: int, strength: float, seed: int
) -> None:
    image = picture(height, width, channels, seed)
    fill = [9] * channels
    result = OPERATIONS[name](tf.constant(image), tf.constant(strength), fill).numpy()
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    if channels == 1 and name == "color":
        np.testing.assert_array_equal(result, image)


# ---------------------------------------------------------------------------- drawing


def every_outcome(images: np.ndarray) -> list[bytes]:
    """The results of one layer for each of the 28 equally likely draws, image by image."""
    names = [name for name in NAMES for _ in (0, 1)] * len(images)
    strengths = [way * 0.9 for _ in NAMES for way in (-1, 1)] * len(images)
    results = applied(np.repeat(images, 28, axis=0), names, strengths)
    return [result.tobytes() for result in results]


def drawn(image: np.ndarray, n: int, seed: list[int], layers: int = 1) -> list[bytes]:
    images = tf.constant(np.repeat(image[None], n, axis=0))
    chosen = schema.RandAugment(layers=layers, magnitude=9)
    run = tf.function(
        lambda images: rand_augment(
            images, chosen, seed=tf.constant(seed, tf.int64), fill=FILL
        ), autograph=False, jit_compile=True,
    )  # fmt: skip
    return [result.tobytes() for result in run(images).numpy()]


def test_operations_and_ways_are_equally_likely() -> None:
    image = picture(8, 8)
    possible, n = Counter(every_outcome(image[None])), 5_000
    seen = drawn(image, n, [4, 5])
    assert set(seen) == set(possible)
    counts = [seen.count(result) for result in possible]
    assert stats.chisquare(counts, [n * k / 28 for k in possible.values()]).pvalue > 0.001


@pytest.mark.slow
def test_layers_are_independent_and_in_order() -> None:
    image = picture(8, 8)
    first = [np.frombuffer(r, np.uint8).reshape(8, 8, 3) for r in every_outcome(image[None])]
    possible = set(every_outcome(np.stack(first)))
    seen = set(drawn(image, 600, [6, 7], layers=2))
    assert seen <= possible
    assert len(seen) > 150


def test_equal_seeds_do_equal_things_and_images_are_independent() -> None:
    image = picture(8, 8)
    one, same, other = (drawn(image, 50, seed, layers=2) for seed in ([1, 2], [1, 2], [1, 3]))
    assert one == same != other
    assert len(set(one)) > 25


def test_it_comes_after_flipping_and_before_cutout() -> None:
    images = tf.constant(np.stack([picture(8, 8, seed=i) for i in range(20)]))
    cut = schema.Augment(rand_augment=schema.RandAugment(), cutout=schema.Cutout(size=4))
    alone = cut.model_copy(update={"cutout": None})
    both, changed = (
        data.augment_batch(images, augment, seed=[1, 2], fill=FILL).numpy()
        for augment in (cut, alone)
    )
    cutout = (both == FILL).all(-1)
    assert cutout.any((1, 2)).all()
    np.testing.assert_array_equal(both[~cutout], changed[~cutout])


@pytest.mark.parametrize(
    ("field", "value"), [("layers", 0), ("layers", 11), ("magnitude", 10.5), ("magnitude", -1.0)]
)
def test_numbers_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        schema.RandAugment(**{field: value})
