"""Runs side by side and image by image; also as revisions of the DVC repository."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import MissingError
from ltd_pipe.stages.console import json_option, say
from ltd_pipe.text import one_line

if TYPE_CHECKING:
    from ltd_pipe.evaluation.statistics import Paired
    from ltd_pipe.report.verdict import Model, Verdict


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@json_option("Print as JSON.")
def compare(runs: tuple[str, ...]) -> None:
    """Compare runs, each with the first one, by McNemar's exact test on the same test images.

    A RUN is a folder that evaluate wrote to, its metrics.json, or a revision or experiment of
    this DVC repository. Runs on other test images, or attacked otherwise, are shown and not
    compared.

    \b
    Examples:
      ltd-pipe compare data/metrics.json data/baseline-metrics.json
      ltd-pipe compare main exp-soft exp-onehot
    """
    from ltd_pipe.report.runs import audit_of, read_evaluation
    from ltd_pipe.report.verdict import Model, judge

    with metrics_of(runs) as found:
        measured = [(name, path, read_evaluation(path)) for name, path in found]
        models = [Model(name, one, audit_of(one, path)) for name, path, one in measured]
    first, *others = models
    verdicts = [(model.name, judge(model, first)) for model in others]
    facts = {
        "runs": [_run(model) for model in models],
        "comparisons": [_comparison(*each, first.name) for each in verdicts],
    }
    say(facts, _lines(models, verdicts))


def _lines(models: list[Model], verdicts: list[tuple[str, Verdict]]) -> Iterator[str]:
    yield from _accuracies(models)
    for model in models:
        if model.evaluation.metrics.quick:
            yield f"QUICK LOOK: {model.name}: few images and a weak attack. Not a result."
        for line in model.evaluation.warnings_of(model.name):
            yield f"WARNING: {line}"
    for name, verdict in verdicts:
        paired = verdict.comparison.paired
        yield f"{name} against {models[0].name}"
        width = max((len(attack) for attack in paired), default=0)
        for attack, each in paired.items():
            yield f"  {attack:<{width}}  {_difference(each)}"
        for line in verdict.comparison.left_out:
            yield f"  not compared: {line}"
        yield f"  {verdict.headline}"
    if any(verdict.comparison.paired for _, verdict in verdicts):
        yield (
            "p: McNemar's exact test of each row alone; a verdict asks p < 0.025 of its two. It "
            "compares these checkpoints on these images; methods differ when several seeds do. "
            "Intervals are approximate: where few images differ, the exact test decides."
        )


def _accuracies(models: list[Model]) -> Iterator[str]:
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
        yield "  ".join([f"{first:<{widths[0]}}", *cells]).rstrip()


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


# --- Runs as a user names them: folders, files and revisions.

# What DVC keeps of an evaluation.
_METRICS = Path("data/metrics.json")
_REQUIRED = (str(_METRICS), "data/evaluation/settings.json")
# Older ones lack the first, and not every run has the second.
_OPTIONAL = ("data/evaluation/per_sample.npz", "data/audit/audit.json")


@contextlib.contextmanager
def metrics_of(names: Sequence[str], *, training: bool = False) -> Iterator[list[tuple[str, Path]]]:
    """The metrics.json of runs, each with its evaluation beside it, while the block runs.

    Parameters
    ----------
    names : sequence of str
        Folders that evaluate wrote to, their metrics.json, or revisions or experiments.
    training : bool
        Of a revision, also what else there is to say about the run.

    Raises
    ------
    MissingError
        When one is nothing of that.
    """
    from ltd_pipe.report.runs import CURVES, find_metrics

    more = [
        "data/evaluation/by_eps.json",
        "data/student/model.safetensors",
        *(f"data/student/live/plots/metrics/{name}.tsv" for name in CURVES),
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number, name in enumerate(names):
            if Path(name).exists():
                found.append((name, find_metrics(Path(name))))
                continue
            place = Path(folder) / str(number)
            _fetch(name, place, [*_OPTIONAL, *more] if training else _OPTIONAL)
            found.append((name, place / _METRICS))
        yield found


def _fetch(name: str, folder: Path, optional: Sequence[str]) -> None:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError
    from scmrepo.exceptions import SCMError as GitError

    try:
        files = DVCFileSystem(rev=name)
        # Its paths begin where .dvc is, which may be above a project.
        project = Path.cwd().resolve().relative_to(Repo.find_root())
        for file in (*_REQUIRED, *optional):
            if file in _REQUIRED or files.exists(str(project / file)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(str(project / file), str(folder / file))
    except (DvcException, SCMError, GitError, OSError) as error:
        reason = one_line(str(error)).rstrip(".")
        raise MissingError(
            name,
            f"is no file or folder, and no revision with an evaluation ({reason})",
            remedy="'dvc exp show' lists the experiments; 'dvc pull' fetches results.",
        ) from error
