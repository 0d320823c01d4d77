"""FGSM, PGD and CW-PGD: right verdicts in both norms, by the names that people write."""

import re

import pytest
import torch
from pyautoattack import AutoAttack
from refusals import refused
from torch import nn

from ltd_pipe.attacks import Ball
from ltd_pipe.errors import ModelError
from ltd_pipe.evaluation import attacks
from ltd_pipe.evaluation.attacks import GradientAttack, parse_attack
from ltd_pipe.evaluation.audit import AuditSettings, audit
from ltd_pipe.evaluation.bench import Bench, Journal, TestImages, answer
from ltd_pipe.evaluation.robustness import evaluate
from ltd_pipe.models.classifier import Classifier
from ltd_pipe.params import EvaluateParams

# --- FGSM, PGD and CW-PGD: right verdicts in both norms, by the names that people write.


RADII = {"linf": 0.05, "l2": 0.16}
TITLES = [
    ("fgsm", "FGSM"),
    ("pgd-20", "PGD-20"),
    ("pgd-100x5", "PGD-100 x 5"),
    ("cw-40", "CW-PGD-40"),
    ("cw-40x2", "CW-PGD-40 x 2"),
]


@pytest.mark.parametrize(("name", "title"), TITLES)
def test_an_attack_is_called_what_it_is(name, title):
    """Kind, steps, and restarts where there are more than one."""
    assert parse_attack(name).title == title
    assert parse_attack(name).key == name


@pytest.mark.parametrize("name", ["", "pgd", "pgd-0", "fgsm-2", "pgd-10x0", "bim-10", "pgd-10 "])
def test_what_is_no_attack_is_refused(name):
    """With examples of what would be one."""
    with pytest.raises(ValueError, match="expected 'fgsm', 'pgd-20', 'pgd-100x5' or 'cw-100'"):
        parse_attack(name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_margin_finds_exactly_what_can_be_broken(bench, right, exactly_robust, norm):
    """For a linear model the verdict of CW-PGD is the exact one."""
    ball = Ball(norm, RADII[norm])
    found, _ = attacks.run(bench(), parse_attack("cw-20x2"), ball, right)
    assert torch.equal(found, exactly_robust(norm, RADII[norm]) & right)
    assert 0 < found.sum() < right.sum()


@pytest.mark.parametrize("name", ["fgsm", "pgd-20"])
def test_no_attack_breaks_what_cannot_be_broken(bench, right, exactly_robust, name):
    """In the L2 ball too, where a step that left it would break more."""
    ball = Ball("l2", RADII["l2"])
    found, _ = attacks.run(bench(), parse_attack(name), ball, right)
    assert not (exactly_robust("l2", RADII["l2"]) & right & ~found).any()
    assert found.sum() < right.sum()


def test_for_calibration_all_images_are_attacked(bench, right, images):
    """Also those that are wrong when clean, which change no verdict."""
    assert not right.all()
    ball, plan = Ball("linf", 0.05), parse_attack("pgd-5x2")
    every, (answers, _) = attacks.run(bench(), plan, ball, right, all_images=True)
    some, _ = attacks.run(bench(), plan, ball, right)
    assert torch.equal(every, some)
    assert (answers.prediction >= 0).all()
    assert answers.correct(images.labels).sum() >= every.sum()
    assert 0 < answers.calibration_error(images.labels) < 1


def test_a_later_restart_begins_elsewhere(bench, right, tmp_path):
    """Restarts are told apart by their numbers: what survives the first meets other points."""
    ball, test = Ball("l2", 0.001), bench(tmp_path)
    for restart in (0, 1):
        attacks.run(test, GradientAttack("x", restarts=restart + 1), ball, right, first=restart)
    first, second = (test.journal.read(f"x.{restart}")[0] for restart in (0, 1))
    assert first["prediction"] == second["prediction"]
    assert first["confidence"] != second["confidence"]


def test_no_radius_is_no_attack(bench, right):
    """At eps 0 what is right when clean stands."""
    attack = GradientAttack("x", steps=5)
    assert torch.equal(attacks.run(bench(), attack, Ball("linf", 0.0), right)[0], right)


def test_progress_counts_down_to_nothing(bench, right):
    """Each start is announced; what is done and at most to come is told after each batch."""
    told = []
    ball, plan = Ball("linf", 0.05), parse_attack("pgd-2x3")
    tick = lambda name, done, left: told.append((name, done, left))  # noqa: E731
    attacks.run(bench(tick=tick), plan, ball, right)
    assert {name for name, _, _ in told} == {f"PGD-2 start {start} of 3" for start in (1, 2, 3)}
    assert sum(done == 0 for _, done, _ in told) == 3
    assert [left for _, _, left in told] == sorted((left for _, _, left in told), reverse=True)
    assert told[-1][2] == 0


# --- AutoAttack as its package computes it, in both norms and versions, resumed to the bit.


AUTOATTACK_RADII = {"linf": 0.05, "l2": 0.16}


def hurried(adversary):
    """A tenth of the steps: the same code, for tests that do not ask how well it attacks."""
    for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        attack.n_iter = 10
    adversary.apgd.eot_iter = min(adversary.apgd.eot_iter, 2)
    adversary.square.n_queries = 20
    return adversary


@pytest.fixture
def in_a_hurry(monkeypatch):
    """Every AutoAttack of the test is hurried."""
    build = attacks.build
    monkeypatch.setattr(attacks, "build", lambda *words: hurried(build(*words)))


def run(bench, right, norm="linf", version="standard"):
    return attacks.run_autoattack(bench, Ball(norm, AUTOATTACK_RADII[norm]), right, version)


def packages_own(model, images, norm, version):
    """The package run in one go, with the four targets that five classes allow."""
    names = {"linf": "Linf", "l2": "L2"}
    adversary = AutoAttack(
        model, norm=names[norm], eps=AUTOATTACK_RADII[norm], seed=3, version=version
    )
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 4
    pixels, labels, _ = images.take(torch.arange(len(images)))
    _, said = hurried(adversary).run_standard_evaluation(pixels, labels, batch_size=10)
    return said == labels


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize(
    ("norm", "version"), [("linf", "standard"), ("l2", "standard"), ("linf", "rand")]
)
def test_it_is_the_packages_own(bench, model, images, right, norm, version):
    """Image by image, the verdict is that of `run_standard_evaluation`."""
    ours = bench()
    found = run(ours, right, norm, version)
    assert all(weight.grad is None for weight in ours.model.parameters())
    assert torch.equal(found.correct, packages_own(model, images, norm, version))
    assert 0 < found.correct.sum() < right.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_model_it_is_exact(bench, right, exactly_robust, norm):
    """APGD-T, at full length, breaks what can be broken, and nothing else."""
    adversary = attacks.build(bench(), Ball(norm, AUTOATTACK_RADII[norm]))
    found = attacks.run_one(bench(), adversary, "apgd-t", right, [])
    assert torch.equal(found, exactly_robust(norm, AUTOATTACK_RADII[norm]) & right)


def test_a_version_is_what_its_authors_set(bench):
    """The iterations, queries and targets of the standard version, and rand's 20 answers."""
    standard, rand = (attacks.build(bench(), Ball("linf", 0.1), v) for v in ("standard", "rand"))
    assert standard.apgd.n_iter == standard.apgd_targeted.n_iter == standard.fab.n_iter == 100
    assert (standard.square.n_queries, standard.apgd_targeted.n_target_classes) == (5000, 4)
    assert (standard.apgd.eot_iter, rand.apgd.eot_iter) == (1, 20)


def interrupted(bench, folder, right, batches):
    """Stop after some batches."""
    done = []

    def stop(*told):
        done.append(told)
        if len(done) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench(folder, stop), right)


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("batches", [1, 4, 6])
def test_interrupted_it_ends_with_the_same_result(bench, right, tmp_path, batches):
    """Stopped after some batches and continued, all that it says is equal."""
    whole = run(bench(), right)
    interrupted(bench, tmp_path, right, batches)
    found = run(bench(tmp_path), right)
    assert torch.equal(found.correct, whole.correct)
    assert (found.accuracy, found.flags) == (whole.accuracy, whole.flags)
    told = []
    run(bench(tmp_path, lambda *words: told.append(words)), right)
    assert told == []


def test_square_finding_more_is_flagged(bench, right, tmp_path):
    """When only the black-box attack succeeds, AutoAttack's warning reaches the result."""
    journal, everyone = Journal(tmp_path), int(right.sum())
    for attack, stands in (("apgd-ce", 1), ("apgd-t", 1), ("fab-t", 1), ("square", 0)):
        for number, size in enumerate((10, 10, everyone - 20)):
            record = {"left": [stands] * size, "flags": []}
            journal.append(f"autoattack-{attack}", number, record)
    found = run(bench(tmp_path), right)
    assert any("Square Attack has decreased" in flag for flag in found.flags)
    assert list(found.accuracy) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.accuracy["square"] == 0


class Doubtful(nn.Module):
    """The model of sums with noise of its own."""

    def forward(self, images):
        sums = 4.0 * images.sum(dim=(1, 3))
        return sums + 0.1 * torch.randn_like(sums)


@pytest.mark.usefixtures("in_a_hurry")
def test_a_random_model_is_measured_to_the_bit(bench, right):
    """Its draws belong to the batch: what was drawn before changes none of them."""
    names = tuple("abcde")
    noisy = Classifier(Doubtful(), architecture="x", class_names=names, shape=(1, 5, 5)).eval()
    whole = run(bench(network=noisy), right, version="rand")
    torch.manual_seed(99)
    again = run(bench(network=noisy), right, version="rand")
    assert torch.equal(whole.correct, again.correct)
    assert list(whole.accuracy) == ["apgd-ce", "apgd-dlr"]


@pytest.mark.parametrize(
    ("version", "classes", "kept"),
    [
        ("standard", 2, ["apgd-ce", "fab-t", "square"]),
        ("standard", 4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        ("rand", 2, ["apgd-ce"]),
        ("rand", 3, ["apgd-ce", "apgd-dlr"]),
    ],
)
def test_few_classes_leave_attacks_out_and_say_so(version, classes, kept):
    """The DLR losses divide by the third or the fourth logit."""
    found, flags = attacks.attacks_of(version, classes)
    assert found == kept
    assert len(flags) == {"standard": 4, "rand": 2}[version] - len(kept)


@pytest.mark.parametrize(
    ("shape", "norm", "version"),
    [((1, 5, 5), "l2", "standard"), ((1, 4, 4), "linf", "standard"), ((1, 4, 4), "l2", "rand")],
    ids=["five pixels", "another norm", "without Square"],
)
def test_images_that_square_can_take_are_accepted(shape, norm, version):
    """Its tiles are of a fifth of the side, in L2 alone."""
    attacks.require_possible(shape, Ball(norm, 0.1), version)


SIDES = (5, 8, 12, 13, 14, 18, 19, 24, 28, 32)


@pytest.mark.parametrize("height", SIDES)
def test_square_in_l2_takes_just_these_sizes(height):
    """The package itself is asked: its first tiles leave some images, which are refused."""
    ball = Ball("l2", 0.5)
    for width in SIDES:
        shape = (1, height, width)
        network = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 4))
        names = tuple("abcd")
        model = Classifier(network, architecture="s", class_names=names, shape=shape).eval()
        pixels = torch.full((2, *shape), 128, dtype=torch.uint8)
        labels, rows = model(pixels / 255).argmax(dim=1), torch.arange(2)
        hashes = rows.numpy().astype("uint64")
        images = TestImages(pixels, labels, rows, hashes, torch.device("cpu"))
        adversary = attacks.build(Bench(model, images, 0, 2), ball)
        adversary.square.n_queries = 1
        try:
            adversary.square.perturb(pixels / 255, labels)
        except RuntimeError:
            with refused(ModelError, what="Square in L2", found=f"{height}×{width}"):
                attacks.require_possible(shape, ball, "standard")
        else:
            attacks.require_possible(shape, ball, "standard")


def small_model_and_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    model = Classifier(network, architecture="s", class_names=tuple("abcd"), shape=(1, 4, 4))
    pixels = torch.arange(64, dtype=torch.uint8).reshape(4, 1, 4, 4)
    rows = torch.arange(4)
    images = TestImages(pixels, rows, rows, rows.numpy().astype("uint64"), torch.device("cpu"))
    return model.eval(), images


def evaluated(model, images, tick):
    params = EvaluateParams(norm="l2", eps=0.1, images=4, eps_grid=())
    evaluate(model, images, params, seed=0, tick=tick)


def audited(model, images, tick):
    audit(model, images, AuditSettings(eps=0.1, norm="l2"), tick=tick)


@pytest.mark.parametrize("measure", [evaluated, audited])
def test_images_too_small_for_square_are_refused_first(measure):
    """Before anything is measured, where the package divided by zero after the other attacks."""
    ticks = []
    with refused(
        ModelError,
        where="AutoAttack",
        what="a size",
        found="4×4",
        remedy="Measure",
    ):
        measure(*small_model_and_images(), lambda *told: ticks.append(told))
    assert not ticks


# --- Models that are sound on the test images and not where attacks go: none is believed.


SHAPE = (1, 5, 5)
EPS = 0.05
QUICK = AuditSettings(eps=EPS, batch_size=24, steps=2, restarts=2, square_queries=5)


class Sums(nn.Module):
    """Logit k is the sum of the k-th row of pixels, as of the model that the images are for."""

    def forward(self, images):
        return 4.0 * images.sum(dim=(1, 3))


def classifier(network):
    """A model of five classes, in evaluation mode."""
    names = tuple("abcde")
    return Classifier(network, architecture="control", class_names=names, shape=SHAPE).eval()


class Trap(Sums):
    """NaN where an attack has made a pixel a little darker than any of the images has."""

    def forward(self, images):
        darkest = images.flatten(1).amin(dim=1)
        trapped = (darkest > 0.3) & (darkest < 0.39)
        return super().forward(images).masked_fill(trapped[:, None], torch.nan)


class Frozen(Sums):
    """No gradient but at images of whole grey levels, as test images are."""

    def forward(self, images):
        levels = images.detach() * 255
        whole = (levels - levels.round()).abs() < 1e-3
        return super().forward(torch.where(whole, images, images.detach()))


class Relative(Sums):
    """Takes the batch's own mean for granted, as batch norm without running statistics does."""

    def forward(self, images):
        sums = super().forward(images)
        return sums - 0.2 * sums.mean(dim=0)


class Overflowing(Sums):
    """Finite on photographs, infinite on white."""

    def forward(self, images):
        white = (images > 0.99).flatten(1).all(dim=1)
        return super().forward(images).masked_fill(white[:, None], torch.inf)


@pytest.fixture
def trap():
    """The model with the trap."""
    return classifier(Trap())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_answer_that_is_not_finite_is_refused(value):
    """The largest of NaN is the first: it counted as class 0."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 5)).requires_grad_(False)
    network[1].bias.fill_(value)
    with refused(ModelError, where="model", what="test", found="2 of 2 such"):
        answer(classifier(network), torch.zeros(2, *SHAPE))


def test_an_evaluation_of_such_a_model_is_refused(trap, images):
    """Though it is sound on test images, black, white and noise."""
    params = EvaluateParams(eps=EPS, attacks=("fgsm",), pgd_steps=2, autoattack="none", eps_grid=())
    with refused(ModelError, where="model", what="test", found=re.compile("of 23 such$")):
        evaluate(trap, images, params, seed=0)


@pytest.mark.parametrize("attack", ["apgd-ce", "square"])
def test_autoattack_of_such_a_model_is_refused(trap, bench, right, attack):
    """The package reads NaN as class 0, too, and says nothing."""
    adversary = attacks.build(bench(network=trap), Ball("linf", EPS))
    adversary.apgd.n_iter = adversary.square.n_queries = 10
    with refused(ModelError, what=f"AutoAttack's {attack.upper()}"):
        attacks.run_one(bench(network=trap), adversary, attack, right, [])


def test_points_that_the_package_loses_are_not_the_models_fault(bench):
    """FAB divides by gradients that may be zero, and asks about NaN."""
    adversary = attacks.build(bench(), Ball("linf", EPS))
    adversary.model(torch.full((2, *SHAPE), torch.nan))
    adversary.model.require_finite("fab-t")


def failures(network, images):
    found = audit(classifier(network), images, QUICK).findings
    return {finding.name: finding.count for finding in found if not finding.passed}


def test_a_gradient_that_is_dead_where_attacks_start_fails(images):
    """It is alive at the test images themselves, where nothing starts but FGSM."""
    assert failures(Frozen(), images)["live gradients"] > 20


def test_an_audit_finds_that_answers_depend_on_the_batch(images):
    """The same images in another order have the same statistics; a half of them has not."""
    assert failures(Relative(), images)["deterministic"] > 12


def test_an_audit_refuses_what_overflows_on_white(images):
    """As an evaluation does: attacks may come there."""
    with refused(ModelError, where="model", what="infinite", found=re.compile("of 28 such$")):
        audit(classifier(Overflowing()), images, QUICK)
