"""Which augmented view of an image a soft label belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pipeline.labels.read import SoftLabels

__all__ = ["ViewSource", "Views"]

ViewSource = Literal["given"]


class Views:
    """The views of a store's labels, as one data set uses them.

    A label of an augmented view is not one of the plain image, nor of another view. So whoever
    gives the image has to say which view it is ("given").

    Parameters
    ----------
    store : SoftLabels
    source : {"given"}, optional
        Needed when the labels are of augmented views, and refused when they are not.

    Raises
    ------
    StoreError
        When the store's labels are of other images than will be given.
    """

    def __init__(self, store: SoftLabels, source: ViewSource | None = None) -> None:
        facts = store.attributes.views
        if source not in (None, "given"):
            raise ValueError(f"views: expected 'given', found {source!r}")
        if facts.augmentation is None and source is not None:
            raise StoreError(
                store.path, "its labels are of the images as they are", remedy="Omit views=."
            )
        if facts.augmentation is not None and source is None:
            raise StoreError(
                store.path,
                f"its labels are of augmented views ({facts.augmentation}, {facts.count} of each "
                "image), not of the images as they are",
                remedy="Pass views='given' when the data set gives (image, label, view).",
            )
        self.source = source
