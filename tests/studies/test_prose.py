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
# Such as "(+1.9 to +5.6)" or "(0.4 to 4.2": one digit after the point, as `difference` prints it.
INTERVAL = re.compile(r"\(([+-]?\d+\.\d)\s+to\s+([+-]?\d+\.\d)(?=[,;: )])")
# Over images, of the two students of docs/performance.md, whose files are not kept.
BESIDE = {("+3.3", "+9.1"), ("-3.7", "+0.9")}


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
    """All intervals of a difference between two arms, as they are printed."""
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
                    found.add((f"{100 * apart.low:+.1f}", f"{100 * apart.high:+.1f}"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_interval_is_one_that_was_measured(page, measured):
    """Of some pair of arms in the rows that are committed."""
    told = INTERVAL.findall(page.read_text().replace("−", "-"))
    assert told
    ends = {(f"{float(low):+.1f}", f"{float(high):+.1f}") for low, high in told}
    assert not ends - measured - BESIDE
