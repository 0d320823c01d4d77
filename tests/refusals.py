"""Refusals are told apart by an error's class and fields; its sentence has its own test."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest

FIELDS = ("where", "what", "expected", "found", "remedy")


def agrees(field, value, wanted):
    """Whether a field of an error is as a test has it: see `refused`."""
    if isinstance(wanted, re.Pattern):
        return wanted.search(str(value)) is not None
    if callable(wanted):
        return bool(wanted(value))
    if isinstance(wanted, Path):
        return str(value) == str(wanted)
    if field == "where":
        return value.endswith(wanted)
    if field in {"what", "remedy"}:
        return wanted in value
    return value == wanted


@contextmanager
def refused(kind, **fields):
    """Expect an error of a class, with these of its fields.

    `where` is a path, or a text that ends it; `what` and `remedy` are a word in it; `expected` and
    `found` are equal. A compiled pattern or a predicate stands for any of them.
    """
    if unknown := fields.keys() - set(FIELDS):
        raise TypeError(f"an error has no {', '.join(unknown)}")
    with pytest.raises(kind) as caught:
        yield caught
    for field, wanted in fields.items():
        value = getattr(caught.value, field)
        if not agrees(field, value, wanted):
            pytest.fail(f"{field}: expected {wanted!r}, found {value!r}, in: {caught.value}")
