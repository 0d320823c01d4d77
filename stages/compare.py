"""Runs of one's own, side by side and image by image."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.evaluated import find_metrics

if TYPE_CHECKING:
    from ltd_pipe.evaluation.statistics import Paired
    from ltd_pipe.report.compare import Comparison, EvaluatedRun

__all__ = ["compare"]


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Compare runs, each with the first one, by McNemar's exact test on the same test images.

    A RUN is a folder that evaluate wrote to, its metrics.json, or a revision or experiment of
    this DVC repository. Runs on other test images, or attacked otherwise, are shown and not
    compared.

    \b
    Examples:
      ltd-pipe compare data/metrics.json data/baseline-metrics.json
      ltd-pipe compare main exp-soft exp-onehot
    """
    from ltd_pipe.report.compare import compare as compare_runs

    with tempfile.TemporaryDirectory() as folder:
        read = [_read(name, Path(folder) / str(number)) for number, name in enumerate(runs)]
    found = compare_runs(read)
    if as_json:
        rows = [_row(run) for run in read]
        compared = [_comparison(each, read[0]) for each in found]
        click.echo(json.dumps({"runs": rows, "comparisons": compared}, indent=2))
        return
    _show_runs(read)
    for run in read:
        if run.measured.quick:
            click.echo(f"QUICK LOOK: {run.name}: few images and a weak attack. Not a result.")
        for line in run.measured.warning_lines(run.name):
            click.echo(f"WARNING: {line}")
    for each in found:
        _show_comparison(each, read[0])
    if any(each.paired for each in found):
        click.echo(
            "p: McNemar's exact test of each row alone; a verdict asks p < 0.025 of its two. It "
            "compares these checkpoints on these images; methods differ when several seeds do."
        )


def _read(name: str, folder: Path) -> EvaluatedRun:
    from ltd_pipe.report.compare import read_run

    return read_run(name, find_metrics(name, folder))


def _show_runs(runs: list[EvaluatedRun]) -> None:
    from ltd_pipe.evaluation.results import eps_text

    attacks = list(dict.fromkeys(name for run in runs for name in run.measured.scores))
    rows = [["accuracy of", "images", "within", *attacks]]
    for run in runs:
        measured = run.measured
        found = [measured.scores.get(name) for name in attacks]
        where = f"{measured.norm} {eps_text(measured.eps)}"
        shares = [f"{score.value:.2%}" if score else "" for score in found]
        rows.append([run.name, f"{measured.n:,}", where, *shares])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        click.echo("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())


def _headline(found: Comparison, first: EvaluatedRun) -> str:
    from ltd_pipe.report.verdict import Judged, judge

    this, other = (Judged(run.name, run.measured) for run in (found.run, first))
    return judge(this, other, found).headline


def _show_comparison(found: Comparison, first: EvaluatedRun) -> None:
    click.echo(f"{found.run.name} against {first.name}")
    width = max((len(attack) for attack in found.paired), default=0)
    for attack, paired in found.paired.items():
        click.echo(f"  {attack:<{width}}  {_words(paired)}")
    for line in found.left_out:
        click.echo(f"  not compared: {line}")
    click.echo(f"  {_headline(found, first)}")


def _words(paired: Paired) -> str:
    return (
        f"{100 * paired.difference:+.2f} points (95 % interval {100 * paired.low:+.2f} to "
        f"{100 * paired.high:+.2f})  right alone on {paired.gained:,}, wrong alone on "
        f"{paired.lost:,} of {paired.n:,}  p {_p_words(paired.p)}"
    )


def _p_words(p: float) -> str:
    # Below that a float is rounded to 0, which no p value is.
    return f"= {p:.2g}" if p > 1e-300 else "< 1e-300"


def _row(run: EvaluatedRun) -> dict[str, Any]:
    measured = run.measured
    scores = {name: vars(score) for name, score in measured.scores.items()}
    threat = {"norm": measured.norm, "eps": measured.eps}
    facts = {"n": measured.n, **threat, "quick": measured.quick}
    warnings = measured.warning_lines(run.name)
    return {"name": run.name, **facts, "scores": scores, "warnings": warnings}


def _comparison(found: Comparison, first: EvaluatedRun) -> dict[str, Any]:
    paired = {
        attack: {"difference": each.difference, **vars(each)}
        for attack, each in found.paired.items()
    }
    return {
        "run": found.run.name,
        "against": first.name,
        "headline": _headline(found, first),
        "paired": paired,
        "left_out": list(found.left_out),
    }
