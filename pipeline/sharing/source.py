"""What files of a store are read from, wherever that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from ltd_pipe.sharing.crew import Pulse
    from ltd_pipe.sharing.location import Location
    from ltd_pipe.sharing.patience import Patience

__all__ = ["Body", "Source", "open_source"]


@dataclass(frozen=True)
class Body:
    """Bytes of a file on their way.

    Attributes
    ----------
    offset : int
        Where in the file the first of them is: 0 when the server does not send parts.
    blocks : iterator of bytes
        Some at a time. They end where the file ends; when the connection ends before, or is
        too slow, InterruptedTransferError is raised.
    """

    offset: int
    blocks: Iterator[bytes]


class Source(Protocol):
    """Opens files of one store; several threads may do so at the same time."""

    location: Location

    def open(
        self, name: str, pulse: Pulse, *, offset: int, end: int | None, limit: int
    ) -> AbstractContextManager[Body]:
        """Ask for a file.

        Parameters
        ----------
        name : str
            Relative to the store; from the format, or checked by `labels.manifest`.
        pulse : Pulse
            Told before each wait how long it may take.
        offset : int
            The first byte that is wanted. The source may begin before it.
        end : int, optional
            The size that the file must have, if it is known.
        limit : int
            A file of more bytes is refused, if possible before it is sent.

        Raises
        ------
        InterruptedTransferError
            When asking again may help.
        MissingError
            When there is no such file.
        TransferError
            When asking again would not help.
        """

    def close(self) -> None:
        """Close the connections."""


def open_source(location: Location, patience: Patience, jobs: int) -> Source:
    """What reads from a location, in at most `jobs` threads at a time."""
    if location.scheme in ("http", "https"):
        from ltd_pipe.sharing.web import WebSource

        return WebSource(location, patience, jobs)
    from ltd_pipe.sharing.bucket import BucketSource

    return BucketSource(location, patience)
