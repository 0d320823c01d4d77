"""Stage 6: what came out, as one page."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.evaluated import find_metrics, training_files
from ltd_pipe.stages.options import (
    PAGE,
    ParamsCommand,
    params_options,
    refuse_existing,
    refuse_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ltd_pipe.params import Params
    from ltd_pipe.report.facts import Facts, Places

__all__ = ["report"]

_PAGE, _PAIR_PAGE = Path("data/report.html"), Path("data/comparison.html")
_STUDENT, _METRICS = Path("data/student"), Path("data/metrics.json")
_TEACHER, _LABELS = Path("data/teacher"), Path("data/labels.zarr")
_DATA = Path("data/train.beton")
# Shown where they are there; a report of a student alone is a report too.
_OPTIONAL = {
    "evaluation": ("evaluation beside --metrics", "Folder that its evaluation left."),
    "baseline": ("baseline beside --metrics", "Folder of the model to compare with."),
    "baseline-metrics": ("those beside --baseline, or in it", "Metrics of that model."),
    "baseline-evaluation": ("that beside --baseline-metrics", "Folder of its evaluation."),
    "teacher": (str(_TEACHER), "Folder of the teacher."),
    "labels": (str(_LABELS), "Soft-label store."),
    "data": (str(_DATA), "Training images, for pictures of them."),
    "audit": ("audit/audit.json beside --metrics", "What 'ltd-pipe audit' found of the student."),
}


def _optional_places(command: Callable[..., None]) -> Callable[..., None]:
    for name, (default, text) in reversed(_OPTIONAL.items()):
        command = click.option(
            f"--{name}",
            type=click.Path(path_type=Path, exists=True),
            show_default=f"{default}, where it is there",
            help=text,
        )(command)
    return command


@click.command(cls=ParamsCommand)
@params_options("report", standalone=True)
@click.option(
    "--student",
    type=click.Path(path_type=Path),
    default=_STUDENT,
    show_default=True,
    help="Folder of the student.",
)
@click.option(
    "--metrics",
    type=click.Path(path_type=Path),
    default=_METRICS,
    show_default=True,
    help="What 'ltd-pipe evaluate' measured of it.",
)
@_optional_places
@click.option(
    "--compare",
    "pair",
    nargs=2,
    metavar="A B",
    help="Write a page about two runs, named as for 'ltd-pipe compare', and not of the student.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default=f"{_PAGE}; with --compare {_PAIR_PAGE}",
    help="The page.",
)
@click.option("--force", is_flag=True, help="Replace an existing page.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def report(
    params: Params,
    student: Path,
    metrics: Path,
    pair: tuple[str, str] | None,
    out: Path | None,
    force: bool,
    as_json: bool,
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
    if pair is not None:
        places = {name.replace("-", "_") for name in ("student", "metrics", *_OPTIONAL)}
        refuse_options(places, "is of the page of one student, not of --compare")
        _report_pair(params, pair, out or _PAIR_PAGE, force=force, as_json=as_json)
        return
    from ltd_pipe.publish import write_text
    from ltd_pipe.report.facts import gather_facts
    from ltd_pipe.report.page import render_page

    out = out or _PAGE
    refuse_existing(out, force=force, kind=PAGE)
    named = {name: path for name, path in optional.items() if path is not None}
    facts = gather_facts(_places(student, metrics, named), params.report)
    write_text(out, render_page(facts))
    _tell(facts, out, as_json=as_json)


def _places(student: Path, metrics: Path, named: dict[str, Path]) -> Places:
    """Where the files are: those that were named, and those of the same run beside them."""
    from ltd_pipe.evaluation.results import audit_beside, evaluation_beside
    from ltd_pipe.report.facts import Places

    # What lies in data/ is of the student in data/: another one's would be refused.
    baseline = named.get("baseline", metrics.with_name("baseline"))
    candidates = (baseline.with_name(f"{baseline.name}-metrics.json"), baseline / "metrics.json")
    there = (path for path in candidates if path.exists())
    theirs = named.get("baseline_metrics") or next(there, candidates[0])
    beside = {
        "evaluation": evaluation_beside(metrics),
        "baseline": baseline,
        "baseline_metrics": theirs,
        "baseline_evaluation": evaluation_beside(theirs),
        "teacher": _TEACHER,
        "labels": _LABELS,
        "data": _DATA,
        "audit": audit_beside(metrics),
    }
    return Places(student=student, metrics=metrics, **beside | named)


def _report_pair(
    params: Params, pair: tuple[str, str], out: Path, *, force: bool, as_json: bool
) -> None:
    from ltd_pipe.publish import write_text
    from ltd_pipe.report.pair import gather_pair, judge_pair, render_pair

    refuse_existing(out, force=force, kind=PAGE)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / letter for letter in "ab"]
        a, b = (
            (name, find_metrics(name, place, training_files()))
            for name, place in zip(pair, places, strict=True)
        )
        facts = gather_pair(params.report.title, a, b)
    write_text(out, render_pair(facts))
    verdict = judge_pair(facts)
    content = {
        "headline": verdict.headline,
        "sentence": verdict.sentence,
        "scope": verdict.scope,
        "caveats": verdict.caveats,
        "missing": facts.missing,
    }
    _print(out, content, as_json=as_json)


def _tell(facts: Facts, out: Path, *, as_json: bool) -> None:
    from ltd_pipe.report.facts import judge_student, masking_text

    verdict = judge_student(facts)
    content = {
        "headline": verdict.headline,
        "sentence": verdict.sentence,
        "gradient_masking": masking_text(facts.audit),
        "caveats": verdict.caveats,
        "missing": facts.missing,
    }
    _print(out, content, as_json=as_json)


def _print(out: Path, content: dict[str, Any], *, as_json: bool) -> None:
    size = out.stat().st_size
    if as_json:
        whole = {"report": str(out), "bytes": size, **content}
        click.echo(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    click.echo(f"{out}: {size / 2**10:,.0f} KiB. {content['headline']}.")
    for text in content["missing"]:
        click.echo(f"not in it: {text}", err=True)
