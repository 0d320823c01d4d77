"""The schema that is checked in says what our reader accepts."""

import copy
import json

import pytest
from attribute_schema import SCHEMA, golden_attributes, schema_text
from golden_store import WRITERS
from hypothesis import given, settings
from hypothesis import strategies as st
from json_schema import is_valid
from test_format import OPTIONAL, REFUSED

from ltd_pipe.errors import StoreError
from ltd_pipe.labels.format import parse_attributes

CHECKED_IN = json.loads(SCHEMA.read_text())
GOLDEN = golden_attributes()


def is_accepted(raw) -> bool:
    """By our reader."""
    try:
        parse_attributes(raw, "x")
    except StoreError:
        return False
    return True


def test_the_schema_is_in_step_with_the_reader():
    """After a change of the format: python tests/labels/attribute_schema.py."""
    assert SCHEMA.read_text() == schema_text()


@pytest.mark.parametrize("raw", GOLDEN, ids=list(WRITERS))
def test_golden_stores_are_examples(raw):
    """Each of the stores that are checked in; they are the schema's examples."""
    assert is_valid(raw, CHECKED_IN)
    assert raw in CHECKED_IN["examples"]


@pytest.mark.parametrize("key", OPTIONAL)
def test_what_is_accepted_is_valid(answers, key):
    """With each optional key, and without."""
    raw = answers.attributes.to_json()
    assert is_valid(raw, CHECKED_IN)
    assert is_valid(raw | {key: OPTIONAL[key]}, CHECKED_IN)


# Two keys at once, which a schema cannot compare.
BEYOND = {"classes without names", "more ranks than classes"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_not_valid(answers, name):
    """The reader's own table of refusals."""
    change = REFUSED[name][0]
    raw = answers.attributes.to_json() | change if isinstance(change, dict) else change
    assert is_valid(raw, CHECKED_IN) is (name in BEYOND)


MORE = {
    "an escape in a name": (("class_names", 0), "\x1b[2J"),
    "a line feed in a name": (("dataset", "name"), "a\n"),
    "a line feed in a licence": (("licence",), "a\nb"),
    "an escape in a licence": (("licence",), "\x1b"),
    "a long licence": (("licence",), "x" * 10_001),
    "no licence": (("licence",), None),
    "another key of the data set": (("dataset", "url"), "x"),
    "a hash in capitals": (("teachers", 0, "sha256"), "AB" * 32),
    "a hash with a line feed": (("teachers", 0, "sha256"), "ab" * 32 + "\n"),
    "unknown accuracy": (("teachers", 0, "clean_accuracy"), None),
    "whole accuracy": (("teachers", 0, "clean_accuracy"), 1),
    "true accuracy": (("teachers", 0, "clean_accuracy"), True),
    "whole temperature": (("temperature",), 2),
    "hottest": (("temperature",), 1e6),
    "hotter": (("temperature",), 1000001),
    "negative seed": (("views", "seed"), -1),
    "largest seed": (("views",), {"count": 1, "seed": 2**53, "augmentation": "flip"}),
    "larger seed": (("views",), {"count": 1, "seed": 2**53 + 1, "augmentation": "flip"}),
    "most views": (("views",), {"count": 2**16, "seed": 1, "augmentation": "flip"}),
    "more views": (("views",), {"count": 2**16 + 1, "seed": 1, "augmentation": "flip"}),
    "no views": (("views",), {}),
    "no teachers": (("teachers",), []),
    "no sources": (("derived_from",), {"operation": "merge", "sources": []}),
    "no operation": (("derived_from",), {"operation": "", "sources": []}),
    "a package without a version": (("software", "numpy"), None),
    "an escape in a package": (("software", "\x07"), "1"),
    "a newer version": (("version",), "1.2"),
    "a calibration": (("calibration",), {"interval": [1, 2.5], "nll": 0, "samples": 1}),
    "a calibration of one end": (("calibration",), {"interval": [1], "nll": 0, "samples": 1}),
    "a calibration on nothing": (("calibration",), {"interval": [1, 2], "nll": 0, "samples": 0}),
    "nothing known of the labelling": (("labelling",), {}),
    "null in the labelling": (("labelling",), {"image_shape": None, "modified": None}),
    "largest side": (("labelling",), {"image_shape": [3, 1, 2**16]}),
    "larger side": (("labelling",), {"image_shape": [3, 1, 2**16 + 1]}),
    "a whole mean": (("teachers", 0, "mean"), [0]),
    "no mean": (("teachers", 0, "mean"), []),
    "five means": (("teachers", 0, "mean"), [0.5] * 5),
    "a column": (("teachers", 0, "columns"), [2**24]),
    "a column too many": (("teachers", 0, "columns"), [2**24 + 1]),
}


@pytest.mark.parametrize(("place", "value"), MORE.values(), ids=MORE.keys())
def test_reader_and_schema_agree(place, value):
    """At the edges of each key."""
    raw = copy.deepcopy(GOLDEN[0])
    inside = raw
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    assert is_valid(raw, CHECKED_IN) is is_accepted(raw)


def places(content, place=()):
    """Where the values of a document are."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


# No whole fractions: JSON Schema takes 5.0 for an integer, the reader does not.
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(0.1, 0.9),
    st.sampled_from(["", "a", "0" * 64, "\n", "1.0"]),
    st.lists(st.sampled_from(["a", "b", 1, None]), max_size=3),
    st.dictionaries(st.sampled_from(["k", "count", "seed", "x"]), st.integers(0, 3), max_size=2),
)
# What a schema cannot compare.
TOGETHER = ("num_classes", "class_names", "top_k")


NEWER = GOLDEN[0] | {name: OPTIONAL[name] for name in ("labelling", "teachers")}


@settings(deadline=None, max_examples=400)
@given(st.sampled_from([*GOLDEN, NEWER]), st.data())
def test_reader_and_schema_agree_on_any_change(golden, data):
    """One value of a golden store, changed to anything."""
    place = data.draw(st.sampled_from([x for x in places(golden) if x[0] not in TOGETHER]))
    raw = copy.deepcopy(golden)
    inside = raw
    for key in place[:-1]:
        inside = inside[key]
    if data.draw(st.booleans()) and isinstance(inside, dict):
        del inside[place[-1]]
    else:
        inside[place[-1]] = data.draw(values)
    assert is_valid(raw, CHECKED_IN) is is_accepted(raw)
