"""Stores of a few samples, whole and in parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_answers import Answers

from ltd_pipe.labels.foreign import ProvenStore
from ltd_pipe.labels.verify import verify_store


@pytest.fixture
def source(store) -> ProvenStore:
    """That store, opened to make others of it."""
    return ProvenStore(store)


@pytest.fixture
def parts(answers, tmp_path):
    """A function that writes some rows as stores of their own and opens them."""

    def write(*pieces, **options) -> list[ProvenStore]:
        stores = []
        for number, piece in enumerate(pieces):
            path = tmp_path / f"part-{number}.zarr"
            answers.permuted(np.arange(11)[piece]).write(path, replace=True, **options)
            stores.append(ProvenStore(path))
        return stores

    return write


@pytest.fixture
def other_teacher(answers):
    """A function that gives the same samples with another teacher's logits and other facts."""

    def give(seed=1, **changed) -> Answers:
        logits = np.random.default_rng(seed).standard_normal(answers.logits.shape) * 3
        teacher = answers.attributes.teachers[0].model_copy(update={"sha256": f"{seed:064x}"})
        facts = answers.attributes.model_copy(update={"teachers": (teacher,)} | changed)
        return replace(answers, attributes=facts, logits=logits.astype(np.float32))

    return give


@pytest.fixture
def rows_of():
    """A function that reads one array of a store that must be sound."""

    def read(path: Path, name: str = "soft_labels") -> np.ndarray:
        verify_store(path)
        return ProvenStore(path).store.arrays[name].read()

    return read
