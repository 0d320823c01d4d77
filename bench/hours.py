"""GPU hours that the recipes take, by calculation: no GPU has run them.

    python bench/hours.py      the table of docs/claims.md

Passes of one image are counted from a recipe; times the operations of its network's convolutions
and products; over a share of the peak rate that the data sheet of a GPU names. The unit is a
forward pass; a backward pass to the image counts as another one, one to the weights, too, as two.
"""

from __future__ import annotations

from typing import NamedTuple

import yaml
from stepping import forward_flops
from tables import table

from ltd_pipe.evaluation.robustness import CURVE_STEPS
from ltd_pipe.params import EvaluateParams, Params, TeacherParams, TrainParams
from ltd_pipe.params.file import parse_params, recipe_names, recipe_text
from ltd_pipe.params.sections import split_attack

# Peak operations per second of dense bfloat16 products, and of float32 without TF32.
PEAKS = {"H100": (989e12, 67e12), "A100": (312e12, 19.5e12)}
SHARES = (0.4, 0.2)
# Images to train on and to test on, classes and pixels a side; `folder` is ImageNet.
DATA = {
    "cifar10": (50_000, 10_000, 10, 32),
    "cifar100": (50_000, 10_000, 100, 32),
    "folder": (1_281_167, 50_000, 1000, 224),
}
# Share of the test images that stand: the published results that recipes are after, else a half.
STAND = {
    "cifar10-wrn34-10": 0.5694,
    "cifar10-wrn34-20": 0.5771,
    "cifar100-wrn34-10": 0.3059,
    "cifar10-resnet18-adr": 0.5086,
    "imagenet-wrn50-2": 0.4208,
}
# Of each image that stands, as counted in pyautoattack 0.2.0 with its own checks.
AUTOATTACK = {"apgd-ce": 212, "apgd-t": 1837, "fab-t": 2737, "square": 5012}


class Passes(NamedTuple):
    """Forward passes of one image, or as much as so many: in bfloat16, and in float32."""

    half: float = 0
    full: float = 0

    def plus(self, *others: Passes) -> Passes:
        """The sum."""
        return Passes(*map(sum, zip(self, *others, strict=True)))


def attacked(steps: int) -> int:
    """PGD with a gradient for each step, and the answer to what it found."""
    return 2 * steps + 1


def of_training(params: TeacherParams | TrainParams, images: int, held_out: int) -> Passes:
    """Of a run; `precision: auto` is taken to choose bfloat16, validation is always float32."""
    if isinstance(params, TeacherParams):
        return Passes(3 * params.epochs * images, params.epochs * held_out)
    # TRADES differentiates the clean and the attacked answer, and attacks away from a clean one.
    update, compared = {"at": (3, 0), "trades": (6, 1)}[params.objective]
    attacks = 2 * sum(params.steps_by_epoch)
    softened = params.label_kind == "adr"  # by the moving average's answer
    perturbed = (params.epochs - params.awp_from_epoch) * update if params.awp_gamma else 0
    validations = -(-params.epochs // params.validation_every)
    return Passes(
        images * (attacks + params.epochs * (compared + update + softened) + perturbed),
        held_out * validations * (1 + attacked(params.validation_attack_steps)),
    )


def of_evaluation(params: EvaluateParams, images: int, stand: float) -> Passes:
    """At most, of one model: gradient attacks on all images, and the rest on those that stand."""
    images = min(params.images or images, images)
    known = [split_attack(name)[1:] for name in params.attacks]
    gradient = sum(
        restarts * attacked(steps)
        for steps, restarts in [*known, (params.pgd_steps, params.pgd_restarts)]
    )
    first, *rest = AUTOATTACK.values() if params.autoattack == "standard" else (0,)
    radii = [] if params.eps_grid == "auto" else [eps for eps in params.eps_grid if eps]
    curve = min(params.eps_grid_images or images, images) * len(radii) * attacked(CURVE_STEPS)
    return Passes(full=images * (1 + gradient + first + stand * sum(rest)) + curve)


def stages(name: str, params: Params) -> list[tuple[int, list[Passes]]]:
    """Operations of a pass, and passes: teacher and labels; student, baseline, one evaluation."""
    trained, tested, classes, pixels = DATA[params.prepare.dataset]
    held_out = round(params.prepare.validation_fraction * trained)
    labels = Passes(full=trained * params.label.views)
    teacher = of_training(params.teacher, trained - held_out, held_out).plus(labels)
    runs = [
        of_training(params.train.model_copy(update=change), trained - held_out, held_out)
        for change in ({}, {"label_kind": "onehot"})
    ]
    runs.append(of_evaluation(params.evaluate, tested, STAND.get(name, 0.5)))
    sections = (params.teacher, [teacher]), (params.train, runs)
    return [(forward_flops(each.architecture, classes, pixels), done) for each, done in sections]


def hours(flops: int, passes: Passes, gpu: str) -> tuple[float, ...]:
    """At the larger and at the smaller share of the GPU's peaks."""
    half, full = PEAKS[gpu]
    seconds = flops * (passes.half / half + passes.full / full)
    return tuple(seconds / 3600 / share for share in SHARES)


def shown(hours: tuple[float, ...]) -> str:
    """To two digits; hundredths of an hour to one."""
    return " to ".join(f"{h:,.0f}" if h >= 10 else f"{h:.{1 + (h >= 0.1)}g}" for h in hours)


def hours_table() -> str:
    """A row for each recipe that wants a GPU."""
    rows = []
    for name in recipe_names():
        params = parse_params(yaml.safe_load(recipe_text(name)))
        if params.prepare.dataset == "digits" or name.endswith("-cpu"):
            continue
        (asked, [teacher]), (flops, [student, baseline, evaluation]) = stages(name, params)
        both = student.plus(baseline, evaluation, evaluation)
        totals = [
            tuple(map(sum, zip(hours(asked, teacher, gpu), hours(flops, both, gpu), strict=True)))
            for gpu in PEAKS
        ]
        parts = [(asked, teacher), (flops, student), (flops, evaluation)]
        cells = [shown(hours(*part, "H100")) for part in parts]
        rows.append([f"`{name}`", f"{flops / 1e9:.3g}", *cells, *map(shown, totals)])
    head = ["recipe", "GFLOP a pass", "teacher, labels", "student", "one evaluation"]
    return table([*head, "`dvc repro`, H100", "A100"], rows)


if __name__ == "__main__":
    print(hours_table())
