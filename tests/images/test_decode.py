"""Image files of all kinds become RGB pixels, or a clear refusal."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image
from refusals import refused

from ltd_pipe.errors import DataError
from ltd_pipe.images.decode import decode_image, is_one_colour, is_turned, resize

from .conftest import picture, saved

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


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_eight_bit_values_in_a_sixteen_bit_file_are_what_they_are(kind):
    """Their upper bytes are all zeros."""
    values = np.array([[0, 7], [200, 255]], dtype=np.uint16)
    image = decode_image(saved(Image.fromarray(values), kind), "x")
    assert image[:, :, 2].tolist() == values.tolist()


SCALES = {
    "negative": (Image.fromarray(np.array([[-1, 255]], np.int32)), "TIFF"),
    "32 bits": (Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF"),
    "fractions": (Image.fromarray(np.array([[0, 0.5]], np.float32)), "TIFF"),
}


@pytest.mark.parametrize(("image", "kind"), SCALES.values(), ids=SCALES)
def test_values_of_no_known_scale_are_refused(image, kind):
    """Rather than cut off to black or white."""
    with pytest.raises(DataError) as caught:
        decode_image(saved(image, kind), "x")
    assert "save it with 8 bits" in caught.value.what


@pytest.mark.parametrize("ending", [".png", ".tif", ".ppm"])
def test_sixteen_bit_colours_keep_their_upper_bytes(ending):
    """Where these are all zeros it is black or 8-bit values, which Pillow cannot tell."""
    values = np.full((2, 2, 3), 0xC000, np.uint16)
    assert decode_image(cv2.imencode(ending, values)[1].tobytes(), "x").max() in (0xBF, 0xC0)
    with refused(DataError, where="x", what="file"):
        decode_image(cv2.imencode(ending, values >> 8)[1].tobytes(), "x")


GLYPHS = {
    # Colour, and what is seen of it at opacity 0 and 255.
    "black on white": ((0, 0, 0), 255, (0, 0, 0)),
    "red on white": ((200, 0, 0), 255, (200, 0, 0)),
    "white on black": ((255, 255, 255), 0, (255, 255, 255)),
}


@pytest.mark.parametrize(("colour", "ground", "seen"), GLYPHS.values(), ids=GLYPHS)
def test_a_glyph_on_transparency_is_seen(colour, ground, seen):
    """Its own pixels are all of one colour: what is drawn stands in the opacity."""
    layer = Image.new("RGBA", (2, 1), (*colour, 255))
    layer.putpixel((0, 0), (*colour, 0))
    image = decode_image(saved(layer, "PNG"), "x")
    assert image[0].tolist() == [[ground] * 3, list(seen)]


@pytest.mark.parametrize(("values", "blank"), [((7, 7), 1), ((0, 4095), 1), ((0, 65535), 0)])
def test_images_that_look_blank_are_told(values, blank):
    """Also what 12 bits in a file of 16 become: its scale is not known."""
    content = saved(Image.fromarray(np.array([values, values], np.uint16).T), "PNG")
    assert is_one_colour(decode_image(content, "x")) == blank


def test_what_is_wholly_transparent_is_white():
    """Whatever its colours are."""
    content = saved(Image.new("RGBA", (2, 2), (200, 100, 50, 0)), "PNG")
    assert decode_image(content, "x").min() == 255


BAD = {
    "empty": (b"", "empty"),
    "text": (b"hello", "readable"),
    "truncated": (picture(0, (64, 64))[:-200], "readable"),
    "half a JPEG": (picture(0, (64, 64), kind="JPEG")[:500], "readable"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_named(content, message):
    """One line, whatever Pillow raised."""
    with refused(DataError, where="x.png", what=message) as caught:
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
    with refused(DataError, where="x", what="pixels"):
        decode_image(picture(0), "x")


def test_decoding_in_threads_leaves_the_warning_filters_alone():
    """They belong to the process: changed in two threads at once, they stay changed."""
    before, content = list(warnings.filters), picture(0, (64, 64))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_image(content, "x"), range(2000)))
    assert list(warnings.filters) == before


def test_a_postscript_file_by_another_name_is_not_run():
    """Pillow would hand it to Ghostscript, whatever it is called."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError) as caught:
        decode_image(content, "photo.jpg")
    assert "cannot identify" in caught.value.what


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 0, 1, 3, 6, 8, 9])
def test_what_exif_asks_for_is_noticed_and_not_done(kind, orientation):
    """Phones turn nothing but a number; torchvision's ImageFolder does not read it either."""
    image, exif, content = Image.new("RGB", (7, 5)), Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(content, kind, exif=exif)
    assert is_turned(content.getvalue()) == (orientation in (3, 6, 8))
    assert decode_image(content.getvalue(), "x").shape == (5, 7, 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe1\0\x0aExif\0\0xx"])
def test_what_cannot_be_read_is_not_turned(content):
    """Decoding says what is wrong with it."""
    assert not is_turned(content)
