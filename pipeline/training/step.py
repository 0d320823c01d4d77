"""One optimiser step: augment, attack, perturb, differentiate, and move the weights."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltd_pipe import rng
from ltd_pipe.attacks import Frozen
from ltd_pipe.device import autocast
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.objectives import Labels, Taught
from ltd_pipe.training.optim import make_optimiser
from ltd_pipe.training.softness import TARGET_SUMS, target_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ltd_pipe.attacks import Adversary, LossOfLogits
    from ltd_pipe.distributed import World
    from ltd_pipe.images.stream import Batch
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import Attacker, Loss, Moment, Objective
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.data import Drawn, Examples
    from ltd_pipe.training.precision import Passes


# --- Dropout and stochastic depth: what a network draws for itself is a function of the step.
#
# Such modules draw from torch's own generators, which have a state. Seeded anew before each step,
# they need no place in a snapshot, and an interrupted run draws what it would have drawn.


def caller_generators_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put torch's generators back, when the block ends, to where the caller had them.

    Parameters
    ----------
    device : torch.device
        Of the network; the CPU's generator is put back too.
    """
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_dropout(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed what the modules of a network draw from during one step.

    Always done, since it costs microseconds, and a network without such modules draws nothing. The
    device is not waited for.

    Parameters
    ----------
    seed : int
        The run's.
    step : int
        Of the run.
    rank : int
        Of this process. Each draws for its own images, so they must not draw alike.
    device : torch.device
        Of the network; the CPU's generator is seeded too.
    """
    key = rng.stream_key(seed, f"dropout/{rank}", step) >> 1
    # Not torch.manual_seed: without a GPU it keeps a record of every call, for when one is used.
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(key)


# --- Adversarial weight perturbation (Wu et al. 2020, section 4): a step against the worst weights.
#
# Before each step the weights go up the loss, each layer by γ of its own norm; the gradient of
# the step is taken there, and the perturbation is taken back after it. The authors' code takes
# one SGD step on a copy of the model and scales it per layer by ‖w‖ / ‖w_copy - w‖. That ratio is
# ascent along the gradient whatever the copy's learning rate, so no copy is needed here.


_TINY = 1e-20


@dataclass(frozen=True)
class Perturbation:
    """How the weights are perturbed.

    Attributes
    ----------
    gamma : float
        Length of the perturbation of each weight, relative to the weight's norm.
    from_epoch : int
        The epochs before it are trained without.
    """

    gamma: float
    from_epoch: int


@contextlib.contextmanager
def perturbed_weights(
    model: torch.nn.Module,
    gradients_of: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    gamma: float,
) -> Iterator[None]:
    """Move the weights up a loss for the block.

    Parameters
    ----------
    model : Module
        In training mode. Its batch statistics are left as they were, since the pass over the
        proxy is not a training pass.
    gradients_of : callable
        Gradients of the loss at the model's weights, for the list of weights it is given.
    gamma : float
        Length of the perturbation of each weight, relative to the weight's norm.
    """
    weights: list[torch.Tensor] = [weight for weight in model.parameters() if weight.dim() > 1]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = gradients_of(weights)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
        moves = [
            gamma * weight.norm() / (gradient.norm() + _TINY) * gradient
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(move)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, move in zip(weights, moves, strict=True):
                weight.sub_(move)


# --- Batch normalisation over the images of all processes: the number of them changes nothing.
#
# torch's own works on GPUs alone, where no test of ours can run. The attack's passes, ten of the
# twelve in a step, are in evaluation mode and need no message.


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        del ctx
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        del ctx
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch is that of all processes together."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise by the mean and variance over all processes, in float32."""
        if not self.training:
            return super().forward(images)
        mean, variance, count = _statistics(images.float())
        self._follow(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return (images * scale[:, None, None] + shift[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)


def _statistics(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    channels = values.shape[1]
    here = values.new_full((1,), values.numel() / channels)
    sums = _Sum.apply(torch.cat([values.sum(dim=(0, 2, 3)), here]))
    count = sums[channels].detach()
    mean = sums[:channels] / count
    # Around the common mean, in a second message: the mean of squares less the squared mean
    # would lose digits.
    squares = (values - mean[:, None, None]).square().sum(dim=(0, 2, 3))
    return mean, _Sum.apply(squares) / count, count


def synchronise(network: nn.Module) -> None:
    """Let all batch normalisations of a network share their statistics from now on.

    Weights and state keep their names, so that a checkpoint does not tell on how many processes
    it was trained.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _synced(child))


def _synced(norm: nn.BatchNorm2d) -> SyncedBatchNorm2d:
    synced = SyncedBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    # The very parameters, which an optimiser may hold already.
    synced._parameters, synced._buffers = norm._parameters, norm._buffers
    synced.training = norm.training
    return synced


# --- One optimiser step: augment, attack, perturb, differentiate, and move the weights.


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
    world : World
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
        world: World,
    ) -> None:
        self._model, self._objective, self._examples = model, objective, examples
        self._awp, self._params = awp, params
        # Of stored labels it is known beforehand what they are like.
        self._taught = isinstance(objective, Taught)
        # Float16 has no small gradients.
        scaled = passes.precision == "float16"
        self._adversary = _Scaled(adversary) if scaled and adversary else adversary
        self._seed, self._passes, self._world = seed, passes, world
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
        seed_dropout(self._seed, moment.step, self._world.rank, self._device)
        parts = self.attacked(batch, moment, images)
        with self._perturbed(parts, moment.epoch):
            tally = self.differentiate(parts)
            self._reduce(tally)
            self._move()
        self._objective.finish(self._world.all_reduce_)
        tally[0] *= images
        return tally

    def attacked(self, batch: Batch, moment: Moment, images: int) -> list[_Part]:
        """Augment, join and attack a batch, in as many parts as gradients are summed over."""
        drawn = self._examples.draw(batch, moment.epoch)
        # As many in every process, or they would wait for each other's messages.
        least = max(1, images // self._world.size)
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
            self._world.all_reduce_(sums)
            return sums

        return perturbed_weights(self._model, gradients_of, self._awp.gamma)

    def _reduce(self, tally: torch.Tensor) -> None:
        """Add up gradients and tallies of all processes, in one message.

        Overlapping it with the backward pass, as torch's DistributedDataParallel does, would
        gain little here: an adversarial step sends once for its twelve or more passes.
        """
        if self._world.size == 1:
            return
        gradients = [w.grad for w in self._model.parameters() if w.grad is not None]
        statistics = [] if self._params.sync_batch_norm else _running_statistics(self._model)
        self._world.all_reduce_([*gradients, *statistics, tally])
        for statistic in statistics:
            statistic.div_(self._world.size)

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
