"""Damaged, foreign and hostile files are refused in one clear line, and nothing of them runs."""

import argparse
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from ltd_pipe.errors import CheckpointError, MissingError
from ltd_pipe.models.checkpoint import load_classifier
from ltd_pipe.models.facts import read_facts
from ltd_pipe.models.foreign import load_foreign

_NETWORK = ("small-cnn-w4", ("a", "b", "c"), (1, 8, 8))


class _Code:
    """Pickled as a call of os.system that writes a marker file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def _rewrite(path, header=None, **changed):
    """Write the checkpoint again with other tensors (None removes) or another header."""
    state = {k: v for k, v in (load_file(path) | changed).items() if v is not None}
    text = json.dumps(read_facts(path) | header) if isinstance(header, dict) else header
    save_file(state, path, {"ltd_pipe": text or json.dumps(read_facts(path))})


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _append(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _header_size(size):
    return lambda path: path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])


@pytest.mark.parametrize(
    ("damage", "fields"),
    [
        (_truncate, {"what": "safetensors", "remedy": "Copy"}),
        (_append, {"what": "safetensors"}),
        (_header_size(1 << 62), {"what": "large"}),
        (_header_size(99_000_000), {"what": "invalid"}),
        (lambda path: path.write_bytes(b""), {"what": "small"}),
        (lambda path: path.write_text("<html>not found</html>" * 9), {"what": "safetensors"}),
    ],
    ids=["truncated", "too long", "header of 4 EiB", "header of 99 MB", "empty", "a web page"],
)
def test_damaged_files_are_refused(checkpoint, damage, fields):
    """Sizes are bounded by the file before memory is taken."""
    damage(checkpoint)
    for load in (load_classifier, read_facts):
        with refused(CheckpointError, where=checkpoint, **fields):
            load(checkpoint)


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("{", {"what": "JSON"}),
        ("[" * 100_000, {"what": "ltd_pipe"}),
        ("[1]", {"what": "format"}),
        (
            {"version": 3},
            {"what": "newer", "expected": "version 2", "found": "version 3", "remedy": "Upgrade"},
        ),
        ({"format": "other"}, {"what": "format"}),
        ({"num_classes": 10**12}, {"what": "classes"}),
        ({"shape": [1, 8, 10**9]}, {"what": "shape.2"}),
        ({"temperature": 0}, {"what": "temperature"}),
        ({"std": [0.0]}, {"what": "above"}),
        ({"mean": [0.1, 0.2]}, {"what": "mean"}),
        ({"architecture": "resnet99"}, {"what": "architecture"}),
        ({"architecture": "wrn-994-99"}, {"what": "describes"}),
        ({"architecture": "timm:hf-hub:x/y"}, {"what": "network"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_descriptions_that_make_no_sense_are_refused(checkpoint, header, fields):
    """Each names what is wrong; none takes memory by naming something huge."""
    _rewrite(checkpoint, header)
    with refused(CheckpointError, where=checkpoint, **fields):
        load_classifier(checkpoint)


@pytest.mark.parametrize(
    ("header", "changed", "fields"),
    [
        ({}, {"linear.bias": None}, {"what": "missing"}),
        ({}, {"extra": torch.zeros(1)}, {"what": "extra"}),
        (
            {"architecture": "resnet18-w4"},
            {},
            {"what": "missing"},
        ),
        (
            {"num_classes": 4, "class_names": ["a", "b", "c", "d"]},
            {},
            {
                "where": "linear.weight",
                "what": "shape",
                "expected": (4, 128),
                "found": (3, 128),
                "remedy": "Check",
            },
        ),
        (
            {"shape": [1, 10, 10]},
            {},
            {"where": "linear.weight", "what": "shape", "expected": (3, 200), "found": (3, 128)},
        ),
        (
            {"shape": [3, 8, 8], "mean": [0, 0, 0], "std": [1, 1, 1]},
            {},
            {
                "where": "features.0.weight",
                "what": "shape",
                "expected": (4, 3, 3, 3),
                "found": (4, 1, 3, 3),
            },
        ),
        (
            {},
            {"linear.bias": torch.tensor([0.0, float("nan"), 0.0])},
            {"where": "linear.bias", "what": "NaN", "found": "1 of 3"},
        ),
        (
            {},
            {"linear.bias": torch.tensor([0, 1, 2])},
            {
                "where": "linear.bias",
                "what": "dtype",
                "expected": torch.float32,
                "found": torch.int64,
            },
        ),
    ],
    ids=["missing", "unexpected", "network", "classes", "size", "channels", "NaN", "integers"],
)
def test_weights_that_do_not_fit_the_description_are_refused(checkpoint, header, changed, fields):
    """By name, shape, kind and value."""
    _rewrite(checkpoint, header, **changed)
    with refused(CheckpointError, **fields):
        load_classifier(checkpoint)


@pytest.mark.parametrize("from_end", [1, 2, 500, 4000])
def test_a_flipped_bit_in_a_weight_is_noticed(checkpoint, from_end):
    """It would load as a slightly different model, which nobody would ever notice."""
    content = bytearray(checkpoint.read_bytes())
    content[-from_end] ^= 1
    checkpoint.write_bytes(content)
    with refused(CheckpointError, where=checkpoint, what="changed"):
        load_classifier(checkpoint)


def test_absent_files_and_folders_are_told_apart(tmp_path):
    """A folder is there, but is no checkpoint."""
    with refused(MissingError, where=tmp_path / "absent.safetensors", what="file"):
        load_classifier(tmp_path / "absent.safetensors")
    with refused(CheckpointError, where=tmp_path, what="folder", remedy="inside"):
        load_foreign(tmp_path, *_NETWORK)


def test_weights_without_a_description_need_the_architecture(tmp_path):
    """Such a file is another project's; the message says how to pass it."""
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with refused(
        CheckpointError, where=tmp_path / "a.safetensors", what="description", remedy="--arch"
    ):
        load_classifier(tmp_path / "a.safetensors")


def _torch_zip(content, path):
    torch.save(content, path)


def _torch_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _bare(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [_torch_zip, _torch_legacy, _bare])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("hide", [lambda code: code, lambda code: argparse.Namespace(x=code)])
def test_code_in_a_pickle_is_never_run(tmp_path, write, name, hide):
    """Under any name and by any loader: the marker is not written, and the line says why."""
    marker, path = tmp_path / "marker", tmp_path / name
    write({"x": hide(_Code(marker)), "linear.bias": torch.zeros(3)}, path)
    with refused(CheckpointError, where=path, what="code"):
        load_foreign(path, *_NETWORK)
    with refused(CheckpointError, where=path, what="pickle"):
        load_classifier(path)
    assert not marker.exists()


def test_the_marker_of_that_attack_works(tmp_path):
    """Loaded as pickles usually are, the same bytes do write it: the test above means something."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(_Code(marker)))  # noqa: S301 - the attack itself
    assert marker.exists()


def test_a_pickled_module_is_code_too(classifier, tmp_path):
    """Saving the whole model is the commonest mistake; the remedy says what to save."""
    torch.save(classifier.network, tmp_path / "a.pt")
    with refused(CheckpointError, where=tmp_path / "a.pt", what="SmallCNN", remedy="save"):
        load_foreign(tmp_path / "a.pt", *_NETWORK)


def test_a_zip_bomb_is_refused_unopened(classifier, tmp_path):
    """torch.save never compresses, so an archive that unpacks to more than itself is no such."""
    plain, bomb = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(classifier.network.state_dict(), plain)
    with zipfile.ZipFile(plain) as given, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in given.infolist():
            made.writestr(entry.filename, given.read(entry))
        made.writestr("archive/data/99", bytes(10_000_000))
    assert bomb.stat().st_size < 200_000
    with refused(
        CheckpointError,
        where=bomb,
        what="compressed",
        expected="at most 18,292 bytes unpacked",
        found="10,007,547",
    ):
        load_foreign(bomb, *_NETWORK)


def test_a_damaged_archive_directory_is_refused(classifier, tmp_path):
    """One that claims to span many disks makes Python's own check of zip files raise."""
    path = tmp_path / "a.pt"
    torch.save(classifier.network.state_dict(), path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x06\x07") + 16] = 9
    path.write_bytes(content)
    with refused(CheckpointError, where=path, what="archive"):
        load_foreign(path, *_NETWORK)


def test_a_tensor_of_huge_shape_over_few_bytes_is_not_looked_through(classifier, tmp_path):
    """Strides of zero make 4 bytes look like terabytes; shapes are compared before values."""
    state = dict(classifier.network.state_dict())
    state["linear.bias"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(state, tmp_path / "a.pt")
    with refused(
        CheckpointError,
        where=tmp_path / "a.pt: linear.bias",
        what="shape",
        expected=(3,),
        found=(1000000, 1000000),
    ):
        load_foreign(tmp_path / "a.pt", *_NETWORK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(100), "readable"),
        (b"\x80", "readable"),
        (b"\x80\x02.", "readable"),
        (b"\x80\x02J\x01.", "unpack"),
        (b"hello", "safetensors"),
    ],
)
def test_broken_pickles_are_refused(tmp_path, content, message):
    """Torch raises a dozen kinds of exception for these; users meet one."""
    (tmp_path / "a.pt").write_bytes(content)
    with refused(CheckpointError, where=tmp_path / "a.pt", what=message):
        load_foreign(tmp_path / "a.pt", *_NETWORK)


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_torch_file_is_refused(classifier, tmp_path, place):
    """An interrupted download is one line."""
    path = tmp_path / "a.pt"
    torch.save(classifier.network.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(place * len(content))])
    with refused(CheckpointError, where=path, what="readable"):
        load_foreign(path, *_NETWORK)
