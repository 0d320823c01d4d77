"""As much of JSON Schema (draft 2020-12) as our schema uses; what it does not know it refuses."""

import re
from collections.abc import Callable
from typing import Any

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
NOTES = {"$schema", "$comment", "$defs", "title", "description", "default", "examples"}


def is_type(value: Any, name: str) -> bool:
    """In JSON Schema 5.0 is an integer, and true is no number."""
    if name in TYPES:
        return isinstance(value, TYPES[name])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (name == "number" or value == int(value))


# Of values of the keyword's own type; others pass.
SIZES: dict[str, tuple[type, Callable[[Any, Any], bool]]] = {
    "minimum": (float, lambda value, limit: value >= limit),
    "maximum": (float, lambda value, limit: value <= limit),
    "minLength": (str, lambda value, limit: len(value) >= limit),
    "maxLength": (str, lambda value, limit: len(value) <= limit),
    "pattern": (str, lambda value, limit: re.search(limit.replace("$", r"\Z"), value) is not None),
    "minItems": (list, lambda value, limit: len(value) >= limit),
    "maxItems": (list, lambda value, limit: len(value) <= limit),
    "maxProperties": (dict, lambda value, limit: len(value) <= limit),
    "required": (dict, lambda value, limit: all(key in value for key in limit)),
    "uniqueItems": (list, lambda value, _: len({repr(item) for item in value}) == len(value)),
}


def holds(keyword: str, rule: Any, value: Any, schema: dict, root: dict) -> bool:
    """Whether a value keeps one keyword of a schema."""
    if keyword in SIZES:
        kind, check = SIZES[keyword]
        applies = is_type(value, "number") if kind is float else isinstance(value, kind)
        return not applies or check(value, rule)
    if keyword == "type":
        return is_type(value, rule)
    if keyword == "const":
        return type(value) is type(rule) and value == rule
    if keyword in ("anyOf", "oneOf"):
        count = sum(is_valid(value, option, root) for option in rule)
        return count == 1 if keyword == "oneOf" else count > 0
    return keyword in NOTES or _holds_inside(keyword, rule, value, schema, root)


def _holds_inside(keyword: str, rule: Any, value: Any, schema: dict, root: dict) -> bool:
    if keyword == "$ref":
        return is_valid(value, root["$defs"][rule.removeprefix("#/$defs/")], root)
    if keyword == "items":
        return not isinstance(value, list) or all(is_valid(item, rule, root) for item in value)
    members = value if isinstance(value, dict) else {}
    if keyword == "properties":
        return all(is_valid(members[key], rule[key], root) for key in rule if key in members)
    patterns = schema.get("patternProperties", {})
    if keyword == "patternProperties":
        pairs = ((key, pattern) for key in members for pattern in rule)
        return all(
            is_valid(members[key], rule[pattern], root)
            for key, pattern in pairs
            if re.search(pattern, key)
        )
    if keyword == "additionalProperties":
        assert rule is False
        known = schema.get("properties", {})
        return all(key in known or any(re.search(p, key) for p in patterns) for key in members)
    raise NotImplementedError(keyword)


def is_valid(value: Any, schema: dict, root: dict | None = None) -> bool:
    """Whether a value is as a schema says."""
    root = schema if root is None else root
    return all(holds(keyword, rule, value, schema, root) for keyword, rule in schema.items())
