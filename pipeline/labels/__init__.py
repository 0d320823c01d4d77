"""The soft-label store: a teacher's answers, written once, checked, and shared."""

from pipeline.labels.dataset import SoftLabelDataset
from pipeline.labels.read import SoftLabels

__all__ = ["SoftLabelDataset", "SoftLabels"]
