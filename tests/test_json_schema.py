"""The JSON Schemas say of a document what kerasnet says of it, as far as a schema can."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from commands import run_cli as run
from test_mutations import damaged, seeds

from kerasnet import json_schema, schema
from kerasnet.config import resolve, validated
from kerasnet.document import Document, DocumentError, parse, read, to_yaml, validate
from kerasnet.errors import BadInputError
from kerasnet.registry import load_registry, overlay

ROOT = Path(__file__).parents[1]
SCHEMAS = {kind: json.loads(json_schema.shipped_file(kind).read_text("utf-8"))
           for kind in json_schema.KINDS}  # fmt: skip
READERS = {
    "registry": overlay,
    "space": lambda document: validate(schema.Space, document),
    "config": validated,
}


def faults(kind: str, document: Document) -> list[str]:
    """Return what the schema finds wrong with a document."""
    checker = jsonschema.Draft7Validator(SCHEMAS[kind])
    return [f"{e.json_path}: {e.message}" for e in checker.iter_errors(document.data)]


def parsed(text: str) -> Document:
    return parse(text.encode(), "mine.yaml")


# ---------------------------------------------------------------------------- the files


@pytest.mark.parametrize("kind", json_schema.KINDS)
def test_the_shipped_schema_is_what_the_classes_say(kind):
    jsonschema.Draft7Validator.check_schema(SCHEMAS[kind])
    shipped = json_schema.shipped_file(kind).read_text("utf-8")
    assert shipped == json_schema.text(kind), f"write it anew: {json_schema.COMMAND}"


@pytest.mark.parametrize("kind", json_schema.KINDS)
def test_every_key_has_a_description(kind):
    whole = [SCHEMAS[kind], *SCHEMAS[kind]["definitions"].values()]
    keys = [(d["title"], key, said) for d in whole for key, said in d["properties"].items()]
    assert len(keys) > 10
    assert [(title, key) for title, key, said in keys if not said.get("description")] == []


@pytest.mark.parametrize("kind", json_schema.KINDS)
def test_no_mapping_takes_unknown_keys(kind):
    whole = [SCHEMAS[kind], *SCHEMAS[kind]["definitions"].values()]
    assert [d["title"] for d in whole if d["additionalProperties"] is not False] == []


@pytest.mark.parametrize("kind", json_schema.KINDS)
def test_every_reference_leads_somewhere_and_every_definition_is_used(kind):
    text = json.dumps(SCHEMAS[kind])
    used = {part.split('"')[0] for part in text.split("#/definitions/")[1:]}
    assert used == set(SCHEMAS[kind]["definitions"])


@pytest.mark.parametrize(
    ("file", "kind"),
    [("registry.yaml", "registry"), *((f"tuning/{p.name}", "space")
                                      for p in sorted((ROOT / "tuning").glob("*.yaml")))],
)  # fmt: skip
def test_our_own_files_fit_and_name_their_schema(file, kind):
    path = ROOT / file
    assert faults(kind, read(path)) == []
    start, _, named = path.read_text("utf-8").split("\n")[0].partition("$schema=")
    assert start == "# yaml-language-server: "
    assert (path.parent / named).resolve() == json_schema.shipped_file(kind).resolve()


@pytest.mark.parametrize("model", list(load_registry().models))
def test_configurations_fit(model):
    text = to_yaml(resolve(model, dataset="digits"))
    assert faults("config", parsed(text)) == []


# ---------------------------------------------------------------------------- documents

HEAD = "head: [global_avg_pool, dense: classes]"
BARE = f"input: [32, 32, 3], stages: [{{block: basic, width: 8}}], {HEAD}"


def model(more: str) -> str:
    return f"models: {{m: {{extends: resnet8, {more}}}}}"


def block(more: str) -> str:
    return f"blocks: {{b: {{{more}}}}}"


def recipe(more: str) -> str:
    return f"recipes: {{r: {{{more}}}}}"


def dataset(more: str) -> str:
    return f"datasets: {{d: {{{more}}}}}"


def space(more: str) -> str:
    return f"parameters: {{recipe.optimizer.learning_rate: {{{more}}}}}"


TRAINED = "epochs: 1, batch_size: 8, optimizer: {type: sgd, learning_rate: 0.1}"
RIGHT = {
    "registry": [
        "models: {}",
        f"models: {{m: {{{BARE}}}}}",
        f"models: {{m: {{extends: null, {BARE}}}}}",
        model("classes: 3"),
        model("stem: [conv: {filters: 8, kernel: 3}, norm, act]"),
        model("stem: [conv: {filters: 8, kernel: 3}, norm: bn, act: gelu]"),
        model("stem: [conv: {filters: 8, kernel: 3}, norm: none, act: null]"),
        model("stem: [conv: {filters: 8, kernel: 3}, norm: {gamma_init: zeros}, max_pool: 2]"),
        model("stem: [conv: {filters: 8, kernel: 3}, avg_pool: {size: 3, stride: 2, padding: 1}]"),
        model("head: [flatten, dropout: 0.5, dense: 512, act, dense: classes]"),
        model("head: [{layer: flatten}, dense: {units: classes, bias: false}]"),
        model("defaults: {kernel_init: {variance_scaling: {scale: 2}}}"),
        model("defaults: {kernel_init: {normal: {stddev: 1e-2}}, bias_init: {constant: 0}}"),
        model('description: "two\\nlines"'),
        model('recipes: {"*": small, digits: digits}'),
        model("expect: {trainable: 78186, non_trainable: 480}"),
        block("convs: [{kernel: 3}]"),
        block("convs: [{kernel: 3, filters: 8}, {kernel: 1, filters: 4 * width, norm: bn}]"),
        block("convs: [{kernel: 3, norm: false}], shortcut: identity, merge_act: relu"),
        block("convs: [{kernel: 3}], shortcut: {project: {when: always, from: preactivation}}"),
        block("extends: basic, shortcut: {project: {act: relu}}"),
        block("extends: basic"),
        "norms: {n: {epsilon: 1e-3}, m: {extends: n, momentum: 0.5}}",
        recipe(TRAINED),
        recipe("extends: default, optimizer: {learning_rate: 1}"),
        recipe("extends: default, schedule: {final: 0.1}, weight_decay: {on: all}"),
        recipe("extends: default, optimizer: {type: sgd, learning_rate: 0.1}, ema: {decay: 0.9}"),
        recipe(f"{TRAINED}, schedule: {{type: step, unit: epoch, every: 5, factor: 0.1}}"),
        recipe(f"{TRAINED}, augment: {{crop: {{padding: 4}}, flip: horizontal, mixup: {{}}}}"),
        dataset("source: {type: digits}"),
        dataset("extends: cifar10, archives: [a.tar.gz]"),
        dataset("extends: cifar10, archives: {a.tar.gz: null}, source: {name: other}"),
    ],
    "space": [
        space("type: float, min: 1e-5, max: 1.0, log: true"),
        space("type: int, min: 1, max: 2"),
        space("type: choice, values: [1, 0.5, a, true]"),
    ],
}
WRONG = {
    "registry": [
        "nets: {}",
        "models: [resnet8]",
        "models:",
        "models: {m: resnet8}",
        "models: {a/b: {extends: resnet8}}",
        "norms: {n: {extends: null}}",
        "models: {m: {input: [32, 32, 3]}}",
        f"models: {{m: {{{BARE}, defaults: {{kernel_init: {{normal: {{}}}}}}}}}}",
        model("clases: 3"),
        model("classes: three"),
        model("classes: 0"),
        model("classes: true"),
        model("input: [32, 32]"),
        model("stem: [convolution]"),
        model("stem: [max_pool]"),
        model("stem: [{norm: bn, act: relu}]"),
        model("stem: [{}]"),
        model("stem: [max_pool: {stride: 2}]"),
        model("stem: [conv: 64]"),
        model("stem: [act: rellu]"),
        model("stem: norm"),
        model("head: [flatten]"),
        model("head: [flatten, dense: class]"),
        model("head: [flatten, dense: 10]"),
        model("head: [flatten, dropout: 1.5, dense: classes]"),
        model("defaults: {kernel_init: he}"),
        model("defaults: {kernel_init: {normal: {stddev: 1}, constant: 0}}"),
        model("stages: []"),
        model("stages: [{block: basic}]"),
        model("stages: [{block: basic, width: 8, repeat: 2}]"),
        model("stages: [{block: basic, width: 8, strided_block: middle}]"),
        model('description: "\\e[2J"'),
        block("convs: []"),
        block("shortcut: identity"),
        block("convs: [{kernel: 3, filters: 4 x width}]"),
        block("convs: [{kernel: 3, filters: 0 * width}]"),
        block("convs: [{kernel: 3, filters: classes}]"),
        block("convs: [{kernel: 3, filters: 0}]"),
        block("convs: [{filters: 3}]"),
        block("convs: [{kernel: 3}], shortcut: {project: {}, identity: {}}"),
        block("convs: [{kernel: 3}], shortcut: [identity, padded]"),
        block("convs: [{kernel: 3}], shortcut: project"),
        block("convs: [{kernel: 3}], shortcut: {project: {source: input}}"),
        block("convs: [{kernel: 3}], order: act-conv-norm"),
        recipe("optimizer: {type: sgd, learning_rate: 0.1}"),
        recipe("epochs: 1, batch_size: 8, optimizer: {learning_rate: 0.1}"),
        recipe("epochs: 1, batch_size: 8, optimizer: {type: sgd}"),
        recipe(f"{TRAINED}, schedule: {{}}"),
        recipe(f"{TRAINED}, schedule: {{type: cosine, every: 3}}"),
        recipe("extends: default, optimizer: {type: adam, momentum: 0.9}"),
        recipe("extends: default, optimizer: {learning_rate: 0}"),
        recipe("extends: default, epochs: 1_000"),
        recipe("extends: 3"),
        dataset("source: {type: web}"),
        dataset("extends: cifar10, archives: [[a]]"),
        dataset("extends: cifar10, archives: {a: abc}"),
        dataset("extends: cifar10, mean: []"),
    ],
    "space": [
        "parameters: {}",
        "parameters: [1]",
        "description: nothing",
        space("type: float, min: 1e-5"),
        space("type: float, min: 1e-5, max: 1.0, values: [1]"),
        space("type: int, min: 0.5, max: 2"),
        space("type: choice, values: []"),
        space("type: normal, min: 1, max: 2"),
    ],
    "config": [
        "architecture: {}",
        "kerasnet: 0.1.0",
    ],
}


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(kind, text) for kind, texts in table.items() for text in texts]


@pytest.mark.parametrize(("kind", "text"), cases(RIGHT))
def test_right_documents_are_accepted_by_schema_and_reader(kind, text):
    document = parsed(text)
    READERS[kind](document)
    assert faults(kind, document) == []


@pytest.mark.parametrize(("kind", "text"), cases(WRONG))
def test_wrong_documents_are_refused_by_schema_and_reader(kind, text):
    document = parsed(text)
    with pytest.raises(DocumentError):
        READERS[kind](document)
    assert faults(kind, document) != []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("precision", "resolved"), "float16"),
        (("seed",), -1),
        (("execution", "checkpoint_every"), {"hours": 1}),
        (("execution", "jit"), True),
        (("architecture", "model", "stages", 0, "width"), "8"),
        (("data", "data_dir"), "a\0b"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_configurations_are_refused_by_schema_and_reader(path, value):
    document = parsed(to_yaml(resolve("resnet8", dataset="digits")))
    node = document.data
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(DocumentError):
        validated(document)
    assert faults("config", document) != []


def test_no_damaged_document_is_refused_by_the_schema_alone():
    texts, read_well = seeds(), 0
    for seed in range(150):
        try:
            document = parse(damaged(str(seed), texts), "mine.yaml")
            kind = kind_of(document)
            READERS[kind](document)
        except BadInputError:
            continue
        read_well += 1
        assert faults(kind, document) == [], f"damaged('{seed}')"
    assert read_well > 10


def kind_of(document: Document) -> str:
    keys = {"parameters": "space", "architecture": "config"}
    return next((kind for key, kind in keys.items() if key in document.data), "registry")


# ---------------------------------------------------------------------------- the command


@pytest.mark.parametrize("kind", json_schema.KINDS)
def test_the_command_prints_and_writes_the_schema(kind, capsys, tmp_path):
    code, out, _ = run(capsys, "schema", kind)
    assert code == 0
    assert json.loads(out) == SCHEMAS[kind]
    file = tmp_path / "its.schema.json"
    code, said, _ = run(capsys, "schema", kind, "--out", str(file))
    assert code == 0
    assert "$schema=its.schema.json" in said
    assert json.loads(file.read_text("utf-8")) == SCHEMAS[kind]


def test_a_registry_is_the_default(capsys):
    assert json.loads(run(capsys, "schema")[1]) == SCHEMAS["registry"]


def test_bad_input_is_exit_2_and_overwrites_no_registry(capsys, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("models: {}\n")
    for arguments, said in (
        (["spaces"], "Did you mean 'space'?"),
        (["--out", str(mine)], "ends in .json"),
    ):
        code, out, err = run(capsys, "schema", *arguments)
        assert (code, out) == (2, "")
        assert said in err
    assert mine.read_text() == "models: {}\n"
