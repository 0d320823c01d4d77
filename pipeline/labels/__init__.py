"""The soft-label store: a teacher's answers, written once, checked, and shared."""

from typing import TYPE_CHECKING, Any

from ltd_pipe.labels.reader import SoftLabels

if TYPE_CHECKING:
    from ltd_pipe.labels.dataset import SoftLabelDataset

__all__ = ["SoftLabelDataset", "SoftLabels"]


def __getattr__(name: str) -> Any:
    # The data set alone needs torch, which takes a second and 400 MB to import.
    if name == "SoftLabelDataset":
        from ltd_pipe.labels.dataset import SoftLabelDataset

        return SoftLabelDataset
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
