"""What a model's card says, read from the files of the stages and held against each other.

A number of another model on a card is worse than none: the files say which checkpoint they
are of, and one that does not, or says another, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import ResultError
from pipeline.export.facts import threat_model
from pipeline.models.checkpoint import read_facts
from pipeline.provenance import sha256_file
from pipeline.report.audit import Audit, read_audit
from pipeline.report.measured import Measured, read_measured
from pipeline.report.results import parse_result
from pipeline.report.runs import RunFacts

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CardFacts", "gather_card"]

_EVALUATE = "ltd-pipe evaluate"


@dataclass(frozen=True)
class CardFacts:
    """All that a card shows; what is None was not given.

    Attributes
    ----------
    name : str
        The model's.
    file_name : str
        The checkpoint's, without its folder.
    sha256 : str
        Of the checkpoint's bytes.
    run : RunFacts
    mean, std : tuple of float
    threat_model : dict or None
        `norm` and `eps` that it was trained in.
    measured : Measured or None
    audit : Audit or None
    licence : str or None
    """

    name: str
    file_name: str
    sha256: str
    run: RunFacts
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threat_model: dict[str, Any] | None
    measured: Measured | None = None
    audit: Audit | None = None
    licence: str | None = None


def gather_card(
    checkpoint: Path,
    *,
    metrics: Path | None = None,
    evaluation: Path | None = None,
    audit: Path | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> CardFacts:
    """Read what there is to say about a checkpoint.

    Parameters
    ----------
    checkpoint : Path
        Of `save_classifier`.
    metrics, evaluation : Path, optional
        metrics.json and the folder of its settings.json; both or none.
    audit : Path, optional
        audit.json, as `ltd-pipe audit` leaves it.
    name : str, optional
        The model's; by default made of architecture and data set.
    licence : str, optional

    Raises
    ------
    MissingError
        When a file that was named is not there.
    CheckpointError, ResultError
        When one is damaged, or of another checkpoint.
    """
    header = read_facts(checkpoint)
    run = parse_result(header, RunFacts, checkpoint, "ltd-pipe train")
    sha256 = sha256_file(checkpoint)
    return CardFacts(
        name=name or _name(run),
        file_name=checkpoint.name,
        sha256=sha256,
        run=run,
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        threat_model=threat_model(run),
        measured=_measured(metrics, evaluation, sha256, run) if metrics and evaluation else None,
        audit=read_audit(audit, sha256) if audit else None,
        licence=licence,
    )


def _name(run: RunFacts) -> str:
    return f"{run.architecture} on {run.data.dataset}" if run.data else run.architecture


def _measured(metrics: Path, evaluation: Path, sha256: str, run: RunFacts) -> Measured:
    found = read_measured(metrics, evaluation)
    _require_same(metrics, found.checkpoint_sha256, sha256, _EVALUATE)
    return replace(found, warnings=run.with_leak(found.warnings, found.settings, found.n))


def _require_same(path: Path, found: str | None, sha256: str, command: str) -> None:
    if found != sha256:
        raise ResultError(
            path,
            "is not of this checkpoint: its SHA-256",
            expected=sha256[:12],
            found=(found or "none")[:12],
            remedy=f"Run '{command}' on it.",
        )
