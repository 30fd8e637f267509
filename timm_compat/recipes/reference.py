"""The keys of a recipe, for editors (a JSON schema) and for readers (Markdown); both are made from the models."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON schema of a kind of recipe, as editors use it to complete and check YAML files.

    Args:
        kind: a model, such as ``Recipe``.
    """
    schema = TypeAdapter(kind).json_schema(schema_generator=_Generator)
    return {"$schema": DIALECT, **schema}


def markdown(schema: Mapping[str, Any]) -> str:
    """A reference of all keys: a section for each model, with a table of its keys.

    Args:
        schema: as ``json_schema`` makes it.
    """
    models = [schema, *(model for model in schema["$defs"].values() if "properties" in model)]
    return "\n".join(line for model in models for line in _section(model))


class _Generator(GenerateJsonSchema):
    """Descriptions from the classes' docstrings; any scalar where a string is asked for, as the reader takes it."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> dict[str, Any]:
        """Of a model."""
        made = super().dataclass_schema(schema)
        made["additionalProperties"] = False  # older versions of pydantic say so of pydantic's own dataclasses only
        made["description"] = _summary(schema["cls"])
        described = _attributes(schema["cls"])
        for key, about in made["properties"].items():
            about.pop("title", None)
            about["description"] = described[key]
        return made

    def str_schema(self, schema: core_schema.StringSchema) -> dict[str, Any]:
        """Of a string."""
        return {**super().str_schema(schema), "type": ["string", "number", "boolean"]}


def _summary(model: type[Any]) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(model) or "").partition("\n\n")[0].split())


def _attributes(model: type[Any]) -> dict[str, str]:
    """The section "Attributes" of a docstring, and of those that it inherits from: strings by name."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        section = re.split(r"\n\n(?=\S)", section)[0]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def _section(model: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {model['title']}", "", model["description"], "")
    yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
    for key, about in model["properties"].items():
        default = f"`{json.dumps(about['default'])}`" if "default" in about else ""
        if key in model.get("required", ()):
            default = "required"
        cells = (f"`{key}`", _type(about), default, about["description"])
        yield f"| {' | '.join(cells)} |"
    yield ""


def _type(about: Mapping[str, Any]) -> str:
    """A type in words; a model as a link to its section."""
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(map(_type, about["anyOf"])))
    if "allOf" in about:  # how older versions of pydantic describe a reference
        return _type(about["allOf"][0])
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in about:
        return " or ".join(f"`{json.dumps(name)}`" for name in about["enum"])
    kind = about.get("type")
    if kind == "array":
        items = about.get("prefixItems")
        return f"list of {len(items)} × {_type(items[0])}" if items else f"list of {_type(about['items'])}"
    words = {"object": "mapping", "boolean": "true or false"}
    return "string" if isinstance(kind, list) else words.get(str(kind), str(kind))
