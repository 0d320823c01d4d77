"""Networks of a user's own file: run when the command line names them, and never else."""

import hashlib

import pytest
import torch
from refusals import refused

from ltd_pipe.errors import MissingError, ModelError
from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import allow_file, build, names_file

CODE = """
from torch import nn

def make(num_classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))
"""
SHAPE = (1, 4, 4)


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setattr("ltd_pipe.models.registry._ALLOWED", {})


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a network of `net.py`, after which nothing is allowed any more."""
    (tmp_path / "net.py").write_text(CODE)
    name = allow_file(f"{tmp_path / 'net.py'}:make")
    model = Classifier(build(name, 2, SHAPE), architecture=name, class_names="ab", shape=SHAPE)
    save_classifier(model.eval(), tmp_path / "a.safetensors")
    from ltd_pipe.models import registry

    registry._ALLOWED.clear()
    return tmp_path / "a.safetensors"


def test_the_name_has_the_hash_and_no_folder(tmp_path):
    """Other names pass as they are."""
    (tmp_path / "net.py").write_text(CODE)
    sha256 = hashlib.sha256(CODE.encode()).hexdigest()
    assert allow_file(f"{tmp_path / 'net.py'}:make") == f"net.py:make#{sha256}"
    for other in ("resnet18", "timm:resnet18", "small-cnn-exits@1"):
        assert (allow_file(other), names_file(other)) == (other, False)
    with pytest.raises(MissingError):
        allow_file("absent.py:make")


def test_a_checkpoint_has_no_code_run(saved):
    """What it names is run when it was allowed, with the same content and no other."""
    with refused(ModelError, where="net.py:make", what="run") as caught:
        build("net.py:make", 2, SHAPE)
    assert caught.value.remedy == "Pass --arch net.py:make."
    with pytest.raises(Exception, match="run only when the command line names it"):
        load_classifier(saved)
    file = saved.with_name("net.py")
    file.write_text(CODE + "# changed")
    other = allow_file(f"{file}:make").partition("#")[2]
    with pytest.raises(Exception, match=f"found {other}"):
        load_classifier(saved)
    file.write_text(CODE)
    allow_file(f"{file}:make")
    assert load_classifier(saved)(torch.zeros(3, *SHAPE)).shape == (3, 2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make(", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def other(num_classes, shape): pass", "AttributeError"),
        ("def make(): pass", "TypeError"),
        ("def make(num_classes, shape): return 3", "expected an nn.Module, found int"),
        ("def make(num_classes, shape): 1 / 0", "ZeroDivisionError"),
        (CODE.replace("num_classes)", "7)").replace("make(7)", "make(num_classes)"), "(2, 7)"),
        ("from torch import nn\ndef make(num_classes, shape): return nn.Flatten()", "(2, 16)"),
    ],
)
def test_a_file_that_gives_no_network_is_refused(tmp_path, code, message):
    """In one line, with what Python says."""
    (tmp_path / "net.py").write_text(code)
    name = allow_file(f"{tmp_path / 'net.py'}:make")
    with pytest.raises(ModelError) as caught:
        build(name, 2, SHAPE)
    assert message in str(caught.value)
