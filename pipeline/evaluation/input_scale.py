"""Whether a model is asked as it wants: images in [0, 1], normalised once; classes in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltd_pipe.errors import LtdPipeError, ModelError
from ltd_pipe.evaluation.accuracy import permutation
from ltd_pipe.evaluation.statistics import beats_chance, wilson_interval
from ltd_pipe.images.manifest import to_unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from ltd_pipe.evaluation.bench import TestImages
    from ltd_pipe.images.stream import FolderStream, ImageStream
    from ltd_pipe.models.classifier import Classifier

__all__ = [
    "Probes",
    "contradicted_accuracy",
    "draw_probes",
    "require_order",
    "settle",
    "weak_source",
    "wrong_scale",
]

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
# Pairs of classes in an error.
_SHOWN = 4
# What a checkpoint says may be of other images (validation), so that a little is no sign.
_ALLOWED_GAP = 0.05


def wrong_scale(model: Classifier, test: TestImages) -> str | None:
    """What to tell the user of a model that is right more often when given other pixels.

    Parameters
    ----------
    model : Classifier
        In evaluation mode.
    test : TestImages
        Up to 256 of them are looked at.

    Returns
    -------
    str or None
        None unless the intervals at 95 % are apart.
    """
    import torch

    rows = torch.arange(len(test))
    step = max(1, len(test) // _PROBES)
    images, labels, _ = test.take(rows[::step][:_PROBES])
    return _wrong_scale(model, images, labels)


def _wrong_scale(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> str | None:
    plain, n = _hits(model, images, labels), len(labels)
    limit = wilson_interval(plain, n)[1]
    found = [(_hits(model, given, labels), what) for what, given in _otherwise(model, images)]
    better = [pair for pair in found if wilson_interval(pair[0], n)[0] > limit]
    if not better:
        return None
    # Pixels times 255 all but undo a normalisation: the likelier reason comes first.
    best, what = better[0] if model.normalises else max(better, key=lambda pair: pair[0])
    return f"of {n} images {plain} are right as they are, but {best} when {what}"


def _hits(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> int:
    return int((_said(model, images) == labels).sum())


def _said(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    import torch

    def unit(part: torch.Tensor) -> torch.Tensor:
        return to_unit(part) if part.dtype == torch.uint8 else part

    with torch.no_grad():
        return torch.cat([model(unit(part)).argmax(dim=1) for part in torch.split(images, _BATCH)])


def _otherwise(model: Classifier, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if model.normalises:
        mean, std = (value[:, None, None] for value in (model.mean, model.std))
        what = "our normalisation is undone: the network has its own, so leave mean and std out"
        yield what, images * std + mean
    yield "multiplied by 255: the network expects pixels in 0…255", images * 255
    if model.normalises:
        return
    import torch

    for name, usual in _USUAL.items():
        channels = slice(None) if len(model.mean) == 3 else slice(1, 2)
        mean, std = (torch.tensor(v[channels], device=images.device)[:, None, None] for v in usual)
        yield f"normalised ({name}): pass the network's --mean and --std", (images - mean) / std


def weak_source(name: str, hits: int, n: int, num_classes: int) -> str | None:
    """What to tell the user of a transfer from a model that knows nothing of these images."""
    if beats_chance(hits, n, num_classes):
        return None
    return (
        f"transfer from {name} was not tried in earnest: that model is right on {hits} of {n:,} "
        "clean images, no better than chance; look at its normalisation and its order of classes"
    )


def contradicted_accuracy(hits: int, n: int, said: float, of_what: str) -> str | None:
    """What to tell the user of a model that is not as accurate as its checkpoint says.

    Parameters
    ----------
    hits, n : int
        Right answers to the clean images here.
    said : float
        The accuracy that the checkpoint states.
    of_what : str
        Which images that was measured on.

    Returns
    -------
    str or None
        None while the difference is within five points, or within the interval at 95 %.
    """
    low, high = wilson_interval(hits, n)
    if low <= said <= high or abs(hits / n - said) <= _ALLOWED_GAP:
        return None
    return (
        f"clean accuracy is {hits / n:.1%} of {n:,} images, but the checkpoint says {said:.1%} "
        f"({of_what}): other images, or pixels on another scale"
    )


@dataclass(frozen=True)
class Probes:
    """Some images of known class, of whatever is to be labelled or attacked.

    Attributes
    ----------
    images : Tensor of shape (n, C, H, W), dtype uint8
    labels : Tensor of shape (n,), dtype int64
        On the same device.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def said(self, model: Classifier) -> NDArray[np.int64]:
        """The class that the model answers for each."""
        return _said(model, self.images).cpu().numpy()


def draw_probes(stream: ImageStream | FolderStream, total: int, num_classes: int) -> Probes | None:
    """Evenly spaced images, the same for each process; None where no class is known."""
    import torch

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
    """Ask another project's weights about some images as they want to be asked, or refuse.

    Parameters
    ----------
    model : Classifier
        In evaluation mode, on the probes' device.
    probes : Probes
    where : object
        The weights, for the error.
    declared : tuple of sequence of float, optional
        Mean and std that the network's package declares, where neither the user nor the file
        says how images are normalised. The model takes them unless it is clearly right more often
        without; the latter by less is refused.
    by : str
        The package.
    options : str
        What the user's options of this model begin with.
    strict : bool
        Refuse a model that is right more often on another scale.

    Returns
    -------
    str
        What the model takes, and how often it is right.

    Raises
    ------
    ModelError
        Where its classes are in another order, nothing says whether its images are normalised,
        or another scale is clearly better.
    """
    said, truth, n = probes.said(model), probes.labels.cpu().numpy(), len(probes)
    require_order(truth, said, model.class_names, where, options)
    right, beside = int((said == truth).sum()), ""
    if declared is not None:
        own, plain = (model.mean.tolist(), model.std.tolist()), said == truth
        model.normalise(*declared)
        said = probes.said(model)
        require_order(truth, said, model.class_names, where, options)
        normalised = said == truth
        otherwise = int(normalised.sum())
        # Standard errors by which it is right more often without, over the same images.
        lead = (right - otherwise) / max(1, int((plain != normalised).sum())) ** 0.5
        knows = beats_chance(right, n, model.num_classes)
        if _SUGGESTS < lead <= _DECIDES and knows:
            raise _undecided(model, where, declared, by, options, f"{otherwise} and {right} of {n}")
        if lead > _DECIDES:
            model.normalise(*own)
            beside = f", {otherwise} when normalised as {by} declares"
        else:
            decides = "" if lead < -_DECIDES else f", which decides little: {_way(model, options)}"
            beside = f", {right} without it{decides}; {by} declares it"
            right = otherwise
    if strict:
        step = max(1, n // _PROBES)
        images, labels = to_unit(probes.images[::step][:_PROBES]), probes.labels[::step][:_PROBES]
        if doubt := _wrong_scale(model, images, labels):
            raise ModelError(where, f"gets its images on another scale than it wants: {doubt}")
    mean, std = _text(model.mean.tolist()), _text(model.std.tolist())
    taken = f"mean {mean}, std {std}" if model.normalises else "images in [0, 1], not normalised"
    return f"{taken}: {right} of {n} images are right{beside}"


def _way(model: Classifier, options: str) -> str:
    none, one = (_text([value] * len(model.mean)) for value in (0.0, 1.0))
    return f"{options}mean {none} {options}std {one} takes none"


def _undecided(
    model: Classifier,
    where: object,
    declared: tuple[Sequence[float], Sequence[float]],
    by: str,
    options: str,
    found: str,
) -> ModelError:
    """The error of weights whose normalisation nobody knows."""
    mean, std = (_text(values) for values in declared)
    return ModelError(
        where,
        "nothing decides between normalised images and images in [0, 1]",
        expected=f"mean {mean}, std {std}, as {by} declares, or none of it to be clearly better",
        found=f"{found} images right",
        remedy=f"Pass {options}mean {mean} {options}std {std}; {_way(model, options)}.",
    )


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)


def require_order(
    truth: NDArray[np.integer[Any]],
    said: NDArray[np.integer[Any]],
    class_names: Sequence[str],
    where: object,
    options: str = "--",
    error: type[LtdPipeError] = ModelError,
) -> None:
    """Refuse answers that are right but for the order of the classes.

    Parameters
    ----------
    truth, said : ndarray of shape (n,)
        As for `ltd_pipe.evaluation.accuracy.permutation`.
    class_names : sequence of str
    where : object
        Whose answers they are.
    options : str
        What the user's options of that model begin with; none: it has no such options.
    error : type
        Of labels that are no model's here.

    Raises
    ------
    ModelError
        Naming which class's images are answered as which.
    """
    moved = permutation(truth, said)
    if not moved:
        return
    from ltd_pipe.models.foreign import natural_order

    natural = natural_order(class_names)
    remedy = f"Say its order by {options}class-order, or by {options}classes FILE."
    if all(natural.index(class_names[true]) == other for true, other in moved.items()):
        remedy = f"It is the natural order (1, 2, 10): pass {options}class-order natural."
    if not options:
        remedy = "Put the columns into the order of the data's classes."
    pairs = [f"'{class_names[true]}' as '{class_names[other]}'" for true, other in moved.items()]
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    raise error(
        where,
        "has the classes in another order than the data",
        expected="each class's images to be answered as that class",
        found=", ".join(pairs[:_SHOWN]) + more,
        remedy=remedy,
    )
