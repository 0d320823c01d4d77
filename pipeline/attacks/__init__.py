"""Attacks in pixel space [0, 1]: projected gradient descent for training and evaluation.

What is maximised is an argument, and so is the ball, L-infinity or L2. The model is attacked in
evaluation mode, so that the result for one image does not depend on the others in its batch.
"""

from pipeline.attacks.adversary import Adversary, Method
from pipeline.attacks.ball import Ball, Norm
from pipeline.attacks.fast import n_fgsm
from pipeline.attacks.frozen import Frozen
from pipeline.attacks.margin import margin
from pipeline.attacks.mode import evaluation_mode
from pipeline.attacks.pgd import LossOfLogits, input_gradient, pgd
from pipeline.attacks.start import Start, begin, normal_start

__all__ = [
    "Adversary",
    "Ball",
    "Frozen",
    "LossOfLogits",
    "Method",
    "Norm",
    "Start",
    "begin",
    "evaluation_mode",
    "input_gradient",
    "margin",
    "n_fgsm",
    "normal_start",
    "pgd",
]
