"""Short runs of the real training loop on real digits."""

from __future__ import annotations

import pytest
import torch
from short_runs import ATTACK, SHORT

from ltd_pipe.device import PrecisionSettings
from ltd_pipe.params import TeacherParams, TrainParams
from ltd_pipe.training.run import (
    new_classifier,
    split_samples,
    student_trainer,
    teacher_trainer,
)
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext

CPU = torch.device("cpu")


@pytest.fixture
def make_student(train_beton, train_stream, tmp_path):
    """A function that puts a student's run together; changes go to its parameters."""

    def make(
        *,
        store=None,
        seed=0,
        state=None,
        stream=None,
        teacher=None,
        precision=None,
        behind=False,
        **changes,
    ):
        content = {**SHORT, **ATTACK, "label_kind": "onehot", "ema_decay": 0.9} | changes
        if teacher is not None:
            content["teacher"] = "teacher.safetensors"
        params = TrainParams(**content)
        model = new_classifier(params, train_beton.manifest, seed=seed, role="student", device=CPU)
        snapshots = Snapshots(state or tmp_path / "state", device="cuda" if behind else "cpu")
        return student_trainer(
            model,
            stream or train_stream,
            split_samples(train_beton, params.images, seed),
            params,
            RunContext(seed, snapshots, precision or PrecisionSettings()),
            store=store,
            teacher=teacher,
        )

    return make


@pytest.fixture
def make_teacher(train_beton, train_stream, tmp_path):
    """A function that puts a teacher's run together."""

    def make(**changes):
        params = TeacherParams(**SHORT | changes)
        model = new_classifier(params, train_beton.manifest, seed=0, role="teacher", device=CPU)
        return teacher_trainer(
            model,
            train_stream,
            split_samples(train_beton, params.images),
            params,
            RunContext(0, Snapshots(tmp_path / "state")),
        )

    return make
