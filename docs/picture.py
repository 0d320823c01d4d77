"""README's picture, from what `make repro` left in data/.

    ltd-pipe evaluate data/teacher/model.safetensors --autoattack none --pgd-restarts 1 \
        --metrics data/teacher-metrics.json --out data/teacher-evaluation
    python docs/picture.py

Left: test images, each attacked once for the clean teacher and once for the robust student, and
what each answers. Right: how many images each still classifies as eps grows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure

from ltd_pipe.attacks import Ball, margin, pgd
from ltd_pipe.images.beton import open_beton
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.models.checkpoint import load_classifier

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ltd_pipe.models.classifier import Classifier

DATA, OUT = Path("data"), Path("docs/picture.svg")
NAMES, EPS, SHOWN = ("teacher", "student"), 0.2, 4
INK, STUDENT, TEACHER = "#24292f", "#1f5fbf", "#b4520a"


def main() -> None:
    """Draw it."""
    stream = ImageStream(open_beton(DATA / "test.beton"), torch.device("cpu"))
    batch = next(stream.batches(np.arange(64), 64))
    images, labels = batch.images.float() / 255, batch.labels
    models = {name: load_classifier(DATA / name / "model.safetensors").eval() for name in NAMES}
    attacked = {
        name: pgd(
            model,
            images,
            lambda logits: margin(logits, labels),
            start=images,
            ball=Ball("linf", EPS),
            step_size=EPS / 4,
            steps=20,
        )
        for name, model in models.items()
    }
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "picture", "font.size": 10})
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    draw_images(left, images, labels, models, attacked)
    draw_curves(right.subplots())
    figure.savefig(OUT, metadata={"Date": None}, facecolor="white")


def draw_images(
    figure: SubFigure,
    images: torch.Tensor,
    labels: torch.Tensor,
    models: dict[str, Classifier],
    attacked: dict[str, torch.Tensor],
) -> None:
    """One column an image: clean, then attacked for each model, with its answer."""
    # One of each class in the order of the test images: not chosen by how they come out.
    first = [int((labels == label).nonzero()[0]) for label in (2, 3, 5, 8)]
    axes = figure.subplots(3, SHOWN)
    for column, row in enumerate(first):
        shown = [(images, None)] + [(attacked[name], models[name]) for name in NAMES]
        for line, (pictures, model) in enumerate(shown):
            panel = axes[line, column]
            panel.imshow(pictures[row, 0], cmap="gray", vmin=0, vmax=1)
            panel.set_xticks([])
            panel.set_yticks([])
            if model is None:
                panel.set_title(f"a {int(labels[row])}", fontsize=10, color=INK)
                continue
            with torch.no_grad():
                chances = model(pictures[row : row + 1]).softmax(1)[0]
            answer = int(chances.argmax())
            right = answer == int(labels[row])
            panel.set_xlabel(
                f"“{answer}”, {chances[answer]:.0%}", color=INK if right else "#c62828", fontsize=9
            )
    names = ("as it is", "attacked:\nthe teacher says", "attacked:\nthe student says")
    for line, text in enumerate(names):
        axes[line, 0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, color=INK)


def draw_curves(axes: Axes) -> None:
    """Accuracy by eps, with the intervals."""
    for folder, colour, text in (
        ("teacher-evaluation", TEACHER, "clean teacher"),
        ("evaluation", STUDENT, "student, adversarially\ntrained on its soft labels"),
        ("baseline-evaluation", "#777777", "the same on one-hot labels"),
    ):
        points = json.loads((DATA / folder / "by_eps.json").read_text())
        eps = [point["eps"] for point in points]
        axes.fill_between(
            eps,
            [point["low"] * 100 for point in points],
            [point["high"] * 100 for point in points],
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
        accuracy = np.array([point["robust_accuracy"] for point in points]) * 100
        style = "--" if folder.startswith("baseline") else "-"
        axes.plot(eps, accuracy, style, color=colour, linewidth=1.6, marker=".", label=text)
    axes.axvline(EPS, color="#999999", linewidth=0.8, linestyle=(0, (3, 3)))
    axes.text(EPS + 0.008, 2, "trained for", fontsize=9, color="#666666")
    axes.set(xlim=(0, 0.45), ylim=(0, 101), xlabel="eps, the largest change of a pixel (of 1)")
    axes.set_ylabel("accuracy under PGD-20, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        frameon=False, loc="upper right", bbox_to_anchor=(1.03, 0.95), fontsize=9, handlelength=1.2
    )


if __name__ == "__main__":
    main()
