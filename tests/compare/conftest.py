"""Evaluations to be compared."""

from __future__ import annotations

import pytest
from made_evaluations import write_evaluation


@pytest.fixture
def evaluated():
    """A function that writes an evaluation; its metrics.json."""
    return write_evaluation
