"""A teacher's answers for a few samples, the same each time, and stores of them."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.derive import DerivedStore
from ltd_pipe.labels.format import DatasetFacts, StoreAttributes, TeacherFacts, ViewFacts
from ltd_pipe.labels.writer import StoreWriter


def write_store(
    target, attributes, logits, labels, sample_hash, *, replace=False, **options
) -> str:
    """A store of a teacher's logits, which are all in memory; gives its identity."""
    state = target.with_name(f".{target.name}.draft")
    shutil.rmtree(state, ignore_errors=True)
    if options.get("top_k"):
        options["temperature"] = attributes.temperature
    writer = StoreWriter(state, attributes, **{"keep_logits": False} | options)
    writer.append(logits, labels, sample_hash)
    # Where it is not published, nobody still writes to the draft.
    writer.flush()
    known = {"calibration": attributes.calibration, "replace": replace}
    return writer.publish(target, attributes.temperature, **known)


def give_store(target, attributes, labels, sample_hash, **rows) -> None:
    """A store of rows that nobody computes or looks at, such as `soft_labels`."""
    rows = {
        name: row.astype(np.float16) if row.dtype.kind == "f" else row for name, row in rows.items()
    }
    DerivedStore(
        attributes,
        labels,
        sample_hash,
        tuple(rows),
        lambda at: {name: row[at] for name, row in rows.items()},
        len(labels),
    ).write(target)


@dataclass(frozen=True)
class Answers:
    """What a teacher said of a data set; also passes for the data set's beton."""

    attributes: StoreAttributes
    logits: np.ndarray
    labels: np.ndarray
    sample_hash: np.ndarray

    @property
    def manifest(self):
        """As `ltd_pipe.images.manifest.Manifest`."""
        return Manifest(self)

    def write(self, target: Path, **options: Any) -> Path:
        """Write a store of four rows per chunk, with logits."""
        options = {"rows": 4, "keep_logits": "top_k" not in options} | options
        write_store(target, self.attributes, self.logits, self.labels, self.sample_hash, **options)
        return target

    def permuted(self, order) -> "Answers":
        """The same samples in another order, with the fingerprint of that order."""
        labels, hashes = self.labels[order], self.sample_hash[order]
        return replace(
            self,
            attributes=attributes(labels, hashes, self.attributes.class_names),
            logits=self.logits[order],
            labels=labels,
            sample_hash=hashes,
        )


@dataclass(frozen=True)
class Manifest:
    """The part of an images' manifest that a store is compared with."""

    answers: Answers

    dataset = "digits"
    split = "train"

    @property
    def num_samples(self):
        return len(self.answers.labels)

    @property
    def class_names(self):
        return self.answers.attributes.class_names

    @property
    def fingerprint(self):
        return self.answers.attributes.dataset.fingerprint


def attributes(labels, sample_hash, class_names, temperature=2.0, teachers=1, views=1):
    """Attributes of a store for these samples."""
    return StoreAttributes(
        temperature=temperature,
        num_samples=len(labels),
        num_classes=len(class_names),
        class_names=class_names,
        dataset=DatasetFacts(
            name="digits",
            split="train",
            fingerprint=fingerprint(class_names, labels, sample_hash),
        ),
        teachers=(TeacherFacts(sha256="ab" * 32, architecture="small-cnn", clean_accuracy=0.5),)
        * teachers,
        views=ViewFacts(count=views, seed=5, augmentation="crop:1") if views > 1 else ViewFacts(),
        software={"torch": "2", "numpy": "2"},
    )


def make_answers(
    num_samples=11, num_classes=3, seed=0, temperature=2.0, teachers=1, views=1
) -> Answers:
    """Random answers; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    names = tuple(f"class {number}" for number in range(num_classes))
    labels = rng.integers(-1, num_classes, num_samples).astype(np.int32)
    hashes = rng.integers(0, 2**64, num_samples, dtype=np.uint64)
    shape = (num_samples, views, num_classes) if views > 1 else (num_samples, num_classes)
    shape = (teachers, *shape) if teachers > 1 else shape
    logits = (rng.standard_normal(shape) * 3).astype(np.float32)
    facts = attributes(labels, hashes, names, temperature, teachers, views)
    return Answers(facts, logits, labels, hashes)
