"""CutMix and Mixup: pixels and labels are mixed alike, in pairs that no loader decides."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from ltd_pipe import rng
from ltd_pipe.images.augment import mix
from ltd_pipe.params.fit import FitParams


def mixing(**changes):
    return FitParams(architecture="small-cnn", epochs=1, **changes)


CUT, MEAN = mixing(cutmix_probability=1.0), mixing(mixup_probability=1.0, mixup_alpha=1.0)
BOTH = mixing(cutmix_probability=0.4, mixup_probability=0.3, mixup_alpha=1.0)
KINDS = pytest.mark.parametrize("params", [CUT, MEAN, BOTH], ids=["cutmix", "mixup", "both"])


def photos(count, height=8, width=6):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).byte()


def black_and_white(count, side=4):
    """Every second image is white, so that a pixel says whose it is."""
    white = torch.arange(count) % 2 * 255
    return white.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, side, side).contiguous()


def mixed(images, params, index=None, **changes):
    index = torch.arange(len(images)) * 3 if index is None else index
    return mix(images, index, params, **{"seed": 0, "epoch": 0} | changes)


def areas(side, size):
    """Of a square of that side whose middle is any pixel, what can be inside the image."""
    places = [set(range(middle - side // 2, middle - side // 2 + side)) for middle in range(size)]
    lengths = {len(place & set(range(size))) for place in places}
    return {one * other for one in lengths for other in lengths}


def test_a_label_has_the_share_of_the_pixels_to_the_last_one():
    """CutMix: what is left of the image, counted; all sizes and places of rectangles occur."""
    images, mixture = mixed(black_and_white(6000, 5), CUT)
    own = images[:, 0] == (torch.arange(6000) % 2 * 255).view(-1, 1, 1)
    counted = own.flatten(1).sum(dim=1)
    assert torch.equal(mixture.own, counted / 25)
    assert set(counted.tolist()) == {25 - area for side in range(5) for area in areas(side, 5)}
    for alien in (~own).float():
        rows, columns = alien.amax(dim=1), alien.amax(dim=0)
        assert torch.equal(alien, rows[:, None] * columns)


def test_the_weight_of_a_label_is_that_of_the_pixels():
    """Mixup: of black and white the grey is the white one's share, rounded."""
    images, mixture = mixed(black_and_white(2000), MEAN)
    white = torch.where(torch.arange(2000) % 2 == 1, mixture.own, 1 - mixture.own)
    assert torch.equal(images[:, 0, 0, 0], (255 * white + 0.5).to(torch.uint8))
    assert torch.equal(images, images[:, :, :1, :1].expand_as(images))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    """Quantiles of 20,000 of them."""
    _, mixture = mixed(black_and_white(20_000, 1), mixing(mixup_probability=1, mixup_alpha=alpha))
    levels = np.linspace(0.1, 0.9, 17)
    found = np.quantile(mixture.own.numpy(), levels)
    assert abs(beta(alpha, alpha).cdf(found) - levels).max() < 0.02


def test_probabilities_are_kept():
    """Two fifths cut, three tenths blended, the rest as it was."""
    images, mixture = mixed(black_and_white(10_000), BOTH)
    grey = ((images > 0) & (images < 255)).flatten(1).any(dim=1)
    assert abs(grey.float().mean() - 0.3) < 0.02
    cut = ((images == 0).flatten(1).any(dim=1)) & ((images == 255).flatten(1).any(dim=1))
    # Of 4×4 pixels, a square has none one time in sixteen, or takes all of them in two hundred.
    assert abs(cut.float().mean() - 0.4 * 15 / 16) < 0.02
    untouched = mixture.own == 1
    assert torch.equal(images[untouched], black_and_white(10_000)[untouched])
    assert abs(untouched.float().mean() - 0.3 - 0.4 / 16) < 0.02


def by_hand(share, rows, columns):
    """An index whose draws are these, found by trying."""
    key = rng.stream_key(0, "mix", 0)
    index = torch.arange(200_000)
    top, left = (rng.integers(key, index, 4, counter=2 + axis) for axis in (0, 1))
    near = (rng.integers(key, index, 4096, counter=1) / 4096 - share).abs() < 0.01
    return index[near & (top == rows) & (left == columns)][:1]


def test_cutmix_by_hand():
    """4×4, a share of 3/4: a square of 2×2 = √¼ of the sides, its lower right middle at (2, 1)."""
    ours, theirs = torch.zeros(1, 1, 4, 4), torch.arange(16.0).view(1, 1, 4, 4) + 100
    index = torch.cat([by_hand(0.74, 2, 1), torch.tensor([-5])])
    images, mixture = mixed(torch.cat([ours, theirs]).byte(), CUT, index)
    assert images[0, 0].tolist() == [[0] * 4, [104, 105, 0, 0], [108, 109, 0, 0], [0] * 4]
    assert mixture.own[0] == 12 / 16
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert mixture.rows(rows)[0].tolist() == [0.75, 0.125, 0.125]


def test_cutmix_at_the_edge_by_hand():
    """The middle in the corner: one pixel of the square is inside, and one sixteenth counts."""
    index = torch.cat([by_hand(0.74, 0, 0), torch.tensor([-5])])
    images, mixture = mixed(black_and_white(2), CUT, index)
    assert images[0, 0].tolist() == [[255, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert mixture.own[0] == 15 / 16


def test_mixup_by_hand():
    """An image of 100 and one of 201, half and half: 150.5, rounded up."""
    index = torch.cat([by_hand(0.5, 0, 0), torch.tensor([-5])])
    images = torch.tensor([100, 201]).byte().view(2, 1, 1, 1).expand(2, 1, 4, 4)
    found, mixture = mixed(images, MEAN, index)
    assert abs(float(mixture.own[0]) - 0.5) < 0.01
    exact = 100 * float(mixture.own[0]) + 201 * (1 - float(mixture.own[0]))
    assert set(found[0].flatten().tolist()) == {int(exact + 0.5)}


@KINDS
@pytest.mark.parametrize("size", [2, 4, 10, 30, 62])
def test_batches_cannot_be_told(params, size):
    """However an epoch is cut between pairs: the same images and shares."""
    images, index = photos(61), torch.arange(61) * 7
    whole, mixture = mixed(images, params, index)
    assert not torch.equal(whole, images)
    parts = [mixed(images[i : i + size], params, index[i : i + size]) for i in range(0, 61, size)]
    assert torch.equal(torch.cat([part for part, _ in parts]), whole)
    assert torch.equal(torch.cat([one.own for _, one in parts]), mixture.own)


@KINDS
def test_rows_stay_distributions(params):
    """Soft labels and one-hot ones, mixed: none is negative, and they sum to one."""
    _, mixture = mixed(photos(64), params)
    for rows in (torch.rand(64, 10).softmax(dim=1), torch.eye(10)[torch.arange(64) % 10]):
        found = mixture.rows(rows)
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(64), rtol=0, atol=1e-6)


def test_the_partner_is_the_neighbour_and_the_last_has_none():
    """0 and 1, 2 and 3, and 4 alone: it stays what it is, whatever its share."""
    images, mixture = mixed(photos(5), MEAN)
    assert mixture.partner.tolist() == [1, 0, 3, 2, 4]
    assert torch.equal(images[4], photos(5)[4])
    rows = torch.eye(5)
    assert torch.equal(mixture.rows(rows)[4], rows[4])


@KINDS
@pytest.mark.parametrize("changes", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_change_it(params, changes):
    """Another epoch, other rectangles."""
    assert not torch.equal(mixed(photos(20), params)[0], mixed(photos(20), params, **changes)[0])


REFUSED = {
    "below": ({"cutmix_probability": -0.1}, "greater than or equal to 0"),
    "together": ({"cutmix_probability": 0.6, "mixup_probability": 0.6}, "found 0.6 and 0.6"),
    "nan": ({"mixup_probability": float("nan")}, "finite number"),
    "no alpha": ({"cutmix_alpha": 0.0}, "greater than or equal to 0.01"),
    "wide alpha": ({"mixup_alpha": 1e3}, "less than or equal to 100"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """What no distribution has."""
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        mixing(**changes)


def test_nothing_asked_for_is_none():
    """By default nothing is mixed."""
    assert not mixing().mixes
    assert BOTH.mixes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@KINDS
def test_devices_cannot_be_told(params):
    """Pixels and shares of the GPU are the CPU's."""
    found, theirs = mixed(photos(64).cuda(), params, torch.arange(64).cuda())
    expected, ours = mixed(photos(64), params, torch.arange(64))
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(theirs.own.cpu(), ours.own)
