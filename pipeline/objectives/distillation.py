"""B-MTARD: a clean and a robust teacher in balance (Zhao et al. 2024, arXiv 2306.16170).

Entropy-based balance moves the temperatures so that both teachers' answers are equally
uncertain; normalisation loss balance weighs their losses by how little each has fallen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ltd_pipe.objectives.base import (
    Around,
    Loss,
    Moment,
    Objective,
    cross_entropy,
    kl_divergence,
    kl_from_target,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ltd_pipe.attacks import LossOfLogits, Start
    from ltd_pipe.objectives.base import Attacker, Labels


# --- RSLAD: robust soft labels everywhere (Zi et al. 2021, arXiv 2108.07969).


@dataclass(frozen=True)
class Rslad(Objective):
    """RSLAD; its target should be a robust teacher's answer to the clean image.

    The authors' code (zibojia/RSLAD) averages the divergences over classes, too, and multiplies
    them by ten for 100 classes to make up for it. Here they are summed over classes, so that
    the loss is that of their code times the number of classes: ten times their CIFAR-10 loss.

    Attributes
    ----------
    robust_weight : float
        Of the term on the attacked images; the rest goes to the clean ones. The paper's is 5/6.
    """

    robust_weight: float = 5 / 6
    start: Start = "normal"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """KL(q ‖ S(·)), from the teacher's answer."""
        del model, images
        return lambda logits: kl_from_target(labels.target, logits)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """α · KL(q ‖ S(x′)) + (1 - α) · KL(q ‖ S(x))."""
        attacked, logits = model(adversarial), model(images)
        robust = kl_from_target(labels.target, attacked).mean()
        natural = kl_from_target(labels.target, logits).mean()
        value = self.robust_weight * robust + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)


# --- ARD: adversarially robust distillation (Goldblum et al. 2020, arXiv 1905.09747).


@dataclass(frozen=True)
class Ard(Objective):
    """ARD; its target should be the teacher's answer to the clean image, softened by t.

    The authors' code (goldblum/AdversariallyRobustDistillation, main.py) averages the
    divergence over classes, too; here it is summed over them. It attacks in training mode;
    here the student is attacked in evaluation mode, as everywhere.

    Attributes
    ----------
    temperature : float
        t, which divides the student's logits in the distillation term; the target is softened
        by the same. The authors' default is 30.
    robust_weight : float
        α of the distillation term on the attacked images; the rest goes to the cross entropy
        of the truth on the clean ones. The authors' default is 1.
    """

    temperature: float
    robust_weight: float = 1.0
    start: Start = "uniform"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """The cross entropy of the truth."""
        del model, images
        return lambda logits: cross_entropy(logits, labels.truth)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """α · t² · KL(q ‖ S^t(x′)) + (1 - α) · CE(y, S(x)), S^t = softmax(logits / t)."""
        attacked = model(adversarial)
        distilled = kl_from_target(labels.target, attacked / self.temperature).mean()
        value = self.robust_weight * self.temperature**2 * distilled
        if self.robust_weight < 1.0:
            natural = cross_entropy(model(images), labels.truth).mean()
            value = value + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)


# --- AdaAD: adaptive adversarial distillation (Huang et al. 2023, CVPR, pp. 24668-24677).


@dataclass(frozen=True)
class Adaad(Objective):
    """AdaAD: the attack looks for where teacher and student differ most.

    A store knows the teacher's answers to clean images alone, so that it can serve the term on
    them at most; the rest needs the teacher itself.

    Attributes
    ----------
    teacher : callable
        Maps images to its logits, already divided by its temperature. No gradient reaches it.
    robust_weight : float
        α of the term on the attacked images; the rest goes to the clean ones. At 1, which is
        what the code that others publish has, these are not passed through the student at all.
    """

    teacher: Callable[[torch.Tensor], torch.Tensor]
    robust_weight: float = 1.0
    start: Start = "normal"

    def opposed(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
    ) -> LossOfLogits | None:
        """KL(T(·) ‖ S(·)), as a loss of both logits side by side; see `attack`."""
        del model, images, labels
        return _difference

    def attack(
        self,
        adversary: Attacker,
        model: torch.nn.Module,
        images: torch.Tensor,
        labels: Labels,
        **how: Any,
    ) -> torch.Tensor:
        """Oppose both at once: the gradient passes through the teacher, too."""
        both = _Both(model, self.teacher)
        return super().attack(adversary, both, images, labels, **how)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """α · KL(T(x′) ‖ S(x′)) + (1 - α) · KL(q ‖ S(x))."""
        attacked = model(adversarial)
        with torch.no_grad():
            answer = functional.log_softmax(self.teacher(adversarial), dim=1)
        robust = kl_divergence(answer, functional.log_softmax(attacked, dim=1)).mean()
        value = self.robust_weight * robust
        if self.robust_weight < 1.0:
            natural = kl_from_target(labels.target, model(images)).mean()
            value = value + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)


class _Both(torch.nn.Module):
    """Logits of the student, then of the teacher: shape (B, 2K).

    Only the student is a part of it, so that only the student changes its mode.
    """

    def __init__(
        self, student: torch.nn.Module, teacher: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.student, self._teacher = student, (teacher,)
        self.training = student.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (teacher,) = self._teacher
        return torch.cat([self.student(images), teacher(images)], dim=1)


def _difference(logits: torch.Tensor) -> torch.Tensor:
    student, teacher = logits.chunk(2, dim=1)
    return kl_divergence(
        functional.log_softmax(teacher, dim=1), functional.log_softmax(student, dim=1)
    )


# --- IGDM: indirect gradient matching (Lee, Cho and Kim 2025, arXiv 2312.03286).


@dataclass(frozen=True)
class Igdm(Around):
    """With a term that matches how the student's answer changes to how the teacher's does.

    With δ = x′ - x, a robust model is close to linear between x - δ and x + δ, so that equal
    differences there are equal gradients. x - δ is not clipped to [0, 1], as in the code that
    the first author publishes (HongsinLee/saad, igdm.py).

    Attributes
    ----------
    inner : Objective
        Its attack is used, and its logits are those of x′.
    teacher : callable
        Maps images to its logits, already divided by its temperature. No gradient reaches it.
    weight : float
        α, reached in the last epoch: in the first of E epochs it is α / E.
    """

    teacher: Callable[[torch.Tensor], torch.Tensor]
    weight: float

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """L + α · (e / E) · KL(σ(T(x + δ) - T(x - δ)) ‖ σ(S(x + δ) - S(x - δ))), σ = softmax."""
        inner = self.inner.loss(model, images, adversarial, labels)
        mirrored = 2.0 * images - adversarial
        with torch.no_grad():
            theirs = self.teacher(adversarial) - self.teacher(mirrored)
        ours = inner.logits - model(mirrored)
        matching = kl_divergence(
            functional.log_softmax(theirs, dim=1), functional.log_softmax(ours, dim=1)
        ).mean()
        return Loss(inner.value + self._weight_at(labels.moment) * matching, inner.logits)

    def _weight_at(self, moment: Moment) -> float:
        # Epochs are counted from one, as in that code.
        return self.weight * (moment.epoch + 1) / moment.epochs


# --- B-MTARD: a clean and a robust teacher in balance (Zhao et al. 2024, arXiv 2306.16170).


@dataclass(frozen=True)
class Balances:
    """What changes from step to step; first the robust teacher's, then the clean one's.

    Attributes
    ----------
    temperatures, weights : Tensor of shape (2,), dtype float64
        Of the teachers' logits, and of the losses; the weights sum to one.
    first_losses : Tensor of shape (2,), dtype float64
        Of the first step; NaN before it.
    """

    temperatures: torch.Tensor
    weights: torch.Tensor
    first_losses: torch.Tensor

    @classmethod
    def at_first(cls, temperature: float, device: torch.device) -> Balances:
        """Equal weights, and one temperature."""
        values = (temperature, 0.5, float("nan"))
        return cls(*(torch.full((2,), v, dtype=torch.float64, device=device) for v in values))

    def to(self, device: torch.device) -> Balances:
        """On the device; a snapshot's are on the host."""
        return Balances(*(value.to(device) for value in vars(self).values()))


def balanced(
    balances: Balances,
    losses: torch.Tensor,
    entropies: torch.Tensor,
    *,
    temperature_rate: float,
    weight_rate: float,
    bounds: tuple[float, float],
) -> Balances:
    """What the losses and entropies of one step make of the balances.

    A teacher's temperature falls by the rate where its mean entropy is above the other's, and
    rises where it is below. With L̃_i = L_i / L_i(first step), the weights move by their rate
    towards L̃_i / (L̃_robust + L̃_clean).

    Parameters
    ----------
    balances : Balances
    losses, entropies : Tensor of shape (2,), dtype float64
        Means over the step's images.
    temperature_rate, weight_rate : float
    bounds : tuple of float
        Least and largest temperature.
    """
    first = torch.where(balances.first_losses.isnan(), losses, balances.first_losses)
    sign = torch.sign(entropies / entropies.flip(0) - 1.0)
    relative = losses / first
    moved = balances.weights + weight_rate * (relative / relative.sum() - balances.weights)
    moved = moved.clamp(min=0.0)
    return Balances(
        (balances.temperatures - temperature_rate * sign).clamp(*bounds),
        moved / moved.sum(),
        first,
    )


class BalancedTeachers(Objective):
    """B-MTARD: a robust teacher answers to x′ in the run, a clean one answered to x before it.

    The clean teacher is asked about clean images alone, so that a store serves for it: the
    target must be the softmax of its logits at temperature 1, not mixed with one-hot labels.
    From that the softmax at any other temperature follows.

    The authors' code (zhaoshiji123/MTARD-extension, resnet18_mtard_cifar10.py) averages the
    divergences over classes, which scales the loss and changes neither temperatures nor
    weights; here they are summed. It weighs a step's losses by what the step makes of the
    weights; here by the weights before it, since the means over all processes are known only
    at its end. With adversarial weight perturbation the means are over both passes of a step.

    Parameters
    ----------
    robust_teacher : callable
        Maps images to its logits, of temperature 1.
    pace : callable
        Maps a moment to what the rates are multiplied by: the authors' fall with the learning
        rate.
    temperature_rate, weight_rate : float
        Of a step; the defaults are the authors'.
    bounds : tuple of float
        Least and largest temperature; the run begins at the least.
    """

    start: Start = "normal"

    def __init__(
        self,
        robust_teacher: Callable[[torch.Tensor], torch.Tensor],
        *,
        pace: Callable[[Moment], float] = lambda _: 1.0,
        temperature_rate: float = 0.001,
        weight_rate: float = 0.025,
        bounds: tuple[float, float] = (1.0, 10.0),
    ) -> None:
        self._teacher, self._pace, self._bounds = robust_teacher, pace, bounds
        self._rates = (temperature_rate, weight_rate)
        self._moment = Moment()
        # Of the step under way: both losses, both entropies, and the images they are summed over.
        self._sums: torch.Tensor | None = None
        self.balances: Balances | None = None

    def opposed(
        self, model: torch.nn.Module, images: torch.Tensor, labels: Labels
    ) -> LossOfLogits | None:
        """The cross entropy of the truth."""
        del model, images
        return lambda logits: cross_entropy(logits, labels.truth)

    def loss(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        adversarial: torch.Tensor,
        labels: Labels,
    ) -> Loss:
        """w_r · KL(T_r^τr(x′) ‖ S(x′)) + w_c · KL(T_c^τc(x) ‖ S(x))."""
        now = (self.balances or Balances.at_first(self._bounds[0], images.device)).to(images.device)
        self.balances, self._moment = now, labels.moment
        attacked, logits = model(adversarial), model(images)
        targets = self._targets(adversarial, labels, now)
        pairs = zip(targets, (attacked, logits), strict=True)
        losses = torch.stack([kl_from_target(target, student).mean() for target, student in pairs])
        self._note(losses.detach(), targets)
        return Loss((now.weights.to(losses.dtype) * losses).sum(), attacked)

    def finish(self, sum_over_processes: Callable[[list[torch.Tensor]], None]) -> None:
        """Move the balances by what the step's losses and entropies were."""
        if self._sums is None or self.balances is None:
            return
        sum_over_processes([self._sums])
        means = (self._sums[:4] / self._sums[4]).to(torch.float64)
        temperature_rate, weight_rate = (rate * self._pace(self._moment) for rate in self._rates)
        self.balances = balanced(
            self.balances,
            means[:2],
            means[2:],
            temperature_rate=temperature_rate,
            weight_rate=weight_rate,
            bounds=self._bounds,
        )
        self._sums = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The balances."""
        return {} if self.balances is None else dict(vars(self.balances))

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take what `state_dict` gave."""
        self.balances, self._sums = (Balances(**state) if state else None), None

    @torch.no_grad()
    def _targets(
        self, adversarial: torch.Tensor, labels: Labels, now: Balances
    ) -> list[torch.Tensor]:
        # A distribution's logarithm is the logits up to a constant, where it is not 0.
        stored = labels.target.clamp(min=torch.finfo(torch.float32).tiny).log()
        answers = (self._teacher(adversarial).to(torch.float32), stored)
        temperatures = now.temperatures.to(torch.float32)
        pairs = zip(answers, temperatures, strict=True)
        return [functional.softmax(answer / temperature, dim=1) for answer, temperature in pairs]

    def _note(self, losses: torch.Tensor, targets: list[torch.Tensor]) -> None:
        uncertain = [-torch.special.xlogy(target, target).sum(dim=1).mean() for target in targets]
        means = torch.cat([losses, torch.stack(uncertain), losses.new_ones(1)])
        sums = len(targets[0]) * means.to(torch.float32)
        self._sums = sums if self._sums is None else self._sums + sums
