"""Where the files of an evaluation lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["evaluation_beside"]


def evaluation_beside(metrics: Path) -> Path:
    """The folder of an evaluation: `baseline-evaluation` for `baseline-metrics.json`."""
    stem = metrics.name.removesuffix(".json")
    return metrics.with_name(
        f"{stem.removesuffix('metrics')}evaluation" if stem.endswith("metrics") else stem
    )
