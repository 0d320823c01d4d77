"""`ltd-pipe recipe`: list, show and use the parameter files that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ltd_pipe.stages.options import PARAMS_FILE

__all__ = ["recipe"]


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from ltd_pipe.params.file import recipe_names

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
@click.option("--json", "as_json", is_flag=True, help="Print names and summaries as JSON.")
def list_recipes(as_json: bool) -> None:
    """List the recipes.

    \b
    Example:
      ltd-pipe recipe list
    """
    from ltd_pipe.params.file import recipe_names, recipe_summary

    summaries = {name: recipe_summary(name) for name in recipe_names()}
    if as_json:
        click.echo(json.dumps(summaries, indent=2, ensure_ascii=False))
        return
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        click.echo(f"{name:<{width}}  {summary}")


@recipe.command("show")
@click.argument("name", shell_complete=_names)
def show_recipe(name: str) -> None:
    """Print a recipe, comments included.

    \b
    Example:
      ltd-pipe recipe show digits > my-params.yaml
    """
    from ltd_pipe.params.file import recipe_text

    click.echo(recipe_text(name), nl=False)


@recipe.command("use")
@click.argument("name", shell_complete=_names)
@click.option("--force", is_flag=True, help="Replace a params.yaml that was edited.")
def use_recipe(name: str, force: bool) -> None:
    """Make a recipe the params.yaml of this folder.

    A params.yaml that is itself an unchanged recipe is replaced; an edited one only with --force.

    \b
    Example:
      ltd-pipe recipe use digits
    """
    from ltd_pipe.params.file import recipe_text
    from ltd_pipe.publish import write_text

    text = recipe_text(name)
    _refuse_to_lose_edits(PARAMS_FILE, force=force)
    write_text(PARAMS_FILE, text)
    following = "dvc repro" if Path("dvc.yaml").exists() else "ltd-pipe prepare"
    click.echo(f"{PARAMS_FILE} is now the recipe {name}. Next: {following}")


def _refuse_to_lose_edits(path: Path, *, force: bool) -> None:
    from ltd_pipe.errors import WriteError
    from ltd_pipe.params.file import recipe_names, recipe_text

    if force or not path.exists():
        return
    present = path.read_bytes()
    if not any(present == recipe_text(name).encode() for name in recipe_names()):
        raise WriteError(
            path, "was edited", remedy="Pass --force to replace it, or move it away first."
        )
