"""Stage 6: what came out, as one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ltd_pipe.publish import write_text
from ltd_pipe.stages import options
from ltd_pipe.stages.compare import metrics_of
from ltd_pipe.stages.console import json_option, say

if TYPE_CHECKING:
    from ltd_pipe.params import Params
    from ltd_pipe.report.facts import ReportPaths

_PAGE, _PAIR_PAGE = Path("data/report.html"), Path("data/comparison.html")
_DEFAULTS = {
    "teacher": Path("data/teacher"),
    "labels": Path("data/labels.zarr"),
    "data": Path("data/train.beton"),
}
# Shown where they are there; a report of a student alone is a report too.
_OPTIONAL = {
    "evaluation": ("evaluation beside --metrics", "Folder that its evaluation left."),
    "baseline": ("baseline beside --metrics", "Folder of the model to compare with."),
    "baseline-metrics": ("those beside --baseline, or in it", "Metrics of that model."),
    "baseline-evaluation": ("that beside --baseline-metrics", "Folder of its evaluation."),
    "teacher": (_DEFAULTS["teacher"], "Folder of the teacher."),
    "labels": (_DEFAULTS["labels"], "Soft-label store."),
    "data": (_DEFAULTS["data"], "Training images, for pictures of them."),
    "audit": ("audit/audit.json beside --metrics", "What 'ltd-pipe audit' found of the student."),
}


def _optional_paths(command: Callable[..., None]) -> Callable[..., None]:
    for name, (default, text) in reversed(_OPTIONAL.items()):
        command = click.option(
            f"--{name}",
            type=options.THERE,
            show_default=f"{default}, where it is there",
            help=text,
        )(command)
    return command


@click.command(cls=options.ParamsCommand)
@options.params_options("report", standalone=True)
@options.path("--student", default="data/student", help="Folder of the student.")
@options.path(
    "--metrics", default="data/metrics.json", help="What 'ltd-pipe evaluate' measured of it."
)
@_optional_paths
@click.option(
    "--compare",
    "pair",
    nargs=2,
    metavar="A B",
    help="Write a page about two runs, named as for 'ltd-pipe compare', and not of the student.",
)
@options.file("--out", show_default=f"{_PAGE}; with --compare {_PAIR_PAGE}", help="The page.")
@options.flag("--force", help="Replace an existing page.")
@json_option("Print the verdict as JSON.")
def report(
    params: Params,
    student: Path,
    metrics: Path,
    pair: tuple[str, str] | None,
    out: Path | None,
    force: bool,
    **optional: Path | None,
) -> None:
    """Write report.html: the verdict, curves, labels, attacked images and provenance.

    The page is one file that loads nothing, to be sent as it is.

    \b
    Examples:
      ltd-pipe report
      ltd-pipe report --student runs/7 --metrics runs/7/metrics.json --out seven.html
      ltd-pipe report --compare data/baseline-metrics.json data
      ltd-pipe report --compare main exp-soft --out soft.html
    """
    out = out or (_PAIR_PAGE if pair else _PAGE)
    if pair:
        unused = {name.replace("-", "_") for name in ("student", "metrics", "examples", *_OPTIONAL)}
        options.refuse_options(unused, "is of the page of one student, not of --compare")
    options.refuse_existing(out, force=force, kind=options.PAGE)
    if pair:
        from ltd_pipe.report.facts import gather_pair, judge_pair
        from ltd_pipe.report.page import render_pair

        with metrics_of(pair, training=True) as found:
            two = gather_pair(params.report.title, *found)
        page, verdict, missing = render_pair(two), judge_pair(two), two.missing
        more = {"scope": verdict.scope}
    else:
        from ltd_pipe.report.facts import gather_facts, judge_student, masking_text
        from ltd_pipe.report.page import render_page

        named = {name: path for name, path in optional.items() if path is not None}
        facts = gather_facts(_paths(student, metrics, named), params.report)
        page, verdict, missing = render_page(facts), judge_student(facts), facts.missing
        more = {"gradient_masking": masking_text(facts.audit)}
    write_text(out, page)
    size = out.stat().st_size
    content = {
        "report": str(out),
        "bytes": size,
        "headline": verdict.headline,
        "sentence": verdict.sentence,
        **more,
        "caveats": verdict.caveats,
        "missing": missing,
    }
    lines = [f"{out}: {size / 2**10:,.0f} KiB. {verdict.headline}."]
    say(content, lines, (f"not in it: {text}" for text in missing), ensure_ascii=False)


def _paths(student: Path, metrics: Path, named: dict[str, Path]) -> ReportPaths:
    """Where the files are: those that were named, and those of the same run beside them."""
    from ltd_pipe.evaluation.results import audit_beside, audit_in, evaluation_beside
    from ltd_pipe.report.facts import ReportPaths
    from ltd_pipe.report.runs import find_metrics

    # What lies in data/ is of the student in data/: another one's would be refused.
    metrics = find_metrics(metrics) if metrics.is_dir() else metrics
    baseline = named.get("baseline", metrics.with_name("baseline"))
    candidates = (baseline.with_name(f"{baseline.name}-metrics.json"), baseline / "metrics.json")
    there = (path for path in candidates if path.exists())
    theirs = named.get("baseline_metrics") or next(there, candidates[0])
    beside = {
        "evaluation": evaluation_beside(metrics),
        "baseline": baseline,
        "baseline_metrics": theirs,
        "baseline_evaluation": evaluation_beside(theirs),
        "audit": audit_beside(metrics),
    }
    found = _DEFAULTS | beside | named
    found["audit"] = audit_in(found["audit"])
    return ReportPaths(student=student, metrics=metrics, named=named.keys(), **found)
