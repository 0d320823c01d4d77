"""Where a store is kept: a URL of one of a few kinds, and the identity that it must have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ltd_pipe.errors import LocationError

__all__ = ["SCHEMES", "Location", "is_url", "local_location", "parse_location"]

SCHEMES = ("https", "http", "s3", "gs", "hf", "file", "memory")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.", re.DOTALL)
_PIN = "sha256="
_IDENTITY = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True)
class Location:
    """A store somewhere.

    Attributes
    ----------
    scheme : str
        One of `SCHEMES`.
    url : str
        Without a fragment or a slash at its end; it may hold a password or a signature.
    identity : str
        What the SHA-256 of the manifest must begin with; empty: anything.
    """

    scheme: str
    url: str
    identity: str = ""

    def __str__(self) -> str:
        """The URL as it may be shown: without user, password and query."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def folder(self) -> Path | None:
        """Where it is on this machine; None of a place elsewhere."""
        return Path(self.url.removeprefix("file://")) if self.scheme == "file" else None

    def file(self, name: str) -> str:
        """URL of one file of the store; a query, such as a signature, is repeated for each."""
        parts = urlsplit(self.url)
        path = f"{parts.path}/{name}"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    def pinned(self, identity: str) -> Location:
        """The same place, of which the whole identity is known."""
        return Location(self.scheme, self.url, identity)

    def require(self, identity: str) -> None:
        """Refuse another store than the one that was asked for.

        Raises
        ------
        LocationError
            When the identity is not the expected one.
        """
        if not identity.startswith(self.identity):
            raise LocationError(
                self,
                "holds another store than the one that was asked for",
                expected=f"identity {self.identity}",
                found=identity,
                remedy="It was replaced or tampered with: ask its publisher.",
            )


def is_url(text: str) -> bool:
    """Whether a text names a place elsewhere rather than a folder."""
    return _URL.match(text) is not None


def local_location(folder: Path, identity: str) -> Location:
    """A folder of this machine, as a place to fetch from."""
    return Location("file", f"file://{folder.resolve()}", identity)


def parse_location(text: str, identity: str = "") -> Location:
    """Read a URL such as `https://example.org/labels.zarr#sha256=9f2c…`.

    Parameters
    ----------
    text : str
    identity : str
        The identity, when it is given apart from the URL: at least 32 of its 64 digits, since
        anyone can make a store whose identity begins with a dozen given ones.

    Raises
    ------
    LocationError
        When it is no URL of a kind that we fetch from.
    """
    plain, _, fragment = text.partition("#")
    shown = re.split(r"[?]", plain)[0].rpartition("@")[2][:200]
    match = _URL.match(plain)
    scheme = match[1].lower() if match else ""
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES[:-1])
        raise LocationError(shown, "is no URL that stores are fetched from", expected=known)
    if not plain.isprintable() or " " in plain or "\\" in plain:
        raise LocationError(repr(shown), "has characters that no URL has")
    parts = _split(plain, shown)
    if scheme not in ("http", "https") and (parts.query or "@" in parts.netloc):
        raise LocationError(
            shown, f"{scheme}:// has no user and no query", remedy="See docs/sharing.md."
        )
    url = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), parts.query, ""))
    return Location(scheme, url, _identity(fragment, identity, shown))


def _split(plain: str, shown: str) -> SplitResult:
    try:
        parts = urlsplit(plain)
        _ = parts.port
    except ValueError as error:
        raise LocationError(shown, "is no valid URL") from error
    return parts


def _identity(fragment: str, identity: str, shown: str) -> str:
    if fragment and not fragment.startswith(_PIN):
        raise LocationError(
            shown, "after '#'", expected=f"{_PIN} and the identity", found=fragment[:20]
        )
    given = {text.lower() for text in (fragment.removeprefix(_PIN), identity) if text}
    if len(given) > 1:
        raise LocationError(shown, "two different identities are given for it")
    found = given.pop() if given else ""
    if found and not _IDENTITY.fullmatch(found):
        raise LocationError(
            shown,
            "the identity to expect",
            expected="the 64 hexadecimal digits that 'store info' prints, or 32 of them at least",
            found=repr(found)[:80],
        )
    return found
