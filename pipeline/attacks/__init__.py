"""Attacks in pixel space [0, 1]: projected gradient descent for training and evaluation.

What is maximised is an argument, and so is the ball, L-infinity or L2. The model is attacked in
evaluation mode, so that the result for one image does not depend on the others in its batch.
"""

from ltd_pipe.attacks.adversary import Adversary
from ltd_pipe.attacks.frozen import Frozen, input_gradients_only
from ltd_pipe.attacks.losses import cross_entropy, kl_divergence, kl_from_target, margin
from ltd_pipe.attacks.pgd import (
    Ball,
    LossOfLogits,
    Norm,
    Start,
    initial_point,
    input_gradient,
    pgd,
)

__all__ = [
    "Adversary",
    "Ball",
    "Frozen",
    "LossOfLogits",
    "Norm",
    "Start",
    "cross_entropy",
    "initial_point",
    "input_gradient",
    "input_gradients_only",
    "kl_divergence",
    "kl_from_target",
    "margin",
    "pgd",
]
