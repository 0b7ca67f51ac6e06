"""PyTorch's checkpoint files, read and written without PyTorch and without running their pickles.

`torch.save` writes an uncompressed zip archive: a pickle, `data.pkl`, says what there is, and a
tensor in it names its storage, a file `data/<number>` of the archive, and how to walk through it.
Before PyTorch 1.6 the storages came after the pickle in one plain file; that is read too. What is
known of the format comes from the files themselves and from `torch.serialization`'s documentation.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import write_atomically
from kerasnet.pickles import DAMAGE, Made, Name, Reader

Array = np.ndarray[Any, Any]

# The pickle of 1,000 convolutions and BatchNorms with Adam's state has 1.4 MB and 480,000 steps.
MAX_PICKLE_BYTES = 2**26
MAX_STEPS = 2_000_000
# The list of what is in a zip archive takes some 60 bytes a tensor; reading more takes seconds.
MAX_READ_BYTES = 2**23
# Tensors may share a storage or repeat one value, so that they hold more than the file does.
MAX_GROWTH, SMALL_BYTES = 4, 2**26
MAX_KEY = 500
MAX_DIMENSIONS, MAX_DIMENSION = 64, 2**48

# Where the usual programs keep the weights when there is more than one state dict in a checkpoint.
USUAL_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("weights", "params", "ema", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema"),
)
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
SAVE = "torch.save(model.state_dict(), 'weights.pt')"

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
_TENSORS = (
    *("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"),
    "torch._utils _rebuild_tensor_v3",
)
_PARAMETERS = (
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
)
# PyTorch gave them no storage class of their own.
_UNTYPED = (
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz"),
)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_DAMAGE = (
    *DAMAGE,
    *(OSError, EOFError, RuntimeError, OverflowError, struct.error),
    *(zipfile.BadZipFile, zlib.error),
)


class _RefusedError(ValueError):
    """A whole sentence about a file that cannot be used, without the file's name."""


# ---------------------------------------------------------------------------- reading pickles


@dataclass(frozen=True, eq=False)
class _Storage:
    """What a pickle says of a storage: its class, its name in the file, and its elements."""

    kind: Any
    key: Any
    count: Any


@dataclass(frozen=True, eq=False)
class _Tensor:
    """What a pickle says of a tensor; nothing of it is checked yet."""

    storage: _Storage
    offset: Any
    shape: Any
    strides: Any
    dtype: str | None = None
    lazy: bool = False


class _OddKey:
    """Stands for a key that no state dict has: a number, a tuple, an unprintable text."""


class _Reader(Reader):
    """Follows the pickle of a checkpoint. What is no tensor is written down and never made."""

    literals = Reader.literals | {
        *("BINFLOAT", "FLOAT", "LONG4", "INT", "LONG", "UNICODE", "BINUNICODE8", "BINBYTES8"),
        "BYTEARRAY8",
    }

    def __init__(self) -> None:
        super().__init__("checkpoint", MAX_STEPS)
        self.storages: dict[str, _Storage] = {}

    def python2_text(self, content: bytes) -> str:
        return content.decode("utf-8", "replace")

    def append(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)

    def set(self, target: Any, key: Any, value: Any) -> None:
        if isinstance(target, dict):
            target[key if _is_key(key) else _OddKey()] = value

    def change(self, target: Any, state: Any) -> None:
        if isinstance(target, Made):
            target.state = state

    def other(self, step: str) -> None:
        if step == "BINPERSID":
            self.stack.append(self._persistent(self.stack.pop()))
        elif step in ("NEWOBJ", "NEWOBJ_EX"):
            kind, *arguments = self.last(2 if step == "NEWOBJ" else 3)
            self.stack.append(Made(_text(kind), arguments))
        elif step == "EMPTY_SET":
            self.stack.append(Made("builtins set"))
        elif step == "FROZENSET":
            self.stack.append(Made("builtins frozenset", self.since_mark()))
        elif step == "POP":
            self.stack.pop()
        elif step in ("ADDITEMS", "POP_MARK"):
            self.since_mark()
        else:
            super().other(step)

    def call(self, function: Any, arguments: Any) -> Any:
        name = _text(function)
        match name, arguments:
            case "torch._tensor _rebuild_from_type_v2", (Name(inner), _, tuple(given), *_):
                name, arguments = inner, given
        match arguments:
            case (_Tensor() as tensor, *_) if name in _PARAMETERS:
                return tensor
            case (_Storage() as storage, offset, shape, strides, *rest) if name in _TENSORS:
                # Behind them: whether it wants a gradient, its hooks, and in the third its dtype.
                dtype = _text(rest.pop(2)) if name == _TENSORS[2] else None
                return _Tensor(storage, offset, shape, strides, dtype, lazy=any(rest[2:]))
            case () if name == "collections OrderedDict":
                return {}
            case (list(pairs),) if name == "collections OrderedDict":  # as Python 2 wrote it
                self.steps_left -= len(pairs)  # the same list may come a million times
                return self._filled(pairs)
            case tuple() if name == "collections defaultdict":
                return {}
        return Made(name, arguments)

    def _filled(self, pairs: list[Any]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in pairs:
            self.set(found, key, value)
        return found

    def _persistent(self, told: Any) -> Any:
        match told:
            case ("storage", Name(kind), key, _, int(count), *view) if _is_key(key):
                if any(view):
                    raise _RefusedError(
                        "a storage in it is a view of another, as very old versions of PyTorch "
                        f"wrote them; load it and save it anew: {SAVE}"
                    )
                return self.storages.setdefault(key, _Storage(kind, key, count))
            case ("module", kind, *_):  # a class, with its source in the older format
                return kind
        raise ValueError("it names no storage where it should")


def _text(function: Any) -> str:
    return function.text if isinstance(function, Name) else type(function).__name__


def _is_key(key: Any) -> bool:
    """Return whether a state dict may have this key: a short printable text."""
    return isinstance(key, str) and 0 < len(key) <= MAX_KEY and key.isprintable()


def _kind(value: Any) -> str:
    """Return in words what a pickle holds."""
    if isinstance(value, Made):
        return _shown(value.kind.replace(" ", "."))
    return {"_Tensor": "tensor", "NoneType": "None"}.get(name := type(value).__name__, name)


def _shown(text: Any) -> str:
    """Return a stranger's words so that a terminal can print them, and not too many."""
    words = str(text)
    short = words if len(words) <= 200 else words[:200] + "…"
    return "".join(c if c.isprintable() else "?" for c in short)


# ---------------------------------------------------------------------------- finding tensors


def _is_tensor(value: Any) -> bool:
    """Return whether something is a tensor, also of a kind that is refused later."""
    return isinstance(value, _Tensor) or (
        isinstance(value, Made) and value.kind.startswith("torch._utils _rebuild")
    )


def _is_state_dict(found: dict[Any, Any]) -> bool:
    values = [value for key, value in found.items() if not _is_extra(key)]
    return bool(values) and all(map(_is_tensor, values)) and all(isinstance(k, str) for k in found)


def _is_extra(key: Any) -> bool:
    """Return whether a module may keep anything under a key, by its `get_extra_state`."""
    return isinstance(key, str) and key.rpartition(".")[2] == "_extra_state"


def _candidates(found: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Return the state dicts among a dictionary's values and their values, by `key.key`."""
    candidates, seen = {}, {id(found)}
    level = [("", found)]
    for _ in range(2):
        inner = [
            (f"{path}{key}", value)
            for path, around in level
            for key, value in around.items()
            if isinstance(key, str) and isinstance(value, dict)
        ]
        level = []
        for path, value in inner:
            # A dictionary may be there a million times.
            if id(value) in seen:
                continue
            seen.add(id(value))
            if _is_state_dict(value):
                candidates[path] = value
            else:
                level.append((f"{path}.", value))
    return candidates


def _state_dict(found: Any, key: str | None) -> dict[str, Any]:
    """Return the one state dict that was meant."""
    if isinstance(found, Made) and isinstance(found.state, dict) and "_modules" in found.state:
        raise _RefusedError(
            f"a whole model ({_kind(found)}), not its weights: its classes would have to be run. "
            f"Load it where they are and save it anew: {SAVE}"
        )
    if not isinstance(found, dict):
        raise _RefusedError(
            f"expected a state dict, received a {_kind(found)}; save it anew: {SAVE}"
        )
    if key is None and _is_state_dict(found):
        return _without_wrappers(found)
    candidates = _candidates(found)
    if key is not None:
        return _without_wrappers(_chosen(found, candidates, key))
    usual = [name for name in candidates if name.rpartition(".")[2] in USUAL_KEYS]
    names = usual if len(usual) == 1 else list(candidates)
    if not names:
        raise _RefusedError(f"no state dict in it: {_contents(found)}. Save it anew: {SAVE}")
    if len(names) > 1:
        raise _RefusedError(
            f"holds {len(names)} state dicts: {', '.join(map(_shown, names[:20]))}. "
            f"Choose one by its key, such as key={_shown(names[0])!r}"
        )
    return _without_wrappers(candidates[names[0]])


def _contents(found: dict[Any, Any]) -> str:
    """Return in words what a dictionary holds, what is no tensor first."""
    if not found:
        return "it is empty"
    named = sorted(found.items(), key=lambda item: _is_tensor(item[1]))
    words = [
        f"{_shown(key) if isinstance(key, str) else 'a key that is no printable text'} "
        f"({_kind(value)})"
        for key, value in named[:10]
    ]
    more = [f"{len(named) - 10} more"] if named[10:] else []
    return "it holds " + ", ".join(words + more)


def _chosen(
    found: dict[Any, Any], candidates: dict[str, dict[Any, Any]], key: str
) -> dict[Any, Any]:
    if key in candidates:
        return candidates[key]
    if _is_state_dict(found):
        raise _RefusedError(f"is a state dict itself: there is no key {_shown(key)!r} to choose")
    held = f"it is a {_kind(found[key])}" if key in found else "there is no such key"
    raise _RefusedError(
        f"expected a state dict under {_shown(key)!r}; {held}. {did_you_mean(key, candidates)}"
    )


def _without_wrappers(found: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors, without the prefixes that wrapping a model puts before every key."""
    tensors = {key: value for key, value in found.items() if not _is_extra(key)}
    while prefix := next((p for p in WRAPPERS if all(k.startswith(p) for k in tensors)), None):
        if prefix in tensors:
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


# ---------------------------------------------------------------------------- reading storages


class _Store(Protocol):
    """Where a checkpoint's storages are; `size` is in bytes, `read` reads as many."""

    def size(self, storage: _Storage) -> int: ...

    def read(self, storage: _Storage) -> bytearray: ...


class _File(io.FileIO):
    """A file that nobody reads much of at once: a zip archive may claim to need it."""

    def read(self, size: int | None = -1, /) -> bytes:
        limited = size is not None and 0 <= size <= MAX_READ_BYTES
        content = super().read(size if limited else MAX_READ_BYTES + 1) or b""
        if len(content) > MAX_READ_BYTES:
            raise ValueError("the list of its contents is too long")
        return content


class _Zip:
    """The archive that PyTorch has written since 1.6.

    Args:
        file: the archive.
        size: its bytes.
    """

    def __init__(self, file: _File, size: int) -> None:
        self._zip, self._file_size = zipfile.ZipFile(file), size
        names = self._zip.namelist()
        self._top = names[0].partition("/")[0] if names else ""
        if self._has("constants.pkl") or any(n.startswith(f"{self._top}/code/") for n in names):
            raise _RefusedError(
                "a TorchScript archive, whose weights are part of a program. Save them anew: "
                "torch.save(torch.jit.load('model.pt').state_dict(), 'weights.pt')"
            )
        if not self._has("data.pkl"):
            raise _RefusedError(
                f"a zip archive, but not one of torch.save: no data.pkl in it. Expected {SAVE}"
            )
        if self._has("byteorder") and self._content("byteorder", 16) != b"little":
            raise _RefusedError(
                "written on a big-endian machine; load it and save it anew on a little-endian one: "
                + SAVE
            )
        self.pickle = io.BytesIO(self._content("data.pkl", MAX_PICKLE_BYTES))

    def _has(self, name: str) -> bool:
        return f"{self._top}/{name}" in self._zip.NameToInfo

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._zip.NameToInfo.get(f"{self._top}/{name}")
        if info is None:
            raise _RefusedError(f"incomplete: no {_shown(name)} in the archive")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise _RefusedError(
                f"{_shown(name)} in it is compressed, which torch.save never does; load it with "
                f"PyTorch and save it anew: {SAVE}"
            )
        if info.file_size > self._file_size:
            raise ValueError(f"{_shown(name)} claims to be larger than the file")
        return info

    def _content(self, name: str, limit: int) -> bytearray:
        info = self._info(name)
        if info.file_size > limit:
            raise ValueError(f"{name} has more than {limit:,} bytes")
        content, done = bytearray(info.file_size), 0
        with self._zip.open(info) as stream:
            while part := stream.read(MAX_READ_BYTES // 2):
                content[done : done + len(part)] = part
                done += len(part)
        if done != len(content):
            raise ValueError(f"{_shown(name)} ends early")
        return content

    def size(self, storage: _Storage) -> int:
        return self._info(f"data/{storage.key}").file_size

    def read(self, storage: _Storage) -> bytearray:
        return self._content(f"data/{storage.key}", self._file_size)


class _Legacy:
    """The file that PyTorch wrote before 1.6, and writes when asked to.

    Args:
        file: the file.
        size: its bytes.
        storages: what the pickle says of each, by key.
        keys: the order in which they come.
        start: where they begin.
    """

    def __init__(
        self, file: IO[bytes], size: int, storages: dict[str, _Storage], keys: Any, start: int
    ) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        for key in keys:
            if not _is_key(key):  # hashing anything else may go too deep
                raise ValueError("a storage's key is no text")
            storage = storages[key]
            file.seek(start)
            (count,) = struct.unpack("<q", file.read(8))
            length = count * _item_bytes(storage)
            if not 0 <= length <= size - start - 8:
                raise ValueError(f"storage {_shown(key)} does not end where the file does")
            self._places[key] = start + 8, length
            start += 8 + length

    def size(self, storage: _Storage) -> int:
        return self._places[storage.key][1]

    def read(self, storage: _Storage) -> bytearray:
        start, length = self._places[storage.key]
        content = bytearray(length)
        self._file.seek(start)
        # Otherwise it would be a file that became shorter meanwhile.
        if self._file.readinto(content) != length:  # type: ignore[attr-defined]
            raise ValueError("it ends early")
        return content


def _item_bytes(storage: _Storage) -> int:
    """Return how many bytes an element of a storage takes."""
    dtype = _storage_dtype(storage)
    return 1 if dtype is None else dtype.itemsize


def _storage_dtype(storage: _Storage) -> np.dtype[Any] | None:
    """Return what a storage's class says it holds, None if it does not say."""
    module, _, name = storage.kind.rpartition(" ")
    if (module, name) == ("torch.storage", "UntypedStorage"):
        return None
    if module not in ("torch", "torch.cuda") or name.removesuffix("Storage") not in _STORAGES:
        raise _RefusedError(
            f"holds a {_shown(storage.kind.replace(' ', '.'))}; expected tensors of "
            f"{', '.join(_STORAGES.values())}"
        )
    return _dtype(_STORAGES[name.removesuffix("Storage")])


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, _Store]]:
    """Yield what the pickle of a checkpoint holds, and its storages."""
    if path.exists() and not path.is_file():
        raise _RefusedError("is no regular file; expected a PyTorch checkpoint")
    with _File(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            archive = _Zip(file, size)
            yield _Reader().read(archive.pickle), archive
        elif head.startswith(b"\x80"):
            yield _read_legacy(file, size)
        elif head[257:262] == b"ustar":
            raise _RefusedError(
                "a tar archive; if PyTorch before 0.1.10 wrote it, load it with PyTorch and save "
                f"it anew: {SAVE}"
            )
        else:
            raise _RefusedError(
                "expected a PyTorch checkpoint (a zip archive, or a pickle), received a file that "
                f"begins with {head[:16]!a}; save it anew: {SAVE}"
            )


def _read_legacy(file: _File, size: int) -> tuple[Any, _Store]:
    parts = (file.read(MAX_READ_BYTES) for _ in range(MAX_PICKLE_BYTES // MAX_READ_BYTES))
    head, reader = io.BytesIO(b"".join(parts)), _Reader()
    if reader.read(head) != _LEGACY_MAGIC:
        raise _RefusedError(f"a pickle, but not one of torch.save; save it anew: {SAVE}")
    version, _ = reader.read(head), reader.read(head)
    if version != 1001:
        raise _RefusedError(f"of an unknown version of torch.save's format; save it anew: {SAVE}")
    found, keys = reader.read(head), reader.read(head)
    if isinstance(found, dict):
        return found, _Legacy(file, size, reader.storages, keys, head.tell())
    return found, _Legacy(file, size, {}, [], 0)  # refused for what it is


def _tensor_dtype(tensor: Any) -> np.dtype[Any]:
    if not isinstance(tensor, _Tensor) or tensor.lazy:
        kind = "lazily conjugated or negated" if isinstance(tensor, _Tensor) else _kind(tensor)
        raise _RefusedError(f"expected a plain dense tensor, received a {kind} one")
    if tensor.dtype is None:
        dtype = _storage_dtype(tensor.storage)
        if dtype is None:
            raise ValueError("its dtype is not told")
        return dtype
    name = tensor.dtype.removeprefix("torch ")
    if name not in (*_UNTYPED, *_STORAGES.values()):
        raise _RefusedError(f"has the unknown dtype {_shown(name)}")
    return _dtype(name)


def _layout(tensor: Any, store: _Store) -> tuple[np.dtype[Any], int]:
    """Hold what a pickle says of a tensor against its storage.

    Returns:
        Its dtype, and how many bytes its values take.
    """
    dtype = _tensor_dtype(tensor)
    shape, strides = tensor.shape, tensor.strides
    if not (type(shape) is type(strides) is tuple and len(shape) == len(strides)):
        raise ValueError("its shape and strides do not belong together")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"it has more than {MAX_DIMENSIONS} dimensions")
    numbers = (tensor.offset, tensor.storage.count, *shape, *strides)
    if not all(type(number) is int and 0 <= number < MAX_DIMENSION for number in numbers):
        raise ValueError("its shape, strides and offset are not all whole numbers from zero")
    expected = tensor.storage.count * _item_bytes(tensor.storage)
    received = store.size(tensor.storage)
    if expected != received:
        raise ValueError(f"expected a storage of {expected:,} bytes, received {received:,}")
    count = math.prod(shape)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count and (last + 1) * dtype.itemsize > received:
        raise ValueError("it reaches beyond its storage")
    return dtype, count * dtype.itemsize


def _arrays(tensors: dict[str, Any], store: _Store, file_size: int) -> dict[str, Array]:
    """Return tensors as arrays that share no memory; each storage is read once."""
    dtypes, total, limit = {}, 0, max(SMALL_BYTES, MAX_GROWTH * file_size)
    by_storage: dict[str, list[str]] = {}
    for key, tensor in tensors.items():
        try:
            dtypes[key], size = _layout(tensor, store)
        except _RefusedError as error:
            raise _RefusedError(f"{key}: {error}") from error
        except DAMAGE as error:
            raise ValueError(f"{key}: {error}") from error
        if tensor.storage.key not in by_storage:
            size = max(size, store.size(tensor.storage))
        total += size
        if total > limit:
            raise _RefusedError(
                f"its tensors take more than {limit:,} bytes, the file itself {file_size:,}"
            )
        by_storage.setdefault(tensor.storage.key, []).append(key)
    arrays = {}
    for keys in by_storage.values():
        content = store.read(tensors[keys[0]].storage)
        for key in keys:
            arrays[key] = _array(content, tensors[key], dtypes[key])
    return {key: arrays[key] for key in tensors}


def _array(content: bytearray, tensor: _Tensor, dtype: np.dtype[Any]) -> Array:
    """Return a copy of a tensor's values, in C's order."""
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, dtype)
    # Any byte but zero is true, yet NumPy's booleans are bytes 0 and 1.
    kind = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    size = dtype.itemsize
    strides = [stride * size for stride in tensor.strides]
    view: Array = np.ndarray(tensor.shape, kind, content, tensor.offset * size, strides)
    return np.asarray(view != 0) if dtype == np.bool_ else np.array(view, order="C")


def read_state_dict(file: str | os.PathLike[str], key: str | None = None) -> dict[str, Array]:
    """Return the arrays of a PyTorch checkpoint, in its order; nothing in it is run.

    A checkpoint may be a state dict, or keep one under a key (`state_dict`, `model.state_dict`, at
    most two deep) beside an optimiser's state and anything else, which is ignored. A state dict is
    a dictionary with printable texts for keys and nothing but tensors in it (`_extra_state` aside).
    Where there are several, the only one with a usual name (USUAL_KEYS) is taken; otherwise `key`
    must choose. Prefixes that wrapping a model puts before every key (WRAPPERS) are removed.

    Args:
        file: as written by `torch.save`, in its zip format or the older one.
        key: of the state dict, `outer.inner` if it is inside another dictionary.

    Returns:
        Arrays by key, of the tensors' shapes and dtypes (bfloat16 and float8 from ml_dtypes), in
        C's order, writable, and none sharing memory with another.

    Raises:
        BadInputError: the file is missing, damaged, of another kind, or it is not clear what in it
            is meant.
    """
    path = Path(file)
    try:
        with _opened(path) as (found, store):
            return _arrays(_state_dict(found, key), store, path.stat().st_size)
    except FileNotFoundError as error:
        raise BadInputError(f"{file}: there is no such weights file") from error
    except _RefusedError as error:
        raise BadInputError(f"{file}: {error}") from error
    except _DAMAGE as error:
        raise BadInputError(
            f"{file}: cannot be read as a PyTorch checkpoint: {_shown(error) or _kind(error)}. It "
            "is damaged, or not from torch.save: copy or download it again, or save it anew: "
            f"{SAVE}"
        ) from error


# ---------------------------------------------------------------------------- writing

_ALIGNMENT = 64  # of storages, so that they can be mapped into memory
_EMPTY_ORDERED = b"ccollections\nOrderedDict\n)R"


def write_state_dict(arrays: Mapping[str, Array], file: str | os.PathLike[str]) -> None:
    """Write arrays atomically as a state dict that `torch.load(file, weights_only=True)` reads.

    The same arrays give the same bytes. The file is laid out as `torch.save` of PyTorch 1.6 and
    later does it: a pickle of protocol 2, and storages at multiples of 64 bytes.

    Args:
        arrays: by key; of any dtype that PyTorch has (bfloat16 and float8 from ml_dtypes). None
            will share memory with another.
        file: where to; an older one is replaced.

    Raises:
        BadInputError: PyTorch has no such dtype, or a key is no short printable text.
        EnvironmentFaultError: the file cannot be written; an older one is left as it was.
    """
    steps = [b"\x80\x02", _EMPTY_ORDERED, b"("]
    for number, (key, array) in enumerate(arrays.items()):
        if not _is_key(key):
            raise BadInputError(
                f"{file}: {_shown(key)!r}: expected keys that are printable texts of at most "
                f"{MAX_KEY} characters"
            )
        if array.dtype.name not in (*_STORAGES.values(), *_UNTYPED):
            raise BadInputError(
                f"{file}: {key}: PyTorch has no dtype {array.dtype}; convert the array, to float32 "
                "for example"
            )
        steps += [_pickled(key), _pickled_tensor(str(number), array)]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        _add(archive, "data.pkl", b"".join([*steps, b"u."]))
        _add(archive, "byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _add(archive, f"data/{number}", little.tobytes())
        _add(archive, "version", b"3\n")
    write_atomically(Path(file), out.getbuffer())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file whose content begins at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(f"archive/{name}")  # of 1980, as if written nowhere
    info.create_system = 3
    assert archive.fp is not None
    # 30 bytes of header, the name, and a field of padding with 4 bytes before it.
    begin = archive.fp.tell() + 30 + len(info.filename) + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, content)


def _pickled(value: str | int | tuple[int, ...]) -> bytes:
    """Return the steps of a pickle that make a text, a number from zero, or a tuple of numbers."""
    if isinstance(value, str):
        content = value.encode()
        return b"X" + struct.pack("<I", len(content)) + content
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_pickled, value)) + b"t"
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _pickled_tensor(storage: str, array: Array) -> bytes:
    """Return the steps that make a tensor, contiguous and with a storage of its own."""
    kind = next((k for k, name in _STORAGES.items() if name == array.dtype.name), None)
    storage_class = f"torch\n{kind}Storage" if kind else "torch.storage\nUntypedStorage"
    function = "_rebuild_tensor_v2" if kind else "_rebuild_tensor_v3"
    strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
    steps = [
        f"ctorch._utils\n{function}\n((".encode(),
        _pickled("storage"),
        f"c{storage_class}\n".encode(),
        _pickled(storage),
        _pickled("cpu"),
        _pickled(array.size if kind else array.nbytes),
        b"tQ",
        _pickled(0),
        _pickled(array.shape),
        _pickled(strides),
        b"\x89",  # wants no gradient
        _EMPTY_ORDERED,  # and has no hooks
        b"" if kind else f"ctorch\n{array.dtype.name}\n".encode(),
        b"tR",
    ]
    return b"".join(steps)
