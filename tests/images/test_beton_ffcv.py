"""FFCV is imported quickly, and nothing else is changed for it."""

import sys

from numba import typed
from refusals import refused

from ltd_pipe.errors import MachineError
from ltd_pipe.images import beton
from ltd_pipe.images.beton import require_ffcv


def test_nothing_is_compiled_for_the_numbers_of_encodings():
    """FFCV's dictionary is a plain one; everybody else's is still numba's."""
    require_ffcv()
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert type(IMAGE_MODES) is dict
    assert typed.Dict.__module__ == "numba.typed.typeddict"


def test_an_ffcv_that_does_not_import_changes_nothing(monkeypatch):
    """Numba's dictionary is put back after an error, too."""
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with refused(MachineError, where="ffcv", what="imported"):
        require_ffcv()
    assert typed.Dict.__module__ == "numba.typed.typeddict"


def test_the_header_is_read_as_ffcv_reads_it():
    """Its types and bounds are ours, so that a beton's hashes need no FFCV."""
    from ffcv import types, writer
    from ffcv.fields import IntField, RGBImageField

    fields = [RGBImageField(), IntField(), IntField(), IntField()]
    assert types.get_metadata_type(fields) == beton.SAMPLE
    assert types.HeaderType == beton.HEADER
    assert types.FieldDescType == beton.FIELD
    assert types.ALLOC_TABLE_TYPE == beton.PLACE
    assert types.CURRENT_VERSION == beton.VERSION
    assert (writer.MIN_PAGE_SIZE, writer.MAX_PAGE_SIZE) == beton.PAGE_SIZES
    for number, name in beton.TYPE_IDS.items():
        assert types.TYPE_ID_HANDLER[number].__name__ == name
