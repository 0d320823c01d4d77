"""Stores made to harm: each is refused with a StoreError, quickly and in little memory.

Whoever makes a store controls every file of it, the manifest too, so that no checksum helps;
only the format's own bounds do.
"""

import json
import os
import shutil

import numpy as np
import pytest
from refusals import refused

from ltd_pipe.errors import StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.verify import verify_store


@pytest.mark.parametrize("kind", ["forge", "forge_topk", "forge_views"])
def test_an_untouched_forgery_is_accepted(request, victim, kind):
    """So that each refusal below is of what was changed."""
    found = victim.use(request.getfixturevalue(kind).sign())
    assert found["error"] is None
    assert found["peak_mib"] < 64


def put(*keys_and_value):
    """A change of nested JSON: keys, then the value."""
    *keys, last, value = keys_and_value

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


# Of what zarr itself does not read, it says what is wrong.
NO_ARRAY = "is not that of a Zarr v3 array as format 1.0 says"
GRID = ("chunk_grid", "configuration", "chunk_shape")
ARRAYS = {
    "huge shape": (put("shape", [2**40, 3]), "shape is not as format"),
    "negative shape": (put("shape", [-5, 3]), "shape is not as format"),
    "shape of floats": (put("shape", [5.0, 3]), "shape is not as format"),
    "negative chunk": (put(*GRID, [-4, 3]), "chunk_shape: expected rows >= 1, found -4"),
    "chunk of zero": (put(*GRID, [0, 3]), "chunk_shape: expected rows >= 1, found 0"),
    "chunk of true": (put(*GRID, [True, 3]), "chunk_shape: expected rows >= 1, found True"),
    "chunk of nothing": (put(*GRID, []), "has no chunk_shape"),
    "huge chunk": (put(*GRID, [2**60, 3]), "chunks are too large"),
    "chunk that splits rows": (put(*GRID, [4, 1]), "chunk_grid is not as format"),
    "no grid": (put("chunk_grid", None), "has no chunk_shape"),
    "chunks that differ": (put(*GRID, [5, 3]), "arrays differ in the rows of a chunk"),
    "object dtype": (put("data_type", "object"), "data_type is not as format"),
    "wrong dtype": (put("data_type", "float32"), "data_type is not as format"),
    "dtype with code": (put("data_type", {"name": "pickle"}), "data_type is not as format"),
    "big endian": (
        put("codecs", [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]),
        "codecs is not as format",
    ),
    "compression": (
        put("codecs", [{"name": "bytes"}, {"name": "zstd"}, {"name": "crc32c"}]),
        "codecs is not as format",
    ),
    "pickle codec": (put("codecs", [{"name": "pickle"}]), "codecs is not as format"),
    "no checksum": (
        put("codecs", [{"name": "bytes", "configuration": {"endian": "little"}}]),
        "codecs is not as format",
    ),
    "codecs that are no list": (put("codecs", 7), "codecs is not as format"),
    "fill value of zero": (put("fill_value", 0.0), "fill_value is not as format"),
    "dots in chunk names": (
        put("chunk_key_encoding", "configuration", "separator", "/../"),
        "chunk_key_encoding is not as format",
    ),
    "storage transformers": (
        put("storage_transformers", [{"name": "http"}]),
        "storage_transformers is not as format",
    ),
    "unknown key": (put("must_run", "rm"), "must_run is not as format"),
    "zarr 2": (put("zarr_format", 2), "zarr_format is not as format"),
}


@pytest.mark.parametrize(("change", "message"), ARRAYS.values(), ids=ARRAYS.keys())
def test_hostile_array_metadata(forge, change, message, refused_cheaply):
    """Anything but format 1.0's own array is refused by name, before its chunks are touched."""
    forge.array("soft_labels", change)
    refused_cheaply(forge.sign(), f"hostile.zarr: .*({message}|{NO_ARRAY})")


ATTRIBUTES = ("attributes", "ltd_pipe")
GROUPS = {
    "more samples than files": (
        put(*ATTRIBUTES, "num_samples", 2**40),
        "soft_labels/zarr.json: shape is not as format",
    ),
    "more classes than columns": (put(*ATTRIBUTES, "num_classes", 2), "2 classes have 3"),
    "no attributes": (put("attributes", None), "is no soft-label store"),
    "attributes that are a list": (put("attributes", []), "is no soft-label store"),
    "an array, not a group": (put("node_type", "array"), "not that of a Zarr v3 group"),
    "no consolidated metadata": (put("consolidated_metadata", None), "no consolidated metadata"),
    "consolidated metadata as text": (
        put("consolidated_metadata", "metadata", "x"),
        "no consolidated metadata",
    ),
    "consolidated metadata that differ": (
        put("consolidated_metadata", "metadata", "labels", "shape", [6]),
        "labels/zarr.json differs from the consolidated metadata",
    ),
    "an array that is left out": (
        put("consolidated_metadata", "metadata", {}),
        "has no array 'soft_labels'",
    ),
    "a path for a temperature": (put(*ATTRIBUTES, "temperature", "/etc/passwd"), "temperature"),
}


@pytest.mark.parametrize(("change", "message"), GROUPS.values(), ids=GROUPS.keys())
def test_hostile_group_metadata(forge, change, message, refused_cheaply):
    """The group's own file, likewise."""
    forge.metadata(change)
    refused_cheaply(forge.sign(), message)


def test_a_huge_but_consistent_shape(forge, refused_cheaply):
    """A trillion samples whose files are not there cost no memory: the first is missed."""
    rows = 2**40
    forge.metadata(put(*ATTRIBUTES, "num_samples", rows))
    for name in ("soft_labels", "logits", "labels", "sample_hash"):
        tail = [3] if name in ("soft_labels", "logits") else []
        forge.array(name, put("shape", [rows, *tail]))
    refused_cheaply(forge.sign(), "soft_labels/c/2/0 is missing")


TEXTS = {
    "a key twice": (b'{"attributes": {}, "attributes": {}}', "key 'attributes' occurs twice"),
    "NaN": (b'{"attributes": NaN}', "NaN is no JSON number"),
    "infinity": (b'{"attributes": -Infinity}', "-Infinity is no JSON number"),
    "a list": (b"[]", "is not a JSON object"),
    "nothing": (b"", "is not JSON that a store may hold"),
    "cut short": (b'{"attributes": ', "is not JSON that a store may hold"),
    "no UTF-8": (b'{"\xff": 1}', "is not JSON that a store may hold"),
    "deep nesting": (b"[" * 200_000, "is not JSON that a store may hold"),
    "a number of a million digits": (b'{"a": ' + b"9" * 10**6 + b"}", "is not JSON that a store"),
    "seventeen megabytes": (b" " * (2**24 + 1) + b"{}", "zarr.json is too large: expected at most"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS.keys())
def test_hostile_json(forge, text, message, refused_cheaply):
    """JSON that parsers disagree on, or that is made to exhaust one."""
    (forge.path / "zarr.json").write_bytes(text)
    refused_cheaply(forge.sign(), message)


HASH = "0" * 64
MANIFESTS = {
    "out of the store": f"{HASH}  ../secret\n",
    "out of the store, later": f"{HASH}  labels/../../secret\n",
    "absolute": f"{HASH}  /etc/passwd\n",
    "home": f"{HASH}  ~/secret\n",
    "hidden": f"{HASH}  .git/config\n",
    "backslash": f"{HASH}  labels\\zarr.json\n",
    "an empty part": f"{HASH}  labels//zarr.json\n",
    "NUL": f"{HASH}  labels\0\n",
    "itself": f"{HASH}  MANIFEST.sha256\n",
    "binary mark": f"{HASH} *zarr.json\n",
    "upper case": f"{'A' * 64}  zarr.json\n",
    "short hash": f"{HASH[1:]}  zarr.json\n",
    "twice": f"{HASH}  zarr.json\n{HASH}  zarr.json\n",
    "not sorted": f"{HASH}  zarr.json\n{HASH}  labels/zarr.json\n",
    "a comment": "# hello\n",
    "an empty line": f"\n{HASH}  zarr.json\n",
    "carriage returns": f"{HASH}  zarr.json\r\n",
    "no line feed at the end": f"{HASH}  zarr.json",
    "other letters": f"{HASH}  zärr.json\n",
}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_hostile_manifests(forge, text, refused_cheaply):
    """Names that lead elsewhere, and lines that two programs could read differently."""
    (forge.path / "MANIFEST.sha256").write_bytes(text.encode())
    refused_cheaply(forge.path, "MANIFEST.sha256")


def test_an_empty_manifest(forge, refused_cheaply):
    """A store that lists nothing vouches for nothing."""
    (forge.path / "MANIFEST.sha256").write_bytes(b"")
    refused_cheaply(forge.path, "zarr.json is not listed")


def test_a_giant_manifest_is_refused_unread(forge, refused_cheaply):
    """A sparse file of a terabyte."""
    os.truncate(forge.path / "MANIFEST.sha256", 2**40)
    refused_cheaply(forge.path, "MANIFEST.sha256 is too large")


@pytest.mark.parametrize(
    "name", ["soft_labels/c/0/0", "labels/c/0", "zarr.json", "labels/zarr.json", "MANIFEST.sha256"]
)
def test_a_symbolic_link_to_a_file(forge, tmp_path, name, refused_cheaply):
    """Even to the right bytes: it could lead anywhere tomorrow."""
    path = forge.path / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused_cheaply(forge.path, f"{name} is a symbolic link or lies behind one")


@pytest.mark.parametrize("name", ["soft_labels", "soft_labels/c", "soft_labels/c/1", "labels/c"])
def test_a_symbolic_link_to_a_folder(forge, tmp_path, name, refused_cheaply):
    """At every level."""
    path = forge.path / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    refused_cheaply(forge.path, "is a symbolic link or lies behind one")


def test_an_unlisted_link_is_found(forge):
    """Verification does not follow it either."""
    (forge.path / "away").symlink_to("/etc")
    with refused(StoreError, where="hostile.zarr", what="away is not listed"):
        verify_store(forge.path)


def test_a_pipe_for_a_chunk(forge, refused_cheaply):
    """Opening it would wait for ever."""
    chunk = forge.path / "soft_labels" / "c" / "0" / "0"
    chunk.unlink()
    os.mkfifo(chunk)
    refused_cheaply(forge.path, "soft_labels/c/0/0 is not a regular file")


def test_a_folder_for_a_chunk(forge, refused_cheaply):
    """Not a file at all."""
    chunk = forge.path / "labels" / "c" / "0"
    chunk.unlink()
    chunk.mkdir()
    refused_cheaply(forge.path, "labels/c/0 is not a regular file")


def test_many_unlisted_files(forge, refused_cheaply):
    """Verification stops at the first."""
    for number in range(2000):
        (forge.path / f"file{number}").touch()
    refused_cheaply(forge.path, "file.* is not listed")


def rows(*values):
    """A chunk of four rows of three classes."""
    return np.resize(np.array(values, np.float16), (4, 3)).tobytes()


ROWS = {
    "NaN": (
        "soft_labels",
        rows(np.nan, 0.5, 0.5),
        "sample 0: soft_labels: .*probabilities.*nan",
    ),
    "infinity": ("soft_labels", rows(np.inf, 0, 0), "sample 0: soft_labels: .* found inf"),
    "negative": ("soft_labels", rows(1.5, -0.5, 0), "sample 0: soft_labels: .* found -0.5"),
    "sum of two": ("soft_labels", rows(1, 1, 0), "sample 0: the soft label is no distribution"),
    "sum of zero": ("soft_labels", rows(0, 0, 0), "sample 0: the soft label is no distribution"),
    "NaN logits": ("logits", rows(np.nan, 0, 0), "sample 0: logits: expected finite .* nan"),
    "infinite logits": ("logits", rows(0, -np.inf, 0), "sample 0: logits: .* found -inf"),
}


@pytest.mark.parametrize(("name", "payload", "message"), ROWS.values(), ids=ROWS.keys())
def test_hostile_rows(forge, name, payload, message, refused_cheaply):
    """Rows that would turn a training run to NaN, with every checksum right."""
    forge.chunk(f"{name}/c/0/0", payload)
    refused_cheaply(forge.sign(), message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_rows_of_no_numbers_are_never_gathered(forge, value):
    """Without verification: the reader itself refuses, wherever in the chunk they are."""
    chunk = np.full((4, 3), 1 / 3, np.float16)
    chunk[2, 1] = value
    forge.chunk("soft_labels/c/0/0", chunk.tobytes())
    store = SoftLabels.open(forge.sign())
    with refused(
        StoreError, where="hostile.zarr", what="sample 2: soft_labels", expected="probabilities"
    ):
        store.gather(np.array([0]))


def test_a_negative_zero(forge, refused_cheaply):
    """A sign that a comparison does not see, and that no softmax gives."""
    chunk = np.full((4, 3), 0.5, np.float16)
    chunk[:, 1] = -0.0
    forge.chunk("soft_labels/c/0/0", chunk.tobytes())
    refused_cheaply(forge.sign(), "sample 0: soft_labels: expected probabilities, found -0.0")


def test_soft_labels_that_are_not_the_logits_softmax(forge, refused_cheaply):
    """Distributions, but other ones."""
    forge.chunk("soft_labels/c/0/0", rows(0.25, 0.5, 0.25))
    refused_cheaply(forge.sign(), "sample 0: soft_labels are not softmax")


def test_the_labels_of_other_images(forge, refused_cheaply):
    """Hashes exchanged, with every checksum right: the fingerprint is of their order."""
    path = forge.path / "sample_hash" / "c" / "0"
    forge.chunk("sample_hash/c/0", np.frombuffer(path.read_bytes()[:-4], "<u8")[::-1].tobytes())
    refused_cheaply(forge.sign(), "fingerprint of its own labels and hashes")


@pytest.mark.parametrize("label", [3, -2, 2**31 - 1, -(2**31)])
def test_labels_that_are_no_classes(forge, refused_cheaply, label):
    """-1 is the unknown one; no other number means anything."""
    forge.chunk("labels/c/0", np.array([0, label, 0, 0], np.int32).tobytes())
    refused_cheaply(forge.sign(), f"sample 1: labels: expected -1 to 2, found {label}")
    with refused(StoreError, what="sample 1: labels", expected="-1 to 2", found=label):
        SoftLabels.open(forge.path)


@pytest.mark.parametrize(
    "name", ["soft_labels/c/1/0", "logits/c/1/0", "labels/c/1", "sample_hash/c/1"]
)
def test_something_behind_the_last_row(forge, refused_cheaply, name):
    """The padding of the last chunk is the fill value, and nothing else."""
    payload = bytearray((forge.path / name).read_bytes()[:-4])
    payload[-2:] = b"!!"
    forge.chunk(name, bytes(payload))
    refused_cheaply(forge.sign(), f"{name}: padding: expected the fill value")


def test_something_inside_the_nan_behind_the_last_row(forge, refused_cheaply):
    """A NaN has 10 bits that nobody looks at."""
    name = "soft_labels/c/1/0"
    payload = bytearray((forge.path / name).read_bytes()[:-4])
    payload[-2:] = np.uint16(0x7E41).tobytes()
    assert np.isnan(np.frombuffer(payload, np.float16)[-1])
    forge.chunk(name, bytes(payload))
    refused_cheaply(forge.sign(), f"{name}: padding: expected the fill value")


def ranks(*classes):
    """A chunk of four rows of two classes."""
    return np.resize(np.array(classes, np.uint16), (4, 2)).tobytes()


def probs(*values):
    """A chunk of four rows of two probabilities."""
    return np.resize(np.array(values, np.float16), (4, 2)).tobytes()


RANKS = {
    "no such class": ("topk_indices", ranks(0, 5), "sample 0: topk_indices: .* 0 to 4, found 5"),
    "far beyond": ("topk_indices", ranks(0, 65535), "sample 0: topk_indices: .* found 65535"),
    "a class twice": ("topk_indices", ranks(3, 3), "sample 0: a class twice"),
    "rising": ("topk_probs", probs(0.25, 0.5), "sample 0: probabilities rise with rank"),
    "more than one": ("topk_probs", probs(0.75, 0.5), "sample 0: .* sum at most 1"),
    "NaN": ("topk_probs", probs(np.nan, 0), "sample 0: topk_probs: .* found nan"),
    "infinite": ("topk_probs", probs(np.inf, 0), "sample 0: topk_probs: .* found inf"),
    "negative": ("topk_probs", probs(0.5, -0.5), "sample 0: topk_probs: .* found -0.5"),
    "negative zero": ("topk_probs", probs(0.5, -0.0), "sample 0: topk_probs: .* found -0.0"),
}


@pytest.mark.parametrize(("name", "payload", "message"), RANKS.values(), ids=RANKS.keys())
def test_hostile_ranks(forge_topk, refused_cheaply, name, payload, message):
    """A class beyond the row would be written into memory that is another's."""
    forge_topk.chunk(f"{name}/c/0/0", payload)
    refused_cheaply(forge_topk.sign(), message)


def test_classes_beyond_the_row_are_never_spread(forge_topk):
    """Without verification: the reader itself refuses."""
    forge_topk.chunk("topk_indices/c/0/0", ranks(0, 1, 65535, 1))
    store = SoftLabels.open(forge_topk.sign())
    for gather in (store.gather, store.gather_topk):
        with refused(
            StoreError,
            where="hostile.zarr",
            what="sample 1: topk_indices",
            expected="0 to 4",
            found=65535,
        ):
            gather(np.array([0]))


def test_a_class_twice_is_never_spread(forge_topk):
    """Without verification, too: which of its probabilities counts would be left to chance."""
    forge_topk.chunk("topk_indices/c/0/0", ranks(0, 1, 3, 3))
    store = SoftLabels.open(forge_topk.sign())
    for gather in (store.gather, store.gather_topk):
        with refused(StoreError, where="hostile.zarr", what="sample 1: a class twice"):
            gather(np.array([0]))


@pytest.mark.parametrize("options", [{}, {"top_k": 3}], ids=["dense", "K ranks"])
def test_rows_of_zeros_are_never_gathered(forge, making, options):
    """They would be divided by their sum; without verification, the reader itself refuses."""
    shutil.rmtree(forge.path)
    making().write(forge.path, **options)
    name = "topk_probs" if options else "soft_labels"
    forge.chunk(f"{name}/c/1/0", rows(1, 0, 0, 0, 0, 0))
    store = SoftLabels.open(forge.sign())
    with refused(StoreError, where="hostile.zarr", what="sample 5: the soft", found="0.000000"):
        store.gather(np.arange(4, 8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_no_view_is_left_out(forge_views, refused_cheaply, value):
    """The second view's last row is looked at too."""
    chunk = np.full((4, 2, 3), 1 / 3, np.float16)
    chunk[3, 1, 2] = value
    forge_views.chunk("soft_labels/c/0/0/0", chunk.tobytes())
    refused_cheaply(forge_views.sign(), "sample 3: soft_labels: expected probabilities, found")


def test_padding_is_not_mistaken_for_rows(forge):
    """The last chunk's padding is NaN, and that is as it should be."""
    content = json.loads((forge.path / "soft_labels" / "zarr.json").read_text())
    assert content["fill_value"] == "NaN"
    assert np.isfinite(SoftLabels.open(forge.sign()).gather(np.array([4]))).all()
