"""What the JSON files of a data set prepared by tensorflow-datasets say, held against its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from kerasnet.data.images import MAX_PIXELS
from kerasnet.data.source import MAX_CLASSES, checked_names
from kerasnet.errors import BadInputError
from kerasnet.files import read_bytes, read_json

if TYPE_CHECKING:
    from kerasnet.data.splits import Size

# That of a hundred thousand shards has one MB; in memory it can take twenty times as much.
MAX_JSON_BYTES = 2**24
MAX_SHARDS = 100_000
MAX_NAMES_BYTES = 2**22
# A record is a length of eight bytes, its checksum of four, the content, and its checksum.
RECORD_OVERHEAD = 16
AGAIN = "copy it again, or prepare the data set again"

_FIELD = re.compile(r"\{(DATASET|SPLIT|FILEFORMAT|SHARD_X_OF_Y|SHARD_INDEX|NUM_SHARDS)\}")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Records:
    """A split of a prepared data set.

    Attributes:
        name: as it is stored.
        files: its shards.
        lengths: how many examples each has.
        bytes: of all of them together, at least.
    """

    name: str
    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Description:
    """A prepared data set.

    Attributes:
        keys: the names of the image and of the label.
        size: height and width of every image, None if they vary.
        channels: 1, 3 or 4.
        classes: their number.
        class_names: in the order of the labels, None if there are none or not as many.
        train: the training images.
        test: the test images, or what stands for them: the validation images, else `train` itself.
    """

    keys: tuple[str, str]
    size: Size | None
    channels: int
    classes: int
    class_names: tuple[str, ...] | None
    train: Records
    test: Records


def describe(folder: Path) -> Description:
    """Read the description of a data set, and see that its files are there and long enough.

    Args:
        folder: that of a version, which holds dataset_info.json.

    Raises:
        BadInputError: a file is missing, too short or contradicts another, or they do not describe
            labelled images.
    """
    files = folder / "dataset_info.json", folder / "features.json"
    _check_there(files, folder)
    info, features = (read_json(file, MAX_JSON_BYTES) for file in files)
    try:
        found = _described(folder, info, features)
    except BadInputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise BadInputError(
            f"{folder}: dataset_info.json and features.json do not describe a data set as "
            f"tensorflow-datasets writes them ({type(e).__name__}: {e}); {AGAIN}"
        ) from e
    for split in (found.train, found.test):
        _check_there(split.files, folder)
    for split in (found.train, found.test):
        _check_bytes(split, folder)
    return found


def _described(folder: Path, info: Mapping[str, Any], features: Any) -> Description:
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise BadInputError(
            f"{folder} is stored as {info['fileFormat']!r:.60}, not as tfrecord: prepare it again "
            "with `tfds build --file_format=tfrecord`"
        )
    keys = _supervised(folder, info)
    image, label = (features["featuresDict"]["features"][k] for k in keys)
    if "image" not in image or "classLabel" not in label:
        raise BadInputError(
            f"{folder}: its supervised pair {keys} is not an image and a class label"
        )
    size, channels = _images(folder, image["image"])
    classes = _whole(label["classLabel"]["numClasses"], 1)
    if classes > MAX_CLASSES:
        raise ValueError(f"{classes} classes, more than {MAX_CLASSES}")
    names = _class_names(folder / f"{keys[1]}.labels.txt", classes)
    train, test = _train_and_test(folder, info)
    return Description(keys, size, channels, classes, names, train, test)


def _train_and_test(folder: Path, info: Mapping[str, Any]) -> tuple[Records, Records]:
    found = {_text(split["name"]): split for split in info["splits"]}
    if not found.get("train", {}).get("shardLengths"):
        names = ", ".join(sorted(found)[:20])
        raise BadInputError(f"{folder} has no split 'train'; it has {names or 'none'}")
    train = _records(folder, info, found["train"])
    test = found.get("test") or found.get("validation")
    return train, _records(folder, info, test) if test else train


def _images(folder: Path, image: Mapping[str, Any]) -> tuple[Size | None, int]:
    if image.get("dtype", "uint8") != "uint8":
        raise BadInputError(f"{folder}: its images are not uint8 but {image!r:.200}")
    height, width, channels = (_whole(d, -1) for d in image["shape"]["dimensions"])
    if channels not in (1, 3, 4):
        raise ValueError(f"expected images of 1, 3 or 4 channels, not {channels}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"images of {height}×{width} pixels, more than {MAX_PIXELS:,}")
    return (height, width) if min(height, width) > 0 else None, channels


def _supervised(folder: Path, info: Mapping[str, Any]) -> tuple[str, str]:
    items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
    keys = [item.get("featureKey") for item in items]
    if len(keys) != 2 or keys[0] == keys[1] or not all(isinstance(k, str) for k in keys):
        raise BadInputError(
            f"{folder} has no supervised pair of an image and a label; kerasnet classifies images"
        )
    for key in keys:
        if PureWindowsPath(_text(key)).name != key:
            raise ValueError(f"{key!r} cannot be a feature's name")
    return keys[0], keys[1]


def _check_there(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        if not file.is_file():
            raise BadInputError(f"{file} is missing: {folder} is an incomplete copy")


def _check_bytes(split: Records, folder: Path) -> None:
    sizes = [file.stat().st_size for file in split.files]
    for file, size, length in zip(split.files, sizes, split.lengths, strict=True):
        if size < length * RECORD_OVERHEAD:
            raise BadInputError(
                f"{file} has {size} bytes, too few for {length} records: it is truncated; {AGAIN}"
            )
    if sum(sizes) < split.bytes:
        raise BadInputError(
            f"{split.files[0] if len(sizes) == 1 else folder}: split '{split.name}' has "
            f"{sum(sizes)} bytes, not {split.bytes}: it is truncated; {AGAIN}"
        )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) < 256 or not value.isprintable():
        raise ValueError(f"expected a short printable text, not {value!r:.60}")
    return value


def _whole(value: Any, least: int = 0) -> int:
    """Return a whole number, which Protocol Buffers write as a text."""
    if not re.fullmatch(r"-?[0-9]{1,15}", str(value)) or int(value) < least:
        raise ValueError(f"expected a whole number of at least {least}, not {value!r:.60}")
    return int(value)


def _file_name(template: str, fields: Mapping[str, str]) -> str:
    """Return the name of a shard, which must lie in the data set's folder."""
    if {"{", "}"} & set(_FIELD.sub("", template)):
        raise ValueError(f"filepathTemplate {template!r} has fields that are not known")
    name = _FIELD.sub(lambda match: fields[match[1]], template)
    # Windows paths know all separators.
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts or len(name) > 255:
        raise ValueError(f"filepathTemplate {template!r} leads out of the folder")
    return name


def _records(folder: Path, info: Mapping[str, Any], split: Mapping[str, Any]) -> Records:
    lengths = tuple(_whole(n) for n in split.get("shardLengths", ())[: MAX_SHARDS + 1])
    if len(lengths) > MAX_SHARDS:
        raise ValueError(f"more than {MAX_SHARDS} shards")
    template = _text(split.get("filepathTemplate") or _TEMPLATE)
    fields = {
        "DATASET": _text(info["name"]),
        "SPLIT": _text(split["name"]),
        "FILEFORMAT": "tfrecord",
        "NUM_SHARDS": f"{len(lengths):05d}",
    }
    files = []
    for i in range(len(lengths)):
        fields["SHARD_INDEX"] = f"{i:05d}"
        fields["SHARD_X_OF_Y"] = f"{i:05d}-of-{len(lengths):05d}"
        files.append(folder / _file_name(template, fields))
    if len(set(files)) != len(files):
        raise ValueError(f"filepathTemplate {template!r} gives several shards one name")
    return Records(split["name"], tuple(files), lengths, _whole(split.get("numBytes", 0)))


def _class_names(file: Path, classes: int) -> tuple[str, ...] | None:
    if not file.is_file():
        return None
    try:
        lines = read_bytes(file, MAX_NAMES_BYTES).decode().split("\n")
    except UnicodeDecodeError as e:
        raise BadInputError(f"{file} is not UTF-8 text ({e}): {AGAIN}") from e
    names = tuple(line for line in lines if line)
    return checked_names(names, str(file)) if len(names) == classes else None
