"""What a model answers to the test images, and how well its confidence fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.evaluation.accuracy import ConfidenceBin, calibration_error, reliability
from pipeline.evaluation.soundness import require_finite

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

__all__ = ["Answers", "answer"]


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
