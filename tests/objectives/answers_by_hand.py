"""Answers of a student and of a teacher that tests compute losses of: two images, three classes.

The images are numbers by which the models look their answers up, so that gradients reach them.
"""

from __future__ import annotations

import torch
from torch import nn

from ltd_pipe.objectives import TrainBatch

CLEAN = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
ATTACKED = torch.tensor([[1.0, 0.5, -0.5], [0.0, 0.5, 1.0]])
MIRRORED = torch.tensor([[2.5, -0.5, -1.0], [0.0, 1.5, -0.5]])
TEACHER_CLEAN = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, -1.0]])
TEACHER_ATTACKED = torch.tensor([[1.5, 1.0, 0.0], [1.0, 1.0, -1.0]])
TEACHER_MIRRORED = torch.tensor([[3.5, 0.5, 0.0], [-0.5, 2.5, -1.0]])
TRUTH = torch.eye(3)[:2]
# What stands for x, x′ and x - δ = 2x - x′.
X, X_ATTACKED, X_MIRRORED = (torch.full((2, 1, 1, 1), value) for value in (0.5, 0.6, 0.4))


class Lookup(nn.Module):
    """Gives the rows for x, x′ or x - δ, as its weights; each may be differentiated."""

    def __init__(self, clean, attacked, mirrored):
        super().__init__()
        self.rows = nn.ParameterList([clean.clone(), attacked.clone(), mirrored.clone()])
        self.asked = []

    def forward(self, images):
        number = [0.5, 0.6, 0.4].index(round(float(images.flatten()[0]), 3))
        self.asked.append((number, self.training))
        return self.rows[number]


def student(attacked=ATTACKED, clean=CLEAN):
    return Lookup(clean, attacked, MIRRORED).train()


def teacher():
    return Lookup(TEACHER_CLEAN, TEACHER_ATTACKED, TEACHER_MIRRORED).eval()


def batch(target=None, images=X, **more):
    """The images x with the teacher's answer to them, and the truth."""
    target = TEACHER_CLEAN.softmax(dim=1) if target is None else target
    return TrainBatch(images, target, TRUTH, **more)


def gradient_norms(model):
    return [0.0 if row.grad is None else float(row.grad.norm()) for row in model.rows]
