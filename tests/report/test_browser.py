"""The page in a real browser, at the width of a desk and of a phone, light and dark."""

from __future__ import annotations

import functools
import shutil

import pytest
from pair_folders import gather, write_pair

from ltd_pipe.report.page import render_pair

_CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Every image has decoded to some pixels.
_BROKEN = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
# Elements that reach beyond the window, less those in a box that scrolls by itself.
_WIDE = """
return [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll') && !e.closest('svg') && !e.closest('.hidden'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.tagName + '.' + e.className)
"""
_REQUESTS = """
return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(
        _CHROMIUM is None or _DRIVER is None, reason="needs chromium and chromedriver"
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium with a new profile."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for flag in [*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=[1280, 390], ids=["desk", "phone"])
def width(request, browser):
    """Of the window, in CSS pixels."""
    metrics = {"height": 900, "deviceScaleFactor": 1, "mobile": request.param < 500}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", metrics | {"width": request.param}
    )
    return request.param


@pytest.fixture(params=["light", "dark"])
def scheme(request, browser):
    """Of colours, as the reader's system asks for it."""
    feature = {"name": "prefers-color-scheme", "value": request.param}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    return request.param


@pytest.fixture(scope="module")
def pair_page(tmp_path_factory):
    """The page of two runs, one with a name as long as a path may be."""
    folder = tmp_path_factory.mktemp("pair")
    write_pair(folder)
    return render_pair(gather(folder, ("runs/" + "deep/" * 40 + "metrics.json", "main")))


@pytest.fixture
def opened(show, page):
    """The report, open."""
    return show(page)


@pytest.fixture
def show(browser, tmp_path, width, scheme):
    """Open a page, all its folds unfolded."""
    return functools.partial(_show, browser, tmp_path / "page.html")


def _show(browser, path, text):
    path.write_text(text, encoding="utf-8")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    return browser


def luminance(text):
    """Relative luminance of `rgb(r, g, b)` (WCAG 2)."""
    values = [int(v) / 255 for v in text[text.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """Contrast of two colours (WCAG 2), from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_opens_without_a_complaint(opened, width):
    """No console message, no request, no broken image, no sideways scrolling."""
    for section in ("calibration", "masking", "labels", "attacked"):
        assert opened.find_element("id", section).is_displayed()
    _require_quiet(opened, width)


def test_the_page_of_two_runs_opens_without_a_complaint(show, pair_page, width):
    """Nor does a long name make it scroll sideways."""
    _require_quiet(show(pair_page), width)


def _require_quiet(opened, width):
    assert opened.get_log("browser") == []
    assert opened.execute_script(_REQUESTS) == []
    assert opened.execute_script(_BROKEN) == 0
    assert opened.execute_script(_WIDE) == []
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    sent = [e for e in opened.get_log("performance") if "requestWillBeSent" in e["message"]]
    addresses = [e["message"] for e in sent if '"url":"file:' not in e["message"]]
    assert [a for a in addresses if '"url":"data:' not in a] == []


def test_text_and_figures_can_be_read_in_both_schemes(opened, scheme):
    """Contrast of at least 4.5 for text, on the paper and on the cards."""
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    paper = opened.execute_script(style, "body", "backgroundColor")
    card = opened.execute_script(style, ".drawing", "backgroundColor")
    verdict = opened.execute_script(style, ".verdict", "backgroundColor")
    assert (luminance(paper) < 0.2) == (scheme == "dark")
    for selector, kind, behind in (
        ("h1", "color", paper),
        (".subject", "color", paper),
        (".caption", "color", card),
        (".drawing svg text", "fill", card),
        (".right", "color", card),
        (".wrong", "color", card),
        (".checks .right", "color", card),
        (".checks .note", "color", card),
        (".masking .right", "color", verdict),
        ("th.student", "color", card),
        ("th.baseline", "color", card),
    ):
        assert contrast(opened.execute_script(style, selector, kind), behind) >= 4.5, selector


def test_no_column_is_cut_off(show, page, pair_page):
    """Neither at a desk nor on a phone is a table wider than its box."""
    for text in (page, pair_page):
        wider = show(text).execute_script(
            "return [...document.querySelectorAll('.scroll')]"
            ".filter(box => box.scrollWidth > box.clientWidth).map(box => box.innerText)"
        )
        assert wider == []
