"""An augmentation has one text, and that text one augmentation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltd_pipe.images.augmentation import Augmentation, Sizes

ACCEPTED = {
    "none": Augmentation(),
    "flip": Augmentation(flip=True),
    "crop:4": Augmentation(crop_padding=4),
    "crop:4,flip": Augmentation(crop_padding=4, flip=True),
    "crop:1024": Augmentation(crop_padding=1024),
    "resized-crop:0.25-1": Augmentation(crop_scale=(0.25, 1.0)),
    "resized-crop:0.08-1,flip": Augmentation(crop_scale=(0.08, 1.0), flip=True),
    "resized-crop:0.5-0.5": Augmentation(crop_scale=(0.5, 0.5)),
    "resized-crop:1-1": Augmentation(crop_scale=(1.0, 1.0)),
    "cutout:16": Augmentation(cutout=16),
    "trivialaugment": Augmentation(policy="trivialaugment"),
    "randaugment:2-9": Augmentation(policy="randaugment:2-9"),
    "autoaugment:svhn": Augmentation(policy="autoaugment:svhn"),
    "crop:4,flip,autoaugment:cifar10,cutout:8": Augmentation(
        4, True, None, "autoaugment:cifar10", 8
    ),
}


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepted(text):
    """Parsed to these values, and written as it was."""
    assert Augmentation.parse(text) == ACCEPTED[text]
    assert str(ACCEPTED[text]) == text


REFUSED = {
    "": "expected 'none'",
    ",flip": "expected 'none'",
    "None": "expected 'none'",
    "none,flip": "expected 'none'",
    "crop": "expected 'none'",
    "crop:": "expected 'none'",
    "crop:-4": "expected 'none'",
    "crop:4.0": "expected 'none'",
    "crop:٤": "expected 'none'",
    "crop:4,": "expected 'none'",
    "crop:4, flip": "expected 'none'",
    "crop:4,flip\n": "expected 'none'",
    "flip,crop:4": "expected 'none'",
    "crop:4,flip,flip": "expected 'none'",
    "crop:4,resized-crop:0.25-1": "expected 'none'",
    "rotate:15": "expected 'none'",
    "resized-crop:0.25": "expected 'none'",
    "resized-crop:0.25-1-1": "expected 'none'",
    "resized-crop:1e-2-1": "expected 'none'",
    "resized-crop:nan-1": "expected 'none'",
    "crop:0": "'crop:0' is written 'none'",
    "crop:04": "'crop:04' is written 'crop:4'",
    "resized-crop:0.250-1.0": "is written 'resized-crop:0.25-1'",
    "resized-crop:0.25000000000000001-1": "is written 'resized-crop:0.25-1'",
    "crop:1025": "crop_padding: expected 0 to 1024",
    "resized-crop:0-1": "crop_scale: expected shares of the area",
    "resized-crop:0.0009-1": "crop_scale: expected shares",
    "resized-crop:0.25-1.1": "crop_scale: expected shares .*found 0.25 and 1.1",
    "resized-crop:1-0.25": "crop_scale: expected shares .*found 1 and 0.25",
    "cutout:0": "'cutout:0' is written 'none'",
    "cutout:1025": "cutout: expected 0 to 1024",
    "cutout:8,flip": "expected 'none'",
    "crop:4cutout:8": "expected 'none'",
    "trivialaugment,trivialaugment": "expected 'none'",
    "cutout:8,trivialaugment": "expected 'none'",
    "autoaugment": "expected 'none'",
    "autoaugment:stl10": "expected 'none'",
    "randaugment:0-9": "N of 1 to 9 and M of 0 to 30",
    "randaugment:2-31": "N of 1 to 9 and M of 0 to 30",
    "randaugment:2-09": "N of 1 to 9 and M of 0 to 30",
    "mixup:0.2": "'mixup:0.2': a mixture of two images is no view of one",
    "crop:4,cutmix": "mix them in training",
}


@pytest.mark.parametrize("text", REFUSED, ids=[repr(text) for text in REFUSED])
def test_refused(text):
    """Anything else, and a second text of the same thing."""
    with pytest.raises(ValueError, match=REFUSED[text]):
        Augmentation.parse(text)


def test_one_kind_of_crop():
    """Both at once are refused: nothing says which would come first."""
    with pytest.raises(ValueError, match="two kinds of crop: choose one"):
        Augmentation(crop_padding=4, crop_scale=(0.25, 1.0))


@pytest.mark.parametrize("scale", [(float("nan"), 1.0), (0.5, float("inf"))])
def test_no_number_no_scale(scale):
    """NaN is below nothing, and refused all the same."""
    with pytest.raises(ValueError, match="crop_scale: expected shares"):
        Augmentation(crop_scale=scale)


@pytest.mark.parametrize("policy", ["", "TrivialAugment", "randaugment", "flip", "cutout:8"])
def test_no_policy_no_augmentation(policy):
    """A policy is given by its text, and nothing else is one."""
    with pytest.raises(ValueError, match="policy: expected trivialaugment, randaugment:N-M"):
        Augmentation(policy=policy)


POLICIES = ["trivialaugment", "randaugment:1-30", "autoaugment:imagenet"]
SCALES = st.tuples(st.floats(0.001, 1.0), st.floats(0.001, 1.0)).map(lambda x: tuple(sorted(x)))


@given(
    flip=st.booleans(),
    padding=st.integers(0, 1024),
    scale=st.none() | SCALES,
    policy=st.none() | st.sampled_from(POLICIES),
    cutout=st.integers(0, 1024),
)
def test_the_text_is_the_augmentation(flip, padding, scale, policy, cutout):
    """Whatever the numbers: written and parsed again, it is the same."""
    one = Augmentation(0 if scale else padding, flip, scale, policy, cutout)
    assert Augmentation.parse(str(one)) == one


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
def test_sizes_by_hand(case):
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


REFUSED_SIZES = {
    "no multiple": ((100, 224, 0.0, 1.0), "two multiples of 32, .* found 100 and 224"),
    "descending": ((224, 128, 0.0, 1.0), "the larger one last"),
    "nothing": ((0, 128, 0.0, 1.0), "two multiples of 32"),
    "swapped": ((96, 128, 0.8, 0.2), "two fractions of the run in order, found 0.8 and 0.2"),
    "beyond": ((96, 128, 0.0, 1.5), "two fractions of the run"),
    "nan": ((96, 128, float("nan"), 0.5), "two fractions of the run"),
}


@pytest.mark.parametrize("case", REFUSED_SIZES)
def test_sizes_refused(case):
    """What no run can do."""
    numbers, message = REFUSED_SIZES[case]
    with pytest.raises(ValueError, match=message):
        Sizes(*numbers, 10)
