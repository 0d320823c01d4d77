"""What ideal labels are worth: adversarial training on images of which people's labels are known.

    python ideal.py --images FOLDER --people test.npz --folder WORK         trains what is missing
    python ideal.py --quick --folder WORK     in WORK/quick, of the digits and made-up people
    python ideal.py --table                   of the rows that are there

FOLDER is that of temperature.py. The splits change places: students train on the test images, and
are attacked on images of the training split. Labels reach them as in the product, from stores that
are joined to the images by hash. A row of results is one student; processes with different `--seed`
can share the file.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import torch
from common import (
    Line,
    alike,
    append_row,
    difference,
    draw,
    ltd_pipe,
    matching_smoothing,
    read_rows,
    settings,
    spread,
    table,
)
from people import Answers
from scipy.stats import entropy

from ltd_pipe.attacks import Ball, Frozen
from ltd_pipe.device import choose_device, choose_precision, deterministic
from ltd_pipe.evaluation import attacks
from ltd_pipe.evaluation.bench import Bench, TestImages, select_images
from ltd_pipe.images.beton import Beton, open_beton
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.labels.softness import Softness, evenly_spaced
from ltd_pipe.params import TrainParams, load_params
from ltd_pipe.training.run import RunContext, new_classifier, split_samples, student_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.softness import measure_targets
from ltd_pipe.training.targets import smoothed
from ltd_pipe.training.trainer import Watcher

if TYPE_CHECKING:
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.training.trainer import Split

HERE = Path(__file__).parent
CPU = choose_device("cpu")
# Each arm's labels: a store, or none, and what else of the parameters differs.
ARMS: dict[str, dict[str, Any]] = {
    "one-hot": {"label_kind": "onehot"},
    "people": {"store": "people"},
    "network, T = 1.5": {"store": "network", "label_temperature": 1.5},
    "smoothed": {"label_kind": "smooth"},
    "half people": {"store": "people", "soft_weight": 0.5},
    "half network, T = 1.5": {"store": "network", "label_temperature": 1.5, "soft_weight": 0.5},
    "people's majority": {"store": "majority"},
    "network, T = 1": {"store": "network", "label_temperature": 1.0},
    "network, T = 2": {"store": "network", "label_temperature": 2.0},
    "network, T = 3": {"store": "network", "label_temperature": 3.0},
    "half network, T = 1": {"store": "network", "label_temperature": 1.0, "soft_weight": 0.5},
    "half network, T = 2": {"store": "network", "label_temperature": 2.0, "soft_weight": 0.5},
    "half network, T = 3": {"store": "network", "label_temperature": 3.0, "soft_weight": 0.5},
}
QUICK_DATA = {"prepare.dataset": "digits", "prepare.channels": 1}
QUICK = {
    "architecture": "small-cnn-w8",
    "epochs": 2,
    "images": 200,
    "crop_padding": 0,
    "flip": False,
    "mean": None,
    "std": None,
    "eps": 0.2,
    "precision": "float32",
}


class Data(NamedTuple):
    """What all students learn from and are attacked on."""

    train: Beton
    stream: ImageStream
    answers: Answers
    tested: TestImages


# --- Images and labels.


def open_data(work: Path, images: Path | None, people: Path | None, tested: int) -> Data:
    """Betons with the splits in each other's place, written at the first call."""
    paths = [work / "swapped" / f"{split}.beton" for split in ("train", "test")]
    if not paths[1].exists():
        changes: dict[str, Any] = QUICK_DATA
        if images is not None:
            links = work / "splits"
            links.mkdir(parents=True, exist_ok=True)
            for split, other in (("train", "test"), ("test", "train")):
                if not (links / split).exists():
                    (links / split).symlink_to((images / other).resolve())
            changes = {"prepare.path": links}
        where = ("--params", HERE / "params.yaml", "--out", work / "swapped")
        ltd_pipe("prepare", *settings({"prepare.validation_fraction": 0, **changes}), *where)
    train, test = map(open_beton, paths)
    answers = Answers.of(train, people, images and images / "test")
    tested = min(tested, test.manifest.num_samples)
    others = select_images(ImageStream(test, CPU), test.manifest.num_samples, tested, 0)
    return Data(train, ImageStream(train, CPU), answers, others)


def store_of(work: Path, name: str, data: Data) -> SoftLabels:
    """A store of people's labels, of their majority's, or of the network's logits."""
    path = work / f"{name}.zarr"
    if not path.exists():
        answers = data.answers
        one_hot = np.eye(data.train.manifest.num_classes, dtype=np.float32)
        made = {
            "people": {"soft_labels": answers.people.astype(np.float32)},
            "majority": {"soft_labels": one_hot[answers.majority]},
            "network": {"logits": np.log(answers.network).astype(np.float32)},
        }
        with TemporaryDirectory() as folder:
            npz = Path(folder) / "labels.npz"
            np.savez(npz, sample_hash=data.train.sample_hash, **made[name])
            where = ("--data", data.train.path, "--out", path)
            ltd_pipe("store", "convert", npz, "--from", "npz", *where)
    return SoftLabels.open(path)


# --- One student.


def train(
    data: Data, params: TrainParams, store: SoftLabels | None, split: Split, seed: int
) -> tuple[Classifier, dict[str, Any]]:
    """The moving average of the weights at the end, and what is to be said of the run."""
    model = new_classifier(params, data.train.manifest, seed=seed, role="student", device=CPU)
    if store:
        store.require_data(data.train.manifest, str(data.train.path), data.train)
        told = measure_targets(params, store, split[0])
    else:
        labels = data.train.labels[split[0]]
        smoothing = params.smoothing if params.label_kind == "smooth" else 0.0
        targets = smoothed(torch.from_numpy(labels).long(), model.num_classes, smoothing)
        told = Softness(model.num_classes).add(labels, targets.numpy()).summary()
    frozen = Frozen(model.eval()).current()
    precision = choose_precision(frozen, params.batch_size, precision=params.precision)
    begin = time.monotonic()
    with TemporaryDirectory() as folder, deterministic():
        context = RunContext(seed, Snapshots(Path(folder)), precision)
        trainer = student_trainer(model, data.stream, split, params, context, store=store)
        trainer.run(Watcher())
    return trainer.average.eval(), {
        "mean_top_probability": round(told.mean_top_probability, 5),
        "mean_entropy": round(told.mean_entropy, 5),
        "precision": precision.precision,
        "seconds": round(time.monotonic() - begin, 1),
    }


def attacked(model: Classifier, images: TestImages, eps: float, apgd: int = 0) -> list[float]:
    """Accuracy: clean, under CW-PGD-50, and of so many images under APGD-CE and APGD-T, too."""
    bench, ball = Bench(Frozen(model).current(), images, 0, 250), Ball("linf", eps)
    clean = bench.answers("clean", torch.arange(len(images)), title="").correct(images.labels)
    left, _ = attacks.run(bench, attacks.parse_attack("cw-50"), ball, clean)
    found = [clean, left]
    if apgd:
        # They stand by class: some of each.
        some = torch.from_numpy(evenly_spaced(len(images), apgd))
        left = left & torch.zeros_like(left).index_fill(0, some, value=True)
        adversary = attacks.build(bench, ball)
        for name in ("apgd-ce", "apgd-t"):
            left = attacks.run_one(bench, adversary, name, left, [])
        found.append(left[some])
    return [round(each.float().mean().item(), 5) for each in found]


def run_arm(
    work: Path, data: Data, arm: str, given: dict[str, Any], apgd: int, seed: int
) -> dict[str, Any]:
    """Train and attack one student: a row of the results."""
    changes = dict(ARMS[arm])
    name = changes.pop("store", None)
    store = store_of(work, name, data) if name else None
    if changes.get("label_kind") == "smooth":
        mean = float(entropy(data.answers.people, axis=1).mean())
        changes["smoothing"] = matching_smoothing(mean, data.train.manifest.num_classes)
    params = TrainParams(**given | changes)
    split = split_samples(data.train, params.images, seed)
    model, told = train(data, params, store, split, seed)
    clean, cw, robust = attacked(model, data.tested, params.eps, apgd)
    total = data.train.manifest.num_samples
    known = torch.from_numpy(split[0][evenly_spaced(len(split[0]), apgd)])
    seen = select_images(data.stream, total, None, 0).part(known)
    train_clean, train_cw = attacked(model, seen, params.eps)
    return {
        "arm": arm,
        "seed": seed,
        "architecture": params.architecture,
        "epochs": params.epochs,
        "images": len(split[0]),
        "tested": len(data.tested),
        "tested_apgd": min(apgd, len(data.tested)),
        "clean": clean,
        "cw": cw,
        "robust": robust,
        "train_clean": train_clean,
        "train_cw": train_cw,
        **told,
    }


# --- Table and figure.


_HEAD = ("labels", "mean top probability", "entropy", "clean", "CW-PGD-50", "APGD", "less one-hot")
_HEAD += ("clean, training images", "CW-PGD-50, training images", "seeds")
_LEGEND = """\
Percent, mean ± standard deviation over seeds. Students ({architecture}, {epochs} epochs, {images:,}
images) are tested on {tested:,} others; APGD has {tested_apgd:,} of these, and is APGD-CE and
APGD-T on what CW-PGD-50 leaves. *Less one-hot* is the difference of that accuracy within each seed,
with the 95 % interval of Student's t. Of the training images, {tested_apgd:,} are attacked.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The table with what it means."""
    lines = []
    for arm, found in by_arm(rows).items():
        ours, theirs = paired(rows, arm, "robust")
        softness = (f"{np.mean([row[key] for row in found]):.3f}" for key in _SOFTNESS)
        cells = [spread([row[key] for row in found]) for key in ("clean", "cw", "robust")]
        cells.append(str(difference(ours, theirs)) if arm != "one-hot" and ours else "")
        cells += [spread([row[key] for row in found]) for key in ("train_clean", "train_cw")]
        lines.append([arm, *softness, *cells, str(len(found))])
    same = alike(rows, "architecture", "epochs", "images", "tested", "tested_apgd")
    return "\n".join([_LEGEND.format(**same), table(_HEAD, lines)])


_SOFTNESS = ("mean_top_probability", "mean_entropy")


def by_arm(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by arm, in the arms' order."""
    found = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    return {arm: of for arm, of in found.items() if of}


def paired(rows: list[dict[str, Any]], arm: str, measure: str) -> tuple[list[float], list[float]]:
    """An arm's values and those of one-hot labels, of the seeds that both have."""
    ours, theirs = (
        {row["seed"]: row[measure] for row in rows if row["arm"] == name}
        for name in (arm, "one-hot")
    )
    seeds = sorted(ours.keys() & theirs.keys())
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def figure(rows: list[dict[str, Any]]) -> str:
    """Each arm less one-hot labels; an SVG file."""
    measures = {"clean": "clean accuracy", "cw": "CW-PGD-50", "robust": "APGD"}
    lines = [
        Line(
            arm,
            arm != "smoothed",
            {title: paired(rows, arm, measure) for measure, title in measures.items()},
        )
        for arm in by_arm(rows)
        if arm != "one-hot" and paired(rows, arm, "clean")[0]
    ]
    return draw(lines, "human-labels-ideal")


# --- The program.


@click.command()
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="CIFAR-10's folders.")
@click.option("--people", type=click.Path(path_type=Path, exists=True), help="Their answers, .npz.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where stores are kept.")
@click.option("--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), help="Only these.")
@click.option("--seed", "seeds", multiple=True, type=int, default=range(5), show_default=True)
@click.option("--set", "changes", multiple=True, help="train.NAME=VALUE; needs --out.")
@click.option("--test-images", default=2000, show_default=True)
@click.option("--apgd-images", default=1000, show_default=True)
@click.option("--quick", is_flag=True, help="The digits, a tiny network, made-up people.")
@click.option("--table", "only_table", is_flag=True, help="Train nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Of rows and table; default: here.")
def main(
    images: Path | None,
    people: Path | None,
    folder: Path | None,
    arms: tuple[str, ...],
    seeds: tuple[int, ...],
    changes: tuple[str, ...],
    test_images: int,
    apgd_images: int,
    quick: bool,
    only_table: bool,
    out: Path | None,
) -> None:
    """Train students on labels of all kinds; see the file's first lines."""
    if changes and out is None:
        raise click.UsageError("--set makes other runs than those here: give them --out")
    if quick and folder:
        folder /= "quick"
        out = out or folder
    out = out or HERE
    results = out / "ideal.jsonl"
    if not only_table:
        if folder is None or ((images is None or people is None) and not quick):
            raise click.UsageError("--folder, and --images and --people (or --quick), are needed")
        if quick:
            images, test_images, apgd_images = None, 60, 20
        given = dict(change.split("=", 1) for change in changes)
        params = load_params(HERE / "params.yaml", {"prepare.path": "images", **given}).train
        wanted = params.model_dump() | (QUICK if quick else {})
        data = open_data(folder, images, people, test_images)
        done = {(row["arm"], row["seed"]) for row in read_rows(results)}
        for seed in seeds:
            for arm in arms or ARMS:
                if (arm, seed) in done:
                    continue
                row = run_arm(folder, data, arm, wanted, apgd_images, seed)
                append_row(results, row)
                click.echo(f"{arm}, seed {seed}: {row['clean']:.1%}, {row['robust']:.1%}", err=True)
    rows = read_rows(results)
    (out / "ideal.md").write_text(page(rows), encoding="utf-8")
    if any(paired(rows, arm, "clean")[0] for arm in ARMS if arm != "one-hot"):
        (out / "ideal.svg").write_text(figure(rows), encoding="utf-8")
    click.echo(page(rows))


if __name__ == "__main__":
    main()
