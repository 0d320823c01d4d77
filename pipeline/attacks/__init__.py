"""Projected gradient descent in pixel space [0, 1]: one attack for training and evaluation.

What is maximised is an argument. The model is attacked in evaluation mode, so that the result
for one image does not depend on the others in its batch.
"""

from pipeline.attacks.adversary import Adversary
from pipeline.attacks.mode import evaluation_mode
from pipeline.attacks.pgd import LossOfLogits, pgd
from pipeline.attacks.start import Start, normal_start, uniform_start

__all__ = [
    "Adversary",
    "LossOfLogits",
    "Start",
    "evaluation_mode",
    "normal_start",
    "pgd",
    "uniform_start",
]
