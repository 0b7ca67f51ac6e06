"""JSON Schemas of registries, search spaces and configurations, for completion in editors.

They are generated from the classes of `schema` as draft-07, the newest that yaml-language-server
knows whole. What a schema cannot say (names that must exist, shapes that must fit) is left to
`kerasnet validate`; nothing that kerasnet reads is refused.

`python -m kerasnet.json_schema` writes the files that ship with the package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from kerasnet import registry, schema
from kerasnet.errors import BadInputError, did_you_mean
from kerasnet.files import write_atomically

KINDS = ("registry", "space", "config")
COMMAND = "python -m kerasnet.json_schema"
_FOLDER = Path(__file__).parent / "schemas"
_REF = "#/definitions/"

Definitions = dict[str, dict[str, Any]]


class _Generator(GenerateJsonSchema):
    """Writes what helps an editor, and nothing besides."""

    schema_dialect = "http://json-schema.org/draft-07/schema#"

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a title would be the key once more

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        return {k: v for k, v in found.items() if k != "default" or v is not None}

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        # A half-written value may fit two alternatives, which `oneOf` would call an error.
        found = super().tagged_union_schema(schema)
        found.pop("discriminator", None)
        return {"anyOf" if key == "oneOf" else key: value for key, value in found.items()}


def shipped_file(kind: str) -> Path:
    """Return the path of the schema that ships with the package.

    Args:
        kind: `registry`, `space` or `config`.

    Raises:
        BadInputError: there is no such kind.
    """
    if kind not in KINDS:
        raise BadInputError(f"there is no schema of a '{kind}'. {did_you_mean(kind, KINDS)}")
    return _FOLDER / f"{kind}.schema.json"


def generate(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of document, made from the classes.

    Args:
        kind: `registry`, `space` or `config`.
    """
    if kind == "registry":
        return _registry()
    cls: type[schema.Strict] = schema.Space if kind == "space" else schema.RunConfig
    definitions = _definitions([cls])
    root = definitions.pop(cls.__name__)
    return {"$schema": _Generator.schema_dialect, **root, "definitions": definitions}


def text(kind: str) -> str:
    """Return the schema of a kind of document as it is written to a file."""
    return json.dumps(generate(kind), indent=1, ensure_ascii=False) + "\n"


def _definitions(classes: list[type[schema.Strict]]) -> Definitions:
    _, whole = models_json_schema(
        [(cls, "validation") for cls in classes],
        ref_template=_REF + "{model}",
        schema_generator=_Generator,
    )
    definitions: Definitions = whole["$defs"]
    for definition in definitions.values():
        for field in definition["properties"].values():
            _describe(field, definitions)
    return definitions


def _describe(field: dict[str, Any], definitions: Definitions) -> None:
    """Give a field that says nothing about itself the words of its class or type."""
    for part in (field, *field.get("anyOf", ())):
        named = definitions[part["$ref"].removeprefix(_REF)] if "$ref" in part else part
        if "description" in named:
            field.setdefault("description", named["description"])


# ---------------------------------------------------------------------------- registries


def _registry() -> dict[str, Any]:
    definitions = _definitions([*schema.SECTIONS.values()])
    sections = {}
    for section, cls in schema.SECTIONS.items():
        name = cls.__name__
        definitions[name] = _extendable(definitions[name], registry.SINGULAR[section], definitions)
        sections[section] = {
            "type": "object",
            "description": f"By name. {definitions[name]['description']}",
            "maxProperties": registry.MAX_ENTRIES,
            "propertyNames": {"pattern": f"^{schema.NAME.pattern}$"},
            "additionalProperties": {"$ref": _REF + name},
        }
    return {
        "$schema": _Generator.schema_dialect,
        "title": "Registry",
        "description": "Architectures, ways to train them, and data sets.",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "definitions": dict(sorted(definitions.items())),
    }


def _extendable(entry: dict[str, Any], kind: str, definitions: Definitions) -> dict[str, Any]:
    """Return an entry's schema in which `extends` stands for whatever is left out."""
    words = f"another {kind}, whose fields this one starts from"
    own = {"extends": {"type": "string", "description": words}} | entry["properties"]
    loose = {name: _loosen(field, definitions) for name, field in own.items()}
    tight = {name: field for name, field in own.items() if field != loose[name]}
    result = {k: v for k, v in entry.items() if k != "required"} | {"properties": loose}
    if "required" in entry:
        result["if"] = {"required": ["extends"], "properties": {"extends": {"type": "string"}}}
        result["else"] = {"required": entry["required"], "properties": tight}
    return result


def _loosen(node: dict[str, Any], definitions: Definitions) -> dict[str, Any]:
    """Return a schema that asks for no key, in maps within maps too; lists replace, and stay."""
    result = {key: value for key, value in node.items() if key != "required"}
    if "$ref" in node:
        name = node["$ref"].removeprefix(_REF)
        loose = _loosen(definitions[name], definitions)
        if loose != definitions[name]:
            definitions[f"{name}Part"] = loose
            result["$ref"] = f"{_REF}{name}Part"
    if "anyOf" in node:
        result["anyOf"] = [_loosen(part, definitions) for part in node["anyOf"]]
    if "properties" in node:
        result["properties"] = {k: _loosen(v, definitions) for k, v in node["properties"].items()}
    return result


if __name__ == "__main__":
    for _kind in KINDS:
        write_atomically(shipped_file(_kind), text(_kind).encode())
