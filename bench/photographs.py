"""A folder of photographs in the sizes of ImageNet's, made from whatever photographs there are."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_photographs", "mean_bytes"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
_CLASSES = 10
# As most of ImageNet's files.
_QUALITY = 90
_THREADS = 4


def make_photographs(
    folder: Path, count: int, sides: tuple[int, int], seed: int, given: Path | None = None
) -> None:
    """Write `folder/train/CLASS/NUMBER.jpg`, each a part of a photograph, enlarged.

    Parameters
    ----------
    folder : Path
        Made here.
    count : int
        Files.
    sides : tuple of int
        Least and largest shorter side, in pixels; the longer one is up to 4/3 of it.
    seed : int
        Of the parts and sizes.
    given : Path, optional
        A folder of image files; every second photograph is one of these, the others are parts
        of scikit-learn's two sample images. Without it all are.
    """
    files = _files(given)
    for label in range(_CLASSES):
        (folder / "train" / f"class{label}").mkdir(parents=True)

    def write(number: int) -> None:
        draw = np.random.default_rng((seed, number))
        content = _photograph(
            draw, files[number % len(files)] if files and number % 2 else None, sides
        )
        path = folder / "train" / f"class{number % _CLASSES}" / f"{number:06}.jpg"
        path.write_bytes(content)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(write, range(count)))


def _files(given: Path | None) -> list[Path]:
    if given is None:
        return []
    return sorted(path for path in given.rglob("*") if path.suffix.lower() in _SUFFIXES)


def _photograph(draw: np.random.Generator, file: Path | None, sides: tuple[int, int]) -> bytes:
    short = int(draw.integers(sides[0], sides[1] + 1))
    long = int(short * draw.uniform(1, 4 / 3))
    size = (long, short) if draw.random() < 0.75 else (short, long)
    if file is None:
        whole = Image.fromarray(load_sample_images().images[draw.integers(2)])
        # A part of a quarter to all of it: detail at many scales.
        share = draw.uniform(0.5, 1)
        part = int(whole.width * share), int(whole.height * share)
        left, top = (int(draw.integers(n - m + 1)) for n, m in zip(whole.size, part, strict=True))
        picture = whole.crop((left, top, left + part[0], top + part[1]))
    else:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def mean_bytes(folder: Path) -> int:
    """Of a file."""
    sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
    return round(sum(sizes) / len(sizes))
