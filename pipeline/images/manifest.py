"""What a beton holds, as JSON beside it: `train.beton` has `train.beton.json`."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ltd_pipe.errors import DataError, parse_document, reason_of, refuse_pointer

if TYPE_CHECKING:
    import torch

    from ltd_pipe.images.stream import Stream

    # Labels and hashes of a split's images.
    Split = tuple[NDArray[np.int32], NDArray[np.uint64]]


# --- Stored pixels and the unit that models and attacks see.


# Resizing, another encoding and another decoder change nearly every image.
_SAMPLED, _BATCH = 256, 64


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1]: uint8 images divided by 255, as float32 of the same shape."""
    return images.float().div_(255.0)


def pixels_sha256(images: NDArray[np.uint8]) -> str:
    """SHA-256 of images as a model is shown them: their shape, and all pixels in order.

    `sample_hash` is of the stored source, which resizing and another encoding leave alone.
    """
    total = hashlib.sha256(repr(images.shape).encode())
    total.update(np.ascontiguousarray(images).data)
    return total.hexdigest()


def sampled_pixels_sha256(stream: Stream, num_samples: int) -> str:
    """`pixels_sha256` of at most 256 images, number ⌊i · N / n⌋ of N for i = 0 … n - 1."""
    count = min(num_samples, _SAMPLED)
    rows = np.arange(count, dtype=np.int64) * num_samples // count
    parts = [each.images.cpu().numpy() for each in stream.batches(rows, _BATCH)]
    return pixels_sha256(np.concatenate(parts))


# --- What makes an image, and a set of images, the same one.


def sample_hash(raw: bytes | NDArray[np.uint8]) -> int:
    """Identify one image by its source, whatever it is later resized or encoded to.

    Parameters
    ----------
    raw : bytes or ndarray, dtype uint8
        The bytes of the image's file, or its pixels where there is no file (hashed in C
        order, the shape is not).

    Returns
    -------
    int
        In [0, 2^64): the eight bytes of BLAKE2b-64, little-endian.
    """
    content = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw, np.uint8).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def fingerprint(
    class_names: Sequence[str], labels: NDArray[np.int32], sample_hash: NDArray[np.uint64]
) -> str:
    """Identify a set of labelled images in its order.

    Parameters
    ----------
    class_names : sequence of str
        Name of each of the K classes.
    labels : ndarray of shape (N,), dtype int32
        Class of each image, -1 where unknown.
    sample_hash : ndarray of shape (N,), dtype uint64
        From `sample_hash`.

    Returns
    -------
    str
        SHA-256 in hexadecimal over N and K, each name preceded by its length in bytes, the
        labels and the hashes; all integers little-endian, counts and lengths as uint64.
    """
    total = hashlib.sha256(struct.pack("<QQ", len(labels), len(class_names)))
    for name in class_names:
        encoded = name.encode()
        # The length keeps ("ab", "c") apart from ("a", "bc").
        total.update(struct.pack("<Q", len(encoded)) + encoded)
    total.update(labels.astype("<i4").tobytes())
    total.update(sample_hash.astype("<u8").tobytes())
    return total.hexdigest()


def images_digest(sample_hash: NDArray[np.uint64]) -> str:
    """Identify a set of images, whatever their order and labels: SHA-256 of their sorted hashes."""
    return hashlib.sha256(np.sort(sample_hash).astype("<u8").tobytes()).hexdigest()


# --- What a beton holds, as JSON beside it: `train.beton` has `train.beton.json`.


_REMEDY = "Run 'ltd-pipe prepare' again."

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# FFCV keeps width and height in 16 bits.
Side = Annotated[int, Field(ge=1, lt=2**16)]


def manifest_path(beton: Path) -> Path:
    """Where the manifest of a beton stands."""
    return beton.with_name(beton.name + ".json")


class Duplicates(BaseModel):
    """How often one image, told by its sample_hash, is there again."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # Images that are copies of an earlier one in the split.
    within: int = Field(ge=0)
    # Test images that are in the training set; null: not looked for.
    with_train: int | None = Field(None, ge=0)
    # Images of the split that stand under two classes, there or in training.
    conflicting_labels: int = Field(ge=0)

    @classmethod
    def count(cls, split: Split, train: Split | None = None) -> Duplicates:
        """Count those of a split, and with training's in both; each by its labels and hashes."""
        sample_hash, both = split[1], (split, train) if train else (split,)
        classes, hashes = (np.concatenate(column) for column in zip(*both, strict=True))
        order = np.lexsort((classes, hashes))
        hashes, classes = (column[order][classes[order] >= 0] for column in (hashes, classes))
        again = hashes[1:] == hashes[:-1]
        return cls(
            within=len(sample_hash) - len(np.unique(sample_hash)),
            with_train=int(np.isin(sample_hash, train[1]).sum()) if train else None,
            conflicting_labels=len(
                np.intersect1d(hashes[1:][again & (classes[1:] != classes[:-1])], sample_hash)
            ),
        )


class ImageFacts(BaseModel):
    """What is known of a set of images, wherever they are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # digits, cifar10, cifar100, or the folder's name; and which labels are wrong, if any are.
    dataset: str
    split: Literal["train", "test"]
    num_samples: int = Field(ge=1)
    class_names: tuple[str, ...] = Field(min_length=1)
    # Channels, height, width.
    shape: tuple[Literal[1, 3], Side, Side]
    # From `fingerprint`.
    fingerprint: Sha256
    # Share of the labels that prepare made wrong; null: none.
    wrong_labels: float | None = Field(None, gt=0, le=1)

    @field_validator("class_names")
    @classmethod
    def _names_are_distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        return names

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def warnings_of(
        self, one_colour: int | None, turned: int | None, duplicates: Duplicates | None
    ) -> list[str]:
        """What is doubtful by these counts, in lines."""
        counts = {
            "images of one colour, or nearly": one_colour,
            "images that EXIF says to turn, which is not done": turned,
        }
        if duplicates is not None:
            counts["test images that are in the training set, too"] = duplicates.with_train
            counts["copies of another image"] = duplicates.within
            counts["images that stand under two classes"] = duplicates.conflicting_labels
        return [f"{what}: {n:,} of {self.num_samples:,}" for what, n in counts.items() if n]


class Manifest(ImageFacts):
    """What a beton holds, and the hash that tells whether it still does."""

    format: Literal["ltd-images"] = "ltd-images"
    version: Literal[1] = 1
    encoding: Literal["raw", "jpeg"]
    # Share of the training images held out; see ltd_pipe.images.sources.
    validation_fraction: float = Field(ge=0, lt=1)
    # Of the beton's bytes, and how many.
    sha256: Sha256
    size: int = Field(ge=1)
    # Images whose pixels are all within 16 grey levels, images with an EXIF orientation, which is
    # ignored, and copies; null: not counted.
    one_colour: int | None = Field(None, ge=0)
    turned: int | None = Field(None, ge=0)
    duplicates: Duplicates | None = None
    # The same for the two betons that one run of prepare wrote.
    preparation: Sha256 | None = None

    @classmethod
    def beside(cls, beton: Path) -> Manifest:
        """Read the manifest of a beton.

        Raises
        ------
        DataError
            When it is missing, is no manifest, or is of a newer version.
        """
        where = manifest_path(beton)
        try:
            text = where.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            remedy = "Copy the two files together, or run 'ltd-pipe prepare' again."
            raise DataError(beton, f"has no manifest ({where.name})", remedy=remedy) from error
        except (OSError, UnicodeDecodeError) as error:
            reason = f"cannot be read ({reason_of(error)})"
            raise DataError(where, reason, remedy=_REMEDY) from error
        refuse_pointer(text.encode(), where, DataError)
        return parse_document(text, cls, where, DataError, remedy=_REMEDY)

    def warnings(self) -> list[str]:
        """What is doubtful about the images, in lines."""
        return self.warnings_of(self.one_colour, self.turned, self.duplicates)

    def to_json(self) -> dict[str, Any]:
        """Plain values, what names the format first."""
        content = self.model_dump(mode="json", exclude_none=True)
        return {key: content.pop(key) for key in ("format", "version")} | content
