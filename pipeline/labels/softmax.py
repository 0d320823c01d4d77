"""What a row of labels is: softmax at a temperature, the k largest, and what may be stored.

One check of it serves who writes rows and who reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltd_pipe.errors import ParamsError, StoreError
from ltd_pipe.labels.format import (
    COLDEST,
    HOTTEST,
    CalibrationFacts,
    to_float16,
    to_float32,
)
from ltd_pipe.params.sections import MAX_TEMPERATURE, MIN_TEMPERATURE

if TYPE_CHECKING:
    import torch

    from ltd_pipe.labels.format import StoreAttributes


# --- Sparse soft labels: the k largest probabilities, the rest spread evenly.
#
# As FKD's marginal smoothing (arXiv 2112.01528, equation 6) and TinyViT's sparse logits
# (arXiv 2207.10666, equation 2): q_c = p_c for the k classes that are stored, and
# (1 - Σ p) / (K - k) for each other class.


def largest(
    soft: NDArray[np.floating[Any]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """The k largest of float32 probabilities (..., K): classes (int64) and probabilities (float16).

    Both are of shape (..., k); probabilities fall, and of equal ones the lower class comes first.
    """
    import torch

    rows = torch.from_numpy(np.ascontiguousarray(soft))
    classes = _largest_classes(rows, k).sort(dim=-1).values
    probs = rows.gather(-1, classes).to(torch.float16)
    # Stable, and after rounding: the order does not depend on how topk treats equal numbers.
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    return classes.gather(-1, order).numpy(), ranked.numpy()


def _largest_classes(rows: torch.Tensor, k: int) -> torch.Tensor:
    # One more than is kept: which of several equal ones topk takes is left to each machine.
    found = rows.topk(min(k + 1, rows.shape[-1]), dim=-1)
    classes = found.indices[..., :k].contiguous()
    tied = (found.values[..., k:] == found.values[..., k - 1 : k]).any(dim=-1)
    if tied.any():
        ordered = rows[tied].sort(dim=-1, descending=True, stable=True).indices
        classes[tied] = ordered[..., :k]
    return classes


def spread(indices: torch.Tensor, probs: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Rows over all classes, float32 of shape (..., K) that sum to one, on the arguments' device.

    Parameters
    ----------
    indices : Tensor of shape (..., k), any integers
        Classes, all different within a row, below num_classes.
    probs : Tensor of shape (..., k), dtype float16 or float32
    num_classes : int
        K.
    """
    import torch

    probs = probs.to(torch.float32)
    total = probs.sum(dim=-1, keepdim=True)
    # Rounding to float16 can bring the sum above one.
    others = (1.0 - total).clamp(min=0.0) / max(num_classes - probs.shape[-1], 1)
    rows = others.expand(*probs.shape[:-1], num_classes).clone()
    rows.scatter_(-1, indices.to(torch.int64), probs)
    return rows / rows.sum(dim=-1, keepdim=True)


def expand(
    indices: NDArray[np.integer[Any]], probs: NDArray[np.floating[Any]], num_classes: int
) -> NDArray[np.float32]:
    """`spread` for arrays: float32 rows of shape (..., K) that sum to one."""
    import torch

    classes = torch.from_numpy(indices.astype(np.int64))
    # Copied, since torch warns of memory that must not be written to.
    rows: NDArray[np.float32] = spread(
        classes, torch.from_numpy(np.array(probs)), num_classes
    ).numpy()
    return rows


def total_variation(
    soft: NDArray[np.float32], indices: NDArray[np.integer[Any]], probs: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Half the sum of absolute differences between dense rows and their top-k, in [0, 1]."""
    difference = expand(indices, probs, soft.shape[-1])
    difference -= soft
    np.abs(difference, out=difference)
    distance: NDArray[np.float32] = 0.5 * difference.sum(axis=-1)
    return np.clip(distance, 0.0, 1.0)


# --- Logits to soft labels: softmax at a temperature, and which temperature.


# At a time, so that their float32 copies never leave the processor's cache.
_CACHED_ELEMENTS = 2**16


def require_temperature(temperature: float) -> float:
    """Refuse a temperature at which float32 arithmetic gives nothing but zeros or NaN."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ParamsError(
            "temperature",
            "is out of range",
            expected=f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
            found=temperature,
        )
    return float(temperature)


def require_top_k(where: object, top_k: int, num_classes: int) -> None:
    """Refuse to keep no probability of a row, or more than it has."""
    if not 1 <= top_k <= num_classes:
        expected = f"1 to {num_classes}, the number of classes"
        raise ParamsError(where, "is out of range", expected=expected, found=top_k)


def soften(logits: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float32]:
    """softmax(logits / temperature), in float32.

    Parameters
    ----------
    logits : ndarray of shape (..., K), dtype float16 or float32
        Finite.
    temperature : float
        In [1e-6, 1e6].

    Returns
    -------
    ndarray of shape (..., K), dtype float32
        Rows sum to one within float32 rounding.
    """
    require_temperature(temperature)
    soft = to_float32(logits)
    # The maximum is subtracted before the division: exponents are never positive, so nothing
    # overflows, and the rounding of large logits over small temperatures is not amplified.
    soft -= soft.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", under="ignore"):
        soft /= np.float32(temperature)
        np.exp(soft, out=soft)
        soft /= soft.sum(axis=-1, keepdims=True)
    return soft


def top_probability(logits: Sequence[NDArray[np.floating[Any]]], temperature: float) -> float:
    """Sum over samples and views of the largest of the teachers' averaged probabilities."""
    return float(mean_softened(logits, temperature).max(axis=-1).sum(dtype=np.float64))


def mean_softened(
    logits: Sequence[NDArray[np.floating[Any]]], temperature: float
) -> NDArray[np.float32]:
    """The average of several teachers' probabilities, each softened as `soften` does."""
    total = soften(logits[0], temperature)
    if len(logits) > 1:
        for teacher in logits[1:]:
            total += soften(teacher, temperature)
        total /= np.float32(len(logits))
    return total


def softened_half(
    logits: Sequence[NDArray[np.floating[Any]]], temperature: float
) -> NDArray[np.float16]:
    """What a store holds: `mean_softened`, rounded to float16.

    Block by block, so that the float32 numbers never leave the processor's cache.
    """
    rounded = np.empty(logits[0].shape, np.float16)
    step = max(_CACHED_ELEMENTS * len(rounded) // max(rounded.size, 1), 1)
    for start in range(0, len(rounded), step):
        rows = slice(start, start + step)
        block = mean_softened([teacher[rows] for teacher in logits], temperature)
        to_float16(block, out=rounded[rows])
    return rounded


def solve_temperature(
    blocks: Callable[[], Iterable[Sequence[NDArray[np.floating[Any]]]]], target: float
) -> float:
    """The temperature at which the largest probability is so high, averaged over rows.

    Bisection in the logarithm, since useful temperatures span orders of magnitude; the mean
    top probability of softmax(z / τ) falls strictly in τ unless all logits are equal. The
    result is rounded to six digits, so that it can be typed from a report and give the same bytes.

    Parameters
    ----------
    blocks : callable
        Gives all logits anew, block by block, in each block those of each teacher.
    target : float
        In (1/K, 1). A ParamsError when no temperature gives it.
    """

    def mean_top(temperature: float) -> float:
        total, rows = 0.0, 0
        for logits in blocks():
            total += top_probability(logits, temperature)
            rows += logits[0].size // logits[0].shape[-1]
        return total / rows

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    largest, smallest = mean_top(MIN_TEMPERATURE), mean_top(MAX_TEMPERATURE)
    if not smallest < target < largest:
        raise ParamsError(
            "temperature",
            "no temperature gives this mean top probability",
            expected=f"above {smallest:.6g} and below {largest:.6g} for these logits",
            found=f"auto:{target:g}",
        )
    while high - low > 1e-7:
        middle = (low + high) / 2
        if mean_top(math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    return float(f"{math.exp(low):.6g}")


_RESAMPLES = 1000


def calibrated_temperature(
    logits: NDArray[np.float16], labels: NDArray[np.integer[Any]]
) -> tuple[float, CalibrationFacts]:
    """The temperature at which the truth's negative log likelihood is least, and how sure it is.

    As Guo et al. 2017 (arXiv 1706.04599, section 4.2) scale temperatures. Of several teachers it
    is the likelihood of their averaged probabilities, of several views the mean over them. The
    interval is the percentiles of a bootstrap over images, whose curves are read off a grid; an
    end of 0.05 or 20 means that it may lie beyond. All is rounded to six digits.

    Parameters
    ----------
    logits : ndarray of shape (M, n, ..., K), dtype float16
        Of M teachers, for images that they did not train on.
    labels : ndarray of shape (n,)
        The classes of the images.

    Raises
    ------
    ParamsError
        When there is no least: the answers are all right, or say nothing.
    """
    from scipy.optimize import minimize_scalar

    count, place = len(labels), np.linspace(math.log(COLDEST), math.log(HOTTEST), 129)
    curves = np.stack([_truth_nll(logits, labels, math.exp(x)) for x in place], axis=1)

    def lowest(curve: NDArray[np.float64]) -> tuple[int, float]:
        # The parabola through the lowest point and its neighbours.
        at = int(curve.argmin())
        if at in (0, len(place) - 1):
            return at, float(place[at])
        before, here, after = curve[at - 1 : at + 2]
        shift = (before - after) / (2 * (before - 2 * here + after))
        return at, float(place[at] + shift * (place[1] - place[0]))

    at, _ = lowest(curves.mean(axis=0))
    if at in (0, len(place) - 1):
        answers = mean_softened([*logits], COLDEST).argmax(axis=-1).reshape(count, -1)
        right = f"{(answers == labels[:, None]).sum():,} of {answers.size:,} answers right"
        raise ParamsError(
            "label.temperature",
            f"auto:calibrated: the negative log likelihood of {count:,} validation images has no "
            f"least between {COLDEST:g} and {HOTTEST:g}",
            expected="answers that are not all right, of a teacher sure enough to need no lower one"
            if at == 0
            else "answers better than chance, of a teacher not so sure as to need a higher one",
            found=f"the least at {math.exp(place[at]):g}, with {right}",
            remedy="Ask for a mean top probability, such as auto:0.95, or set a number.",
        )
    least = minimize_scalar(
        lambda x: _truth_nll(logits, labels, math.exp(x)).mean(),
        bounds=(place[at - 1], place[at + 1]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    draws = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES):
        weights = np.bincount(draws.integers(count, size=count), minlength=count)
        found.append(lowest(weights.astype(np.float64) @ curves)[1])
    low, high = np.exp(np.percentile(found, (2.5, 97.5)))
    temperature, low, high, nll = (
        float(f"{number:.6g}") for number in (math.exp(least.x), low, high, least.fun)
    )
    return temperature, CalibrationFacts(interval=(low, high), nll=nll, samples=count)


def _truth_nll(
    logits: NDArray[np.float16], labels: NDArray[np.integer[Any]], temperature: float
) -> NDArray[np.float64]:
    """Each image's -log of the truth's averaged probability; the mean over its views."""
    import torch

    teachers, count, num_classes = len(logits), len(labels), logits.shape[-1]
    found = np.empty(count)
    step = max(_BLOCK_ELEMENTS * count // logits.size, 1)
    for start in range(0, count, step):
        part = torch.from_numpy(logits[:, start : start + step]).double() / temperature
        part = part.reshape(teachers, part.shape[1], -1, num_classes).log_softmax(dim=-1)
        truth = torch.from_numpy(labels[start : start + step].astype(np.int64))
        truth = truth.view(1, -1, 1, 1).expand(*part.shape[:-1], 1)
        averaged = part.gather(-1, truth)[..., 0].logsumexp(dim=0) - math.log(teachers)
        found[start : start + step] = -averaged.mean(dim=1).numpy()
    return found


# --- That rows are distributions.


# At a time: float32 copies stay in the cache, and a chunk of any size costs no more memory.
_BLOCK_ELEMENTS = 2**19
# float16's, as bits.
_INFINITY, _MAGNITUDE, _NEGATIVE_ZERO = np.uint16(0x7C00), np.uint16(0x7FFF), np.uint16(0x8000)
# Rows of logits that are looked at, and how far the sum of probabilities in float16 is from one.
_LOOKED_AT, _ENOUGH, _SUM = 64, 32, 0.01
_MADE_WRONGLY = "The store was made wrongly: run 'ltd-pipe label' again."


def row_sum_tolerance(num_classes: int) -> float:
    """How far from one the sum of a stored row may be.

    Rounding p to float16 moves it by at most 2^-11 p, or 2^-25 where p is below float16's
    normal numbers; summed over a row, 2^-11 + 2^-25 K. 2^-18 is left for the float32
    arithmetic of whoever computed the row.
    """
    return float(2.0**-11 + num_classes * 2.0**-25 + 2.0**-18)


# --- Each number by itself.


def require_numbers(
    where: object,
    name: str,
    rows: NDArray[np.float16],
    first: int,
    *,
    unrounded: NDArray[np.floating[Any]] | None = None,
    remedy: str = _MADE_WRONGLY,
) -> None:
    """Refuse logits that are not finite, and probabilities that are negative, -0.0 or not finite.

    The error shows the number as it was before it was rounded, where that is known.
    """
    # As integers: float16 numbers below infinity compare like their bits, and the sign bit
    # makes negative ones large, so that one maximum finds NaN, infinity and sign.
    bits = rows.view(np.uint16)
    magnitude = bits & _MAGNITUDE if name == "logits" else bits
    if magnitude.size and magnitude.max() >= _INFINITY:
        found = rows if unrounded is None else unrounded
        finite = "finite numbers of float16, whose largest is 65504"
        expected = finite if name == "logits" else "probabilities"
        _refuse_first(where, name, found, magnitude >= _INFINITY, first, expected, remedy)


def require_class_numbers(
    where: object,
    name: str,
    rows: NDArray[np.number[Any]],
    num_classes: int,
    first: int,
    remedy: str = _MADE_WRONGLY,
) -> None:
    """Refuse what is no class: it would be counted or written outside of what has K places."""
    lowest = -1 if name == "labels" else 0
    if not rows.size or (
        rows.dtype.kind != "f" and rows.min() >= lowest and rows.max() < num_classes
    ):
        return
    # Written so that NaN fails.
    outside = ~((rows >= lowest) & (rows < num_classes) & (rows == np.floor(rows)))
    if outside.any():
        expected = f"{lowest} to {num_classes - 1}"
        _refuse_first(where, name, rows, outside, first, expected, remedy)


def _refuse_first(
    where: object,
    name: str,
    rows: NDArray[Any],
    outside: NDArray[np.bool_],
    first: int,
    expected: str,
    remedy: str,
) -> None:
    row = int(np.argmax(outside.reshape(len(rows), -1).any(axis=1)))
    what, found = f"sample {first + row}: {name}", rows[row][outside[row]][0]
    raise StoreError(where, what, expected=expected, found=found, remedy=remedy)


# --- Whole rows.


def require_sums_above_zero(
    where: object, rows: NDArray[np.float16], num_classes: int, first: int
) -> None:
    """Refuse all K probabilities of a row to be zero, which nothing makes a distribution."""
    known = rows.view(np.uint16).any(axis=-1).reshape(len(rows), -1).all(axis=-1)
    if not known.all():
        row = int(np.argmin(known))
        _require_sums(where, to_float32(rows[row : row + 1]), num_classes, first + row)


def require_different_classes(where: object, indices: NDArray[np.integer[Any]], first: int) -> None:
    """Refuse a class that is twice in a row: which of its probabilities counts, is anyone's."""
    ordered = np.sort(indices, axis=-1)
    twice = np.asarray((ordered[..., 1:] == ordered[..., :-1]).any(axis=-1))
    if twice.any():
        sample, _ = _name_sample(twice, first)
        raise StoreError(where, f"{sample}: a class twice")


def require_distributions(
    where: object, attributes: StoreAttributes, rows: Mapping[str, NDArray[Any]], first: int
) -> None:
    """Refuse rows that the format excludes, of which each number by itself was found good.

    Parameters
    ----------
    where : object
        The store, for the error.
    attributes : StoreAttributes
    rows : dict of str to ndarray of shape (n, ...)
        The same samples of each array of the store.
    first : int
        Number of the first sample, for the error.
    """
    widest = rows["soft_labels" if attributes.top_k is None else "topk_probs"]
    step = max(_BLOCK_ELEMENTS // int(np.prod(widest.shape[1:])), 1)
    for at in range(0, len(widest), step):
        block = {name: column[at : at + step] for name, column in rows.items()}
        if attributes.top_k is not None:
            probs = to_float32(block["topk_probs"])
            _require_sums(where, probs, attributes.num_classes, first + at)
            rising = np.asarray((np.diff(probs, axis=-1) > 0).any(axis=-1))
            if rising.any():
                sample, _ = _name_sample(rising, first + at)
                raise StoreError(where, f"{sample}: probabilities rise with rank")
            continue
        soft = to_float32(block["soft_labels"])
        _require_sums(where, soft, attributes.num_classes, first + at)
        if "logits" in block:
            _require_softmax(where, attributes.temperature, soft, block["logits"], first + at)


def _name_sample(wrong: NDArray[np.bool_], first: int) -> tuple[str, tuple[int, ...]]:
    # The first wrong row: how the user knows it, and its place in the block.
    place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
    view = f", view {place[1]}" if len(place) > 1 else ""
    return f"sample {first + place[0]}{view}", place


def _require_sums(where: object, probs: NDArray[np.float32], num_classes: int, first: int) -> None:
    sums = probs.sum(axis=-1, dtype=np.float64)
    tolerance, dense = row_sum_tolerance(num_classes), probs.shape[-1] == num_classes
    # Of a top-k row there may be any rest.
    wrong = np.asarray((sums > 1.0 + tolerance) | (sums < (1.0 - tolerance if dense else 0.0)))
    if wrong.any():
        sample, place = _name_sample(wrong, first)
        raise StoreError(
            where,
            f"{sample}: the soft label is no distribution",
            expected=f"sum {'1 ±' if dense else 'at most 1 +'} {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
            # Also a rounding may be so far off; what is farther may be logits.
            remedy="" if abs(sums[place] - 1) < _SUM else "If these are logits, call them so.",
        )


def _require_softmax(
    where: object,
    temperature: float,
    soft: NDArray[np.float32],
    logits: NDArray[np.float16],
    first: int,
) -> None:
    expected = soften(logits, temperature)
    # One step of float16: half of one is its rounding, the rest is for another machine's exp.
    outside = abs(soft - expected) > expected * 2.0**-10 + 2.0**-24
    wrong = np.asarray(outside.any(axis=-1))
    if wrong.any():
        sample, place = _name_sample(wrong, first)
        worst = int(np.argmax(abs(soft[place] - expected[place])))
        raise StoreError(
            where,
            f"{sample}: soft_labels are not softmax(logits / temperature)",
            expected=f"{expected[place][worst]:.6f} for class {worst}",
            found=f"{soft[place][worst]:.6f}",
        )


# --- Rounded to float16 as they are stored, and checked.


def round_logits(
    logits: NDArray[np.floating[Any]], first: int, where: object
) -> NDArray[np.float16]:
    """Logits of shape (n, K) or (n, V, K) as float16.

    Refused are NaN, infinity, what is beyond float16's 65504, and probabilities; the error
    names the sample, counted from `first`.
    """
    # Of logits not one row is a distribution but by chance, which a few numbers leave.
    some = np.asarray(logits[:_LOOKED_AT], np.float32)
    if some.size >= _ENOUGH and (some >= 0).all() and (abs(some.sum(axis=-1) - 1) < _SUM).all():
        raise StoreError(
            where,
            f"sample {first}: the logits are probabilities",
            found="rows of sum 1 without a negative number",
            remedy="Give what is before the softmax; of a table, call the array soft_labels.",
        )
    rounded = to_float16(logits)
    remedy = "Look at that image, and at the teacher's normalisation."
    require_numbers(where, "logits", rounded, first, unrounded=logits, remedy=remedy)
    return rounded


def round_soft_labels(
    soft_labels: NDArray[np.floating[Any]], first: int, where: object
) -> NDArray[np.float16]:
    """Probabilities as float16, with arguments as in `round_logits`; no others are taken."""
    rounded = _without_negative_zeros(to_float16(soft_labels))
    remedy = "If these are logits, call them so."
    require_numbers(where, "soft_labels", rounded, first, unrounded=soft_labels, remedy=remedy)
    _require_sums(where, to_float32(rounded), rounded.shape[-1], first)
    return rounded


def round_topk(
    indices: NDArray[np.number[Any]],
    probs: NDArray[np.floating[Any]],
    num_classes: int,
    first: int,
    where: object,
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float16]]:
    """Classes and probabilities of shape (n, k) or (n, V, k), by falling probability.

    Refused are classes that do not exist or come twice in a row, and numbers that are no
    probabilities or whose sum is above one.
    """
    rounded = _without_negative_zeros(to_float16(probs))
    require_numbers(where, "topk_probs", rounded, first, unrounded=probs, remedy="")
    require_class_numbers(where, "topk_indices", indices, num_classes, first, remedy="")
    classes = indices.astype(np.int64)
    require_different_classes(where, classes, first)
    order = np.argsort(-to_float32(rounded), axis=-1, kind="stable")
    classes = np.take_along_axis(classes, order, axis=-1)
    rounded = np.take_along_axis(rounded, order, axis=-1)
    _require_sums(where, to_float32(rounded), num_classes, first)
    return classes, rounded


def _without_negative_zeros(rounded: NDArray[np.float16]) -> NDArray[np.float16]:
    # Their sign is what readers know negative numbers by.
    bits = rounded.view(np.uint16)
    bits[bits == _NEGATIVE_ZERO] = 0
    return rounded
