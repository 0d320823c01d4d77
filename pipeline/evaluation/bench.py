"""The bench: a model and the images that every attack of an evaluation works on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline import rng
from pipeline.evaluation.answers import Answers, answer
from pipeline.evaluation.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier

__all__ = ["Attack", "Bench", "Finished", "Tick", "silent", "unheard"]

# Maps images, labels and sample indices to adversarial images.
Attack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# What is under way, the images just done, and at most how many are to come.
Tick = Callable[[str, int, int], None]


# Which attack is over, and the accuracy that it leaves.
Finished = Callable[[str, float], None]


def silent(name: str, done: int, left: int) -> None:
    """Tell nobody."""
    del name, done, left


def unheard(name: str, accuracy: float) -> None:
    """Tell nobody."""
    del name, accuracy


@dataclass(frozen=True)
class Bench:
    """A model under measurement.

    Attributes
    ----------
    model : Classifier
        In evaluation mode, on its device.
    test : TestImages
    seed : int
    batch_size : int
        Images per model call; AutoAttack's random numbers depend on it.
    ledger : Ledger
        Where finished batches are kept.
    tick, finished : callable
    """

    model: Classifier
    test: TestImages
    seed: int
    batch_size: int
    ledger: Ledger = field(default_factory=lambda: Ledger(None))
    tick: Tick = silent
    finished: Finished = unheard

    def records(
        self,
        name: str,
        rows: torch.Tensor,
        work: Callable[[torch.Tensor], dict[str, Any]],
        *,
        title: str,
        later: int = 0,
    ) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """Work on some rows batch by batch; what an earlier run has done is read, not done again.

        Parameters
        ----------
        name : str
            Of the records, unlike any other of this evaluation.
        rows : Tensor of shape (m,), dtype int64
            The same in every run, so that batch i is.
        work : callable
            Maps rows to plain values (JSON).
        title : str
            What people are told is under way.
        later : int
            Images that the same attack will come to afterwards.
        """
        kept, left = self.ledger.read(name), len(rows) + later
        for number, part in enumerate(self.test.batches(rows, self.batch_size)):
            if number == len(kept):
                self.tick(title, 0, left)
            left -= len(part)
            if number < len(kept):
                yield part, kept[number]
                continue
            with _own_randomness(rng.stream_key(self.seed, name, number), self.test.device):
                record = work(part)
            self.ledger.append(name, record)
            self.tick(title, len(part), left)
            yield part, record

    def answers(
        self,
        name: str,
        rows: torch.Tensor,
        attack: Attack | None = None,
        *,
        title: str,
        later: int = 0,
    ) -> Answers:
        """What the model says to some rows, attacked or as they are.

        Parameters
        ----------
        name, rows, title, later
            See `records`.
        attack : callable, optional
        """

        def work(part: torch.Tensor) -> dict[str, Any]:
            images, labels, index = self.test.take(part)
            return answer(self.model, attack(images, labels, index) if attack else images)

        found = Answers.none(len(self.test))
        for part, record in self.records(name, rows, work, title=title, later=later):
            found.put(part, record)
        return found

    def source_right(self, source: Classifier, number: int) -> torch.Tensor:
        """Which images another model, whose attack is tried on this one, gets right when clean."""
        bench, rows = replace(self, model=source), torch.arange(len(self.test))
        found = bench.answers(f"source-{number}", rows, title=f"clean, by source {number}")
        return found.right(self.test.labels)

    def standing(
        self,
        name: str,
        before: torch.Tensor,
        attack: Attack,
        *,
        title: str,
        later: int = 0,
    ) -> torch.Tensor:
        """Which of some images the model still gets right when they are attacked.

        Parameters
        ----------
        name, title, later
            See `records`.
        before : Tensor of shape (n,), dtype bool
            The others are not attacked.
        attack : callable

        Returns
        -------
        Tensor of shape (n,), dtype bool
        """
        rows = before.nonzero().flatten()
        found = self.answers(name, rows, attack, title=title, later=later)
        return before & found.right(self.test.labels)


@contextlib.contextmanager
def _own_randomness(key: int, device: torch.device) -> Iterator[None]:
    """Numbers that a model or a package draws from torch: the batch's own, whatever came before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield
