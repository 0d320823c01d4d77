"""`ltd-pipe init`: a project of its own, outside of this source tree."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ltd_pipe.stages.options import FOLDER, PARAMS_FILE, PIPELINE_FILE, refuse_existing

__all__ = ["init"]


@click.command()
@click.argument("folder", type=FOLDER, default=Path())
@click.option(
    "--recipe",
    "name",
    default="digits",
    help="What params.yaml begins as; 'ltd-pipe recipe list' shows them.",
)
@click.option("--force", is_flag=True, help="Replace dvc.yaml and params.yaml.")
def init(folder: Path, name: str, force: bool) -> None:
    """Begin a project in FOLDER: dvc.yaml, params.yaml and a line of .gitignore.

    DVC runs its stages with the installed ltd-pipe, and all of them again with another version.

    \b
    Example:
      ltd-pipe init my-project --recipe cifar10-resnet18
    """
    from ltd_pipe.params.file import pipeline_text, recipe_text
    from ltd_pipe.publish import write_text

    # Where dvc.yaml's commands name the program, nothing is left to launch.
    params = re.sub(r"^launch:.*\n", "", recipe_text(name), flags=re.MULTILINE)
    targets = {folder / PIPELINE_FILE: pipeline_text(), folder / PARAMS_FILE: params}
    refuse_existing(*targets, force=force, option="FOLDER")
    for path, text in targets.items():
        write_text(path, text)
    ignored = folder / ".gitignore"
    lines = ignored.read_text(encoding="utf-8").splitlines() if ignored.exists() else []
    if "/data/" not in lines:
        write_text(ignored, "\n".join([*lines, "/data/"]) + "\n")
    click.echo(f"{folder / PIPELINE_FILE}, {folder / PARAMS_FILE}: recipe {name}. Next:")
    for command in _following(folder):
        click.echo(f"  {command}")


def _following(folder: Path) -> list[str]:
    """What is left to do: DVC wants a git repository, and its own folder in it."""
    above = [folder.resolve(), *folder.resolve().parents]
    git = next((place for place in above if (place / ".git").exists()), None)
    commands = [] if folder.resolve() == Path.cwd() else [f"cd {folder}"]
    commands += [] if git else ["git init"]
    if not any((place / ".dvc").is_dir() for place in above):
        commands.append("dvc init" if git in (None, above[0]) else "dvc init --subdir")
    return [*commands, "dvc repro"]
