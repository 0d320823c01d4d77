"""An image's hash and a data set's fingerprint, against values computed by hand."""

import hashlib
import struct

import numpy as np
import pytest

from ltd_pipe.images.manifest import fingerprint, sample_hash

NAMES = ("a", "bc")
LABELS = np.array([0, 1, 1], dtype=np.int32)
HASHES = np.array([1, 2, 2**64 - 1], dtype=np.uint64)


def test_sample_hash_is_blake2b_of_eight_bytes():
    """Read little-endian, from the standard library's BLAKE2b."""
    expected = int.from_bytes(hashlib.blake2b(b"image", digest_size=8).digest(), "little")
    assert sample_hash(b"image") == expected


def test_pixels_are_hashed_in_c_order():
    """A transposed copy of the same pixels has the same hash, whatever its strides."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert sample_hash(np.asfortranarray(pixels)) == sample_hash(pixels.tobytes())


def test_fingerprint_by_hand():
    """SHA-256 over counts, names with their lengths, labels and hashes."""
    content = struct.pack("<QQ", 3, 2)
    content += struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2) + b"bc"
    content += struct.pack("<3i", 0, 1, 1) + struct.pack("<3Q", 1, 2, 2**64 - 1)
    assert fingerprint(NAMES, LABELS, HASHES) == hashlib.sha256(content).hexdigest()


CHANGED = {
    "names": (("ab", "c"), LABELS, HASHES),
    "label": (NAMES, np.array([1, 1, 1], dtype=np.int32), HASHES),
    "order": (NAMES, LABELS[[0, 2, 1]], HASHES[[0, 2, 1]]),
    "count": (NAMES, LABELS[:2], HASHES[:2]),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_any_change_changes_the_fingerprint(changed):
    """Class names, labels, order and number all count."""
    assert fingerprint(*changed) != fingerprint(NAMES, LABELS, HASHES)
