"""The objective that a student's parameters ask for, with all that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltd_pipe import objectives
from ltd_pipe.errors import ParamsError
from ltd_pipe.training.data import LiveLabels, SelfDistillation
from ltd_pipe.training.optim import learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import Moment, Objective
    from ltd_pipe.params import TrainParams
    from ltd_pipe.training.data import LiveTeacher


@dataclass(frozen=True)
class Ingredients:
    """What an objective may need beside the parameters.

    Attributes
    ----------
    model : Classifier
        The student.
    average : callable
        Gives its moving average as it is now.
    teacher : LiveTeacher or None
        Needed where the parameters ask a teacher.
    """

    model: Classifier
    average: Callable[[], Classifier]
    teacher: LiveTeacher | None = None

    def require_teacher(self) -> LiveTeacher:
        """The teacher; the parameters were to see to it that there is one."""
        if self.teacher is None:
            raise ValueError("the parameters ask a teacher: pass it")
        return self.teacher


def choose_objective(params: TrainParams, ingredients: Ingredients) -> Objective:
    """The objective, around it another attack, IGDM's term, and a teacher's labels.

    Parameters
    ----------
    params : TrainParams
    ingredients : Ingredients

    Raises
    ------
    ModelError, ParamsError
        When the network has not the exits that are to be trained.
    """
    objective = _MAKE[params.objective](params, ingredients)
    objective = objectives.opposing(objective, params.attack_loss)
    if params.igdm_weight:
        teacher = ingredients.require_teacher()
        objective = objectives.Igdm(objective, teacher, params.igdm_weight)
    return _with_labels(objective, params, ingredients)


def _with_labels(objective: Objective, params: TrainParams, ingredients: Ingredients) -> Objective:
    if params.label_kind == "adr":
        return objectives.Taught(
            objective,
            SelfDistillation(ingredients.average, params.adr_temperatures, params.adr_weights),
        )
    if params.label_kind == "live" and params.learns_from_labels:
        labels = LiveLabels(ingredients.require_teacher(), params.soft_weight, params.rectify)
        return objectives.Taught(objective, labels)
    return objective


def _at(params: TrainParams, _: Ingredients) -> Objective:
    return objectives.Madry(params.attack_label)


def _trades(params: TrainParams, _: Ingredients) -> Objective:
    return objectives.Trades(params.beta)


def _mart(params: TrainParams, _: Ingredients) -> Objective:
    return objectives.Mart(params.beta)


def _rslad(params: TrainParams, _: Ingredients) -> Objective:
    weight = params.robust_weight
    return objectives.Rslad() if weight is None else objectives.Rslad(weight)


def _ard(params: TrainParams, _: Ingredients) -> Objective:
    temperature, weight = params.distillation_temperature, params.robust_weight
    if temperature is None:
        raise ValueError("the temperature of the labels is not known")
    return objectives.Ard(temperature, 1.0 if weight is None else weight)


def _adaad(params: TrainParams, ingredients: Ingredients) -> Objective:
    weight = params.robust_weight
    return objectives.Adaad(ingredients.require_teacher(), 1.0 if weight is None else weight)


def _mtard(params: TrainParams, ingredients: Ingredients) -> Objective:
    def pace(moment: Moment) -> float:
        return learning_rate(params, moment.step, moment.steps) / params.learning_rate

    return objectives.BalancedTeachers(ingredients.require_teacher(), pace=pace)


def _exits(params: TrainParams, ingredients: Ingredients) -> Objective:
    count = ingredients.model.require_exits()
    numbers = params.exits or tuple(range(1, count + 1))
    if numbers[0] < 1 or numbers[-1] > count:
        raise ParamsError(
            "train.exits",
            f"{ingredients.model.architecture} has {count}",
            expected=f"numbers from 1 to {count}",
            found=list(numbers),
        )
    return objectives.MultiExit([number - 1 for number in numbers], params.attacked_exits)


_MAKE: dict[str, Callable[[TrainParams, Ingredients], Objective]] = {
    "at": _at,
    "trades": _trades,
    "mart": _mart,
    "rslad": _rslad,
    "ard": _ard,
    "adaad": _adaad,
    "mtard": _mtard,
    "exits": _exits,
}
