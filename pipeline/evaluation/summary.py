"""An evaluation as the files that other programs read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.autoattack import package_version
from pipeline.evaluation.corruptions import corruption_summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.evaluation.robustness import Evaluation
    from pipeline.params import EvaluateParams

__all__ = [
    "metrics_of",
    "not_measured",
    "per_class",
    "per_sample",
    "reliability_of",
    "scores_of",
]


def metrics_of(result: Evaluation, params: EvaluateParams, *, quick: bool) -> dict[str, Any]:
    """What metrics.json holds: accuracies are fractions, intervals are Wilson's at 95 %.

    Parameters
    ----------
    result : Evaluation
    params : EvaluateParams
    quick : bool
        It was a first look.

    Returns
    -------
    dict
        For each score `KEY_accuracy` (`-` in the key is `_`) and, under `intervals`, its bounds;
        the same again with all that decides it as a list of rows, `attacks`.
    """
    names = {f"{score.key.replace('-', '_')}_accuracy": score for score in result.scores}
    metrics: dict[str, Any] = {
        "n": len(result.test),
        "norm": params.norm,
        "eps": params.eps,
        "quick": quick,
        **{name: score.accuracy for name, score in names.items()},
        "intervals": {name: list(score.interval) for name, score in names.items()},
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
        metrics["intervals"]["corruption_accuracy"] = [mean["low"], mean["high"]]
        metrics["corruptions"] = {"n": mean["n"], "sets": mean["sets"]}
    metrics["attacks"] = [score.row() for score in result.scores]
    metrics["not_measured"] = not_measured(result, params)
    flags = result.autoattack.flags if result.autoattack is not None else []
    metrics["warnings"] = [*result.warnings, *(f"AutoAttack: {flag}" for flag in flags)]
    return metrics


def scores_of(metrics: dict[str, Any]) -> dict[str, float]:
    """What scores.json holds, and `dvc exp show` in columns: of metrics.json what one compares."""
    compared = ("_accuracy", "_error", "_under_attack", "zero_accuracy_at_eps")
    return {
        name: value
        for name, value in metrics.items()
        if name.endswith(compared) and value is not None
    }


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
            **{score.key: score.by_class(result.test.labels, number) for score in result.scores},
        }
        for number, name in enumerate(class_names)
    ]


def reliability_of(result: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """What reliability.json holds: accuracy by confidence, without and under attack.

    Returns
    -------
    dict
        `clean` and `under_attack` (the first start of PGD, on all images): rows of `number`,
        `count`, `confidence` and `accuracy`, of the bins that hold an image. Bin k of the 15
        has the confidences in (k/15, (k+1)/15].
    """
    answers = {"clean": result.clean, "under_attack": result.under_attack}
    return {
        name: [vars(one) for one in each.reliability(result.test.labels)]
        for name, each in answers.items()
    }


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
