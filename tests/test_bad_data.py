"""Damaged data sets: each is refused with the file's name, if it can be before training starts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic import (
    CIFAR,
    alone,
    binary_archive,
    binary_record,
    cifar_members,
    describe,
    encode,
    fill,
    pack,
    paint,
    pictures,
    prepare,
    python_batch,
    shard,
    unpack,
)

from kerasnet import data, schema
from kerasnet.cli import main
from kerasnet.data import archive, prepared
from kerasnet.data.splits import SplitName
from kerasnet.errors import BadInputError
from kerasnet.registry import load_registry

__all__ = ["alone"]

FOLDER = schema.Dataset(source=schema.DatasetSource(type="folder"))
# TensorFlow makes a new pipeline for every example.
FEW = settings(max_examples=8, deadline=None)
MANY = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def opened(place: Path, spec: schema.Dataset = CIFAR) -> data.ImageData:
    return data.load_dataset("cifar10", spec=spec, data_dir=place)


def refused(place: Path, split: SplitName, *said: str, spec: schema.Dataset = CIFAR) -> None:
    """Assert that a split is refused, by `check` and by `load` alike, with these words."""
    messages = []
    for read in (data.ImageData.check, data.ImageData.load):
        with pytest.raises(BadInputError) as raised:
            read(opened(place, spec), split)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    for words in said:
        assert words in messages[0]


def result(place: Path) -> tuple[data.Split | None, str]:
    """Return the test split, or why it is refused."""
    try:
        return opened(place).load("test"), ""
    except BadInputError as error:
        return None, str(error)


def flip(file: Path, at: int, bits: int = 255) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= bits
    file.write_bytes(content)


# ---------------------------------------------------------------------------- TFRecord files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of six images a split, of PNGs."""
    place = tmp_path_factory.mktemp("whole")
    prepare(place, n=6)
    return place


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "sets")


def damaged_copy(whole: Path, damage: Callable[[bytes], bytes]) -> tuple[Path, Path]:
    place = whole.parent / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    file = shard(place / "cifar10" / "3.0.2", "test")
    file.write_bytes(damage(file.read_bytes()))
    return place, file


@FEW
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_shard_is_noticed(whole: Path, where: float, bit: int) -> None:
    def damage(content: bytes) -> bytes:
        at = int(where * len(content))
        return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

    place, file = damaged_copy(whole, damage)
    with pytest.raises(BadInputError) as raised:
        opened(place).check("test")
    assert str(file) in str(raised.value)


@MANY
@given(where=st.floats(0, 1, exclude_max=True))
def test_every_truncated_shard_is_noticed(whole: Path, where: float) -> None:
    place, file = damaged_copy(whole, lambda content: content[: int(where * len(content))])
    with pytest.raises(BadInputError) as raised:
        opened(place).check("test")
    assert str(file) in str(raised.value)


def test_the_record_that_is_damaged_is_numbered(copy: Path) -> None:
    folder = copy / "cifar10" / "3.0.2"
    contents = [encode(i, "PNG") for i in pictures(6)]
    fill(folder, "test", [*contents[:4], contents[4][:900], contents[5]], [0] * 6)
    # Its checksum is right, for the damage was done before it was written.
    refused(copy, "test", f"{shard(folder, 'test')}: record 4 is damaged", "copy it again")
    fill(folder, "test", [*contents[:5], b"no picture"], [0] * 6)
    refused(copy, "test", f"{shard(folder, 'test')}: record 5 is damaged", "none of PNG, JPEG")
    fill(folder, "test", [*contents[:5], encode(pictures(6)[5][:, :30], "PNG")], [0] * 6)
    refused(copy, "test", "record 5 is damaged", "its image has 32×30 pixels, not 32×32")
    fill(folder, "test", contents, [0, 1, 2, 3, 10, -1])
    refused(copy, "test", f"{shard(folder, 'test')}: record 4 has the label 10", "0 to 9")


@FEW
@given(where=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["PNG", "JPEG"]))
def test_a_damaged_image_in_a_sound_record_is_refused_or_decoded(
    whole: Path, where: float, kind: str
) -> None:
    content = bytearray(encode(pictures(1)[0], kind))
    content[int(where * len(content))] ^= 255
    place, file = damaged_copy(whole, lambda old: old)
    fill(file.parent, "test", [encode(pictures(1)[0], kind)] * 5 + [bytes(content)], [0] * 6)
    read, said = result(place)
    if read is None:
        assert f"{file}: record 5 is damaged" in said
    # A PNG has a checksum for everything that makes pixels, a JPEG for nothing.
    elif kind == "PNG":
        np.testing.assert_array_equal(read.images[5], pictures(1)[0])


def test_a_truncated_jpeg_is_refused(copy: Path) -> None:
    folder = copy / "cifar10" / "3.0.2"
    jpegs = [encode(i, "JPEG") for i in pictures(6)]
    fill(folder, "train", [*jpegs[:2], jpegs[2][: len(jpegs[2]) // 2], *jpegs[3:]], [0] * 6)
    refused(copy, "train", f"{shard(folder, 'train')}: record 2 is damaged")


def test_the_shard_is_named_where_there_are_several(copy: Path) -> None:
    folder = copy / "cifar10" / "3.0.2"
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][1]["shardLengths"] = ["6", "2"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    first, second = (folder / f"cifar10-test.tfrecord-0000{i}-of-00002" for i in range(2))
    shard(folder, "test").rename(first)
    with pytest.raises(BadInputError, match=rf"{second} is missing"):
        opened(copy)
    fill(folder, "test", [encode(i, "PNG") for i in pictures(2)], [3, 10])
    shard(folder, "test").rename(second)
    refused(copy, "test", f"{second}: record 1 has the label 10")
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    refused(copy, "test", f"{second}: record 1 does not end where the file does")
    second.write_bytes(content)
    flip(second, len(content) - 10)
    refused(copy, "test", f"{second}: record 1 is damaged")
    second.write_bytes(content + content)
    refused(copy, "test", f"{second} holds more than 2 records")


def test_a_split_that_is_divided_is_damaged_in_the_file_it_comes_from(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 20})
    contents = [encode(i, "PNG") for i in pictures(20)]
    fill(folder, "train", contents, [10] * 20)
    # The first image that is held out for the test need not be the first one.
    held_out = opened(tmp_path)._source
    number = int(held_out._test_mask.nonzero()[0][0])  # type: ignore[attr-defined]
    refused(tmp_path, "test", f"{shard(folder, 'train')}: record {number} has the label 10")
    flip(shard(folder, "train"), 2000)
    refused(tmp_path, "test", f"{shard(folder, 'train')}: record 0 is damaged")


def test_a_test_split_without_images_is_refused(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 6, "test": 0})
    fill(folder, "test", [], [])
    refused(tmp_path, "test", "split 'test' holds no images")


def test_checking_reads_everything_and_keeps_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "CHUNK", 4)
    found = opened(copy)
    sizes = [len(labels) for _, _, labels in found._parts("test", None)]
    assert sizes == [4, 2]
    monkeypatch.setattr(data.dataset, "buffer", None)
    for split in ("train", "test"):
        assert found.check(split) is None  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="no split 'validation' of its own"):
        found.check("validation")
    assert data.load_dataset("digits").check("test") is None


# ---------------------------------------------------------------------------- before TensorFlow


def break_json(folder: Path) -> Path:
    file = folder / "features.json"
    file.write_text(file.read_text()[:-5])
    return file


def empty_shard(folder: Path) -> Path:
    shard(folder, "test").write_bytes(b"")
    return shard(folder, "test")


def remove_shard(folder: Path) -> Path:
    shard(folder, "test").unlink()
    return shard(folder, "test")


def remove_description(folder: Path) -> Path:
    (folder / "dataset_info.json").unlink()
    return folder / "dataset_info.json"


@pytest.mark.parametrize("damage", [break_json, empty_shard, remove_shard, remove_description])
def test_a_dry_run_refuses_what_can_be_known_without_reading_images(
    damage: Callable[[Path], Path], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = damage(copy / "cifar10" / "3.0.2")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "resnet8", "--dataset", "cifar10", "--data-dir", str(copy), "--dry-run"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"kerasnet: error: {file}")
    assert "Traceback" not in said


def test_a_sound_set_passes_the_dry_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "resnet8", "--dataset", "cifar10", "--data-dir", str(copy), "--dry-run"])
    assert not ended.value.code, capsys.readouterr().err


def test_a_folder_that_may_not_be_read_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(BadInputError, match=rf"{copy}/cifar10 cannot be read: Permission denied"):
        opened(copy)


# ---------------------------------------------------------------------------- archives


def with_checksum(file: Path) -> schema.Dataset:
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    return CIFAR.model_copy(update={"archives": {file.name: md5}})


def test_the_checksum_of_a_packed_archive_is_compared_before_it_is_used(tmp_path: Path) -> None:
    file = binary_archive(tmp_path)
    spec = with_checksum(file)
    assert len(opened(tmp_path, spec).load("train")) == 20
    repacked = cifar_members("binary") | {"readme.html": b"new"}
    pack(file, "cifar-10-batches-bin", repacked)
    received = hashlib.md5(file.read_bytes()).hexdigest()
    # Only looking for it must stay quick.
    assert data.locate("cifar10", spec, tmp_path).path == file
    refused(
        tmp_path, "train", f"{file} has the MD5 {received}, not {spec.archives[file.name]}",
        "Download it again", "`archives: {cifar-10-binary.tar.gz: null}`", spec=spec,
    )  # fmt: skip
    with pytest.raises(BadInputError, match="has the MD5"):
        assert opened(tmp_path, spec).class_names
    assert len(opened(tmp_path).load("train")) == 20
    refused(
        tmp_path, "test", "not c32a1d4ab5d03f1284b67883e8d87530",
        spec=load_registry().datasets["cifar10"],
    )  # fmt: skip


def test_a_checksum_is_computed_once_for_a_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = binary_archive(tmp_path)
    spec = with_checksum(file)
    computed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(archive.hashlib, "file_digest", lambda *a: computed.append(a) or digest(*a))
    found = opened(tmp_path, spec)
    for split in ("train", "test"):
        found.load(split)  # type: ignore[arg-type]
    assert found.class_names
    assert len(computed) == 1


def test_an_archive_that_keras_downloaded_has_the_checksum_of_the_original(
    alone: Path, tmp_path: Path
) -> None:
    file = binary_archive(tmp_path)
    spec = with_checksum(file)
    keras = alone / ".keras" / "datasets" / "cifar-10-batches-bin-target_archive"
    keras.parent.mkdir(parents=True)
    file.rename(keras)
    assert len(opened(tmp_path, spec).load("test")) == 4
    flip(keras, 300)
    refused(tmp_path, "test", f"{keras} has the MD5", spec=spec)


def test_configurations_of_older_runs_name_archives_without_checksums() -> None:
    read = schema.Dataset.model_validate({"source": {"type": "digits"}, "archives": ["a", "b"]})
    assert read.archives == {"a": None, "b": None}


def test_a_flipped_bit_in_an_archive_without_checksum_is_noticed(tmp_path: Path) -> None:
    file = binary_archive(tmp_path)
    for at in (200, file.stat().st_size // 2, file.stat().st_size - 6):
        binary_archive(tmp_path)
        flip(file, at, 1)
        refused(tmp_path, "test", f"{file} ", "download it again")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("layout", ["binary", "python"])
def test_a_label_out_of_range_is_found_in_its_member(
    layout: str, packed: bool, tmp_path: Path
) -> None:
    batch, end = (binary_record, ".bin") if layout == "binary" else (python_batch, "")
    members = cifar_members(layout)
    members[f"data_batch_3{end}"] = batch(pictures(4), [0, 1, 10, 2])
    folder = "cifar-10-batches-bin" if layout == "binary" else "cifar-10-batches-py"
    if packed:
        where = f"{pack(tmp_path / f'cifar-10-{layout}.tar.gz', folder, members)}: data_batch_3"
    else:
        unpack(tmp_path / folder, members)
        where = str(tmp_path / folder / "data_batch_3")
    refused(tmp_path, "train", f"{where}{end}, image 2 has the label 10", "must be 0 to 9")
    assert opened(tmp_path).check("test") is None


@pytest.mark.parametrize("label", [2**31, 2**63, 10**600, -(2**64)], ids=range(4))
def test_a_label_that_is_no_small_number_is_refused(label: int, tmp_path: Path) -> None:
    members = cifar_members("python")
    members["test_batch"] = python_batch(pictures(4), [0, 1, 2, label])
    unpack(tmp_path / "cifar-10-batches-py", members)
    refused(tmp_path, "test", f"{tmp_path}/cifar-10-batches-py/test_batch", "list of integers")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@MANY
@given(at=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_python_batch_is_refused_or_read(
    tmp_path: Path, at: float, bits: int, cut: bool
) -> None:
    folder, members = tmp_path / "cifar-10-batches-py", cifar_members("python")
    if not folder.exists():
        unpack(folder, members)
    content = bytearray(members["test_batch"])
    # What is not pixels, in which a flipped bit is another picture.
    for start in (0, content.rindex(b"labels") - 200):
        place = min(start + int(at * 200), len(content) - 1)
        content[place] ^= bits
        damaged = bytes(content[:place]) if cut else bytes(content)
        unpack(folder, {"test_batch": damaged})
        read, said = result(tmp_path)
        assert read is not None or f"{folder}/test_batch" in said


def test_an_array_in_the_order_of_fortran_is_read(tmp_path: Path) -> None:
    members = cifar_members("python")
    flat = pictures(4, 6).transpose(0, 3, 1, 2).reshape(4, -1)
    batch = {b"data": np.asfortranarray(flat), b"labels": [0] * 4}
    members["test_batch"] = pickle.dumps(batch, protocol=2)
    unpack(tmp_path / "cifar-10-batches-py", members)
    np.testing.assert_array_equal(opened(tmp_path).load("test").images, pictures(4, 6))


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cifar-10-binary.tar.gz"
    file.write_bytes(gzip.compress(b"x" * 100))
    refused(tmp_path, "test", f"{file} is damaged", "download it again")


# ---------------------------------------------------------------------------- image folders


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three pictures of two classes in each of two splits."""
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            for i in range(3):
                paint(tmp_path / "pets" / split / name / f"{i}.png", 40 * number + i)
    return tmp_path / "pets"


def truncate(file: Path) -> None:
    noise = Image.fromarray(pictures(1)[0])
    out = io.BytesIO()
    noise.save(out, "PNG")
    file.write_bytes(out.getvalue()[:2000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def enlarge(file: Path) -> None:
    paint(file, 3, size=(30, 32))


def unlink(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "cannot be read as an image"),
        (empty, "cannot be read as an image: it is none of PNG, JPEG, BMP, GIF, WEBP"),
        (enlarge, "is an image of 30×32, not 32×32 as the others"),
        (unlink, "cannot be read as an image: it is a broken link"),
    ],
)
def test_a_bad_image_of_the_test_split_is_named(
    damage: Callable[[Path], None], said: str, pets: Path
) -> None:
    file = pets / "test" / "dog" / "1.png"
    damage(file)
    refused(pets.parent, "test", f"{file} {said}", spec=FOLDER.model_copy(update={"source":
        schema.DatasetSource(type="folder", name="pets")}))  # fmt: skip


def test_a_folder_of_a_class_that_may_not_be_read_is_named(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def denied(path: str) -> object:
        if path.endswith("test/dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(BadInputError, match=r"test/dog cannot be read: Permission denied"):
        data.locate("pets", FOLDER, pets.parent)
