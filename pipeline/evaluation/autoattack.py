"""AutoAttack (Croce and Hein 2020) by its authors' package, resumable after each batch.

The package's own state file resumes after an interruption with batches of other images, hence
other random starts. Here each attack's batches are the package's own batches, run one by one
and written down, so that an interrupted evaluation ends with the same numbers to the bit.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pyautoattack import AutoAttack
from pyautoattack.checks import check_square_sr

from pipeline.publish import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier

__all__ = ["AutoAttackResult", "attack_batch", "build", "collected_flags", "run_autoattack"]

# The standard version for L-infinity, in its order.
_ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass
class AutoAttackResult:
    """What AutoAttack left standing.

    Attributes
    ----------
    robust : list of bool
        Per image, in the order of the test images.
    accuracy : dict of str to float
        Accuracy left after each attack, in the order they ran.
    flags : list of str
        AutoAttack's own warnings that its verdict may be too kind.
    """

    robust: list[bool]
    accuracy: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    under_way: list[bool] = field(default_factory=list)


class _Flags(logging.Handler):
    """Collects the warnings of the package's checks."""

    def __init__(self, into: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._into:
            self._into.append(message)


def run_autoattack(
    model: Classifier,
    test: TestImages,
    right: torch.Tensor,
    *,
    eps: float,
    seed: int,
    batch_size: int,
    state: Path,
    tick: Callable[[int], None],
) -> AutoAttackResult:
    """Run the standard version: APGD-CE, APGD-T, FAB-T and Square, each on what is left.

    Parameters
    ----------
    model : Classifier
        In evaluation mode, deterministic, on its device.
    test : TestImages
    right : Tensor of shape (n,), dtype bool
        Right when clean.
    eps : float
        Radius of the L-infinity ball, pixel units.
    seed : int
    batch_size : int
        Part of the result: the package seeds each batch anew.
    state : Path
        JSON file written after each batch; an existing one is continued.
    tick : callable
        Called with the number of images done after each batch of each attack.

    Returns
    -------
    AutoAttackResult
    """
    adversary = build(model, test.device, eps, seed)
    result = _resume(state, right)
    with collected_flags(adversary, result.flags):
        for attack in _applicable(model.num_classes, adversary.logger):
            if attack not in result.accuracy:
                _run_attack(adversary, attack, test, result, batch_size, state, tick)
        check_square_sr(result.accuracy, logger=adversary.logger)
    return result


@contextlib.contextmanager
def collected_flags(adversary: Any, into: list[str]) -> Iterator[None]:
    """Collect the package's warnings in a list instead of printing them."""
    handler = _Flags(into)
    adversary.logger.addHandler(handler)
    try:
        yield
    finally:
        adversary.logger.removeHandler(handler)


def _applicable(num_classes: int, logger: logging.Logger) -> tuple[str, ...]:
    # The targeted DLR loss divides by a difference of the first and the fourth logit.
    if num_classes >= 4:
        return _ATTACKS
    logger.warning("APGD-T needs at least 4 classes and was left out.")
    return tuple(attack for attack in _ATTACKS if attack != "apgd-t")


def build(model: Classifier, device: torch.device, eps: float, seed: int) -> Any:
    """The package's AutoAttack for this model and radius."""
    logger = logging.getLogger("auto-attack")
    logger.propagate = False
    adversary = AutoAttack(
        model, norm="Linf", eps=eps, seed=seed, version="standard", device=device
    )
    if model.num_classes < 10:
        # Targets are the other classes; the package's default of 9 needs ten.
        adversary.apgd_targeted.n_target_classes = model.num_classes - 1
        adversary.fab.n_target_classes = model.num_classes - 1
    return adversary


def _resume(state: Path, right: torch.Tensor) -> AutoAttackResult:
    if not state.exists():
        return AutoAttackResult(robust=right.tolist())
    return AutoAttackResult(**json.loads(state.read_text(encoding="utf-8")))


def _run_attack(
    adversary: Any,
    attack: str,
    test: TestImages,
    result: AutoAttackResult,
    batch_size: int,
    state: Path,
    tick: Callable[[int], None],
) -> None:
    # The batches of one attack are fixed by what the attack before it left.
    rows = torch.tensor(result.robust).nonzero().flatten()
    still = list(result.under_way)
    for number, part in enumerate(test.batches(rows, batch_size)):
        if number < result.done.get(attack, 0):
            continue
        still += attack_batch(adversary, attack, test, part)
        result.done[attack], result.under_way = number + 1, still
        write_json(state, vars(result))
        tick(len(part))
    robust = torch.tensor(result.robust)
    robust[rows] = torch.tensor(still, dtype=torch.bool)
    result.robust, result.under_way = robust.tolist(), []
    result.accuracy[attack] = sum(result.robust) / max(len(result.robust), 1)
    write_json(state, vars(result))


def attack_batch(adversary: Any, attack: str, test: TestImages, rows: torch.Tensor) -> list[bool]:
    """Which of some images stay right under one attack."""
    images, labels, _ = test.take(rows)
    adversary.attacks_to_run = [attack]
    attacked, _ = adversary.run_standard_evaluation(images, labels, batch_size=len(rows))
    with torch.no_grad():
        answers = adversary.model(attacked).argmax(dim=1)
    still: list[bool] = (answers == labels).tolist()
    return still
