"""Runs side by side: each against the first one, wherever they were measured alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltd_pipe.errors import MissingError, ResultError
from ltd_pipe.evaluation.results import SAMPLES_FILE, evaluation_beside, read_samples
from ltd_pipe.evaluation.statistics import Paired, pair
from ltd_pipe.report.runs import Measured, read_measured, unlike

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ltd_pipe.evaluation.results import Samples


# --- One run to be compared: its numbers, and which images it is right on.


_METRICS = "metrics.json"
_REMEDY = "Run 'ltd-pipe evaluate' again."


@dataclass(frozen=True)
class EvaluatedRun:
    """What an evaluation left.

    Attributes
    ----------
    name : str
        As the user named it.
    measured : Measured
    samples : Samples or None
        None where the evaluation wrote none.
    """

    name: str
    measured: Measured
    samples: Samples | None


def metrics_in(place: Path) -> Path:
    """The metrics.json that a run's folder holds, or the file itself.

    Parameters
    ----------
    place : Path
        A metrics.json of any name, its folder, or a folder with `data/` in which it is.

    Raises
    ------
    MissingError
        When there is none.
    """
    candidates = [place / _METRICS, place / "data" / _METRICS] if place.is_dir() else [place]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise MissingError(
        place, f"holds no {_METRICS}", remedy="Name the folder or the file that evaluate wrote."
    )


def read_run(name: str, metrics: Path) -> EvaluatedRun:
    """Read an evaluation and its answers to each image.

    Parameters
    ----------
    name : str
        As the user named it.
    metrics : Path
        metrics.json; its folder of settings.json and per_sample.npz lies beside it.

    Raises
    ------
    MissingError, ResultError
        When a file is missing or damaged, or the two contradict each other.
    """
    folder = evaluation_beside(metrics)
    return evaluated(name, read_measured(metrics, folder), folder)


def evaluated(name: str, measured: Measured, folder: Path | None) -> EvaluatedRun:
    """An evaluation that was read, with the answers to each image that its folder holds.

    Raises
    ------
    ResultError
        When these are damaged, or contradict the numbers.
    """
    path = None if folder is None else folder / SAMPLES_FILE
    if path is None or not path.exists():
        return EvaluatedRun(name, measured, None)
    samples = read_samples(path)
    _require_agreement(samples, measured, path)
    return EvaluatedRun(name, measured, samples)


def _require_agreement(samples: Samples, measured: Measured, path: Path) -> None:
    for name, correct in samples.correct.items():
        score = measured.scores.get(name.replace("-", "_"))
        if score is not None and abs(correct.mean() - score.value) > 0.5 / len(correct):
            raise ResultError(
                path,
                f"is of another evaluation: share that is right, {name}",
                expected=f"{score.value:.4f} as in its metrics",
                found=f"{correct.mean():.4f}",
                remedy=_REMEDY,
            )


# --- Runs side by side: each against the first one, wherever they were measured alike.


@dataclass(frozen=True)
class Comparison:
    """A run against the first one.

    Attributes
    ----------
    run : EvaluatedRun
    paired : dict of str to Paired
        By attack, those that both were measured under in the same way.
    left_out : tuple of str
        What was not compared, and why.
    """

    run: EvaluatedRun
    paired: dict[str, Paired]
    left_out: tuple[str, ...]


def compare(runs: Sequence[EvaluatedRun]) -> list[Comparison]:
    """Compare each run with the first one.

    Parameters
    ----------
    runs : sequence of EvaluatedRun
        Two or more.

    Returns
    -------
    list of Comparison
        Of all but the first.
    """
    first, *others = runs
    return [_against(first, run) for run in others]


def _against(first: EvaluatedRun, run: EvaluatedRun) -> Comparison:
    mine, theirs = run.samples, first.samples
    if mine is None or theirs is None:
        lacking = [each.name for each in (first, run) if each.samples is None]
        return Comparison(run, {}, (f"no results by image of {' and '.join(lacking)}",))
    if not mine.of_the_same_images(theirs):
        return Comparison(run, {}, ("other test images",))
    paired, left_out = {}, []
    for attack in mine.correct:
        if attack not in theirs.correct:
            left_out.append(f"{attack}: not measured of {first.name}")
        elif reason := unlike(attack, run.measured.conditions, first.measured.conditions):
            left_out.append(f"{attack}: {reason}")
        else:
            paired[attack] = pair(mine.correct[attack], theirs.correct[attack])
    return Comparison(run, paired, tuple(left_out))
