"""Which temperature makes a teacher answer as people do, and whether it finds wrong labels.

    python temperature.py --images FOLDER --people test.npz --folder WORK     trains what is missing
    python temperature.py --quick --folder WORK     in WORK/quick, of the digits and made-up people
    python temperature.py --table                     of the rows that are there

FOLDER has CIFAR-10 as train/CLASS/NNNN.jpg and test/CLASS/NNNN.jpg. A teacher is trained and asked
by the commands of ltd-pipe, whose files are kept in WORK; a row of results is one teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import label_errors
import numpy as np
from common import alike, append_row, ltd_pipe, read_rows, settings, svg, table
from people import Answers
from scipy.optimize import brentq
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy

from ltd_pipe.images.beton import open_beton
from ltd_pipe.labels.derive import temperature_for
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softmax import calibrated_temperature, solve_temperature

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
PLACES = np.geomspace(0.25, 20, 129)
RESAMPLES = 1000
NETWORK = "strong network"
QUICK = {
    "prepare.dataset": "digits",
    "prepare.channels": 1,
    "prepare.validation_fraction": 0.1,
    "teacher.architecture": "small-cnn-w8",
    "teacher.crop_padding": 1,
    "teacher.flip": "false",
    "teacher.mean": "null",
    "teacher.std": "null",
    "teacher.precision": "float32",
}


# --- One teacher: its answers, and the temperatures that the product would choose.


def ask_teacher(work: Path, epochs: int, seed: int, given: list[str]) -> tuple[Path, Path]:
    """Its labels of the training and of the test images, made unless they are there."""
    name = f"{epochs}-{seed}"
    teacher = work / "teachers" / name
    given = [*given, *settings({"seed": seed})]
    if not (teacher / "model.safetensors").exists():
        trained = ["--epochs", epochs, "--data", work / "data", "--out", teacher]
        ltd_pipe("teacher", *given, *trained)
    stores = []
    for split, temperature in (("train", "auto:calibrated"), ("test", "1")):
        stores.append(work / "labels" / name / f"{split}.zarr")
        if not stores[-1].exists():
            asked = ["--teacher", teacher / "model.safetensors", "--temperature", temperature]
            data = work / "data" / f"{split}.beton"
            ltd_pipe("label", *given, "--data", data, *asked, "--out", stores[-1])
    return stores[0], stores[1]


def row_of_teacher(answers: Answers, trained: SoftLabels, tested: SoftLabels) -> dict[str, Any]:
    """A teacher of ours; its temperatures come from its training images, as in the product."""
    calibrated = trained.attributes
    temperatures = {"auto:calibrated": calibrated.temperature}
    temperatures |= {f"auto:{top}": temperature_for(trained, top) for top in (0.9, 0.95)}
    logits = tested.gather_logits(np.arange(tested.num_samples)).astype(float)
    interval = calibrated.calibration.interval if calibrated.calibration else None
    return measure(answers, logits, temperatures, interval)


def row_of_network(answers: Answers) -> dict[str, Any]:
    """The strong network; no image was in its training, and so all of them calibrate it."""
    logits = np.log(answers.network)
    rounded = logits[None].astype(np.float16)
    calibrated, facts = calibrated_temperature(rounded, answers.labels)
    temperatures = {"auto:calibrated": calibrated}
    for top in (0.9, 0.95):
        temperatures[f"auto:{top}"] = solve_temperature(lambda: [[*rounded]], top)
    return measure(answers, logits, temperatures, facts.interval)


# --- How far from people's answers.


def divergence(people: np.ndarray, logits: np.ndarray, temperature: float) -> np.ndarray:
    """Each image's KL(people ‖ softmax(logits / temperature)), in nats."""
    told = np.exp(log_softmax(logits / temperature, axis=1))
    return rel_entr(people, np.maximum(told, 1e-300)).sum(axis=1)


def lowest(curves: np.ndarray) -> np.ndarray:
    """Each curve's least over PLACES, by the parabola through the lowest point's neighbours."""
    at = curves.argmin(axis=1)
    inner = at.clip(1, len(PLACES) - 2)
    before, here, after = (curves[np.arange(len(at)), inner + k] for k in (-1, 0, 1))
    # At an end there may be no parabola, and the end is taken.
    bend = np.where(at == inner, before - 2 * here + after, np.inf)
    return PLACES[at] * (PLACES[1] / PLACES[0]) ** ((before - after) / (2 * bend))


def least(curves: np.ndarray) -> list[float]:
    """Of each image's curve, (n, PLACES): the temperature of the mean's least, and its interval.

    By percentiles of a bootstrap over images.
    """
    drawn = np.random.default_rng(0).multinomial(
        len(curves), np.full(len(curves), 1 / len(curves)), size=RESAMPLES
    )
    found = lowest(drawn @ curves)
    return [float(lowest(curves.mean(axis=0)[None])[0]), *np.percentile(found, (2.5, 97.5))]


def measure(
    answers: Answers,
    logits: np.ndarray,
    temperatures: dict[str, float],
    interval: tuple[float, float] | None,
) -> dict[str, Any]:
    """All that is asked of one teacher's logits, (N, K): a row of the results."""
    people, labels = answers.people, answers.labels
    unsure = float(entropy(people, axis=1).mean())
    # The answers that put an image into a group would make it look as clear as the group is called.
    deciding, others = answers.halves()
    top = deciding.max(axis=1)
    curves, curves_of_others = (
        np.stack([divergence(shares, logits, place) for place in PLACES], axis=1)
        for shares in (people, others)
    )
    truth = np.stack(
        [-log_softmax(logits / place, axis=1)[np.arange(len(labels)), labels] for place in PLACES],
        axis=1,
    )

    def gap(temperature: float) -> float:
        return float(entropy(softmax(logits / temperature, axis=1), axis=1).mean()) - unsure

    groups = {
        "0.99 or more": top >= 0.99,
        "0.9 to 0.99": (top >= 0.9) & (top < 0.99),
        "below 0.9": top < 0.9,
    }
    found = {"all": least(curves)}
    found |= {name: least(curves_of_others[rows]) for name, rows in groups.items()}
    chosen = {"least KL": found["all"][0], "T = 1": 1.0, **temperatures}
    # Where the mean entropies are equal.
    chosen["equal entropy"] = float(brentq(gap, PLACES[0] / 100, PLACES[-1] * 100))
    at = {
        name: {
            "temperature": temperature,
            "kl": float(divergence(people, logits, temperature).mean()),
            "gap": gap(temperature),
            "top": float(softmax(logits / temperature, axis=1).max(axis=1).mean()),
        }
        for name, temperature in chosen.items()
    }
    return _rounded(
        {
            "images": len(labels),
            "accuracy": float((logits.argmax(axis=1) == labels).mean()),
            "groups": {name: int(rows.sum()) for name, rows in groups.items()},
            "least": found,
            "least_truth": least(truth),
            "calibration_interval": interval,
            "at": at,
            "curve": curves.mean(axis=0).tolist(),
            "gaps": [gap(place) for place in PLACES],
            "errors": {
                name: label_errors.found(softmax(logits / chosen[name], axis=1), answers)
                for name in ("T = 1", "auto:calibrated")
            },
            "suspected": {
                "reviewed": int(answers.reviewed.sum()),
                "wrong": int(answers.wrong.sum()),
                "people": int((answers.majority != labels).sum()),
            },
        }
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- Tables and figure.


_CHOICES = ("least KL", "auto:calibrated", "equal entropy", "auto:0.95", "auto:0.9", "T = 1")
_GROUPS = ("0.99 or more", "0.9 to 0.99", "below 0.9")


def by_teacher(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by teacher, the most accurate first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        found.setdefault(row["teacher"], []).append(row)
    return found


def _spread(values: list[float], form: str) -> str:
    deviation = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


def _interval(found: list[list[float]]) -> str:
    """Mean, and the widest interval of all seeds."""
    middle, low, high = np.transpose(found)
    return f"{middle.mean():.2f} ({low.min():.2f} to {high.max():.2f})"


def temperature_table(rows: list[dict[str, Any]]) -> str:
    """Of each teacher the temperatures, and how far from people's answers they are."""
    lines = []
    for teacher, of in by_teacher(rows).items():
        accuracy = _spread([100 * row["accuracy"] for row in of], ".1f")
        first = f"{teacher}, {accuracy} % right, n = {len(of)}"
        for choice in _CHOICES:
            at = [row["at"][choice] for row in of]
            temperature = _spread([one["temperature"] for one in at], ".2f")
            if choice == "least KL":
                temperature = _interval([row["least"]["all"] for row in of])
            if choice == "auto:calibrated":
                temperature = _interval(
                    [
                        [one["temperature"], *row["calibration_interval"]]
                        for one, row in zip(at, of, strict=True)
                    ]
                )
            numbers = (("kl", ".3f"), ("gap", "+.3f"), ("top", ".3f"))
            cells = [_spread([one[name] for one in at], form) for name, form in numbers]
            lines.append([first, choice, temperature, *cells])
            first = ""
        for group in _GROUPS:
            cells = ["", f"least KL, top share {group}", _interval([r["least"][group] for r in of])]
            lines.append([*cells, "", "", ""])
    return table(
        ["teacher", "temperature by", "T", "KL", "entropy less people's", "mean top probability"],
        lines,
    )


def error_table(rows: list[dict[str, Any]]) -> str:
    """Of each teacher and ranking the share of wrong labels among the most suspect."""
    lines = []
    for teacher, of in by_teacher(rows).items():
        for scale in ("T = 1", "auto:calibrated"):
            for ranking in of[0]["errors"][scale]:
                cells = [teacher, scale, ranking]
                for place in range(len(label_errors.FIRST)):
                    at = [row["errors"][scale][ranking][place] for row in of]
                    sums = {key: sum(one[key] for one in at) for key in at[0]}
                    share = sums["wrong"] / max(sums["reviewed"], 1)
                    lower, people = (sums[key] / sums["first"] for key in ("wrong", "people"))
                    cells.append(f"{lower:.0%} / {share:.0%} / {people:.0%}")
                lines.append(cells)
    head = [f"first {count}" for count in label_errors.FIRST]
    return table(["teacher", "labels at", "ranked by", *head], lines)


_MARKS = {"least KL": "o", "auto:calibrated": "s", "auto:0.95": "^", "auto:0.9": "v"}
_COLOURS = ("#1f5fbf", "#b4520a", "#2f7d4f")


def figure(rows: list[dict[str, Any]]) -> str:
    """Divergence and entropy gap by temperature, a line for each teacher's seed; an SVG file."""

    def paint(drawn: Figure) -> None:
        panels = drawn.subplots(1, 2)
        for colour, (teacher, of) in zip(_COLOURS, by_teacher(rows).items(), strict=False):
            for row in of:
                for axes, curve, number in zip(
                    panels, ("curve", "gaps"), ("kl", "gap"), strict=True
                ):
                    label = teacher if row is of[0] else None
                    axes.plot(PLACES, row[curve], color=colour, linewidth=1.4, label=label)
                    for choice, mark in _MARKS.items():
                        at = row["at"][choice]
                        axes.plot(at["temperature"], at[number], mark, color=colour, markersize=5)
        for choice, mark in _MARKS.items():
            panels[0].plot([], [], mark, color="#5f5b54", label=choice)
        panels[0].set_ylabel("KL(people ‖ teacher), nats")
        panels[1].set_ylabel("mean entropy less people's, nats")
        panels[1].axhline(0, color="#5f5b54", linewidth=1)
        panels[0].set_ylim(0, 1.5)
        panels[0].legend(frameon=False, fontsize=9)
        for axes in panels:
            axes.set_xscale("log")
            axes.set_xticks([0.25, 0.5, 1, 2, 5, 10, 20], ["¼", "½", "1", "2", "5", "10", "20"])
            axes.minorticks_off()
            axes.set_xlabel("temperature")

    return svg(paint, (10, 4), "human-labels")


_LEGEND = """\
KL(people ‖ teacher) in nats, of {images:,} test images; n is the number of seeds, ± their standard
deviation. In parentheses the 95 % interval of a bootstrap over images, of several seeds the widest.
People's top share is that of the class which most of one half of them chose, drawn at random: it is
{groups}. Images are in a group by that half of the answers, and the divergence there is
from the other half.
"""
_ERRORS_LEGEND = """\
Of the labels that the teacher contradicts most: wrong by the reviews if whatever was not reviewed
counts as right (a lower bound) / wrong among those reviewed / wrong by people's majority. In all,
{wrong} of {reviewed} reviewed labels are wrong, and most people chose another class for {people}.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """Both tables with what they mean."""
    same = alike(rows, "images", "groups")
    groups = ", ".join(f"{name} for {same['groups'][name]:,}" for name in _GROUPS)
    return "\n".join(
        [
            _LEGEND.format(images=same["images"], groups=groups),
            temperature_table(rows),
            _ERRORS_LEGEND.format(**rows[0]["suspected"]),
            error_table(rows),
        ]
    )


# --- The program.


@click.command()
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="CIFAR-10's folders.")
@click.option("--people", type=click.Path(path_type=Path, exists=True), help="Their answers, .npz.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where teachers are kept.")
@click.option("--epochs", multiple=True, type=int, default=(20, 5), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="The digits, a tiny network, made-up people.")
@click.option("--table", "only_table", is_flag=True, help="Train nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Of rows and tables; default: here.")
def main(
    images: Path | None,
    people: Path | None,
    folder: Path | None,
    epochs: tuple[int, ...],
    seeds: int,
    quick: bool,
    only_table: bool,
    out: Path | None,
) -> None:
    """Find the temperature; see the file's first lines."""
    if quick and folder:
        folder /= "quick"
        out = out or folder
    out = out or HERE
    results = out / "temperature.jsonl"
    if not only_table:
        if folder is None or ((images is None or people is None) and not quick):
            raise click.UsageError("--folder, and --images and --people (or --quick), are needed")
        changes = QUICK if quick else {"prepare.path": images}
        given = ["--params", str(HERE / "params.yaml"), *settings(changes)]
        if not (folder / "data" / "test.beton").exists():
            ltd_pipe("prepare", *given, "--out", folder / "data")
        tested = open_beton(folder / "data" / "test.beton")
        answers = Answers.of(tested, people, images and images / "test")
        done = {(row["teacher"], row["seed"]) for row in read_rows(results)}
        if (NETWORK, None) not in done:
            append_row(results, {"teacher": NETWORK, "seed": None, **row_of_network(answers)})
        for seed in range(seeds):
            for length in epochs:
                name = f"{length} epochs"
                if (name, seed) in done:
                    continue
                stores = ask_teacher(folder, length, seed, given)
                row = row_of_teacher(answers, *map(SoftLabels.open, stores))
                append_row(results, {"teacher": name, "seed": seed, **row})
    rows = read_rows(results)
    (out / "temperature.md").write_text(page(rows), encoding="utf-8")
    (out / "temperature.svg").write_text(figure(rows), encoding="utf-8")
    click.echo(page(rows))


if __name__ == "__main__":
    main()
