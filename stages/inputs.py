"""Before all stages: what comes from outside, which DVC would not see change."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltd_pipe.errors import DataError, ParamsError, reason_of, require_file
from ltd_pipe.params import load_params, read_stages, require_named
from ltd_pipe.provenance import digest, sha256_file
from ltd_pipe.publish import exclusive, read_json, write_json
from ltd_pipe.stages import options
from ltd_pipe.stages.console import tell
from ltd_pipe.stages.options import PARAMS_FILE, PIPELINE_FILE
from ltd_pipe.threads import in_threads

if TYPE_CHECKING:
    from ltd_pipe.params import Params, TrainParams

_TOLD = "{path}: {files:,} files, {bytes:,} bytes, SHA-256 {sha256:.12}"


@click.command()
@options.flag(
    "--asked",
    help="Look at train.teacher and train.init instead, which an earlier stage may have made.",
)
@options.folder(
    "--out",
    default="data/inputs",
    help="Folder of images.json, teacher.json and version.json, or asked.json and init.json.",
)
def inputs(asked: bool, out: Path) -> None:
    """Note what params.yaml names: the folder of images, and trained weights.

    DVC runs it before all stages, and those again whose images or weights have changed. Contents
    are read only where names, sizes or times differ from the last look.

    \b
    Example:
      ltd-pipe inputs
    """
    params = load_params(PARAMS_FILE)
    if PIPELINE_FILE.exists():
        require_named(PARAMS_FILE, PIPELINE_FILE)
        if not asked:
            _refuse_own_outputs(params)
            _require_weights(params.train)
            _warn_of_launch(params)
            _warn_of_refusals()
    state = out.parent / "state" / f"{out.name}.json"
    with exclusive(out):
        looked = read_json(state) or {}
        for name, key, path in _named(params, asked=asked):
            before = read_json(out / f"{name}.json")
            found = _look(path, key, before or {}, looked) if path else None
            told = "nothing from outside" if found is None else _TOLD.format_map(found)
            click.echo(f"{key}: {told}")
            if found != before or not (out / f"{name}.json").exists():
                write_json(out / f"{name}.json", found)
        write_json(state, looked)
        if not asked:
            # What stages outside of a source tree depend on, for its code.
            version = {"ltd-pipe": importlib.metadata.version("ltd-pipe")}
            if read_json(out / "version.json") != version:
                write_json(out / "version.json", version)


def _require_weights(train: TrainParams) -> None:
    """Refuse weights that training names, and that are neither here nor made by a stage."""
    made = {Path(out) for _, out in options.pipeline_outputs()}
    for _, key, path in _asked(train):
        if path is not None and not made & {Path(path), *Path(path).parents}:
            _require(Path(path), key)


def _refuse_own_outputs(params: Params) -> None:
    """Refuse what the stage that reads it makes: DVC removes its outputs before it begins."""
    stages = read_stages(PIPELINE_FILE)
    for stage, out in options.pipeline_outputs():
        words, made = " ".join(stages[stage]["cmd"]).split(), Path(out).resolve()
        for _, key, path in [*_named(params, asked=False), *_asked(params.train)]:
            read = path is not None and key.partition(".")[0] in words
            if read and Path(path or "").resolve().is_relative_to(made):
                raise ParamsError(
                    f"{PARAMS_FILE}: {key}: {path}",
                    f"would be removed with the outputs of stage '{stage}', before it is read",
                    remedy=f"Copy it out of {out}, and name the copy.",
                )


def _warn_of_launch(params: Params) -> None:
    """Say where params.yaml says how to start the stages, and dvc.yaml does not ask it."""
    default = type(params).model_fields["launch"].default
    if params.launch != default and not options.pipeline_launches():
        tell(
            f"WARNING: {PARAMS_FILE}: launch does nothing here: the commands in {PIPELINE_FILE} "
            f"name ltd-pipe. Write '{params.launch} -m ltd_pipe' there in its place."
        )


def _warn_of_refusals() -> None:
    """Say which training will refuse params.yaml with its own options, before any has begun.

    It is no refusal: who runs the other stages alone gets what they give.
    """
    from ltd_pipe.stages.train import train

    commands = [(name, cmd) for name, it in read_stages(PIPELINE_FILE).items() for cmd in it["cmd"]]
    for name, command in commands:
        _, is_train, words = command.partition(" train ")
        if not is_train:
            continue
        try:
            given = train.make_context("train", shlex.split(words)).params
        except (click.UsageError, ValueError):
            continue  # a shell's own words
        if not given["params_file"].exists():
            continue  # a stage before it may make it
        try:
            found = options.overrides_of("train", given)
            overrides = {key: value for key, (value, _) in found.items()}
            params = load_params(given["params_file"], overrides)
            idle = options.idle(params).items()
            refused = [f"{key} {why}" for key, why in idle if key in overrides]
        except ParamsError as error:
            refused = [str(error)]
        for problem in refused:
            tell(f"WARNING: stage '{name}' of {PIPELINE_FILE} will end with: {problem}")


def _require(path: Path, key: str) -> None:
    require_file(path, f"{PARAMS_FILE}: {key}: {path}", "Correct the path.")


def _named(params: Params, *, asked: bool) -> Iterator[tuple[str, str, str | None]]:
    """Name, key and value of each parameter that is a path from outside."""
    if asked:
        yield from _asked(params.train)
        return
    # torchvision compares CIFAR's files with hashes of its own.
    folder = params.prepare.path if params.prepare.dataset == "folder" else None
    yield "images", "prepare.path", folder
    teacher = params.teacher
    yield "teacher", "teacher.checkpoint", teacher.checkpoint
    yield "classes", "teacher.classes", teacher.classes if teacher.checkpoint else None


def _asked(train: TrainParams) -> Iterator[tuple[str, str, str | None]]:
    # Also the baseline has them, which depends on nothing else of a teacher.
    yield "asked", "train.teacher", train.teacher if train.asks_teacher else None
    yield "init", "train.init", train.init


def _look(path: str, key: str, before: dict[str, Any], looked: dict[str, Any]) -> dict[str, Any]:
    """What a file or folder holds now: how many files, their size, and a hash of all."""
    if not Path(path).exists():
        if before.get("path") == path:
            tell(f"WARNING: {key}: {path} is not here: taken as it was")
            return before
        _require(Path(path), key)
    try:
        files = sorted(_files(path, frozenset()))
        listing = digest(files)
        if looked.get(path, {}).get("listing") != listing:
            names = [name for name, _, _ in files]
            hashes = in_threads(lambda i: sha256_file(Path(names[i])), len(names))
            content = [[name, sha256] for name, sha256 in zip(names, hashes, strict=True)]
            facts = {
                "path": path,
                "files": len(files),
                "bytes": sum(size for _, size, _ in files),
                "sha256": digest(content),
            }
            looked[path] = {"listing": listing, "facts": facts}
    except OSError as error:
        raise DataError(error.filename or path, f"cannot be read ({reason_of(error)})") from error
    return dict(looked[path]["facts"])


def _files(path: str, above: frozenset[tuple[int, int]]) -> list[tuple[str, int, int]]:
    """Path, size and time of each file of a folder, through links; a loop of links ends."""
    itself = os.stat(path)  # noqa: PTH116  (one of 1.2 million)
    if not stat.S_ISDIR(itself.st_mode):
        return [(path, itself.st_size, itself.st_mtime_ns)]
    if (itself.st_dev, itself.st_ino) in above:
        return []
    above |= {(itself.st_dev, itself.st_ino)}
    with os.scandir(path) as entries:
        there = [entry.path for entry in entries if entry.is_dir() or entry.is_file()]
    return [file for name in there for file in _files(name, above)]
