"""Folders such as the stages leave, in small: real betons, stores, checkpoints and curves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import sklearn.datasets
from made_answers import write_store
from made_evaluations import make_metrics

from ltd_pipe.evaluation.results import Samples, Score, evaluation_beside, read_metrics
from ltd_pipe.evaluation.statistics import mean_gap, reliability
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.sources import ArraySource
from ltd_pipe.labels.format import DatasetFacts, StoreAttributes, TeacherFacts
from ltd_pipe.labels.reader import SoftLabels
from ltd_pipe.models.checkpoint import save_classifier
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.models.registry import build
from ltd_pipe.params import PrepareParams
from ltd_pipe.provenance import sha256_file
from ltd_pipe.report.facts import ReportPaths
from ltd_pipe.report.runs import Evaluation

EPS = 0.15
N = 599
CLASSES = (
    "zero",
    "one",
    "two, which has a name as long as ImageNet's",
    "<script>alert(3)</script>",
    "four & more",
    *"56789",
)
SOFTWARE = {"python": "3.11.9", "torch": "2.15.0"}
HARDWARE = {"cpu": "A & B processor", "threads": 2}
PARAMS = {
    "architecture": "small-cnn-w4",
    "epochs": 30,
    "eps": EPS,
    "label_kind": "ltd",
    "learning_rate": 0.1,
    "milestones": [0.5, 0.75],
    "nesterov": False,
    "mean": None,
}


def write_json(path, content):
    """Write JSON as a stage would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def edit_json(path, **changes):
    """Change some keys of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in content.items() if value is not None})


def keep_attacks(metrics, *keys):
    """Leave the other attacks out of metrics.json."""
    found = read_metrics(metrics)
    attacks = tuple(row for row in found.attacks if row.key in keys)
    write_json(metrics, found.model_copy(update={"attacks": attacks}).dump())


def measure(metrics, sha256):
    """Say of an evaluation that it is of another checkpoint."""
    for path in (metrics, evaluation_beside(metrics) / "settings.json"):
        edit_json(path, checkpoint_sha256=sha256)


def save_model(folder, **facts):
    """A checkpoint with facts, and the times of its run."""
    model = Classifier(
        build("small-cnn-w4", len(CLASSES), (1, 8, 8)),
        architecture="small-cnn-w4",
        class_names=CLASSES,
        shape=(1, 8, 8),
    )
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"seed": 0, "software": SOFTWARE, "hardware": HARDWARE} | facts
    save_classifier(model, folder / "model.safetensors", **facts)
    write_json(folder / "timing.json", {"seconds": 71.4, "images_per_second": 4321.0})


def write_curve(folder, name, values):
    """A curve as dvclive writes it: the value's column has the last part of its name."""
    path = folder / "live" / "plots" / "metrics" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"step\t{name.rpartition('/')[2]}", *(f"{i}\t{v}" for i, v in enumerate(values))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_curves(folder, top, seed):
    """Loss falls, accuracies rise to `top` and 0.98, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.012, (3, 30))
    rise = 1 - np.exp(-np.arange(30) / 6)
    write_curve(folder, "train/loss", 2.3 - 1.4 * rise + 3 * noise[0])
    write_curve(folder, "validation/robust_accuracy", np.clip(top * rise + noise[1], 0, 1))
    write_curve(folder, "validation/clean_accuracy", np.clip(0.3 + 0.68 * rise + noise[2], 0, 1))


def write_scores(metrics, folder, checkpoint, clean, pgd, auto, sure):
    """metrics.json, by_eps.json, reliability.json and settings.json of one model."""
    answers = {"clean": _answers(clean, sure), "under_attack": _answers(pgd, sure)}
    rows = {
        name: [one.model_dump() for one in reliability(*pair)] for name, pair in answers.items()
    }
    write_json(folder / "reliability.json", rows)
    errors = {name: mean_gap(reliability(*pair)) for name, pair in answers.items()}
    hits, sha256 = {"clean": clean, "pgd": pgd, "autoattack": auto}, sha256_file(checkpoint)
    found = make_metrics(
        N,
        hits,
        eps=EPS,
        expected_calibration_error=errors["clean"],
        expected_calibration_error_under_attack=errors["under_attack"],
        autoattack={
            "apgd-ce": (auto + 9) / N,
            "apgd-t": (auto + 1) / N,
            "fab-t": (auto + 1) / N,
            "square": auto / N,
        },
        checkpoint_sha256=sha256,
    )
    write_json(metrics, found.dump())
    # Which images are right is drawn anew for each attack and model.
    drawn = {name: _answers(n, sure)[1] for name, n in hits.items()}
    np.savez(
        folder / "per_sample.npz",
        sample_hash=np.arange(N, dtype=np.uint64),
        label=np.arange(N) % 10,
        **{f"correct_{name}": column for name, column in drawn.items()},
    )
    write_json(folder / "by_eps.json", [_point(eps, clean, pgd) for eps in np.linspace(0, 0.4, 9)])
    write_json(
        folder / "settings.json",
        {
            "attacks": [{"name": "PGD", "steps": 50, "restarts": 5, "step_size": 0.0075}],
            "autoattack_version": "standard",
            "checkpoint_sha256": sha256,
            "data_fingerprint": "e" * 64,
            "seed": 0,
            "software": SOFTWARE,
            "hardware": HARDWARE,
        },
    )


def _answers(hits, sure):
    """Confidences up to one, the more of them the surer the model, and which are right."""
    confidence = (0.1 + 0.9 * np.linspace(0, 1, N) ** (1 / sure)).astype(np.float32)
    order = np.random.default_rng(hits).permutation(N)
    return confidence, order < hits


def _point(eps, clean, pgd):
    share = clean / N * np.exp(-((eps / EPS) ** 2) * np.log(clean / pgd))
    score = Score.of(round(share * N) / N, N)
    ends = {"low": score.low, "high": score.high}
    return {"eps": float(eps), "robust_accuracy": score.value, **ends}


def write_audit(folder, checkpoint, failing=(), **changes):
    """audit.json of a checkpoint, where some checks may have failed; None removes a key."""
    checks = [
        ("live gradients", 0, 0.05, "have an input gradient that is zero: nothing to follow"),
        ("more effort gains little", 19, 0.06, "broken only by 5 restarts: no convergence"),
        ("white box beats transfer from <b>.pt", 1, 0.02, "broken by another model's attack"),
    ]
    findings = []
    for name, count, limit, meaning in checks:
        low = Score.of((count := N // 2 if name in failing else count) / N, N).low
        row = {"name": name, "count": count, "n": N, "limit": limit, "meaning": meaning}
        findings.append(row | {"share": count / N, "low": low, "passed": low <= limit})
    offsets = [EPS * k / 2 for k in range(-4, 5)]
    content = {
        "checkpoint_sha256": sha256_file(checkpoint),
        "passed": all(one["passed"] for one in findings),
        "n": N,
        "norm": "linf",
        "eps": EPS,
        "seed": 0,
        "steps": 100,
        "restarts": 5,
        "square_queries": 1000,
        "sources": ["<b>.pt"],
        "findings": findings,
        "zero_accuracy_at_eps": 0.425,
        "loss_surface": {
            "n": 16,
            "offsets": offsets,
            "loss": [[1 + x + 0.1 * y * y for y in offsets] for x in offsets],
            "share_whose_loss_rises_along_the_gradient": 1.0,
            "share_where_the_gradient_beats_the_random_direction": 0.9375,
        },
    }
    content |= changes
    write_json(folder / "audit.json", {k: v for k, v in content.items() if v is not None})


def digits():
    """The first images of scikit-learn's digits, as `prepare` has them."""
    content = sklearn.datasets.load_digits()
    images = np.rint(content.images * 255 / 16).astype(np.uint8)
    return images, content.target.astype(np.int32)


def distances(images):
    """A teacher that cannot fail to be plausible: minus the distance to each class's mean."""
    every, labels = digits()
    means = np.stack([every[labels == k].mean(axis=0) for k in range(10)])
    gaps = images[:, None].astype(np.float32) / 255 - means[None] / 255
    return -6 * np.sqrt((gaps**2).sum(axis=(2, 3)))


def write_images(folder, images, labels):
    """The training images' beton, and what a checkpoint says of them."""
    source = ArraySource("digits", CLASSES, images, labels)
    params = PrepareParams(dataset="digits", channels=1)
    write_beton(source, folder / "train.beton", params, "train")
    manifest = open_beton(folder / "train.beton").manifest
    return {"dataset": manifest.dataset, "fingerprint": manifest.fingerprint}


def write_labels(folder, images, labels):
    """The store of the teacher's labels."""
    beton = open_beton(folder / "train.beton")
    teacher = sha256_file(folder / "teacher" / "model.safetensors")
    attributes = StoreAttributes(
        num_samples=len(images),
        num_classes=10,
        class_names=CLASSES,
        dataset=DatasetFacts(name="digits", split="train", fingerprint=beton.manifest.fingerprint),
        teachers=(TeacherFacts(sha256=teacher, architecture="small-cnn-w4", clean_accuracy=0.985),),
        temperature=0.8,
        software=SOFTWARE,
    )
    logits = distances(images).astype(np.float32)
    write_store(folder / "labels.zarr", attributes, logits, labels, beton.sample_hash)


def write_examples(path, images, labels, count=8):
    """Attacked images: noise of radius eps, and the answers of a model that errs on some."""
    clean = images[:count, None]
    noise = np.random.default_rng(5).choice([-EPS, EPS], clean.shape)
    wrong = np.arange(count) % 3 == 2
    label = labels[:count].astype(np.int64)
    np.savez(
        path,
        clean=clean,
        adversarial=np.clip(clean / 255 + noise, 0, 1).astype(np.float32),
        label=label,
        clean_prediction=np.where(np.arange(count) == 5, (label + 1) % 10, label),
        adversarial_prediction=np.where(wrong, (label + 5) % 10, label),
        index=np.arange(count) * 7,
    )


def write_runs(folder):
    """All that `dvc repro` leaves before the stage report."""
    images, labels = digits()
    score = {"clean_accuracy": 590 / N, "expected_calibration_error": 0.0071, "n": N}
    data = write_images(folder, images[:400], labels[:400])
    save_model(folder / "teacher", kind="teacher", params={"epochs": 40}, data=data, **score)
    write_labels(folder, images[:400], labels[:400])
    used = {"identity": SoftLabels.open(folder / "labels.zarr").identity, "temperature": 0.8}
    common = {"kind": "student", "data": data, "epoch": 26}
    save_model(folder / "student", params=PARAMS, labels=used, **common)
    onehot = PARAMS | {"label_kind": "onehot"}
    save_model(folder / "baseline", params=onehot, labels=None, **common)
    write_curves(folder / "student", 0.76, 1)
    write_curves(folder / "baseline", 0.73, 2)
    for name, prefix, hits in (
        ("student", "", (585, 461, 449, 5)),
        ("baseline", "baseline-", (582, 447, 431, 3)),
    ):
        evaluation, metrics = folder / f"{prefix}evaluation", folder / f"{prefix}metrics.json"
        write_scores(metrics, evaluation, folder / name / "model.safetensors", *hits)
    write_audit(folder / "audit", folder / "student" / "model.safetensors")
    write_examples(folder / "evaluation" / "examples.npz", images[900:], labels[900:])


def paths_in(folder):
    """Where `write_runs` put everything."""
    return ReportPaths(
        student=folder / "student",
        metrics=folder / "metrics.json",
        evaluation=folder / "evaluation",
        baseline=folder / "baseline",
        baseline_metrics=folder / "baseline-metrics.json",
        baseline_evaluation=folder / "baseline-evaluation",
        teacher=folder / "teacher",
        labels=folder / "labels.zarr",
        data=folder / "train.beton",
        audit=folder / "audit" / "audit.json",
    )


def right(count, n=1000, last=False):
    """Answers of which the first, or the last, so many are right."""
    order = np.arange(n)[:: -1 if last else 1]
    return order < count


def with_answers(facts, student, baseline, **answers):
    """Facts with these scores, and answers by attack to one set of images: (student, baseline)."""
    sides = [
        replace(
            scores,
            samples=Samples(
                np.arange(scores.metrics.n, dtype=np.uint64),
                np.zeros(scores.metrics.n, np.int64),
                {attack: pair[number] for attack, pair in answers.items()},
            ),
        )
        for number, scores in enumerate((student, baseline))
    ]
    return replace(facts, evaluation=sides[0], baseline_evaluation=sides[1])


def scores_of(clean, auto, n=1000, *, pgd=None, **more):
    """Scores of a model with so many right answers; `auto` None: AutoAttack was left out."""
    hits = {"clean": clean, "pgd": pgd or auto or n // 2}
    hits |= {} if auto is None else {"autoattack": auto}
    return Evaluation(make_metrics(n, hits, **{"expected_calibration_error": 0.05} | more))


def attacked(scores, *rows, **changes):
    """The same scores with other metrics: rows in place of those of the same attacks, or added."""
    by_key = {row.key: row for row in (*scores.metrics.attacks, *rows)}
    changes = {"attacks": tuple(by_key.values())} | changes
    return replace(scores, metrics=scores.metrics.model_copy(update=changes))
