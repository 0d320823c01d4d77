"""Every command line that a page, an example or a recipe shows is one that the program takes."""

import re
import shlex
from pathlib import Path

import click
import pytest

from ltd_pipe.params import Params
from ltd_pipe.stages.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "data/*.md", "studies/**/*.md", "examples/*", "recipes/*")
    for path in ROOT.glob(pattern)
    # What the changes were called then.
    if path.is_file() and path.name != "CHANGELOG.md"
)
SPAN = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s(`])(?:ltd-pipe|-m ltd_pipe) ([a-z].*)$")
ENDS = ("|", "&&", "||", ";", ">", ">>", "<", "&", ")")


def lines_of(path):
    """Lines in which a command may stand: code, and prose between backticks."""
    text = path.read_text()
    if path.suffix == ".md":
        spans = SPAN.findall(text)
        blocks = [span.replace("\\\n", " ") for span in spans if span.startswith("```")]
        inline = [" ".join(span.split()) for span in spans if not span.startswith("```")]
        return [line for block in blocks for line in block.splitlines()] + inline
    return [line.strip(" #") for line in text.replace("\\\n", " ").splitlines() if line.strip(" #")]


def commands_of(path):
    """Each command's words, behind the program's name."""
    for line in lines_of(path):
        found = COMMAND.search(line.strip("`"))
        # A comment in a program speaks of the program, too.
        program = path.suffix == ".md" or re.match(r"(\S*=\S+ |.*-m ltd_pipe|ltd-pipe)", line)
        if not found or not program:
            continue
        lexer = shlex.shlex(found[1], posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = []
        for word in lexer:
            if word in ENDS or word.startswith(("|", "&", ";", ">", "<", ")")):
                break
            words.append(word)
        yield words


SHOWN = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}"[:120])
    for path in PAGES
    for words in commands_of(path)
]


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_that_is_shown_is_taken(words):
    """The command exists, and so do its options and the parameters that -S sets."""
    context, command = click.Context(cli, info_name="ltd-pipe"), cli
    words = list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=name, parent=context)
    if words and words[-1].startswith("--"):
        # Prose may end with an option's name.
        takes = {name: param.nargs for param in command.params for name in param.opts}
        flags = {name for p in command.params if getattr(p, "is_flag", 0) for name in p.opts}
        words += ["VALUE"] * (takes.get(words[-1], 0) if words[-1] not in flags else 0)
    values, _, _ = command.make_parser(context).parse_args([word for word in words if word != "…"])
    for setting in values.get("settings") or ():
        model = Params
        for key in setting.partition("=")[0].split("."):
            model = model.model_fields[key].annotation


def test_the_pages_show_commands():
    """The search finds them."""
    assert len(SHOWN) > 100


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/claims.md", "CONTRIBUTING.md"])
def test_files_and_folders_that_a_page_names_are_there(page):
    """Named from the root, or from pipeline/ on."""
    names = set(re.findall(r"`((?:[a-z_.]+/)+(?:[a-z_]+\.\w+)?)[^`]*`", (ROOT / page).read_text()))
    assert len(names) > 5
    places = (ROOT, ROOT / "pipeline")
    assert {name for name in names if not any((place / name).exists() for place in places)} <= {
        "data/state/"
    }


def test_the_picture_of_the_folders_has_all_of_them():
    """Packages and modules of pipeline/, as docs/architecture.md draws them."""
    picture = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    packages = {path.parent.name + "/" for path in ROOT.glob("pipeline/*/__init__.py")}
    modules = {path.stem for path in ROOT.glob("pipeline/*.py") if not path.stem.startswith("__")}
    drawn = set(re.findall(r"[a-z]+/?", picture))
    assert packages | modules <= drawn | {"recipes/"}
