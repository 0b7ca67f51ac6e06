"""The pipelines: every image once an epoch, resumable at any step, augmented as on paper."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kerasnet import data, schema
from kerasnet.data import pipeline, splits
from kerasnet.errors import BadInputError

tf = pytest.importorskip("tensorflow")

CROP = schema.Crop(padding=4)
EVERYTHING = schema.Augment(crop=CROP, flip="horizontal", cutout=schema.Cutout(size=8))
ALTERNATING = schema.Augment(flip="alternating")
FILL = [1, 2, 3]


def inference(channels: int = 3) -> schema.Inference:
    mean, std = [0.4914, 0.4822, 0.4465][:channels], [0.2023, 0.1994, 0.2010][:channels]
    return schema.Inference(mean=mean, std=std, resize=[32, 32], class_names=[])


def split(n: int, side: int = 8) -> data.Split:
    images = np.random.RandomState(0).randint(0, 256, (n, side, side, 3)).astype(np.uint8)
    return data.Split(images, np.arange(n, dtype=np.int64))


def batches(part: data.Split, augment: schema.Augment, **arguments: Any) -> list[Any]:
    found = data.training_pipeline(
        part, inference=inference(), augment=augment, allowed=schema.Allowed(), **arguments
    )
    return list(found.as_numpy_iterator())


def reference(
    image: np.ndarray,
    augment: schema.Augment,
    dy: int = 0,
    dx: int = 0,
    flip: bool = False,
    centre: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """The augmentations as the papers write them, one image at a time."""
    height, width, _ = image.shape
    if augment.crop:
        p = augment.crop.padding
        mode = {"zeros": "constant", "reflect": "reflect"}[augment.crop.mode]
        padded = np.pad(image, ((p, p), (p, p), (0, 0)), mode=mode)  # type: ignore[call-overload]
        image = padded[dy : dy + height, dx : dx + width]
    if flip:
        image = image[:, ::-1]
    if augment.cutout:
        image = image.copy()
        top, left = (c - augment.cutout.size // 2 for c in centre)
        rows = slice(max(top, 0), max(top + augment.cutout.size, 0))
        image[rows, max(left, 0) : max(left + augment.cutout.size, 0)] = FILL
    return image


def outcomes(image: np.ndarray, augment: schema.Augment, n: int) -> Counter[bytes]:
    """How often each result comes out when `n` copies of the image are augmented."""
    copies = tf.constant(np.repeat(image[None], n, axis=0))
    result = data.augment_batch(copies, augment, seed=[1, 2], fill=FILL).numpy()
    return Counter(i.tobytes() for i in result)


# ---------------------------------------------------------------------------- distribution


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crops_and_flips_are_all_the_possible_ones_equally_often(mode: str) -> None:
    image = split(1, side=12).images[0]
    augment = schema.Augment(crop=schema.Crop(padding=4, mode=mode), flip="horizontal")
    possible = {
        reference(image, augment, dy, dx, flip).tobytes(): (dy, dx, flip)
        for dy, dx, flip in itertools.product(range(9), range(9), (False, True))
    }
    assert len(possible) == 81 * 2
    seen = outcomes(image, augment, 40_000)
    assert set(seen) == set(possible)
    assert stats.chisquare([seen[k] for k in possible]).pvalue > 0.001


def test_flips_alone_happen_half_of_the_time() -> None:
    image = split(1).images[0]
    augment = schema.Augment(flip="horizontal")
    seen = outcomes(image, augment, 10_000)
    expected = {image.tobytes(), reference(image, augment, flip=True).tobytes()}
    assert set(seen) == expected
    assert stats.binomtest(seen[image.tobytes()], 10_000).pvalue > 0.001


def ways(part: data.Split, epochs: int, **arguments: Any) -> np.ndarray:
    """Whether each image is mirrored in each epoch under alternating flips, (epochs, images)."""
    arguments = {"batch_size": len(part), "seed": 5, **arguments}
    images, labels = (
        np.concatenate(kind)
        for kind in zip(*batches(part, ALTERNATING, epochs=epochs, **arguments), strict=True)
    )
    given = inference()
    plain = ((part.images / 255 - given.mean) / given.std)[labels]
    same, mirrored = (
        np.abs(images - expected).max(axis=(1, 2, 3)) < 1e-4
        for expected in (plain, plain[:, :, ::-1])
    )
    assert (same ^ mirrored).all()
    order = labels.reshape(epochs, -1)
    assert (np.sort(order) == np.arange(len(part))).all()
    return np.take_along_axis(mirrored.reshape(epochs, -1), np.argsort(order), axis=1)


def test_alternating_flips_show_each_image_both_ways_in_any_two_epochs() -> None:
    found = ways(split(400), 4)
    np.testing.assert_array_equal(found[1:], ~found[:-1])
    assert stats.binomtest(int(found[0].sum()), 400).pvalue > 0.001
    # Neighbours in the data set begin independently of each other.
    changes = int((found[0, 1:] != found[0, :-1]).sum())
    assert stats.binomtest(changes, 399).pvalue > 0.001


def test_alternating_flips_depend_on_seed_epoch_and_image_alone() -> None:
    part = split(40)
    found = ways(part, 3)
    np.testing.assert_array_equal(ways(part, 3, batch_size=8), found)
    assert (ways(part, 3, seed=6) != found).any()
    # An image is known by its place, not by how many there are or what it shows.
    more = data.Split(np.concatenate([part.images, split(20).images]), np.arange(60))
    np.testing.assert_array_equal(ways(more, 3)[:, :40], found)
    rest = batches(part, ALTERNATING, batch_size=8, seed=5, epochs=3, first_step=7)
    whole = batches(part, ALTERNATING, batch_size=8, seed=5, epochs=3)
    for (images, _), (expected, _) in zip(rest, whole[7:], strict=True):
        np.testing.assert_array_equal(images, expected)


def test_alternating_flips_leave_crops_and_cutout_as_they_are() -> None:
    """Of an image that is mirrored anyhow, a crop to the left is one to the right."""
    part, arguments = split(16), {"batch_size": 16, "seed": 5, "epochs": 2}
    more = {"crop": CROP, "cutout": schema.Cutout(size=3)}
    plain, found = (
        batches(part, augment.model_copy(update=more), **arguments)
        for augment in (schema.Augment(), ALTERNATING)
    )
    mirrored = ways(part, 2)
    for epoch in range(2):
        labels = found[epoch][1]
        np.testing.assert_array_equal(labels, plain[epoch][1])
        same = (found[epoch][0] == plain[epoch][0]).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(same, ~mirrored[epoch][labels])


def test_alternating_flips_have_to_be_told_which() -> None:
    images = tf.constant(split(3).images)
    with pytest.raises(BadInputError, match="flip: alternating: say which images to mirror"):
        data.augment_batch(images, ALTERNATING, seed=[0, 0], fill=FILL)


def test_older_runs_that_are_resumed_see_the_same_images() -> None:
    """The checksum is of an earlier version's result."""
    images = tf.constant(split(33).images)
    found = data.augment_batch(images, EVERYTHING, seed=[3, 4], fill=FILL).numpy()
    assert zlib.crc32(found.tobytes()) == 4146331107


@pytest.mark.parametrize("size", [3, 4, 20])
def test_cutout_squares_are_centred_uniformly_and_clipped(size: int) -> None:
    image = split(1).images[0]
    augment = schema.Augment(cutout=schema.Cutout(size=size))
    possible = Counter(
        reference(image, augment, centre=centre).tobytes()
        for centre in itertools.product(range(8), range(8))
    )
    seen = outcomes(image, augment, 20_000)
    assert set(seen) == set(possible)
    if len(possible) > 1:
        expected = [20_000 * possible[k] / 64 for k in possible]
        assert stats.chisquare([seen[k] for k in possible], expected).pvalue > 0.001


def test_everything_at_once_is_the_paper_form_done_in_order() -> None:
    image = split(1, side=10).images[0]
    augment = EVERYTHING.model_copy(update={"cutout": schema.Cutout(size=3)})
    seen = outcomes(image, augment, 300)
    # Too many results to list: each must be one of a crop and flip with one square upon it.
    for result in (np.frombuffer(k, np.uint8).reshape(10, 10, 3) for k in seen):
        cut = (result == FILL).all(-1)
        assert cut.any()
        assert any(
            (result == reference(image, EVERYTHING.model_copy(update={"cutout": None}), *how))[
                ~cut
            ].all()
            for how in itertools.product(range(9), range(9), (False, True))
        )


def test_images_of_a_batch_are_augmented_independently() -> None:
    image = split(1, side=12).images[0]
    copies = tf.constant(np.repeat(image[None], 64, axis=0))
    result = data.augment_batch(copies, EVERYTHING, seed=[0, 0], fill=FILL).numpy()
    assert len({i.tobytes() for i in result}) > 50


def test_what_one_augmentation_does_does_not_depend_on_the_others() -> None:
    images = tf.constant(split(50).images)
    flipped = data.augment_batch(images, schema.Augment(flip="horizontal"), seed=[3, 4], fill=FILL)
    both = data.augment_batch(
        images,
        schema.Augment(flip="horizontal", cutout=schema.Cutout(size=2)),
        seed=[3, 4],
        fill=FILL,
    ).numpy()
    cut = (both == FILL).all(-1)
    np.testing.assert_array_equal(both[~cut], flipped.numpy()[~cut])


def test_equal_seeds_do_equal_things() -> None:
    images = tf.constant(split(20).images)
    one, same, other = (
        data.augment_batch(images, EVERYTHING, seed=seed, fill=FILL).numpy()
        for seed in ([1, 2], [1, 2], [1, 3])
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_nothing_is_done_where_nothing_is_asked() -> None:
    images = tf.constant(split(3).images)
    assert data.augment_batch(images, schema.Augment(), seed=[0, 0], fill=FILL) is images


def test_a_data_set_forbids_what_changes_its_classes() -> None:
    allowed = schema.Allowed(flip=False)
    left = data.effective_augment(EVERYTHING, allowed)
    assert left == EVERYTHING.model_copy(update={"flip": "none"})
    assert data.effective_augment(ALTERNATING, allowed) == schema.Augment()
    none = data.effective_augment(EVERYTHING, schema.Allowed(crop=False, flip=False, cutout=False))
    assert none == schema.Augment()


def test_reflection_needs_pixels_to_reflect() -> None:
    augment = schema.Augment(crop=schema.Crop(padding=8, mode="reflect"))
    with pytest.raises(BadInputError, match="reflection by 8 pixels needs images larger"):
        batches(split(4), augment, batch_size=2, seed=0, epochs=1)


# ---------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("n", "batch_size", "steps"), [(50_000, 100, 500), (45_000, 128, 351), (5, 8, 1), (8, 8, 1)]
)
def test_a_partial_last_batch_is_dropped(n: int, batch_size: int, steps: int) -> None:
    assert data.steps_per_epoch(n, batch_size) == steps


@pytest.mark.parametrize(("n", "batch_size"), [(0, 8), (8, 0)])
def test_no_images_make_no_batches(n: int, batch_size: int) -> None:
    with pytest.raises(BadInputError, match="cannot make batches"):
        data.steps_per_epoch(n, batch_size)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**31 - 1))
def test_an_epoch_is_a_permutation_keyed_by_seed_and_epoch(
    n: int, batch_size: int, seed: int
) -> None:
    steps, batch = data.steps_per_epoch(n, batch_size), min(n, batch_size)
    found = list(pipeline._batch_indices(n, batch_size, seed, 2, 0).as_numpy_iterator())
    assert [(int(e), int(s)) for e, s, _ in found] == [(e, s) for e in (0, 1) for s in range(steps)]
    for epoch in (0, 1):
        order = np.concatenate([i for e, _, i in found if e == epoch])
        assert len(set(order.tolist())) == len(order) == steps * batch
        assert set(order.tolist()) <= set(range(n))


def test_every_position_is_equally_likely() -> None:
    n, epochs = 7, 3000
    found = pipeline._batch_indices(n, n, 5, epochs, 0).as_numpy_iterator()
    orders = np.stack([i for _, _, i in found])
    counts = np.stack([np.bincount(orders[:, k], minlength=n) for k in range(n)])
    assert stats.chisquare(counts.ravel(), ddof=2 * n - 2).pvalue > 0.001


def test_orders_differ_between_epochs_and_seeds() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        part = batches(split(30), schema.Augment(), batch_size=30, seed=seed, epochs=2)
        return [tuple(labels.tolist()) for _, labels in part]

    assert len({*orders(0), *orders(1)}) == 4
    assert orders(0) == orders(0)


@pytest.mark.parametrize("first_step", [0, 1, 3, 4, 5, 8, 11, 12])
def test_resuming_at_any_step_gives_what_was_left(first_step: int) -> None:
    part = split(33)
    whole = batches(part, EVERYTHING, batch_size=8, seed=7, epochs=3)
    rest = batches(part, EVERYTHING, batch_size=8, seed=7, epochs=3, first_step=first_step)
    assert len(whole) == 12
    assert len(rest) == 12 - first_step
    for (images, labels), (expected, expected_labels) in zip(rest, whole[first_step:], strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)


def test_a_longer_run_starts_like_a_shorter_one() -> None:
    short, long = (batches(split(20), EVERYTHING, batch_size=8, seed=7, epochs=e) for e in (1, 2))
    for (images, _), (expected, _) in zip(short, long[:2], strict=True):
        np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("arguments", [{"first_step": 5}, {"first_step": -1}, {"seed": -1}])
def test_steps_and_seeds_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(BadInputError, match="first_step must be 0 to 4"):
        batches(split(8), EVERYTHING, **{"batch_size": 4, "seed": 0, "epochs": 2, **arguments})


# ---------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("aligned", [True, False])
def test_training_images_are_normalised_and_keep_their_labels(aligned: bool) -> None:
    part = split(10)
    images = splits.buffer(part.images.shape) if aligned else np.empty(part.images.size + 1, "u1")
    images = images if aligned else images[1:].reshape(part.images.shape)
    images[:] = part.images
    part = data.Split(images, part.labels)
    (found, labels), *more = batches(part, schema.Augment(), batch_size=16, seed=0, epochs=1)
    assert not more
    assert (found.shape, found.dtype, labels.dtype) == ((10, 8, 8, 3), np.float32, np.int32)
    given = inference()
    expected = (part.images[labels] / 255 - given.mean) / given.std
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_evaluation_keeps_the_order_and_the_partial_last_batch() -> None:
    part, given = split(10), inference()
    pipeline = data.evaluation_pipeline(part, inference=given, batch_size=4)
    found = list(pipeline.as_numpy_iterator())
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    assert np.concatenate([labels for _, labels in found]).tolist() == list(range(10))
    expected = (part.images / 255 - given.mean) / given.std
    np.testing.assert_allclose(np.concatenate([i for i, _ in found]), expected, atol=1e-5)
    assert int(pipeline.cardinality()) == 3


def test_pipelines_say_how_long_they_are_and_what_they_give() -> None:
    pipeline = data.training_pipeline(
        split(33),
        inference=inference(),
        augment=EVERYTHING,
        allowed=schema.Allowed(),
        batch_size=8,
        seed=0,
        epochs=3,
        first_step=5,
    )
    assert int(pipeline.cardinality()) == 7
    images, labels = pipeline.element_spec
    assert (images.shape.as_list(), images.dtype) == ([8, 8, 8, 3], tf.float32)
    assert (labels.shape.as_list(), labels.dtype) == ([8], tf.int32)


def test_nobody_waits_for_autotuning_to_wake_up() -> None:
    """With it, letting go of an iterator took up to 20 s at the end of a training."""
    given = inference()
    training = data.training_pipeline(
        split(33), inference=given, augment=EVERYTHING, allowed=schema.Allowed(), batch_size=8,
        seed=0, epochs=1,
    )  # fmt: skip
    evaluation = data.evaluation_pipeline(split(9), inference=given, batch_size=4)
    for found in (training, evaluation):
        assert found.options().autotune.enabled is False


def test_mean_and_std_must_fit_the_channels() -> None:
    with pytest.raises(BadInputError, match="for each of the images' 3 channels"):
        data.evaluation_pipeline(split(4), inference=inference(1), batch_size=2)
