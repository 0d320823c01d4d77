"""Where work begins: a project's folder, the recipe in its params.yaml, and the machine."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from shlex import quote

import click

from ltd_pipe.errors import WriteError
from ltd_pipe.models import NETWORKS
from ltd_pipe.params.file import pipeline_text, recipe_names, recipe_summary, recipe_text
from ltd_pipe.publish import staged, write_text
from ltd_pipe.stages import options
from ltd_pipe.stages.console import json_option, say, wants_json
from ltd_pipe.stages.options import PARAMS_FILE, PIPELINE_FILE


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option(
    "--recipe",
    "name",
    default="digits",
    help="What params.yaml begins as; 'ltd-pipe recipe list' shows them.",
)
@options.flag("--force", help="Replace dvc.yaml and params.yaml.")
def init(folder: Path, name: str, force: bool) -> None:
    """Begin a project in FOLDER: dvc.yaml, params.yaml and a line of .gitignore.

    DVC runs its stages with the installed ltd-pipe, and all of them again with another version.

    \b
    Example:
      ltd-pipe init my-project --recipe cifar10-resnet18
    """
    targets = {
        folder / PIPELINE_FILE: pipeline_text(),
        folder / PARAMS_FILE: _own_text(name),
    }
    options.refuse_existing(*targets, force=force, option="FOLDER")
    ignored = folder / ".gitignore"
    lines = ignored.read_bytes().splitlines() if ignored.exists() else []
    for path, text in targets.items():
        write_text(path, text)
    if b"/data/" not in lines:
        with staged(ignored) as beside:
            beside.write_bytes(b"\n".join([*lines, b"/data/", b""]))
    click.echo(f"{folder / PIPELINE_FILE}, {folder / PARAMS_FILE}: recipe {name}. Next:")
    for command in _following(folder):
        click.echo(f"  {command}")


def _own_text(name: str) -> str:
    """A recipe where dvc.yaml's commands name the program, and nothing is left to launch."""
    return re.sub(r"^launch:.*\n", "", recipe_text(name), flags=re.MULTILINE)


def _following(folder: Path) -> list[str]:
    """What is left to do: DVC wants a git repository, and its own folder in it."""
    above = [folder.resolve(), *folder.resolve().parents]
    git = next((place for place in above if (place / ".git").exists()), None)
    commands = [] if folder.resolve() == Path.cwd() else [f"cd {quote(str(folder))}"]
    commands += [] if git else ["git init"]
    if not any((place / ".dvc").is_dir() for place in above):
        commands.append("dvc init" if git in (None, above[0]) else "dvc init --subdir")
    return [*commands, "dvc repro"]


# --- The recipes.


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    del ctx, param
    return [name for name in recipe_names() if name.startswith(incomplete)]


@click.group()
def recipe() -> None:
    """List, show or use the recipes: complete parameter files for known experiments.

    \b
    Example:
      ltd-pipe recipe use cifar10-resnet18
    """


@recipe.command("list")
@json_option("Print names and summaries as JSON.")
def list_recipes() -> None:
    """List the recipes.

    \b
    Example:
      ltd-pipe recipe list
    """
    summaries = {name: recipe_summary(name) for name in recipe_names()}
    width = max(map(len, summaries))
    lines = (f"{name:<{width}}  {summary}" for name, summary in summaries.items())
    say(summaries, lines, ensure_ascii=False)


@recipe.command("show")
@click.argument("name", shell_complete=_names)
def show_recipe(name: str) -> None:
    """Print a recipe, comments included.

    \b
    Example:
      ltd-pipe recipe show digits > my-params.yaml
    """
    click.echo(recipe_text(name), nl=False)


@recipe.command("use")
@click.argument("name", shell_complete=_names)
@options.flag("--force", help="Replace a params.yaml that was edited.")
def use_recipe(name: str, force: bool) -> None:
    """Make a recipe the params.yaml of this folder.

    A params.yaml that is itself an unchanged recipe is replaced; an edited one only with --force.

    \b
    Example:
      ltd-pipe recipe use digits
    """
    launches = not PIPELINE_FILE.exists() or options.pipeline_launches()
    text = recipe_text(name) if launches else _own_text(name)
    known = [of(each).encode() for each in recipe_names() for of in (recipe_text, _own_text)]
    if not force and PARAMS_FILE.exists() and PARAMS_FILE.read_bytes() not in known:
        remedy = "Pass --force to replace it, or move it away first."
        raise WriteError(PARAMS_FILE, "was edited", remedy=remedy)
    write_text(PARAMS_FILE, text)
    following = "dvc repro" if PIPELINE_FILE.exists() else "ltd-pipe prepare"
    click.echo(f"{PARAMS_FILE} is now the recipe {name}. Next: {following}")


# --- The machine.

# For stderr, so that the list can be piped.
_OTHER_NETWORKS = (
    "Other sizes: wrn-DEPTH-WIDTH; resnet18, preactresnet18, small-cnn with -wN.",
    "Other packages' networks: timm:NAME, torchvision:NAME.",
)
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@options.folder("--data", default="data", help="Folder that results are written to.")
@options.flag("--models", help="List the names of architectures instead.")
@json_option("Print JSON.")
def doctor(data: Path, models: bool) -> None:
    """Check this machine for what users trip over. Exit code 1 when something will not work.

    \b
    Example:
      ltd-pipe doctor
      ltd-pipe doctor --models
    """
    if models:
        options.refuse_options({"data"}, "is of the check, not of --models")
        say(NETWORKS, NETWORKS, _OTHER_NETWORKS, indent=None)
        return
    from ltd_pipe.doctor import examine

    findings = {}
    for topic, finding in examine(data):
        findings[topic] = finding
        if wants_json():
            continue
        status = click.style(f"{finding.status:<4}", fg=_STYLES[finding.status])
        click.echo(f"{status}  {topic:<9}  {finding.found}")
        if finding.remedy:
            click.echo(f"{'':<17}{finding.remedy}")
    say({topic: dataclasses.asdict(finding) for topic, finding in findings.items()}, ())
    if any(finding.status == "fail" for finding in findings.values()):
        sys.exit(1)
