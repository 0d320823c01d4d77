"""How robust a model is: clean, under each attack, and by eps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ltd_pipe import rng
from ltd_pipe.attacks import Ball, Frozen
from ltd_pipe.evaluation.attacks import (
    AutoAttackResult,
    GradientAttack,
    attack_images,
    attacks_of,
    package_version,
    parse_attack,
    require_possible,
    run_autoattack,
    run_gradient_attack,
    survivors,
    title_of,
)
from ltd_pipe.evaluation.bench import Bench, Journal, silent, unheard
from ltd_pipe.evaluation.corruptions import corruption_accuracies, corruption_summary
from ltd_pipe.evaluation.input_scale import contradicted_accuracy, weak_source, wrong_scale
from ltd_pipe.evaluation.results import (
    AttackRow,
    ClassScore,
    CorruptionRow,
    EpsPoint,
    Metrics,
    Reliability,
    leaks,
    unbroken,
)
from ltd_pipe.evaluation.soundness import PROBED, is_random, probes, require_finite, require_sound
from ltd_pipe.evaluation.statistics import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ltd_pipe.attacks import Norm
    from ltd_pipe.evaluation.bench import Finished, TestImages, Tick
    from ltd_pipe.evaluation.corruptions import CorruptedSet
    from ltd_pipe.evaluation.soundness import Answers
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import EvaluateParams
    from ltd_pipe.provenance import StateRecord


# --- Robust accuracy by eps, from 0 to where nothing stands.
#
# A ball holds all smaller ones: an image that was broken at some radius is broken at every larger
# one, and is not attacked there again.


# Of the attack behind the curve: one start, 20 steps, as most papers draw it.
CURVE_STEPS = 20
# The automatic curve: radii at most, the largest fall between two neighbours, and how well the
# radius at which nothing stands is known, as a share of it.
_MOST_RADII = 16
_LARGEST_FALL = 0.1
_ZERO_WITHIN = 0.1


@dataclass(frozen=True)
class Curve:
    """What stands at each radius.

    Attributes
    ----------
    radii : tuple of float
        Ascending.
    standing : tuple of Tensor of shape (n,), dtype bool
        At each of them; none holds an image that the one before does not.
    """

    radii: tuple[float, ...]
    standing: tuple[torch.Tensor, ...]

    @property
    def points(self) -> tuple[EpsPoint, ...]:
        """As by_eps.json has them."""
        points = []
        for eps, standing in zip(self.radii, self.standing, strict=True):
            hits, n = int(standing.sum()), len(standing)
            low, high = wilson_interval(hits, n)
            points.append(EpsPoint(eps=eps, robust_accuracy=hits / n, low=low, high=high, n=n))
        return tuple(points)

    @property
    def broken_at(self) -> torch.Tensor:
        """The smallest radius at which each image was broken: shape (n,), float32; else inf."""
        found = torch.full((len(self.standing[0]),), torch.inf)
        for eps, standing in zip(reversed(self.radii), reversed(self.standing), strict=True):
            found[~standing] = eps
        return found

    @property
    def zero_at(self) -> float | None:
        """The smallest radius at which nothing stands, or None."""
        zero = (eps for eps, left in zip(self.radii, self.standing, strict=True) if not left.any())
        return next(zero, None)


def largest_radius(norm: Norm, shape: tuple[int, int, int]) -> float:
    """The radius from which on the ball holds every image: all of [0, 1]."""
    return 1.0 if norm == "linf" else math.sqrt(math.prod(shape))


class _Measured:
    """Radii that were attacked, and what stood."""

    def __init__(self, bench: Bench, norm: Norm, right: torch.Tensor) -> None:
        self._bench, self._norm = bench, norm
        self.standing = {0.0: right}

    def at(self, eps: float) -> int:
        """Attack what stands at the next smaller radius; the number of images left."""
        if eps not in self.standing:
            before = self.standing[max(radius for radius in self.standing if radius < eps)]
            self.standing[eps] = survivors(
                self._bench,
                f"curve-{eps!r}",
                before,
                ball=Ball(self._norm, eps),
                steps=CURVE_STEPS,
                title=f"PGD-{CURVE_STEPS} at eps {eps:.3g}",
            )
        return int(self.standing[eps].sum())

    def curve(self, radii: Sequence[float]) -> Curve:
        """What stands at some of the radii; a smaller radius that was attacked later counts."""
        left, found = torch.ones_like(self.standing[0.0]), {}
        for eps in sorted(self.standing):
            left = left & self.standing[eps]
            found[eps] = left
        return Curve(tuple(radii), tuple(found[eps] for eps in radii))


def curve_at(bench: Bench, norm: Norm, right: torch.Tensor, radii: Sequence[float]) -> Curve:
    """The curve at given radii.

    Parameters
    ----------
    bench : Bench
    norm : {"linf", "l2"}
    right : Tensor of shape (n,), dtype bool
        Right when clean: what stands at 0.
    radii : sequence of float
        In any order.
    """
    measured, ascending = _Measured(bench, norm, right), sorted({float(eps) for eps in radii})
    for eps in ascending:
        measured.at(eps)
    return measured.curve(ascending)


def automatic_curve(bench: Bench, norm: Norm, right: torch.Tensor, eps: float) -> Curve:
    """The curve from 0 to where nothing stands, at radii that are found on the way.

    A quarter of `eps` is doubled until nothing stands or the ball holds everything. Then the
    widest gaps are halved: around the radius at which nothing stands any more until it is known
    to a tenth, and wherever more than a tenth of the images fall between two neighbours.

    Parameters
    ----------
    bench, norm, right
        See `curve_at`.
    eps : float
        The radius of the other attacks; one of the curve's.
    """
    measured, largest = _Measured(bench, norm, right), largest_radius(norm, bench.model.shape)
    radius = eps / 4
    while measured.at(min(radius, largest)) and radius < largest:
        radius *= 2
    measured.at(eps)
    while len(measured.standing) < _MOST_RADII:
        middle = _gap(measured)
        if middle is None:
            break
        measured.at(middle)
    return measured.curve(sorted(measured.standing))


def _gap(measured: _Measured) -> float | None:
    """Where to look next: the middle of the gap that says least."""
    curve = measured.curve(sorted(measured.standing))
    left = [int(standing.sum()) for standing in curve.standing]
    n = len(curve.standing[0])
    for (low, high), (before, after) in zip(pairwise(curve.radii), pairwise(left), strict=True):
        if before and not after and high - low > _ZERO_WITHIN * high:
            return (low + high) / 2
    falls = [before - after for before, after in pairwise(left)]
    widest = max(range(len(falls)), key=lambda i: falls[i])
    if falls[widest] <= _LARGEST_FALL * n:
        return None
    return (curve.radii[widest] + curve.radii[widest + 1]) / 2


# --- An evaluation as the files that other programs read.


def metrics_of(
    result: Evaluation, params: EvaluateParams, *, quick: bool, checkpoint_sha256: str
) -> Metrics:
    """What metrics.json holds."""
    rows = [score.row() for score in result.scores]
    metrics: dict[str, Any] = {
        "n": len(result.test),
        "norm": params.norm,
        "eps": params.eps,
        "quick": quick,
        **{f"{row.filed}_accuracy": row.accuracy for row in rows},
        "intervals": {f"{row.filed}_accuracy": (row.low, row.high) for row in rows},
        "expected_calibration_error": result.clean.calibration_error(result.test.labels),
        "expected_calibration_error_under_attack": result.under_attack.calibration_error(
            result.test.labels
        ),
    }
    if result.autoattack is not None:
        metrics["autoattack"] = result.autoattack.accuracy
        metrics["autoattack_version"] = f"{params.autoattack}, {package_version()}"
    if result.curve is not None:
        metrics["zero_accuracy_at_eps"] = result.curve.zero_at
        metrics["eps_grid_images"] = len(result.curve_rows)
    if result.corruptions:
        mean = corruption_summary(result.corruptions)
        metrics["corruption_accuracy"] = mean["accuracy"]
        metrics["intervals"]["corruption_accuracy"] = (mean["low"], mean["high"])
        metrics["corruptions"] = {"n": mean["n"], "sets": mean["sets"]}
    metrics["attacks"] = rows
    metrics["not_measured"] = not_measured(result, params)
    flags = result.autoattack.flags if result.autoattack is not None else []
    metrics["warnings"] = [*result.warnings, *(f"AutoAttack: {flag}" for flag in flags)]
    return Metrics(**metrics, checkpoint_sha256=checkpoint_sha256)


def not_measured(result: Evaluation, params: EvaluateParams) -> list[str]:
    """What a reader may expect and will not find, in words."""
    keys = {score.key for score in result.scores}
    lacks = {
        "AutoAttack": result.autoattack is None,
        "other attacks than PGD on the model's own gradient": not params.attacks,
        "transfer attacks": "transfer-1" not in keys,
        "robust accuracy by eps": result.curve is None,
        "corrupted images": not result.corruptions,
        {"linf": "L2", "l2": "Linf"}[params.norm]: True,
    }
    return [what for what, lacking in lacks.items() if lacking]


def per_class(result: Evaluation, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """What per_class.json holds: for each class, each score's n, accuracy and interval."""
    return [
        {
            "class": name,
            **{
                score.key: score.by_class(result.test.labels, number).dump()
                for score in result.scores
            },
        }
        for number, name in enumerate(class_names)
    ]


def reliability_of(result: Evaluation) -> Reliability:
    """What reliability.json holds: clean, and under the first start of PGD, on all images."""
    labels = result.test.labels
    clean, attacked = (each.reliability(labels) for each in (result.clean, result.under_attack))
    return Reliability(clean=tuple(clean), under_attack=tuple(attacked))


def per_sample(result: Evaluation) -> dict[str, NDArray[Any]]:
    """What per_sample.npz holds; all arrays have n rows, in the order of the sample index.

    Returns
    -------
    dict
        `index` int64, `sample_hash` uint64, `label`, `clean_prediction` int64,
        `clean_confidence` float32; `correct_KEY` bool for each score, `correct_clean` first;
        and with a curve `broken_at_eps` float32, the smallest radius at which PGD-20 broke the
        image: 0 where it is wrong when clean, inf where it stood at all radii, NaN where it
        was not tried.
    """
    test = result.test
    arrays = {
        "index": test.index.numpy(),
        "sample_hash": test.sample_hash,
        "label": test.labels.numpy(),
        "clean_prediction": result.clean.prediction.numpy(),
        "clean_confidence": result.clean.confidence.numpy(),
        **{f"correct_{score.key}": score.standing.numpy() for score in result.scores},
    }
    if result.curve is not None:
        arrays["broken_at_eps"] = np.full(len(test), np.nan, np.float32)
        arrays["broken_at_eps"][result.curve_rows] = result.curve.broken_at.numpy()
    return arrays


# --- How robust a model is: clean, under each attack, and by eps.


@dataclass(frozen=True)
class AttackResult:
    """What stood under one attack.

    Attributes
    ----------
    key : str
        How it is filed, such as `pgd-100x5`.
    name : str
        What people call it, such as `PGD-100 x 5`.
    standing : Tensor of shape (n,), dtype bool
        The images that stayed right.
    facts : dict
        Norm, eps, steps and whatever else decides it; plain values.
    """

    key: str
    name: str
    standing: torch.Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """The share of images that stayed right."""
        return int(self.standing.sum()) / len(self.standing)

    def row(self) -> AttackRow:
        """As metrics.json has it."""
        hits, n = int(self.standing.sum()), len(self.standing)
        low, high = wilson_interval(hits, n)
        measured = {"n": n, "accuracy": hits / n, "low": low, "high": high}
        return AttackRow(key=self.key, name=self.name, **measured, **self.facts)

    def by_class(self, labels: torch.Tensor, number: int) -> ClassScore:
        """The same of one class alone; accuracy is None where it has no images."""
        own = self.standing[labels == number]
        hits, n = int(own.sum()), len(own)
        low, high = wilson_interval(hits, n)
        return ClassScore(n=n, accuracy=hits / n if n else None, low=low, high=high)


@dataclass(frozen=True)
class Source:
    """Another model, whose adversarial images are tried on the one that is measured.

    Attributes
    ----------
    name : str
        As the user knows it.
    sha256 : str
        Of its checkpoint.
    model : Classifier
        In evaluation mode, on the same device.
    """

    name: str
    sha256: str
    model: Classifier


@dataclass(frozen=True)
class Said:
    """What a checkpoint says of its own clean accuracy.

    Attributes
    ----------
    accuracy : float
    of_what : str
        Which images that was measured on.
    """

    accuracy: float
    of_what: str


@dataclass
class Evaluation:
    """All that was measured.

    Attributes
    ----------
    test : TestImages
    clean : Answers
        To the images as they are.
    under_attack : Answers
        To all images under the first restart of PGD.
    scores : list of AttackResult
        Clean first, then each attack in the order they ran.
    autoattack : AutoAttackResult or None
    curve : Curve or None
        By eps.
    curve_rows : ndarray of shape (m,), dtype int64
        The rows of the images behind the curve.
    corruptions : list of CorruptionRow
    warnings : list of str
        What makes the numbers doubtful.
    """

    test: TestImages
    clean: Answers
    under_attack: Answers
    scores: list[AttackResult] = field(default_factory=list)
    autoattack: AutoAttackResult | None = None
    curve: Curve | None = None
    curve_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    corruptions: list[CorruptionRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def evaluate(
    model: Classifier,
    test: TestImages,
    params: EvaluateParams,
    *,
    seed: int,
    state: StateRecord | None = None,
    tick: Tick = silent,
    finished: Finished = unheard,
    sources: Sequence[Source] = (),
    corruptions: Sequence[CorruptedSet] = (),
    said: Said | None = None,
    training: NDArray[np.uint64] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a model; see `Evaluation`.

    Parameters
    ----------
    model : Classifier
        In evaluation mode, on its device.
    test : TestImages
    params : EvaluateParams
    seed : int
        Of restarts and AutoAttack.
    state : StateRecord, optional
        Where the finished batches are kept, and all that decides them: existing ones are
        continued. None: an interrupted evaluation starts over.
    tick : callable, optional
        Told what is under way, the images just done, and at most how many are to come.
    finished : callable, optional
        Told of each attack that is over, and the accuracy that it leaves.
    sources : sequence of Source
        Models whose adversarial images are tried on this one.
    corruptions : sequence of CorruptedSet
        On which accuracy without attack is measured.
    said : Said, optional
        What the clean accuracy is held against.
    training : ndarray of shape (m,), dtype uint64, optional
        Hashes of the images that the model was trained on.
    warn : callable, optional
        Given each warning of the clean images, before the first attack.

    Raises
    ------
    ModelError
        When a model is not fit to be measured.
    """
    ball = Ball(params.norm, params.eps)
    if params.autoattack != "none":
        require_possible(model.shape, ball, params.autoattack)
    journal = Journal(None if state is None else state.folder, state)
    number = _numbers(params, model, sources)
    bench = Bench(
        model,
        test,
        seed,
        params.batch_size,
        journal,
        lambda name, done, left: tick(number(name), done, left),
        lambda name, accuracy: finished(number(name), accuracy),
    )
    random = _require_sound(bench, params, sources)
    # Sound as it is; and faster frozen.
    bench = replace(bench, model=Frozen(model).current())
    sources = [replace(source, model=Frozen(source.model).current()) for source in sources]
    clean = bench.answers("clean", torch.arange(len(test)), title="clean")
    right = clean.right(test.labels)
    result = Evaluation(test, clean, clean, [AttackResult("clean", "clean", right)])
    result.warnings += leaks(test.sample_hash, test.labels.numpy(), training)
    result.warnings += _doubts(bench, right, params, said, random=random)
    known = [bench.source_right(one.model, number) for number, one in enumerate(sources, 1)]
    for source, hits in zip(sources, (int(of.sum()) for of in known), strict=True):
        doubt = weak_source(source.name, hits, len(test), model.num_classes)
        result.warnings += [doubt] if doubt else []
    if warn is not None:
        for line in result.warnings:
            warn(line)
    _gradient_attacks(bench, params, ball, right, result)
    _transfer(bench, params, ball, right, list(zip(sources, known, strict=True)), result)
    _autoattack(bench, params, ball, right, result)
    together = torch.stack([score.standing for score in result.scores]).all(dim=0)
    name = "all attacks together"
    result.scores.append(AttackResult("all-attacks", name, together, _threat(bench, ball)))
    _curve(bench, params, right, result)
    result.corruptions = corruption_accuracies(bench, corruptions, params.images)
    return result


def _numbers(
    params: EvaluateParams, model: Classifier, sources: Sequence[Source]
) -> Callable[[str], str]:
    """What makes `attack 5 of 8, PGD-50 start 2 of 5` of the title of what is under way."""
    attacks = [*map(parse_attack, params.attacks), _main_attack(params)]
    titles = [attack.title.partition(" x ")[0] for attack in attacks]
    titles += [f"transfer from {source.name}" for source in sources]
    if params.autoattack != "none":
        names, _ = attacks_of(params.autoattack, model.num_classes)
        titles += [title_of(name) for name in names]
    by_eps = f"PGD-{CURVE_STEPS} at eps"
    titles += [by_eps] * bool(params.eps_grid)

    def numbered(title: str) -> str:
        begin = by_eps if title.startswith(by_eps) else title.partition(" start ")[0]
        begin = begin.partition(" x ")[0]
        if begin not in titles:
            return title
        return f"attack {titles.index(begin) + 1} of {len(titles)}, {title}"

    return numbered


def _main_attack(params: EvaluateParams) -> GradientAttack:
    return GradientAttack("pgd", "cross entropy", params.pgd_steps, params.pgd_restarts)


def _require_sound(bench: Bench, params: EvaluateParams, sources: Sequence[Source]) -> bool:
    """Prove each model sound; whether the one that is measured answers at random."""
    images, _, _ = bench.test.take(torch.arange(min(len(bench.test), PROBED)))
    asked, allowed = probes(images), params.autoattack == "rand"
    require_sound(bench.model, asked, random_allowed=allowed)
    for source in sources:
        require_sound(source.model, asked)
    return allowed and is_random(bench.model, asked)


def _doubts(
    bench: Bench, right: torch.Tensor, params: EvaluateParams, said: Said | None, *, random: bool
) -> list[str]:
    hits, n = int(right.sum()), len(right)
    found = [wrong_scale(bench.model, bench.test)]
    if said is not None:
        found.append(contradicted_accuracy(hits, n, said.accuracy, said.of_what))
    if random:
        found.append("the model answers at random: each accuracy is of one draw")
    elif params.autoattack == "rand":
        found.append(
            "AutoAttack rand is for models that answer at random, which this one does not: "
            "standard is stronger"
        )
    return [line for line in found if line is not None]


def _threat(bench: Bench, ball: Ball) -> dict[str, Any]:
    # A radius means little without the size of the images that it is of.
    return {"norm": ball.norm, "eps": ball.eps, "pixels_sha256": bench.test.pixels_sha256}


def _gradient_attacks(
    bench: Bench, params: EvaluateParams, ball: Ball, right: torch.Tensor, result: Evaluation
) -> None:
    main = _main_attack(params)
    listed = [attack for attack in map(parse_attack, params.attacks) if attack.title != main.title]
    for attack in (*listed, main):
        outcome = run_gradient_attack(bench, attack, ball, right, all_images=attack is main)
        facts = {**_threat(bench, ball), **attack.facts(ball.eps)}
        result.scores.append(AttackResult(attack.key, attack.title, outcome.standing, facts))
        bench.finished(result.scores[-1].name, result.scores[-1].accuracy)
        if outcome.answers is not None:
            result.under_attack = outcome.answers


def _transfer(
    bench: Bench,
    params: EvaluateParams,
    ball: Ball,
    right: torch.Tensor,
    sources: Sequence[tuple[Source, torch.Tensor]],
    result: Evaluation,
) -> None:
    key, steps = rng.stream_key(bench.seed, "evaluation-start", 0), params.pgd_steps
    plan = GradientAttack("transfer", "cross entropy", steps)
    for number, (source, known) in enumerate(sources, 1):
        attack = partial(attack_images, source.model, ball=ball, steps=steps, key=key)
        title = f"transfer from {source.name}"
        standing = bench.standing(f"transfer-{number}", right, attack, title=title)
        origin = {
            "source": source.name,
            "source_sha256": source.sha256,
            "source_clean_accuracy": float(known.float().mean()),
        }
        facts = {**_threat(bench, ball), **plan.facts(ball.eps), **origin}
        result.scores.append(AttackResult(f"transfer-{number}", title, standing, facts))
        bench.finished(result.scores[-1].name, result.scores[-1].accuracy)


def _autoattack(
    bench: Bench, params: EvaluateParams, ball: Ball, right: torch.Tensor, result: Evaluation
) -> None:
    if params.autoattack == "none":
        return
    result.autoattack = run_autoattack(bench, ball, right, params.autoattack)
    facts = {**_threat(bench, ball), "version": params.autoattack, "package": package_version()}
    name = f"AutoAttack {params.autoattack}"
    result.scores.append(AttackResult("autoattack", name, result.autoattack.standing, facts))


def _curve(bench: Bench, params: EvaluateParams, right: torch.Tensor, result: Evaluation) -> None:
    if not params.eps_grid:
        return
    rows = _chosen(bench.test, params.eps_grid_images, bench.seed)
    part, known = replace(bench, test=bench.test.part(rows)), right[rows]
    result.curve = (
        automatic_curve(part, params.norm, known, params.eps)
        if params.eps_grid == "auto"
        else curve_at(part, params.norm, known, params.eps_grid)
    )
    result.curve_rows = rows.numpy()
    if params.eps_grid == "auto" and result.curve.zero_at is None:
        doubt = unbroken(int(result.curve.standing[-1].sum()), len(rows))
        result.warnings += [doubt] if doubt else []


def _chosen(test: TestImages, count: int | None, seed: int) -> torch.Tensor:
    """Rows of all images, or of a random `count` that depends on the seed and their indices."""
    key = rng.stream_key(seed, "evaluation-curve")
    order = np.argsort(rng.bits(key, test.index.numpy()), kind="stable")
    return torch.from_numpy(np.sort(order[:count]))


def examples(
    model: Classifier,
    test: TestImages,
    params: EvaluateParams,
    *,
    count: int,
    seed: int,
    scores: Sequence[AttackResult] = (),
) -> dict[str, NDArray[Any]]:
    """Some test images, clean and attacked by PGD-20, with both predictions.

    Parameters
    ----------
    model : Classifier
        In evaluation mode.
    test : TestImages
    params : EvaluateParams
    count : int
    seed : int
    scores : sequence of AttackResult, optional
        Of all images: the first that PGD broke and the first that stood are taken in equal
        parts, as far as there are such. Without them, the first images.

    Returns
    -------
    dict
        `clean` uint8 and `adversarial` float32 of shape (M, C, H, W); `label`, `index`,
        `clean_prediction`, `adversarial_prediction` int64 of shape (M,).
    """
    rows = _telling(len(test), count, {score.key: score.standing for score in scores})
    images, labels, index = test.take(rows)
    key, ball = rng.stream_key(seed, "example-start"), Ball(params.norm, params.eps)
    attacked = attack_images(model, images, labels, index, ball=ball, steps=CURVE_STEPS, key=key)
    with torch.no_grad():
        said = model(images), model(attacked)
    for logits in said:
        require_finite(logits, "for test images, as they are or attacked")
    before, after = (logits.argmax(dim=1) for logits in said)
    return {
        "clean": test.images[rows].numpy(),
        "adversarial": attacked.cpu().numpy(),
        "label": test.labels[rows].numpy(),
        "index": test.index[rows].numpy(),
        "clean_prediction": before.cpu().numpy(),
        "adversarial_prediction": after.cpu().numpy(),
    }


def _telling(n: int, count: int, standing: dict[str, torch.Tensor]) -> torch.Tensor:
    rows = torch.arange(n)
    if "pgd" not in standing:
        return rows[:count]
    stood, wrong = rows[standing["pgd"]], rows[~standing["clean"]]
    fell = rows[standing["clean"] & ~standing["pgd"]][: max(count // 2, count - len(stood))]
    return torch.cat([fell, stood[: count - len(fell)], wrong])[:count]
