"""The store that is checked in: what format 1.0 is, to the byte."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_store import (
    CLASSES,
    HASHES,
    LABELS,
    LOGITS,
    NAMES,
    PROBS,
    SOFT,
    SOFT_OF_VIEWS,
    WRITERS,
)
from test_write import tree

from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.verify import verify_store

HERE = Path(__file__).parent
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


def test_the_golden_top_k_store_can_be_read():
    """The two largest of five probabilities; the rest of each row is spread over three."""
    store = SoftLabels.open(HERE / "golden_topk.zarr")
    indices, probs = store.gather_topk(np.arange(5))
    np.testing.assert_array_equal(indices, CLASSES)
    np.testing.assert_allclose(probs, PROBS, rtol=2**-10)
    rest = (1 - PROBS[0].sum()) / 3
    expected = [*PROBS[0], rest, rest, rest]
    np.testing.assert_allclose(store.gather([0])[0], expected, rtol=2**-8)
    np.testing.assert_array_equal(store.labels, LABELS)
    assert store.attributes.licence == "CC-BY-4.0"


def test_the_golden_store_of_views_can_be_read():
    """Each image's two views, at one temperature."""
    store = SoftLabels.open(HERE / "golden_views.zarr")
    np.testing.assert_allclose(store.gather(np.arange(5)), SOFT_OF_VIEWS, rtol=2**-10, atol=1e-6)
    np.testing.assert_array_equal(store.gather_logits(np.arange(5), view=1), LOGITS[:, ::-1])
    assert store.attributes.views.augmentation == "flip"


@pytest.mark.parametrize("name", WRITERS)
def test_the_golden_stores_are_sound(name):
    """All checks pass on them."""
    checks = {check.name for check in verify_store(HERE / f"{name}.zarr") if check.done}
    assert checks >= {"manifest", "checksums", "distributions", "labels"}
    assert ("softmax" in checks) is (name != "golden_topk")


def without_card(folder):
    """All files but the card, which is written for people, and its line of the manifest."""
    files = tree(folder)
    del files["README.md"]
    lines = files["MANIFEST.sha256"].splitlines()
    files["MANIFEST.sha256"] = [line for line in lines if not line.endswith(b"  README.md")]
    return files


@pytest.mark.parametrize("name", WRITERS)
def test_writing_them_again_gives_the_same_bytes(name, tmp_path):
    """The writer's output changes only on purpose; the identity follows from all files."""
    identity = WRITERS[name](tmp_path / "again.zarr")
    assert without_card(tmp_path / "again.zarr") == without_card(HERE / f"{name}.zarr")
    assert identity == WRITERS[name](tmp_path / "third.zarr")


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
