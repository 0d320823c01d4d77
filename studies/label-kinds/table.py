"""table.md, figure.svg and runs.json of the study in this folder.

python ../table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from common import difference, spread, table
from study_figure import draw
from study_runs import Arm, read_arms, read_teachers

HEAD = (
    "labels",
    "P",
    "entropy",
    "τ",
    "clean",
    "PGD-20",
    "AutoAttack",
    "less the first row's",
    "CW-PGD-50, best",
    "last",
    "ECE",
    "ECE attacked",
)

_LEGEND = """\
Percent, mean ± standard deviation over {seeds} seeds; n = {n} test images. P is the mean top
probability of the labels, entropy is in nats. AutoAttack is `standard`, on the best checkpoint.
The difference to the first row, in AutoAttack accuracy or else under CW-PGD-50, has the 95 %
interval of Student's t over seeds, each seed paired. CW-PGD-50 compares the best checkpoint with
the last.
"""


def main() -> None:
    """Read the runs and write the three files."""
    folder = Path()
    content, arms = read_arms(folder)
    teachers = read_teachers(folder, content)
    result = {"seeds": content["seeds"], "teachers": teachers}
    result["arms"] = {arm.name: arm.to_json() for arm in arms}
    Path("runs.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    Path("table.md").write_text(_page(teachers, arms, len(content["seeds"])))
    Path("figure.svg").write_text(draw(arms))


def _page(teachers: dict[str, list[float]], arms: list[Arm], seeds: int) -> str:
    accuracies = "; ".join(f"{name} {spread(values)}" for name, values in teachers.items())
    parts = [
        _LEGEND.format(seeds=seeds, n=arms[0].n),
        f"Teachers, clean accuracy: {accuracies}.\n",
    ]
    for group in dict.fromkeys(arm.group for arm in arms):
        rows = [arm for arm in arms if arm.group == group]
        parts.append(f"**{group}**\n")
        parts.append(table(HEAD, [_row(arm, rows[0]) for arm in rows]))
    return "\n".join(parts)


def _row(arm: Arm, first: Arm) -> list[str]:
    apart = difference(arm.best[first.strongest], first.best[first.strongest])
    return [
        arm.title,
        f"{arm.top:.3f}",
        f"{arm.entropy:.2f}",
        "–" if arm.tau is None else f"{arm.tau:.2f}",
        *(spread(arm.best.get(measure, [])) for measure in ("clean", "pgd", "autoattack")),
        "" if arm is first else str(apart),
        spread(arm.best["cw"]),
        spread(arm.last.get("cw", [])),
        spread(arm.best["ece"]),
        spread(arm.best["ece_attacked"]),
    ]


if __name__ == "__main__":
    main()
