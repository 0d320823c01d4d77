"""Text from anyone, made safe to show."""

from __future__ import annotations

import unicodedata

__all__ = ["nfc", "one_line", "printable", "quoted"]


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
