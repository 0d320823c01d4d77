"""Pictures: images with what models say of them."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report.wording import number_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.report.examples import Examples
    from pipeline.report.softness import TrainingImage

__all__ = [
    "Answer",
    "AttackedPicture",
    "Bar",
    "SoftPicture",
    "attacked_pictures",
    "magnification_text",
    "picture_uri",
    "soft_pictures",
]

# The pictures of one gallery stay below this, so that the page stays below 3 MB.
_PICTURE_BYTES = 1_200_000
_LARGEST_SIDE = 128
_BARS = 4
_SHOWN = 0.0005


@dataclass(frozen=True)
class Answer:
    """A prediction, and whether it is right."""

    text: str
    right: bool


@dataclass(frozen=True)
class AttackedPicture:
    """A test image before and after the attack, as data URIs."""

    index: int
    truth: str
    clean: str
    adversarial: str
    perturbation: str
    clean_answer: Answer
    adversarial_answer: Answer


@dataclass(frozen=True)
class Bar:
    """One class of a soft label; `share` is a fraction."""

    text: str
    share: float
    is_truth: bool


@dataclass(frozen=True)
class SoftPicture:
    """A training image with its soft label.

    Attributes
    ----------
    index : int
    truth : str
        Empty where it is unknown.
    picture : str
        Data URI; empty where the image was not at hand.
    bars : tuple of Bar
        The largest first, at most four; then the ground truth, where it is not among them.
    rest : float
        Fraction left for the other classes.
    """

    index: int
    truth: str
    picture: str
    bars: tuple[Bar, ...]
    rest: float


def attacked_pictures(
    examples: Examples, class_names: Sequence[str], eps: float
) -> tuple[AttackedPicture, ...]:
    """Clean image, attacked image and magnified perturbation of each example.

    Parameters
    ----------
    examples : Examples
    class_names : sequence of str
    eps : float
        Radius of the attack: a change of eps is drawn white, one of -eps black.
    """
    clean = examples.clean.astype(np.float32) / 255
    stretched = 0.5 + (examples.adversarial - clean) / (2 * eps)
    side = _side(3 * len(examples))

    def picture(i: int) -> AttackedPicture:
        truth = int(examples.label[i])

        def answer(prediction: Any) -> Answer:
            return Answer(class_names[int(prediction)], int(prediction) == truth)

        return AttackedPicture(
            index=int(examples.index[i]),
            truth=class_names[truth],
            clean=picture_uri(clean[i], side),
            adversarial=picture_uri(examples.adversarial[i], side),
            perturbation=picture_uri(stretched[i], side),
            clean_answer=answer(examples.clean_prediction[i]),
            adversarial_answer=answer(examples.adversarial_prediction[i]),
        )

    return tuple(picture(i) for i in range(len(examples)))


def magnification_text(eps: float) -> str:
    """How many times the perturbation is magnified."""
    return f"{number_text(round(1 / (2 * eps), 1))} times"


def soft_pictures(
    images: Sequence[TrainingImage], class_names: Sequence[str]
) -> tuple[SoftPicture, ...]:
    """Images with the largest classes of their soft labels."""
    side = _side(len(images))

    def picture(image: TrainingImage) -> SoftPicture:
        # A stable sort: equal probabilities come in the order of the classes.
        order = np.argsort(-image.soft, kind="stable")[:_BARS]
        # The first always, then those that are more than 0.0 % when printed.
        order = order[: max(1, int((image.soft[order] >= _SHOWN).sum()))]
        if image.label >= 0 and image.label not in order:
            # What the teacher thinks of it is the point, were it nothing.
            order = np.append(order, image.label)
        shares = [float(image.soft[k]) for k in order]
        pixels = image.pixels
        return SoftPicture(
            index=image.index,
            truth=class_names[image.label] if image.label >= 0 else "",
            picture="" if pixels is None else picture_uri(pixels.astype(np.float32) / 255, side),
            bars=tuple(
                Bar(class_names[k], share, k == image.label)
                for k, share in zip(order.tolist(), shares, strict=True)
            ),
            rest=max(0.0, 1 - sum(shares)),
        )

    return tuple(picture(image) for image in images)


def _side(count: int) -> int:
    # Noise does not compress: three bytes a pixel, and a third more in base64.
    fits = math.isqrt(int(_PICTURE_BYTES / (max(count, 1) * 3 * 4 / 3)))
    return min(fits, _LARGEST_SIDE)


def picture_uri(image: NDArray[np.floating[Any]], side: int) -> str:
    """A PNG as a data URI.

    Parameters
    ----------
    image : ndarray of shape (C, H, W), floats
        Clipped to [0, 1]; C is 1 or 3.
    side : int
        A larger image is shrunk until its longer side has so many pixels.
    """
    from PIL import Image

    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.BOX)
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
