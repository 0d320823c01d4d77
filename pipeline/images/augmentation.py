"""What is done to an image at random, and the canonical text of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Augmentation"]

_NUMBER = r"[01](?:\.[0-9]{1,20})?"
_TEXT = re.compile(
    rf"(?!,)(?:crop:(?P<padding>[0-9]{{1,4}})|resized-crop:(?P<least>{_NUMBER})-(?P<most>{_NUMBER}))?"
    r"(?P<flip>(?:^|,)flip)?"
)
_NONE = "none"
# Padding beyond it is a slip, or a store that wants this machine's memory.
_MAX_PADDING = 1024
# Smaller shares of the area have no pixel left, and their text would have an exponent.
_MIN_SCALE = 0.001


@dataclass(frozen=True)
class Augmentation:
    """Random crop and flip; `str` gives its canonical text, `parse` takes no other.

    Attributes
    ----------
    crop_padding : int
        Pixels of zeros added on each side before a crop of the image's size; 0: no such crop.
    flip : bool
        Left to right, for half of the images.
    crop_scale : tuple of float, optional
        A crop of a random share of the area, between these two in (0, 1], and of a random
        aspect ratio, enlarged to the image's size; None: no such crop.

    Raises
    ------
    ValueError
        For numbers that are out of range, or both kinds of crop.

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

    def __post_init__(self) -> None:
        if not 0 <= self.crop_padding <= _MAX_PADDING:
            raise ValueError(f"crop_padding: expected 0 to {_MAX_PADDING}")
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
        """The augmentation whose canonical text this is.

        Raises
        ------
        ValueError
            For any other text: two texts of one augmentation would look like two.
        """
        if text == _NONE:
            return cls()
        match = _TEXT.fullmatch(text)
        if not text or match is None:
            raise ValueError(
                f"expected 'none', 'crop:PIXELS' or 'resized-crop:LEAST-MOST', and ',flip' after "
                f"it or 'flip' alone, found '{text}'"
            )
        scale = None
        if match["least"] is not None:
            scale = float(match["least"]), float(match["most"])
        found = cls(int(match["padding"] or 0), match["flip"] is not None, scale)
        if str(found) != text:
            raise ValueError(f"'{text}' is written '{found}'")
        return found

    def __str__(self) -> str:
        parts = []
        if self.crop_padding:
            parts.append(f"crop:{self.crop_padding}")
        if self.crop_scale is not None:
            parts.append("resized-crop:{}-{}".format(*map(_shortest, self.crop_scale)))
        if self.flip:
            parts.append("flip")
        return ",".join(parts) or _NONE

    @property
    def is_none(self) -> bool:
        """Whether images stay as they are."""
        return self == Augmentation()


def _shortest(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
