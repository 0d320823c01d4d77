"""What a store says of itself: the group's and the arrays' zarr.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError
from pipeline.labels.arrays import ArrayLayout, parse_layout
from pipeline.labels.format import (
    ATTRIBUTE,
    StoreAttributes,
    minor_version,
    parse_attributes,
)
from pipeline.labels.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["parse_metadata"]

# Twenty thousand class names fit many times over.
_MAX_METADATA_BYTES = 2**24
_SPARSE = ("topk_indices", "topk_probs")
_KNOWN = frozenset(("soft_labels", "logits", *_SPARSE, "labels", "sample_hash"))


def parse_metadata(
    where: Path | str, read: Callable[[str, int], bytes]
) -> tuple[StoreAttributes, dict[str, ArrayLayout]]:
    """Read what a store says of itself, before any of its chunks.

    Parameters
    ----------
    where : Path or str
        The store, for the error.
    read : callable
        From a file's name and the largest size that it may have to its bytes, which must be
        those that the manifest lists.

    Returns
    -------
    StoreAttributes
    dict of str to ArrayLayout
        By name, with equal rows per chunk.

    Raises
    ------
    StoreError
        When the metadata are not those of the format.
    """
    root = parse_object(read("zarr.json", _MAX_METADATA_BYTES), f"{where}/zarr.json")
    attributes = parse_attributes(_nested(root, "attributes", ATTRIBUTE), where)
    if root.get("zarr_format") != 3 or root.get("node_type") != "group":
        raise StoreError(where, "zarr.json is not that of a Zarr v3 group")
    members = _nested(root, "consolidated_metadata", "metadata")
    if not isinstance(members, dict):
        raise StoreError(where, "zarr.json has no consolidated metadata")
    if minor_version(root["attributes"][ATTRIBUTE], where) == 0:
        _require_known(members, where)
    layouts = {}
    top_k = attributes.top_k.k if attributes.top_k else None
    for name in _names(attributes, members, where):
        if name not in members:
            raise StoreError(
                where, f"has no array '{name}'", remedy="A newer ltd-pipe may read it."
            )
        content = read(f"{name}/zarr.json", _MAX_METADATA_BYTES)
        metadata = parse_object(content, f"{where}/{name}/zarr.json")
        if metadata != members[name]:
            raise StoreError(where, f"{name}/zarr.json differs from the consolidated metadata")
        layouts[name] = parse_layout(metadata, attributes.layout(name, top_k=top_k), where)
    _require_equal_rows(layouts, where)
    return attributes, layouts


def _require_known(members: Mapping[str, Any], where: object) -> None:
    unknown = members.keys() - _KNOWN
    if unknown:
        raise StoreError(
            where, "has an array that format 1.0 does not know", found=ascii(min(unknown))[:80]
        )


def _names(attributes: StoreAttributes, members: Mapping[str, Any], where: object) -> list[str]:
    # Also what should not be there at all is refused: a reader might take it for the labels.
    sparse = attributes.top_k is not None
    for name in ("soft_labels", "logits") if sparse else _SPARSE:
        if name in members:
            kind = "a top-k store" if sparse else "a store without top_k"
            raise StoreError(where, f"{kind} has the array '{name}'")
    logits = ["logits"] if "logits" in members else []
    soft = list(_SPARSE) if sparse else ["soft_labels"]
    return [*soft, "labels", "sample_hash", *logits]


def _nested(content: dict[str, Any], first: str, second: str) -> Any:
    inner = content.get(first)
    return inner.get(second) if isinstance(inner, dict) else None


def _require_equal_rows(layouts: dict[str, ArrayLayout], where: object) -> None:
    rows = {name: layout.rows for name, layout in layouts.items()}
    if len(set(rows.values())) > 1:
        raise StoreError(
            where, "arrays differ in the rows of a chunk", expected="equal", found=rows
        )
