"""What a soft-label store says about itself: the group attribute `ltd_pipe`.

docs/soft-label-store.md is the specification.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.layout import SPARSE, ArrayLayout, parse_layout
from ltd_pipe.params.sections import MAX_TEMPERATURE, MIN_TEMPERATURE, Text

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from ltd_pipe.labels.join import ManifestLike


# --- JSON from people we do not know: no duplicate keys, no NaN, no surprises.


# Ours go seven deep. What is compared, printed or copied later must not exhaust the stack.
_MAX_DEPTH = 32


def parse_object(text: bytes, where: object) -> dict[str, Any]:
    """Parse a JSON object of UTF-8, of a size that the caller has bounded.

    Two parsers may take different ones of two equal keys, so that a checker and a reader
    would see different files; NaN and Infinity are no JSON.
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


# --- Between float16, in which labels are stored, and float32, in which they are computed.
#
# The results are NumPy's to the bit, but small probabilities are below float16's normal numbers,
# where NumPy goes one by one: of float32, 4,194 rows of 1,000 take it 252 ms to round, torch
# 0.7 ms (one core, NumPy 2.4, torch 2.15).
#
# They go block by block on the calling thread: torch would share larger ones among threads that
# wait for each other, which costs more than it gains as soon as other work has the cores.


# Torch starts threads above 32,768 numbers (at::internal::GRAIN_SIZE).
_BLOCK = 2**15
# NumPy takes 0.1 s for so many, importing torch a second: where it is not there yet, a store of
# many rows alone is worth it.
_MANY = 2**20


def to_float16(
    numbers: NDArray[np.floating[Any]], out: NDArray[np.float16] | None = None
) -> NDArray[np.float16]:
    """Round to float16; what is too large becomes infinite. `out` has to be contiguous."""
    rounded = np.empty(numbers.shape, np.float16) if out is None else out
    _convert(numbers, rounded)
    return rounded


def to_float32(numbers: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """A float32 copy, exact for float16."""
    widened = np.empty(numbers.shape, np.float32)
    _convert(numbers, widened)
    return widened


def _convert(numbers: NDArray[np.floating[Any]], out: NDArray[np.floating[Any]]) -> None:
    # Torch rounds float64 twice, by way of float32, and has neither longer nor swapped numbers.
    if numbers.dtype not in (np.float16, np.float32) or (
        "torch" not in sys.modules and numbers.size < _MANY
    ):
        with np.errstate(over="ignore"):
            out[...] = numbers
        return
    import torch

    source, target = np.ascontiguousarray(numbers).reshape(-1), torch.from_numpy(out).view(-1)
    for start in range(0, source.size, _BLOCK):
        block = source[start : start + _BLOCK]
        # Torch warns of memory that must not be written to, such as a mapped file.
        block = block if block.flags.writeable else block.copy()
        target[start : start + _BLOCK].copy_(torch.from_numpy(block))


# --- What a soft-label store says about itself: the group attribute `ltd_pipe`.


FORMAT = "ltd-soft-labels"
# A later one is written where a key is used that those before do not know; their readers ignore it.
VERSIONS = "1.0", "1.1", "1.2"
ATTRIBUTE = "ltd_pipe"
_CHUNK_BYTES = 8 * 2**20
# So that an interrupted run loses at most so many images, however few classes there are.
_CHUNK_ROWS = 8192

# Left out where there is nothing to say.
_OPTIONAL = ("licence", "citation", "derived_from", "top_k", "labelling", "calibration")

# Likewise, of a teacher.
_NEWER = ("mean", "std", "columns")

# Of the attribute and of anything in it; class names are no keys.
_MAX_KEYS = 1000

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# One line, and nothing that moves a terminal's cursor when it is printed.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
# The first wrong one of millions is enough.
_Many = Field(strict=False, max_length=10_000), FailFast()


# One number for each channel.
_Channels = Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=4)]
_Column = Annotated[int, Field(ge=0, le=2**24)]
_Side = Annotated[int, Field(ge=1, le=2**16)]
_Shape = Annotated[tuple[_Side, ...], Field(strict=False, min_length=3, max_length=3)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DatasetFacts(_Facts):
    """The images that the labels belong to."""

    name: Line = Field(description="as the images' manifest has it")
    split: Line = Field(description="train or test")
    fingerprint: Sha256 = Field(description="see ltd_pipe.images.manifest")

    @classmethod
    def of(cls, images: ManifestLike) -> DatasetFacts:
        """The images that a manifest tells of."""
        return cls(name=images.dataset, split=images.split, fingerprint=images.fingerprint)


class TeacherFacts(_Facts):
    """One network that gave the labels."""

    sha256: Sha256 = Field(description="of the checkpoint's bytes")
    architecture: Line = Field(description="a name of ltd_pipe.models.registry")
    clean_accuracy: float | None = Field(None, ge=0, le=1, description="a fraction; null: unknown")
    mean: _Channels | None = Field(None, description="subtracted from images in [0, 1]")
    std: _Channels | None = Field(None, description="then divides them")
    columns: Annotated[tuple[_Column, ...], Field(strict=False), FailFast()] = Field(
        (), description="the network's output of each class; empty: in the classes' order"
    )

    @property
    def normalisation(self) -> str:
        """What is done to its images, as people read it."""
        if self.mean is None or self.std is None:
            return "unknown"
        mean, std = (", ".join(f"{value:g}" for value in v) for v in (self.mean, self.std))
        order = "; classes in an order of its own" if self.columns else ""
        return f"mean {mean}, std {std}{order}"


class ViewFacts(_Facts):
    """Which augmented views of each image were labelled."""

    count: int = Field(1, ge=1, le=2**16, description="V")
    # Beyond 2^53 not every JSON parser keeps a number.
    seed: int | None = Field(None, ge=0, le=2**53, description="of the augmentation")
    augmentation: Line | None = Field(
        None, max_length=200, description="such as crop:4,flip; null: the image as it is"
    )

    @model_validator(mode="after")
    def _views_differ(self) -> ViewFacts:
        if self.augmentation is None and self.count > 1:
            raise ValueError("several views without an augmentation would all be the same")
        if (self.augmentation is None) != (self.seed is None):
            raise ValueError("an augmentation has a seed, and a seed is an augmentation's")
        return self


class DistanceFacts(_Facts):
    """Total variation between sparse rows and the dense ones that they stand for."""

    mean: float = Field(ge=0, le=1, description="over rows")
    worst: float = Field(ge=0, le=1, description="of all rows")
    samples: int = Field(ge=1, le=2**40, description="on how many samples it was measured")

    @classmethod
    def measured(cls, mean: float, worst: float, samples: int) -> DistanceFacts:
        """To six digits, so that the order of a sum cannot show."""
        return cls(mean=float(f"{mean:.6g}"), worst=float(f"{worst:.6g}"), samples=samples)


class TopKFacts(_Facts):
    """Labels of which only the k largest probabilities are stored."""

    k: int = Field(ge=1, description="probabilities per row")
    total_variation: DistanceFacts | None = Field(None, description="null: never measured")

    @classmethod
    def measured(cls, k: int, distances: NDArray[np.float32]) -> TopKFacts:
        """By the distances of all samples, of shape (N,) or (N, V)."""
        mean, worst = float(distances.mean(dtype=np.float64)), float(distances.max())
        return cls(k=k, total_variation=DistanceFacts.measured(mean, worst, len(distances)))


_Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]


# Calibration looks between these, far beyond what has been found of trained networks.
COLDEST, HOTTEST = 0.05, 20.0


class CalibrationFacts(_Facts):
    """Of a temperature at which the truth's negative log likelihood was least."""

    interval: Annotated[tuple[_Temperature, ...], Field(strict=False)] = Field(
        min_length=2, max_length=2, description="the bootstrap's 95 % interval of that temperature"
    )
    nll: float = Field(ge=0, description="the least, mean over images, in nats")
    samples: int = Field(ge=1, le=2**40, description="images that the teachers had not trained on")

    def __str__(self) -> str:
        low, high = self.interval
        ends = " (an end of the search)" if low <= COLDEST or high >= HOTTEST else ""
        return (
            f"95 % interval {low:.3g} to {high:.3g}{ends}; negative log likelihood {self.nll:.4f} "
            f"on {self.samples:,} held-out images"
        )


class LabellingFacts(_Facts):
    """How the teachers were asked, as far as it is known."""

    image_shape: _Shape | None = Field(
        None, description="channels, height, width of the images as the teachers saw them"
    )
    resize: Line | None = Field(None, max_length=200, description="how images came to that size")
    channels: Line | None = Field(None, max_length=200, description="how they came to channels")
    pixels_sha256: Sha256 | None = Field(
        None, description="of some of their pixels, see ltd_pipe.images.manifest"
    )
    precision: Line | None = Field(
        None, max_length=40, description="of the teachers' arithmetic, such as float32"
    )
    commit: str | None = Field(
        None, pattern="^[0-9a-f]{7,64}$", description="of ltd-pipe's code; null: it was no checkout"
    )
    modified: bool | None = Field(None, description="whether its files differed from the commit")

    def lines(self) -> Iterator[tuple[str, str]]:
        """What is known, as people read it: a name and a text each."""
        if self.image_shape is not None:
            channels, height, width = self.image_shape
            of = f"{channels} channel{'s' if channels > 1 else ''}"
            how = "; ".join(text for text in (self.channels, self.resize) if text)
            yield "images seen", f"{width}×{height} pixels, {of}" + (f" ({how})" if how else "")
        if self.pixels_sha256 is not None:
            yield "pixels", self.pixels_sha256
        if self.precision is not None:
            yield "precision", self.precision
        if self.commit is not None:
            yield "commit", self.commit + (", modified" if self.modified else "")


class DerivationFacts(_Facts):
    """How a store was made from others."""

    operation: Line = Field(min_length=1, max_length=40, description="such as subset or merge")
    sources: Annotated[tuple[Line, ...], *_Many] = Field(
        description="identities of the stores, or what other files are called"
    )


class StoreFacts(_Facts):
    """What is known of a store before its first label is written."""

    num_samples: int = Field(ge=1, le=2**40, description="N")
    num_classes: int = Field(ge=1, le=2**24, description="K")
    class_names: Annotated[tuple[Line, ...], Field(strict=False), FailFast()] = Field(
        description="of the K classes, in the order of the columns"
    )
    dataset: DatasetFacts = Field(description="the images")
    teachers: Annotated[tuple[TeacherFacts, ...], *_Many] = Field(
        description="one, or several whose probabilities were averaged"
    )
    views: ViewFacts = Field(ViewFacts(), description="the views of each image")
    software: dict[Line, Line] = Field({}, description="package to version")
    licence: Text | None = Field(None, description="an SPDX name, or a text")
    citation: Text | None = Field(None, description="how to cite the labels")
    derived_from: DerivationFacts | None = Field(
        None, description="null: these are the teachers' own answers"
    )
    labelling: LabellingFacts | None = Field(
        None, description="how the teachers were asked; null: unknown"
    )

    @field_validator("class_names")
    @classmethod
    def _names_are_distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        return names

    @model_validator(mode="after")
    def _each_class_has_a_name(self) -> StoreFacts:
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes have {len(self.class_names)} class_names")
        return self

    @property
    def decides(self) -> dict[str, Any]:
        """What decides the labels, as plain values: not the commit, which comments change, too."""
        apart: Any = dict.fromkeys(("temperature", "top_k", "calibration"), True)
        apart["labelling"] = {"commit", "modified"}
        return self.model_dump(mode="json", exclude=apart)

    def layout(self, name: str, rows: int = 1, top_k: int | None = None) -> ArrayLayout:
        """Where the rows of one array are; see `ArrayLayout`."""
        views = self.views.count
        return ArrayLayout(name, self.num_samples, self.num_classes, rows, views, top_k or 0)

    def rows_per_chunk(self, top_k: int | None = None) -> int:
        """Whole rows in a chunk: about 8 MiB of the widest array, at most 8192 rows.

        All arrays of a store have the same, so that one part of the samples is one file of each.
        """
        row_bytes = max(self.layout(name, 1, top_k).payload_bytes for name in self.widest(top_k))
        return min(max(_CHUNK_BYTES // row_bytes, 1), _CHUNK_ROWS)

    def widest(self, top_k: int | None = None) -> tuple[str, ...]:
        """The arrays of most bytes per row."""
        return SPARSE if top_k else ("soft_labels",)


class StoreAttributes(StoreFacts):
    """All of the attribute `ltd_pipe`, less `format` and `version`."""

    temperature: float = Field(
        ge=MIN_TEMPERATURE,
        le=MAX_TEMPERATURE,
        description="the teachers' logits were divided by it",
    )
    top_k: TopKFacts | None = Field(None, description="null: each row has all K probabilities")
    calibration: CalibrationFacts | None = Field(
        None, description="how the temperature was found; null: otherwise, or it was given"
    )

    @model_validator(mode="after")
    def _ranks_are_classes(self) -> StoreAttributes:
        if self.top_k and self.top_k.k > self.num_classes:
            raise ValueError(f"top_k.k is {self.top_k.k}, and there are {self.num_classes} classes")
        return self

    @property
    def version(self) -> str:
        """The oldest version of the format that knows all keys."""
        newer = [each.mean or each.std or each.columns for each in self.teachers]
        return VERSIONS[2 if self.calibration else 1 if self.labelling or any(newer) else 0]

    def to_json(self) -> dict[str, Any]:
        """Plain values in a fixed order, what names the format first."""
        content = self.model_dump(mode="json")
        content["software"] = dict(sorted(self.software.items()))
        content["teachers"] = [_said(each, _NEWER) for each in content["teachers"]]
        if self.labelling is not None:
            content["labelling"] = _said(content["labelling"], LabellingFacts.model_fields)
        first = {"format": FORMAT, "version": self.version}
        return first | _said({"temperature": content.pop("temperature")} | content, _OPTIONAL)


def _said(content: dict[str, Any], optional: Collection[str]) -> dict[str, Any]:
    # Without the optional keys that have nothing to say.
    return {k: v for k, v in content.items() if k not in optional or v not in (None, [])}


def parse_attributes(raw: Any, where: object) -> StoreAttributes:
    """Validate the attribute `ltd_pipe` of a store, parsed from JSON.

    Keys that version 1.2 does not know are refused in a store of versions 1.0 to 1.2 and ignored
    in a newer one of 1.y.
    """
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise StoreError(
            where,
            f"is no soft-label store: attribute '{ATTRIBUTE}' is not of format '{FORMAT}'",
            remedy="Make one with 'ltd-pipe label'.",
        )
    minor = minor_version(raw, where)
    _require_few_keys(raw, where)
    content = {key: value for key, value in raw.items() if key not in ("format", "version")}
    extra: Literal["ignore", "forbid"] = "ignore" if minor >= len(VERSIONS) else "forbid"
    try:
        return StoreAttributes.model_validate(content, extra=extra)
    except ValidationError as error:
        raise _refused(error.errors()[0], where) from error


def minor_version(raw: dict[str, Any], where: object) -> int:
    """The y of version 1.y of an attribute `ltd_pipe`; another major version is refused."""
    version = raw.get("version")
    match = (
        re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", version) if isinstance(version, str) else None
    )
    if match is None or match[1] != "1":
        raise StoreError(
            where,
            "is of a version that this ltd-pipe does not read",
            expected="1.x",
            found=repr(version)[:40],
            remedy="Update ltd-pipe.",
        )
    return int(match[2])


def _require_few_keys(raw: dict[str, Any], where: object) -> None:
    # Each unknown one would become an error of its own, of a kilobyte.
    for content in (raw, *raw.values()):
        if isinstance(content, dict) and len(content) > _MAX_KEYS:
            raise StoreError(
                where,
                f"{ATTRIBUTE}: too many keys",
                expected=f"at most {_MAX_KEYS}",
                found=len(content),
            )


def _refused(first: ErrorDetails, where: object) -> StoreError:
    # Keys, too, may hold what moves a terminal's cursor.
    key = ".".join(ascii(part).strip("'")[:80] for part in (ATTRIBUTE, *first["loc"]))
    return StoreError(where, f"{key}: {first['msg']}", found=ascii(first["input"])[:80])


# --- What a store says of itself: the group's zarr.json, and each array's.


# Class names fit many times over.
_MAX_METADATA_BYTES = 2**24
_KNOWN = frozenset(("soft_labels", "logits", *SPARSE, "labels", "sample_hash"))


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
    """
    root = parse_object(read("zarr.json", _MAX_METADATA_BYTES), f"{where}/zarr.json")
    raw = _nested(root, "attributes", ATTRIBUTE)
    attributes = parse_attributes(raw, where)
    if root.get("zarr_format") != 3 or root.get("node_type") != "group":
        raise StoreError(where, "zarr.json is not that of a Zarr v3 group")
    members = _nested(root, "consolidated_metadata", "metadata")
    if not isinstance(members, dict):
        raise StoreError(where, "zarr.json has no consolidated metadata")
    if minor_version(raw, where) == 0 and (unknown := members.keys() - _KNOWN):
        raise StoreError(
            where, "has an array that format 1.0 does not know", found=ascii(min(unknown))[:80]
        )
    layouts = {}
    top_k = attributes.top_k.k if attributes.top_k else None
    for name in _array_names(attributes, members, where):
        content = read(f"{name}/zarr.json", _MAX_METADATA_BYTES)
        metadata = parse_object(content, f"{where}/{name}/zarr.json")
        if metadata != members[name]:
            raise StoreError(where, f"{name}/zarr.json differs from the consolidated metadata")
        layouts[name] = parse_layout(metadata, attributes.layout(name, top_k=top_k), where)
    rows = {name: layout.rows for name, layout in layouts.items()}
    if len(set(rows.values())) > 1:
        raise StoreError(
            where, "arrays differ in the rows of a chunk", expected="equal", found=rows
        )
    return attributes, layouts


def _nested(content: dict[str, Any], first: str, second: str) -> Any:
    inner = content.get(first)
    return inner.get(second) if isinstance(inner, dict) else None


def _array_names(
    attributes: StoreAttributes, members: Mapping[str, Any], where: object
) -> list[str]:
    # Also what should not be there at all is refused: a reader might take it for the labels.
    sparse = attributes.top_k is not None
    for name in ("soft_labels", "logits") if sparse else SPARSE:
        if name in members:
            kind = "a top-k store" if sparse else "a store without top_k"
            raise StoreError(where, f"{kind} has the array '{name}'")
    names = [*(SPARSE if sparse else ["soft_labels"]), "labels", "sample_hash"]
    for name in names:
        if name not in members:
            raise StoreError(
                where, f"has no array '{name}'", remedy="A newer ltd-pipe may read it."
            )
    return [*names, "logits"] if "logits" in members else names
