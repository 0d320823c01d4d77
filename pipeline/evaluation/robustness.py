"""How robust a model is: clean, PGD, AutoAttack, and the curve over eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import rng
from pipeline.evaluation.accuracy import (
    expected_calibration_error,
    require_sound_logits,
    wilson_interval,
)
from pipeline.evaluation.autoattack import AutoAttackResult, run_autoattack
from pipeline.evaluation.pgd import attack_images, correct_when_clean, survivors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier
    from pipeline.params import EvaluateParams

    Tick = Callable[[str, int], None]

__all__ = ["Evaluation", "evaluate", "examples"]

# Steps of the attack behind the curve over eps and the pictures.
_CURVE_STEPS = 20


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes
    ----------
    metrics : dict
        As in metrics.json: accuracies are fractions, intervals are Wilson's at 95 %.
    by_eps : list of dict
        `eps`, `robust_accuracy` and its interval `low`, `high`.
    flags : list of str
        AutoAttack's warnings.
    """

    metrics: dict[str, Any]
    by_eps: list[dict[str, float]]
    flags: list[str]


def evaluate(
    model: Classifier,
    test: TestImages,
    params: EvaluateParams,
    *,
    seed: int,
    state: Path,
    tick: Tick,
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
    state : Path
        Folder of AutoAttack's progress, to resume from.
    tick : callable
        Called with the attack's name and the number of images just done.

    Raises
    ------
    ModelError
        When the model is not fit to be measured.
    """
    probe, _, _ = test.take(torch.arange(min(len(test), 32)))
    require_sound_logits(model, probe)
    right = correct_when_clean(model, test, params.batch_size)
    tick("clean", len(test))
    robust = survivors(
        model,
        test,
        right,
        eps=params.eps,
        steps=params.pgd_steps,
        restarts=params.pgd_restarts,
        seed=seed,
        batch_size=params.batch_size,
        tick=lambda n: tick(f"PGD-{params.pgd_steps}", n),
    )
    auto = _autoattack(model, test, right, params, seed, state, tick)
    counts = {"clean_accuracy": int(right.sum()), "pgd_accuracy": int(robust.sum())}
    if auto is not None:
        counts["autoattack_accuracy"] = sum(auto.robust)
    metrics = _metrics(counts, len(test), params.eps)
    metrics["expected_calibration_error"] = _calibration(model, test, params.batch_size)
    if auto is not None:
        metrics["autoattack"] = auto.accuracy
    curve = _by_eps(model, test, right, params, seed, tick)
    return Evaluation(metrics, curve, auto.flags if auto else [])


def _autoattack(
    model: Classifier,
    test: TestImages,
    right: torch.Tensor,
    params: EvaluateParams,
    seed: int,
    state: Path,
    tick: Tick,
) -> AutoAttackResult | None:
    if params.autoattack == "none":
        return None
    return run_autoattack(
        model,
        test,
        right,
        eps=params.eps,
        seed=seed,
        batch_size=params.batch_size,
        state=state / "autoattack.json",
        tick=lambda n: tick("AutoAttack", n),
    )


def _metrics(counts: dict[str, int], n: int, eps: float) -> dict[str, Any]:
    accuracies = {name: hits / n for name, hits in counts.items()}
    intervals = {name: list(wilson_interval(hits, n)) for name, hits in counts.items()}
    return {"n": n, "eps": eps, **accuracies, "intervals": intervals}


@torch.no_grad()
def _calibration(model: Classifier, test: TestImages, batch_size: int) -> float:
    probabilities = []
    for rows in test.batches(torch.arange(len(test)), batch_size):
        images, _, _ = test.take(rows)
        probabilities.append(model(images).softmax(dim=1).cpu().numpy())
    return expected_calibration_error(np.concatenate(probabilities), test.labels.numpy())


def _by_eps(
    model: Classifier,
    test: TestImages,
    right: torch.Tensor,
    params: EvaluateParams,
    seed: int,
    tick: Tick,
) -> list[dict[str, float]]:
    curve = []
    for eps in params.eps_grid:
        robust = survivors(
            model,
            test,
            right,
            eps=eps,
            steps=_CURVE_STEPS,
            restarts=1,
            seed=seed,
            batch_size=params.batch_size,
            tick=lambda n: tick("curve over eps", n),
        )
        hits = int(robust.sum())
        low, high = wilson_interval(hits, len(test))
        curve.append({"eps": eps, "robust_accuracy": hits / len(test), "low": low, "high": high})
    return curve


def examples(
    model: Classifier, test: TestImages, params: EvaluateParams, *, count: int, seed: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Some test images, clean and attacked by PGD-20, with both predictions.

    Parameters
    ----------
    model : Classifier
        In evaluation mode.
    test : TestImages
    params : EvaluateParams
    count : int
        The first so many.
    seed : int

    Returns
    -------
    dict
        `clean` uint8 and `adversarial` float32 of shape (M, C, H, W); `label`, `index`,
        `clean_prediction`, `adversarial_prediction` int64 of shape (M,).
    """
    rows = torch.arange(min(count, len(test)))
    images, labels, index = test.take(rows)
    key = rng.stream_key(seed, "example-start")
    attacked = attack_images(
        model, images, labels, index, eps=params.eps, steps=_CURVE_STEPS, key=key
    )
    with torch.no_grad():
        before, after = model(images).argmax(dim=1), model(attacked).argmax(dim=1)
    return {
        "clean": test.images[rows].numpy(),
        "adversarial": attacked.cpu().numpy(),
        "label": test.labels[rows].numpy(),
        "index": test.index[rows].numpy(),
        "clean_prediction": before.cpu().numpy(),
        "adversarial_prediction": after.cpu().numpy(),
    }
