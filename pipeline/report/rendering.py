"""Templates to one HTML text, with nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.report.wording import eps_text, interval_text, norm_text, number_text, percent_text

__all__ = ["render"]


def render(template: str, content: dict[str, Any]) -> str:
    """Render one of the templates beside this file, with the style that all have.

    Parameters
    ----------
    template : str
        File name.
    content : dict
        What the template shows.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        # Class names and titles are the user's: all are escaped but what is marked as ours.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent_text,
        "interval": interval_text,
        "eps": eps_text,
        "norm": norm_text,
        "number": number_text,
    }
    style = Markup((folder / "page.css").read_text(encoding="utf-8"))  # noqa: S704
    return environment.get_template(template).render(style=style, **content)
