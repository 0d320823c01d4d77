"""Parameters are validated once, with the key's path in the error."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from refusals import refused

from ltd_pipe.errors import MissingError, ParamsError
from ltd_pipe.params import TeacherParams, TrainParams, load_params, parse_params, read_yaml
from ltd_pipe.params.sections import EvaluateParams, LabelParams, PrepareParams

MINIMAL = """
prepare: {dataset: digits}
teacher: {architecture: small-cnn, epochs: 1}
label: {temperature: 2.0}
train: {architecture: small-cnn, epochs: 1, eps: 8/255, step_size: 2/255}
evaluate: {eps: 8/255}
"""


def minimal(**overrides):
    return parse_params(yaml.safe_load(MINIMAL), overrides, where="params.yaml")


def test_fractions_are_numbers():
    """`8/255` is accepted where a number is, and is that number."""
    assert minimal().train.eps == 8 / 255
    assert minimal(**{"evaluate.eps_grid": "[0, 4/255]"}).evaluate.eps_grid == (0, 4 / 255)
    assert minimal(**{"evaluate.eps_grid": "0.1"}).evaluate.eps_grid == (0.1,)


def test_auto_temperature_gives_its_target():
    """`auto:0.9` asks for a mean top probability of 0.9; a number asks for none."""
    assert minimal(**{"label.temperature": "auto:0.9"}).label.target_top_probability() == 0.9
    for other in ("2.0", "auto:calibrated"):
        assert minimal(**{"label.temperature": other}).label.target_top_probability() is None


ACCEPTED = [
    ("seed", "3"),
    ("train.learning_rate", "1e-2"),
    ("train.milestones", "[1/2, 0.75]"),
    ("teacher.label_smoothing", "0.1"),
    ("evaluate.images", "null"),
    ("evaluate.attacks", "[fgsm, pgd-20, cw-100x5]"),
    ("evaluate.attacks", "fgsm, pgd-20"),
    ("evaluate.attacks", "none"),
    ("evaluate.eps_grid", "auto"),
    ("evaluate.eps_grid", "0, 4/255, 8/255"),
    ("evaluate.eps_grid", "[]"),
    ("evaluate.autoattack", "rand"),
    ("label.temperature", "0.5"),
    ("train.crop_scale", "[1/4, 1]"),
    ("train.crop_scale", "null"),
    ("label.augmentation", "crop:4,flip"),
    ("label.augmentation", "none"),
    ("label.augmentation", "flip,trivialaugment,cutout:8"),
    ("train.policy", "randaugment:2-9"),
    ("teacher.cutout", "8"),
    ("train.cutmix_probability", "1/2"),
    ("teacher.mixup_alpha", "0.4"),
    ("train.progressive_resize", "[128, 224]"),
    ("train.progressive_between", "[1/4, 1/2]"),
    ("label.seed", "7"),
    ("prepare.image_size", "8192"),
    ("seed", "0"),
    ("seed", "0x1F"),
    ("seed", "1_000"),
    ("label.temperature", "5e-2"),
    ("evaluate.images", "1e2"),
    ("train.nesterov", "on"),
    ("train.channels_last", "no"),
]


@pytest.mark.parametrize(("key", "value"), ACCEPTED, ids=[key for key, _ in ACCEPTED])
def test_accepted(key, value):
    """Sound overrides are taken."""
    minimal(**{key: value})


REFUSED = [
    ("train.eps", "1.5", {"where": "option: train.eps", "what": "linf"}),
    (
        "train.eps",
        "8",
        {"where": "option: train.eps", "what": "linf"},
    ),
    ("train.eps", "0", {"where": "option: train.eps", "what": "greater", "found": "0"}),
    ("train.eps", "8/0", {"where": "option: train.eps", "what": "fraction"}),
    ("train.eps", "null", {"where": "option: train.eps", "found": "None"}),
    ("train.epoch", "3", {"where": "option: train.epoch", "what": "unknown", "remedy": "epochs"}),
    ("trian.eps", "3", {"where": "option: trian", "what": "unknown", "remedy": "train"}),
    ("train.zzz", "3", {"where": "option: train.zzz", "what": "unknown", "remedy": "Remove"}),
    ("label.temperature", "0", {"where": "option: label.temperature", "what": "1e-06 to 1e"}),
    ("label.temperature", "-1", {"where": "option: label.temperature", "what": "1e-06 to 1e"}),
    ("label.temperature", "1e7", {"where": "option: label.temperature", "what": "to 1e+06"}),
    ("label.temperature", "auto:nan", {"where": "option: label.temperature", "what": "auto:P"}),
    (
        "label.temperature",
        ".nan",
        {"where": "option: label.temperature", "what": "1e-06 to 1e+06"},
    ),
    ("label.temperature", "auto:1.5", {"what": "auto"}),
    ("label.temperature", "warm", {"what": "warm"}),
    ("label.views", "0", {"where": "option: label.views", "what": "greater", "found": "0"}),
    ("label.views", "3", {"where": "option: label", "what": "augmentation"}),
    ("label.augmentation", "crop", {"where": "option: label", "what": "order"}),
    (
        "label.augmentation",
        "null",
        {"where": "option: label.augmentation", "what": "string", "found": "None"},
    ),
    ("label.augmentation", "crop:04", {"where": "option: label", "what": "written"}),
    ("prepare.image_size", "8193", {"where": "option: prepare.image_size", "found": "8193"}),
    ("label.seed", "-1", {"where": "option: label.seed", "what": "greater", "found": "-1"}),
    (
        "train.temperature",
        "0",
        {"where": "option: train.temperature", "what": "greater", "found": "0"},
    ),
    ("train.crop_scale", "[0, 1]", {"where": "option: train", "what": "crop_scale"}),
    ("train.crop_scale", "[0.5]", {"where": re.compile("train.crop_scale")}),
    ("train.crop_scale", "0.5", {"where": re.compile("train.crop_scale")}),
    (
        "train.crop_padding",
        "-1",
        {"where": "option: train.crop_padding", "what": "greater", "found": "-1"},
    ),
    ("train.crop_padding", "2000", {"where": "option: train", "what": "crop_padding"}),
    ("train.policy", "randaugment", {"where": "option: train", "what": "policy"}),
    ("train.cutout", "2000", {"where": "option: train", "what": "cutout"}),
    ("train.cutmix_probability", "2", {"where": "option: train.cutmix_probability", "found": "2"}),
    ("train.mixup_alpha", "0", {"where": "option: train.mixup_alpha", "what": "greater"}),
    (
        "train.progressive_resize",
        "[100, 224]",
        {"where": "option: train", "what": "progressive_resize"},
    ),
    (
        "train.progressive_resize",
        "128",
        {"where": "option: train.progressive_resize", "what": "tuple", "found": "128"},
    ),
    (
        "train.label_smoothing",
        "0.1",
        {"where": "option: train.label_smoothing", "what": "unknown key"},
    ),
    (
        "train.milestones",
        "[100, 150]",
        {"where": "option: train.milestones", "what": "fractions"},
    ),
    (
        "train",
        "{architecture: x, epochs: 160, eps: 0.1, milestones: [100, 150]}",
        {"what": "perhaps"},
    ),
    (
        "teacher.milestones",
        "[0, 1/2]",
        {"where": "option: teacher.milestones", "what": "fractions"},
    ),
    (
        "teacher.milestones",
        "[1/2, 1]",
        {"where": "option: teacher.milestones", "what": "fractions"},
    ),
    (
        "train.milestones",
        "[3/4, 1/2]",
        {"what": "different"},
    ),
    ("train.milestones", "[1/2, 1/2]", {"what": "different"}),
    ("prepare.dataset", "folder", {"what": "dataset"}),
    (
        "prepare.validation_fraction",
        "1",
        {"where": "option: prepare.validation_fraction", "found": "1"},
    ),
    ("evaluate.eps", "8", {"what": "linf"}),
    ("evaluate.eps_grid", "[0, 8]", {"where": "option: evaluate.eps_grid", "what": "linf"}),
    ("evaluate", "{norm: l2, eps: 128}", {"where": "option: evaluate.eps", "what": "radii"}),
    ("evaluate.eps_grid", "[-1]", {"where": "option: evaluate.eps_grid", "what": "radii"}),
    ("evaluate.eps_grid", "all", {"where": "option: evaluate.eps_grid", "what": "radii"}),
    ("evaluate.attacks", "[bim]", {"where": "option: evaluate.attacks", "what": "bim"}),
    ("evaluate.attacks", "fgsm,fgsm", {"where": "option: evaluate.attacks", "what": "attack"}),
    ("evaluate.norm", "l1", {"where": "option: evaluate.norm", "what": "linf", "found": "'l1'"}),
    ("seed", "-1", {"where": "option: seed", "what": "greater", "found": "-1"}),
    ("train.objective", "tardes", {"what": "trades", "found": "'tardes'"}),
    ("seed.deep", "1", {"what": "seed"}),
    ("train.eps", "[", {"what": "YAML", "found": "'['"}),
    ("train.epochs", "yes", {"where": "option: train.epochs", "what": "number", "found": "True"}),
    (
        "train.learning_rate",
        "on",
        {"where": "option: train.learning_rate", "what": "number", "found": "True"},
    ),
    ("train.eps", "off", {"where": "option: train.eps", "what": "number", "found": "False"}),
    (
        "evaluate.images",
        "no",
        {"where": "option: evaluate.images", "what": "number", "found": "False"},
    ),
    ("seed", "true", {"where": "option: seed", "what": "number", "found": "True"}),
    ("seed", "010", {"where": "seed", "what": "YAML", "found": "'010'"}),
    ("train.epochs", "-0_7", {"where": "train.epochs", "what": "YAML", "found": "'-0_7'"}),
    ("train.epochs", "1:30", {"where": "train.epochs", "what": "YAML", "found": "'1:30'"}),
    ("train.init", "''", {"where": "option: train.init", "what": "at least 1"}),
    ("train.teacher", "''", {"where": "option: train.teacher", "what": "at least 1"}),
]


@pytest.mark.parametrize(
    ("key", "value", "fields"), REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED]
)
def test_refused(key, value, fields):
    """Each error names the key's path, what is wrong, and what was found."""
    content = yaml.safe_load(MINIMAL) | {"seed": 0}
    with refused(ParamsError, **fields):
        parse_params(content, {key: value}, where="params.yaml")


def test_only_one_kind_of_crop():
    """Which of two crops would come first is not decided for the user."""
    with refused(ParamsError, where="option: train", what="crop_padding"):
        minimal(**{"train.crop_padding": "4", "train.crop_scale": "[0.25, 1]"})


def test_the_augmentation_is_the_parameters_together():
    """Three keys, one augmentation, as its text has it."""
    assert str(minimal().train.augmentation) == "none"
    changes = {"train.crop_scale": "[0.25, 1]", "train.flip": "true"}
    assert str(minimal(**changes).train.augmentation) == "resized-crop:0.25-1,flip"


def test_a_missing_eps_is_refused():
    """There is no default radius: leaving it out is an error that names it."""
    content = yaml.safe_load(MINIMAL)
    del content["evaluate"]["eps"]
    with refused(ParamsError, where="p.yaml: evaluate.eps", what="missing", remedy="Add"):
        parse_params(content, where="p.yaml")


def test_parameters_cannot_be_changed_afterwards():
    """A run's parameters are frozen."""
    with pytest.raises(ValueError, match="frozen"):
        minimal().train.eps = 0.5


@pytest.mark.parametrize("key", ["train.objective", "train.beta", "report.title", "seed"])
def test_an_override_sets_a_key_whether_or_not_it_is_in_the_file(key):
    """Also where its whole section is not."""
    content = yaml.safe_load(MINIMAL)
    value = {"train.objective": "trades", "report.title": "Mine"}.get(key, "3")
    first = parse_params(content, {key: value})
    assert parse_params(content, {key: value}) == first != parse_params(yaml.safe_load(MINIMAL))


DUPLICATES = {
    "section": ("a: 1\ntrain: {b: 1}\nc: 2\ntrain: {b: 2}\n", "p.yaml: line 4", "line 2"),
    "key": ("train:\n  eps: 1\n  eps: 2\n", "p.yaml: line 3", "line 2"),
    "in one line": ("train: {eps: 1, eps: 2}\n", "p.yaml: line 1", "line 1"),
    "quoted": ("seed: 1\n'seed': 1\n", "p.yaml: line 2", "line 1"),
}


@pytest.mark.parametrize("case", DUPLICATES)
def test_a_key_that_is_there_twice_is_refused(tmp_path, monkeypatch, case):
    """YAML's own reader takes the last one: half of a file would count for nothing."""
    monkeypatch.chdir(tmp_path)
    text, where, first = DUPLICATES[case]
    Path("p.yaml").write_text(text)
    with pytest.raises(ParamsError) as refusal:
        load_params(Path("p.yaml"))
    assert refusal.value.where == where
    assert refusal.value.found.endswith(first)


def test_equal_keys_of_different_sections_are_no_duplicates(tmp_path):
    """Nor is a key that a merge brings, which the section's own overrides."""
    path = tmp_path / "p.yaml"
    path.write_text("a: &a {eps: 1}\nb: {<<: *a, eps: 2}\n")
    assert read_yaml(path) == {"a": {"eps": 1}, "b": {"eps": 2}}


FILES = [
    ("", "sections"),
    ("[1, 2]", "sections"),
    ("a: [", "YAML"),
    ("\xff", "readable"),
    ("seed: 010", "decimal"),
]


@pytest.mark.parametrize(
    ("text", "message"), FILES, ids=["empty", "list", "broken", "latin1", "octal"]
)
def test_a_file_that_holds_no_parameters_is_refused(tmp_path, text, message):
    """What is not a YAML mapping is refused with its name."""
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("latin1"))
    with refused(ParamsError, where=path, what=message):
        load_params(path)


def test_a_file_that_is_not_there_is_named():
    """A missing file is a MissingError, which is a FileNotFoundError."""
    with refused(MissingError, where="nowhere.yaml", what="parameter"):
        load_params(Path("nowhere.yaml"))


ONE_CLASS = {
    "mart": {"train.objective": "mart"},
    "margin": {"train.attack_loss": "margin"},
    "likeliest": {"train.attack_label": "likeliest"},
    "adr": {"train.label_kind": "adr", "train.ema_decay": "0.9"},
    "rectified": {
        "train.label_kind": "live",
        "train.teacher": "a.safetensors",
        "train.rectify": "true",
    },
}


@pytest.mark.parametrize("case", ONE_CLASS)
def test_what_needs_one_true_class_is_not_mixed(case):
    """By CutMix or by Mixup: the objective or label that needs it is named."""
    minimal(**ONE_CLASS[case])
    for kind in ("cutmix", "mixup"):
        with refused(ParamsError, where="option: train", what="mixture"):
            minimal(**ONE_CLASS[case], **{f"train.{kind}_probability": "0.5"})


def test_mixtures_together_are_at_most_all_images():
    """And pairs need an even batch."""
    both = {"teacher.cutmix_probability": "0.7", "teacher.mixup_probability": "0.4"}
    with refused(ParamsError, where="option: teacher", what="cutmix_probability"):
        minimal(**both)
    with refused(ParamsError, where="option: teacher", what="batch_size"):
        minimal(**{"teacher.batch_size": "31", "teacher.mixup_probability": "1"})


def test_no_teacher_is_asked_about_small_images():
    """It was trained on the data's size, and its labels are of that."""
    asked = {"train.label_kind": "live", "train.teacher": "a.safetensors"}
    with refused(ParamsError, where="option: train", what="progressive_resize"):
        minimal(**asked, **{"train.progressive_resize": "[32, 64]"})


def numeric_fields():
    """Every field of every section that takes a number alone, also where null is allowed."""
    for section in (PrepareParams, TeacherParams, LabelParams, TrainParams, EvaluateParams):
        schema = section.model_json_schema()["properties"]
        for name, field in schema.items():
            kinds = {part.get("type") for part in [field, *field.get("anyOf", [])]}
            if kinds & {"number", "integer"} and not kinds & {"boolean"}:
                yield section, name


@pytest.mark.parametrize(
    ("section", "name"), [*numeric_fields()], ids=lambda value: getattr(value, "__name__", value)
)
def test_yes_is_no_number(section, name):
    """YAML's yes would be 1: in a field of its own, and in one that may be null."""
    with pytest.raises(ValidationError) as refusal:
        section.model_validate({name: True})
    assert (name,) in {error["loc"][:1] for error in refusal.value.errors()}
