"""Files of a store from a web server.

fsspec's own HTTP file system reads a range as a whole into memory, however much a server sends,
and does not tell a part from the whole file (fsspec issues 302 and 1140).
"""

from __future__ import annotations

import contextlib
import email.utils
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from ltd_pipe.errors import LtdPipeError, MissingError, StoreError, TransferError
from ltd_pipe.sharing.patience import InterruptedTransferError
from ltd_pipe.sharing.source import Body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltd_pipe.sharing.crew import Pulse
    from ltd_pipe.sharing.location import Location
    from ltd_pipe.sharing.patience import Patience

__all__ = ["WebSource"]

_BLOCK_BYTES = 2**20
_MAX_REDIRECTS = 5
_TRANSIENT = (408, 425, 429)
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class WebSource:
    """Reads with GET and, to go on after an interruption, Range.

    Parameters
    ----------
    location : Location
    patience : Patience
    jobs : int
        Connections that are kept open.
    """

    def __init__(self, location: Location, patience: Patience, jobs: int) -> None:
        self.location, self._patience = location, patience
        self._session = requests.Session()
        # Not compressed on the way: a part of a file could not be told from a part of that.
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "ltd-pipe"})
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=jobs, max_retries=0))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @contextlib.contextmanager
    def open(
        self, name: str, pulse: Pulse, *, offset: int, end: int | None, limit: int
    ) -> Iterator[Body]:
        """Ask for a file; see `Source.open`."""
        where = f"{self.location}/{name}"
        with _judging(where):
            response = self._ask(name, offset, pulse)
        with contextlib.closing(response):
            _require_sent(response, where)
            start, size = _extent(response, offset, where)
            _require_size(size, end, limit, where)
            yield Body(start, self._blocks(response, pulse, where))

    def _ask(self, name: str, offset: int, pulse: Pulse) -> requests.Response:
        url = self.location.file(name)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        for _ in range(_MAX_REDIRECTS + 1):
            # One wait for the connection, one for the answer.
            pulse.beat(2 * self._patience.stall_s + 1)
            # Followed by ourselves: requests would read the body of each redirection whole.
            response = self._session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=self._patience.stall_s,
                proxies=_proxies(url),
            )
            if not response.is_redirect:
                return response
            response.close()
            url = self._redirected(url, response.headers["location"])
        raise TransferError(self.location, f"redirects more than {_MAX_REDIRECTS} times")

    def _redirected(self, url: str, target: str) -> str:
        found = urljoin(url, target)
        allowed = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
        if urlsplit(found).scheme not in allowed:
            raise TransferError(
                self.location,
                "redirects to another kind of place",
                expected=" or ".join(f"{scheme}://" for scheme in allowed),
                found=f"{urlsplit(found).scheme}://",
            )
        return found

    def _blocks(self, response: requests.Response, pulse: Pulse, where: str) -> Iterator[bytes]:
        started, received = time.monotonic(), 0
        while True:
            pulse.beat(2 * self._patience.stall_s + 1)
            # What one receive gives: read() would wait until the block is full.
            with _judging(where):
                block = response.raw.read1(_BLOCK_BYTES)
            if not block:
                return
            received += len(block)
            yield block
            if time.monotonic() - started > self._patience.allowance(received):
                rate = self._patience.min_bytes_per_s
                raise InterruptedTransferError(f"slower than {rate} bytes per second")


def _require_sent(response: requests.Response, where: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in (404, 410):
        raise MissingError(where, f"no such file (HTTP {status})")
    if status in (401, 403):
        raise TransferError(
            where,
            f"access is refused (HTTP {status})",
            remedy="Is it public? A password may stand in ~/.netrc; an object store says "
            "this of a file that is not there, too.",
        )
    if status == 416:
        raise InterruptedTransferError("no such part (HTTP 416)", from_start=True)
    if status in _TRANSIENT or status >= 500:
        raise InterruptedTransferError(f"HTTP {status}", _retry_after(response))
    raise TransferError(where, f"cannot be fetched (HTTP {status})")


def _proxies(url: str) -> dict[str, str]:
    # Otherwise as the environment says, which requests looks up. No proxy reaches this machine.
    host = urlsplit(url).hostname or ""
    return {"no_proxy": host} if _LOOPBACK.fullmatch(host) else {}


def _extent(response: requests.Response, offset: int, where: str) -> tuple[int, int | None]:
    # Where the body begins in the file, and the file's size as far as the server tells.
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise TransferError(
            where,
            "the server sends it compressed",
            expected="the bytes of the file",
            found=encoding[:40],
            remedy="Switch compression off for the store's files.",
        )
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    if response.status_code == 200:
        return 0, size
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != offset:
        raise InterruptedTransferError("another part was sent than asked for", from_start=True)
    return offset, None if match[3] == "*" else int(match[3])


def _require_size(size: int | None, end: int | None, limit: int, where: str) -> None:
    if size is None:
        return
    if end is not None and size != end:
        raise StoreError(
            where,
            "is damaged at its source",
            expected=f"{end} bytes",
            found=size,
            remedy="Nothing was published. Ask the publisher.",
        )
    if size > limit:
        raise StoreError(where, "is too large", expected=f"at most {limit} bytes", found=size)


def _retry_after(response: requests.Response) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


@contextlib.contextmanager
def _judging(where: str) -> Iterator[None]:
    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        if isinstance(error, LtdPipeError):
            raise
        raise _judged(error, where) from error


_PROXY = requests.exceptions.ProxyError, urllib3.exceptions.ProxyError
_TIMEOUT = requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError
_TLS = requests.exceptions.SSLError, urllib3.exceptions.SSLError


def _judged(error: Exception, where: str) -> Exception:
    # By its kind: the text of these errors holds the URL, and with it passwords and signatures.
    if isinstance(error, _TLS):
        remedy = "REQUESTS_CA_BUNDLE may name the certificates to trust."
        return TransferError(where, "no TLS connection that can be trusted", remedy=remedy)
    # Invalid URLs, of the server or of a proxy.
    if isinstance(error, ValueError):
        return TransferError(where, f"cannot be asked for ({type(error).__name__})")
    reason = "the connection failed"
    if isinstance(error, _PROXY):
        reason = "the proxy cannot be reached or refuses"
    elif isinstance(error, _TIMEOUT):
        reason = "nothing came in time"
    elif "IncompleteRead" in repr(error):
        reason = "the connection ended in the middle of the file"
    return InterruptedTransferError(reason)
