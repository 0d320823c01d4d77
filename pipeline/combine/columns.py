"""A table of labels in a file of another format, read from its beginning to its end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import StoreError
from pipeline.labels.format import ATTRIBUTE, StoreAttributes, parse_attributes
from pipeline.labels.strict_json import parse_object

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.combine.source import ProvenStore

__all__ = ["CHUNK_ROWS", "WIDE", "Carried", "Columns", "carried_text", "parse_carried"]

# The arrays that have an answer for each row.
WIDE = ("soft_labels", "logits", "topk_indices", "topk_probs")
CHUNK_ROWS = "chunk_rows"


@dataclass(frozen=True)
class Carried:
    """What a file that was made of a store says of that store.

    Attributes
    ----------
    attributes : StoreAttributes
    rows : int
        Rows per chunk: with them the store made of the file is the same to the byte.
    """

    attributes: StoreAttributes
    rows: int


class Columns(Protocol):
    """An opened file: `NpzColumns` or `ParquetColumns`.

    Attributes
    ----------
    path : Path
    carried : Carried or None
        None when the file was not made of a store.
    num_samples : int
    row_shapes : dict of str to tuple of int
        Of each wide array.
    """

    path: Path
    carried: Carried | None
    num_samples: int
    row_shapes: dict[str, tuple[int, ...]]

    def column(self, name: str) -> NDArray[Any] | None:
        """All of `labels` or `sample_hash`, or None when the file has none."""

    def take(self, count: int) -> dict[str, NDArray[Any]]:
        """The next rows of each wide array."""

    def close(self) -> None:
        """Close the file."""


def carried_text(source: ProvenStore) -> str:
    """The attributes and the rows per chunk of a store, as JSON."""
    content = {ATTRIBUTE: source.store.attributes.to_json(), CHUNK_ROWS: source.rows}
    return json.dumps(content, allow_nan=False)


def parse_carried(text: str | bytes, where: Path) -> Carried:
    """Read what `carried_text` wrote.

    Raises
    ------
    StoreError
        When it is damaged.
    """
    content = parse_object(text.encode() if isinstance(text, str) else text, where)
    rows = content.get(CHUNK_ROWS)
    attributes = parse_attributes(content.get(ATTRIBUTE), where)
    if type(rows) is not int or not 1 <= rows <= attributes.num_samples:
        raise StoreError(
            where, CHUNK_ROWS, expected=f"1 to {attributes.num_samples}", found=repr(rows)[:40]
        )
    return Carried(attributes, rows)
