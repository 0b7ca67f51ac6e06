"""Registries and configurations from strangers: none may take the memory, hang, or run code."""

from __future__ import annotations

import ast
import base64
import io
import json
import marshal
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import kerasnet
from kerasnet.cli import main
from kerasnet.config import resolve
from kerasnet.document import MAX_BYTES, MAX_PROBLEMS, DocumentError, parse, to_yaml
from kerasnet.plan import MAX_LAYERS, most_layers, plan_model
from kerasnet.registry import load_registry, overlay
from kerasnet.runs import default_folder

# What any answer may take of a processor; most take a hundredth of it.
SECONDS = 8.0
MEMORY = 1_500_000_000


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def stop(signum, frame):
        raise AssertionError("no answer within a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refuse(capsys, *arguments: str, said: str) -> str:
    """Assert that a command is refused: quickly, in few words, none of which a terminal obeys."""
    start = time.process_time()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    seconds = time.process_time() - start
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert len(err) < 20_000
    assert err.replace("\n", "").isprintable()
    assert seconds < SECONDS
    return err


# ---------------------------------------------------------------------------- documents

CONVS = "[" + "{kernel: 1}, " * 16 + "]"


def model(stages: str = "[{block: basic, width: 4}]", more: str = "", **fields: str) -> str:
    given = {
        "input": "[8, 8, 3]", "head": "[global_avg_pool, {dense: classes}]", "stages": stages,
        **fields,
    }  # fmt: skip
    lines = [f"    {key}: {value}" for key, value in given.items()]
    return "models:\n  m:\n" + "\n".join(lines) + "\n" + more


def children(count: int) -> str:
    return "".join(f"  m{i}: {{extends: m}}\n" for i in range(count))


def chain(count: int) -> str:
    lines = [f"  r{i}: {{extends: r{i - 1}}}\n" for i in range(1, count)]
    return "recipes:\n  r0: {extends: default}\n" + "".join(lines)


DENSE = model(
    stages="[{block: conv3x3, width: 512}]",
    input="[64, 64, 3]",
    head="[flatten, {dense: 65536}, {dense: classes}]",
)
LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)

# kind → (file content, what the message must contain)
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    # sizes
    "dense layer of 512 GB": (
        DENSE, ":4:21: models.m.head[1]: head_dense would have 137,439,019,008 parameters; the "
        "limit is 268,435,456.",
    ),
    "convolution of 154 GB": (
        model(stem="[{conv: {filters: 65536, kernel: 3}}, {conv: {filters: 65536, kernel: 3}}]"),
        ":6:49: models.m.stem[1]: stem_conv2 would have 38,654,771,200 parameters",
    ),
    "many large layers": (
        model("[{block: basic, width: 2048, repeats: 20}]"),
        "the model would have 566,458,368 parameters; the limit is 536,870,912.",
    ),
    "activation of 4 GB": (
        model(input="[4096, 4096, 1]", stem="[{conv: {filters: 64, kernel: 1}}]"),
        "models.m.stem[0]: stem_conv would give 1,073,741,824 values an image",
    ),
    "input of a terabyte": (model(input="[4096, 4096, 4096]"), "models.m.input: input would give"),
    "many large activations": (
        model("[{block: basic, width: 64, repeats: 60}]", input="[1000, 1000, 1]"),
        "values an image would be kept; the limit is 2,147,483,648.",
    ),
    "padding that grows": (
        model("[{block: p, width: 16, repeats: 999}]")
        + "blocks: {p: {convs: [{kernel: 1, padding: 64}]}}\n",
        "values an image",
    ),
    "filters beyond all bounds": (
        model("[{block: p, width: 65536}]")
        + "blocks: {p: {convs: [{kernel: 1, filters: 99999 * width}]}}\n",
        "would have 6,553,534,464 filters; the limit is 65,536",
    ),
    # repetition
    "100,000 stages": (
        model("[" + "{block: basic, width: 1}, " * 100_000 + "]"), "more than 100,000 keys",
    ),
    "1,000 stages": (
        model("[" + "{block: basic, width: 1}, " * 1_000 + "]"), "at most 100 items",
    ),
    "1.6 million convolutions": (
        model("[" + "{block: deep, width: 1, repeats: 1000}, " * 100 + "]")
        + f"blocks: {{deep: {{convs: {CONVS}}}}}\n",
        "models.m.stages: its stages come to as many as 5,300,003 layers; the limit is 50,000",
    ),
    "1,000 models of 5,000 layers": (
        model("[{block: basic, width: 1, repeats: 384}]", children(1000)),
        "with it, the models come to 202,896 layers; the limit is 200,000",
    ),
    "1,000 copies of 20,000 values": (
        model(stages="[" + "{block: basic, width: 1}, " * 2_000 + "]", more=children(1000)),
        "`extends` repeats more than 100,000 keys and values",
    ),
    "3,000 entries": ("blocks:\n" + "".join(f"  b{i}: {{}}\n" for i in range(3000)), "3,000 entri"),
    "6,000 sections": ("".join(f"s{i}: 1\n" for i in range(6_000)), "unknown key 's0'"),
    "6,000 unknown keys": (
        model(more="".join(f"    k{i}: 1\n" for i in range(6_000))), "unknown key 'k0'",
    ),
    "6,000 unknown recipes": (
        model(recipes="{" + ", ".join(f"d{i}: r" for i in range(6_000)) + "}"),
        "there is no recipe 'r'",
    ),
    # aliases
    "a billion laughs": (LAUGHS, ":1:4: anchors and aliases"),
    "alias as key": ("&k models: {}\n*k : {}\n", ":1:1: anchors and aliases"),
    "alias of itself": ("models: &m {a: *m}\n", "anchors and aliases"),
    "merge key": ("norms: {a: {center: true}, b: {<<: {center: false}}}\n", "or `<<`"),
    "merge key with alias": ("norms: {a: &a {center: true}, b: {<<: *a}}\n", "anchors and aliases"),
    "merge key, quoted": ('norms: {b: {"<<": {center: false}}}\n', "unknown key '<<'"),
    # depth
    "deep lists": ("models: " + "[" * 100_000, "nested more than 50 levels deep"),
    "deep maps": ("models: " + "{a: " * 100_000, "nested more than 50 levels deep"),
    "deep indentation": ("".join(" " * i + "a:\n" for i in range(1000)), "nested more than 50"),
    "deep dashes": ("models:\n  " + "- " * 100_000, "nested more than 50 levels deep"),
    "deep questions": ("? " * 100_000, "nested more than 50 levels deep"),
    # lengths
    "long key": ("a" * 1_000_000 + ": 1\n", "not YAML: mapping values are not allowed here"),
    "long explicit key": ("? " + "a" * 1_000_000 + "\n: 1\n", "unknown key 'aaaaaaaa"),
    "long name": ("models:\n  ? " + "a" * 1_000_000 + "\n  : {}\n", "at most 100 of them"),
    "long text": (model(description="x" * 1_000_000), "at most 10000 characters"),
    "long name of a block": (
        model(f"[{{block: {'b' * 900_000}, width: 1}}]"), "there is no block 'bbbb",
    ),
    "long name of a parent": (
        f"models: {{a: {{extends: {'b' * 900_000}}}}}\n", "there is no model 'bbbb",
    ),
    "long filters": (
        f"blocks: {{b: {{convs: [{{kernel: 1, filters: {'9' * 4000} * width}}]}}}}\n", "a multiple",
    ),
    "a million digits": (model(classes="9" * 1_000_000), "is not a number that can be held"),
    "a million hexadecimal digits": (model(classes="0x" + "f" * 1_000_000), "longer than 64 bits"),
    "a million octal digits": (model(classes="0o" + "7" * 1_000_000), "longer than 64 bits"),
    "a million digits after the point": (model(classes="0." + "3" * 1_000_000), "0.333"),
    "a million digits before the point": (model(classes="3" * 1_000_000 + ".5"), "received inf"),
    "an exponent of a million digits": (model(classes="1e" + "9" * 1_000_000), "received inf"),
    # tags and directives
    **{
        tag: (f"models: {tag}\n", "tags such as")
        for tag in (
            "!!python/object/apply:os.system [touch PWNED]",
            "!!python/object/new:os.system [touch PWNED]",
            "!!python/object:os.system {}",
            "!!python/name:os.system",
            "!!python/module:os",
            "!!binary aGVsbG8=",
            "!!set {a, b}",
            "!!omap [a: 1]",
            "!mine {}",
            "!<x:map> {}",
            "!!bool perhaps",
            "!!null something",
        )
    },
    "tag on a key": ("!!python/object/apply:os.system models: {}\n", "plain name as key"),
    "YAML 1.1, in which no is false": (
        "%YAML 1.1\n---\nnorms: {n: {center: no}}\n", ":2:1: expected YAML 1.2",
    ),
    "YAML 1.3": ("%YAML 1.3\n---\nmodels: {}\n", "not YAML: version"),
    "YAML 9…9": ("%YAML 1." + "9" * 100_000 + "\n---\nmodels: {}\n", "not YAML"),
    # chains
    "chain of 1,000": (chain(1000), "`extends` goes through more than 50 entries"),
    "circle": (
        "models:\n" + "".join(f"  m{i}: {{extends: m{(i + 1) % 40}}}\n" for i in range(40)),
        "`extends` goes in a circle: m0 → m1 → m2",
    ),
    "its own parent": ("models:\n  m: {extends: m}\n", "in a circle: m → m"),
    # bytes
    "null byte": (b"models: {a\0: {}}\n", "not YAML"),
    "null byte, escaped": ('models: {"a\\0": {}}\n', "received 'a\\x00'"),
    "terminal escape": ('models: {"\\e]0;x\\a": {}}\n', "received '\\x1b]0;x\\x07'"),
    "terminal escape in prose": (model(origin='"\\e[2J"'), "expected text without control"),
    "terminal escape as a parent": ('models: {a: {extends: "\\e[2J"}}\n', "no model '\\x1b[2J'"),
    "terminal escape as a block": (
        model('[{block: "\\e[2J", width: 1}]'), "there is no block '\\x1b[2J'",
    ),
    "terminal escape as a key": (model(more='    "\\e[2J\\n": 1\n'), "unknown key '\\x1b[2J\\n'"),
    "escape beyond Unicode": ('models: {"\\UFFFFFFFF": {}}\n', "not YAML"),
    "half a character": ('models: {"\\uD800": {}}\n', "expected a name of letters"),
    "UTF-16": ("models: {}\n".encode("utf-16"), ":1:1: not a text file: expected UTF-8"),
    "UTF-16 without a mark": ("models: {}\n".encode("utf-16-le"), "not YAML"),
    "UTF-32": ("models: {}\n".encode("utf-32-be"), "not YAML"),
    "invalid UTF-8": (b"models: {}\n# \xc3\x28\n", ":2:3: not a text file: expected UTF-8"),
    "overlong UTF-8": (b"models: \xc0\xaf\n", ":1:9: not a text file"),
    "surrogate in UTF-8": (b"models: \xed\xa0\x80\n", ":1:9: not a text file"),
    # names
    **{
        f"name {name}": (f"models: {{'{name}': {{extends: resnet8}}}}\n", "expected a name of")
        for name in ("../x", "..", ".", "/etc/passwd", "a/b", "a\\b", "", "-rf", "~root", " x")
    },
    # spaces
    "space of 301 values": (
        "parameters: {recipe.epochs: {type: choice, values: [" + "1, " * 301 + "]}}", "at most 300",
    ),
    "space of 400 values": (
        "parameters:\n"
        + f"  a: {{type: choice, values: [{'1, ' * 200}]}}\n"
        + f"  b: {{type: choice, values: [{'1, ' * 200}]}}\n", "400 values to choose from",
    ),
    "space of 65 fields": (
        "parameters:\n"
        + "".join(f"  p{i}: {{type: int, min: 1, max: 2}}\n" for i in range(65)), "at most 64",
    ),
    "space with a terminal escape": (
        'parameters: {"\\e[2J": {type: int, min: 2, max: 1}}', "\\x1b[2J",
    ),
}  # fmt: skip


def as_bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_registry_is_refused(kind, tmp_path, monkeypatch, capsys):
    content, said = HOSTILE[kind]
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_bytes(as_bytes(content))
    err = refuse(capsys, "validate", str(file), said=said)
    assert err.startswith(f"kerasnet: error: {file}:")
    assert len(err.splitlines()) <= MAX_PROBLEMS + 1
    assert os.listdir(tmp_path) == ["mine.yaml"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="bounds its memory as Linux does")
def test_all_of_it_is_refused_in_little_memory(tmp_path):
    for number, (content, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.yaml").write_bytes(as_bytes(content))
    code = textwrap.dedent("""
        import sys
        from kerasnet.cli import main
        for file in sys.argv[1:]:
            try:
                main(["validate", file])
            except SystemExit as ended:
                assert ended.code == 2, (file, ended.code)
        """)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, tmp_path.iterdir())],
        capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "memory" not in done.stderr


def test_many_problems_end_in_a_sentence(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(model(more="".join(f"    k{i}: 1\n" for i in range(500))))
    err = refuse(capsys, "validate", str(file), said="k0")
    assert err.splitlines()[-1] == "these are the first 20 problems; there may be more"


@pytest.mark.parametrize("order", [1, -1])
def test_a_chain_is_as_long_in_either_order(order):
    def made(count: int) -> bytes:
        first, *lines = chain(count).splitlines()
        return "\n".join([first, *lines[::order]]).encode()

    assert len(overlay(parse(made(50), "f")).recipes) > 50
    with pytest.raises(DocumentError, match="more than 50 entries"):
        overlay(parse(made(52), "f"))


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert parse("\ufeffmodels: {}\n".encode(), "f").data == {"models": {}}


def test_the_shipped_models_are_far_from_every_bound():
    registry = load_registry()
    for name in registry.models:
        architecture = registry.architecture(name)
        made = plan_model(architecture)
        assert len(made.layers) <= most_layers(architecture) < MAX_LAYERS / 10
        plan_model(architecture, (256, 256, 3), 10_000)


def test_the_deepest_published_residual_network_fits():
    stages = "[" + ", ".join(f"{{block: basic, width: {w}, repeats: 200}}" for w in (16, 32)) + "]"
    made = plan_model(overlay(parse(model(stages).encode(), "f")).architecture("m"))
    assert sum(layer.type == "Conv2D" for layer in made.layers) > 800


# ---------------------------------------------------------------------------- files


@pytest.fixture
def nowhere(tmp_path) -> Iterator[dict[str, str]]:
    """Return names that are no files, by kind."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link-to-fifo").symlink_to(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        kinds = ("fifo", "folder", "loop", "link-to-fifo", "socket", "missing")
        yield {
            **{kind: str(tmp_path / kind) for kind in kinds},
            "zero": "/dev/zero", "full": "/dev/full", "terminal": "/dev/tty",
            "too long": "x" * 100_000, "nothing": "", "not text": "\udcff",
        }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        ("validate", "FILE"),
        ("list", "--registry", "FILE"),
        ("fit", "resnet8", "--dataset", "digits", "--dry-run", "--registry", "FILE"),
        ("fit", "--config", "FILE", "--dry-run"),
        ("fit", "resnet8", "--dataset", "digits", "--dry-run", "--weights", "FILE"),
        ("fit", "--resume", "FILE", "--dry-run"),
        ("tune", "resnet8", "--dataset", "digits", "--space", "FILE"),
    ],
    ids=lambda words: "-".join(word.strip("-") for word in words if word.isascii()),
)
def test_what_is_no_file_is_refused_at_once(command, nowhere, capsys):
    for kind, name in nowhere.items():
        words = [name if word == "FILE" else word for word in command]
        start = time.perf_counter()
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, ""), (kind, err)
        assert err.strip(), kind
        assert "Traceback" not in err, kind
        assert time.perf_counter() - start < 2, kind


def test_a_document_of_100_megabytes_is_not_parsed(tmp_path, monkeypatch, capsys):
    file = tmp_path / "large.yaml"
    with file.open("wb") as stream:
        stream.write(b"models: {}\n")
        stream.truncate(100_000_000)
    monkeypatch.setattr("kerasnet.document.parse", lambda *a: pytest.fail("parsed"))
    said = f":1:1: longer than the {MAX_BYTES:,} bytes that are read"
    refuse(capsys, "validate", str(file), said=said)
    refuse(capsys, "fit", "--config", str(file), said=said)


# ---------------------------------------------------------------------------- configurations


def configuration(changes: dict[str, object] | None = None) -> str:
    """Return a run's configuration as YAML, values replaced by path."""
    plain = resolve("resnet8", dataset="digits").model_dump(mode="json", by_alias=True)
    for path, value in (changes or {}).items():
        node = plain
        *parents, last = path.split("/")
        for part in parents:
            node = node[int(part) if part.isdigit() else part]
        node[last] = value
    return to_yaml(plain)


CONFIGS: list[tuple[str, object, str]] = [
    *(("architecture/name", name, "architecture.name")
      for name in ("../x", "..", "/x", "a/b", "x\n", "", "x" * 101, "\x1b[2J", "\0")),
    *(("kerasnet", version, "kerasnet: ") for version in ("", "x" * 100_000, ["x"] * 99)),
    *(("recipe_name", name, "recipe_name") for name in ("../x", "\x1b[2J", "x\0")),
    ("data/name", "a\0b", "no null character"),
    ("data/data_dir", "/a\0b", "no null character"),
    ("weights", "/a\0b", "no null character"),
    ("data/spec/source", {"type": "folder", "name": "a\0b"}, "no null character"),
    ("data/limit_train", 2**64 - 1, "data.limit_train"),
    ("horizon", 10**9, "horizon"),
    ("seed", 2**31, "seed"),
    ("classes", 10**6, "classes"),
    ("recipe/batch_size", 10**6, "recipe.batch_size"),
    ("execution/evaluation_batch_size", 10**9, "execution.evaluation_batch_size"),
    ("input", [4097, 1, 1], "input[0]"),
    ("input", [4096, 4096, 3], "architecture.model.stem[0]: stem_conv would give 268,435,456"),
    ("architecture/model/stages/0/repeats", 5000, "architecture.model.stages: its stages come to"),
    ("architecture/model/stages/0/block", "\x1b[2J", "lacks \\x1b[2J, which a stage names"),
    ("architecture/norms", {}, "there is no norm 'bn'"),
    ("inference", {"mean": [0.0], "std": [1.0], "resize": [1], "class_names": []}, "resize"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "said"), CONFIGS, ids=lambda v: repr(v)[:30])
def test_a_hostile_configuration_is_refused(path, value, said, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(configuration({path: value}))
    err = refuse(capsys, "validate", str(file), said=said)
    assert err.startswith(f"kerasnet: error: {file}:")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        *((p, v, s) for p, v, s in CONFIGS if not s.startswith("architecture.model")),
        ("data/spec/source", {"type": "tfds", "name": "../../etc"}, "could have"),
        ("data/spec/source", {"type": "tfds", "name": "huggingface:x"}, "could have"),
        ("data/spec/source", {"type": "folder", "name": "/dev"}, "/dev"),
        ("data/spec/source", {"type": "folder", "name": "x" * 5000}, "x"),
        ("weights", "/dev/zero", "there is no such weights file"),
        ("classes", 11, "has 10 classes"),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_a_hostile_configuration_does_not_train(path, value, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(configuration({path: value}))
    refuse(capsys, "fit", "--config", "config.yaml", "--dry-run", said=said)
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"data/name": "\x1b[2J", "classes": 11}, []),
        ({"data/name": "\x1b[2J", "data/spec/source": {"type": "tfds", "name": "-"}}, []),
        ({"weights": "/nowhere/\x1b[2J"}, []),
        ({"kerasnet": "\x1b[2J"}, []),
        ({"data/name": "\x1b[2J"}, ["--resume"]),
    ],
    ids=lambda value: "-".join(value),
)
def test_no_message_holds_what_a_terminal_obeys(changes, more, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(configuration(changes))
    named = ["--resume", str(tmp_path), "--dataset", "x"] if more else ["--config"]
    file = [] if more else [str(tmp_path / "config.yaml")]
    refuse(capsys, "fit", *named, *file, "--dry-run", said="\\x1b[2J")


def test_an_unchanged_configuration_is_accepted(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text(configuration())
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(file)])
    assert not ended.value.code
    assert "valid" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../..", "..", "/", "a/../..", "~", "../../etc/passwd", ".", ""])
def test_no_data_sets_name_leads_out_of_the_runs_folder(name):
    config = resolve("resnet8", dataset="digits")
    data = config.data.model_copy(update={"name": name})
    folder = default_folder(config.model_copy(update={"data": data}))
    assert folder.parent == Path("runs")
    assert folder.name.startswith("resnet8-")


# ---------------------------------------------------------------------------- code


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr], ast.Call]]:
    """Yield the name, without what stands before the last two parts, of everything called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ".".join(ast.unparse(node.func).split(".")[-2:])
            yield name, {k.arg: k.value for k in node.keywords if k.arg}, node


def is_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and not value.value


def dangers(source: str) -> list[str]:
    """Return what in a source file could run code that an input brings."""
    found = []
    for name, given, node in calls(ast.parse(source)):
        last = name.rpartition(".")[2]
        shell = given.get("shell")
        wrong = (
            name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec")
            or name in ("os.system", "os.popen", "pickle.load", "pickle.loads", "dill.load")
            or name in ("pickle.Unpickler", "joblib.load", "marshal.load", "marshal.loads")
            or name in ("yaml.unsafe_load", "yaml.full_load", "yaml.load", "yaml.load_all")
            or (last == "YAML" and "typ" in given and ast.literal_eval(given["typ"]) != "safe"
                and ast.literal_eval(given["typ"]) != "rt")
            or (last == "load" and "allow_pickle" in given and not is_false(given["allow_pickle"]))
            or (last == "load_model" and is_false(given.get("safe_mode", ast.Constant(True))))
            or last == "enable_unsafe_deserialization"
            or (name == "torch.load" and is_false(given.get("weights_only", ast.Constant(False))))
            or (shell is not None and not is_false(shell))
        )  # fmt: skip
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "exec(x)", "import pickle; pickle.loads(b)", "pickle.load(f)",
        "pickle.Unpickler(f).load()", "yaml.load(f, Loader=yaml.Loader)", "yaml.unsafe_load(f)",
        "YAML(typ='unsafe')", "np.load(f, allow_pickle=True)", "numpy.load(f, allow_pickle=yes)",
        "keras.models.load_model(f, safe_mode=False)", "load_model(f, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()", "torch.load(f)",
        "torch.load(f, weights_only=False)", "subprocess.run(x, shell=True)", "os.system(x)",
    ],
)  # fmt: skip
def test_dangers_are_found(source):
    assert dangers(source)


def test_harmless_calls_are_not_taken_for_dangers():
    source = """
        re.compile(x); np.load(f); np.load(f, allow_pickle=False); json.load(f); YAML(typ="safe")
        torch.load(f, weights_only=True); subprocess.run(x); keras.models.load_model(f)
        class Narrow(pickle.Unpickler): pass
    """
    assert dangers(textwrap.dedent(source)) == []


def test_the_package_runs_nothing_that_it_reads():
    package = Path(kerasnet.__file__).parent
    files = sorted(package.rglob("*.py"))
    assert len(files) > 15
    found = {str(file.relative_to(package)): dangers(file.read_text()) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


# ---------------------------------------------------------------------------- weights


def harmful(marker: Path) -> bytes:
    """Return compiled Python that makes a file."""
    return marshal.dumps(compile(f"open({str(marker)!r}, 'w').close()", "evil", "exec"))


def lambda_in_keras(marker: Path) -> bytes:
    """Return a `.keras` file whose layer is Python code that makes a file when it is loaded."""
    code = harmful(marker)
    function = {"class_name": "__lambda__", "config": {"code": base64.b64encode(code).decode()}}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": function}}
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("config.json", json.dumps(layer))
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"")
    return held.getvalue()


def pickled(marker: Path) -> bytes:
    """Return a pickle that makes a file when it is loaded."""
    return f"cbuiltins\nopen\n(V{marker}\nVw\ntR.".encode()


def declared(size: int) -> bytes:
    """Return a safetensors file that declares more than it holds."""
    shape = {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}
    header = json.dumps({"stem_conv/kernel": shape}).encode()
    return len(header).to_bytes(8, "little") + header


def test_the_code_in_these_weights_would_do_harm(tmp_path):
    exec(marshal.loads(harmful(tmp_path / "one")))
    pickle.loads(pickled(tmp_path / "two")).close()
    assert {f.name for f in tmp_path.iterdir()} == {"one", "two"}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("m.keras", lambda_in_keras),
        ("m.weights.h5", pickled),
        ("m.pkl", pickled),
        ("m.ckpt", pickled),
        ("keras.safetensors", lambda_in_keras),
        ("pickle.safetensors", pickled),
        ("large.safetensors", lambda marker: declared(10 * 2**30)),
        ("header.safetensors", lambda marker: b"\xff" * 8 + b"{}"),
        ("empty.safetensors", lambda marker: b""),
    ],
)
def test_weights_from_a_stranger_are_not_run(name, make, tmp_path, capsys):
    marker, file = tmp_path / "it-was-run", tmp_path / name
    file.write_bytes(make(marker))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "resnet8", "--dataset", "digits", "--weights", str(file), "--dry-run"])
    assert ended.value.code == 2
    assert str(file) in capsys.readouterr().err
    assert not marker.exists()
