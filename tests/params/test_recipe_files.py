"""The recipes: each complete, each what it says it is."""

from pathlib import Path

import pytest
import yaml
from refusals import refused

from ltd_pipe.errors import MissingError
from ltd_pipe.models.registry import build
from ltd_pipe.params import EvaluateParams, Params, load_params, parse_params, require_named
from ltd_pipe.params.file import recipe_names, recipe_summary, recipe_text

ROOT = Path(__file__).parents[2]
NAMES = [
    "cifar10-cpu",
    "cifar10-fast",
    "cifar10-resnet18",
    "cifar10-resnet18-adr",
    "cifar10-wrn34-10",
    "cifar10-wrn34-20",
    "cifar100-wrn34-10",
    "digits",
    "digits-wrong-labels",
    "imagenet-resnet50",
    "imagenet-wrn50-2",
]


def recipe(name):
    return parse_params(yaml.safe_load(recipe_text(name)), where=name)


def test_all_recipes_are_there():
    """No other file counts as one."""
    assert recipe_names() == NAMES


def test_the_default_is_the_digits_recipe():
    """params.yaml, which users edit first, and recipes/digits.yaml cannot drift apart."""
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "recipes/digits.yaml").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid(name):
    """Each file passes the validation that every stage applies."""
    load_params(ROOT / "recipes" / f"{name}.yaml")


# What decides robustness or cost: no default decides it unseen.
SPELT = {
    "prepare": {"dataset", "channels", "validation_fraction"},
    "teacher": {"architecture", "epochs", "batch_size", "learning_rate", "precision"},
    "label": {"temperature"},
    "train": {
        *("architecture", "epochs", "batch_size", "learning_rate", "precision", "objective"),
        *("label_kind", "temperature", "eps", "step_size", "attack_steps"),
        *("validation_attack_steps", "validation_every"),
    },
    "evaluate": EvaluateParams.model_fields.keys() - {"norm", "precision"},
    "report": {"title"},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete(name):
    """No section is left out, and what decides robustness or cost is spelt out."""
    content = yaml.safe_load(recipe_text(name))
    assert content.keys() == Params.model_fields.keys()
    for section, keys in SPELT.items():
        assert keys <= content[section].keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_what_dvc_yaml_names(name):
    """DVC looks for it when the stage begins, which may be days later."""
    require_named(ROOT / "recipes" / f"{name}.yaml", ROOT / "dvc.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_student_is_judged_by_the_radius_it_was_trained_for(name):
    """The evaluation's eps is training's, lies on the curve, and PGD can cross the ball."""
    params = recipe(name)
    assert params.evaluate.eps == params.train.eps
    # The automatic grid holds the radius of the attacks.
    grid = params.evaluate.eps_grid
    assert grid == "auto" or params.evaluate.eps in grid
    if params.train.attack == "pgd":
        assert params.train.step_size * params.train.attack_steps >= params.train.eps


SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_networks_exist_and_take_its_images(name):
    """Teacher and student can be built for the data set's shape."""
    params = recipe(name)
    shape = SHAPES.get(params.prepare.dataset, (3, 224, 224))
    assert shape[0] == params.prepare.channels
    for architecture in {params.teacher.architecture, params.train.architecture}:
        build(architecture, 10, shape)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_for(name):
    """The first line is `# NAME: purpose`, short enough for a list."""
    assert recipe_text(name).startswith(f"# {name}: ")
    assert 20 < len(recipe_summary(name)) < 80


@pytest.mark.parametrize("name", [name for name in NAMES if "digits" not in name])
def test_what_is_not_known_is_said(name):
    """A recipe after a paper marks what is ours and what nobody could look up."""
    text = recipe_text(name)
    assert "ours" in text.lower()
    assert "not known" in text


UNKNOWN = [
    ("digit", "digit: no such recipe. Did you mean 'digits'?"),
    ("zzz", "zzz: no such recipe. There are cifar10-cpu, cifar10-fast, "),
    ("../params", "no such recipe"),
    ("", "no such recipe"),
]


@pytest.mark.parametrize(("name", "message"), UNKNOWN, ids=[name for name, _ in UNKNOWN])
def test_an_unknown_recipe_is_refused_with_the_names(name, message):
    """Only listed names are looked up: a path is not one."""
    with refused(MissingError, where=name, what="recipe") as refusal:
        recipe_text(name)
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", ["cifar10-wrn34-10", "cifar10-wrn34-20", "cifar100-wrn34-10"])
def test_the_papers_setting_perturbs_the_weights(name):
    """TRADES with beta 6, and AWP's gamma of 0.005 from epoch 10."""
    train = recipe(name).train
    assert (train.objective, train.beta) == ("trades", 6)
    assert (train.awp_gamma, train.awp_from_epoch) == (0.005, 9)


def test_adrs_recipe_has_its_authors_settings():
    """Of resnet18_pgd_sgd_adr.gin in yuyuwu5/ADR at 515da0e."""
    train = recipe("cifar10-resnet18-adr").train
    assert (train.label_kind, train.attack_label, train.ema_decay) == ("adr", "target", 0.995)
    assert (train.adr_temperatures, train.adr_weights) == ((2.5, 2.0), (0.7, 0.95))
    assert (train.epochs, train.milestones, train.weight_decay) == (200, (0.5, 0.75), 5e-4)
