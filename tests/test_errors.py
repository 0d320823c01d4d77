"""Errors are one line, also when they come from another process."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from made_answers import make_answers
from refusals import refused

from ltd_pipe import errors
from ltd_pipe.errors import DataError, JoinError, LtdPipeError, StoreError
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.decode import decode_image
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.tables import NpzTable, ParquetTable
from ltd_pipe.models.checkpoint import load_classifier
from ltd_pipe.models.foreign import columns_of, load_foreign

NAMES = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and value.__module__ == errors.__name__
]
KINDS = [getattr(errors, name) for name in NAMES]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_an_error_passes_between_processes(kind):
    """Pickled, it keeps its kind, line and parts."""
    error = kind("a.zarr", "sample 4", expected=1, found=2, remedy="Look again.")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is kind
    assert str(copy) == str(error) == "a.zarr: sample 4: expected 1, found 2. Look again."
    assert (copy.where, copy.remedy) == ("a.zarr", "Look again.")


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_an_error_can_be_made_from_its_line(kind):
    """As torch does with what a DataLoader's worker raised, adding where it came from."""
    text = "Caught JoinError in DataLoader worker process 0.\nOriginal Traceback: …\n"
    assert str(kind(text)) == text


SENTENCES = {
    "all": ({"expected": 1, "found": 2, "remedy": "Look."}, "a: b: expected 1, found 2. Look."),
    "expected": ({"expected": 1}, "a: b: expected 1."),
    "found": ({"found": 0}, "a: b: found 0."),
    "neither": ({}, "a: b."),
    "remedy": ({"remedy": "Look."}, "a: b. Look."),
}


@pytest.mark.parametrize(("fields", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_the_sentence_holds_the_fields_that_there_are(fields, sentence):
    """Where, what, expected, found, remedy: in this order, and with these marks."""
    assert str(LtdPipeError("a", "b", **fields)) == sentence
    assert str(LtdPipeError("a", "b?")) == "a: b?"


AGREEING = {
    "nothing": {},
    "path": {"where": Path("/data/a.zarr")},
    "end of the path": {"where": "a.zarr"},
    "word": {"what": "damaged", "remedy": "--force"},
    "values": {"expected": 4, "found": "5 of 6"},
    "loose": {"what": re.compile("^is d"), "expected": lambda count: count > 3},
}
OTHER = {
    "path": {"where": Path("a.zarr")},
    "end of the path": {"where": "b.zarr"},
    "word": {"what": "missing"},
    "value": {"expected": "4"},
    "part of a value": {"found": "5"},
    "one of two": {"expected": 4, "found": 4},
    "loose": {"expected": lambda count: count > 4},
}


def refuse(**fields):
    """Raise an error, and expect it with these fields."""
    with refused(StoreError, **fields):
        raise JoinError(
            "/data/a.zarr", "is damaged", expected=4, found="5 of 6", remedy="Pass --force."
        )


@pytest.mark.parametrize("fields", AGREEING.values(), ids=AGREEING)
def test_a_refusal_is_told_by_its_fields(fields):
    """The helper of these tests accepts fields that agree."""
    refuse(**fields)


@pytest.mark.parametrize("fields", OTHER.values(), ids=OTHER)
def test_a_refusal_with_another_field_fails_the_test(fields):
    """It accepts no other."""
    with pytest.raises(pytest.fail.Exception):
        refuse(**fields)


def test_an_error_is_one_line_whatever_a_file_is_called():
    """A name can neither forge a second line nor move the cursor; `where` keeps it as it is."""
    error = DataError("a\nltd-pipe: done\x1b[2K.jpg", "is empty")
    assert str(error).isprintable()
    assert error.where == "a\nltd-pipe: done\x1b[2K.jpg"


REASONS = {
    "system": (PermissionError(13, "Permission denied", "a/zz.jpg"), "Permission denied"),
    "no number": (OSError("image file is truncated."), "image file is truncated"),
    "lines": (ValueError("first\nsecond"), "first"),
    "no words": (EOFError(), "EOFError"),
}


@pytest.mark.parametrize(("error", "reason"), REASONS.values(), ids=REASONS)
def test_the_reason_of_an_error_is_what_it_says(error, reason):
    """Neither the file's name, which stands before it, nor nothing."""
    assert errors.reason_of(error) == reason


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n"


def _store(name):
    def read(folder):
        store = make_answers().write(folder / "labels.zarr")
        (store / name).write_text(POINTER)
        SoftLabels.open(store).gather(np.arange(3))

    return read


def _file(name, open_it):
    def read(folder):
        (folder / name).write_text(POINTER)
        open_it(folder / name)

    return read


READERS = {
    "weights": _file("a.pt", lambda path: load_foreign(path, "small-cnn", "ab", (1, 8, 8))),
    "checkpoint": _file("a.safetensors", load_classifier),
    "beton": _file("a.beton", open_beton),
    "npz": _file("a.npz", NpzTable),
    "parquet": _file("a.parquet", ParquetTable),
    "image": _file("a.png", lambda path: decode_image(path.read_bytes(), str(path))),
    "classes": _file("a.txt", lambda path: columns_of(["a", "b"], path, None)),
    "store": _store("zarr.json"),
    "manifest": _store("MANIFEST.sha256"),
    "chunk": _store("soft_labels/c/0/0"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pointer_of_git_lfs_is_told_from_damage(tmp_path, read):
    """Whatever file it stands in for: the remedy is to fetch it."""
    with pytest.raises(LtdPipeError) as caught:
        read(tmp_path)
    assert "is a Git LFS pointer" in caught.value.what
    assert "git lfs pull" in caught.value.remedy
    assert str(tmp_path) in caught.value.where
