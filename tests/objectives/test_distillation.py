"""RSLAD, ARD, AdaAD and IGDM give the numbers that published code gives, computed once.

Of each project's own lines, run on the arrays of `answers_by_hand`: zibojia/RSLAD at c40e04f
(resnet18_rslad_cifar10.py), goldblum/AdversariallyRobustDistillation at 779ade3 (main.py),
boyellow/AdaAD at 9e5c6e5 (AT_helper.py, main.py), HongsinLee/saad at 295121c (igdm.py). The
first two average over classes, and were multiplied by the number of classes, three.
"""

import pytest
import torch
from answers_by_hand import (
    ATTACKED,
    TEACHER_CLEAN,
    X_ATTACKED,
    Lookup,
    X,
    batch,
    gradient_norms,
    student,
    teacher,
)
from torch import nn

from ltd_pipe import objectives
from ltd_pipe.attacks import cross_entropy, kl_from_target
from ltd_pipe.device import evaluation_mode
from ltd_pipe.params import TrainParams

T30 = (TEACHER_CLEAN / 30).softmax(dim=1)
T4 = (TEACHER_CLEAN / 4).softmax(dim=1)
PUBLISHED = {
    # 3 · 0.13099533; their log(q + 1e-5) costs the fourth digit.
    "rslad": (objectives.Rslad(), batch(), 0.392986, 1e-4),
    "ard-30": (objectives.Ard(30.0), batch(T30), 0.64299256, 1e-4),
    "ard-4-mixed": (objectives.Ard(4.0, 0.7), batch(T4), 0.58178818, 1e-5),
    "adaad": (objectives.Adaad(teacher()), batch(), 0.24867702, 1e-5),
    # 0.25 · 0.24867702 + 0.75 · 0.12755534
    "adaad-mixed": (objectives.Adaad(teacher(), 0.25), batch(), 0.15783576, 1e-5),
}


@pytest.mark.parametrize(
    ("objective", "given", "expected", "rel"), PUBLISHED.values(), ids=PUBLISHED
)
def test_the_loss_is_that_of_the_published_code(objective, given, expected, rel):
    """To its rounding; the logits that are counted are those of x′."""
    loss = objective.loss(student(), given, X_ATTACKED)
    assert loss.value.item() == pytest.approx(expected, rel=rel)
    assert torch.equal(loss.logits, ATTACKED)


def test_igdm_is_added_by_its_schedule():
    """AdaAD + 20 · 3/200 · IGDM in the third epoch of 200, as in the published code."""
    objective = objectives.Igdm(objectives.Adaad(teacher()), teacher(), 20.0)
    third = batch(info=objectives.StepInfo(epoch=2, epochs=200))
    loss = objective.loss(student(), third, X_ATTACKED)
    assert loss.value.item() == pytest.approx(0.38682106, rel=1e-5)


# What divides the raw logits of the teacher in those of a student that has learnt them.
LEARNT = {
    "ard": ({"objective": "ard", "label_kind": "live", "teacher_temperature": 30.0}, 1.0),
    "ard by a store": ({"objective": "ard", "label_temperature": 30.0}, 1.0),
    "rslad": ({"objective": "rslad", "label_kind": "live", "teacher_temperature": 2.0}, 2.0),
    "adaad": ({"objective": "adaad", "teacher_temperature": 2.0}, 2.0),
}


@pytest.mark.parametrize(("changes", "divisor"), LEARNT.values(), ids=LEARNT)
def test_igdm_asks_nothing_of_a_student_that_has_learnt_its_teacher(changes, divisor):
    """Its term is zero where that of the objective is."""
    given = {"architecture": "small-cnn-w4", "epochs": 2, "eps": 0.1, "teacher": "any"}
    params, raw = TrainParams(**given, **changes, igdm_weight=20.0), teacher()
    model = Lookup(*(row / divisor for row in raw.rows)).train()
    objective = objectives.make_objective(
        params, model, lambda images: raw(images) / params.teacher_temperature
    )
    alone, both = (o.loss(model, batch(), X_ATTACKED).value for o in (objective.inner, objective))
    torch.testing.assert_close(both, alone)


def test_rslad_by_hand():
    """Q = (1/2, 1/2), S(x′) = (1/4, 3/4), S(x) = q: 5/6 · (½ ln 2 + ½ ln ⅔) + 0."""
    answer = torch.tensor([[0.25, 0.75]]).log()
    model = student(attacked=answer, clean=torch.zeros(1, 2))
    given = objectives.TrainBatch(X, torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))
    loss = objectives.Rslad().loss(model, given, X_ATTACKED)
    expected = torch.log(torch.tensor([2.0, 2 / 3])).mean() * 5 / 6
    torch.testing.assert_close(loss.value, expected)


def test_a_label_without_mass_on_a_class_costs_nothing_there():
    """KL of a one-hot target is its cross entropy, and differentiable."""
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    onehot = torch.tensor([[1.0, 0.0, 0.0]])
    value = kl_from_target(onehot, logits)
    value.sum().backward()
    torch.testing.assert_close(value, cross_entropy(logits, onehot))
    assert logits.grad.isfinite().all()


WITH_TEACHER = {
    "adaad": lambda asked: objectives.Adaad(asked, 0.5),
    "igdm": lambda asked: objectives.Igdm(objectives.Madry(), asked, 1.0),
    "mtard": objectives.BalancedTeachers,
}


@pytest.mark.parametrize("make", WITH_TEACHER.values(), ids=WITH_TEACHER)
def test_gradients_reach_the_student_and_never_the_teacher(make):
    """The teacher is asked in evaluation mode, and stays as it is."""
    model, asked = student(), teacher()
    make(asked).loss(model, batch(), X_ATTACKED).value.backward()
    assert gradient_norms(model)[1] > 0
    assert gradient_norms(asked) == [0.0, 0.0, 0.0]
    assert not any(training for _, training in asked.asked)


ATTACK_LABELS = {
    "rslad": (objectives.Rslad(), batch().target),
    "ard": (objectives.Ard(4.0), batch().truth),
    "mtard": (objectives.BalancedTeachers(teacher()), batch().truth),
}


@pytest.mark.parametrize(("objective", "label"), ATTACK_LABELS.values(), ids=ATTACK_LABELS)
def test_what_the_attack_maximises(objective, label):
    """RSLAD's of the teacher's answer, the others' of the truth: KL has CE's gradient."""
    logits = ATTACKED.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective.attack_loss(None, batch())(logits).sum(), logits)
    torch.testing.assert_close(found, ATTACKED.softmax(dim=1) - label)


class Ascent:
    """Three signed steps of 0.04 from the image itself, within 0.1 and within [0, 1]."""

    def attack(self, model, images, loss, *, start):
        assert start == "normal"
        low, high = (images - 0.1).clamp(min=0), (images + 0.1).clamp(max=1)
        points = images.clone()
        with evaluation_mode(model):
            for _ in range(3):
                points = points.detach().requires_grad_()
                (slope,) = torch.autograd.grad(loss(model(points)).sum(), points)
                points = torch.clamp(points.detach() + 0.04 * slope.sign(), low, high)
        return points


def linear(weight, bias):
    layer = nn.Linear(4, 3)
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    # In evaluation mode this normalisation is the identity.
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, eps=0.0, affine=False), layer)


S = [[1.0, -1.0, 0.5, 0.0], [0.0, 1.0, -0.5, 1.0], [-1.0, 0.5, 0.0, -1.0]]
T = [[2.0, -1.0, 0.0, 0.5], [-0.5, 1.5, 0.5, 0.0], [0.0, -1.0, 1.0, -0.5]]


def test_adaads_attack_is_the_published_one():
    """δ in hundredths, as `adaad_inner_loss` gives it, which passes through the teacher, too."""
    images = torch.tensor([[0.5, 0.2, 0.8, 0.4], [0.1, 0.9, 0.3, 0.6]]).reshape(2, 1, 2, 2)
    model, asked = linear(S, [0.1, 0.0, -0.1]).train(), linear(T, [0.0, 0.0, 0.0]).eval()
    found = objectives.Adaad(asked).attack(Ascent(), model, batch(images=images))
    moved = (100 * (found - images)).flatten(1)
    expected = torch.tensor([[4.0, -10.0, 10.0, 10.0], [-10.0, 10.0, 4.0, -10.0]])
    torch.testing.assert_close(moved, expected, atol=1e-3, rtol=0)


def test_adaad_attacks_in_evaluation_mode_and_freezes_the_teacher():
    """The student is put back into training mode, the teacher's statistics stay as they are."""
    images = torch.rand(2, 1, 2, 2)
    model, asked = linear(S, [0.1, 0.0, -0.1]).train(), linear(T, [0.0, 0.0, 0.0]).eval()
    both = (model, asked)
    before = [module[1].running_mean.clone() for module in both]
    objectives.Adaad(asked).attack(Ascent(), model, batch(images=images))
    after = [module[1].running_mean for module in both]
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert (model.training, model[1].training, asked[1].training) == (True, True, False)


def test_a_wrapped_objective_attacks_as_it_does_alone():
    """IGDM around AdaAD changes nothing of its attack."""
    images = torch.rand(2, 1, 2, 2)
    model, asked = linear(S, [0.1, 0.0, -0.1]).train(), linear(T, [0.0, 0.0, 0.0]).eval()
    inner = objectives.Adaad(asked)
    wrapper = objectives.Igdm(inner, asked, 1.0)
    one, two = (o.attack(Ascent(), model, batch(images=images)) for o in (inner, wrapper))
    assert torch.equal(one, two)


def test_adaad_at_weight_one_does_not_look_at_clean_images():
    """What its loss does not need does not reach the batch statistics either."""
    model = student()
    objectives.Adaad(teacher()).loss(model, batch(), X_ATTACKED)
    assert [number for number, _ in model.asked] == [1]


def test_ard_at_weight_one_does_not_look_at_clean_images():
    """Likewise; below one it does."""
    for weight, expected in ((1.0, [1]), (0.5, [1, 0])):
        model = student()
        objectives.Ard(4.0, weight).loss(model, batch(T4), X_ATTACKED)
        assert [number for number, _ in model.asked] == expected


def test_ards_gradient_is_of_the_size_of_a_cross_entropys():
    """That is what t² is for: at high t, the gradient at each logit is near (z - u) / K."""
    model = student()
    objectives.Ard(1000.0).loss(
        model, batch((TEACHER_CLEAN / 1000).softmax(dim=1)), X_ATTACKED
    ).value.backward()
    centred = [rows - rows.mean(dim=1, keepdim=True) for rows in (ATTACKED, TEACHER_CLEAN)]
    expected = (centred[0] - centred[1]) / 3 / 2
    torch.testing.assert_close(model.rows[1].grad, expected, atol=2e-3, rtol=0)
