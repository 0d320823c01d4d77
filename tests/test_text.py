"""Text from anyone is shown as it is, and never acts; where two trees of plain values differ."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ltd_pipe.text import code, differences, fenced

HOSTILE = {
    "html": "<script>alert(1)</script>",
    "an open comment": "<!-- all that follows",
    "a link": "[click](javascript:alert(1))",
    "a picture": "![x](https://example.com/spy.png)",
    "an autolink": "<https://example.com>",
    "bars": "a | b || c",
    "an escaped bar": "a\\|<img src=x>",
    "a doubly escaped bar": "a\\\\|<img src=x>",
    "a backslash at the end": "a\\",
    "backticks": "`` ` ```",
    "a backtick at each end": "`<b>`",
    "fences": "```\n</pre><b>\n~~~",
    "front matter": "---\nlicense: mit\n---",
    "a heading": "x\n# heading\n===",
    "emphasis": "*a* _b_ **c**",
    "an entity": "&lt;b&gt; &#60;",
    "carriage returns": "a\rb\r\nc",
    "separators": "a\u2028b\u2029c\x85d",
    "a terminal": "\x1b[2J\x07",
    "writing backwards": "abc\u202e<gpj.exe",
    "nothing": "",
    "blanks": " \t ",
}
texts = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
# What user text may become, beside a paragraph around it.
HARMLESS = {"text", "code_inline", "text_special", "softbreak"}


def kinds(markdown: str) -> set[str]:
    """The kinds of everything inline, and of all blocks, in a page with HTML allowed."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    blocks = parser.parse(markdown)
    found = {child.type for block in blocks for child in block.children or []}
    return found | {block.type for block in blocks if block.type in ("html_block", "fence", "hr")}


@texts
def test_a_name_is_only_shown(text):
    """In a sentence and in a heading: code or text, nothing that acts."""
    assert kinds(f"of {code(text)}, {code(text)}") <= HARMLESS
    assert kinds(f"# of {code(text)}") <= HARMLESS


def table(text: str) -> str:
    """Two rows that begin with a name."""
    return f"| a | b |\n| --- | --- |\n| {code(text)} | 1 |\n| {code(text)} | 2 |"


@texts
def test_a_name_stays_in_its_cell(text):
    """One row, its cells counted; a bar inside has become an entity."""
    made = table(text)
    assert [line.count("|") for line in made.splitlines()] == [3, 3, 3, 3]
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(made)
    assert html.count("<td>") == 4
    assert kinds(made) <= HARMLESS


@texts
def test_a_text_stays_in_its_block(text):
    """A fence that the text cannot close, and what follows is read as before."""
    parsed = MarkdownIt("commonmark").parse(f"{fenced(text)}\n\n# After")
    assert [block.type for block in parsed][:2] == ["fence", "heading_open"]


@given(st.text(max_size=40))
def test_any_text_is_harmless(text):
    """What the table above forgot."""
    assert kinds(f"of {code(text)}, {code(text)}.") <= HARMLESS
    assert kinds(table(text)) <= HARMLESS
    assert kinds(fenced(text)) == {"fence"}


@pytest.mark.parametrize(
    "name", ["cat", "ñandu", "timm:resnet50.a1_in1k", "golden retriever", "犬"]
)
def test_ordinary_names_are_legible_and_whole(name):
    """Also where the page is read as plain text."""
    assert code(name) == f"`{name}`"


def test_a_name_with_a_bar_is_shown_whole():
    """As text, of which each letter comes out again."""
    html = MarkdownIt("commonmark").render(code("a|b`<c>"))
    assert html == "<p>a|b`&lt;c&gt;</p>\n"


def test_long_names_are_cut():
    """A page is for people."""
    assert code("x" * 1000) == f"`{'x' * 200}…`"
    assert code("x" * 300, limit=400) == f"`{'x' * 300}`"


def test_lines_of_a_text_stay_lines():
    """BibTeX as its author wrote it."""
    assert fenced("@misc{a,\r\n\ttitle={b}}\n", "bib") == "```bib\n@misc{a,\n title={b}}\n```"


TREE = {"a": 1, "b": {"c": [1, 2], "d": None}}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (TREE, []),
        (TREE | {"a": 2}, [("a", 1, 2)]),
        ({"a": 1}, [("b", TREE["b"], None)]),
        (TREE | {"b": {"c": [2, 1]}}, [("b.c", [1, 2], [2, 1])]),
        (TREE | {"b": {"c": [1, 2], "e": 5}}, [("b.e", None, 5)]),
        (3, [("", TREE, 3)]),
    ],
    ids=["none", "a value", "a branch", "a list", "one more", "another kind"],
)
def test_each_difference_is_named(other, found):
    """In the order of the first tree; a key that is absent is None."""
    assert list(differences(TREE, other)) == found


def test_tables_differ_row_by_row():
    """Where they are equally long; else as a whole."""
    ours, theirs = [{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 3}]
    assert list(differences({"t": ours}, {"t": theirs})) == [("t.1.a", 2, 3)]
    assert list(differences(ours, theirs[:1], "t")) == [("t", ours, theirs[:1])]
