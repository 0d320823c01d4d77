"""Whether a model's robustness can be believed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.results import FEW_IMAGES, Audit, threat_text
from ltd_pipe.provenance import software
from ltd_pipe.publish import remove_state, write_json, write_text
from ltd_pipe.stages import options
from ltd_pipe.stages.console import Ticker, bar, doing, json_option, say, stoppable
from ltd_pipe.stages.evaluation_options import measuring, measuring_options

if TYPE_CHECKING:
    from ltd_pipe.distributed import World
    from ltd_pipe.evaluation.audit import AuditSettings
    from ltd_pipe.evaluation.bench import TestImages
    from ltd_pipe.params import Params
    from ltd_pipe.provenance import StateRecord
    from ltd_pipe.stages.evaluation_options import NamedSubject, Subject


@click.command(cls=options.ParamsCommand)
@measuring_options("--source")
@click.option("--steps", type=click.IntRange(1), default=100, help="PGD steps.")
@click.option(
    "--square-queries",
    type=click.IntRange(1),
    default=1000,
    help="Queries of the black-box attack Square.",
)
@click.option(
    "--at-most",
    type=click.IntRange(1),
    help="Audit at most so many of the test images, in random order.  [default: all]",
)
@options.folder("--out", default="data/audit", help="Folder of audit.json and loss_surface.svg.")
@options.flag(
    "--report-only",
    help="Exit code 0, not 1, when a check fails or none can be made: audit.json says so.",
)
@options.flag("--force", help="Replace an existing audit.")
@json_option("Print audit.json to stdout.")
def audit(
    params: Params,
    named: NamedSubject,
    steps: int,
    square_queries: int,
    at_most: int | None,
    out: Path,
    report_only: bool,
    force: bool,
) -> None:
    """Look for gradient masking; exit code 1 when a check fails, or none can be made.

    A model can look robust because attacks cannot find their way. A robust accuracy is worth
    believing only beside this verdict. Under torchrun the processes share the batches.

    \b
    Examples:
      torchrun --standalone --nproc-per-node gpu -m ltd_pipe audit student/model.safetensors
      ltd-pipe audit student/model.safetensors --source teacher/model.safetensors --images 500
    """
    from ltd_pipe.device import choose_device
    from ltd_pipe.evaluation.audit import AuditSettings

    section = params.evaluate
    unused = set(type(section).model_fields) - {"norm", "eps", "images", "batch_size"}
    own = "is of evaluate; an audit's own attacks take --steps, --square-queries"
    options.refuse_options(unused, own)
    options.refuse_store(out)
    options.refuse_existing(out / "audit.json", force=force, kind=options.AUDIT)
    options.note_pipeline(out)
    settings = AuditSettings(
        section.eps,
        params.seed,
        section.batch_size,
        steps=steps,
        square_queries=square_queries,
        norm=section.norm,
    )
    with stoppable("checked"), measuring(out / "audit.json") as world:
        with doing("loading images and models"):
            subject = named.load(world.device(choose_device(params.device)), strict=True)
        subject.note_other_ball(section.norm, section.eps)
        count, total = section.images, subject.images.manifest.num_samples
        if at_most is not None:
            count = min(at_most, total if count is None else count)
        test = subject.select(count, params.seed)
        decides = {**subject.facts(), "n": len(test), **vars(settings)}
        pixels = {"pixels_sha256": test.pixels_sha256}
        state = subject.state("audit", out, decides | pixels, world)
        found = _run(subject, test, settings, decides, state, world)
        if not world.is_main:
            return
        (out / "loss_surface.svg").unlink(missing_ok=True)
        if found.loss_surface is not None:
            from ltd_pipe.attacks import Ball
            from ltd_pipe.report.surface import draw_surface

            ball = Ball(settings.norm, settings.eps)
            write_text(out / "loss_surface.svg", draw_surface(found.loss_surface, ball))
        write_json(out / "audit.json", found.dump())
        remove_state(state.folder)
    say(found.dump(), audit_lines(found, named.model.text))
    sys.exit(0 if found.passed or report_only else 1)


def _run(
    subject: Subject,
    test: TestImages,
    settings: AuditSettings,
    head: dict[str, Any],
    state: StateRecord,
    world: World,
) -> Audit:
    """What audit.json holds: what was audited and how hard (`head`), and the verdict."""
    from ltd_pipe.evaluation.audit import audit as run_audit

    sources = [source.name for source in subject.sources]
    head = {**head, "sources": sources, "software": software()}
    models = {source.name: source.model for source in subject.sources}
    try:
        with bar() as progress:
            found = run_audit(
                subject.model,
                test,
                settings,
                sources=models,
                state=state,
                tick=Ticker(progress),
                world=world,
            )
    except ModelError as error:
        return Audit(**head, passed=False, refused=str(error), findings=())
    passed = all(finding.passed for finding in found.findings)
    return Audit(**head, passed=passed, **vars(found))


def audit_lines(audit: Audit, model: str) -> Iterator[str]:
    """What a terminal shows of audit.json, with the model as the user named it."""
    findings, n = audit.findings, f"{audit.n:,}"
    yield f"{model}: {n} test images, {threat_text(audit.norm, audit.eps)}"
    if audit.refused is not None:
        yield f"No check could be made: {audit.refused}"
        return
    width = max(len(one.name) for one in findings)
    for one in findings:
        verdict = "pass" if one.passed else "FAIL"
        yield (
            f"  {verdict}  {one.name:<{width}}  {one.share:7.2%} of images, lower end "
            f"{one.low:.2%}, limit {one.limit:.0%}, fails from {one.fails_from:.2%}"
        )
        if not one.passed:
            yield f"        {one.meaning}"
    yield (
        f"A check fails when the lower end of the 95 % interval is above its limit: with "
        f"{n} images from the last share of its line on."
    )
    for name, known in audit.source_clean_accuracy.items():
        yield f"The source {name} has {known:.2%} of the clean images right."
    for line in audit.not_made:
        yield f"WARNING: {line}"
    if audit.n < FEW_IMAGES:
        yield f"WARNING: below {FEW_IMAGES} images, a check that passes says little."
    zero = audit.zero_accuracy_at_eps
    where = "no radius" if zero is None else threat_text(audit.norm, zero)
    yield f"Robust accuracy by eps (PGD-20, {n} images) falls to 0 at {where}."
    if audit.failed:
        failed = f"{audit.failed} of {len(findings)} checks failed"
        yield f"{failed}: do not believe its robust accuracy."
    else:
        yield f"All {len(findings)} checks passed: no sign of gradient masking."
