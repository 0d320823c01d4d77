"""Checking everything about a store that can be checked without its teacher."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltd_pipe.errors import JoinError, StoreError
from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.manifest import StoreFolder, verify_listing
from ltd_pipe.labels.reader import SoftLabels, check_chunk
from ltd_pipe.labels.softmax import require_distributions, row_sum_tolerance

if TYPE_CHECKING:
    from ltd_pipe.labels.join import ImagesLike

# Each holds one chunk of each array.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Check:
    """One thing that was checked and found right, or why it could not be checked."""

    name: str
    detail: str
    done: bool = True


def verify_store(
    path: Path, images: ImagesLike | None = None, progress: Callable[[int], None] | None = None
) -> list[Check]:
    """Check a store, a few chunks at a time, and in their memory.

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
    StoreError, JoinError
        At the first thing that is wrong.
    """
    store = SoftLabels.open(path)
    folder = StoreFolder(path)
    chunks = {
        array.layout.chunk_name(chunk)
        for array in store.arrays.values()
        for chunk in range(array.layout.num_chunks)
    }
    verify_listing(folder, store.hashes, chunks)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as threads:
        # In their order, so that the first wrong one is always the same; hashing, checksums and
        # arithmetic let other threads run.
        counts = range(store.arrays["labels"].layout.num_chunks)
        for rows in threads.map(partial(_verify_chunk, store, folder), counts):
            if progress is not None:
                progress(rows)
    _verify_labels(store)
    if images is not None:
        _verify_join(store, images)
    return _list_checks(store, len(chunks), joined=images is not None)


def _verify_chunk(store: SoftLabels, folder: StoreFolder, chunk: int) -> int:
    # Mapped anew: each is forgotten after its turn, and the bytes that are hashed are those that
    # are looked at.
    rows = {}
    for name, array in store.arrays.items():
        file = array.layout.chunk_name(chunk)
        content = folder.map(file, array.layout.file_bytes)
        store.hashes.verify_content(file, content)
        count, fill = array.layout.rows_in(chunk), array.layout.fill_value
        whole = check_chunk(folder, array.layout, chunk, content)
        rows[name], padding = whole[:count], whole[count:]
        if not (np.isnan(padding) if fill.dtype.kind == "f" else padding == fill).all():
            # Something is hidden behind the last row.
            raise StoreError(
                store.path, f"{file}: padding", expected=f"the fill value {fill[0]}", found="others"
            )
    first = chunk * store.arrays["labels"].layout.rows
    require_distributions(store.path, store.attributes, rows, first)
    return len(rows["labels"])


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
    store.require_data(images.manifest, data, images)
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


def _list_checks(store: SoftLabels, chunk_files: int, *, joined: bool) -> list[Check]:
    """What was checked, then what was not."""
    views = f" of {store.num_views} views" if store.num_views > 1 else ""
    sums, tolerance = "sum 1 ±", row_sum_tolerance(store.num_classes)
    if store.top_k is not None:
        views += f" of {store.top_k} probabilities"
        sums = "falling, of different classes, sum at most 1 +"
    softmax = f"softmax of the logits at temperature {store.attributes.temperature:g}"
    checks = [
        Check("manifest", f"SHA-256 of {len(store.hashes)} files; no file is unlisted"),
        Check("checksums", f"CRC-32C of {chunk_files} chunks"),
        Check("schema", "metadata of the group and of each array, as format 1.0 says"),
        Check(
            "distributions",
            f"{store.num_samples} rows{views}: finite, not negative, {sums} {tolerance:.2g}",
        ),
        Check("labels", "in range; with the hashes they give the data set's fingerprint"),
        Check("teacher", "that this teacher gave these answers: ask it again", done=False),
        Check("softmax", f"each soft label is the {softmax}, in float16")
        if store.has_logits
        else Check("softmax", "no logits are stored", done=False),
        Check("join", f"classes, fingerprint, and each of {store.num_samples} hashes and labels")
        if joined
        else Check("join", "no images were given", done=False),
    ]
    if store.top_k is not None:
        detail = "how far the rows are from all K probabilities: these are not stored"
        checks.append(Check("total variation", detail, done=False))
    return sorted(checks, key=lambda check: not check.done)
