"""Whether a model is fit to be measured, and gets images and classes as it wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe import rng
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.statistics import (
    beats_chance,
    class_counts,
    require_order,
    wilson_interval,
)
from ltd_pipe.images.manifest import to_unit

if TYPE_CHECKING:
    from ltd_pipe.images.stream import Stream
    from ltd_pipe.models.classifier import Classifier


# --- What is proved of a model before an attack relies on it.


# Test images that a model is asked about before it is measured.
PROBED = 32
# Rounding depends on how many images share a call; what a batch does to its images does more.
_TOLERANCE = 1e-3


def probes(images: torch.Tensor) -> torch.Tensor:
    """Images to ask a model about: some real ones, black, white, and uniform noise.

    An attack may come anywhere in [0, 1], where a model can overflow that never does so on
    photographs.
    """
    index = torch.arange(2, device=images.device)
    noise = rng.uniform(rng.stream_key(0, "soundness-probes"), index, tuple(images.shape[1:]))
    ends = torch.stack([torch.zeros_like(noise[0]), torch.ones_like(noise[0])])
    return torch.cat([images, ends, noise])


@torch.no_grad()
def is_random(model: Classifier, images: torch.Tensor) -> bool:
    """Whether the model gives two answers to one question."""
    return not torch.equal(model(images), model(images))


@torch.no_grad()
def require_sound(model: Classifier, images: torch.Tensor, *, random_allowed: bool = False) -> None:
    """Prove, before an attack relies on it, that the model is in a state to be measured.

    It is asked about two or more images, see `probes`; answers at random are allowed for
    AutoAttack's version for such models.

    Raises
    ------
    ModelError
        When it is in training mode, gives NaN or infinity, two answers to one question, or to
        an image answers that depend on the others in its batch.
    """
    require_evaluated(model, images)
    if is_random(model, images):
        if random_allowed:
            return
        raise ModelError(
            "model",
            "gives different logits for the same images",
            remedy="Remove what is random in it, or measure it with evaluate.autoattack: rand.",
        )
    together, halves = model(images), in_halves(model, images)
    if differ(together, halves).any():
        raise ModelError(
            "model",
            "gives an image other logits in another batch",
            found=f"a difference of {float((together - halves).abs().amax()):.3g}",
            remedy="Its normalisation takes the batch's own statistics: no attack on one image "
            "says what it does to the next.",
        )


@torch.no_grad()
def require_evaluated(model: Classifier, images: torch.Tensor) -> None:
    """Prove what no measurement can do without: evaluation mode, and finite logits."""
    if any(module.training for module in model.modules()):
        raise ModelError("model", "is in training mode", remedy="Call model.eval() first.")
    require_finite(model(images), "for images in [0, 1]")


def require_finite(logits: torch.Tensor, where: str) -> None:
    """Refuse logits (B, K) from which no class can be read: the largest of NaN is the first.

    `where` is what was asked about, such as `for images in [0, 1]`.
    """
    lost = int((~torch.isfinite(logits)).any(dim=1).sum())
    if lost:
        raise ModelError(
            "model",
            f"gives logits that are NaN or infinite {where}",
            found=f"{lost} of {len(logits)} such",
            remedy="No attack can be believed that meets such a point.",
        )


def differ(logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which images were answered differently, by more than rounding: shape (B,), dtype bool."""
    tolerance = _TOLERANCE * logits.abs().amax().clamp(min=1.0)
    return (logits - others).abs().amax(dim=1) > tolerance


@torch.no_grad()
def in_halves(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """The logits of images that were asked about in two batches: shape (B, K)."""
    return torch.cat([model(part) for part in images.chunk(2)])


# --- Whether a model gets its images on the scale that it wants: in [0, 1], normalised once.


_PROBES, _BATCH = 256, 64
# Of many classes more images are asked about, some of each, but only of a large data set.
_PER_CLASS, _MOST, _SHARE = 4, 4096, 16
# Usual input normalisations, for three channels; of one channel the middle one is tried.
_USUAL = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-100's mean and std": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "to [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# Standard errors of a difference, over the same images.
_SUGGESTS, _DECIDES = 1.0, 2.0


@torch.no_grad()
def _predicted(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    batches = torch.split(images, _BATCH)
    units = (to_unit(one) if one.dtype == torch.uint8 else one for one in batches)
    return torch.cat([model(one).argmax(dim=1) for one in units])


def wrong_scale(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Warn of a model that is right more often, by intervals at 95 %, when given other pixels.

    Up to 256 of the images, uint8 of shape (n, C, H, W), are looked at, evenly spaced.
    """
    device, n = model.mean.device, min(len(labels), _PROBES)
    spaced = torch.arange(n) * len(labels) // max(1, n)
    images, labels = (of[spaced.to(of.device)].to(device) for of in (images, labels))
    images = to_unit(images)

    def hits(given: torch.Tensor) -> int:
        return int((_predicted(model, given) == labels).sum())

    plain = hits(images)
    limit = wilson_interval(plain, n)[1]
    found = [(hits(given), what) for what, given in _other_scales(model, images)]
    better = [pair for pair in found if wilson_interval(pair[0], n)[0] > limit]
    if not better:
        return None
    if better[0] is found[0]:
        # Pixels times 255, or normalised once more, all but undo a normalisation: the likelier
        # reason comes first, unless another one is clearly better.
        limit = wilson_interval(better[0][0], n)[1]
        better[1:] = [pair for pair in better[1:] if wilson_interval(pair[0], n)[0] > limit]
    best, what = max(better, key=lambda pair: pair[0])
    return f"of {n} images {plain} are right as they are, but {best} when {what}"


def _other_scales(model: Classifier, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    ours, scale = (value[:, None, None] for value in (model.mean, model.std))
    if model.normalises:
        what = "our normalisation is undone: the network has its own, so leave mean and std out"
        yield what, images * scale + ours
    for name, usual in _USUAL.items():
        channels = slice(None) if len(model.mean) == 3 else slice(1, 2)
        mean, std = (torch.tensor(v[channels], device=images.device)[:, None, None] for v in usual)
        # What the model makes of these is what another would make of the images.
        others = (images - mean) / std * scale + ours
        yield f"normalised ({name}): pass the network's --mean and --std", others
    yield "multiplied by 255: the network expects pixels in 0…255", images * 255


@dataclass(frozen=True)
class Probes:
    """Some images (uint8) of known class, of whatever is to be labelled or attacked."""

    images: torch.Tensor
    labels: torch.Tensor

    def predicted(self, model: Classifier) -> NDArray[np.int64]:
        """The class that the model answers for each."""
        return _predicted(model, self.images).cpu().numpy()


def draw_probes(stream: Stream, total: int, num_classes: int) -> Probes | None:
    """Evenly spaced images, the same for each process; None where no class is known."""
    count = max(_PROBES, min(_PER_CLASS * num_classes, total // _SHARE, _MOST))
    order = np.unique(np.linspace(0, total - 1, min(total, count)).astype(np.int64))
    parts = [(batch.images, batch.labels) for batch in stream.batches(order, _PROBES)]
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    known = labels >= 0
    return Probes(images[known], labels[known]) if bool(known.any()) else None


def settle(
    model: Classifier,
    probes: Probes,
    where: object,
    *,
    declared: tuple[Sequence[float], Sequence[float]] | None = None,
    by: str = "",
    options: str = "--",
    strict: bool = True,
) -> str:
    """Ask another project's weights about some images as they want to be asked.

    Says what they take, and how often they are right. `declared` are mean and std that the
    network's package `by` declares, where neither the user nor the file says how images are
    normalised. The model takes them unless it is clearly right more often without; the latter by
    less is refused. `options` is what the user's options of this model begin with; `strict` refuses
    a model that is right more often on another scale.

    A ModelError where its classes are in another order, nothing says whether its images are
    normalised, or another scale is clearly better.
    """
    predicted, truth, n = probes.predicted(model), probes.labels.cpu().numpy(), len(probes.labels)
    require_order(truth, predicted, model.class_names, where, options)
    right, beside = int((predicted == truth).sum()), ""
    if declared is not None:
        own, plain = (model.mean.tolist(), model.std.tolist()), predicted == truth
        none, one = (_text([value] * len(model.mean)) for value in (0.0, 1.0))
        way = f"{options}mean {none} {options}std {one} takes none"
        model.normalise(*declared)
        predicted = probes.predicted(model)
        require_order(truth, predicted, model.class_names, where, options)
        normalised = predicted == truth
        otherwise = int(normalised.sum())
        # Standard errors by which it is right more often without, over the same images.
        lead = (right - otherwise) / max(1, int((plain != normalised).sum())) ** 0.5
        counts = class_counts(truth, model.num_classes)
        if _SUGGESTS < lead <= _DECIDES and beats_chance(right, counts):
            mean, std = (_text(values) for values in declared)
            raise ModelError(
                where,
                "nothing decides between normalised images and images in [0, 1]",
                expected=f"mean {mean}, std {std}, as {by} declares, or none of it to be clearly "
                "better",
                found=f"{otherwise} and {right} of {n} images right",
                remedy=f"Pass {options}mean {mean} {options}std {std}; {way}.",
            )
        if lead > _DECIDES:
            model.normalise(*own)
            beside = f", {otherwise} when normalised as {by} declares"
        else:
            decides = "" if lead < -_DECIDES else f", which decides little: {way}"
            beside = f", {right} without it{decides}; {by} declares it"
            right = otherwise
    if strict and (warning := wrong_scale(model, probes.images, probes.labels)):
        raise ModelError(where, f"gets its images on another scale than it wants: {warning}")
    mean, std = _text(model.mean.tolist()), _text(model.std.tolist())
    taken = f"mean {mean}, std {std}" if model.normalises else "images in [0, 1], not normalised"
    return f"{taken}: {right} of {n} images are right{beside}"


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)
