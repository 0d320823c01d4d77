"""A copy of a student without its temperature: the mistake of defensive distillation.

python drop_temperature.py students/…/model.safetensors results/…/model.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from ltd_pipe.models.checkpoint import load_classifier, save_classifier
from ltd_pipe.models.classifier import Classifier


def main(source: str, target: str) -> None:
    """Write the same weights with temperature 1."""
    model = load_classifier(Path(source))
    bare = Classifier(
        model.network,
        architecture=model.architecture,
        class_names=model.class_names,
        shape=model.shape,
        mean=model.mean.flatten().tolist(),
        std=model.std.flatten().tolist(),
        temperature=1.0,
    )
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    save_classifier(bare, Path(target), kind="student")


if __name__ == "__main__":
    main(*sys.argv[1:])
