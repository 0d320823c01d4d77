"""What is proved of a model before an attack relies on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ltd_pipe import rng
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.accuracy import calibration_error, reliability

if TYPE_CHECKING:
    from ltd_pipe.evaluation.statistics import ConfidenceBin
    from ltd_pipe.models.classifier import Classifier

# Test images that a model is asked about before it is measured.
PROBED = 32
# Rounding depends on how many images share a call; what a batch does to its images does more.
_TOLERANCE = 1e-3


def probes(images: torch.Tensor) -> torch.Tensor:
    """Images to ask a model about: some real ones, black, white, and uniform noise.

    An attack may come anywhere in [0, 1], where a model can overflow that never does so on
    photographs.

    Parameters
    ----------
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]

    Returns
    -------
    Tensor of shape (B + 4, C, H, W)
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

    Parameters
    ----------
    model : Classifier
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        Two or more; see `probes`.
    random_allowed : bool
        For AutoAttack's version for models that answer at random.

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
    _require_batch_independence(model, images)


@torch.no_grad()
def require_evaluated(model: Classifier, images: torch.Tensor) -> None:
    """Prove what no measurement can do without: evaluation mode, and finite logits.

    Parameters
    ----------
    model : Classifier
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]
        See `probes`.

    Raises
    ------
    ModelError
    """
    if any(module.training for module in model.modules()):
        raise ModelError("model", "is in training mode", remedy="Call model.eval() first.")
    require_finite(model(images), "for images in [0, 1]")


def require_finite(logits: torch.Tensor, where: str) -> None:
    """Refuse logits from which no class can be read: the largest of NaN is the first.

    Parameters
    ----------
    logits : Tensor of shape (B, K)
    where : str
        What was asked about, such as `for images in [0, 1]`.

    Raises
    ------
    ModelError
        When one is NaN or infinite.
    """
    lost = int((~torch.isfinite(logits)).any(dim=1).sum())
    if lost:
        raise ModelError(
            "model",
            f"gives logits that are NaN or infinite {where}",
            found=f"{lost} of {len(logits)} such",
            remedy="No attack can be believed that meets such a point.",
        )


def apart(logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which images were answered differently, by more than rounding: shape (B,), dtype bool.

    Parameters
    ----------
    logits, others : Tensor of shape (B, K)
        Of the same images.
    """
    tolerance = _TOLERANCE * logits.abs().amax().clamp(min=1.0)
    return (logits - others).abs().amax(dim=1) > tolerance


@torch.no_grad()
def in_halves(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """The logits of images that were asked about in two batches: shape (B, K)."""
    return torch.cat([model(part) for part in images.chunk(2)])


def _require_batch_independence(model: Classifier, images: torch.Tensor) -> None:
    together, halves = model(images), in_halves(model, images)
    if apart(together, halves).any():
        raise ModelError(
            "model",
            "gives an image other logits in another batch",
            found=f"a difference of {float((together - halves).abs().amax()):.3g}",
            remedy="Its normalisation takes the batch's own statistics: no attack on one image "
            "says what it does to the next.",
        )


# --- What a model answers to the test images, and how well its confidence fits.


@dataclass(frozen=True)
class Answers:
    """The predicted classes of all test images, and their probabilities.

    Attributes
    ----------
    prediction : Tensor of shape (n,), dtype int64, on the CPU
        -1 where the model was not asked.
    confidence : Tensor of shape (n,), dtype float32, on the CPU
        Probability of the predicted class; 0 where the model was not asked.
    """

    prediction: torch.Tensor
    confidence: torch.Tensor

    @classmethod
    def none(cls, n: int) -> Answers:
        """Nothing asked yet."""
        return cls(torch.full((n,), -1), torch.zeros(n))

    def put(self, rows: torch.Tensor, record: dict[str, Any]) -> None:
        """Fill in what `answer` gave for some rows."""
        self.prediction[rows] = torch.tensor(record["prediction"])
        self.confidence[rows] = torch.tensor(record["confidence"], dtype=torch.float32)

    def right(self, labels: torch.Tensor) -> torch.Tensor:
        """Which answers are the labels: shape (n,), dtype bool."""
        return self.prediction == labels

    def calibration_error(self, labels: torch.Tensor) -> float:
        """Expected calibration error over all images, each of which was asked for."""
        return calibration_error(self.confidence.numpy(), self.right(labels).numpy())

    def reliability(self, labels: torch.Tensor) -> list[ConfidenceBin]:
        """Accuracy by confidence, likewise: the bins behind `calibration_error`."""
        return reliability(self.confidence.numpy(), self.right(labels).numpy())


@torch.no_grad()
def answer(model: Classifier, images: torch.Tensor) -> dict[str, Any]:
    """The model's answers as plain values, which `Answers.put` takes back without loss.

    Parameters
    ----------
    model : Classifier
        In evaluation mode.
    images : Tensor of shape (B, C, H, W), dtype float32, in [0, 1]

    Raises
    ------
    ModelError
        When a logit is NaN or infinite: it would count as class 0.
    """
    logits = model(images).float()
    require_finite(logits, "for test images, as they are or attacked")
    confidence, prediction = logits.softmax(dim=1).max(dim=1)
    return {"prediction": prediction.tolist(), "confidence": confidence.tolist()}
