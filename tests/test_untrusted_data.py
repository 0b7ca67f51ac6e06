"""Data sets from strangers: none may lead out of its folder, run code, hang or fill the memory."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded, reason
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic import (
    CIFAR,
    alone,
    cifar_members,
    describe,
    encode,
    fill,
    paint,
    pictures,
    python_batch,
    shard,
    unpack,
)

from kerasnet import data, schema
from kerasnet.cli import main
from kerasnet.data import archive, dataset, images, pickles, prepared
from kerasnet.errors import BadInputError
from kerasnet.files import read_json

__all__ = ["alone"]

SECONDS = 20.0
MEMORY = 600_000_000


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Let no test hang or take much memory."""
    import tensorflow  # noqa: F401  # takes memory of its own

    with bounded(SECONDS, MEMORY, until=4 * SECONDS):
        yield


def opened(place: Path, spec: schema.Dataset = CIFAR, **more: Any) -> data.ImageData:
    return data.load_dataset("cifar10", spec=spec, data_dir=place, **more)


def refused(place: Path, *said: str) -> None:
    """Assert that a data set is refused, in few printable words, before or while it is read."""
    with pytest.raises(BadInputError) as raised:
        opened(place).check("test")
    message = str(raised.value)
    assert len(message) < 2000
    assert message.isprintable()
    for words in said:
        assert words in message


# ---------------------------------------------------------------------------- JSON files


def rewrite(file: Path, **fields: Any) -> None:
    """Replace fields of dataset_info.json, those of its splits by `split_…`."""
    info = json.loads(file.read_text())
    for name, value in fields.items():
        for target in info["splits"] if name.startswith("split_") else [info]:
            target[name.removeprefix("split_")] = value
    file.write_text(json.dumps(info))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared data set of two images a split."""
    found = describe(tmp_path, {"train": 2, "test": 2})
    for split in ("train", "test"):
        fill(found, split, [encode(i, "PNG") for i in pictures(2)], [0, 1])
    return found


def place_of(folder: Path) -> Path:
    return folder.parent.parent


@pytest.mark.parametrize(
    "template",
    [
        "../{DATASET}-{SPLIT}",
        "a/../../{DATASET}",
        "/etc/passwd",
        "..\\{DATASET}",
        "C:{DATASET}",
        "{SHARD_INDEX:>9999999999}",
        "{SHARD_INDEX!r}",
        "{DATASET.__class__}",
        "{DATASET[0]}",
        "{UNKNOWN}",
        "{}",
        "{0}",
        "{DATASET}}",
        "{DATASET}" * 28,
        "{SPLIT}\0",
        "\x1b[2J{SPLIT}",
        "x" * 1000,
        ["{SPLIT}"],
        7,
    ],
)
def test_a_template_of_file_names_cannot_lead_out_nor_blow_up(template: Any, folder: Path) -> None:
    rewrite(folder / "dataset_info.json", split_filepathTemplate=template, name="cifar10" * 2)
    refused(place_of(folder), str(folder), "do not describe a data set")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "{SPLIT}", "x" * 10**6, None, "\x1b[m"])
def test_a_name_in_a_template_cannot_lead_out(name: Any, folder: Path) -> None:
    rewrite(folder / "dataset_info.json", name=name)
    refused(place_of(folder), str(folder))


def test_a_template_may_name_folders_inside(folder: Path) -> None:
    (folder / "test").mkdir()
    for split in ("train", "test"):
        shard(folder, split).rename(folder / "test" / f"{split}.00000")
    rewrite(folder / "dataset_info.json", split_filepathTemplate="test/{SPLIT}.{SHARD_INDEX}")
    assert len(opened(place_of(folder)).load("test")) == 2


@pytest.mark.parametrize("key", ["../../label", "/etc/passwd", "a/b", "\0", "", 5])
def test_a_feature_cannot_name_a_file_elsewhere(key: Any, folder: Path) -> None:
    items = [{"featureKey": "image"}, {"featureKey": key}]
    rewrite(folder / "dataset_info.json", supervisedKeys={"tuple": {"items": items}})
    refused(place_of(folder), str(folder))


@pytest.mark.parametrize(
    "lengths",
    [
        '["1e400"]', "[1e400]", "[1e3]", "[1.5]", "[-1]", "[true]", "[null]", '["٣"]', "[[2]]",
        "[NaN]", "[Infinity]", "[" + "9" * 5000 + "]", '["' + "9" * 5000 + '"]',
        "[" + "9" * 16 + "]", "{}", "5", "[" + "1," * 10**6 + "1]", "[" + "[" * 10**5,
    ],
    ids=range(18),
)  # fmt: skip
def test_lengths_of_shards_are_whole_numbers_and_not_too_many(lengths: str, folder: Path) -> None:
    file = folder / "dataset_info.json"
    file.write_text(file.read_text().replace('["2"]', lengths))
    refused(place_of(folder), str(folder))


def test_shards_of_one_name_are_refused(folder: Path) -> None:
    rewrite(folder / "dataset_info.json", split_shardLengths=[2] * 1000,
            split_filepathTemplate=shard(folder, "test").name)  # fmt: skip
    refused(place_of(folder), "gives several shards one name")


def test_more_images_than_files_could_hold_are_refused_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder / "dataset_info.json", split_shardLengths=[10**14])
    with pytest.raises(SystemExit) as ended:
        main(["fit", "resnet8", "--data-dir", str(place_of(folder)), "--dry-run"])
    assert ended.value.code == 2
    assert f"{shard(folder, 'train')} has" in capsys.readouterr().err


def test_more_images_than_fit_into_memory_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(folder / "dataset_info.json", split_shardLengths=[10**9])
    for split in ("train", "test"):
        os.truncate(shard(folder, split), 2 * 10**10)  # a file with a hole
    monkeypatch.setattr(dataset, "_memory", lambda: 10**12)
    refused(place_of(folder), "1000000000 images of (32, 32, 3) need", "GiB")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"", "not JSON"),
        (b"[1", "not JSON"),
        (b'{"x": ' + b"1" * 10_000 + b"}", "not JSON"),
        (b"null", "do not describe"),
        (b'{"featuresDict": 1e400, "supervisedKeys": 1e400}', "do not describe"),
    ],
)
def test_json_that_is_none_or_nested_too_deep_is_refused(
    name: str, content: bytes, said: str, folder: Path
) -> None:
    (folder / name).write_bytes(content)
    refused(place_of(folder), str(folder), said)


def test_no_more_of_a_json_file_is_read_than_is_allowed(folder: Path, tmp_path: Path) -> None:
    os.truncate(folder / "features.json", 2**40)
    refused(place_of(folder), f"{folder / 'features.json'}: is larger than 16,777,216 bytes")
    file = tmp_path / "small.json"
    file.write_text("[12345]")
    assert read_json(file, 7) == [12345]
    with pytest.raises(BadInputError, match="is larger than 6 bytes"):
        read_json(file, 6)


def test_pipes_are_not_waited_for(folder: Path) -> None:
    for name in ("label.labels.txt", "features.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        if name == "label.labels.txt":
            assert opened(place_of(folder)).check("test") is None
    refused(place_of(folder), f"{folder / 'features.json'} is missing")
    with pytest.raises(BadInputError, match="no regular file"):
        read_json(folder / "features.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = enumerate(value) if isinstance(value, list) else getattr(value, "items", tuple)()
    for key, inner in pairs:
        yield (*path, key)
        yield from nodes(inner, (*path, key))


@settings(
    max_examples=150, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(choice=st.randoms(use_true_random=False), value=JSON | st.sampled_from(["-1", "1", "9" * 9]))
def test_any_value_anywhere_in_the_json_files_is_read_or_refused(
    choice: Any, value: Any, folder: Path
) -> None:
    file = folder / choice.choice(["dataset_info.json", "features.json"])
    before = file.read_text()
    content = json.loads(before)
    *path, last = choice.choice(list(nodes(content)))
    target = content
    for key in path:
        target = target[key]
    target[last] = value
    file.write_text(json.dumps(content))
    said = reason(lambda: data.locate("cifar10", CIFAR, place_of(folder)))
    file.write_text(before)
    assert not said or str(folder) in said
    assert said.isprintable()
    assert len(said) < 2000


@pytest.mark.parametrize(
    ("dimensions", "said"),
    [
        (["100000", "100000", "3"], "more than 89,478,485"),
        (["1000000000000", "1", "1"], "more than 89,478,485"),
        (["32", "32", "2"], "1, 3 or 4 channels"),
        (["32", "32", "1000000"], "1, 3 or 4 channels"),
        (["32", "32"], "do not describe"),
        (["32", "32", "1e400"], "do not describe"),
    ],
)
def test_images_of_absurd_shapes_are_refused(
    dimensions: list[str], said: str, tmp_path: Path
) -> None:
    describe(tmp_path, {"train": 2, "test": 2}, shape=tuple(dimensions))  # type: ignore[arg-type]
    refused(tmp_path, said)


def test_absurd_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 2, "test": 2})
    file = folder / "features.json"
    file.write_text(file.read_text().replace('"10"', '"1000000000"'))
    refused(tmp_path, "1000000000 classes, more than 65536")


@pytest.mark.parametrize("stored", ["array_record", "pickle", "", "\x1b[2J", 5, None, ["tfrecord"]])
def test_other_formats_are_refused(stored: Any, folder: Path) -> None:
    rewrite(folder / "dataset_info.json", fileFormat=stored)
    refused(place_of(folder), f"{folder} is stored as {stored!r}, not as tfrecord")


def test_the_classes_that_a_file_names_are_not_imported(folder: Path) -> None:
    file = folder / "features.json"
    file.write_text(file.read_text().replace("tensorflow_datasets.core.features.image_", "evil."))
    (folder / "evil.py").write_text("raise SystemExit")
    assert opened(place_of(folder)).check("test") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n" * 9 + b"\x1b[2J", "printable characters, not '\\x1b[2J'"),
        (b"a\n" * 9 + b"x" * 500, "at most 200 printable characters"),
        (b"a\n" * 9 + b"\xff", "is not UTF-8 text"),
        (b"a" * 5_000_000, "is larger than"),
    ],
)
def test_class_names_are_short_and_printable(content: bytes, said: str, folder: Path) -> None:
    (folder / "label.labels.txt").write_bytes(content)
    refused(place_of(folder), f"{folder}/label.labels.txt", said)


# ---------------------------------------------------------------------------- records


def masked_crc(content: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, turned and with a constant added."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("length", [2**34, 2**40, 2**62, 2**63, 2**64 - 16, 2**64 - 1])
def test_a_record_that_declares_more_than_there_is_is_refused(length: int, folder: Path) -> None:
    header = struct.pack("<Q", length)
    file = shard(folder, "test")
    file.write_bytes(header + struct.pack("<I", masked_crc(header)) + b"x" * 100)
    refused(place_of(folder), f"{file}: record 0 does not end where the file does")
    # As large as it declares to be, by a hole.
    os.truncate(file, min(length, 2**40) + 16)
    refused(place_of(folder), f"{file}: record 0 does not end where the file does")


def png(height: int, width: int, rows: bytes = b"") -> bytes:
    """A PNG that declares a size, and holds these rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(height: int, width: int) -> bytes:
    """A JPEG whose frame declares another size than it has."""
    content = encode(pictures(1)[0], "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def gif(height: int, width: int) -> bytes:
    """A GIF of 32×32 whose only frame declares another size."""
    content = bytearray(encode(pictures(1)[0], "GIF"))
    at = content.index(b",\0\0\0\0") + 5
    content[at : at + 4] = struct.pack("<HH", width, height)
    return bytes(content)


def bmp(height: int, width: int) -> bytes:
    content = bytearray(encode(pictures(1)[0], "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


BOMBS = {
    "png": png(100_000, 100_000),
    "png_between_warning_and_error": png(9_000, 10_000),
    "png_overflow": png(2**31 - 1, 2**31 - 1),
    "jpeg": jpeg(65_500, 65_500),
    "jpeg_between_warning_and_error": jpeg(9_000, 10_000),
    "gif": gif(65_000, 65_000),
    "bmp": bmp(100_000, 100_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("size", ["one", "many"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_in_a_record_is_not_decoded(
    bomb: str, size: str, tmp_path: Path
) -> None:
    shape = (32, 32, 3) if size == "one" else (-1, -1, 3)
    folder = describe(tmp_path, {"train": 2, "test": 2}, shape=shape)
    for split in ("train", "test"):
        fill(folder, split, [encode(pictures(1)[0], "JPEG"), BOMBS[bomb]], [0, 1])
    with pytest.raises(BadInputError, match=rf"{shard(folder, 'test')}: record 1 is damaged"):
        opened(tmp_path, size=(8, 8)).check("test")


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_in_a_folder_is_not_decoded(bomb: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            paint(tmp_path / "set" / split / name / "0.png", 7)
    file = tmp_path / "set" / "test" / "b" / "1.png"
    file.write_bytes(BOMBS[bomb])
    spec = schema.Dataset(source=schema.DatasetSource(type="folder", name="set"))
    for size in (None, (8, 8)):
        with pytest.raises(BadInputError, match=rf"{file} cannot be read as an image"):
            opened(tmp_path, spec, size=size).load("test")
    file.rename(tmp_path / "set" / "train" / "b" / "1.png")
    with pytest.raises(BadInputError, match=r"train/b/1.png cannot be read as an image"):
        opened(tmp_path, spec)


def test_sizes_are_seen_at_a_glance_as_pillow_sees_them() -> None:
    for size in ((32, 32), (7, 300), (1, 1)):
        picture = np.resize(pictures(1)[0], (*size, 3))
        for options in ({}, {"progressive": True}, {"comment": b"\xff\xc0" * 9}, {"dpi": (9, 9)}):
            out = io.BytesIO()
            Image.fromarray(picture).save(out, "JPEG", **options)
            assert images._declared(out.getvalue()) == size
        assert images._declared(encode(picture, "PNG")) == size
        assert images._declared(encode(picture, "GIF")) is None


@settings(max_examples=200, deadline=None)
@given(where=st.floats(0, 1), bits=st.integers(0, 255), cut=st.booleans())
def test_a_glance_at_damaged_images_never_fails(where: float, bits: int, cut: bool) -> None:
    for kind in ("JPEG", "PNG"):
        content = bytearray(encode(pictures(1)[0], kind))
        at = int(where * 700)
        content[at] ^= bits
        found = images._declared(bytes(content[:at] if cut else content))
        assert found is None or len(found) == 2


def test_gifs_and_bitmaps_in_records_have_the_pixels_pillow_gives(tmp_path: Path) -> None:
    folder = describe(tmp_path, {"train": 2, "test": 2})
    for split in ("train", "test"):
        fill(folder, split, [encode(pictures(1)[0], kind) for kind in ("BMP", "GIF")], [0, 1])
    read = opened(tmp_path).load("test").images
    np.testing.assert_array_equal(read[0], pictures(1)[0])
    with Image.open(io.BytesIO(encode(pictures(1)[0], "GIF"))) as image:
        np.testing.assert_array_equal(read[1], image.convert("RGB"))


# ---------------------------------------------------------------------------- archives

BINARY = "cifar-10-binary.tar.gz"


def tar_of(place: Path, entries: list[tuple[tarfile.TarInfo, bytes]], end: bytes = b"") -> Path:
    """Write a tar.gz header by header, whatever the headers say."""
    parts = []
    for entry, content in entries:
        padding = b"\0" * (-len(content) % 512)
        parts += [entry.tobuf(tarfile.GNU_FORMAT), content, padding]
    file = place / BINARY
    file.write_bytes(gzip.compress(b"".join([*parts, b"\0" * 1024, end])))
    return file


def entry(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def sound() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        (entry(f"cifar-10-batches-bin/{name}", len(content)), content)
        for name, content in cifar_members("binary").items()
    ]


def tree(place: Path) -> set[Path]:
    return set(place.rglob("*"))


@pytest.mark.parametrize(
    "evil",
    [
        entry("../../evil", 4),
        entry("/tmp/evil", 4),
        entry("evil", 0, tarfile.SYMTYPE, "/etc/passwd"),
        entry("evil", 0, tarfile.LNKTYPE, "../../etc/passwd"),
        entry("evil", 2**30, tarfile.CHRTYPE),
        entry("evil", 2**30, tarfile.BLKTYPE),
        entry("evil", 2**30, tarfile.FIFOTYPE),
        entry("evil", 2**30, tarfile.DIRTYPE),
    ],
    ids=lambda e: e.name + str(e.type),
)
def test_nothing_in_an_archive_is_written_or_followed(
    evil: tarfile.TarInfo, tmp_path: Path
) -> None:
    content = b"evil" if evil.isreg() else b""
    tar_of(tmp_path, [(evil, content), *sound()])
    before = tree(tmp_path.parent)
    for split in ("train", "test"):
        opened(tmp_path).check(split)  # type: ignore[arg-type]
    assert len(opened(tmp_path).class_names) == 10
    assert tree(tmp_path.parent) == before
    evil.name = "cifar-10-batches-bin/test_batch.bin"
    tar_of(tmp_path, [e for e in sound() if e[0].name != evil.name] + [(evil, content)])
    refused(tmp_path, f"{tmp_path / BINARY}")
    assert tree(tmp_path.parent) == before
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("size", [2**28 + 1, 2**29, 10**12, 2**62, -512, -(2**40)])
@pytest.mark.parametrize("name", ["readme.html", "test_batch.bin"])
def test_a_member_of_absurd_size_is_refused(name: str, size: int, tmp_path: Path) -> None:
    tar_of(tmp_path, [(entry(name, size), b"x"), *sound()])
    refused(tmp_path, f"{tmp_path / BINARY} is damaged", "download it again")


def test_endless_members_are_refused(tmp_path: Path) -> None:
    tar_of(tmp_path, [(entry(f"{i}", 0), b"") for i in range(1001)] + sound())
    refused(tmp_path, f"{tmp_path / BINARY} is damaged (it holds more than 1000 members")


@pytest.mark.parametrize("where", ["in_a_member", "in_an_unwanted_member", "after_the_end"])
def test_an_archive_that_swells_is_read_only_so_far(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 2**20)
    zeros = b"\0" * 2**21
    name = "test_batch.bin" if where == "in_a_member" else "readme.html"
    members = [] if where == "after_the_end" else [(entry(name, len(zeros)), zeros)]
    tar_of(tmp_path, sound() + members, end=zeros if where == "after_the_end" else b"")
    refused(tmp_path, f"{tmp_path / BINARY} is damaged (it holds more than")


def test_extension_headers_are_not_followed(tmp_path: Path) -> None:
    """Tens of thousands of them, each of which `tarfile` would read inside the one before."""
    longs = [(entry("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME), b"evil\0")] * 900
    tar_of(tmp_path, longs + sound())
    assert opened(tmp_path).check("test") is None
    digits = b"1" * 2**20
    tar_of(tmp_path, [(entry("x", len(digits), tarfile.XHDTYPE), digits), *sound()])
    assert opened(tmp_path).check("test") is None


def test_an_unpacked_member_of_absurd_size_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    unpack(folder, cifar_members("binary"))
    os.truncate(folder / "test_batch.bin", 2**40)
    refused(tmp_path, f"{folder}/test_batch.bin: is larger than 268,435,456 bytes")
    os.truncate(folder / "batches.meta.txt", 2**40)
    with pytest.raises(BadInputError, match=r"batches.meta.txt: is larger than 1,048,576 bytes"):
        assert opened(tmp_path).class_names


def test_class_names_in_an_archive_are_printable(tmp_path: Path) -> None:
    names = [b"a"] * 9 + [b"\x1b[2J"]
    for layout, name, content in (
        ("bin", "batches.meta.txt", b"\n".join(names)),
        ("py", "batches.meta", pickle.dumps({b"label_names": names}, protocol=2)),
    ):
        place = tmp_path / layout
        members = cifar_members({"bin": "binary", "py": "python"}[layout])
        unpack(place / f"cifar-10-batches-{layout}", members | {name: content})
        with pytest.raises(BadInputError, match=rf"{name}: a class must have a name"):
            assert opened(place).class_names
    for bad in (5, [5], [["a"]]):
        content = pickle.dumps({b"label_names": bad}, protocol=2)
        unpack(tmp_path / "py" / "cifar-10-batches-py", {"batches.meta": content})
        with pytest.raises(BadInputError, match=r"meta: the class names are not a list of texts"):
            assert opened(tmp_path / "py").class_names


# ---------------------------------------------------------------------------- pickles


def with_test_batch(place: Path, content: bytes) -> None:
    unpack(place / "cifar-10-batches-py", cifar_members("python") | {"test_batch": content})


class Call:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def program(module: str, name: str) -> bytes:
    """A pickle that asks for a name in a module, by the newer way of asking."""
    texts = b"".join(b"\x8c" + bytes([len(t)]) + t for t in (module.encode(), name.encode()))
    return b"\x80\x04" + texts + b"\x93."


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": Call(os.system, "touch evil")}, protocol=2),
        pickle.dumps({b"data": Call(eval, "open('evil', 'w')")}, protocol=4),
        b"cos\nsystem\n(S'touch evil'\ntR.",
        b"(S'touch evil'\nios\nsystem\n.",
        program("os", "system"),
        program("builtins", "exec"),
        program("numpy", "load"),
        program("numpy", "ndarray.__class__"),
        program("numpy", "ndarray.tofile"),
        program("numpy.core.multiarray", "fromfile"),
        program("_codecs", "decode"),
        program("", ""),
        program("x" * 200, "\x1b[2J" * 30),
    ],
)
def test_a_pickle_gets_no_function_but_stand_ins(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_test_batch(tmp_path, content)
    with pytest.raises(BadInputError, match=r"test_batch is not a CIFAR batch: ") as raised:
        opened(tmp_path).check("test")
    assert len(str(raised.value)) < 600
    assert not (tmp_path / "evil").exists()


def array_of(shape: bytes, rest: bytes = b"") -> bytes:
    """A pickle of an array made by NumPy's own function, of a shape given as a pickle."""
    begin = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    return begin + shape + b"U\x01b\x87R" + rest + b"U\x06labels](K\0K\x01eu."


LONG = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0"
HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (array_of(HUGE + b"\x85"), "`data` is not a table of uint8"),
        (array_of(b"K\0\x85", b"(K\x01" + HUGE + HUGE + b"\x86NNNtb"), "not a table of uint8"),
        (array_of(b"K\0\x85", b"}b"), "not a table of uint8"),
        (array_of(b"K\0\x85", b"b"), "test_batch"),
        (b"\x80\x02}(K\x01K\x02u.", "a key is no text"),
        (b"\x80\x02}(U\x01xu.", "not a CIFAR batch"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "it changes what is no object"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "it calls what no CIFAR batch needs"),
        (b"\x80\x02c_codecs\nencode\n(X\x01\0\0\0xK\x01K\x01tR.", "it calls what no CIFAR"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "not a CIFAR batch"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"x.", "not a CIFAR batch"),
        (b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"x.", "not a CIFAR batch"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.", "not a CIFAR batch"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "no dictionary in it"),
        (b"\x80\x02Nr\x00\x00\x00\x40.", "no dictionary in it"),
        (b"\x80\x02Np99999999999\n.", "no dictionary in it"),
        (b"\x80\x02}(" + b")" + b"\x85" * 10**5 + b"Nu.", "a key is no text"),
        (b"\x80\x02" + b"(" * 10**5 + b".", "not a CIFAR batch"),
        (b"\x80\x02]" + b"]a" * 10**5 + b".", "no dictionary in it"),
        (b"\x80\x02" + b"N0" * 10**5 + b"N.", "no CIFAR batch needs POP"),
        (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".", "not a CIFAR batch"),
        (b"\x80\x02I" + b"9" * 10**6 + b"\n.", "not a CIFAR batch"),
        (b"\x80\x02P1\n.", "no CIFAR batch needs PERSID"),
        (b"\x80\x02\x82\x01.", "no CIFAR batch needs EXT1"),
        # One long text that becomes bytes, and one that is asked for as a name, many times over.
        (
            b"\x80\x02c_codecs\nencode\nq\1" + LONG + b"h\0N\x86q\2" + b"h\1h\2R" * 10**5 + b".",
            "its texts are longer than itself",
        ),
        (b"\x80\x04" + LONG + b"h\0h\0\x93" * 10**5 + b".", "a name that is too long"),
    ],
    ids=range(26),
)
def test_a_pickle_bomb_does_not_go_off(content: bytes, said: str, tmp_path: Path) -> None:
    with_test_batch(tmp_path, content)
    refused(tmp_path, f"{tmp_path}/cifar-10-batches-py/test_batch", said)


def test_a_pickle_of_endless_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    with_test_batch(tmp_path, b"\x80\x02](" + b"K\0" * 1000 + b"e.")
    refused(tmp_path, "no CIFAR batch needs so many steps")


@settings(
    max_examples=300, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@given(start=st.integers(0, 400), replacement=st.binary(max_size=12), length=st.integers(0, 12))
def test_any_change_of_a_pickle_is_read_or_refused(
    start: int, replacement: bytes, length: int
) -> None:
    content = python_batch(pictures(2)[:, :1, :1], [0, 1])
    changed = content[:start] + replacement + content[start + length :]

    def read() -> None:
        batch = pickles.unpickle(changed, "batch")
        pickles.pickled_table(batch.get(b"data"), "batch")
        archive._labels(batch.get(b"labels"), "batch")

    assert reason(read)[:5] in ("", "batch")


# ---------------------------------------------------------------------------- image folders


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for i in range(5):
            paint(tmp_path / "pets" / name / f"{i}.png", i)
    return tmp_path / "pets"


def pets_of(pets: Path) -> data.ImageData:
    spec = schema.Dataset(source=schema.DatasetSource(type="folder"))
    return data.load_dataset(str(pets), spec=spec)


def test_links_that_lead_back_are_not_followed(pets: Path) -> None:
    (pets / "cat" / "again").symlink_to(pets)
    (pets / "cat" / "me").symlink_to(pets / "cat" / "me")
    (pets / "cat" / "up.png").symlink_to(pets)
    (pets / "__loop").symlink_to(pets)
    found = pets_of(pets)
    assert (len(found.load("train")), len(found.load("test"))) == (8, 2)
    # A class may be a link, and one that leads up is one more class, not a loop.
    (pets / "eel").symlink_to(pets)
    found = pets_of(pets)
    assert found.class_names == ("cat", "dog", "eel")
    assert len(found.load("train")) + len(found.load("test")) == 20


@pytest.mark.parametrize("kind", ["pipe", "device", "itself"])
def test_what_is_no_file_is_not_opened(kind: str, pets: Path) -> None:
    file = pets / "dog" / "evil.png"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    with pytest.raises(BadInputError, match=rf"{file} cannot be read as an image: it is a broken"):
        pets_of(pets)


def test_folders_nested_without_end_are_gone_through(pets: Path) -> None:
    deep = pets / "dog"
    for _ in range(300):
        deep /= "d"
        deep.mkdir()
    limit, frames = sys.getrecursionlimit(), len(inspect.stack())
    sys.setrecursionlimit(frames + 150)
    try:
        assert len(pets_of(pets).load("train")) == 8
    finally:
        sys.setrecursionlimit(limit)


def test_an_image_is_none_of_the_formats_that_run_programs(pets: Path) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"
    with Image.open(io.BytesIO(postscript)) as image:
        assert image.format == "EPS"
    for i in range(5):
        (pets / "dog" / f"{i}.png").write_bytes(postscript)
    with pytest.raises(BadInputError, match=r"png cannot be read as an image: it is none of PNG"):
        pets_of(pets)


def test_class_folders_have_printable_names(pets: Path) -> None:
    (pets / "a\x1b[2J").mkdir()
    with pytest.raises(BadInputError, match=r"printable characters, not 'a\\x1b\[2J'"):
        pets_of(pets)


@settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]),
    where=st.floats(0, 1, exclude_max=True),
    replacement=st.binary(max_size=8),
)
def test_any_change_of_an_image_is_read_or_refused(
    kind: str, where: float, replacement: bytes, tmp_path: Path
) -> None:
    content = encode(pictures(1)[0], kind)
    # Headers are small and hold what can go wrong.
    at = int(where * where * len(content))
    changed = content[:at] + replacement + content[at + len(replacement) :]
    with images.open_image(io.BytesIO(content), "whole") as image:
        assert np.asarray(image.convert("RGB")).shape == (32, 32, 3)

    def read() -> None:
        with images.open_image(io.BytesIO(changed), "changed") as image:
            image.convert("RGB")

    assert reason(read)[:23] in ("", "changed cannot be read ")


def test_prepared_records_take_bounded_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 32 * 32 * 3 * 2)
    fill(folder, "test", [encode(i, "JPEG") for i in pictures(2)], [0, 1])
    records = opened(place_of(folder))._source
    assert records._chunk(records._splits["test"]) == 2  # type: ignore[attr-defined]
