"""Verification finds what is wrong, wherever it is, and says what it did not look at."""

import subprocess
from dataclasses import replace

import numpy as np
import pytest
from refusals import refused

from ltd_pipe.errors import JoinError, StoreError
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.files import DurableStore
from ltd_pipe.labels.softmax import soften
from ltd_pipe.labels.verify import verify_store


def names(checks, *, done):
    """Names of the checks that were done, or were not."""
    return [check.name for check in checks if check.done is done]


def test_a_sound_store_passes_and_the_rest_is_named(store):
    """What was checked, and what was not."""
    checks = verify_store(store)
    expected = ["manifest", "checksums", "schema", "distributions", "labels", "softmax"]
    assert names(checks, done=True) == expected
    assert names(checks, done=False) == ["teacher", "join"]
    assert "18 files" in checks[0].detail
    assert "11 rows" in checks[3].detail


def test_the_join_is_checked_when_images_are_given(answers, store):
    """Classes, fingerprint, each hash, each label."""
    checks = verify_store(store, answers)
    assert names(checks, done=True)[-1] == "join"
    assert names(checks, done=False) == ["teacher"]


def test_other_images_are_refused(answers, making, store):
    """By fingerprint; and by each hash and label, should one of the two claim another's."""
    with refused(JoinError, where=store, what="fingerprint"):
        verify_store(store, making(seed=3))
    claims = {"what": "claims the fingerprint of digits (train)", "found": "first sample 0"}
    with refused(JoinError, where=store, **claims):
        verify_store(store, replace(answers, sample_hash=answers.sample_hash[::-1]))
    with refused(JoinError, where=store, **claims):
        verify_store(store, replace(answers, labels=answers.labels + 1))


def test_a_store_without_logits_says_so(answers, tmp_path):
    """The softmax cannot be checked then."""
    checks = verify_store(answers.write(tmp_path / "a.zarr", keep_logits=False))
    assert "softmax" in names(checks, done=False)


def test_progress_adds_up_to_all_samples(store):
    """One step per chunk."""
    steps: list[int] = []
    verify_store(store, progress=steps.append)
    assert steps == [4, 4, 3]


FILES = [
    "MANIFEST.sha256",
    "README.md",
    "zarr.json",
    *(f"{name}/zarr.json" for name in ("soft_labels", "logits", "labels", "sample_hash")),
    *(f"{name}/c/{chunk}/0" for name in ("soft_labels", "logits") for chunk in range(3)),
    *(f"{name}/c/{chunk}" for name in ("labels", "sample_hash") for chunk in range(3)),
]


def test_the_list_of_files_is_complete(store):
    """So that the tests below leave none out."""
    found = [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_a_flipped_bit_is_found_wherever_it_is(store, name, place):
    """First byte, last byte, padding, checksum: verification names the file."""
    path = store / name
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        verify_store(store)
    named = name if name != "MANIFEST.sha256" else ""
    assert named in str(caught.value)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("soft_labels/c")])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_never_gathered(store, name, place):
    """Reading all rows stops at the damaged chunk."""
    path = store / name
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 0x01
    path.write_bytes(content)
    with refused(StoreError, where=store, what=f"{name} is damaged"):
        SoftLabels.open(store).gather(np.arange(11))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_file_cut_short_is_found(store, name, keep):
    """Empty or half of it."""
    path = store / name
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(StoreError):
        verify_store(store)


def test_a_file_that_nobody_listed_is_found(store):
    """Something put into a store is not part of it."""
    (store / "labels" / "c" / "7").touch()
    with refused(StoreError, where=store, what="MANIFEST.sha256"):
        verify_store(store)


@pytest.mark.parametrize("name", [".DS_Store", "labels/c/._0"])
def test_a_file_managers_file_is_named_with_what_to_do(store, name):
    """An archive made on a Mac has them; in training they change nothing, and are not read."""
    (store / name).write_bytes(b"\0\5\x16\7")
    with pytest.raises(StoreError) as caught:
        verify_store(store)
    assert caught.value.what.startswith(f"{name} is not listed")
    assert "remove it" in caught.value.remedy
    SoftLabels.open(store)


def test_a_store_whose_line_ends_git_changed_says_how_to_keep_them(store):
    """Into a repository and out of it, on a machine with core.autocrlf."""
    git = ["git", "-C", str(store), "-c", "core.autocrlf=true", "-c", "user.name=a"]
    git += ["-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"], ["rm", "-rqf", "."]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    subprocess.run([*git, "checkout", "-q", "HEAD", "."], check=True)
    with pytest.raises(StoreError) as caught:
        SoftLabels.open(store)
    assert "line ends" in caught.value.what
    assert ".gitattributes" in caught.value.remedy


def test_a_listed_file_of_another_kind_is_checked_too(store, resign):
    """A text that its maker put there, empty or not, is covered by the manifest."""
    (store / "LICENCE").touch()
    resign(store)
    verify_store(store)
    (store / "LICENCE").write_text("x")
    with refused(StoreError, where=store, what="LICENCE"):
        verify_store(store)


def rewrite(store, name, change, resign):
    """Change rows of an array as its maker could: checksums and manifest follow."""
    array = SoftLabels.open(store).arrays[name]
    for chunk in range(array.layout.num_chunks):
        rows = array.chunk(chunk).copy()
        change(rows)
        DurableStore(store).write_chunk(name, array.layout, chunk, rows)
    resign(store)


WRONG = {
    "sum": ("soft_labels", lambda rows: rows.__imul__(np.float16(0.99)), {"what": "distribution"}),
    "another softmax": (
        "logits",
        lambda rows: rows.__imul__(np.float16(1.1)),
        {"what": "softmax"},
    ),
    "permuted classes": (
        "soft_labels",
        lambda rows: rows.__setitem__(slice(None), rows[:, ::-1].copy()),
        {"what": "softmax"},
    ),
    "label out of range": (
        "labels",
        lambda rows: rows.__iadd__(3),
        {"what": "sample", "expected": "-1 to 2", "found": 5},
    ),
    "another image": (
        "sample_hash",
        lambda rows: rows.__ixor__(np.uint64(1)),
        {"what": "hashes"},
    ),
}


@pytest.mark.parametrize(("name", "change", "fields"), WRONG.values(), ids=WRONG.keys())
def test_a_store_that_was_made_wrongly_is_found(store, resign, name, change, fields):
    """Every checksum is right; the content is not."""
    rewrite(store, name, change, resign)
    with refused(StoreError, where=store, **fields):
        verify_store(store)


def test_the_other_neighbour_in_float16_is_not_an_error(answers, store, resign):
    """Another machine's exp may round the other way; a few steps further is refused."""
    exact = soften(answers.logits[:4].astype(np.float16), 2.0)
    smallest = np.arange(4), exact.argmin(axis=1)

    def move(steps):
        def change(rows):
            if len(rows) == 4 and np.allclose(rows, exact, rtol=1e-2):
                away = np.where(exact > rows, np.float16(steps), np.float16(-steps))
                rows[smallest] += (away * np.spacing(rows))[smallest]

        return change

    rewrite(store, "soft_labels", move(1), resign)
    verify_store(store)
    rewrite(store, "soft_labels", move(4), resign)
    with refused(StoreError, where=store, what="softmax"):
        verify_store(store)
