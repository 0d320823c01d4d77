"""Parameters are validated once, with the key's path in the error."""

from pathlib import Path

import pytest
import yaml

from ltd_pipe.errors import MissingError, ParamsError
from ltd_pipe.params import load_params, parse_params, read_yaml

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


def test_auto_temperature_gives_its_target():
    """`auto:0.9` asks for a mean top probability of 0.9; a number asks for none."""
    assert minimal(**{"label.temperature": "auto:0.9"}).label.target_top_probability() == 0.9
    assert minimal().label.target_top_probability() is None


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
    ("train.eps", "1.5", r"option: train.eps: radii of linf are at most 1"),
    (
        "train.eps",
        "8",
        r"train.eps: radii of linf are at most 1, .* found 8; perhaps 8/255 is meant",
    ),
    ("train.eps", "0", "train.eps: input should be greater than 0"),
    ("train.eps", "8/0", "train.eps: '8/0' is not a number or a fraction"),
    ("train.eps", "null", "train.eps: input should be a valid number"),
    ("train.epoch", "3", "train.epoch: unknown key. Did you mean 'epochs'?"),
    ("trian.eps", "3", "trian: unknown key. Did you mean 'train'?"),
    ("train.zzz", "3", "train.zzz: unknown key. Remove it."),
    ("label.temperature", "0", "label: temperature must be above 0, found 0"),
    ("label.temperature", "-1", "label: temperature must be above 0"),
    ("label.temperature", ".nan", "label.temperature"),
    ("label.temperature", "auto:1.5", r"auto:P with P in \(0, 1\), found 'auto:1.5'"),
    ("label.temperature", "warm", r"auto:P with P in \(0, 1\), found 'warm'"),
    ("label.views", "0", "label.views: input should be greater than or equal to 1"),
    ("label.views", "3", "label: 3 views without an augmentation would all be the same"),
    ("label.augmentation", "crop", "label: expected 'none', or in this order .* found 'crop'"),
    ("label.augmentation", "null", "label.augmentation: input should be a valid string"),
    ("label.augmentation", "crop:04", "label: 'crop:04' is written 'crop:4'"),
    ("label.seed", "-1", "label.seed: input should be greater"),
    ("train.temperature", "0", "train.temperature: input should be greater than 0"),
    ("train.crop_scale", "[0, 1]", "train: crop_scale: expected shares of the area"),
    ("train.crop_scale", "[0.5]", "train.crop_scale"),
    ("train.crop_scale", "0.5", "train.crop_scale"),
    ("train.crop_padding", "-1", "train.crop_padding: input should be greater"),
    ("train.crop_padding", "2000", "train: crop_padding: expected 0 to 1024"),
    ("train.policy", "randaugment", "train: policy: expected trivialaugment, randaugment:N-M"),
    ("train.cutout", "2000", "train: cutout: expected 0 to 1024"),
    ("train.cutmix_probability", "2", "train.cutmix_probability: input should be less than"),
    ("train.mixup_alpha", "0", "train: mixup_alpha: expected 0.01 to 100, found 0"),
    ("train.progressive_resize", "[100, 224]", "train: progressive_resize: expected two multiples"),
    ("train.progressive_resize", "128", "train.progressive_resize"),
    (
        "train.label_smoothing",
        "0.1",
        (
            "train: label_smoothing: is the teacher's alone: remove it, or set label_kind: smooth, "
            "smoothing: 0.1"
        ),
    ),
    (
        "train.milestones",
        "[100, 150]",
        (
            r"train.milestones: expected fractions of the run, above 0 and below 1, "
            r"found \[100, 150\]; perhaps \[100/200, 150/200\] is meant"
        ),
    ),
    (
        "train",
        "{architecture: x, epochs: 160, eps: 0.1, milestones: [100, 150]}",
        r"perhaps \[100/160, 150/160\] is meant",
    ),
    ("teacher.milestones", "[0, 1/2]", "teacher.milestones: expected fractions of the run"),
    ("teacher.milestones", "[1/2, 1]", "teacher.milestones: expected fractions of the run"),
    (
        "train.milestones",
        "[3/4, 1/2]",
        r"expected different numbers in ascending order, found \[0.75, 0.5\]",
    ),
    ("train.milestones", "[1/2, 1/2]", "expected different numbers in ascending order"),
    ("prepare.dataset", "folder", "dataset 'folder' needs prepare.path"),
    ("prepare.validation_fraction", "1", "prepare.validation_fraction"),
    ("evaluate.eps", "8", "radii of linf are at most 1, .* found 8; perhaps 8/255 is meant"),
    ("evaluate.eps_grid", "[0, 8]", "evaluate: radii of linf are at most 1"),
    ("evaluate", "{norm: l2, eps: 128}", "evaluate: radii of l2 are at most 20, .* found 128"),
    ("evaluate.eps_grid", "[-1]", r"evaluate.eps_grid: expected auto, or radii .*found \[-1\]"),
    ("evaluate.eps_grid", "all", "evaluate.eps_grid: expected auto, or radii"),
    ("evaluate.attacks", "[bim]", "evaluate.attacks: expected 'fgsm', 'pgd-20', .* found 'bim'"),
    ("evaluate.attacks", "fgsm,fgsm", "evaluate.attacks: an attack is named twice"),
    ("evaluate.norm", "l1", "evaluate.norm: input should be 'linf' or 'l2'"),
    ("seed", "-1", "seed: input should be greater than or equal to 0"),
    ("train.objective", "tardes", "input should be 'at', 'trades', .* or 'exits': found 'tardes'"),
    ("seed.deep", "1", "'seed' is a value, not a section"),
    ("train.eps", "[", "is not readable as YAML"),
    ("train.epochs", "yes", "train.epochs: should be a number, not yes, no, on or off: found True"),
    ("train.learning_rate", "on", "train.learning_rate: should be a number"),
    ("train.eps", "off", "train.eps: should be a number, .* found False"),
    ("evaluate.images", "no", "evaluate.images: should be a number, .* found False"),
    ("seed", "true", "seed: should be a number, .* found True"),
    ("seed", "010", "seed: is not readable as YAML .*'010' .* found '010'"),
    ("train.epochs", "-0_7", "train.epochs: is not readable as YAML"),
    ("train.epochs", "1:30", "train.epochs: is not readable as YAML .*'1:30'"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"), REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED]
)
def test_refused(key, value, message):
    """Each error names the key's path, what is wrong, and what was found."""
    content = yaml.safe_load(MINIMAL) | {"seed": 0}
    with pytest.raises(ParamsError, match=message):
        parse_params(content, {key: value}, where="params.yaml")


def test_only_one_kind_of_crop():
    """Which of two crops would come first is not decided for the user."""
    with pytest.raises(ParamsError, match=r"train: crop_padding and crop_scale are two kinds"):
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
    with pytest.raises(ParamsError, match=r"p.yaml: evaluate.eps: is missing. Add it."):
        parse_params(content, where="p.yaml")


def test_parameters_cannot_be_changed_afterwards():
    """A run's parameters are frozen."""
    with pytest.raises(ValueError, match="frozen"):
        minimal().train.eps = 0.5


def test_as_many_pictures_are_kept_as_an_older_file_shows():
    """Their number was report.examples alone; evaluate's own goes first."""
    assert minimal().evaluate.examples == 8
    assert minimal(**{"report.examples": "3"}).evaluate.examples == 3
    both = {"report.examples": "3", "evaluate.examples": "5"}
    assert minimal(**both).evaluate.examples == 5


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
    ("", "expected sections"),
    ("[1, 2]", "expected sections"),
    ("a: [", "is not readable as YAML"),
    ("\xff", "expected sections|not readable"),
    ("seed: 010", "'010' is another number .* line 1"),
]


@pytest.mark.parametrize(
    ("text", "message"), FILES, ids=["empty", "list", "broken", "latin1", "octal"]
)
def test_a_file_that_holds_no_parameters_is_refused(tmp_path, text, message):
    """What is not a YAML mapping is refused with its name."""
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ParamsError, match=message):
        load_params(path)


def test_a_file_that_is_not_there_is_named():
    """A missing file is a MissingError, which is a FileNotFoundError."""
    with pytest.raises(MissingError, match="nowhere.yaml: no such parameter file"):
        load_params(Path("nowhere.yaml"))


ONE_CLASS = {
    "mart": {"train.objective": "mart"},
    "margin": {"train.attack_loss": "margin"},
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
        with pytest.raises(ParamsError, match="one true class, which a mixture has not"):
            minimal(**ONE_CLASS[case], **{f"train.{kind}_probability": "0.5"})


def test_mixtures_together_are_at_most_all_images():
    """And pairs need an even batch."""
    both = {"teacher.cutmix_probability": "0.7", "teacher.mixup_probability": "0.4"}
    with pytest.raises(ParamsError, match=r"teacher: cutmix_probability and mixup_probability: .*"):
        minimal(**both)
    with pytest.raises(ParamsError, match="teacher: batch_size: cutmix and mixup take pairs"):
        minimal(**{"teacher.batch_size": "31", "teacher.mixup_probability": "1"})


def test_no_teacher_is_asked_about_small_images():
    """It was trained on the data's size, and its labels are of that."""
    asked = {"train.label_kind": "live", "train.teacher": "a.safetensors"}
    with pytest.raises(ParamsError, match="progressive_resize: a teacher in the run"):
        minimal(**asked, **{"train.progressive_resize": "[32, 64]"})
