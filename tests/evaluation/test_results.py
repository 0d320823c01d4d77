"""Which doubts make the numbers of an evaluation worthless."""

import numpy as np
import pytest

from ltd_pipe.evaluation.results import ON_TRAINING, image_warnings, unbroken, worthless


@pytest.mark.parametrize(
    ("left", "n", "fails"), [(1, 1000, False), (20, 1000, False), (40, 1000, True), (3, 24, True)]
)
def test_an_attack_fails_where_the_audit_says_so(left, n, fails):
    """It may miss two of a hundred; what it missed is told all the same."""
    told = unbroken(left, n)
    assert told.startswith(f"{left} of {n} images stand although every pixel may take any value")
    assert worthless([told]) == ("the attack fails" if fails else "")


def test_nothing_is_told_of_an_attack_that_breaks_all():
    """As it should."""
    assert unbroken(0, 1000) is None


@pytest.mark.parametrize(
    ("hashes", "labels", "training", "told"),
    [
        ((1, 2, 3), (0, 1, 0), (4, 5), []),
        ((1, 2, 3), (0, 1, 0), None, []),
        ((1, 2, 3), (0, 1, 0), (3, 1, 9), ["2 of 3 test images are of the model's training data"]),
        ((1, 2, 3), (0, 1, 0), (3, 2, 1, 4), ["all 3 images are of the model's training data"]),
        ((1, 1, 2), (0, 0, 1), (), []),
        ((7, 7, 2, 7), (0, 1, 1, 0), (), ["3 of 4 test images are in two classes"]),
        ((7, 7), (0, 1), (7,), ["all 2 images are of", "2 of 2 test images are in two classes"]),
    ],
    ids=["none", "unknown", "some", "all", "twice in a class", "in two classes", "both"],
)
def test_images_that_leak_are_counted(hashes, labels, training, told):
    """By their hashes, which 64 bits hold."""
    high = 2**63
    known = None if training is None else np.array(training, np.uint64) + np.uint64(high)
    found = image_warnings(np.array(hashes, np.uint64) + np.uint64(high), np.array(labels), known)
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True))
    assert bool(worthless(found)) == any(line.endswith(ON_TRAINING) for line in found)
