"""FFCV, kept from changing this process's threads, and its absence explained."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from pipeline.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SYSTEM_PACKAGES", "ffcv_threads", "require_ffcv"]

SYSTEM_PACKAGES = {
    "apt": "sudo apt-get install -y libopencv-dev libturbojpeg0-dev pkg-config",
    "dnf": "sudo dnf install -y opencv-devel turbojpeg-devel pkgconf-pkg-config gcc-c++",
    "conda": "conda install -y -c conda-forge opencv libjpeg-turbo pkg-config compilers",
}


@contextlib.contextmanager
def ffcv_threads() -> Iterator[None]:
    """Put torch's thread count back: importing FFCV and building a Loader set it."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


_IMPORTING = threading.Lock()


@contextlib.contextmanager
def _plain_dict() -> Iterator[None]:
    """Let FFCV's one typed dictionary be a plain one, while it is imported.

    `ffcv.fields.rgb_image` (1.0.2) keeps the numbers of its two encodings in a numba.typed.Dict,
    which is compiled for that: 4 s of processor time in every process. It looks them up in plain
    Python alone.
    """
    from numba import typed

    with _IMPORTING:
        before = typed.Dict
        typed.Dict = dict
        try:
            yield
        finally:
            typed.Dict = before


def require_ffcv() -> None:
    """Import FFCV.

    Raises
    ------
    MachineError
        When it cannot be imported, with what to run.
    """
    with ffcv_threads():
        try:
            with _plain_dict():
                import ffcv  # noqa: F401
        except Exception as error:  # a missing shared library is an ImportError or an OSError
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            commands = "; ".join(f"{name}: {run}" for name, run in SYSTEM_PACKAGES.items())
            raise MachineError(
                "ffcv",
                f"cannot be imported ({reason})",
                remedy=f"Install its libraries and run set-up again. {commands}.",
            ) from error
