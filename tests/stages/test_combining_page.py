"""docs/combining.md works as it stands: its shell blocks are run, in order."""

import shlex

import numpy as np
import pytest
import torch
from pages import follow, read_steps

from ltd_pipe.images.beton import write_beton
from ltd_pipe.images.sources import open_source
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.params import PrepareParams

STEPS = read_steps("combining.md")


@pytest.fixture
def folder(tmp_path):
    """What a reader of the page has: images, some of them again, and two teachers."""
    params = PrepareParams(dataset="digits", channels=1, validation_fraction=0.2)
    for name, count in (("train", 240), ("part", 60)):
        source = open_source(params, "train").take(np.arange(count))
        write_beton(source, tmp_path / f"{name}.beton", params, "train")
    for seed, name in ((0, "teacher"), (1, "second")):
        torch.manual_seed(seed)
        teacher = Classifier(
            build("small-cnn-w4", 10, (1, 8, 8)),
            architecture="small-cnn-w4",
            class_names=[str(digit) for digit in range(10)],
            shape=(1, 8, 8),
        )
        save_classifier(teacher.eval(), tmp_path / f"{name}.safetensors", kind="teacher")
    return tmp_path


def test_the_page_can_be_followed(folder, ltd_pipe, monkeypatch):
    """Each block ends as the page says, and prints the lines that stand below it."""
    monkeypatch.chdir(folder)

    def run(step):
        output = ""
        for line in step.code.splitlines():
            program, *words = shlex.split(line)
            assert program == "ltd-pipe"
            outcome = ltd_pipe(*words)
            output += outcome.out + outcome.err
            if outcome.code:
                return outcome.code, output
        return 0, output

    follow(STEPS, run)


def test_the_page_has_all_commands():
    """Every command that makes a store of others, and the comparison."""
    code = "".join(step.code for step in STEPS)
    for command in ("retemper", "subset", "merge", "diff", "convert"):
        assert f"ltd-pipe store {command} " in code
