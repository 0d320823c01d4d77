"""Runs of one's own, side by side and image by image."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.stages.revisions import find_metrics

if TYPE_CHECKING:
    from ltd_pipe.evaluation.statistics import Paired
    from ltd_pipe.report.verdict import Model, Verdict

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
    from ltd_pipe.report.runs import read_evaluation
    from ltd_pipe.report.verdict import Model, judge

    with tempfile.TemporaryDirectory() as folder:
        models = [
            Model(name, read_evaluation(find_metrics(name, Path(folder) / str(number))))
            for number, name in enumerate(runs)
        ]
    first, *others = models
    verdicts = [(model.name, judge(model, first)) for model in others]
    if as_json:
        found = {
            "runs": [_run(model) for model in models],
            "comparisons": [_comparison(*each, first.name) for each in verdicts],
        }
        click.echo(json.dumps(found, indent=2))
        return
    _show_accuracies(models)
    for model in models:
        if model.evaluation.metrics.quick:
            click.echo(f"QUICK LOOK: {model.name}: few images and a weak attack. Not a result.")
        for line in model.evaluation.warnings_of(model.name):
            click.echo(f"WARNING: {line}")
    for name, verdict in verdicts:
        paired = verdict.comparison.paired
        click.echo(f"{name} against {first.name}")
        width = max((len(attack) for attack in paired), default=0)
        for attack, each in paired.items():
            click.echo(f"  {attack:<{width}}  {_difference(each)}")
        for line in verdict.comparison.left_out:
            click.echo(f"  not compared: {line}")
        click.echo(f"  {verdict.headline}")
    if any(verdict.comparison.paired for _, verdict in verdicts):
        click.echo(
            "p: McNemar's exact test of each row alone; a verdict asks p < 0.025 of its two. It "
            "compares these checkpoints on these images; methods differ when several seeds do."
        )


def _show_accuracies(models: list[Model]) -> None:
    from ltd_pipe.evaluation.results import eps_text

    attacks = list(dict.fromkeys(name for model in models for name in model.evaluation.scores))
    rows = [["accuracy of", "images", "within", *attacks]]
    for model in models:
        metrics, scores = model.evaluation.metrics, model.evaluation.scores
        shares = [f"{scores[name].value:.2%}" if name in scores else "" for name in attacks]
        threat = f"{metrics.norm} {eps_text(metrics.eps)}"
        rows.append([model.name, f"{metrics.n:,}", threat, *shares])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        click.echo("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())


def _difference(paired: Paired) -> str:
    # Below that a float is rounded to 0, which no p value is.
    p = f"= {paired.p:.2g}" if paired.p > 1e-300 else "< 1e-300"
    return (
        f"{100 * paired.difference:+.2f} points (95 % interval {100 * paired.low:+.2f} to "
        f"{100 * paired.high:+.2f})  right alone on {paired.gained:,}, wrong alone on "
        f"{paired.lost:,} of {paired.n:,}  p {p}"
    )


def _run(model: Model) -> dict[str, Any]:
    evaluation, metrics = model.evaluation, model.evaluation.metrics
    return {
        "name": model.name,
        **{name: getattr(metrics, name) for name in ("n", "norm", "eps", "quick")},
        "scores": {name: vars(score) for name, score in evaluation.scores.items()},
        "warnings": evaluation.warnings_of(model.name),
    }


def _comparison(name: str, verdict: Verdict, against: str) -> dict[str, Any]:
    paired = verdict.comparison.paired.items()
    return {
        "run": name,
        "against": against,
        "headline": verdict.headline,
        "paired": {
            attack: {"difference": each.difference, **vars(each)} for attack, each in paired
        },
        "left_out": verdict.comparison.left_out,
    }
