"""What the stores tests/labels/golden*.zarr hold, and how they were written.

After a change of the format: PYTHONPATH=tests python tests/labels/golden_store.py
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from made_answers import write_store

from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.format import (
    DatasetFacts,
    DerivationFacts,
    StoreAttributes,
    TeacherFacts,
    ViewFacts,
)

LABELS = np.array([0, 1, 2, 0, -1], np.int32)
HASHES = np.array([1, 2**63, 2**64 - 1, 0x0123456789ABCDEF, 5], np.uint64)
LOGITS = np.array([[4, 0, -2], [0, 6, 1], [-1.5, 0.25, 3], [0.5, 0.5, 0.5], [9, -9, 0]], np.float32)
NAMES = ("cat", "dog", "ñandu")
# softmax(LOGITS / 2) in float64.
SOFT = np.array(
    [
        [0.843795, 0.114195, 0.042010],
        [0.043986, 0.883492, 0.072521],
        [0.077600, 0.186153, 0.736248],
        [0.333333, 0.333333, 0.333333],
        [0.988892, 0.000122, 0.010986],
    ]
)


NAMES_OF_FIVE = ("ant", "bee", "cow", "dog", "elk")
LOGITS_OF_FIVE = np.array(
    [
        [6, 2, 0, 0, 0],
        [0, 8, 0, 4, -4],
        [1, 1, 1, 1, 1],
        [-2, 0, 2, 4, 6],
        [9, -9, 0, 0, 0],
    ],
    np.float32,
)
# Of softmax(LOGITS_OF_FIVE / 2): the two largest, and which classes' they are.
CLASSES = np.array([[0, 1], [1, 3], [0, 1], [4, 3], [0, 2]], np.uint16)
PROBS = np.array(
    [
        [0.778394, 0.105344],
        [0.851466, 0.115233],
        [0.2, 0.2],
        [0.636409, 0.234122],
        [0.967632, 0.010749],
    ]
)
# Of LOGITS and, as the second view, of LOGITS with its columns turned around.
SOFT_OF_VIEWS = np.stack([SOFT, SOFT[:, ::-1]], axis=1)


def facts(names: tuple[str, ...], views: ViewFacts, **more: Any) -> StoreAttributes:
    """Attributes of a golden store."""
    return StoreAttributes(
        temperature=2.0,
        num_samples=5,
        num_classes=len(names),
        class_names=names,
        dataset=DatasetFacts(
            name="golden", split="train", fingerprint=fingerprint(names, LABELS, HASHES)
        ),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture="small-cnn", clean_accuracy=0.75),),
        views=views,
        software={"numpy": "2"},
        **more,
    )


def write_golden(target: Path) -> str:
    """Write the golden store; returns its identity."""
    # Four rows per chunk: the second chunk is mostly padding.
    attributes = facts(NAMES, ViewFacts())
    return write_store(target, attributes, LOGITS, LABELS, HASHES, keep_logits=True, rows=4)


def write_golden_topk(target: Path) -> str:
    """One of two probabilities per row, which says all that a store may say."""
    origin = DerivationFacts(operation="top-k", sources=("cd" * 32,))
    more = {"licence": "CC-BY-4.0", "citation": "Nobody (2026)", "derived_from": origin}
    attributes = facts(NAMES_OF_FIVE, ViewFacts(), **more)
    return write_store(target, attributes, LOGITS_OF_FIVE, LABELS, HASHES, rows=4, top_k=2)


def write_golden_views(target: Path) -> str:
    """One of two views of each image, the second with its logits in the other order."""
    attributes = facts(NAMES, ViewFacts(count=2, seed=7, augmentation="flip"))
    logits = np.stack([LOGITS, LOGITS[:, ::-1]], axis=1)
    return write_store(target, attributes, logits, LABELS, HASHES, keep_logits=True, rows=4)


WRITERS = {
    "golden": write_golden,
    "golden_topk": write_golden_topk,
    "golden_views": write_golden_views,
}

if __name__ == "__main__":
    for name, write in WRITERS.items():
        store = Path(__file__).parent / f"{name}.zarr"
        shutil.rmtree(store, ignore_errors=True)
        write(store)
