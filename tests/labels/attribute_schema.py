"""docs/soft-label-store.schema.json: the attribute `ltd_pipe` for programs that do not use ours.

After a change of the format: python tests/labels/attribute_schema.py
"""

import json
from pathlib import Path
from typing import Any

from golden_store import WRITERS

from ltd_pipe.labels.format import FORMAT, VERSIONS, StoreAttributes

SCHEMA = Path(__file__).parents[2] / "docs" / "soft-label-store.schema.json"
COMMENT = (
    "What a schema cannot say: class_names are num_classes; top_k.k is at most num_classes; whole"
    " numbers are written without a fraction. A reader of 1.0 ignores unknown keys in a store of"
    " a later 1.y."
)
# Both or neither, and without an augmentation one view.
VIEWS = [
    {
        "properties": {
            "count": {"const": 1},
            "seed": {"type": "null"},
            "augmentation": {"type": "null"},
        }
    },
    {
        "required": ["seed", "augmentation"],
        "properties": {"seed": {"type": "integer"}, "augmentation": {"type": "string"}},
    },
]


def bare(node: Any) -> Any:
    """Without the titles that pydantic makes of our names."""
    if isinstance(node, list):
        return [bare(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {
        key: bare(child)
        for key, child in node.items()
        if not (key == "title" and isinstance(child, str))
    }


def golden_attributes() -> list[dict[str, Any]]:
    """Of the stores that are checked in."""
    files = [Path(__file__).parent / f"{kind}.zarr" / "zarr.json" for kind in WRITERS]
    return [json.loads(file.read_text())["attributes"]["ltd_pipe"] for file in files]


def make_schema() -> dict[str, Any]:
    """The schema, from the classes that read the attribute."""
    made = bare(StoreAttributes.model_json_schema())
    properties = made["properties"]
    properties["class_names"] |= {"minItems": 1, "uniqueItems": True}
    properties["software"] |= {"additionalProperties": False, "maxProperties": 1000}
    made["$defs"]["ViewFacts"]["oneOf"] = VIEWS
    versions = {"anyOf": [{"const": version} for version in VERSIONS]}
    head = {"format": {"const": FORMAT}, "version": versions}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ltd_pipe",
        "description": "The group attribute ltd_pipe of a soft-label store, versions 1.0 to 1.2.",
        "$comment": COMMENT,
        "type": "object",
        "additionalProperties": False,
        "required": [*head, *made["required"]],
        "properties": head | properties,
        "$defs": made["$defs"],
        "examples": golden_attributes(),
    }


def schema_text() -> str:
    """As it is checked in."""
    return json.dumps(make_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text())
