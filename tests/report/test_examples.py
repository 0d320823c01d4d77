"""examples.npz."""

from __future__ import annotations

import numpy as np
import pytest

from ltd_pipe.errors import ResultError
from ltd_pipe.report.pictures import read_examples


@pytest.fixture
def path(runs):
    """The examples of a whole run."""
    return runs / "evaluation" / "examples.npz"


def rewrite(path, **changes):
    """Change arrays of the file; None leaves one out."""
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_no_more_are_read_than_are_wanted(path):
    """report.examples counts."""
    assert len(read_examples(path, 10, 3)) == 3
    assert len(read_examples(path, 10, 64)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "label"),
        ({"label": np.zeros(3, np.int64)}, r"label: expected shape \(8,\), found \(3,\)"),
        ({"adversarial": np.zeros((8, 1, 4, 4), np.float32)}, "adversarial: expected shape"),
        ({"clean": np.zeros((8, 1, 8, 8), np.float32)}, "clean: expected uint8"),
        ({"clean": np.zeros((8, 2, 8, 8), np.uint8)}, "clean: expected shape"),
        ({"adversarial": np.full((8, 1, 8, 8), 1.5, np.float32)}, "adversarial: pixels outside"),
        ({"adversarial": np.full((8, 1, 8, 8), np.nan, np.float32)}, "adversarial: pixels outside"),
        ({"clean_prediction": np.full(8, 10)}, "clean_prediction: not one of 10 classes"),
    ],
    ids=["missing", "count", "size", "dtype", "channels", "range", "nan", "class"],
)
def test_arrays_that_do_not_fit_are_refused(path, change, message):
    """The file and the array are named."""
    rewrite(path, **change)
    with pytest.raises(ResultError, match=f"examples.npz: {message}"):
        read_examples(path, 10, 8)


@pytest.mark.parametrize("keep", [0, 10, 500], ids=["empty", "stub", "half"])
def test_a_truncated_file_is_refused(path, keep):
    """Numpy's and zip's own errors are not shown."""
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResultError, match="examples.npz: is damaged"):
        read_examples(path, 10, 8)


def test_a_pickle_in_the_file_is_not_run(path):
    """Objects are refused, whatever they would do."""
    rewrite(path, label=np.array([print] * 8, dtype=object))
    with pytest.raises(ResultError, match="is damaged"):
        read_examples(path, 10, 8)
