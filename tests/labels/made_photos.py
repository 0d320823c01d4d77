"""A small folder of pictures, and a store of labels for them in which each row is different."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from made_answers import Answers, attributes
from PIL import Image

from ltd_pipe.images.manifest import sample_hash
from ltd_pipe.images.sources import FolderSource
from ltd_pipe.labels import SoftLabels
from ltd_pipe.labels.format import LabellingFacts
from ltd_pipe.labels.softmax import soften

CLASSES = ("bird", "cat", "dog")


@dataclass(frozen=True)
class Photos:
    """A folder of pictures and the answers that belong to them, by file."""

    folder: Path
    answers: Answers
    paths: list[Path]

    def soft(self, path) -> np.ndarray:
        """The soft label of the picture that was at this path."""
        row = self.paths.index(Path(path))
        return soften(self.answers.logits[row].astype(np.float16), 2.0)

    def store(self, name="labels.zarr", **options: Any) -> SoftLabels:
        """The store, beside the folder; written if it is not there or has to be another."""
        path = self.folder.parent / name
        if options or not path.exists():
            self.answers.write(path, replace=True, **options)
        return SoftLabels.open(path)

    def asked(self, **facts: Any) -> "Photos":
        """The same, whose store says how its teacher was asked."""
        known = self.answers.attributes.model_copy(update={"labelling": LabellingFacts(**facts)})
        return replace(self, answers=replace(self.answers, attributes=known))

    def copy(self, to: Path) -> "Photos":
        """The same pictures and stores, to be spoilt."""
        shutil.copytree(self.folder.parent, to)
        return replace(
            self,
            folder=to / self.folder.name,
            paths=[to / path.relative_to(self.folder.parent) for path in self.paths],
        )


def answers_of(hashes, labels, class_names=CLASSES, views=1) -> Answers:
    """Random answers to images of which the hashes are known."""
    labels, hashes = np.asarray(labels, np.int32), np.asarray(hashes, np.uint64)
    shape = (len(labels), views, len(class_names)) if views > 1 else (len(labels), len(class_names))
    logits = (np.random.default_rng(7).standard_normal(shape) * 3).astype(np.float32)
    facts = attributes(labels, hashes, tuple(class_names), views=views)
    return Answers(facts, logits, labels, hashes)


def make_photos(folder: Path, each=4, views=1) -> Photos:
    """Some pictures of 12×10 in each of three classes, labelled in ltd-pipe's order."""
    rng = np.random.default_rng(3)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            # So that the numbers' order is not that of their texts.
            path = folder / name / f"{number * 7}.png"
            Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    source = FolderSource(folder)
    hashes = [sample_hash(source.raw(i)) for i in range(len(source))]
    return Photos(folder, answers_of(hashes, source.labels, views=views), source.paths)
