"""One optimiser step: augment, attack, perturb, differentiate, and move the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltd_pipe import rng
from ltd_pipe.attacks import Frozen, initial_point, input_gradients_only
from ltd_pipe.device import autocast, dtype_of
from ltd_pipe.distributed import step_parts
from ltd_pipe.errors import ParamsError
from ltd_pipe.images.manifest import to_unit
from ltd_pipe.objectives import TrainBatch
from ltd_pipe.params import TrainParams
from ltd_pipe.training.optim import WeightAverage, make_optimiser
from ltd_pipe.training.recorded import RecordedAttack
from ltd_pipe.training.softness import TARGET_SUMS, target_sums

if TYPE_CHECKING:
    from ltd_pipe.attacks import Adversary
    from ltd_pipe.images.stream import Batch
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import Loss, StepInfo
    from ltd_pipe.params import FitParams
    from ltd_pipe.training.data import Examples
    from ltd_pipe.training.trainer import RunContext, Task

# Of an attack's gradients in float16.
_ATTACK_SCALE = 1024.0


@dataclass(frozen=True)
class AttackedPart:
    """Images of a step, attacked: what is left is a function of the weights alone."""

    loss: Callable[[], Loss]
    truth: torch.Tensor
    share: float  # of the step's images, over all processes
    target_sums: torch.Tensor | None  # where a teacher in the run gave the targets


class Step:
    """Steps of one training run; holds all that a step changes.

    Nothing in it reads a number from the device, so that the host runs ahead of a GPU.

    Parameters
    ----------
    model : Classifier
        On its device; laid out and compiled here as the run's precision settings say.
    task : Task
    params : FitParams
    context : RunContext
        Its processes take one step together.
    """

    def __init__(
        self, model: Classifier, task: Task, params: FitParams, context: RunContext
    ) -> None:
        context.precision.apply(model)
        if params.sync_batch_norm and context.world.size > 1:
            synchronise(model)
        self.model, self._task, self._params, self._context = model, task, params, context
        self._transform, self._objective = task.transform, task.objective
        self._device = model.mean.device
        scaled = context.precision.precision == "float16"
        self._adversary = task.adversary
        if task.adversary and scaled:
            self._adversary = replace(task.adversary, loss_scale=_ATTACK_SCALE)
        dtype = dtype_of(context.precision.precision)
        self._frozen = Frozen(model, dtype=dtype) if task.adversary else None
        compiled = context.precision.compiled
        records = compiled == "reduce-overhead" and self._device.type == "cuda"
        records = records and task.adversary is not None and task.adversary.method == "pgd"
        # Graphs of single passes do not go into the graph of all: the model itself has such.
        records = records and self._frozen is not None and self._frozen.twin is not model
        self._recorded = RecordedAttack(self._attack_from) if records else None
        if self._frozen and compiled != "none":
            self._frozen.compile("default" if records else compiled)
        self._optimiser = make_optimiser(model, params, scaled=scaled)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=scaled)
        self.average = WeightAverage(model, params)

    def take(self, batch: Batch, info: StepInfo, images: int) -> torch.Tensor:
        """Train on a batch.

        Parameters
        ----------
        batch : Batch
            This process's part of the step's images.
        info : StepInfo
        images : int
            Of the step, over all processes.

        Returns
        -------
        Tensor of shape (2,) or (5,), dtype float32
            Over all images of the step: the sum of their losses, how many were classified
            right, and where a teacher in the run gave their targets `target_sums` of these.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = info.learning_rate
        seed_dropout(self._context.seed, info.step, self._context.world.rank, self._device)
        parts = self.attack(batch, info, images)
        with self._perturbed(parts, info.epoch):
            tally = self.differentiate(parts)
            self._reduce(tally)
            self._scaler.unscale_(self._optimiser)
            if self._params.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._params.clip_norm)
            self._scaler.step(self._optimiser)
            self._scaler.update()
        self._objective.end_step(self._context.world.all_reduce_)
        self.average.update(self.model, info)
        tally[0] *= images
        return tally

    def attack(self, batch: Batch, info: StepInfo, images: int) -> list[AttackedPart]:
        """Augment, join and attack a batch, in as many parts as gradients are summed over."""
        examples = self._transform.apply(batch, info.epoch)
        params = self._params
        slices = step_parts(
            images,
            params.accumulation_steps,
            self._context.world,
            params.unit,
            synced=params.sync_batch_norm,
        )
        return [
            self._attack_part(examples.part(part), batch.index[part], info, images)
            for part in slices
        ]

    def _attack_part(
        self, examples: Examples, index: torch.Tensor, info: StepInfo, step_images: int
    ) -> AttackedPart:
        batch = TrainBatch(to_unit(examples.images), examples.target, examples.truth, info)
        relabel, sums = self._task.teacher_targets, None
        with autocast(self._device, self._context.precision.precision):
            if relabel is not None:
                batch = relabel(batch, self.average.model)
            adversarial = batch.images
            if self._adversary is not None:
                # Autocast keeps what it has cast of weights that have a gradient.
                compiled = self._context.precision.compiled != "none"
                with input_gradients_only(self.model) if compiled else contextlib.nullcontext():
                    adversarial = self._attack(self._adversary, batch, index)
        if relabel is not None:
            sums = target_sums(batch.target, batch.truth)

        def loss() -> Loss:
            with autocast(self._device, self._context.precision.precision):
                return self._objective.loss(self.model, batch, adversarial)

        return AttackedPart(loss, batch.truth, len(index) / step_images, sums)

    def _attack(self, adversary: Adversary, batch: TrainBatch, index: torch.Tensor) -> torch.Tensor:
        assert self._frozen is not None  # noqa: S101  where there is an adversary
        info, carried, points = batch.info, self._task.perturbations, None
        now = adversary.at(info.position)
        key = rng.stream_key(self._context.seed, "attack-start", info.epoch)
        model = self._frozen.current()
        if carried is not None:
            draws = self._transform.draws(info.epoch)
            if info.epoch:
                points = carried.points(batch.images, index, now.ball.eps, draws)
                points = now.ball.project_(points, batch.images)
        # While eps grows, each step has numbers of its own.
        if self._recorded is not None and info.position >= adversary.warmup_epochs:
            if points is None:
                start = now.start or self._objective.start
                points = initial_point(start, now.ball, batch.images, index, key)
            adversarial = self._recorded(now, batch, points)
        else:
            adversarial = self._objective.attack(
                now, model, batch, index=index, key=key, points=points
            )
        if carried is not None:
            carried.keep(adversarial - batch.images, index, now.ball.eps, draws)
        return adversarial

    def _attack_from(
        self, adversary: Adversary, batch: TrainBatch, points: torch.Tensor
    ) -> torch.Tensor:
        """The attack from points that were drawn before."""
        assert self._frozen is not None  # noqa: S101
        nobody = torch.empty(0, dtype=torch.int64, device=self._device)
        twin = self._frozen.twin
        return self._objective.attack(adversary, twin, batch, index=nobody, key=0, points=points)

    def share_perturbations(self) -> None:
        """Let all processes have what each has found; they do it together."""
        if self._task.perturbations is not None:
            self._task.perturbations.share()

    def differentiate(self, parts: list[AttackedPart]) -> torch.Tensor:
        """Set the gradients of this process's share of the mean loss; the tally as of `take`."""
        self._optimiser.zero_grad(set_to_none=True)
        width = 2 if parts[0].target_sums is None else 2 + len(TARGET_SUMS)
        tally = torch.zeros(width, device=self._device)
        for part in parts:
            loss = part.loss()
            value = loss.value * part.share
            self._scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            if len(parts) > 1 and self._context.precision.compiled == "reduce-overhead":
                # A CUDA graph's next replay overwrites the gradients that it gave.
                for weight in self.model.parameters():
                    weight.grad = None if weight.grad is None else weight.grad.clone()
            # Of a mixture, the share of the class that was found.
            hits = part.truth.gather(1, loss.logits.detach().argmax(dim=1)[:, None]).sum()
            tally[:2] += torch.stack([value.detach().float(), hits.float()])
            if part.target_sums is not None:
                tally[2:] += part.target_sums
        return tally

    def state_dict(self) -> dict[str, Any]:
        """What continues the run; the model's weights included."""
        carried = self._task.perturbations
        return {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "objective": self._objective.state_dict(),
        } | ({"perturbations": carried.state_dict()} if carried else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        fused = [group["fused"] for group in self._optimiser.param_groups]
        self._optimiser.load_state_dict(state["optimiser"])
        for group, mine in zip(self._optimiser.param_groups, fused, strict=True):
            group["fused"] = mine  # this device's, not that of the run's begin
        self._scaler.load_state_dict(state["scaler"])
        self._objective.load_state_dict(state["objective"])
        if self._task.perturbations is not None:
            self._task.perturbations.load_state_dict(state["perturbations"])

    def _perturbed(
        self, parts: list[AttackedPart], epoch: int
    ) -> contextlib.AbstractContextManager[None]:
        params = self._params
        if not isinstance(params, TrainParams) or not params.awp_gamma:
            return contextlib.nullcontext()
        if epoch < params.awp_from_epoch:
            return contextlib.nullcontext()

        def gradients_of(weights: list[torch.Tensor]) -> list[torch.Tensor]:
            sums: list[torch.Tensor] = []
            for part in parts:
                value = part.loss().value * part.share
                # Of a network with several exits not all weights need have a part in the loss.
                gradients = torch.autograd.grad(value, weights, materialize_grads=True)
                # As in `differentiate`: the next replay would overwrite them.
                sums = (
                    [gradient + before for gradient, before in zip(gradients, sums, strict=True)]
                    if sums
                    else [gradient.clone() for gradient in gradients]
                )
            self._context.world.all_reduce_(sums)
            return sums

        return perturbed_weights(self.model, gradients_of, params.awp_gamma)

    def _reduce(self, tally: torch.Tensor) -> None:
        """Add up gradients and tallies of all processes, in one message.

        Overlapping it with the backward pass, as torch's DistributedDataParallel does, would
        gain little here: an adversarial step sends once for its twelve or more passes.
        """
        count = self._context.world.size
        if count == 1:
            return
        gradients = [w.grad for w in self.model.parameters() if w.grad is not None]
        statistics: list[torch.Tensor] = []
        if not self._params.sync_batch_norm:
            norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
            found = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
            statistics = [value for value in found if value is not None]
        self._context.world.all_reduce_([*gradients, *statistics, tally])
        for statistic in statistics:
            statistic.div_(count)


# --- Dropout and stochastic depth: what a network draws for itself is a function of the step.
#
# Such modules draw from torch's own generators, which have a state. Seeded anew before each step,
# they need no place in a snapshot, and an interrupted run draws what it would have drawn.


def seed_dropout(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed what the modules of a network draw from during one step, on CPU and device.

    Each process draws for its own images, so they must not draw alike. It costs microseconds,
    and the device is not waited for.
    """
    key = rng.stream_key(seed, f"dropout/{rank}", step) >> 1
    # Not torch.manual_seed: without a GPU it keeps a record of every call, for when one is used.
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(key)


# --- Adversarial weight perturbation (Wu et al. 2020, section 4): a step against the worst weights.

_TINY = 1e-20


@contextlib.contextmanager
def perturbed_weights(
    model: nn.Module,
    gradients_of: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    gamma: float,
) -> Iterator[None]:
    """Move the weights up a loss for the block, each by γ of its own norm.

    The authors' code takes one SGD step on a copy of the model and scales it per layer by
    ‖w‖ / ‖w_copy - w‖. That ratio is ascent along the gradient whatever the copy's learning
    rate, so no copy is needed here.

    `gradients_of` gives the gradients of the loss for the list of weights it is given. Batch
    statistics are left as they were, since the pass over the proxy is not a training pass.
    """
    weights: list[torch.Tensor] = [
        weight for weight in model.parameters() if weight.requires_grad and weight.dim() > 1
    ]
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    gradients = gradients_of(weights)
    with torch.no_grad():
        if buffers:
            torch._foreach_copy_(buffers, before)
        # All weights at once: on a GPU a few kernels for all.
        lengths = torch._foreach_mul(torch._foreach_norm(weights), gamma)
        scales = torch._foreach_div(
            lengths, torch._foreach_add(torch._foreach_norm(gradients), _TINY)
        )
        moves = torch._foreach_mul(gradients, scales)
        torch._foreach_add_(weights, moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)


# --- Batch normalisation over the images of all processes: the number of them changes nothing.
#
# torch's own, which has a third of the kernels, works on GPUs alone. The attack's passes, ten of
# the twelve in a step, are in evaluation mode and need no message.


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
        return _Sum.forward(ctx, gradients[0])


def _through_children(norm: nn.Module, images: torch.Tensor) -> torch.Tensor:
    for module in norm.children():
        images = module(images)
    return images


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose batch is that of all processes together.

    Where it stands in place of timm's `BatchNormAct2d`, dropout and activation are its children.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise by the mean and variance over all processes, in float32."""
        self._check_input_dim(images)
        normed = self._normalised(images) if self.training else super().forward(images)
        return _through_children(self, normed)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        values = images.float()
        channels = values.shape[1]
        here = values.new_full((1,), values.numel() / channels)
        sums = _Sum.apply(torch.cat([values.sum(dim=(0, 2, 3)), here]))
        count = sums[channels].detach()
        mean: torch.Tensor = sums[:channels] / count
        # Around the common mean, in a second message: the mean of squares less the squared mean
        # would lose digits.
        squares = (values - mean[:, None, None]).square().sum(dim=(0, 2, 3))
        variance: torch.Tensor = _Sum.apply(squares) / count
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
        unbiased = variance * count / (count - 1).clamp(min=1)
        for running, found in ((self.running_mean, mean), (self.running_var, unbiased)):
            if self.momentum is not None:
                running.lerp_(found, self.momentum)
            elif self.num_batches_tracked is not None:  # the mean of all
                running.add_((found - running) / self.num_batches_tracked)


class _SyncedOnGpu(nn.SyncBatchNorm):
    """Torch's, with the children that timm's norms have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _through_children(self, super().forward(images))


def _only_normalises(norm: nn.Module) -> bool:
    """Whether it is batch normalisation in two dimensions, and then at most its children."""
    kind = type(norm)
    timm = kind.__name__ in ("BatchNormAct2d", "SyncBatchNormAct")
    return kind in (nn.BatchNorm2d, nn.SyncBatchNorm) or (
        timm and kind.__module__.startswith("timm.")
    )


def synchronise(network: nn.Module) -> None:
    """Let all batch normalisations of a network on its device share their statistics from now on.

    Weights and state keep their names, so that a checkpoint does not tell on how many processes
    it was trained.

    Raises
    ------
    ParamsError
        When there is one of another kind: left alone, it would make each process another model.
    """
    on_gpu = any(weight.is_cuda for weight in network.parameters())
    kind = _SyncedOnGpu if on_gpu else SyncedBatchNorm2d
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, _BatchNorm):
                continue
            if not _only_normalises(child):
                raise ParamsError(
                    "sync_batch_norm",
                    "true needs batch norms that can share their statistics",
                    expected="BatchNorm2d",
                    found=type(child).__name__,
                    remedy="Set it to false: each process then normalises by its own images.",
                )
            synced = kind(
                child.num_features,
                child.eps,
                child.momentum,
                child.affine,
                child.track_running_stats,
            )
            # The very parameters, which an optimiser may hold already.
            synced._parameters, synced._buffers = child._parameters, child._buffers
            synced._modules = child._modules
            synced.training = child.training
            setattr(module, name, synced)
