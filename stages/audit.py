"""Whether a model's robustness can be believed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.console import Ticker, bar, doing
from ltd_pipe.stages.measured import (
    choose_images,
    load_measured,
    load_sources,
    model_argument,
    name_model,
    open_test_data,
    test_data_option,
    transfer_options,
    weights_option,
)
from ltd_pipe.stages.model_options import ModelOptions, model_options
from ltd_pipe.stages.options import (
    AUDIT,
    ParamsCommand,
    note_pipeline,
    params_options,
    refuse_existing,
    refuse_options,
    require_files,
)

if TYPE_CHECKING:
    from ltd_pipe.evaluation.audit import AuditResult, AuditSettings
    from ltd_pipe.evaluation.results import Audit
    from ltd_pipe.params import Params
    from ltd_pipe.stages.measured import Measured, Named

__all__ = ["audit"]


@click.command(cls=ParamsCommand)
@model_argument
@weights_option
@params_options("evaluate", standalone=True)
@test_data_option
@model_options
@transfer_options("--source")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="PGD steps.")
@click.option(
    "--square-queries",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Queries of the black-box attack Square.",
)
@click.option(
    "--at-most",
    type=click.IntRange(1),
    help="Audit at most so many of the test images, in random order.  [default: all]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/audit"),
    show_default=True,
    help="Folder of audit.json and loss_surface.svg.",
)
@click.option(
    "--report-only",
    is_flag=True,
    help="Exit code 0, not 1, when a check fails or none can be made: audit.json says so.",
)
@click.option("--force", is_flag=True, help="Replace an existing audit.")
@click.option("--json", "as_json", is_flag=True, help="Print audit.json to stdout.")
def audit(
    model: str,
    weights: Path | None,
    params: Params,
    data: Path,
    foreign: ModelOptions,
    sources: tuple[Named, ...],
    steps: int,
    square_queries: int,
    at_most: int | None,
    out: Path,
    report_only: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Look for gradient masking; exit code 1 when a check fails, or none can be made.

    A model can look robust because attacks cannot find their way. A robust accuracy is worth
    believing only beside this verdict.

    \b
    Example:
      ltd-pipe audit student/model.safetensors --source teacher/model.safetensors --images 500
    """
    from ltd_pipe.evaluation.audit import AuditSettings
    from ltd_pipe.evaluation.results import audit_lines
    from ltd_pipe.publish import exclusive, write_json

    theirs = set(type(params.evaluate).model_fields) - {"norm", "eps", "images", "batch_size"}
    refuse_options(theirs, "is of evaluate; an audit's own attacks take --steps, --square-queries")
    refuse_existing(out / "audit.json", force=force, kind=AUDIT)
    note_pipeline(out)
    settings = AuditSettings(
        params.evaluate.eps,
        params.seed,
        params.evaluate.batch_size,
        steps=steps,
        square_queries=square_queries,
        norm=params.evaluate.norm,
    )
    require_files("data")
    named = name_model(model, weights, foreign)
    with exclusive(out / "audit.json"):
        summary, found = _measure(named, params, data, sources, settings, at_most)
        (out / "loss_surface.svg").unlink(missing_ok=True)
        if found is not None:
            _draw(found, settings, out / "loss_surface.svg")
        write_json(out / "audit.json", summary.dump())
    if as_json:
        click.echo(json.dumps(summary.dump(), indent=2))
    else:
        for line in audit_lines(summary, model):
            click.echo(line)
    sys.exit(0 if summary.passed or report_only else 1)


def _measure(
    named: Named,
    params: Params,
    data: Path,
    sources: tuple[Named, ...],
    settings: AuditSettings,
    at_most: int | None,
) -> tuple[Audit, AuditResult | None]:
    """What audit.json holds, and what was found: None where nothing could be checked."""
    from ltd_pipe.device import choose_device, deterministic, full_float32
    from ltd_pipe.errors import ModelError
    from ltd_pipe.evaluation.audit import audit as run_audit
    from ltd_pipe.evaluation.results import Audit

    device = choose_device(params.device)
    with deterministic(), full_float32(), bar() as progress:
        with doing("loading images and models"):
            images = open_test_data(data, named, device)
            measured = load_measured(named, images, device, strict=True)
            others = load_sources(sources, images, device)
        test = choose_images(images, params, device, at_most)
        head = _head(measured, len(test), settings, sources)
        try:
            found = run_audit(
                measured.model,
                test,
                settings,
                sources={other.name: other.model for other in others},
                tick=Ticker(progress),
            )
        except ModelError as error:
            return Audit(**head, passed=False, refused=str(error), findings=()), None
    return Audit(**head, **_found(found)), found


def _head(
    measured: Measured, n: int, settings: AuditSettings, sources: tuple[Named, ...]
) -> dict[str, Any]:
    """What was audited, and how hard."""
    from ltd_pipe.provenance import software

    return {
        **measured.facts(),
        "n": n,
        "norm": settings.norm,
        "eps": settings.eps,
        "seed": settings.seed,
        "steps": settings.steps,
        "restarts": settings.restarts,
        "square_queries": settings.square_queries,
        "sources": [source.text for source in sources],
        "software": software(),
    }


def _found(found: AuditResult) -> dict[str, Any]:
    """The verdict; each part says what it is."""
    return {
        "passed": all(finding.passed for finding in found.findings),
        "findings": found.findings,
        "source_clean_accuracy": found.source_accuracy,
        "not_made": found.not_made,
        "by_eps": found.curve.points,
        "zero_accuracy_at_eps": found.curve.zero_at,
        "loss_surface": found.surface,
    }


def _draw(found: AuditResult, settings: AuditSettings, path: Path) -> None:
    from ltd_pipe.attacks import Ball
    from ltd_pipe.publish import write_text
    from ltd_pipe.report.surface import draw_surface

    write_text(path, draw_surface(found.surface, Ball(settings.norm, settings.eps)))
