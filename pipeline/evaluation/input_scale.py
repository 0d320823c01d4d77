"""Whether a model gets its images as it wants them: in [0, 1], normalised once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipeline.evaluation.accuracy import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.evaluation.selection import TestImages
    from pipeline.models.classifier import Classifier

__all__ = ["contradicted_accuracy", "wrong_scale"]

_PROBES, _BATCH = 256, 64
# Usual input normalisations, for three channels; of one channel the middle one is tried.
_USUAL = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-100's mean and std": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "to [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# What a checkpoint says may be of other images (validation), so that a little is no sign.
_ALLOWED_GAP = 0.05


@torch.no_grad()
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
    rows = torch.arange(len(test))
    step = max(1, len(test) // _PROBES)
    images, labels, _ = test.take(rows[::step][:_PROBES])

    def hits(given: torch.Tensor) -> int:
        said = torch.cat([model(part).argmax(dim=1) for part in torch.split(given, _BATCH)])
        return int((said == labels).sum())

    plain, n = hits(images), len(labels)
    found = [(hits(given), what) for what, given in _otherwise(model, images)]
    best, what = max(found, key=lambda pair: pair[0])
    if wilson_interval(best, n)[0] <= wilson_interval(plain, n)[1]:
        return None
    return f"of {n} images {plain} are right as they are, but {best} when {what}"


def _otherwise(model: Classifier, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield "multiplied by 255: the network expects pixels in 0…255", images * 255
    mean, std = (value[:, None, None] for value in (model.mean, model.std))
    if bool((mean != 0).any()) or bool((std != 1).any()):
        what = "our normalisation is undone: the network has its own, so leave mean and std out"
        yield what, images * std + mean
        return
    for name, usual in _USUAL.items():
        channels = slice(None) if len(model.mean) == 3 else slice(1, 2)
        mean, std = (torch.tensor(v[channels], device=images.device)[:, None, None] for v in usual)
        yield f"normalised ({name}): pass the network's --mean and --std", (images - mean) / std


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
