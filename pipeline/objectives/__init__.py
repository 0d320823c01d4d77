"""What training minimises: each objective takes a target distribution, one-hot or soft.

With y the ground truth of a clean image x, q its target, x′ its adversarial image, S(·) the
student's softmax, T(·) that of a teacher in the run, and KL summed over classes:

    clean    CE(q, S(x))                                                  the teacher's training
    at       CE(q, S(x′))                                                 Madry et al. 2018, eq. 2.1
    trades   CE(q, S(x)) + β · KL(S(x) ‖ S(x′))                           Zhang et al. 2019, eq. 5
    mart     CE(q, S(x′)) - log(1 - max_{k≠y} S_k(x′))
             + β · KL(S(x) ‖ S(x′)) · (1 - S_y(x))                        Wang et al. 2020, eq. 8
    rslad    5/6 · KL(q ‖ S(x′)) + 1/6 · KL(q ‖ S(x))                     Zi et al. 2021
    ard      α · t² · KL(q ‖ S^t(x′)) + (1 - α) · CE(y, S(x))             Goldblum et al. 2020
    adaad    α · KL(T(x′) ‖ S(x′)) + (1 - α) · KL(q ‖ S(x))               Huang et al. 2023
    mtard    w_r · KL(T^τr(x′) ‖ S(x′)) + w_c · KL(q^τc ‖ S(x))           Zhao et al. 2024
    exits    mean over exits e of CE(q, S_e(x)) + CE(y, S_e(x′))          Hu et al. 2020

and on top of any of them, with δ = x′ - x, z the student's logits and u the teacher's

    igdm     α · (e / E) · KL(softmax(u(x+δ) - u(x-δ)) ‖ softmax(z(x+δ) - z(x-δ)))
                                                                          Lee et al. 2025

x′ maximises a loss within the ball: for `trades` the KL term; for `rslad` KL(q ‖ S(·)); for
`adaad` KL(T(·) ‖ S(·)); for `at` the cross entropy, either of the ground truth y, CE(y, S(·)),
or of the target itself, CE(q, S(·)); for `exits` that of the ground truth at one exit or at
all; for the others that of the ground truth. Equations have a number where their paper could
be read; the others are those of published code, which each file names. Where the soft label
enters `at`, `trades` and `mart` is our reading of LTD, not the paper's text;
docs/robustness.md has what was measured.

A new objective is one class, its entry in OBJECTIVES, and its name in
`ltd_pipe.params.TrainParams.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ltd_pipe.objectives.adversarial import (
    AttackLossOverride,
    Clean,
    Madry,
    Mart,
    MultiExit,
    Trades,
)
from ltd_pipe.objectives.base import Loss, Objective, ObjectiveWrapper, StepInfo, TrainBatch
from ltd_pipe.objectives.distillation import Adaad, Ard, BalancedTeachers, Balances, Igdm, Rslad

if TYPE_CHECKING:
    from ltd_pipe.params import TrainParams

__all__ = [
    "OBJECTIVES",
    "Adaad",
    "Ard",
    "AttackLossOverride",
    "BalancedTeachers",
    "Balances",
    "Clean",
    "Igdm",
    "Loss",
    "Madry",
    "Mart",
    "MultiExit",
    "Objective",
    "ObjectiveWrapper",
    "Rslad",
    "StepInfo",
    "Trades",
    "TrainBatch",
    "make_objective",
]


def _weight(params: TrainParams) -> dict[str, float]:
    return {} if params.robust_weight is None else {"robust_weight": params.robust_weight}


# Each of the parameters, the student, and the teacher in the run, if any.
OBJECTIVES: dict[str, Callable[[TrainParams, Any, Any], Objective]] = {
    "at": lambda params, *_: Madry(params.attack_label),
    "trades": lambda params, *_: Trades(params.beta),
    "mart": lambda params, *_: Mart(params.beta),
    "rslad": lambda params, *_: Rslad(**_weight(params)),
    # Without a temperature of the labels the parameters have refused it.
    "ard": lambda params, *_: Ard(
        cast("float", params.distillation_temperature), **_weight(params)
    ),
    "adaad": lambda params, _, teacher: Adaad(teacher, **_weight(params)),
    "mtard": lambda params, _, teacher: BalancedTeachers(teacher, params.learning_rate),
    "exits": lambda params, student, _: MultiExit.from_params(params, student),
}


def make_objective(params: TrainParams, model: Any, teacher: Any) -> Objective:
    """The student's objective, with another attack loss and IGDM's term where they are asked for.

    The teacher maps images to its logits, divided by its temperature, where the parameters ask it.
    A ModelError or ParamsError when the student has not the exits that are to be trained.
    """
    if params.asks_teacher and teacher is None:
        raise ValueError("the parameters ask a teacher: pass it")
    objective = OBJECTIVES[params.objective](params, model, teacher)
    if params.attack_loss is not None:
        objective = AttackLossOverride(objective, params.attack_loss)
    if params.igdm_weight:
        # ARD divides the student's by the same t, so that it learns the teacher's raw logits.
        divided = params.objective == "ard" and params.label_kind == "live"
        factor = params.teacher_temperature if divided else 1.0
        objective = Igdm(objective, teacher, params.igdm_weight, factor)
    return objective
