"""An attack's kernels as one CUDA graph: start, passes, losses, steps and projections."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ltd_pipe.errors import MachineError

if TYPE_CHECKING:
    from ltd_pipe.attacks import Adversary
    from ltd_pipe.objectives import TrainBatch

    # From a batch and the points where the attack begins to the points where it ends.
    Attack = Callable[[TrainBatch, torch.Tensor], torch.Tensor]

# Batches of each shape for which a recording is held against the attack itself.
_PROVED = 2
# As torch.cuda.graphs asks: what is set up at first calls is not recorded.
_WARM_UP = 3


class RecordedAttack:
    """Gives what an attack on a GPU gives, by one launch where that takes a thousand.

    The attack may neither wait for the GPU nor depend on numbers of the host that change, those of
    its adversary aside. The first two results of each shape are compared with its own, to the bit:
    a recording that reads what has moved would be wrong silently.
    """

    def __init__(
        self, attack: Callable[[Adversary, TrainBatch, torch.Tensor], torch.Tensor]
    ) -> None:
        self._attack, self._recordings = attack, dict[tuple[torch.Size, ...], _Recording]()
        self._adversary: Adversary | None = None
        # One for all shapes: each takes what a pass does, and no two are replayed at a time.
        self._pool: Any = None

    def __call__(
        self, adversary: Adversary, batch: TrainBatch, points: torch.Tensor
    ) -> torch.Tensor:
        """Where the attack ends; MachineError when a recording is wrong."""
        if adversary != self._adversary:
            # A graph keeps its memory: those of fewer steps are not needed again.
            self._adversary = adversary
            self._recordings.clear()
        shapes = (points.shape, batch.target.shape)
        if shapes not in self._recordings:
            attack = partial(self._attack, adversary)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._recordings[shapes] = _Recording(attack, batch, points, self._pool)
        return self._recordings[shapes](batch, points)


class _Recording:
    def __init__(self, attack: Attack, batch: TrainBatch, points: torch.Tensor, pool: Any) -> None:
        self._attack, self._unproved = attack, _PROVED
        # Where each batch is copied to before it is attacked.
        self._points = points.clone()
        self._batch = replace(
            batch,
            images=batch.images.clone(),
            target=batch.target.clone(),
            truth=batch.truth.clone(),
        )
        self._graph = torch.cuda.CUDAGraph()
        with _no_cached_casts():
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    attack(self._batch, self._points)
            torch.cuda.current_stream().wait_stream(beside)
            # Other threads, which prefetch, go on allocating meanwhile.
            with torch.cuda.graph(self._graph, pool, capture_error_mode="thread_local"):
                self._found = attack(self._batch, self._points)

    def __call__(self, batch: TrainBatch, points: torch.Tensor) -> torch.Tensor:
        held = [self._points, self._batch.images, self._batch.target, self._batch.truth]
        torch._foreach_copy_(held, [points, batch.images, batch.target, batch.truth])
        self._graph.replay()
        found = self._found.clone()
        if self._unproved:
            self._unproved -= 1
            if not torch.equal(found, self._attack(batch, points)):
                raise MachineError(
                    "train.compile: reduce-overhead",
                    "a recorded attack gives other images than the attack itself",
                    remedy="Set compile: default.",
                )
        return found


@contextlib.contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Let autocast round weights in the block anew: what it keeps is gone at the step's end."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
