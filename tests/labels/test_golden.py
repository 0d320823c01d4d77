"""The store that is checked in: what format 1.0 is, to the byte."""

import shutil

import numpy as np
from golden_store import HASHES, LABELS, LOGITS, NAMES, SOFT, write_golden
from test_write import tree

from pipeline.labels import SoftLabels
from pipeline.labels.verify import verify_store

IDENTITY = "e943f53e2b6676668e08319e39caf0743fff91c011fdad6df225c045cf748d04"

# Without its README.md.
BARE_IDENTITY = "55f216154780962c2ad246231cf914aff03bd4479d17b11484021fcb23c25193"


def test_the_golden_store_can_be_read(golden):
    """A store of version 1.0 stays readable, with the values and the identity that it had."""
    store = SoftLabels.open(golden)
    assert store.identity == IDENTITY
    assert store.attributes.class_names == NAMES
    np.testing.assert_array_equal(store.labels, LABELS)
    np.testing.assert_array_equal(store.sample_hash, HASHES)
    np.testing.assert_array_equal(store.gather_logits(np.arange(5)), LOGITS)
    np.testing.assert_allclose(store.gather(np.arange(5)), SOFT, rtol=2**-10, atol=1e-6)


def test_the_golden_store_is_sound(golden):
    """All checks pass on it."""
    assert {check.name for check in verify_store(golden) if check.done} >= {"manifest", "softmax"}


def test_writing_it_again_gives_the_same_bytes(golden, tmp_path):
    """The writer's output changes only on purpose."""
    assert write_golden(tmp_path / "again.zarr") == IDENTITY
    assert tree(tmp_path / "again.zarr") == tree(golden)


def test_a_store_without_a_card_is_one_too(golden, tmp_path):
    """As stores were written before they had one, and as other programs may write them."""
    bare = shutil.copytree(golden, tmp_path / "bare.zarr")
    (bare / "README.md").unlink()
    manifest = bare / "MANIFEST.sha256"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if "README.md" not in line))
    verify_store(bare)
    store = SoftLabels.open(bare)
    assert store.identity == BARE_IDENTITY
    np.testing.assert_array_equal(store.gather_logits(np.arange(5)), LOGITS)
