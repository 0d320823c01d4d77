"""One optimiser step: augment, attack, perturb, differentiate, and move the weights."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import rng
from pipeline.attacks import Frozen
from pipeline.device import autocast
from pipeline.images.pixels import to_unit
from pipeline.objectives import Labels, Taught
from pipeline.training.awp import perturbed_weights
from pipeline.training.dropout import seed_dropout
from pipeline.training.optimiser import make_optimiser
from pipeline.training.target_softness import TARGET_SUMS, target_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.attacks import Adversary, LossOfLogits
    from pipeline.images.stream import Batch
    from pipeline.models.classifier import Classifier
    from pipeline.objectives import Attacker, Loss, Moment, Objective
    from pipeline.params import FitParams
    from pipeline.team import Team
    from pipeline.training.awp import Perturbation
    from pipeline.training.examples import Drawn, Examples
    from pipeline.training.passes import Passes

__all__ = ["Step"]

# Float16 has no gradients below 6e-8: those of an attack are scaled, and their signs stay.
_ATTACK_SCALE = 1024.0


@dataclass(frozen=True)
class _Part:
    """Images of a step, attacked: what is left is a function of the weights alone."""

    loss: Callable[[], Loss]
    truth: torch.Tensor
    share: float  # of the step's images, over all processes
    targets: torch.Tensor | None  # their `target_sums`, where a teacher in the run gave them


class Step:
    """Steps of one training run.

    Nothing in it reads a number from the device, so that the host runs ahead of a GPU.

    Parameters
    ----------
    model : Classifier
        On its device.
    objective : Objective
    examples : Examples
        Augments a batch and gives the targets that belong to its images.
    adversary : Adversary or None
        None for clean training.
    awp : Perturbation or None
        Of the weights.
    params : FitParams
    seed : int
    passes : Passes
        How those of training and attack are computed.
    team : Team
        Its processes take one step together.
    """

    def __init__(
        self,
        *,
        model: Classifier,
        objective: Objective,
        examples: Examples,
        adversary: Adversary | None,
        awp: Perturbation | None,
        params: FitParams,
        seed: int,
        passes: Passes,
        team: Team,
    ) -> None:
        self._model, self._objective, self._examples = model, objective, examples
        self._awp, self._params = awp, params
        # Of stored labels it is known beforehand what they are like.
        self._taught = isinstance(objective, Taught)
        # Float16 has no small gradients.
        scaled = passes.precision == "float16"
        self._adversary = _Scaled(adversary) if scaled and adversary else adversary
        self._seed, self._passes, self._team = seed, passes, team
        self._device = next(model.parameters()).device
        self._frozen = Frozen(model) if adversary else None
        if self._frozen and passes.compiled != "none":
            self._frozen.compile(passes.compiled)
        self._optimiser = make_optimiser(model, params)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=scaled)

    def take(self, batch: Batch, moment: Moment, rate: float, images: int) -> torch.Tensor:
        """Train on a batch.

        Parameters
        ----------
        batch : Batch
            This process's part of the step's images.
        moment : Moment
            When the step is.
        rate : float
            Learning rate.
        images : int
            Of the step, over all processes.

        Returns
        -------
        Tensor of shape (2,) or (5,), dtype float32
            Over all images of the step: the sum of their losses, how many were classified
            right, and where a teacher in the run gave their targets `target_sums` of these.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        seed_dropout(self._seed, moment.step, self._team.rank, self._device)
        parts = self.attacked(batch, moment, images)
        with self._perturbed(parts, moment.epoch):
            tally = self.differentiate(parts)
            self._reduce(tally)
            self._move()
        self._objective.finish(self._team.sum_)
        tally[0] *= images
        return tally

    def attacked(self, batch: Batch, moment: Moment, images: int) -> list[_Part]:
        """Augment, join and attack a batch, in as many parts as gradients are summed over."""
        drawn = self._examples.draw(batch, moment.epoch)
        # As many in every process, or they would wait for each other's messages.
        least = max(1, images // self._team.count)
        count = min(self._params.accumulation_steps, least)
        bounds = [len(batch.rows) * part // count for part in range(count + 1)]
        slices = [slice(*pair) for pair in itertools.pairwise(bounds)]
        return [self._part(batch.part(part), drawn.part(part), moment, images) for part in slices]

    def differentiate(self, parts: list[_Part]) -> torch.Tensor:
        """Set the gradients of the step's loss: this process's share of it.

        Returns
        -------
        Tensor of shape (2,) or (5,), dtype float32
            The share of the mean loss, and the rest of what `take` gives.
        """
        self._optimiser.zero_grad(set_to_none=True)
        width = 2 + self._taught * len(TARGET_SUMS)
        tally = torch.zeros(width, device=self._device)
        for part in parts:
            loss = part.loss()
            value = loss.value * part.share
            self._scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            # Of a mixture, the share of the class that was found.
            hits = part.truth.gather(1, loss.logits.detach().argmax(dim=1)[:, None]).sum()
            tally[:2] += torch.stack([value.detach().float(), hits.float()])
            if part.targets is not None:
                tally[2:] += part.targets
        return tally

    def state(self) -> dict[str, Any]:
        """What continues the run, but for the model's weights."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "objective": self._objective.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` said."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self._objective.load_state_dict(state["objective"])

    def _part(
        self,
        batch: Batch,
        drawn: Drawn,
        moment: Moment,
        step_images: int,
    ) -> _Part:
        images = to_unit(drawn.images)
        given = Labels(drawn.target, drawn.truth, moment)
        with autocast(self._device, self._passes.precision):
            labels = self._objective.prepared(images, given)
            with self._input_gradients_only():
                adversarial = self._attack(batch, images, labels)

        def loss() -> Loss:
            with autocast(self._device, self._passes.precision):
                return self._objective.loss(self._model, images, adversarial, labels)

        sums = target_sums(labels.target, labels.truth) if self._taught else None
        return _Part(loss, drawn.truth, len(batch.rows) / step_images, sums)

    def _attack(self, batch: Batch, images: torch.Tensor, labels: Labels) -> torch.Tensor:
        if self._adversary is None or self._frozen is None:
            return images
        return self._objective.attack(
            self._adversary,
            self._frozen.current(),
            images,
            labels,
            index=batch.index,
            key=rng.stream_key(self._seed, "attack-start", labels.moment.epoch),
            epochs=labels.moment.position,
        )

    @contextlib.contextmanager
    def _input_gradients_only(self) -> Iterator[None]:
        # Asked for the gradient of its input alone, a compiled network still computes those of
        # all weights that could have one.
        frozen = self._passes.compiled != "none"
        weights = [w for w in self._model.parameters() if frozen and w.requires_grad]
        for weight in weights:
            weight.requires_grad = False
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad = True

    def _perturbed(self, parts: list[_Part], epoch: int) -> contextlib.AbstractContextManager[None]:
        if self._awp is None or epoch < self._awp.from_epoch:
            return contextlib.nullcontext()

        def gradients_of(weights: list[torch.Tensor]) -> list[torch.Tensor]:
            sums = _weight_gradients(parts, weights)
            self._team.sum_(sums)
            return sums

        return perturbed_weights(self._model, gradients_of, self._awp.gamma)

    def _reduce(self, tally: torch.Tensor) -> None:
        """Add up gradients and tallies of all processes, in one message.

        Overlapping it with the backward pass, as torch's DistributedDataParallel does, would
        gain little here: an adversarial step sends once for its twelve or more passes.
        """
        if self._team.count == 1:
            return
        gradients = [w.grad for w in self._model.parameters() if w.grad is not None]
        statistics = [] if self._params.sync_batch_norm else _running_statistics(self._model)
        self._team.sum_([*gradients, *statistics, tally])
        for statistic in statistics:
            statistic.div_(self._team.count)

    def _move(self) -> None:
        self._scaler.unscale_(self._optimiser)
        if self._params.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._params.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()


class _Scaled:
    """An adversary whose gradients are scaled, which leaves their signs."""

    def __init__(self, adversary: Attacker) -> None:
        self._adversary = adversary

    def attack(
        self, model: torch.nn.Module, images: torch.Tensor, loss: LossOfLogits, **how: Any
    ) -> torch.Tensor:
        def scaled(logits: torch.Tensor) -> torch.Tensor:
            return _ATTACK_SCALE * loss(logits)

        return self._adversary.attack(model, images, scaled, **how)


def _weight_gradients(parts: list[_Part], weights: list[torch.Tensor]) -> list[torch.Tensor]:
    sums: list[torch.Tensor] = []
    for part in parts:
        # Of a network with several exits not all weights need have a part in the loss.
        gradients = torch.autograd.grad(
            part.loss().value * part.share, weights, materialize_grads=True
        )
        sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else list(gradients)
    return sums


def _running_statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    found = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in found if value is not None]
