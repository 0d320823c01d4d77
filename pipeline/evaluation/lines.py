"""Evaluations and audits as lines for people, with threat and number of images in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.evaluation.finding import FEW_IMAGES
from pipeline.evaluation.radius import threat_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["audit_lines", "result_lines"]


def result_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows of metrics.json.

    Parameters
    ----------
    metrics : mapping
        See `pipeline.evaluation.summary.metrics_of`.
    """
    if metrics["quick"]:
        yield "QUICK LOOK: few images and a weak attack. Not a result: leave --quick out for one."
    width = max(17, *(len(row["name"]) for row in metrics["attacks"]))
    for row in metrics["attacks"]:
        yield f"  {row['name']:<{width}}{_measured(row)}   {_conditions(row)}"
    clean, attacked = (metrics[f"expected_calibration_error{of}"] for of in ("", "_under_attack"))
    n = f"{metrics['n']:,} images"
    yield f"  calibration error {clean:.2%} clean, {attacked:.2%} under PGD's first start, {n}"
    if "corruption_accuracy" in metrics:
        low, high = metrics["intervals"]["corruption_accuracy"]
        part, sets = metrics["corruptions"]["n"], metrics["corruptions"]["sets"]
        row = {"accuracy": metrics["corruption_accuracy"], "low": low, "high": high}
        mean = "corruptions, mean"
        yield f"  {mean:<{width}}{_measured(row)}   no attack, {sets} sets of {part:,} images"
    if metrics.get("zero_accuracy_at_eps") is not None:
        threat = threat_text(metrics["norm"], metrics["zero_accuracy_at_eps"])
        yield f"  PGD-20 leaves nothing at {threat}, {metrics['eps_grid_images']:,} images"
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
    known = row.get("source_clean_accuracy")
    source = "" if known is None else f", source {known:.2%} clean"
    return f"{threat_text(row['norm'], row['eps'])}, {images}{package}{source}"


def _found(row: Mapping[str, Any]) -> str:
    seen = f"{row['share']:7.2%} of images, lower end {row['low']:.2%}"
    return f"{seen}, limit {row['limit']:.0%}, fails from {row['fails_from']:.2%}"


def audit_lines(summary: Mapping[str, Any], model: str) -> Iterator[str]:
    """What a terminal shows of audit.json.

    Parameters
    ----------
    summary : mapping
    model : str
        As the user named it.
    """
    rows, norm = summary["findings"], summary["norm"]
    yield f"{model}: {summary['n']:,} test images, {threat_text(norm, summary['eps'])}"
    if "refused" in summary:
        yield f"No check could be made: {summary['refused']}"
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        verdict = "pass" if row["passed"] else "FAIL"
        yield f"  {verdict}  {row['name']:<{width}}  {_found(row)}"
        if not row["passed"]:
            yield f"        {row['meaning']}"
    yield (
        f"A check fails when the lower end of the 95 % interval is above its limit: with "
        f"{summary['n']:,} images from the last share of its line on."
    )
    for name, known in summary.get("source_clean_accuracy", {}).items():
        yield f"The source {name} has {known:.2%} of the clean images right."
    for line in summary.get("not_made", []):
        yield f"WARNING: {line}"
    if summary["n"] < FEW_IMAGES:
        yield f"WARNING: below {FEW_IMAGES} images, a check that passes says little."
    zero = summary["zero_accuracy_at_eps"]
    where = "no radius" if zero is None else threat_text(norm, zero)
    yield f"Robust accuracy by eps (PGD-20, {summary['n']:,} images) falls to 0 at {where}."
    failed = sum(not row["passed"] for row in rows)
    if failed:
        yield f"{failed} of {len(rows)} checks failed: do not believe its robust accuracy."
    else:
        yield f"All {len(rows)} checks passed: no sign of gradient masking."
