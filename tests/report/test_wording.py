"""Numbers in words."""

from __future__ import annotations

import pytest

from ltd_pipe.evaluation.results import eps_text
from ltd_pipe.report.runs import duration_text, interval_text, number_text, percent_text, phrase


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (4.0 / 255, "4/255"),
        (0.5 / 255, "0.001961"),
        (0.15, "0.15"),
        (0.2, "0.2"),
        (1.0, "1"),
    ],
)
def test_a_radius_is_a_fraction_of_255_where_it_is_one(eps, text):
    """8/255 is what people compare by; 0.2 stays 0.2, though it is 51/255."""
    assert eps_text(eps) == text


@pytest.mark.parametrize(
    ("share", "n", "text"),
    [(0.75, 1, "75.0"), (0.72123, 599, "72.1"), (0.72123, 10_000, "72.12"), (1.0, 100, "100.0")],
)
def test_a_percentage_is_no_finer_than_its_n(share, n, text):
    """A second decimal of 599 images would be finer than one image."""
    assert percent_text(share, n) == f"{text}\u00a0%"


def test_an_interval_names_its_unit_once():
    """Both bounds have the same decimals."""
    assert interval_text(0.7, 0.7812, 599) == "70.0 to 78.1\u00a0%"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.139, "8.1 s"),
        (48.4, "48 s"),
        (185, "3 min 5 s"),
        (8040, "2 h 14 min"),
        (3599.7, "1 h 0 min"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds, text):
    """Nobody reads 8,040 seconds."""
    assert duration_text(seconds).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("items", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_a_phrase_reads_as_a_sentence_does(items, text):
    """Commas, then 'and'."""
    assert phrase(items) == text


@pytest.mark.parametrize(("value", "text"), [(2.0, "2"), (0.8, "0.8"), (1.23456, "1.235")])
def test_a_number_has_four_digits_at_most(value, text):
    """No trailing zeros."""
    assert number_text(value) == text
