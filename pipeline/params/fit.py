"""Parameters of the teacher's and the student's training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from ltd_pipe.images.augmentation import PAIR, Augmentation, Sizes
from ltd_pipe.params.sections import FileName, Number, PixelLength, Positive, Probability, Section


def _as_word(value: Any) -> Any:
    # YAML reads off, unquoted, as false.
    return "off" if value is False else value


_LEAST_AVERAGED = 2
_ROUNDING = 1e-9
# Of pixels in [0, 1] no mean or deviation is above 1; but a std of 2 is somebody's own choice.
_UNIT = 4.0


def meant_in_unit(values: Sequence[float]) -> str:
    """What means or deviations of pixels in 0…255 are of those in [0, 1]; else nothing."""
    if max(values, default=0.0) <= _UNIT:
        return ""
    return ",".join(f"{value / 255:.3g}" for value in values)


def _are_of_unit_pixels(values: tuple[float, ...]) -> tuple[float, ...]:
    if meant := meant_in_unit(values):
        raise ValueError(f"expected values for pixels in [0, 1]; perhaps [{meant}] is meant")
    return values


PixelConstants = Annotated[tuple[Number, ...], AfterValidator(_are_of_unit_pixels)]


def _ascends(values: Sequence[float]) -> bool:
    return list(values) == sorted({*values})


def _are_fractions(values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
    found = ", ".join(f"{value:g}" for value in values)
    if not _ascends(values):
        raise ValueError(f"expected different numbers in ascending order, found [{found}]")
    if values and not 0 < values[0] <= values[-1] < 1:
        epochs = info.data.get("epochs", 0)
        of = epochs if values[0] > 0 and values[-1] < epochs else 200
        meant = ", ".join(f"{value:g}/{of}" for value in values)
        raise ValueError(
            f"expected fractions of the run, above 0 and below 1, found [{found}]; "
            f"perhaps [{meant}] is meant"
        )
    return values


Milestones = Annotated[tuple[Number, ...], AfterValidator(_are_fractions)]


class FitParams(Section):
    """What clean and adversarial training have in common."""

    architecture: str
    """a name of 'ltd-pipe doctor --models', timm:NAME or torchvision:NAME; on the command line also
    FILE.py:FUNCTION"""
    epochs: int = Field(ge=1)
    """passes over the training images"""
    images: int | None = Field(None, ge=1)
    """train on so many of them, chosen at random; null: all"""
    batch_size: int = Field(128, ge=1)
    """images per step"""
    learning_rate: Number = Field(0.1, gt=0)
    """peak learning rate of SGD"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """momentum of SGD"""
    nesterov: bool = False
    """Nesterov's form of momentum"""
    weight_decay: Number = Field(5e-4, ge=0)
    """L2 penalty on all weights"""
    decay_norms: bool = True
    """weight decay on scales, shifts and biases too, as published robust training has it"""
    clip_norm: Number | None = Field(None, gt=0)
    """longest gradient, as the norm over all weights; null: any"""
    accumulation_steps: int = Field(1, ge=1)
    """parts of a batch that are passed one after the other, for less memory; batch statistics are
    those of a part"""
    sync_batch_norm: bool = True
    """on several processes, batch statistics over all of them, so that their number changes
    nothing; false: each process its own"""
    schedule: Literal["one-cycle", "cosine", "step", "constant"] = "one-cycle"
    """one-cycle: linear up and down; cosine: half a wave down; step: times 0.1 at milestones"""
    warmup_fraction: float | None = Field(None, ge=0, le=1)
    """share of the steps over which the rate rises; null: 0.25 for one-cycle, else 0"""
    milestones: Milestones = (0.5, 0.75)
    """step: where the rate falls, as fractions of the run"""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """decay per step of the weights' moving average; 0: none"""
    swa_from: Probability | None = None
    """average the weights at the ends of epochs from this fraction of the run on, with schedule
    constant, cosine or step; null: no such average"""
    crop_padding: int = Field(0, ge=0)
    """random crop after padding by these pixels, for small images"""
    crop_scale: tuple[Number, Number] | None = None
    """random crop of least to most of the area, such as [0.25, 1], enlarged to the image's size,
    for large images; null: none"""
    flip: bool = False
    """random horizontal flip"""
    policy: str | None = None
    """trivialaugment, randaugment:N-M (N operations of magnitude M of 30), or autoaugment:cifar10,
    :imagenet or :svhn; null: none"""
    cutout: int = Field(0, ge=0)
    """side of a grey square, in pixels, anywhere; 0: none"""
    cutmix_probability: Probability = 0.0
    """share of the images that get a rectangle of another one, and its label"""
    cutmix_alpha: Number = Field(1.0, ge=0.01, le=100)
    """of the Beta distribution of the rectangle's share; 1: any as likely"""
    mixup_probability: Probability = 0.0
    """share of the images that are averaged with another one, with its label"""
    mixup_alpha: Number = Field(0.2, ge=0.01, le=100)
    """of the Beta distribution of the weight; small: near 0 and 1"""
    progressive_resize: tuple[int, int] | None = None
    """sides of the training images in the first and in the last epochs, such as [128, 224]:
    multiples of 32; null: as they are"""
    progressive_between: tuple[Number, Number] = (0.0, 0.75)
    """fractions of the run between which progressive_resize grows from one to the other"""
    mean: PixelConstants | None = None
    """per channel, subtracted from pixels in [0, 1] inside the model; null: 0"""
    std: PixelConstants | None = None
    """per channel, divides them likewise; null: 1"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where a short measurement finds it faster; float16 scales its gradients"""
    channels_last: bool | Literal["auto"] = True
    """memory format of images and weights; auto: as measured"""
    compile: Literal["auto", "none", "default", "reduce-overhead"] = "none"
    """torch.compile's mode; reduce-overhead replays the passes as CUDA graphs; auto: as measured on
    a GPU, none on a CPU"""
    snapshot_minutes: float = Field(5.0, ge=0)
    """minutes between snapshots to resume from; also at each epoch's end"""

    snapshot_steps: int = Field(0, ge=0)
    """steps between snapshots; 0: only by time, and at each epoch's end"""

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.ema_decay and self.swa_from is not None:
            yield "ema_decay and swa_from are two averages of the weights: choose one"
        if self.nesterov and not self.momentum:
            yield "nesterov: is a form of momentum, found momentum 0: set it to false"
        if self.swa_epoch is not None and self.schedule == "one-cycle":
            yield (
                "swa_from: expected schedule constant, cosine or step, found one-cycle: set "
                "schedule, or ema_decay instead of swa_from"
            )
        averaged = self.epochs - (self.swa_epoch or 0)
        if self.swa_epoch is not None and averaged < _LEAST_AVERAGED:
            yield (
                f"swa_from: expected the ends of two epochs or more to average, found {averaged} "
                f"of {self.epochs}: lower swa_from"
            )
        # Making them is the check.
        _ = self.augmentation, self.sizes
        shares = self.cutmix_probability, self.mixup_probability
        if sum(shares) > 1:
            yield (
                "cutmix_probability and mixup_probability: expected shares of the images that are "
                f"together at most 1, found {shares[0]:g} and {shares[1]:g}"
            )
        if self.batch_size % self.unit:
            yield f"batch_size: cutmix and mixup take pairs of images, found {self.batch_size}"

    def _uses(self) -> Iterator[tuple[str, tuple[str, ...], bool]]:
        yield "schedule step", ("milestones",), self.schedule == "step"
        yield "weight_decay above 0", ("decay_norms",), self.weight_decay > 0
        yield "cutmix_probability above 0", ("cutmix_alpha",), self.cutmix_probability > 0
        yield "mixup_probability above 0", ("mixup_alpha",), self.mixup_probability > 0
        resizes = self.progressive_resize is not None
        yield "progressive_resize", ("progressive_between",), resizes

    @property
    def swa_epoch(self) -> int | None:
        """The first epoch, from 0, whose end lies behind `swa_from`; None: no such average."""
        if self.swa_from is None:
            return None
        # 0.29 of 100 is less than 29 in binary.
        return math.floor(self.swa_from * self.epochs + _ROUNDING)

    @property
    def augmentation(self) -> Augmentation:
        """What is done to the training images at random."""
        return Augmentation(self.crop_padding, self.flip, self.crop_scale, self.policy, self.cutout)

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with each other."""
        return self.cutmix_probability + self.mixup_probability > 0

    @property
    def unit(self) -> int:
        """How many neighbouring images go to one process together: the pairs that are mixed."""
        return PAIR if self.mixes else 1

    @property
    def sizes(self) -> Sizes | None:
        """Sizes of the training images by epoch; None: as they are."""
        if self.progressive_resize is None:
            return None
        return Sizes(*self.progressive_resize, *self.progressive_between, self.epochs)


class TeacherParams(FitParams):
    """The teacher: trained on clean images, or given."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """mass moved from the true class to all classes evenly"""
    checkpoint: FileName | None = None
    """use these weights instead of training; null: train"""
    classes: FileName | None = None
    """checkpoint of another project: file of its class names in the order of its outputs, one per
    line or JSON; null: class_order says"""
    class_order: Literal["lexical", "natural"] | None = None
    """checkpoint of another project: how its classes are sorted, lexical (1, 10, 2) or natural (1,
    2, 10); null: as the data's"""

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        for name in ("classes", "class_order"):
            if getattr(self, name) is not None and self.checkpoint is None:
                yield f"{name}: is of a checkpoint, and none is given: remove it"
        if self.classes is not None and self.class_order is not None:
            yield "class_order: classes says the order already: set it to null"


def _attack_steps(value: Any) -> Any:
    """A number from 1, or `2..10`, which a shell and DVC's -S take as it is."""
    try:
        numbers = [int(part) for part in re.split(r"\.\.|→|->", str(value))]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not _ascends([0, *numbers]):
        raise ValueError(
            "expected a whole number from 1, or 2..10 (also 2→10) where they grow over the epochs, "
            f"found {value!r}"
        )
    return "..".join(map(str, numbers)) if numbers[1:] else numbers[0]


class TrainParams(FitParams):
    """The student: adversarial training on one-hot, smoothed or the teacher's soft labels.

    First objective, labels and teacher, see docs/training.md; then the threat model, and how
    training looks for the worst image in it.
    """

    objective: Literal["at", "trades", "mart", "rslad", "ard", "adaad", "mtard", "exits"] = "at"
    """at: Madry et al. 2018; trades: Zhang et al. 2019; mart: Wang et al. 2020; rslad: Zi et al.
    2021; ard: Goldblum et al. 2020; adaad: Huang et al. 2023; mtard: Zhao et al. 2024; exits:
    networks with several exits; see docs/training.md"""
    beta: Number = Field(6.0, ge=0)
    """trades, mart: weight of the KL term"""
    robust_weight: Probability | None = None
    """rslad, ard, adaad: weight of the term on attacked images, the rest is that of clean ones;
    null: the authors', 5/6, 1 and 1"""
    awp_gamma: Number = Field(0.0, ge=0, lt=1)
    """adversarial weight perturbation, relative to each weight's norm: 0.005 for trades and mart,
    0.01 for at (Wu et al. 2020); 0: none"""
    awp_from_epoch: int = Field(10, ge=0)
    """so many epochs are trained without, before the first that has it"""
    igdm_weight: Number = Field(0.0, ge=0)
    """weight, at the end, of matching the teacher's change from x - δ to x + δ (Lee et al. 2025,
    whose CIFAR-100 script has 20); needs teacher; 0: none"""
    attack_label: Literal["truth", "target", "likeliest"] = "truth"
    """at: the attack maximises the loss of the ground truth, of the target, or of the class that
    the target finds likeliest, which is for labels that may be wrong"""
    exits: tuple[int, ...] | None = None
    """exits: which are trained, such as [1, 3], counted from 1, the network's own among them; null:
    all"""
    attacked_exits: Literal["last", "average", "max-average"] = "max-average"
    """exits: the attack maximises the last one's loss, their mean, or is for each image the worst
    on average of one attack for each exit"""
    label_kind: Literal["onehot", "smooth", "ltd", "live", "adr"] = "ltd"
    """onehot; smooth (see smoothing); ltd: from the store; live: by the teacher in the run; adr: by
    the student's own moving average (Wu et al. 2024)"""
    smoothing: Number = Field(0.1, ge=0, lt=1)
    """smooth: mass moved from the true class to all evenly"""
    soft_weight: Probability = 1.0
    """ltd, live: weight of the soft label; the rest is one-hot"""
    rectify: bool = False
    """ltd, live: lower soft_weight per sample by max q - q[true], where the teacher contradicts the
    ground truth (ADR)"""
    label_temperature: Number | None = Field(None, gt=0)
    """ltd: read the store's logits at this temperature; null: the soft labels as they are stored"""
    teacher: FileName | None = None
    """checkpoint of a teacher that is asked in the run, for adaad, mtard, igdm_weight and
    label_kind live; null: none"""
    teacher_temperature: Number = Field(1.0, gt=0)
    """divides that teacher's logits, in place of the one it was trained at"""
    adr_temperatures: tuple[Positive, Positive] = (2.5, 2.0)
    """adr: of the average's answers, from first to last step by cosine"""
    adr_weights: tuple[Probability, Probability] = (0.7, 0.95)
    """adr: of the average's answers, likewise; the rest is one-hot"""

    norm: Literal["linf", "l2"] = "linf"
    """threat model: linf moves no pixel by more than eps, l2 bounds the Euclidean norm over all
    pixels of an image"""
    eps: PixelLength
    """radius of the ball in pixel units, images in [0, 1]: such as 8/255 for linf, 128/255 for l2
    """
    attack: Literal["pgd", "n-fgsm", "fgsm-rs"] = "pgd"
    """pgd: Madry et al. 2018; of one step, several times faster: n-fgsm (de Jorge et al. 2022), or
    fgsm-rs (Wong et al. 2020), which collapses more easily"""
    step_size: PixelLength | None = None
    """length of a step in the norm, in pixel units; null: 2.5 eps / attack_steps (the last
    epoch's) for pgd, from attack_start previous eps / attack_steps, eps for n-fgsm, 1.25 eps for
    fgsm-rs"""
    attack_steps: Annotated[int | str, BeforeValidator(_attack_steps)] | None = None
    """gradient steps in training; 2..10 grows linearly over the epochs, from 2 in the first to 10
    in the last; null: 10 for pgd, 1 for the others and for attack_start previous"""
    attack_start: Literal["uniform", "normal", "none", "previous"] | None = None
    """pgd: begins at a random point of the ball, 0.001 N(0, 1) away, at the image, or where the
    attack of the epoch before ended (ATTA, Zheng et al. 2020), so that one step is enough; null:
    where the objective's authors do"""
    attack_loss: Literal["ce", "kl", "margin"] | None = None
    """what the attack maximises: ce, the truth's cross entropy; kl, the divergence from the clean
    answer; margin, the largest wrong logit less the true one; null: the objective's own"""
    attack_noise: Number = Field(2.0, ge=0)
    """n-fgsm: its noise is uniform within so many times eps"""
    eps_warmup_epochs: Number = Field(0.0, ge=0)
    """eps and step_size grow from 0 over these epochs of training"""
    validation_attack_steps: int = Field(10, ge=1)
    """PGD steps, of 2.5 eps / steps each, when choosing the best checkpoint"""
    overfitting_alarm: Annotated[Literal["stop", "warn", "off"], BeforeValidator(_as_word)] = "stop"
    """when robust accuracy in validation collapses while the training attack finds ever less
    (catastrophic overfitting): stop keeps the best checkpoint and ends, warn goes on, off does not
    look"""

    temperature: Number = Field(1.0, gt=0)
    """the student's own, part of the model, in training and inference"""
    init: FileName | None = None
    """checkpoint whose weights training begins with, of the same network on the same classes, such
    as the clean teacher's data/teacher/model.safetensors (AET, arXiv 2506.15685); null: drawn from
    the seed"""
    allow_poor_labels: bool = False
    """train on a store's labels that are as good as uniform, or mostly contradict the ground truth
    """
    any_size: bool = False
    """take a store's labels of images of another size than the teacher saw"""
    validation_every: int = Field(1, ge=1)
    """epochs between validations"""

    @property
    def distillation_temperature(self) -> float | None:
        """What divided the logits of the soft labels; None: only the store knows."""
        return self.teacher_temperature if self.label_kind == "live" else self.label_temperature

    @property
    def learns_from_labels(self) -> bool:
        """Whether labels are part of the loss: AdaAD's are that of its clean term alone."""
        return self.objective != "adaad" or self.robust_weight not in (None, 1.0)

    @property
    def reads_store(self) -> bool:
        """Whether the run needs a store's labels."""
        return self.label_kind == "ltd" and self.learns_from_labels

    @property
    def asks_teacher(self) -> bool:
        """Whether the run asks a teacher."""
        asked = self.objective in ("adaad", "mtard") or self.label_kind == "live"
        return asked or self.igdm_weight > 0

    @property
    def begins_at_the_image(self) -> bool:
        """Whether the attack's first gradient is the clean image's."""
        return self.attack_start == "none" or (self.attack == "n-fgsm" and not self.attack_noise)

    @property
    def steps(self) -> int | str:
        """Gradient steps in training, `2..10` where they grow."""
        many = self.attack == "pgd" and self.attack_start != "previous"
        return self.attack_steps or (10 if many else 1)

    @property
    def steps_by_epoch(self) -> tuple[int, ...]:
        """Gradient steps in training in each epoch."""
        ends = [int(part) for part in str(self.steps).split("..")]
        grown, spans = ends[-1] - ends[0], max(self.epochs - 1, 1)
        return tuple(ends[0] + round(grown * epoch / spans) for epoch in range(self.epochs))

    @property
    def step(self) -> float:
        """Length of a training attack's step in the norm, pixel units."""
        pgd = (1.0 if self.attack_start == "previous" else 2.5) / self.steps_by_epoch[-1]
        factor = {"pgd": pgd, "n-fgsm": 1.0, "fgsm-rs": 1.25}[self.attack]
        return factor * self.eps if self.step_size is None else self.step_size

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.asks_teacher and self.teacher is None:
            yield (
                "adaad, mtard, igdm_weight and label_kind live ask a teacher: set teacher to its "
                "checkpoint"
            )
        yield from self._conflicts_of_labels()
        if self.exits is not None and (not self.exits or not _ascends(self.exits)):
            yield "exits must be different numbers in ascending order"
        if self.objective == "exits" and self.compile != "none":
            yield (
                f"compile: {self.compile} does not reach a network's exits, which objective exits "
                "asks for one by one: set compile: none"
            )
        if self.awp_gamma and self.awp_from_epoch >= self.epochs:
            yield (
                f"awp_from_epoch: expected less than epochs, {self.epochs}, found "
                f"{self.awp_from_epoch}: no epoch would have awp_gamma; lower it, or set "
                "awp_gamma: 0"
            )
        if self.precision == "float16" and self.awp_gamma:
            # An overflow, which float16's scaling expects, would stay in the weights.
            yield "awp_gamma needs precision bfloat16 or float32, not float16"
        if self.progressive_resize and (self.asks_teacher or self.label_kind == "adr"):
            yield (
                "progressive_resize: a teacher in the run (or the average of adr) is not asked "
                "about images of other sizes than the data's: take labels from a store"
            )
        if self.attack != "pgd":
            yield from self._conflicts_of_one_step()
        yield from self._conflicts_of_attack()
        if self.mixes:
            yield from self._conflicts_of_mixtures()

    def _uses(self) -> Iterator[tuple[str, tuple[str, ...], bool]]:
        yield from super()._uses()
        objective, kind = self.objective, self.label_kind
        yield "objective trades or mart", ("beta",), objective in ("trades", "mart")
        weighs = objective in ("rslad", "ard", "adaad")
        yield "objective rslad, ard or adaad", ("robust_weight",), weighs
        yield "objective exits", ("exits",), objective == "exits"
        own_attack = objective == "exits" and self.attack_loss is None
        yield "objective exits without attack_loss", ("attacked_exits",), own_attack
        yield "awp_gamma above 0", ("awp_from_epoch",), self.awp_gamma > 0
        if self.learns_from_labels:
            soft, own = kind in ("ltd", "live"), kind == "adr"
            yield "label_kind smooth", ("smoothing",), kind == "smooth"
            yield "label_kind ltd or live", ("soft_weight", "rectify"), soft
            yield "label_kind adr", ("adr_temperatures", "adr_weights"), own
        else:
            of_labels = "label_temperature", "soft_weight", "rectify", "smoothing"
            names = *of_labels, "adr_temperatures", "adr_weights"
            yield "labels in the loss: adaad with a robust_weight below 1", names, False
        asks = "objective adaad or mtard, label_kind live, or igdm_weight above 0"
        yield asks, ("teacher", "teacher_temperature"), self.asks_teacher
        yield "attack n-fgsm", ("attack_noise",), self.attack == "n-fgsm"
        if self.attack_label == "target":
            yield "labels other than the given ones", ("attack_label",), kind != "onehot"
        elif self.attack_label == "likeliest":
            # Rectified labels, ADR's, and those that are half the truth are likeliest the truth.
            free = kind in ("ltd", "live") and self.soft_weight > 0.5 and not self.rectify
            needs = "label_kind ltd or live, soft_weight above 0.5 and no rectify"
            yield f"{needs}, or the truth is likeliest", ("attack_label",), free

    def _conflicts_of_labels(self) -> Iterator[str]:
        if self.objective == "ard" and self.label_kind not in ("ltd", "live"):
            yield "ard distils a teacher's labels: set label_kind to ltd or live"
        if self.objective == "ard" and self.distillation_temperature is None:
            yield "ard softens the student as its labels were: set label_temperature"
        # It moves the temperatures of both teachers itself, from 1 on.
        plain = self.label_kind == "ltd" and self.label_temperature == 1 and not self.rectify
        plain = plain and self.soft_weight == 1 and self.teacher_temperature == 1
        if self.objective == "mtard" and not plain:
            yield (
                "mtard softens both teachers itself: set label_kind: ltd, label_temperature: 1, "
                "soft_weight: 1, rectify: false and teacher_temperature: 1"
            )
        if self.label_temperature is not None and self.label_kind != "ltd":
            instead = "; the teacher's is teacher_temperature" if self.label_kind == "live" else ""
            yield (
                f"label_temperature is that of a store, for label_kind ltd, found "
                f"{self.label_kind}: set label_temperature: null{instead}"
            )
        if self.label_kind == "adr" and not self.ema_decay:
            yield "label_kind adr learns from the weights' moving average: set ema_decay"

    def _conflicts_of_attack(self) -> Iterator[str]:
        if self.attack_loss == "kl" and self.begins_at_the_image:
            yield "attack_loss: kl has no gradient at the image, where this one begins"
        if self.objective == "trades" and not self.attack_loss and self.begins_at_the_image:
            yield (
                "attack_start: the attack_loss of trades has no gradient at the image; leave it "
                "null, or choose another attack_loss"
            )
        if self.attack_label != "truth" and self.objective != "at":
            yield (
                f"attack_label: {self.attack_label} is for objective at, found {self.objective}, "
                "whose attack_loss is its own: set attack_label: truth"
            )
        if self.attack_label != "truth" and self.attack_loss is not None:
            yield (
                f"attack_label: {self.attack_label} has no part in attack_loss {self.attack_loss}: "
                "set attack_loss: null, or attack_label: truth"
            )
        if self.attack_start == "previous":
            yield from self._conflicts_of_carried()
        if self.epochs == 1 and isinstance(self.steps, str):
            yield (
                f"attack_steps: {self.steps} grow over the epochs, found 1 epoch: give one number, "
                "or raise epochs"
            )
        if self.eps_warmup_epochs >= self.epochs:
            yield (
                f"eps_warmup_epochs: expected less than epochs, {self.epochs}, found "
                f"{self.eps_warmup_epochs:g}: eps would never be reached; lower it"
            )

    def _conflicts_of_carried(self) -> Iterator[str]:
        if self.epochs == 1:
            yield (
                "attack_start: previous goes on from the epoch before, found 1 epoch: set "
                "attack_start: null, or raise epochs"
            )
        moved_otherwise = {
            "norm l2": self.norm == "l2",
            "crop_scale": self.crop_scale is not None,
            "policy": self.policy is not None,
            "cutmix or mixup": self.mixes,
            "progressive_resize": self.progressive_resize is not None,
        }
        for what, asked in moved_otherwise.items():
            if asked:
                yield (
                    "attack_start: previous carries linf's perturbations through crop_padding and "
                    f"flip, not with {what}: set attack_start: null"
                )

    def _conflicts_of_one_step(self) -> Iterator[str]:
        # As they are given for PGD.
        wrong = {"attack_steps": self.steps} if self.steps != 1 else {}
        if self.step < self.eps:
            wrong["step_size"] = f"{self.step:g}"
        if wrong:
            found = ", ".join(f"{name} {value}" for name, value in wrong.items())
            yield (
                f"attack: {self.attack} takes 1 step, of eps or more: found {found}: set "
                f"{' and '.join(wrong)} to null"
            )
        if self.attack_start is not None:
            yield f"attack_start: {self.attack} begins where it begins; leave it null"
        if self.attack == "n-fgsm" and self.norm != "linf":
            yield "attack: n-fgsm is defined for norm linf"

    def _conflicts_of_mixtures(self) -> Iterator[str]:
        if self.objective == "mtard":
            yield (
                "objective mtard softens a teacher's answers anew, which those of a mixture's two "
                "images together are not: set cutmix_probability and mixup_probability to 0"
            )
        one_class = {
            "objective mart": self.objective == "mart",
            "attack_loss margin": self.attack_loss == "margin",
            "attack_label likeliest": self.attack_label == "likeliest",
            "label_kind adr": self.label_kind == "adr",
            "label_kind live with soft_weight below 1 or rectify": self.label_kind == "live"
            and (self.soft_weight < 1 or self.rectify),
        }
        for what, asked in one_class.items():
            if asked:
                yield (
                    f"{what} is defined by an image's one true class, which a mixture has not: "
                    "set cutmix_probability and mixup_probability to 0"
                )
