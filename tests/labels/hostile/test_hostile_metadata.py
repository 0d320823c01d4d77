"""Metadata made to exhaust or mislead a reader; see test_hostile_stores.py for single keys."""

import json

import pytest
from test_hostile_stores import ATTRIBUTES, GRID, NO_ARRAY, put

MIB = 2**20


def group_file(forge, text: bytes):
    """The group's zarr.json, and a manifest that fits it."""
    (forge.path / "zarr.json").write_bytes(text)
    return forge.sign()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_samples", 2**40 + 1, "ltd_pipe.num_samples: .*less than or equal to 1099511627776"),
        ("num_samples", 2**64, "ltd_pipe.num_samples"),
        ("num_samples", 5.0, "ltd_pipe.num_samples: .*valid integer"),
        ("num_samples", True, "ltd_pipe.num_samples: .*valid integer"),
        ("num_samples", "5", "ltd_pipe.num_samples: .*valid integer"),
        ("num_classes", 2**24, "16777216 classes have 3 class_names"),
        ("num_classes", 2**24 + 1, "ltd_pipe.num_classes: .*less than or equal to 16777216"),
        ("views", {"count": 2**16 + 1, "seed": 1, "augmentation": "flip"}, "ltd_pipe.views.count"),
        ("views", {"count": 2**16, "seed": 1, "augmentation": "flip"}, "grid is not as format"),
        ("views", {"count": 1, "seed": 10**4000, "augmentation": "flip"}, "ltd_pipe.views.seed"),
        ("views", {"count": 1, "seed": -1, "augmentation": "flip"}, "ltd_pipe.views.seed"),
        ("top_k", {"k": 2**62}, "top_k.k is 4611686018427387904, and there are 3 classes"),
        ("top_k", {"k": 2}, "a top-k store has the array 'soft_labels'"),
        ("temperature", 1e-300, "ltd_pipe.temperature"),
        ("class_names", ["a", "b", "\x1b[2J"], r"ltd_pipe.class_names.2: .*'\\x1b\[2J'"),
        ("class_names", ["a", "b", "c\nd"], "ltd_pipe.class_names.2"),
        ("class_names", ["a", "b", "\ud800"], "ltd_pipe.class_names.2"),
        ("licence", "\x07", "ltd_pipe.licence"),
        ("citation", "x" * 10_001, "ltd_pipe.citation: .*at most 10000"),
        ("software", {"a\x1b": "1"}, r"ltd_pipe.software.a\\x1b"),
        ("must\x1b[2J", 1, r"ltd_pipe.must\\x1b\[2J: Extra inputs"),
    ],
)
def test_impossible_facts(forge, refused_cheaply, key, value, message):
    """Sizes beyond the format, types that Python would convert, texts that move the cursor."""
    forge.metadata(put(*ATTRIBUTES, key, value))
    refused_cheaply(forge.sign(), message)


def repeated(forge, text, *, key="class_names", size=15 * MIB):
    """A store whose metadata are one text, again and again, as a value of the attribute."""
    content = json.loads((forge.path / "zarr.json").read_text())
    content["attributes"]["ltd_pipe"][key] = "HERE"
    head, tail = json.dumps(content).split('"HERE"')
    return group_file(
        forge, f"{head}[{','.join([text] * (size // (len(text) + 1)))}]{tail}".encode()
    )


@pytest.mark.slow
@pytest.mark.parametrize("key", ["class_names", "teachers"])
@pytest.mark.parametrize(
    "text", ["1", "[]", "{}", '""'], ids=["numbers", "lists", "dicts", "texts"]
)
def test_millions_of_values(forge, refused_cheaply, key, text):
    """Seven million where there should be three: Python's objects, and one error."""
    refused_cheaply(
        repeated(forge, text, key=key), f"ltd_pipe|nested|{key}", peak_mib=1100, cpu_s=15
    )


@pytest.mark.parametrize("key", ["shape", "codecs", "dimension_names"])
def test_many_values_in_an_array(forge, refused_cheaply, key):
    """Zarr, which would look at each codec, is never asked."""
    forge.array("soft_labels", put(key, [{"name": "crc32c"}] * 700_000))
    found = "soft_labels/zarr.json: is too long: expected at most 65536"
    refused_cheaply(forge.sign(), found, peak_mib=1100, cpu_s=15)


def test_millions_of_keys(forge, refused_cheaply):
    """Each unknown key would be an error of its own."""
    keys = ",".join(f'"k{number}":1' for number in range(10**6))
    content = json.loads((forge.path / "zarr.json").read_text())
    content["attributes"]["ltd_pipe"]["software"] = "HERE"
    text = json.dumps(content).replace('"HERE"', "{" + keys + "}")
    found = "ltd_pipe: too many keys: expected at most 1000, found 1000000"
    refused_cheaply(group_file(forge, text.encode()), found, peak_mib=400, cpu_s=15)


@pytest.mark.parametrize("depth", [33, 100, 400, 900, 950, 1000, 10**5])
@pytest.mark.parametrize("brackets", ["[]", '{"a":1}'])
def test_nested_values(forge, refused_cheaply, depth, brackets):
    """Also at the depth that is parsed, and would end whoever compares or prints it."""
    opening, closing = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    content = json.loads((forge.path / "labels" / "zarr.json").read_text())
    content["attributes"] = "HERE"
    nested = opening * depth + "1" + closing * depth
    text = json.dumps(content).replace('"HERE"', nested)
    (forge.path / "labels" / "zarr.json").write_text(text)
    refused_cheaply(forge.sign(), "is nested more than 32 deep|not JSON that a store may hold")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "is not JSON that a store may hold"),
        (b'{"\xed\xa0\x80": 1}', "is not JSON that a store may hold"),
        (b'{"a": ' + b"9" * 10**5 + b"}", "is not JSON that a store may hold"),
        (b'{"a": 1}{"b": 2}', "is not JSON that a store may hold"),
        (b'{"a": 1}\0', "is not JSON that a store may hold"),
        (b"{'a': 1}", "is not JSON that a store may hold"),
        (b'{"a\\u001b[2J": 1, "a\\u001b[2J": 2}', "key 'a.x1b.2J' occurs twice"),
        (b'{"a": 1e999}', "is no soft-label store"),
    ],
    ids=["BOM", "UTF-16", "surrogate", "digits", "two", "NUL", "quotes", "escape", "infinity"],
)
def test_texts_that_are_no_json(forge, refused_cheaply, text, message):
    """What parsers treat differently, and digits that take Python the square of their number."""
    refused_cheaply(group_file(forge, text), message)


EXTRA = {
    "of another name": ("more", "does not know: found 'more'"),
    "out of the store": ("../../x", "does not know: found '../../x'"),
    "that nobody publishes": ("topk_distance", "does not know: found 'topk_distance'"),
    "both dense and sparse": ("topk_probs", "a store without top_k has the array 'topk_probs'"),
    "with an escape": ("\x1b[2J", r"does not know: found '\\x1b"),
}


@pytest.mark.parametrize(("name", "message"), EXTRA.values(), ids=EXTRA.keys())
def test_more_arrays_than_the_format_has(forge, refused_cheaply, name, message):
    """In a store of 1.0, where an unknown attribute is an error too."""
    members = json.loads((forge.path / "zarr.json").read_text())["consolidated_metadata"]
    labels = members["metadata"]["labels"]
    forge.metadata(put("consolidated_metadata", "metadata", name, labels))
    refused_cheaply(forge.sign(), message)


def test_a_newer_version_may_have_more_arrays(forge, victim):
    """A 1.x reader ignores what 1.y added."""
    forge.metadata(put(*ATTRIBUTES, "version", "1.1"))
    forge.metadata(put("consolidated_metadata", "metadata", "more", {}))
    assert victim.use(forge.sign())["error"] is None


def test_views_that_the_arrays_do_not_have(forge_views, refused_cheaply):
    """Three are claimed and two are there; then one is claimed."""
    forge_views.metadata(put(*ATTRIBUTES, "views", "count", 3))
    refused_cheaply(
        forge_views.sign(), "soft_labels/zarr.json: chunk_grid is not as format 1.0 says"
    )
    forge_views.metadata(put(*ATTRIBUTES, "views", "count", 1))
    refused_cheaply(forge_views.sign(), "soft_labels/zarr.json: .* is not as format 1.0 says")


def test_ranks_that_the_arrays_do_not_have(forge_topk, refused_cheaply):
    """Three are claimed and two are there; then none."""
    forge_topk.metadata(put(*ATTRIBUTES, "top_k", "k", 3))
    refused_cheaply(
        forge_topk.sign(), "topk_indices/zarr.json: chunk_grid is not as format 1.0 says"
    )
    forge_topk.metadata(lambda content: content["attributes"]["ltd_pipe"].pop("top_k"))
    refused_cheaply(forge_topk.sign(), "a store without top_k has the array 'topk_indices'")


CHUNKS = {
    "negative": -4,
    "zero": 0,
    "a fraction": 4.0,
    "a truth": True,
    "a text": "4",
    "nothing": None,
    "a list": [4],
    "sixty-four bits": 2**64,
    "a digit for each atom": 10**80,
}


@pytest.mark.parametrize("rows", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("name", ["soft_labels", "labels", "sample_hash"])
def test_impossible_rows_per_chunk(forge, refused_cheaply, name, rows):
    """Anything but a whole number, and one whose chunk is beyond 256 MiB."""
    forge.array(
        name,
        lambda content: content["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, rows),
    )
    refused_cheaply(
        forge.sign(),
        f"{name}(/zarr.json)?: (chunk_shape: expected rows >= 1|chunks are too large|{NO_ARRAY})",
    )


BOMBS = {
    codec: [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": codec}]
    for codec in ("gzip", "zstd", "blosc", "sharding_indexed", "numcodecs.pickle", "transpose")
}


@pytest.mark.parametrize("codecs", BOMBS.values(), ids=BOMBS.keys())
def test_decompression_bombs(forge, refused_cheaply, codecs):
    """A few bytes that would become gigabytes: nothing is ever decompressed."""
    import gzip

    for name in ("soft_labels", "logits", "labels", "sample_hash"):
        forge.array(name, put("codecs", codecs))
        forge.array(name, put(*GRID, 0, 2**20))
    bomb = gzip.compress(bytes(64 * MIB), 1)
    (forge.path / "soft_labels" / "c" / "0" / "0").write_bytes(bomb)
    refused_cheaply(forge.sign(), f"codecs is not as format 1.0 says|{NO_ARRAY}")


TYPES = [
    "object",
    "string",
    "|O",
    "bool",
    "float64",
    "complex64",
    "r16",
    "datetime64",
    ["f2"],
    None,
    7,
]


@pytest.mark.parametrize("data_type", TYPES, ids=str)
def test_other_types(forge, refused_cheaply, data_type):
    """Objects above all: reading them means unpickling."""
    forge.array("soft_labels", put("data_type", data_type))
    refused_cheaply(forge.sign(), f"(data_type|codecs) is not as format 1.0 says|{NO_ARRAY}")
