"""How robust a model is: clean, under each attack, and by eps; and the files that say it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe import rng
from ltd_pipe.attacks import Ball, Frozen
from ltd_pipe.distributed import ALONE, World
from ltd_pipe.evaluation import attacks, checks, results
from ltd_pipe.evaluation.bench import Bench, Journal, silent
from ltd_pipe.evaluation.corruptions import corruption_accuracies, corruption_summary
from ltd_pipe.evaluation.results import AttackRow, CorruptionRow, EpsPoint, Metrics, measured
from ltd_pipe.evaluation.statistics import class_counts
from ltd_pipe.publish import staged, write_json

if TYPE_CHECKING:
    from ltd_pipe.attacks import Norm
    from ltd_pipe.evaluation.bench import Answers, Finished, TestImages, Tick
    from ltd_pipe.evaluation.corruptions import CorruptedSet
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.params import EvaluateParams
    from ltd_pipe.provenance import StateRecord


# --- Robust accuracy by eps, from 0 to where no image stays right.
#
# A ball holds all smaller ones: an image that was broken at some radius is broken at every larger
# one, and is not attacked there again.


# Of the attack behind the curve: one start, 20 steps, as most papers draw it.
CURVE_STEPS = 20
# The automatic curve: radii at most, the largest fall between two neighbours, and how well the
# radius at which nothing is left is known, as a share of it.
_MOST_RADII = 16
_LARGEST_FALL = 0.1
_ZERO_WITHIN = 0.1


@dataclass(frozen=True)
class Curve:
    """The images that stay right at each radius (n booleans), in ascending order.

    None holds an image that the one before does not.
    """

    radii: tuple[float, ...]
    correct: tuple[torch.Tensor, ...]

    @property
    def points(self) -> tuple[EpsPoint, ...]:
        """As by_eps.json has them."""
        points = []
        for eps, correct in zip(self.radii, self.correct, strict=True):
            row = measured(correct)
            points.append(EpsPoint(eps=eps, robust_accuracy=row.pop("accuracy"), **row))
        return tuple(points)

    @property
    def broken_at(self) -> torch.Tensor:
        """The smallest radius at which each image was broken: shape (n,), float32; else inf."""
        found = torch.full((len(self.correct[0]),), torch.inf)
        for eps, correct in zip(reversed(self.radii), reversed(self.correct), strict=True):
            found[~correct] = eps
        return found

    @property
    def zero_at(self) -> float | None:
        """The smallest radius at which nothing is left, or None."""
        zero = (eps for eps, left in zip(self.radii, self.correct, strict=True) if not left.any())
        return next(zero, None)


def largest_radius(norm: Norm, shape: tuple[int, int, int]) -> float:
    """The radius from which on the ball holds every image: all of [0, 1]."""
    return 1.0 if norm == "linf" else math.sqrt(math.prod(shape))


def _attack(bench: Bench, norm: Norm, left: dict[float, torch.Tensor], eps: float) -> int:
    """Attack what is left at the next smaller radius; the number of images left."""
    if eps not in left:
        before = left[max(radius for radius in left if radius < eps)]
        ball, title = Ball(norm, eps), f"PGD-{CURVE_STEPS} at eps {eps:.3g}"
        attack = attacks.GradientAttack(f"curve-{eps!r}", steps=CURVE_STEPS)
        left[eps], _ = attacks.run(bench, attack, ball, before, title)
    return int(left[eps].sum())


def _curve(left: dict[float, torch.Tensor]) -> Curve:
    """What is left at each radius; a smaller one that was attacked later counts."""
    radii = sorted(left)
    kept = torch.stack([left[eps] for eps in radii]).cummin(dim=0).values
    return Curve(tuple(radii), tuple(kept))


def curve_at(bench: Bench, norm: Norm, clean: torch.Tensor, radii: Sequence[float]) -> Curve:
    """The curve at given radii, from the images that are right when clean."""
    left, asked = {0.0: clean}, sorted({float(eps) for eps in radii})
    for eps in asked:
        _attack(bench, norm, left, eps)
    return _curve({eps: left[eps] for eps in asked})


def automatic_curve(bench: Bench, norm: Norm, clean: torch.Tensor, eps: float) -> Curve:
    """The curve from 0 to where nothing is left, at radii that are found on the way.

    A quarter of `eps` is doubled until nothing is left or the ball holds everything. Then the
    widest gaps are halved: around the radius at which nothing is left any more until it is known
    to a tenth, and wherever more than a tenth of the images fall between two neighbours.
    """
    left, largest = {0.0: clean}, largest_radius(norm, bench.model.shape)
    radius = eps / 4
    while _attack(bench, norm, left, min(radius, largest)) and radius < largest:
        radius *= 2
    _attack(bench, norm, left, eps)
    while len(left) < _MOST_RADII and (middle := _widest_gap(_curve(left))) is not None:
        _attack(bench, norm, left, middle)
    return _curve(left)


def _widest_gap(curve: Curve) -> float | None:
    """Where to look next: the middle of the gap that says least."""
    left = [int(correct.sum()) for correct in curve.correct]
    for (low, high), (before, after) in zip(pairwise(curve.radii), pairwise(left), strict=True):
        if before and not after and high - low > _ZERO_WITHIN * high:
            return (low + high) / 2
    falls = [before - after for before, after in pairwise(left)]
    widest = max(range(len(falls)), key=lambda i: falls[i])
    if falls[widest] <= _LARGEST_FALL * len(curve.correct[0]):
        return None
    return (curve.radii[widest] + curve.radii[widest + 1]) / 2


# --- An evaluation.


_RANDOM = "the model answers at random: each accuracy is of one draw"
_NOT_RANDOM = (
    "AutoAttack rand is for models that answer at random, which this one does not: "
    "standard is stronger"
)


@dataclass(frozen=True)
class AttackResult:
    """The images that stay right under one attack (n booleans), with all that decides it."""

    key: str  # how it is filed, such as `pgd-100x5`
    name: str  # what people call it, such as `PGD-100 x 5`
    correct: torch.Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    def row(self) -> AttackRow:
        """As metrics.json has it."""
        return AttackRow(key=self.key, name=self.name, **measured(self.correct), **self.facts)


@dataclass(frozen=True)
class Source:
    """Another model, whose adversarial images are tried on the one that is measured."""

    name: str  # as the user knows it
    sha256: str  # of its checkpoint
    model: Classifier  # in evaluation mode, on the same device


@dataclass
class Evaluation:
    """All that was measured."""

    test: TestImages
    clean: Answers
    # To all images, under the first restart of PGD.
    under_attack: Answers
    # Clean first, then each attack in the order they ran.
    scores: list[AttackResult] = field(default_factory=list)
    autoattack: attacks.AutoAttackResult | None = None
    curve: Curve | None = None
    # Of the images behind the curve.
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
    finished: Finished = silent,
    sources: Sequence[Source] = (),
    corruptions: Sequence[CorruptedSet] = (),
    stated: tuple[float, str, int | None] | None = None,
    training: NDArray[np.uint64] | None = None,
    doubts: Sequence[str] = (),
    warn: Callable[[str], None] = silent,
    world: World = ALONE,
) -> Evaluation:
    """Measure a model in evaluation mode; a ModelError when it is not fit to be measured.

    `seed` is that of restarts and AutoAttack. `state` keeps the finished batches and all that
    decides them, and existing ones are continued; None: an interrupted evaluation starts over.
    Adversarial images of the `sources` are tried on the model, and its clean accuracy is measured
    on the `corruptions`. `stated` is the clean accuracy that the checkpoint states, and of which
    images; `training` the hashes, uint64 of shape (m,), of the images that it was trained on;
    `doubts` are what else the result is to warn of.

    `tick` is told what is under way, the images just done, and at most how many are to come;
    `finished` each attack that is over and the accuracy it leaves; `warn` each warning of the clean
    images, before the first attack. The processes of the `world` share the batches of each attack,
    and all have the result.
    """
    ball = Ball(params.norm, params.eps)
    if params.autoattack != "none":
        attacks.require_possible(model.shape, ball, params.autoattack)
    numbered = _numbered(params, model, sources)
    bench = Bench(
        model,
        test,
        seed,
        params.batch_size,
        Journal(None if state is None else state.folder, state),
        lambda name, done, left: tick(numbered(name), done, left),
        lambda name, accuracy: finished(numbered(name), accuracy),
        world,
    )
    random = _require_sound(bench, params, sources)
    # Sound as it is; and faster frozen.
    bench = replace(bench, model=Frozen(model).current())
    sources = [replace(source, model=Frozen(source.model).current()) for source in sources]
    answers = bench.answers("clean", torch.arange(len(test)), title="clean")
    clean = answers.correct(test.labels)
    result = Evaluation(test, answers, answers, [AttackResult("clean", "clean", clean)])
    known = [bench.correct_of_source(one.model, number) for number, one in enumerate(sources, 1)]
    counts = class_counts(test.labels.numpy(), model.num_classes)
    found = [
        *doubts,
        *results.image_warnings(test.sample_hash, test.labels.numpy(), training),
        checks.wrong_scale(bench.model, test.images, test.labels),
        stated and results.contradicted_accuracy(int(clean.sum()), len(test), *stated),
        results.chance(int(clean.sum()), counts),
        _RANDOM if random else _NOT_RANDOM if params.autoattack == "rand" else None,
        *(
            results.weak_source(source.name, int(right.sum()), counts)
            for source, right in zip(sources, known, strict=True)
        ),
    ]
    result.warnings += filter(None, found)
    for line in result.warnings:
        warn(line)
    _run_attacks(bench, params, ball, result, [*zip(sources, known, strict=True)])
    if params.eps_grid:
        _add_curve(bench, params, clean, result)
    result.corruptions = corruption_accuracies(bench, corruptions, params.images)
    return result


def _run_attacks(
    bench: Bench,
    params: EvaluateParams,
    ball: Ball,
    result: Evaluation,
    sources: Sequence[tuple[Source, torch.Tensor]],
) -> None:
    """Add each attack's result; sources come with which images they are right on."""
    clean, n = result.scores[0].correct, len(result.test)
    # A radius means little without the size of the images that it is of.
    threat = {"norm": ball.norm, "eps": ball.eps, "pixels_sha256": result.test.pixels_sha256}

    def add(key: str, title: str, correct: torch.Tensor, **facts: Any) -> None:
        result.scores.append(AttackResult(key, title, correct, {**threat, **facts}))

    main = main_attack(params)
    listed = (one for one in map(attacks.parse_attack, params.attacks) if one.title != main.title)
    for attack in (*listed, main):
        correct, found = attacks.run(bench, attack, ball, clean, all_images=attack is main)
        result.under_attack = found[0]
        add(attack.key, attack.title, correct, **attack.facts(ball.eps))
        bench.finished(attack.title, int(correct.sum()) / n)
    for number, (source, known) in enumerate(sources, 1):
        key, title = f"transfer-{number}", f"transfer from {source.name}"
        attack = attacks.GradientAttack(key, steps=params.pgd_steps)
        start = attack.on(source.model, ball, attacks.start_key(bench.seed))
        correct = bench.correct(key, clean, start, title=title)
        facts = attack.facts(ball.eps) | {
            "source": source.name,
            "source_sha256": source.sha256,
            "source_clean_accuracy": float(known.float().mean()),
        }
        add(key, title, correct, **facts)
        bench.finished(title, int(correct.sum()) / n)
    if (version := params.autoattack) != "none":
        result.autoattack = attacks.run_autoattack(bench, ball, clean, version)
        facts = {"version": version, "package": attacks.package_version()}
        add("autoattack", f"AutoAttack {version}", result.autoattack.correct, **facts)
    together = torch.stack([score.correct for score in result.scores]).all(dim=0)
    add("all-attacks", "all attacks together", together)


def main_attack(params: EvaluateParams) -> attacks.GradientAttack:
    """The one whose answers the report shows."""
    return attacks.GradientAttack("pgd", "cross entropy", params.pgd_steps, params.pgd_restarts)


def _numbered(
    params: EvaluateParams, model: Classifier, sources: Sequence[Source]
) -> Callable[[str], str]:
    """What makes `attack 5 of 8, PGD-50 start 2 of 5` of the title of what is under way."""
    gradient = [*map(attacks.parse_attack, params.attacks), main_attack(params)]
    titles = [attack.title.partition(" x ")[0] for attack in gradient]
    titles += [f"transfer from {source.name}" for source in sources]
    if params.autoattack != "none":
        names, _ = attacks.attacks_of(params.autoattack, model.num_classes)
        titles += map(attacks.title_of, names)
    by_eps = f"PGD-{CURVE_STEPS} at eps"
    titles += [by_eps] * bool(params.eps_grid)

    def number(title: str) -> str:
        begin = by_eps if title.startswith(by_eps) else title.partition(" start ")[0]
        begin = begin.partition(" x ")[0]
        if begin not in titles:
            return title
        return f"attack {titles.index(begin) + 1} of {len(titles)}, {title}"

    return number


def _require_sound(bench: Bench, params: EvaluateParams, sources: Sequence[Source]) -> bool:
    """Prove each model sound; whether the one that is measured answers at random."""
    images, _, _ = bench.test.take(torch.arange(min(len(bench.test), checks.PROBED)))
    asked, allowed = checks.probes(images), params.autoattack == "rand"
    checks.require_sound(bench.model, asked, random_allowed=allowed)
    for source in sources:
        checks.require_sound(source.model, asked)
    return allowed and checks.is_random(bench.model, asked)


def _add_curve(
    bench: Bench, params: EvaluateParams, clean: torch.Tensor, result: Evaluation
) -> None:
    """Of all images, or of a random part that depends on the seed and their indices."""
    key = rng.stream_key(bench.seed, "evaluation-curve")
    order = np.argsort(rng.bits(key, bench.test.index.numpy()), kind="stable")
    rows = np.sort(order[: params.eps_grid_images])
    part, known = replace(bench, test=bench.test.part(torch.from_numpy(rows))), clean[rows]
    result.curve_rows = rows
    if params.eps_grid != "auto":
        result.curve = curve_at(part, params.norm, known, params.eps_grid)
        return
    result.curve = automatic_curve(part, params.norm, known, params.eps)
    left = int(result.curve.correct[-1].sum())
    result.warnings += filter(None, [results.unbroken(left, len(rows))])


# --- An evaluation as the files that other programs read; see `ltd_pipe.evaluation.results`.


def write_folder(
    out: Path,
    result: Evaluation,
    settings: dict[str, Any],
    class_names: Sequence[str],
    pictures: dict[str, NDArray[Any]],
) -> None:
    """Write all files of an evaluation's folder but scores.json; pictures are of `examples`."""
    labels = result.test.labels
    diagrams = results.Reliability(
        clean=result.clean.reliability(labels), under_attack=result.under_attack.reliability(labels)
    )
    points = result.curve.points if result.curve else ()
    write_json(out / "settings.json", results.Settings(**settings).dump())
    write_json(out / "by_eps.json", [point.dump() for point in points])
    write_json(out / "per_class.json", per_class(result, class_names))
    write_json(out / "reliability.json", diagrams.dump())
    (out / "corruptions.json").unlink(missing_ok=True)
    if result.corruptions:
        write_json(out / "corruptions.json", [row.dump() for row in result.corruptions])
    for name, arrays in ((results.SAMPLES_FILE, per_sample(result)), ("examples.npz", pictures)):
        with staged(out / name) as beside, beside.open("wb") as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]  # numpy/numpy#24401


def metrics_of(
    result: Evaluation, params: EvaluateParams, *, quick: bool, checkpoint_sha256: str
) -> Metrics:
    """What metrics.json holds."""
    rows, labels = [score.row() for score in result.scores], result.test.labels
    flags, optional = list[str](), dict[str, Any]()
    if result.autoattack is not None:
        flags = result.autoattack.flags
        optional["autoattack"] = result.autoattack.accuracy
        optional["autoattack_version"] = f"{params.autoattack}, {attacks.package_version()}"
    if result.curve is not None:
        optional["zero_accuracy_at_eps"] = result.curve.zero_at
        optional["eps_grid_images"] = len(result.curve_rows)
    if result.corruptions:
        mean = corruption_summary(result.corruptions)
        optional["corruption_accuracy"] = mean.value
        optional["corruptions"] = {"n": mean.n, "sets": len(result.corruptions)}
    lacks = {
        "AutoAttack": result.autoattack is None,
        "other attacks than PGD on the model's own gradient": not params.attacks,
        "transfer attacks": "transfer-1" not in {row.key for row in rows},
        "robust accuracy by eps": result.curve is None,
        "corrupted images": not result.corruptions,
        {"linf": "L2", "l2": "Linf"}[params.norm]: True,
    }
    return Metrics(
        n=len(result.test),
        norm=params.norm,
        eps=params.eps,
        quick=quick,
        expected_calibration_error=result.clean.calibration_error(labels),
        expected_calibration_error_under_attack=result.under_attack.calibration_error(labels),
        attacks=rows,
        not_measured=[what for what, lacking in lacks.items() if lacking],
        warnings=[*result.warnings, *(f"AutoAttack: {flag}" for flag in flags)],
        checkpoint_sha256=checkpoint_sha256,
        **optional,
    )


def per_class(result: Evaluation, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """What per_class.json holds: for each class, each score's n, accuracy and interval."""
    rows = []
    for number, name in enumerate(class_names):
        own = result.test.labels == number
        shares = {one.key: measured(one.correct[own]) for one in result.scores}
        rows.append({"class": name} | shares)
    return rows


def per_sample(result: Evaluation) -> dict[str, NDArray[Any]]:
    """What per_sample.npz holds; all arrays have n rows, in the order of the sample index.

    Returns
    -------
    dict
        `index` int64, `sample_hash` uint64, `label`, `clean_prediction` int64,
        `clean_confidence` float32; `correct_KEY` bool for each score, `correct_clean` first;
        and with a curve `broken_at_eps` float32, the smallest radius at which PGD-20 broke the
        image: 0 where it is wrong when clean, inf where it stayed right at all radii, NaN where
        it was not tried.
    """
    test = result.test
    arrays = {
        "index": test.index.numpy(),
        "sample_hash": test.sample_hash,
        "label": test.labels.numpy(),
        "clean_prediction": result.clean.prediction.numpy(),
        "clean_confidence": result.clean.confidence.numpy(),
        **{f"correct_{score.key}": score.correct.numpy() for score in result.scores},
    }
    if result.curve is not None:
        arrays["broken_at_eps"] = np.full(len(test), np.nan, np.float32)
        # A grid that was asked for may begin above 0.
        right = arrays["correct_clean"][result.curve_rows]
        broken = np.where(right, result.curve.broken_at.numpy(), 0)
        arrays["broken_at_eps"][result.curve_rows] = broken
    return arrays


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

    With `scores`, of all images, the first that PGD broke and the first that stayed right are taken
    in equal parts; else the first images. Gives `clean` uint8 and `adversarial` float32 of shape
    (M, C, H, W), and `label`, `index`, `clean_prediction`, `adversarial_prediction` int64 of shape
    (M,).
    """
    rows, correct = torch.arange(len(test)), {score.key: score.correct for score in scores}
    if "pgd" in correct:
        stood, wrong = rows[correct["pgd"]], rows[~correct["clean"]]
        fell = rows[correct["clean"] & ~correct["pgd"]][: max(count // 2, count - len(stood))]
        rows = torch.cat([fell, stood[: count - len(fell)], wrong])
    rows = rows[:count]
    images, labels, index = test.take(rows)
    key, ball = rng.stream_key(seed, "example-start"), Ball(params.norm, params.eps)
    attack = attacks.GradientAttack("examples", steps=CURVE_STEPS).on(model, ball, key)
    attacked = attack(images, labels, index)
    with torch.no_grad():
        logits = model(images), model(attacked)
    for each in logits:
        checks.require_finite(each, "for test images, as they are or attacked")
    before, after = (each.argmax(dim=1).cpu().numpy() for each in logits)
    return {
        "clean": test.images[rows].numpy(),
        "adversarial": attacked.cpu().numpy(),
        "label": test.labels[rows].numpy(),
        "index": test.index[rows].numpy(),
        "clean_prediction": before,
        "adversarial_prediction": after,
    }
