"""What is known of labels that another program made: only what can be proved or is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import provenance
from pipeline.errors import ParamsError
from pipeline.images.fingerprint import fingerprint
from pipeline.labels.format import (
    DatasetFacts,
    DerivationFacts,
    StoreAttributes,
    TeacherFacts,
    TopKFacts,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.labels.join import ManifestLike

__all__ = ["Origin", "foreign_attributes"]


@dataclass(frozen=True)
class Origin:
    """What the person who converts labels knows of them.

    Attributes
    ----------
    teachers : tuple of TeacherFacts
        Empty: unknown. A store names a teacher by the hash of its weights, so a name alone
        is not enough.
    temperature : float
        That the logits were divided by.
    licence, citation : str or None
    """

    teachers: tuple[TeacherFacts, ...] = ()
    temperature: float = 1.0
    licence: str | None = None
    citation: str | None = None

    @classmethod
    def told(
        cls,
        sha256: str | None,
        architecture: str | None,
        temperature: float | None,
        licence: str | None = None,
        citation: str | None = None,
    ) -> Origin:
        """From a teacher's hash and architecture: both or neither.

        Raises
        ------
        ParamsError
            When one is missing, or the hash is none.
        """
        if (sha256 is None) != (architecture is None):
            raise ParamsError(
                "teacher",
                "is named by the SHA-256 of its weights and by its architecture",
                expected="both, or neither",
                found="one of them",
            )
        teachers: tuple[TeacherFacts, ...] = ()
        if sha256 is not None and architecture is not None:
            if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
                raise ParamsError(
                    "teacher",
                    "SHA-256",
                    expected="64 lower-case hexadecimal digits, as sha256sum prints them",
                    found=repr(sha256)[:80],
                )
            teachers = (TeacherFacts(sha256=sha256, architecture=architecture),)
        return cls(teachers, 1.0 if temperature is None else temperature, licence, citation)


def foreign_attributes(
    origin: Origin,
    images: ManifestLike,
    labels: NDArray[np.int32],
    sample_hash: NDArray[np.uint64],
    sources: tuple[str, ...],
    top_k: int | None,
) -> StoreAttributes:
    """Attributes of a store whose rows another program made.

    Parameters
    ----------
    origin : Origin
    images : ManifestLike
        The images that the rows belong to.
    labels, sample_hash : ndarray of shape (N,)
        Of the rows, in their order.
    sources : tuple of str
        What the labels were converted from.
    top_k : int, optional
        Of sparse labels; how far they are from dense ones is unknown.
    """
    return StoreAttributes(
        temperature=origin.temperature,
        num_samples=len(labels),
        num_classes=len(images.class_names),
        class_names=images.class_names,
        dataset=DatasetFacts(
            name=images.dataset,
            split=images.split,
            fingerprint=fingerprint(images.class_names, labels, sample_hash),
        ),
        teachers=origin.teachers,
        software=provenance.software(),
        licence=origin.licence,
        citation=origin.citation,
        derived_from=DerivationFacts(operation="convert", sources=sources),
        top_k=TopKFacts(k=top_k) if top_k else None,
    )
