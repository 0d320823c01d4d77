"""docs/models.md's network of one's own, run as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from ltd_pipe.models.checkpoint import read_tensors
from ltd_pipe.models.facts import read_facts
from ltd_pipe.models.registry import _ALLOWED

PAGE = Path(__file__).parents[2] / "docs/models.md"


@pytest.fixture
def section():
    text = PAGE.read_text().partition("## A network of your own")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n# net.py\n(.*?)```", text, re.S)
    (commands,) = re.findall(r"```\n(ltd-pipe.*?)```", text, re.S)
    return code, [line.split()[1:] for line in commands.splitlines()]


def test_the_page_works(ltd_pipe, project, section):
    """Each command, and its refusals: without the file, with another one, from params.yaml."""
    code, commands = section
    Path("net.py").write_text(code)
    for words in commands:
        if "weights.pt" in words:
            torch.save(read_tensors(Path("mine/model.safetensors")), "weights.pt")
        _ALLOWED.clear()
        outcome = ltd_pipe(*words)
        assert outcome.code == 0, outcome.err
    assert re.fullmatch(
        r"net\.py:make#[0-9a-f]{64}", read_facts(Path("mine/model.safetensors"))["architecture"]
    )

    for words in (
        ("evaluate", "mine/model.safetensors", "--force"),
        ("teacher", "--out", "t", "-S", "teacher.architecture=net.py:make"),
    ):
        _ALLOWED.clear()
        outcome = ltd_pipe(*words)
        assert outcome.code == 1
        assert "is run only when the command line names it" in outcome.err
    Path("net.py").write_text(code + "# changed")
    outcome = ltd_pipe("evaluate", "mine/model.safetensors", "--arch", "net.py:make", "--force")
    assert outcome.code == 1
    assert "not that which the command line names: expected SHA-256" in outcome.err

    Path("net.py").write_text(code)
    words = ("--label-kind", "onehot", "--arch", "net.py:make", "--epochs", "1", "--out", "s")
    assert ltd_pipe("train", *words).code == 0
    words = ("export", "s/model.safetensors", "--arch", "net.py:make")
    outcome = ltd_pipe(*words, "--to", "torchscript", "--out", "s.pt")
    assert outcome.code == 0, outcome.err
    for to in ("robustbench", "timm"):
        outcome = ltd_pipe(*words, "--to", to, "--out", to)
        assert outcome.code == 1
        assert outcome.err.endswith(
            "Use --to onnx or torchscript, which take every architecture.\n"
        )
