"""A teacher's answers, made up from a seed, as flat files: what every format is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ltd_pipe.images.manifest import fingerprint
from ltd_pipe.labels.format import DatasetFacts, StoreFacts, TeacherFacts, to_float16
from ltd_pipe.labels.softmax import soften

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["SIZES", "Answers", "Size", "make_answers", "make_facts"]

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Size:
    """How many samples, classes, and probabilities of each row (None: all of them)."""

    name: str
    num_samples: int
    num_classes: int
    top_k: int | None = None

    def scaled(self, factor: float) -> Size:
        """As many classes, and more or fewer samples."""
        samples = max(round(self.num_samples * factor), 1024)
        return Size(self.name, samples, self.num_classes, self.top_k)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of labels: float16, and uint16 classes of a sparse one."""
        return 2 * self.num_classes if self.top_k is None else 4 * self.top_k

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample: its row, ground truth and hash."""
        return self.row_bytes + 12


SIZES = {
    size.name: size
    for size in (
        Size("cifar10", 50_000, 10),
        Size("imagenet", 1_281_167, 1_000),
        Size("topk10m", 10_000_000, 1_000, 50),
    )
}


@dataclass(frozen=True)
class Answers:
    """Columns of equal length in flat files; `logits` is there only to be written."""

    size: Size
    folder: Path
    facts: StoreFacts
    shapes: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def rows(self) -> list[str]:
        """Names of the columns with the labels' rows."""
        return ["soft_labels"] if self.size.top_k is None else ["topk_indices", "topk_probs"]

    @property
    def names(self) -> list[str]:
        """Names of the columns that a store publishes."""
        return [*self.rows, "labels", "sample_hash"]

    def path(self, name: str) -> Path:
        """The flat file of a column."""
        return self.folder / f"{name}.bin"

    def column(self, name: str) -> NDArray[Any]:
        """A column, mapped: shape (N, ...)."""
        dtype, shape = self.shapes[name]
        # A plain array: np.memmap's own class costs microseconds at each indexing.
        return np.asarray(np.memmap(self.path(name), dtype, mode="r", shape=shape))

    def blocks(self, rows: int = _BLOCK_ROWS) -> list[slice]:
        """All rows, some at a time."""
        count = self.size.num_samples
        return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def make_answers(size: Size, folder: Path, seed: int) -> Answers:
    """Write the flat files of a size.

    Logits are normal with deviation 2.5, the true class's 8 higher, so that rows look like
    those of a good teacher at temperature 1: mean top probability about 0.8 of 1,000 classes.
    """
    folder.mkdir(parents=True)
    count, classes = size.num_samples, size.num_classes
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count, dtype=np.int32)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "labels": ("<i4", (count,)),
        "sample_hash": ("<u8", (count,)),
    }
    if size.top_k is None:
        shapes |= {"logits": ("<f2", (count, classes)), "soft_labels": ("<f2", (count, classes))}
    else:
        width = (count, size.top_k)
        shapes |= {"topk_indices": ("<u2", width), "topk_probs": ("<f2", width)}
    answers = Answers(size, folder, make_facts(size, labels, hashes), shapes)
    labels.tofile(answers.path("labels"))
    hashes.tofile(answers.path("sample_hash"))
    (_write_dense if size.top_k is None else _write_sparse)(answers, labels, seed)
    return answers


def make_facts(size: Size, labels: NDArray[np.int32], hashes: NDArray[np.uint64]) -> StoreFacts:
    """What a store of these samples says of itself."""
    names = tuple(f"class {number}" for number in range(size.num_classes))
    known = fingerprint(names, labels, hashes)
    return StoreFacts(
        num_samples=size.num_samples,
        num_classes=size.num_classes,
        class_names=names,
        dataset=DatasetFacts(name=size.name, split="train", fingerprint=known),
        teachers=(TeacherFacts(sha256="0" * 64, architecture="none", clean_accuracy=None),),
    )


def _write_dense(answers: Answers, labels: NDArray[np.int32], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    soft_file, logits_file = answers.path("soft_labels"), answers.path("logits")
    with soft_file.open("wb") as soft, logits_file.open("wb") as logits:
        for block in answers.blocks():
            truth = torch.from_numpy(labels[block].astype(np.int64))[:, None]
            shape = (len(truth), answers.size.num_classes)
            drawn = torch.randn(shape, generator=generator) * 2.5
            stored = to_float16(drawn.scatter_add_(1, truth, torch.full(shape, 8.0)).numpy())
            logits.write(stored.data)
            soft.write(to_float16(soften(stored, 1.0)).data)


def _write_sparse(answers: Answers, labels: NDArray[np.int32], seed: int) -> None:
    # Falling probabilities over different classes, without making the K - k others first.
    generator = torch.Generator().manual_seed(seed)
    classes, k = answers.size.num_classes, answers.size.top_k
    assert k is not None  # noqa: S101
    steps = torch.tensor([step for step in range(1, classes) if np.gcd(step, classes) == 1])
    ranks = torch.arange(k)
    indices_file, probs_file = answers.path("topk_indices"), answers.path("topk_probs")
    with indices_file.open("wb") as indices, probs_file.open("wb") as probs:
        for block in answers.blocks(16 * _BLOCK_ROWS):
            first = torch.from_numpy(labels[block].astype(np.int64))[:, None]
            step = steps[torch.randint(len(steps), first.shape, generator=generator)]
            chosen = ((first + ranks * step) % classes).to(torch.int16)
            drawn = torch.randn((len(first), k), generator=generator) * 2.5
            ranked = drawn.sort(dim=1, descending=True).values
            indices.write(chosen.numpy().data)
            probs.write((0.98 * torch.softmax(ranked, dim=1)).to(torch.float16).numpy().data)
