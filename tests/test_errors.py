"""Errors are one line, also when they come from another process."""

import pickle

import pytest

from pipeline import errors

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS, ids=errors.__all__)
def test_an_error_passes_between_processes(kind):
    """Pickled, it keeps its kind, line and parts."""
    error = kind("a.zarr", "sample 4", expected=1, found=2, remedy="Look again.")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is kind
    assert str(copy) == str(error) == "a.zarr: sample 4: expected 1, found 2. Look again."
    assert (copy.where, copy.remedy) == ("a.zarr", "Look again.")


@pytest.mark.parametrize("kind", KINDS, ids=errors.__all__)
def test_an_error_can_be_made_from_its_line(kind):
    """As torch does with what a DataLoader's worker raised, adding where it came from."""
    text = "Caught JoinError in DataLoader worker process 0.\nOriginal Traceback: …\n"
    assert str(kind(text)) == text
