"""Random numbers are a pure function of seed, stream, epoch and index."""

import numpy as np
import pytest
import torch
from scipy import stats

from ltd_pipe import rng

INDEX = np.arange(20_000)


def test_torch_and_numpy_give_the_same_integers():
    """The two generators agree on every bit, for small, large and negative indices."""
    index = np.array([0, 1, 2, 49_999, 2**40, -1])
    key = rng.stream_key(7, "crop", 3)
    wide = rng.bits_torch(key, torch.from_numpy(index), 4).numpy().view(np.uint64)
    for counter in range(4):
        np.testing.assert_array_equal(wide[:, counter], rng.bits(key, index, counter))


def test_known_value_of_splitmix64():
    """SplitMix64 seeded with 0 starts with 0xE220A8397B1DCDAF (reference implementation)."""
    golden = np.array([0x9E3779B97F4A7C15], dtype=np.uint64).view(np.int64)
    assert rng._mix(golden).view(np.uint64)[0] == 0xE220A8397B1DCDAF


def test_the_numbers_are_those_of_the_first_version():
    """Splits, views and orders of results that were published rest on them."""
    found = rng.bits(rng.stream_key(7, "crop", 3), np.array([0, 49_999, -1]), 2).tolist()
    assert found == [7422166236278464646, 13215456182249831908, 7628087633504110746]


def test_a_draw_does_not_depend_on_the_batch_it_is_in():
    """A sample's numbers are the same alone, in a batch, and in another order."""
    key = rng.stream_key(0, "attack-start")
    whole = rng.uniform(key, torch.arange(10), (3, 2))
    alone = rng.uniform(key, torch.tensor([7]), (3, 2))
    assert torch.equal(whole[7], alone[0])
    assert torch.equal(whole.flip(0), rng.uniform(key, torch.arange(10).flip(0), (3, 2)))


def test_uniform_passes_a_goodness_of_fit_test():
    """Draws are uniform on [0, 1) by Kolmogorov and Smirnov's test."""
    draws = rng.uniform(rng.stream_key(1, "u"), torch.from_numpy(INDEX)).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3


def test_normal_passes_a_goodness_of_fit_test():
    """Box and Muller's transform gives a standard normal distribution."""
    draws = rng.normal(rng.stream_key(1, "n"), torch.from_numpy(INDEX), (1,)).numpy().ravel()
    assert np.isfinite(draws).all()
    assert stats.kstest(draws, "norm").pvalue > 1e-3


@pytest.mark.parametrize("other", [(1, "crop", 0), (0, "flip", 0), (0, "crop", 1)])
def test_streams_are_unrelated(other):
    """Another seed, name or epoch gives uncorrelated numbers."""
    index = torch.from_numpy(INDEX)
    one = rng.uniform(rng.stream_key(0, "crop", 0), index).numpy()
    two = rng.uniform(rng.stream_key(*other), index).numpy()
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(len(INDEX))


def test_integers_are_within_bounds_and_even():
    """Every value below the bound occurs about equally often."""
    draws = rng.integers(rng.stream_key(0, "i"), torch.from_numpy(INDEX), 9).numpy()
    counts = np.bincount(draws, minlength=9)
    assert len(counts) == 9
    assert stats.chisquare(counts).pvalue > 1e-3


def test_permutation_holds_every_sample_once():
    """An epoch's order is a permutation, and another epoch's is another one."""
    samples = np.arange(1000)
    one = rng.permutation(rng.stream_key(0, "order", 0), samples)
    two = rng.permutation(rng.stream_key(0, "order", 1), samples)
    np.testing.assert_array_equal(np.sort(one), samples)
    assert (one != two).any()


def test_permutation_of_a_subset_keeps_the_relative_order():
    """Leaving samples out does not reorder the others."""
    key = rng.stream_key(0, "order")
    whole = rng.permutation(key, np.arange(100))
    part = rng.permutation(key, np.arange(0, 100, 3))
    np.testing.assert_array_equal(part, whole[whole % 3 == 0])
