"""Texts from anyone made safe to show, Markdown around them, and where two trees differ."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# --- Text from anyone, made safe to show.


def printable(text: str) -> str:
    """Without control characters and marks that turn the direction of writing.

    Each becomes one sign, blanks of any kind a blank: a name cannot move a terminal's cursor,
    forge a line, or stand in another order than it is written.
    """
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def one_line(text: str, limit: int = 200) -> str:
    """`printable`, with single blanks, cut to `limit` characters."""
    shown = " ".join(printable(text).split())
    return f"{shown[:limit]}…" if len(shown) > limit else shown


def nfc(name: str) -> str:
    """A class's name as it is compared: macOS writes é as two letters, others as one."""
    return unicodedata.normalize("NFC", name)


def quoted(name: str) -> str:
    """A class's name for a message about two that differ, though they may look the same."""
    return f"'{name}'" if name.isascii() else f"'{name}' ({name!a})"


# --- Markdown around text that may come from anyone: it is shown, and never acts.
#
# Names go into code spans, and texts of several lines into fenced blocks, where Markdown knows no
# links, no HTML and no emphasis; the marks around are longer than any run of them inside
# (CommonMark 0.31, sections 4.5 and 6.1).


# Licences as Hugging Face knows them: SPDX names in lower case, GNU's without "-only".
_LICENCES = re.compile(
    r"agpl-3\.0|apache-2\.0|bsd-[23]-clause|cc-by(-nc|-sa|-nc-sa)?-[234]\.0|"
    r"cc-by(-nd|-nc-nd)-[34]\.0|cc0-1\.0|cdla-(permissive-[12]|sharing-1)\.0|gpl-[23]\.0|isc|"
    r"lgpl-(2\.1|3\.0)|mit|mpl-2\.0|odbl|odc-by|pddl|unlicense"
)


def render_markdown(template: Path, **content: Any) -> str:
    """Fill in a jinja2 template of Markdown.

    All text from data and people has to go through the filters `code`, a name on one line, or
    `fenced`, a block of lines. `thousands` and `percent` are for numbers.
    """
    import jinja2

    environment = jinja2.Environment(  # noqa: S701  Markdown's escaping is `code` and `fenced`
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "fenced": fenced,
        "thousands": "{:,}".format,
        "percent": "{:.2%}".format,
    }
    return environment.get_template(template.name).render(content)


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


def licence_metadata(licence: str | None) -> dict[str, Any]:
    """A licence as keys of Hugging Face's front matter; `license_name` where it knows no name."""
    if licence is None:
        return {}
    name = licence.strip().lower().removesuffix("-only").removesuffix("-or-later")
    if _LICENCES.fullmatch(name):
        return {"license": name}
    # Hugging Face wants small letters, digits, dots and dashes.
    own = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")[:96]
    return {"license": "other"} | ({"license_name": own} if own else {})


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


# --- Where two trees of plain values differ.


def differences(wanted: Any, found: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, wanted, found) for each value that is not equal, in the order of `wanted`."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in wanted | found:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(wanted.get(key), found.get(key), inner)
    elif _tables(wanted) and _tables(found) and len(wanted) == len(found):
        for number, pair in enumerate(zip(wanted, found, strict=True)):
            yield from differences(*pair, f"{name}.{number}")
    elif wanted != found:
        yield name, wanted, found


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)
