"""Attacks in pixel space [0, 1]: projected gradient descent for training and evaluation.

What is maximised is an argument, and so is the ball, L-infinity or L2. The model is attacked in
evaluation mode, so that the result for one image does not depend on the others in its batch.
"""

from ltd_pipe.attacks.fast import Adversary, Method, n_fgsm
from ltd_pipe.attacks.frozen import Frozen, evaluation_mode
from ltd_pipe.attacks.losses import margin
from ltd_pipe.attacks.pgd import (
    Ball,
    LossOfLogits,
    Norm,
    Start,
    begin,
    input_gradient,
    normal_start,
    pgd,
)

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
