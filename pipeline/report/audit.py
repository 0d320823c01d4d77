"""An audit for gradient masking: audit.json, and what it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import ResultError
from pipeline.report.results import Document, Share, read_result
from pipeline.report.scores import Score

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Audit", "AuditFinding", "SurfaceFacts", "masking_line", "read_audit"]

_COMMAND = "ltd-pipe audit"


class AuditFinding(Document):
    """One check: on how many images happened what should not, and how many there may be."""

    name: str
    count: int = Field(ge=0)
    n: int = Field(ge=1)
    limit: Share
    meaning: str
    passed: bool

    @property
    def score(self) -> Score:
        """The share of the images with its 95 % interval."""
        return Score.of(self.count / self.n, self.n)


class SurfaceFacts(Document):
    """The mean loss around some images, on a square grid; see `pipeline.evaluation.surface`."""

    n: int = Field(ge=1)
    offsets: tuple[float, ...] = Field(min_length=2)
    loss: tuple[tuple[float, ...], ...]
    rises: Share = Field(alias="share_whose_loss_rises_along_the_gradient")
    beats_random: Share = Field(alias="share_where_the_gradient_beats_the_random_direction")

    @model_validator(mode="after")
    def _is_square(self) -> SurfaceFacts:
        if {len(self.loss), *map(len, self.loss)} != {len(self.offsets)}:
            raise ValueError("the loss is no square grid over the offsets")
        return self


class Audit(Document):
    """audit.json, as `ltd-pipe audit` leaves it.

    `refused` says why nothing could be checked; then there are no findings.
    """

    passed: bool
    refused: str | None = None
    n: int = Field(ge=1)
    eps: float = Field(gt=0)
    norm: Literal["linf", "l2"] = "linf"
    checkpoint_sha256: str
    findings: tuple[AuditFinding, ...]
    seed: int | None = None
    steps: int | None = None
    restarts: int | None = None
    square_queries: int | None = None
    sources: tuple[str, ...] = ()
    zero_accuracy_at_eps: float | None = None
    loss_surface: SurfaceFacts | None = None

    @model_validator(mode="after")
    def _has_findings(self) -> Audit:
        if not self.findings and self.refused is None:
            raise ValueError("there are no findings")
        return self

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(not finding.passed for finding in self.findings)


def read_audit(path: Path, sha256: str) -> Audit:
    """Read the audit of a checkpoint.

    Parameters
    ----------
    path : Path
        audit.json.
    sha256 : str
        Of the checkpoint.

    Raises
    ------
    MissingError
        When it is not there.
    ResultError
        When it is damaged, or of another checkpoint: its verdict is no other model's.
    """
    found = read_result(path, Audit, _COMMAND)
    if found.checkpoint_sha256 != sha256:
        raise ResultError(
            path,
            "is not of this checkpoint: its SHA-256",
            expected=sha256[:12],
            found=found.checkpoint_sha256[:12],
            remedy=f"Run '{_COMMAND}' on it.",
        )
    _require_consistent(found, path)
    return found


def _require_consistent(found: Audit, path: Path) -> None:
    verdicts = [(finding.score.low <= finding.limit, finding) for finding in found.findings]
    wrong: list[Any] = [finding.name for verdict, finding in verdicts if verdict != finding.passed]
    if wrong:
        what = f"{wrong[0]}: the verdict contradicts its numbers"
        raise ResultError(path, what, remedy=f"Run '{_COMMAND}' again.")
    if found.passed != (found.refused is None and not found.failed):
        raise ResultError(
            path, "passed contradicts its findings", remedy=f"Run '{_COMMAND}' again."
        )


def masking_line(audit: Audit | None) -> str:
    """What the checks for gradient masking came to, in a few words."""
    if audit is None:
        return "not run"
    if audit.refused is not None:
        return "not possible"
    if audit.failed:
        return f"{audit.failed} of {len(audit.findings)} failed"
    return f"passed (all {len(audit.findings)}, on {audit.n:,} images)"
