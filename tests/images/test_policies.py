"""Which operations an image gets, and how much of each."""

import hashlib

import numpy as np
import pytest
from torchvision.transforms import v2

from ltd_pipe.images.policies import OPERATIONS, _amounts, _learned_pairs, draw_steps

MANY = np.arange(40_000)
NAMES = np.array([*OPERATIONS])
THEIR_NAMES = {
    "ShearX": "shear-x",
    "ShearY": "shear-y",
    "TranslateX": "translate-x",
    "TranslateY": "translate-y",
}


def ours(name):
    return THEIR_NAMES.get(name, name.lower())


def names(step):
    return NAMES[step[0]]


def steps(policy, index=MANY, **changes):
    return draw_steps(policy, index, **{"seed": 0, "epoch": 0, "size": (100, 331)} | changes)


# Of each table's operations, tenths and magnitudes, as int64.
DIGESTS = {
    "cifar10": "f159e64dfabd1beb",
    "imagenet": "df68c804acc107fe",
    "svhn": "476fcafceb3fe94e",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_learned_policies_are_those_of_the_paper(name):
    """Views of stores depend on them: another table of torchvision's would make other views."""
    assert hashlib.sha256(_learned_pairs(name).tobytes()).hexdigest()[:16] == DIGESTS[name]


SPACES = {
    "trivialaugment": (v2.TrivialAugmentWide()._AUGMENTATION_SPACE, 31),
    "randaugment": (v2.RandAugment()._AUGMENTATION_SPACE, 31),
    "autoaugment": (v2.AutoAugment()._AUGMENTATION_SPACE, 10),
}


@pytest.mark.parametrize("family", SPACES)
def test_the_ranges_are_torchvisions(family):
    """Every operation at every magnitude; their thresholds are shares of white."""
    space, bins = SPACES[family]
    assert {ours(name) for name in space} | {"identity", "invert"} == set(NAMES)
    for name, (magnitudes, _) in space.items():
        theirs = magnitudes(bins, 100, 331)
        if theirs is None or ours(name) == "invert":
            continue
        expected = np.asarray(theirs, dtype=np.float64)
        if name == "Solarize":
            expected = np.ceil(np.round(255 * expected, 3))
        if name.startswith("Translate"):
            expected = np.trunc(np.round(expected, 3))
        found = _amounts(family, (100, 331))[[*NAMES].index(ours(name))]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)


def test_trivialaugment_draws_evenly():
    """One of 14 operations, of 31 magnitudes, of two signs."""
    (step,) = steps("trivialaugment")
    found, counts = np.unique(names(step), return_counts=True)
    assert set(found) == set(OPERATIONS) - {"invert"}
    assert abs(counts / len(MANY) - 1 / 14).max() < 0.006
    turned = step[1][names(step) == "rotate"]
    values, counts = np.unique(turned, return_counts=True)
    np.testing.assert_allclose(values, np.linspace(-135, 135, 61))
    assert abs((turned > 0).mean() - 30 / 62) < 0.03


def test_randaugment_has_one_magnitude():
    """Each step draws anew; 9 of 0 to 30 is 0.27 of brightness, either way."""
    first, second = steps("randaugment:2-9")
    assert 0.04 < (first[0] == second[0]).mean() < 0.1
    for step in (first, second):
        np.testing.assert_allclose(np.unique(step[1][names(step) == "brightness"]), [-0.27, 0.27])
        assert set(step[1][names(step) == "posterize"]) == {7}
        assert set(step[1][names(step) == "translate-x"]) == {-45, 45}


def test_autoaugment_keeps_its_probabilities():
    """25 pairs, evenly; `equalize 8, equalize 6` leaves a fifth without the first."""
    first, second = steps("autoaugment:cifar10")
    pairs = _learned_pairs("cifar10")
    for step, place in ((first, 0), (second, 1)):
        for name in ("equalize", "autocontrast", "rotate", "invert"):
            operation, tenths, _ = pairs[:, place].T
            share = tenths[NAMES[operation] == name].sum() / 250
            assert abs((names(step) == name).mean() - share) < 0.006


@pytest.mark.parametrize("policy", ["trivialaugment", "randaugment:2-9", "autoaugment:imagenet"])
def test_seed_epoch_and_sample_decide(policy):
    """The same ones give the same again, in any batch; others give others."""
    whole = steps(policy)
    for one, part in zip(whole, steps(policy, MANY[100:7:-1]), strict=True):
        assert (one[0][100:7:-1] == part[0]).all()
        assert (one[1][100:7:-1] == part[1]).all()
    for change in ({"seed": 1}, {"epoch": 1}):
        assert (whole[0][0] != steps(policy, **change)[0][0]).mean() > 0.5
