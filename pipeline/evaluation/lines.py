"""An evaluation as lines for people; each says under which threat and of how many images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.evaluation.radius import threat_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["result_lines"]


def result_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows of metrics.json.

    Parameters
    ----------
    metrics : mapping
        See `pipeline.evaluation.summary.metrics_of`.
    """
    if metrics["quick"]:
        yield "QUICK LOOK: few images and a weak attack. Not a result: leave --quick out for one."
    width = max(len(row["name"]) for row in metrics["attacks"])
    for row in metrics["attacks"]:
        yield f"  {row['name']:<{width}}{_measured(row)}   {_conditions(row)}"
    clean, attacked = (metrics[f"expected_calibration_error{of}"] for of in ("", "_under_attack"))
    yield f"  calibration error {clean:.2%} on clean images, {attacked:.2%} under PGD's first start"
    if metrics.get("zero_accuracy_at_eps") is not None:
        threat = threat_text(metrics["norm"], metrics["zero_accuracy_at_eps"])
        yield f"  no image stands at {threat}"
    if "autoattack_accuracy" not in metrics:
        yield "  AutoAttack was left out: the PGD number alone is no claim of robustness."
    yield f"  not measured: {', '.join(metrics['not_measured'])}"
    for line in metrics["warnings"]:
        yield f"  WARNING: {line}"


def _measured(row: Mapping[str, Any]) -> str:
    interval = f"95 % interval {row['low']:.2%} to {row['high']:.2%}"
    return f"{row['accuracy']:>9.2%}   {interval}"


def _conditions(row: Mapping[str, Any]) -> str:
    images = f"{row['n']:,} images"
    if "norm" not in row:
        return f"no attack, {images}"
    package = f", {row['package']}" if "package" in row else ""
    return f"{threat_text(row['norm'], row['eps'])}, {images}{package}"
