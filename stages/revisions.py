"""Evaluations that a user names: folders, files, and revisions of the DVC repository."""

from __future__ import annotations

from pathlib import Path

from ltd_pipe.errors import MissingError
from ltd_pipe.text import one_line

# What DVC keeps of an evaluation.
_METRICS = "data/metrics.json"
_REQUIRED = (_METRICS, "data/evaluation/settings.json")
# Older ones lack it.
_OPTIONAL = ("data/evaluation/per_sample.npz",)


def training_files() -> tuple[str, ...]:
    """What else there is to say about a run."""
    from ltd_pipe.report.runs import CURVES

    return (
        "data/evaluation/by_eps.json",
        "data/student/model.safetensors",
        *(f"data/student/live/plots/metrics/{name}.tsv" for name in CURVES),
    )


def find_metrics(name: str, folder: Path, more: tuple[str, ...] = ()) -> Path:
    """The metrics.json of a run, with its evaluation beside it.

    Parameters
    ----------
    name : str
        A folder that evaluate wrote to, its metrics.json, or a revision or experiment.
    folder : Path
        Where the files of a revision are copied to.
    more : tuple of str
        Files of a revision that are copied, too, where it has them.

    Raises
    ------
    MissingError
        When it is nothing of that.
    """
    if Path(name).exists():
        from ltd_pipe.report import runs

        return runs.find_metrics(Path(name))
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from scmrepo.exceptions import SCMError as GitError

    try:
        files = DVCFileSystem(rev=name)
        for file in (*_REQUIRED, *_OPTIONAL, *more):
            if file in _REQUIRED or files.exists(file):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(file, str(folder / file))
    except (DvcException, SCMError, GitError, OSError) as error:
        reason = one_line(str(error)).rstrip(".")
        raise MissingError(
            name,
            f"is no file or folder, and no revision with an evaluation ({reason})",
            remedy="'dvc exp show' lists the experiments; 'dvc pull' fetches results.",
        ) from error
    return folder / _METRICS
