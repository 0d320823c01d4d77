"""A page's tags, names and words."""

from __future__ import annotations

import html.parser
import re

_VOID = {"meta", "link", "img", "br", "path", "use"}


class Reader(html.parser.HTMLParser):
    """Collects tags, and notices one that is not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    """Parse a page; all tags are closed in the end."""
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


class _Tables(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tables = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "table":
            self.tables.append((attributes, []))
        elif tag == "tr":
            self.tables[-1][1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][1][-1] += int(attributes.get("colspan", 1))


def tables(page):
    """Each table's attributes, and how many columns each of its rows fills."""
    reader = _Tables()
    reader.feed(page)
    return reader.tables


def sources(page):
    """What stands under Provenance: terms and values by title."""
    found = {}
    for block in re.findall(r'<section class="source">(.*?)</section>', page, re.DOTALL):
        title = re.search("<h3>(.*?)</h3>", block)[1]
        entries = re.findall("<dt>(.*?)</dt><dd.*?>(.*?)</dd>", block)
        found[title] = {html.unescape(term): html.unescape(value) for term, value in entries}
    return found
