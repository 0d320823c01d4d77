"""What people and a strong network say of CIFAR-10's test images, in the order of a beton's rows.

The people are CIFAR-10H's (Peterson, Battleday, Griffiths and Russakovsky, ICCV 2019; CC BY-NC-SA
4.0); network and reviews are those of cleanlab/label-errors (Northcutt, Athalye and Mueller, 2021;
Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltd_pipe.images.manifest import sample_hash
from ltd_pipe.labels.join import HashIndex

if TYPE_CHECKING:
    from pathlib import Path

    from ltd_pipe.images.beton import Beton

__all__ = ["Answers"]


@dataclass(frozen=True)
class Answers:
    """Of N images and K classes.

    Attributes
    ----------
    labels : ndarray of shape (N,), dtype int64
        The given ones.
    counts : ndarray of shape (N, K), dtype float64
        How many people chose each class.
    network : ndarray of shape (N, K), dtype float64
        A network's probabilities, of networks that trained on other images.
    review : ndarray of shape (N, 4), dtype int64
        Of five reviewers who saw the given label and another one: how many chose the given one,
        the other one, both, neither; -1 where nobody was asked.
    """

    labels: np.ndarray
    counts: np.ndarray
    network: np.ndarray
    review: np.ndarray

    @property
    def people(self) -> np.ndarray:
        """Shares of the people, float64 of shape (N, K)."""
        return _shares(self.counts)

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the people in two halves, drawn at random: float64 of shape (N, K) each."""
        draws, counts = np.random.default_rng(0), self.counts.astype(np.int64)
        first = np.stack([draws.multivariate_hypergeometric(row, row.sum() // 2) for row in counts])
        return _shares(first), _shares(counts - first)

    @property
    def majority(self) -> np.ndarray:
        """The class that most people chose, the given one where it is among several, (N,)."""
        own = self.counts[np.arange(len(self.labels)), self.labels]
        return np.where(self.counts.max(axis=1) > own, self.counts.argmax(axis=1), self.labels)

    @property
    def reviewed(self) -> np.ndarray:
        """Where reviewers were asked, bool of shape (N,)."""
        return self.review[:, 0] >= 0

    @property
    def wrong(self) -> np.ndarray:
        """Where fewer than three of five reviewers kept the given label (Northcutt et al. 2021)."""
        return self.reviewed & (self.review[:, 0] < 3)

    @classmethod
    def of(cls, images: Beton, path: Path | None, folder: Path | None) -> Answers:
        """Those that are read, or made up where there is no file of them, or no folder."""
        if path is None or folder is None:
            return cls.made_up(images)
        return cls.read(path, folder, images)

    @classmethod
    def read(cls, path: Path, folder: Path, images: Beton) -> Answers:
        """Join the file's rows with a beton by the hash of the images' files.

        `folder` holds CLASS/NNNN.jpg, of which the file names class and number.
        """
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        names = content["class_names"][content["label"]]
        pairs = zip(names, content["number"], strict=True)
        paths = [folder / name / f"{number:04d}.jpg" for name, number in pairs]
        index = HashIndex(images.sample_hash, images.labels)
        hashes = np.array([sample_hash(path.read_bytes()) for path in paths], np.uint64)
        rows = index.first_rows(hashes)
        if sorted(rows) != list(range(len(images.labels))):
            raise ValueError(f"{path} and {images.path} are not of the same images")
        order = np.argsort(rows)
        if (content["label"][order] != images.labels).any():
            raise ValueError(f"{path} and {images.path} differ in a label")
        return cls(
            images.labels.astype(np.int64),
            content["human_counts"][order].astype(float),
            content["teacher_probs"][order].astype(float),
            content["review"][order].astype(np.int64),
        )

    @classmethod
    def made_up(cls, images: Beton, seed: int = 0) -> Answers:
        """Answers of a random generator: each image has a class that it is more or less like."""
        draws = np.random.default_rng(seed)
        labels, count = images.labels.astype(np.int64), images.manifest.num_classes
        likeness = draws.exponential(1.0, (len(labels), count))
        likeness[np.arange(len(labels)), labels] += draws.uniform(0, 80, len(labels))
        likeness /= likeness.sum(axis=1, keepdims=True)
        counts = np.stack([draws.multinomial(51, row) for row in likeness]).astype(float)
        network = likeness**2 / (likeness**2).sum(axis=1, keepdims=True)
        review = np.full((len(labels), 4), -1)
        least = likeness[np.arange(len(labels)), labels].argsort()[: len(labels) // 10]
        review[least] = draws.multinomial(5, [0.7, 0.2, 0.05, 0.05], len(least))
        return cls(labels, counts, network, review)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(axis=1, keepdims=True)
