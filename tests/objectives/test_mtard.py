"""B-MTARD balances two teachers as the authors' code does, in parts and over processes alike."""

import pytest
import torch
from answers_by_hand import (
    ATTACKED,
    CLEAN,
    TEACHER_ATTACKED,
    TEACHER_CLEAN,
    X_ATTACKED,
    X,
    batch,
    student,
    teacher,
)

from ltd_pipe import objectives

A, Z, U, V = ATTACKED, CLEAN, TEACHER_CLEAN, TEACHER_ATTACKED
# The student's answers to x′ and to x in four steps.
ANSWERS = [(A, Z), (1.2 * A, 0.8 * Z), (0.5 * A + 0.4 * V, 0.2 * Z + 0.5 * U), (0.9 * V, Z + U / 2)]
# What the lines of the training loop in zhaoshiji123/MTARD-extension at 93506d6
# (resnet18_mtard_cifar10.py) make of them: τ_clean and w_robust after the step, and both losses,
# which they average over the three classes. τ_robust stays at its least, 1.
PUBLISHED = [
    (1.001, 0.5, 0.08290235, 0.04252844),
    (1.002, 0.49948571, 0.09622091, 0.05359675),
    (1.003, 0.49543816, 0.02077999, 0.02091739),
    (1.004, 0.48342498, 0.00042085, 0.01426316),
]


def alone(_):
    """Sums of one process are sums of all."""


def take(objective, answers, process=alone, given=None):
    attacked, clean = answers
    loss = objective.loss(student(attacked, clean), given or batch(), X_ATTACKED)
    objective.end_step(process)
    return loss


def state(objective):
    return {name: value.tolist() for name, value in objective.state_dict().items()}


def test_temperatures_and_weights_are_the_published_ones():
    """Step by step; a step's loss is weighed by what the steps before have made of the weights."""
    objective, weight = objectives.BalancedTeachers(teacher()), 0.5
    for answers, (clean_temperature, robust_weight, robust, clean) in zip(
        ANSWERS, PUBLISHED, strict=True
    ):
        loss = take(objective, answers)
        expected = 3 * (weight * robust + (1 - weight) * clean)
        assert loss.value.item() == pytest.approx(expected, abs=2e-4)
        weight = robust_weight
        found = state(objective)
        assert found["temperatures"] == pytest.approx([1.0, clean_temperature], abs=1e-12)
        assert found["weights"] == pytest.approx([weight, 1 - weight], abs=2e-4)


def balances(temperatures, weights=(0.5, 0.5), first=(1.0, 1.0)):
    values = (temperatures, weights, first)
    return objectives.Balances(*(torch.tensor(v, dtype=torch.float64) for v in values))


MOVES = {
    "more certain": (balances((2.0, 2.0)), (1.0, 2.0), [2.1, 1.9]),
    "less certain": (balances((2.0, 2.0)), (2.0, 1.0), [1.9, 2.1]),
    "equal": (balances((2.0, 2.0)), (1.0, 1.0), [2.0, 2.0]),
    "at the bounds": (balances((1.0, 10.0)), (2.0, 1.0), [1.0, 10.0]),
}


@pytest.mark.parametrize(("now", "entropies", "expected"), MOVES.values(), ids=MOVES)
def test_temperatures_move_towards_equal_entropies(now, entropies, expected):
    """The teacher that is more certain is softened, the other one sharpened, within [1, 10].

    By a thousandth in a step at full pace.
    """
    entropies = torch.tensor(entropies, dtype=torch.float64)
    after = now.after(torch.ones(2, dtype=torch.float64), entropies, pace=100)
    assert after.temperatures.tolist() == pytest.approx(expected)


def test_the_loss_that_has_fallen_less_gains_weight():
    """Losses of 3/4 and 1/4 of the first: weights move from 1/2 to 3/4 and 1/4, half the way.

    By a fortieth of the way in a step at full pace.
    """
    losses = torch.tensor([1.5, 1.0], dtype=torch.float64)
    now = balances((1.0, 1.0), first=(2.0, 4.0))
    after = now.after(losses, torch.ones(2, dtype=torch.float64), pace=20)
    assert after.weights.tolist() == pytest.approx([0.625, 0.375])
    assert after.first_losses.tolist() == [2.0, 4.0]


def test_a_step_in_parts_is_the_step():
    """Means are over all images of the step, whatever parts they came in."""
    whole, parts = (objectives.BalancedTeachers(teacher()) for _ in range(2))
    take(whole, ANSWERS[0])
    for row in (slice(0, 1), slice(1, 2)):
        asked = teacher()
        asked.rows[1].data = V[row]
        parts._teacher = asked
        given = objectives.TrainBatch(X[row], batch().target[row], batch().truth[row])
        parts.loss(student(A[row], Z[row]), given, X_ATTACKED[row])
    parts.end_step(alone)
    for name, value in state(whole).items():
        assert state(parts)[name] == pytest.approx(value, rel=1e-6)


def test_processes_agree_on_the_balances():
    """Each adds the other's sums to its own: here those of a process with the same images."""
    one, two = (objectives.BalancedTeachers(teacher()) for _ in range(2))
    take(one, ANSWERS[0])
    take(two, ANSWERS[0], process=lambda sums: sums[0].mul_(2.0))
    assert state(one) == state(two)


def test_it_goes_on_from_its_state():
    """Two steps and two more after a snapshot are four steps."""
    whole, first, second = (objectives.BalancedTeachers(teacher()) for _ in range(3))
    for answers in ANSWERS:
        take(whole, answers)
    for answers in ANSWERS[:2]:
        take(first, answers)
    second.load_state_dict(first.state_dict())
    for answers in ANSWERS[2:]:
        take(second, answers)
    assert state(second) == state(whole)


def test_before_the_first_step_there_is_no_state():
    """An empty snapshot restores to the beginning."""
    objective = objectives.BalancedTeachers(teacher())
    assert objective.state_dict() == {}
    take(objective, ANSWERS[0])
    objective.load_state_dict({})
    assert objective.balances is None


def test_the_rates_follow_the_learning_rate():
    """Where it is zero nothing moves."""
    objective = objectives.BalancedTeachers(teacher(), peak_rate=0.1)
    for answers in ANSWERS[:2]:
        take(objective, answers)
    assert state(objective)["temperatures"] == [1.0, 1.0]
    assert state(objective)["weights"] == [0.5, 0.5]
    take(objective, ANSWERS[1], given=batch(info=objectives.StepInfo(learning_rate=0.1)))
    assert state(objective)["temperatures"] != [1.0, 1.0]


def test_a_stored_label_is_softened_as_its_logits_would_be():
    """The softmax at 1, read back as a label, gives the softmax at any temperature."""
    objective = objectives.BalancedTeachers(teacher())
    now = balances((3.0, 2.5))
    robust, clean = objective._targets(X_ATTACKED, batch(), now)
    torch.testing.assert_close(clean, (U / 2.5).softmax(dim=1))
    torch.testing.assert_close(robust, (V / 3.0).softmax(dim=1))
