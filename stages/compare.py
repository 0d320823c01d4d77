"""Runs of one's own, side by side and image by image."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import MissingError

if TYPE_CHECKING:
    from pipeline.compare.mcnemar import Paired
    from pipeline.compare.run import EvaluatedRun
    from pipeline.compare.table import Comparison

__all__ = ["compare"]

# What DVC keeps of an evaluation; the last one is missing from older ones.
_METRICS = "data/metrics.json"
_FILES = (_METRICS, "data/evaluation/settings.json", "data/evaluation/per_sample.npz")


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
    from pipeline.compare.table import compare as compare_runs

    with tempfile.TemporaryDirectory() as folder:
        read = [_read(name, Path(folder) / str(number)) for number, name in enumerate(runs)]
    found = compare_runs(read)
    if as_json:
        rows = [_row(run) for run in read]
        compared = [_comparison(each, read[0].name) for each in found]
        click.echo(json.dumps({"runs": rows, "comparisons": compared}, indent=2))
        return
    _show_runs(read)
    for each in found:
        _show_comparison(each, read[0].name)
    if any(each.paired for each in found):
        click.echo(
            "p: McNemar's exact test of each row alone. It compares these checkpoints on these "
            "images; methods differ when several seeds do."
        )


def _read(name: str, folder: Path) -> EvaluatedRun:
    from pipeline.compare.run import metrics_in, read_run

    if Path(name).exists():
        return read_run(name, metrics_in(Path(name)))
    _fetch(name, folder)
    return read_run(name, folder / _METRICS)


def _fetch(revision: str, folder: Path) -> None:
    """Copy an evaluation out of DVC's cache or remote."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    try:
        files = DVCFileSystem(rev=revision)
        for name in _FILES:
            if name != _FILES[-1] or files.exists(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(name, str(folder / name))
    except (DvcException, SCMError, OSError) as error:
        raise MissingError(
            revision,
            f"is no folder, and no revision with an evaluation ({_one_line(error)})",
            remedy="'dvc exp show' lists the experiments; 'dvc pull' fetches results.",
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _show_runs(runs: list[EvaluatedRun]) -> None:
    from pipeline.report.wording import eps_text

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


def _show_comparison(found: Comparison, first: str) -> None:
    click.echo(f"{found.run.name} against {first}")
    width = max((len(attack) for attack in found.paired), default=0)
    for attack, paired in found.paired.items():
        click.echo(f"  {attack:<{width}}  {_words(paired)}")
    for line in found.left_out:
        click.echo(f"  not compared: {line}")


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
    facts = {"n": measured.n, "norm": measured.norm, "eps": measured.eps}
    return {"name": run.name, **facts, "scores": scores}


def _comparison(found: Comparison, first: str) -> dict[str, Any]:
    paired = {
        attack: {"difference": each.difference, **vars(each)}
        for attack, each in found.paired.items()
    }
    return {
        "run": found.run.name,
        "against": first,
        "paired": paired,
        "left_out": list(found.left_out),
    }
