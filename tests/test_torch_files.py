"""PyTorch's checkpoint files: read without PyTorch and without running them, and written for it."""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import pickletools
import random
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bounds
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from kerasnet import files, torch_files
from kerasnet.errors import BadInputError, EnvironmentFaultError
from kerasnet.torch_files import read_state_dict, write_state_dict

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")

SECONDS, MEMORY = 8.0, 300_000_000
NAMES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn"),
    "float8_e5m2",
)
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in NAMES}
CLASSES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "bool": "Bool", "complex64": "ComplexFloat", "complex128": "ComplexDouble",
}  # fmt: skip


@pytest.fixture
def bounded() -> Iterator[None]:
    """Let no test hang or take much memory."""
    with bounds.bounded(SECONDS, MEMORY, until=8 * SECONDS):
        yield


# ---------------------------------------------------------------------------- files by hand


def steps(value: Any) -> bytes:
    """The steps of a pickle that make a value; bytes are steps already."""
    match value:
        case bytes():
            return value
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            length = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            content = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(content)) + content
        case tuple():
            return b"(" + b"".join(map(steps, value)) + b"t"
        case list():
            return b"](" + b"".join(map(steps, value)) + b"e"
        case dict():
            return b"}(" + b"".join(steps(k) + steps(v) for k, v in value.items()) + b"u"
    raise TypeError(value)


def name(text: str) -> bytes:
    module, _, inner = text.rpartition(".")
    return f"c{module}\n{inner}\n".encode()


def call(function: str, *arguments: Any) -> bytes:
    return name(function) + steps(arguments) + b"R"


def storage(key: Any, count: Any, kind: str = "torch.FloatStorage", *more: Any) -> bytes:
    return steps(("storage", name(kind), key, "cpu", count, *more)) + b"Q"


def tensor(
    key: Any, shape: Any, strides: Any = None, offset: Any = 0, count: Any = None,
    kind: str = "torch.FloatStorage", legacy: bool = False,
) -> bytes:  # fmt: skip
    if strides is None:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    count = math.prod(shape) if count is None else count
    held = storage(key, count, kind, *([None] if legacy else []))
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", held, offset, shape, strides, False, hooks)


def pack(
    file: Path, found: Any, storages: dict[str, bytes] | None = None, top: str = "x",
    way: int = zipfile.ZIP_STORED, **more: bytes,
) -> Path:  # fmt: skip
    """Write an archive as PyTorch lays it out."""
    records = {"data.pkl": b"\x80\x02" + steps(found) + b"."}
    records |= {f"data/{key}": content for key, content in (storages or {}).items()}
    with zipfile.ZipFile(file, "w", way) as archive:
        for inner, content in (records | more).items():
            archive.writestr(f"{top}/{inner}", content)
    return file


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


ONE = {"0": floats(1.5)}
W = {"w": tensor("0", (1,))}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def refused(file: Path, *said: str, key: str | None = None) -> str:
    """Assert that a file is refused in few printable words, which begin with its name."""
    with pytest.raises(BadInputError) as raised:
        read_state_dict(file, key)
    message = str(raised.value)
    assert message.startswith(f"{file}: ")
    assert len(message) < 2000
    assert message.isprintable()
    for words in said:
        assert words in message
    return message


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", CLASSES)
def test_every_storage_class_is_read_with_its_dtype(dtype: str, file: Path) -> None:
    expected = np.array([[0, 1, 2], [3, 4, 5]]).astype(DTYPES[dtype])
    found = {"w": tensor("7", (2, 3), kind=f"torch.{CLASSES[dtype]}Storage")}
    (array,) = read_state_dict(pack(file, found, {"7": expected.tobytes()})).values()
    assert array.dtype == DTYPES[dtype]
    assert array.tobytes() == expected.tobytes()
    assert array.shape == (2, 3)
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.parametrize("dtype", ["uint16", "float8_e4m3fn", "bfloat16"])
def test_untyped_storages_are_read_with_the_dtype_of_the_tensor(dtype: str, file: Path) -> None:
    expected = np.array([1, 2, 3]).astype(DTYPES[dtype])
    held = storage("0", expected.nbytes, "torch.storage.UntypedStorage")
    kind = name(f"torch.{dtype}")
    hooks = call("collections.OrderedDict")
    given = (held, 0, (3,), (1,), False, hooks, kind)
    found = {"w": call("torch._utils._rebuild_tensor_v3", *given)}
    array = read_state_dict(pack(file, found, {"0": expected.tobytes()}))["w"]
    assert array.dtype == expected.dtype
    assert array.tobytes() == expected.tobytes()


def test_strides_offsets_and_shared_storages_are_followed(file: Path) -> None:
    flat = np.arange(24, dtype=np.float32)
    found = {
        "transposed": tensor("0", (4, 6), (1, 4), count=24),
        "whole": tensor("0", (2, 3, 4), count=24),
        "column": tensor("0", (6,), (4,), offset=3, count=24),
        "scalar": tensor("0", (), offset=23, count=24),
        "repeated": tensor("0", (3, 2), (0, 1), offset=5, count=24),
        "empty": tensor("0", (0, 5), count=24),
        "step": tensor("1", (), kind="torch.LongStorage"),
        "none": tensor("2", (2, 0)),
    }
    content = {"0": flat.tobytes(), "1": struct.pack("<q", -7), "2": b""}
    arrays = read_state_dict(pack(file, found, content))
    assert list(arrays) == list(found)
    expected = {
        "transposed": flat.reshape(6, 4).T, "whole": flat.reshape(2, 3, 4), "column": flat[3::4],
        "scalar": flat[23], "repeated": np.tile(flat[5:7], (3, 1)), "empty": np.empty((0, 5)),
        "step": np.int64(-7), "none": np.empty((2, 0)),
    }  # fmt: skip
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], strict=key not in ("empty", "none"))
        assert array.shape == np.shape(expected[key])
    arrays["whole"][:] = -1
    assert arrays["scalar"] == 23


def test_parameters_buffers_and_ordered_dictionaries_are_read(file: Path) -> None:
    hooks, weight = call("collections.OrderedDict"), tensor("0", (1,))
    parameter = call("torch._utils._rebuild_parameter", weight, True, hooks)
    given = (storage("0", 1), 0, (1,), (1,), False, hooks)
    rebuild, kind = name("torch._utils._rebuild_tensor_v2"), name("torch.Tensor")
    buffer = call("torch._tensor._rebuild_from_type_v2", rebuild, kind, given, {"_is_buffer": True})
    old = call("torch._utils._rebuild_tensor", *given[:4])
    ordered = hooks + steps({"p": parameter, "b": buffer, "o": old, "x._extra_state": None})[1:]
    ordered += steps({"_metadata": hooks}) + b"b"
    python2 = call("collections.OrderedDict", [[key, weight] for key in "ba"])
    for found, keys in ((ordered, ["p", "b", "o"]), (python2, ["b", "a"])):
        arrays = read_state_dict(pack(file, found, ONE))
        assert list(arrays) == keys
        assert [array.tolist() for array in arrays.values()] == [[1.5]] * len(keys)


def legacy(found: Any, keys: list[str], content: bytes, version: int = 1001) -> bytes:
    """A file as PyTorch wrote it before 1.6."""
    magic = 0x1950A86A20F9469CFC6C
    parts = (magic, version, {"little_endian": True}, found, keys)
    return b"".join(b"\x80\x02" + steps(part) + b"." for part in parts) + content


def test_the_older_format_is_read(file: Path) -> None:
    found = {
        "w": tensor("93", (2, 2), (1, 2), legacy=True),
        b"U\x01b": tensor("8", (), kind="torch.LongStorage", legacy=True),  # by Python 2
    }
    count = struct.pack("<q", 1) + struct.pack("<q", 5)
    file.write_bytes(legacy(found, ["8", "93"], count + struct.pack("<q", 4) + floats(1, 2, 3, 4)))
    arrays = read_state_dict(file)
    assert {key: array.tolist() for key, array in arrays.items()} == {"w": [[1, 3], [2, 4]], "b": 5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-1], "does not end where the file does"),
        (lambda content: content[:-20], "weights.pt: cannot be read"),
        (lambda content: content[:200], "weights.pt: cannot be read"),
        (lambda content: b"\x80\x02" + steps({}) + b".", "a pickle, but not one of torch.save"),
        (lambda content: legacy({}, [], b"", 1000), "of an unknown version"),
        (lambda content: legacy([1], [], b""), "expected a state dict, received a list"),
        (lambda content: legacy(W, [(1,)], b""), "a storage's key is no text"),  # type: ignore[list-item]
        (lambda content: legacy(W, ["0"], struct.pack("<q", -1)), "does not end where"),
        (lambda content: legacy(W, ["0"], struct.pack("<q", 2**62)), "does not end where"),
        (lambda content: legacy(W, ["0"], struct.pack("<qii", 2, 0, 0)), "expected a storage of 4"),
        (lambda content: legacy(W, [], b""), "w: "),
        (
            lambda content: legacy(storage("0", 1, "torch.FloatStorage", ("1", 0, 1)), [], b""),
            "a storage in it is a view of another",
        ),
    ],
    ids=range(12),
)  # fmt: skip
def test_damage_of_the_older_format_is_told(
    change: Callable[[bytes], bytes], said: str, file: Path, bounded: None
) -> None:
    file.write_bytes(change(legacy(W, ["0"], struct.pack("<q", 1) + floats(1.5))))
    refused(file, said, "torch.save(model.state_dict(), ")


# ---------------------------------------------------------------------------- finding the weights

OTHERS: dict[str, Any] = {
    "epoch": 3,
    "best": 0.5,
    "optimizer": {"state": {0: {"step": W["w"], "exp_avg": W["w"]}}, "param_groups": [{"lr": 0.1}]},
    "args": name("argparse.Namespace") + b")\x81" + steps({"lr": 0.1, "name": None}) + b"b",
    "rng": tensor("0", (1,), kind="torch.ByteStorage"),
    "seen": b"\x8f(K\x01K\x02\x90",
    "path": call("pathlib.PosixPath", "a", "b"),
    "scores": name("my.List") + b")\x81" + steps([1.0])[1:] + steps({1: 2})[1:],
    "odd": {3: 1, (4,): 2, "": 3, "\x1b[2J": 4, "x" * 600: 5, "\ud800": 6},
}


@pytest.mark.parametrize("key", ["state_dict", "model", "weights", "anything"])
def test_the_state_dict_of_a_checkpoint_is_found(key: str, file: Path) -> None:
    pack(file, {**OTHERS, key: W}, ONE)
    assert read_state_dict(file)["w"].tolist() == [1.5]
    assert list(read_state_dict(file, key=key)) == ["w"]


def test_a_state_dict_may_be_one_deeper_and_have_one_key(file: Path) -> None:
    pack(file, {**OTHERS, "model": {"state_dict": W, "version": 2}}, ONE)
    assert list(read_state_dict(file)) == ["w"]
    assert list(read_state_dict(file, "model.state_dict")) == ["w"]
    refused(file, "expected a state dict under 'model'; it is a dict", "model.state_dict",
            key="model")  # fmt: skip


def test_the_only_usual_name_wins_and_otherwise_a_key_chooses(file: Path) -> None:
    pack(file, {"rngs": {"cpu": W["w"]}, "net": W}, ONE)
    assert list(read_state_dict(file)) == ["w"]
    pack(file, {"model": W, "model_ema": {"e": W["w"]}, "epoch": 1}, ONE)
    refused(file, "holds 2 state dicts: model, model_ema. Choose one by its key, such as key=")
    assert list(read_state_dict(file, key="model_ema")) == ["e"]
    refused(file, "there is no such key. Did you mean 'model_ema'?", key="model_emma")
    refused(file, "expected a state dict under 'epoch'; it is a int", key="epoch")
    pack(file, W, ONE)
    refused(file, "is a state dict itself: there is no key 'model' to choose", key="model")


def test_what_wraps_a_model_leaves_no_trace_in_the_keys(file: Path) -> None:
    w = W["w"]
    for keys, expected in {
        ("module.a.w", "module.b"): ["a.w", "b"],
        ("_orig_mod.module.a",): ["a"],
        ("module._orig_mod.a",): ["a"],
        ("module.a", "n_averaged"): ["module.a", "n_averaged"],
        ("module.",): ["module."],
        ("modules.a",): ["modules.a"],
    }.items():
        assert list(read_state_dict(pack(file, dict.fromkeys(keys, w), ONE))) == expected


MODULE = name("my.Net") + b")\x81" + steps({"_modules": {}, "training": True}) + b"b"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (MODULE, "a whole model (my.Net), not its weights"),
        ({"model": MODULE, "epoch": 1}, "it holds model (my.Net), epoch (int)"),
        ({}, "no state dict in it: it is empty"),
        ({"epoch": 1}, "no state dict in it: it holds epoch (int)"),
        ({**W, "epoch": None}, "no state dict in it: it holds epoch (None), w (tensor)"),
        ({**W, 5: 1}, "a key that is no printable text (int)"),
        ([W], "expected a state dict, received a list"),
        (W["w"], "expected a state dict, received a tensor"),
        ({"q": call("torch._utils._rebuild_qtensor", 1)}, "q: expected a plain dense tensor, rece"),
        ({"q": tensor("0", (4,), kind="torch.QInt8Storage")}, "q: holds a torch.QInt8Storage"),
        ({"q": call("torch._utils._rebuild_tensor_v2", storage("0", 1), 0, (1,), (1,), False, None,
                    {"conj": True})}, "received a lazily conjugated"),
        ({"q": call("torch._utils._rebuild_tensor_v3", storage("0", 1), 0, (1,), (1,), False, None,
                    name("torch.quint4x2"))}, "q: has the unknown dtype quint4x2"),
        ({"q": tensor("0", (4,), kind="torch.storage.UntypedStorage")}, "q: its dtype is not told"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_state_dict_is_told_with_the_way_out(found: Any, said: str, file: Path) -> None:
    refused(pack(file, found, ONE), said)


def test_other_files_are_told_with_the_way_out(file: Path, tmp_path: Path) -> None:
    save = "torch.save(model.state_dict(), 'weights.pt')"
    refused(file, "there is no such weights file")
    refused(tmp_path, "is no regular file")
    pack(file, MODULE, ONE, **{"constants.pkl": b"", "code/__torch__.py": b""})
    refused(file, "a TorchScript archive", "torch.save(torch.jit.load('model.pt').state_dict()")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")
    refused(file, "a zip archive, but not one of torch.save: no data.pkl in it", save)
    with zipfile.ZipFile(file, "w"):
        pass
    refused(file, "no data.pkl in it")
    with tarfile.open(file, "w") as tar:
        tar.addfile(tarfile.TarInfo("sys_info"))
    refused(file, "a tar archive; if PyTorch before 0.1.10 wrote it", save)
    for content in (b"", b"<!DOCTYPE html>", b"\x89HDF\r\n\x1a\n", b"\x1b[2J" * 100):
        file.write_bytes(content)
        refused(file, "expected a PyTorch checkpoint", save)
    file.write_bytes(pickle.dumps({"w": np.zeros(2)}, protocol=4))
    refused(file, "a pickle, but not one of torch.save", save)
    pack(file, W, ONE, byteorder=b"big")
    refused(file, "big-endian", save)
    pack(file, W, ONE, way=zipfile.ZIP_DEFLATED)
    refused(file, "in it is compressed, which torch.save never does", save)


# ---------------------------------------------------------------------------- strangers


@pytest.mark.parametrize(
    "program",
    [
        call("os.system", "touch evil"),
        call("builtins.exec", "open('evil', 'w')"),
        b"\x8c\x02os\x8c\x06system\x93" + steps(("touch evil",)) + b"R",
        name("subprocess.Popen") + steps((["touch", "evil"],)) + b"\x81",
        name("evil_module.Evil") + b")\x81" + steps({"a": 1}) + b"b",
        call("torch._tensor._rebuild_from_type_v2", name("os.system"), None, ("touch evil",), None),
    ],
    ids=range(6),
)
def test_nothing_is_run_nor_imported(
    program: bytes, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.syspath_prepend(file.parent)
    Path("evil_module.py").write_text("open('evil', 'w')")
    assert list(read_state_dict(pack(file, {"x": program, "model": W}, ONE))) == ["w"]
    refused(pack(file, {"x": program}, ONE), "no state dict in it")
    refused(pack(file, program, ONE), "expected a state dict, received a ")
    assert not Path("evil").exists()
    assert "evil_module" not in sys.modules


HUGE = 2**40
DEEP = b")" + b"\x85" * 10**5
LONG = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x00"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"w": tensor("0", (2,))}, "w: expected a storage of 8 bytes, received 4"),
        ({"w": tensor("0", (HUGE,))}, "w: expected a storage of 4,398,046,511,104 bytes, received"),
        ({"w": tensor("0", (HUGE,), count=1)}, "w: it reaches beyond its storage"),
        ({"w": tensor("0", (2,), (0,), count=1), "v": tensor("0", (HUGE,), (0,), count=1)},
         "its tensors take more than 67,108,864 bytes, the file itself"),
        ({f"w{i}": tensor("0", (10**6,), (0,), count=1) for i in range(20)}, "its tensors take"),
        ({"w": tensor("0", (1,), offset=1, count=1)}, "w: it reaches beyond its storage"),
        ({"w": tensor("0", (1,), offset=-1, count=1)}, "w: its shape, strides and offset"),
        ({"w": tensor("0", (2,), (-1,), offset=1, count=1)}, "w: its shape, strides and offset"),
        ({"w": tensor("0", (-1,), count=1)}, "w: its shape, strides and offset"),
        ({"w": tensor("0", (True,), (1,), count=1)}, "w: its shape, strides and offset"),
        ({"w": tensor("0", (1.0,), (1,), count=1)}, "w: its shape, strides and offset"),
        ({"w": tensor("0", (2**500, 0), (1, 1), count=1)}, "w: its shape, strides and offset"),
        ({"w": tensor("0", (0, 2**47, 2**47), (1, 1, 1), count=1)}, "cannot be read"),
        ({"w": tensor("0", (1,), (1, 1), count=1)}, "w: its shape and strides do not"),
        ({"w": tensor("0", "ab", (1, 1), count=1)}, "w: its shape and strides do not"),
        ({"w": tensor("0", (1,) * 65, count=1)}, "w: it has more than 64 dimensions"),
        ({"w": tensor("0", (1,), count=-1)}, "w: its shape, strides and offset"),
        ({"w": tensor("0", (1,), count="1")}, "it names no storage"),
        ({"w": tensor("1", (1,))}, "w: incomplete: no data/1 in the archive"),
        ({"w": tensor("../data.pkl", (1,))}, "w: incomplete: no data/../data.pkl"),
        ({"w": tensor(0, (1,))}, "it names no storage"),
        ({"w": tensor("\x1b[2J", (1,))}, "it names no storage"),
        ({"w": tensor("0", (1,), kind="os.system")}, "w: holds a os.system; expected tensors of"),
        (b"}q\x00(" + steps("a") + b"h\x00u", "no state dict in it: it holds a (dict)"),
        (b"]q\x00h\x00a", "received a list"),
        (b"}(" + DEEP + b"Nu", "a key that is no printable text"),
        ({"a": DEEP}, "no state dict in it"),
        (b"]" + b"]a" * 10**5, "received a list"),
        (b"(" * 10**5, "cannot be read"),
        (b"}" + LONG + b"h\x00h\x00\x930" * 10**5, "a name that is too long"),
        # One dictionary of many entries, under many keys.
        (b"}q\x00(" + b"".join(steps(f"k{i}") + b"N" for i in range(10**4)) + b"u0}("
         + b"".join(steps(f"k{i}") + b"h\x00" for i in range(10**5)) + b"u", "no state dict in it"),
        (b"(" + b"N" * 10**5 + b"tq\x000}(" + b"".join(
            steps(f"w{i}") + name("torch._utils._rebuild_tensor_v2") + b"(" + storage("0", 1)
            + b"K\x00h\x00h\x00\x89NtR" for i in range(3000)) + b"u", "more than 64 dimensions"),
        (b"\x8e" + struct.pack("<Q", HUGE) + b"x", "cannot be read"),
        (b"\x96" + struct.pack("<Q", 2**63), "cannot be read"),
        (b"\x8b" + struct.pack("<i", 2**31 - 1), "cannot be read"),
        (b"I" + b"9" * 10**6 + b"\n", "cannot be read"),
        (b"P0\n", "no checkpoint needs PERSID"),
        (b"\x82\x01", "no checkpoint needs EXT1"),
        (b"(S'x'\nios\nsystem\n", "no checkpoint needs"),
        (b"0", "cannot be read"),
    ],
    ids=range(40),
)  # fmt: skip
def test_a_hostile_pickle_is_refused(found: Any, said: str, file: Path, bounded: None) -> None:
    refused(pack(file, found, ONE), said)


@pytest.mark.parametrize(
    "found",
    [
        b"](" + b"N" * 10_001 + b"e",
        # A list of a hundred pairs, two hundred times.
        b"](" + b"(K\x01K\x02t" * 100 + b"eq\x00" + name("collections.OrderedDict") + b"q\x010"
        + b"h\x01h\x00\x85R0" * 200,
    ],
    ids=["endless", "repeated"],
)  # fmt: skip
def test_steps_are_counted_and_what_they_copy_too(
    found: bytes, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_files, "MAX_STEPS", 10_000)
    refused(pack(file, found, ONE), "no checkpoint needs so many steps")


def test_records_cannot_claim_more_than_the_file_holds(file: Path, bounded: None) -> None:
    pack(file, {"w": tensor("0", (2**28,))}, ONE)
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"x/data/0"))
    content[at + 20 : at + 28] = struct.pack("<II", 2**30, 2**30)
    file.write_bytes(content)
    refused(file, "data/0 claims to be larger than the file")


def test_a_list_of_records_that_would_take_long_is_not_read(file: Path, bounded: None) -> None:
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 2**24, 4, 0)
    entry = b"PK\1\2" + b"\0" * 42
    file.write_bytes(b"PK\3\4" + entry * (2**24 // len(entry)) + b"\0" * (2**24 % 46) + end)
    refused(file, "the list of its contents is too long")


def test_records_that_overlap_are_not_read_again_and_again(file: Path, bounded: None) -> None:
    found = {f"w{i}": tensor(str(i), (2**18,)) for i in range(200)}
    pack(file, found, {str(i): b"" if i else bytes(2**20) for i in range(200)})
    content = bytearray(file.read_bytes())
    at, first = content.index(b"PK\x01\x02"), None
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        first = first or bytes(content[at + 16 : at + 28])  # sums and sizes
        content[at + 16 : at + 28] = first
    file.write_bytes(content)
    refused(file, "its tensors take more than 67,108,864 bytes")


def test_pipes_are_not_waited_for(file: Path, bounded: None) -> None:
    os.mkfifo(file)
    refused(file, "is no regular file")


def small(file: Path) -> bytes:
    """A checkpoint with some of everything."""
    found = {**OTHERS, "model": {"w": tensor("0", (2, 3)), "b": tensor("1", (2,), (2,), 1, 4)}}
    pack(file, found, {"0": bytes(24), "1": bytes(16)}, byteorder=b"little", version=b"3\n")
    return file.read_bytes()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("older", [False, True], ids=["zip", "older"])
def test_any_flipped_byte_or_cut_is_read_or_refused(older: bool, file: Path, bounded: None) -> None:
    content = legacy(W, ["0"], struct.pack("<q", 1) + floats(1.5)) if older else small(file)
    chance = random.Random(5)
    refusals = 0
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 2, 8])):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        cut = chance.randrange(len(changed)) if chance.random() < 0.2 else None
        file.write_bytes(changed[:cut])
        said = bounds.reason(lambda: read_state_dict(file))
        assert said.startswith(str(file)) or not said
        assert said.isprintable()
        assert len(said) < 2000
        refusals += bool(said)
    assert refusals > 50


@settings(
    max_examples=70, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@given(start=st.integers(0, 1500), replacement=st.binary(max_size=12), length=st.integers(0, 12))
def test_any_change_of_the_pickle_alone_is_read_or_refused(
    start: int, replacement: bytes, length: int, file: Path
) -> None:
    small(file)
    with zipfile.ZipFile(file) as archive:
        content = archive.read("x/data.pkl")
    assert len(content) > 1000
    changed = content[2:start] + replacement + content[start + length : -1]
    said = bounds.reason(
        lambda: read_state_dict(pack(file, changed, {"0": bytes(24), "1": bytes(16)}))
    )
    assert said.startswith(str(file)) or not said
    assert said.isprintable()


# ---------------------------------------------------------------------------- writing

ARRAYS = st.sampled_from(NAMES).flatmap(
    lambda dtype: arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4).flatmap(
        lambda shape: st.binary(
            min_size=(n := math.prod(shape) * DTYPES[dtype].itemsize), max_size=n
        ).map(
            lambda raw: np.frombuffer(
                bytes(b & 1 for b in raw) if dtype == "bool" else raw, DTYPES[dtype]
            ).reshape(shape)
        )
    )
)
KEYS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether two arrays are equal bit by bit."""
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


@settings(
    max_examples=70, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(arrays=st.dictionaries(KEYS.map(lambda k: f"layer.{k}"), ARRAYS, min_size=1, max_size=4))
def test_what_is_written_is_read_back_bit_by_bit(arrays: dict[str, np.ndarray], file: Path) -> None:
    write_state_dict(arrays, file)
    found = read_state_dict(file)
    assert list(found) == list(arrays)
    assert all(same(found[key], arrays[key]) for key in arrays)


def test_a_file_is_laid_out_as_pytorch_does_it_and_the_same_each_time(file: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3).T, "b": np.array(7, ">i4"),
        "c": np.zeros((3, 0), np.float16), "d": np.ones(300, bool)[::-2],
    }  # fmt: skip
    write_state_dict(arrays, file)
    content = file.read_bytes()
    again = file.with_name("other.pt")
    write_state_dict(arrays, again)
    assert again.read_bytes() == content
    found = read_state_dict(file)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)
    with zipfile.ZipFile(file) as archive:
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        for info in archive.infolist():
            lengths = struct.unpack_from("<HH", content, info.header_offset + 26)
            assert (info.header_offset + 30 + sum(lengths)) % 64 == 0
            assert info.compress_type == zipfile.ZIP_STORED
        assert pickled_names(archive.read("archive/data.pkl")) <= {
            "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch DoubleStorage",
            "torch IntStorage", "torch HalfStorage", "torch BoolStorage",
        }  # fmt: skip


def pickled_names(content: bytes) -> set[str]:
    return {argument for step, argument, _ in pickletools.genops(content) if step.name == "GLOBAL"}


def test_what_pytorch_cannot_hold_is_refused_and_nothing_is_written(file: Path) -> None:
    for array in (np.array(["a"]), np.array([None]), np.zeros(2, "f2,f4"), np.zeros(1, "g")):
        with pytest.raises(BadInputError, match=r"weights.pt: w: PyTorch has no dtype"):
            write_state_dict({"w": array}, file)
    for key in ("", "a\nb", "x" * 501, 5):
        with pytest.raises(BadInputError, match="expected keys that are printable texts"):
            write_state_dict({key: np.zeros(1)}, file)  # type: ignore[dict-item]
    assert not list(file.parent.iterdir())


def test_an_older_file_survives_a_full_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state_dict({"w": np.zeros(3)}, file)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(EnvironmentFaultError, match="No space left"):
        write_state_dict({"w": np.ones(3)}, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


# ---------------------------------------------------------------------------- with PyTorch


@needs_torch
def test_pytorch_reads_what_is_written(file: Path) -> None:
    import torch

    shapes = [(), (0,), (3,), (2, 3, 4)]
    arrays = {
        f"{dtype}.{len(shape)}": (np.arange(math.prod(shape)) % 7).reshape(shape).astype(kind)
        for dtype, kind in DTYPES.items()
        for shape in shapes
    }
    write_state_dict(arrays, file)
    for mapped in (False, True):
        found = torch.load(file, weights_only=True, mmap=mapped)
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            value = found[key]
            assert str(value.dtype) == f"torch.{key.partition('.')[0]}"
            assert tuple(value.shape) == array.shape
            assert value.is_contiguous()
            raw = value.reshape(-1).view(torch.uint8).numpy().tobytes() if array.size else b""
            assert raw == array.tobytes()


@needs_torch
@pytest.mark.parametrize("way", [{}, {"pickle_protocol": 5},
                                 {"_use_new_zipfile_serialization": False}])  # fmt: skip
def test_what_pytorch_writes_is_read(way: dict[str, Any], file: Path) -> None:
    import argparse

    import torch

    torch.manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    more = torch.randn(5, 6)
    expected = dict(net.state_dict()) | {
        "parameter": net[3].weight, "view": more[1:4, ::2].t(), "tied": more, "half": more.half(),
        "brain": more.bfloat16(), "one": torch.tensor(3.0).expand(2, 2), "yes": more > 0,
    }  # fmt: skip
    checkpoint = {
        "args": argparse.Namespace(lr=0.1, path=Path("x"), tags={1, 2}), "model": expected,
        "optimizer": optimizer.state_dict(), "epoch": 3, "size": more.shape, "device": more.device,
        "rng": torch.get_rng_state(), "numpy": np.random.RandomState(1).get_state(),
    }  # fmt: skip
    torch.save(checkpoint, file, **way)
    found = read_state_dict(file)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert str(value.dtype) == f"torch.{found[key].dtype}"
        wide = value.detach().to(torch.float64).numpy()
        np.testing.assert_array_equal(found[key].astype(np.float64), wide, strict=True)
    torch.save(net, file, **way)
    refused(file, "a whole model (torch.nn.modules.container.Sequential)")


@needs_torch
def test_torchscript_and_compressed_tensors_of_pytorch_are_refused(file: Path) -> None:
    import torch

    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(file))
    refused(file, "a TorchScript archive")
    for value in (
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64).conj(),
    ):
        torch.save({"w": value}, file)
        refused(file, "w: expected a plain dense tensor")
