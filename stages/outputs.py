"""What a stage may write over: nothing, without --force, and with it only results of its kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import WriteError
from stages.parameters import PIPELINE_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AUDIT",
    "BETON",
    "CARD",
    "CHECKPOINT",
    "METRICS",
    "PAGE",
    "SETTINGS",
    "TABLE",
    "Kind",
    "note_pipeline",
    "refuse_existing",
    "refuse_overlap",
]


@dataclass(frozen=True)
class Kind:
    """A kind of results, by the bytes that all files of it have.

    Attributes
    ----------
    name : str
    begins : tuple of bytes
        One of these is how the file begins.
    holds : bytes
        What it has somewhere; text, or the first bytes, as long as they are.
    """

    name: str
    begins: tuple[bytes, ...]
    holds: bytes = b""

    def is_of(self, path: Path) -> bool:
        """Whether a file is of this kind, or empty."""
        with path.open("rb") as file:
            content = file.read(_ENOUGH)
        return not content or (content.startswith(self.begins) and self.holds in content)


_ENOUGH = 2**24
PAGE = Kind("report of ours", (b"<!doctype html>",), b"ltd-pipe")
CARD = Kind("model card of ours", (b"---\n",), b"library_name: ltd-pipe\n")
METRICS = Kind("metrics of an evaluation", (b"{",), b'"clean_accuracy"')
SETTINGS = Kind("settings of an evaluation", (b"{",), b'"attacks"')
AUDIT = Kind("audit", (b"{",), b'"passed"')
# FFCV's version, and our number of fields.
BETON = Kind("beton of ours", (b"\2\0\4\0",))
CHECKPOINT = Kind("checkpoint of ours", (b"",), b'{"__metadata__":{"ltd_pipe"')
TABLE = Kind("npz or parquet file", (b"PK\3\4", b"PAR1"))


def refuse_existing(
    *targets: Path, force: bool, kind: Kind | None = None, option: str = "--out"
) -> None:
    """Refuse, before any work, to replace a result, or with --force what is none.

    Parameters
    ----------
    *targets : Path
    force : bool
    kind : Kind, optional
        What --force may replace.
    option : str
        What the user would choose otherwise.

    Raises
    ------
    WriteError
        When one of the targets exists and force is false, or it is not of the kind.
    """
    for target in targets:
        if not target.exists():
            continue
        if target.is_dir():
            raise WriteError(target, "is a folder", remedy="Choose another place for the result.")
        if not force:
            remedy = f"Pass --force to replace it, or another {option}."
            raise WriteError(target, "exists already", remedy=remedy)
        if kind is not None and not kind.is_of(target):
            raise WriteError(
                target,
                f"is no {kind.name}, and --force replaces these only",
                remedy="Choose another place for the result, or remove it yourself.",
            )


def note_pipeline(*targets: Path) -> None:
    """Say, where a person runs what dvc.yaml makes, that `dvc repro` would discard it."""
    from_dvc = "DVC_STAGE" in os.environ
    if from_dvc or os.environ.get("RANK", "0") != "0" or not PIPELINE_FILE.exists():
        return
    wanted = {target.resolve() for target in targets}
    for stage, out in _outputs():
        path = Path(out).resolve()
        if any(path == target or path in target.parents for target in wanted):
            click.echo(
                f"note: {out} is an output of stage {stage} in {PIPELINE_FILE}: the next "
                "'dvc repro' discards what this command makes there and makes it again, unless "
                f"'dvc commit -f {stage}' tells it not to. Another --out keeps the two apart.",
                err=True,
            )
            return


def _outputs() -> Iterator[tuple[str, str]]:
    import yaml

    try:
        stages: dict[str, Any] = yaml.safe_load(PIPELINE_FILE.read_text(encoding="utf-8"))["stages"]
        for stage, content in stages.items():
            for entry in [*content.get("outs", ()), *content.get("metrics", ())]:
                yield stage, entry if isinstance(entry, str) else next(iter(entry))
    except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return  # DVC will say what is wrong with it


def refuse_overlap(out: Path, *inputs: Path) -> None:
    """Refuse to write a result over, into or around what it is made from.

    Raises
    ------
    WriteError
        Also with --force.
    """
    target = out.resolve()
    for path in inputs:
        source = path.resolve()
        if target == source or target in source.parents or source in target.parents:
            raise WriteError(
                out, f"lies in, or holds, the input {path}", remedy="Choose another --out."
            )
