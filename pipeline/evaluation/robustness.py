"""How robust a model is: clean, under each attack, and by eps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline import rng
from pipeline.attacks import Ball, Frozen
from pipeline.evaluation.autoattack import (
    AutoAttackResult,
    attacks_of,
    package_version,
    require_possible,
    run_autoattack,
    title_of,
)
from pipeline.evaluation.bench import Bench, silent, unheard
from pipeline.evaluation.corruptions import corruption_accuracies
from pipeline.evaluation.curve import CURVE_STEPS, Curve, automatic_curve, curve_at
from pipeline.evaluation.doubts import leaks, unbroken
from pipeline.evaluation.input_scale import contradicted_accuracy, weak_source, wrong_scale
from pipeline.evaluation.ledger import Ledger
from pipeline.evaluation.pgd import attack_images, run_gradient_attack
from pipeline.evaluation.plan import GradientAttack, parse_attack
from pipeline.evaluation.score import Score
from pipeline.evaluation.soundness import PROBED, is_random, probes, require_finite, require_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.evaluation.answers import Answers
    from pipeline.evaluation.bench import Finished, Tick
    from pipeline.evaluation.corruptions import CorruptedSet
    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier
    from pipeline.params import EvaluateParams
    from pipeline.provenance import StateRecord

__all__ = ["Evaluation", "Said", "Source", "evaluate", "examples"]


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
    scores : list of Score
        Clean first, then each attack in the order they ran.
    autoattack : AutoAttackResult or None
    curve : Curve or None
        By eps.
    curve_rows : ndarray of shape (m,), dtype int64
        The rows of the images behind the curve.
    corruptions : list of dict
        See `pipeline.evaluation.corruptions`.
    warnings : list of str
        What makes the numbers doubtful.
    """

    test: TestImages
    clean: Answers
    under_attack: Answers
    scores: list[Score] = field(default_factory=list)
    autoattack: AutoAttackResult | None = None
    curve: Curve | None = None
    curve_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    corruptions: list[dict[str, Any]] = field(default_factory=list)
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
    ledger = Ledger(None if state is None else state.folder, state)
    number = _numbers(params, model, sources)
    bench = Bench(
        model,
        test,
        seed,
        params.batch_size,
        ledger,
        lambda name, done, left: tick(number(name), done, left),
        lambda name, accuracy: finished(number(name), accuracy),
    )
    random = _require_sound(bench, params, sources)
    # Sound as it is; and faster frozen.
    bench = replace(bench, model=Frozen(model).current())
    sources = [replace(source, model=Frozen(source.model).current()) for source in sources]
    clean = bench.answers("clean", torch.arange(len(test)), title="clean")
    right = clean.right(test.labels)
    result = Evaluation(test, clean, clean, [Score("clean", "clean", right)])
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
    result.scores.append(Score("all-attacks", name, together, _threat(bench, ball)))
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
        result.scores.append(Score(attack.key, attack.title, outcome.standing, facts))
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
        result.scores.append(Score(f"transfer-{number}", title, standing, facts))
        bench.finished(result.scores[-1].name, result.scores[-1].accuracy)


def _autoattack(
    bench: Bench, params: EvaluateParams, ball: Ball, right: torch.Tensor, result: Evaluation
) -> None:
    if params.autoattack == "none":
        return
    result.autoattack = run_autoattack(bench, ball, right, params.autoattack)
    facts = {**_threat(bench, ball), "version": params.autoattack, "package": package_version()}
    name = f"AutoAttack {params.autoattack}"
    result.scores.append(Score("autoattack", name, result.autoattack.standing, facts))


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
    scores: Sequence[Score] = (),
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
    scores : sequence of Score, optional
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
