"""The checkpoint file: everything damaged is found, and the one before it is used."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasnet.checkpoint import (
    DamagedCheckpointError,
    Progress,
    Rollback,
    checkpoint_files,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from kerasnet.convert import save_arrays
from kerasnet.errors import BadInputError, EnvironmentFaultError


def arrays(size: int = 50_000) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "weights/a/kernel": generator.normal(size=(size // 10, 10)).astype("float32"),
        "optimizer/0000/iteration": np.array(7, "int64"),
        "generators/dropout/0": np.array([1, 2], "uint32"),
        "empty": np.zeros((0, 3), "float32"),
    }


@pytest.fixture
def two(tmp_path):
    """A folder with two checkpoints below a megabyte, the newer one's file, and its bytes."""
    for step in (100, 200):
        write_checkpoint(tmp_path, Progress(step=step), arrays(200_000), keep=2)
    newer = checkpoint_files(tmp_path)[0]
    assert 700_000 < newer.stat().st_size <= 1_000_000
    return tmp_path, newer, newer.read_bytes()


def passed_over(folder, newer, content) -> bool:
    """Whether the older checkpoint is used, and the newer one named, when it holds `content`."""
    newer.write_bytes(content)
    said = []
    found = newest_checkpoint(folder, None, said.append)
    (folder / "step-00000200.damaged").unlink()
    return found.progress.step == 100 and len(said) == 1 and str(newer) in str(said[0])


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    progress = Progress(
        step=12, metrics=[{"epoch": 1, "loss": 0.1 + 0.2, "val_loss": None, "x": math.nan}],
        unvalidated={"loss": 1e-45}, best=1 / 3, learning_rate_scale=0.25, data="0badf00d",
        rollbacks=[Rollback(diverged_at=9, back_to=4, learning_rate_scale=0.25)],
        seconds=1e9, steady_images=2**53,
    )  # fmt: skip
    file = write_checkpoint(tmp_path, progress, arrays(), keep=1)
    found = read_checkpoint(file)
    assert found.progress.model_dump_json() == progress.model_dump_json()
    assert found.arrays.keys() == arrays().keys()
    for key, expected in arrays().items():
        assert found.arrays[key].dtype == expected.dtype
        np.testing.assert_array_equal(found.arrays[key], expected)


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 99_999_999, 100_000_000):
        write_checkpoint(tmp_path, Progress(step=step), arrays(10), keep=2)
    (tmp_path / "step-abc.safetensors").write_text("no checkpoint's name")
    assert [f.stem for f in checkpoint_files(tmp_path)] == ["step-100000000", "step-99999999"]
    assert newest_checkpoint(tmp_path / "none", None, print) is None


def test_truncation_at_every_4_kib_is_found(two):
    folder, newer, content = two
    cuts = range(0, len(content), 4096)
    assert len(cuts) > 170
    assert all(passed_over(folder, newer, content[:cut]) for cut in cuts)


def test_truncation_at_random_offsets_is_found(two):
    folder, newer, content = two
    draw = random.Random(1)
    cuts = [draw.randrange(len(content)) for _ in range(100)]
    assert all(passed_over(folder, newer, content[:cut]) for cut in cuts)


def test_flipped_bits_are_found(two):
    folder, newer, content = two
    draw = random.Random(2)
    # The header, where a flip could be taken for another file, gets a fifth of them.
    bits = [draw.randrange(8 * 1000) for _ in range(40)]
    bits += [draw.randrange(8 * len(content)) for _ in range(160)]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        assert passed_over(folder, newer, bytes(flipped)), bit


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda b: b'{"sha256":"' + b"0" * 64))
@settings(max_examples=200)
def test_any_other_bytes_are_no_checkpoint(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "step-00000001.safetensors"
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(file)


@pytest.mark.parametrize("more", [b"\0", b"more"])
def test_appended_bytes_are_found(two, more):
    folder, newer, content = two
    assert passed_over(folder, newer, content + more)


def test_a_damaged_one_never_counts_among_those_kept(two):
    folder, newer, content = two
    newer.write_bytes(content[:-1])
    newest_checkpoint(folder, None, print)
    write_checkpoint(folder, Progress(step=150), arrays(10), keep=2)
    assert [f.stem for f in checkpoint_files(folder)] == ["step-00000150", "step-00000100"]
    assert (folder / "step-00000200.damaged").exists()


def test_when_all_are_damaged_they_are_all_named(two):
    folder, _, _ = two
    for file in checkpoint_files(folder):
        file.write_bytes(b"")
    with pytest.raises(BadInputError, match=r"(?s)every checkpoint.*step-00000200.*step-00000100"):
        newest_checkpoint(folder, None, print)
    assert len(checkpoint_files(folder)) == 2


def test_one_that_is_too_large_is_not_read(two):
    folder, newer, _ = two
    with newer.open("ab") as stream:
        stream.truncate(2**42)  # a sparse file of four terabytes
    said = []
    assert newest_checkpoint(folder, 10**6, said.append).progress.step == 100
    assert "larger than 1,000,000 bytes" in str(said[0])


def test_other_safetensors_files_are_no_checkpoints(tmp_path):
    file = tmp_path / "step-00000001.safetensors"
    save_arrays(arrays(10), file, {"progress": "{}"})
    with pytest.raises(DamagedCheckpointError, match="no checksum"):
        read_checkpoint(file)


def test_progress_of_another_version_is_refused(tmp_path):
    class Other(Progress):
        new_field: int = 1

    file = write_checkpoint(tmp_path, Other(step=1), arrays(10), keep=1)
    with pytest.raises(DamagedCheckpointError, match="new_field"):
        read_checkpoint(file)


def test_a_folder_that_cannot_be_written_is_the_environments_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFaultError, match="cannot be written"):
        write_checkpoint(tmp_path / "file", Progress(), arrays(10), keep=1)
