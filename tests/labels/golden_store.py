"""What tests/labels/golden.zarr holds, and how it was written.

After a change of the format: PYTHONPATH=. python tests/labels/golden_store.py
"""

import shutil
from pathlib import Path

import numpy as np

from pipeline.images.fingerprint import fingerprint
from pipeline.labels.format import DatasetFacts, StoreAttributes, TeacherFacts
from pipeline.labels.write import write_store

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


def write_golden(target: Path) -> str:
    """Write the golden store; returns its identity."""
    attributes = StoreAttributes(
        temperature=2.0,
        num_samples=5,
        num_classes=3,
        class_names=NAMES,
        dataset=DatasetFacts(
            name="golden", split="train", fingerprint=fingerprint(NAMES, LABELS, HASHES)
        ),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture="small-cnn", clean_accuracy=0.75),),
        software={"numpy": "2"},
    )
    # Four rows per chunk: the second chunk is mostly padding.
    return write_store(target, attributes, LOGITS, LABELS, HASHES, keep_logits=True, rows=4)


if __name__ == "__main__":
    GOLDEN = Path(__file__).parent / "golden.zarr"
    shutil.rmtree(GOLDEN, ignore_errors=True)
    write_golden(GOLDEN)
