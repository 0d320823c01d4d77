"""The recipes: complete parameter files that come with the package."""

from __future__ import annotations

import difflib
from importlib import resources

from pipeline.errors import MissingError

__all__ = ["recipe_names", "recipe_summary", "recipe_text"]


def recipe_names() -> list[str]:
    """All recipes, by name."""
    files = resources.files("recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A recipe's file as it is, comments included.

    Raises
    ------
    MissingError
        When there is no such recipe.
    """
    names = recipe_names()
    # Only a listed name becomes part of a path.
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        remedy = f"Did you mean '{close[0]}'?" if close else f"There are {', '.join(names)}."
        raise MissingError(name, "no such recipe", remedy=remedy)
    return (resources.files("recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """What a recipe is for: its first line, `# NAME: …`, without the name."""
    first = recipe_text(name).partition("\n")[0]
    return first.removeprefix(f"# {name}: ")
