"""Random resized crops: where torchvision's would be, and its pixels."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional

from ltd_pipe.images.augment import boxes
from ltd_pipe.images.resize import _by_torch, resized, resized_crop

SHAPES = [(224, 224), (33, 57), (57, 33), (8, 8), (1, 5), (1, 1)]
IDS = [f"{height}x{width}" for height, width in SHAPES]


def photos(height, width, count=24):
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def make_boxes(height, width, count=24, scale=(0.08, 1.0), key=3):
    return boxes(torch.arange(count), key, height, width, scale)


def by_torchvision(images, box, shape=None):
    shape = shape or images.shape[2:]
    pairs = zip(images, box.tolist(), strict=True)
    return torch.stack(
        [functional.resized_crop(one, *place, shape, antialias=True) for one, place in pairs]
    )


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_the_pixels_are_torchvisions(shape):
    """Within one grey level of antialiased `resized_crop` in float32, and hardly ever off in uint8.

    Both round after the first axis and after the second.
    """
    images, box = photos(*shape), make_boxes(*shape)
    ours = resized_crop(images, box)
    assert (ours - by_torchvision(images.float(), box)).abs().max() <= 1.001
    assert (ours != by_torchvision(images, box)).float().mean() < 0.05


OTHER_SIZES = [(32, 32), (20, 50), (7, 5), (1, 1), (300, 3)]


@pytest.mark.parametrize("size", OTHER_SIZES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_other_sizes_are_torchvisions_too(shape, size):
    """Larger and smaller, each axis for itself: within one grey level."""
    images, box = photos(*shape, 8), make_boxes(*shape, 8)
    off = resized_crop(images, box, size) - by_torchvision(images.float(), box, size)
    assert off.shape == (8, 3, *size)
    assert off.abs().max() <= 1.001


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_torch_and_the_compiled_kernel_cannot_be_told(shape):
    """What a GPU computes is what the CPU does, to the bit, in the same size and in others."""
    images, box = photos(*shape), make_boxes(*shape)
    for size in (shape, *OTHER_SIZES):
        assert torch.equal(_by_torch(images, box, size), resized_crop(images, box, size))


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_boxes_lie_inside(shape):
    """Never empty, never beyond the edge, whatever the image's shape."""
    height, width = shape
    top, left, tall, wide = make_boxes(height, width, 2000).unbind(dim=1)
    assert (torch.stack((tall, wide)) >= 1).all()
    assert (torch.stack((top, left)) >= 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()


def test_boxes_are_distributed_as_asked():
    """Areas uniform in the scale, aspects log-uniform in 3/4 to 4/3, places over the whole image.

    Up to 0.5 of the area every box fits, so that nothing is drawn twice.
    """
    top, left, tall, wide = make_boxes(500, 500, 20_000, (0.1, 0.5)).double().unbind(dim=1)
    share, aspect = tall * wide / 500**2, wide / tall
    assert abs(share.mean() - 0.3) < 0.003
    assert abs(share.quantile(0.25) - 0.2) < 0.005
    assert abs(aspect.log().mean()) < 0.003
    assert abs(aspect.log().std() - math.log(16 / 9) / math.sqrt(12)) < 0.003
    assert abs((top / (500 - tall)).mean() - 0.5) < 0.01
    assert abs((left / (500 - wide)).quantile(0.9) - 0.9) < 0.01


def test_the_next_guess_is_taken_where_one_does_not_fit():
    """Of a share of 0.9 to 1 few boxes fit at once; those that are found have that share."""
    box = make_boxes(200, 200, 5000, (0.9, 1.0))
    share = (box[:, 2] * box[:, 3]) / 200**2
    assert (share > 0.89).all()
    assert (box[:, 2] != box[:, 3]).float().mean() > 0.8


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((60, 60), (0, 0, 60, 60)),
        ((60, 200), (0, 60, 60, 80)),
        ((200, 60), (60, 0, 80, 60)),
    ],
    ids=["square", "wide", "tall"],
)
def test_the_middle_is_taken_where_nothing_fits(shape, expected):
    """A whole image of another aspect: the largest allowed box, as torchvision's last resort."""
    # Of all of a square, only the aspect of exactly one fits.
    box = make_boxes(*shape, 50, (1.0, 1.0))
    assert set(map(tuple, box.tolist())) == {expected}


def test_a_whole_image_is_itself():
    """The box of everything changes nothing."""
    images = photos(20, 30)
    box = torch.tensor([[0, 0, 20, 30]]).expand(len(images), 4)
    assert torch.equal(resized_crop(images, box), images)


def test_by_hand():
    """Two columns out to four: quarters between them, halves rounded up."""
    image = torch.tensor([[[[10, 20, 200, 200]]]], dtype=torch.uint8)
    box = torch.tensor([[0, 0, 1, 2]])
    assert resized_crop(image, box).tolist() == [[[[10, 13, 18, 20]]]]


def test_shrunk_by_hand():
    """Four pixels to two: triangles of four pixels' width, 1 : 3 : 3 : 1, cut at the edges.

    Their centres are 1 and 3; of the first 3 : 3 : 1 remains.
    """
    image = torch.tensor([[[[0, 70, 140, 210]]]], dtype=torch.uint8)
    assert resized(image, (1, 2)).tolist() == [[[[50, 160]]]]
    assert resized(image, (1, 4)) is image


def test_batches_cannot_be_told():
    """One at a time, or in groups that are no multiple of anything: the same bits."""
    images, box = photos(57, 33, 37), make_boxes(57, 33, 37)
    whole = resized_crop(images, box)
    for size in (1, 5, 37):
        pairs = zip(images.split(size), box.split(size), strict=True)
        assert torch.equal(torch.cat([resized_crop(*pair) for pair in pairs]), whole)
    assert resized_crop(images[:0], box[:0]).shape == (0, 3, 57, 33)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_cannot_be_told():
    """Boxes and pixels of the GPU are the CPU's."""
    images, index = photos(224, 224), torch.arange(24)
    box = boxes(index.cuda(), 3, 224, 224, (0.25, 1.0))
    assert torch.equal(box.cpu(), boxes(index, 3, 224, 224, (0.25, 1.0)))
    for size in ((224, 224), (160, 160), (96, 256)):
        found = resized_crop(images.cuda(), box, size).cpu()
        assert torch.equal(found, resized_crop(images, box.cpu(), size))
