"""Examples whose targets are a store's soft labels: of the sample, or of the very view."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.nn import functional

from ltd_pipe.background import Background
from ltd_pipe.errors import JoinError, ParamsError
from ltd_pipe.images.augment import augment, mix, resized
from ltd_pipe.labels.dataset import LabelsOnDevice, Replay
from ltd_pipe.models.checkpoint import load_classifier
from ltd_pipe.provenance import sha256_file

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from ltd_pipe.images.augmentation import Augmentation, Mixing, Sizes
    from ltd_pipe.images.manifest import Manifest
    from ltd_pipe.images.stream import Batch
    from ltd_pipe.labels.reader import SoftLabels
    from ltd_pipe.models.classifier import Classifier
    from ltd_pipe.objectives import Labels, Moment
    from ltd_pipe.params import FitParams, TrainParams


# --- Batches that are prepared while the step before them runs.


def ahead(
    batches: Generator[Batch, None, None],
    fetch: Callable[[Batch], Batch],
    device: torch.device,
    *,
    count: int = 1,
) -> Generator[Batch, None, None]:
    """Give the same batches in the same order, `count` of them prepared while one is used.

    A thread reads and decodes them, checks that their labels are theirs, and gathers these; for
    a GPU it also starts the copies, on a stream of their own beside the step's kernels. What
    fails there is raised here when that batch's turn has come, after those before it.

    Parameters
    ----------
    batches : generator of Batch
        Advanced and closed here.
    fetch : callable
        What else is to be done to a batch, such as `Examples.fetch`.
    device : torch.device
        Where batches are.
    count : int
        0: nothing is done ahead, and there is no thread.

    Yields
    ------
    Batch

    Notes
    -----
    Close it when a step fails or stops: that waits for what the thread has begun, and ends it.
    """
    with contextlib.closing(batches):
        prepared = map(fetch, batches)
        if count == 0:
            yield from prepared
            return
        sender = _Sender(prepared, device)
        places: deque[Future[Batch | None]] = deque()
        with Background(threads=1, waiting=count + 1) as background, sender:
            while True:
                while len(places) <= count:
                    places.append(Future())
                    background.do(sender.send, places[-1])
                batch = places.popleft().result()
                if batch is None:
                    return
                sender.receive(batch)
                yield batch


class _Sender:
    """Prepares one batch at a time on the thread; leaving the block makes it take no other."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._left = batches, threading.Event()
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._arrived: deque[torch.cuda.Event] = deque()
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # What is resident was written by the stream that is current now.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._left.set()

    def send(self, place: Future[Batch | None]) -> None:
        """Prepare the next batch, and put it or its error in its place; None at the end."""
        try:
            with torch.cuda.stream(self._stream):
                batch = None if self._left.is_set() else next(self._batches, None)
                if self._stream is not None:
                    self._arrived.append(self._stream.record_event())
            place.set_result(batch)
        except BaseException as error:
            place.set_exception(error)

    def receive(self, batch: Batch) -> None:
        """Let the current stream begin with the batch once it has arrived; the host goes on."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._arrived.popleft())
        tensors = [batch.images, batch.labels, batch.index]
        if batch.ahead is not None:
            tensors += batch.ahead[1]
        for tensor in tensors:
            # Its memory is the other stream's, which must not use it again before this one has.
            tensor.record_stream(current)


# --- A pass of one image, of which batch normalisation has no statistics.


# Of torch.nn.functional.batch_norm, where the features of the one image are one pixel.
_NO_STATISTICS = "Expected more than 1 value per channel when training"


@contextlib.contextmanager
def lone_image_explained(architecture: str) -> Iterator[None]:
    """Turn the block's failure on a single image into an error that says what to set.

    Parameters
    ----------
    architecture : str
        Of the network that fails.

    Raises
    ------
    ParamsError
    """
    try:
        yield
    except ValueError as error:
        if _NO_STATISTICS not in str(error):
            raise
        raise ParamsError(
            "batch_size",
            f"{architecture} normalises by batch statistics, which one image has not",
            expected="two images or more in each pass of each process",
            remedy="Raise batch_size (or images), or lower accumulation_steps.",
        ) from error


# --- The distribution that each image is trained towards.


def onehot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """All mass on the true class: shape (B, K), dtype float32, from labels of shape (B,)."""
    return functional.one_hot(labels, num_classes).to(torch.float32)


def smoothed(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """`smoothing` of the mass moved from the true class to all classes evenly.

    Szegedy et al. 2016, section 7: q = (1 - s) · onehot + s / K. Shape (B, K), float32.
    """
    return onehot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def rectified_weight(soft: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
    """Weight of each soft label, lowered where it contradicts the ground truth.

    λ_i = clip(λ - (max_k q_k - q_y), 0, 1), as in ADR (arXiv 2305.12118; yuyuwu5/ADR, adr.py): a
    teacher that puts more mass on another class loses that much of its weight.

    Parameters
    ----------
    soft : Tensor of shape (B, K), dtype float32
    labels : Tensor of shape (B,), dtype int64
    weight : float
        λ in [0, 1].

    Returns
    -------
    Tensor of shape (B,), dtype float32
    """
    true = soft.gather(1, labels[:, None]).squeeze(1)
    return (weight - (soft.amax(dim=1) - true)).clamp(0.0, 1.0)


def mixed(
    soft: torch.Tensor, labels: torch.Tensor, weight: float, *, rectify: bool
) -> torch.Tensor:
    """Soft labels and one-hot labels, weighted.

    Parameters
    ----------
    soft : Tensor of shape (B, K), dtype float32
        Rows are distributions.
    labels : Tensor of shape (B,), dtype int64
    weight : float
        Of the soft label, in [0, 1]; the rest is one-hot.
    rectify : bool
        Lower the weight per sample, see `rectified_weight`.

    Returns
    -------
    Tensor of shape (B, K), dtype float32
    """
    hard = onehot(labels, soft.shape[1])
    if not rectify:
        return weight * soft + (1.0 - weight) * hard
    share = rectified_weight(soft, labels, weight)[:, None]
    return share * soft + (1.0 - share) * hard


# --- What a step of training learns from: augmented images and their labels, drawn together.


class Drawn(NamedTuple):
    """Images with the labels that belong to them.

    Attributes
    ----------
    images : Tensor of shape (B, C, H, W), dtype uint8
    target, truth : Tensor of shape (B, K), dtype float32
        The distributions to train towards, and the ground truth: one-hot, or a mixture.
    """

    images: torch.Tensor
    target: torch.Tensor
    truth: torch.Tensor

    def part(self, which: slice) -> Drawn:
        """Some of the samples."""
        return Drawn(self.images[which], self.target[which], self.truth[which])


class Examples(Protocol):
    """Gives the images of a batch with the labels that belong to them.

    One call gives both, so that the loop cannot meet one view's image with another's label.
    """

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """What can be done ahead, on another thread: check a batch, and gather its label rows.

        `draw` does it itself for a batch that has not been through it.
        """

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """Augment a batch and look its labels up.

        Parameters
        ----------
        batch : Batch
            Of B samples.
        epoch : int
        """


@dataclass(frozen=True)
class FreshExamples:
    """Augments anew in each epoch; the target is the sample's, wherever it is cropped.

    Attributes
    ----------
    augmentation : Augmentation
    seed : int
        The run's.
    target_of : callable
        From Batch to its targets, Tensor of shape (B, K), float32.
    sizes : Sizes, optional
        Of the images, by epoch; None: as they are.
    fetch_of : callable, optional
        From Batch to one whose label rows are on their way.
    """

    augmentation: Augmentation
    seed: int
    target_of: Callable[[Batch], torch.Tensor]
    sizes: Sizes | None = None
    fetch_of: Callable[[Batch], Batch] | None = None

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """See `Examples`."""
        del epoch
        return batch if self.fetch_of is None else self.fetch_of(batch)

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """See `Examples`."""
        size = None if self.sizes is None else self.sizes.at(epoch)
        images = augment(
            batch.images, batch.index, self.augmentation, seed=self.seed, epoch=epoch, size=size
        )
        target = self.target_of(batch)
        return Drawn(images, target, onehot(batch.labels, target.shape[1]))


@dataclass(frozen=True)
class MixedExamples:
    """Other examples, each mixed with its neighbour: pixels, target and truth alike.

    Attributes
    ----------
    examples : Examples
    mixing : Mixing
    seed : int
        The run's, also where the images are views that a store's seed has drawn.
    """

    examples: Examples
    mixing: Mixing
    seed: int

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """See `Examples`."""
        return self.examples.fetch(batch, epoch)

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """See `Examples`; the batch has whole pairs, see `ltd_pipe.images.augment`."""
        images, target, truth = self.examples.draw(batch, epoch)
        images, mixture = mix(images, batch.index, self.mixing, seed=self.seed, epoch=epoch)
        return Drawn(images, mixture.rows(target), mixture.rows(truth))


def fresh_examples(
    params: FitParams,
    seed: int,
    target_of: Callable[[Batch], torch.Tensor],
    fetch_of: Callable[[Batch], Batch] | None = None,
) -> Examples:
    """Examples of plain images as parameters ask for them; see `FreshExamples`."""
    fresh = FreshExamples(params.augmentation, seed, target_of, params.sizes, fetch_of)
    return mixed_as_asked(fresh, params, seed)


def mixed_as_asked(examples: Examples, params: FitParams, seed: int) -> Examples:
    """Examples as they are, or mixed where the parameters ask for it."""
    return examples if params.mixing.is_none else MixedExamples(examples, params.mixing, seed)


# --- A teacher that is asked in the run: frozen, in evaluation mode, of the data's classes.


@dataclass(frozen=True)
class LiveTeacher:
    """Answers with logits at one temperature, whatever temperature it was trained at.

    Attributes
    ----------
    model : Classifier
        Frozen, in evaluation mode.
    temperature : float
        Divides its raw logits.
    sha256 : str
        Of its file.
    """

    model: Classifier
    temperature: float
    sha256: str

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, K); gradients reach the images and no weight."""
        return self.model.raw_logits(images) / self.temperature

    def placed(self, device: torch.device, *, channels_last: bool) -> LiveTeacher:
        """The teacher where images are, and in their memory format."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = self.model.to(device).to(memory_format=layout)
        return replace(self, model=model)

    @property
    def facts(self) -> dict[str, Any]:
        """What a student's checkpoint says of it; plain values."""
        return {
            "sha256": self.sha256,
            "architecture": self.model.architecture,
            "temperature": self.temperature,
        }


def open_teacher(path: Path, manifest: Manifest, temperature: float = 1.0) -> LiveTeacher:
    """Load a checkpoint of ours as a teacher for some images, on the host.

    Parameters
    ----------
    path : Path
    manifest : Manifest
        Of the training images.
    temperature : float
        Divides its raw logits.

    Raises
    ------
    MissingError, CheckpointError
        When there is no such checkpoint, or it is damaged.
    ModelError
        When it is of other classes, of another order of them, or of another shape of images.
    """
    model = load_classifier(path)
    model.require_data(manifest.class_names, manifest.shape, f"the images for teacher {path}")
    frozen = model.requires_grad_(requires_grad=False).eval()
    return LiveTeacher(frozen, temperature, sha256_file(path))


@dataclass(frozen=True)
class LiveLabels:
    """The teacher's answers to the very images of a step, as labels.

    Attributes
    ----------
    teacher : LiveTeacher
    weight : float
        Of the answer, in [0, 1]; the rest is one-hot.
    rectify : bool
        Lower the weight per sample, see `ltd_pipe.training.data.rectified_weight`.
    """

    teacher: LiveTeacher
    weight: float = 1.0
    rectify: bool = False

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: Labels) -> Labels:
        """The labels with the teacher's answers as targets."""
        soft = torch.softmax(self.teacher(images).float(), dim=1)
        truth = labels.truth.argmax(dim=1)
        return replace(labels, target=mixed(soft, truth, self.weight, rectify=self.rectify))


# --- ADR: the student's moving average softens its labels (Wu et al. 2024, arXiv 2305.12118).


def annealed(ends: tuple[float, float], moment: Moment) -> float:
    """Half a cosine wave from the first step's value towards the value after the last step."""
    first, last = ends
    wave = 0.5 * (1.0 + math.cos(math.pi * moment.step / moment.steps))
    return last + (first - last) * wave


@dataclass(frozen=True)
class SelfDistillation:
    """Answers of the moving average to the clean images, mixed with the truth.

    With p = softmax(average's logits / τ), the target is λ_i · p + (1 - λ_i) · onehot(y), where
    λ_i = clip(λ - (max_k p_k - p_y), 0, 1): equations 3 to 5, as third parties number them.
    Temperature τ and weight λ are annealed over all steps of the run.

    In the authors' code (yuyuwu5/ADR, adr.py and advTrainer.py) the average begins at the
    initial weights with its full decay; ours follows faster in the first steps. Their attack in
    adversarial training opposes this target (`attack_label: target`); TRADES' is as it was.

    Attributes
    ----------
    average : callable
        Gives the moving average as it is now: a model in evaluation mode.
    temperatures : tuple of float
        τ at the first step and after the last one.
    weights : tuple of float
        λ, likewise.
    """

    average: Callable[[], torch.nn.Module]
    temperatures: tuple[float, float]
    weights: tuple[float, float]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: Labels) -> Labels:
        """The labels with these targets."""
        temperature = annealed(self.temperatures, labels.moment)
        weight = annealed(self.weights, labels.moment)
        soft = torch.softmax(self.average()(images).float() / temperature, dim=1)
        truth = labels.truth.argmax(dim=1)
        return replace(labels, target=mixed(soft, truth, weight, rectify=True))


# --- Examples whose targets are a store's soft labels: of the sample, or of the very view.


class SoftTargets:
    """Target distributions of a batch, after each of its images was found to be the store's.

    Parameters
    ----------
    params : TrainParams
        What else goes into the target; `label_temperature`.
    store : SoftLabels
    data : str
        How the user knows the images, for the error.
    device : torch.device
        Where batches are.
    """

    def __init__(
        self, params: TrainParams, store: SoftLabels, data: str, device: torch.device
    ) -> None:
        self._params, self._store, self._data = params, store, data
        self._labels = LabelsOnDevice(store, device, temperature=params.label_temperature)

    def fetch(self, batch: Batch, view: int = 0) -> Batch:
        """Check a batch, and start bringing the label rows of one view to the device.

        Raises
        ------
        JoinError
            At the first sample whose label belongs to another image.
        """
        self._store.join(batch.rows, batch.sample_hash, self._data)
        return replace(batch, ahead=(view, self._labels.fetch(batch.rows, view=view)))

    def of(self, batch: Batch, view: int = 0) -> torch.Tensor:
        """Targets for one view of the samples.

        Returns
        -------
        Tensor of shape (B, K), dtype float32

        Raises
        ------
        JoinError
            As `fetch`, for a batch that has not been through it with this view.
        """
        if batch.ahead is None or batch.ahead[0] != view:
            batch = self.fetch(batch, view)
        assert batch.ahead is not None  # noqa: S101  that is what fetch adds
        soft = self._labels.distributions(batch.ahead[1])
        weight, rectify = self._params.soft_weight, self._params.rectify
        return mixed(soft, batch.labels, weight, rectify=rectify)


class ReplayedExamples:
    """The images that the teacher saw, with its answers to them: view epoch modulo V.

    Augmentation and seed are the store's, whatever the run's seed is, and one number chooses
    both the image and its label.

    Parameters
    ----------
    replay : Replay
        Of the store.
    soft : SoftTargets
        Of the same store.
    sizes : Sizes, optional
        Into which the views are shrunk, by epoch; None: they are as the teacher saw them.
    """

    def __init__(self, replay: Replay, soft: SoftTargets, sizes: Sizes | None = None) -> None:
        self._replay, self._soft, self._sizes = replay, soft, sizes

    def fetch(self, batch: Batch, epoch: int) -> Batch:
        """See `Examples`."""
        return self._soft.fetch(batch, epoch % self._replay.count)

    def draw(self, batch: Batch, epoch: int) -> Drawn:
        """See `Examples`."""
        view = epoch % self._replay.count
        images = self._replay.images(batch.images, batch.index, view)
        if self._sizes is not None:
            images = resized(images, self._sizes.at(epoch))
        target = self._soft.of(batch, view)
        return Drawn(images, target, onehot(batch.labels, target.shape[1]))


def stored_examples(
    params: TrainParams, store: SoftLabels, data: str, device: torch.device, seed: int
) -> Examples:
    """Examples with a store's labels; arguments are those of `SoftTargets`.

    Labels of plain images are taken for any crop of them, as the run draws it. Labels of
    augmented views belong to those views alone, which are made again.

    Raises
    ------
    JoinError
        When the labels belong to other views than the parameters ask for.
    """
    soft = SoftTargets(params, store, data, device)
    views = store.attributes.views
    if views.augmentation is None:
        return fresh_examples(params, seed, soft.of, soft.fetch)
    replay = Replay.of(views, store.path)
    _require_same_augmentation(params, replay, store)
    return mixed_as_asked(ReplayedExamples(replay, soft, params.sizes), params, seed)


def _require_same_augmentation(params: TrainParams, replay: Replay, store: SoftLabels) -> None:
    # The store decides, and the parameters say the same: nobody shall believe that he trains
    # on other crops than he does.
    asked, made = params.augmentation, replay.augmentation
    if asked == made:
        return
    scale = "null" if made.crop_scale is None else "[{:g}, {:g}]".format(*made.crop_scale)
    raise JoinError(
        store.path,
        "augmentation of the labelled views",
        expected=f"'{made}'",
        found=f"'{asked}' by train.crop_padding, crop_scale, flip, policy and cutout",
        remedy=f"Train with crop_padding: {made.crop_padding}, crop_scale: {scale}, flip: "
        f"{str(made.flip).lower()}, policy: {made.policy or 'null'}, cutout: {made.cutout}, or "
        f"label again with --augmentation {asked}.",
    )
