"""Checking everything about a store that can be checked without its teacher."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import JoinError, StoreError
from pipeline.images.fingerprint import fingerprint
from pipeline.labels.folder import StoreFolder
from pipeline.labels.format import row_sum_tolerance
from pipeline.labels.half import to_float32
from pipeline.labels.manifest import MANIFEST, SIGNATURE, read_signature
from pipeline.labels.read import SoftLabels
from pipeline.labels.softmax import soften

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.labels.join import ImagesLike

__all__ = ["Check", "verify_store"]


@dataclass(frozen=True)
class Check:
    """One thing that was checked and found right, or that could not be checked.

    Attributes
    ----------
    name : str
    detail : str
        What exactly was compared, or why it could not be.
    done : bool
    """

    name: str
    detail: str
    done: bool = True


def verify_store(
    path: Path, images: ImagesLike | None = None, progress: Callable[[int], None] | None = None
) -> list[Check]:
    """Check a store, chunk by chunk, in the memory of one chunk.

    Parameters
    ----------
    path : Path
        The store.
    images : Beton, optional
        The images that it should belong to.
    progress : callable, optional
        Called with the number of samples just checked, N in all.

    Returns
    -------
    list of Check
        What was checked, then what was not.

    Raises
    ------
    StoreError
        At the first thing that is wrong.
    JoinError
        When the labels belong to other images.
    """
    store = SoftLabels.open(path)
    chunk_files = _verify_listing(store)
    for chunk in range(store.arrays["labels"].layout.num_chunks):
        _verify_chunk(store, chunk)
        if progress is not None:
            progress(store.arrays["labels"].layout.rows_in(chunk))
    _verify_labels(store)
    checks = _done(store, chunk_files)
    if images is not None:
        _verify_join(store, images)
        detail = f"classes, fingerprint, and each of {store.num_samples} hashes and labels"
        checks.append(Check("join", detail))
    return checks + _not_done(store, joined=images is not None)


def _verify_listing(store: SoftLabels) -> int:
    for found in _walk(store.path):
        if found == SIGNATURE:
            # It cannot be listed, being made of the list; who signed is another's question.
            read_signature(StoreFolder(store.path))
        elif found not in store.hashes and found != MANIFEST:
            raise StoreError(store.path, f"{found[:200]} is not listed in {MANIFEST}")
    chunks = {
        array.layout.chunk_name(chunk)
        for array in store.arrays.values()
        for chunk in range(array.layout.num_chunks)
    }
    # The chunks' turn comes later, when their rows are checked too.
    for name in sorted(store.hashes.keys() - chunks):
        store.hashes.verify(name)
    return len(chunks)


def _walk(root: Path) -> Iterator[str]:
    # Links to folders are listed, not followed.
    for folder, subfolders, files in os.walk(root):
        inside = Path(folder)
        links = (name for name in subfolders if (inside / name).is_symlink())
        for name in (*files, *links):
            yield (inside / name).relative_to(root).as_posix()


def _verify_chunk(store: SoftLabels, chunk: int) -> None:
    for array in store.arrays.values():
        store.hashes.verify(array.layout.chunk_name(chunk))
        array.chunk(chunk)
    first = chunk * store.arrays["labels"].layout.rows
    if store.top_k is not None:
        _require_ranks(store, chunk, first)
        return
    soft = to_float32(store.arrays["soft_labels"].chunk(chunk))
    _require_distributions(store, soft, first)
    if store.has_logits:
        _require_softmax(store, soft, store.arrays["logits"].chunk(chunk), first)


def _sample(wrong: NDArray[np.bool_], first: int) -> tuple[str, tuple[int, ...]]:
    # The first wrong row: how the user knows it, and its place in the chunk.
    place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
    view = f", view {place[1]}" if len(place) > 1 else ""
    return f"sample {first + place[0]}{view}", place


def _require_distributions(store: SoftLabels, soft: NDArray[np.float32], first: int) -> None:
    # That they are finite and not negative was checked when the chunk was mapped.
    sums = soft.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(store.num_classes)
    wrong = np.asarray(abs(sums - 1.0) > tolerance)
    if wrong.any():
        sample, place = _sample(wrong, first)
        raise StoreError(
            store.path,
            f"{sample}: the soft label is no distribution",
            expected=f"sum 1 ± {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
        )


def _require_ranks(store: SoftLabels, chunk: int, first: int) -> None:
    indices = store.arrays["topk_indices"].chunk(chunk).astype(np.int64)
    probs = to_float32(store.arrays["topk_probs"].chunk(chunk))
    sums = probs.sum(axis=-1, dtype=np.float64)
    tolerance = row_sum_tolerance(store.num_classes)
    # With all K classes stored there is no rest.
    least = 1.0 - tolerance if probs.shape[-1] == store.num_classes else 0.0
    wrong: NDArray[np.bool_] = np.asarray((sums > 1.0 + tolerance) | (sums < least))
    if wrong.any():
        sample, place = _sample(wrong, first)
        raise StoreError(
            store.path,
            f"{sample}: the soft label is no distribution",
            expected=f"sum at most 1 + {tolerance:.2g}",
            found=f"{sums[place]:.6f}",
        )
    again = np.diff(np.sort(indices, axis=-1), axis=-1) == 0
    faults = {"probabilities rise with rank": np.diff(probs, axis=-1) > 0, "a class twice": again}
    for what, where in faults.items():
        if where.any():
            sample, _ = _sample(np.asarray(where.any(axis=-1)), first)
            raise StoreError(store.path, f"{sample}: {what}")


def _require_softmax(
    store: SoftLabels, soft: NDArray[np.float32], logits: NDArray[np.float16], first: int
) -> None:
    expected = soften(logits, store.attributes.temperature)
    # One step of float16: half of one is its rounding, the rest is for another machine's exp.
    outside = abs(soft - expected) > expected * 2.0**-10 + 2.0**-24
    wrong = np.asarray(outside.any(axis=-1))
    if wrong.any():
        sample, place = _sample(wrong, first)
        worst = int(np.argmax(abs(soft[place] - expected[place])))
        raise StoreError(
            store.path,
            f"{sample}: soft_labels are not softmax(logits / temperature)",
            expected=f"{expected[place][worst]:.6f} for class {worst}",
            found=f"{soft[place][worst]:.6f}",
        )


def _verify_labels(store: SoftLabels) -> None:
    wrong = (store.labels < -1) | (store.labels >= store.num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise StoreError(
            store.path,
            f"sample {row}: label",
            expected=f"-1 to {store.num_classes - 1}",
            found=store.labels[row],
        )
    names = store.attributes.class_names
    found = fingerprint(names, store.labels, store.sample_hash)
    if found != store.attributes.dataset.fingerprint:
        raise StoreError(
            store.path,
            "fingerprint of its own labels and hashes",
            expected=f"{store.attributes.dataset.fingerprint[:12]}…",
            found=f"{found[:12]}…",
            remedy="The store was made wrongly: run 'ltd-pipe label' again.",
        )


def _verify_join(store: SoftLabels, images: ImagesLike) -> None:
    data = f"{images.manifest.dataset} ({images.manifest.split})"
    store.require_data(images.manifest, data)
    store.join(np.arange(store.num_samples), images.sample_hash, data)
    different = store.labels != images.labels
    if different.any():
        row = int(np.argmax(different))
        raise JoinError(
            store.path,
            f"sample {row}: label",
            expected=store.labels[row],
            found=f"{images.labels[row]} in {data}",
        )


def _distributions(store: SoftLabels) -> Check:
    tolerance = row_sum_tolerance(store.num_classes)
    rows = f"{store.num_samples} rows"
    if store.num_views > 1:
        rows += f" of {store.num_views} views"
    if store.top_k is None:
        detail = f"{rows}: finite, not negative, sum 1 ± {tolerance:.2g}"
    else:
        detail = (
            f"{rows} of {store.top_k} probabilities: finite, not negative, falling, "
            f"of different classes, sum at most 1 + {tolerance:.2g}"
        )
    return Check("distributions", detail)


def _done(store: SoftLabels, chunk_files: int) -> list[Check]:
    checks = [
        Check("manifest", f"SHA-256 of {len(store.hashes)} files; no file is unlisted"),
        Check("checksums", f"CRC-32C of {chunk_files} chunks"),
        Check("schema", "metadata of the group and of each array, as format 1.0 says"),
        _distributions(store),
        Check("labels", "in range; with the hashes they give the data set's fingerprint"),
    ]
    if store.has_logits:
        detail = f"softmax of the logits at temperature {store.attributes.temperature:g}"
        checks.append(Check("softmax", f"each soft label is the {detail}, in float16"))
    return checks


def _not_done(store: SoftLabels, *, joined: bool) -> list[Check]:
    checks = [Check("teacher", "that this teacher gave these answers: ask it again", done=False)]
    if not store.has_logits:
        checks.append(Check("softmax", "no logits are stored", done=False))
    if store.top_k is not None:
        detail = "how far the rows are from all K probabilities: these are not stored"
        checks.append(Check("total variation", detail, done=False))
    if not joined:
        checks.append(Check("join", "no images were given", done=False))
    return checks
