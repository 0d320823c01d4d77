"""Robust distillation: RSLAD, ARD, AdaAD, IGDM and B-MTARD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ltd_pipe.attacks import cross_entropy, kl_divergence, kl_from_target
from ltd_pipe.objectives.base import Loss, Objective, ObjectiveWrapper, StepInfo

if TYPE_CHECKING:
    from ltd_pipe.attacks import Adversary, LossOfLogits
    from ltd_pipe.objectives.base import TrainBatch

# Maps images to a teacher's logits, already divided by its temperature. No gradient reaches it.
Teacher = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Rslad(Objective):
    """RSLAD (Zi et al. 2021, arXiv 2108.07969), towards a robust teacher's answer to x.

    The authors' code (zibojia/RSLAD) averages the divergences over classes, too, and multiplies
    them by ten for 100 classes to make up for it. Here they are summed over classes, so that
    the loss is that of their code times the number of classes: ten times their CIFAR-10 loss.
    """

    # Of the term on the attacked images; the rest goes to the clean ones.
    robust_weight: float = 5 / 6
    start = "normal"

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """KL(q ‖ S(·)), from the teacher's answer."""
        del model
        return lambda logits: kl_from_target(batch.target, logits)

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """α · KL(q ‖ S(x′)) + (1 - α) · KL(q ‖ S(x))."""
        attacked, logits = model(adversarial), model(batch.images)
        robust = kl_from_target(batch.target, attacked).mean()
        natural = kl_from_target(batch.target, logits).mean()
        value = self.robust_weight * robust + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)


@dataclass(frozen=True)
class Ard(Objective):
    """ARD (Goldblum et al. 2020, arXiv 1905.09747), towards the answer to x, softened by t.

    The authors' code (goldblum/AdversariallyRobustDistillation, main.py) averages the
    divergence over classes, too; here it is summed over them. It attacks in training mode;
    here the student is attacked in evaluation mode, as everywhere.
    """

    # t, which divides the student's logits; the target is softened by the same.
    temperature: float
    # α of the distillation term on the attacked images.
    robust_weight: float = 1.0

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """α · t² · KL(q ‖ S^t(x′)) + (1 - α) · CE(y, S(x)), S^t = softmax(logits / t)."""
        attacked = model(adversarial)
        distilled = kl_from_target(batch.target, attacked / self.temperature).mean()
        value = self.robust_weight * self.temperature**2 * distilled
        if self.robust_weight < 1.0:
            natural = cross_entropy(model(batch.images), batch.truth).mean()
            value = value + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)


@dataclass(frozen=True)
class Adaad(Objective):
    """AdaAD (Huang et al. 2023, CVPR, pp. 24668-24677): attacks where teacher and student differ.

    A store knows the teacher's answers to clean images alone, so that it can serve the term on
    them at most; the rest needs the teacher itself.
    """

    teacher: Teacher
    # α of the term on the attacked images. At 1, which is what the code that others publish has,
    # clean ones are not passed through the student at all.
    robust_weight: float = 1.0
    start = "normal"

    def attack_loss(self, model: torch.nn.Module, batch: TrainBatch) -> LossOfLogits:
        """KL(T(·) ‖ S(·)), as a loss of both logits side by side; see `attack`."""
        del model, batch

        def divergence(logits: torch.Tensor) -> torch.Tensor:
            student, teacher = (functional.log_softmax(z, dim=1) for z in logits.chunk(2, dim=1))
            return kl_divergence(teacher, student)

        return divergence

    def attack(
        self, adversary: Adversary, model: torch.nn.Module, batch: TrainBatch, **how: Any
    ) -> torch.Tensor:
        """Attack both at once: the gradient passes through the teacher, too."""
        return super().attack(adversary, _Both(model, self.teacher), batch, **how)

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """α · KL(T(x′) ‖ S(x′)) + (1 - α) · KL(q ‖ S(x))."""
        attacked = model(adversarial)
        with torch.no_grad():
            answer = functional.log_softmax(self.teacher(adversarial), dim=1)
        robust = kl_divergence(answer, functional.log_softmax(attacked, dim=1)).mean()
        value = self.robust_weight * robust
        if self.robust_weight < 1.0:
            natural = kl_from_target(batch.target, model(batch.images)).mean()
            value = value + (1.0 - self.robust_weight) * natural
        return Loss(value, attacked)


class _Both(torch.nn.Module):
    """Logits of the student, then of the teacher: shape (B, 2K).

    Only the student is a part of it, so that only the student changes its mode.
    """

    def __init__(self, student: torch.nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.student, self._teacher = student, (teacher,)
        self.training = student.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (teacher,) = self._teacher
        return torch.cat([self.student(images), teacher(images)], dim=1)


class Igdm(ObjectiveWrapper):
    """IGDM (Lee et al. 2025, arXiv 2312.03286): the student's answer changes as the teacher's does.

    With δ = x′ - x, a robust model is close to linear between x - δ and x + δ, so that equal
    differences there are equal gradients. x - δ is not clipped to [0, 1], as in the code that
    the first author publishes (HongsinLee/saad, igdm.py).

    Parameters
    ----------
    inner : Objective
        Its attack is used, and its logits are those of x′.
    teacher : callable
        See `Teacher`.
    weight : float
        α, reached in the last epoch: in the first of E epochs it is α / E.
    factor : float, optional
        What the teacher's logits are multiplied by: the temperature that divides them where the
        student learns them undivided, as in ARD.
    """

    def __init__(
        self, inner: Objective, teacher: Teacher, weight: float, factor: float = 1.0
    ) -> None:
        super().__init__(inner)
        self._teacher, self._weight, self._factor = teacher, weight, factor

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """L + α · (e / E) · KL(σ(T(x + δ) - T(x - δ)) ‖ σ(S(x + δ) - S(x - δ))), σ = softmax."""
        value, logits = self.inner.loss(model, batch, adversarial)
        mirrored = 2.0 * batch.images - adversarial
        with torch.no_grad():
            theirs = self._factor * (self._teacher(adversarial) - self._teacher(mirrored))
        ours = logits - model(mirrored)
        matching = kl_divergence(
            functional.log_softmax(theirs, dim=1), functional.log_softmax(ours, dim=1)
        ).mean()
        # Epochs are counted from one, as in that code.
        weight = self._weight * (batch.info.epoch + 1) / batch.info.epochs
        return Loss(value + weight * matching, logits)


# B-MTARD's, of a step, and its least and largest temperature: the authors'.
_TEMPERATURE_RATE, _WEIGHT_RATE, _BOUNDS = 0.001, 0.025, (1.0, 10.0)


@dataclass(frozen=True)
class Balances:
    """B-MTARD's state of a step; first the robust teacher's, then the clean one's.

    Tensors of shape (2,), dtype float64: temperatures of the teachers' logits, weights of the
    losses, which sum to one, and the losses of the first step, NaN before it.
    """

    temperatures: torch.Tensor
    weights: torch.Tensor
    first_losses: torch.Tensor

    @classmethod
    def at_first(cls, device: torch.device) -> Balances:
        """Equal weights, and the least temperature."""
        values = (_BOUNDS[0], 0.5, float("nan"))
        return cls(*(torch.full((2,), v, dtype=torch.float64, device=device) for v in values))

    def to(self, device: torch.device) -> Balances:
        """On the device; a snapshot's are on the host."""
        return Balances(*(value.to(device) for value in vars(self).values()))

    def after(self, losses: torch.Tensor, entropies: torch.Tensor, pace: float) -> Balances:
        """After a step of these mean losses and entropies, tensors of shape (2,), float64.

        A teacher's temperature, within its bounds, falls by its rate times the pace where its mean
        entropy is above the other's, and rises where it is below. With
        L̃_i = L_i / L_i(first step), the weights move likewise towards L̃_i / (L̃_robust + L̃_clean).
        """
        first = torch.where(self.first_losses.isnan(), losses, self.first_losses)
        sign = torch.sign(entropies / entropies.flip(0) - 1.0)
        relative = losses / first
        step = _WEIGHT_RATE * pace * (relative / relative.sum() - self.weights)
        moved = (self.weights + step).clamp(min=0.0)
        temperatures = (self.temperatures - _TEMPERATURE_RATE * pace * sign).clamp(*_BOUNDS)
        return Balances(temperatures, moved / moved.sum(), first)


class BalancedTeachers(Objective):
    """B-MTARD: a clean and a robust teacher in balance (Zhao et al. 2024, arXiv 2306.16170).

    The robust teacher answers to x′ in the run, a clean one answered to x before it. Entropy-
    based balance moves the temperatures so that both answers are equally uncertain;
    normalisation loss balance weighs their losses by how little each has fallen. The target must
    be the softmax of the clean teacher's logits at temperature 1, not mixed with one-hot labels:
    from that the softmax at any other temperature follows.

    The authors' code (zhaoshiji123/MTARD-extension, resnet18_mtard_cifar10.py) averages the
    divergences over classes, which scales the loss and changes neither temperatures nor
    weights; here they are summed. It weighs a step's losses by what the step makes of the
    weights; here by the weights before it, since the means over all processes are known only
    at its end. With adversarial weight perturbation the means are over both passes of a step.

    Parameters
    ----------
    robust_teacher : callable
        See `Teacher`; of temperature 1.
    peak_rate : float, optional
        Peak learning rate: as the learning rate falls, so do both rates. None: they do not.
    """

    start = "normal"

    def __init__(self, robust_teacher: Teacher, peak_rate: float | None = None) -> None:
        self._teacher, self._peak_rate = robust_teacher, peak_rate
        self._info = StepInfo()
        # Of the step under way: both losses, both entropies, and the images they are summed over.
        self._sums: torch.Tensor | None = None
        self.balances: Balances | None = None

    def loss(self, model: torch.nn.Module, batch: TrainBatch, adversarial: torch.Tensor) -> Loss:
        """w_r · KL(T_r^τr(x′) ‖ S(x′)) + w_c · KL(T_c^τc(x) ‖ S(x))."""
        device = batch.images.device
        now = (self.balances or Balances.at_first(device)).to(device)
        self.balances, self._info = now, batch.info
        attacked, logits = model(adversarial), model(batch.images)
        targets = self._targets(adversarial, batch, now)
        pairs = zip(targets, (attacked, logits), strict=True)
        losses = torch.stack([kl_from_target(target, student).mean() for target, student in pairs])
        entropies = [-torch.special.xlogy(target, target).sum(dim=1).mean() for target in targets]
        means = torch.cat([losses.detach(), torch.stack(entropies), losses.new_ones(1)])
        sums = len(targets[0]) * means.to(torch.float32)
        self._sums = sums if self._sums is None else self._sums + sums
        return Loss((now.weights.to(losses.dtype) * losses).sum(), attacked)

    def end_step(self, sum_over_processes: Callable[[list[torch.Tensor]], None]) -> None:
        """Move the balances by what the step's losses and entropies were."""
        if self._sums is None or self.balances is None:
            return
        sum_over_processes([self._sums])
        means = (self._sums[:4] / self._sums[4]).to(torch.float64)
        pace = self._info.learning_rate / self._peak_rate if self._peak_rate else 1.0
        self.balances = self.balances.after(means[:2], means[2:], pace)
        self._sums = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The balances."""
        return {} if self.balances is None else dict(vars(self.balances))

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take what `state_dict` gave."""
        self.balances, self._sums = (Balances(**state) if state else None), None

    @torch.no_grad()
    def _targets(
        self, adversarial: torch.Tensor, batch: TrainBatch, now: Balances
    ) -> list[torch.Tensor]:
        # A distribution's logarithm is the logits up to a constant, where it is not 0.
        stored = batch.target.clamp(min=torch.finfo(torch.float32).tiny).log()
        answers = (self._teacher(adversarial).to(torch.float32), stored)
        temperatures = now.temperatures.to(torch.float32)
        pairs = zip(answers, temperatures, strict=True)
        return [functional.softmax(answer / temperature, dim=1) for answer, temperature in pairs]
