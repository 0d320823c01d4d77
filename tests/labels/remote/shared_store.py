"""A small store to share, the same bytes each time, and what a folder holds."""

from pathlib import Path

import numpy as np
from made_answers import write_store

from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.format import DatasetFacts, StoreAttributes, TeacherFacts


def make_store(target: Path, num_samples=600, num_classes=20, rows=100, **options) -> Path:
    """A store with logits, of six chunks of 4 KiB each."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(num_classes))
    labels = rng.integers(-1, num_classes, num_samples).astype(np.int32)
    hashes = rng.integers(0, 2**64, num_samples, dtype=np.uint64)
    attributes = StoreAttributes(
        temperature=2.0,
        num_samples=num_samples,
        num_classes=num_classes,
        class_names=names,
        dataset=DatasetFacts(
            name="digits", split="train", fingerprint=fingerprint(names, labels, hashes)
        ),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture="small-cnn"),),
    )
    logits = rng.standard_normal((num_samples, num_classes)).astype(np.float32) * 3
    options = {"keep_logits": "top_k" not in options} | options
    write_store(target, attributes, logits, labels, hashes, rows=rows, **options)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
