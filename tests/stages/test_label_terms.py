"""Licence and citation: from the command line or the file into the store and its card."""

from pathlib import Path

import pytest

from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.verify import verify_store

LABEL = ["label", "--teacher", "data/teacher/model.safetensors", "--out", "new.zarr"]
BIBTEX = "@misc{labels,\n  title = {Labels: soft},\n}"


def test_terms_from_the_command_line_stand_in_the_store(ltd_pipe, project):
    """As they were typed: BibTeX is no YAML, and a number is a text."""
    outcome = ltd_pipe(*LABEL, "--licence", "CC-BY-4.0", "--citation", BIBTEX)
    assert outcome.code == 0, outcome.err
    attributes = SoftLabels.open(Path("new.zarr")).attributes
    assert (attributes.licence, attributes.citation) == ("CC-BY-4.0", BIBTEX)
    text = Path("new.zarr/README.md").read_text()
    assert "\nlicense: cc-by-4.0\n" in text
    assert f"```\n{BIBTEX}\n```" in text
    verify_store(Path("new.zarr"))


def test_terms_from_the_file_stand_in_the_store(ltd_pipe, project):
    """`label.licence` and `label.citation` of params.yaml."""
    params = Path("params.yaml").read_text()
    lines = "  licence: MIT\n  citation: |\n    @misc{labels,\n    }\n"
    Path("params.yaml").write_text(
        params.replace("label: {temperature: auto:0.9, batch_size: 64}", f"label:\n{lines}")
    )
    assert ltd_pipe(*LABEL).code == 0
    attributes = SoftLabels.open(Path("new.zarr")).attributes
    assert (attributes.licence, attributes.citation) == ("MIT", "@misc{labels,\n}\n")


@pytest.mark.parametrize(
    "text", ["2026", "yes", "[x]", "{", "'", "a: b", "# c", "@x", "\\n", "犬🐕"]
)
def test_a_text_is_what_was_typed(ltd_pipe, project, text):
    """Whatever YAML would make of it."""
    from ltd_pipe.params import LabelParams
    from ltd_pipe.stages.options import _as_yaml

    assert ltd_pipe(*LABEL, "--licence", text).code == 0
    assert SoftLabels.open(Path("new.zarr")).attributes.licence == text
    assert _as_yaml("null", LabelParams.model_fields["licence"]) == "null"


def test_without_terms_nothing_is_claimed(project):
    """Neither attribute nor section."""
    attributes = SoftLabels.open(Path("data/labels.zarr")).attributes.to_json()
    assert not {"licence", "citation"} & attributes.keys()
    assert "Licence" not in Path("data/labels.zarr/README.md").read_text()


def test_empty_or_endless_terms_are_refused(ltd_pipe, project):
    """Before the teacher is asked."""
    for words in (["--licence", ""], ["--citation", "x" * 10_001]):
        outcome = ltd_pipe(*LABEL, *words)
        assert outcome.code == 2
        assert f"option: label.{words[0][2:]}: string should have at " in outcome.err
    assert not Path("new.zarr").exists()
