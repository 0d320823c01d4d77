"""Pictures on the page: test images under attack, and training images with their soft labels."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import ResultError
from ltd_pipe.evaluation.results import read_arrays
from ltd_pipe.labels.derive import row_blocks
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softness import entropy

if TYPE_CHECKING:
    from ltd_pipe.labels.format import StoreAttributes
    from ltd_pipe.labels.softness import LabelSummary

_REMEDY = "Run 'ltd-pipe evaluate' again."
# The pictures of one gallery stay below this, so that the page stays below 3 MB.
_GALLERY_BYTES = 1_200_000
_LARGEST_SIDE = 128
# Classes of a soft label that are shown, and the least share of one: 0.0 % when printed.
_BARS, _LEAST_SHARE = 4, 0.0005
_HISTOGRAM_BINS = 20


def picture_side(pictures: int) -> int:
    """The longest side of so many pictures that stay within a gallery's bytes."""
    # Noise does not compress: three bytes a pixel, and a third more in base64.
    fits = math.isqrt(int(_GALLERY_BYTES / (max(pictures, 1) * 3 * 4 / 3)))
    return min(fits, _LARGEST_SIDE)


def picture_uri(image: NDArray[np.floating[Any]], side: int) -> str:
    """Encode an image of shape (C, H, W), clipped to [0, 1], as a PNG in a data URI.

    A larger one is shrunk until its longer side has `side` pixels.
    """
    from PIL import Image

    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.BOX)
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


# ---------------------------------------------------------------- under attack


@dataclass(frozen=True)
class Examples:
    """Test images before and after an attack: examples.npz."""

    # Of shape (M, C, H, W); the attacked ones in [0, 1].
    clean: NDArray[np.uint8]
    adversarial: NDArray[np.float32]
    # Of shape (M,).
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    adversarial_prediction: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def pictures(self, eps: float) -> Iterator[tuple[str, ...]]:
        """Clean image, attacked image and magnified perturbation of each, as data URIs.

        A change of `eps`, the attack's radius, is drawn white, one of -eps black.
        """
        side, clean = picture_side(3 * len(self)), self.clean.astype(np.float32) / 255
        for before, after in zip(clean, self.adversarial, strict=True):
            change = 0.5 + (after - before) / (2 * eps)
            yield tuple(picture_uri(image, side) for image in (before, after, change))


def read_examples(path: Path, num_classes: int, count: int | None) -> Examples:
    """Read the first `count` examples, or all.

    Raises
    ------
    ResultError
        When the file is damaged, or its arrays do not fit each other or the classes.
    """
    names = tuple(Examples.__dataclass_fields__)
    content = read_arrays(path, *names)
    arrays = {name: content[name] for name in names}
    shape, dtype = arrays["clean"].shape, arrays["clean"].dtype
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ResultError(path, "clean", expected="shape (M, 1 or 3, H, W)", found=shape)
    if dtype != np.uint8:
        raise ResultError(path, "clean", expected="uint8", found=dtype)
    for name, array in arrays.items():
        wanted = shape if name in ("clean", "adversarial") else shape[:1]
        if array.shape != wanted:
            expected = f"shape {wanted}"
            raise ResultError(path, name, expected=expected, found=array.shape, remedy=_REMEDY)
        classes = name in ("label", "clean_prediction", "adversarial_prediction")
        if classes and ((array < 0) | (array >= num_classes)).any():
            raise ResultError(path, f"{name}: not one of {num_classes} classes", remedy=_REMEDY)
    attacked = arrays["adversarial"]
    # Written so that NaN is refused, too.
    if not ((attacked >= 0) & (attacked <= 1)).all():
        raise ResultError(path, "adversarial: pixels outside [0, 1]", remedy=_REMEDY)
    return Examples(**{name: array[:count] for name, array in arrays.items()})


# ---------------------------------------------------------------- soft labels


@dataclass(frozen=True)
class TrainingImage:
    """A training image with its soft label."""

    index: int
    label: int  # the ground truth, -1 where unknown
    soft: NDArray[np.float32]
    # Of shape (C, H, W); None where the images were not at hand.
    pixels: NDArray[np.uint8] | None = None

    @property
    def bars(self) -> dict[int, float]:
        """Its largest classes, and always the ground truth, with their shares."""
        # A stable sort: equal probabilities come in the order of the classes.
        largest = np.argsort(-self.soft, kind="stable")[:_BARS].tolist()
        # The first always.
        shown = largest[:1] + [k for k in largest[1:] if self.soft[k] >= _LEAST_SHARE]
        if self.label >= 0 and self.label not in shown:
            # What the teacher thinks of it is the point, were it nothing.
            shown.append(self.label)
        return {k: float(self.soft[k]) for k in shown}

    def picture(self, side: int) -> str:
        """A data URI; empty where the images were not at hand."""
        return "" if self.pixels is None else picture_uri(self.pixels / np.float32(255), side)


@dataclass(frozen=True)
class LabelFacts:
    """A soft-label store in numbers."""

    attributes: StoreAttributes
    identity: str
    summary: LabelSummary
    # Samples by their top probability, in 20 equal parts of [0, 1].
    histogram: NDArray[np.int64]
    # Those of the highest entropy, the highest first.
    ambiguous: tuple[TrainingImage, ...]
    # Samples whose ground truth is known, and those whose largest probability is on another class.
    known: int
    disagreements: int
    # Those of them on which the teacher is furthest from the ground truth, the furthest first.
    contradicted: tuple[TrainingImage, ...]


def read_labels(
    store: Path, data: Path | None, ambiguous: int, contradicted: int = 0
) -> LabelFacts:
    """Read a store, and at most so many images it is least sure of, and contradicts most.

    Raises
    ------
    StoreError, JoinError, DataError
        When store or beton is damaged, or it labels other images than those of `data`.
    """
    labels = SoftLabels.open(store)
    n, histogram = labels.num_samples, np.zeros(_HISTOGRAM_BINS, np.int64)
    unsure, excess = np.empty(n, np.float32), np.empty(n)
    for rows in row_blocks(0, n, labels.num_views * labels.num_classes):
        soft, truth = _normalised(labels, rows), np.asarray(labels.labels[rows])
        top = soft.max(axis=1)
        histogram += np.histogram(top, bins=_HISTOGRAM_BINS, range=(0, 1))[0]
        unsure[rows] = entropy(soft)
        # Largest probability less that of the ground truth, at T = 1 where there are logits: labels
        # of a low temperature are all 1 less 0. -1 where the teacher agrees, or the ground truth is
        # unknown.
        apart = (truth >= 0) & (soft.argmax(axis=1) != truth)
        plain = _at_one(labels, rows) if labels.has_logits else soft
        excess[rows] = np.where(apart, plain.max(axis=1) - plain[np.arange(len(rows)), truth], -1)
    disagreements = int(np.count_nonzero(excess >= 0))
    # A stable sort: of equal values the first sample comes first, on every machine.
    least_sure, against = (
        np.argsort(-values, kind="stable")[:count]
        for values, count in ((unsure, ambiguous), (excess, min(contradicted, disagreements)))
    )
    shown = np.concatenate([least_sure, against])
    pixels = _pixels(labels, data, np.unique(shown)) if data is not None and len(shown) else {}
    images = [
        TrainingImage(i, int(labels.labels[i]), soft, pixels.get(i))
        for i, soft in zip(shown.tolist(), _normalised(labels, shown), strict=True)
    ]
    return LabelFacts(
        attributes=labels.attributes,
        identity=labels.identity,
        summary=labels.summary(),
        histogram=histogram,
        ambiguous=tuple(images[: len(least_sure)]),
        known=int(np.count_nonzero(labels.labels[:] >= 0)),
        disagreements=disagreements,
        contradicted=tuple(images[len(least_sure) :]),
    )


def _at_one(labels: SoftLabels, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The teacher's probabilities at T = 1, of several views on average."""
    logits = labels.gather_logits(rows).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mean: NDArray[np.float64] = shares.mean(axis=1) if shares.ndim == 3 else shares
    return mean


def _normalised(labels: SoftLabels, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    soft = labels.gather(rows).astype(np.float32)
    if soft.ndim == 3:
        # Of several views, what the teacher says on average.
        soft = soft.mean(axis=1)
    normalised: NDArray[np.float32] = soft / soft.sum(axis=1, keepdims=True)
    return normalised


def _pixels(
    labels: SoftLabels, data: Path, rows: NDArray[np.int64]
) -> dict[int, NDArray[np.uint8]]:
    # FFCV is needed only where pictures are wanted.
    import torch

    from ltd_pipe.images.beton import open_beton
    from ltd_pipe.images.stream import ImageStream

    beton = open_beton(data)
    labels.require_data(beton.manifest, str(data), beton)
    # All raw images are copied into memory, if they fit, sooner than FFCV compiles its reader.
    resident = None if beton.manifest.encoding == "raw" else False
    stream = ImageStream(beton, torch.device("cpu"), resident=resident)
    found: dict[int, NDArray[np.uint8]] = {}
    for batch in stream.batches(rows, len(rows)):
        labels.join(batch.rows, batch.sample_hash, str(data))
        found |= dict(zip(batch.rows.tolist(), batch.images.numpy(), strict=True))
    return found
