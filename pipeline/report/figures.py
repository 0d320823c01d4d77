"""Curves, robust accuracy by eps, and the histogram of the labels."""

from __future__ import annotations

import base64
import io
import math
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe.errors import ResultError, reason_of
from ltd_pipe.evaluation.results import eps_text
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.report.reliability import COLOURS, STYLES, draw
from ltd_pipe.report.runs import CURVE_ATTACK, number_text
from ltd_pipe.report.surface import paint_surface

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ltd_pipe.evaluation.results import EpsPoint, LossSurface, Score
    from ltd_pipe.labels.format import StoreAttributes
    from ltd_pipe.labels.softness import LabelSummary
    from ltd_pipe.report.runs import Curve


# --- Pictures of clean and attacked images: examples.npz.


_REMEDY = "Run 'ltd-pipe evaluate' again."


@dataclass(frozen=True)
class Examples:
    """Test images before and after an attack.

    Attributes
    ----------
    clean : ndarray of shape (M, C, H, W), dtype uint8
    adversarial : ndarray of shape (M, C, H, W), dtype float32, in [0, 1]
    label, clean_prediction, adversarial_prediction, index : ndarray of shape (M,), dtype int64
    """

    clean: NDArray[np.uint8]
    adversarial: NDArray[np.float32]
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    adversarial_prediction: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)


def read_examples(path: Path, num_classes: int, count: int | None) -> Examples:
    """Read the first `count` examples, or all.

    Raises
    ------
    ResultError
        When the file is damaged, or its arrays do not fit each other or the classes.
    """
    try:
        # Opened here: given a path, numpy leaves the file open when it is damaged.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            arrays = {name: content[name] for name in Examples.__dataclass_fields__}
    except KeyError as error:
        raise ResultError(path, str(error.args[0]), remedy=_REMEDY) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ResultError(path, f"is damaged ({reason_of(error)})", remedy=_REMEDY) from error
    _require_shapes(arrays, path)
    _require_values(arrays, num_classes, path)
    return Examples(**{name: array[:count] for name, array in arrays.items()})


def _require_shapes(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    shape = arrays["clean"].shape
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ResultError(path, "clean", expected="shape (M, 1 or 3, H, W)", found=shape)
    for name, array in arrays.items():
        wanted = shape if name in ("clean", "adversarial") else shape[:1]
        if array.shape != wanted:
            raise ResultError(
                path, name, expected=f"shape {wanted}", found=array.shape, remedy=_REMEDY
            )


def _require_values(arrays: dict[str, NDArray[Any]], num_classes: int, path: Path) -> None:
    if arrays["clean"].dtype != np.uint8:
        raise ResultError(path, "clean", expected="uint8", found=arrays["clean"].dtype)
    attacked = arrays["adversarial"]
    if not (np.isfinite(attacked).all() and ((attacked >= 0) & (attacked <= 1)).all()):
        raise ResultError(path, "adversarial: pixels outside [0, 1]", remedy=_REMEDY)
    for name in ("label", "clean_prediction", "adversarial_prediction"):
        if ((arrays[name] < 0) | (arrays[name] >= num_classes)).any():
            raise ResultError(path, f"{name}: not one of {num_classes} classes", remedy=_REMEDY)


# --- Pictures: images with what models say of them.


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


# --- What the soft labels are like, and the images on which they say most: unsure, or otherwise.


_BINS = 20
# Rows at a time: about 16 MiB of float32 whatever the number of classes.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class TrainingImage:
    """A training image with its soft label.

    Attributes
    ----------
    index : int
        Of the sample.
    label : int
        Ground truth, -1 where unknown.
    soft : ndarray of shape (K,), dtype float32
    pixels : ndarray of shape (C, H, W), dtype uint8, or None
        None where the images were not at hand.
    """

    index: int
    label: int
    soft: NDArray[np.float32]
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class LabelFacts:
    """A soft-label store in numbers.

    Attributes
    ----------
    attributes : StoreAttributes
    identity : str
    summary : LabelSummary
    histogram : ndarray of shape (20,), dtype int64
        Samples by their top probability, in equal parts of [0, 1].
    ambiguous : tuple of TrainingImage
        Those of the highest entropy, the highest first.
    known : int
        Samples whose ground truth is known.
    disagreements : int
        Those of them whose largest probability is on another class.
    contradicted : tuple of TrainingImage
        Those of them on which the teacher is furthest from the ground truth, the furthest first.
    """

    attributes: StoreAttributes
    identity: str
    summary: LabelSummary
    histogram: NDArray[np.int64]
    ambiguous: tuple[TrainingImage, ...]
    known: int
    disagreements: int
    contradicted: tuple[TrainingImage, ...]


@dataclass(frozen=True)
class _Scan:
    """What each sample's soft label gives: shape (N,) but for the histogram."""

    histogram: NDArray[np.int64]
    entropy: NDArray[np.float32]
    # Largest probability less that of the ground truth; -1 where they are of one class, or the
    # ground truth is unknown.
    excess: NDArray[np.float32]


def read_labels(
    store: Path, data: Path | None, ambiguous: int, contradicted: int = 0
) -> LabelFacts:
    """Read a store and the images it is least sure of, and contradicts most.

    Parameters
    ----------
    store : Path
    data : Path or None
        Beton of the images, or None where it is not at hand.
    ambiguous, contradicted : int
        How many of each, at most.

    Raises
    ------
    StoreError, JoinError
        When the store is damaged, or labels other images than those of `data`.
    DataError
        When the beton is damaged.
    """
    labels = SoftLabels.open(store)
    scan = _scan(labels)
    unsure = _highest(scan.entropy, ambiguous)
    disagreements = int(np.count_nonzero(scan.excess >= 0))
    against = _highest(scan.excess, min(contradicted, disagreements))
    images = _images(labels, data, np.concatenate([unsure, against]))
    return LabelFacts(
        attributes=labels.attributes,
        identity=labels.identity,
        summary=labels.summary(),
        histogram=scan.histogram,
        ambiguous=tuple(images[: len(unsure)]),
        known=int(np.count_nonzero(labels.labels[:] >= 0)),
        disagreements=disagreements,
        contradicted=tuple(images[len(unsure) :]),
    )


def _highest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    # A stable sort: of equal values the first sample comes first, on every machine.
    return np.argsort(-values, kind="stable")[:count].astype(np.int64)


def _images(labels: SoftLabels, data: Path | None, rows: NDArray[np.int64]) -> list[TrainingImage]:
    pixels = _pixels(labels, data, np.unique(rows)) if data is not None and len(rows) else {}
    return [
        TrainingImage(int(i), int(labels.labels[i]), row, pixels.get(int(i)))
        for i, row in zip(rows, _normalised(labels, rows), strict=True)
    ]


def _scan(labels: SoftLabels) -> _Scan:
    n = labels.num_samples
    found = _Scan(np.zeros(_BINS, np.int64), np.empty(n, np.float32), np.empty(n, np.float32))
    step = max(_BLOCK_ELEMENTS // labels.num_classes, 1)
    for begin in range(0, n, step):
        rows = np.arange(begin, min(begin + step, n))
        soft, truth = _normalised(labels, rows), np.asarray(labels.labels[rows])
        top = soft.max(axis=1)
        found.histogram[:] += np.histogram(top, bins=_BINS, range=(0, 1))[0]
        # p log p tends to 0 with p; the maximum keeps log(0) out of the product.
        found.entropy[rows] = -(soft * np.log(np.maximum(soft, 1e-30))).sum(axis=1)
        apart = (truth >= 0) & (soft.argmax(axis=1) != truth)
        found.excess[rows] = np.where(apart, top - soft[np.arange(len(rows)), truth], -1)
    return found


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


# --- Curves, robust accuracy by eps, and the histogram of the labels.


@dataclass(frozen=True)
class Series:
    """One model's line.

    Attributes
    ----------
    run : str
        `student`, `baseline`, `teacher`, `A` or `B`: decides colour and line.
    curve : Curve
    chosen : int or None
        Epoch of the checkpoint that was kept.
    """

    run: str
    curve: Curve
    chosen: int | None = None


@dataclass(frozen=True)
class EpsSeries:
    """One model's robust accuracy by eps.

    Attributes
    ----------
    run : str
    points : sequence of EpsPoint
    eps : float
        Where the strongest attack was run.
    strongest : Score or None
        What AutoAttack left there.
    """

    run: str
    points: Sequence[EpsPoint]
    eps: float
    strongest: Score | None


def draw_curves(name: str, series: Sequence[Series], *, label: str, percent: bool) -> str:
    """A measure by epoch.

    Parameters
    ----------
    name : str
        Of the figure, unique on the page.
    series : sequence of Series
    label : str
        Of the vertical axis.
    percent : bool
        The values are fractions, shown as percentages.

    Returns
    -------
    str
        An `<svg>` element; the same arguments give the same text.
    """

    def paint(axes: Any) -> None:
        scale = 100 if percent else 1
        for one in series:
            colour, style = COLOURS[one.run], STYLES[one.run]
            x, y = one.curve.epochs, scale * one.curve.values
            # A marker at each of many epochs hides the line.
            every = max(1, len(x) // 8)
            axes.plot(x, y, color=colour, label=one.run, markevery=every, **style)
            if one.chosen is not None and one.chosen in x:
                at = y[x == one.chosen]
                axes.plot([one.chosen], at, "o", ms=10, mfc="none", mec=colour, mew=1.6)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")

    return draw(name, paint)


def draw_eps(name: str, series: Sequence[EpsSeries]) -> str:
    """Robust accuracy by eps with the band of its 95 % interval; see `draw_curves`."""

    def paint(axes: Any) -> None:
        for one in series:
            colour, style = COLOURS[one.run], STYLES[one.run]
            x = [point.eps for point in one.points]
            low, high = ([100 * getattr(p, side) for p in one.points] for side in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            y = [100 * point.robust_accuracy for point in one.points]
            axes.plot(x, y, color=colour, label=f"{one.run}, {CURVE_ATTACK}", **style)
        _mark_strongest(axes, series)
        _eps_axis(axes, series)
        axes.set_ylim(0, 100)
        axes.set_ylabel("robust accuracy, %")
        axes.legend(loc="best")

    return draw(name, paint)


def _mark_strongest(axes: Any, series: Sequence[EpsSeries]) -> None:
    measured = [one for one in series if one.strongest is not None]
    width = max((point.eps for one in series for point in one.points), default=1.0)
    for number, one in enumerate(measured):
        score = one.strongest
        if score is None:
            continue
        # Side by side, since they often coincide.
        x = one.eps + 0.012 * width * (number - (len(measured) - 1) / 2)
        y = 100 * score.value
        bars = [[y - 100 * score.low], [100 * score.high - y]]
        colour = COLOURS[one.run]
        label = f"{one.run}, AutoAttack"
        axes.errorbar([x], [y], bars, fmt="D", color=colour, ms=6, capsize=3, lw=1.4, label=label)


def _eps_axis(axes: Any, series: Sequence[EpsSeries]) -> None:
    found = sorted({point.eps for one in series for point in one.points})
    # Labels of neighbours that are too close would overlap: about seven fit.
    apart = (found[-1] - found[0]) / 6
    ticks: list[float] = []
    for eps in found:
        if not ticks or eps - ticks[-1] > 0.99 * apart:
            ticks.append(eps)
    axes.set_xticks(ticks, [eps_text(eps) if eps else "0" for eps in ticks])
    axes.set_xlabel("ε, radius of the attack in pixel units")


def draw_histogram(name: str, counts: NDArray[np.int64], mean: float) -> str:
    """Share of the images by the top probability of their soft label; see `draw_curves`.

    Parameters
    ----------
    name : str
    counts : ndarray of shape (B,), dtype int64
        Images in B equal parts of [0, 1].
    mean : float
        Mean top probability.
    """

    def paint(axes: Any) -> None:
        width = 1 / len(counts)
        left = np.arange(len(counts)) * width
        share = 100 * counts / max(int(counts.sum()), 1)
        axes.bar(left, share, width=0.86 * width, align="edge", color=COLOURS["teacher"])
        axes.axvline(mean, color=COLOURS["ink"], linewidth=1.4, linestyle=(0, (4, 2)))
        axes.annotate(
            f"mean {number_text(round(mean, 3))}",
            (mean, 1),
            xycoords=("data", "axes fraction"),
            # Above the axes, where no bar can be behind it.
            xytext=(0, 4),
            textcoords="offset points",
            ha="right" if mean > 0.85 else "left" if mean < 0.15 else "center",
            va="bottom",
        )
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("largest probability of a soft label")
        axes.set_ylabel("images, %")

    return draw(name, paint)


def draw_loss_surface(name: str, surface: LossSurface, eps: float) -> str:
    """The loss around images, from audit.json's numbers; see `draw_curves`.

    loss_surface.svg beside it shows the same. It is not taken from there: what is in the page
    is drawn here, so that no text of a file's can come in.

    Parameters
    ----------
    name : str
    surface : LossSurface
    eps : float
        Radius of the ball.
    """

    def paint(axes: Any) -> None:
        paint_surface(axes, surface.offsets, surface.loss, eps)
        axes.grid(visible=False)

    return draw(name, paint)
