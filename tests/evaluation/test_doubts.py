"""Which doubts make the numbers of an evaluation worthless."""

import pytest

from pipeline.evaluation.doubts import attack_fails, unbroken


@pytest.mark.parametrize(
    ("left", "n", "fails"), [(1, 1000, False), (20, 1000, False), (40, 1000, True), (3, 24, True)]
)
def test_an_attack_fails_where_the_audit_says_so(left, n, fails):
    """It may miss two of a hundred; what it missed is told all the same."""
    told = unbroken(left, n)
    assert told.startswith(f"{left} of {n} images stand although every pixel may take any value")
    assert attack_fails([told]) is fails


def test_nothing_is_told_of_an_attack_that_breaks_all():
    """As it should."""
    assert unbroken(0, 1000) is None
