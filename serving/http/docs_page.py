"""The contract as one HTML page that needs no network and no script.

It depends on OpenAPI alone.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

Json = dict[str, Any]
BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "minLength": "from {} characters",
    "maxLength": "to {} characters",
    "minItems": "from {} of them",
    "maxItems": "to {} of them",
    "pattern": "matches {}",
    "format": "{}",
    "default": "default {}",
}


def render(document: Json) -> str:
    """The page."""
    grouped: dict[str, list[Json]] = {tag["name"]: [] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            grouped[operation["tags"][0]].append({"path": path, "method": method.upper(), **operation})
    return _template().render(document=document, groups=grouped)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": kind, "limits": limits, "prose": prose, "pretty": pretty}
    return environment.get_template("docs.html")


def kind(schema: Json) -> Markup:
    """What a value is, in a word or two, with links to what has a name."""
    if ref := schema.get("$ref"):
        name = ref.split("/")[-1]
        return Markup('<a href="#{0}">{0}</a>').format(name)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return Markup(" or ").join(kind(each) for each in schema[several] if each.keys() != {"properties"})
    if "const" in schema:
        return Markup("<code>{}</code>").format(_text(schema["const"]))
    if "enum" in schema:
        return Markup(" or ").join(Markup("<code>{}</code>").format(_text(each)) for each in schema["enum"])
    if schema.get("type") == "array":
        return Markup("list of {}").format(kind(schema.get("items", {})))
    if isinstance(of := schema.get("additionalProperties"), dict):
        return Markup("object of {}").format(kind(of))
    return escape(schema.get("type", "anything"))


def limits(schema: Json) -> Markup:
    """The bounds of a value."""
    parts = [schema, *schema.get("anyOf", [])]
    found = [text.format(_text(part[name])) for part in parts for name, text in BOUNDS.items() if name in part]
    return escape(", ".join(dict.fromkeys(found)))


def prose(text: str) -> Markup:
    """Text as HTML: paragraphs, and `code`."""
    paragraphs = (re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(part))) for part in text.split("\n\n"))
    return Markup("".join(f"<p>{part}</p>" for part in paragraphs))


def pretty(value: object) -> str:
    """JSON to read."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
