"""Pictures of clean and attacked images: examples.npz."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ResultError, reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Examples", "read_examples"]

_REMEDY = "Run 'ltd-pipe evaluate' again."


@dataclass(frozen=True)
class Examples:
    """Test images before and after an attack.

    Attributes
    ----------
    clean : ndarray of shape (M, C, H, W), dtype uint8
    adversarial : ndarray of shape (M, C, H, W), dtype float32, in [0, 1]
    label, clean_prediction, adversarial_prediction, index : ndarray of shape (M,), dtype int64
    """

    clean: NDArray[np.uint8]
    adversarial: NDArray[np.float32]
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    adversarial_prediction: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)


def read_examples(path: Path, num_classes: int, count: int | None) -> Examples:
    """Read the first `count` examples, or all.

    Raises
    ------
    ResultError
        When the file is damaged, or its arrays do not fit each other or the classes.
    """
    try:
        # Opened here: given a path, numpy leaves the file open when it is damaged.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            arrays = {name: content[name] for name in Examples.__dataclass_fields__}
    except KeyError as error:
        raise ResultError(path, str(error.args[0]), remedy=_REMEDY) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ResultError(path, f"is damaged ({reason_of(error)})", remedy=_REMEDY) from error
    _require_shapes(arrays, path)
    _require_values(arrays, num_classes, path)
    return Examples(**{name: array[:count] for name, array in arrays.items()})


def _require_shapes(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    shape = arrays["clean"].shape
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ResultError(path, "clean", expected="shape (M, 1 or 3, H, W)", found=shape)
    for name, array in arrays.items():
        wanted = shape if name in ("clean", "adversarial") else shape[:1]
        if array.shape != wanted:
            raise ResultError(
                path, name, expected=f"shape {wanted}", found=array.shape, remedy=_REMEDY
            )


def _require_values(arrays: dict[str, NDArray[Any]], num_classes: int, path: Path) -> None:
    if arrays["clean"].dtype != np.uint8:
        raise ResultError(path, "clean", expected="uint8", found=arrays["clean"].dtype)
    attacked = arrays["adversarial"]
    if not (np.isfinite(attacked).all() and ((attacked >= 0) & (attacked <= 1)).all()):
        raise ResultError(path, "adversarial: pixels outside [0, 1]", remedy=_REMEDY)
    for name in ("label", "clean_prediction", "adversarial_prediction"):
        if ((arrays[name] < 0) | (arrays[name] >= num_classes)).any():
            raise ResultError(path, f"{name}: not one of {num_classes} classes", remedy=_REMEDY)
