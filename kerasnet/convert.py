"""Weights in and out: kerasnet's own files, PyTorch's, and Keras's.

kerasnet's are safetensors keyed `layer/variable`: Keras's own `.weights.h5` is keyed by class and
order, so that a fast layer could not read a stock layer's file. Whatever a file's format, reading
it executes nothing in it, and only writing Keras's formats needs Keras.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kerasnet import keys as torch_keys
from kerasnet import schema
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import checked, write_atomically

if TYPE_CHECKING:
    import keras

    from kerasnet.keys import Slots
    from kerasnet.plan import Plan, Shape

Arrays = dict[str, np.ndarray[Any, Any]]

CLASSIFIER = "head_logits"
# What a checkpoint's arrays are called beside those of weights.
OPTIMIZER = "optimizer"
TORCH = (".pt", ".pth", ".ckpt")
SAFETENSORS = ".safetensors"
H5, KERAS = ".weights.h5", ".keras"
FORMATS = (*TORCH, SAFETENSORS, H5, KERAS)

# Whose keys a file has that has none of a style.
_OWN_KEYS = {SAFETENSORS: "kerasnet", H5: "keras", KERAS: "keras"}
_MOST_SHOWN = 50
_MOST_COMPARED = 300
_T = TypeVar("_T")


def weight_variables(model: keras.Model) -> dict[str, Any]:
    """Return a model's weights by `layer/variable`; random generators' states are none."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.weights
        if not variable.path.startswith("seed_generator") and "seed" not in variable.name
    }


def save_weights(
    model: keras.Model, file: str | os.PathLike[str], metadata: dict[str, Any] | None = None
) -> None:
    """Write a model's weights atomically.

    Args:
        model: any model whose layers have unique names.
        file: ends in `.safetensors`.
        metadata: stored in the file's header as JSON, by key.

    Raises:
        EnvironmentFaultError: the file cannot be written; an older one is left as it was.
    """
    arrays = {
        key: np.ascontiguousarray(np.asarray(variable.numpy()))
        for key, variable in weight_variables(model).items()
    }
    save_arrays(arrays, file, metadata)


def save_arrays(
    arrays: dict[str, np.ndarray[Any, Any]],
    file: str | os.PathLike[str],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write named arrays as `save_weights` does."""
    from safetensors.numpy import save

    header = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    if header.get("format") == '"pt"':
        header["format"] = "pt"  # PyTorch's programs look for this very text
    write_atomically(Path(file), save(arrays, metadata=header))


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a file: its shape, and a way to read it."""

    shape: Shape
    read: Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class _Content:
    """What a file holds. Metadata are a safetensors header's, read as JSON."""

    tensors: Mapping[str, _Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        return {key: tensor.shape for key, tensor in self.tensors.items()}


def format_of(file: str | os.PathLike[str]) -> str:
    """Return the one of `FORMATS` that a file's name ends in.

    Raises:
        BadInputError: it ends in none.
    """
    name = Path(file).name
    for suffix in FORMATS:
        if name.endswith(suffix) and name != suffix:
            return suffix
    hint = f". Keras's weights end in {H5}" if name.endswith(".h5") else ""
    raise BadInputError(
        f"{file}: expected a weights file whose name ends in {', '.join(FORMATS)}; received "
        f"'{Path(file).suffix or name}'{hint}"
    )


@contextlib.contextmanager
def _opened(
    file: str | os.PathLike[str], plan: Plan | None, state_dict: str | None = None
) -> Iterator[_Content]:
    """Open a weights file of any format, every failure a BadInputError."""
    path = Path(file)
    if not path.is_file():
        raise BadInputError(f"{file}: there is no such weights file")
    kind = format_of(file)
    if kind in TORCH:
        yield _torch_content(path, state_dict)
    elif kind == SAFETENSORS:
        with _opened_safetensors(path) as content:
            yield content
    elif plan is None:
        raise BadInputError(f"{file}: only models that kerasnet built read {kind} files here")
    else:
        with _opened_h5(path, plan) as content:
            yield content


def _torch_content(path: Path, state_dict: str | None) -> _Content:
    from kerasnet.torch_files import read_state_dict

    arrays = read_state_dict(path, state_dict)
    return _Content({k: _Tensor(a.shape, partial(_same, a)) for k, a in arrays.items()})


def _same(value: _T) -> _T:
    return value


@contextlib.contextmanager
def _opened_safetensors(path: Path) -> Iterator[_Content]:
    # With it, NumPy knows bfloat16.
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            names = list(opened.keys())
            if any(name.startswith(f"{OPTIMIZER}/") for name in names):
                last = path.with_name("last.safetensors")
                beside = f" ({last})" if last.is_file() else ""
                raise BadInputError(
                    f"{path}: is the whole state of a run, for kerasnet fit --resume; its weights "
                    f"alone are in last.safetensors of the same folder{beside}"
                )
            yield _Content(
                {k: _Tensor(tuple(opened.get_slice(k).get_shape()), partial(opened.get_tensor, k))
                 for k in names},
                {key: _json(value) for key, value in (opened.metadata() or {}).items()},
            )  # fmt: skip
    except (SafetensorError, OSError, TypeError) as error:
        raise BadInputError(f"{path}: not a readable safetensors file: {error}") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # other programs store plain text in the header


@contextlib.contextmanager
def _opened_h5(path: Path, plan: Plan) -> Iterator[_Content]:
    """Open a `.weights.h5` file, or the one inside a `.keras` file.

    Keras keys groups by class and order, but leaves each layer's name as an attribute.
    """
    import zipfile

    import h5py

    try:
        with contextlib.ExitStack() as stack:
            source: Any = path
            if path.name.endswith(KERAS):
                source = _h5_inside(stack.enter_context(zipfile.ZipFile(path)), plan)
            yield _Content(_h5_tensors(stack.enter_context(h5py.File(source, "r")), plan))
    except BadInputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, NotImplementedError,
            EOFError, zipfile.BadZipFile) as error:  # fmt: skip
        raise BadInputError(f"{path}: not a weights file that Keras wrote: {error}") from error


def _h5_inside(archive: Any, plan: Plan) -> Any:
    import io

    info = archive.getinfo("model.weights.h5")
    # Weights, an optimiser's two moments and an average, in float32; and what HDF5 adds.
    limit = 16 * plan.params["total"] + 2**26
    if info.file_size > limit:
        raise ValueError(f"its weights have {info.file_size:,} bytes, more than {limit:,}")
    return io.BytesIO(archive.read(info))


def _h5_tensors(file: Any, plan: Plan) -> dict[str, _Tensor]:
    import h5py

    variables: dict[str, list[str]] = {}
    for key in plan.variables():
        variables.setdefault(key.partition("/")[0], []).append(key)
    found: dict[str, _Tensor] = {}
    layers = _h5_child(file, "layers", h5py.Group)
    for group in layers or ():
        inside = _h5_child(layers, group, h5py.Group)
        held = _h5_child(inside, "vars", h5py.Group) if inside else None
        if held is None:
            continue
        for number in held:
            dataset = _h5_child(held, number, h5py.Dataset)
            if dataset is None or dataset.chunks or dataset.external or dataset.is_virtual:
                raise ValueError(f"{group}: expected arrays written one after the other")
            name = str(held.attrs.get("name", group))
            known = dict(enumerate(variables.get(name, ())))
            key = known.get(int(number), f"{name}/{number}")
            found[key] = _Tensor(tuple(dataset.shape), partial(dataset.__getitem__, ()))
    return found


def _h5_child(parent: Any, name: str, cls: Any) -> Any:
    """Return what an HDF5 group holds itself; links may lead to other files."""
    import h5py

    here = isinstance(parent.get(name, getlink=True), h5py.HardLink)
    child = parent[name] if here else None
    return child if isinstance(child, cls) else None


def read_arrays(
    file: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Return the arrays of a weights file by the file's own keys, and its metadata.

    Raises:
        BadInputError: the file is missing, truncated or of another kind.
    """
    with _opened(file, None) as content:
        return {key: tensor.read() for key, tensor in content.tensors.items()}, content.metadata


# ---------------------------------------------------------------------------- fitting to a model


@dataclass(frozen=True)
class _Match:
    """Which tensors of a file are a model's.

    Attributes:
        style: of the keys; None for kerasnet's own.
        keys: the file's key of each `layer/variable`.
        counters: the file's key of each norm layer's count of batches.
        problems: what is missing, left over, or of another shape.
    """

    style: str | None
    keys: Mapping[str, str]
    counters: Mapping[str, str]
    problems: list[str]


def _known_styles(plan: Plan | None) -> Mapping[str, schema.KeyStyle]:
    """Return the styles a model names, then the others of the built-in registry."""
    if plan is None:
        return {}
    from kerasnet.registry import load_registry

    return {**load_registry().key_styles, **plan.keys}


def _match(
    received: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    plan: Plan | None,
    styles: Mapping[str, schema.KeyStyle],
    reset_head: bool,
) -> _Match:
    """Find out how a file's tensors are keyed, and hold their shapes against the model's."""
    style = _style_of(received, expected, plan, styles)
    if plan is None or style is None:
        problems = _misfits(received, expected, _headless(expected), reset_head)
        return _Match(None, {key: key for key in _kept(expected, reset_head)}, {}, problems)
    slots = torch_keys.slots(plan, styles[style])
    there = {key: slot.shape for key, slot in slots.by_key.items()}
    body = {k: s for k, s in there.items() if slots.by_key[k].layer != CLASSIFIER}
    counters = {
        layer: f"{module}.{torch_keys.COUNTER}"
        for module, layer in slots.norms.items()
        if f"{module}.{torch_keys.COUNTER}" in received
    }
    weights = {key: shape for key, shape in received.items() if key not in counters.values()}
    problems = [f"key style '{style}' {problem}" for problem in slots.problems]
    problems += _misfits(weights, there, body, reset_head)
    wanted = body if reset_head else there
    return _Match(style, {slots.by_key[key].ours: key for key in wanted}, counters, problems)


def _style_of(
    received: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    plan: Plan | None,
    styles: Mapping[str, schema.KeyStyle],
) -> str | None:
    """Return the style that maps the most of a file's keys, None for kerasnet's own."""
    own = len(expected.keys() & received.keys())
    if plan is None or own == len(expected) or any("/" in key for key in received):
        return None
    # Of equals, the model's own come first.
    ordered = {**{name: styles[name] for name in plan.keys if name in styles}, **styles}
    found = torch_keys.detect(received, plan, ordered)
    return found or next(iter(plan.keys), None)


def _headless(named: Mapping[str, _T]) -> dict[str, _T]:
    """Return what does not belong to the classifier."""
    return {key: value for key, value in named.items() if not key.startswith(f"{CLASSIFIER}/")}


def _kept(named: Mapping[str, _T], reset_head: bool) -> Mapping[str, _T]:
    return _headless(named) if reset_head else named


def _misfits(
    received: Mapping[str, Shape], expected: Mapping[str, Shape], body: Mapping[str, Shape],
    reset_head: bool,
) -> list[str]:  # fmt: skip
    """Return `mismatches`, and the way out where the classifier alone is another.

    Args:
        received: the file's shapes by its keys.
        expected: the model's by the same keys.
        body: the model's without its classifier.
        reset_head: whether the classifier is left out.
    """
    head = expected.keys() - body.keys()
    headless = {key: shape for key, shape in received.items() if key not in head}
    if reset_head:
        return mismatches(headless, body)
    problems = mismatches(received, expected)
    if problems and not mismatches(headless, body):
        problems.append("all but the classifier fits: --reset-head begins it anew")
    return problems


def mismatches(
    received: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return what is missing, left over, or of another shape, with the nearest candidate."""
    missing = [key for key in expected if key not in received]
    left_over = [key for key in received if key not in expected]
    problems = [
        *(f"missing: {key}{_nearest(key, left_over, i)}" for i, key in enumerate(missing)),
        *(f"left over: {key}{_nearest(key, missing, i)}" for i, key in enumerate(left_over)),
    ]
    problems += [
        f"{key}: expected shape {tuple(shape)}, received {tuple(received[key])}"
        for key, shape in expected.items()
        if key in received and tuple(received[key]) != tuple(shape)
    ]
    return problems


def _nearest(key: str, candidates: list[str], number: int) -> str:
    # Comparing each of a thousand keys with a thousand others would take minutes.
    if number >= _MOST_SHOWN:
        return ""
    near = difflib.get_close_matches(key[:200], candidates[:_MOST_COMPARED], n=1)
    return f" (nearest: {near[0][:200]})" if near else ""


def _refuse(problems: list[str], file: str | os.PathLike[str], model: str) -> None:
    if problems:
        more = len(problems) - _MOST_SHOWN
        # The last may say the way out.
        shown = problems if more <= 0 else [*problems[:_MOST_SHOWN], f"… and {more} more"]
        raise BadInputError(f"{file} does not fit {model}:\n  " + "\n  ".join(shown))


def check_weights(plan: Plan, file: str | os.PathLike[str], *, reset_head: bool = False) -> None:
    """Hold a weights file's names and shapes against a plan, without Keras.

    Args:
        plan: the model's.
        file: of any of `FORMATS`.
        reset_head: leave out the classifier.

    Raises:
        BadInputError: as `load_weights`, but for values, which are not looked at.
    """
    with _opened(file, plan) as content:
        shapes = content.shapes
    found = _match(shapes, plan.variables(), plan, _known_styles(plan), reset_head)
    _refuse(found.problems, file, plan.name)


def load_weights(
    model: keras.Model, file: str | os.PathLike[str], *, reset_head: bool = False
) -> dict[str, Any]:
    """Set a model's weights from a file, all of them or none.

    Args:
        model: what `build` made; any other only reads kerasnet's own files.
        file: of any of `FORMATS`.
        reset_head: leave the classifier as it is, and what the file has for it unread.

    Returns:
        The file's metadata.

    Raises:
        BadInputError: something is missing, left over, of the wrong shape, or not finite.
    """
    plan = getattr(model, "plan", None)
    variables = weight_variables(model)
    expected = {key: tuple(variable.shape) for key, variable in variables.items()}
    found = _read(file, model.name, expected, plan, _known_styles(plan), reset_head)
    for key, array in found.arrays.items():
        variables[key].assign(array)
    return found.metadata


def metadata_of(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of a weights file, empty in formats that have none.

    Raises:
        BadInputError: it is no weights file.
    """
    if format_of(file) != SAFETENSORS:
        return {}
    with _opened(file, None) as content:
        return dict(content.metadata)


def inference_in(
    metadata: Mapping[str, Any], channels: int, file: str | os.PathLike[str]
) -> schema.Inference | None:
    """Return what a weights file's metadata say of its images and classes, None if nothing.

    Args:
        metadata: as `load_weights` returns them.
        channels: of the model's images.
        file: that they are from, for messages.

    Raises:
        BadInputError: they say what cannot be, or it is for images of other channels.
    """
    if "inference" not in metadata:
        return None
    what = "what weights say of their images"
    found = checked(schema.Inference, metadata["inference"], Path(file), what)
    if not len(found.mean) == len(found.std) == channels:
        raise BadInputError(
            f"{file}: was trained on images of {len(found.mean)} channels; these have {channels}"
        )
    return found


@dataclass(frozen=True)
class _Weights:
    """A model's weights as they were read, in float32.

    Attributes:
        arrays: by `layer/variable`.
        metadata: kerasnet's; `pytorch` holds what only PyTorch keeps.
        style: of the file's keys; None for kerasnet's own.
        cast: how many tensors had another dtype, by its name.
    """

    arrays: Arrays
    metadata: dict[str, Any]
    style: str | None
    cast: Mapping[str, int]


def _read(
    file: str | os.PathLike[str],
    model: str,
    expected: Mapping[str, Shape],
    plan: Plan | None,
    styles: Mapping[str, schema.KeyStyle],
    reset_head: bool,
    state_dict: str | None = None,
) -> _Weights:
    """Read a file whole, or raise a BadInputError that lists why it does not fit."""
    arrays: Arrays = {}
    cast: Counter[str] = Counter()
    problems: list[str] = []
    with _opened(file, plan, state_dict) as content:
        found = _match(content.shapes, expected, plan, styles, reset_head)
        _refuse(found.problems, file, model)
        metadata = dict(content.metadata)
        for ours, key in found.keys.items():
            array, dtype, problem = _float32(content.tensors[key].read())
            problems += [f"{key}: {problem}"] if problem else []
            cast[dtype] += 1
            if found.style is not None and plan is not None:
                array = torch_keys.from_torch(array, plan, *ours.split("/"))
            arrays[ours] = array
        counts = {layer: content.tensors[key].read() for layer, key in found.counters.items()}
    problems += [
        f"{found.counters[layer]}: expected one whole number"
        for layer, count in counts.items()
        if count.size != 1 or count.dtype.kind not in "iu"
    ]
    _refuse(problems, file, model)
    del cast["float32"]
    if found.style is not None:
        metadata.pop("format", None)
        kept = {layer: int(count.item()) for layer, count in counts.items()}
        metadata["pytorch"] = {"keys": found.style, torch_keys.COUNTER: kept}
    return _Weights(arrays, metadata, found.style, cast)


def _float32(array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str, str]:
    """Return an array in float32, the name of its dtype, and what is wrong with it."""
    dtype = array.dtype.name
    if array.dtype.kind != "f" and dtype != "bfloat16":
        return array, dtype, f"expected floating-point numbers, received {dtype}"
    with np.errstate(over="ignore"):
        made = np.asarray(array, "float32")
    wrong = "" if np.isfinite(made).all() else "has values that are not finite"
    if wrong and np.isfinite(array).all():
        wrong = "has values too large for float32"
    return made, dtype, wrong


# ---------------------------------------------------------------------------- converting


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    plan: Plan,
    styles: Mapping[str, schema.KeyStyle],
    *,
    keys: str | None = None,
    reset_head: bool = False,
    state_dict: str | None = None,
) -> dict[str, Any]:
    """Write a model's weights in another format; the formats are told by the files' names.

    Args:
        source: the file to read.
        out: the file to write.
        plan: the model's.
        styles: the key styles there are, by name.
        keys: the style to write in; for PyTorch's formats the one the weights came in if not given,
            or else the first that the model names; for safetensors kerasnet's own keys.
        reset_head: write the classifier's initial values (of seed 0) instead of the file's.
        state_dict: key of the state dict to read, in a PyTorch checkpoint that holds several.

    Returns:
        What was done: `input_keys`, `output_keys`, `tensors`, `parameters`, `cast` (tensors by the
        dtype that became float32) and `reset` (layers).

    Raises:
        BadInputError: a name ends in no known format, or the file does not fit the model.
        EnvironmentFaultError: the file cannot be written; an older one is left as it was.
    """
    kind = _check_out(out, keys, styles)
    if state_dict is not None and format_of(source) not in TORCH:
        raise BadInputError(f"--state-dict is for {', '.join(TORCH)} files, not for {source}")
    weights = _read(source, plan.name, plan.variables(), plan, styles, reset_head, state_dict)
    arrays, metadata = weights.arrays, {"model": plan.name, **weights.metadata}
    if reset_head:
        arrays = {**arrays, **_initial_head(plan)}
        metadata.pop("inference", None)  # its class names are those of the file's own head
    style = keys
    if style is None and kind in TORCH:
        style = _style_to_write(metadata, plan, styles)
    if style is not None:
        _write_torch(out, kind, arrays, plan, styles[style], style, metadata)
    elif kind == SAFETENSORS:
        save_arrays({key: arrays[key] for key in plan.variables()}, out, metadata)
    else:
        _write_keras(out, kind, arrays, plan)
    return {
        "model": plan.name,
        "input": os.fspath(source),
        "input_keys": weights.style or _OWN_KEYS.get(format_of(source), "kerasnet"),
        "output": os.fspath(out),
        "output_keys": style or _OWN_KEYS[kind],
        "tensors": len(arrays),
        "parameters": sum(array.size for array in arrays.values()),
        "cast": dict(weights.cast),
        "reset": [CLASSIFIER] if reset_head else [],
    }


def _check_out(
    out: str | os.PathLike[str], keys: str | None, styles: Mapping[str, schema.KeyStyle]
) -> str:
    """Return the format to write, having checked what can be before anything is read."""
    kind = format_of(out)
    if Path(out).is_dir():
        raise BadInputError(f"{out}: is a folder; choose a file with --out")
    if keys is not None and keys not in styles:
        raise BadInputError(f"there is no key style '{keys}'. {did_you_mean(keys, styles)}")
    if keys is not None and kind in (H5, KERAS):
        raise BadInputError(f"--keys names PyTorch's keys; {kind} files have Keras's own")
    return kind


def _style_to_write(
    metadata: Mapping[str, Any], plan: Plan, styles: Mapping[str, schema.KeyStyle]
) -> str:
    extras = metadata.get("pytorch")
    came_in = extras.get("keys") if isinstance(extras, dict) else None
    if isinstance(came_in, str) and came_in in styles:
        return came_in
    if plan.keys:
        return next(iter(plan.keys))
    fit = [name for name, style in styles.items() if not torch_keys.slots(plan, style).problems]
    way_out = (
        f"Those that fit: {', '.join(fit)}" if fit else "None of those here fits; add your own"
    )
    raise BadInputError(
        f"{plan.name} names no key style in the registry; choose one with --keys. {way_out}"
    )


def _write_torch(
    out: str | os.PathLike[str],
    kind: str,
    arrays: Arrays,
    plan: Plan,
    style: schema.KeyStyle,
    name: str,
    metadata: Mapping[str, Any],
) -> None:
    """Write a state dict, its tensors in the order of the plan."""
    slots = torch_keys.slots(plan, style)
    _refuse([f"key style '{name}' {problem}" for problem in slots.problems], out, plan.name)
    found = _state_dict(arrays, plan, slots, metadata.get("pytorch"))
    if kind == SAFETENSORS:
        kept = {key: value for key, value in metadata.items() if key not in ("pytorch", "format")}
        save_arrays(found, out, {"format": "pt", **kept})
    else:
        from kerasnet.torch_files import write_state_dict

        write_state_dict(found, out)


def _state_dict(arrays: Arrays, plan: Plan, slots: Slots, extras: Any) -> Arrays:
    """Return PyTorch's tensors by its keys, each norm's count of batches after its variance."""
    counts = extras.get(torch_keys.COUNTER) if isinstance(extras, dict) else None
    known: dict[str, Any] = counts if isinstance(counts, dict) else dict.fromkeys(
        slots.norms.values(), 0
    )  # fmt: skip
    found: Arrays = {}
    for key, slot in slots.by_key.items():
        array = arrays[slot.ours]
        found[key] = torch_keys.to_torch(array, plan, slot.layer, slot.variable, slot.as_conv)
        count = known.get(slot.layer)
        if slot.variable == "moving_variance" and count is not None:
            module = key.rpartition(".")[0]
            found[f"{module}.{torch_keys.COUNTER}"] = _count(count, slot.layer)
    return found


def _count(value: Any, layer: str) -> np.ndarray[Any, Any]:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise BadInputError(
            f"the file's metadata: {torch_keys.COUNTER} of {layer}: expected a whole number, "
            f"received {value!r:.60}"
        )
    return np.array(value, "int64")


def _initial_head(plan: Plan) -> Arrays:
    """Return the classifier's values as `build(plan, seed=0)` would give them."""
    from kerasnet import backend

    backend.load()
    from kerasnet.build import options

    made = options(plan.layer(CLASSIFIER), 0)
    return {
        key: np.asarray(made[f"{key.partition('/')[2]}_initializer"](shape, "float32"))
        for key, shape in plan.variables().items()
        if key.startswith(f"{CLASSIFIER}/")
    }


def _write_keras(out: str | os.PathLike[str], kind: str, arrays: Arrays, plan: Plan) -> None:
    """Write Keras's own formats from the stock build, so that plain Keras reads them."""
    from kerasnet import backend

    backend.load()
    from kerasnet.build import build

    model = build(plan, seed=0)
    for key, variable in weight_variables(model).items():
        variable.assign(arrays[key])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{kind}"
        write = model.save_weights if kind == H5 else model.save
        write(file)
        write_atomically(Path(out), file.read_bytes())
