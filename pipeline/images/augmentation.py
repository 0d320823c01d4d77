"""What is done to an image at random, and the canonical text of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import ParamsError

__all__ = ["Augmentation"]

_NUMBER = r"[01](?:\.[0-9]{1,20})?"
_POLICY = (
    "trivialaugment|randaugment:(?P<steps>[0-9])-(?P<magnitude>[0-9]{1,2})"
    "|autoaugment:(?:cifar10|imagenet|svhn)"
)
_TEXT = re.compile(
    rf"(?!,)(?:crop:(?P<padding>[0-9]{{1,4}})|resized-crop:(?P<least>{_NUMBER})-(?P<most>{_NUMBER}))?"
    rf"(?P<flip>(?:^|,)flip)?(?:(?:^|,)(?P<policy>{_POLICY}))?"
    r"(?:(?:^|,)cutout:(?P<cutout>[0-9]{1,4}))?"
)
_NONE = "none"
# Padding beyond it is a slip, or a store that wants this machine's memory.
_MAX_PADDING = 1024
_MAX_CUTOUT = 1024
_MAX_MAGNITUDE = 30
# Smaller shares of the area have no pixel left, and their text would have an exponent.
_MIN_SCALE = 0.001


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image; `str` gives its canonical text, `parse` takes no other.

    In this order: a crop, a flip, a policy's operations, a cut-out square.

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
    policy: str | None = None
    cutout: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.crop_padding <= _MAX_PADDING:
            raise ValueError(f"crop_padding: expected 0 to {_MAX_PADDING}")
        if not 0 <= self.cutout <= _MAX_CUTOUT:
            raise ValueError(f"cutout: expected 0 to {_MAX_CUTOUT}")
        if self.policy is not None:
            _require_policy(self.policy)
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
        parts = []
        if self.crop_padding:
            parts.append(f"crop:{self.crop_padding}")
        if self.crop_scale is not None:
            parts.append("resized-crop:{}-{}".format(*map(_shortest, self.crop_scale)))
        if self.flip:
            parts.append("flip")
        if self.policy is not None:
            parts.append(self.policy)
        if self.cutout:
            parts.append(f"cutout:{self.cutout}")
        return ",".join(parts) or _NONE

    def require_fitting(self, shape: tuple[int, ...], section: str) -> None:
        """Refuse what would leave nothing of images of this shape (C, H, W).

        Raises
        ------
        ParamsError
        """
        side = min(shape[1:])
        if self.crop_padding >= side:
            key, found, bound = "crop_padding", self.crop_padding, f"less than its side, {side}"
            what, usual = (
                "some crops would show nothing of the image",
                f"An eighth of the side, {side // 8},",
            )
        elif self.cutout > side:
            key, found, bound = "cutout", self.cutout, f"at most its side, {side}"
            what, usual = "is larger than the image", f"A half of the side, {side // 2},"
        else:
            return
        raise ParamsError(
            f"{section}.augmentation: {key}" if section == "label" else f"{section}.{key}",
            what,
            expected=f"{bound} pixels",
            found=found,
            remedy=f"{usual} is usual.",
        )

    @property
    def is_none(self) -> bool:
        """Whether images stay as they are."""
        return self == Augmentation()


def _require_policy(policy: str) -> None:
    match = re.fullmatch(_POLICY, policy)
    if match is None:
        raise ValueError(
            "policy: expected trivialaugment, randaugment:N-M, autoaugment:cifar10, "
            f"autoaugment:imagenet or autoaugment:svhn, found '{policy}'"
        )
    if match["steps"] is None:
        return
    steps, magnitude = int(match["steps"]), int(match["magnitude"])
    if not steps or magnitude > _MAX_MAGNITUDE or policy != f"randaugment:{steps}-{magnitude}":
        raise ValueError(
            "policy: expected randaugment:N-M with N of 1 to 9 and M of 0 to "
            f"{_MAX_MAGNITUDE}, found '{policy}'"
        )


def _shortest(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
