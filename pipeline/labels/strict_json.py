"""JSON from people we do not know: no duplicate keys, no NaN, no surprises."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import StoreError

__all__ = ["parse_object"]

# Ours go seven deep. What is compared, printed or copied later must not exhaust the stack.
_MAX_DEPTH = 32


def parse_object(text: bytes, where: object) -> dict[str, Any]:
    """Parse a JSON object.

    Two parsers may take different ones of two equal keys, so that a checker and a reader
    would see different files; NaN and Infinity are no JSON.

    Parameters
    ----------
    text : bytes
        UTF-8, of a size that the caller has bounded.
    where : object
        The file, for the error.

    Raises
    ------
    StoreError
        When it is anything but one JSON object.
    """
    try:
        content = json.loads(
            text.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise StoreError(where, f"is not JSON that a store may hold ({error})") from error
    if not isinstance(content, dict):
        raise StoreError(where, "is not a JSON object")
    _require_shallow(content, where)
    return content


def _require_shallow(content: dict[str, Any], where: object) -> None:
    level: list[Any] = [content]
    for _ in range(_MAX_DEPTH):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for node in inner for child in node if isinstance(child, dict | list)]
        if not level:
            return
    raise StoreError(where, f"is nested more than {_MAX_DEPTH} deep")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:80]!a} occurs twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
