"""The recipes: complete parameter files that come with the package."""

from __future__ import annotations

import difflib
import re
from importlib import resources

from pipeline.errors import MissingError

__all__ = ["pipeline_text", "recipe_names", "recipe_summary", "recipe_text"]


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


def pipeline_text() -> str:
    """dvc.yaml for a project of its own, where the code is an installed package.

    That of the source tree, which is stages.yaml here: commands are `ltd-pipe`, and each stage
    depends on the package's version in place of its files.
    """
    shipped = (resources.files("pipeline") / "stages.yaml").read_text(encoding="utf-8")
    text = shipped.replace("${launch} -m stages", "ltd-pipe")
    text = re.sub(r"(?:^ +- (?:pipeline|stages)/.*\n)+", f"      - {_VERSION}\n", text, flags=re.M)
    outs = "    outs:\n      - data/inputs/images.json"
    return text.replace(outs, outs.replace("\n", f"\n      - {_VERSION}: {{persist: true}}\n", 1))


_VERSION = "data/inputs/version.json"
