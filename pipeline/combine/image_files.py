"""Labels in one file per image, found by the image's name, as FKD and ReLabel keep them."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import JoinError, MissingError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.combine.images import HashedImages

__all__ = ["ImageFiles", "load_arrays"]

# 500 crops of 1,000 classes take 2 MiB.
_MAX_BYTES = 2**26
# What PyTorch's unpickler says that it would not let in.
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,80})")


class ImageFiles:
    """The files of all images, in their order.

    Parameters
    ----------
    root : Path
        Holds the same folders as the images' folder; `a/b.c.jpg` has its labels in `a/b` and
        the suffix.
    images : HashedImages
    suffix : str
        Such as `.tar`.

    Raises
    ------
    MissingError, JoinError
        When there is no such folder, an image has no file, or two images have the same one.
    """

    def __init__(self, root: Path, images: HashedImages, suffix: str) -> None:
        if not root.is_dir():
            raise MissingError(root, "no such folder")
        files = [PurePosixPath(file) for file in images.files]
        self._names = [str(file.parent / file.name.partition(".")[0]) + suffix for file in files]
        self.root = root
        self._require_one_each(images)
        self._digests = np.zeros((len(self._names), 32), np.uint8)

    def _require_one_each(self, images: HashedImages) -> None:
        missing = [i for i, name in enumerate(self._names) if not (self.root / name).is_file()]
        if missing:
            raise JoinError(
                self.root,
                f"has no labels for {images.files[missing[0]]} ({len(missing)} such)",
                expected=self._names[missing[0]],
                remedy="Name the folder that has the same folders in it as the images'.",
            )
        seen: dict[str, int] = {}
        for i, name in enumerate(self._names):
            if name in seen:
                raise JoinError(
                    self.root,
                    f"{name} would be the labels of two images",
                    found=f"{images.files[seen[name]]} and {images.files[i]}",
                    remedy="Convert them one at a time.",
                )
            seen[name] = i

    def read(self, first: int, last: int) -> Iterator[tuple[Path, Any]]:
        """Path and content of some images' files."""
        for i in range(first, last):
            path = self.root / self._names[i]
            size = path.stat().st_size
            if size > _MAX_BYTES:
                raise StoreError(
                    path, "is too large", expected=f"at most {_MAX_BYTES} bytes", found=size
                )
            content = path.read_bytes()
            self._digests[i] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
            yield path, load_arrays(content, path)

    def source(self) -> str:
        """All files that were read, in one hash: of what sha256sum prints of them in order."""
        total = hashlib.sha256()
        for digest, name in zip(self._digests, self._names, strict=True):
            total.update(f"{digest.tobytes().hex()}  {name}\n".encode())
        return f"{len(self._names)} files, SHA-256 of their list {total.hexdigest()}"


def load_arrays(content: bytes, where: Path) -> Any:
    """What torch.save wrote, of tensors, NumPy arrays and plain values; no code is ever run.

    Only the three names are let in with which NumPy arrays are pickled: PyTorch's unpickler
    refuses all others.

    Raises
    ------
    StoreError
        When it holds anything else, or is damaged.
    """
    _require_small(content, where)
    try:
        with torch.serialization.safe_globals(_array_globals()):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end in many kinds of it
        found = _GLOBAL.search(str(error))
        what = "is damaged, or nothing that torch.save wrote"
        raise StoreError(
            where,
            f"needs code that is not run ({found[1]})" if found else what,
            remedy="Save it again from tensors and NumPy arrays only." if found else "",
        ) from error


def _array_globals() -> list[Any]:
    # NumPy 1 pickled arrays under the name that NumPy 2 has moved.
    from numpy._core import multiarray

    rebuild = multiarray._reconstruct
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, *kinds]


def _require_small(content: bytes, where: Path) -> None:
    # A member may be compressed: what it grows to must be small too.
    stream = io.BytesIO(content)
    if not zipfile.is_zipfile(stream):
        return
    with zipfile.ZipFile(stream) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_BYTES:
        raise StoreError(where, "is too large", expected=f"at most {_MAX_BYTES} bytes", found=size)
