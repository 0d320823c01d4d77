"""The soft-label store: a teacher's answers, written once, checked, and shared."""

from pipeline.labels.read import SoftLabels

__all__ = ["SoftLabels"]
