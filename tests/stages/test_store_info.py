"""`ltd-pipe store info`: all of a store at a glance, in a terminal, a pipe and a script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_answers import give_store, write_store

from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import (
    DatasetFacts,
    DerivationFacts,
    LabellingFacts,
    StoreAttributes,
    TeacherFacts,
    ViewFacts,
)
from ltd_pipe.labels.signature import sign_store


@pytest.fixture
def make_store(tmp_path):
    """A function that writes a store of six samples with any attributes."""

    def make(name="made.zarr", views=1, num_classes=3, labels=(0, 1, 2, 0, -1, 1), **facts):
        options = {key: facts.pop(key) for key in ("top_k", "keep_logits") if key in facts}
        rng, names = np.random.default_rng(0), tuple(f"c{i}" for i in range(num_classes))
        names = facts.pop("class_names", names)
        truth, hashes = np.array(labels, np.int32), np.arange(len(labels), dtype=np.uint64)
        data = {"name": "digits", "split": "train"} | facts.pop("dataset", {})
        attributes = StoreAttributes(
            temperature=2.0,
            num_samples=len(labels),
            num_classes=num_classes,
            class_names=names,
            dataset=DatasetFacts(fingerprint=fingerprint(names, truth, hashes), **data),
            views=ViewFacts(count=views, seed=5, augmentation="crop:1") if views > 1 else {},
            **{"teachers": (TeacherFacts(sha256="ab" * 32, architecture="small-cnn"),)} | facts,
        )
        shape = (len(labels), views, num_classes) if views > 1 else (len(labels), num_classes)
        logits = rng.standard_normal(shape).astype(np.float32)
        write_store(tmp_path / name, attributes, logits, truth, hashes, rows=4, **options)
        return tmp_path / name

    return make


def row(text, name):
    """The first line of one row."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).strip()


def test_everything_is_said(ltd_pipe, signable):
    """Of the store that is checked in: each row, to the letter."""
    outcome = ltd_pipe("store", "info", signable)
    assert outcome.code == 0
    store = SoftLabels.open(signable)
    assert outcome.out.splitlines()[0] == str(signable)
    assert row(outcome.out, "identity") == store.identity
    assert row(outcome.out, "images") == "golden, train"
    assert row(outcome.out, "fingerprint") == store.attributes.dataset.fingerprint
    assert row(outcome.out, "samples") == "5, 1 of unknown class"
    assert row(outcome.out, "classes") == "3: cat, dog, ñandu"
    assert row(outcome.out, "teacher") == "small-cnn, 75.00% clean accuracy"
    assert f" {'ab' * 32}\n" in outcome.out
    assert row(outcome.out, "temperature") == "2"
    assert row(outcome.out, "stored") == "all probabilities and the logits"
    assert row(outcome.out, "softness") == "mean top probability 0.7572"
    assert row(outcome.out, "licence") == "not said"
    assert row(outcome.out, "signature") == "none"
    assert row(outcome.out, "made with") == "numpy 2"


def test_the_size_is_that_on_disk(ltd_pipe, signable):
    """All files, chunks of how many samples, as `du` would add them up."""
    size = json.loads(ltd_pipe("store", "info", signable, "--json").out)["size"]
    files = [path for path in signable.rglob("*") if path.is_file()]
    assert size["bytes"] == sum(path.stat().st_size for path in files)
    assert (size["files"], size["chunks"], size["samples_per_chunk"]) == (len(files), 8, 4)
    said = row(ltd_pipe("store", "info", signable).out, "on disk")
    assert said == f"{size['bytes'] / 1024:.1f} KiB in 15 files; 8 chunks of 4 samples"


def test_top_k_views_origin_and_terms_are_said(ltd_pipe, make_store):
    """What only some stores have."""
    origin = DerivationFacts(operation="merge", sources=("cd" * 32, "old.pt"))
    path = make_store(
        views=3,
        num_classes=9,
        top_k=2,
        licence="CC-BY-4.0",
        citation="@misc{a,\n  title = {b},\n}\n",
        derived_from=origin,
    )
    text = ltd_pipe("store", "info", path).out
    assert row(text, "views") == "3 of each image, by crop:1, seed 5"
    assert row(text, "stored") == "the 2 largest of 9 probabilities, no logits"
    assert "total variation from all of them: mean " in text
    assert row(text, "made by") == "merge of"
    assert f" {'cd' * 32}\n" in text
    assert row(text, "licence") == "CC-BY-4.0"
    assert "title = {b}," in text
    facts = json.loads(ltd_pipe("store", "info", path, "--json").out)
    assert facts["arrays"]["topk_probs"] == {"shape": [6, 3, 2], "dtype": "float16"}
    assert facts["attributes"]["derived_from"]["sources"] == ["cd" * 32, "old.pt"]
    assert facts["attributes"]["top_k"]["total_variation"]["samples"] == 6
    assert facts["labels"]["known"] == 5
    assert not facts["has_logits"]


ASKED = LabellingFacts(
    image_shape=(3, 24, 32), resize="none", precision="bfloat16", commit="ab" * 20, modified=True
)


def test_how_the_teacher_was_asked_is_said(ltd_pipe, make_store):
    """In a terminal and on the card; what is unknown has no row."""
    teacher = TeacherFacts(sha256="ab" * 32, architecture="a", mean=(0.5,) * 3, std=(0.25,) * 3)
    path = make_store(teachers=(teacher,), labelling=ASKED)
    text, card = ltd_pipe("store", "info", path).out, (path / "README.md").read_text()
    assert row(text, "images seen") == "32×24 pixels, 3 channels (none)"
    assert row(text, "precision") == "bfloat16"
    assert row(text, "commit") == f"{'ab' * 20}, modified"
    assert "\npixels " not in text
    normalised = "mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25"
    assert f" {normalised}\n" in text
    for said in ("32×24 pixels, 3 channels (none)", "bfloat16", f"{'ab' * 20}, modified"):
        assert f"| `{said}` |" in card
    assert normalised in card
    assert "ltd-soft-labels 1.1" in card
    found = json.loads(ltd_pipe("store", "info", path, "--json").out)["attributes"]
    assert found["labelling"]["image_shape"] == [3, 24, 32]
    plain = make_store("plain.zarr")
    assert "images seen" not in ltd_pipe("store", "info", plain).out
    assert "input normalisation" not in (plain / "README.md").read_text()


def test_many_classes_are_cut(ltd_pipe, make_store):
    """The first eight, and that there are more."""
    said = row(ltd_pipe("store", "info", make_store(num_classes=1000)).out, "classes")
    assert said == "1,000: c0, c1, c2, c3, c4, c5, c6, c7, …"


def test_many_sources_are_cut(ltd_pipe, make_store):
    """Eight of them; all are in the JSON."""
    sources = tuple(f"part-{number}" for number in range(10))
    path = make_store(derived_from=DerivationFacts(operation="merge", sources=sources))
    text = ltd_pipe("store", "info", path).out
    assert "part-7\n" in text
    assert "part-8" not in text
    assert "and 2 more\n" in text
    assert "part-9" in ltd_pipe("store", "info", path, "--json").out


def test_a_signature_is_a_claim(ltd_pipe, signable, key_file):
    """Whose, and that it was not verified; a damaged one is said to be that."""
    _, signer = sign_store(signable, key_file)
    outcome = ltd_pipe("store", "info", signable)
    assert row(outcome.out, "signature") == f"by {signer.fingerprint}"
    assert "(its own claim, not verified)" in outcome.out
    facts = json.loads(ltd_pipe("store", "info", signable, "--json").out)
    assert facts["signature"] == {
        "verified": False,
        "namespace": "ltd-soft-labels",
        "signer": signer.fingerprint,
        "key": "ED25519",
    }
    (signable / "MANIFEST.sha256.sig").write_text("x")
    outcome = ltd_pipe("store", "info", signable)
    assert outcome.code == 0
    assert row(outcome.out, "signature").startswith("MANIFEST.sha256.sig is not one of this")
    facts = json.loads(ltd_pipe("store", "info", signable, "--json").out)
    assert "damaged" in facts["signature"]


def test_warnings_go_to_stderr(ltd_pipe, make_store, tmp_path):
    """As good as uniform: what `label` warns of."""
    store = SoftLabels.open(make_store())
    flat = np.full((6, 3), 1 / 3, np.float32)
    given = store.attributes, store.labels, store.sample_hash
    give_store(tmp_path / "flat.zarr", *given, soft_labels=flat)
    outcome = ltd_pipe("store", "info", tmp_path / "flat.zarr")
    assert "warning: The soft labels are as good as uniform" in outcome.err
    assert "warning:" not in outcome.out


NOT_STORES = {
    "nothing": (str, "no such soft-label store. Make one with 'ltd-pipe label'."),
    "a file": (Path.touch, "is a file, and a soft-label store is a folder."),
    "a folder": (Path.mkdir, "is no soft-label store: it holds neither zarr.json nor MANIFEST"),
}


@pytest.mark.parametrize(("make", "message"), NOT_STORES.values(), ids=NOT_STORES.keys())
@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_store_is_refused_in_one_line(ltd_pipe, tmp_path, make, message, command):
    """Exit code 1, nothing on stdout."""
    make(tmp_path / "x")
    outcome = ltd_pipe("store", command, tmp_path / "x")
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{tmp_path / 'x'}: {message}" in outcome.err
    assert outcome.err.count("\n") == 1


def run_in_pipe(path, **environment):
    """The real command, its output in a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "ltd_pipe", "store", "info", str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd() / "src"), **environment},
    )
    return done.stdout


def test_a_pipe_gets_no_colours_and_no_wide_lines(make_store):
    """80 columns hold every row but a text of the maker's own."""
    long = ", ".join(["a name of some length"] * 6)
    text = run_in_pipe(make_store(licence=long, num_classes=40))
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()[1:]) <= 80
    assert text == "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    assert "".join(long.split()) in "".join(text.split())


def test_names_cannot_write_on_the_terminal(make_store):
    """Neither rich's markup nor a turn of the writing acts; control characters are refused."""
    evil = "[bold red]x[/]\u202e\u2028"
    path = make_store(
        dataset={"name": evil, "split": evil},
        class_names=(evil, "b", "c"),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture=evil),),
        software={evil: evil},
        licence=evil,
        citation=f"{evil}\n{evil}",
        derived_from=DerivationFacts(operation="merge", sources=(evil,)),
    )
    text = run_in_pipe(path, TERM="xterm")
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count("[bold red]x[/]") >= 8
