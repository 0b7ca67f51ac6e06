"""Data sets and their tf.data pipelines.

A data set is looked for (`locate`, no TensorFlow), opened (`load_dataset`), read split by split as
uint8 arrays (`ImageData.load`), and fed to training (`training_pipeline`) and evaluation
(`evaluation_pipeline`). Randomness is stateless: a batch depends on nothing but the seed, the epoch
and the step, so that a resumed run sees the images an uninterrupted one would have seen.

Importing this module imports neither TensorFlow nor tensorflow-datasets nor scikit-learn.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import io
import json
import math
import os
import pickle
import re
import socket
import sys
import tarfile
import threading
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kerasnet import schema
from kerasnet.errors import BadInputError, EnvironmentFaultError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Labels = NDArray[np.int64]

SplitName = Literal["train", "validation", "test"]
Kind = Literal["digits", "tfds", "archive", "folder", "download"]
Size = tuple[int, int]
Shape = tuple[int, int, int]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
TEST_FRACTION = 0.2
# The part of a set without a test split that is held out must be the same in every run.
TEST_SEED = 0
PROBE_SECONDS = 3.0
MEMORY_SHARE = 0.6
ALIGNMENT = 64
CHUNK = 500
# CIFAR-100's largest member has 155 MB; anything much larger is not one of these archives.
MAX_MEMBER_BYTES = 2**28
NOT_REGISTERED = "Not in the registry."

# ---------------------------------------------------------------------------- splits


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory.

    Attributes:
        images: uint8, (n, height, width, channels).
        labels: int64, (n,), counted from 0.
    """

    images: Bytes
    labels: Labels

    def __post_init__(self) -> None:
        """Check shapes and dtypes (`BadInputError`)."""
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype.name != "uint8":
            raise BadInputError(
                f"images must be uint8 of shape (n, height, width, channels), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if labels.shape != images.shape[:1] or labels.dtype.name != "int64":
            raise BadInputError(
                f"labels must be int64 of shape ({len(images)},), "
                f"not {labels.dtype} of shape {labels.shape}"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, where: NDArray[np.bool_]) -> Split:
        """Return a copy of the images where the mask, bool of shape (n,), is true."""
        import numpy as np

        chosen = np.flatnonzero(where)
        images = _buffer((len(chosen), *self.images.shape[1:]))
        np.take(self.images, chosen, axis=0, out=images)
        return Split(images, self.labels[chosen])


def _buffer(shape: tuple[int, ...]) -> Bytes:
    """Return an uninitialised uint8 array that TensorFlow can use without copying it."""
    import numpy as np

    size = math.prod(shape)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].reshape(shape)


def _stratified(labels: Labels, count: int, seed: int, leave: int = 0) -> NDArray[np.bool_]:
    """Choose `count` examples, each class in proportion; `leave` of each class stay unchosen."""
    import numpy as np

    # RandomState's stream is frozen by NEP 19, default_rng's is not.
    rng = np.random.RandomState(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    share = sizes * (count / max(len(labels), 1))
    quota = np.floor(share + 1e-9).astype(np.int64)
    largest_remainder = np.argsort(quota - share, kind="stable")
    quota[largest_remainder[: count - int(quota.sum())]] += 1
    quota = np.minimum(quota, np.maximum(sizes - leave, 0))
    chosen = np.zeros(len(labels), np.bool_)
    for label, number in zip(classes, quota, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:number]] = True
    return chosen


def _held_out(n: int) -> int:
    """Return how many of `n` images stand for a test split, rounded up as scikit-learn does."""
    return math.ceil(TEST_FRACTION * n - 1e-9)


def split_validation(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Hold out part of the training images, the classes in proportion.

    Args:
        train: the images to divide.
        fraction: of the images, in [0, 1); 0 gives an empty validation split.
        seed: decides which; equal seeds hold out equal images.

    Returns:
        What is left to train on, and the validation images. At least one image of every class stays
        in the first, so classes of a single image are not in the second.

    Raises:
        BadInputError: the fraction is out of range, or no class has an image to spare.
    """
    import numpy as np

    if not 0 <= fraction < 1:
        raise BadInputError(f"the validation fraction must be in [0, 1), not {fraction}")
    if fraction == 0:
        return train, train.take(np.zeros(len(train), np.bool_))
    count = max(1, round(fraction * len(train)))
    held_out = _stratified(train.labels, count, seed, leave=1)
    if not held_out.any():
        raise BadInputError(
            f"{len(train)} training images are too few to hold out {fraction:g} of them for "
            "validation: every class needs two; set `validation_split: 0` in the recipe"
        )
    return train.take(~held_out), train.take(held_out)


def limit(split: Split, n: int, seed: int) -> Split:
    """Return `n` of the images in their order, the classes in proportion; all if there are fewer.

    Raises:
        BadInputError: `n` is not positive.
    """
    if n < 1:
        raise BadInputError(f"a limit on the number of images must be positive, not {n}")
    return split if n >= len(split) else split.take(_stratified(split.labels, n, seed))


# ---------------------------------------------------------------------------- resizing


def _resize_matrix(source: int, target: int) -> NDArray[np.float32]:
    import numpy as np

    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def resize(images: Bytes, size: Size) -> Bytes:
    """Resize bilinearly, with antialiasing where an image becomes smaller.

    The same as `tf.image.resize(..., "bilinear", antialias=True)` and Pillow's `BILINEAR` to within
    one level, without either, for any number of channels.

    Args:
        images: uint8, (n, height, width, channels).
        size: the new height and width in pixels.

    Returns:
        uint8, (n, *size, channels); the argument itself if it has that size already.
    """
    import numpy as np

    n, height, width, channels = images.shape
    if (height, width) == size:
        return images
    rows, columns = _resize_matrix(height, size[0]), _resize_matrix(width, size[1])
    out = np.empty((n, *size, channels), np.uint8)
    block = max(1, 2**23 // (max(height, size[0]) * max(width, size[1]) * channels))
    for i in range(0, n, block):
        part = images[i : i + block].astype(np.float32)
        part = np.tensordot(part, rows, axes=(1, 1))
        part = np.tensordot(part, columns, axes=(1, 1)).transpose(0, 2, 3, 1)
        out[i : i + block] = np.clip(np.rint(part), 0, 255)
    return out


# ---------------------------------------------------------------------------- sources


class _Source(Protocol):
    """A place images are read from, opened without reading images and without TensorFlow."""

    channels: int
    classes: int | None
    has_validation: bool
    where: str

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names in the order of the labels, None where nothing names them."""

    def size(self) -> Size | None:
        """Return the one size all training images have, else None."""

    def count(self, split: SplitName) -> int:
        """Return the number of images in the split."""

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        """Yield images and labels in a fixed order, perhaps resized to `size` already."""


class _Digits:
    """scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998), 8×8, 20 % held out."""

    channels = 1
    classes: int | None = 10
    class_names: tuple[str, ...] | None = tuple("0123456789")
    has_validation = False
    where = "scikit-learn's digits"

    @cached_property
    def _splits(self) -> dict[str, Split]:
        import numpy as np
        from sklearn.datasets import load_digits

        found = load_digits()
        # Values are 0…16.
        images = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
        everything = Split(images, found.target.astype(np.int64))
        test = _stratified(everything.labels, _held_out(len(images)), TEST_SEED)
        return {"train": everything.take(~test), "test": everything.take(test)}

    def size(self) -> Size | None:
        return (8, 8)

    def count(self, split: SplitName) -> int:
        return len(self._splits[split])

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        yield self._splits[split].images, self._splits[split].labels


# ---------------------------------------------------------------------------- image folders


def _subfolders(folder: Path) -> list[str]:
    names = (p.name for p in folder.iterdir() if p.is_dir())
    return sorted(n for n in names if not n.startswith((".", "__")))


def _read_image(file: Path, size: Size | None) -> Bytes:
    """Return one image as RGB, (1, height, width, 3)."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))[None]
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise BadInputError(f"{file} cannot be read as an image: {e}") from e
    return pixels if size is None else resize(pixels, size)


def _image_size(file: Path) -> Size:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise BadInputError(f"{file} cannot be read as an image: {e}") from e


class _Folder:
    """A folder of class-named folders, perhaps inside `train`, `val` (`validation`) and `test`."""

    channels = 3
    classes: int | None
    class_names: tuple[str, ...] | None

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        divided = (root / "train").is_dir()
        train = root / "train" if divided else root
        self._names = _subfolders(train)
        if len(self._names) < 2:
            raise BadInputError(
                f"{train} must hold a folder of images for each class, at least two; "
                f"it holds {self._names or 'no folder'}"
            )
        self.class_names, self.classes = tuple(self._names), len(self._names)
        self._files = {"train": self._listed(train)}
        for split, names in {"validation": ("val", "validation"), "test": ("test",)}.items():
            for folder in (root / n for n in names if divided and (root / n).is_dir()):
                self._files[split] = self._listed(folder)
        self.has_validation = "validation" in self._files
        self.held_out = "test" not in self._files
        if self.held_out:
            self._hold_out()

    def _listed(self, folder: Path) -> list[tuple[Path, int]]:
        unknown = set(_subfolders(folder)) - set(self._names)
        if unknown:
            name = min(unknown)
            raise BadInputError(
                f"{folder / name}: the training images have no class '{name}'. "
                + did_you_mean(name, self._names)
            )
        found = [
            (file, label)
            for label, name in enumerate(self._names)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
        if not found:
            raise BadInputError(
                f"{folder} holds no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found

    def _hold_out(self) -> None:
        import numpy as np

        files = self._files["train"]
        labels = np.array([label for _, label in files], np.int64)
        test = _stratified(labels, _held_out(len(files)), TEST_SEED, leave=1)
        if not test.any():
            raise BadInputError(
                f"{self.where} holds {len(files)} images, too few to hold any out for testing: "
                "add more, or give a `test` folder beside `train`"
            )
        self._files["test"] = [f for f, held in zip(files, test, strict=True) if held]
        self._files["train"] = [f for f, held in zip(files, test, strict=True) if not held]

    def size(self) -> Size | None:
        files = [file for file, _ in self._files["train"]]
        with ThreadPoolExecutor() as pool:
            return _only(zip(files, pool.map(_image_size, files), strict=True), self.where)

    def count(self, split: SplitName) -> int:
        return len(self._files[split])

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        import numpy as np

        files = self._files[split]
        with ThreadPoolExecutor() as pool:
            read = pool.map(lambda pair: _read_image(pair[0], size), files)
            for image, (_, label) in zip(read, files, strict=True):
                yield image, np.array([label], np.int64)


def _only(sizes: Iterable[tuple[Path, Size]], where: str) -> Size:
    first: tuple[Path, Size] | None = None
    for file, size in sizes:
        first = first or (file, size)
        if size != first[1]:
            raise BadInputError(
                f"{where}: the images differ in size ({first[0].name} is {first[1][0]}×"
                f"{first[1][1]}, {file.name} is {size[0]}×{size[1]}, height × width): "
                + SIZE_WAY_OUT
            )
    assert first is not None
    return first[1]


SIZE_WAY_OUT = (
    "say which size they shall have: `image: [height, width, channels]` in the data set's registry "
    "entry, or `size=(height, width)` in Python"
)

# ---------------------------------------------------------------------------- CIFAR archives


@dataclass(frozen=True)
class _Layout:
    """How a CIFAR archive is laid out (https://www.cs.toronto.edu/~kriz/cifar.html)."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    classes: int
    label_bytes: int | None = None  # before the pixels of a binary record; the last is the label
    label_key: bytes = b"labels"
    names_key: bytes = b"label_names"

    @property
    def members(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_LAYOUTS = {
    "cifar-10-binary.tar.gz": _Layout(
        "cifar-10-batches-bin",
        tuple(f"{b}.bin" for b in _BATCHES),
        "test_batch.bin",
        "batches.meta.txt",
        10,
        label_bytes=1,
    ),
    "cifar-10-python.tar.gz": _Layout(
        "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", 10
    ),
    "cifar-100-binary.tar.gz": _Layout(
        "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 100, label_bytes=2
    ),
    "cifar-100-python.tar.gz": _Layout(
        "cifar-100-python",
        ("train",),
        "test",
        "meta",
        100,
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}
_ARCHIVES_OF: Mapping[str, Sequence[str]] = {
    "cifar10": ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
}
_CIFAR_IMAGE = (32, 32, 3)
_PIXELS = math.prod(_CIFAR_IMAGE)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, numbers, text and containers, and refuses everything else.

    A pickle is a program; the Python CIFAR batches need no more of it than this.
    """

    _ALLOWED: Mapping[tuple[str, str], tuple[str, str]] = {
        ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"): ("numpy", "ndarray"),
        ("numpy", "dtype"): ("numpy", "dtype"),
        ("_codecs", "encode"): ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the five names allowed (`pickle.UnpicklingError` otherwise)."""
        place = self._ALLOWED.get((module, name))
        if place is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return getattr(importlib.import_module(place[0]), place[1])


def _unpickle(content: bytes, where: str) -> dict[bytes, Any]:
    # What a damaged pickle raises is not documented further than "other exceptions".
    broken = (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, MemoryError)
    try:
        found = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, OverflowError, ImportError, *broken) as e:
        raise BadInputError(f"{where} is not a CIFAR batch: {e}") from e
    if not isinstance(found, dict):
        raise BadInputError(f"{where} is not a CIFAR batch: no dictionary in it")
    return found


class _Archive:
    """A CIFAR archive, packed or unpacked. Members are read in memory, never extracted."""

    channels = 3
    classes: int | None
    has_validation = False

    def __init__(self, path: Path, layout: _Layout) -> None:
        self.path, self.layout, self.where = path, layout, str(path)
        self.classes = layout.classes
        self._read: dict[str, list[tuple[Bytes, Labels]]] = {}
        if path.is_dir():
            for member in layout.members[:-1]:
                if not (path / member).is_file():
                    raise BadInputError(f"{path / member} is missing: {path} is an incomplete copy")
        else:
            with path.open("rb") as f:
                if f.read(2) != b"\x1f\x8b":
                    raise BadInputError(f"{path} is not a gzip file: download it again")

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The names the archive gives its classes."""
        layout = self.layout
        content = self._contents((layout.names,))[layout.names]
        if layout.label_bytes is not None:
            names = content.decode("utf-8", "replace").split()
        else:
            listed = _unpickle(content, self._member(layout.names)).get(layout.names_key, [])
            names = [n.decode("utf-8", "replace") for n in listed]
        if len(names) != layout.classes:
            raise BadInputError(
                f"{self._member(layout.names)} names {len(names)} classes, not {layout.classes}"
            )
        return tuple(names)

    def _member(self, name: str) -> str:
        return str(self.path / name) if self.path.is_dir() else f"{self.path}: {name}"

    def _contents(self, wanted: Sequence[str]) -> dict[str, bytes]:
        if self.path.is_dir():
            try:
                return {name: (self.path / name).read_bytes() for name in wanted}
            except OSError as e:
                raise BadInputError(f"{e.filename} cannot be read: {e.strerror}") from e
        found: dict[str, bytes] = {}
        try:
            with tarfile.open(self.path, "r|gz") as tar:
                for entry in tar:
                    name = Path(entry.name).name
                    if name in wanted and entry.isfile() and entry.size <= MAX_MEMBER_BYTES:
                        member = tar.extractfile(entry)
                        found[name] = member.read() if member else b""
        except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
            raise BadInputError(f"{self.path} is damaged ({e}): download it again") from e
        missing = [name for name in wanted if name not in found]
        if missing:
            raise BadInputError(f"{self.path} holds no {missing[0]}: download it again")
        return found

    def _parse(self, name: str, content: bytes) -> tuple[Bytes, Labels]:
        """Return the images of a member, (n, 32, 32, 3), and their labels."""
        import numpy as np

        where, before = self._member(name), self.layout.label_bytes
        if before is not None:
            if not content or len(content) % (before + _PIXELS):
                raise BadInputError(
                    f"{where} has {len(content)} bytes, not a multiple of {before + _PIXELS}: "
                    "it is truncated; download it again"
                )
            records = np.frombuffer(content, np.uint8).reshape(-1, before + _PIXELS)
            flat: Any = records[:, before:]
            labels = records[:, before - 1].astype(np.int64)
        else:
            batch = _unpickle(content, where)
            flat, listed = batch.get(b"data"), batch.get(self.layout.label_key)
            if not isinstance(flat, np.ndarray) or flat.dtype != np.uint8 or flat.ndim != 2:
                raise BadInputError(f"{where}: `data` is not a table of uint8")
            if not isinstance(listed, list) or not all(type(v) is int for v in listed):
                raise BadInputError(f"{where}: the labels are not a list of integers")
            labels = np.array(listed, np.int64)
        if flat.shape != (len(labels), _PIXELS):
            raise BadInputError(
                f"{where}: {len(labels)} labels need data of shape ({len(labels)}, {_PIXELS}), "
                f"not {flat.shape}"
            )
        return flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    def _parts(self, split: SplitName) -> list[tuple[Bytes, Labels]]:
        if split not in self._read:
            wanted = self.layout.train if split == "train" else (self.layout.test,)
            contents = self._contents(wanted)
            parts = [self._parse(name, contents.pop(name)) for name in wanted]
            for name, (_, labels) in zip(wanted, parts, strict=True):
                if len(labels) != len(parts[0][1]):
                    raise BadInputError(
                        f"{self._member(name)} holds {len(labels)} images and {wanted[0]} "
                        f"{len(parts[0][1])}: one of them is truncated; download them again"
                    )
            self._read[split] = parts
        return self._read[split]

    def size(self) -> Size | None:
        return _CIFAR_IMAGE[:2]

    def count(self, split: SplitName) -> int:
        return sum(len(labels) for _, labels in self._parts(split))

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        parts = self._parts(split)
        # What was read for counting is not needed twice.
        del self._read[split]
        yield from parts


# ---------------------------------------------------------------------------- prepared by TFDS


@dataclass(frozen=True)
class _Records:
    """A split of a prepared data set: its shards and how many examples each has."""

    name: str
    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    bytes: int


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError as e:
        raise BadInputError(f"{file} is missing: {file.parent} is an incomplete copy") from e
    except (OSError, ValueError) as e:
        raise BadInputError(f"{file} cannot be read: {e}") from e


def _records(folder: Path, info: Mapping[str, Any], split: Mapping[str, Any]) -> _Records:
    lengths = tuple(int(n) for n in split.get("shardLengths", ()))
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    files = []
    for i in range(len(lengths)):
        fields = {
            "DATASET": info["name"],
            "SPLIT": split["name"],
            "FILEFORMAT": info.get("fileFormat", "tfrecord"),
            "SHARD_X_OF_Y": f"{i:05d}-of-{len(lengths):05d}",
            "SHARD_INDEX": f"{i:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
        }
        files.append(folder / template.format_map(fields))
    return _Records(split["name"], tuple(files), lengths, int(split.get("numBytes", 0)))


class _Prepared:
    """A data set that tensorflow-datasets has prepared, described by its JSON files."""

    has_validation = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)
        info = _json(folder / "dataset_info.json")
        features = _json(folder / "features.json")
        try:
            self._describe(info, features)
        except BadInputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise BadInputError(
                f"{folder}: dataset_info.json and features.json do not describe a data set as "
                f"tensorflow-datasets writes them ({type(e).__name__}: {e})"
            ) from e
        for split in self._splits.values():
            self._check_files(split)
        for split in self._splits.values():
            self._check_bytes(split)

    def _describe(self, info: Mapping[str, Any], features: Mapping[str, Any]) -> None:
        self.format = info.get("fileFormat", "tfrecord")
        self._keys = self._supervised(info)
        image, label = (features["featuresDict"]["features"][k] for k in self._keys)
        if "image" not in image or "classLabel" not in label:
            raise BadInputError(
                f"{self.folder}: its supervised pair {self._keys} is not an image and a class label"
            )
        if image["image"].get("dtype", "uint8") != "uint8":
            raise BadInputError(f"{self.folder}: its images are not uint8 but {image['image']}")
        height, width, channels = (int(d) for d in image["image"]["shape"]["dimensions"])
        self._size = (height, width) if min(height, width) > 0 else None
        self.channels = channels
        self.classes: int | None = int(label["classLabel"]["numClasses"])
        names = self.folder / f"{self._keys[1]}.labels.txt"
        lines = names.read_text("utf-8").split("\n") if names.is_file() else []
        listed = tuple(line for line in lines if line)
        self.class_names = listed if len(listed) == self.classes else None
        found = {s["name"]: _records(self.folder, info, s) for s in info["splits"]}
        if not found.get("train", _Records("", (), (), 0)).files:
            raise BadInputError(f"{self.folder} has no split 'train'; it has {sorted(found)}")
        test = found.get("test") or found.get("validation") or found["train"]
        self._splits = {"train": found["train"], "test": test}

    def _supervised(self, info: Mapping[str, Any]) -> tuple[str, str]:
        items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
        keys = [item.get("featureKey") for item in items]
        if len(keys) != 2 or not all(isinstance(k, str) for k in keys):
            raise BadInputError(
                f"{self.folder} has no supervised pair of an image and a label; "
                "kerasnet classifies images"
            )
        return keys[0], keys[1]

    def _check_files(self, split: _Records) -> None:
        for file in split.files:
            if not file.is_file():
                raise BadInputError(f"{file} is missing: {self.folder} is an incomplete copy")

    def _check_bytes(self, split: _Records) -> None:
        held = sum(file.stat().st_size for file in split.files)
        if self.format == "tfrecord" and held < split.bytes:
            raise BadInputError(
                f"{split.files[0] if len(split.files) == 1 else split.files[0].parent}: split "
                f"'{split.name}' has {held} bytes, not {split.bytes}: it is truncated; copy or "
                "prepare it again"
            )

    @cached_property
    def jpeg(self) -> bool:
        """Whether the first image is a JPEG; features.json need not say."""
        with self._splits["train"].files[0].open("rb") as f:
            start = f.read(2**16)
        jpeg, png = start.find(b"\xff\xd8\xff"), start.find(b"\x89PNG\r\n")
        return jpeg >= 0 and (png < 0 or jpeg < png)

    @property
    def remark(self) -> str:
        """What the reader of a result should know about how the images are stored and split."""
        train, test = self._splits["train"], self._splits["test"]
        remark = "; stored as JPEG" if self.jpeg else ""
        if test is train:
            remark += f"; no test split: {TEST_FRACTION:.0%} of train held out for it"
        elif test.name != "test":
            remark += f"; no test split: '{test.name}' stands for it"
        return remark

    def size(self) -> Size | None:
        return self._size

    def count(self, split: SplitName) -> int:
        mask = self._mask(split)
        return sum(self._splits[split].lengths) if mask is None else int(mask.sum())

    def _mask(self, split: SplitName) -> NDArray[np.bool_] | None:
        """Return which examples of the stored split are meant, if not all."""
        if self._splits["train"] is not self._splits["test"]:
            return None
        return self._test_mask if split == "test" else ~self._test_mask

    @cached_property
    def _test_mask(self) -> NDArray[np.bool_]:
        import numpy as np

        batches = self._encoded(self._splits["train"]).map(lambda image, label: label)
        labels = np.concatenate(list(self._checked(batches.as_numpy_iterator(), "train")))
        return _stratified(labels, _held_out(len(labels)), TEST_SEED)

    def _encoded(self, split: _Records) -> Any:
        """Return a tf.data.Dataset of batches of encoded images and labels."""
        import tensorflow as tf

        image, label = self._keys
        if self.format != "tfrecord":
            return self._encoded_by_tfds(split)
        parsed = {
            image: tf.io.FixedLenFeature([], tf.string),
            label: tf.io.FixedLenFeature([], tf.int64),
        }

        def parse(records: Any) -> tuple[Any, Any]:
            example = tf.io.parse_example(records, parsed)
            return example[image], example[label]

        # A batch parsed at once, past TFDS's example by example, takes a tenth of the time.
        files = tf.data.TFRecordDataset([str(f) for f in split.files])
        return files.batch(CHUNK).map(parse, num_parallel_calls=tf.data.AUTOTUNE)

    def _encoded_by_tfds(self, split: _Records) -> Any:
        tfds = _import_tfds()
        image, label = self._keys
        undecoded = tfds.decode.PartialDecoding(
            {image: True, label: True}, decoders={image: tfds.decode.SkipDecoding()}
        )
        builder = tfds.builder_from_directory(str(self.folder))
        found = builder.as_dataset(split=split.name, decoders=undecoded, shuffle_files=False)
        return found.map(lambda e: (e[image], e[label])).batch(CHUNK)

    def _checked(self, batches: Iterator[Any], split: SplitName) -> Iterator[Any]:
        """Pass on what tf.data yields; a damaged file becomes an error that names it."""
        import tensorflow as tf

        try:
            yield from batches
        except tf.errors.OpError as e:
            file = self._damaged(self._splits[split])
            raise BadInputError(f"{file} is damaged ({e.message.splitlines()[0]})") from e

    def _damaged(self, split: _Records) -> Path:
        import tensorflow as tf

        for file in split.files if self.format == "tfrecord" else ():
            try:
                for _ in tf.data.TFRecordDataset(str(file)).batch(CHUNK):
                    continue
            except tf.errors.OpError:
                return file
        return self.folder

    def _decoded(self, split: SplitName) -> Any:
        import tensorflow as tf

        decode = _decode_jpeg if self.jpeg and self.channels in (1, 3) else _decode_image
        encoded = self._encoded(self._splits[split])
        if self._size is None:
            one = encoded.unbatch().map(
                lambda image, label: (decode(image, channels=self.channels), label),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            return one.batch(1).prefetch(CHUNK)
        shape = (*self._size, self.channels)

        def whole(images: Any, labels: Any) -> tuple[Any, Any]:
            def one(image: Any) -> Any:
                return tf.ensure_shape(decode(image, channels=self.channels), shape)

            return tf.map_fn(one, images, fn_output_signature=tf.uint8), labels

        return encoded.map(whole, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        import tensorflow as tf

        mask, start = self._mask(split), 0
        with tf.device("CPU:0"):
            batches = self._decoded(split).as_numpy_iterator()
        for images, labels in self._checked(batches, split):
            stop = start + len(labels)
            if mask is None:
                yield images, labels
            elif mask[start:stop].any():
                yield images[mask[start:stop]], labels[mask[start:stop]]
            start = stop


def _decode_image(content: Any, channels: int) -> Any:
    import tensorflow as tf

    return tf.io.decode_image(content, channels=channels, expand_animations=False)


def _decode_jpeg(content: Any, channels: int) -> Any:
    import tensorflow as tf

    # TensorFlow's default, and so `tfds.load`, takes a short cut that shifts red and blue by more
    # than one level of 255 on average; this gives the pixels other decoders give.
    return tf.io.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE")


def _import_tfds() -> Any:
    """Import tensorflow-datasets without the lines it logs and prints."""
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module("tensorflow_datasets")


# ---------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class Located:
    """Where a data set is, found without TensorFlow and without reading images.

    Attributes:
        kind: how it is read; `download` if it is nowhere yet but the network is there.
        path: folder or archive; for `download` None.
        channels: of an image as it will be given.
        classes: their number.
        class_names: in the order of the labels.
        image: height, width, channels as they will be given, unless the caller asks for a size.
        remark: for a person, and to stand beside results: where from, how stored, how split.

    What is not known without reading images is None.
    """

    kind: Kind
    path: Path | None
    channels: int | None
    classes: int | None
    class_names: tuple[str, ...] | None
    image: Shape | None
    remark: str


_TFDS_NAME = re.compile(
    r"(?P<name>[a-z][a-z0-9_]*)(/(?P<config>[A-Za-z0-9_.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?"
)


def dataset_spec(name: str, datasets: Mapping[str, schema.Dataset]) -> schema.Dataset:
    """Return what is known of a data set.

    Args:
        name: of an entry in the registry; else an existing folder; else a name in
            tensorflow-datasets: `name`, `name/config`, `name:version`.
        datasets: the registry's entries.

    Raises:
        BadInputError: it is none of these.
    """
    if name in datasets:
        return datasets[name]
    # os.path leaves `~nobody` as it is where pathlib raises.
    if name and os.path.isdir(os.path.expanduser(name)):
        folder = str(Path(os.path.expanduser(name)).resolve())
        return schema.Dataset(source=schema.DatasetSource(type="folder", name=folder))
    near = did_you_mean(name, datasets)
    if not _TFDS_NAME.fullmatch(name):
        raise BadInputError(
            f"'{name}' is not a data set of the registry, nor an existing folder, nor a name that "
            f"tensorflow-datasets could have. {near}"
        )
    return schema.Dataset(
        description=f"{NOT_REGISTERED} {near}",
        source=schema.DatasetSource(type="tfds", name=name),
    )


def search_places(data_dir: str | Path | None) -> list[Path]:
    """Return the folders that may hold prepared data sets, the first one first.

    They are `data_dir` if given, $KERASNET_DATA_DIR, $TFDS_DATA_DIR, ~/tensorflow_datasets. They
    need not exist.
    """
    named = [data_dir, os.environ.get("KERASNET_DATA_DIR"), os.environ.get("TFDS_DATA_DIR")]
    places = [Path(os.path.expanduser(p)).absolute() for p in named if p]
    return list(dict.fromkeys([*places, Path.home() / "tensorflow_datasets"]))


def locate(name: str, spec: schema.Dataset, data_dir: str | Path | None = None) -> Located:
    """Find a data set, within seconds also where there is no network.

    Args:
        name: as the user gave it, for messages.
        spec: what is known of it (`dataset_spec`).
        data_dir: where to look first (`search_places`).

    Raises:
        BadInputError: it is nowhere, with every place looked at and the ways out; or what was found
            is incomplete or damaged.
    """
    if spec.source.type == "digits":
        return _described("digits", None, _Digits(), spec, "scikit-learn's digits")
    if spec.source.type == "folder":
        return _locate_folder(name, spec, data_dir)
    source = spec.source.name
    assert source is not None
    if not _TFDS_NAME.fullmatch(source):
        raise BadInputError(f"'{name}': '{source}' is not a name tensorflow-datasets could have")
    places = search_places(data_dir)
    found = _find_prepared(source, places, spec) or _find_archive(source, places, spec)
    if found:
        return found
    host = _HOSTS.get(_base(source), "storage.googleapis.com")
    if not network_reaches(host):
        raise BadInputError(_not_found(name, source, spec, places, host))
    image = _shape(spec)
    names = tuple(spec.class_names) if spec.class_names else None
    channels = image[2] if image else None
    remark = f"to be downloaded from {host} by tensorflow-datasets"
    return Located("download", None, channels, spec.classes, names, image, remark)


_HOSTS = {"cifar10": "www.cs.toronto.edu", "cifar100": "www.cs.toronto.edu"}


def _base(source: str) -> str:
    return re.split("[/:]", source)[0]


def _shape(spec: schema.Dataset) -> Shape | None:
    if spec.image is not None:
        return spec.image[0], spec.image[1], spec.image[2]
    return (32, 32, 3) if spec.source.type == "digits" else None


def _described(
    kind: Kind, path: Path | None, source: _Source, spec: schema.Dataset, remark: str
) -> Located:
    image, names = _shape(spec), tuple(spec.class_names or ()) or None
    # Reading a packed archive's class names would mean unpacking all of it; a folder's images
    # would all have to be opened for their size.
    if names is None and kind != "archive":
        names = source.class_names
    if image is None and kind != "folder":
        size = source.size()
        image = (*size, source.channels) if size else None
    channels = image[2] if image else source.channels
    return Located(kind, path, channels, spec.classes or source.classes, names, image, remark)


def _locate_folder(name: str, spec: schema.Dataset, data_dir: str | Path | None) -> Located:
    named = Path(os.path.expanduser(spec.source.name or name))
    tried = list(dict.fromkeys([named.absolute(), *(p / named for p in search_places(data_dir))]))
    for folder in tried:
        if folder.is_dir():
            source = _Folder(folder)
            remark = f"read from {folder}"
            if source.held_out:
                remark += f"; no test folder: {TEST_FRACTION:.0%} held out for it"
            return _described("folder", folder, source, spec, remark)
    raise BadInputError(f"data set '{name}': no folder at {' nor '.join(map(str, tried))}")


def _newest(folder: Path, version: str | None) -> Path | None:
    if not folder.is_dir():
        return None
    names = (p.name for p in folder.iterdir() if p.is_dir())
    found = [n for n in names if re.fullmatch(r"\d+\.\d+\.\d+", n) and version in (None, n)]
    newest = max(found, key=lambda n: [int(part) for part in n.split(".")], default=None)
    return folder / newest if newest else None


def _find_prepared(source: str, places: list[Path], spec: schema.Dataset) -> Located | None:
    parts = _TFDS_NAME.fullmatch(source)
    assert parts is not None
    for place in places:
        base = place / parts["name"]
        folder = _newest(base / (parts["config"] or ""), parts["version"])
        if folder is None and parts["config"] is None and base.is_dir():
            configs = {n: _newest(base / n, parts["version"]) for n in _subfolders(base)}
            found = {n: path for n, path in configs.items() if path}
            if len(found) > 1:
                raise BadInputError(
                    f"{base} holds {', '.join(found)}: say which, as in "
                    f"'{parts['name']}/{min(found)}'"
                )
            folder = next(iter(found.values()), None)
        if folder is not None:
            prepared = _Prepared(folder)
            remark = f"read from {folder}{prepared.remark}"
            return _described("tfds", folder, prepared, spec, remark)
    return None


def _archive_places(places: list[Path]) -> list[Path]:
    home = os.environ.get("KERAS_HOME")
    keras = (Path(os.path.expanduser(home)) if home else Path.home() / ".keras") / "datasets"
    return list(dict.fromkeys([*(p for x in places for p in (x, x.parent)), keras]))


def _archive_names(source: str, spec: schema.Dataset) -> Sequence[str]:
    names = spec.archives or _ARCHIVES_OF.get(_base(source), ())
    unknown = [name for name in names if name not in _LAYOUTS]
    if unknown:
        raise BadInputError(
            f"the layout of archive '{unknown[0]}' is not known. "
            + did_you_mean(unknown[0], _LAYOUTS)
        )
    return names


def _find_archive(source: str, places: list[Path], spec: schema.Dataset) -> Located | None:
    names = _archive_names(source, spec)
    for place in _archive_places(places):
        for name in names:
            layout = _LAYOUTS[name]
            # Keras 3 names what it downloads after a folder that it calls …-target.
            target = f"{layout.folder}-target"
            packed = (place / name, place / f"{target}_archive")
            unpacked = (place / layout.folder, place / target / layout.folder)
            found = [p for p in packed if p.is_file()] + [p for p in unpacked if p.is_dir()]
            if found:
                archive = _Archive(found[0], layout)
                return _described("archive", found[0], archive, spec, f"read from {found[0]}")
    return None


def _not_found(name: str, source: str, spec: schema.Dataset, places: list[Path], host: str) -> str:
    def listed(folders: Iterable[Path]) -> str:
        return "\n".join(f"    {p}{'' if p.is_dir() else ' (does not exist)'}" for p in folders)

    archives = _archive_names(source, spec)
    lines = [f"data set '{name}' is not on this machine, and {host} cannot be reached."]
    if spec.description.startswith(NOT_REGISTERED):
        lines[0] += f" {spec.description}"
    lines += [f"  Looked for a prepared {_base(source)}/<version> in", listed(places)]
    if archives:
        kinds = [*archives, *(f"{_LAYOUTS[a].folder}/" for a in archives)]
        lines += [f"  and for {', '.join(kinds)} in", listed(_archive_places(places))]
    lines += [
        "  Ways out:",
        f"    --data-dir DIR (or $KERASNET_DATA_DIR) where DIR holds a prepared {_base(source)}"
        + (f", or {' or '.join(archives)}" if archives else ""),
        "    --dataset digits, which needs no download",
    ]
    return "\n".join(lines)


def _connect(host: str, timeout: float) -> bool:
    """Open a connection to the host's HTTPS port, through the proxy where one is set."""
    proxy = urllib.request.getproxies().get("https")
    try:
        if proxy is None or urllib.request.proxy_bypass(host):
            socket.create_connection((host, 443), timeout).close()
            return True
        at = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=timeout)
        connection.set_tunnel(host, 443)
        try:
            connection.connect()
        except OSError as e:
            # A proxy that asks who we are is a network; tensorflow-datasets knows how to answer.
            return "407" in str(e)
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def network_reaches(host: str, timeout: float = PROBE_SECONDS) -> bool:
    """Return whether `host` can be connected to within `timeout` seconds, name look-up included."""
    answer: list[bool] = []
    # Looking up a name has no timeout of its own and can take half a minute.
    probe = threading.Thread(target=lambda: answer.append(_connect(host, timeout)), daemon=True)
    probe.start()
    probe.join(timeout)
    return bool(answer and answer[0])


# ---------------------------------------------------------------------------- opening


def _writable(places: list[Path]) -> Path:
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    raise EnvironmentFaultError(
        f"no folder to download into: none of {', '.join(map(str, places))} can be written; "
        "give one with --data-dir DIR"
    )


def _download(name: str, spec: schema.Dataset, data_dir: str | Path | None) -> Located:
    """Download and prepare with tensorflow-datasets, then look again."""
    source = spec.source.name
    assert source is not None
    place = _writable(search_places(data_dir))
    tfds = _import_tfds()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            tfds.builder(source, data_dir=str(place)).download_and_prepare()
    except (tfds.core.DatasetNotFoundError, AssertionError) as e:
        raise BadInputError(f"tensorflow-datasets has no '{source}' to download: {e}") from e
    except (OSError, tfds.download.DownloadError) as e:
        raise EnvironmentFaultError(f"data set '{name}' could not be downloaded: {e}") from e
    found = _find_prepared(source, [place], spec)
    if found is None:
        raise EnvironmentFaultError(f"tensorflow-datasets left no '{source}' in {place}")
    return found


def _source(located: Located) -> _Source:
    path = located.path
    if located.kind == "digits":
        return _Digits()
    assert path is not None
    if located.kind == "tfds":
        return _Prepared(path)
    if located.kind == "folder":
        return _Folder(path)
    for name, layout in _LAYOUTS.items():
        if path.name in (name, layout.folder, f"{layout.folder}-target_archive"):
            return _Archive(path, layout)
    raise BadInputError(f"{path} is not named like a CIFAR archive: {', '.join(_LAYOUTS)}")


def _memory() -> int | None:
    """Return the bytes of memory this process may use, None where the system does not say."""
    bounds = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):
        bounds.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(bounds, default=None)


class ImageData:
    """A data set that was found; its images are read when `load` asks for them.

    Attributes:
        name: as it was asked for.
        spec: its registry entry, or what stands for one.
        located: where it was found.
        image_shape: height, width, channels of the images `load` gives.
        classes: their number.
    """

    def __init__(
        self, name: str, spec: schema.Dataset, located: Located, size: Size | None = None
    ) -> None:
        """Open the data set; `size` (height, width) overrides the spec's and the stored one.

        Raises:
            BadInputError: the spec contradicts what is stored, or the images differ in size.
        """
        self.name, self.spec, self.located = name, spec, located
        self._source = _source(located)
        self._held: Split | None = None
        self._measured: tuple[list[float], list[float]] | None = None
        wanted = _shape(spec)
        self._given = size or (wanted[:2] if wanted else None)
        stored = self._given or self._source.size()
        if stored is None:
            raise BadInputError(f"{self._source.where}: the images differ in size: {SIZE_WAY_OUT}")
        self.image_shape: Shape = (*stored, wanted[2] if wanted else self._source.channels)
        self.classes = self._check_classes()
        self._check_channels()

    def _check_classes(self) -> int:
        stored, spec, where = self._source.classes, self.spec, self._source.where
        if stored is None or (spec.classes or stored) != stored:
            raise BadInputError(f"{where} has {stored} classes, the registry says {spec.classes}")
        names = spec.class_names
        if names is not None and len(names) != stored:
            raise BadInputError(f"{where} has {stored} classes, the registry names {len(names)}")
        if names and self.located.kind == "folder" and tuple(names) != self._source.class_names:
            raise BadInputError(
                f"{where} has the classes {self._source.class_names}, which are not the registry's "
                f"{tuple(names)}"
            )
        return stored

    def _check_channels(self) -> None:
        channels, stored = self.image_shape[2], self._source.channels
        if stored not in (1, channels):
            raise BadInputError(
                f"{self._source.where} has images of {stored} channels, the registry says "
                f"{channels}; only images of one channel can be given more"
            )
        if self.spec.mean is not None and len(self.spec.mean) not in (1, channels):
            raise BadInputError(
                f"data set '{self.name}': `mean` has {len(self.spec.mean)} channels, "
                f"the images {channels}"
            )

    @property
    def has_validation(self) -> bool:
        """Whether the data set brings validation images of its own."""
        return self._source.has_validation

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; the labels themselves where nothing names them."""
        named = tuple(self.spec.class_names or ()) or self._source.class_names
        return named or tuple(str(i) for i in range(self.classes))

    @cached_property
    def inference(self) -> schema.Inference:
        """How an image becomes the model's input: mean and standard deviation per channel.

        Of pixels scaled to [0, 1]; measured on the training images, which are read for it, where
        the spec gives none.
        """
        channels = self.image_shape[2]
        if self.spec.mean is not None and self.spec.std is not None:
            mean, std = list(self.spec.mean), list(self.spec.std)
            if len(mean) < channels:
                mean, std = mean * channels, std * channels
        else:
            if self._measured is None:
                self._held = self._load("train")
            assert self._measured is not None
            mean, std = self._measured
        height, width, _ = self.image_shape
        names = list(self.class_names)
        return schema.Inference(mean=mean, std=std, resize=[height, width], class_names=names)

    def load(self, split: SplitName) -> Split:
        """Read a split: images uint8 (n, *image_shape), labels int64 (n,), in a fixed order.

        Raises:
            BadInputError: there is no such split, it is damaged, a label is out of range, an image
                has another size while none was asked for, or it would not fit into memory.
        """
        if split == "train" and self._held is not None:
            # Kept from measuring the mean; not needed by two owners.
            held, self._held = self._held, None
            return held
        if split not in ("train", "test") and not (split == "validation" and self.has_validation):
            raise BadInputError(
                f"data set '{self.name}' has no split '{split}' of its own; "
                "`split_validation` makes one from its training images"
            )
        return self._load(split)

    def _load(self, split: SplitName) -> Split:
        import numpy as np

        count = self._source.count(split)
        self._check_memory(count)
        images, labels = _buffer((count, *self.image_shape)), np.empty(count, np.int64)
        done = 0
        for part, part_labels in self._source.chunks(split, self._given):
            stop = done + len(part_labels)
            if stop <= count:
                images[done:stop] = self._fitted(part, split)
                labels[done:stop] = part_labels
            done = stop
        if done != count:
            raise BadInputError(
                f"{self._source.where}: split '{split}' holds {done} images, not {count}: it is "
                "damaged; copy or prepare it again"
            )
        self._check_labels(labels, split)
        if split == "train" and self.spec.mean is None:
            # Here, so that it is read once whichever of images and mean is asked for first.
            self._measured = _moments(images)
        return Split(images, labels)

    def _fitted(self, images: Bytes, split: SplitName) -> Bytes:
        """Return the images in the right size; one channel is spread over all by assignment."""
        size = self.image_shape[:2]
        if images.shape[1:3] != size and self._given is None:
            raise BadInputError(
                f"{self._source.where}: split '{split}' has an image of "
                f"{images.shape[1]}×{images.shape[2]}, not {size[0]}×{size[1]}: {SIZE_WAY_OUT}"
            )
        return resize(images, size)

    def _check_memory(self, count: int) -> None:
        need, have = count * math.prod(self.image_shape), _memory()
        if have is not None and need > MEMORY_SHARE * have:
            raise BadInputError(
                f"data set '{self.name}': {count} images of {self.image_shape} need "
                f"{need / 2**30:.1f} GiB, more than {MEMORY_SHARE:.0%} of this machine's "
                f"{have / 2**30:.1f} GiB: ask for smaller images, with `image:` in the registry or "
                "`size=` in Python, or use fewer of them"
            )

    def _check_labels(self, labels: Labels, split: SplitName) -> None:
        outside = labels[(labels < 0) | (labels >= self.classes)]
        if len(outside):
            raise BadInputError(
                f"{self._source.where}: split '{split}' has the label {outside[0]}, "
                f"but labels must be 0 to {self.classes - 1}"
            )


def _moments(images: Bytes) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of pixels scaled to [0, 1].

    From counts of the 256 levels: exact, and without a float copy of the images.
    """
    import numpy as np

    if not len(images):
        raise BadInputError("there are no training images to measure mean and std on")
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[3]):
        counts = np.zeros(256, np.int64)
        for i in range(0, len(images), CHUNK):
            part = images[i : i + CHUNK, :, :, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ (levels - mean) ** 2 / counts.sum())
        means.append(mean)
        # A channel that never changes carries nothing; any divisor but zero will do.
        stds.append(math.sqrt(variance) if variance > 1e-12 else 1.0)
    return means, stds


def load_dataset(
    name: str = "cifar10",
    *,
    data_dir: str | Path | None = None,
    spec: schema.Dataset | None = None,
    datasets: Mapping[str, schema.Dataset] | None = None,
    size: Size | None = None,
) -> ImageData:
    """Find and open a data set, downloading it if it is nowhere on this machine.

    Args:
        name: of a registry entry, a folder, or a name in tensorflow-datasets.
        data_dir: where to look first; see `search_places` for where else.
        spec: what is known of the data set, in place of the registry's entry.
        datasets: registry entries to look the name up in, in place of the built-in ones.
        size: height and width in pixels that images are resized to; the spec's if not given, and
            the stored ones if the spec has none.

    Raises:
        BadInputError: it is not found, or it is incomplete, damaged, or not labelled images.
        EnvironmentFaultError: it could not be downloaded or written.
    """
    if spec is None:
        if datasets is None:
            from kerasnet.registry import load_registry

            datasets = load_registry().datasets
        spec = dataset_spec(name, datasets)
    located = locate(name, spec, data_dir)
    if located.kind == "download":
        located = _download(name, spec, data_dir)
    return ImageData(name, spec, located, size)


# ---------------------------------------------------------------------------- pipelines


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return how many full batches `n` images make; one of all images if they fill none.

    Raises:
        BadInputError: there are no images, or the batch size is not positive.
    """
    if n < 1 or batch_size < 1:
        raise BadInputError(f"cannot make batches of {batch_size} from {n} images")
    return max(1, n // batch_size)


def effective_augment(augment: schema.Augment, allowed: schema.Allowed) -> schema.Augment:
    """Return the augmentations without those that the data set forbids."""
    return schema.Augment(
        crop=augment.crop if allowed.crop else None,
        flip=augment.flip if allowed.flip else "none",
        cutout=augment.cutout if allowed.cutout else None,
    )


def augment_batch(images: Any, augment: schema.Augment, *, seed: Any, fill: Sequence[int]) -> Any:
    """Crop, flip and cut out at random, each image by itself, all of them at once.

    Every augmentation here says, for each pixel, which pixel of its image it is taken from, or that
    it is black or the mean colour; so one gather does them all. The numbers that decide one
    augmentation do not depend on which others are on.

    Args:
        images: uint8 tensor (n, height, width, channels); all but n must be static.
        augment: what to do. Crop: He et al. 2015, section 4.2. Cutout: DeVries & Taylor 2017; its
            centre is uniform over the image, so the square may reach over the edge.
        seed: integer tensor (2,); equal seeds do equal things.
        fill: the colour of cut-out squares, an integer 0…255 a channel.

    Returns:
        uint8 tensor of the same shape.

    Raises:
        BadInputError: reflection needs more pixels than the image has.
    """
    import tensorflow as tf

    if augment.crop is None and augment.flip == "none" and augment.cutout is None:
        return images
    height, width, channels = images.shape[1:]
    _check_reflection(augment.crop, min(height, width))
    draws = tf.random.stateless_uniform(
        [5, tf.shape(images)[0]], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    # 32-bit indices are faster, and large enough unless the batch is gigantic.
    n = images.shape[0]
    integer = tf.int32 if n is not None and n * height * width < 2**30 else tf.int64
    index = _source_pixels(augment, draws, height, width, integer)
    colours = tf.constant([[0] * channels, list(fill)], tf.uint8)
    table = tf.concat([colours, tf.reshape(images, [-1, channels])], 0)
    return tf.ensure_shape(tf.gather(table, index), images.shape)


def _source_pixels(
    augment: schema.Augment, draws: Any, height: int, width: int, integer: Any
) -> Any:
    """Return where each pixel comes from, (n, height, width): 0 black, 1 the fill, then pixels."""
    import tensorflow as tf

    def below(row: int, bound: int) -> Any:
        return tf.cast(tf.math.floormod(draws[row], bound), integer)[:, None]

    crop, cutout, outside = augment.crop, augment.cutout, None
    y = source_y = tf.range(height, dtype=integer)[None]
    x = source_x = tf.range(width, dtype=integer)[None]
    if augment.flip != "none":
        source_x = tf.where(below(2, 2) == 1, width - 1 - x, x)
    if crop is not None:
        source_y, out_y = _shifted(source_y, below(0, 2 * crop.padding + 1), height, crop)
        source_x, out_x = _shifted(source_x, below(1, 2 * crop.padding + 1), width, crop)
        outside = out_y[:, :, None] | out_x[:, None, :] if crop.mode == "zeros" else None
    image = tf.range(tf.shape(draws, out_type=integer)[1])[:, None]
    index = ((image * height + source_y) * width)[:, :, None] + source_x[:, None, :] + 2
    if outside is not None:
        index = tf.where(outside, tf.constant(0, integer), index)
    if cutout is not None:
        cut = _within(y, below(3, height), cutout)[:, :, None]
        cut &= _within(x, below(4, width), cutout)[:, None, :]
        index = tf.where(cut, tf.constant(1, integer), index)
    return index


def _check_reflection(crop: schema.Crop | None, side: int) -> None:
    if crop is not None and crop.mode == "reflect" and crop.padding >= side:
        raise BadInputError(
            f"crop: reflection by {crop.padding} pixels needs images larger than that, "
            f"not of {side} pixels"
        )


def _shifted(place: Any, offset: Any, size: int, crop: schema.Crop) -> tuple[Any, Any]:
    """Return where cropped pixels come from along an axis, and which come from outside."""
    import tensorflow as tf

    moved = place + offset - crop.padding
    outside = (moved < 0) | (moved >= size)
    if crop.mode == "reflect":
        moved = (size - 1) - tf.abs((size - 1) - tf.abs(moved))
    return moved, outside


def _within(place: Any, centre: Any, cutout: schema.Cutout) -> Any:
    start = centre - cutout.size // 2
    return (place >= start) & (place < start + cutout.size)


def _as_tensor(images: Bytes) -> Any:
    """Return the images as a tensor in main memory, sharing the array's memory where possible."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        shareable = images.flags.c_contiguous and images.flags.writeable
        if shareable and images.ctypes.data % ALIGNMENT == 0:
            # tf.constant copies, and holds the data set thrice while it does.
            return tf.experimental.dlpack.from_dlpack(images.__dlpack__())
        return tf.constant(images)


def _normaliser(inference: schema.Inference, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Return the function from uint8 (n, *shape) to normalised float32 of the same shape."""
    import numpy as np
    import tensorflow as tf

    height, width, channels = shape
    if not len(inference.mean) == len(inference.std) == channels:
        raise BadInputError(
            f"mean {inference.mean} and std {inference.std} must have a number for each of the "
            f"images' {channels} channels"
        )
    std = np.array(inference.std)
    # Spread over the pixels, for TensorFlow broadcasts a vector of three four times slower.
    scale = np.tile(1 / (255 * std), height * width).astype(np.float32)
    offset = np.tile(-np.array(inference.mean) / std, height * width).astype(np.float32)

    def normalise(images: Any) -> Any:
        flat = tf.reshape(images, [-1, height * width * channels])
        result = tf.cast(flat, tf.float32) * scale + offset
        return tf.ensure_shape(
            tf.reshape(result, [-1, height, width, channels]), [images.shape[0], *shape]
        )

    return normalise


_ORDER, _AUGMENT = 0, 1


def _key(purpose: int, seed: int, epoch: Any, step: Any) -> Any:
    """Return the seed, int64 (2,), of a stateless op: another one for every argument."""
    import tensorflow as tf

    return tf.stack([tf.constant(seed + (purpose << 32), tf.int64), epoch * 2**32 + step])


def _batch_indices(n: int, batch_size: int, seed: int, epochs: int, first_step: int) -> Any:
    """Return a tf.data.Dataset of (epoch, step in it, indices of the batch's images).

    An epoch's order sorts random numbers. `tf.random.experimental.index_shuffle` needs no sorting,
    but its permutations are visibly not uniform (chi-square p < 1e-28 for n = 5).
    """
    import tensorflow as tf

    steps, batch = steps_per_epoch(n, batch_size), min(n, batch_size)

    def epoch_steps(epoch: Any) -> Any:
        key = _key(_ORDER, seed, epoch, tf.constant(0, tf.int64))
        drawn = tf.random.stateless_uniform(
            [n], key, minval=None, maxval=None, dtype=tf.int64, alg="philox"
        )
        order = tf.argsort(drawn, stable=True)[: steps * batch]
        step = tf.range(steps, dtype=tf.int64)
        each = (tf.fill([steps], epoch), step, tf.reshape(order, [steps, batch]))
        return tf.data.Dataset.from_tensor_slices(each)

    epochs_left = tf.data.Dataset.range(first_step // steps, epochs)
    found = epochs_left.flat_map(epoch_steps).skip(first_step % steps)
    return found.apply(tf.data.experimental.assert_cardinality(epochs * steps - first_step))


def training_pipeline(
    split: Split,
    *,
    inference: schema.Inference,
    augment: schema.Augment,
    allowed: schema.Allowed,
    batch_size: int,
    seed: int,
    epochs: int,
    first_step: int = 0,
) -> Any:
    """Return the batches of a training run, as a `tf.data.Dataset`.

    The order is a permutation keyed by (seed, epoch), the augmentation is keyed by (seed, epoch,
    step): starting at any step gives exactly what an uninterrupted run would have seen from there.

    Args:
        split: the training images. Their array is shared, not copied: leave it as it is.
        inference: mean and std to normalise by.
        augment: the recipe's augmentations.
        allowed: those that the data set allows.
        batch_size: images a batch; a partial last batch is dropped, and another permutation drops
            other images. A smaller set gives one batch of all its images.
        seed: of order and augmentation, 0 to 2³¹ - 1.
        epochs: of the whole run, those already done included.
        first_step: optimiser steps already done since the run began.

    Returns:
        `epochs * steps_per_epoch - first_step` batches of float32 images (batch, height, width,
        channels) and int32 labels (batch,).

    Raises:
        BadInputError: no images, or a number out of range.
    """
    import tensorflow as tf

    total = epochs * steps_per_epoch(len(split), batch_size)
    if not 0 <= first_step <= total or not 0 <= seed < 2**31:
        raise BadInputError(
            f"first_step must be 0 to {total}, not {first_step}; seed 0 to 2³¹ - 1, not {seed}"
        )
    chosen = effective_augment(augment, allowed)
    shape = split.images.shape[1:]
    _check_reflection(chosen.crop, min(shape[:2]))
    normalise = _normaliser(inference, shape)
    fill = [min(255, max(0, round(255 * m))) for m in inference.mean]
    images, labels = _as_tensor(split.images), _labels(split)

    def batch(epoch: Any, step: Any, indices: Any) -> tuple[Any, Any]:
        drawn = tf.gather(images, indices)
        drawn = augment_batch(drawn, chosen, seed=_key(_AUGMENT, seed, epoch, step), fill=fill)
        return normalise(drawn), tf.gather(labels, indices)

    order = _batch_indices(len(split), batch_size, seed, epochs, first_step)
    return _mapped(order, batch)


def _mapped(source: Any, make: Callable[..., Any]) -> Any:
    """Return the batches made of a data set's elements, in order and ahead of their use."""
    import tensorflow as tf

    # Neither pipeline branches on a tensor's value, so AutoGraph has nothing to convert.
    made = tf.autograph.experimental.do_not_convert(make)
    batches = source.map(made, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def _labels(split: Split) -> Any:
    import tensorflow as tf

    with tf.device("CPU:0"):
        return tf.constant(split.labels, tf.int32)


def evaluation_pipeline(split: Split, *, inference: schema.Inference, batch_size: int) -> Any:
    """Return the images once, in order, the last batch perhaps smaller, as a `tf.data.Dataset`.

    Args:
        split: the images. Their array is shared, not copied: leave it as it is.
        inference: mean and std to normalise by.
        batch_size: images a batch.

    Returns:
        Batches of float32 images (batch, height, width, channels) and int32 labels (batch,).

    Raises:
        BadInputError: there are no images, or the batch size is not positive.
    """
    import tensorflow as tf

    steps_per_epoch(len(split), batch_size)
    normalise = _normaliser(inference, split.images.shape[1:])
    images, labels = _as_tensor(split.images), _labels(split)

    def batch(start: Any) -> tuple[Any, Any]:
        stop = tf.minimum(start + batch_size, len(split))
        return normalise(images[start:stop]), labels[start:stop]

    starts = tf.data.Dataset.range(0, len(split), batch_size)
    return _mapped(starts, batch)
