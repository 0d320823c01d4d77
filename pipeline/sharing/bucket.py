"""Files of a store from object storage, through fsspec."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ltd_pipe.errors import MachineError, MissingError, StoreError, TransferError, install_extra
from ltd_pipe.sharing.patience import InterruptedTransferError
from ltd_pipe.sharing.source import Body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltd_pipe.sharing.crew import Pulse
    from ltd_pipe.sharing.location import Location
    from ltd_pipe.sharing.patience import Patience

__all__ = ["BucketSource", "open_filesystem"]

# One request for each usual chunk, and the memory that each thread takes.
_PIECE_BYTES = 16 * 2**20
# Packages below fsspec's file systems: what they raise is about the network, or about access.
_NETWORK_PACKAGES = (
    "aiobotocore",
    "aiohttp",
    "botocore",
    "gcsfs",
    "google",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "requests",
    "urllib3",
)


def open_filesystem(location: Location, patience: Patience, *, anonymous: bool = False) -> Any:
    """The fsspec file system of a location.

    Parameters
    ----------
    location : Location
    patience : Patience
    anonymous : bool
        Without credentials, as public buckets allow.

    Raises
    ------
    MachineError
        When the package for it is not installed.
    """
    import fsspec

    settings: dict[str, Any] = {}
    if location.scheme == "s3":
        # We ask again by ourselves, where what has arrived is kept.
        seconds = {"connect_timeout": patience.stall_s, "read_timeout": patience.stall_s}
        settings = {"anon": anonymous, "config_kwargs": {"retries": {"max_attempts": 0}, **seconds}}
    elif location.scheme == "gs" and anonymous:
        settings = {"token": "anon"}
    try:
        kind = fsspec.get_filesystem_class(location.scheme)
    except ImportError as error:
        raise MachineError(
            location,
            f"{location.scheme}:// needs a package that is not installed",
            remedy=install_extra(location.scheme),
        ) from error
    # Not from fsspec's cache of them, whose settings would be another caller's.
    filesystem = kind(skip_instance_cache=True, use_listings_cache=False, **settings)
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1
    return filesystem


class BucketSource:
    """Reads pieces of objects.

    Parameters
    ----------
    location : Location
    patience : Patience
    """

    def __init__(self, location: Location, patience: Patience) -> None:
        self.location, self._patience = location, patience
        self._filesystem = open_filesystem(location, patience)
        self._anonymous = False
        self._base = self._filesystem._strip_protocol(location.url).rstrip("/")

    def close(self) -> None:
        """Nothing is to be closed: fsspec ends its connections with the process."""

    @contextlib.contextmanager
    def open(
        self, name: str, pulse: Pulse, *, offset: int, end: int | None, limit: int
    ) -> Iterator[Body]:
        """Ask for a file; see `Source.open`."""
        if end is None:
            pulse.beat(self._patience.allowance(0))
            end = int(self._call("info", name)["size"])
            if end > limit:
                raise StoreError(
                    f"{self.location}/{name}",
                    "is too large",
                    expected=f"at most {limit} bytes",
                    found=end,
                )
        yield Body(offset, self._blocks(name, pulse, offset, end))

    def _blocks(self, name: str, pulse: Pulse, offset: int, end: int) -> Iterator[bytes]:
        while offset < end:
            stop = min(offset + _PIECE_BYTES, end)
            pulse.beat(self._patience.allowance(stop - offset) + 1)
            try:
                block: bytes = self._call("cat_file", name, start=offset, end=stop)
            except InterruptedTransferError:
                # A part that is not there is no lost connection, and each package says so
                # in its own way.
                self._require_size(name, end, pulse)
                raise
            if len(block) != stop - offset:
                self._require_size(name, end, pulse)
                raise InterruptedTransferError(f"{len(block)} of {stop - offset} bytes were sent")
            offset += len(block)
            yield block

    def _require_size(self, name: str, expected: int, pulse: Pulse) -> None:
        pulse.beat(self._patience.allowance(0))
        size = int(self._call("info", name)["size"])
        if size != expected:
            raise StoreError(
                f"{self.location}/{name}",
                "is damaged at its source",
                expected=f"{expected} bytes",
                found=size,
                remedy="Nothing was published. Ask the publisher.",
            )

    def _call(self, method: str, name: str, **settings: Any) -> Any:
        try:
            return getattr(self._filesystem, method)(f"{self._base}/{name}", **settings)
        except Exception as error:  # each package has its own, see _judged
            if _lacks_credentials(error) and not self._anonymous:
                self._anonymous = True
                self._filesystem = open_filesystem(self.location, self._patience, anonymous=True)
                return self._call(method, name, **settings)
            raise _judged(error, f"{self.location}/{name}") from error


def _lacks_credentials(error: Exception) -> bool:
    return type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError")


_MISSING = (
    "EntryNotFoundError",
    "FileNotFoundError",
    "IsADirectoryError",
    "NotADirectoryError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
)
_CREDENTIALS = (
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
)


def _judged(error: Exception, where: str) -> Exception:
    # By its kind: texts of these errors may hold signed URLs.
    kind = type(error).__name__
    if kind in _MISSING:
        return MissingError(where, f"no such file ({kind})")
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = isinstance(error, PermissionError) or status in (401, 403)
    if refused or kind in _CREDENTIALS:
        return TransferError(
            where,
            f"access is refused ({kind})",
            remedy="Check the credentials in your environment, and that they may read it.",
        )
    network = type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES
    if network or isinstance(error, (OSError, TimeoutError)):
        return InterruptedTransferError(f"the connection failed ({kind})")
    return error
