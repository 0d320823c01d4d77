"""Stores of labels that another program made, in the files of tables.py and foreign.py."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from ltd_pipe import provenance
from ltd_pipe.errors import ParamsError
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.manifest import fingerprint, sample_hash
from ltd_pipe.images.sources import FolderSource
from ltd_pipe.labels.derive import DerivedStore, chunk_rows
from ltd_pipe.labels.format import (
    DatasetFacts,
    Line,
    StoreAttributes,
    TeacherFacts,
    TopKFacts,
)
from ltd_pipe.labels.layout import SPARSE
from ltd_pipe.labels.softmax import (
    expand,
    largest,
    require_temperature,
    require_top_k,
    round_logits,
    round_soft_labels,
    round_topk,
    soften,
)
from ltd_pipe.params.sections import Text
from ltd_pipe.threads import in_threads

if TYPE_CHECKING:
    from ltd_pipe.labels.derive import Block
    from ltd_pipe.labels.join import ImagesLike, ManifestLike


# --- The images that rows are joined to: a beton, or a folder that is hashed, not decoded.


class FolderFacts(NamedTuple):
    """What the images of a folder are."""

    dataset: str
    split: str
    num_samples: int
    class_names: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class HashedImages:
    """A folder's images as labels are joined to them.

    Attributes
    ----------
    manifest : FolderFacts
    labels : ndarray of shape (N,), dtype int32
    sample_hash : ndarray of shape (N,), dtype uint64
    files : tuple of str
        Each image's path within the folder, with `/`.
    """

    manifest: FolderFacts
    labels: NDArray[np.int32]
    sample_hash: NDArray[np.uint64]
    files: tuple[str, ...]

    @classmethod
    def read(
        cls,
        folder: Path,
        class_names: Sequence[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> HashedImages:
        """Hash all images of a folder with one folder per class; see `FolderSource`."""
        source = FolderSource(folder, class_names)
        names, labels, count = source.class_names, source.labels, len(source)
        hashes = np.empty(count, np.uint64)
        for i, each in enumerate(in_threads(lambda i: sample_hash(source.raw(i)), count)):
            hashes[i] = each
            if progress is not None:
                progress(1)
        whole = fingerprint(names, labels, hashes)
        files = tuple(path.relative_to(folder).as_posix() for path in source.paths)
        facts = FolderFacts(source.name, source.split, count, names, whole)
        return cls(facts, labels, hashes, files)


def open_images(
    path: Path,
    class_names: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImagesLike:
    """Open a beton, or hash a folder of images, which has these classes."""
    return HashedImages.read(path, class_names, progress) if path.is_dir() else open_beton(path)


# --- What other programs leave, and what is known of it: only what can be proved or is told.


class LabelFiles(abc.ABC):
    """Opened labels of another program: a table, or a file for each image.

    Attributes
    ----------
    path : Path
        For errors.
    arrays : frozenset of str
        What `read` gives: soft_labels, logits or both, or topk_indices and topk_probs.
    top_k : int or None
        Of sparse labels, or means of such: so many are kept unless the user says.
    """

    path: Path
    arrays: frozenset[str]
    top_k: int | None = None

    @abc.abstractmethod
    def read(self, index: NDArray[np.int64]) -> Block:
        """Some rows of each array; they are read once, in their order."""

    @abc.abstractmethod
    def origin(self) -> str:
        """What was read, once all of it was."""


@dataclass(frozen=True)
class Origin:
    """What the person who converts labels knows of them.

    Attributes
    ----------
    teacher_sha256, architecture : str or None
        Both or neither: a store names a teacher by the hash of its weights.
    temperature : float
        That the logits were divided by.
    licence, citation : str or None
    """

    teacher_sha256: str | None = None
    architecture: str | None = None
    temperature: float = 1.0
    licence: str | None = None
    citation: str | None = None

    def __post_init__(self) -> None:
        require_temperature(self.temperature)
        if (self.teacher_sha256 is None) != (self.architecture is None):
            raise ParamsError(
                "teacher",
                "is named by the SHA-256 of its weights and by its architecture",
                expected="both, or neither",
                found="one of them",
            )
        sha256 = self.teacher_sha256 or "0" * 64
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise ParamsError(
                "teacher",
                "SHA-256",
                expected="64 lower-case hexadecimal digits, as sha256sum prints them",
                found=repr(sha256)[:80],
            )
        kinds: dict[str, Any] = {"architecture": Line, "licence": Text, "citation": Text}
        for name, kind in kinds.items():
            text = getattr(self, name)
            try:
                TypeAdapter(kind | None).validate_python(text)
            except ValidationError as error:
                found = repr(text)[:60]
                raise ParamsError(name, error.errors()[0]["msg"], found=found) from error

    def attributes(
        self,
        images: ManifestLike,
        labels: NDArray[np.int32],
        hashes: NDArray[np.uint64],
        top_k: int | None,
    ) -> StoreAttributes:
        """Attributes of a store of such labels of these images."""
        if top_k is not None:
            require_top_k("top_k", top_k, len(images.class_names))
        teachers = []
        if self.teacher_sha256 and self.architecture:
            teachers = [TeacherFacts(sha256=self.teacher_sha256, architecture=self.architecture)]
        found = {"fingerprint": fingerprint(images.class_names, labels, hashes)}
        return StoreAttributes(
            temperature=self.temperature,
            num_samples=len(labels),
            num_classes=len(images.class_names),
            class_names=images.class_names,
            dataset=DatasetFacts.of(images).model_copy(update=found),
            teachers=tuple(teachers),
            software=provenance.software(),
            licence=self.licence,
            citation=self.citation,
            top_k=TopKFacts(k=top_k) if top_k else None,
        )


def convert(
    files: LabelFiles,
    attributes: StoreAttributes,
    labels: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    rows: int | None = None,
) -> DerivedStore:
    """A store of the rows of other files, checked and rounded as a teacher's answers are.

    Parameters
    ----------
    files : LabelFiles
    attributes : StoreAttributes
    labels, hashes : ndarray of shape (N,)
        Ground truth and sample_hash of each row.
    rows : int, optional
        Rows per chunk, of files that were made of a store: its attributes are complete.
    """
    keep, num_classes = attributes.top_k.k if attributes.top_k else None, attributes.num_classes

    def block(index: NDArray[np.int64]) -> Block:
        given, first, taken = files.read(index), int(index[0]), dict[str, "NDArray[Any]"]()
        if "topk_probs" in given:
            sparse = given["topk_indices"], given["topk_probs"]
            if keep == files.top_k:
                checked = round_topk(*sparse, num_classes, first, files.path)
                return dict(zip(SPARSE, checked, strict=True))
            given["soft_labels"] = expand(*sparse, num_classes)
        if "logits" in given:
            taken["logits"] = round_logits(given["logits"], first, files.path)
        if "soft_labels" not in given:
            given["soft_labels"] = soften(taken["logits"], attributes.temperature)
        if not keep:
            soft = round_soft_labels(given["soft_labels"], first, files.path)
            return taken | {"soft_labels": soft}
        if "logits" in files.arrays:
            return {"soft_labels": given["soft_labels"]}
        # What was lost is known only where all of it was there.
        return dict(zip(SPARSE, largest(given["soft_labels"], keep), strict=True))

    dense = ("soft_labels", "logits") if "logits" in files.arrays else ("soft_labels",)
    return DerivedStore(
        attributes,
        labels,
        hashes,
        SPARSE if keep else dense,
        block,
        rows or chunk_rows([], attributes),
        origin=files.origin if rows is None else None,
        verify=True,
    )
