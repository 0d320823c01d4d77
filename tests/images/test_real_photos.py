"""The whole way of real JPEG files, where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import FolderStream, ImageStream
from ltd_pipe.params import PrepareParams

FOLDER = os.environ.get("LTD_PIPE_CIFAR10_JPEG")
CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.skipif(
    FOLDER is None, reason="LTD_PIPE_CIFAR10_JPEG names no folder with CIFAR-10 as JPEG files"
)
def test_real_photographs_come_through_exactly(tmp_path):
    """From files, from memory and by FFCV, every pixel, label and hash is the same."""
    params = PrepareParams(dataset="folder", path=str(Path(FOLDER)))
    source = open_source(params, "test")
    path = tmp_path / "test.beton"
    manifest, skipped = write_beton(source, path, params, "test")
    assert (manifest.num_classes, manifest.shape, skipped) == (10, (3, 32, 32), [])
    beton = open_beton(path)
    folder = FolderStream(source, image_size=None, channels=3, device=CPU)
    assert folder.manifest.fingerprint == manifest.fingerprint
    order = np.random.default_rng(0).permutation(len(source))
    streams = [folder, *(ImageStream(beton, CPU, resident=kept) for kept in (True, False))]
    for batches in zip(*(stream.batches(order, 512) for stream in streams), strict=True):
        for other in batches[1:]:
            assert torch.equal(batches[0].images, other.images)
            assert torch.equal(batches[0].labels, other.labels)
            np.testing.assert_array_equal(batches[0].sample_hash, other.sample_hash)
