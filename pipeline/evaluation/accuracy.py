"""What a model answers, and how well its confidence fits (Guo et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation.statistics import BINS, ConfidenceBin, mean_gap
from ltd_pipe.images.manifest import to_unit

if TYPE_CHECKING:
    from ltd_pipe.images.stream import ImageStream
    from ltd_pipe.models.classifier import Classifier


@torch.no_grad()
def predict(
    model: Classifier, stream: ImageStream, samples: NDArray[np.int64], batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities of all classes, and the true labels, of some samples.

    Returns
    -------
    tuple of ndarray
        Shape (N, K), float32, and (N,), int64, in the order of `samples`.
    """
    probabilities, labels = [], []
    for batch in stream.batches(samples, batch_size):
        logits = model(to_unit(batch.images)).float()
        probabilities.append(logits.softmax(dim=1).cpu().numpy())
        labels.append(batch.labels.cpu().numpy())
    return np.concatenate(probabilities), np.concatenate(labels)


def expected_calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> float:
    """Mean gap between confidence and accuracy, eq. 3, in [0, 1]; lower is better.

    Parameters
    ----------
    probabilities : ndarray of shape (N, K), dtype float32
        Rows are distributions.
    labels : ndarray of shape (N,), dtype int64
    """
    return mean_gap(reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels))


def reliability(
    confidence: NDArray[np.float32], correct: NDArray[np.bool_]
) -> tuple[ConfidenceBin, ...]:
    """A reliability diagram, eq. 1 and 2: accuracy by confidence, in bins that hold something.

    Parameters
    ----------
    confidence : ndarray of shape (N,), dtype float32
        Probability of the predicted class.
    correct : ndarray of shape (N,), dtype bool
    """
    which = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return tuple(
        ConfidenceBin(
            number=int(b),
            count=int(np.count_nonzero(which == b)),
            confidence=float(confidence[which == b].mean(dtype=np.float64)),
            accuracy=float(correct[which == b].mean()),
        )
        for b in np.unique(which)
    )


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

    def correct(self, labels: torch.Tensor) -> torch.Tensor:
        """Which answers are the labels: shape (n,), dtype bool."""
        return self.prediction == labels

    def reliability(self, labels: torch.Tensor) -> tuple[ConfidenceBin, ...]:
        """Accuracy by confidence over all images, each of which was asked for."""
        return reliability(self.confidence.numpy(), self.correct(labels).numpy())

    def calibration_error(self, labels: torch.Tensor) -> float:
        """Expected calibration error, likewise."""
        return mean_gap(self.reliability(labels))


@torch.no_grad()
def answer(model: Classifier, images: torch.Tensor) -> dict[str, Any]:
    """The model's answers as plain values, which `Answers.put` takes back without loss.

    NaN and infinity are refused: they would count as class 0.
    """
    logits = model(images).float()
    require_finite(logits, "for test images, as they are or attacked")
    confidence, prediction = logits.softmax(dim=1).max(dim=1)
    return {"prediction": prediction.tolist(), "confidence": confidence.tolist()}
