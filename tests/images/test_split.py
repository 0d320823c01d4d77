"""The validation split is a function of each image's hash."""

import numpy as np
import pytest

from ltd_pipe.images.sources import validation_mask

HASHES = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_the_share_is_about_right(fraction):
    """Within four standard deviations."""
    share = validation_mask(HASHES, fraction).mean()
    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(HASHES))


def test_nothing_is_held_out_at_zero():
    """Fraction 0: no validation."""
    assert not validation_mask(HASHES, 0.0).any()


def test_other_images_do_not_matter():
    """Adding, removing or reordering images moves none across."""
    whole = validation_mask(HASHES, 0.1)
    np.testing.assert_array_equal(validation_mask(HASHES[::-3], 0.1), whole[::-3])


def test_copies_stay_together():
    """Two files of equal bytes are on the same side."""
    assert len(set(validation_mask(np.repeat(HASHES[:1], 5), 0.3).tolist())) == 1


def test_a_larger_fraction_holds_the_smaller_one():
    """Growing the split only adds to it."""
    small, large = validation_mask(HASHES, 0.1), validation_mask(HASHES, 0.2)
    assert not (small & ~large).any()
