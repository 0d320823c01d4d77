"""The size of an epoch's images is a function of the epoch."""

import pytest

from ltd_pipe.images.augmentation import Sizes


def sides(*numbers, epochs):
    sizes = Sizes(*numbers, epochs)
    return [sizes.at(epoch)[0] for epoch in range(epochs)]


BY_HAND = {
    "linear": ((128, 224, 0.0, 1.0, 4), [128, 128, 160, 192]),
    "ramp": ((128, 192, 0.2, 0.6, 10), [128, 128, 128, 128, 160, 160, 192, 192, 192, 192]),
    "at once": ((96, 128, 0.5, 0.5, 4), [96, 96, 128, 128]),
    "never": ((96, 96, 0.0, 0.75, 3), [96, 96, 96]),
    "from the beginning": ((96, 128, 0.0, 0.0, 2), [128, 128]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case):
    """Multiples of 32, from below the straight line."""
    (*numbers, epochs), expected = BY_HAND[case]
    assert sides(*numbers, epochs=epochs) == expected
    assert Sizes(*numbers, epochs).all() == [(side, side) for side in sorted(set(expected))]


def test_sizes_never_fall_and_end_where_they_should():
    """Whatever the length of the run."""
    for epochs in (1, 2, 7, 90):
        found = sides(64, 224, 0.1, 0.8, epochs=epochs)
        assert found == sorted(found)
        assert epochs < 7 or found[-1] == 224


REFUSED = {
    "no multiple": ((100, 224, 0.0, 1.0), "two multiples of 32, .* found 100 and 224"),
    "descending": ((224, 128, 0.0, 1.0), "the larger one last"),
    "nothing": ((0, 128, 0.0, 1.0), "two multiples of 32"),
    "swapped": ((96, 128, 0.8, 0.2), "two fractions of the run in order, found 0.8 and 0.2"),
    "beyond": ((96, 128, 0.0, 1.5), "two fractions of the run"),
    "nan": ((96, 128, float("nan"), 0.5), "two fractions of the run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """What no run can do."""
    numbers, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        Sizes(*numbers, 10)
