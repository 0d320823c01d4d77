"""Progressive resizing: small images first, the data's own size wherever the model is judged."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from short_runs import ATTACK

from ltd_pipe.device import PrecisionSettings
from ltd_pipe.errors import ModelError
from ltd_pipe.images.beton import open_beton, write_beton
from ltd_pipe.images.resize import resized
from ltd_pipe.images.sources import open_source
from ltd_pipe.images.stream import ImageStream
from ltd_pipe.params import PrepareParams, TrainParams
from ltd_pipe.training.data import BatchTransform, LabelTargets
from ltd_pipe.training.run import new_classifier, split_samples, student_trainer
from ltd_pipe.training.snapshots import Snapshots
from ltd_pipe.training.trainer import RunContext, Watcher

CPU = torch.device("cpu")
GROWING = {"progressive_resize": (32, 64), "progressive_between": (0.0, 0.5), "epochs": 2}
SHORT = ATTACK | {"attack_steps": 1, "validation_attack_steps": 1}


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    """24 pictures of 64×64, of two classes."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(24):
        folder = root / "train" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 128, (64, 64, 3), dtype=np.uint8) + 127 * (number % 2)
        content = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(content, "PNG")
        (folder / f"{number}.png").write_bytes(content.getvalue())
    params = PrepareParams(dataset="folder", path=str(root), validation_fraction=0.3)
    write_beton(open_source(params, "train"), root / "train.beton", params, "train")
    return open_beton(root / "train.beton")


def make_fit(beton, folder, **changes):
    content = {"architecture": "resnet18-w4", "batch_size": 8, "label_kind": "onehot"}
    params = TrainParams(**content | SHORT | GROWING | changes)
    model = new_classifier(params, beton.manifest, seed=0, role="student", device=CPU)
    # With few channels, oneDNN of torch 2.15 writes beyond its memory in the other layout.
    contiguous = PrecisionSettings(channels_last=False)
    return student_trainer(
        model,
        ImageStream(beton, CPU, resident=True),
        split_samples(beton),
        params,
        RunContext(0, Snapshots(folder), contiguous),
    )


def test_training_sees_growing_images_and_validation_the_datas(beton, tmp_path):
    """32 pixels, then 64; each validation has 64, and nothing else is taken after it."""
    fit, seen = make_fit(beton, tmp_path), []
    network = fit.model.network.register_forward_pre_hook(
        lambda _, given: seen.append((len(fit.progress.history), given[0].shape[2]))
    )
    history = fit.run(Watcher())
    network.remove()
    assert set(seen) == {(0, 32), (1, 64)}
    assert all(0 <= row["validation/robust_accuracy"] <= 1 for row in history)
    for model in (fit.model, fit.average, fit.best):
        with refused(
            ModelError,
            where="resnet18-w4",
            what="shape",
            expected="(B, 3, 64, 64)",
            found=(1, 3, 32, 32),
        ):
            model(torch.zeros(1, 3, 32, 32))


def test_a_resumed_run_is_the_same(beton, tmp_path):
    """Sizes are those of the epoch, wherever the run was interrupted."""
    whole = make_fit(beton, tmp_path / "whole").run(Watcher())

    class Stopped(Watcher):
        def epoch(self, history):
            if len(history) == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_fit(beton, tmp_path / "parts").run(Stopped())
    assert make_fit(beton, tmp_path / "parts").run(Watcher()) == whole


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"architecture": "small-cnn-w4"}, {"where": "small-cnn-w4", "what": "images"}),
        (
            {"progressive_resize": (64, 128)},
            {
                "what": "grow",
                "expected": "square images of the data, and sizes up to theirs",
                "found": "64×64",
            },
        ),
    ],
    ids=["network", "size"],
)
def test_what_cannot_grow_is_refused_before_the_first_step(beton, tmp_path, changes, fields):
    """Naming the network or the size."""
    with refused(ModelError, **fields):
        make_fit(beton, tmp_path, **changes)


def test_any_batch_gives_the_same_small_images(beton):
    """Of plain images, the whole image shrunk; with crops, the crop drawn in that size."""
    params = TrainParams(
        architecture="resnet18-w4", eps=0.1, step_size=0.1, crop_scale=(0.3, 1.0), **GROWING
    )
    stream = ImageStream(beton, CPU, resident=True)
    for one in (params, params.model_copy(update={"crop_scale": None})):
        transform = BatchTransform(one, 0, LabelTargets(2))
        (batch,) = stream.batches(np.arange(24), 24)
        whole = transform.apply(batch, 0).images
        assert whole.shape == (24, 3, 32, 32)
        parts = [transform.apply(part, 0).images for part in stream.batches(np.arange(24), 7)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole, resized(batch.images, (32, 32)))
