"""Markdown around text that may come from anyone: it is shown, and never acts.

Names go into code spans, and texts of several lines into fenced blocks, where Markdown knows no
links, no HTML and no emphasis; the marks around are longer than any run of them inside
(CommonMark 0.31, sections 4.5 and 6.1).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from pipeline.printable import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["code", "fenced", "licence_lines", "licence_name", "quoted", "table"]

# Licences as Hugging Face knows them: SPDX names in lower case, GNU's without "-only".
_LICENCES = re.compile(
    r"agpl-3\.0|apache-2\.0|bsd-[23]-clause|cc-by(-nc|-sa|-nc-sa)?-[234]\.0|"
    r"cc-by(-nd|-nc-nd)-[34]\.0|cc0-1\.0|cdla-(permissive-[12]|sharing-1)\.0|gpl-[23]\.0|isc|"
    r"lgpl-(2\.1|3\.0)|mit|mpl-2\.0|odbl|odc-by|pddl|unlicense"
)
_UNNAMED = "other"


def code(text: str, limit: int = 200) -> str:
    """A name on one line, as a code span; cut to `limit` characters."""
    shown = one_line(text, limit) or "(empty)"
    if "|" in shown:
        # A bar would end a table's cell, even here, and programs differ in what escapes it.
        return "".join(x if x.isalnum() or x == " " else f"&#{ord(x)};" for x in shown)
    mark = "`" * (_longest_run(shown) + 1)
    # A blank on both sides is taken away again; without it a backtick would join the mark.
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{mark}{edge}{shown}{edge}{mark}"


def fenced(text: str, language: str = "") -> str:
    """A text of several lines as a code block."""
    lines = [printable(line) for line in text.replace("\r\n", "\n").strip("\n").split("\n")]
    mark = "`" * max(_longest_run("\n".join(lines)) + 1, 3)
    return "\n".join([f"{mark}{language}", *lines, mark])


def quoted(text: str) -> str:
    """A YAML scalar on one line, for front matter."""
    # Printable text in JSON is YAML too: only quotation mark and backslash are escaped.
    return json.dumps(one_line(text), ensure_ascii=False)


def licence_name(licence: str) -> str:
    """What Hugging Face's front matter calls a licence: `other` where it has no name for it."""
    name = licence.strip().lower().removesuffix("-only").removesuffix("-or-later")
    return name if _LICENCES.fullmatch(name) else _UNNAMED


def licence_lines(licence: str) -> list[str]:
    """A licence in front matter; one that Hugging Face has no name for keeps its own beside it."""
    lines = [f"license: {licence_name(licence)}"]
    # Hugging Face wants small letters, digits, dots and dashes.
    own = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")[:96]
    if own and licence_name(licence) == _UNNAMED:
        lines.append(f"license_name: {quoted(own)}")
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; cells are finished Markdown without bars, as `code` gives."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
