"""What is done to an image at random, and the canonical text of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ltd_pipe.errors import ParamsError

# Neighbours of the epoch's order that are mixed with each other, and so stay together.
PAIR = 2

# --- Image sizes that grow while training goes on: small first, when detail is not learned yet.


# Networks halve an image five times.
_STEP = 32


@dataclass(frozen=True)
class Sizes:
    """A side in pixels for each epoch of the run; ValueError for numbers out of range.

    Attributes
    ----------
    start, end : int
        Multiples of 32, not descending.
    begin, finish : float
        Fractions of the run: up to the first the images have the size `start`, from the second
        on `end`, and between them it grows evenly, in multiples of 32.
    epochs : int
    """

    start: int
    end: int
    begin: float
    finish: float
    epochs: int

    def __post_init__(self) -> None:
        if self.start % _STEP or self.end % _STEP or not 0 < self.start <= self.end:
            raise ValueError(
                "progressive_resize: expected two multiples of 32, the larger one last, "
                f"found {self.start} and {self.end}"
            )
        if not 0 <= self.begin <= self.finish <= 1:
            raise ValueError(
                "progressive_between: expected two fractions of the run in order, "
                f"found {self.begin:g} and {self.finish:g}"
            )

    def at(self, epoch: int) -> tuple[int, int]:
        """Height and width in an epoch, counted from 0."""
        done = epoch / self.epochs
        if done >= self.finish:
            return self.end, self.end
        if done <= self.begin:
            return self.start, self.start
        grown = (done - self.begin) / (self.finish - self.begin)
        # From below: never larger than the line from start to end. Tenths are not exact in binary.
        side = self.start + _STEP * int(grown * (self.end - self.start) / _STEP + 1e-9)
        return side, side

    def all(self) -> list[tuple[int, int]]:
        """Every size of the run, ascending."""
        return sorted({self.at(epoch) for epoch in range(self.epochs)})


# --- What is done to an image at random, and the canonical text of it.


_NUMBER = r"[01](?:\.[0-9]{1,20})?"
_LEARNED = "autoaugment:(?:cifar10|imagenet|svhn)"
_POLICY = re.compile(rf"trivialaugment|randaugment:[1-9]-(?:[12]?[0-9]|30)|{_LEARNED}")
_TEXT = re.compile(
    rf"(?!,)(?:crop:(?P<padding>[0-9]{{1,4}})|resized-crop:(?P<least>{_NUMBER})-(?P<most>{_NUMBER}))?"
    r"(?P<flip>(?:^|,)flip)?"
    rf"(?:(?:^|,)(?P<policy>trivialaugment|randaugment:[0-9]-[0-9]{{1,2}}|{_LEARNED}))?"
    r"(?:(?:^|,)cutout:(?P<cutout>[0-9]{1,4}))?"
)
# Padding beyond it is a slip, or a store that wants this machine's memory.
_MAX_PADDING = 1024
_MAX_CUTOUT = 1024
# Smaller shares of the area have no pixel left, and their text would have an exponent.
_MIN_SCALE = 0.001


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image; `str` gives its canonical text, `parse` takes no other.

    In this order: a crop, a flip, a policy's operations, a cut-out square. ValueError for numbers
    that are out of range, or both kinds of crop.

    Attributes
    ----------
    crop_padding : int
        Pixels of zeros added on each side before a crop of the image's size; 0: no such crop.
    flip : bool
        Left to right, for half of the images.
    crop_scale : tuple of float, optional
        A crop of a random share of the area, between these two in (0, 1], and of a random
        aspect ratio, enlarged to the image's size; None: no such crop.
    policy : str, optional
        `trivialaugment`; `randaugment:N-M` with N of 1 to 9 operations of magnitude M of 0 to
        30; `autoaugment:` and `cifar10`, `imagenet` or `svhn`; None: no such operations.
    cutout : int
        Side of a grey square, in pixels, its middle anywhere in the image; 0: none.

    Examples
    --------
    >>> str(Augmentation(crop_padding=4, flip=True))
    'crop:4,flip'
    >>> Augmentation.parse("resized-crop:0.25-1")
    Augmentation(crop_padding=0, flip=False, crop_scale=(0.25, 1.0))
    """

    crop_padding: int = 0
    flip: bool = False
    crop_scale: tuple[float, float] | None = None
    policy: str | None = None
    cutout: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.crop_padding <= _MAX_PADDING:
            raise ValueError(f"crop_padding: expected 0 to {_MAX_PADDING}")
        if not 0 <= self.cutout <= _MAX_CUTOUT:
            raise ValueError(f"cutout: expected 0 to {_MAX_CUTOUT}")
        if self.policy is not None and not _POLICY.fullmatch(self.policy):
            raise ValueError(
                "policy: expected trivialaugment, randaugment:N-M with N of 1 to 9 and M of 0 to "
                "30, autoaugment:cifar10, autoaugment:imagenet or autoaugment:svhn, "
                f"found '{self.policy}'"
            )
        if self.crop_scale is None:
            return
        least, most = self.crop_scale
        if not _MIN_SCALE <= least <= most <= 1:
            raise ValueError(
                f"crop_scale: expected shares of the area, {_MIN_SCALE} ≤ least ≤ most ≤ 1, "
                f"found {least:g} and {most:g}"
            )
        if self.crop_padding:
            raise ValueError("crop_padding and crop_scale are two kinds of crop: choose one")

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """The augmentation whose canonical text this is; ValueError for any other text.

        Two texts of one augmentation would look like two.
        """
        if text == "none":
            return cls()
        match = _TEXT.fullmatch(text)
        if "mixup" in text or "cutmix" in text:
            raise ValueError(
                f"'{text}': a mixture of two images is no view of one, and has no label of its "
                "own in a store. Label views without it, and mix them in training."
            )
        if not text or match is None:
            raise ValueError(
                "expected 'none', or in this order and with commas between them: 'crop:PIXELS' or "
                "'resized-crop:LEAST-MOST', 'flip', 'trivialaugment', 'randaugment:N-M' or "
                f"'autoaugment:POLICY', 'cutout:PIXELS'; found '{text}'"
            )
        scale = None
        if match["least"] is not None:
            scale = float(match["least"]), float(match["most"])
        flip, cutout = match["flip"] is not None, int(match["cutout"] or 0)
        found = cls(int(match["padding"] or 0), flip, scale, match["policy"], cutout)
        if str(found) != text:
            raise ValueError(f"'{text}' is written '{found}'")
        return found

    def __str__(self) -> str:
        # The shortest decimals that are these numbers.
        scale = [repr(float(share)).removesuffix(".0") for share in self.crop_scale or ()]
        parts = (
            f"crop:{self.crop_padding}" if self.crop_padding else "",
            f"resized-crop:{'-'.join(scale)}" if scale else "",
            "flip" if self.flip else "",
            self.policy or "",
            f"cutout:{self.cutout}" if self.cutout else "",
        )
        return ",".join(filter(None, parts)) or "none"

    @property
    def moves(self) -> Augmentation:
        """The part of it that moves pixels, each to a place of its own: crop and flip."""
        return Augmentation(crop_padding=self.crop_padding, flip=self.flip)

    def require_fitting(self, shape: tuple[int, ...], section: str) -> None:
        """Refuse, by a ParamsError, what would leave nothing of images of this shape (C, H, W)."""
        side = min(shape[1:])
        where = f"{section}.augmentation: " if section == "label" else f"{section}."
        if self.crop_padding >= side:
            raise ParamsError(
                f"{where}crop_padding",
                "some crops would show nothing of the image",
                expected=f"less than its side, {side} pixels",
                found=self.crop_padding,
                remedy=f"An eighth of the side, {side // 8}, is usual.",
            )
        if self.cutout > side:
            raise ParamsError(
                f"{where}cutout",
                "is larger than the image",
                expected=f"at most its side, {side} pixels",
                found=self.cutout,
                remedy=f"A half of the side, {side // 2}, is usual.",
            )

    @property
    def is_none(self) -> bool:
        """Whether images stay as they are."""
        return self == Augmentation()
