"""table.md, figure.svg and runs.json of the runs that are there so far.

python table.py digits
python table.py digits --restore    makes rows.jsonl of runs.json, to go on elsewhere
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from common import (
    Line,
    alike,
    difference,
    draw,
    read_rows,
    read_runs,
    spread,
    table,
    write_runs,
)
from scipy import stats
from study import ARMS, CELLS, Cell, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD = (
    *("training labels", "seeds", "P", "clean", "less one-hot's", "AutoAttack", "less one-hot's"),
    *("less smoothed's", "PGD-20", "last epoch", "ECE"),
)
_LEGEND = """\
Percent, mean ± standard deviation over seeds; n = {n} test images, whose labels are right. P is the
mean top probability of the labels. AutoAttack is `standard`, on the best epoch by PGD-10 on a
validation split whose labels are as wrong as the training's; PGD-20 is on that and on the last
one. Differences, to one-hot labels and in AutoAttack also to smoothed ones, are between runs of the
same seed, with the 95 % interval of Student's t over those seeds that have both.
"""
_FIRST, *_, _SMOOTHED = ARMS
_DEFAULT, _LIKELIEST = "soft, 0.99 (the default)", "soft, 0.99; attack on the likeliest"
_TARGET, _CALIBRATED = "soft, 0.99; attack on the target", "soft, calibrated"
# The same labels under another attack, then other labels under the same one.
PAIRS = (
    *((_LIKELIEST, _DEFAULT), (_TARGET, _DEFAULT), (_LIKELIEST, _TARGET)),
    *((arm, _DEFAULT) for arm in ("soft, 0.9", "soft, 0.6 (high temperature)", _CALIBRATED)),
    *((f"soft, {label}; attack on the target", _TARGET) for label in ("0.9", "calibrated")),
    (_LIKELIEST, "the teacher's hard answers"),
    *(("soft, calibrated, rectified", _CALIBRATED), (_CALIBRATED, _SMOOTHED)),
)
# Seeds, to be among those that are tested.
_ENOUGH = 3
_PANELS = {"clean": "clean accuracy", "autoattack": "AutoAttack accuracy"}


class Runs:
    """Rows by arm, cell and seed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        # Of a run whose temperature was refused there is nothing to compare.
        self._rows = {key_of(row): row for row in rows if "refused" not in row}

    def of(self, arm: str, cell: Cell) -> dict[int, dict[str, Any]]:
        """Of each seed its run."""
        found = self._rows.items()
        return {key[-1]: row for key, row in sorted(found) if key[:-1] == (arm, *cell)}

    def pairs(
        self, arm: str, cell: Cell, measure: str, other: str = _FIRST
    ) -> tuple[list[float], list[float]]:
        """A measure of an arm and of another one, of the seeds that have both."""
        ours, theirs = self.of(arm, cell), self.of(other, cell)
        both = [seed for seed in ours if seed in theirs]
        first, second = ([runs[seed]["best"][measure] for seed in both] for runs in (ours, theirs))
        return first, second

    def apart(self, arm: str, cell: Cell, measure: str, other: str = _FIRST) -> str:
        """Their difference, in percent; nothing where it is the same arm or no seed has both."""
        ours, theirs = self.pairs(arm, cell, measure, other)
        return str(difference(ours, theirs)) if ours and arm != other else ""


def page(rows: list[dict[str, Any]]) -> str:
    """The table of each cell that has runs."""
    tested = alike((row["best"] for row in rows if "best" in row), "n")
    runs, parts = Runs(rows), [_LEGEND.format(**tested)]
    cells = sorted(CELLS, key=lambda cell: (not cell.share, cell.to != "uniform", cell))
    for cell in cells:
        found = {arm: runs.of(arm, cell) for arm in ARMS}
        every = [run for of_arm in found.values() for run in of_arm.values()]
        if not every:
            continue
        teachers = {run["seed"]: run for run in every}.values()
        wrong, *teacher = (
            spread([run[name] for run in teachers])
            for name in ("wrong", "teacher_clean", "teacher_right", "teacher_as_given")
        )
        parts.append(
            f"**{cell}**: {wrong} % of the training labels are wrong. The teacher is right on "
            f"{teacher[0]} % of the test images and {teacher[1]} % of the training images, and "
            f"agrees with {teacher[2]} % of the training labels.\n"
        )
        lines = [_line(runs, arm, cell) for arm, of_arm in found.items() if of_arm]
        parts.append(table(HEAD, lines))
    parts += (_between(runs, cells, measure) for measure in _PANELS)
    parts.append(_standing(runs))
    return "\n".join(filter(None, parts))


def _between(runs: Runs, cells: Sequence[Cell], measure: str) -> str:
    """Differences between pairs of arms other than one-hot; empty where no seed has both."""
    found = [
        [f"{arm}; less {other}", *(runs.apart(arm, cell, measure, other) for cell in cells)]
        for arm, other in PAIRS
    ]
    header = [f"{_PANELS[measure]}, points", *map(str, cells)]
    rows = [row for row in found if any(row[1:])]
    return table(header, rows) if rows else ""


def _standing(runs: Runs) -> str:
    """Which differences from one-hot's are still shown when all of them are counted."""
    found = []
    for cell in CELLS:
        for arm in ARMS:
            ours, theirs = runs.pairs(arm, cell, "autoattack")
            if arm != _FIRST and len(ours) >= _ENOUGH:
                # It is NaN where no seed differs.
                p = float(np.nan_to_num(stats.ttest_rel(ours, theirs).pvalue, nan=1.0))
                found.append((p, f"{cell}: {arm} (p = {p:.2g})"))
    found.sort()
    kept = []
    # Holm 1979: the k-th least of n is compared with 5 % / (n - k + 1).
    for left, (p, name) in zip(range(len(found), 0, -1), found, strict=True):
        if p > 0.05 / left:
            break
        kept.append(name)
    return (
        f"Of {len(found)} differences of AutoAttack from one-hot's with {_ENOUGH} seeds or more, "
        "these differ from zero after Holm's correction for their number, 5 % in all (paired t): "
        f"{'; '.join(kept) or 'none'}.\n"
    )


def _line(runs: Runs, arm: str, cell: Cell) -> list[str]:
    found = [*runs.of(arm, cell).values()]
    clean, pgd, robust, ece = (
        spread([run["best"][measure] for run in found])
        for measure in ("clean", "pgd", "autoattack", "ece")
    )
    return [
        arm,
        str(len(found)),
        f"{np.mean([_top(run) for run in found]):.2f}",
        *(clean, runs.apart(arm, cell, "clean")),
        *(robust, runs.apart(arm, cell, "autoattack")),
        "" if arm == _FIRST else runs.apart(arm, cell, "autoattack", _SMOOTHED),
        *(pgd, spread([run["last"]["pgd"] for run in found]), ece),
    ]


def _top(run: dict[str, Any]) -> float:
    """Mean top probability of the labels of a run; there are ten classes."""
    if "smoothing" in run:
        return 1 - 0.9 * float(run["smoothing"])
    return float(run.get("mean_top_probability", 1.0))


def figure(rows: list[dict[str, Any]]) -> str:
    """Each arm less one-hot, for all cells that have both; empty where none has."""
    runs = Runs(rows)
    lines = [
        Line(
            f"{cell}: {arm}",
            "smooth" not in arm,
            {title: runs.pairs(arm, cell, measure) for measure, title in _PANELS.items()},
        )
        for cell in sorted(CELLS, key=lambda cell: (cell.to != "uniform", cell))
        for arm in ARMS
        if runs.apart(arm, cell, "clean")
    ]
    return draw(lines, "wrong-labels") if lines else ""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--restore", is_flag=True, help="Make rows.jsonl of runs.json, where there is none.")
def main(folder: Path, restore: bool) -> None:
    """Read FOLDER/rows.jsonl, and write the three files."""
    path = folder / "rows.jsonl"
    if restore:
        if path.exists():
            raise click.UsageError(f"{path} is there")
        rows = read_runs(folder / "runs.json")
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    rows = sorted(read_rows(path), key=lambda row: (row["seed"], key_of(row)))
    for one, other in pairwise(map(key_of, rows)):
        if one == other:
            raise click.ClickException(f"{path}: a run is there twice, {one}. Remove one of them.")
    # Both before a file is written, since either may be refused.
    shown, drawn = page(rows), figure(rows)
    write_runs(folder / "runs.json", rows)
    (folder / "table.md").write_text(shown)
    if drawn:
        (folder / "figure.svg").write_text(drawn)


if __name__ == "__main__":
    main()
