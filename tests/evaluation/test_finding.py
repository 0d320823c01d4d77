"""What a check of an audit shows, and how much it can see."""

import pytest

from ltd_pipe.evaluation.results import Finding


@pytest.mark.parametrize(
    ("n", "limit"), [(1, 0.0), (5, 0.05), (48, 0.02), (200, 0.05), (617, 0.06), (10_000, 0.02)]
)
def test_a_check_fails_from_the_share_that_it_says(n, limit):
    """With one image less it passes."""
    first = round(Finding(name="x", count=0, n=n, limit=limit, meaning="").fails_from * n)
    assert not Finding(name="x", count=first, n=n, limit=limit, meaning="").passed
    assert Finding(name="x", count=first - 1, n=n, limit=limit, meaning="").passed


def test_more_images_see_smaller_shares():
    """Toward the limit itself, and never below it."""
    seen = [
        Finding(name="x", count=0, n=n, limit=0.05, meaning="").fails_from
        for n in (20, 200, 2_000, 200_000)
    ]
    assert seen == sorted(seen, reverse=True)
    assert 0.05 < seen[-1] < 0.052
