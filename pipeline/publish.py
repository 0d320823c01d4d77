"""Write beside, then rename: nothing is ever found half-written under its own name."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ltd_pipe.errors import BusyError, LtdPipeError, MachineError, WriteError, reason_of

# The name of a file in the making, with the system and the process that make it.
_PART = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?([0-9]+)-[0-9a-f]{8}\.part")
# Long enough not to be written to, where the process cannot be asked for.
_ABANDONED_S = 86_400.0


# --- Files and folders that appear whole.


@contextlib.contextmanager
def staged(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a path to write to, which becomes `target` by one rename when the block succeeds.

    Parameters
    ----------
    target : Path
        The file or folder to publish, replaced as a whole; the folder that it is in is made.
    folder : bool
        The path is a folder, empty at first.

    Yields
    ------
    Path
        A name in the same folder. It is removed when the block fails, `target` untouched.

    Raises
    ------
    WriteError
        When the disk is full, read-only or otherwise refuses.
    """
    name = f".{target.name}.{_system()}-{os.getpid()}-{os.urandom(4).hex()}.part"
    beside = target.with_name(name)
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target.parent)
            (beside.mkdir if folder else beside.touch)()
            mode = beside.stat().st_mode
            yield beside
            for path in (*beside.rglob("*"), beside):
                _allow(path, mode)
                _flush(path)
            if folder:
                replace_tree(beside, target)
            else:
                os.replace(beside, target)
                _flush(target.parent)
    finally:
        _remove(beside)


def write_text(target: Path, text: str) -> None:
    """Publish a text file (UTF-8) atomically."""
    with staged(target) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Publish JSON atomically: two-space indents, keys in the order given, no NaN."""
    write_text(target, json_text(content))


def json_text(content: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping that such a file holds; None where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def replace_tree(built: Path, target: Path) -> None:
    """Publish a complete folder that was built beside `target`, replacing what stood there.

    An older folder changes places with it and is then removed, so that `target` is whole at every
    moment. Where the file system cannot do that, as on NFS, `target` is absent for a moment.

    Raises
    ------
    WriteError
        When the rename is refused. Then, and when it is interrupted, `target` is whole: the older
        folder, or the new one where they had changed places.
    """
    old = _moved_aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if _exchanged(built, target):
            os.replace(built, old)
        else:
            if target.exists():
                os.replace(target, old)
            os.replace(built, target)
        _flush(target.parent)
    except BaseException as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        if isinstance(error, OSError):
            raise _refused(target, error) from error
        raise
    _remove_moved_aside(target)


# Of Linux 3.15 and glibc 2.28; other systems' libraries have no such function.
_RENAME: Any = getattr(ctypes.CDLL(None), "renameat2", None)
_THIS_FOLDER, _EXCHANGE = -100, 2


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where one is missing or nothing can."""
    if _RENAME is None:
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    return bool(_RENAME(_THIS_FOLDER, first, _THIS_FOLDER, second, _EXCHANGE) == 0)


def remove_state(folder: Path) -> None:
    """Remove the state of a finished run, and the folder of states when it was the last.

    Renamed first: what a killed process leaves must not pass for a state that can be continued.
    """
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, _moved_aside(folder))
    _remove_moved_aside(folder)
    with contextlib.suppress(OSError):  # not empty: another run's state is there
        folder.parent.rmdir()


def flush_tree(folder: Path) -> None:
    """Make the names of all files in a folder, and in the folders in it, survive a power cut."""
    with writing(folder):
        for path, _, _ in os.walk(folder):
            _flush(Path(path))


def _flush(path: Path) -> None:
    # Without fsync of the file and of its folder a power cut can leave an empty file
    # under the final name.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allow(path: Path, mode: int) -> None:
    """Let others read and write as the umask has it: some packages' files are their owner's."""
    found = path.stat().st_mode
    if found | mode & 0o666 != found:
        path.chmod(found | mode & 0o666)


def _moved_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.old")


def _remove_moved_aside(folder: Path) -> None:
    # Those of killed processes too, and never those of `labels.zarr` for `labels`.
    digits = "[0-9a-f]" * 8
    for remains in folder.parent.glob(f".{glob.escape(folder.name)}.{digits}.old"):
        shutil.rmtree(remains, ignore_errors=True)


@functools.cache
def _system() -> str:
    """Where a process's number means something: on shared storage others may have it, too."""
    with contextlib.suppress(OSError):
        name = f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
        return hashlib.sha256(name.encode()).hexdigest()[:8]
    return os.urandom(4).hex()


def _remove_abandoned(folder: Path) -> None:
    """Remove the parts that killed processes of ours have left there."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.part"):
            found, facts = _PART.fullmatch(path.name), path.lstat()
            if found is None or facts.st_uid != os.geteuid():
                continue
            old = time.time() - facts.st_mtime > _ABANDONED_S
            if old or (found[1] == _system() and not _is_alive(int(found[2]))):
                _remove(path)


def _remove(path: Path) -> None:
    # Never instead of the error that says why it is there, or not.
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# --- What the operating system refuses, in a line that says what to do.


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Make an OSError of the block a WriteError of `target`, as the user knows it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, LtdPipeError) or error.errno is None:
            raise
        raise _refused(target, error) from error


def refused_by_system(error: OSError) -> LtdPipeError:
    """One line for what the operating system refused, wherever that was."""
    name = error.filename if isinstance(error.filename, str) else None
    remedy = _remedy(error, Path(name or "."))
    return LtdPipeError(name or "the operating system", reason_of(error), remedy=remedy)


def unwritable(target: Path, error: Exception) -> WriteError:
    """What to raise when a package's own writer failed without saying why."""
    free = shutil.disk_usage(target.parent).free / 2**20
    return WriteError(
        target,
        f"cannot be written ({reason_of(error)})",
        remedy=f"{free:,.0f} MiB are free on that disk. Nothing was published.",
    )


def _refused(target: Path, error: OSError) -> WriteError:
    remedy = _remedy(error, target) or "Nothing was published."
    return WriteError(target, f"cannot be written: {error.strerror}", remedy=remedy)


def _remedy(error: OSError, place: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < _LITTLE_SHARED:
            return f"{SHARED_MEMORY} is full. {_MORE_SHARED} Nothing was published."
        what = "space" if error.errno == errno.ENOSPC else "quota"
        return f"Free disk {what} and run it again; nothing was published."
    if error.errno == errno.EROFS:
        return "The file system is read-only: choose another output folder."
    if error.errno in (errno.EACCES, errno.EPERM):
        existing = nearest(place)
        return f"{existing} is {_owner(existing)}'s: have them allow it, or choose another place."
    return ""


def _owner(path: Path) -> str:
    try:
        number = path.stat().st_uid
        return pwd.getpwuid(number).pw_name
    except OSError:
        return "somebody else"
    except KeyError:
        return f"user {number}"


# --- Room for what will be written.


def nearest(path: Path) -> Path:
    """The path itself, or else the innermost folder above it that is there."""
    return next((place for place in (path, *path.parents) if place.exists()), path)


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  not for files: its size is asked for
# Less than that is full: semaphores and counters take a page each.
_LITTLE_SHARED = 2**16
_MORE_SHARED = (
    "In a container, start it with a larger one: docker run --shm-size 1g, or --ipc host."
)


def require_free(folder: Path, size: int) -> None:
    """Refuse before the work, by a WriteError, what the disk cannot hold: `size` bytes."""
    free = shutil.disk_usage(nearest(folder.resolve())).free
    if free < size:
        raise WriteError(
            folder,
            "not enough disk space",
            expected=f"{size / 2**20:,.0f} MiB free",
            found=f"{free / 2**20:,.0f} MiB",
            remedy="Free disk space or choose another output folder.",
        )


def require_shared_memory(where: object, size: int) -> None:
    """Refuse before the work what the kernel would end without a word: a SIGBUS.

    By a MachineError, when less than `size` bytes is free for memory that processes share.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free, size = shutil.disk_usage(SHARED_MEMORY).free, size + _LITTLE_SHARED
    if free < size:
        raise MachineError(
            where,
            f"{SHARED_MEMORY} is too small for the memory that processes share",
            expected=f"{size / 2**20:,.2f} MiB free",
            found=f"{free / 2**20:,.2f} MiB",
            remedy=_MORE_SHARED,
        )


# --- Locks, which the kernel releases when the process dies, however it dies.


@contextlib.contextmanager
def exclusive(target: Path, option: str = "--out", *, shared: bool = False) -> Iterator[None]:
    """Hold the lock on an output while the block runs; a BusyError when another process does.

    `option` is what names the output on the command line; with `shared` others that write parts of
    it hold it together.
    """
    lock = target.with_name(f".{target.name}.lock")
    with _open_lock(lock, target) as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip()
            raise BusyError(
                target,
                f"process {holder} is writing to it"
                if holder
                else "other processes prepare parts of it",
                remedy=f"Wait for it to end, or give this run another {option}.",
            ) from error
        except OSError as error:
            raise _refused(target, error) from error
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(handle.fileno())):
            # The last holder removed the file between our opening and locking it: what we
            # hold is a file without a name, which keeps nobody out.
            raise BusyError(target, "was just released by another process", remedy="Try again.")
        # For the message to others only: a full disk need not hold it.
        with contextlib.suppress(OSError):
            handle.truncate(0)
            os.write(handle.fileno(), b"" if shared else str(os.getpid()).encode())
        try:
            yield
        finally:
            if not shared:  # else others may hold it
                with contextlib.suppress(OSError):  # another user's, which we may not remove
                    lock.unlink()


def _open_lock(lock: Path, target: Path) -> IO[str]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("a+", encoding="utf-8")
    except OSError as error:
        if not isinstance(error, PermissionError) or not lock.exists():
            raise _refused(target, error) from error
    # A lock that another user's run has left, or still holds: reading is enough to find out.
    try:
        return lock.open(encoding="utf-8")
    except OSError as error:
        raise WriteError(
            target,
            f"may be written to by {_owner(lock)}, whose lock is {lock.name}",
            remedy="When no run of theirs is under way have them remove it, or give another --out.",
        ) from error
