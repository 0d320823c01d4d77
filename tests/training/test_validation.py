"""What the student is validated with, whatever it is trained with."""

import numpy as np
import pytest
import torch

from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import TrainParams
from ltd_pipe.training import validation
from ltd_pipe.training.run import new_classifier
from ltd_pipe.training.trainer import RunContext, Watcher

CPU = torch.device("cpu")
ALL = np.arange(240)
CONTEXT = RunContext(0, snapshots=None)


def params(**changes):
    content = {"architecture": "small-cnn-w8", "epochs": 1, "eps": 0.02} | changes
    return TrainParams(**content)


@pytest.fixture(scope="module")
def validate(train_beton):
    """A function that validates one untrained network, whose answers are near their borders."""
    model = new_classifier(params(), train_beton.manifest, seed=0, role="student", device=CPU)
    stream = ImageStream(train_beton, CPU)

    sizes = []
    model.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))

    def measure(samples=ALL, **changes):
        settings = params(**changes)
        sizes.clear()
        return validation.validate(model.eval(), stream, samples, settings, CONTEXT)

    measure.sizes = sizes
    return measure


OTHER_TRAINING = {
    "n-fgsm": {"attack": "n-fgsm"},
    "step size": {"step_size": 0.001},
    "steps": {"attack_steps": 1},
    "start": {"attack_start": "none"},
    "batch size": {"batch_size": 7},
    "parts": {"accumulation_steps": 5},
}


@pytest.mark.parametrize("changes", OTHER_TRAINING.values(), ids=OTHER_TRAINING)
def test_the_training_attack_does_not_reach_validation(validate, changes):
    """Students are compared by one attack, and no batch size or training attack changes it."""
    assert validate(**changes) == validate()


def test_the_threat_model_reaches_validation(validate):
    """A larger ball, or the same radius in a norm of smaller balls, is another number."""
    clean, robust = validate().values()
    assert 0 < robust < clean
    assert validate(eps=0.2)["validation/robust_accuracy"] < robust
    assert validate(norm="l2")["validation/robust_accuracy"] > robust
    assert validate(norm="l2", eps=4)["validation/robust_accuracy"] < robust


def test_a_validation_takes_as_many_images_at_a_time_as_training(validate):
    """What fits into memory there fits here."""
    validate(batch_size=50, accumulation_steps=4)
    assert max(validate.sizes) == 13


def test_without_samples_nothing_is_measured(validate):
    """An empty validation split gives an empty row, not a division by zero."""
    assert validate(samples=ALL[:0]) == {}


def test_warm_up_is_a_function_of_the_step(make_student):
    """Each step tells the attack how many epochs are done, at its middle."""
    fit, told = make_student(), []
    adversary = fit._step._adversary

    class Listening:
        def at(self, epochs):
            told.append(epochs)
            return adversary.at(epochs)

    fit._step._adversary = Listening()
    fit.run(Watcher())
    steps = np.arange(fit.total_steps)
    np.testing.assert_allclose(told, (steps + 0.5) / fit.steps_per_epoch)


def test_a_warm_up_reaches_the_attack(make_student, tmp_path):
    """Against a ball that still grows, more of the first epoch's images are right."""
    accuracies = [
        make_student(epochs=1, eps=0.3, attack_start="none", state=tmp_path / name, **changes).run(
            Watcher()
        )[0]["train/robust_accuracy"]
        for name, changes in (("whole", {}), ("warm", {"eps_warmup_epochs": 0.99}))
    ]
    assert accuracies[1] > accuracies[0]
