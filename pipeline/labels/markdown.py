"""Markdown around text that may come from anyone: it is shown, and never acts.

Names go into code spans, and texts of several lines into fenced blocks, where Markdown knows no
links, no HTML and no emphasis; the marks around are longer than any run of them inside
(CommonMark 0.31, sections 4.5 and 6.1).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["code", "fenced", "quoted", "table"]

_MAX_NAME = 200


def code(text: str, limit: int = _MAX_NAME) -> str:
    """A name on one line, as a code span; cut to `limit` characters."""
    shown = " ".join(_printable(text).split()) or "(empty)"
    if len(shown) > limit:
        shown = f"{shown[:limit]}…"
    if "|" in shown:
        # A bar would end a table's cell, even here, and programs differ in what escapes it.
        return "".join(x if x.isalnum() or x == " " else f"&#{ord(x)};" for x in shown)
    mark = "`" * (_longest_run(shown) + 1)
    # A blank on both sides is taken away again; without it a backtick would join the mark.
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{mark}{edge}{shown}{edge}{mark}"


def fenced(text: str, language: str = "") -> str:
    """A text of several lines as a code block."""
    lines = [_printable(line) for line in text.replace("\r\n", "\n").strip("\n").split("\n")]
    mark = "`" * max(_longest_run("\n".join(lines)) + 1, 3)
    return "\n".join([f"{mark}{language}", *lines, mark])


def quoted(text: str) -> str:
    """A YAML scalar on one line, for front matter."""
    # Printable text in JSON is YAML too: only quotation mark and backslash are escaped.
    return json.dumps(" ".join(_printable(text).split())[:_MAX_NAME], ensure_ascii=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; cells are finished Markdown without bars, as `code` gives."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _printable(text: str) -> str:
    # No control characters and no marks that turn the direction of writing.
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )
