"""A beton that agrees with its manifest is still not believed.

Each file here is made by somebody who can compute a hash: sizes, SHA-256 and the manifest's
facts all agree with it. Opened as it is, FFCV would take memory by its numbers, or copy from
and to places outside its buffers.
"""

import json

import numpy as np
import pytest
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType
from refusals import refused

from ltd_pipe.errors import DataError
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.manifest import fingerprint, manifest_path
from ltd_pipe.images.sources import open_source
from ltd_pipe.params import PrepareParams
from ltd_pipe.provenance import sha256_file

COUNT = 20
TABLE = HeaderType.itemsize + 4 * FieldDescType.itemsize


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A beton of twenty digits."""
    path = tmp_path_factory.mktemp("original") / "train.beton"
    params = PrepareParams(dataset="digits")
    write_beton(open_source(params, "train").take(np.arange(COUNT)), path, params, "train")
    return path


@pytest.fixture
def forge(original, tmp_path):
    """Write a changed beton whose manifest tells the truth about it, with other changes."""

    def make(edit, **facts):
        content = bytearray(original.read_bytes())
        edit(content)
        path = tmp_path / "train.beton"
        path.write_bytes(content)
        manifest = json.loads(manifest_path(original).read_text())
        manifest |= {"sha256": sha256_file(path), "size": len(content)} | facts
        manifest_path(path).write_text(json.dumps(manifest))
        return path

    return make


def header(field, value):
    def edit(content):
        np.frombuffer(content, HeaderType, 1)[field] = value

    return edit


def place(field, value, row=3):
    def edit(content):
        table = int(np.frombuffer(content, HeaderType, 1)["alloc_table_ptr"][0])
        np.frombuffer(content, ALLOC_TABLE_TYPE, COUNT, table)[field][row] = value

    return edit


def sample(samples, column, value, field=None, row=3):
    def edit(content):
        table = np.frombuffer(content, samples, COUNT, TABLE)[column]
        (table[field] if field else table)[row] = value

    return edit


@pytest.fixture(scope="module")
def sample_type(original):
    return Reader(str(original)).metadata_type


def described(field, value, row=1):
    def edit(content):
        np.frombuffer(content, FieldDescType, 4, HeaderType.itemsize)[field][row] = value

    return edit


def unchanged(content):
    pass


def shorten(content):
    del content[100:]


NUMBERS = {
    "other version": (header("version", 1), "version"),
    "more fields": (header("num_fields", 60_000), "version"),
    "page size 0": (header("page_size", 0), "page"),
    "odd page size": (header("page_size", 2**21 + 1), "page"),
    "table after the end": (header("alloc_table_ptr", 2**62), "tables"),
    "table before the samples": (header("alloc_table_ptr", 8), "tables"),
    "other field type": (described("type_id", 3), "fields"),
    "unknown field type": (described("type_id", 77), "fields"),
    "other field name": (described("name", 65), "fields"),
    "header only": (shorten, "shorter"),
    "a longer image": (place("size", 10**6), "pixels"),
    "an endless image": (place("size", 2**64 - 1), "file"),
    "a shorter image": (place("size", 1), "pixels"),
    "a place after the end": (place("ptr", 2**63), "file"),
    "a place in the header": (place("ptr", 0), "file"),
    "a place that overflows": (place("ptr", 2**64 - 100), "file"),
    "a place that nobody has": (place("ptr", 2**21 + 5), "place"),
}


@pytest.mark.parametrize(("edit", "message"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_leads_outside_is_refused(forge, edit, message):
    """One clear line, before memory is taken or touched by it."""
    with refused(DataError, where="train.beton", what=message):
        open_beton(forge(edit))


SAMPLES = {
    "wide": ("f0", 60_000, "width", {"what": "pixels"}),
    "high": ("f0", 9, "height", {"what": "pixels"}),
    "other mode": ("f0", 0, "mode", {"what": "encoded"}),
    "pointer to nowhere": ("f0", 2**40, "data_ptr", {"what": "place"}),
    "label above": ("f1", 10, None, {"what": "label", "expected": "-1…9", "found": "0…10"}),
    "label below": ("f1", -2, None, {"what": "label", "expected": "-1…9"}),
    "label beyond 32 bits": ("f1", 2**32, None, {"what": "label", "expected": "-1…9"}),
    "index": ("f2", 4, None, {"what": "indices"}),
    "hash": ("f3", 4, None, {"what": "fingerprint"}),
}


@pytest.mark.parametrize(("column", "value", "field", "fields"), SAMPLES.values(), ids=SAMPLES)
def test_a_sample_that_is_not_as_told_is_refused(forge, sample_type, column, value, field, fields):
    """Size, encoding, place, label, index and hash of each sample are checked."""
    with refused(DataError, where="train.beton", **fields):
        open_beton(forge(sample(sample_type, column, value, field)))


def test_two_images_in_one_place_are_refused(forge, original):
    """FFCV's search for a place would find either."""
    first = Reader(str(original)).alloc_table["ptr"][0]
    with refused(DataError, where="train.beton", what="place"):
        open_beton(forge(place("ptr", first)))


def test_a_count_that_both_agree_on_is_held_against_the_size(forge):
    """2^60 samples would be 2^65 bytes of table."""
    with refused(DataError, where="train.beton", what="tables"):
        open_beton(forge(header("num_samples", 2**60), num_samples=2**60))


@pytest.mark.parametrize(
    "facts", [{"shape": [3, 9, 9]}, {"encoding": "jpeg"}], ids=["shape", "encoding"]
)
def test_a_manifest_that_tells_other_images_is_refused(forge, facts):
    """Batches would have another shape than the manifest promises."""
    with refused(DataError, where="train.beton", what="image"):
        open_beton(forge(unchanged, **facts))


def test_unknown_labels_are_no_error(forge, sample_type):
    """-1 stands for a label that is not known."""
    sound = forge(unchanged)
    opened = open_beton(sound)
    labels = np.where(np.arange(COUNT) == 3, -1, opened.labels).astype(np.int32)
    facts = {"fingerprint": fingerprint(opened.manifest.class_names, labels, opened.sample_hash)}
    changed = forge(sample(sample_type, "f1", -1), **facts)
    assert open_beton(changed).labels[3] == -1


def test_the_encodings_have_the_numbers_of_ffcv():
    """Written down here because looking them up in FFCV compiles code."""
    from ffcv.fields.rgb_image import IMAGE_MODES

    from ltd_pipe.images.beton import _MODES

    assert {"jpeg": IMAGE_MODES["jpg"], "raw": IMAGE_MODES["raw"]} == _MODES
