"""CIFAR archives as their authors publish them, which may have come by way of a stranger."""

from __future__ import annotations

import gzip
import hashlib
import math
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kerasnet.data.pickles import pickled_table, unpickle
from kerasnet.data.source import checked_names
from kerasnet.data.splits import Size, SplitName
from kerasnet.errors import BadInputError
from kerasnet.files import read_bytes

if TYPE_CHECKING:
    from kerasnet.data.splits import Bytes, Labels

# CIFAR-100's largest member has 155 MB, and each archive a dozen members of 186 MB together;
# anything much larger is not one of these archives.
MAX_MEMBER_BYTES = 2**28
MAX_ARCHIVE_BYTES = 2**29
MAX_MEMBERS = 1000
MAX_NAMES_BYTES = 2**20


@dataclass(frozen=True)
class Layout:
    """How a CIFAR archive is laid out (https://www.cs.toronto.edu/~kriz/cifar.html)."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    classes: int
    label_bytes: int | None = None  # before the pixels of a binary record; the last is the label
    label_key: bytes = b"labels"
    names_key: bytes = b"label_names"


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = {
    "cifar-10-binary.tar.gz": Layout(
        "cifar-10-batches-bin",
        tuple(f"{b}.bin" for b in _BATCHES),
        "test_batch.bin",
        "batches.meta.txt",
        10,
        label_bytes=1,
    ),
    "cifar-10-python.tar.gz": Layout(
        "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", 10
    ),
    "cifar-100-binary.tar.gz": Layout(
        "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 100, label_bytes=2
    ),
    "cifar-100-python.tar.gz": Layout(
        "cifar-100-python",
        ("train",),
        "test",
        "meta",
        100,
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}
ARCHIVES_OF: Mapping[str, Sequence[str]] = {
    "cifar10": ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
}
_CIFAR_IMAGE = (32, 32, 3)
_PIXELS = math.prod(_CIFAR_IMAGE)


@cache
def _md5(file: Path, size: int, modified: int) -> str:
    """Return a file's MD5; it is read once in a process as long as it stays as it is."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _members(tar: gzip.GzipFile, wanted: Sequence[str]) -> dict[str, bytes]:
    """Return the wanted files of a tar archive; nothing is written and no link is followed.

    `tarfile.open` reads what extension headers say, however much that is and however deep they are
    nested; no archive known here needs one.

    Raises:
        ValueError: it holds more than any archive known here.
        EOFError: it ends in the middle of a member.
        tarfile.TarError: a header is damaged.
    """
    found: dict[str, bytes] = {}
    left = MAX_ARCHIVE_BYTES
    for _ in range(MAX_MEMBERS):
        header = tar.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            # Read to the end, for only there is gzip's own checksum compared.
            if _skip(tar, left + 1) > left:
                break
            return found
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        kept = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        # Links, devices, pipes and folders have no content, whatever size they declare.
        size = 0 if entry.type in b"123456" else entry.size
        blocks = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        left -= tarfile.BLOCKSIZE + blocks
        name = PurePosixPath(entry.name).name
        if size < 0 or left < 0:
            break
        content = b""
        if kept and name in wanted:
            content = found[name] = tar.read(size)
        if len(content) + _skip(tar, blocks - len(content)) != blocks:
            raise EOFError("it ends in the middle of a member")
    raise ValueError(
        f"it holds more than {MAX_MEMBERS} members or {MAX_ARCHIVE_BYTES:,} bytes, which no CIFAR "
        "archive does"
    )


def _skip(stream: gzip.GzipFile, size: int) -> int:
    """Read up to `size` bytes and forget them; return how many there were."""
    left = size
    while left and (part := stream.read(min(left, 2**20))):
        left -= len(part)
    return size - left


class Archive:
    """A CIFAR archive, packed or unpacked. Members are read in memory, never extracted.

    Args:
        path: the archive, or the folder it was unpacked into.
        name: that its authors gave it, one of LAYOUTS.
        md5: of the packed archive, compared before anything in it is used; None compares nothing.

    Raises:
        BadInputError: a member is missing, or the archive is not even compressed.
    """

    channels = 3
    classes: int | None
    has_validation = False

    def __init__(self, path: Path, name: str, md5: str | None = None) -> None:
        self.path, self.where, self._name, self._expected = path, str(path), name, md5
        self.layout = layout = LAYOUTS[name]
        self.classes = layout.classes
        self._lengths: dict[str, int] = {}
        self._read: dict[str, list[tuple[Bytes, Labels]]] = {}
        if path.is_dir():
            for member in (*layout.train, layout.test):
                if not (path / member).is_file():
                    raise BadInputError(f"{path / member} is missing: {path} is an incomplete copy")
        else:
            with path.open("rb") as f:
                if f.read(2) != b"\x1f\x8b":
                    raise BadInputError(f"{path} is not a gzip file: download it again")

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The names the archive gives its classes."""
        layout, where = self.layout, self._member(self.layout.names)
        content = self._contents((layout.names,), MAX_NAMES_BYTES)[layout.names]
        if layout.label_bytes is not None:
            names = content.decode("utf-8", "replace").split()
        else:
            listed = unpickle(content, where).get(layout.names_key)
            if not isinstance(listed, list) or not all(isinstance(n, bytes) for n in listed):
                raise BadInputError(f"{where}: the class names are not a list of texts")
            names = [n.decode("utf-8", "replace") for n in listed]
        if len(names) != layout.classes:
            raise BadInputError(f"{where} names {len(names)} classes, not {layout.classes}")
        return checked_names(names, where)

    def _member(self, name: str) -> str:
        return str(self.path / name) if self.path.is_dir() else f"{self.path}: {name}"

    def _contents(self, wanted: Sequence[str], limit: int) -> dict[str, bytes]:
        if self.path.is_dir():
            return {name: read_bytes(self.path / name, limit) for name in wanted}
        self._check_sum()
        try:
            with gzip.open(self.path) as tar:
                found = _members(tar, wanted)
        except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as e:
            raise BadInputError(f"{self.path} is damaged ({e}): download it again") from e
        for name in wanted:
            if name not in found:
                raise BadInputError(f"{self.path} holds no {name}: download it again")
            if len(found[name]) > limit:
                raise BadInputError(f"{self._member(name)} has more than {limit:,} bytes")
        return found

    def _check_sum(self) -> None:
        if self._expected is None:
            return
        stat = self.path.stat()
        received = _md5(self.path, stat.st_size, stat.st_mtime_ns)
        if received != self._expected:
            raise BadInputError(
                f"{self.path} has the MD5 {received}, not {self._expected}: it is damaged, or not "
                "what its authors published. Download it again; or, if it was packed anew by "
                "somebody you trust, give the data set a registry entry of its own that has "
                f"`archives: {{{self._name}: null}}`"
            )

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
            batch = unpickle(content, where)
            flat = pickled_table(batch.get(b"data"), f"{where}: `data`")
            labels = _labels(batch.get(self.layout.label_key), where)
        if flat.shape != (len(labels), _PIXELS):
            raise BadInputError(
                f"{where}: {len(labels)} labels need data of shape ({len(labels)}, {_PIXELS}), "
                f"not {flat.shape}"
            )
        return flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    def _parts(self, split: SplitName) -> list[tuple[Bytes, Labels]]:
        if split not in self._read:
            wanted = self._names_of(split)
            contents = self._contents(wanted, MAX_MEMBER_BYTES)
            parts = [self._parse(name, contents.pop(name)) for name in wanted]
            for name, (_, labels) in zip(wanted, parts, strict=True):
                if len(labels) != len(parts[0][1]):
                    raise BadInputError(
                        f"{self._member(name)} holds {len(labels)} images and {wanted[0]} "
                        f"{len(parts[0][1])}: one of them is truncated; download them again"
                    )
            self._read[split] = parts
            self._lengths[split] = len(parts[0][1])
        return self._read[split]

    def _names_of(self, split: SplitName) -> tuple[str, ...]:
        return self.layout.train if split == "train" else (self.layout.test,)

    def size(self) -> Size | None:
        """Return 32×32."""
        return _CIFAR_IMAGE[:2]

    def count(self, split: SplitName) -> int:
        """Return the number of images in the split, which is read for it.

        Raises:
            BadInputError: the archive or one of its members is damaged.
        """
        return sum(len(labels) for _, labels in self._parts(split))

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        """Yield the images and labels of each member; raises as `count`."""
        parts = self._parts(split)
        # What was read for counting is not needed twice.
        del self._read[split]
        yield from parts

    def place(self, split: SplitName, index: int) -> str:
        """Return the member and the image's number in it."""
        member, number = divmod(index, self._lengths[split])
        return f"{self._member(self._names_of(split)[member])}, image {number}"


def _labels(listed: Any, where: str) -> Labels:
    import numpy as np

    # Python's integers have no bound, NumPy's do.
    if not isinstance(listed, list) or not all(
        type(v) is int and -(2**31) <= v < 2**31 for v in listed
    ):
        raise BadInputError(f"{where}: the labels are not a list of integers")
    return np.array(listed, np.int64)
