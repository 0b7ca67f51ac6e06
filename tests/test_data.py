"""Data sets: where they are looked for, how they are read, what is refused."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from kerasnet.data import dataset, network, places
from kerasnet.data.folder import read_image
from kerasnet.errors import BadInputError, EnvironmentFaultError

__all__ = ["alone"]

CIFAR100 = schema.Dataset(source=schema.DatasetSource(type="tfds", name="cifar100"))
DIGITS = schema.Dataset(source=schema.DatasetSource(type="digits"), image=[32, 32, 3], classes=10)
FOLDER = schema.Dataset(source=schema.DatasetSource(type="folder"))
REGISTRY = {"cifar10": CIFAR, "digits": DIGITS}


# ---------------------------------------------------------------------------- names and places


def test_importing_the_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, kerasnet.data\n"
        "heavy = {'tensorflow', 'keras', 'tensorflow_datasets', 'sklearn', 'numpy', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_name_is_looked_up_in_the_registry_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert data.dataset_spec("digits", REGISTRY) is DIGITS
    found = data.dataset_spec("pets", REGISTRY).source
    assert (found.type, found.name) == ("folder", str(tmp_path / "pets"))


@pytest.mark.parametrize("name", ["mnist", "cats_vs_dogs", "imagenet_resized/32x32", "mnist:3.0.1"])
def test_other_valid_names_are_left_to_tensorflow_datasets(name: str) -> None:
    source = data.dataset_spec(name, REGISTRY).source
    assert (source.type, source.name) == ("tfds", name)


@pytest.mark.parametrize("name", ["cifar-10", "Digits", "./nowhere", "", "a/b/c", "digits "])
def test_a_name_nothing_could_have_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="is not a data set of the registry"):
        data.dataset_spec(name, REGISTRY)


def test_a_misspelt_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(BadInputError, match="Did you mean 'cifar10'"):
        data.dataset_spec("cifar-10", REGISTRY)
    spec = data.dataset_spec("digit", REGISTRY)
    with pytest.raises(BadInputError, match=r"Not in the registry. Did you mean 'digits'"):
        data.locate("digit", spec)


def test_places_are_searched_in_the_order_documented(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASNET_DATA_DIR", str(tmp_path / "b"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "a"))
    found = data.search_places(tmp_path / "a")
    assert found == [tmp_path / "a", tmp_path / "b", alone / "tensorflow_datasets"]


def test_a_prepared_set_goes_before_an_archive_and_both_before_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "network_reaches", lambda host, timeout=3.0: True)
    assert data.locate("cifar10", CIFAR).kind == "download"
    first, second = tmp_path / "first", tmp_path / "second"
    archive = binary_archive(first)
    monkeypatch.setenv("TFDS_DATA_DIR", str(second))
    assert data.locate("cifar10", CIFAR, first).path == archive
    farther = describe(second, {"train": 20, "test": 10})
    found = data.locate("cifar10", CIFAR, first)
    assert (found.kind, found.path) == ("tfds", farther)
    nearer = describe(first, {"train": 20, "test": 10})
    assert data.locate("cifar10", CIFAR, first).path == nearer


def test_what_a_prepared_set_says_of_itself(tmp_path: Path) -> None:
    describe(tmp_path, {"train": 20, "test": 10}, version="3.0.2")
    newest = describe(tmp_path, {"train": 20, "test": 10}, version="3.0.10")
    found = data.locate("cifar10", CIFAR, tmp_path)
    assert found.path == newest
    assert (found.channels, found.classes, found.image) == (3, 10, (32, 32, 3))
    assert found.class_names == tuple(f"class {i}" for i in range(10))
    assert found.remark == f"read from {newest}"
    asked = schema.Dataset(source=schema.DatasetSource(type="tfds", name="cifar10:3.0.2"))
    assert data.locate("x", asked, tmp_path).path == tmp_path / "cifar10" / "3.0.2"


def test_storage_as_jpeg_is_remarked_upon(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 20, "test": 10})
    shard(folder, "train").write_bytes(b"\0" * 12 + b"image\xff\xd8\xff\xe0JFIF" + b"\0" * 500)
    assert data.locate("cifar10", CIFAR, tmp_path).remark.endswith("; stored as JPEG")


def test_a_broken_prepared_set_is_named(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 20, "test": 10}, size=1000)
    with pytest.raises(BadInputError, match=r"cifar10-train.*has 320 bytes, not 1000"):
        data.locate("cifar10", CIFAR, tmp_path)
    shard(folder, "test").unlink()
    with pytest.raises(BadInputError, match=r"cifar10-test.tfrecord-00000-of-00001 is missing"):
        data.locate("cifar10", CIFAR, tmp_path)
    (folder / "features.json").write_text("{")
    with pytest.raises(BadInputError, match=r"features\.json: not JSON"):
        data.locate("cifar10", CIFAR, tmp_path)
    (folder / "features.json").write_text("[]")
    with pytest.raises(BadInputError, match="do not describe a data set"):
        data.locate("cifar10", CIFAR, tmp_path)
    (folder / "dataset_info.json").unlink()
    with pytest.raises(BadInputError, match=r"dataset_info\.json is missing"):
        data.locate("cifar10", CIFAR, tmp_path)


def test_a_set_that_is_not_labelled_images_is_refused(tmp_path: Path) -> None:
    describe(tmp_path, {"train": 20}, supervised=False)
    with pytest.raises(BadInputError, match="no supervised pair"):
        data.locate("cifar10", CIFAR, tmp_path)


def test_several_prepared_configs_must_be_told_apart(tmp_path: Path) -> None:
    spec = schema.Dataset(source=schema.DatasetSource(type="tfds", name="sets"))
    (tmp_path / "sets").mkdir()
    for config in ("small", "large"):
        moved = describe(tmp_path, {"train": 20, "test": 10}).parent
        moved.rename(tmp_path / "sets" / config)
    with pytest.raises(BadInputError, match=r"large, small: say which, as in 'sets/large'"):
        data.locate("sets", spec, tmp_path)
    spec = schema.Dataset(source=schema.DatasetSource(type="tfds", name="sets/small"))
    assert data.locate("sets", spec, tmp_path).path == tmp_path / "sets" / "small" / "3.0.2"


@pytest.mark.parametrize("where", ["inside", "beside", "keras", "keras_target"])
def test_archives_are_found_in_beside_and_where_keras_keeps_them(
    where: str, alone: Path, tmp_path: Path
) -> None:
    place = tmp_path / "sets" / "prepared"
    keras = alone / ".keras" / "datasets"
    folder = {
        "inside": place / "cifar-10-batches-py",
        "beside": tmp_path / "sets" / "cifar-10-batches-py",
        "keras": keras / "cifar-10-batches-py",
        "keras_target": keras / "cifar-10-batches-py-target" / "cifar-10-batches-py",
    }[where]
    unpack(folder, cifar_members("python"))
    found = data.locate("cifar10", CIFAR, place)
    assert (found.kind, found.path, found.image) == ("archive", folder, (32, 32, 3))


# ---------------------------------------------------------------------------- no network

HANGS = "socket.create_connection = lambda *a, **k: time.sleep(60)"
REFUSES = "socket.create_connection = lambda *a, **k: (_ for _ in ()).throw(OSError('no network'))"


@pytest.mark.parametrize("reaching", [HANGS, REFUSES])
def test_without_network_everything_looked_at_is_named_within_seconds(
    reaching: str, alone: Path, tmp_path: Path
) -> None:
    code = f"""
import socket, sys, time
from kerasnet import data, schema
from kerasnet.errors import BadInputError
{reaching}
source = schema.DatasetSource(type="tfds", name="cifar10")
try:
    data.load_dataset("cifar10", spec=schema.Dataset(source=source), data_dir="{tmp_path}/mine")
except BadInputError as e:
    print(e)
assert "tensorflow" not in sys.modules
"""
    env = {**os.environ, "KERASNET_DATA_DIR": str(tmp_path / "ours")}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30
    )
    assert time.monotonic() - start < 10
    assert done.returncode == 0, done.stderr
    for place in (
        tmp_path / "mine",
        tmp_path / "ours",
        alone / "tensorflow_datasets",
        alone / ".keras" / "datasets",
    ):
        assert f"{place} (does not exist)" in done.stdout
    for hint in (
        f"    {tmp_path}\n",  # beside the places
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py/",
        "--data-dir DIR",
        "--dataset digits",
        "www.cs.toronto.edu cannot be reached",
    ):
        assert hint in done.stdout


@pytest.fixture
def real_probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "")
    return monkeypatch


def test_the_probe_gives_up_when_the_network_hangs(real_probe: pytest.MonkeyPatch) -> None:
    real_probe.setattr(network, "_connect", lambda host, timeout: bool(time.sleep(5)) or True)
    start = time.monotonic()
    assert not data.network_reaches("example.invalid", timeout=0.2)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(("answer", "reached"), [("200 OK", True), ("403 Forbidden", False)])
def test_the_probe_asks_a_proxy_where_one_is_set(
    answer: str, reached: bool, real_probe: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {answer}\r\n\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        real_probe.setenv("https_proxy", proxy)
        real_probe.setenv("no_proxy", "")
        assert data.network_reaches("example.invalid") is reached
        thread.join()


class FakeTfds:
    """What `_download` uses of tensorflow-datasets."""

    class core:  # noqa: N801
        class DatasetNotFoundError(ValueError):
            pass

    class download:  # noqa: N801
        class DownloadError(Exception):
            pass

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault

    def builder(self, name: str, data_dir: str) -> FakeTfds:
        self.place = Path(data_dir)
        return self

    def download_and_prepare(self) -> None:
        print("chatter")
        if self.fault:
            raise self.fault
        prepare(self.place)


def test_what_is_nowhere_is_downloaded_into_the_first_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(places, "network_reaches", lambda host, timeout=3.0: True)
    monkeypatch.setattr(dataset, "_import_tfds", FakeTfds)
    found = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path / "new")
    assert found.located.path == tmp_path / "new" / "cifar10" / "3.0.2"
    assert len(found.load("train")) == 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (FakeTfds.core.DatasetNotFoundError("no such"), BadInputError),
        (FakeTfds.download.DownloadError("gone"), EnvironmentFaultError),
        (OSError("disk full"), EnvironmentFaultError),
    ],
)
def test_a_failed_download_is_told(
    fault: Exception, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "network_reaches", lambda host, timeout=3.0: True)
    monkeypatch.setattr(dataset, "_import_tfds", lambda: FakeTfds(fault))
    with pytest.raises(error, match=str(fault)):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path)


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_prepared_images_have_the_pixels_other_decoders_give(kind: str, tmp_path: Path) -> None:
    images = prepare(tmp_path, kind=kind)
    found = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path)
    for split in ("train", "test"):
        read = found.load(split)  # type: ignore[arg-type]
        encoded = [encode(i, kind) for i in images[split]]
        expected = np.stack([np.asarray(Image.open(io.BytesIO(e))) for e in encoded])
        np.testing.assert_array_equal(read.images, expected)
        assert read.labels.tolist() == [k % 10 for k in range(20)]
    assert found.image_shape == (32, 32, 3)
    assert not found.has_validation
    with pytest.raises(BadInputError, match="no split 'validation' of its own"):
        found.load("validation")


def test_tensorflow_datasets_reads_the_same(tmp_path: Path) -> None:
    prepare(tmp_path)
    builder = dataset._import_tfds().builder_from_directory(tmp_path / "cifar10" / "3.0.2")
    theirs = list(builder.as_dataset(split="test", as_supervised=True).as_numpy_iterator())
    ours = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("test")
    np.testing.assert_array_equal(np.stack([image for image, _ in theirs]), ours.images)
    assert [label for _, label in theirs] == ours.labels.tolist()


def test_the_test_split_is_not_touched_before_it_is_asked_for(tmp_path: Path) -> None:
    prepare(tmp_path)
    found = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path)
    file = shard(tmp_path / "cifar10" / "3.0.2", "test")
    content = bytearray(file.read_bytes())
    content[40] ^= 255
    file.write_bytes(content)
    assert len(found.inference.mean) == 3
    assert len(found.load("train")) == 20
    with pytest.raises(BadInputError, match=rf"{file.name}: record 0 is damaged"):
        found.load("test")


def test_a_shard_cut_between_two_records_is_noticed(tmp_path: Path) -> None:
    prepare(tmp_path)
    folder = tmp_path / "cifar10" / "3.0.2"
    fill(folder, "train", [encode(i, "PNG") for i in pictures(5)], [0] * 5)
    with pytest.raises(BadInputError, match=r"00000-of-00001 holds 5, not 20 records"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("train")


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 3, "test": 3})
    fill(folder, "train", [encode(i, "PNG") for i in pictures(3)], [0, 10, 1])
    with pytest.raises(BadInputError, match=r"record 1 has the label 10, .* must be 0 to 9"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("train")


def test_images_of_another_size_than_described_are_refused(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 1, "test": 1})
    fill(folder, "train", [encode(np.zeros((30, 30, 3), np.uint8), "PNG")], [0])
    with pytest.raises(BadInputError, match=r"record 0 is damaged \(its image has 30×30"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("train")


def test_prepared_images_of_many_sizes_need_one(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 2, "test": 2}, shape=(-1, -1, 3))
    shapes = [(20, 30, 3), (40, 16, 3)]
    fill(folder, "train", [encode(np.full(s, 99, np.uint8), "PNG") for s in shapes], [0, 1])
    with pytest.raises(BadInputError, match=r"differ in size: .*size=\(height, width\)"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path)
    found = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path, size=(8, 12))
    train = found.load("train")
    assert train.images.shape == (2, 8, 12, 3)
    assert (train.images == 99).all()


@pytest.mark.parametrize("splits", [("train", "validation"), ("train",)])
def test_a_prepared_set_without_test_split_says_what_stands_for_it(
    splits: tuple[str, ...], tmp_path: Path
) -> None:
    images = prepare(tmp_path, splits=splits)
    found = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path)
    assert "no test split: " in found.located.remark
    train, test = found.load("train"), found.load("test")
    if len(splits) == 2:
        np.testing.assert_array_equal(test.images, images["validation"])
    else:
        assert (len(train), len(test)) == (16, 4)
        together = {i.tobytes() for s in (train, test) for i in s.images}
        assert together == {i.tobytes() for i in images["train"]}


@pytest.mark.parametrize("layout", ["binary", "python"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar_archives_give_the_same_in_every_layout(
    layout: str, packed: bool, tmp_path: Path
) -> None:
    name = f"cifar-10-{layout}.tar.gz"
    folder = f"cifar-10-batches-{layout[:3] if layout == 'binary' else layout[:2]}"
    if packed:
        pack(tmp_path / name, folder, cifar_members(layout))
    else:
        unpack(tmp_path / folder, cifar_members(layout))
    found = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path)
    assert found.located.kind == "archive"
    train, test = found.load("train"), found.load("test")
    expected = np.concatenate([pictures(4, i) for i in range(1, 6)])
    np.testing.assert_array_equal(train.images, expected)
    np.testing.assert_array_equal(test.images, pictures(4, 6))
    assert train.labels.tolist() == [0, 3, 9, 5] * 5
    assert found.class_names == tuple(f"name{i}" for i in range(10))


@pytest.mark.parametrize("layout", ["binary", "python"])
def test_cifar100_archives_give_the_fine_labels(layout: str, tmp_path: Path) -> None:
    labels = [99, 0, 50]
    names = [f"n{i}" for i in range(100)]
    if layout == "binary":
        batch = binary_record(pictures(3), labels, before=b"\x07")
        members = {"train.bin": batch, "test.bin": batch}
        members["fine_label_names.txt"] = "\n".join(names).encode()
    else:
        batch = python_batch(pictures(3), labels, b"fine_labels")
        meta = pickle.dumps({b"fine_label_names": [n.encode() for n in names]}, protocol=2)
        members = {"train": batch, "test": batch, "meta": meta}
    pack(tmp_path / f"cifar-100-{layout}.tar.gz", f"cifar-100-{layout}", members)
    found = data.load_dataset("cifar100", spec=CIFAR100, data_dir=tmp_path)
    assert (found.classes, found.class_names) == (100, tuple(names))
    assert found.load("test").labels.tolist() == labels
    np.testing.assert_array_equal(found.load("train").images, pictures(3))


def test_a_batch_is_read_as_python_2_wrote_it(tmp_path: Path) -> None:
    flat = pictures(4, 6).transpose(0, 3, 1, 2).tobytes()
    content = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x05test q\x03U\x06labelsq\x04]q\x05(K\0K\3K\tK\5e"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\0\x85"
        b"U\x01b\x87Rq\t(K\1K\4M\0\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\0K\1\x87Rq\x0b(K\3U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T"
        + struct.pack("<i", len(flat))
        + flat
        + b"tbU\tfilenamesq\x0c]q\r(U\x05a.pngq\x0eh\x0eh\x0eh\x0eeu."
    )
    unpack(tmp_path / "cifar-10-batches-py", {**cifar_members("python"), "test_batch": content})
    read = data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("test")
    np.testing.assert_array_equal(read.images, pictures(4, 6))
    assert read.labels.tolist() == [0, 3, 9, 5]


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    whole = binary_archive(tmp_path)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInputError, match=rf"{whole} is damaged"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("train")
    whole.write_bytes(b"<html>not found</html>")
    with pytest.raises(BadInputError, match=rf"{whole} is not a gzip file"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path)
    members = cifar_members("binary")
    del members["data_batch_3.bin"]
    pack(whole, "cifar-10-batches-bin", members)
    with pytest.raises(BadInputError, match=rf"{whole} holds no data_batch_3.bin"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("train")


def test_damaged_unpacked_batches_are_named(tmp_path: Path) -> None:
    folder, members = tmp_path / "cifar-10-batches-bin", cifar_members("binary")
    file = folder / "data_batch_2.bin"
    found = data.Located("archive", folder, 3, 10, None, (32, 32, 3), "")
    for content, message in (
        (members["data_batch_2.bin"][:-1], "not a multiple of 3073"),
        (members["data_batch_2.bin"][:-3073], "holds 3 images and data_batch_1.bin 4"),
        (b"", "has 0 bytes"),
    ):
        unpack(folder, {**members, "data_batch_2.bin": content})
        with pytest.raises(BadInputError, match=rf"{file}.*{message}"):
            data.ImageData("cifar10", CIFAR, found).load("train")
    file.unlink()
    with pytest.raises(BadInputError, match=rf"{file} is missing"):
        data.locate("cifar10", CIFAR, tmp_path)


def test_a_pickle_that_is_a_program_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {mark}",)

    members = cifar_members("python")
    members["data_batch_4"] = pickle.dumps({b"data": Evil(), b"labels": [1]}, protocol=2)
    pack(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", members)
    with pytest.raises(BadInputError, match=r"data_batch_4 is not a CIFAR batch: it asks for"):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("train")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a CIFAR batch"),
        (b"garbage", "is not a CIFAR batch"),
        (pickle.dumps([1]), "no dictionary"),
        (pickle.dumps({b"data": [1], b"labels": [1]}), "not a table of uint8"),
        (python_batch(pictures(4), [1, 2]), "2 labels need data of shape"),
        (python_batch(pictures(1), ["a"]), "not a list of integers"),  # type: ignore[list-item]
        (python_batch(pictures(4), [1, 2, 3, -1]), "has the label -1"),
    ],
)
def test_pickles_that_are_no_batches_are_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    unpack(tmp_path / "cifar-10-batches-py", {**cifar_members("python"), "test_batch": content})
    with pytest.raises(BadInputError, match=message):
        data.load_dataset("cifar10", spec=CIFAR, data_dir=tmp_path).load("test")


# ---------------------------------------------------------------------------- digits


def test_digits_have_a_fixed_split_and_three_equal_channels() -> None:
    first = data.load_dataset("digits", datasets=REGISTRY)
    train, test = first.load("train"), first.load("test")
    assert first.image_shape == (32, 32, 3)
    assert (train.images.shape, test.images.shape) == ((1437, 32, 32, 3), (360, 32, 32, 3))
    assert (train.images == train.images[..., :1]).all()
    assert (train.images.min(), train.images.max()) == (0, 255)
    whole = np.bincount(train.labels) + np.bincount(test.labels)
    assert np.abs(np.bincount(test.labels) - whole * 360 / 1797).max() < 1
    # Another split would make every published accuracy another one.
    assert test.labels[:12].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]
    again = data.load_dataset("digits", datasets=REGISTRY).load("test")
    np.testing.assert_array_equal(again.images, test.images)
    assert first.class_names == tuple("0123456789")


def test_mean_and_std_are_measured_on_the_training_images() -> None:
    found = data.load_dataset("digits", datasets=REGISTRY)
    inference = found.inference
    pixels = found.load("train").images / 255
    np.testing.assert_allclose(inference.mean, pixels.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(inference.std, pixels.std((0, 1, 2)), rtol=1e-9)
    assert inference.resize == [32, 32]


@pytest.mark.parametrize("first", ["load", "inference"])
def test_training_images_are_read_once_for_mean_and_training(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = data.load_dataset("digits", datasets=REGISTRY)
    reads: list[str] = []
    read = found._load
    monkeypatch.setattr(found, "_load", lambda split: reads.append(split) or read(split))
    if first == "inference":
        assert found.inference.mean
    assert len(found.load("train")) == 1437
    assert found.inference.mean
    assert reads == ["train"]


def test_mean_and_std_of_the_registry_are_taken_as_they_are() -> None:
    spec = DIGITS.model_copy(update={"mean": [0.3], "std": [0.5]})
    inference = data.load_dataset("digits", spec=spec).inference
    assert (inference.mean, inference.std) == ([0.3] * 3, [0.5] * 3)
    wrong = DIGITS.model_copy(update={"mean": [0.3, 0.3], "std": [0.5, 0.5]})
    with pytest.raises(BadInputError, match="`mean` has 2 channels, the images 3"):
        data.load_dataset("digits", spec=wrong)


def test_a_spec_that_contradicts_the_data_is_refused() -> None:
    with pytest.raises(BadInputError, match="has 10 classes, the registry says 12"):
        data.load_dataset("digits", spec=DIGITS.model_copy(update={"classes": 12}))


def test_a_size_asked_for_overrides_the_spec() -> None:
    found = data.load_dataset("digits", datasets=REGISTRY, size=(16, 24))
    assert found.load("test").images.shape == (360, 16, 24, 3)
    assert found.inference.resize == [16, 24]


def test_a_set_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_memory", lambda: 1_000_000)
    with pytest.raises(BadInputError, match=r"GiB.*ask for smaller images"):
        data.load_dataset("digits", datasets=REGISTRY).load("train")


# ---------------------------------------------------------------------------- folders


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Ten pictures of two classes, in many formats."""
    root = tmp_path / "pets"
    for i, end in enumerate(("png", "jpg", "bmp", "gif", "webp")):
        paint(root / "dog" / f"{i}.{end}", 200 + i)
        paint(root / "cat" / f"{i}.{end.upper()}", 50 + i)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    return root


def test_class_folders_are_split_the_same_way_every_time(classes: Path) -> None:
    spec = data.dataset_spec(str(classes), REGISTRY)
    found = data.load_dataset(str(classes), spec=spec)
    train, test = found.load("train"), found.load("test")
    assert found.class_names == ("cat", "dog")
    assert (len(train), len(test)) == (8, 2)
    assert test.labels.tolist() == [0, 1]
    assert (train.images.reshape(8, -1).mean(1) > 128).tolist() == [False] * 4 + [True] * 4
    again = data.load_dataset(str(classes), spec=spec).load("test")
    np.testing.assert_array_equal(again.images, test.images)
    assert "20% held out" in found.located.remark


@pytest.mark.parametrize("names", [
    ("train", "val", "test"), ("Train", "Validation", "Test"), ("training", "valid", "testing"),
])  # fmt: skip
def test_train_val_and_test_folders_are_honoured(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "set" / "notes").mkdir(parents=True)
    for split, n in zip(names, (3, 2, 1), strict=True):
        for name in ("a", "b"):
            for i in range(n):
                paint(tmp_path / "set" / split / name / f"{i}.png", n)
    found = data.load_dataset("set", spec=FOLDER, data_dir=tmp_path)
    assert found.has_validation
    sizes = [len(found.load(s)) for s in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert sizes == [6, 4, 2]
    assert (found.load("validation").images == 2).all()


@pytest.mark.parametrize("names", [("plane", "train"), ("control/a", "test/a"), ("test", "train2")])
def test_a_class_may_have_the_name_of_a_split(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        for i in range(3):
            paint(tmp_path / "set" / name / f"{i}.png", 1)
    found = data.load_dataset("set", spec=FOLDER, data_dir=tmp_path)
    assert found.class_names == tuple(name.partition("/")[0] for name in names)
    assert not found.has_validation


@pytest.mark.parametrize(("images", "said"), [
    (["train/a", "train/b", "training/a"], "both 'train' and 'training' would hold"),
    (["train/a", "train/b", "test", "notes"], "test holds no images in a folder for each class"),
    (["train/a", "train/b", "val/a", "valid/b"], "both 'val' and 'valid' .* for validation"),
    (["val/a", "val/b", "test/a", "test/b"], "a folder 'test', but no 'train' beside it"),
    (["train", "test"], "train must hold a folder of images for each class"),
    (["a", "b", "c/../d"], "c holds no images to learn that class from"),
    (["train/a", "train/b", "train/c/../d", "test/c"], "c holds no images to learn that class"),
])  # fmt: skip
def test_a_layout_that_cannot_be_meant_is_refused(
    images: list[str], said: str, tmp_path: Path
) -> None:
    for name in images:
        (tmp_path / "set" / name.split("/..")[0]).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            paint(tmp_path / "set" / name / f"{i}.png", 1)
    with pytest.raises(BadInputError, match=said):
        data.load_dataset("set", spec=FOLDER, data_dir=tmp_path)


def test_pictures_that_a_camera_turned_are_turned_back(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "set"
    for name in ("a", "b"):
        for i in range(3):
            paint(folder / name / f"{i}.png", 1, size=(20, 10))
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 10:] = 255
    # To be shown turned clockwise by a quarter; a resolution of text could not be written again.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(
        "<HHI4s", 0x011A, 2, 4, b"abc"
    )
    turned = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    Image.fromarray(pixels).save(folder / "a" / "0.png", exif=turned)
    found = data.load_dataset("set", spec=FOLDER, data_dir=tmp_path)
    assert found.image_shape == (20, 10, 3)
    images = np.concatenate([found.load("train").images, found.load("test").images])
    (image,) = [image for image in images if image.max() == 255]
    assert image[:10].max() == 0
    assert image[10:].min() == 255


@pytest.mark.parametrize("held", range(1, 9))
def test_every_way_to_hold_a_camera(held: int, tmp_path: Path) -> None:
    """Against Pillow's own, which also writes the EXIF data again."""
    from PIL import Image, ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), "uint8")
    exif = Image.Exif()
    exif[0x0112] = held
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", None)[0], expected)


@pytest.mark.parametrize("end", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage garbage", b"Exif\0\0II", b"nothing of it"])
def test_damage_beside_a_picture_leaves_it_whole(end: str, exif: bytes, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / f"a.{end}"
    Image.new("RGB", (9, 6), (255, 0, 0)).save(file, exif=exif, dpi=(72, 72))
    assert read_image(file, None).shape == (1, 6, 9, 3)


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / "set" / "a" / f"{i}.png", 7, mode="L")
        paint(tmp_path / "set" / "b" / f"{i}.png", 9, mode="RGBA")
    found = data.load_dataset("set", spec=FOLDER, data_dir=tmp_path)
    assert found.load("train").images.shape == (4, 32, 32, 3)


def test_folders_with_images_of_many_sizes_need_one(classes: Path) -> None:
    for i in range(5):
        paint(classes / "cat" / f"big{i}.png", 1, size=(40, 50))
    spec = data.dataset_spec(str(classes), REGISTRY)
    with pytest.raises(BadInputError, match=r"differ in size \(.*40×50.*size=\(height, width\)"):
        data.load_dataset(str(classes), spec=spec)
    found = data.load_dataset(str(classes), spec=spec, size=(16, 16))
    assert found.load("train").images.shape == (12, 16, 16, 3)


def test_what_is_wrong_with_a_folder_is_named(classes: Path, tmp_path: Path) -> None:
    def load(path: Path) -> data.Split:
        spec = data.dataset_spec(str(path), REGISTRY)
        return data.load_dataset(str(path), spec=spec).load("train")

    for i in range(5):
        (classes / "dog" / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(BadInputError, match=r"dog/\d.png cannot be read as an image"):
        load(classes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="must hold a folder of images for each class"):
        load(tmp_path / "empty")
    for name in ("train/cat", "train/dog", "test/cat", "test/dgo"):
        paint(tmp_path / "odd" / name / "0.png", 1)
    with pytest.raises(BadInputError, match=r"test/dgo: .* no class 'dgo'. Did you mean 'dog'"):
        load(tmp_path / "odd")
    with pytest.raises(BadInputError, match="no folder at"):
        data.locate("nowhere", FOLDER)
    for name in ("a", "b"):
        paint(tmp_path / "tiny" / name / "0.png", 1)
    with pytest.raises(BadInputError, match="too few to hold any out"):
        load(tmp_path / "tiny")


# ---------------------------------------------------------------------------- parts of a split


def some(labels: list[int]) -> data.Split:
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return data.Split(images, np.array(labels, np.int64))


def test_a_validation_split_is_stratified_and_keyed_by_seed() -> None:
    train = some([0] * 100 + [1] * 50 + [2] * 50)
    left, held = data.split_validation(train, 0.1, seed=3)
    assert np.bincount(held.labels).tolist() == [10, 5, 5]
    together = np.concatenate([left.images, held.images]).ravel()
    assert sorted(together) == list(range(200))
    again = data.split_validation(train, 0.1, seed=3)[1]
    other = data.split_validation(train, 0.1, seed=4)[1]
    assert (held.images == again.images).all()
    assert (held.images != other.images).any()


def test_a_validation_fraction_of_zero_holds_nothing_out() -> None:
    left, held = data.split_validation(some([0, 1]), 0.0, seed=0)
    assert (len(left), len(held)) == (2, 0)


def test_tiny_sets_keep_every_class_in_training() -> None:
    left, held = data.split_validation(some([0, 0, 1]), 0.5, seed=0)
    assert held.labels.tolist() == [0]
    assert sorted(left.labels) == [0, 1]
    with pytest.raises(BadInputError, match="too few to hold out"):
        data.split_validation(some([0, 1]), 0.5, seed=0)
    with pytest.raises(BadInputError, match="must be in"):
        data.split_validation(some([0, 1]), 1.0, seed=0)


def test_a_limit_keeps_the_proportions_and_the_order() -> None:
    train = some([1] * 60 + [0] * 30 + [2] * 9)
    part = data.limit(train, 33, seed=0)
    assert np.bincount(part.labels).tolist() == [10, 20, 3]
    assert (np.diff(part.images.ravel().astype(int)) > 0).all()
    assert data.limit(train, 1000, seed=0) is train
    with pytest.raises(BadInputError, match="must be positive"):
        data.limit(train, 0, seed=0)


def test_splits_of_the_wrong_form_are_refused() -> None:
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)
    for bad_images, bad_labels in (
        (images.astype(np.float32), labels),
        (images[0], labels),
        (images, labels[:1]),
        (images, labels.astype(np.int32)),
    ):
        with pytest.raises(BadInputError, match="must be"):
            data.Split(bad_images, bad_labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (5, 7), (3, 40), (8, 8)])
def test_resizing_is_tensorflows_antialiased_bilinear(size: tuple[int, int]) -> None:
    import tensorflow as tf

    images = np.random.RandomState(0).randint(0, 256, (3, 8, 10, 2)).astype(np.uint8)
    expected = tf.image.resize(images, size, "bilinear", antialias=True).numpy()
    assert np.abs(data.resize(images, size) - expected).max() <= 0.51


# ---------------------------------------------------------------------------- the real thing


@pytest.fixture
def real() -> data.ImageData:
    place = REAL
    if not place or not (Path(place) / "cifar10").is_dir():
        pytest.skip("KERASNET_DATA_DIR does not hold a prepared cifar10")
    return data.load_dataset("cifar10", spec=CIFAR, data_dir=place)


# Read before the fixture that clears the environment.
REAL = os.environ.get("KERASNET_DATA_DIR")


def test_the_real_cifar10_has_the_published_sizes_and_means(real: data.ImageData) -> None:
    mean = real.inference.mean
    train, test = real.load("train"), real.load("test")
    assert (train.images.shape, test.images.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=0.001)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert real.class_names[:2] == ("airplane", "automobile")
