"""Whether a model's robustness can be believed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.measured import (
    checkpoint_argument,
    choose_images,
    open_test_data,
    test_data_option,
)
from stages.parameters import params_options
from stages.progress import bar, ticker

if TYPE_CHECKING:
    from pipeline.evaluation.masking import AuditSettings, Finding
    from pipeline.params import Params

__all__ = ["audit"]


@click.command()
@checkpoint_argument
@params_options("evaluate")
@test_data_option
@click.option(
    "--source",
    "sources",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Another model, such as the teacher, whose adversarial images are tried on this one.",
)
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="PGD steps.")
@click.option(
    "--square-queries",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Queries of the black-box attack Square.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def audit(
    checkpoint: Path,
    params: Params,
    data: Path,
    sources: tuple[Path, ...],
    steps: int,
    square_queries: int,
    as_json: bool,
) -> None:
    """Look for gradient masking; exit code 1 when a check fails.

    A model can look robust because attacks cannot find their way. A robust accuracy is worth
    believing only beside this verdict.

    \b
    Example:
      ltd-pipe audit student/model.safetensors --source teacher/model.safetensors --images 500
    """
    from pipeline.evaluation.masking import AuditSettings
    from pipeline.provenance import sha256_file

    settings = AuditSettings(
        params.evaluate.eps,
        params.seed,
        params.evaluate.batch_size,
        steps=steps,
        square_queries=square_queries,
        norm=params.evaluate.norm,
    )
    found, n = _measure(checkpoint, params, data, sources, settings)
    passed = all(finding.passed for finding in found)
    if as_json:
        rows = [
            {**vars(finding), "share": finding.share, "low": finding.low, "passed": finding.passed}
            for finding in found
        ]
        summary = {"passed": passed, "n": n, "eps": params.evaluate.eps, "findings": rows}
        # What it is of: a model's card takes no other's.
        measured = {"checkpoint_sha256": sha256_file(checkpoint)}
        click.echo(json.dumps(measured | summary, indent=2))
    else:
        _show(found, checkpoint, params.evaluate.eps, n)
    sys.exit(0 if passed else 1)


def _measure(
    checkpoint: Path,
    params: Params,
    data: Path,
    sources: tuple[Path, ...],
    settings: AuditSettings,
) -> tuple[list[Finding], int]:
    from pipeline.device import choose_device, deterministic
    from pipeline.evaluation.masking import audit as run_audit
    from pipeline.models.checkpoint import load_classifier

    device = choose_device(params.device)
    models = {str(path): load_classifier(path).to(device) for path in (checkpoint, *sources)}
    with deterministic(), bar() as progress:
        test = choose_images(open_test_data(data, models.values()), params, device)
        found = run_audit(
            models[str(checkpoint)],
            test,
            settings,
            sources={str(path): models[str(path)] for path in sources},
            tick=ticker(progress),
        )
    return found.findings, len(test)


def _show(found: list[Finding], checkpoint: Path, eps: float, n: int) -> None:
    width = max(len(finding.name) for finding in found)
    click.echo(f"{checkpoint}: {n:,} test images, eps {eps:.4g}")
    for finding in found:
        verdict = "pass" if finding.passed else "FAIL"
        share = f"{finding.share:7.2%} of images, at most {finding.limit:.0%}"
        click.echo(f"  {verdict}  {finding.name:<{width}}  {share}")
        if not finding.passed:
            click.echo(f"        {finding.meaning}")
    failed = sum(not finding.passed for finding in found)
    click.echo(
        f"{failed} of {len(found)} checks failed: do not believe its robust accuracy."
        if failed
        else f"All {len(found)} checks passed: no sign of gradient masking."
    )
