"""Small folders of real image files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ltd_pipe.images.beton import require_ffcv
from ltd_pipe.params import PrepareParams


def pytest_configure():
    """Import FFCV as the package does, before a test file does so by itself, more slowly."""
    require_ffcv()


def picture(seed, size=(12, 12), mode="RGB", kind="PNG"):
    """A file's bytes: random pixels in a given mode and format."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels).convert(mode), kind)


def saved(image, kind="PNG"):
    """A file's bytes."""
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


@pytest.fixture
def photos(tmp_path):
    """`photos/{train,test}/{cat,dog}/N.png`, six images of 12×12 in each class."""
    root = tmp_path / "photos"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                (folder / f"{i}.png").write_bytes(picture(hash((split, name, i)) % 2**32))
    return root


@pytest.fixture
def params(photos):
    """Parameters for that folder."""
    return PrepareParams(dataset="folder", path=str(photos))
