"""Where two trees of plain values differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["differences"]


def differences(wanted: Any, found: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, wanted, found) for each value that is not equal, in the order of `wanted`.

    Parameters
    ----------
    wanted, found : Any
        What JSON can hold; None for what is absent.
    name : str
        Path of these two, such as `facts.software`.
    """
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
