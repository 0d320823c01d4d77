"""What all tests share."""

from __future__ import annotations

import os

import pytest
import torch

# Two cores run the suite beside others: one thread keeps the sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(autouse=True)
def _one_answer():
    """Deterministic kernels and a fixed thread count, so that equal inputs give equal bits."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
