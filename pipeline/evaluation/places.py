"""Where the files of an evaluation lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["audit_beside", "evaluation_beside"]


def evaluation_beside(metrics: Path) -> Path:
    """The folder of an evaluation: `baseline-evaluation` for `baseline-metrics.json`."""
    stem = metrics.name.removesuffix(".json")
    return metrics.with_name(
        f"{stem.removesuffix('metrics')}evaluation" if stem.endswith("metrics") else stem
    )


def audit_beside(metrics: Path) -> Path:
    """The audit.json of what was measured, where `audit` leaves it."""
    return metrics.with_name("audit") / "audit.json"
