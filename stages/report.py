"""Stage 6: what came out, as one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.outputs import refuse_existing
from stages.parameters import params_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.params import Params
    from pipeline.report.facts import Facts

__all__ = ["report"]

_STUDENT, _METRICS = Path("data/student"), Path("data/metrics.json")
# Shown where they are there; a report of a student alone is a report too.
_OPTIONAL = {
    "evaluation": (Path("data/evaluation"), "Folder that its evaluation left."),
    "baseline": (Path("data/baseline"), "Folder of the model to compare with."),
    "baseline-metrics": (Path("data/baseline-metrics.json"), "Metrics of that model."),
    "baseline-evaluation": (Path("data/baseline-evaluation"), "Folder of its evaluation."),
    "teacher": (Path("data/teacher"), "Folder of the teacher."),
    "labels": (Path("data/labels.zarr"), "Soft-label store."),
    "data": (Path("data/train.beton"), "Training images, for pictures of them."),
    "audit": (Path("data/audit/audit.json"), "What 'ltd-pipe audit' found of the student."),
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


@click.command()
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
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("data/report.html"),
    show_default=True,
    help="The page.",
)
@click.option("--force", is_flag=True, help="Replace an existing page.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def report(
    params: Params,
    student: Path,
    metrics: Path,
    out: Path,
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
    """
    from pipeline.publish import write_text
    from pipeline.report.facts import Places, gather_facts
    from pipeline.report.page import render_page

    refuse_existing(out, force=force)
    found = {
        name.replace("-", "_"): optional[name.replace("-", "_")] or default
        for name, (default, _) in _OPTIONAL.items()
    }
    facts = gather_facts(Places(student=student, metrics=metrics, **found), params.report)
    write_text(out, render_page(facts))
    _tell(facts, out, as_json=as_json)


def _tell(facts: Facts, out: Path, *, as_json: bool) -> None:
    from pipeline.report.verdict import judge

    verdict, size = judge(facts), out.stat().st_size
    if as_json:
        content = {
            "report": str(out),
            "bytes": size,
            "headline": verdict.headline,
            "sentence": verdict.sentence,
            "gradient_masking": verdict.masking,
            "caveats": verdict.caveats,
            "missing": facts.missing,
        }
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    click.echo(f"{out}: {size / 2**10:,.0f} KiB. {verdict.headline}.")
    for text in facts.missing:
        click.echo(f"not in it: {text}", err=True)
