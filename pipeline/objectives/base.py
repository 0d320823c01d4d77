"""Objectives that are another one, changed in one respect."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ltd_pipe.attacks import LossOfLogits, Start


# --- Cross entropy and divergence, of each row, between distributions.


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """CE(q, softmax(logits)) = -Σ_k q_k log softmax(logits)_k.

    Parameters
    ----------
    logits, target : Tensor of shape (B, K), dtype float32
        The target's rows are distributions.

    Returns
    -------
    Tensor of shape (B,)
    """
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q), summed over classes and not averaged over them.

    Parameters
    ----------
    log_p, log_q : Tensor of shape (B, K), dtype float32
        Log-probabilities.

    Returns
    -------
    Tensor of shape (B,)
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def kl_from_target(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(q ‖ softmax(logits)), summed over classes; a class without mass costs nothing.

    Parameters
    ----------
    target, logits : Tensor of shape (B, K), dtype float32
        The target's rows are distributions; zeros are allowed.

    Returns
    -------
    Tensor of shape (B,)
    """
    # xlogy(0, 0) is 0: a stored label may have classes that float16 rounded to nothing.
    certainty: torch.Tensor = torch.special.xlogy(target, target).sum(dim=1)
    return certainty + cross_entropy(logits, target)


# --- What an objective is: what the attack maximises, and what training then minimises.


@dataclass(frozen=True)
class Loss:
    """One step's loss.

    Attributes
    ----------
    value : Tensor, scalar
        To be differentiated.
    logits : Tensor of shape (B, K)
        Of the images the objective trains on: adversarial ones where there are.
    """

    value: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Moment:
    """Where in the run a step is: what schedules are a function of.

    Attributes
    ----------
    step, steps : int
        Steps done before this one, and in all.
    epoch, epochs : int
        Likewise.
    """

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1

    @property
    def position(self) -> float:
        """Epochs done at the middle of this step, with fractions."""
        return (self.step + 0.5) * self.epochs / self.steps


@dataclass(frozen=True)
class Labels:
    """What a batch is trained towards, and what it shows.

    Attributes
    ----------
    target, truth : Tensor of shape (B, K), dtype float32
        The distribution to train towards, and the ground truth as one-hot.
    moment : Moment
        When this step is.
    """

    target: torch.Tensor
    truth: torch.Tensor
    moment: Moment = field(default_factory=Moment)


class Attacker(Protocol):
    """What finds adversarial images: an `Adversary`, or what stands for one."""

    def attack(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        loss: LossOfLogits,
        *,
        start: Start,
        index: torch.Tensor,
        key: int,
        epochs: float,
    ) -> torch.Tensor:
        """See `ltd_pipe.attacks.Adversary.attack`."""


class Objective(abc.ABC):
    """Says what the attack maximises and what training then minimises.

    In two halves, since adversarial weight perturbation computes the loss twice on one attack.
    A step may come in parts, one after the other or in several processes: each part is
    prepared, attacked, and its loss computed once or twice; then the step is finished.
    """

    start: Start

    @abc.abstractmethod
    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """What the attack maximises; None: there is no attack.

        Parameters
        ----------
        model : Module
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
            Clean.
        labels : Labels

        Returns
        -------
        callable or None
            Maps logits of shape (B, K) to losses of shape (B,).
        """

    @abc.abstractmethod
    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """What training minimises, the model in training mode.

        Parameters
        ----------
        model, images, labels
            As in `opposed`.
        adversarial : Tensor like images
            What maximises the opposed loss; the images themselves when there is none.
        """

    def prepared(self, images: torch.Tensor, labels: Labels) -> Labels:
        """The labels as they are when a teacher in the run has been asked.

        Parameters
        ----------
        images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
            Clean.
        labels : Labels
            As the examples have them.
        """
        del images
        return labels

    def attack(
        self,
        adversary: Attacker,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
        **how: Any,
    ) -> torch.Tensor:
        """Adversarial images of a batch; the images themselves when nothing is opposed.

        Parameters
        ----------
        adversary : Attacker
        model, images, labels
            As in `opposed`.
        **how
            What else the adversary is told.
        """
        opposed = self.opposed(model, images, labels)
        if opposed is None:
            return images
        return adversary.attack(model, images, opposed, start=self.start, **how)

    def finish(  # noqa: B027  most have nothing to do
        self, sum_over_processes: Callable[[list[torch.Tensor]], None]
    ) -> None:
        """End a step, all of whose losses were computed.

        Parameters
        ----------
        sum_over_processes : callable
            Adds float32 tensors up, in place, over all processes that take the step.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a snapshot must hold for the next step to be what it would have been."""
        return {}

    def load_state_dict(  # noqa: B027
        self, state: Mapping[str, torch.Tensor]
    ) -> None:
        """Take what `state_dict` gave."""


# --- Objectives that are another one, changed in one respect.


@dataclass(frozen=True)
class Around(Objective):
    """Does what another objective does.

    Attributes
    ----------
    inner : Objective
    """

    inner: Objective

    @property
    def start(self) -> Start:  # type: ignore[override]
        """The inner objective's."""
        return self.inner.start

    def prepared(self, images: torch.Tensor, labels: Labels) -> Labels:
        """See `Objective`."""
        return self.inner.prepared(images, labels)

    def opposed(
        self, model: torch.nn.Module, images: torch.Tensor, labels: Labels
    ) -> LossOfLogits | None:
        """See `Objective`."""
        return self.inner.opposed(model, images, labels)

    def attack(
        self,
        adversary: Attacker,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
        **how: Any,
    ) -> torch.Tensor:
        """See `Objective`."""
        return self.inner.attack(adversary, model, images, labels, **how)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """See `Objective`."""
        return self.inner.loss(model, images, adversarial, labels)

    def finish(self, sum_over_processes: Callable[[list[torch.Tensor]], None]) -> None:
        """See `Objective`."""
        self.inner.finish(sum_over_processes)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Objective`."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `Objective`."""
        self.inner.load_state_dict(state)


@dataclass(frozen=True)
class Taught(Around):
    """With targets that a teacher gives, in the run, for the very images of the step.

    Attributes
    ----------
    answer : callable
        Maps clean images and their labels to the labels to train with. It is asked once a
        step, before the attack; what it gives carries no gradient.
    """

    answer: Callable[[torch.Tensor, Labels], Labels]

    def prepared(self, images: torch.Tensor, labels: Labels) -> Labels:
        """The teacher's labels in place of the examples'."""
        return self.inner.prepared(images, self.answer(images, labels))
