"""Image files of all kinds become RGB pixels, or a clear refusal."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.images.decode import decode_image, resize

from .conftest import picture

KINDS = [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "1")]
KINDS += [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("BMP", "RGB")]


@pytest.mark.parametrize(("kind", "mode"), KINDS, ids=[f"{k}-{m}" for k, m in KINDS])
def test_all_kinds_become_rgb(kind, mode):
    """Grey, palette, transparent and CMYK images are (H, W, 3) of uint8."""
    image = decode_image(picture(0, (5, 7), mode, kind), "x")
    assert (image.shape, image.dtype) == ((5, 7, 3), np.uint8)


def test_pixels_are_exact():
    """A PNG's pixels come through unchanged."""
    expected = np.random.default_rng(3).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(picture(3), "x"), expected)


def test_sixteen_bit_grey_keeps_its_upper_byte():
    """Pillow alone would clip it to white."""
    content = io.BytesIO()
    Image.fromarray(np.array([[0, 0x1234], [0xFF00, 0xFFFF]], dtype=np.uint16)).save(content, "PNG")
    assert decode_image(content.getvalue(), "x")[:, :, 0].tolist() == [[0, 0x12], [0xFF, 0xFF]]


def test_transparency_is_laid_on_black():
    """What cannot be seen does not show."""
    content = io.BytesIO()
    Image.new("RGBA", (2, 2), (200, 100, 50, 0)).save(content, "PNG")
    assert decode_image(content.getvalue(), "x").max() == 0


BAD = {
    "empty": (b"", r"x.png: is empty \(0 bytes\)"),
    "text": (b"hello", "x.png: is not a readable image"),
    "truncated": (picture(0, (64, 64))[:-200], "x.png: is not a readable image"),
    "half a JPEG": (picture(0, (64, 64), kind="JPEG")[:500], "x.png: is not a readable image"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_named(content, message):
    """One line, whatever Pillow raised."""
    with pytest.raises(DataError, match=message) as caught:
        decode_image(content, "x.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (8, 8), (16, 16), (5, 100)])
def test_resize_gives_the_asked_for_square(shape):
    """Larger and smaller, wide and high."""
    assert resize(np.zeros((*shape, 3), np.uint8), 16).shape == (16, 16, 3)


def test_resize_keeps_the_centre():
    """The sides of a wide image are cut off."""
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert resize(image, 10).min() > 200


def test_no_size_leaves_the_image_alone():
    """Nor does its own size."""
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert resize(image, None) is image
    assert resize(image, 9) is image


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [50, 100], ids=["Pillow refuses", "Pillow only warns"])
def test_a_decompression_bomb_is_refused(monkeypatch, limit):
    """A small file can hold more pixels than there is memory: these are 144."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="x: is not a readable image .*144|12×12"):
        decode_image(picture(0), "x")


def test_decoding_in_threads_leaves_the_warning_filters_alone():
    """They belong to the process: changed in two threads at once, they stay changed."""
    before, content = list(warnings.filters), picture(0, (64, 64))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_image(content, "x"), range(2000)))
    assert list(warnings.filters) == before
