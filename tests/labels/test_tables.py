"""Tables: there and back is the same store, and what is no store's table is refused."""

import io
import json
import os
import re
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_answers import attributes
from refusals import refused

from ltd_pipe.errors import MachineError, MissingError, ParamsError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.convert import Origin
from ltd_pipe.labels.tables import (
    NpzTable,
    ParquetTable,
    write_npz,
    write_parquet,
)
from ltd_pipe.labels.verify import verify_store

KINDS = {"npz": (write_npz, NpzTable), "parquet": (write_parquet, ParquetTable)}
LAYOUTS = {
    "dense with logits": ({}, {}),
    "dense": ({}, {"keep_logits": False}),
    "sparse": ({"num_classes": 8}, {"top_k": 3}),
    "views": ({"views": 3}, {}),
    "sparse views": ({"views": 2, "num_classes": 5}, {"top_k": 2}),
    "one sample": ({"num_samples": 1}, {}),
}


def tree(folder):
    """All files of a folder by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def brought_back(path, target, kind, **options):
    """A store made of a table, verified and opened."""
    table = KINDS[kind][1](path)
    try:
        identity = table.to_store(**options).write(target)
    finally:
        table.close()
    verify_store(target)
    assert SoftLabels.open(target).identity == identity
    return SoftLabels.open(target)


@pytest.fixture(params=KINDS)
def kind(request):
    """Each kind of table."""
    return request.param


@pytest.mark.parametrize(("size", "options"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_there_and_back_is_the_same_store(making, tmp_path, kind, size, options):
    """Every file is equal, and so is the identity."""
    store = making(**size).write(tmp_path / "labels.zarr", **options)
    KINDS[kind][0](SoftLabels.open(store), tmp_path / "table")
    brought_back(tmp_path / "table", tmp_path / "again.zarr", kind)
    assert tree(tmp_path / "again.zarr") == tree(store)


def test_the_same_store_gives_the_same_npz(source, tmp_path):
    """No time stamps."""
    for name in ("a.npz", "b.npz"):
        write_npz(source, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_numpy_reads_the_npz(source, tmp_path):
    """Without software of ours and without pickle."""
    write_npz(source, tmp_path / "table.npz")
    with np.load(tmp_path / "table.npz", allow_pickle=False) as content:
        for name, array in source.arrays.items():
            np.testing.assert_array_equal(content[name], array.read())
            assert content[name].dtype == array.layout.dtype
        known = json.loads(str(content["ltd_pipe"]))
    assert known["ltd_pipe"] == source.attributes.to_json()
    assert known["chunk_rows"] == 4


def test_arrow_reads_the_parquet(source, tmp_path):
    """Lists of float32, which hold the stored float16 exactly."""
    write_parquet(source, tmp_path / "table.parquet")
    table = pq.read_table(tmp_path / "table.parquet")
    soft = np.array(table["soft_labels"].to_pylist(), np.float32)
    np.testing.assert_array_equal(soft, source.arrays["soft_labels"].read())
    np.testing.assert_array_equal(table["sample_hash"].to_numpy(), source.sample_hash)
    known = json.loads(table.schema.metadata[b"ltd_pipe"])
    assert known["ltd_pipe"] == source.attributes.to_json()


def foreign(kind, path, columns):
    """A table that somebody else made."""
    if kind == "npz":
        np.savez_compressed(path, **columns)
        return path
    lists = {name: each.tolist() if each.ndim > 1 else each for name, each in columns.items()}
    pq.write_table(pa.table(lists), path)
    return path


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_of_others_are_joined_by_hash(answers, tmp_path, kind, dtype):
    """Labels in any order, of which the data says the classes and the ground truth."""
    order = np.array([5, 2, 8])
    soft = np.exp(answers.logits[order].astype(dtype))
    soft /= soft.sum(axis=1, keepdims=True)
    given = {"soft_labels": soft, "sample_hash": answers.sample_hash[order]}
    path = foreign(kind, tmp_path / f"table.{kind}", given)
    origin = Origin("cd" * 32, "timm:resnet18", 1.0, licence="MIT")
    found = brought_back(path, tmp_path / "a.zarr", kind, origin=origin, images=answers)
    np.testing.assert_allclose(found.gather(np.arange(3)), soft, atol=2**-11)
    np.testing.assert_array_equal(found.labels, answers.labels[order])
    known = found.attributes
    assert (known.temperature, known.licence, known.dataset.name) == (1.0, "MIT", "digits")
    assert [teacher.sha256 for teacher in known.teachers] == ["cd" * 32]
    assert known.derived_from.operation == "convert"
    assert known.derived_from.sources[0].startswith(f"{kind}, SHA-256 ")


def test_logits_of_others_are_softened(answers, tmp_path, kind):
    """As the writer does, at the temperature that is told."""
    given = {"logits": answers.logits, "sample_hash": answers.sample_hash}
    path = foreign(kind, tmp_path / f"table.{kind}", given)
    found = brought_back(
        path, tmp_path / "a.zarr", kind, origin=Origin(temperature=2.0), images=answers
    )
    assert found.has_logits
    assert found.attributes.teachers == ()
    expected = answers.write(tmp_path / "b.zarr")
    np.testing.assert_array_equal(
        found.gather(np.arange(11)), SoftLabels.open(expected).gather(np.arange(11))
    )


@pytest.mark.parametrize("dtype", [int, float])
def test_sparse_rows_of_others_are_taken(answers, tmp_path, kind, dtype):
    """In any order of the ranks; how far they are from dense rows is unknown."""
    given = {
        "topk_indices": np.tile([2, dtype(0)], (11, 1)),
        "topk_probs": np.tile([0.25, 0.5], (11, 1)),
        "sample_hash": answers.sample_hash,
    }
    path = foreign(kind, tmp_path / f"table.{kind}", given)
    found = brought_back(path, tmp_path / "a.zarr", kind, images=answers)
    indices, probs = found.gather_topk(np.arange(11))
    assert indices[0].tolist() == [0, 2]
    assert probs[0].tolist() == [0.5, 0.25]
    assert found.attributes.top_k.total_variation is None


def refused_table(kind, path, images=None, **fields):
    """A table is refused with these fields, and nothing is published."""
    with refused((StoreError, ParamsError), **fields):
        brought_back(path, path.with_name("never.zarr"), kind, images=images)
    assert not path.with_name("never.zarr").exists()


BAD = {
    "no hashes": ({"sample_hash": None}, {"what": "sample_hash"}),
    "other images": ({"sample_hash": np.arange(11, dtype=np.uint64)}, {"what": "row 0 is not"}),
    "signed hashes": (
        {"sample_hash": np.arange(-1, 10)},
        {"what": "sample_hash", "found": "int64 from -1 to 9", "remedy": "view(numpy.uint64)"},
    ),
    "a sum of two": (
        {"soft_labels": np.full((11, 3), 2 / 3)},
        {"what": "distribution", "expected": re.compile("^sum 1 ")},
    ),
    "NaN": (
        {"soft_labels": np.full((11, 3), np.nan)},
        {"what": "soft_labels", "expected": "probabilities"},
    ),
    "other classes": (
        {"soft_labels": np.full((11, 4), 0.25)},
        {"what": "soft_labels", "expected": "3", "found": "4"},
    ),
    "no labels": ({"soft_labels": None}, {"what": "labels", "found": "sample_hash"}),
    "half a pair": (
        {"soft_labels": None, "topk_probs": np.full((11, 1), 0.5)},
        {"what": "arrays", "found": "topk_probs"},
    ),
    "a fraction of a class": (
        {
            "soft_labels": None,
            "topk_indices": np.tile([0, 1.7], (11, 1)),
            "topk_probs": np.tile([0.5, 0.25], (11, 1)),
        },
        {"what": "sample 0: topk_indices", "expected": "0 to 2", "found": 1.7},
    ),
    "other truth": (
        {"labels": np.full(11, 7)},
        {"what": "row 0", "expected": re.compile("^class "), "found": 7},
    ),
}


@pytest.mark.parametrize(("change", "fields"), BAD.values(), ids=BAD.keys())
def test_tables_that_make_no_store_are_refused(answers, tmp_path, kind, change, fields):
    """One line, and nothing is published."""
    given = {"soft_labels": np.full((11, 3), 1 / 3), "sample_hash": answers.sample_hash} | change
    given = {name: each for name, each in given.items() if each is not None}
    path = foreign(kind, tmp_path / f"table.{kind}", given)
    refused_table(kind, path, images=answers, where=path, **fields)


def _slips(truth):
    truth = np.maximum(truth, 0)  # -1 is unknown
    right = np.full((len(truth), 3), 0.1)
    right[np.arange(len(truth)), truth] = 0.8
    moved, remedy = np.roll(right, 1, axis=1), "order of the data's classes"
    return {
        "probabilities as logits": ({"logits": right}, "softmax"),
        "logits as probabilities": ({"soft_labels": np.log(right)}, "If these are logits"),
        "large logits as probabilities": ({"soft_labels": 9 * right}, "If these are logits"),
        "another order": ({"soft_labels": moved}, remedy),
        "another order of logits": ({"logits": np.log(moved)}, remedy),
        "another order, sparse": (
            {
                "topk_indices": np.stack([(truth + 1) % 3, truth], axis=1),
                "topk_probs": np.tile([0.8, 0.1], (len(truth), 1)),
            },
            remedy,
        ),
    }


@pytest.mark.parametrize("slip", _slips(np.zeros(1, int)))
def test_labels_that_cannot_be_meant_are_refused(making, tmp_path, kind, slip):
    """Under another name, or in another order of the classes; the remedy says which it is."""
    answers = making(num_samples=60)
    given, remedy = _slips(answers.labels)[slip]
    path = foreign(kind, tmp_path / f"table.{kind}", given | {"sample_hash": answers.sample_hash})
    with pytest.raises(StoreError) as caught:
        brought_back(path, tmp_path / "never.zarr", kind, images=answers)
    assert remedy in caught.value.remedy
    assert not (tmp_path / "never.zarr").exists()


def test_tables_of_unknown_images_are_refused(answers, tmp_path, kind):
    """Without the data nobody knows the classes."""
    given = {"soft_labels": np.full((11, 3), 1 / 3), "sample_hash": answers.sample_hash}
    path = foreign(kind, tmp_path / f"table.{kind}", given)
    refused_table(kind, path, where=path, what="classes", remedy="--data")


def test_a_table_whose_rows_are_not_its_store_s_is_refused(source, tmp_path):
    """Rows that were taken out with a data-frame tool are no longer that store."""
    write_parquet(source, tmp_path / "table.parquet")
    table = pq.read_table(tmp_path / "table.parquet")
    pq.write_table(table.slice(0, 5), tmp_path / "part.parquet")
    refused_table("parquet", tmp_path / "part.parquet", what="fingerprint", remedy="metadata")


def test_a_store_s_table_with_labels_that_are_no_classes_is_refused(answers, tmp_path):
    """However right its fingerprint is: they would be counted."""
    labels, hashes = np.full(11, 3, np.int32), answers.sample_hash
    known = attributes(labels, hashes, answers.attributes.class_names)
    carried = json.dumps({"ltd_pipe": known.to_json(), "chunk_rows": 4})
    given = {"labels": labels, "sample_hash": hashes, "ltd_pipe": carried}
    path = foreign("npz", tmp_path / "table.npz", {"logits": answers.logits} | given)
    refused_table("npz", path, what="sample 0: labels", expected="-1 to 2", found=3)


@pytest.mark.parametrize("layout", ["dense with logits", "dense", "sparse", "sparse views"])
def test_a_table_whose_answers_were_changed_is_refused(making, tmp_path, kind, layout):
    """They are not that teacher's, though each row is a distribution, and of these images."""
    size, options = LAYOUTS[layout]
    store = making(**size).write(tmp_path / "labels.zarr", **options)
    KINDS[kind][0](SoftLabels.open(store), tmp_path / "table")
    name, changed = "topk_probs" if "sparse" in layout else "soft_labels", tmp_path / "changed.npz"
    if kind == "npz":
        with np.load(tmp_path / "table") as content:
            np.savez(changed, **{**content, name: np.roll(content[name], 1, axis=0)})
    else:
        table = pq.read_table(tmp_path / "table")
        place, order = table.schema.get_field_index(name), [10, *range(10)]
        field, column = table.schema.field(place), table[name].combine_chunks()
        pq.write_table(table.set_column(place, field, column.take(order)), changed)
    refused_table(kind, changed, where=changed, what=f"SHA-256 of {name}", remedy="metadata")


@pytest.mark.parametrize("place", [90, 200, 600])
def test_a_damaged_npz_is_refused(source, tmp_path, place):
    """A flipped bit in a header, in a row, anywhere."""
    path = tmp_path / "table.npz"
    write_npz(source, path)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    refused_table("npz", path)


def test_damaged_and_missing_files_are_refused(source, tmp_path, kind):
    """Cut short, something else, or not there."""
    path = tmp_path / "table"
    KINDS[kind][0](source, path)
    content = path.read_bytes()
    for wrong in (content[: len(content) // 2], b"", b"PK\3\4" + bytes(100)):
        path.write_bytes(wrong)
        refused_table(kind, path, where=path, what="is no")
    with refused(MissingError, where=tmp_path / "absent", what="file"):
        KINDS[kind][1](tmp_path / "absent")


def npz_member(name, array, *, pickled=False):
    """The bytes of a .npz with one array."""
    member, whole = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array(member, array, allow_pickle=pickled)
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(f"{name}.npy", member.getvalue())
    return whole.getvalue()


HOSTILE = {
    "pickled objects": np.array([[print]], object),
    "by column": np.asfortranarray(np.ones((3, 2))),
    "texts": np.array([["a"]]),
    "no rows": np.ones((0, 3)),
    "a single number": np.array(1.0),
}


@pytest.mark.parametrize("array", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_table_of_numbers_is_refused(tmp_path, array):
    """Pickled members above all: they are never opened."""
    path = tmp_path / "table.npz"
    path.write_bytes(npz_member("soft_labels", array, pickled=array.dtype == object))
    refused_table("npz", path, what="soft_labels", expected="numbers, row after row")


def test_a_header_that_promises_more_rows_is_refused(answers, tmp_path):
    """No more is read than is there, and no more memory taken than for one step."""
    path = tmp_path / "table.npz"
    whole, member = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "<f4", "fortran_order": False, "shape": (11, 3)}
    )
    member.write(bytes(12))
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("soft_labels.npy", member.getvalue())
        hashes = io.BytesIO()
        np.save(hashes, answers.sample_hash)
        archive.writestr("sample_hash.npy", hashes.getvalue())
    path.write_bytes(whole.getvalue())
    refused_table("npz", path, images=answers, what="short")


def test_more_rows_than_fit_into_memory_are_refused(tmp_path):
    """Before a column is read: of zeros a small file holds any number."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count, path = memory // 32 + 1, tmp_path / "labels.npz"
    header = {"descr": "<f2", "fortran_order": False, "shape": (count, 3)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("soft_labels.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, header)
    with refused(StoreError, where=path, what="do not fit in memory"):
        NpzTable(path)


def test_lists_of_different_lengths_are_refused(answers, tmp_path):
    """A Parquet list has no length of its own."""
    rows = [[0.5, 0.5, 0.0]] * 10 + [[0.5, 0.5]]
    table = pa.table({"soft_labels": rows, "sample_hash": answers.sample_hash})
    pq.write_table(table, tmp_path / "table.parquet")
    refused_table("parquet", tmp_path / "table.parquet", answers, what="length")


def test_without_pyarrow_it_is_said_how_to_get_it(source, tmp_path, monkeypatch):
    """An optional package, needed for Parquet alone."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refused(MachineError, where="pyarrow", what="installed", remedy="pyarrow"):
        write_parquet(source, tmp_path / "table.parquet")


TOLD = {
    "a hash alone": (
        ("ab" * 32, None),
        {"what": "named", "expected": "both, or neither", "found": "one of them"},
    ),
    "a name alone": (
        (None, "resnet"),
        {"what": "named", "expected": "both, or neither", "found": "one of them"},
    ),
    "no hash": (
        ("abcd", "resnet"),
        {
            "expected": "64 lower-case hexadecimal digits, as sha256sum prints them",
            "found": "'abcd'",
        },
    ),
    "upper case": (
        ("AB" * 32, "resnet"),
        {"expected": "64 lower-case hexadecimal digits, as sha256sum prints them"},
    ),
}


@pytest.mark.parametrize(("told", "fields"), TOLD.values(), ids=TOLD.keys())
def test_a_teacher_is_named_wholly_or_not(told, fields):
    """A name without a hash proves nothing."""
    with refused(ParamsError, where="teacher", **fields):
        Origin(*told)


@pytest.mark.parametrize(
    ("name", "text"),
    [("licence", "a" * 10_001), ("citation", "a\x1b[2J"), ("architecture", "two\nlines")],
)
def test_a_text_that_no_store_has_is_refused(name, text):
    """In a line, before the images are hashed."""
    teacher = {"teacher_sha256": "ab" * 32, "architecture": "resnet"}
    with refused(ParamsError, where=name, found=repr(text)[:60]):
        Origin(**teacher | {name: text})


@pytest.mark.parametrize("temperature", [1e7, 0.0, -1.0, float("nan")])
def test_a_temperature_that_no_store_has_is_refused(temperature):
    """In a line, before the images are hashed."""
    with refused(ParamsError, where="temperature", expected="1e-06 to 1e+06"):
        Origin(temperature=temperature)


def test_an_image_that_is_twice_in_the_data_keeps_its_classes(answers, tmp_path, kind):
    """Labels in the table say which of them a row is."""
    twice = replace(answers, labels=np.array([0, 1]), sample_hash=answers.sample_hash[[0, 0]])
    given = {
        "soft_labels": np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]),
        "sample_hash": twice.sample_hash,
        "labels": np.array([1, 0]),
    }
    path = foreign(kind, tmp_path / f"table.{kind}", given)
    found = brought_back(path, tmp_path / "a.zarr", kind, images=twice)
    assert found.labels.tolist() == [1, 0]


def test_a_store_of_one_chunk_with_room_to_spare_returns(answers, tmp_path, kind):
    """Rows of a chunk are the writer's choice, as of other teams' stores: also above N."""
    path = answers.write(tmp_path / "s.zarr", rows=64)
    KINDS[kind][0](SoftLabels.open(path), tmp_path / "table")
    found = brought_back(tmp_path / "table", tmp_path / "t.zarr", kind)
    np.testing.assert_array_equal(found.gather(np.arange(11)), rows_of(path))


def rows_of(path):
    return SoftLabels.open(path).gather(np.arange(11))
