"""Clean and adversarial training, TRADES, MART, several exits; another loss for an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

from ltd_pipe.attacks import cross_entropy, kl_divergence, margin
from ltd_pipe.device import evaluation_mode
from ltd_pipe.errors import ParamsError
from ltd_pipe.objectives.base import Loss, Objective, ObjectiveWrapper

if TYPE_CHECKING:
    from ltd_pipe.attacks import Adversary, LossOfLogits
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives.base import TrainBatch
    from ltd_pipe.params import TrainParams


class Clean(Objective):
    """Cross entropy on the images as they are: the teacher's training."""

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x))."""
        del adversarial
        logits = model(batch.images)
        return Loss(cross_entropy(logits, batch.target).mean(), logits)


@dataclass(frozen=True)
class Madry(Objective):
    """Standard adversarial training (Madry et al. 2018), against one of three losses.

    `likeliest` is the target's likeliest class, alone: right where the given label is wrong and the
    teacher is not, and no more than the truth where both are right. A mixture has no such class.
    """

    attack_label: Literal["truth", "target", "likeliest"] = "truth"

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """CE(y, S(·)), CE(q, S(·)), or CE of the likeliest class."""
        del model
        if self.attack_label == "likeliest":
            best = batch.target.argmax(dim=1, keepdim=True)
            return partial(
                cross_entropy, target=torch.zeros_like(batch.target).scatter_(1, best, 1.0)
            )
        return partial(cross_entropy, target=getattr(batch, self.attack_label))

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x′))."""
        logits = model(adversarial)
        return Loss(cross_entropy(logits, batch.target).mean(), logits)


@dataclass(frozen=True)
class Trades(Objective):
    """TRADES (Zhang et al. 2019); beta weighs the robust term, 1/λ in the paper."""

    beta: float
    start = "normal"

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """KL(S(x) ‖ S(·)), from the model's own clean answer in evaluation mode."""
        return divergence_from_clean(model, batch)

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x)) + β · KL(S(x) ‖ S(x′))."""
        # Two passes, as in the authors' code: batch normalisation sees clean and adversarial
        # images apart.
        logits, attacked = model(batch.images), model(adversarial)
        robust = kl_divergence(
            functional.log_softmax(logits, dim=1), functional.log_softmax(attacked, dim=1)
        )
        natural = cross_entropy(logits, batch.target)
        return Loss(natural.mean() + self.beta * robust.mean(), attacked)


def divergence_from_clean(model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
    """KL(S(x) ‖ S(·)), which has no gradient at x itself."""
    with evaluation_mode(model), torch.no_grad():
        log_clean = functional.log_softmax(model(batch.images), dim=1)
    return lambda logits: kl_divergence(log_clean, functional.log_softmax(logits, dim=1))


# As the authors' code has it: log(1 - p) stays finite where a wrong class has all the mass.
_ABOVE_ONE = 1.0001


@dataclass(frozen=True)
class Mart(Objective):
    """Misclassification-aware training (Wang et al. 2020); beta is λ in the paper."""

    beta: float
    start = "normal"

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """CE(q, S(x′)) - log(1 - max_{k≠y} S_k(x′)) + β · KL(S(x) ‖ S(x′)) · (1 - S_y(x))."""
        logits, attacked = model(batch.images), model(adversarial)
        log_attacked = functional.log_softmax(attacked, dim=1)
        log_clean = functional.log_softmax(logits, dim=1)
        wrong = (log_attacked.exp() * (1.0 - batch.truth)).amax(dim=1)
        boosted = -(batch.target * log_attacked).sum(dim=1) - torch.log(_ABOVE_ONE - wrong)
        missed = 1.0 - (log_clean.exp() * batch.truth).sum(dim=1)
        consistency = kl_divergence(log_clean, log_attacked) * missed
        return Loss(boosted.mean() + self.beta * consistency.mean(), attacked)


@dataclass(frozen=True)
class MultiExit(Objective):
    """Trains the exits of a network on clean and attacked images (Hu et al. 2020).

    arXiv 2002.10025. It is the setting of NEO-KD (Ham et al. 2023, arXiv 2311.00428), without its
    two distillation terms: those take their targets from the network in training, and no store
    helps them.

    Attributes
    ----------
    exits : sequence of int
        Which ones, counted from 0, ascending.
    attacked : {"last", "average", "max-average"}
        last: the attack maximises the loss of the last of them; average: the mean over all of
        them; max-average: each exit is attacked by itself, and for each image the attack is
        taken whose mean loss over all exits is largest. It costs as many attacks as exits.
    own : int
        The place among them of the network's own exit, whose logits are those of a step.
    """

    exits: Sequence[int]
    attacked: Literal["last", "average", "max-average"] = "max-average"
    own: int = -1

    @classmethod
    def from_params(cls, params: TrainParams, model: Classifier) -> Objective:
        """With the exits that are asked for, or all.

        Raises
        ------
        ModelError, ParamsError
            When the network has not the exits that are to be trained, or its own is not among them.
        """
        count = model.require_exits()
        own = getattr(model.network, "exit_number", count)
        numbers = params.exits or tuple(range(1, count + 1))
        if numbers[0] < 1 or numbers[-1] > count:
            raise ParamsError(
                "train.exits",
                f"{model.architecture} has {count}",
                expected=f"numbers from 1 to {count}",
                found=list(numbers),
            )
        if own not in numbers:
            network = model.architecture.partition("@")[0]
            # Validation, the checkpoint and several losses are of the network's own logits.
            raise ParamsError(
                "train.exits",
                f"the logits of {model.architecture} are those of exit {own}, which would stay "
                "untrained",
                expected=f"{own} among them",
                found=list(numbers),
                remedy=f"Add it, or set train.architecture: {network}@{numbers[-1]}.",
            )
        exits = [number - 1 for number in numbers]
        return cls(exits, params.attacked_exits, numbers.index(own))

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """The truth's cross entropy, averaged over exits: of logits of shape (B, E, K)."""
        del model
        return lambda logits: _exit_losses(logits, batch.truth).mean(dim=1)

    def attack(
        self, adversary: Adversary, model: torch.nn.Module, batch: TrainBatch, **how: Any
    ) -> torch.Tensor:
        """One attack, or for max-average the worst of one for each exit."""
        chosen = _Exits(model, self.exits)
        if self.attacked == "average":
            return super().attack(adversary, chosen, batch, **how)

        def attack_exit(number: int) -> torch.Tensor:
            def loss(logits: torch.Tensor) -> torch.Tensor:
                return cross_entropy(logits[:, number], batch.truth)

            return adversary.attack(chosen, batch.images, loss, start=self.start, **how)

        if self.attacked == "last":
            return attack_exit(len(self.exits) - 1)
        candidates = [attack_exit(number) for number in range(len(self.exits))]
        with evaluation_mode(chosen), torch.no_grad():
            losses = [_exit_losses(chosen(x), batch.truth).mean(dim=1) for x in candidates]
        # (number of attacks, B): for each image the attack that is worst on average.
        choice = torch.stack(losses).argmax(dim=0)
        return torch.stack(candidates)[choice, torch.arange(len(choice), device=choice.device)]

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """Mean over exits e of CE(q, S_e(x)) + CE(y, S_e(x′))."""
        chosen = _Exits(model, self.exits)
        clean, attacked = chosen(batch.images), chosen(adversarial)
        natural = _exit_losses(clean, batch.target).mean()
        robust = _exit_losses(attacked, batch.truth).mean()
        return Loss(natural + robust, attacked[:, self.own])


class _Exits(torch.nn.Module):
    """Logits of some exits side by side: shape (B, E, K)."""

    def __init__(self, model: Any, exits: Sequence[int]) -> None:
        super().__init__()
        self.model: Classifier = model
        self._exits, self.training = tuple(exits), model.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model.exit_logits(images)
        return torch.stack([logits[number] for number in self._exits], dim=1)


def _exit_losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    # (B, E, K) and (B, K) to (B, E).
    return torch.stack([cross_entropy(row, target) for row in logits.unbind(dim=1)], dim=1)


class AttackLossOverride(ObjectiveWrapper):
    """Trains as the inner objective does, on images that are worst by another loss.

    Parameters
    ----------
    inner : Objective
    attack_loss : {"ce", "kl", "margin"}
        The ground truth's cross entropy, the divergence from the model's own clean answer, or
        the margin of the best wrong class.
    """

    def __init__(self, inner: Objective, attack_loss: Literal["ce", "kl", "margin"]) -> None:
        super().__init__(inner)
        self._name = attack_loss

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """The loss of this name, of the model's own logits."""
        if self._name == "kl":
            return divergence_from_clean(model, batch)
        if self._name == "margin":
            return partial(margin, labels=batch.truth.argmax(dim=1))
        return partial(cross_entropy, target=batch.truth)

    def attack(
        self, adversary: Adversary, model: torch.nn.Module, batch: TrainBatch, **how: Any
    ) -> torch.Tensor:
        """One attack on the model alone, also where the inner objective attacks otherwise."""
        return Objective.attack(self, adversary, model, batch, **how)
