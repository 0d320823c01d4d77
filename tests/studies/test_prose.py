"""The intervals that pages print are those of committed runs: none was typed, or is of old rows."""

import itertools
import json
import re
from pathlib import Path

import pytest
from common import difference, read_rows

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "studies"
PAGES = [
    *(ROOT / "README.md", ROOT / "docs/robustness.md", ROOT / "docs/claims.md"),
    *sorted(STUDIES.glob("*/README.md")),
]
# As `difference` prints it, "+3.8 (+1.9 to +5.6)", or "3.7 points less (1.7 to 5.7)", or
# "−0.9, −1.8 to +0.1": a number with a sign before the interval is its mean.
TOLD = re.compile(
    r"(?:([+-]\d+\.\d)(?:\s+\w+){0,2}\s+\(|\(|([+-]?\d+\.\d),\s+)"
    r"([+-]?\d+\.\d)\s+to\s+([+-]?\d+\.\d)(?=[,;: )])"
)
# Over images, of the two students of docs/performance.md, whose files are not kept.
BESIDE = {("+6.2", "+3.3", "+9.1"), ("-1.4", "-3.7", "+0.9")}


def of_people():
    """The seeds' values by what they may be compared within, and by arm."""
    for row in read_rows(STUDIES / "human-labels/ideal.jsonl"):
        for measure in ("clean", "cw", "robust", "train_clean", "train_cw"):
            yield measure, row["arm"], {row["seed"]: row[measure]}


def of_wrong_labels(content):
    for row in content["runs"]:
        for which in ("best", "last"):
            for measure, value in row.get(which, {}).items():
                yield (row["share"], row["to"], which, measure), row["arm"], {row["seed"]: value}


def of_kinds(content):
    for name, arm in content["arms"].items():
        for which in ("best", "last"):
            for measure, values in arm[which].items():
                yield (which, measure), name, dict(zip(content["seeds"], values, strict=True))


@pytest.fixture(scope="module")
def measured():
    """All differences between two arms with their intervals, as they are printed."""
    contents = [json.loads(path.read_text()) for path in STUDIES.glob("*/*/runs.json")]
    studies = [of_wrong_labels(one) if "runs" in one else of_kinds(one) for one in contents]
    found = set()
    for study in (of_people(), *studies):
        cells = {}
        for cell, arm, values in study:
            cells.setdefault(cell, {}).setdefault(arm, {}).update(values)
        for arms in cells.values():
            for ours, theirs in itertools.permutations(arms.values(), 2):
                both = sorted(ours.keys() & theirs.keys())
                if len(both) > 1:
                    apart = difference(*([arm[seed] for seed in both] for arm in (ours, theirs)))
                    numbers = apart.mean, apart.low, apart.high
                    found.add(tuple(f"{100 * number:+.1f}" for number in numbers))
    return found | BESIDE


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_interval_is_one_that_was_measured(page, measured):
    """Of some pair of arms in the rows that are committed."""
    told = TOLD.findall(page.read_text().replace("−", "-"))
    assert told
    ends = {(low, high) for _, low, high in measured}
    for before, within, *interval in told:
        low, high = (f"{float(end):+.1f}" for end in interval)
        assert (low, high) in ends
        if mean := before or within:
            assert (f"{float(mean):+.1f}", low, high) in measured
