"""A model and the images under attack, batch by batch, with a journal of what is done."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe import rng
from ltd_pipe.distributed import ALONE, World
from ltd_pipe.errors import DataError, ModelError, ParamsError
from ltd_pipe.evaluation.checks import require_finite
from ltd_pipe.evaluation.statistics import ConfidenceBin, mean_gap, reliability
from ltd_pipe.images.manifest import pixels_sha256, to_unit
from ltd_pipe.publish import writing

if TYPE_CHECKING:
    from ltd_pipe.images.stream import Stream
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.provenance import StateRecord

# Maps images, labels and sample indices to adversarial images.
Attack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Told what is under way, the images just done, and at most how many are to come.
Tick = Callable[[str, int, int], None]
# Told which attack is over, and the accuracy that it leaves.
Finished = Callable[[str, float], None]


def silent(*_: Any) -> None:
    """Tell nobody."""


# --- The test images, held in memory.


@dataclass(frozen=True)
class TestImages:
    """Images to be attacked.

    Attributes
    ----------
    images : Tensor of shape (n, C, H, W), dtype uint8, on the CPU
    labels, index : Tensor of shape (n,), dtype int64, on the CPU
    sample_hash : ndarray of shape (n,), dtype uint64
    device : torch.device
        Where batches go.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    sample_hash: NDArray[np.uint64]
    device: torch.device

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def pixels_sha256(self) -> str:
        """Of what the model is shown; see `ltd_pipe.images.manifest`."""
        return pixels_sha256(self.images.numpy())

    def take(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Some rows on the device: images in [0, 1] (float32), labels, sample indices."""
        return (
            to_unit(self.images[rows].to(self.device)),
            self.labels[rows].to(self.device),
            self.index[rows].to(self.device),
        )

    def part(self, rows: torch.Tensor) -> TestImages:
        """Some of the images alone."""
        images, labels, index = self.images[rows], self.labels[rows], self.index[rows]
        return TestImages(images, labels, index, self.sample_hash[rows.numpy()], self.device)


def select_images(stream: Stream, total: int, n: int | None, seed: int) -> TestImages:
    """All `total` test images, or a random `n` of them that depends on the seed alone.

    A ParamsError when there are fewer, a DataError when one has no label.
    """
    if n is not None and n > total:
        raise ParamsError(
            "evaluate.images", "more images than there are", expected=f"at most {total}", found=n
        )
    order = rng.permutation(rng.stream_key(seed, "evaluation-images"), np.arange(total))
    parts = [
        (batch.images.cpu(), batch.labels.cpu(), batch.index.cpu(), batch.sample_hash)
        for batch in stream.batches(np.sort(order[:n]), 1024)
    ]
    *tensors, hashes = zip(*parts, strict=True)
    images, labels, index = (torch.cat(column) for column in tensors)
    unknown = index[labels < 0]
    if len(unknown):
        raise DataError(
            f"sample {int(unknown[0])}",
            f"has no label ({len(unknown)} such): accuracy cannot be measured on it",
            remedy="Put the images into one folder per class.",
        )
    return TestImages(images, labels, index, np.concatenate(hashes), stream.device)


# --- What a model answers.


@dataclass(frozen=True)
class Answers:
    """The predicted classes of all test images, and their probabilities.

    Attributes
    ----------
    prediction : Tensor of shape (n,), dtype int64, on the CPU
        -1 where the model was not asked.
    confidence : Tensor of shape (n,), dtype float32, on the CPU
        Probability of the predicted class; 0 where the model was not asked.
    """

    prediction: torch.Tensor
    confidence: torch.Tensor

    def correct(self, labels: torch.Tensor) -> torch.Tensor:
        """Which answers are the labels: shape (n,), dtype bool."""
        return self.prediction == labels

    def reliability(self, labels: torch.Tensor) -> tuple[ConfidenceBin, ...]:
        """Accuracy by confidence over all images, each of which was asked for."""
        return reliability(self.confidence.numpy(), self.correct(labels).numpy())

    def calibration_error(self, labels: torch.Tensor) -> float:
        """Expected calibration error, likewise."""
        return mean_gap(self.reliability(labels))


@torch.no_grad()
def answer(model: Classifier, images: torch.Tensor) -> dict[str, Any]:
    """The model's answers as plain values, from which `Bench.answers` has them without loss.

    NaN and infinity are refused: they would count as class 0.
    """
    logits = model(images).float()
    require_finite(logits, "for test images, as they are or attacked")
    confidence, prediction = logits.softmax(dim=1).max(dim=1)
    return {"prediction": prediction.tolist(), "confidence": confidence.tolist()}


# --- What is done of an evaluation, on disk: a file for each attack, a line for each batch.


class Journal:
    """Records of numbered batches, in whatever order they were computed, and by which process.

    A process may die at any byte. A line counts when it is whole, which its checksum tells; a batch
    without one is computed again. So nothing has to wait for the disk. The folder is named by all
    that decides the records, so that an equal one continues; without one, nothing is kept.
    """

    def __init__(self, folder: Path | None, state: StateRecord | None = None) -> None:
        self.folder, self._state = folder, state

    def read(self, name: str) -> dict[int, dict[str, Any]]:
        """The whole records of one attack, by the numbers of their batches."""
        if self.folder is None or not (file := self.folder / f"{name}.jsonl").exists():
            return {}
        lines = (line.partition(b" ") for line in file.read_bytes().split(b"\n"))
        return dict(json.loads(text) for sum_, _, text in lines if sum_ == _checksum(text))

    def append(self, name: str, number: int, record: dict[str, Any]) -> None:
        """Keep one more record."""
        if self.folder is None:
            return
        file = self.folder / f"{name}.jsonl"
        text = json.dumps([number, record], allow_nan=False).encode()
        with writing(file):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._state is not None:
                self._state.write()
            # In one piece, as other processes append, too; and never to a torn line.
            with file.open("ab") as handle:
                handle.write(b"\n%b %b" % (_checksum(text), text))


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


# --- A model and the images that every attack of an evaluation works on.


@dataclass(frozen=True)
class Bench:
    """A model under measurement, in evaluation mode, and the images under attack."""

    model: Classifier
    test: TestImages
    seed: int
    # AutoAttack's random numbers depend on it.
    batch_size: int
    journal: Journal = field(default_factory=lambda: Journal(None))
    tick: Tick = silent
    finished: Finished = silent
    # Who shares the batches.
    world: World = ALONE

    def records(
        self,
        name: str,
        rows: torch.Tensor,
        work: Callable[[torch.Tensor], dict[str, Any]],
        *,
        title: str,
        later: int = 0,
    ) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        """Work on some rows batch by batch; what an earlier run has done is read, not done again.

        `name` is that of the records, unlike any other of this evaluation. `rows`, int64 of shape
        (m,), are the same in every run and process, so that batch i is. `work` maps rows to plain
        values (JSON). `later` are images that the same attack will come to afterwards.

        Each process takes its share of the batches that are left, and gets the records of all.
        """
        parts = torch.split(rows, self.batch_size) if len(rows) else ()
        kept: dict[int, dict[str, Any]] = {}
        for found in self.world.all_gather(self.journal.read(name)):
            kept |= found
        missing = [number for number in range(len(parts)) if number not in kept]
        left = sum(len(parts[number]) for number in missing) + later
        own: dict[int, dict[str, Any]] = {}
        refused: dict[int, ModelError] = {}
        if missing:
            self.tick(title, 0, left)
        try:
            for first in range(self.world.rank, len(missing), self.world.size):
                number = missing[first]
                with _own_randomness(rng.stream_key(self.seed, name, number), self.test.device):
                    own[number] = work(parts[number])
                self.journal.append(name, number, own[number])
                # The others have come as far, more or less.
                done = sum(len(parts[one]) for one in missing[first : first + self.world.size])
                left -= done
                self.tick(title, done, left)
        except ModelError as error:
            refused[number] = error
        for found, errors in self.world.all_gather((own, refused)):
            kept |= found
            refused |= errors
        if refused:
            raise refused[min(refused)]  # as one process alone would, and all do
        return [(part, kept[number]) for number, part in enumerate(parts)]

    def answers(
        self,
        name: str,
        rows: torch.Tensor,
        attack: Attack | None = None,
        *,
        title: str,
        later: int = 0,
    ) -> Answers:
        """What the model answers to some rows, attacked or as they are; see `records`."""

        def work(part: torch.Tensor) -> dict[str, Any]:
            images, labels, index = self.test.take(part)
            return answer(self.model, attack(images, labels, index) if attack else images)

        found = Answers(torch.full((len(self.test),), -1), torch.zeros(len(self.test)))
        for part, record in self.records(name, rows, work, title=title, later=later):
            found.prediction[part] = torch.tensor(record["prediction"])
            found.confidence[part] = torch.tensor(record["confidence"])
        return found

    def correct(
        self, name: str, before: torch.Tensor, attack: Attack, *, title: str
    ) -> torch.Tensor:
        """Which of the images that were right before stay right under an attack; see `records`."""
        rows = before.nonzero().flatten()
        found = self.answers(name, rows, attack, title=title)
        return before & found.correct(self.test.labels)

    def correct_of_source(self, source: Classifier, number: int) -> torch.Tensor:
        """Which images another model, whose attack is tried on this one, gets right when clean."""
        bench, rows = replace(self, model=source), torch.arange(len(self.test))
        found = bench.answers(f"source-{number}", rows, title=f"clean, by source {number}")
        return found.correct(self.test.labels)


@contextlib.contextmanager
def _own_randomness(key: int, device: torch.device) -> Iterator[None]:
    """Numbers that a model or a package draws from torch: the batch's own, whatever came before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield
