"""Registries: strict loading, `extends`, and what a wrong one says."""

from __future__ import annotations

import math
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasnet import registry as registries
from kerasnet.cli import main
from kerasnet.document import DocumentError, parse
from kerasnet.errors import BadInputError
from kerasnet.registry import load_registry, merge

MODEL = """\
models:
  tiny:
    input: [8, 8, 3]
    stem:
      - conv: {filters: 4, kernel: 3}
    stages:
      - {block: basic, width: 4}
    head: [global_avg_pool, {dense: classes}]
"""


def text(broken: str) -> bytes:
    return textwrap.dedent(broken).encode()


# kind → (file content, line, column, what the message must contain)
BROKEN: dict[str, tuple[bytes, int, int, str]] = {
    "unknown key": (
        MODEL.replace("width:", "widht:").encode(), 7, 24,
        "unknown key 'widht'. Did you mean 'width'",
    ),
    "unknown section": (b"modles: {}\n", 1, 1, "Did you mean 'models'?"),
    "missing key": (
        MODEL.replace("    input: [8, 8, 3]\n", "").encode(), 2, 3, "'input' is missing",
    ),
    "several missing keys": (
        text("recipes:\n  r: {epochs: 1}\n"), 2, 3,
        "the keys 'batch_size', 'optimizer' are missing; `extends: NAME` begins with another",
    ),
    "another name for a type": (
        text("recipes:\n  r: {extends: small, optimizer: {type: adamw}}\n"), 2, 35,
        "expected 'sgd', 'adam', received 'adamw' (text). Did you mean 'adam'?",
    ),
    "a type that is nothing": (
        text("recipes:\n  r: {extends: small, schedule: {type: null}}\n"), 2, 34,
        "'one_cycle', received nothing",
    ),
    "true for a mapping": (
        text("recipes:\n  r: {extends: small, augment: {crop: true}}\n"), 2, 33,
        "expected a mapping of padding, mode, received True (true/false)",
    ),
    "a list that is too short": (
        MODEL.replace("[8, 8, 3]", "[8, 8]").encode(), 3, 5,
        "expected at least 3 items, received [8, 8] (list)",
    ),
    "wrong type": (MODEL.replace("width: 4", "width: wide").encode(), 7, 24, "'wide' (text)"),
    "float for a whole number": (MODEL.replace("width: 4", "width: 4.5").encode(), 7, 24, "4.5"),
    "text for true/false": (
        text("norms:\n  n: {type: batch_norm, center: no}\n"), 2, 25, "received 'no' (text)",
    ),
    "duplicate key": (MODEL.encode() + b"    input: [8, 8, 3]\n", 9, 5, "first given on line 3"),
    "cycle in extends": (
        text("blocks:\n  a: {extends: b}\n  b: {extends: a}\n"), 3, 7, "circle: a → b → a",
    ),
    "extends nothing": (text("blocks:\n  a: {extends: basik}\n"), 2, 7, "Did you mean 'basic'?"),
    "shape that goes to zero": (
        MODEL.replace("head:", "neck: [max_pool: 16]\n    head:").encode(), 8, 12, "goes to zero",
    ),
    "negative stride": (
        MODEL.replace("width: 4}", "width: 4, stride: -2}").encode(), 7, 34, "received -2",
    ),
    "stride nobody takes": (
        MODEL.replace("block: basic, width: 4", "block: b, width: 4, stride: 2").encode()
        + b"blocks:\n  b: {convs: [{kernel: 3}]}\n", 7, 9, "takes_stride: true",
    ),
    "unknown block": (MODEL.replace("basic", "bassic").encode(), 7, 10, "Did you mean 'basic'?"),
    "unknown recipe": (
        MODEL.encode() + b'    recipes: {"*": defualt}\n', 9, 15, "Did you mean 'default'?",
    ),
    "unknown layer": (MODEL.replace("conv:", "convolve:").encode(), 5, 9, "layers are conv, norm"),
    "unknown activation": (
        MODEL.replace("    head", "    defaults: {act: relo}\n    head").encode(), 8, 16,
        "Did you mean 'relu'?",
    ),
    "dense without flatten": (
        MODEL.replace("[global_avg_pool, {dense: classes}]", "[{dense: classes}]").encode(), 8, 12,
        "needs a flat input",
    ),
    "branch and shortcut of two shapes": (
        MODEL.replace("block: basic, width: 4", "block: i, width: 8").encode()
        + b"blocks:\n  i: {convs: [{kernel: 3}], shortcut: identity}\n", 7, 9, "cannot be added",
    ),
    "filters that are no formula": (
        text("blocks:\n  b: {convs: [{kernel: 3, filters: 4 + width}]}\n"), 2, 27, "4 * width",
    ),
    "expectation that does not hold": (
        MODEL.encode() + b"    expect: {trainable: 1}\n", 9, 5, "`trainable` is",
    ),
    "no classifier": (MODEL.replace(", {dense: classes}", "").encode(), 2, 3, "end in `dense"),
    "two classifiers": (
        MODEL.replace("    head", "    neck: [flatten, {dense: classes}]\n    head").encode(), 2, 3,
        "the model's only one",
    ),
    "unknown norm of a block": (
        text("blocks:\n  b: {convs: [{kernel: 3, norm: bnn}]}\n"), 2, 27, "Did you mean 'bn'?",
    ),
    "name that is a path": (MODEL.replace("tiny:", "../tiny:").encode(), 2, 3, "expected a name"),
    "number beyond 64 bits": (
        MODEL.replace("width: 4", "width: " + "9" * 5000).encode(), 7, 31, "not a number",
    ),
    "mean that is no number": (
        text("datasets:\n  d: {source: {type: digits}, mean: [.nan], std: [1.0]}\n"), 2, 38,
        "finite",
    ),
    "tabs": (b"models:\n\ttiny: {}\n", 2, 1, "spaces, not tabs"),
    "not YAML": (b"models: {a: [1, 2}\n", 1, 18, "not YAML"),
    "empty": (b"", 1, 1, "empty"),
    "only a comment": (b"# nothing\n", 1, 1, "empty"),
    "a list": (b"- 1\n- 2\n", 1, 1, "expected a mapping"),
    "binary": (b"models:\n  \xff\xfe\x00\x01", 2, 3, "not a text file"),
    "control character": (b"models:\n  a\x00: 1\n", 2, 4, "not YAML"),
    "alias": (text("blocks: &a {}\nmodels: *a\n"), 1, 9, "aliases"),
    "tag": (b"models: !!python/object:os.system {}\n", 1, 9, "tags such as"),
    "two documents": (b"models: {}\n---\nmodels: {}\n", 2, 1, "not YAML"),
    "deep nesting": (b"models: " + b"[" * 5000 + b"]" * 5000, 1, 59, "levels deep"),
    "absurd size": (MODEL.replace("width: 4", "width: 999999").encode(), 7, 24, "65536"),
    "entry that is no mapping": (b"models:\n  a: 7\n", 2, 3, "expected a mapping, received 7"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_registry_names_its_line_and_column(kind, tmp_path, capsys):
    content, line, column, said = BROKEN[kind]
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(file)])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert f"{file}:{line}:{column}: " in err


def test_there_are_twenty_kinds_of_broken_registries():
    assert len(BROKEN) >= 20


def test_every_problem_is_told_at_once(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(MODEL.replace("width:", "widht:").replace("kernel:", "kernal:"))
    with pytest.raises(DocumentError) as error:
        load_registry(str(file))
    assert {(p.place.line, p.text.split(".")[0]) for p in error.value.problems} == {
        (5, "the key 'kernel' is missing"),
        (5, "unknown key 'kernal'"),
        (7, "the key 'width' is missing"),
        (7, "unknown key 'widht'"),
    }


def test_missing_file_is_bad_input():
    with pytest.raises(BadInputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_registry("nowhere.yaml")


def test_a_users_file_adds_and_replaces(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "models:\n"
        "  wide8: {extends: resnet8, stages: [{block: basic, width: 32}]}\n"
        "  resnet20: {extends: resnet20, classes: 7}\n"
    )
    registry = load_registry(str(file))
    assert registry.models["wide8"].stages[0].width == 32
    assert registry.models["wide8"].stem == load_registry().models["resnet8"].stem
    assert registry.models["resnet20"].classes == 7
    assert load_registry().models["resnet20"].classes == 10
    assert "resnet50" in registry.models


def test_extends_merges_maps_and_replaces_lists_and_other_types():
    parent = {"a": {"x": 1, "y": 2}, "l": [1, 2], "o": {"type": "adam", "epsilon": 1}}
    child = {"a": {"y": 3}, "l": [9], "o": {"type": "sgd"}}
    assert merge(parent, child) == {"a": {"x": 1, "y": 3}, "l": [9], "o": {"type": "sgd"}}


def test_an_initialiser_replaces_another_through_extends(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "models: {v: {extends: vgg16, defaults: {kernel_init: {normal: {stddev: 0.01}}}}}\n"
    )
    assert load_registry(str(file)).models["v"].defaults.kernel_init.normal.stddev == 0.01


def test_a_chain_of_extends_has_an_end(tmp_path):
    file = tmp_path / "mine.yaml"
    lines = [f"  r{i}: {{extends: r{i + 1}}}\n" for i in range(1200)]
    file.write_text("recipes:\n" + "".join(lines) + "  r1200: {extends: default}\n")
    with pytest.raises(DocumentError, match="more than 50 entries"):
        load_registry(str(file))


def test_yaml_is_read_as_1_2():
    data = parse(b"{a: 1e-5, b: no, c: 0o17, d: 0x1f, e: ~, f: true, g: .inf, h: 14_7}", "f").data
    assert data == {
        "a": 1e-5, "b": "no", "c": 15, "d": 31, "e": None, "f": True, "g": math.inf, "h": "14_7",
    }  # fmt: skip


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text()
)
documents = st.dictionaries(
    st.text(min_size=1),
    st.recursive(
        scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
    ),
    min_size=1,
)


@settings(max_examples=50, deadline=None)
@given(documents)
def test_what_is_written_is_read_back(value):
    from kerasnet.document import to_yaml

    try:
        written = to_yaml(value).encode()
    except UnicodeEncodeError:
        return  # lone surrogates have no UTF-8 form
    assert parse(written, "f").data == value


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_a_document_error(raw):
    try:
        found = parse(raw, "f")
    except DocumentError as error:
        places = [p.place for p in error.problems]
    else:
        places = list(found.places.values())
        assert isinstance(found.data, dict)
    assert places
    assert all(place.line >= 1 and place.column >= 1 for place in places)


def test_compiled_form_equals_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(registries, "cache_folder", lambda: tmp_path / "cache")
    first = registries._built_in()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(registries, "_read_built_in", lambda: pytest.fail("read the source"))
    assert registries._built_in().data == first.data


def test_a_torn_compiled_form_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(registries, "cache_folder", lambda: tmp_path)
    expected = registries._built_in().data
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert registries._built_in().data == expected


def test_the_registry_works_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(registries, "cache_folder", lambda: tmp_path / "file" / "cache")
    assert "resnet50" in registries._built_in().data["models"]


def test_built_in_registry_has_no_problem():
    assert load_registry().problems() == []
