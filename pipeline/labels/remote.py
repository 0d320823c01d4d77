"""Stores elsewhere: https://, s3://, gs://, hf:// and file://, moved by obstore.

The manifest comes first, the metadata next; both bound what may follow. Each chunk is hashed
while it arrives and never longer than the metadata say. Nothing has the store's name before all
of it is verified.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import glob
import hashlib
import io
import netrc
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit, urlunsplit

import obstore
import obstore.exceptions
import obstore.store

from ltd_pipe.errors import BusyError, LocationError, MissingError, StoreError, TransferError
from ltd_pipe.labels.derive import (
    DerivedStore,
    kept_arrays,
    require_same_places,
    rows_of_range,
    subset,
)
from ltd_pipe.labels.files import require_replaceable
from ltd_pipe.labels.format import parse_metadata
from ltd_pipe.labels.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    StoreFolder,
    parse_manifest,
)
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.provenance import sha256_file
from ltd_pipe.publish import exclusive, replace_tree, require_free, staged, writing

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

    from ltd_pipe.labels.layout import ArrayLayout

    # Called with the bytes of the chunks that are there, and with those there will be.
    Progress = Callable[[int, int], None]

_Result = TypeVar("_Result")

_SCHEMES = ("https", "http", "s3", "gs", "hf", "file")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.", re.DOTALL)
_IDENTITY = re.compile(r"[0-9a-f]{32,64}")
_HUB = re.compile(
    r"hf://((?:datasets/|spaces/)?(?!datasets/|spaces/)[^/@]+/[^/@]+)"
    r"(?:@(refs/(?:convert|pr)/[^/]+|[^/@]+))?(/.*)?"
)
_HUB_URL = "https://huggingface.co"
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_AWS_URL = "https://s3.amazonaws.com"

# A file whose body broke off, or whose hash is wrong, is fetched anew that often in all.
_ATTEMPTS = 3
_BLOCK_BYTES = 2**20
# A server may not hold a connection for ever by a byte now and then.
_MIN_BYTES_PER_S = 2**13
_RETRY_S = 120.0
_MAX_PAGE_BYTES = 2**29
# Beside what the format implies: README.md, LICENSE, and what else a publisher may add.
_MAX_EXTRA_FILES = 16
_MAX_EXTRA_BYTES = 4 * 2**20
_MAX_NAME = 200
_ARMOUR = b"-----BEGIN SSH SIGNATURE-----"
_ALWAYS = ("labels", "sample_hash")
_LOOK_AGAIN_S = 0.2
_LAST_CALLS_S = 0.1


@dataclass(frozen=True)
class TransferOptions:
    """How files are fetched.

    Attributes
    ----------
    jobs : int
        Files at the same time.
    timeout_s : float
        Seconds without a byte after which a request has failed.
    max_retries : int
        Of each request, on lost connections, timeouts, 5xx and 429.
    backoff_s : float
        The first pause between them; it grows.
    """

    jobs: int = 8
    timeout_s: float = 30.0
    max_retries: int = 5
    backoff_s: float = 0.5


@dataclass(frozen=True)
class Location:
    """Where a store is.

    The URL has no fragment and no slash at its end; it may hold a password or a signature. The
    identity is what the SHA-256 of the manifest must begin with; empty: anything.
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
        if self.scheme != "file":
            return None
        return Path(os.fsdecode(unquote_to_bytes(self.url.removeprefix("file://"))))


def is_url(text: str) -> bool:
    """Whether a text names a place elsewhere rather than a folder."""
    return _URL.match(text) is not None


def _without_secrets(text: str) -> str:
    """What of a URL may be shown; one of which that cannot be told is refused."""
    base, *behind = re.split("[?#]", text, maxsplit=1)
    if any("@" in part for part in behind):
        raise LocationError(
            "URL",
            "has an @ after a ? or a #",
            remedy="Write # as %23 and ? as %3F in a user or a password, @ as %40 in a query.",
        )
    return base.rpartition("@")[2][:200]


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
    shown = _without_secrets(text)

    def refusal(what: str, **fields: str) -> LocationError:
        return LocationError(shown, what, **fields)

    match = _URL.match(plain)
    scheme = match[1].lower() if match else ""
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise refusal("is no URL that stores are fetched from", expected=known)
    if not plain.isprintable() or any(text in plain for text in (" ", "\\", "%00")):
        raise LocationError(repr(shown), "has characters that no URL has")
    try:
        parts = urlsplit(plain)
        _ = parts.port
    except ValueError as error:
        raise refusal("is no valid URL") from error
    if scheme not in ("http", "https") and (parts.query or "@" in parts.netloc):
        raise refusal(f"{scheme}:// has no user and no query", remedy="See docs/sharing.md.")
    url = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), parts.query, ""))
    if scheme == "hf" and not _HUB.fullmatch(url):
        expected = "hf://datasets/user/name[@revision][/path]"
        raise refusal("names no repository", expected=expected)
    if fragment and not fragment.startswith("sha256="):
        raise refusal("after '#'", expected="sha256= and the identity", found=fragment[:20])
    given = {text.lower() for text in (fragment.removeprefix("sha256="), identity) if text}
    if len(given) > 1:
        raise refusal("two different identities are given for it")
    wanted = given.pop() if given else ""
    if wanted and not _IDENTITY.fullmatch(wanted):
        expected = "the 64 hexadecimal digits that 'store info' prints, or 32 of them at least"
        raise refusal("the identity to expect", expected=expected, found=repr(wanted)[:80])
    return Location(scheme, url, wanted)


# --- opening a place with obstore ---------------------------------------------------------------

# Without credentials a bucket is read as a public one, and if that is refused with what a machine
# in the cloud is allowed: to ask for that takes seconds where nobody answers.
_PUBLIC_FIRST: tuple[dict[str, Any], ...] = ({"skip_signature": True}, {})


def _object_stores(location: Location, options: TransferOptions) -> Iterator[ObjectStore]:
    """What reads from a location: the first of these that is given access."""
    retry: RetryConfig = {
        "max_retries": options.max_retries,
        "retry_timeout": timedelta(seconds=_RETRY_S),
        "backoff": {"init_backoff": timedelta(seconds=options.backoff_s)},
    }
    parts = urlsplit(location.url)
    place: dict[str, Any] = {"prefix": parts.path.strip("/"), "retry_config": retry}
    if location.folder is not None:
        if not location.folder.is_dir():
            raise MissingError(f"{location}/{MANIFEST}", "no such file")
        yield obstore.store.LocalStore(location.folder)
    elif location.scheme == "gs":
        client = _client("", options)
        for access in _google_access():
            yield obstore.store.GCSStore(parts.netloc, client_options=client, **place, **access)
    elif location.scheme == "s3":
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        endpoint = next(filter(None, map(os.environ.get, names)), "")
        client = _client(endpoint, options)
        for access in _amazon_access(location):
            known = "region" in getattr(access.get("credential_provider"), "config", ())
            if not (known or endpoint or os.environ.keys() & {"AWS_REGION", "AWS_DEFAULT_REGION"}):
                place["region"] = _bucket_region(parts.netloc, options.timeout_s)
            yield obstore.store.S3Store(parts.netloc, client_options=client, **place, **access)
    else:
        url, headers = _web_url(location)
        client = _client(url, options) | {"default_headers": headers}
        yield obstore.store.HTTPStore(url, client_options=client, retry_config=retry)


def _client(url: str, options: TransferOptions) -> ClientConfig:
    wait = timedelta(seconds=options.timeout_s)
    client: ClientConfig = {
        "allow_http": url.startswith("http://"),
        "connect_timeout": wait,
        "read_timeout": wait,
        # Of the whole file: whether bytes come is what we look at.
        "timeout": timedelta(days=1),
        "user_agent": "ltd-pipe",
    }
    if _LOOPBACK.fullmatch(urlsplit(url).hostname or ""):
        # The environment's proxies do not reach this machine. obstore cannot be told to use none,
        # but one from which this machine is excluded.
        client |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": "localhost,127.0.0.0/8,::1"}
    bundles = {os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")}
    try:
        trusted = [Path(path).read_bytes() for path in bundles if path]
    except OSError as error:
        raise MissingError(error.filename, "holds no certificates that can be read") from error
    if trusted:
        client["root_certificate"] = b"\n".join(trusted)
    return client


def _web_url(location: Location) -> tuple[str, dict[str, str]]:
    """The URL without a password, and the header that says who asks."""
    if match := _HUB.fullmatch(location.url):
        from huggingface_hub import get_token

        home = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB_URL
        url = f"{home}/{match[1]}/resolve/{quote(match[2] or 'main', safe='')}{match[3] or ''}"
        # A mirror gets no token of theirs.
        token = get_token() if home == _HUB_URL else None
        return url, {"Authorization": f"Bearer {token}"} if token else {}
    parts = urlsplit(location.url)
    user, found, place = parts.netloc.rpartition("@")
    url = urlunsplit((parts.scheme, place, parts.path, parts.query, ""))
    name, _, password = map(unquote, user.partition(":"))
    if not found:
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        try:
            entry = netrc.netrc(path).authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            entry = None
        if entry is None:
            return url, {}
        name, password = entry[0], entry[2] or ""
    pair = base64.b64encode(f"{name}:{password}".encode()).decode()
    return url, {"Authorization": f"Basic {pair}"}


def _google_access() -> Sequence[dict[str, Any]]:
    kinds = ("GOOGLE_APPLICATION", "GOOGLE_SERVICE", "GOOGLE_BEARER", "GOOGLE_SKIP")
    gcloud = Path.home() / ".config/gcloud/application_default_credentials.json"
    named = any(name.startswith(kinds) for name in os.environ)
    return [{}] if named or gcloud.exists() else _PUBLIC_FIRST


def _amazon_access(location: Location) -> Sequence[dict[str, Any]]:
    if os.environ.keys() & {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"}:
        return [{}]
    try:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return _PUBLIC_FIRST
    # It alone knows profiles and single sign-on.
    try:
        return [{"credential_provider": Boto3CredentialProvider()}]
    except ValueError:  # it has found nothing
        return [{"skip_signature": True}]
    except BotoCoreError as error:
        kind = type(error).__name__
        raise TransferError(location, f"AWS's settings cannot be used ({kind})") from error


def _bucket_region(bucket: str, timeout_s: float) -> str:
    """Where a bucket of AWS is, which its clients have to know and anyone may ask."""
    request = urllib.request.Request(f"{_AWS_URL}/{bucket}", method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            headers = answer.headers
    except urllib.error.HTTPError as error:  # "forbidden" and "elsewhere" name it, too
        headers = error.headers
    except OSError:
        headers = {}
    return str(headers.get("x-amz-bucket-region") or "us-east-1")


# --- reading from it -----------------------------------------------------------------------------


class _AnswerError(TransferError):
    # The server has answered, for good, and not with the file.
    pass


class _AccessError(_AnswerError):
    pass


class _InterruptedError(TransferError):
    # In the middle of a file. obstore goes on there by itself only where the server names the
    # file's version (ETag); requests as such it has repeated already.
    pass


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    # None: nobody knows it before the file is there.
    sha256: str | None
    # Whether it has this size, or at most.
    exact: bool = True


class RemoteStore(AbstractContextManager["RemoteStore"]):
    """A store of which only the manifest was fetched; after `survey` all but the chunks."""

    layouts: dict[str, ArrayLayout]
    small: dict[str, bytes]

    def __init__(self, location: Location, options: TransferOptions | None = None) -> None:
        self.location, self._options = location, options or TransferOptions()
        self._runner = asyncio.Runner()
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        """End what is still under way."""
        self._runner.close()
        # obstore's threads need the interpreter once more after each call that ended or was
        # cancelled; one that is gone by then makes them abort the process.
        time.sleep(_LAST_CALLS_S)

    def survey(self) -> None:
        """Fetch everything but the chunks, and refuse a store that is not one."""
        small: dict[str, bytes] = {}

        def read(name: str, limit: int) -> bytes:
            # Looked for in the text, since a hostile manifest is not yet worth parsing.
            pattern = rb"^([0-9a-f]{64})  " + re.escape(name.encode()) + rb"$"
            line = re.search(pattern, self._manifest, re.MULTILINE)
            if line is None:
                raise StoreError(self.location, f"{name} is not listed in {MANIFEST}")
            small[name] = self._read(name, limit, line[1].decode())
            return small[name]

        _, self.layouts = parse_metadata(str(self.location), read)
        implied = 1 + sum(1 + layout.num_chunks for layout in self.layouts.values())
        listed = self._manifest.count(b"\n")
        if not implied <= listed <= implied + _MAX_EXTRA_FILES:
            raise StoreError(
                self.location,
                f"number of files in {MANIFEST}",
                expected=f"{implied} as the metadata imply, and at most {_MAX_EXTRA_FILES} others",
                found=listed,
                remedy="If a newer ltd-pipe made it, with arrays that this one does not know, "
                "upgrade ltd-pipe.",
            )
        self._hashes = parse_manifest(self._manifest, self.location)
        for name in self._extra_names(set(small)):
            read(name, _MAX_EXTRA_BYTES)
        small[MANIFEST] = self._manifest
        if signature := self.signature():
            small[SIGNATURE] = signature
        self.small = small

    def signature(self) -> bytes | None:
        """The manifest's signature, where there is one."""
        # Left out where an object store refuses access to what is not there, and where a web
        # server has a page for it, of whatever kind: who could put nonsense there could leave it
        # out as well. A connection that fails says nothing of it.
        with contextlib.suppress(MissingError, StoreError, _AnswerError):
            signature = self._read(SIGNATURE, MAX_SIGNATURE_BYTES)
            return signature if signature.startswith(_ARMOUR) else None
        return None

    def _extra_names(self, metadata: set[str]) -> list[str]:
        # The names that the format does not imply; all that it implies must be there.
        implied = metadata | {file.name for file in self.chunks(self.layouts)}
        extra = sorted(self._hashes.keys() - implied)
        for name in extra:
            if len(name) > _MAX_NAME:
                raise StoreError(self.location, f"{name[:_MAX_NAME]}… is too long a name")
            above = {name[: match.start()] for match in re.finditer("/", name)}
            below = any(other.startswith(f"{name}/") for other in self._hashes)
            if below or above & self._hashes.keys():
                raise StoreError(self.location, f"{name} is listed as a file and as a folder")
        return extra

    def chunks(self, names: Iterable[str], numbers: Iterable[int] | None = None) -> Iterator[_File]:
        """Chunk files of some arrays, those of the same samples one after the other."""
        layouts = [self.layouts[name] for name in names]
        for number in range(layouts[0].num_chunks) if numbers is None else numbers:
            for layout in layouts:
                name = layout.chunk_name(number)
                if name not in self._hashes:
                    raise StoreError(self.location, f"{name} is not listed in {MANIFEST}")
                yield _File(name, layout.file_bytes, self._hashes[name])

    def fetch(self, files: Iterable[_File], target: Path, progress: Progress | None = None) -> Path:
        """Fetch all but the chunks, and these files, several at a time.

        They come into a folder beside the target, in which it is put together; what an interrupted
        run has left there is kept where it is whole.
        """
        state = target.with_name(f".{target.name}.{self.identity[:16]}.pull")
        # Of another store, and never those for `labels.zarr` where the target is `labels`.
        digits = "[0-9a-f]" * 16
        for other in target.parent.glob(f".{glob.escape(target.name)}.{digits}.pull"):
            if other != state:
                shutil.rmtree(other, ignore_errors=True)
        wanted = list(files)
        missing = (file.size for file in wanted if not (state / file.name).exists())
        require_free(target.parent, sum(missing))
        for name, content in self.small.items():
            with staged(state / name) as beside:
                beside.write_bytes(content)
        total, done, waiting = sum(file.size for file in wanted), 0, iter(wanted)

        async def worker() -> None:
            nonlocal done
            for file in waiting:
                await self._fetch_file(file, state / file.name)
                done += file.size
                if progress is not None:
                    progress(done, total)

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._options.jobs):
                    group.create_task(worker())

        try:
            self._runner.run(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return state

    def _open(self) -> None:
        """Choose what reads from the location, and fetch the manifest with it."""
        stores = _object_stores(self.location, self._options)
        self._store = next(stores)
        while True:
            try:
                self._manifest = self._read(MANIFEST, MAX_MANIFEST_BYTES)
                break
            except _AccessError:
                if (store := next(stores, None)) is None:
                    raise
                self._store = store
        self.identity = hashlib.sha256(self._manifest).hexdigest()
        if not self.identity.startswith(self.location.identity):
            raise LocationError(
                self.location,
                "holds another store than the one that was asked for",
                expected=f"identity {self.location.identity}",
                found=self.identity,
                remedy="It was replaced or tampered with: ask its publisher.",
            )

    def _read(self, name: str, limit: int, sha256: str | None = None) -> bytes:
        sink = io.BytesIO()
        self._runner.run(self._receive(_File(name, limit, sha256, exact=False), sink))
        return sink.getvalue()

    async def _fetch_file(self, file: _File, target: Path) -> None:
        if await asyncio.to_thread(_is_whole, target, file):
            return
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            part.unlink(missing_ok=True)
            with part.open("xb") as handle:
                await self._receive(file, handle)
                handle.flush()
                # Or a power cut after the store got its name could leave zeros in it.
                await asyncio.to_thread(os.fsync, handle.fileno())
            os.replace(part, target)

    async def _receive(self, file: _File, sink: IO[bytes]) -> None:
        """Write a file into a sink; from its start again when it broke off or is damaged."""
        for attempt in range(1, _ATTEMPTS + 1):
            sink.seek(0)
            sink.truncate()
            try:
                found = await self._receive_once(file, sink)
                if file.sha256 is None or file.sha256 == found:
                    return
                if attempt == _ATTEMPTS:
                    raise StoreError(
                        f"{self.location}/{file.name}",
                        "is not the file that its manifest lists",
                        expected=f"SHA-256 {file.sha256[:12]}…",
                        found=f"{found[:12]}…",
                        remedy="It is damaged, or the store was replaced meanwhile. "
                        "Nothing was published.",
                    )
            except _InterruptedError:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(self._options.backoff_s * 2**attempt)

    async def _receive_once(self, file: _File, sink: IO[bytes]) -> str:
        where, digest, received = f"{self.location}/{file.name}", hashlib.sha256(), 0

        def take(block: bytes) -> None:
            sink.write(block)
            digest.update(block)

        try:
            async with asyncio.timeout(_RETRY_S + 2 * self._options.timeout_s):
                result = await self._ask(file.name, where)
        except _OBSTORE_ERRORS as error:
            raise _explained(error, where) from None
        size = result.meta["size"]
        if size > file.size or (file.exact and size < file.size):
            raise StoreError(
                where,
                "is damaged at its source" if file.exact else "is too large",
                expected=f"{file.size} bytes" if file.exact else f"at most {file.size} bytes",
                found=size,
                remedy="Nothing was published. Ask the publisher.",
            )
        if (encoding := result.attributes.get("Content-Encoding", "identity")) != "identity":
            raise _AnswerError(
                where,
                "the server sends it compressed",
                expected="the bytes of the file",
                found=encoding[:40],
                remedy="Switch compression off for the store's files.",
            )
        blocks = result.stream(min_chunk_size=_BLOCK_BYTES)
        allowed_s = self._options.timeout_s + min(size, _BLOCK_BYTES) / _MIN_BYTES_PER_S
        try:
            while received < size:
                async with asyncio.timeout(allowed_s):
                    block = await anext(blocks, b"")
                received += len(block)
                if not block or received > size:
                    raise _InterruptedError(where, "another size was sent than announced")
                await asyncio.to_thread(take, block)
        except _OBSTORE_ERRORS as error:
            raise _explained(error, where, _InterruptedError) from None
        return digest.hexdigest()

    async def _ask(self, name: str, where: str) -> obstore.GetResult:
        # obstore 0.12 keeps the page that comes with an error in memory, however long it is: a
        # hostile server could fill all of it.
        asking, before = asyncio.ensure_future(obstore.get_async(self._store, name)), _resident()
        try:
            while not (await asyncio.wait([asking], timeout=0.1))[0]:
                if _resident() - before > _MAX_PAGE_BYTES:
                    asking.cancel()
                    await asyncio.sleep(0.5)  # as in `close`; there is much to give back
                    raise TransferError(where, "the server's answer does not end")
            return asking.result()
        finally:
            asking.cancel()


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# In obstore's text; what another attempt does not mend.
_PERMANENT = (
    (
        _AnswerError,
        "MissingContentLength",
        "the server does not say how long it is (Content-Length)",
        "",
    ),
    (
        _AnswerError,
        "error following redirect|status: 30.|builder error",
        "is redirected for ever, or to another kind of place",
        "From https:// only https:// may follow, from http:// either.",
    ),
    (
        TransferError,
        "BareRedirect",
        "the bucket is in another region",
        "Name it in AWS_REGION.",
    ),
    (
        TransferError,
        "InvalidCertificate",
        "no TLS connection that can be trusted",
        "REQUESTS_CA_BUNDLE may name certificates to trust besides the system's.",
    ),
)
_OBSTORE_ERRORS = obstore.exceptions.BaseError, FileNotFoundError, TimeoutError
_REFUSED = obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError


def _explained(
    error: Exception, where: str, otherwise: type[TransferError] = TransferError
) -> Exception:
    # In words of our own: obstore's text holds the URL, and with it passwords and signatures.
    if isinstance(error, FileNotFoundError):
        return MissingError(where, "no such file")
    if isinstance(error, _REFUSED):
        return _AccessError(
            where,
            "access is refused",
            remedy="Is it public? docs/sharing.md says where credentials are looked for, such as "
            "~/.netrc; an object store says this of a file that is not there, too.",
        )
    text = str(error)
    for kind, pattern, what, remedy in _PERMANENT:
        if re.search(pattern, text):
            return kind(where, what, remedy=remedy)
    reason = "the connection failed"
    if isinstance(error, TimeoutError) or re.search("kind: Timeout|TimedOut", text):
        reason = "nothing came in time"
    elif status := re.search(r"status: (\d{3})\b", text):
        reason = f"the server answers HTTP {status[1]}"
        if not re.fullmatch("5..|408|429", status[1]):
            return _AnswerError(where, reason)
    return otherwise(
        where, reason, remedy="Run it again later: what is whole is not fetched again."
    )


def _is_whole(target: Path, file: _File) -> bool:
    with contextlib.suppress(OSError):
        same_size = not target.is_symlink() and target.stat().st_size == file.size
        if same_size and sha256_file(target) == file.sha256:
            return True
        target.unlink()
    return False


# --- the cache -----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where fetched stores are kept: `ltd-pipe/stores` in the user's cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    root = Path(named) if named.startswith("/") else Path.home() / ".cache"
    return root / "ltd-pipe" / "stores"


def find_cached(identity: str, *, proven: bool = False) -> Path | None:
    """The store of an identity when it is in the cache; None, too, when it is damaged there.

    As far as opening it tells, or, `proven`, by the hash of each file. It stays where it is:
    whoever fetches it again replaces it. One that is sound and yet cannot be opened, for want of
    memory, say, is a StoreError.
    """
    folder = cache_folder() / identity
    if not re.fullmatch("[0-9a-f]{64}", identity) or not (folder / MANIFEST).is_file():
        return None
    try:
        proven |= SoftLabels.open(folder).identity != identity
    except StoreError:
        if not _is_damaged(folder):
            raise
        return None
    return None if proven and _is_damaged(folder) else folder


def _is_damaged(folder: Path) -> bool:
    """Whether a file of a store in the cache is gone, or another than was fetched."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != folder.name:
            return True
        hashes = parse_manifest(manifest, folder).items()
        return any(sha256_file(folder / name) != sha256 for name, sha256 in hashes)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return True


def cached_store(
    location: Location,
    options: TransferOptions | None = None,
    *,
    force: bool = False,
    proven: bool = False,
    signed: bool = False,
    progress: Progress | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Path:
    """The folder of a store that is elsewhere, fetched unless it is in the cache.

    Never write to it. Of a store that is in the cache only the manifest and its signature are
    fetched, and not even these when the location names the whole identity, unless it is to be
    `signed` and is not. Processes that want the same store at the same time wait for the one that
    fetches it, which `waiting` is told in a sentence. `force` fetches it again, and `proven` where
    a file in the cache has another hash than it should; `progress` is called with the bytes of the
    chunks that are there, and of all. Errors are those of `pull_store`.
    """
    with _open_nearest(location, options, force=force, proven=proven, signed=signed) as remote:
        target = cache_folder() / remote.identity
        while remote.location.folder != target:
            try:
                with exclusive(target):
                    # Another process may have had it in the meantime.
                    if force or find_cached(remote.identity, proven=proven) is None:
                        remote.survey()
                        replace_tree(_pull(remote, target, progress), target)
                    break
            except BusyError as error:
                if waiting is not None:
                    waiting(f"{error.what}; waiting for it")
                    waiting = None
                time.sleep(_LOOK_AGAIN_S)
        return target


def resolve_store(
    named: str,
    transfer: Callable[[str], AbstractContextManager[Progress]],
    waiting: Callable[[str], None],
    *,
    signed: bool = False,
) -> Path:
    """The folder of a store that is named by its folder or by a URL, through the cache.

    `transfer` gives a bar with this description; see `cached_store` for the others.
    """
    if not is_url(named):
        return Path(named)
    location = parse_location(named)
    with transfer(f"fetch {location}") as progress:
        return cached_store(location, signed=signed, progress=progress, waiting=waiting)


def _open_nearest(
    location: Location,
    options: TransferOptions | None,
    *,
    force: bool,
    proven: bool = False,
    signed: bool = False,
) -> RemoteStore:
    """The store at a location, read from the cache when it is there and `force` is false."""
    if force:
        return RemoteStore(location, options)
    found = find_cached(location.identity, proven=proven)
    if found is None or (signed and not (found / SIGNATURE).is_file()):
        with contextlib.ExitStack() as opened:
            remote = opened.enter_context(RemoteStore(location, options))
            if (found := find_cached(remote.identity, proven=proven)) is None:
                opened.pop_all()
                return remote
            # A store is signed, and signed anew, without becoming another one.
            held, signature = found / SIGNATURE, remote.signature()
            if signature and not (held.is_file() and held.read_bytes() == signature):
                with staged(held) as beside:
                    beside.write_bytes(signature)
    return RemoteStore(Location("file", found.as_uri(), found.name), options)


def _from_nearest(
    location: Location,
    options: TransferOptions | None,
    work: Callable[[RemoteStore], _Result],
    *,
    force: bool,
) -> _Result:
    """Work with the copy in the cache; without one, or when it proves damaged, with the origin."""
    with _open_nearest(location, options, force=force) as remote:
        try:
            return work(remote)
        except StoreError:
            copy = cache_folder() / remote.identity
            if remote.location.folder != copy or force or not _is_damaged(copy):
                raise
    return _from_nearest(location, options, work, force=True)


# --- whole stores and parts of them --------------------------------------------------------------


def pull_store(
    location: Location,
    target: Path,
    options: TransferOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Fetch a store, verify it while it comes, and give it its name by one rename.

    Interrupted, it goes on when it is called again: files that are whole by their SHA-256 are
    kept.

    Parameters
    ----------
    location : Location
    target : Path
    options : TransferOptions, optional
    force : bool
        Replace a store that stands there, and do not take it from the cache.
    progress : callable, optional
        Called with the bytes of the chunks that are there, and of all.

    Raises
    ------
    LocationError
        When it is another store than the location says.
    StoreError
        When a byte is not what the manifest says, or the whole is no store.
    MissingError, TransferError
        When a file cannot be had. What is whole is kept for the next time.
    BusyError, WriteError
        When another process fetches to this target; when the disk refuses, or cannot hold it.
    """
    require_replaceable(target, replace=force)

    def fetch(remote: RemoteStore) -> None:
        remote.survey()
        with exclusive(target):
            state = _pull(remote, target, progress)
            require_replaceable(target, replace=force)  # it may be there since
            replace_tree(state, target)

    _from_nearest(location, options, fetch, force=force)


def _pull(remote: RemoteStore, target: Path, progress: Progress | None) -> Path:
    """A folder with the whole store, beside its target."""
    state = remote.fetch(remote.chunks(remote.layouts), target, progress)
    # As its reader will; the hash of each file says that it is the publisher's, not that it is
    # a store.
    SoftLabels.open(state)
    return state


def pull_excerpt(
    location: Location,
    target: Path,
    rows: tuple[int | None, int | None],
    arrays: Sequence[str] | None = None,
    options: TransferOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """Fetch a part of a store as a store of its own: the one that `subset` would give.

    All labels and sample hashes come, and of the other arrays the chunks with these rows. Each
    is compared with the store's own manifest before a row of it is used. Interrupted, it goes
    on when it is called again.

    Parameters
    ----------
    location : Location
    target : Path
    rows : tuple of int or None
        The first row and the one after the last; None: from the start, to the end.
    arrays : sequence of str, optional
        Which arrays to keep; by default all.
    options : TransferOptions, optional
    force : bool
        Replace a store that stands there, and do not take it from the cache.
    progress : callable, optional
        Called with the bytes of the chunks that are there, and of those that are needed.

    Returns
    -------
    str
        The new store's identity.

    Raises
    ------
    ParamsError
        When the store has no such rows or arrays.
    LtdPipeError
        As `pull_store`.
    """
    require_replaceable(target, replace=force)

    def fetch(remote: RemoteStore) -> tuple[Path, DerivedStore]:
        remote.survey()
        with exclusive(target):
            state = remote.fetch(remote.chunks(_ALWAYS), target)
            source = SoftLabels(StoreFolder(state), partial=True)
            chosen = rows_of_range(source, *rows)
            names = kept_arrays(source, arrays)
            require_same_places(source, chosen)
            length = source.arrays["labels"].layout.rows
            needed = range(chosen[0] // length, chosen[-1] // length + 1)
            remote.fetch(remote.chunks(names, needed), target, progress)
        return state, subset(source, chosen, arrays=names)

    state, part = _from_nearest(location, options, fetch, force=force)
    identity = part.write(target, replace=force)
    shutil.rmtree(state, ignore_errors=True)
    return identity
